"""Ids of users and items, of any hashable kind: numbered without a Python object per row, and found again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from seqattn.data.labels import encode_label, series_of_labels
from seqattn.data.table import column_of
from seqattn.errors import DataError

__all__ = [
    "codes_among",
    "digest_of_ids",
    "distinct_ids",
    "from_pickle",
    "ids_of",
    "joined_ids",
    "missing_rows",
    "take_ids",
    "to_pickle",
    "token_ids",
]

# Whole numbers that text can be turned into and back: "7", not "007" or "+7".
_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"
_TEXTS = (pl.String, pl.Categorical, pl.Enum)
# A table of codes by number costs 4 bytes per number between the lowest and the highest.
_WIDEST, _PER_ID = 1 << 20, 8


def ids_of(values: Any, what: str = "ids", *, is_once: bool = False) -> pl.Series:
    """Return ids that a caller names as a column, their kind kept.

    Parameters
    ----------
    values
        A list, tuple, range, array, or column of polars or pandas.
    what
        What they are, for messages.
    is_once
        Whether an id that comes again is left out.

    Raises
    ------
    TypeError
        It is no list, but a single text or number.
    DataError
        An id is missing.

    Examples
    --------
    >>> ids_of(["a", ("b", 1)]).to_list()
    ['a', ('b', 1)]
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{what}={values!r} is a single value. Pass a list, such as [{values!r}].")
    series = column_of("id", values) if hasattr(values, "dtype") else series_of_labels(list(values))
    series = _hashable(series, values) if series.dtype.is_nested() else series
    gone = missing_rows(series)
    if gone.any():
        raise DataError(f"{what} holds a missing value at position {int(gone.argmax())}. Leave it out.")
    return _each_once(series) if is_once else series


def _each_once(ids: pl.Series) -> pl.Series:
    if ids.dtype == pl.Object:
        return pl.Series(ids.name, list(dict.fromkeys(ids.to_list())), dtype=pl.Object)
    return ids.unique(maintain_order=True) if ids.n_unique() < len(ids) else ids


def _hashable(series: pl.Series, values: Iterable[Any]) -> pl.Series:
    """Return a column of Python objects for tuples, which polars takes for lists."""
    objects = list(values)
    try:
        hash(tuple(objects))
    except TypeError as error:
        raise DataError(f"Ids must be hashable (text, numbers, dates, tuples): {error}.") from None
    return pl.Series(series.name, objects, dtype=pl.Object)


def missing_rows(values: pl.Series) -> np.ndarray:
    """Return which values are null or NaN, as Booleans."""
    if values.dtype == pl.Object:
        return np.fromiter((v is None or v != v for v in values.to_list()), bool, len(values))
    gone = values.is_null()
    return (gone | values.is_nan().fill_null(True) if values.dtype.is_float() else gone).to_numpy()


def distinct_ids(values: pl.Series) -> pl.Series:
    """Return each id once: sorted, or in order of appearance where ids of several kinds cannot be sorted.

    Parameters
    ----------
    values
        One id per row; missing ones are left out.

    Raises
    ------
    DataError
        An id cannot be hashed.

    Examples
    --------
    >>> distinct_ids(pl.Series(["b", "a", "b"])).to_list()
    ['a', 'b']
    """
    if values.dtype != pl.Object:
        found = values.drop_nulls()
        return (found.drop_nans() if found.dtype.is_float() else found).unique().sort()
    try:
        labels = [key for key in dict.fromkeys(values.to_list()) if key is not None and key == key]
    except TypeError as error:
        raise DataError(f"Ids must be hashable (text, numbers, dates, tuples): {error}.") from None
    with contextlib.suppress(TypeError):  # kinds that have no common order stay as they came
        labels = sorted(labels)
    return pl.Series(values.name, labels, dtype=pl.Object)


