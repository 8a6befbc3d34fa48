"""The figures of the paper on training dynamics, made again: what is run, what was run before, and what it came to."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import torch

from seqattn.data.catalog import resource, searched
from seqattn.dynamics.figures import CURVES, memory_of, parts_of
from seqattn.errors import DataError, ParameterError
from seqattn.reproduce.pool import Launcher, run_all
from seqattn.reproduce.results import Identity, Results, deciding
from seqattn.reproduce.statistics import Spread, spread
from seqattn.train.config import check_names, json_ready, read_toml, versions
from seqattn.train.folder import make_folder
from seqattn.train.workers import FileLock

__all__ = [
    "TITLES",
    "Claim",
    "Figure",
    "FigurePlan",
    "Figures",
    "known_figures",
    "reproduce_figures",
]

TITLES = {
    "chi": "growth of the odds at the end",
    "entropy_distinct": "entropy on distinct tokens (nats)",
    "common_mass": "attention on common tokens (share)",
    "order": "rank correlation of attention with frequency",
    "share_of_bound": "largest distance of h* from h (share of its bound)",
    "B_at_t0": "B at t0",
    "entropy": "entropy of attention (nats)",
    "entropy_share": "entropy over that of even attention (share)",
    "valid_loss": "loss on validation text (nats per word)",
    "late_change": "change of entropy in the last 60 % of the steps (share)",
    "frequency_order": "rank correlation of attention logits with word frequency",
}
"""What the metrics are called."""


@dataclass(frozen=True)
class Claim:
    """What is said of the order of some rows.

    Attributes
    ----------
    says
        The claim in words.
    metric
        What is compared.
    order
        ``"falls"`` or ``"rises"`` along the rows.
    rows
        Names of rows; those that were not run are passed over.
    """

    says: str
    metric: str
    order: str
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A figure, as ``datasets/dynamics/figures.toml`` tells of it.

    Attributes
    ----------
    name
        Such as ``"figure4"``.
    title
        What it shows.
    protocol
        How it is made.
    source
        Where the published values come from; empty if there are none.
    differs
        What sets ours apart from the paper's.
    settings
        What decides on it.
    published
        Published values by metric, then by row.
    text
        Name of the text that it needs; empty for none.
    claims
        What the paper says of it that can be checked.
    seeds
        How many seeds it is run with unless it is said.
    is_changed
        Whether settings are not those of the file; published values then do not stand beside.
    """

    name: str
    title: str
    protocol: str
    source: str
    differs: str
    settings: dict[str, Any]
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    text: str = ""
    claims: tuple[Claim, ...] = ()
    seeds: int = 3
    is_changed: bool = False

    def value(self, row: str, metric: str) -> float | None:
        """Return the published value of a row, or None.

        Parameters
        ----------
        row, metric
            Name of the row and of the metric.
        """
        return None if self.is_changed else self.published.get(metric, {}).get(row)


def known_figures() -> list[Figure]:
    """Return the figures that can be made, in the order of the paper.

    Examples
    --------
    >>> [figure.name for figure in known_figures()][:2]
    ['figure3', 'figure4']
    """
    told = read_toml(resource("datasets", "dynamics", "figures.toml"))
    return [_figure(name, **about) for name, about in told["figure"].items()]


def _figure(name: str, claims: Sequence[Mapping[str, Any]] = (), **about: Any) -> Figure:
    said = (Claim(**{**claim, "rows": tuple(claim["rows"])}) for claim in claims)
    return Figure(name, claims=tuple(said), **about)


@dataclass(frozen=True)
class FigurePlan:
    """What is run and where the results go.

    Attributes
    ----------
    output
        Folder of the results.
    figures
        Names; empty for all.
    seeds
        How many seeds; None is as many as each figure asks for.
    seed
        The first one.
    settings
        Settings in place of those of the figures that have them.
    workers
        Parts at the same time.
    backend, scheduler
        As in :class:`seqattn.reproduce.run.Plan`.
    retry_failed
        Whether to run parts again that failed.
    quiet
        Whether to say nothing while running.
    """

    output: str | Path
    figures: Sequence[str] = ()
    seeds: int | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    backend: str = "local"
    scheduler: str | None = None
    retry_failed: bool = False
    quiet: bool = False

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
class _Cell:
    figure: Figure
    identity: Identity
    folder: Path

    @property
    def title(self) -> str:
        part = self.identity.model
        return self.figure.name if part == "all" else f"{self.figure.name}, {part}"


