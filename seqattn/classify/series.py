"""Series as the tokens are made from them: scaled by the training data, gaps filled, shortened where they are long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from seqattn.data.panels import Panel

__all__ = ["Scaling", "Series", "known_length"]

# Scaled values end here. Among n training points none can be further from the mean than the root of n, so that training
# data are never cut; larger ones in new data would be no number in float32 after two products.
_FURTHEST = 1e6


@dataclass(frozen=True)
class Series:
    """Series of one data set, beside each other.

    Attributes
    ----------
    values
        Scaled values ``(cases, channels, time)`` in float64. Gaps are filled by straight lines between their
        neighbours, or with the nearest value at the ends; 0 beyond the end of a case and where a channel is missing.
    lengths
        Number of points of each case, at least 1.
    observed
        Which values were there, ``(cases, channels, time)``.
    """

    values: np.ndarray
    lengths: np.ndarray
    observed: np.ndarray

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.values)

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return int(self.values.shape[1])

    @cached_property
    def is_whole(self) -> bool:
        """Whether no value is missing, so that all cases have the same length."""
        return bool(self.observed.all())

    @cached_property
    def counted(self) -> np.ndarray:
        """Numbers of observed points before each place, ``(cases, channels, time + 1)``."""
        return np.pad(np.cumsum(self.observed, axis=-1, dtype=np.int32), ((0, 0), (0, 0), (1, 0)))

    def select(self, rows: Any) -> Series:
        """Return some cases.

        Parameters
        ----------
        rows
            Their numbers, or a mask.
        """
        lengths = self.lengths[rows]
        last = int(lengths.max(initial=1))
        return Series(self.values[rows][..., :last], lengths, self.observed[rows][..., :last])

    def order(self, labels: np.ndarray | None = None) -> np.ndarray:
        """Return the numbers of the cases in an order that depends on nothing but what they hold.

        They are ordered by a random sum over their values: neither the order in which they are given matters nor what
        lies beyond their ends, and rounding errors do for cases only that are as good as equal.

        Parameters
        ----------
        labels
            What orders equal cases; None leaves them as they are.
        """
        weights = np.random.default_rng(0).normal(size=(self.values.shape[-1], 2, self.n_channels))
        values, observed = weights.transpose(1, 2, 0)
        keys = np.zeros(len(self))
        for row, end in enumerate(self.lengths):
            terms = (
                values[:, :end] * self.values[row, :, :end] + observed[:, :end] * self.observed[row, :, :end]
            )
            keys[row] = terms.sum()
        return np.lexsort((np.zeros(len(self)) if labels is None else labels, keys))

    def differences(self) -> Series:
        """Return the series with their first differences as further channels; the first of each is 0."""
        steps = np.diff(self.values, axis=-1, prepend=self.values[..., :1])
        there = self.observed & np.concatenate([self.observed[..., :1], self.observed[..., :-1]], axis=-1)
        inside = np.arange(self.values.shape[-1]) < self.lengths[:, None]
        steps = np.where(inside[:, None], steps, 0.0)
        return Series(
            np.concatenate([self.values, steps], axis=1),
            self.lengths,
            np.concatenate([self.observed, there], axis=1),
        )


@dataclass(frozen=True)
class Scaling:
    """What is learnt of the training data before anything else: level and spread of each channel, and a length.

    Attributes
    ----------
    mean, spread
        Mean and standard deviation of each channel over all finite training points; 0 and 1 where there are none, 1
        where the channel is constant.
    is_constant
        Which channels never change in the training data.
    factor
        How many neighbouring points are taken together to their mean.
    length
        Longest training case, in points after that.
    """

    mean: np.ndarray
    spread: np.ndarray
    is_constant: np.ndarray
    factor: int
    length: int

    @classmethod
    def of(cls, panel: Panel, max_length: int) -> Self:
        """Return the scaling of training data.

        Parameters
        ----------
        panel
            Training cases.
        max_length
            Points beyond which series are shortened, all by the same factor.
        """
        cases = [case[:, : known_length(case)] for case in panel.series]
        longest = max(case.shape[1] for case in cases)
        factor = -(-longest // max_length)
        counts, sums = np.zeros(panel.n_channels), np.zeros(panel.n_channels)
        lowest, highest = np.full(panel.n_channels, np.inf), np.full(panel.n_channels, -np.inf)
        for case in cases:
            there = np.isfinite(case)
            counts += there.sum(1)
            lowest = np.minimum(lowest, np.where(there, case, np.inf).min(1, initial=np.inf))
            highest = np.maximum(highest, np.where(there, case, -np.inf).max(1, initial=-np.inf))
        is_constant = ~(highest > lowest)
        # Powers of 2 near the largest number and the range, so that no sum or square is too large or small for a number
        # and no bit changes.
        size = _power(np.where(counts > 0, np.maximum(np.abs(lowest), np.abs(highest)), 1.0))
        for case in cases:
            sums += np.nansum(np.ldexp(case, -size[:, None]), axis=1)
        centre = sums / np.maximum(counts, 1)
        reach = _power(np.where(is_constant, 0.5, highest / 2 - lowest / 2)) + 1
        middle = np.ldexp(centre, size - reach)[:, None]
        squares = sum(np.nansum((np.ldexp(case, -reach[:, None]) - middle) ** 2, axis=1) for case in cases)
        spread = np.where(is_constant, 1.0, np.ldexp(np.sqrt(squares / np.maximum(counts, 1)), reach))
        mean = np.ldexp(centre, size)
        return cls(mean, np.where(spread > 0, spread, 1.0), is_constant, factor, -(-longest // factor))

    def apply(self, panel: Panel) -> Series:
        """Return cases scaled, shortened and with filled gaps.

        Parameters
        ----------
        panel
            Any cases with the channels of the training data. Points at the end that are missing in all channels do
            not count, and values further than a million deviations from the mean count as that far.
        """
        cases = [self._shortened(self._scaled(case)) for case in panel.series]
        lengths = np.array([max(case.shape[1], 1) for case in cases], dtype=np.int64)
        values = np.zeros((len(cases), panel.n_channels, int(lengths.max(initial=1))))
        observed = np.zeros(values.shape, dtype=bool)
        for row, case in enumerate(cases):
            there = np.isfinite(case)
            observed[row, :, : case.shape[1]] = there
            values[row, :, : case.shape[1]] = case if there.all() else _filled(case, there)
        return Series(values, lengths, observed)

    def _scaled(self, case: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            scaled = (case - self.mean[:, None]) / self.spread[:, None]
        return np.clip(scaled, -_FURTHEST, _FURTHEST)

    def _shortened(self, case: np.ndarray) -> np.ndarray:
        case = case[:, : known_length(case)]
        if self.factor == 1 or not case.size:
            return case
        starts = np.arange(0, case.shape[1], self.factor)
        there = np.isfinite(case)
        counts = np.add.reduceat(there, starts, axis=1)
        sums = np.add.reduceat(np.where(there, case, 0.0), starts, axis=1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays by name."""
        sizes = np.array([self.factor, self.length])
        return {"mean": self.mean, "spread": self.spread, "is_constant": self.is_constant, "sizes": sizes}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return what :meth:`to_arrays` was called on.

        Parameters
        ----------
        arrays
            What it returned.
        """
        factor, length = (int(size) for size in arrays["sizes"])
        return cls(arrays["mean"], arrays["spread"], arrays["is_constant"].astype(bool), factor, length)


def _power(values: np.ndarray) -> np.ndarray:
    """Return the least powers of 2 that lie above values."""
    return np.asarray(np.frexp(values)[1], dtype=np.int64)


def known_length(case: np.ndarray) -> int:
    """Return the length of a case without the points at its end that are missing in all channels.

    Parameters
    ----------
    case
        Values ``(channels, time)``.
    """
    there = np.flatnonzero(np.isfinite(case).any(axis=0))
    return int(there[-1]) + 1 if len(there) else 0


def _filled(case: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return a case whose gaps are filled channel by channel; a channel without any value is 0."""
    filled, places = case.copy(), np.arange(case.shape[1])
    for channel in np.flatnonzero(~there.all(axis=1)):
        known = there[channel]
        filled[channel] = np.interp(places, places[known], case[channel, known]) if known.any() else 0.0
    return filled
