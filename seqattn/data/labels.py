"""Type labels of any hashable kind: their order, their codes, and how they are written to files."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import uuid
import warnings
import zoneinfo
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from seqattn.errors import DataError, ParameterError, SeqattnWarning

__all__ = [
    "check_labels",
    "code_labels",
    "decode_label",
    "encode_label",
    "first_repeat",
    "label_list",
    "recoded",
    "series_of_labels",
]

_SHOWN = 20


def check_labels(labels: Any) -> tuple[Any, ...]:
    """Return the labels that an argument ``labels=`` names.

    Parameters
    ----------
    labels
        A number K for the labels 0 to K - 1, or the labels themselves, in the order of their codes.

    Raises
    ------
    ParameterError
        A label comes twice, is missing (None, NaN) or cannot be hashed.

    Examples
    --------
    >>> check_labels(3)
    (0, 1, 2)
    >>> check_labels(["view", "buy"])
    ('view', 'buy')
    """
    if isinstance(labels, (int, np.integer)) and not isinstance(labels, bool):
        if labels < 1:
            raise ParameterError(f"labels={labels!r}: the number of types must be at least 1.")
        return tuple(range(int(labels)))
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise ParameterError(
            f"labels={labels!r} is not a list of labels. Pass a list, such as ['a', 'b'], or their number."
        )
    found = tuple(label.item() if isinstance(label, np.generic) else label for label in labels)
    if any(_is_missing(label) for label in found):
        raise ParameterError("labels holds a missing value (None or NaN). Leave it out, or give it a name.")
    try:
        distinct = set(found)
    except TypeError as error:
        raise ParameterError(f"Labels must be hashable (text, numbers, tuples): {error}.") from None
    if len(distinct) < len(found):
        raise ParameterError(f"Label {first_repeat(found)!r} comes twice in labels. Name each label once.")
    if not found:
        raise ParameterError("labels is empty. Name at least one label, or pass labels=None.")
    return found


def first_repeat(values: Iterable[Any]) -> Any:
    """Return the first value that came before, or None.

    Examples
    --------
    >>> first_repeat(["a", "b", "a"])
    'a'
    """
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def code_labels(values: pl.Series) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Number the labels found: sorted where they can be sorted, in order of appearance otherwise.

    Returns
    -------
    The code of each value (int32), and the labels by code.

    Raises
    ------
    DataError
        A label cannot be hashed, or two become one as Python's dates: moments of a nanosecond column that differ by
        less than a microsecond, or an hour that comes twice when clocks change.

    Examples
    --------
    >>> codes, labels = code_labels(pl.Series(["b", "a", "b"]))
    >>> codes.tolist(), labels
    ([1, 0, 1], ('a', 'b'))
    """
    if values.dtype == pl.Object:
        return _code_objects(values.to_list())
    distinct = values.unique(maintain_order=True)
    labels = _in_order(distinct.to_list())
    places = {label: code for code, label in enumerate(labels)}
    if len(places) < len(labels):
        raise DataError(
            f"Two types of kind {values.dtype} are the same label {first_repeat(labels)!r} in Python. "
            "Cast the column to text or to whole numbers first."
        )
    if labels == list(range(len(labels))) and values.dtype.is_integer():
        return values.cast(pl.Int32).to_numpy(), tuple(labels)
    codes = pl.Series([places[label] for label in distinct.to_list()], dtype=pl.Int32)
    return values.replace_strict(distinct, codes, return_dtype=pl.Int32).to_numpy(), tuple(labels)