@dataclass(frozen=True)
class Figures:
    """What came of the figures.

    Attributes
    ----------
    plan
        What was run.
    figures
        Those that were asked for and can be made here.
    complete, failed
        Records of their parts; the failed with their ``reason``.
    skipped
        Figures that cannot be made here, with the reason.
    """

    plan: FigurePlan
    figures: list[Figure]
    complete: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    skipped: dict[str, str]

    @cached_property
    def spreads(self) -> dict[tuple[str, str, str], Spread]:
        """Figure, row and metric to the spread over seeds, in the order of the table."""
        values: dict[tuple[str, str, str], list[float]] = {}
        for record in self.complete:
            for each in record["values"]:
                if each["value"] is not None:
                    key = (record["dataset"], each["row"], each["metric"])
                    values.setdefault(key, []).append(each["value"])
        return {key: spread(found) for key, found in values.items()}

    def rows(self) -> list[dict[str, Any]]:
        """Return the table, one row per row of a figure and metric, with the keys of ``COLUMNS``."""
        by_name, rows = {figure.name: figure for figure in self.figures}, []
        for (name, row, metric), found in self.spreads.items():
            figure = by_name[name]
            published = figure.value(row, metric)
            rows.append(
                {
                    "dataset": name,
                    "model": row,
                    "metric": metric,
                    "mean": found.mean,
                    "std": found.std,
                    "n_seeds": found.n,
                    "published": published,
                    "source": None if published is None else figure.source,
                    "protocol": figure.protocol + (", with other settings" if figure.is_changed else ""),
                }
            )
        return rows

    def curves(self, figure: str) -> pl.DataFrame:
        """Return the points of a figure.

        Parameters
        ----------
        figure
            Its name.
        """
        paths = [
            Path(self.plan.output, each["curves"]) for each in self.complete if each["dataset"] == figure
        ]
        there = [pl.read_parquet(path) for path in paths if path.exists()]
        return pl.concat(there) if there else pl.DataFrame(schema=CURVES)


def reproduce_figures(plan: FigurePlan) -> Figures:
    """Make the parts of figures that have not been made, and gather all.

    As with tables, each part has a process of its own, what is finished is kept in ``results.jsonl``, and the same call
    goes on after an interruption.

    Parameters
    ----------
    plan
        What is run.

    Raises
    ------
    ParameterError
        A name or value is not allowed, or another call is at work in the folder.
    """
    figures, skipped = _chosen(plan)
    output = make_folder(plan.output)
    lock = FileLock(output / "lock")
    if not lock.acquire(wait=False):
        raise ParameterError(
            f"Another call is at work in {str(output)!r}. Wait for it, or choose another --output."
        )
    try:
        results = Results(output / "results.jsonl")
        cells = [cell for figure in figures for cell in _cells(figure, plan)]
        _work_off(plan, cells, results)
    finally:
        lock.release()
    latest = [record for cell in cells if (record := results.latest(cell.identity.key())) is not None]
    complete, failed = (
        [record for record in latest if record["status"] == state] for state in ("complete", "failed")
    )
    return Figures(plan, figures, complete, failed, skipped)


def _chosen(plan: FigurePlan) -> tuple[list[Figure], dict[str, str]]:
    """Return the figures with the settings of the plan, and why others are skipped."""
    known = known_figures()
    check_names(plan.figures, [figure.name for figure in known], "a figure")
    chosen = [figure for figure in known if not plan.figures or figure.name in plan.figures]
    check_names(
        plan.settings, {name for figure in chosen for name in figure.settings}, "a setting of these figures"
    )
    found, skipped = [], {}
    for figure in (_with(figure, plan.settings) for figure in chosen):
        if figure.text and text_folder(figure.text) is None:
            skipped[figure.name] = (
                f"the text {figure.text!r} is not on this machine. Put its train.txt and valid.txt into "
                f"SEQATTN_DATA/text/{figure.text}."
            )
            plan.say(f"{figure.name}: skipped, {skipped[figure.name]}")
        else:
            found.append(figure)
    if not found:
        raise DataError(f"None of the figures can be made here: {next(iter(skipped.values()))}")
    return found, skipped


def _with(figure: Figure, settings: Mapping[str, Any]) -> Figure:
    own = {name: value for name, value in settings.items() if name in figure.settings}
    changed = {**figure.settings, **own}
    return Figure(**{**vars(figure), "settings": changed, "is_changed": changed != figure.settings})


def text_folder(name: str) -> Path | None:
    """Return the folder of a text, or None if it is not on this machine.

    Parameters
    ----------
    name
        Such as ``"wikitext-2"``.
    """
    places = [place.path / name for place in searched("text")]
    return next((place for place in places if (place / "train.txt").exists()), None)


