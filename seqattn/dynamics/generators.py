"""Made-up classes: the published small and medium settings, and others of their kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqattn.dynamics.classes import SequenceClasses
from seqattn.errors import ParameterError

__all__ = ["syn", "syn_medium", "syn_small"]


def syn(
    *,
    queries: int = 1,
    next_per_query: int = 2,
    n_common: int = 10,
    n_common_local: int = 0,
    n_distinct: int = 10,
    common_weight: float = 1.0,
    distinct: Any = (0.1, 1.0),
    common_share: float | None = None,
    n_outputs: int | None = None,
    weight: Any = None,
) -> SequenceClasses:
    """Return classes with common and distinct tokens.

    Tokens are numbered: common ones, distinct ones class by class, those common to one query, queries, next tokens.
    Outputs are these tokens if there are as many as tokens, else the next tokens come first.

    Parameters
    ----------
    queries
        Number of queries.
    next_per_query
        Next tokens, and so classes, of each query.
    n_common
        Tokens that all classes share.
    n_common_local
        Further tokens of each query, which its classes share.
    n_distinct
        Tokens of each class that no other has.
    common_weight
        Weight of a common token before rows are scaled to sum 1.
    distinct
        Weights of the distinct tokens: their range as a pair, or one for each as an array.
    common_share
        Probability of all common tokens together, in place of ``common_weight``; between 0 and 1.
    n_outputs
        Columns of the decoder; as many as tokens by default, which is the published choice.
    weight
        Share of each class; equal by default.

    Raises
    ------
    ParameterError
        A number is not allowed, or no token is left.

    Examples
    --------
    >>> syn(queries=2, next_per_query=2, n_common=3, n_distinct=1, n_outputs=4)
    SequenceClasses(4 classes, 13 tokens, 2 queries, 4 outputs)
    """
    _check_counts(queries, next_per_query, n_common, n_common_local, n_distinct)
    K = queries * next_per_query
    locals_from = n_common + K * n_distinct
    M = locals_from + queries * n_common_local + queries + K
    query = np.repeat(np.arange(queries), next_per_query)
    shared, own = np.zeros((K, M)), np.zeros((K, M))
    shared[:, :n_common] = 1.0
    for k in range(K):
        own[k, n_common + k * n_distinct : n_common + (k + 1) * n_distinct] = _profile(distinct, n_distinct)
        local = locals_from + query[k] * n_common_local
        shared[k, local : local + n_common_local] = 1.0
    P = common_weight * shared + own if common_share is None else _mixed(shared, own, common_share)
    V = M if n_outputs is None else n_outputs
    last = np.arange(M - K, M)
    return SequenceClasses(
        P,
        query,
        last if V == M else np.arange(K),
        weight,
        n_outputs=V,
        query_tokens=np.arange(M - K - queries, M - K),
        label_tokens=np.arange(M) if V == M else None,
        normalize=True,
    )


def syn_small() -> SequenceClasses:
    """Return the published small setting: two queries with one next token each, 34 tokens.

    Notes
    -----
    The text tells of 30 tokens; with two queries and two next tokens the program has 34.

    References
    ----------
    Tian, Wang, Chen, Du (2023), Scan and Snap, arXiv 2305.16380, figure 4.

    Examples
    --------
    >>> round(syn_small().lam_max, 3)
    0.722
    """
    import warnings

    from seqattn.errors import SeqattnWarning

    with warnings.catch_warnings():
        # Each query has one next token there: it is the published setting, no mistake of the user.
        warnings.simplefilter("ignore", SeqattnWarning)
        return syn(queries=2, next_per_query=1)


def syn_medium(queries: int = 1) -> SequenceClasses:
    """Return the published medium setting: two next tokens per query.

    Parameters
    ----------
    queries
        Number of queries; published are 1, 3, 5 and 10.

    References
    ----------
    Tian, Wang, Chen, Du (2023), Scan and Snap, arXiv 2305.16380, figure 6.

    Examples
    --------
    >>> syn_medium(10)
    SequenceClasses(20 classes, 240 tokens, 10 queries, 240 outputs)
    """
    return syn(queries=queries, next_per_query=2)


def _check_counts(*counts: int) -> None:
    names = ("queries", "next_per_query", "n_common", "n_common_local", "n_distinct")
    for name, count, least in zip(names, counts, (1, 1, 0, 0, 0), strict=True):
        if count < least:
            raise ParameterError(f"{name}={count!r} is not allowed. Give a whole number, at least {least}.")
    if sum(counts[2:]) == 0:
        raise ParameterError("There is no token. Give n_common, n_common_local or n_distinct.")


def _profile(distinct: Any, n: int) -> NDArray[np.float64]:
    values = np.asarray(distinct, dtype=np.float64)
    if values.shape == (2,):
        return np.linspace(values[0], values[1], n) if n > 1 else values[1:]
    if values.shape != (n,):
        raise ParameterError(
            f"distinct has shape {values.shape}. Give a pair, or one weight for each of {n} tokens."
        )
    return values


def _mixed(shared: NDArray[np.float64], own: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Give the common tokens together a share of the probability."""
    if not 0 < share < 1 or not shared.any(1).all() or not own.any(1).all():
        raise ParameterError(
            f"common_share={share!r} is not allowed. Give a share between 0 and 1, and tokens of both kinds."
        )
    return share * shared / shared.sum(1, keepdims=True) + (1 - share) * own / own.sum(1, keepdims=True)
