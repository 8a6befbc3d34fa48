"""The grid, worked off cell by cell: what is done already is kept, what failed is shown, the rest runs."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import seqattn
from seqattn.data import catalog
from seqattn.errors import DataError, ParameterError, suggest
from seqattn.reproduce.grid import Grid, Model
from seqattn.reproduce.pool import Launcher, run_all
from seqattn.reproduce.results import Identity, Results, deciding
from seqattn.train.config import Run, json_ready, short_name, versions
from seqattn.train.folder import make_folder
from seqattn.train.workers import FileLock

__all__ = ["Cell", "Plan", "Reproduction", "reproduce"]


@dataclass(frozen=True)
class Plan:
    """What is run, how, and where the results go.

    Attributes
    ----------
    noun
        Name of the table, such as "tpp".
    output
        Folder of the results.
    datasets, models
        Names of those that are run; none stands for all of the grid.
    seeds
        How many seeds.
    seed
        The first of them.
    settings
        Constructor arguments over those of the grid, for every model that has them.
    device
        Where models run that can choose.
    workers
        Cells at the same time; several have one thread each.
    backend, scheduler
        As for :func:`seqattn.reproduce.pool.run_all`.
    retry_failed
        Whether cells that failed before run again.
    config
        File with another grid, or the name of another one of the package; empty for that of the table's name.
    grid
        Another grid, whose models are patterns of attention; its name is then that of a task.
    quiet
        Whether to say nothing while running.
    """

    noun: str
    output: str | Path
    datasets: Sequence[str] = ()
    models: Sequence[str] = ()
    seeds: int = 3
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    workers: int = 1
    backend: str = "local"
    scheduler: str | None = None
    retry_failed: bool = False
    config: str = ""
    grid: Grid | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "workers"):
            if getattr(self, name) < 1:
                raise ParameterError(
                    f"{name}={getattr(self, name)!r} is not allowed. Give a whole number, at least 1."
                )

    def say(self, text: str) -> None:
        """Write a line to the standard error stream, unless the run is to be quiet.

        Parameters
        ----------
        text
            The line.
        """
        if not self.quiet:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: what decides on its figures, and how a person gets them again.

    Attributes
    ----------
    identity
        What decides on its figures.
    command
        The command line that runs it alone.
    """

    identity: Identity
    command: str

    @property
    def title(self) -> str:
        """How the cell is called in progress lines and lists."""
        return f"{self.identity.dataset}, {self.identity.model}, seed {self.identity.seed}"

    @property
    def folder(self) -> str:
        """Name of the folder of its run: readable, and another one for everything that decides on figures."""
        words = "".join(letter if letter.isalnum() else "-" for letter in self.identity.model.lower())
        model = "-".join(filter(None, words.split("-")))
        return f"{short_name(self.identity.dataset)}/{model}-{self.identity.seed}-{self.identity.key()}"


@dataclass(frozen=True)
class Reproduction:
    """What came of a grid.

    Attributes
    ----------
    plan, grid
        What was run.
    complete, failed
        Records of the cells, see ``results.jsonl``; the failed with their ``reason``.
    skipped
        Data sets that are not on this machine, with the way to get them.
    protocols
        How ours are measured on each data set, with what sets them apart from the published figures.
    embedded
        Data sets taken from the samples that come with the package.
    partial
        Data sets whose content is not the known one; no published figure stands beside theirs.
    """

    plan: Plan
    grid: Grid
    complete: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    skipped: dict[str, str]
    protocols: dict[str, str]
    embedded: frozenset[str]
    partial: frozenset[str]


def reproduce(plan: Plan) -> Reproduction:
    """Run the cells of a grid that have not been run, and gather all.

    Each cell has a process and a folder of its own. Whatever becomes of it, the others go on; a cell that failed is
    not run again unless ``retry_failed`` asks for it. An interrupted call loses nothing that is finished: the same
    call goes on with the cells that are left, and in a cell that was cut with the next epoch. Results are appended to
    ``results.jsonl`` in the output folder; what was run with other data, settings or versions stays there and does
    not count.

    Parameters
    ----------
    plan
        What is run.

    Returns
    -------
    The records of all cells of the grid, whether they ran now or before.

    Raises
    ------
    ParameterError
        A name or value is not allowed, or another call is at work in the folder.
    DataError
        None of the data sets is on this machine, or the results are damaged.
    """
    whole = plan.grid or _grid(plan)
    grid = whole.select(plan.datasets, plan.models)
    module = seqattn.task(grid.task)
    _check_settings(module, grid, plan)
    output = make_folder(plan.output)
    lock = FileLock(output / "lock")
    if not lock.acquire(wait=False):
        raise ParameterError(
            f"Another call is at work in {str(output)!r}. Wait for it, or choose another --output."
        )
    try:
        found, skipped = _look(module, grid, plan)
        cells = [
            cell for name, seen in found.items() for cell in _cells(module, grid, plan, name, seen.digests)
        ]
        results = Results(output / "results.jsonl")
        _say_what_differs(plan, results, cells)
        _work_off(plan, grid, cells, results)
    finally:
        lock.release()
    latest = [record for cell in cells if (record := results.latest(cell.identity.key())) is not None]
    return Reproduction(
        plan=plan,
        grid=grid,
        complete=[_with_cases(output, record) for record in latest if record["status"] == "complete"],
        failed=[record for record in latest if record["status"] == "failed"],
        skipped=skipped,
        protocols={name: "; ".join(filter(None, (grid.protocol, seen.note))) for name, seen in found.items()},
        embedded=frozenset(name for name, seen in found.items() if seen.is_embedded),
        partial=frozenset(name for name, seen in found.items() if not seen.is_known),
    )


