"""Dilated shapes: short pieces of training cases, stretched at random, and how and where other cases come near them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from seqattn.classify.series import Series
from seqattn.classify.shapes import Matches

__all__ = ["DilatedShapes"]

POINTS = 11
# Share of prototypes that are compared without level and spread, where both kinds are drawn.
_NORMED = 0.7
_FLAT = 1e-4
# Numbers in one block of windows and distances. 512 prototypes in 1,422 cases of 3 x 182 points, CPU seconds of one
# thread: 2^15 4.7, 2^17 2.9, 2^19 2.5, 2^21 3.6.
_BLOCK = 2**19
# What each start adds to distances: far more than rounding, far less than what tells shapes apart.
_STEP = 2.0**-36


@dataclass(frozen=True)
class DilatedShapes:
    r"""Prototypes of a few points, taken from training cases at random places with random distances between points.

    The distance of a window :math:`w` to a prototype :math:`p` of :math:`m` points in the channels :math:`C` is

    .. math:: d(w, p) = \frac{1}{|C| m} \sum_{c \in C} \sum_i (w_{ci} - p_{ci})^2,

    for some prototypes with each channel's points centred and divided by their deviation first. A case is described by
    its smallest distance, by the place of that window, and by the share of windows nearer than a threshold, which is
    the 5 to 10 % quantile (drawn) of the distances in another case of the same class.

    Attributes
    ----------
    channels
        Channels of each prototype, filled up with -1, ``(shapes, most channels)``.
    label, source, start, dilation
        The class, number and first point of the training case it was taken from, and the step between its points.
    patterns
        Its points ``(shapes, most channels, points)``, normed where ``is_normed``.
    is_normed
        Whether level and spread are taken out.
    threshold
        Distance below which it occurs.
    prior, inside, outside
        See :func:`seqattn.classify.shapes.shape_prior`; NaN until :func:`seqattn.classify.members.weighed` was called.

    References
    ----------
    Guillaume, Vrain, Elloumi (2022), Random dilated shapelet transform: a new approach for time series shapelets.
    """

    channels: np.ndarray
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
        return len(self.channels)

    @property
    def channel(self) -> np.ndarray:
        """The first channel of each prototype."""
        return np.asarray(self.channels[:, 0])

    @property
    def spans(self) -> np.ndarray:
        """Points from the first to the last of each prototype, both included."""
        return np.asarray((self.points - 1) * self.dilation + 1)

    @property
    def points(self) -> int:
        """Number of points of each prototype."""
        return int(self.patterns.shape[2])

    @classmethod
    def draw(
        cls,
        series: Series,
        labels: np.ndarray,
        n_shapes: int,
        channels: np.ndarray,
        rng: np.random.Generator,
        *,
        among: np.ndarray | None = None,
        most_channels: int = 1,
        together: int = 1,
        is_normed: bool | None = None,
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
        among
            Numbers of the cases that prototypes and thresholds are taken from; None for all.
        most_channels
            Most channels of one prototype; their number is drawn, small ones more often.
        together
            How many prototypes share channels, dilation and norm, and so the work for their windows.
        is_normed
            Whether level and spread are taken out; None draws it.
        """
        usual = int(np.median(series.lengths))
        points = min(POINTS, max(3, usual // 2))
        n_groups = -(-n_shapes // together)
        group = np.arange(n_shapes) // together
        sets = _channel_sets(channels, n_groups, min(most_channels, len(channels)), rng)[group]
        most = np.log2(max((usual - 1) / (points - 1), 1.0))
        dilation = np.floor(2 ** (rng.random(n_groups) * most)).astype(np.int64)[group]
        normed = rng.random(n_groups)[group] < (_NORMED if is_normed is None else float(is_normed))
        among = np.arange(len(series)) if among is None else among
        place = rng.integers(len(among), size=n_shapes)
        source = among[place]
        last = series.lengths[source] - 1
        room = np.maximum(last + 1 - (points - 1) * dilation, 1)
        start = np.floor(rng.random(n_shapes) * room).astype(np.int64)
        places = np.minimum(start[:, None] + np.arange(points) * dilation[:, None], last[:, None])
        raw = series.values[source[:, None, None], sets[:, :, None], places[:, None]]
        patterns = np.where(normed[:, None, None], _normed(torch.from_numpy(raw)).numpy(), raw)
        patterns[sets < 0] = 0.0
        nothing = np.full(n_shapes, np.nan)
        shapes = cls(
            sets,
            labels[source],
            source,
            start,
            dilation,
            patterns,
            normed,
            nothing,
            nothing,
            nothing,
            nothing,
        )
        share = rng.uniform(0.05, 0.1, n_shapes)
        other = among[_others(labels[among], place, rng)]
        return replace(shapes, threshold=shapes._thresholds(series, other, share))

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
            than the threshold. Windows with less than half of their points do not count; NaN where there is no other.
        start
            First point of the nearest window, ``(cases, shapes)``.
        """
        statistics = np.empty((len(series), len(self), 3))
        start = np.zeros((len(series), len(self)), dtype=np.int64)
        for group in self._groups() if len(self) else ():
            n_windows = max(series.values.shape[-1] - (self.points - 1) * int(self.dilation[group[0]]), 1)
            numbers = self.points * len(self._own_channels(int(group[0]))) + len(group)
            at_once = max(_BLOCK // (n_windows * numbers), 1)
            for first in range(0, len(series), at_once):
                rows = np.arange(first, min(first + at_once, len(series)))
                found = self._nearest(series, rows, group)
                statistics[rows[:, None], group] = found[0]
                start[rows[:, None], group] = found[1]
        return statistics, start

    def match(self, series: Series) -> Matches:
        """Return the tokens of cases: the points of the nearest window in the first channel, and the statistics.

        Parameters
        ----------
        series
            Any cases.
        """
        statistics, start = self.statistics(series)
        lengths, cases = series.lengths[:, None], np.arange(len(series))[:, None, None]
        places = start[..., None] + np.arange(self.points) * self.dilation[:, None]
        places = np.minimum(places, lengths[..., None] - 1)
        windows = series.values[cases, self.channel[:, None], places]
        there = series.observed[cases, self.channel[:, None], places].mean(axis=-1)
        spans = self.spans
        there *= np.minimum(lengths / spans, 1.0)
        there[np.isnan(statistics[..., 0])] = 0.0
        content = np.concatenate([windows, statistics], axis=-1)
        content[there == 0] = 0.0
        ends = np.minimum(start + spans, lengths)
        return Matches(content, np.stack([start / lengths, ends / lengths], axis=-1), there)

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
        """Yield the shapes that share channels, dilation and norm, and so their windows."""
        keys = np.column_stack([self.channels, self.dilation, self.is_normed])
        _, group = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(group.ravel(), kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(group.ravel()[order])) + 1)

    def _own_channels(self, shape: int) -> np.ndarray:
        return self.channels[shape][self.channels[shape] >= 0]

    def _nearest(self, series: Series, rows: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return statistics and starts of some cases for the shapes of a group."""
        windows, is_there, counts = self._windows(series, rows, int(group[0]))
        distances = _mean_squares(windows, self._flat_patterns(group).T, is_there)
        nearest, start = distances.min(dim=1)
        near = (distances < torch.from_numpy(self.threshold[group])).sum(dim=1)
        n_there = counts if is_there is None else is_there.sum(dim=1).clamp(min=1)
        place = start.double() / (counts[:, None] - 1).clamp(min=1)
        found = torch.stack(
            [(nearest - start * _STEP).clamp(min=0), place, near.double() / n_there[:, None]], dim=-1
        )
        found[torch.isinf(nearest)] = torch.nan
        return found.numpy(), start.numpy()

    def _windows(self, series: Series, rows: np.ndarray, shape: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return all windows of cases ``(cases, starts, numbers)``, which are there, and how many each case has."""
        channels, step = self._own_channels(shape), int(self.dilation[shape])
        lengths = torch.from_numpy(series.lengths[rows])
        counts = (lengths - (self.points - 1) * step).clamp(min=1)
        starts = torch.arange(int(counts.max()))
        places = starts[:, None] + torch.arange(self.points) * step
        values = torch.from_numpy(series.values[rows[:, None], channels])
        if series.is_whole and int(places.max()) < values.shape[-1]:
            windows, is_there = values[..., places], None
        else:
            size = (len(rows), len(channels), len(starts), self.points)
            inside = torch.minimum(places, (lengths - 1)[:, None, None]).flatten(1)[:, None]
            inside = inside.expand(-1, len(channels), -1)
            windows = values.gather(2, inside).view(size)
            observed = torch.from_numpy(series.observed[rows[:, None], channels]).gather(2, inside).view(size)
            enough = 2 * observed.sum(dim=(1, 3)) >= self.points * len(channels)
            is_there = (starts < counts[:, None]) & enough
        windows = _normed(windows) if self.is_normed[shape] else windows
        return windows.transpose(1, 2).flatten(2), is_there, counts

    def _flat_patterns(self, group: np.ndarray) -> Tensor:
        """Return the prototypes of a group as rows."""
        return torch.from_numpy(self.patterns[group, : len(self._own_channels(int(group[0])))]).flatten(1)

    def _thresholds(self, series: Series, other: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Return for each shape a quantile of the distances in another case."""
        found = np.zeros(len(self))
        for group in self._groups() if len(self) else ():
            windows, is_there, counts = self._windows(series, other[group], int(group[0]))
            distances = _mean_squares(windows, self._flat_patterns(group)[..., None], is_there)[..., 0]
            counts = counts if is_there is None else is_there.sum(dim=1)
            ordered = distances.sort(dim=1).values
            last = (counts - 1).clamp(min=0)
            rank = (torch.from_numpy(share[group]) * last).long()
            # Between two distances, so that no window of that case lies on the threshold unless they are equal.
            around = torch.stack([rank, torch.minimum(rank + 1, last)], dim=1)
            found[group] = ordered.gather(1, around).mean(dim=1).numpy()
        return found


def _channel_sets(channels: np.ndarray, n_sets: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return random sets of channels, filled up with -1; the logarithm of their size is drawn evenly."""
    if not len(channels):
        return np.full((n_sets, 1), -1)
    sizes = np.floor(2 ** (rng.random(n_sets) * np.log2(most + 1))).astype(np.int64)
    sets = rng.permuted(np.broadcast_to(channels, (n_sets, len(channels))), axis=1)[:, :most]
    return np.where(np.arange(most) < sizes[:, None], sets, -1)


def _normed(windows: Tensor) -> Tensor:
    """Return windows without level and spread; flat ones are 0."""
    centred = windows - windows.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(spread > _FLAT, centred / spread.clamp(min=_FLAT), 0.0)


def _mean_squares(windows: Tensor, patterns: Tensor, is_there: Tensor | None) -> Tensor:
    """Return mean squared differences of windows ``(cases, starts, numbers)`` and patterns ``(..., numbers, shapes)``.

    In one product, in which squares are further numbers; infinite where no window is. Each start adds a little, so
    that the first of equal windows is the nearest in whatever batch they are computed.
    """
    size = windows.shape[-1]
    squares = windows.square().sum(-1, keepdim=True) / size
    squares += torch.arange(windows.shape[-2], dtype=squares.dtype)[:, None] * _STEP
    if is_there is not None:
        squares = squares.masked_fill(~is_there[..., None], torch.inf)
    longer = torch.cat([windows, squares, torch.ones_like(squares)], dim=-1)
    above = patterns.square().sum(-2, keepdim=True) / size
    return longer @ torch.cat([patterns * (-2 / size), torch.ones_like(above), above], dim=-2)


def _others(labels: np.ndarray, source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for each source another case of its class, or itself where there is none."""
    order = np.argsort(labels, kind="stable")
    rank = np.argsort(order)
    first = np.searchsorted(labels[order], labels)
    sizes = np.bincount(labels)[labels]
    step = np.floor(rng.random(len(source)) * (sizes[source] - 1)).astype(np.int64) + 1
    place = (rank[source] - first[source] + step) % sizes[source]
    return order[first[source] + place]
