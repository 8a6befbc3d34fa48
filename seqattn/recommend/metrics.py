r"""How good ranks are: hits, discounted gain and reciprocal rank of each user, with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqattn.errors import DataError, ParameterError
from seqattn.recommend.ranking import Ranks

__all__ = ["Estimate", "check_ks", "mean_over_users", "target_metrics", "user_metrics"]

# Two-sided 95 % of the normal law.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean over users.

    Attributes
    ----------
    value
        The mean.
    standard_error
        Standard deviation over the square root of the number of users; NaN for one user.
    lower, upper
        Bounds of the 95 % interval of the normal law, kept within 0 and 1.
    """

    value: float
    standard_error: float
    lower: float
    upper: float


def check_ks(ks: Any) -> tuple[int, ...]:
    """Return lengths of lists in rising order, each once.

    Parameters
    ----------
    ks
        Whole numbers of at least 1.

    Raises
    ------
    ParameterError
        There is none, or one is not a whole number of at least 1.

    Examples
    --------
    >>> check_ks([10, 5, 5])
    (5, 10)
    """
    found = list(np.atleast_1d(np.asarray(ks, dtype=object)))
    if not found or not all(
        isinstance(k, int | np.integer) and not isinstance(k, bool) and k > 0 for k in found
    ):
        raise ParameterError(f"ks={ks!r} must be whole numbers of at least 1, such as (5, 10, 20).")
    return tuple(sorted({int(k) for k in found}))


def target_metrics(ranks: NDArray[np.float64], ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    r"""Return the figures of single targets.

    .. math:: \mathrm{HR} = [r < K + 1], \quad \mathrm{NDCG} = [r < K + 1] / \log_2(r + 1), \quad
              \mathrm{MRR} = [r < K + 1] / r

    A rank halfway between K and K + 1, which only a tie can give, is in the list.

    Parameters
    ----------
    ranks
        Ranks from 1; infinite for targets that cannot be found.
    ks
        Lengths K of the lists.

    Returns
    -------
    ``hr@K``, ``ndcg@K`` and ``mrr@K`` for each K, and ``mrr`` over lists of any length; one value per rank.

    Examples
    --------
    >>> found = target_metrics(np.array([3.0]), [5])
    >>> {name: round(float(value[0]), 4) for name, value in found.items()}
    {'hr@5': 1.0, 'ndcg@5': 0.5, 'mrr@5': 0.3333, 'mrr': 0.3333}
    """
    found: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        hit = (ranks < k + 1).astype(np.float64)
        found |= {f"hr@{k}": hit, f"ndcg@{k}": hit / np.log2(ranks + 1), f"mrr@{k}": hit / ranks}
    return found | {"mrr": 1 / ranks}


def user_metrics(ranks: Ranks, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Return the figures of each user with a target.

    With one target they are those of :func:`target_metrics`. With several, ``hr@K`` tells whether one of them is in the
    list, ``recall@K`` which share of them is, ``ndcg@K`` is divided by the gain of a list that begins with
    ``min(targets, K)`` of them, and ``mrr`` is that of the best.

    Parameters
    ----------
    ranks
        Ranks of the targets.
    ks
        Lengths of the lists.

    Returns
    -------
    One array per figure, in the order of the users. ``recall@K`` is there only where a user has several targets.

    Raises
    ------
    DataError
        There is no target.
    """
    ks = check_ks(ks)
    if not len(ranks.ranks):
        raise DataError("There is no target to look at. Give rows of users that are known from the fit.")
    starts = np.flatnonzero(np.diff(ranks.users, prepend=-1))
    counts = np.diff(np.append(starts, len(ranks.ranks)))
    single = target_metrics(ranks.ranks, ks)
    found = {}
    for name, values in single.items():
        kind, _, k = name.partition("@")
        if kind == "ndcg":
            ideal = np.cumsum(1 / np.log2(np.arange(int(k)) + 2))
            found[name] = np.add.reduceat(values, starts) / ideal[np.minimum(counts, int(k)) - 1]
        else:
            found[name] = np.maximum.reduceat(values, starts)
        if kind == "hr" and counts.max() > 1:
            found[f"recall@{k}"] = np.add.reduceat(values, starts) / counts
    return found


def mean_over_users(values: Mapping[str, NDArray[np.float64]]) -> dict[str, Estimate]:
    """Return the mean of each figure over users, with standard error and interval.

    Parameters
    ----------
    values
        One array per figure.

    Examples
    --------
    >>> mean_over_users({"hr@5": np.array([1.0, 0.0, 0.0, 1.0])})["hr@5"].value
    0.5
    """
    found = {}
    for name, column in values.items():
        mean = float(column.mean())
        error = float(column.std(ddof=1) / np.sqrt(len(column))) if len(column) > 1 else float("nan")
        lower, upper = max(mean - _Z * error, 0.0), min(mean + _Z * error, 1.0)
        found[name] = Estimate(
            mean, error, lower if error == error else 0.0, upper if error == error else 1.0
        )
    return found
