"""Dilated shapes: short pieces of training cases, stretched at random, and how and where other cases come near them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from seqattn.classify.series import Series
from seqattn.classify.shapes import Matches
from seqattn.classify.windows import STEPS, Windows, normed
from seqattn.train.threads import share_out

__all__ = ["DilatedShapes"]

POINTS = 11
# Share of prototypes that are compared without level and spread, where both kinds are drawn.
_NORMED = 0.7
# Numbers in one block of windows and distances.
_BLOCK = 2**21
# Cases whose windows are prepared at a time.
_CASES = 512
# Mean square of the points of a prototype beyond which float32 would leave less than five digits of small distances.
_LARGE = 16.0


class _Group(NamedTuple):
    """Shapes that share their windows.

    Their distances are ``factors @ columns + above``, with what :meth:`Windows.columns` returns.
    """

    members: np.ndarray
    channels: Tensor
    step: int
    span: int
    is_normed: bool
    factors: Tensor
    above: np.ndarray


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
        has_no_level = rng.random(n_groups)[group] < (_NORMED if is_normed is None else float(is_normed))
        among = np.arange(len(series)) if among is None else among
        place = rng.integers(len(among), size=n_shapes)
        source = among[place]
        last = series.lengths[source] - 1
        room = np.maximum(last + 1 - (points - 1) * dilation, 1)
        start = np.floor(rng.random(n_shapes) * room).astype(np.int64)
        places = np.minimum(start[:, None] + np.arange(points) * dilation[:, None], last[:, None])
        raw = series.values[source[:, None, None], sets[:, :, None], places[:, None]]
        patterns = np.where(has_no_level[:, None, None], normed(torch.from_numpy(raw)).numpy(), raw)
        patterns[sets < 0] = 0.0
        nothing = np.full(n_shapes, np.nan)
        shapes = cls(
            sets,
            labels[source],
            source,
            start,
            dilation,
            patterns,
            has_no_level,
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
        # Cases of similar lengths are computed together.
        order = np.argsort(series.lengths, kind="stable")
        at_once = max(min(_CASES, 4 * _BLOCK // max(series.values[:1].size, 1)), 1)
        for first in range(0, len(series) if len(self) else 0, at_once):
            rows = order[first : first + at_once]
            windows = Windows.of(series, rows, int(self.spans.max()))
            share_out(partial(self._fill, statistics, start, windows, rows), self._groups)
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

    def __getstate__(self) -> dict[str, np.ndarray]:
        """Return what is pickled: nothing that can be computed again."""
        return self.to_arrays()

    @cached_property
    def _groups(self) -> list[_Group]:
        """The shapes that share channels, dilation, norm and precision, and so their windows."""
        if not len(self):
            return []
        keys = np.column_stack([self.channels, self.dilation, self.is_normed, self._is_large])
        _, group = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(group.ravel(), kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(group.ravel()[order])) + 1)
        return [self._group(part) for part in parts]

    def _group(self, members: np.ndarray) -> _Group:
        """Return what shapes have in common, and what their windows are multiplied by."""
        first = int(members[0])
        channels = self.channels[first][self.channels[first] >= 0]
        patterns = self.patterns[members, : len(channels)].reshape(len(members), -1)
        factors = np.pad(patterns * (-2 / patterns.shape[1]), ((0, 0), (0, 1)), constant_values=1.0)
        dtype = torch.float64 if self._is_large[first] else torch.float32
        return _Group(
            members=members,
            channels=torch.from_numpy(channels),
            step=int(self.dilation[first]),
            span=int(self.spans[first]),
            is_normed=bool(self.is_normed[first]),
            factors=torch.from_numpy(factors).to(dtype),
            above=(patterns**2).mean(axis=1),
        )

    @cached_property
    def _is_large(self) -> np.ndarray:
        """Which prototypes have points so large that their distances are computed in float64."""
        n_channels = (self.channels >= 0).sum(axis=1)
        return np.asarray((self.patterns**2).mean(axis=2).sum(axis=1) > _LARGE * n_channels)

    def _fill(
        self, statistics: np.ndarray, start: np.ndarray, windows: Windows, rows: np.ndarray, group: _Group
    ) -> None:
        """Write what a group of shapes finds in some cases."""
        for some in _blocks(windows, group):
            cells = rows[some, None], group.members
            statistics[cells], start[cells] = self._nearest(windows, some, group)

    def _nearest(self, windows: Windows, some: slice, group: _Group) -> tuple[np.ndarray, np.ndarray]:
        """Return statistics and starts of some cases for the shapes of a group."""
        columns, is_there = windows.columns(
            some,
            group.channels,
            self.points,
            group.step,
            is_normed=group.is_normed,
            dtype=group.factors.dtype,
        )
        distances = torch.bmm(group.factors.expand(len(columns), -1, -1), columns)
        start = distances.numpy().argmin(axis=2)
        nearest = np.take_along_axis(distances.numpy(), start[..., None], axis=2)[..., 0] + group.above
        limits = torch.from_numpy(self.threshold[group.members] - group.above).to(columns.dtype)
        # In place: numbers are added up much faster than truth values.
        near = distances.lt_(limits[:, None]).sum(dim=2).numpy()
        counts = windows.counts(some, group.span).numpy()[:, None]
        n_there = is_there.sum(dim=1).clamp(min=1).numpy()[:, None]
        found = np.empty((*start.shape, 3))
        found[..., 0] = np.maximum(nearest - start * STEPS[columns.dtype], 0.0)
        found[..., 1] = start / np.maximum(counts - 1, 1)
        found[..., 2] = near / n_there
        found[np.isinf(nearest)] = np.nan
        return found, start

    def _thresholds(self, series: Series, other: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Return for each shape a quantile of the distances in another case."""
        found = np.zeros(len(self))
        for group in self._groups:
            windows = Windows.of(series, other[group.members], group.span, group.channels.numpy())
            columns, is_there = windows.columns(
                slice(None),
                torch.arange(len(group.channels)),
                self.points,
                group.step,
                is_normed=group.is_normed,
                dtype=group.factors.dtype,
            )
            ordered = torch.bmm(group.factors[:, None], columns)[:, 0].sort(dim=1).values.double()
            last = (is_there.sum(dim=1) - 1).clamp(min=0)
            rank = (torch.from_numpy(share[group.members]) * last).long()
            # Between two distances, so that no window of that case lies on the threshold unless they are equal.
            around = torch.stack([rank, torch.minimum(rank + 1, last)], dim=1)
            found[group.members] = ordered.gather(1, around).mean(dim=1).numpy() + group.above
        return found