def codes_among(values: pl.Series, ids: pl.Series) -> np.ndarray:
    """Return the position of each value among distinct ids (int32), -1 where it is not among them or missing.

    Parameters
    ----------
    values
        One id per row.
    ids
        Distinct ids.

    Examples
    --------
    >>> codes_among(pl.Series(["b", "x"]), pl.Series(["a", "b"]))
    array([ 1, -1], dtype=int32)
    >>> codes_among(pl.Series([7]), pl.Series(["7"]))
    array([-1], dtype=int32)
    """
    if not len(ids):
        return np.full(len(values), -1, dtype=np.int32)
    if isinstance(values.dtype, _TEXTS) and isinstance(ids.dtype, _TEXTS):
        found = values.cast(pl.String).cast(pl.Enum(ids.cast(pl.String)), strict=False).to_physical()
        return found.cast(pl.Int32).fill_null(-1).to_numpy()
    if values.dtype.is_integer() and ids.dtype.is_integer():
        return _codes_of_numbers(values, ids)
    if values.dtype == ids.dtype and ids.dtype != pl.Object:
        places = pl.Series(np.arange(len(ids), dtype=np.int32))
        return values.replace_strict(ids, places, default=-1, return_dtype=pl.Int32).to_numpy()
    by_id = {key: code for code, key in enumerate(ids.to_list())}
    return np.fromiter((by_id.get(key, -1) for key in values.to_list()), np.int32, len(values))


def _codes_of_numbers(values: pl.Series, ids: pl.Series) -> np.ndarray:
    """Look whole numbers up in a table where they lie close together, else by bisection."""
    kind = pl.UInt64 if pl.UInt64 in (values.dtype, ids.dtype) else pl.Int64
    sought, known = values.cast(kind, strict=False), ids.cast(kind, strict=False)
    if known.null_count():  # ids below 0 beside values above 2 ** 63
        return codes_among(values.cast(pl.String), ids.cast(pl.String))
    gone, numbers, names = sought.is_null().to_numpy(), sought.fill_null(0).to_numpy(), known.to_numpy()
    low, high = int(names.min()), int(names.max())
    outside = gone | (numbers < low) | (numbers > high)
    if high - low < max(_WIDEST, _PER_ID * len(names)):
        table = np.full(high - low + 1, -1, dtype=np.int32)
        table[(names - names.dtype.type(low)).astype(np.int64)] = np.arange(len(names), dtype=np.int32)
        place = np.where(outside, 0, numbers - numbers.dtype.type(low)).astype(np.int64)
        return np.where(outside, np.int32(-1), table[place])
    order = np.argsort(names)
    place = np.minimum(np.searchsorted(names, numbers, sorter=order), len(names) - 1)
    codes = order[place].astype(np.int32)
    return np.where(~gone & (names[codes] == numbers), codes, np.int32(-1))


def joined_ids(known: pl.Series, more: pl.Series, what: str) -> pl.Series:
    """Return known ids with those of another column that are new behind them.

    Parameters
    ----------
    known, more
        Distinct ids.
    what
        What they are, for messages: "Items".

    Raises
    ------
    DataError
        The new ids are of another kind, so that none could be a known one.

    Examples
    --------
    >>> joined_ids(pl.Series(["b", "c"]), pl.Series(["a", "b"]), "Items").to_list()
    ['b', 'c', 'a']
    """
    new = more.filter(pl.Series(codes_among(more, known) < 0)) if more.dtype != pl.Object else None
    if pl.Object in (known.dtype, more.dtype):
        seen = set(known.to_list())
        added = [key for key in more.to_list() if key not in seen]
        return pl.Series(known.name, [*known.to_list(), *added], dtype=pl.Object) if added else known
    if new is None or not len(new):
        return known
    if isinstance(known.dtype, _TEXTS) and isinstance(more.dtype, _TEXTS):
        plain = pl.concat([known.cast(pl.String), new.cast(pl.String)])
        if isinstance(known.dtype, pl.Enum):
            wide = pl.Enum(pl.concat([known.dtype.categories, plain]).unique(maintain_order=True))
            return plain.cast(wide)
        return plain.cast(pl.Categorical) if known.dtype != pl.String else plain
    if not len(known):
        return new
    if known.dtype.is_integer() and new.dtype.is_integer():
        kind = known.dtype if new.cast(known.dtype, strict=False).null_count() == 0 else pl.Int64
        return pl.concat([known.cast(kind), new.cast(kind)])
    if known.dtype != new.dtype:
        raise DataError(
            f"{what} have ids of kind {more.dtype} (such as {new[0]!r}), but those known are of kind {known.dtype} "
            f"(such as {known[0]!r}). Cast the column."
        )
    return pl.concat([known, new])


