"""From tables and files of interactions to flat columns of codes: every check of single rows lives here.

A Parquet file is read in pieces, so that its text never lies in memory as a whole; of 20 million rows only three
columns of numbers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqattn.data.atomic import dataset_to_frame, is_dataset
from seqattn.data.clock import Clock, to_numbers
from seqattn.data.ids import codes_among, distinct_ids, joined_ids, missing_rows, token_ids
from seqattn.data.pieces import Parts
from seqattn.data.table import as_frame, index_names, is_pandas, is_table, need_columns, read_frame
from seqattn.data.text import is_text_log, read_text_log
from seqattn.errors import DataError, ParameterError

__all__ = ["Columns", "Log", "on_clock", "read_log"]

_PIECE = 1_000_000
_CODED = (pl.Categorical, pl.Enum)
_TICKS = {"ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = {unit: np.datetime64(0, unit) for unit in ("ms", "us", "ns")}


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a log.

    Attributes
    ----------
    user, item
        Columns of ids.
    time
        Column of times; None where the order of the rows is the order.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = "timestamp"

    def __post_init__(self) -> None:
        for name in ("user", "item", "time"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "time" and value is None):
                raise ParameterError(f"{name}={value!r} is no name of a column, which is a text.")
        if len(set(self.names)) < len(self.names):
            raise ParameterError(f"Two of the columns {', '.join(map(repr, self.names))} are one. Name each.")

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name in (self.user, self.item, self.time) if name is not None]


@dataclass(frozen=True)
class Log:
    """Rows as they stand in the table, in codes.

    Attributes
    ----------
    users, items
        Codes (int32).
    times
        What rows are sorted by: whole numbers or floats, in the finest unit that was given; None without times.
    clock
        What the times mean.
    user_ids, item_ids
        Ids by code.
    n_ignored
        Number of columns that were not read.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    clock: Clock
    user_ids: pl.Series
    item_ids: pl.Series
    n_ignored: int = 0


@dataclass(frozen=True)
class _Source:
    """A table that can be gone through more than once."""

    schema: Mapping[str, Any]
    pieces: Callable[[Sequence[str]], Iterator[tuple[int, pl.DataFrame]]]
    n_columns: int
    first_line: int | None = None

    def place(self, row: int) -> str:
        """Say where a row stands."""
        return f"row {row}" if self.first_line is None else f"line {row + self.first_line}"


def read_log(X: Any, columns: Columns, users: pl.Series | None, items: pl.Series | None) -> Log:
    """Read interactions from whatever a user gives.

    Parameters
    ----------
    X
        A table of any kind (see :func:`seqattn.data.table.as_frame`), or the path of a file.
    columns
        What its columns are called.
    users, items
        Ids whose codes come first.

    Returns
    -------
    The rows in their order.

    Raises
    ------
    DataError
        A value is missing or of the wrong kind; says how many there are and where the first one stands.
    TypeError
        The input is no table and no path.
    """
    source = _source(X, columns, users, items)
    user_ids = _numbered(source, columns.user, users, "Users")
    item_ids = _numbered(source, columns.item, items, "Items")
    coded_users = _coded(source, columns.user, user_ids)
    coded_items = _coded(source, columns.item, item_ids)
    if not len(coded_users):
        raise DataError("The table has no rows. At least one interaction is needed.")
    clock = Clock() if columns.time is None else _clock(source.schema[columns.time])
    times = None if columns.time is None else _times(source, columns.time, clock)
    ignored = source.n_columns - len(columns.names)
    return Log(coded_users, coded_items, times, clock, user_ids, item_ids, ignored)


