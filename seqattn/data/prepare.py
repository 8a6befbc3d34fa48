"""From Parquet files that may be larger than memory to a saved folder, in three passes.

The first pass reads the files in pieces, checks every row, and learns the sequences, the types and the clock. The
second deals the rows out to files of whole sequences, each small enough for memory. The third reads each of them as
any table is read, and appends what comes of it. Memory holds one piece, and a few numbers and the id of each sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from seqattn.data import assemble
from seqattn.data.blocks import block_rows
from seqattn.data.clock import Clock, clock_of, to_numbers
from seqattn.data.events import checked_columns, grouped_events, head_rows, id_array, without_duplicates
from seqattn.data.labels import check_labels, code_labels, recoded
from seqattn.data.pieces import Parts
from seqattn.data.store import FolderWriter, check_target, publish
from seqattn.data.windows import Windows, bounds_of
from seqattn.data.workplace import work_folder
from seqattn.errors import DataError, ParameterError

if TYPE_CHECKING:
    from seqattn.data.sequences import Sequences

__all__ = ["Columns", "is_table_of_events", "prepare"]

_EVENT = np.dtype([("row", np.int64), ("sequence", np.int64), ("time", np.float64), ("type", np.int32)])
_KINDS = {"times": np.float64, "types": np.int32}
_BY_SEQUENCE = {"offsets": np.int64, "start": np.float64, "end": np.float64, "context": np.int64}


def is_table_of_events(path: str | Path, time: str = "t") -> bool:
    """Tell whether a path is a Parquet file with one event per row, which can be read in pieces.

    Parameters
    ----------
    path
        What is asked about.
    time
        Name of its column of times.
    """
    if Path(path).suffix.lower() != ".parquet" or not Path(path).is_file():
        return False
    parts = Parts(path)
    return not any(parts.holds_lists(name) for name in (time, "time_since_start"))


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table of events, and whether its rows are to be sorted."""

    seq: str | None
    time: str
    type: str
    sort: bool

    @property
    def names(self) -> list[str]:
        """The columns to read, each once."""
        return list(dict.fromkeys(name for name in (self.seq, self.time, self.type) if name is not None))

    def checked(self, frame: pl.DataFrame, first_row: int) -> tuple[pl.Series, pl.Series, pl.Series]:
        """Return ids, times and types of a piece, as :func:`seqattn.data.events.checked_columns` does."""
        return checked_columns(frame, self.seq, self.time, self.type, first_row)


@dataclass
class _Numbers:
    """Numbers for values in order of appearance, with how often each came.

    Dates are told apart by their bits: Python's know no nanoseconds and no second hour of a night when clocks change.
    """

    places: dict[Any, int] = field(default_factory=dict)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    kind: Any = None
    bits: Any = None

    def of(self, values: pl.Series) -> np.ndarray:
        """Return the number of each value; new values get the next ones."""
        self.kind = values.dtype
        values = values.to_physical() if self.kind.is_temporal() else values
        self.bits = values.dtype
        run, heads = head_rows(values)
        distinct = heads.unique(maintain_order=True)
        codes = np.array([self.places.setdefault(key, len(self.places)) for key in distinct.to_list()])
        if len(distinct) == len(heads):
            return codes[run]
        return heads.replace_strict(distinct, pl.Series(codes), return_dtype=pl.Int64).to_numpy()[run]

    def count(self, values: pl.Series) -> None:
        """Number the values of a piece, and count them."""
        counts = np.bincount(self.of(values), minlength=len(self.places))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def series(self) -> pl.Series:
        """Return the values in order of their numbers."""
        return pl.Series(list(self.places), dtype=self.bits).cast(self.kind)


@dataclass(frozen=True)
class _Survey:
    """What the first pass learns: sequences, types and clock."""

    sequences: _Numbers
    types: _Numbers
    clock: Clock
    earliest: float
    latest: float


