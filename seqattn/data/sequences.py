"""Sequences of events: flat columns and offsets, the one form in which event data travel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl

from seqattn.data import assemble
from seqattn.data.blocks import BLOCK, block_rows, block_slices, take_sequences
from seqattn.data.clock import Clock
from seqattn.data.events import object_array
from seqattn.data.grid import Grid, find_grid, spread
from seqattn.data.labels import check_labels, decode_label, encode_label, recoded, series_of_labels
from seqattn.data.readers import Readers
from seqattn.data.store import open_arrays, save_arrays
from seqattn.errors import DataError, ParameterError

__all__ = ["Sequences"]

_ARRAYS = {
    "times": np.float64,
    "types": np.int32,
    "offsets": np.int64,
    "start": np.float64,
    "end": np.float64,
    "context": np.int64,
}


@dataclass(frozen=True, eq=False, repr=False)
class Sequences(Readers):
    """Sequences of typed events, each observed on a window [T0, T1].

    Made by :meth:`of` from anything it knows, or by :meth:`from_table`, :meth:`from_lists`, :meth:`from_dicts`,
    :meth:`read` and :meth:`open`. Events of sequence i stand at ``offsets[i]`` to ``offsets[i + 1]``.

    Parameters
    ----------
    times
        Times of all events (float64), in the user's unit; seconds since ``zero`` where they were dates.
    types
        Type of each event (int32): its position in ``labels``.
    offsets
        Bounds of the sequences, one more than there are sequences (int64).
    start, end
        Window [T0, T1] of each sequence (float64).
    context
        Number of leading events of each sequence that are history only and never scored (int64). It is 1 where
        T0 was taken from the first event: a window that begins at an event has no density for that event.
    ids
        The user's id of each sequence.
    labels
        The types; the position is the code.
    window
        How T1 came to be: "given", "last_event" or "max".
    unit
        "s" where times were dates or durations, else None.
    zero
        Moment of time 0 (``numpy.datetime64``, in UTC where there is a time zone), or None.
    time_zone
        Name of the time zone of the dates, or None.

    Examples
    --------
    >>> data = Sequences.from_lists([([0.5, 2.0], ["a", "b"]), ([1.0], ["b"])], window=(0, 3))
    >>> data
    Sequences(2 sequences, 3 events, 2 types, window='given')
    >>> data.sequence(0)
    (array([0.5, 2. ]), array([0, 1], dtype=int32))
    """

    times: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    start: np.ndarray
    end: np.ndarray
    context: np.ndarray
    ids: np.ndarray
    labels: tuple[Any, ...]
    window: str = "given"
    unit: str | None = None
    zero: np.datetime64 | None = None
    time_zone: str | None = None

    _saved: ClassVar[tuple[str, ...]] = tuple(_ARRAYS)

    def __post_init__(self) -> None:
        for name, kind in _ARRAYS.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != kind:
                object.__setattr__(self, name, np.asarray(array, dtype=kind))
        n = len(self.offsets) - 1
        if (
            n < 0
            or self.offsets[0] != 0
            or self.offsets[-1] != len(self.times)
            or len(self.types) != len(self.times)
        ):
            raise DataError("offsets must run from 0 to the number of events, and every event needs a type.")
        for name in ("start", "end", "context", "ids"):
            if len(getattr(self, name)) != n:
                raise DataError(f"{name} has {len(getattr(self, name))} values for {n} sequences.")

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open sequences that :meth:`save` wrote, without loading the events into memory.

        Parameters
        ----------
        path
            The folder.

        Raises
        ------
        DataError
            The folder is absent, incomplete, damaged or from a newer version.
        """
        arrays, ids, meta = open_arrays(path)
        zero = None if meta["zero"] is None else np.datetime64(meta["zero"], meta["resolution"])
        labels = tuple(decode_label(label) for label in meta["labels"])
        known = {name: arrays[name] for name in cls._saved if name in arrays}
        columns: dict[str, Any] = {**known, **{name: meta[name] for name in ("window", "unit", "time_zone")}}
        return cls(**columns, ids=ids, labels=labels, zero=zero)

    def save(self, path: str | Path) -> None:
        """Write the sequences into a folder of plain numpy arrays, for :meth:`open`.

        Parameters
        ----------
        path
            A new or empty folder, or one with saved sequences, which are replaced.

        Raises
        ------
        DataError
            The path is taken by something else, or a label or id cannot be written.
        """
        arrays = {name: getattr(self, name) for name in self._saved if getattr(self, name) is not None}
        save_arrays(path, arrays, self.ids, self.facts())

    def facts(self) -> dict[str, Any]:
        """Return what a saved folder holds beside the arrays, as JSON values."""
        return {
            "labels": [encode_label(label) for label in self.labels],
            "zero": None if self.zero is None else int(self.zero.astype(np.int64)),
            "resolution": self.clock.resolution,
            **{name: getattr(self, name) for name in ("window", "unit", "time_zone")},
        }

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        counts = f"{len(self):,} sequences, {self.n_events:,} events, {self.n_types:,} types"
        return f"Sequences({counts}, window={self.window!r})"

    @property
    def n_events(self) -> int:
        """Number of events, history included."""
        return len(self.times)

    @property
    def n_scored(self) -> int:
        """Number of events that a likelihood scores: all but the history."""
        return self.n_events - int(self.context.sum())

    @property
    def n_types(self) -> int:
        """Number of types, K."""
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Number of events of each sequence, history included."""
        return np.diff(self.offsets)

    @property
    def clock(self) -> Clock:
        """What a number of the time axis means."""
        return Clock(self.unit, self.zero, self.time_zone)

    def sequence(self, i: int | np.integer) -> tuple[np.ndarray, np.ndarray]:
        """Return times and type codes of one sequence.

        Parameters
        ----------
        i
            Number of the sequence, from 0; negative ones count from the end.

        Returns
        -------
        Times and codes, each of shape (events,).

        Raises
        ------
        IndexError
            There is no such sequence.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"There is no sequence {i}; there are {len(self)}.")
        piece = slice(self.offsets[:-1][i], self.offsets[1:][i])
        return self.times[piece], self.types[piece]

    def label_array(self, codes: Any) -> np.ndarray:
        """Return the labels of type codes as an array of the labels' kind.

        Parameters
        ----------
        codes
            Type codes, from 0.

        Examples
        --------
        >>> Sequences.from_lists([([0.0, 1.0], ["b", "a"])]).label_array([1, 0]).tolist()
        ['b', 'a']
        """
        kinds = {type(label) for label in self.labels}
        whole = kinds in ({int}, {bool}, {float})
        table = np.array(self.labels) if whole else object_array(self.labels)
        return table[np.asarray(codes, dtype=np.int64)]

    def label_series(self, codes: Any, name: str = "k") -> pl.Series:
        """Return the labels of type codes as a column.

        Parameters
        ----------
        codes
            Type codes, from 0.
        name
            Name of the column.
        """
        labels = series_of_labels(self.labels)
        if labels.dtype == pl.Object:
            return pl.Series(name, self.label_array(codes).tolist(), dtype=pl.Object)
        return labels.gather(np.asarray(codes, dtype=np.int64)).alias(name)

    def id_columns(self, rows: Any = None, name: str = "seq_id") -> pl.DataFrame:
        """Return the ids of sequences as columns: the id, and the chunk number where sequences were cut.

        Parameters
        ----------
        rows
            Numbers of the sequences, each as often as wished; None for all in order.
        name
            Name of the id column.
        """
        keys = self.ids.tolist()
        columns = {name: keys}
        if keys and all(isinstance(key, tuple) and len(key) == 2 for key in keys):
            columns = {name: [key for key, _ in keys], "chunk": [number for _, number in keys]}
        frame = pl.DataFrame({title: series_of_labels(values) for title, values in columns.items()})
        return frame if rows is None else frame[np.asarray(rows, dtype=np.int64)]

    def time_series(self, values: Any, name: str = "t") -> pl.Series:
        """Return times as a column: dates where the input had dates, else numbers.

        Parameters
        ----------
        values
            Numbers of the time axis.
        name
            Name of the column.

        Examples
        --------
        >>> Sequences.from_lists([([0.0, 1.0], [0, 0])]).time_series([2.5]).to_list()
        [2.5]
        """
        return self.clock.series(values, name)

    def to_frame(self) -> pl.DataFrame:
        """Return a table with one event per row: ``seq_id``, ``t`` and ``k`` as the user gave them.

        Examples
        --------
        >>> Sequences.from_lists([([0.0, 1.0], ["b", "a"])]).to_frame().rows()
        [(0, 0.0, 'b'), (0, 1.0, 'a')]
        """
        rows = np.repeat(np.arange(len(self)), self.lengths)
        return self.id_columns(rows).with_columns(self.time_series(self.times), self.label_series(self.types))

    # Changing

    def select(self, indices: Any) -> Self:
        """Return some of the sequences, in the order asked for.

        A slice of step 1 copies no events; many events of a saved folder are copied into a nameless file beside it.

        Parameters
        ----------
        indices
            Numbers of the sequences, a slice, or one truth value per sequence.
        """
        if isinstance(indices, slice) and indices.step in (None, 1):
            return self._run(*indices.indices(len(self))[:2])
        chosen = indices if isinstance(indices, slice) else np.asarray(indices)
        if isinstance(chosen, np.ndarray) and not chosen.size:
            chosen = chosen.astype(np.int64)
        rows = np.atleast_1d(np.arange(len(self))[chosen])
        begin = np.asarray(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(self.offsets[rows + 1] - begin)]).astype(np.int64)
        parts = {name: getattr(self, name)[rows] for name in ("start", "end", "context", "ids")}
        times, types = (take_sequences(values, begin, offsets) for values in (self.times, self.types))
        return replace(self, times=times, types=types, offsets=offsets, **parts)

    def _run(self, begin: int, end: int) -> Self:
        """Return sequences that follow each other, without a copy of their events."""
        end = max(begin, end)
        rows, bounds = slice(begin, end), self.offsets[begin : end + 1]
        parts = {name: getattr(self, name)[rows] for name in ("start", "end", "context", "ids")}
        events = slice(bounds[0], bounds[-1])
        return replace(
            self, times=self.times[events], types=self.types[events], offsets=bounds - bounds[0], **parts
        )

    def blocks(self, size: int = BLOCK) -> Iterator[Self]:
        """Yield all sequences in order, some at a time, without copies of their events.

        Parameters
        ----------
        size
            Most events of a block; a longer sequence is a block of its own.
        """
        return (self._run(rows.start, rows.stop) for rows in block_rows(self.offsets, size))

    def sampled(self, n_events: int, seed: int = 0) -> Self:
        """Return whole sequences drawn at random, in their order, with at most so many events.

        Parameters
        ----------
        n_events
            Most events; one sequence is returned in any case.
        seed
            Seed of the draw; the global random state is not touched.

        Returns
        -------
        Sequences; the object itself where it has no more events.

        Examples
        --------
        >>> data = Sequences.from_lists([([0.0, 1.0], [0, 0])] * 5, ids=range(5))
        >>> data.sampled(4).n_events, data.sampled(10) is data
        (4, True)
        """
        if self.n_events <= n_events:
            return self
        order = np.random.default_rng(seed).permutation(len(self))
        fits = int(np.searchsorted(np.cumsum(self.lengths[order]), n_events, side="right"))
        return self.select(np.sort(order[: max(fits, 1)]))

    def relabel(self, labels: Any, unknown: str = "error") -> Self:
        """Return the same events with types numbered by other labels.

        Parameters
        ----------
        labels
            Types in the order of their codes, or their number K for 0 to K - 1.
        unknown
            What happens to events of a type that is not in ``labels``: "error", or "ignore" to drop them from
            history and scoring. Windows stay as they are.

        Raises
        ------
        DataError
            A type is unknown.

        Examples
        --------
        >>> Sequences.from_lists([([0.0, 1.0], ["b", "a"])]).relabel(["b", "a"]).types.tolist()
        [0, 1]
        """
        if unknown not in ("error", "ignore"):
            raise ParameterError(f"unknown={unknown!r} is not one of 'error', 'ignore'.")
        wanted = check_labels(labels)
        if wanted == self.labels:
            return replace(self, labels=wanted)
        return self.recode(recoded(self.labels, self.type_counts(), wanted, unknown), wanted)

    def recode(self, codes: np.ndarray, labels: tuple[Any, ...]) -> Self:
        """Return the events with other codes and labels.

        Parameters
        ----------
        codes
            The new code of each present one, -1 to drop its events.
        labels
            The labels by their new codes.
        """
        return replace(self, **assemble.recoded_events(self, codes), labels=labels)

    def type_counts(self) -> np.ndarray:
        """Return how many events each type has, history included."""
        parts = (
            np.bincount(self.types[part], minlength=self.n_types) for part in block_slices(self.n_events)
        )
        return sum(parts, np.zeros(self.n_types, dtype=np.int64))

    def _changed(self, **options: Any) -> Self:
        """Apply the options that make sense for sequences that are already made."""
        extra = [name for name in options if name not in ("labels", "unknown")]
        if extra:
            raise ParameterError(
                f"{extra[0]!r} does not apply to Sequences, whose windows and times are settled. "
                "Only labels= and unknown= do."
            )
        labels = options.get("labels")
        return self if labels is None else self.relabel(labels, options.get("unknown", "error"))

    @classmethod
    def _made(cls, columns: dict[str, Any], settings: assemble.Settings) -> Self:
        """Apply labels, the rule for ties, and chunks, in this order."""
        done = cls(**columns)
        done = done if settings.labels is None else done.relabel(settings.labels, settings.unknown)
        done = replace(done, **assemble.settled_ties(done, settings.ties))
        if settings.chunk is not None:
            done = replace(done, **assemble.chunked(done, settings.chunk, settings.left_context))
        return done

    def digest(self) -> str:
        """Return a SHA-256 of the whole content: times, types, windows, ids, labels and clock.

        Examples
        --------
        >>> a = Sequences.from_lists([([0.0, 1.0], ["b", "a"])])
        >>> a.digest() == Sequences.from_lists([([0.0, 1.0], ["b", "a"])]).digest()
        True
        """
        sha = hashlib.sha256()
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            sha.update(f"{name}:{len(array)};".encode())
            sha.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        words = [encode_label(key) for key in (*self.labels, *self.ids.tolist())]
        sha.update(
            json.dumps([self.n_types, words, self.window, self.unit, self.time_zone, str(self.zero)]).encode()
        )
        return sha.hexdigest()

    def grid(self) -> Grid | None:
        """Look for a grid that the times were rounded to.

        Likelihoods of rounded times can be raised without end by sharp peaks on the grid; report them with
        :meth:`jitter` beside. Of more than two million events a sample of whole sequences is looked at, drawn with a
        fixed seed.

        Returns
        -------
        The spacing and the share of gaps that are multiples of it, or None where times look continuous.

        Examples
        --------
        >>> Sequences.from_lists([([0, 3, 4, 9, 11, 12], [0] * 6)]).grid()
        Grid(spacing=1.0, share=1.0)
        """
        largest = max(-float(self.times.min()), float(self.times.max())) if self.n_events else 0.0
        return find_grid(assemble.gaps_between(self.sampled(BLOCK)), largest)

    def jitter(self, seed: int) -> Self:
        """Return the sequences with times spread uniformly inside their grid cells.

        Each time moves to a place between itself and the next grid point, and never past T1 where T1 was given.
        The order of types stays; windows that were taken from the first or last event move along.

        Parameters
        ----------
        seed
            Seed of the draws; the global random state is not touched.

        Returns
        -------
        New sequences; the same object where there is no grid.

        Notes
        -----
        Where sequences were cut into chunks, an event that is history in the next chunk gets another draw there.
        """
        grid = self.grid()
        if grid is None:
            return self
        limits = np.full(len(self), np.inf) if self.window == "last_event" else self.end
        times = spread(self.times, self.offsets, limits, grid.spacing, np.random.default_rng(seed))
        return replace(self, times=times, **assemble.moved_windows(self, times))