@dataclass(frozen=True)
class _Seen:
    """What a look at a data set has shown."""

    digests: dict[str, str]
    note: str
    is_known: bool
    is_embedded: bool


def _look(module: ModuleType, grid: Grid, plan: Plan) -> tuple[dict[str, _Seen], dict[str, str]]:
    """Look at the data sets; return what was seen, and why others are skipped."""
    found, skipped = {}, {}
    for wanted in grid.datasets:
        try:
            origin = _origin(wanted.name, module.FAMILY)
        except DataError as error:
            skipped[wanted.name] = str(error)
            plan.say(f"{wanted.name}: skipped. {error}")
            continue
        with _warnings_of(wanted.name):
            parts = module.splits(wanted.name, module.SPLITS)
        differs = [] if origin == "path" else module.deviations(wanted.name, parts)
        digests = {role: X.digest() for role, X in parts.items()}
        note = f"not the published data: {', '.join(differs)}" if differs else wanted.note
        found[wanted.name] = _Seen(digests, note, not differs, origin == "embedded")
    if not found:
        raise DataError(f"None of the data sets is on this machine. {next(iter(skipped.values()))}")
    return found, skipped


def _origin(name: str, family: str) -> str:
    return "path" if catalog.is_on_disk(name) else catalog.find(name, family).origin


