"""A search for settings, apart from how it is done: what is searched, what was found, and what comes of it."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from seqattn.errors import ParameterError
from seqattn.train.callbacks import Progress
from seqattn.train.config import Run, check_names, json_ready, short_name
from seqattn.train.costs import COSTS
from seqattn.train.folder import RunFolder
from seqattn.train.space import Space, check_rule, is_inside, is_number

__all__ = ["Outcome", "Plan", "refit", "starting_points", "storage_place", "warm_starts"]

_JOURNALS = (".journal", ".log")
_DATABASES = (".db", ".sqlite", ".sqlite3")
_SERVERS = ("postgresql", "postgres")
# What the tables of Optuna hold of a name.
_LONGEST_NAME = 512


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
        Folders of other studies, or configurations such as their ``best.toml``, whose settings a new study tries
        first.
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
        if not self.timeout >= 0:
            raise ParameterError(f"timeout={self.timeout!r} is not allowed. Give seconds, at least 0.")
        if self.choose is not None and not 0 <= self.choose < self.trials:
            raise ParameterError(
                f"choose={self.choose!r} is no trial of {self.trials}. They are numbered 0 to {self.trials - 1}."
            )
        _check_study(self.study)
        check_names(self.limits, COSTS, "a limit")
        check_names([self.second] if self.second else [], COSTS, "a second objective")
        for name, limit in self.limits.items():
            if not (is_number(limit, "float") and 0 < limit < math.inf):
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
        merged = self.space.decoded(merged)
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


def _check_study(name: str) -> None:
    """Refuse a name that not every storage can hold."""
    try:
        is_good = len(name.encode()) <= _LONGEST_NAME and "\0" not in name
    except UnicodeEncodeError:
        is_good = False
    if not is_good:
        short = name if len(name) < 40 else f"{name[:40]}..."
        raise ParameterError(
            f"The study name {short!r} is not allowed. Give at most {_LONGEST_NAME} bytes of UTF-8 without zeros."
        )


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
        # What is not understood may hold a password.
        raise ParameterError(
            f"The storage is neither a URL nor a file that ends in {endings}; it ends in {_plain(ending)!r}. Give "
            "postgresql://USER@HOST/DATABASE, sqlite:///FILE, or a file."
        )
    if "://" not in storage:
        storage = f"{'' if ending in _JOURNALS else 'sqlite:///'}{Path(storage).resolve()}"
    scheme = storage.partition("://")[0].partition("+")[0] if "://" in storage else ""
    if scheme not in ("", "sqlite", *_SERVERS):
        raise ParameterError(
            f"The storage is a database of {scheme!r}. Allowed: postgresql://USER@HOST/DATABASE, sqlite:///FILE, or a "
            "journal file."
        )
    if scheme == "sqlite" and _is_in_memory(storage):
        raise ParameterError(
            "The storage is an SQLite database in memory, which is gone with the process. Name a file, such as "
            "sqlite:///study.db."
        )
    if workers > 1 and scheme == "sqlite":
        raise ParameterError(
            f"SQLite cannot serve {workers} workers: each write locks the whole file, and writers that wait too long "
            "fail. Use a journal file (--storage study.journal, the default), PostgreSQL (postgresql://...), or "
            "--workers 1."
        )
    return storage


def _plain(ending: str) -> str:
    return ending if re.fullmatch(r"\.[a-z0-9]{1,8}", ending) else ""


def _is_in_memory(storage: str) -> bool:
    name = storage.partition("://")[2].partition("?")[0].strip("/")
    return name in ("", ":memory:", "file::memory:") or "mode=memory" in storage


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes
    ----------
    study
        Name of the study.
    n_trials, n_complete, n_pruned, n_failed
        Trials that have ended, and how.
    output
        Folder with everything that was written.
    trials
        One record per trial.
    importance
        Share of each searched setting in the spread of the objective; empty with fewer than two complete trials.
    rules
        What was searched, as in :class:`seqattn.train.space.Space`.
    n_infeasible
        Complete trials above a limit.
    second
        The second objective; empty if there is none.
    front
        With a second objective, the trials within the limits that none beats in both: ``number``, ``value`` and the
        cost, by falling value.
    best_value, best_params, best_trial
        The highest objective of a trial within the limits, the settings that gave it, and the number of
        that trial; those of another trial if it was chosen. None and empty if none can be chosen.
    dev, test
        Objective of the refitted best settings on the development data, None without any, and every metric on the
        test data.
    """

    study: str
    n_trials: int
    n_complete: int
    n_pruned: int
    n_failed: int
    output: Path
    trials: list[dict[str, Any]]
    importance: dict[str, float]
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    n_infeasible: int = 0
    second: str = ""
    front: list[dict[str, Any]] = field(default_factory=list)
    best_value: float | None = None
    best_params: dict[str, Any] = field(default_factory=dict)
    best_trial: int | None = None
    dev: float | None = None
    test: dict[str, Any] = field(default_factory=dict)


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
        check_rule(name, rule)
    usual = task.settings(plan.build(task, space.trial))
    check_names(
        space.rules, usual, f"a setting of {space.model or next(iter(task.MODELS))!r} that can be searched"
    )
    plan.build(task, space.refit)
    starts = {}
    for name, settings in space.starts.items():
        free = {key: value for key, value in settings.items() if key not in space.fixed}
        params = {key: free.get(key, usual.get(key)) for key in space.rules}
        extra = {key: value for key, value in free.items() if key not in space.rules}
        plan.build(task, space.trial, params, extra)
        for key, value in params.items():
            if not is_inside(value, space.rules[key]):
                raise ParameterError(
                    f"The starting point {name!r} has {key}={value!r}, outside of {space.rules[key]}. Leave it out, "
                    "or widen the space."
                )
        starts[name] = (space.encoded(params), extra)
    return starts


def warm_starts(task: ModuleType, plan: Plan) -> dict[str, dict[str, Any]]:
    """Return starting points from the best settings of other studies or data, named after those data.

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
    space, starts = plan.space, dict[str, dict[str, Any]]()
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
        starts[_new_name(f"warm start {short_name(run.data)}".strip(), {*starts, *space.starts})] = {
            name: value
            for name, value in run.settings.items()
            if name not in own and (name in space.rules or value != json_ready(usual.get(name)))
        }
    return starts


def _new_name(name: str, taken: Collection[str]) -> str:
    names = (name if count == 1 else f"{name} {count}" for count in itertools.count(1))
    return next(new for new in names if new not in taken)


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
        Data for ``"train"``, ``"test"`` and, where there are some, ``"dev"``.

    Returns
    -------
    ``dev``, the objective on the development data, None without any, and ``test``, every metric on the test data, both
    as JSON values.
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
        dev = parts.get("dev")
        folder.fit(task, model, parts["train"], dev, observers)
        test = task.evaluate(model, parts["test"], **task.beside(plan.data, "test"))
        figures = json_ready({"dev": None if dev is None else task.objective(model, dev), "test": test})
        folder.finish(figures)
    text = json.dumps({"trial": number, "settings": settings, **figures}, indent=2)
    (output / "evaluation.json").write_text(text, encoding="utf-8")
    return figures