def _cells(figure: Figure, plan: FigurePlan) -> Iterator[_Cell]:
    folder = text_folder(figure.text) if figure.text else None
    digests = {} if folder is None else {path.stem: _digest(path) for path in sorted(folder.glob("*.txt"))}
    is_theory = "lr_y" in figure.settings and "batch_size" not in figure.settings
    seeds = 1 if is_theory else plan.seeds or figure.seeds
    for part in parts_of(figure.name, figure.settings):
        identity = Identity(
            dataset=figure.name,
            model=part,
            seed=0 if is_theory else plan.seed,
            kind="figure",
            settings=json_ready(figure.settings) | {"n_seeds": seeds},
            digests=digests,
            versions=deciding(versions()),
        )
        place = Path("cells", f"{figure.name}-{part.replace(' ', '-')}-{identity.key()}")
        yield _Cell(figure, identity, place)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _work_off(plan: FigurePlan, cells: Sequence[_Cell], results: Results) -> None:
    again = ("failed",) if plan.retry_failed else ()
    states = {
        cell.identity.key(): (results.latest(cell.identity.key()) or {}).get("status") for cell in cells
    }
    todo = {
        key: cell
        for cell in cells
        if states[key := cell.identity.key()] in (None, *again) or _is_gone(plan, cell, states[key])
    }
    done, failed = (list(states.values()).count(state) for state in ("complete", "failed"))
    plan.say(
        f"{len(cells)} part{'s' * (len(cells) != 1)} of figures: {done} complete, {failed} failed before, "
        f"{len(todo)} to run"
    )
    if failed and not plan.retry_failed:
        plan.say("Failed parts do not run again by themselves; --retry-failed runs them.")
    if not todo:
        return
    _tell_memory(plan, todo.values())
    launcher = Launcher(plan.say)
    try:
        outcomes = run_all(_orders(plan, todo), launcher, plan.workers, plan.backend, plan.scheduler)
        for number, outcome in enumerate(outcomes, 1):
            if outcome["status"] != "interrupted":
                cell = todo[outcome["key"]]
                results.append(_record(plan, cell, outcome))
                told = outcome.get("reason") or f"{outcome['seconds']:.0f} s"
                plan.say(f"{cell.title}: {told}, {number} of {len(todo)} done")
    finally:
        launcher.stop()


def _tell_memory(plan: FigurePlan, cells: Iterable[_Cell]) -> None:
    """Say before the run what parts that learn a text will need."""
    for cell in cells:
        folder = text_folder(cell.figure.text) if cell.figure.text else None
        if folder is not None:
            given = cell.identity.settings | {"text": str(folder)}
            needed = memory_of(cell.identity.model, given, given["n_seeds"])
            plan.say(f"{cell.title}: at most {needed / 2**20:.0f} MB beside the program itself")


def _is_gone(plan: FigurePlan, cell: _Cell, status: str | None) -> bool:
    """Tell whether the curves of a finished part were removed."""
    return status == "complete" and not Path(plan.output, cell.folder, "curves.parquet").exists()


def _orders(plan: FigurePlan, todo: Mapping[str, _Cell]) -> Iterator[dict[str, Any]]:
    # All threads of the machine, unless several parts share it.
    threads = torch.get_num_threads() if plan.workers == 1 and plan.backend == "local" else 1
    for key, cell in todo.items():
        identity = cell.identity
        folder = text_folder(cell.figure.text) if cell.figure.text else None
        where = {} if folder is None else {"text": str(folder.resolve())}
        count = identity.settings["n_seeds"]
        yield {
            "key": key,
            "title": cell.title,
            "figure": identity.dataset,
            "part": identity.model,
            "settings": {**identity.settings, **where},
            "seeds": list(range(identity.seed, identity.seed + count)),
            "versions": identity.versions,
            "threads": threads,
            "folder": str(Path(plan.output, cell.folder).resolve()),
        }


def _record(plan: FigurePlan, cell: _Cell, outcome: Mapping[str, Any]) -> dict[str, Any]:
    identity = cell.identity
    words = ["seqattn", "reproduce", "dynamics", "--datasets", identity.dataset, "--seed", str(plan.seed)]
    words += ["--seeds", str(plan.seeds)] if plan.seeds else []
    words += [word for name, value in plan.settings.items() for word in ("--set", f"{name}={value}")]
    return {
        **vars(identity),
        **outcome,
        "curves": Path(cell.folder, "curves.parquet").as_posix(),
        "command": shlex.join(words),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