def prepare(
    kind: type[Sequences],
    data: Any,
    folder: str | Path,
    columns: Columns,
    settings: assemble.Settings,
    piece: int,
) -> Path:
    """Read Parquet files in pieces into a saved folder.

    Parameters
    ----------
    kind
        The class of the sequences.
    data
        As in :class:`seqattn.data.pieces.Parts`, or such parts.
    folder
        Where the result goes; until it is complete the work lies in a hidden folder inside it, or beside it if new.
    columns
        What the table's columns are called.
    settings
        As for tables in memory.
    piece
        Rows read, and events put together, at once.

    Returns
    -------
    The folder, links followed.

    Raises
    ------
    DataError
        The data cannot be used, or the folder is taken.
    ParameterError
        The folder cannot be made.
    OSError
        Nothing can be written to it, or the disk is full.
    """
    parts, folder = data if isinstance(data, Parts) else Parts(data), check_target(folder)
    parts.check(columns.names)
    if parts.holds_lists(columns.time):
        raise DataError(
            f"Column {columns.time!r} holds lists, one sequence per row, but pieces are read with one event per row. "
            "Explode the lists first, for example with polars.scan_parquet(...).explode(...).sink_parquet(...)."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError(
            f"The folder {str(folder)!r} cannot be made: {error.strerror}. Choose another name."
        ) from error
    # The work lies on the file system of the result, which may be a mount of its own.
    with work_folder(folder if folder.exists() else folder.parent) as place:
        done = _Job(kind, parts, columns, settings, piece, _survey(parts, columns, piece), place).run()
        publish(done, folder)
    return folder


def _survey(parts: Parts, columns: Columns, piece: int) -> _Survey:
    sequences, types, bounds = _Numbers(), _Numbers(), []
    for row, frame in parts.pieces(columns.names, piece):
        keys, times, labels = columns.checked(frame, row)
        sequences.count(keys)
        types.count(labels)
        order = times.to_physical()
        bounds.append(times.gather([end for end in (order.arg_min(), order.arg_max()) if end is not None]))
    if not bounds:
        raise DataError("The table has no rows. At least one event is needed.")
    ends = pl.concat(bounds)
    clock = clock_of(ends)
    numbers = to_numbers(ends, clock, f"Column {columns.time!r}")
    return _Survey(sequences, types, clock, float(numbers.min()), float(numbers.max()))


class _Job:
    """The second and the third pass."""

    def __init__(
        self,
        kind: type[Sequences],
        parts: Parts,
        columns: Columns,
        settings: assemble.Settings,
        piece: int,
        survey: _Survey,
        place: Path,
    ) -> None:
        self.kind, self.parts, self.columns, self.settings = kind, parts, columns, settings
        self.piece, self.survey, self.place = piece, survey, place
        self._number_sequences()
        self._number_types()
        self.runs = list(block_rows(self.offsets, piece))
        self.zeros = np.zeros(2, dtype=np.int64)

    def _number_sequences(self) -> None:
        """Put the sequences into their order, and find their windows."""
        found = self.survey.sequences.series()
        order = np.arange(len(found))
        if self.columns.sort:
            order = found.to_frame("id").select(pl.arg_sort_by("id")).to_series().to_numpy().astype(np.int64)
        self.rank = np.empty_like(order)
        self.rank[order] = np.arange(len(order))
        ids, counts = id_array(found.gather(order)), self.survey.sequences.counts[order]
        windows = bounds_of(self.settings.window, ids.tolist(), self.settings.seq, self.survey.clock)
        if windows.kind == "max":
            windows.end[np.isnan(windows.end)] = self.survey.latest
        self.ids = assemble.extended(ids, windows.extra)
        counts = np.concatenate([counts, np.zeros(len(windows.extra), dtype=np.int64)])
        known = (counts > 0) | (np.isfinite(windows.start) & np.isfinite(windows.end))
        if not known.all():
            assemble.warn_of_dropped(int((~known).sum()))
        assemble.warn_of_origin(windows, self.survey.earliest)
        self.windows = Windows(windows.start[known], windows.end[known], windows.kind)
        self.ids = self.ids[known]
        self.offsets = np.concatenate([[0], np.cumsum(counts[known])]).astype(np.int64)

    def _number_types(self) -> None:
        """Find the code of each type; one that is not wanted has -1."""
        self.codes, self.found = code_labels(self.survey.types.series())
        counts = np.zeros(len(self.found), dtype=np.int64)
        counts[self.codes] = self.survey.types.counts
        given = self.settings.labels
        self.labels = self.found if given is None else check_labels(given)
        self.recoding = recoded(self.found, counts, self.labels, self.settings.unknown)

    def run(self) -> Path:
        """Return the folder with the result."""
        self._deal()
        done = self._write("read", (self._read(number) for number in range(len(self.runs))))
        spread = assemble.judge_ties(int(self.zeros[0]), int(self.zeros[1]), self.settings.ties)
        data, size = self.kind.open(done), self.settings.chunk
        is_cut = size is not None and bool((data.lengths > size).any())
        return self._write("settled", self._settled(data, spread, is_cut)) if spread or is_cut else done

    def _deal(self) -> None:
        """Write the rows of each run of sequences to a file of its own."""
        target = np.repeat(np.arange(len(self.runs)), [run.stop - run.start for run in self.runs])
        for first, frame in self.parts.pieces(self.columns.names, self.piece):
            keys, times, labels = self.columns.checked(frame, first)
            events = np.empty(len(frame), dtype=_EVENT)
            events["row"] = np.arange(first, first + len(frame))
            events["sequence"] = self.rank[self.survey.sequences.of(keys)]
            events["time"] = to_numbers(times, self.survey.clock, f"Column {self.columns.time!r}")
            events["type"] = self.codes[self.survey.types.of(labels)]
            self._append(events, target[events["sequence"]])

    def _append(self, events: np.ndarray, target: np.ndarray) -> None:
        if (np.diff(target) < 0).any():
            order = np.argsort(target, kind="stable")
            events, target = events[order], target[order]
        heads = np.flatnonzero(np.diff(target, prepend=-1))
        for begin, end in zip(heads, [*heads[1:], len(target)], strict=True):
            with self._file(target[begin]).open("ab") as file:
                file.write(events[begin:end].data)

    def _file(self, number: int | np.integer) -> Path:
        return self.place / f"{number}.events"

    def _read(self, number: int) -> Sequences:
        """Read one run of sequences as any table is read, up to the rule for ties."""
        rows, path = self.runs[number], self._file(number)
        dealt = np.fromfile(path, dtype=_EVENT) if path.exists() else np.empty(0, dtype=_EVENT)
        path.unlink(missing_ok=True)
        events = grouped_events(
            dealt["sequence"] - rows.start,
            np.ascontiguousarray(dealt["time"]),
            pl.Series(np.ascontiguousarray(dealt["type"])),
            dealt["row"],
            self.ids[rows],
            self.survey.clock,
            sort=self.columns.sort,
        )
        if self.settings.drop_duplicates:
            events = without_duplicates(events)
        windows = Windows(self.windows.start[rows], self.windows.end[rows], self.windows.kind)
        made = self.kind(**assemble.windowed(events, events.types.to_numpy(), self.found, windows))
        made = made.recode(self.recoding, self.labels)
        self.zeros += assemble.zero_gaps(made)
        return made

    def _settled(self, data: Sequences, spread: bool, is_cut: bool) -> Iterator[Sequences]:
        """Yield the sequences with ties spread and long ones cut, in this order, as tables in memory are."""
        rng, spacing = np.random.default_rng(0), assemble.tie_spacing(data) if spread else 0.0
        for block in data.blocks(self.piece):
            if spread:
                block = replace(block, **assemble.spread_apart(block, spacing, rng))
            if is_cut and self.settings.chunk is not None:
                block = replace(block, **assemble.cut(block, self.settings.chunk, self.settings.left_context))
            yield block

    def _write(self, name: str, blocks: Iterable[Sequences]) -> Path:
        """Write blocks one behind the other into a folder, and return it."""
        writer = FolderWriter(self.place / name, {**_KINDS, **_BY_SEQUENCE})
        ids, last = [], 0
        try:
            writer.append("offsets", np.zeros(1, dtype=np.int64))
            for block in blocks:
                for key in (*_KINDS, "start", "end", "context"):
                    writer.append(key, getattr(block, key))
                writer.append("offsets", block.offsets[1:] + last)
                ids.append(block.ids)
                last += block.n_events
            writer.finish(np.concatenate(ids), block.facts())
        finally:
            writer.close()
        return writer.folder