def _source(X: Any, columns: Columns, users: pl.Series | None, items: pl.Series | None) -> _Source:
    if isinstance(X, (str, Path)):
        return _source_of_file(Path(X), columns, users, items)
    if is_dataset(X):
        usual = zip(
            ("user_id", "item_id", "timestamp"), (columns.user, columns.item, columns.time), strict=True
        )
        X = dataset_to_frame(X).rename({old: new for old, new in usual if new is not None}, strict=False)
    if not is_table(X):
        raise TypeError(
            f"Interactions cannot be read from {type(X).__name__}. Give a table (polars, pandas, arrow, or a mapping "
            "of columns), Interactions, a data set of RecBole, or the path of a file."
        )
    if isinstance(X, pl.LazyFrame):
        X = X.collect()
    return _source_of_table(X, columns)


def _source_of_table(X: Any, columns: Columns) -> _Source:
    frame = as_frame(_without_objects(X, columns))
    if isinstance(X, pl.DataFrame):
        schema: dict[str, Any] = dict(X.schema)
    else:
        schema = {**frame.schema, **dict.fromkeys(_pandas_categories(X, frame), pl.Categorical)}
    _need(schema, columns, X)
    frame = frame.select(columns.names)
    for name in (columns.user, columns.item):
        if frame.schema[name].is_nested():
            frame = frame.with_columns(_objects(X, frame, name))
            schema[name] = pl.Object
    return _Source(schema, lambda names: iter([(0, frame.select(names))]), len(schema))


def _need(schema: Mapping[str, Any], columns: Columns, table: object = None) -> None:
    names = list(schema)
    try:
        need_columns(pl.DataFrame(schema=names), columns.names, table)
    except DataError as error:
        if columns.time is None or columns.time in names or columns.time in index_names(table):
            raise
        if {columns.user, columns.item} <= set(names):
            raise DataError(
                f"{error} Pass time=None, to a model in fit, where the order of the rows is the order."
            ) from None
        raise


def _without_objects(X: Any, columns: Columns) -> Any:
    """Leave out columns of a pandas frame that are not read, which are slow to convert or cannot be."""
    return X[[n for n in X.columns if n in columns.names]] if is_pandas(X) and X.columns.is_unique else X


def _pandas_categories(X: Any, frame: pl.DataFrame) -> list[str]:
    """Return the columns of text that were categories of a pandas frame."""
    if not is_pandas(X):
        return []
    coded = [str(name) for name in X.columns if type(X[name].dtype).__name__ == "CategoricalDtype"]
    return [name for name in coded if frame.schema.get(name) == pl.String]


def _objects(X: Any, frame: pl.DataFrame, name: str) -> pl.Series:
    """Return ids that polars took for lists as the tuples that they were."""
    values = (
        None if isinstance(X, pl.DataFrame) or not (is_pandas(X) or isinstance(X, Mapping)) else list(X[name])
    )
    if values is None or not all(isinstance(value, tuple) for value in values if value is not None):
        raise DataError(
            f"Column {name!r} holds {frame.schema[name]}. An id must be one value: text, a number."
        )
    return pl.Series(name, values, dtype=pl.Object)


def _source_of_file(
    path: Path, columns: Columns, users: pl.Series | None, items: pl.Series | None
) -> _Source:
    if path.suffix.lower() == ".parquet" and path.is_file():
        parts = Parts(path)
        _need(parts.schema, columns)
        return _Source(parts.schema, lambda names: parts.pieces(names, _PIECE), len(parts.schema))
    if not is_text_log(path):
        return _source_of_table(read_frame(path), columns)
    frame, n_columns = read_text_log(path, columns.user, columns.item, columns.time)
    known = {columns.user: users, columns.item: items}
    ids = [token_ids(frame[name], known[name]) for name in (columns.user, columns.item)]
    frame = frame.with_columns(ids)
    return _Source(frame.schema, lambda names: iter([(0, frame.select(names))]), n_columns, 2)


