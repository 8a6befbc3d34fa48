"""Series of several channels in frames of pandas and polars: one array (channels, time) per case.

Nothing here imports pandas: its frames are known by the module that somebody else has imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from seqattn.data.table import is_pandas
from seqattn.data.values import is_missing, values_of
from seqattn.errors import DataError

__all__ = ["case_of_frame", "is_frame", "names_of_channels", "series_of_frame", "table_width"]

_INDEX = "__index__"
_KEYS = (("case", "time"), ("case_id", "time"), ("instances", "timepoints"))
_NAMES_OF_CHANNELS = ("variable", "column", "dim_id")


def is_frame(obj: object) -> bool:
    """Tell whether an object is a frame of pandas or polars.

    Parameters
    ----------
    obj
        Anything.
    """
    return isinstance(obj, pl.DataFrame | pl.LazyFrame) or is_pandas(obj)


def table_width(frame: Any) -> int | None:
    """Return the number of columns of a frame with a row per case and a column per time point; None for other forms.

    Parameters
    ----------
    frame
        A frame of pandas or polars.
    """
    columns = _columns(frame.collect() if isinstance(frame, pl.LazyFrame) else frame)
    return len(columns) if _form(frame, columns) == "times" else None


def names_of_channels(frame: Any) -> tuple[str, ...] | None:
    """Return the names of the channels of a frame, in their order; None where its columns are time points.

    Parameters
    ----------
    frame
        A frame of pandas or polars, as :func:`series_of_frame` takes it.
    """
    columns = _columns(frame.collect() if isinstance(frame, pl.LazyFrame) else frame)
    form = _form(frame, columns)
    if form == "times":
        return None
    if form == "values":
        return tuple(map(str, _codes(columns[str(_name_of_channel(columns))])[1]))
    keys = _key_columns(columns) or () if form == "keys" else ()
    return tuple(name for name in columns if name not in keys)


def _form(frame: Any, columns: dict[str, np.ndarray]) -> str:
    """Return in which form a frame holds series."""
    if _levels(frame) > 1:
        return "index"
    if _name_of_channel(columns) is not None:
        return "values"
    if _key_columns(columns) is not None:
        return "keys"
    return "cells" if any(_is_nested(column) for column in columns.values()) else "times"


def series_of_frame(frame: Any) -> list[np.ndarray]:
    """Return one array (channels, time) per case of a frame, in the order in which cases first appear.

    Five forms are known, among them those of sktime:

    - a row per case and time point and a column per channel, with case and time in the two levels of the index, in two
      columns whose names begin with ``__index__``, or in the columns ``case`` and ``time``;
    - a row per case, time point and channel, four columns: case, time, one called ``variable``, ``column`` or
      ``dim_id``, and ``value``;
    - a row per case and a column per channel, with a series, array or list in each cell; an empty cell (None) is a
      channel that is missing in this case;
    - otherwise a row per case and a column per time point, one channel.

    Parameters
    ----------
    frame
        A frame of pandas or polars.

    Raises
    ------
    DataError
        Times of a case decrease or repeat, its channels differ in length, or values are no numbers.
    """
    frame = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    columns = _columns(frame)
    form = _form(frame, columns)
    if form == "index":
        _check_levels(_levels(frame))
        cases, times = (frame.index.get_level_values(level).to_numpy() for level in range(2))
        return _by_rows(cases, times, columns)
    if form == "values":
        return _by_values(columns, str(_name_of_channel(columns)))
    if form == "keys":
        cases, times = (columns.pop(name) for name in _key_columns(columns) or ())
        return _by_rows(cases, times, columns)
    return _by_cells(columns) if form == "cells" else _by_times(columns, len(frame))


def case_of_frame(frame: Any, what: str) -> np.ndarray:
    """Return one case as (channels, time) from a frame with a row per time point and a column per channel.

    Parameters
    ----------
    frame
        A frame of pandas or polars.
    what
        What it is, for messages: "Case 3".
    """
    frame = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    channels = [values_of(_array(frame[name]), what) for name in frame.columns]
    return np.stack(channels) if channels else np.empty((0, len(frame)))


def _array(column: Any) -> np.ndarray:
    if isinstance(getattr(column, "dtype", None), pl.Array):
        # numpy has these as one array of two axes, and a cell of it is a series.
        column = column.arr.to_list()
    return column.to_numpy() if hasattr(column, "to_numpy") else np.asarray(column)


def _columns(frame: Any) -> dict[str, np.ndarray]:
    columns = {str(name): _array(frame[name]) for name in frame.columns}
    if len(columns) < len(frame.columns):
        raise DataError("Two columns of the frame have one name. Rename one of them.")
    return columns


def _levels(frame: Any) -> int:
    return int(getattr(getattr(frame, "index", None), "nlevels", 1))


def _name_of_channel(columns: dict[str, np.ndarray]) -> str | None:
    """Return the column that names the channel of each value, None if there is none."""
    if "value" not in columns or len(columns) != 4:
        return None
    return next((name for name in _NAMES_OF_CHANNELS if name in columns), None)


def _check_levels(levels: int) -> None:
    if levels != 2:
        raise DataError(
            f"The index of the frame has {levels} levels, and two are needed: case and time. Pass one hierarchy at a "
            "time."
        )


def _key_columns(columns: dict[str, np.ndarray]) -> Sequence[str] | None:
    """Return the names of the columns of case and time, None if there are none."""
    marked = [name for name in columns if name.startswith(_INDEX)]
    if marked:
        _check_levels(len(marked))
        return marked
    return next((names for names in _KEYS if set(names) <= set(columns)), None)


def _is_nested(column: np.ndarray) -> bool:
    return bool(column.dtype == object and any(map(np.ndim, column)))


def _codes(keys: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """Return a number for each key, counted from 0 in the order of first appearance, and the keys in that order."""
    numbers = dict.fromkeys(keys.tolist())
    order = {key: number for number, key in enumerate(numbers)}
    return np.fromiter((order[key] for key in keys.tolist()), dtype=np.intp, count=len(keys)), list(order)


def _by_rows(cases: np.ndarray, times: np.ndarray, columns: dict[str, np.ndarray]) -> list[np.ndarray]:
    if not len(cases):
        return []
    codes, names = _codes(cases)
    order = np.argsort(codes, kind="stable")
    codes, times = codes[order], times[order]
    _check_times(codes, times, names)
    bounds = np.flatnonzero(np.diff(codes)) + 1
    values = [values_of(column, f"Column {name!r}")[order] for name, column in columns.items()]
    return np.split(np.stack(values), bounds, axis=1) if values else [np.empty((0, 0))]


def _check_times(codes: np.ndarray, times: np.ndarray, names: list[Any]) -> None:
    """Refuse a case whose times are not in order: a shuffled series is another series."""
    is_wrong = (codes[1:] == codes[:-1]) & ~np.asarray(times[1:] > times[:-1], dtype=bool)
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        raise DataError(
            f"Times of case {names[codes[row]]!r} do not increase ({times[row + 1]} after {times[row]}). Sort the "
            "frame by case and time, and give each time once."
        )


def _by_values(columns: dict[str, np.ndarray], name_of_channel: str) -> list[np.ndarray]:
    """Return cases from one row per value; a channel without a value at a time of its case is missing there."""
    channel, channels = _codes(columns[name_of_channel])
    n_channels = len(channels)
    case_name, time_name = (name for name in columns if name not in (name_of_channel, "value"))
    case, names = _codes(columns[case_name])
    values = values_of(columns["value"], "Column 'value'")
    found = []
    for number, name in enumerate(names):
        rows = np.flatnonzero(case == number)
        times, place = np.unique(columns[time_name][rows], return_inverse=True)
        if len(np.unique(place * n_channels + channel[rows])) < len(rows):
            raise DataError(f"Case {name!r} has two values of one channel at one time. Keep one of them.")
        series = np.full((n_channels, len(times)), np.nan)
        series[channel[rows], place] = values[rows]
        found.append(series)
    return found


def _by_cells(columns: dict[str, np.ndarray]) -> list[np.ndarray]:
    longest = max(np.size(cell) for column in columns.values() for cell in column)
    found = []
    for case, cells in enumerate(zip(*columns.values(), strict=True)):
        sizes = [np.size(cell) for cell in cells if not _is_empty(cell)]
        nothing = np.full(max(sizes, default=longest), np.nan)
        channels = [
            nothing if _is_empty(cell) else np.atleast_1d(values_of(cell, f"Case {case}")) for cell in cells
        ]
        lengths = [len(values) for values in channels]
        if len(set(lengths)) > 1:
            raise DataError(
                f"Case {case} has channels of unequal length: {lengths[:20]}. Fill the shorter ones up with NaN."
            )
        found.append(np.stack(channels))
    return found


def _is_empty(cell: Any) -> bool:
    return not np.ndim(cell) and is_missing(cell)


def _by_times(columns: dict[str, np.ndarray], n_cases: int) -> list[np.ndarray]:
    if not columns:
        raise DataError(f"Found 0 feature(s) (shape=({n_cases}, 0)) while a minimum of 1 is required.")
    values = [values_of(column, f"Column {name!r}") for name, column in columns.items()]
    return list(np.stack(values, axis=1)[:, None])
