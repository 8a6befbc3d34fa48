"""The observation window [T0, T1] of each sequence, from what the caller says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqattn.data.clock import Clock, moment, to_numbers
from seqattn.data.table import as_frame, is_table, need_columns
from seqattn.errors import DataError, ParameterError

__all__ = ["Windows", "bounds_of", "is_table_of_windows"]

_WORDS = ("last_event", "max")


@dataclass(frozen=True)
class Windows:
    """What a caller said of the windows, before the events are looked at.

    Attributes
    ----------
    start
        T0 of each sequence, NaN where it is to be taken from the first event.
    end
        T1 of each sequence, NaN where it follows from ``kind``.
    kind
        "given", "last_event" or "max": how T1 comes to be.
    extra
        Ids that have a window and no events.
    """

    start: np.ndarray
    end: np.ndarray
    kind: str
    extra: tuple[Any, ...] = ()


def is_table_of_windows(window: object) -> bool:
    """Tell whether the windows come as a table rather than as a mapping from ids."""
    if isinstance(window, Mapping):
        return {"t0", "t1"} <= set(window)
    return not isinstance(window, (str, tuple, list)) and is_table(window)


def bounds_of(window: Any, ids: list[Any], seq: str, clock: Clock) -> Windows:
    """Read the argument ``window=`` for the sequences ``ids``.

    Parameters
    ----------
    window
        "last_event", "max", a pair (T0, T1), a mapping from ids to pairs, or a table with the columns
        ``seq``, "t0" and "t1".
    ids
        Ids of the sequences that have events or are listed as empty.
    seq
        Name of the id column in a table of windows.
    clock
        Clock of the event times.

    Raises
    ------
    DataError
        A window is missing, not finite, or ends before it begins.
    ParameterError
        The argument is none of these.
    """
    if isinstance(window, str):
        window = (None, window)
    if isinstance(window, (tuple, list)):
        return _for_all(window, len(ids), clock)
    if is_table_of_windows(window):
        return _by_id(*_columns(window, seq, clock), ids, clock)
    if isinstance(window, Mapping):
        return _by_id(*_entries(window, clock), ids, clock)
    raise ParameterError(_usage(window))


def _usage(window: Any) -> str:
    return (
        f"window={window!r} is not understood. Use 'last_event', 'max', a pair (T0, T1) of numbers or dates "
        "(T0 may be None, T1 may be 'last_event' or 'max'), a mapping from sequence ids to such pairs, "
        "or a table with the columns of the ids, 't0' and 't1'."
    )


def _for_all(pair: Any, n: int, clock: Clock) -> Windows:
    if len(pair) != 2 or (isinstance(pair[0], str) and clock.zero is None):
        raise ParameterError(_usage(pair if len(pair) != 2 or pair[0] is not None else pair[1]))
    first, last = pair
    is_word = isinstance(last, str) and (last in _WORDS or clock.zero is None)
    if is_word and last not in _WORDS:
        raise ParameterError(_usage(last if first is None else pair))
    start = np.nan if first is None else _bound(first, clock, "T0 of window=")
    end = np.nan if is_word else _bound(last, clock, "T1 of window=")
    if end < start:
        raise DataError(f"The window ends at {clock.show(end)}, before it begins at {clock.show(start)}.")
    return Windows(np.full(n, start), np.full(n, end), last if is_word else "given")


def _bound(value: Any, clock: Clock, what: str) -> float:
    if value is None or isinstance(value, (list, tuple, Mapping, np.ndarray)):
        raise ParameterError(f"{what} is {value!r}. Give a number or date, or 'last_event' or 'max' for T1.")
    try:
        number = moment(value, clock, what)
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise ParameterError(f"{what} is {value!r}, not a number or date: {error}") from None
    if not np.isfinite(number):
        raise DataError(
            f"{what} is {value!r}, but must be finite. Leave T0 away with None if it is not known."
        )
    return number


def _columns(table: Any, seq: str, clock: Clock) -> tuple[list[Any], np.ndarray, np.ndarray]:
    frame = as_frame(table)
    need_columns(frame, [seq, "t0", "t1"], table)
    start = to_numbers(frame["t0"], clock, "Column 't0' of the windows")
    end = to_numbers(frame["t1"], clock, "Column 't1' of the windows")
    return frame[seq].to_list(), start, end


def _entries(mapping: Mapping[Any, Any], clock: Clock) -> tuple[list[Any], np.ndarray, np.ndarray]:
    for key, pair in mapping.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ParameterError(f"window[{key!r}] is {pair!r}, not a pair (T0, T1).")
    start = [
        np.nan if a is None else _bound(a, clock, f"T0 of window[{key!r}]") for key, (a, _) in mapping.items()
    ]
    end = [_bound(b, clock, f"T1 of window[{key!r}]") for key, (_, b) in mapping.items()]
    return list(mapping), np.asarray(start, float), np.asarray(end, float)


def _by_id(keys: list[Any], start: np.ndarray, end: np.ndarray, ids: list[Any], clock: Clock) -> Windows:
    """Bring windows into the order of the sequences; ids without events come last."""
    place = {key: i for i, key in enumerate(keys)}
    if len(place) < len(keys):
        twice = next(key for i, key in enumerate(keys) if place[key] != i)
        raise DataError(f"Sequence {twice!r} has two windows. Give one window per sequence.")
    lacking = next((key for key in ids if key not in place), None)
    if lacking is not None:
        raise DataError(f"Sequence {lacking!r} has events, but no window. Give a window for every sequence.")
    _check_finite(keys, start, end, clock)
    known = set(ids)
    extra = tuple(key for key in keys if key not in known)
    order = np.array([place[key] for key in [*ids, *extra]], dtype=np.int64)
    return Windows(start[order], end[order], "given", extra)


def _check_finite(keys: list[Any], start: np.ndarray, end: np.ndarray, clock: Clock) -> None:
    bad = np.flatnonzero(~np.isfinite(end) | np.isinf(start) | (end < start))
    if len(bad):
        i = bad[0]
        raise DataError(
            f"The window of sequence {keys[i]!r} is [{_show(start[i], clock)}, {_show(end[i], clock)}]. "
            "T1 must be finite and not before T0."
        )


def _show(time: float, clock: Clock) -> str:
    return clock.show(time) if np.isfinite(time) else repr(float(time))
