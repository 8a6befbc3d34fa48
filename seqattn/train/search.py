"""A search for settings, apart from how it is done: what is searched, what was found, and what comes of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from seqattn.errors import ParameterError
from seqattn.train.callbacks import Progress
from seqattn.train.config import Run, check_names, json_ready, read_toml
from seqattn.train.costs import COSTS
from seqattn.train.folder import RunFolder

__all__ = ["Outcome", "Plan", "Space", "refit", "starting_points", "storage_place", "warm_starts"]

_RULES = {"float": ("low", "high", "log"), "int": ("low", "high", "log"), "choice": ("choices",)}
_JOURNALS = (".journal", ".log")
_DATABASES = (".db", ".sqlite", ".sqlite3")
_SERVERS = ("postgresql", "postgres")
_TABLES = ("space", "fixed", "trial", "refit", "start", "limit", "pruning")


@dataclass(frozen=True)
class Space:
    """What is searched, and what each trial and the final fit are given besides.

    Attributes
    ----------
    model
        Name of the model within the task; None is the task's first.
    rules
        Settings that are searched: ``type`` ("float", "int", "choice") with ``low``, ``high``, ``log`` or
        ``choices``.
    fixed, trial, refit
        Settings of every fit, of trials only, and of the final fit only.
    starts
        Settings that are tried first, by name; what one leaves out has the estimator's default.
    limits
        The most that a model may cost, by names in :data:`seqattn.train.costs.COSTS`.
    second
        A cost that is minimised beside the objective; empty for none.
    startup_trials, warmup_epochs
        Trials that must have completed before one is pruned, and epochs before which none is.
    """

    model: str | None = None
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    trial: dict[str, Any] = field(default_factory=dict)
    refit: dict[str, Any] = field(default_factory=dict)
    starts: dict[str, dict[str, Any]] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    startup_trials: int = 5
    warmup_epochs: int = 0
    second: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Space:
        """Read a search space from a TOML file.

        Parameters
        ----------
        path
            A file with the keys of ``tuning/hawkes.toml``.

        Raises
        ------
        ParameterError
            The file cannot be read, or holds something that is not known.
        """
        values = read_toml(path)
        check_names(values, ("model", "second", *_TABLES), f"a key of {str(path)!r}")
        for name in _TABLES:
            if not isinstance(values.setdefault(name, {}), dict):
                raise ParameterError(f"{name!r} in {str(path)!r} is {values[name]!r}. Give a table.")
        check_names(values["pruning"], ("startup_trials", "warmup_epochs"), "a key of 'pruning'")
        if not values["space"]:
            raise ParameterError(f"{str(path)!r} has no table 'space', so there is nothing to search.")
        for name, rule in values["space"].items():
            _check_rule(name, rule)
        parts = (values[name] for name in _TABLES[:-1])
        space = cls(values.get("model"), *parts, **values["pruning"])
        return replace(space, second=values.get("second", ""))

    def with_settings(self, settings: Mapping[str, Any]) -> Space:
        """Return the space with some settings fixed, which are then no longer searched.

        Parameters
        ----------
        settings
            Constructor arguments for every fit; they also replace those of trials and of the final fit.
        """
        rules = {name: rule for name, rule in self.rules.items() if name not in settings}
        trial, refit = ({**part, **_common(part, settings)} for part in (self.trial, self.refit))
        return replace(self, rules=rules, fixed={**self.fixed, **settings}, trial=trial, refit=refit)

    def searched(self) -> dict[str, Any]:
        """Return all but what is asked of the models, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key not in ("limits", "second")}


def _common(part: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in part}


def _check_rule(name: str, rule: Any) -> None:
    """Refuse a rule that names no values to choose from."""
    kind = rule.get("type") if isinstance(rule, dict) else None
    check_names([str(kind)], _RULES, f"a type for the searched setting {name!r}")
    keys = _RULES[str(kind)]
    check_names([key for key in rule if key != "type"], keys, f"a key of the searched setting {name!r}")
    missing = [key for key in keys if key not in rule and key != "log"]
    if missing:
        raise ParameterError(f"The searched setting {name!r} has no {missing[0]!r}.")
    if kind == "choice":
        is_good = isinstance(rule["choices"], list) and len(rule["choices"]) > 0
    else:
        numbers = [_is_number(rule[key], kind) for key in ("low", "high")]
        is_good = all(numbers) and rule["low"] <= rule["high"] and (rule["low"] > 0 or not rule.get("log"))
    if not is_good:
        raise ParameterError(
            f"The searched setting {name!r} is {rule}. Give a list of choices, or numbers with low <= high "
            "(and 0 < low if log)."
        )


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, int if kind == "int" else int | float) and not isinstance(value, bool)


def _is_inside(value: Any, rule: Mapping[str, Any]) -> bool:
    if rule["type"] == "choice":
        return any(type(value) is type(choice) and value == choice for choice in rule["choices"])
    return _is_number(value, rule["type"]) and bool(rule["low"] <= value <= rule["high"])


