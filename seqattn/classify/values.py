"""Value tokens: mean, deviation and slope of intervals of several lengths, and what they say about classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from seqattn.classify.series import Series

__all__ = ["STATISTICS", "Intervals", "information_gain", "interval_gain"]

STATISTICS = ("mean", "deviation", "slope")
# Fewer points have no slope to speak of.
_LEAST_POINTS = 3
_PERMUTATIONS = 20
_BINS = 6


@dataclass(frozen=True)
class Intervals:
    r"""Equal parts of the time axis, by channel.

    For each part of each case three statistics of its observed points are taken: the mean, the standard deviation, and
    the slope of the least-squares line over the whole part (slope per point times number of points). Cases of other
    lengths are cut in the same proportions.

    Attributes
    ----------
    channel, parts, place
        Of each interval: its channel, into how many parts the axis is cut, and which of them it is.
    gain
        Information gain of each statistic, ``(intervals, 3)``, see :func:`information_gain`.
    mean, spread
        Training mean and deviation of each statistic, ``(intervals, 3)``.
    """

    channel: np.ndarray
    parts: np.ndarray
    place: np.ndarray
    gain: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    def __len__(self) -> int:
        """Return the number of intervals."""
        return len(self.channel)

    @property
    def prior(self) -> np.ndarray:
        """Largest gain of the three statistics."""
        return self.gain.max(axis=1, initial=0.0)

    @property
    def spans(self) -> np.ndarray:
        """First and last point as shares of the length, ``(intervals, 2)``."""
        return np.stack([self.place / self.parts, (self.place + 1) / self.parts], axis=1)

    @classmethod
    def of(
        cls,
        series: Series,
        labels: np.ndarray,
        granularities: Sequence[int],
        constant: np.ndarray,
        rng: np.random.Generator,
    ) -> Self:
        """Return the intervals of training cases, those first that say most about the classes.

        Parameters
        ----------
        series
            Training cases.
        labels
            Their classes, as numbers from 0.
        granularities
            Into how many parts the time axis is cut. Those whose parts would have fewer than 3 points in a case of
            median length are left out, the first one apart.
        constant
            Which channels never change; they have no gain.
        rng
            Where the permutations of labels come from.
        """
        usual = int(np.median(series.lengths))
        kept = [
            g for g in dict.fromkeys(granularities) if g == min(granularities) or usual // g >= _LEAST_POINTS
        ]
        cells = [
            (channel, g, place) for g in kept for channel in range(series.n_channels) for place in range(g)
        ]
        channel, parts, place = np.array(cells, dtype=np.int64).T
        empty = np.zeros((len(cells), 3))
        whole = cls(channel, parts, place, empty, empty, empty + 1)
        raw = whole.raw(series)
        gain = interval_gain(raw, labels, constant[channel], rng)
        best = np.argsort(-gain.max(axis=1), kind="stable")
        mean, spread = _moments(raw[:, best])
        return cls(channel[best], parts[best], place[best], gain[best], mean, spread)

    def raw(self, series: Series) -> np.ndarray:
        """Return the statistics of cases, ``(cases, intervals, 3)``; NaN where nothing was observed.

        Parameters
        ----------
        series
            Any cases.
        """
        first, last = self._ends(series)
        n, t, tt, x, xx, tx = self._sums(series, first, last)
        # Times count from the first point of the interval, where squares are small.
        t, tt, tx = t - first * n, tt - 2 * first * t + first**2 * n, tx - first * x
        with np.errstate(invalid="ignore", divide="ignore"):
            mean, middle = x / n, t / n
            variance = xx / n - mean**2
            # What is left of equal values is rounding.
            variance = np.where(variance <= 1e-13 * (xx / n), 0.0, variance)
            times = tt / n - middle**2
            slope = np.where(times > 0, (tx / n - middle * mean) / np.where(times > 0, times, 1.0), 0.0)
            slope = np.where(n > 0, slope, np.nan)
            return np.stack([mean, np.sqrt(variance), slope * (last - first)], axis=-1)

    def _ends(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Return the first point of each interval in each case and the one after its last, at least one apart."""
        lengths = series.lengths[:, None]
        first = np.minimum(lengths * self.place // self.parts, lengths - 1)
        last = np.minimum(np.maximum(lengths * (self.place + 1) // self.parts, first + 1), lengths)
        return first, last

    def _sums(self, series: Series, first: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
        """Return sums over the observed points of each interval: 1, t, t^2, x, x^2, t x.

        Each is a sum of its own, not a difference of running sums: after a spike those have lost the small digits.
        """
        # In the order of memory, so that what lies between two intervals is not summed up as well.
        order = np.lexsort((self.place, self.parts, self.channel))
        width = series.values.shape[-1] + 1
        row = np.arange(len(series))[:, None] * series.n_channels + self.channel
        ends = np.stack([row * width + first, row * width + last], axis=-1)[:, order].ravel()
        sums = []
        for term in _terms(series):
            flat = np.pad(term, ((0, 0), (0, 0), (0, 1))).ravel()
            found = np.empty(first.shape)
            found[:, order] = np.add.reduceat(flat, ends)[::2].reshape(first.shape)
            sums.append(found)
        return sums

    def observed(self, series: Series) -> np.ndarray:
        """Return the share of points that were there, ``(cases, intervals)``.

        Parameters
        ----------
        series
            Any cases.
        """
        (first, last), cases = self._ends(series), np.arange(len(series))[:, None]
        counted = series.counted
        there = counted[cases, self.channel, last] - counted[cases, self.channel, first]
        return np.asarray(there / (last - first))

    def tokens(self, series: Series) -> np.ndarray:
        """Return the statistics in units of their training deviation, 0 where nothing was observed.

        Parameters
        ----------
        series
            Any cases.
        """
        return np.nan_to_num((self.raw(series) - self.mean) / self.spread, nan=0.0)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays by name."""
        return {known.name: getattr(self, known.name) for known in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return what :meth:`to_arrays` was called on.

        Parameters
        ----------
        arrays
            What it returned.
        """
        return cls(**{known.name: arrays[known.name] for known in fields(cls)})


def _terms(series: Series) -> Iterator[np.ndarray]:
    """Yield 1, t, t^2, x, x^2 and t x of the observed points; 0 elsewhere."""
    there = series.observed.astype(np.float64)
    times = np.arange(series.values.shape[-1], dtype=np.float64)
    values = np.where(series.observed, series.values, 0.0)
    yield from (there, there * times, there * times**2, values, values**2, values * times)


def _moments(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation over cases; 0 and 1 where nothing was observed or nothing changes."""
    there = np.isfinite(raw)
    counts = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, raw, 0.0).sum(axis=0) / counts
    spread = np.sqrt(np.where(there, (raw - mean) ** 2, 0.0).sum(axis=0) / counts)
    return mean, np.where(spread > 1e-9, spread, 1.0)


def interval_gain(
    raw: np.ndarray, labels: np.ndarray, is_constant: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the information gain of each statistic of each interval, ``(intervals, 3)``.

    Parameters
    ----------
    raw
        Statistics of cases, see :meth:`Intervals.raw`.
    labels
        Classes of the cases.
    is_constant
        Which intervals lie in channels that never change; they have no gain.
    rng
        Where the permutations of labels come from.
    """
    gain = information_gain(raw.reshape(len(raw), -1), labels, rng).reshape(-1, 3)
    gain[is_constant] = 0.0
    return gain


def information_gain(features: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    r"""Return how much of the uncertainty about the class each feature takes away, corrected for chance.

    .. math:: g = \max\Bigl(0,\; \frac{g_1 - \overline{g_0}}{1 - \overline{g_0}}\Bigr), \qquad
        g_1 = 1 - \frac{H(Y \mid B)}{H(Y)}

    :math:`B` are up to six bins with equal numbers of cases, equal values in one bin; a missing value is a bin of its
    own. :math:`\overline{g_0}` is the mean of :math:`g_1` over 20 permutations of the labels: with few cases and many
    classes pure noise would otherwise seem to tell a third of everything.

    Parameters
    ----------
    features
        ``(cases, features)``; NaN where missing.
    labels
        Class of each case, as numbers from 0.
    rng
        Where the permutations come from.

    Returns
    -------
    Between 0 and 1, one per feature; 0 with one class.

    Notes
    -----
    The paper has a conditional entropy. Bins, statistic and correction are choices made here.
    """
    n_classes = int(labels.max()) + 1
    share = np.bincount(labels, minlength=n_classes) / len(labels)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    if entropy <= 0:
        return np.zeros(features.shape[1])
    bins = _binned(features, max(2, min(_BINS, len(labels) // 5)))
    known = 1 - _conditional_entropy(bins, labels, n_classes) / entropy
    chance = np.zeros_like(known)
    for _ in range(_PERMUTATIONS):
        chance += 1 - _conditional_entropy(bins, rng.permutation(labels), n_classes) / entropy
    chance /= _PERMUTATIONS
    rest = 1 - chance
    return np.asarray(
        np.clip(np.divide(known - chance, rest, out=np.zeros_like(rest), where=rest > 0), 0.0, 1.0)
    )


def _binned(features: np.ndarray, n_bins: int) -> np.ndarray:
    """Return the bin of each value, ``(cases, features)``; the last one is for what is missing."""
    with np.errstate(invalid="ignore"):
        filled = np.where(np.isnan(features), np.inf, features)
    ordered = np.sort(filled, axis=0)
    counts = np.isfinite(ordered).sum(axis=0)
    bins = np.zeros(features.shape, dtype=np.int64)
    for number in range(1, n_bins):
        place = np.minimum(counts * number // n_bins, len(features) - 1)
        edge = np.take_along_axis(ordered, place[None], axis=0)
        bins += (filled >= edge) & np.isfinite(edge) & (edge > ordered[:1])
    bins[np.isnan(features)] = n_bins
    return bins


def _conditional_entropy(bins: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the entropy of the class given the bin, in nats, one per feature."""
    one_hot = np.eye(n_classes)[labels]
    total = np.zeros(bins.shape[1])
    for number in range(int(bins.max()) + 1):
        counts = (bins == number).T.astype(np.float64) @ one_hot
        sizes = counts.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            terms = np.where(counts > 0, counts * np.log(counts / sizes), 0.0)
        total -= terms.sum(axis=1)
    return total / len(labels)