def take_ids(ids: pl.Series, codes: np.ndarray) -> pl.Series:
    """Return the ids of some codes, null where a code is below 0.

    Parameters
    ----------
    ids
        Ids by code.
    codes
        Whole numbers, one-dimensional.

    Examples
    --------
    >>> take_ids(pl.Series(["a", "b"]), np.array([1, -1])).to_list()
    ['b', None]
    """
    if ids.dtype == pl.Object:
        objects = ids.to_list()
        return pl.Series(
            ids.name, [None if c < 0 else objects[c] for c in np.asarray(codes).tolist()], dtype=pl.Object
        )
    places = pl.Series(np.asarray(codes, dtype=np.int64))
    return ids.gather(places.set(places < 0, None) if (np.asarray(codes) < 0).any() else places)


def token_ids(values: pl.Series, known: pl.Series | None = None) -> pl.Series:
    """Return ids that a text file holds: as whole numbers where every one is written as such, else as text.

    Numbers with leading zeros or signs stay text, so that "007" and "7" are two.

    Parameters
    ----------
    values
        Text, one id per row.
    known
        Ids that they are to be compared with; where these are text, text stays text.

    Examples
    --------
    >>> token_ids(pl.Series(["10", "9"])).to_list(), token_ids(pl.Series(["10", "09"])).to_list()
    ([10, 9], ['10', '09'])
    """
    if known is not None and isinstance(known.dtype, _TEXTS):
        return values
    if values.unique().drop_nulls().str.contains(_WHOLE).all():
        return values.cast(pl.Int64)
    if known is None or not known.dtype.is_integer():
        return values
    is_whole = values.str.contains(_WHOLE).to_list()
    mixed = [int(text) if whole else text for text, whole in zip(values.to_list(), is_whole, strict=True)]
    return pl.Series(values.name, mixed, dtype=pl.Object)


class _Objects(NamedTuple):
    """A column of Python objects, which polars cannot pickle."""

    name: str
    values: list[Any]


def to_pickle(value: Any) -> Any:
    """Return what a pickle can hold instead of a column of Python objects; other values as they are.

    Parameters
    ----------
    value
        A column or anything else.

    Examples
    --------
    >>> from_pickle(to_pickle(pl.Series("id", [("a", 1)], dtype=pl.Object))).to_list()
    [('a', 1)]
    """
    is_odd = isinstance(value, pl.Series) and value.dtype == pl.Object
    return _Objects(value.name, value.to_list()) if is_odd else value


def from_pickle(value: Any) -> Any:
    """Return what :func:`to_pickle` was given.

    Parameters
    ----------
    value
        What it returned.
    """
    return pl.Series(*value, dtype=pl.Object) if isinstance(value, _Objects) else value


def digest_of_ids(ids: pl.Series) -> bytes:
    """Return the SHA-256 of ids in their order.

    Parameters
    ----------
    ids
        Ids by code.
    """
    if ids.dtype.is_integer():
        content = [b"whole", ids.cast(pl.Int64, strict=False).fill_null(-1).to_numpy().tobytes()]
    elif isinstance(ids.dtype, _TEXTS):
        texts = ids.cast(pl.String)
        lengths = texts.str.len_bytes().to_numpy().astype(np.int64)
        content = [b"text", lengths.tobytes(), "".join(texts.str.join("").to_list()).encode()]
    else:
        content = [b"label", json.dumps([_written(key) for key in ids.to_list()]).encode()]
    return hashlib.sha256(b"|".join(content)).digest()


def _written(key: Any) -> Any:
    try:
        return encode_label(key, "Id")
    except DataError:  # a kind that no file can hold still has a digest
        return {type(key).__name__: repr(key)}
