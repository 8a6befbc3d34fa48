"""Parquet files of any size, read a piece of rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from seqattn.data.table import as_frame, need_columns
from seqattn.errors import DataError, ParameterError

__all__ = ["Parts"]


class Parts:
    """One table in one or more Parquet files, of which only pieces are in memory.

    Parameters
    ----------
    data
        A Parquet file, a folder of them (in the order of their names), or several files in their order.

    Raises
    ------
    ParameterError
        Something is no path.
    DataError
        A file is absent, damaged or of another format, or files differ in the kinds of their columns.
    """

    def __init__(self, data: str | Path | Iterable[str | Path]) -> None:
        self.paths = _files(data)
        schemas = [_schema(path) for path in self.paths]
        self.schema = schemas[0]
        self._others = list(zip(self.paths[1:], schemas[1:], strict=True))

    def check(self, names: Sequence[str]) -> None:
        """Refuse a table that lacks a column, or whose files hold it in different kinds.

        Parameters
        ----------
        names
            Columns that are needed.
        """
        need_columns(pl.DataFrame(schema=self.schema), names)
        for path, schema in self._others:
            need_columns(pl.DataFrame(schema=schema), names)
            for name in names:
                if schema[name] != self.schema[name]:
                    raise DataError(
                        f"Column {name!r} holds {self.schema[name]} in {str(self.paths[0])!r}, but {schema[name]} in "
                        f"{str(path)!r}. Write all files alike."
                    )

    def holds_lists(self, name: str) -> bool:
        """Tell whether the cells of a column are lists, so that a row is a sequence and not an event.

        Parameters
        ----------
        name
            The column; one that is absent holds none.
        """
        return isinstance(self.schema.get(name), (pl.List, pl.Array))

    def pieces(self, names: Sequence[str], size: int) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield some columns in pieces, each with the number of rows before it.

        Parameters
        ----------
        names
            The columns.
        size
            Most rows of a piece.
        """
        before = 0
        for path in self.paths:
            table = pl.scan_parquet(path, glob=False).select(names)
            rows = int(_collected(path, table.select(pl.len())).item())
            for start in range(0, rows, size):
                yield before + start, as_frame(_collected(path, table.slice(start, size)))
            before += rows


def _files(data: Any) -> list[Path]:
    paths = _named(data)
    if not paths:
        raise DataError(f"There is no Parquet file in {str(data)!r}. Name files that end in .parquet.")
    splits = [path for path in paths if path.stem in ("train", "dev", "test")]
    if len({path.stem for path in splits}) > 1:
        raise DataError(
            f"{' and '.join(repr(path.name) for path in splits)} are splits, not parts of one table. "
            "Prepare each by itself."
        )
    for path in paths:
        _check_file(path)
    return paths


def _named(data: Any) -> list[Path]:
    """Return the files that are meant; in a folder hidden ones and those for other programs are not."""
    if isinstance(data, (str, os.PathLike)):
        folder = Path(data)
        found = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
        return [path for path in found if path == folder or not path.name.startswith((".", "_"))]
    paths = list(data) if isinstance(data, Iterable) else [data]
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise ParameterError(f"{path!r} is no path of a Parquet file. Give a path, or a list of paths.")
    return [Path(path) for path in paths]


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    if path.suffix.lower() != ".parquet":
        raise DataError(
            f"{str(path)!r} cannot be read in pieces: only Parquet can. Convert it, for example with "
            "polars.scan_csv(...).sink_parquet(...)."
        )


def _schema(path: Path) -> dict[str, Any]:
    try:
        return dict(pl.scan_parquet(path, glob=False).collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error


def _collected(path: Path, table: pl.LazyFrame) -> pl.DataFrame:
    try:
        return table.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).strip().partition("\n")[0]
    return DataError(f"{str(path)!r} cannot be read as parquet: {reason}")
