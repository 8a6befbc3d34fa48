"""How good class probabilities are: shares of right answers, ranking, and the probabilities themselves."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score, roc_auc_score

from seqattn.errors import DataError, SeqattnWarning

__all__ = ["METRICS", "metrics"]

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "brier", "n_cases")


def metrics(y_true: ArrayLike, classes: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """Return every figure of a classification.

    The predicted class is the most probable one; of equally probable ones the first. A case whose true label is not
    among the classes is an error with probability 0: its class counts in the averages over classes.

    Parameters
    ----------
    y_true
        True labels, one per case.
    classes
        The classes in the order of the columns.
    probabilities
        ``(cases, classes)``; rows sum to 1.

    Returns
    -------
    ``accuracy``; ``balanced_accuracy``, the mean recall of the classes that occur; ``macro_f1``, the mean F1 of the
    classes that occur or are predicted; ``auroc``, one class against the rest, averaged over the known classes that
    occur, NaN where only one does; ``log_loss`` in nats, probabilities of 0 taken as 2.2e-16; ``brier``, the mean
    over cases of the sum over classes of squared errors, from 0 to 2; ``n_cases``.

    Raises
    ------
    DataError
        There is no case, the shapes do not fit, or none of the labels is among the classes.

    Notes
    -----
    Classifiers whose probabilities are all 0 or 1 have a log loss of about 36 times their share of errors.

    References
    ----------
    Brier (1950), Verification of forecasts expressed in terms of probability.

    Examples
    --------
    >>> found = metrics(["a", "b"], ["a", "b"], [[0.9, 0.1], [0.6, 0.4]])
    >>> found["accuracy"], round(found["brier"], 2), found["n_cases"]
    (0.5, 0.37, 2)
    """
    labels, known = np.asarray(y_true), np.asarray(classes)
    given = np.asarray(probabilities, dtype=np.float64)
    _check(labels, known, given)
    codes, n_all = _coded(labels, known)
    padded = np.pad(given, ((0, 0), (0, n_all - len(known))))
    predicted, every = given.argmax(axis=1), np.arange(n_all)
    return {
        "accuracy": float(accuracy_score(codes, predicted)),
        "balanced_accuracy": float(
            recall_score(codes, predicted, labels=np.unique(codes), average="macro", zero_division=0)
        ),
        "macro_f1": float(f1_score(codes, predicted, average="macro", zero_division=0)),
        "auroc": _auroc(codes, given),
        "log_loss": float(log_loss(codes, padded, labels=every)) if n_all > 1 else 0.0,
        "brier": float(((padded - np.eye(n_all)[codes]) ** 2).sum(axis=1).mean()),
        "n_cases": len(labels),
    }


def _check(labels: NDArray[Any], known: NDArray[Any], given: NDArray[np.float64]) -> None:
    if labels.ndim != 1 or given.shape != (len(labels), len(known)):
        raise DataError(
            f"The probabilities have shape {given.shape}, but there are labels of shape {labels.shape} and "
            f"{len(known)} classes. Give one row per label and one column per class."
        )
    if not len(labels):
        raise DataError("There is no case to look at. Give at least one.")
    if not np.isfinite(given).all():
        row = int(np.flatnonzero(~np.isfinite(given).all(axis=1))[0])
        raise DataError(f"The probabilities of case {row} are {given[row].tolist()}. Give finite numbers.")


def _coded(labels: NDArray[Any], known: NDArray[Any]) -> tuple[NDArray[np.intp], int]:
    """Return the column of each label, labels that have none after the others, and the number of columns."""
    places = {label: place for place, label in enumerate(known.tolist())}
    strange = sorted({label for label in labels.tolist() if label not in places}, key=repr)
    named = ", ".join(map(repr, strange[:5])) + (", ..." if len(strange) > 5 else "")
    if strange and not set(labels.tolist()) & places.keys():
        raise DataError(
            f"None of the labels ({named}) is among the classes ({', '.join(map(repr, known.tolist()[:5]))}). "
            "Give labels of the same type and spelling as in training."
        )
    if strange:
        warnings.warn(
            f"Labels that were not there in training: {named}. Their cases count as errors.", SeqattnWarning
        )
    places.update({label: len(known) + place for place, label in enumerate(strange)})
    return np.array([places[label] for label in labels.tolist()]), len(places)


def _auroc(codes: NDArray[np.intp], given: NDArray[np.float64]) -> float:
    there = [code for code in np.unique(codes) if code < given.shape[1]]
    if len(np.unique(codes)) < 2:
        return float("nan")
    return float(np.mean([roc_auc_score(codes == code, given[:, code]) for code in there]))
