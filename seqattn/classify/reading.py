"""What is asked of training cases and their labels before anything is learnt of them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from seqattn.data.panels import Panel
from seqattn.errors import DataError, SeqattnWarning

__all__ = ["check_kind", "labels_as_axis", "with_values"]


def labels_as_axis(y: Any) -> np.ndarray:
    """Return labels as an array of one axis; a column is taken with scikit-learn's warning.

    Parameters
    ----------
    y
        Labels in any form.

    Raises
    ------
    DataError
        There are several labels per case.
    """
    given = y.to_numpy() if hasattr(y, "to_numpy") else np.asarray(y)
    if given.ndim > 1 and given.shape[1:] != (1,):
        raise DataError(f"y has the shape {given.shape}: y should be a 1d array, one label per case.")
    return np.asarray(column_or_1d(given, warn=True))


def check_kind(labels: np.ndarray) -> None:
    """Refuse labels that are no classes.

    Parameters
    ----------
    labels
        One per case.

    Raises
    ------
    DataError
        They are continuous, or of several types.
    """
    kinds = sorted({type(label).__name__ for label in labels.tolist()})
    if len(kinds) > 1:
        raise DataError(f"The labels y are of several types: {', '.join(kinds)}. Give labels of one type.")
    try:
        check_classification_targets(labels)
    except ValueError as error:
        raise DataError(f"The labels y are no classes. {error}") from None


def with_values(panel: Panel, codes: np.ndarray, classes: np.ndarray) -> tuple[Panel, np.ndarray]:
    """Return the cases that have values, with their codes.

    Parameters
    ----------
    panel
        Training cases.
    codes
        Class of each, as a number from 0.
    classes
        The classes.

    Raises
    ------
    DataError
        No case has a value, or none of a class.

    Warns
    -----
    SeqattnWarning
        A case has no value, or a class has one case.
    """
    full = np.array([bool(np.isfinite(case).any()) for case in panel.series])
    if not full.any():
        raise DataError("No case has a finite value. Check how missing values are written.")
    if not full.all():
        warnings.warn(
            f"{(~full).sum()} training cases have no value at all, the first is case {full.argmin()}. They are left "
            "out.",
            SeqattnWarning,
            stacklevel=4,
        )
    counts = np.bincount(codes[full], minlength=len(classes))
    if not counts.all():
        name = classes.tolist()[counts.argmin()]
        raise DataError(f"No case of the class {name!r} has a value. Leave the class out, or give it cases.")
    single = np.flatnonzero(counts == 1)
    if len(single) and len(classes) > 1:
        warnings.warn(
            f"{len(single)} of {len(classes)} classes have one training case, for example "
            f"{classes.tolist()[single[0]]!r}: nothing tells what its cases share, so its shapes have no prior.",
            SeqattnWarning,
            stacklevel=4,
        )
    return panel.select(full), codes[full]