def _code_objects(values: list[Any]) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Number labels that no column type can hold, one by one."""
    try:
        labels = _in_order(list(dict.fromkeys(values)))
    except TypeError as error:
        raise DataError(f"Type labels must be hashable (text, numbers, tuples): {error}.") from None
    places = {label: code for code, label in enumerate(labels)}
    return np.fromiter((places[value] for value in values), np.int32, len(values)), tuple(labels)


def _in_order(labels: list[Any]) -> list[Any]:
    try:
        return sorted(labels)
    except TypeError:
        return labels


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and label != label)


def series_of_labels(values: Sequence[Any]) -> pl.Series:
    """Return labels as a column, of Python objects where no column type can hold them all.

    Examples
    --------
    >>> series_of_labels(["a", "b"]).dtype
    String
    >>> series_of_labels(["a", 1]).dtype
    Object
    """
    if any(isinstance(value, tuple) for value in values):
        return pl.Series(values, dtype=pl.Object)
    try:
        series = pl.Series(values, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(values, dtype=pl.Object)
    # A list such as [True, 2] would lose the kind of its labels in a column of numbers.
    mixed = len({type(value) for value in values if value is not None}) > 1
    return pl.Series(values, dtype=pl.Object) if mixed else series


def label_list(labels: Sequence[Any]) -> str:
    """Return labels as a text for messages, shortened where there are many.

    Examples
    --------
    >>> label_list(["a", "b"])
    "'a', 'b'"
    """
    shown = ", ".join(repr(label) for label in labels[:_SHOWN])
    return shown if len(labels) <= _SHOWN else f"{shown} and {len(labels) - _SHOWN} more"


def recoded(found: Sequence[Any], counts: np.ndarray, wanted: tuple[Any, ...], unknown: str) -> np.ndarray:
    """Return the code among the labels wanted for each label found, -1 where its events are to be dropped.

    Parameters
    ----------
    found, counts
        The labels of the events, and how many events each has.
    wanted
        The labels by their new codes.
    unknown
        "error" refuses labels that are not wanted, "ignore" warns with the number of their events.

    Raises
    ------
    DataError
        A label with events is not wanted; with "ignore" if there is no other.

    Examples
    --------
    >>> recoded(["a", "b"], np.array([3, 1]), ("b", "a"), "error")
    array([1, 0], dtype=int32)
    """
    place = {label: code for code, label in enumerate(wanted)}
    codes = np.array([place.get(label, -1) for label in found], dtype=np.int32)
    lost, total = int(counts[codes < 0].sum()), int(counts.sum())
    if not lost:
        return codes
    strange = [found[int(code)] for code in np.flatnonzero((codes < 0) & (counts > 0))]
    if unknown == "error":
        raise DataError(
            f"Type {label_list(strange)} is not among the labels ({lost} of {total} events). "
            f"Labels: {label_list(wanted)}. Pass unknown='ignore' to leave these events out."
        )
    if lost == total:
        raise DataError(
            f"None of the {total} events has a type that is among the labels. Found: "
            f"{label_list(strange)}. Labels: {label_list(wanted)}."
        )
    warnings.warn(
        f"{lost} of {total} events have types that are not among the labels "
        f"({label_list(strange)}) and were dropped from history and scoring.",
        SeqattnWarning,
        stacklevel=3,
    )
    return codes


def encode_label(label: Any, what: str = "Label") -> Any:
    """Return a label or an id in a form that JSON keeps exactly, kind included.

    Parameters
    ----------
    label
        Text, a number, bytes, a date, a time or a span of time, or a tuple of these.
    what
        What it is, for the message.

    Raises
    ------
    DataError
        The label is of a kind that cannot be written.

    Examples
    --------
    >>> encode_label("a"), encode_label((1, "x"))
    ('a', {'tuple': [1, 'x']})
    """
    if isinstance(label, np.generic) and not isinstance(label, (np.datetime64, np.timedelta64)):
        label = label.item()
    if label is None or isinstance(label, (str, bool, int)):
        return label
    if isinstance(label, float):
        return {"float": label.hex()}
    if isinstance(label, tuple):
        return {"tuple": [encode_label(part, what) for part in label]}
    for kind, (name, write, _) in _KINDS.items():
        if isinstance(label, kind):
            return {name: write(label)}
    raise DataError(
        f"{what} {label!r} of type {type(label).__name__} cannot be written to a file. "
        "Use text, numbers, dates, times, bytes or tuples of these."
    )


def _moment_text(moment: dt.datetime) -> str | list[str]:
    """Return a moment as text, with the name of its zone if that has one."""
    name = getattr(moment.tzinfo, "key", None)
    return moment.isoformat() if name is None else [moment.isoformat(), name]


def _moment(written: str | list[str]) -> dt.datetime:
    text, *zone = [written] if isinstance(written, str) else written
    moment = dt.datetime.fromisoformat(text)
    try:
        return moment.astimezone(zoneinfo.ZoneInfo(zone[0])) if zone else moment
    except zoneinfo.ZoneInfoNotFoundError as error:
        raise DataError(
            f"This computer knows no time zone {zone[0]!r}. Install the package tzdata."
        ) from error


# How labels that JSON does not know are named, written and read; a kind goes before those that it is a kind of.
_KINDS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    bytes: ("bytes", lambda label: base64.b64encode(label).decode("ascii"), base64.b64decode),
    dt.datetime: ("datetime", _moment_text, _moment),
    dt.date: ("date", dt.date.isoformat, dt.date.fromisoformat),
    dt.time: ("time", dt.time.isoformat, dt.time.fromisoformat),
    dt.timedelta: (
        "microseconds",
        lambda label: label // dt.timedelta(microseconds=1),
        lambda written: dt.timedelta(microseconds=written),
    ),
    decimal.Decimal: ("decimal", str, decimal.Decimal),
    uuid.UUID: ("uuid", str, uuid.UUID),
}


def decode_label(written: Any) -> Any:
    """Return the label that :func:`encode_label` wrote.

    Examples
    --------
    >>> decode_label({"tuple": [1, "x"]})
    (1, 'x')
    """
    if not isinstance(written, dict):
        return written
    (kind, value), *rest = written.items()
    readers: dict[str, Any] = {
        "float": float.fromhex,
        "tuple": lambda parts: tuple(decode_label(part) for part in parts),
        **{name: read for name, _, read in _KINDS.values()},
    }
    if rest or kind not in readers:
        raise DataError(f"{written!r} is not a label that seqattn wrote.")
    return readers[kind](value)
