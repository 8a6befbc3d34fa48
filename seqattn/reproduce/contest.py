"""Every model against every other over data sets: who wins how often, by how much, and who cannot be told apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from seqattn.reproduce.statistics import holm

__all__ = ["LEVEL", "Contest", "Pair", "cliques", "contest"]

# Two models differ if the p-value of their pair is below this.
LEVEL = 0.05
# Fewest data sets for tests over them: of six, all with the same sign, the two-sided signed-rank test gives p = 0.031,
# of five 0.063.
_FEWEST = 6


@dataclass(frozen=True)
class Pair:
    """Two models over data sets.

    Attributes
    ----------
    first, second
        Their names.
    wins, ties, losses
        On how many data sets the first is better, equal, worse.
    difference
        Mean over data sets of the first's value less the second's.
    low, high
        Interval of the difference, data sets drawn again and again (percentile bootstrap); None with one data set.
    pvalue
        Of the signed-rank test, by Holm over all pairs of models; None with fewer than six data sets.
    """

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    difference: float
    low: float | None
    high: float | None
    pvalue: float | None

    def turned(self) -> Pair:
        """Return the same two models, as seen from the second."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return Pair(
            self.second,
            self.first,
            self.losses,
            self.ties,
            self.wins,
            -self.difference,
            low,
            high,
            self.pvalue,
        )


@dataclass(frozen=True)
class Contest:
    """Models over the data sets on which all of them have a value.

    Attributes
    ----------
    models
        Their names, the best average rank first.
    datasets
        Names of the data sets.
    ranks
        Average rank of each model; 1 is the best, ties share.
    means
        Mean of each model's values over the data sets.
    friedman_pvalue
        Of the test that all models are alike; None with fewer than three models or six data sets.
    pairs
        Each two models once, the one with the better rank first.
    cliques
        Groups of models, each of neighbours in the order of ranks, in which no pair has a p-value below ``LEVEL``; the
        largest ones, of two or more models. Empty with fewer than six data sets.
    """

    models: list[str]
    datasets: list[str]
    ranks: list[float]
    means: list[float]
    friedman_pvalue: float | None
    pairs: list[Pair]
    cliques: list[list[str]]

    @property
    def is_tested(self) -> bool:
        """Whether there are data sets enough for tests."""
        return any(pair.pvalue is not None for pair in self.pairs)

    def pair(self, first: str, second: str) -> Pair:
        """Return two models, as seen from the first.

        Parameters
        ----------
        first, second
            Names of different models.
        """
        for each in self.pairs:
            if (each.first, each.second) == (first, second):
                return each
            if (each.second, each.first) == (first, second):
                return each.turned()
        raise KeyError((first, second))


def contest(
    values: ArrayLike,
    models: Sequence[str],
    datasets: Sequence[str],
    higher_is_better: bool = True,
) -> Contest:
    """Compare models over data sets, each with each.

    Pairs are tested by Wilcoxon's signed-rank test, equal values left out, and by Holm over all pairs. Tests on
    average ranks, such as Nemenyi's, are not used: there the outcome for two models depends on which others take part.

    Parameters
    ----------
    values
        One row per data set, one column per model.
    models, datasets
        Names of columns and rows; at least one data set.
    higher_is_better
        Which of two values is the better one.

    References
    ----------
    Benavoli, Corani, Mangili (2016), Should we really use post-hoc tests based on mean-ranks?

    Examples
    --------
    >>> found = contest([[0.5, 0.1], [0.9, 0.9]], ["a", "b"], ["x", "y"])
    >>> found.ranks, found.pairs[0].wins, found.pairs[0].ties, found.pairs[0].difference
    ([1.25, 1.75], 1, 1, 0.2)
    """
    table = np.asarray(values, dtype=np.float64).reshape(len(datasets), len(models))
    average = stats.rankdata(-table if higher_is_better else table, axis=1).mean(axis=0)
    order = np.argsort(average, kind="stable")
    table, names = table[:, order], [models[place] for place in order]
    places = list(itertools.combinations(range(len(names)), 2))
    changes = [table[:, first] - table[:, second] for first, second in places]
    pvalues = holm([_signed_rank(change) for change in changes]) if len(datasets) >= _FEWEST else None
    found = dict(zip(places, pvalues or [], strict=False))
    return Contest(
        models=names,
        datasets=list(datasets),
        ranks=[float(value) for value in average[order]],
        means=[float(value) for value in table.mean(axis=0)],
        friedman_pvalue=_friedman(table),
        pairs=[
            _pair(names[first], names[second], change, higher_is_better, found.get((first, second)))
            for (first, second), change in zip(places, changes, strict=True)
        ],
        cliques=[
            [names[place] for place in group]
            for group in cliques(len(names), lambda first, second: found[first, second] < LEVEL)
        ]
        if pvalues is not None
        else [],
    )


def _friedman(table: NDArray[np.float64]) -> float | None:
    if len(table) < _FEWEST or table.shape[1] < 3:
        return None
    if not np.ptp(table, axis=1).any():
        return 1.0
    return float(stats.friedmanchisquare(*table.T).pvalue)


def _signed_rank(change: NDArray[np.float64]) -> float:
    moved = change[change != 0]
    return float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0


def _pair(
    first: str, second: str, change: NDArray[np.float64], higher_is_better: bool, pvalue: float | None
) -> Pair:
    gain = change if higher_is_better else -change
    low, high = _interval(change)
    counts = (int((gain > 0).sum()), int((gain == 0).sum()), int((gain < 0).sum()))
    return Pair(first, second, *counts, float(change.mean()), low, high, pvalue)


def _interval(change: NDArray[np.float64]) -> tuple[float | None, float | None]:
    if len(change) < 2:
        return None, None
    if not np.ptp(change):
        return float(change[0]), float(change[0])
    drawn = stats.bootstrap(
        (change,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    return float(drawn.low), float(drawn.high)


def cliques(n_models: int, differs: Callable[[int, int], bool]) -> list[list[int]]:
    """Return the largest runs of neighbouring models in which no pair differs.

    Parameters
    ----------
    n_models
        Number of models, which are in the order of their ranks.
    differs
        Whether two models differ; the first number is the smaller one.

    Returns
    -------
    Positions in ascending order; runs of one model, and those within another run, are left out.

    Examples
    --------
    >>> cliques(4, lambda first, second: second - first > 1)
    [[0, 1], [1, 2], [2, 3]]
    """
    runs: list[list[int]] = []
    for first in range(n_models):
        last = first
        while last + 1 < n_models and not any(differs(each, last + 1) for each in range(first, last + 1)):
            last += 1
        if last > first and not (runs and runs[-1][-1] >= last):
            runs.append(list(range(first, last + 1)))
    return runs
