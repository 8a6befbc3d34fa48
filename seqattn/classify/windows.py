"""All windows of series: their points at a distance from each other, beside each other for products with shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from seqattn.classify.series import Series

__all__ = ["STEPS", "Windows", "normed"]

_FLAT = 1e-4
# More windows are counted in steps of 16, so that cases of similar lengths can be computed together.
_ALIGNED = 16
# Squares of larger values could be too large for float32. Such a case is far from every shape all the same.
_LARGEST = 1e15
# What each start adds to distances, so that the first of windows that are equal up to rounding is the nearest.
STEPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-36}


@dataclass(frozen=True)
class Windows:
    """Cases, the last value of each repeated to the right, so that windows of any step are views.

    Attributes
    ----------
    values
        ``(cases, channels, time)`` in float64.
    observed
        Which were there, as numbers; None where all points of all cases were.
    lengths
        Number of points of each case.
    """

    values: Tensor
    observed: Tensor | None
    lengths: Tensor

    @classmethod
    def of(cls, series: Series, rows: np.ndarray, span: int, channels: np.ndarray | None = None) -> Self:
        """Return some cases with room for windows.

        Parameters
        ----------
        series
            Any cases.
        rows
            Numbers of those that are wanted.
        span
            Points from the first to the last of the longest window.
        channels
            Numbers of the channels that are wanted; None for all.
        """
        own = np.arange(series.n_channels) if channels is None else channels
        lengths = torch.from_numpy(series.lengths[rows])
        time = max(int(lengths.max()), span) + _ALIGNED
        places = torch.minimum(torch.arange(time), (lengths - 1)[:, None])[:, None].expand(-1, len(own), -1)
        values = torch.from_numpy(series.values[rows[:, None], own]).gather(2, places)
        observed = torch.from_numpy(series.observed[rows[:, None], own]).gather(2, places)
        return cls(values, None if bool(observed.all()) else observed.float(), lengths)

    @cached_property
    def small(self) -> Tensor:
        """The values in float32."""
        return self.values.clamp(-_LARGEST, _LARGEST).float()

    def counts(self, rows: slice, span: int) -> Tensor:
        """Return how many windows cases have, at least one.

        Parameters
        ----------
        rows
            Which cases.
        span
            Points from the first to the last of a window.
        """
        return (self.lengths[rows] - (span - 1)).clamp(min=1)

    def widths(self, span: int) -> Tensor:
        """Return how many columns each case has: the number of its windows, rounded up where there are many.

        Parameters
        ----------
        span
            Points from the first to the last of a window.

        Notes
        -----
        The last bits of sums and products depend on the number of columns. Only cases with the same number are computed
        together, so that what is found in a case does not depend on the others.
        """
        counts = self.counts(slice(None), span)
        return torch.where(counts < _ALIGNED, counts, -(-counts // _ALIGNED) * _ALIGNED)

    def columns(
        self, rows: slice, channels: Tensor, points: int, step: int, *, is_normed: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return windows as columns ``(cases, numbers + 1, starts)``, and which are there.

        Parameters
        ----------
        rows
            Which cases.
        channels
            Their channels.
        points, step
            Number of points of a window, and how far apart they are.
        is_normed
            Whether each channel's points are centred and divided by their deviation; flat ones become 0.
        dtype
            Of what is returned.

        Returns
        -------
        columns
            The points of the channels, then the mean of their squares, and a little that grows with the start.
            Infinite where less than half of the points were there, and beyond the end of a case.
        is_there
            ``(cases, starts)``.
        """
        span = (points - 1) * step + 1
        n_starts = int(self.widths(span)[rows].max())
        columns = torch.empty(len(self.lengths[rows]), len(channels) * points + 1, n_starts, dtype=dtype)
        split = columns[:, :-1].unflatten(1, (len(channels), points))
        source = self.values if is_normed or dtype == torch.float64 else self.small
        every = _every(source[rows][:, channels], points, step, n_starts)
        if is_normed:
            centred = every - every.mean(2, keepdim=True)
            spread = centred.square().mean(2, keepdim=True).sqrt_()
            factor = (1 / spread).masked_fill_(spread <= _FLAT, 0.0)
            split.copy_(centred.mul_(factor))
            squares = (factor[:, :, 0] > 0).to(dtype).mean(1)
        else:
            split.copy_(every)
            squares = every.square().mean((1, 2))
        torch.add(squares, torch.arange(n_starts) * STEPS[dtype], out=columns[:, -1])
        is_there = self._there(rows, channels, points, step, n_starts)
        columns[:, -1].masked_fill_(~is_there, torch.inf)
        return columns, is_there

    def _there(self, rows: slice, channels: Tensor, points: int, step: int, n_starts: int) -> Tensor:
        """Return which windows are there: within their case, with half of their points."""
        counts = self.counts(rows, (points - 1) * step + 1)
        is_there = torch.arange(n_starts) < counts[:, None]
        if self.observed is None:
            return is_there
        every = _every(self.observed[rows][:, channels], points, step, n_starts)
        return is_there & (2 * every.sum(dim=(1, 2)) >= points * len(channels))


def _every(values: Tensor, points: int, step: int, n_starts: int) -> Tensor:
    """Return a view ``(cases, channels, points, starts)`` of all windows."""
    cases, channels, _ = values.shape
    size = (cases, channels, points, n_starts)
    return values.as_strided(size, (*values.stride()[:2], step, 1), values.storage_offset())


def normed(windows: Tensor) -> Tensor:
    """Return windows without level and spread along the last axis; flat ones are 0.

    Parameters
    ----------
    windows
        Any values ``(..., points)``.
    """
    centred = windows - windows.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(spread > _FLAT, centred / spread.clamp(min=_FLAT), 0.0)