@dataclass(frozen=True)
class Plan:
    """What is searched, on which data, and where the results go.

    Attributes
    ----------
    task
        Name of the task, one of ``seqattn.TASKS``.
    output
        Folder for the study and the best model.
    data
        Known name, folder or file; empty for the task's small data set. A single file is cut at random into
        training, development and test data.
    read
        Options with which the data are read.
    trials
        Total of the study over all workers and calls.
    storage
        A journal file (``.journal``, ``.log``), an SQLite file or a database URL; empty for ``study.journal`` in
        the folder.
    study
        Name of the study; empty takes task and data.
    timeout
        Seconds after which no further trial starts.
    seed
        Seed of the search and of every fit.
    device
        Where fits run.
    settings
        Constructor arguments for every fit, which then are not searched.
    space
        What is searched; an empty one stands for ``tuning/<task>.toml``.
    limits
        The most that a model may cost, by names in :data:`seqattn.train.costs.COSTS`; they replace those of the
        space. A trial above one is shown and never the best.
    second
        A cost that is minimised beside the objective; empty takes that of the space. Nothing is pruned then.
    warm_start
        Folders of other studies, or configurations such as their ``best.toml``, whose settings are tried first.
    choose
        Number of the trial that is refitted and tested; None takes the best.
    quiet
        Whether to say nothing while running.
    deadline
        Follows from ``timeout`` when the search begins, in seconds since 1970.
    """

    task: str
    output: str | Path
    data: str = ""
    read: dict[str, Any] = field(default_factory=dict)
    trials: int = 50
    storage: str = ""
    study: str = ""
    timeout: float = math.inf
    seed: int = 0
    device: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    space: Space = field(default_factory=Space)
    limits: dict[str, Any] = field(default_factory=dict)
    second: str = ""
    warm_start: Sequence[str | Path] = ()
    choose: int | None = None
    quiet: bool = False
    deadline: float = math.inf

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ParameterError(f"trials={self.trials!r} is not allowed. Give a whole number, at least 1.")
        check_names(self.limits, COSTS, "a limit")
        check_names([self.second] if self.second else [], COSTS, "a second objective")
        for name, limit in self.limits.items():
            if not (_is_number(limit, "float") and 0 < limit < math.inf):
                raise ParameterError(f"The limit {name}={limit!r} is not allowed. Give a number above 0.")

    def build(self, task: ModuleType, *settings: Mapping[str, Any]) -> Any:
        """Return an estimator with the settings of every fit and further ones.

        Parameters
        ----------
        task
            Module of the task.
        settings
            Constructor arguments; later ones replace earlier ones.
        """
        merged = {name: value for part in (self.space.fixed, *settings) for name, value in part.items()}
        return task.build(merged, self.space.model, seed=self.seed, device=self.device, read=self.read)

    def say(self, text: str) -> None:
        """Write a line to the standard error stream, unless the search is to be quiet.

        Parameters
        ----------
        text
            The line.
        """
        if not self.quiet:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def storage_place(storage: str, workers: int) -> str:
    """Return the absolute path of a journal, or the URL of a database.

    Parameters
    ----------
    storage
        A path or URL.
    workers
        Number of processes that will write to it.

    Raises
    ------
    ParameterError
        It is neither, or cannot serve so many.
    """
    if workers < 1:
        raise ParameterError(f"workers={workers!r} is not allowed. Give a whole number, at least 1.")
    ending = Path(storage).suffix.lower()
    if "://" not in storage and ending not in _JOURNALS + _DATABASES:
        endings = ", ".join(_JOURNALS + _DATABASES)
        raise ParameterError(f"storage={storage!r} is neither a URL nor a file that ends in {endings}.")
    if "://" not in storage:
        storage = f"{'' if ending in _JOURNALS else 'sqlite:///'}{Path(storage).resolve()}"
    scheme = storage.partition("://")[0].partition("+")[0] if "://" in storage else ""
    if scheme not in ("", "sqlite", *_SERVERS):
        raise ParameterError(
            f"The storage is a database of {scheme!r}. Allowed: postgresql://USER@HOST/DATABASE, sqlite:///FILE, or a "
            "journal file."
        )
    if workers > 1 and storage.startswith("sqlite"):
        raise ParameterError(
            f"SQLite cannot serve {workers} workers: each write locks the whole file, and writers that wait too long "
            "fail. Use a journal file (--storage study.journal, the default), PostgreSQL (postgresql://...), or "
            "--workers 1."
        )
    return storage


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes
    ----------
    study
        Name of the study.
    n_trials, n_complete, n_pruned, n_failed
        Trials that have ended, and how.
    best_value, best_params, best_trial
        The highest objective on the development data within the limits, the settings that gave it, and the number of
        that trial; those of another trial if it was chosen.
    dev, test
        Objective of the refitted best settings on the development data, and every metric on the test data.
    output
        Folder with everything that was written.
    trials
        One record per trial.
    importance
        Share of each searched setting in the spread of the objective; empty with fewer than two complete trials.
    n_infeasible
        Complete trials above a limit.
    second
        The second objective; empty if there is none.
    front
        With a second objective, the trials within the limits that none beats in both: ``number``, ``value`` and the
        cost, by falling value.
    """

    study: str
    n_trials: int
    n_complete: int
    n_pruned: int
    n_failed: int
    best_value: float
    best_params: dict[str, Any]
    best_trial: int
    dev: float
    test: dict[str, Any]
    output: Path
    trials: list[dict[str, Any]]
    importance: dict[str, float]
    n_infeasible: int = 0
    second: str = ""
    front: list[dict[str, Any]] = field(default_factory=list)


def starting_points(task: ModuleType, plan: Plan) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the settings that are tried first, after a look at whether estimators can be built with all of them.

    Parameters
    ----------
    task
        Module of the task.
    plan
        The plan of the search.

    Returns
    -------
    For each starting point its searched settings and its further ones.

    Raises
    ------
    ParameterError
        A setting is unknown, of the wrong kind, or outside of what is searched.
    """
    space = plan.space
    for name, rule in space.rules.items():
        _check_rule(name, rule)
    usual = task.settings(plan.build(task, space.trial))
    plan.build(task, space.refit)
    starts = {}
    for name, settings in space.starts.items():
        free = {key: value for key, value in settings.items() if key not in space.fixed}
        params = {key: free.get(key, usual.get(key)) for key in space.rules}
        extra = {key: value for key, value in free.items() if key not in space.rules}
        plan.build(task, space.trial, params, extra)
        for key, value in params.items():
            if not _is_inside(value, space.rules[key]):
                raise ParameterError(
                    f"The starting point {name!r} has {key}={value!r}, outside of {space.rules[key]}. Leave it out, "
                    "or widen the space."
                )
        starts[name] = (params, extra)
    return starts


