"""Text files of interactions: comma or tab separated, and RecBole's ``.inter`` with its typed header.

Every error names the line, counted from 1 with the header.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from seqattn.data.table import need_columns
from seqattn.errors import DataError

__all__ = ["is_text_log", "read_text_log", "write_inter"]

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t"}
_TYPES = ("token", "token_seq", "float", "float_seq")


def is_text_log(path: Path) -> bool:
    """Tell whether a path is a text file with a header line.

    Parameters
    ----------
    path
        What is asked about.
    """
    return path.suffix.lower() in _SEPARATORS and path.is_file() and path.stat().st_size > 0


def read_text_log(path: Path, user: str, item: str, time: str | None) -> tuple[pl.DataFrame, int]:
    """Read the columns of ids and times of a text file; ids stay text.

    Parameters
    ----------
    path
        A file for which :func:`is_text_log` holds.
    user, item, time
        Names of its columns.

    Returns
    -------
    The columns, and how many the file has in all.

    Raises
    ------
    DataError
        A column is absent, a field of the header has a wrong type, or a line has too many or too few fields, or a
        time that is none; says in which line.
    """
    ending = path.suffix.lower()
    header = _header(path, _SEPARATORS[ending])
    fields = _typed(header, path, user, item, time) if ending == ".inter" else header
    wanted = [name for name in (user, item, time) if name is not None]
    frame = pl.DataFrame(schema=list(dict.fromkeys(fields)))
    try:
        need_columns(frame, wanted)
    except DataError as error:
        hint = (
            " Pass time=None, to a model in fit, where the order of the rows is the order."
            if time not in fields
            else ""
        )
        raise DataError(f"{error}{hint}" if {user, item} <= set(fields) else str(error)) from None
    if len(set(fields)) < len(fields):
        twice = next(name for number, name in enumerate(fields) if name in fields[:number])
        raise DataError(f"The header of {str(path)!r} names {twice!r} twice. Rename one of the columns.")
    table = _read(path, _SEPARATORS[ending], header, fields, wanted)
    _refuse_short(table, path, _SEPARATORS[ending], len(header))
    if time is not None:
        table = table.with_columns(_times(table[time], path))
    return table, len(fields)


def _header(path: Path, separator: str) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [name.strip().strip('"') for name in file.readline().rstrip("\r\n").split(separator)]


def _typed(header: list[str], path: Path, user: str, item: str, time: str | None) -> list[str]:
    """Return the names of a header ``name:type``; ids must be tokens and times floats."""
    names = []
    for field in header:
        name, colon, kind = field.rpartition(":")
        if not colon or kind not in _TYPES:
            raise DataError(
                f"Line 1 of {str(path)!r} has the field {field!r}, not 'name:type' with a type of {', '.join(_TYPES)}. "
                "A header is for example 'user_id:token', 'item_id:token', 'timestamp:float', separated by tabs."
            )
        wanted = {user: "token", item: "token", time: "float"}.get(name, kind)
        if kind != wanted:
            raise DataError(f"Line 1 of {str(path)!r} says {field!r}, but {name!r} must be {wanted!r}.")
        names.append(name)
    return names


def _read(
    path: Path, separator: str, header: list[str], fields: list[str], wanted: list[str]
) -> pl.DataFrame:
    quote = None if path.suffix.lower() == ".inter" else '"'
    try:
        table = pl.read_csv(
            path,
            separator=separator,
            quote_char=quote,
            columns=sorted(fields.index(name) for name in wanted),
            infer_schema=False,
        )
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        _refuse_ragged(path, separator, len(header))
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{str(path)!r} cannot be read as {path.suffix[1:]}: {reason}") from error
    table.columns = [name for name in fields if name in wanted]
    return table.select(wanted)


def _refuse_ragged(path: Path, separator: str, width: int) -> None:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            found = line.rstrip("\r\n").count(separator) + 1
            if found != width and line.strip() and '"' not in line:
                raise DataError(
                    f"Line {number} of {str(path)!r} has {found} fields instead of {width}. Mend the line."
                )


def _refuse_short(table: pl.DataFrame, path: Path, separator: str, width: int) -> None:
    """Look for short lines only where a field is missing: polars fills them up with nulls."""
    if len(table) and any(table.null_count().row(0)):
        _refuse_ragged(path, separator, width)


def _times(texts: pl.Series, path: Path) -> pl.Series:
    """Return times that were written as numbers or as dates in ISO form."""
    whole = texts.cast(pl.Int64, strict=False)
    if whole.null_count() == texts.null_count():
        return whole
    numbers = texts.cast(pl.Float64, strict=False)
    if numbers.null_count() == texts.null_count():
        return numbers
    if numbers.null_count() == len(texts):
        dates = _dates(texts)
        if dates is not None:
            return dates
    bad = int((numbers.is_null() & texts.is_not_null()).arg_max() or 0)
    raise DataError(
        f"The time in line {bad + 2} of {str(path)!r} is {texts[bad]!r}, and others are numbers or dates of another "
        f"form. Column {texts.name!r} must hold numbers only, or dates in ISO form only."
    )


def _dates(texts: pl.Series) -> pl.Series | None:
    """Read moments or days in ISO form, None where they are none."""
    has_time = texts.drop_nulls().str.contains(r"[T:]").any()
    try:
        found = texts.str.to_datetime() if has_time else texts.str.to_date()
    except pl.exceptions.PolarsError:
        return None
    return found if found.null_count() == texts.null_count() else None


def write_inter(path: str | Path, table: pl.DataFrame, names: tuple[str, ...]) -> None:
    """Write interactions as RecBole's atomic file: tab separated, with a typed header.

    Parameters
    ----------
    path
        A file that ends in ``.inter``.
    table
        Columns user, item and, where there are times, time, in this order.
    names
        Their names in the header.

    Raises
    ------
    DataError
        An id has a tab or a line break in it, which the format cannot hold; or the ending is another.
    """
    path = Path(path)
    if path.suffix.lower() != ".inter":
        raise DataError(f"{str(path)!r} ends in {path.suffix!r}. Give a name that ends in '.inter'.")
    texts = [_token(column) for column in table.get_columns()[:2]]
    kinds = ("token", "token", "float")
    columns = [*texts, *(_plain_number(column) for column in table.get_columns()[2:])]
    header = [f"{name}:{kind}" for name, kind in zip(names, kinds, strict=False)]
    out = pl.DataFrame([column.alias(name) for column, name in zip(columns, header, strict=True)])
    out.write_csv(path, separator="\t", quote_style="never")


def _plain_number(column: pl.Series) -> pl.Series:
    """Write whole numbers without a point, as other writers of this format do."""
    is_whole = bool(((column % 1 == 0) & (column.abs() < 2.0**53)).all())
    return (column.cast(pl.Int64) if is_whole else column).cast(pl.String)


def _token(column: pl.Series) -> pl.Series:
    texts = (
        pl.Series(column.name, [str(value) for value in column.to_list()])
        if column.dtype == pl.Object
        else column.cast(pl.String)
    )
    bad = texts.str.contains("[\t\r\n]")
    if bad.any():
        value = texts.filter(bad)[0]
        raise DataError(
            f"The id {value!r} has a tab or a line break in it, which an .inter file cannot hold."
        )
    return texts
