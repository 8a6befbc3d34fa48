"""Division of labelled cases: one part held out, and repeated stratified cross-validation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.model_selection import RepeatedStratifiedKFold

from seqattn.errors import DataError, ParameterError

__all__ = ["cut", "folds"]

_MOST_FOLDS = 5
# Below this many cases one division says little, and the fits are short: AtrialFibrillation has 15.
_FEW = 100
_MOST_REPEATS = 3


def cut(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out about the same share of every class, and at least one case; a class of one case is kept.

    Parameters
    ----------
    labels
        One label per case.
    share
        Share of the cases to hold out, between 0 and 1.
    seed
        Seed of the division.

    Returns
    -------
    Positions that are kept, and positions that are held out, each in increasing order.

    Raises
    ------
    DataError
        No class has two cases.
    ParameterError
        The share is not between 0 and 1.

    Examples
    --------
    >>> kept, held_out = cut(np.array(["a", "b"] * 5), 0.2, seed=0)
    >>> len(kept), len(held_out)
    (8, 2)
    """
    if not 0 < share < 1:
        raise ParameterError(f"The share to hold out is {share!r}, but must lie between 0 and 1.")
    generator = np.random.default_rng(seed)
    codes = np.unique(labels, return_inverse=True)[1]
    held_out: list[int] = []
    for code, size in enumerate(np.bincount(codes)):
        count = min(max(round(size * share), 1), size - 1)
        held_out += generator.permutation(np.flatnonzero(codes == code))[:count].tolist()
    if not held_out:
        raise DataError(
            "No class has two cases, so none can be held out. Give more cases, or separate test data."
        )
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    return rest, np.sort(held_out)


def folds(labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide cases again and again into a part to learn from and a part to predict, by repeated cross-validation.

    There are five folds, or as many as the smallest class has cases, at least two. Every class is spread evenly over
    them. The only case of a class is always learned from. Below 100 cases the whole is repeated, up to three times.

    Parameters
    ----------
    labels
        One label per case.
    seed
        Seed of the divisions.

    Yields
    ------
    Positions to learn from, and positions to predict.

    Raises
    ------
    DataError
        No class has two cases.

    Examples
    --------
    >>> [len(predicted) for _, predicted in folds(np.array(["a", "b"] * 100), seed=0)]
    [40, 40, 40, 40, 40]
    """
    codes = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(codes)
    single, rest = np.flatnonzero(sizes[codes] == 1), np.flatnonzero(sizes[codes] > 1)
    if not len(rest):
        raise DataError("No class has two cases, so nothing can be predicted from others. Give more cases.")
    n_folds = min(_MOST_FOLDS, int(sizes[sizes > 1].min()))
    repeats = min(-(-_FEW // len(rest)), _MOST_REPEATS)
    divided = RepeatedStratifiedKFold(n_splits=n_folds, n_repeats=repeats, random_state=seed)
    for learned, predicted in divided.split(rest, codes[rest]):
        yield np.sort(np.concatenate([rest[learned], single])), rest[predicted]