def warm_starts(task: ModuleType, plan: Plan) -> dict[str, dict[str, Any]]:
    """Return starting points from the best settings of other studies or data, by where they come from.

    Settings of trials and of the final fit, such as the number of epochs, are those of this search. Others that are
    not searched are taken over where they differ from the estimator's default.

    Parameters
    ----------
    task
        Module of the task.
    plan
        The plan of the search.

    Raises
    ------
    ParameterError
        A configuration cannot be read, or is of another task or model.
    """
    space, starts = plan.space, {}
    usual = task.settings(plan.build(task, space.trial)) if plan.warm_start else {}
    model = space.model or next(iter(task.MODELS))
    for place in plan.warm_start:
        path = Path(place) / "best.toml" if Path(place).is_dir() else Path(place)
        run = Run.load(path)
        if (run.task, run.model or model) != (plan.task, model):
            raise ParameterError(
                f"{str(path)!r} holds settings of {run.model!r} ({run.task}), and the search is for {model!r} "
                f"({plan.task}). Leave it out."
            )
        own = space.fixed.keys() | space.trial.keys() | space.refit.keys()
        starts[f"warm start {place}"] = {
            name: value
            for name, value in run.settings.items()
            if name not in own and (name in space.rules or value != json_ready(usual.get(name)))
        }
    return starts


def refit(
    task: ModuleType, plan: Plan, number: int, params: Mapping[str, Any], parts: Mapping[str, Any]
) -> dict[str, Any]:
    """Fit the best settings for longer and test them, unless that was done before.

    Parameters
    ----------
    task
        Module of the task.
    plan
        The plan of the search.
    number
        Number of the best trial.
    params
        Its settings.
    parts
        Data for ``"train"``, ``"dev"`` and ``"test"``.

    Returns
    -------
    ``dev``, the objective on the development data, and ``test``, every metric on the test data, as JSON values.
    """
    model = plan.build(task, plan.space.refit, params)
    settings, output = task.settings(model), Path(plan.output)
    digests = {role: X.digest() for role, X in parts.items()}
    model_name = plan.space.model or next(iter(task.MODELS))
    run = Run(plan.task, model_name, plan.data, plan.seed, plan.device, plan.read, settings, digests)
    folder = RunFolder(output / "best")
    folder.begin(run, overwrite=True)
    (output / "best.toml").write_text(run.to_toml(), encoding="utf-8")
    figures = folder.figures()
    if figures is None:
        plan.say(f"refitting the settings of trial {number}, then the only look at the test data")
        observers = [] if plan.quiet else [Progress()]
        folder.fit(task, model, parts["train"], parts["dev"], observers)
        test = task.evaluate(model, parts["test"])
        figures = json_ready({"dev": task.objective(model, parts["dev"]), "test": test})
        folder.finish(figures)
    text = json.dumps({"trial": number, "settings": settings, **figures}, indent=2)
    (output / "evaluation.json").write_text(text, encoding="utf-8")
    return figures