@contextlib.contextmanager
def _warnings_of(name: str) -> Iterator[None]:
    """Begin each warning with the name of the data set that it is about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for found in caught:
        warnings.warn(f"{name}: {found.message}", found.category, stacklevel=2)


def _settings(module: ModuleType, grid: Grid, model: Model, plan: Plan) -> dict[str, Any]:
    """Return every constructor argument of a model of the grid, those of the plan over those of the grid."""
    preset = Run.of_options(model.preset, grid.task, (), ()).settings if model.preset else {}
    usual = module.settings(module.build({**preset, **model.settings}, model.model))
    changed = {**usual, **{name: value for name, value in plan.settings.items() if name in usual}}
    built = module.build(changed, model.model, seed=plan.seed, device=_device(model, plan))
    return dict(json_ready(module.settings(built)))


def _device(model: Model, plan: Plan) -> str:
    return "auto" if model.is_baseline else plan.device


def _check_settings(module: ModuleType, grid: Grid, plan: Plan) -> None:
    """Refuse a setting that no model of the grid has."""
    known = {name for model in grid.models for name in _settings(module, grid, model, plan)}
    for name in plan.settings:
        if name not in known:
            raise ParameterError(
                f"{name!r} is a setting of none of these models: {', '.join(model.name for model in grid.models)}."
                f"{suggest(name, known)}"
            )


def _cells(
    module: ModuleType, grid: Grid, plan: Plan, dataset: str, digests: Mapping[str, str]
) -> Iterator[Cell]:
    for model in grid.models:
        settings = _settings(module, grid, model, plan)
        for seed in range(plan.seed, plan.seed + (1 if model.is_deterministic else plan.seeds)):
            identity = Identity(
                dataset=dataset,
                model=model.name,
                seed=seed,
                kind=model.model,
                settings=settings,
                evaluation=grid.evaluation,
                digests=dict(digests),
                versions=deciding(versions(), model.model),
            )
            yield Cell(identity, _command(plan, dataset, model.name, seed))


def _grid(plan: Plan) -> Grid:
    """Return the grid that a plan names."""
    place = Path(plan.config)
    is_name = not (place.exists() or place.suffix or len(place.parts) > 1)
    if not plan.config:
        return Grid.of(plan.noun)
    return Grid.of(plan.noun, plan.config) if is_name else Grid.load(place)


def _command(plan: Plan, dataset: str, model: str, seed: int) -> str:
    words = ["seqattn", "reproduce", plan.noun, "--datasets", dataset, "--models", model]
    if plan.grid is not None:
        words = ["seqattn", "attention", "compare", plan.noun, "--data", dataset, "--patterns", model]
    words += ["--seed", str(seed), "--seeds", "1"]
    words += [word for name, value in plan.settings.items() for word in ("--set", f"{name}={value}")]
    return shlex.join([*words, *(["--config", plan.config] if plan.config else [])])


def _say_what_differs(plan: Plan, results: Results, cells: Sequence[Cell]) -> None:
    """Say which results in the folder do not count, and why."""
    told = set()
    for cell in cells:
        if results.latest(cell.identity.key()) is not None:
            continue
        places = [record for record in results.records if _place(record) == cell.identity.place]
        for record in places[-1:]:
            told.add(
                (cell.identity.dataset, cell.identity.model, "; ".join(cell.identity.differences(record)))
            )
    for dataset, model, text in sorted(told):
        plan.say(
            f"{dataset}, {model}: there are results under other conditions ({text}). They stay, but do not count."
        )


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("dataset", "model", "seed"))


def _work_off(plan: Plan, grid: Grid, cells: Sequence[Cell], results: Results) -> None:
    """Run what has not been run, and append each outcome as it comes."""
    states = {
        cell.identity.key(): (results.latest(cell.identity.key()) or {}).get("status") for cell in cells
    }
    again = ("failed",) if plan.retry_failed else ()
    # Seeds outermost: a first complete table is there early. Baselines come first, since they take seconds.
    todo = [cell for cell in cells if states[cell.identity.key()] in (None, *again)]
    baselines = {model.name for model in grid.models if model.is_baseline}
    todo.sort(key=lambda cell: (cell.identity.model not in baselines, cell.identity.seed))
    done, failed = (list(states.values()).count(state) for state in ("complete", "failed"))
    plan.say(
        f"{len(cells)} cell{'s' * (len(cells) != 1)}: {done} complete, {failed} failed before, {len(todo)} to run"
    )
    if failed and not plan.retry_failed:
        plan.say("Failed cells do not run again by themselves; --retry-failed runs them.")
    if not todo:
        return
    launcher, by_key = Launcher(plan.say), {cell.identity.key(): cell for cell in todo}
    try:
        outcomes = run_all(_orders(plan, grid, todo), launcher, plan.workers, plan.backend, plan.scheduler)
        for number, outcome in enumerate(outcomes, 1):
            if outcome["status"] != "interrupted":
                cell = by_key[outcome["key"]]
                results.append(_record(plan, cell, outcome))
                plan.say(f"{cell.title}: {_told(grid, outcome)}, {number} of {len(todo)} done")
    finally:
        launcher.stop()


def _orders(plan: Plan, grid: Grid, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    devices = {model.name: _device(model, plan) for model in grid.models}
    watched = {
        metric.name: {"key": metric.best_of, "higher_is_better": metric.higher_is_better}
        for metric in grid.metrics
        if metric.best_of
    }
    # All threads of the machine, unless several cells share it.
    threads = torch.get_num_threads() if plan.workers == 1 and plan.backend == "local" else 1
    for cell in cells:
        yield {
            **asdict(cell.identity),
            "key": cell.identity.key(),
            "title": cell.title,
            "watched": watched,
            "task": grid.task,
            "device": devices[cell.identity.model],
            "threads": threads,
            "folder": str((Path(plan.output) / "cells" / cell.folder).resolve()),
        }


def _told(grid: Grid, outcome: Mapping[str, Any]) -> str:
    if outcome["status"] == "failed":
        return f"failed. {outcome['reason']}"
    value = outcome["metrics"].get(grid.metrics[0].name)
    return (
        f"{'-' if value is None else format(value, '.4f')} {grid.metrics[0].unit}, {outcome['seconds']:.0f} s"
    )


def _record(plan: Plan, cell: Cell, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of a cell that has ended; what it scored by test case goes into a file beside."""
    told = {name: value for name, value in outcome.items() if name not in ("key", "cases")}
    if "cases" in outcome:
        path = Path("cells", cell.folder, "cases.json")
        make_folder((Path(plan.output) / path).parent)
        (Path(plan.output) / path).write_text(json.dumps(outcome["cases"]), encoding="utf-8")
        told["cases"] = path.as_posix()
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "key": cell.identity.key(),
        **asdict(cell.identity),
        **told,
        "command": cell.command,
        "ended": ended,
    }


def _with_cases(output: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the values by test case in place of their file's name; None if the file is gone."""
    try:
        cases = json.loads((output / record["cases"]).read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError):
        cases = None
    return {**record, "cases": cases}
