"""Reading and writing tables: files, polars and pandas frames, and whatever speaks the Arrow protocol.

This is the only module that knows pandas. A pandas frame is read column by column through numpy, so that no
pyarrow is needed.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqattn.data.workplace import work_folder
from seqattn.errors import DataError, ParameterError, suggest

__all__ = [
    "ENDINGS",
    "WRITERS",
    "as_frame",
    "column_of",
    "index_names",
    "is_pandas",
    "is_table",
    "like",
    "need_columns",
    "read_frame",
    "to_pandas",
    "write_frames",
]

ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".inter")
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t"}


def read_frame(path: str | Path, *, separator: str | None = None) -> pl.DataFrame:
    """Return the table that a file holds; the ending of its name tells the format.

    Parameters
    ----------
    path
        A file that ends in .parquet, .csv, .tsv, .jsonl, .ndjson, .json (one list of records) or .inter
        (tab separated, header ``name:type``, of which the name is kept).
    separator
        Character between the columns of a text file; None takes the one usual for the ending.

    Returns
    -------
    The table. Dates written in ISO form become dates.

    Raises
    ------
    DataError
        The file is absent, empty or damaged, or its ending is not known.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if not path.exists():
        raise DataError(f"There is no file {str(path)!r}.{_near_files(path)}")
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder, not a file.")
    if ending not in ENDINGS:
        raise DataError(f"The ending of {str(path)!r} is not known. Files may end in {', '.join(ENDINGS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"The file {str(path)!r} is empty.")
    try:
        return _read(path, ending, separator)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{str(path)!r} cannot be read as {ending[1:]}: {reason}") from error


def _read(path: Path, ending: str, separator: str | None) -> pl.DataFrame:
    if ending == ".parquet":
        return pl.read_parquet(path)
    if ending in _SEPARATORS:
        frame = _read_text(path, separator or _SEPARATORS[ending])
        return frame.rename(lambda name: name.partition(":")[0]) if ending == ".inter" else frame
    if ending == ".json" and _first_character(path) == "[":
        return pl.read_json(path, infer_schema_length=None)
    return pl.read_ndjson(path, infer_schema_length=None)


def _read_text(path: Path, separator: str) -> pl.DataFrame:
    return pl.read_csv(path, separator=separator, infer_schema_length=None, try_parse_dates=True)


def _first_character(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        while (character := file.read(1)).isspace():
            pass
    return character


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {str(path.parent)!r} does not exist either."
    return suggest(path.name, [other.name for other in path.parent.iterdir()])


def is_pandas(obj: object) -> bool:
    """Tell whether an object is a pandas frame, without importing pandas.

    Examples
    --------
    >>> is_pandas([1, 2])
    False
    """
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(obj, pandas.DataFrame)


def is_table(obj: object) -> bool:
    """Tell whether :func:`as_frame` can read an object."""
    known = isinstance(obj, (pl.DataFrame, pl.LazyFrame, Mapping)) or is_pandas(obj)
    return known or hasattr(obj, "__arrow_c_stream__")


def index_names(table: object) -> list[str]:
    """Return the names of a pandas index, which a user may take for columns."""
    if not is_pandas(table):
        return []
    return [str(name) for name in table.index.names if name is not None]  # type: ignore[attr-defined]


def as_frame(table: Any) -> pl.DataFrame:
    """Return a table of any kind as a polars frame.

    Parameters
    ----------
    table
        A polars frame or lazy frame, a pandas frame (its index is left out), an object with the Arrow protocol
        (``__arrow_c_stream__``: pyarrow, DuckDB and others), or a mapping of column names to columns.

    Returns
    -------
    A polars frame. Categories become their values, and missing values null.

    Raises
    ------
    DataError
        Two columns have one name, or columns differ in length.
    TypeError
        The object is no table.

    Examples
    --------
    >>> as_frame({"seq_id": [1, 1], "t": [0.5, 2.0]}).shape
    (2, 2)
    """
    if isinstance(table, pl.DataFrame):
        return _plain(table)
    if isinstance(table, pl.LazyFrame):
        return _plain(table.collect())
    if is_pandas(table):
        return _from_pandas(table)
    if isinstance(table, Mapping):
        return _from_mapping(table)
    if hasattr(table, "__arrow_c_stream__"):
        return _plain(pl.DataFrame(table))
    raise TypeError(
        f"A table was expected (polars, pandas, one with the Arrow protocol, or a mapping of columns), not "
        f"{type(table).__name__}."
    )


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Replace categories by their values, so that all sources give the same kinds of column."""
    coded = [name for name, kind in frame.schema.items() if isinstance(kind, (pl.Categorical, pl.Enum))]
    return frame.with_columns(pl.col(coded).cast(pl.String)) if coded else frame


def _from_mapping(columns: Mapping[Any, Any]) -> pl.DataFrame:
    lengths = {str(name): len(column) for name, column in columns.items() if hasattr(column, "__len__")}
    if len(set(lengths.values())) > 1:
        raise DataError(f"The columns differ in length: {lengths}.")
    return _plain(pl.DataFrame([column_of(str(name), values) for name, values in columns.items()]))


def column_of(name: str, values: Any) -> pl.Series:
    """Return a list or array as a column, of Python objects where no column type can hold it.

    Examples
    --------
    >>> column_of("t", [0.5, 2.0]).dtype
    Float64
    """
    if isinstance(values, pl.Series):
        return values.alias(name)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(values, pandas.Series):
        return _from_pandas_column(name, values)
    array = np.asarray(values) if hasattr(values, "__array__") else None
    if array is not None and array.ndim == 1 and array.dtype.kind != "O":
        return _from_numpy(name, array)
    return _from_objects(name, list(values))


def _from_pandas(table: Any) -> pl.DataFrame:
    names = [str(name) for name in table.columns]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"The table has two columns {twice!r}. Rename one of them.")
    return pl.DataFrame([_from_pandas_column(name, table.iloc[:, i]) for i, name in enumerate(names)])


def _from_pandas_column(name: str, column: Any) -> pl.Series:
    """Convert one pandas column through numpy; kinds are told by name, so that pandas stays unimported."""
    kind = type(column.dtype).__name__
    if kind == "CategoricalDtype":
        values = _from_pandas_column(name, column.cat.categories.to_series())
        codes = pl.Series(column.cat.codes.to_numpy(), dtype=pl.Int64)
        return values.gather(codes.replace(-1, None)).alias(name)
    if kind == "DatetimeTZDtype":
        return _zoned(name, column)
    if kind == "ArrowDtype":
        return pl.Series(name, column.array.__arrow_array__())
    if isinstance(column.dtype, np.dtype) and column.dtype.kind != "O":
        return _from_numpy(name, column.to_numpy())
    missing = column.isna().to_numpy()
    if kind in {"StringDtype", "PeriodDtype", "IntervalDtype"} or column.dtype.kind == "O":
        values = column.to_numpy(dtype=object)
        return _from_objects(name, [None if gone else v for v, gone in zip(values, missing, strict=True)])
    return _masked(name, column, missing)


def _masked(name: str, column: Any, missing: np.ndarray) -> pl.Series:
    """Convert a nullable column of numbers or truth values."""
    filler = column.dtype.type(0)
    values = pl.Series(name, column.to_numpy(dtype=column.dtype.numpy_dtype, na_value=filler))
    return values.set(pl.Series(missing), None) if missing.any() else values


def _zoned(name: str, column: Any) -> pl.Series:
    """Convert dates with a time zone: the moments in UTC, then the zone's name."""
    moments = _from_numpy(name, column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy())
    moments = moments.dt.replace_time_zone("UTC")
    try:
        return moments.dt.convert_time_zone(str(column.dt.tz))
    except pl.exceptions.PolarsError:  # a fixed offset without a name keeps its moments, shown in UTC
        return moments


def _from_numpy(name: str, values: np.ndarray) -> pl.Series:
    """Convert a numpy column; dates in units that polars lacks go to the next finer one, NaT becomes null."""
    if values.dtype.kind in "mM":
        unit = np.datetime_data(values.dtype)[0]
        if unit not in {"ms", "us", "ns"}:
            values = values.astype(f"{values.dtype.kind}8[ms]")
        return pl.Series(name, values)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if values.dtype.kind in "US":
        return pl.Series(name, values.tolist())
    return pl.Series(name, np.ascontiguousarray(values))


def _from_objects(name: str, values: Sequence[Any]) -> pl.Series:
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        if all(value is None or _is_number(value) for value in values):
            return pl.Series(name, [None if value is None else float(value) for value in values])
        return pl.Series(name, values, dtype=pl.Object)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def like(frame: pl.DataFrame, source: object) -> Any:
    """Return a frame of the kind of ``source``: pandas where that is pandas, else polars.

    Parameters
    ----------
    frame
        The table to return.
    source
        What the caller gave.

    Examples
    --------
    >>> like(pl.DataFrame({"k": [1]}), source={"k": [1]}).shape
    (1, 1)
    """
    return to_pandas(frame) if is_pandas(source) else frame


def to_pandas(frame: pl.DataFrame) -> Any:
    """Return a frame as one of pandas.

    Parameters
    ----------
    frame
        The table to return.
    """
    import pandas as pd

    return pd.DataFrame({column.name: _to_pandas(column, pd) for column in frame})


def _to_pandas(column: pl.Series, pandas: Any) -> Any:
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone is not None:
        naive = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy()
        return pandas.Series(naive).dt.tz_localize("UTC").dt.tz_convert(column.dtype.time_zone)
    if column.dtype.is_numeric() or column.dtype.is_temporal():
        return pandas.Series(column.to_numpy())
    if column.dtype == pl.Boolean and not column.null_count():
        return pandas.Series(column.to_numpy())
    return pandas.Series(column.to_list())


def need_columns(frame: pl.DataFrame, names: Sequence[str], table: object = None) -> None:
    """Refuse a table that lacks a column.

    Raises
    ------
    DataError
        Names the column, the columns there are and the nearest one.

    Examples
    --------
    >>> need_columns(pl.DataFrame({"item_id": [1]}), ["item"])
    Traceback (most recent call last):
    seqattn.errors.DataError: Column 'item' is not in the table. Columns: 'item_id'. Did you mean 'item_id'?
    """
    for name in names:
        if name in frame.columns:
            continue
        if name in index_names(table):
            raise DataError(f"{name!r} is the index of the table, not a column. Pass table.reset_index().")
        have = ", ".join(repr(column) for column in frame.columns) or "none"
        hint = suggest(name, frame.columns)
        raise DataError(f"Column {name!r} is not in the table. Columns: {have}.{hint}")


def write_frames(
    path: str | Path,
    frames: Iterable[pl.DataFrame],
    *,
    metadata: Mapping[str, str] | None = None,
    group_rows: int | None = None,
) -> int:
    """Write tables one below the other into one file, and return the number of its rows.

    Only one table is in memory at a time. The file takes its name when it is complete; until then the work lies in a
    hidden folder beside it.

    Parameters
    ----------
    path
        A file that ends in .parquet (one or more row groups per table), .csv or .jsonl.
    frames
        Tables with the same columns, at least one.
    metadata
        Texts for the metadata of a Parquet file's schema.
    group_rows
        Rows of a Parquet file's row groups; None leaves them to the writer.

    Raises
    ------
    ParameterError
        The ending is not known.
    OSError
        The file cannot be written; says why.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = write_frames(f"{folder}/x.csv", (pl.DataFrame({"n": [i]}) for i in range(3)))
    ...     print(rows, Path(folder, "x.csv").read_text().split())
    3 ['n', '0', '1', '2']
    """
    path = Path(path)
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ParameterError(f"{str(path)!r} ends in {path.suffix!r}. Use one of {', '.join(WRITERS)}.")
    with work_folder(path.parent) as folder:
        done = folder / path.name
        if path.suffix.lower() == ".parquet":
            rows = _write_parquet(done, frames, metadata, group_rows)
        else:
            rows = writer(done, frames)
        done.replace(path)
    return rows


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Make a failure to write, which polars tells as text, an error of the system."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().partition("\n")[0].removesuffix(".")
        raise OSError(errno.EIO, f"The table cannot be written: {reason}") from error


def _write_parquet(
    path: Path,
    frames: Iterable[pl.DataFrame],
    metadata: Mapping[str, str] | None = None,
    group_rows: int | None = None,
) -> int:
    """Write a file for each table, and join them: only polars' own sinks write row groups one by one."""
    told: Any = None if metadata is None else dict(metadata)
    rows, parts = 0, []
    for number, frame in enumerate(frames):
        parts.append(path.with_name(f"{number}.parquet"))
        with _writing():
            frame.write_parquet(parts[-1])
        rows += len(frame)
    if len(parts) == 1 and told is None and group_rows is None:
        parts[0].replace(path)
        return rows
    with _writing():
        pl.scan_parquet(parts, glob=False).sink_parquet(path, metadata=told, row_group_size=group_rows)
    return rows


def _write_csv(path: Path, frames: Iterable[pl.DataFrame]) -> int:
    rows = 0
    with path.open("wb") as file:
        for frame in frames:
            with _writing():
                frame.write_csv(file, include_header=not file.tell())
            rows += len(frame)
    return rows


def _write_json_lines(path: Path, frames: Iterable[pl.DataFrame]) -> int:
    rows = 0
    with path.open("wb") as file:
        for frame in frames:
            with _writing():
                frame.write_ndjson(file)
            rows += len(frame)
    return rows


WRITERS = {".csv": _write_csv, ".parquet": _write_parquet, ".jsonl": _write_json_lines}