def _blocks(windows: Windows, group: _Group) -> Iterator[slice]:
    """Yield cases with the same number of columns, as many as have a block of windows and distances for a group."""
    widths, counts = windows.widths(group.span).unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    for first, width, end in zip([0, *ends], widths.tolist(), ends, strict=False):
        at_once = max(_BLOCK // (width * sum(group.factors.shape)), 1)
        for start in range(first, end, at_once):
            yield slice(start, min(start + at_once, end))


def _channel_sets(channels: np.ndarray, n_sets: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return random sets of channels, filled up with -1; the logarithm of their size is drawn evenly."""
    if not len(channels):
        return np.full((n_sets, 1), -1)
    sizes = np.floor(2 ** (rng.random(n_sets) * np.log2(most + 1))).astype(np.int64)
    sets = rng.permuted(np.broadcast_to(channels, (n_sets, len(channels))), axis=1)[:, :most]
    return np.where(np.arange(most) < sizes[:, None], sets, -1)


def _others(labels: np.ndarray, source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for each source another case of its class, or itself where there is none."""
    order = np.argsort(labels, kind="stable")
    rank = np.argsort(order)
    first = np.searchsorted(labels[order], labels)
    sizes = np.bincount(labels)[labels]
    step = np.floor(rng.random(len(source)) * (sizes[source] - 1)).astype(np.int64) + 1
    place = (rank[source] - first[source] + step) % sizes[source]
    return order[first[source] + place]
