"""The ways to make Sequences: tables, lists, records and files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import polars as pl

from seqattn.data import assemble
from seqattn.data.events import events_of_frame, events_of_pairs, events_of_records
from seqattn.data.pieces import Parts
from seqattn.data.prepare import Columns, prepare
from seqattn.data.store import is_saved
from seqattn.data.table import as_frame, is_table, read_frame
from seqattn.errors import DataError, ParameterError, suggest

if TYPE_CHECKING:
    from seqattn.data.sequences import Sequences

__all__ = ["TABLE_OPTIONS", "Readers"]

_OPTIONS = tuple(assemble.DEFAULTS)
TABLE_OPTIONS = ("seq", "time", "type", "sort", *_OPTIONS)
_COLUMNS = ("seq_id", "t", "k")
_RECORD = ("seq_idx", "time_since_start", "type_event")


class Readers(ABC):
    """The class methods of Sequences that read; what they make is finished by Sequences itself."""

    @classmethod
    @abstractmethod
    def _made(cls, columns: dict[str, Any], settings: assemble.Settings) -> Self:
        """Make sequences of columns and apply the settings that come after reading."""

    @classmethod
    @abstractmethod
    def open(cls, path: str | Path) -> Self:
        """Open a saved folder.

        Parameters
        ----------
        path
            Folder that ``save`` wrote.
        """

    @abstractmethod
    def _changed(self, **options: Any) -> Self:
        """Apply the options that make sense for sequences that are already made."""

    @classmethod
    def of(cls, data: Any, **options: Any) -> Self:
        """Return sequences from whatever is given.

        Parameters
        ----------
        data
            :class:`Sequences`, a table of events (polars, pandas, Arrow, mapping of columns), a list of pairs
            (times, types), a list of records in the "gatech" form, or the path of a file or of a saved folder.
        options
            As in :meth:`from_table`. For :class:`Sequences` and saved folders only ``labels`` and ``unknown``.

        Returns
        -------
        Sequences; the object itself where it already is one and nothing is to change.

        Raises
        ------
        DataError
            The data cannot be used.
        ParameterError
            An option is not known, or does not apply.
        TypeError
            The object is none of these.

        Examples
        --------
        >>> from seqattn import Sequences
        >>> Sequences.of({"seq_id": [7, 7], "t": [0.0, 1.5], "k": ["x", "y"]}).n_events
        2
        """
        if isinstance(data, cls):
            return data._changed(**options)
        if isinstance(data, (str, Path)):
            return cls.read(data, **options)
        if isinstance(data, Mapping) and set(_RECORD[1:]) <= set(data):
            return cls.from_dicts([data], **options)
        if is_table(data):
            _check_options(options, TABLE_OPTIONS)
            return cls.from_table(data, **options)
        if isinstance(data, np.ndarray) or not isinstance(data, Iterable):
            raise TypeError(_unknown_input(data))
        items = list(data)
        if items and (isinstance(items[0], Mapping) or _is_list_of_mappings(items[0])):
            return cls.from_dicts(items, **options)
        if items and not isinstance(items[0], (tuple, list)):
            raise TypeError(_unknown_input(data))
        return cls.from_lists(items, **options)

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        seq: str | None = "seq_id",
        time: str = "t",
        type: str = "k",
        window: Any = "last_event",
        labels: Any = None,
        unknown: str = "error",
        sort: bool = False,
        ties: str = "allow",
        drop_duplicates: bool = False,
        chunk: int | None = None,
        left_context: int | None = None,
    ) -> Self:
        """Read a table with one event per row.

        Sequences come in order of appearance, or in order of their ids with ``sort``.

        Parameters
        ----------
        table
            A polars or pandas frame, any object with the Arrow protocol, or a mapping of columns.
        seq, time, type
            Names of the columns. ``seq=None``: the whole table is one sequence. Times are numbers in any unit,
            dates or durations; ids and types are of any hashable kind.
        window
            Window [T0, T1] of each sequence. "last_event": T1 is the sequence's last event; "max": T1 is the
            largest time in the table; a pair (T0, T1) for all sequences, in which T0 may be None and T1 one of
            the two words; a mapping from ids to pairs; or a table with the columns ``seq``, "t0" and "t1", whose
            ids without events are empty sequences. Where T0 is not given it is the sequence's first event, which
            then is not scored (see ``context``).
        labels
            Types in the order of their codes, or their number K for 0 to K - 1; None takes the types found, in
            sorted order where they can be sorted, else in order of appearance.
        unknown
            What happens to a type that is not in ``labels``: "error", or "ignore" to drop its events.
        sort
            Sort by time within each sequence (stable), and sequences by id.
        ties
            What happens to equal times in a sequence: "allow" warns with their number, "jitter" spreads them
            inside the cell of the time grid (fixed draws), "error" refuses.
        drop_duplicates
            Drop events that repeat the time and type of an earlier event of the sequence.
        chunk
            Cut sequences longer than this many events into chunks. The ids then are pairs (id, chunk number).
        left_context
            Number of events kept before each chunk as history; None keeps ``chunk`` events.

        Returns
        -------
        Sequences.

        Raises
        ------
        DataError
            A value is missing or infinite, times decrease, an event lies outside its window, a sequence is
            longer than 20,000 events, or a type is unknown; the message names the place.
        ParameterError
            An option has a value that is not allowed.

        Examples
        --------
        >>> from seqattn import Sequences
        >>> table = {"user": ["u", "u", "v"], "when": [1.0, 4.0, 2.0], "what": ["buy", "view", "view"]}
        >>> Sequences.from_table(table, seq="user", time="when", type="what", window=(0, 5)).labels
        ('buy', 'view')
        """
        frame = as_frame(table)
        names = _column_names(frame, seq, time, type, sort)
        events = events_of_frame(frame, *names, sort=sort, table=table)
        settings = assemble.Settings(
            window, labels, unknown, ties, drop_duplicates, chunk, left_context, seq or "seq_id"
        )
        return cls._made(assemble.columns_of(events, settings), settings)

    @classmethod
    def from_lists(
        cls, pairs: Iterable[Any], *, ids: Sequence[Any] | None = None, sort: bool = False, **options: Any
    ) -> Self:
        """Read a list of pairs (times, types), one per sequence.

        Parameters
        ----------
        pairs
            For each sequence its times and its types, as lists or arrays of equal length. A pair of empty lists is
            an empty sequence; it is kept where its window is known.
        ids
            An id for each sequence; None numbers them from 0.
        sort
            Sort each sequence by time (stable).
        options
            ``window``, ``labels``, ``unknown``, ``ties``, ``drop_duplicates``, ``chunk`` and ``left_context``, as
            in :meth:`from_table`.

        Examples
        --------
        >>> from seqattn import Sequences
        >>> Sequences.from_lists([([0.0, 1.0], [2, 0]), ([], [])], window=(0, 2)).lengths
        array([2, 0])
        """
        settings = _settings(options)
        events = events_of_pairs(pairs, ids, sort=sort)
        return cls._made(assemble.columns_of(events, settings), settings)

    @classmethod
    def from_dicts(
        cls,
        records: Iterable[Any],
        *,
        time: str = "time_since_start",
        type: str = "type_event",
        ids: Sequence[Any] | None = None,
        sort: bool = False,
        **options: Any,
    ) -> Self:
        """Read records in the "gatech" form: per sequence a mapping of lists, or a list of mappings.

        Parameters
        ----------
        records
            Per sequence ``{"time_since_start": [...], "type_event": [...]}``, or a list with one mapping per
            event. Where "time_since_last_event" is there too, it must agree with the times; "dim_process" states
            the number of types.
        time, type
            Names of the entries.
        ids
            An id for each sequence; None numbers them from 0.
        sort
            Sort each sequence by time (stable).
        options
            As in :meth:`from_lists`.

        Examples
        --------
        >>> from seqattn import Sequences
        >>> record = {"time_since_start": [0.0, 0.5], "type_event": [1, 0], "dim_process": 3}
        >>> Sequences.from_dicts([record]).n_types
        3
        """
        settings = _settings(options)
        events = events_of_records(records, time, type, ids, sort=sort)
        return cls._made(assemble.columns_of(events, settings), settings)

    @classmethod
    def read(cls, path: str | Path, *, separator: str | None = None, **options: Any) -> Self:
        """Read a file of events, or open a folder written by :meth:`save`.

        Parameters
        ----------
        path
            A .parquet, .csv, .tsv, .jsonl, .ndjson, .json or .inter file, or a saved folder. Tables may have one
            event per row, or one sequence per row with lists in their cells.
        separator
            Character between the columns of a text file.
        options
            As in :meth:`from_table`; for a saved folder only ``labels`` and ``unknown``.
        """
        if Path(path).is_dir():
            if not is_saved(path):
                raise DataError(
                    f"{str(path)!r} is a folder without saved sequences. Name one file of it, "
                    "or use seqattn.data.catalog.load_split for a folder with train, dev and test files."
                )
            return cls.open(path)._changed(**options)
        _check_options(options, TABLE_OPTIONS)
        return cls.from_table(read_frame(path, separator=separator), **options)

    @classmethod
    def prepare(cls, data: Any, folder: str | Path, *, piece: int = 1_000_000, **options: Any) -> Self:
        """Read Parquet files that may be larger than memory into a saved folder, and open it.

        The result equals that of :meth:`from_table` followed by :meth:`save`. Rows may stand in any order that
        :meth:`from_table` takes: those of a sequence need not stand together, and ``sort=True`` sorts them.

        Parameters
        ----------
        data
            A Parquet file with one event per row, a folder of such files (in the order of their names; those that
            begin with "." or "_" are left out), or a list of them. Rows are counted over all files, for messages.
        folder
            A new or empty folder, or one with saved sequences, which are replaced; other files in it stay. Nothing is
            saved under this name before the result is complete; until then the work lies in a hidden folder, inside
            it or beside a new one, which takes about 28 bytes per event.
        piece
            Rows read at once. Memory grows with it, with the longest sequence, with the row groups of the files, and
            by one id per sequence (8 bytes where ids are whole numbers, some 200 bytes while the files are read).
        options
            As in :meth:`from_table`.

        Returns
        -------
        The sequences, their events left on disk.

        Raises
        ------
        DataError
            As :meth:`from_table`; or a file is no Parquet file, cells hold lists, or the folder holds something else.
        ParameterError
            An option is not known or has a value that is not allowed, or ``data`` or ``folder`` is no path.
        OSError
            Nothing can be written to the folder, or the disk is full.

        Notes
        -----
        Of several faults another may be named than by :meth:`from_table`, which looks at whole columns: the one that
        comes first in the files. Counts of events in messages about types include duplicates.

        A row group is looked through again for each of its pieces. Ten million rows took 0.3 s per pass in groups of
        100,000 and 0.5 s in one group; with ``piece=100_000`` it was 0.2 s and 2.7 s. Files with groups of many pieces
        are best rewritten, for example with ``polars.scan_parquet(...).sink_parquet(..., row_group_size=1_000_000)``.

        Examples
        --------
        >>> import tempfile, polars as pl
        >>> from seqattn import Sequences
        >>> with tempfile.TemporaryDirectory() as place:
        ...     pl.DataFrame({"seq_id": [1, 1, 2], "t": [0.5, 2.0, 1.0], "k": ["a", "b", "a"]}).write_parquet(
        ...         f"{place}/events.parquet"
        ...     )
        ...     Sequences.prepare(f"{place}/events.parquet", f"{place}/events")
        Sequences(2 sequences, 3 events, 2 types, window='last_event')
        """
        if isinstance(piece, bool) or not hasattr(piece, "__index__") or piece < 1:
            raise ParameterError(f"piece={piece!r} must be a whole number of at least 1.")
        _check_folder(folder)
        _check_options(options, TABLE_OPTIONS)
        given: dict[str, Any] = {
            "seq": "seq_id",
            "time": "t",
            "type": "k",
            "sort": False,
            **assemble.DEFAULTS,
            **options,
        }
        seq, time, kind, sort = (given.pop(name) for name in ("seq", "time", "type", "sort"))
        settings = assemble.Settings(**given, seq=seq or "seq_id")
        parts = Parts(data)
        columns = Columns(*_column_names(pl.DataFrame(schema=parts.schema), seq, time, kind, sort), sort=sort)
        return cls.open(prepare(cast("type[Sequences]", cls), parts, folder, columns, settings, piece))


def _check_options(options: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for name in options:
        if name not in allowed:
            raise ParameterError(
                f"There is no option {name!r} here. Options: {', '.join(allowed)}.{suggest(name, allowed)}"
            )


def _settings(options: dict[str, Any]) -> assemble.Settings:
    _check_options(options, _OPTIONS)
    return assemble.Settings(**{**assemble.DEFAULTS, **options})


def _column_names(
    frame: pl.DataFrame, seq: str | None, time: str, kind: str, sort: bool
) -> tuple[str | None, str, str]:
    """Return the columns to read; the names of the "gatech" form stand in where the usual ones are absent."""
    _check_columns(seq=seq, time=time, type=kind)
    _check_switch("sort", sort)
    if (seq, time, kind) == _COLUMNS and time not in frame.columns and set(_RECORD[1:]) <= set(frame.columns):
        return (seq if seq in frame.columns else _RECORD[0]), *_RECORD[1:]
    return seq, time, kind


def _check_columns(**columns: Any) -> None:
    for name, value in columns.items():
        if not isinstance(value, str) and not (value is None and name == "seq"):
            raise ParameterError(f"{name}={value!r} is no name of a column, which is a text.")


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise ParameterError(f"{name}={value!r} is neither True nor False.")


def _check_folder(folder: Any) -> None:
    if not isinstance(folder, (str, os.PathLike)) or not str(folder):
        raise ParameterError(f"folder={folder!r} is no path. Name a new or an empty folder.")


def _is_list_of_mappings(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and bool(item) and isinstance(item[0], Mapping)


def _unknown_input(data: Any) -> str:
    return (
        f"Events cannot be read from {type(data).__name__}. Give a table (polars, pandas), a list of pairs "
        "(times, types), a list of records, Sequences, or the path of a file."
    )
