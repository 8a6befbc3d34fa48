"""Dilated shapes: short pieces of training cases, stretched at random, and how and where other cases come near them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from seqattn.classify.series import Series
from seqattn.classify.shapes import Matches, shape_prior

__all__ = ["DilatedShapes"]

POINTS = 11
# Share of prototypes that are compared without level and spread.
_NORMED = 0.7
_FLAT = 1e-4
# Numbers in one block of windows and distances. 512 prototypes in 1,422 cases of 3 x 182 points, CPU seconds of one
# thread: 2^15 4.7, 2^17 2.9, 2^19 2.5, 2^21 3.6.
_BLOCK = 2**19


@dataclass(frozen=True)
class DilatedShapes:
    r"""Prototypes of a few points, taken from training cases at random places with random distances between points.

    The distance of a window :math:`w` to a prototype :math:`p` of :math:`m` points is

    .. math:: d(w, p) = \frac{1}{m} \sum_i (w_i - p_i)^2,

    with both centred and divided by their deviation first for 70 % of the prototypes. A case is described by its
    smallest distance, by the place of that window, and by the share of windows nearer than a threshold, which is the
    5 to 10 % quantile (drawn) of the distances in another case of the same class.

    Attributes
    ----------
    channel, label, source, start, dilation
        Of each prototype: its channel, the class, number and first point of the training case it was taken from, and
        the step between its points.
    patterns
        Its points ``(shapes, points)``, normed where ``is_normed``.
    is_normed
        Whether level and spread are taken out.
    threshold
        Distance below which it occurs.
    prior, inside, outside
        See :func:`seqattn.classify.shapes.shape_prior`; NaN until :meth:`weighed` was called.

    References
    ----------
    Guillaume, Vrain, Elloumi (2022), Random dilated shapelet transform: a new approach for time series shapelets.
    """

    channel: np.ndarray
    label: np.ndarray
    source: np.ndarray
    start: np.ndarray
    dilation: np.ndarray
    patterns: np.ndarray
    is_normed: np.ndarray
    threshold: np.ndarray
    prior: np.ndarray
    inside: np.ndarray
    outside: np.ndarray

    def __len__(self) -> int:
        """Return the number of shapes."""
        return len(self.channel)

    @property
    def points(self) -> int:
        """Number of points of each prototype."""
        return int(self.patterns.shape[1])

    @classmethod
    def draw(
        cls, series: Series, labels: np.ndarray, n_shapes: int, channels: np.ndarray, rng: np.random.Generator
    ) -> Self:
        """Take prototypes from training cases.

        Parameters
        ----------
        series
            Training cases.
        labels
            Their classes, as numbers from 0.
        n_shapes
            How many prototypes.
        channels
            Channels that are drawn from.
        rng
            Where the draws come from.
        """
        usual = int(np.median(series.lengths))
        points = min(POINTS, max(3, usual // 2))
        source = rng.integers(len(series), size=n_shapes)
        channel = rng.choice(channels, size=n_shapes)
        longest = np.minimum(series.lengths[source], usual)
        most = np.log2(np.maximum((longest - 1) / (points - 1), 1.0))
        dilation = np.floor(2 ** (rng.random(n_shapes) * most)).astype(np.int64)
        room = np.maximum(series.lengths[source] - (points - 1) * dilation, 1)
        start = np.floor(rng.random(n_shapes) * room).astype(np.int64)
        places = np.minimum(start[:, None] + np.arange(points) * dilation[:, None], series.lengths[source][:, None] - 1)
        raw = series.values[source[:, None], channel[:, None], places]
        is_normed = (rng.random(n_shapes) < _NORMED) & (raw.std(axis=1) > _FLAT)
        patterns = np.where(is_normed[:, None], _normed(torch.from_numpy(raw)).numpy(), raw)
        nothing = np.full(n_shapes, np.nan)
        shapes = cls(
            channel, labels[source], source, start, dilation, patterns, is_normed, *([nothing] * 4)
        )
        share = rng.uniform(0.05, 0.1, n_shapes)
        return replace(shapes, threshold=shapes._thresholds(series, _others(labels, source, rng), share))

    def weighed(self, distances: np.ndarray, labels: np.ndarray) -> Self:
        """Return the shapes with their priors.

        Parameters
        ----------
        distances
            What :meth:`statistics` gives of the training cases first.
        labels
            Classes of the training cases.
        """
        prior, inside, outside = shape_prior(distances, labels, self.label, self.source)
        return replace(self, prior=prior, inside=inside, outside=outside)

    def statistics(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Return how near cases come, and where.

        Parameters
        ----------
        series
            Any cases.

        Returns
        -------
        statistics
            ``(cases, shapes, 3)``: smallest distance, relative place of that window among all, share of windows nearer
            than the threshold; NaN where no window has half of its points.
        start
            First point of the nearest window, ``(cases, shapes)``.
        """
        statistics = np.empty((len(series), len(self), 3))
        start = np.zeros((len(series), len(self)), dtype=np.int64)
        for group in self._groups():
            n_windows = max(series.values.shape[-1] - (self.points - 1) * int(self.dilation[group[0]]), 1)
            at_once = max(_BLOCK // (n_windows * (self.points + len(group))), 1)
            for first in range(0, len(series), at_once):
                rows = np.arange(first, min(first + at_once, len(series)))
                found = self._nearest(series, rows, group)
                statistics[rows[:, None], group] = found[0]
                start[rows[:, None], group] = found[1]
        return statistics, start

    def match(self, series: Series, n_tokens: int) -> tuple[Matches, np.ndarray]:
        """Return the matches of the first shapes, and the statistics of all as :meth:`statistics` gives them.

        Parameters
        ----------
        series
            Any cases.
        n_tokens
            Of how many shapes the matched points are wanted.
        """
        statistics, start = self.statistics(series)
        some, start = slice(n_tokens), start[:, :n_tokens]
        lengths, cases = series.lengths[:, None], np.arange(len(series))[:, None, None]
        places = start[..., None] + np.arange(self.points) * self.dilation[some, None]
        places = np.minimum(places, lengths[..., None] - 1)
        windows = series.values[cases, self.channel[some, None], places]
        there = series.observed[cases, self.channel[some, None], places].mean(axis=-1)
        spans = (self.points - 1) * self.dilation[some] + 1
        there *= np.minimum(lengths / spans, 1.0)
        there[np.isnan(statistics[:, some, 0])] = 0.0
        content = np.concatenate([windows, statistics[:, some]], axis=-1)
        content[there == 0] = 0.0
        ends = np.minimum(start + spans, lengths)
        return Matches(content, np.stack([start / lengths, ends / lengths], axis=-1), there), statistics

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

    def _groups(self) -> Iterator[np.ndarray]:
        """Yield the shapes that share a channel and a dilation, and so their windows."""
        keys = self.channel * (int(self.dilation.max(initial=0)) + 1) + self.dilation
        order = np.argsort(keys, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)

    def _nearest(self, series: Series, rows: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return statistics and starts of some cases for the shapes of a group."""
        windows, is_there, counts = self._windows(series, rows, group[0])
        distances = self._distances(windows, group)
        if not bool(is_there.all()):
            distances.masked_fill_(~is_there[..., None], torch.inf)
        nearest, start = distances.min(dim=1)
        near = (distances < torch.from_numpy(self.threshold[group])).sum(dim=1) / counts[:, None]
        place = start / (counts[:, None] - 1).clamp(min=1)
        found = torch.stack([nearest, place.to(nearest.dtype), near.to(nearest.dtype)], dim=-1)
        found[torch.isinf(nearest)] = torch.nan
        return found.numpy(), start.numpy()

    def _windows(self, series: Series, rows: np.ndarray, shape: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return all windows of cases ``(cases, starts, points)``, which of them are there, and how many each has."""
        channel, step = int(self.channel[shape]), int(self.dilation[shape])
        lengths = torch.from_numpy(series.lengths[rows])
        counts = (lengths - (self.points - 1) * step).clamp(min=1)
        starts = torch.arange(int(counts.max()))
        places = starts[:, None] + torch.arange(self.points) * step
        values = torch.from_numpy(series.values[rows, channel])
        if series.is_whole and int(places.max()) < values.shape[1]:
            return values[:, places], torch.ones(len(rows), len(starts), dtype=torch.bool), counts
        inside = torch.minimum(places, (lengths - 1)[:, None, None]).flatten(1)
        shape_of = (len(rows), len(starts), self.points)
        windows = values.gather(1, inside).view(shape_of)
        observed = torch.from_numpy(series.observed[rows, channel]).gather(1, inside).view(shape_of)
        is_there = (starts < counts[:, None]) & (2 * observed.sum(-1) >= self.points)
        return windows, is_there, counts

    def _distances(self, windows: Tensor, group: np.ndarray) -> Tensor:
        """Return the distances of windows ``(cases, starts, points)`` to the shapes of a group."""
        distances = torch.empty(*windows.shape[:2], len(group), dtype=windows.dtype)
        for is_normed in (True, False):
            some = np.flatnonzero(self.is_normed[group] == is_normed)
            if len(some):
                patterns = torch.from_numpy(self.patterns[group[some]])
                distances[..., some] = _mean_squares(_normed(windows) if is_normed else windows, patterns.T)
        return distances

    def _thresholds(self, series: Series, other: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Return for each shape a quantile of the distances in another case."""
        found = np.zeros(len(self))
        for group in self._groups():
            windows, is_there, counts = self._windows(series, other[group], group[0])
            is_normed = torch.from_numpy(self.is_normed[group])[:, None, None]
            patterns = torch.from_numpy(self.patterns[group])[..., None]
            distances = _mean_squares(torch.where(is_normed, _normed(windows), windows), patterns)[..., 0]
            ordered = distances.masked_fill(~is_there, torch.inf).sort(dim=1).values
            last = (is_there.sum(dim=1) - 1).clamp(min=0)
            rank = (torch.from_numpy(share[group]) * last).long()
            # Between two distances, so that no window of that case lies on the threshold.
            around = torch.stack([rank, torch.minimum(rank + 1, last)], dim=1)
            found[group] = ordered.gather(1, around).mean(dim=1).numpy()
        return found


def _normed(windows: Tensor) -> Tensor:
    """Return windows without level and spread; flat ones are 0."""
    centred = windows - windows.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(spread > _FLAT, centred / spread.clamp(min=_FLAT), 0.0)


def _mean_squares(windows: Tensor, patterns: Tensor) -> Tensor:
    """Return mean squared differences of windows ``(..., starts, points)`` and patterns ``(..., points, shapes)``."""
    products = windows @ patterns * (-2 / windows.shape[-1])
    products += windows.square().mean(-1, keepdim=True)
    products += patterns.square().mean(-2, keepdim=True)
    return products.clamp_(min=0)


def _others(labels: np.ndarray, source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for each source another case of its class, or itself where there is none."""
    order = np.argsort(labels, kind="stable")
    rank = np.argsort(order)
    first = np.searchsorted(labels[order], labels)
    sizes = np.bincount(labels)[labels]
    step = np.floor(rng.random(len(source)) * (sizes[source] - 1)).astype(np.int64) + 1
    place = (rank[source] - first[source] + step) % sizes[source]
    return order[first[source] + place]
