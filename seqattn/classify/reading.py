"""What is asked of training cases and their labels before anything is learnt of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from seqattn.data.panels import Panel
from seqattn.errors import DataError, ParameterError, SeqattnWarning

__all__ = [
    "check_kind",
    "check_known",
    "check_names",
    "labels_as_axis",
    "number_of_case",
    "pair_of",
    "require_count",
    "weights_of",
    "with_values",
]


def labels_as_axis(y: Any) -> np.ndarray:
    """Return labels as an array of one axis; a column is taken with scikit-learn's warning.

    Parameters
    ----------
    y
        Labels in any form.

    Raises
    ------
    DataError
        There are several labels per case, or y is no list of labels.

    Examples
    --------
    >>> labels_as_axis(("up", "down")).tolist()
    ['up', 'down']
    """
    try:
        given = y.to_numpy() if hasattr(y, "to_numpy") else np.asarray(y)
    except ValueError:
        raise DataError("y holds lists of unequal length. Give one label per case.") from None
    if given.dtype.kind == "c":
        raise DataError("Complex data not supported: y holds complex numbers. Give one label per case.")
    if not given.ndim:
        raise DataError(f"y is one {type(y).__name__}. Give a list or an array with one label per case.")
    if given.ndim > 1 and given.shape[1:] != (1,):
        raise DataError(f"y has the shape {given.shape}: y should be a 1d array, one label per case.")
    return np.asarray(column_or_1d(given, warn=True))


def check_known(labels: np.ndarray, classes: np.ndarray, n_cases: int) -> None:
    """Refuse labels that cannot be compared with predictions.

    Parameters
    ----------
    labels
        The true labels.
    classes
        The classes of the fit.
    n_cases
        How many cases there are.

    Raises
    ------
    DataError
        There is not one label per case, or none of them is a class.
    """
    if len(labels) != n_cases:
        raise DataError(
            f"y has {len(labels)} label(s), and there are {n_cases} case(s). Give one label per case."
        )
    found, known = set(labels.tolist()), classes.tolist()
    if not found & set(known):
        some = ", ".join(map(repr, sorted(found, key=repr)[:5]))
        raise DataError(
            f"None of the labels ({some}) is among the classes ({', '.join(map(repr, known[:5]))}). Give labels of the "
            "same type and spelling as in training."
        )


def check_names(found: tuple[str, ...] | None, known: tuple[str, ...] | None) -> None:
    """Compare the names of channels with those of the fit, where both are known.

    Parameters
    ----------
    found, known
        Names of the new cases and of the training cases; None where they have none.

    Raises
    ------
    DataError
        They are the same in another order.

    Warns
    -----
    SeqattnWarning
        They are others.
    """
    if found is None or known is None or found == known:
        return
    named = f"The channels are {_listed(found)}, but the classifier was fitted with {_listed(known)}."
    if sorted(found) == sorted(known):
        raise DataError(f"{named} Give them in the order of the fit.")
    warnings.warn(f"{named} They are taken in the order given.", SeqattnWarning, stacklevel=4)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")


def require_count(k: Any) -> None:
    """Refuse a number of things to show that is none.

    Parameters
    ----------
    k
        How many; at least 1.

    Raises
    ------
    ParameterError
        It is no whole number, or below 1.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ParameterError(f"k={k!r} is not allowed. Give a whole number, at least 1.")


def number_of_case(case: Any, n_cases: int, what: str) -> int:
    """Return the number of a case that is there.

    Parameters
    ----------
    case
        The number, from 0.
    n_cases
        How many cases there are.
    what
        What has them, for the message: "X".

    Raises
    ------
    DataError
        There is no such case.
    """
    is_whole = isinstance(case, int | np.integer) and not isinstance(case, bool)
    if not is_whole or not 0 <= case < n_cases:
        raise DataError(f"There is no case {case!r}: {what} has {n_cases}, counted from 0.")
    return int(case)


def weights_of(given: Any, n_cases: int) -> np.ndarray | None:
    """Return weights of cases as an array; None for none.

    Parameters
    ----------
    given
        One number per case, or None.
    n_cases
        How many cases there are.

    Raises
    ------
    DataError
        They are not one finite number per case, at least 0 and one of them above.
    """
    if given is None:
        return None
    try:
        weights = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError("sample_weight holds something that is no number. Give one per case.") from None
    if weights.shape != (n_cases,):
        raise DataError(
            f"sample_weight has the shape {weights.shape}, and there are {n_cases} case(s). Give one number per case."
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise DataError("sample_weight must be finite, at least 0, and above 0 for one case or more.")
    return weights


def pair_of(given: Any, name: str) -> tuple[Any, np.ndarray]:
    """Return series and labels of further cases.

    Parameters
    ----------
    given
        A panel with labels, the path of a ``.ts`` file, or a pair ``(X, y)``.
    name
        What they are, for messages: "validation".

    Raises
    ------
    DataError
        There are no labels, or not one per case.
    TypeError
        It is none of these.
    """
    if isinstance(given, str | Path):
        given = Panel.read(given)
    if isinstance(given, Panel):
        X, y = given, given.labels
    elif isinstance(given, tuple | list) and len(given) == 2:
        X, y = given
    else:
        raise TypeError(
            f"{name} is of the type {type(given).__name__!r}. Give a panel with labels, or a pair (X, y)."
        )
    y = Panel.of(X).labels if y is None else labels_as_axis(y)
    if y is None:
        raise DataError(f"The cases of {name} have no labels. Give a pair (X, y).")
    return X, y


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
            f"{(~full).sum()} training case(s) without any value, the first is case {full.argmin()}, are left out.",
            SeqattnWarning,
            stacklevel=5,
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
            stacklevel=5,
        )
    return panel.select(full), codes[full]
