"""Numbers of any kind as float64, with refusals of what is none."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np

from seqattn.errors import DataError

__all__ = ["is_missing", "values_of"]


def values_of(values: Any, what: str) -> np.ndarray:
    """Return values as an array of float64; what is missing becomes NaN.

    Parameters
    ----------
    values
        An array, a column of a frame, or lists of numbers.
    what
        What they are, for the message: "Case 3".

    Raises
    ------
    DataError
        They are complex, text or dates.
    TypeError
        An object among them is no number.

    Examples
    --------
    >>> values_of([1, None], "Case 0")
    array([ 1., nan])
    """
    found = np.asarray(values)
    if found.dtype.kind == "c":
        raise DataError(
            f"{what} holds complex numbers. Complex data not supported; give the parts as two channels."
        )
    if found.dtype.kind == "O":
        found = _of_objects(found, what)
    elif found.dtype.kind not in "biuf":
        raise DataError(f"{what} holds values of the type {found.dtype}, which are no numbers.")
    return found.astype(np.float64, copy=False)


def _of_objects(found: np.ndarray, what: str) -> np.ndarray:
    missing = np.asarray(np.frompyfunc(is_missing, 1, 1)(found), dtype=bool)
    try:
        return np.where(missing, np.nan, found).astype(np.float64)
    except TypeError as error:
        raise TypeError(f"{what} holds something that is no number: {error}.") from None
    except ValueError as error:
        raise DataError(f"{what} holds something that is no number: {error}.") from None


def is_missing(value: Any) -> bool:
    """Tell whether an object stands for a missing value: None, NaN, or what pandas has for it.

    Parameters
    ----------
    value
        Anything but an array.
    """
    # By its name, so that pandas is not imported.
    is_named = type(value).__name__ in ("NAType", "NaTType")
    return value is None or is_named or (isinstance(value, Number) and bool(value != value))