def _numbered(source: _Source, name: str, known: pl.Series | None, what: str) -> pl.Series:
    """Return the ids of a column by code, known ones first, in the kind in which they were given."""
    found: list[pl.Series] = []
    for _, frame in source.pieces([name]):
        found.append(distinct_ids(frame[name]))
        if len(found) > 1 and sum(map(len, found[1:])) > len(found[0]):
            found = [distinct_ids(pl.concat(found))]
    if not found:
        raise DataError("The table has no rows. At least one interaction is needed.")
    ids = (distinct_ids(pl.concat(found)) if len(found) > 1 else found[0]).alias(name)
    kind = source.schema[name]
    if isinstance(kind, _CODED) or kind in _CODED:
        ids = ids.cast(kind)
    return ids if known is None else joined_ids(known, ids, what)


def _coded(source: _Source, name: str, ids: pl.Series) -> np.ndarray:
    parts, gone, first = [], 0, 0
    for start, frame in source.pieces([name]):
        codes = codes_among(frame[name], ids)
        missing = np.flatnonzero(codes < 0)
        if len(missing) and not gone:
            first = start + int(missing[0])
        gone += len(missing)
        parts.append(codes)
    _refuse(gone, first, f"The id in column {name!r} is missing", source)
    return np.concatenate(parts)


def _refuse(count: int, first: int, what: str, source: _Source) -> None:
    if count:
        rows = "1 row" if count == 1 else f"{count:,} rows"
        raise DataError(f"{what} in {rows}, first in {source.place(first)}. Fill it in, or drop the rows.")


def _clock(kind: Any) -> Clock:
    """Return a clock whose zero is that of Unix time, so that logs read apart have one."""
    if isinstance(kind, pl.Datetime):
        return Clock("s", _EPOCH[kind.time_unit], kind.time_zone)
    if kind == pl.Date:
        return Clock("s", _EPOCH["us"])
    return Clock("s") if isinstance(kind, pl.Duration) else Clock()


def _times(source: _Source, name: str, clock: Clock) -> np.ndarray:
    """Return times as given in whole numbers or floats, which sort as the times do."""
    parts, gone, first_gone, infinite, first_infinite = [], 0, 0, 0, 0
    for start, frame in source.pieces([name]):
        column = frame[name]
        if not (column.dtype.is_numeric() or column.dtype.is_temporal()) or column.dtype == pl.Time:
            to_numbers(column, clock, f"Column {name!r}")  # says what is wrong with it
            raise DataError(
                f"Column {name!r} holds values of kind {column.dtype}, not times. Give numbers or dates."
            )
        missing = missing_rows(column)
        numbers = _sortable(column)
        endless = np.isinf(numbers) & ~missing
        first_gone = start + int(missing.argmax()) if missing.any() and not gone else first_gone
        first_infinite = start + int(endless.argmax()) if endless.any() and not infinite else first_infinite
        gone, infinite = gone + int(missing.sum()), infinite + int(endless.sum())
        parts.append(numbers)
    _refuse(gone, first_gone, f"The time in column {name!r} is missing", source)
    _refuse(infinite, first_infinite, f"The time in column {name!r} is infinite", source)
    return np.concatenate(parts)


def _sortable(column: pl.Series) -> np.ndarray:
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if isinstance(column.dtype, pl.Duration):  # a clock without a zero counts in nanoseconds
        column = column.dt.cast_time_unit("ns")
    if column.dtype.is_temporal():
        column = column.to_physical()
    if column.dtype.is_integer() and column.dtype != pl.UInt64:
        return column.cast(pl.Int64).fill_null(0).to_numpy()
    return column.cast(pl.Float64).fill_null(0.0).to_numpy()


def on_clock(keys: np.ndarray, clock: Clock) -> np.ndarray:
    """Return times of a :class:`Log` as floats: the numbers as given, or seconds where they were dates.

    Parameters
    ----------
    keys, clock
        Its times and its clock.
    """
    if clock.unit is None:
        return keys.astype(np.float64)
    whole, part = np.divmod(keys, _TICKS[clock.resolution])
    return whole + part / _TICKS[clock.resolution]
