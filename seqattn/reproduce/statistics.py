"""Statistics of a table: spread over seeds, comparison case by case, several tests together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["Paired", "Spread", "holm", "paired", "spread"]

# Resamplings at a time; bounds the memory at cases x batch numbers.
_BATCH = 500


@dataclass(frozen=True)
class Spread:
    """Values of several seeds.

    Attributes
    ----------
    mean
        Their mean.
    std
        Their standard deviation with n - 1; None with one value.
    low, high
        Interval for the mean over all seeds by Student's t; None with one value.
    n
        Number of values.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    n: int


def spread(values: Sequence[float], level: float = 0.95) -> Spread:
    """Return mean, standard deviation and the t interval of values.

    Parameters
    ----------
    values
        One per seed, at least one.
    level
        Coverage of the interval, between 0 and 1.

    Examples
    --------
    >>> spread([1.0, 2.0, 3.0]).std
    1.0
    >>> spread([1.0]).low is None
    True
    """
    array = np.asarray(values, dtype=np.float64)
    mean, n = float(array.mean()), len(array)
    if n < 2:
        return Spread(mean, None, None, None, n)
    std = float(array.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * std / n**0.5
    return Spread(mean, std, mean - half, mean + half, n)


@dataclass(frozen=True)
class Paired:
    """Two models on the same test cases.

    Attributes
    ----------
    difference
        First minus second: sum of the differences over all cases, divided by the sum of the counts.
    low, high
        Interval of the difference, cases drawn again and again (percentile bootstrap).
    pvalue
        Of the paired t test that the mean difference of a case is 0; None if it cannot be computed.
    n_cases
        Number of cases.
    share
        Share of cases in which the first is better; ties count half.
    """

    difference: float
    low: float
    high: float
    pvalue: float | None
    n_cases: int
    share: float


def paired(
    first: ArrayLike,
    second: ArrayLike,
    counts: ArrayLike,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Paired:
    """Compare two models case by case.

    Parameters
    ----------
    first, second
        Total of each case, such as the log-likelihood of a sequence in nats.
    counts
        What the totals are divided by, such as the number of events of the sequence; a case with none is left out.
    level
        Coverage of the interval, between 0 and 1.
    resamples
        How often cases are drawn.
    seed
        Seed of the draws.

    Examples
    --------
    >>> paired([2.0, 4.0, 6.0], [1.0, 3.0, 5.0], [1, 1, 1]).difference
    1.0
    """
    counts = np.asarray(counts, dtype=np.float64)
    chosen = counts > 0
    change = (np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))[chosen]
    counts = counts[chosen]

    def per_count(change: NDArray[Any], counts: NDArray[Any], axis: int = -1) -> Any:
        return change.sum(axis=axis) / counts.sum(axis=axis)

    drawn = stats.bootstrap(
        (change, counts),
        per_count,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=_BATCH,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    is_testable = len(change) > 1 and bool(np.ptp(change) > 0)
    return Paired(
        difference=float(per_count(change, counts)),
        low=float(drawn.low),
        high=float(drawn.high),
        pvalue=float(stats.ttest_1samp(change, 0.0).pvalue) if is_testable else None,
        n_cases=len(change),
        share=float(np.mean((change > 0) + 0.5 * (change == 0))),
    )


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return p-values that hold together, by the method of Holm.

    Parameters
    ----------
    pvalues
        One per test.

    References
    ----------
    Holm (1979), A simple sequentially rejective multiple test procedure.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    array = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(array, kind="stable")
    raised = np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1))
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(raised, 1.0)
    return [float(value) for value in adjusted]
