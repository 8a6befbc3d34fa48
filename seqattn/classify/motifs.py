"""Shapes by the paper's motif discovery: what series of one class share, found again in every series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from seqattn.classify.matching import Nearest, contents, distances, nearest, shortened
from seqattn.classify.profile import nearest_elsewhere, unit_patterns
from seqattn.classify.series import Series
from seqattn.classify.shapes import Matches, shape_prior

__all__ = ["CONTENT_POINTS", "MotifShapes"]

# Parts to whose means a matched window is reduced.
CONTENT_POINTS = 16
# Shortest window, where series are that long.
_SHORTEST = 8
# Least share of observed points of a window that may become a motif.
_OBSERVED = 0.5
# Best-aligned correlation above which two shapes of one channel and class are the same.
_SAME = 0.95
# Quantiles of the distances in another case of the class between which a threshold is drawn.
_QUANTILES = (0.05, 0.10)
# Distances in the search are rounded to this step.
_STEP = 2.0**-32

_Report = Callable[[str], None] | None


@dataclass(frozen=True)
class MotifShapes:
    """Prototypes: windows of training series that come back in other series of their class.

    Attributes
    ----------
    channel, label, window, source, start
        Channel, code of the class, points, training case and first point of each, ``(shapes,)``.
    relative
        Start as share of the length of the training case, ``(shapes,)``.
    threshold
        Distance below which a window counts as an occurrence, ``(shapes,)``.
    prior
        How much closer the shape is to its own class than to the others, in [0, 1], ``(shapes,)``.
    inside, outside
        Mean distance to the training cases of its class without the one it comes from, and of the other classes; NaN
        where there are none, ``(shapes,)``.
    patterns
        Values of each in the scale of the series.
    measure
        ``"znorm"`` (1 - correlation) or ``"raw"`` (mean squared difference).
    locality
        Share of the length by which a match may lie away from ``relative``; None lets it lie anywhere.

    References
    ----------
    Xi, Zuo, Alvarez, Zhang, Choi, Lin (2024), VSFormer: value and shape-aware transformer with prior-enhanced
    self-attention for multivariate time series classification.
    """

    channel: np.ndarray
    label: np.ndarray
    window: np.ndarray
    source: np.ndarray
    start: np.ndarray
    relative: np.ndarray
    threshold: np.ndarray
    prior: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    patterns: tuple[np.ndarray, ...]
    measure: str = "znorm"
    locality: float | None = None

    def __len__(self) -> int:
        """Return the number of shapes."""
        return len(self.channel)

    @classmethod
    def find(
        cls,
        series: Series,
        labels: np.ndarray,
        n_classes: int,
        *,
        window_fractions: Sequence[float],
        motifs_per_cell: int,
        match: str,
        locality: float | None,
        profile_cap: int,
        shape_tokens: int,
        is_constant: np.ndarray,
        rng: np.random.Generator,
        n_jobs: int | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Self:
        """Return the motifs of labelled series that tell their class best.

        For each class, channel and window the starts are taken whose nearest neighbour in another series of the
        class is nearest. Their prior is ``clip(1 - inside / outside, 0, 1)``, shrunk by ``n / (n + 5)`` where ``n``
        other cases have the class. Of motifs of one channel and class whose best-aligned correlation (the largest of
        the cross-correlation of the normalised patterns) exceeds 0.95 only the one with the largest prior stays.
        Then classes take turns.

        Parameters
        ----------
        series
            Training cases.
        labels
            Code of the class of each, from 0.
        n_classes
            Number of classes.
        window_fractions
            Windows as shares of the median length.
        motifs_per_cell
            Motifs of each class, channel and window.
        match
            ``"znorm"`` or ``"raw"``.
        locality
            Share of the length by which a match may lie away from the place of the prototype; None: anywhere.
        profile_cap
            Points of a class that are compared with each other; at least two series are, however long.
        shape_tokens
            Most shapes to return.
        is_constant
            Channels to leave out, ``(channels,)``.
        rng
            Draws the series of a class when not all fit, and the thresholds.
        n_jobs
            Threads, as joblib counts them. The result does not depend on it.
        report
            Is told now and then what has been done.

        Returns
        -------
        Shapes, those of the largest prior of each class first. Classes with a single case have none, unless all are
        such; then the prior is 0.

        Raises
        ------
        ParameterError
            ``match`` is unknown.

        Notes
        -----
        Ties go to the smaller class, channel, window, case and start, in this order. What is drawn depends on the
        content of cases and not on their order.
        """
        cells = [
            (rows, window, int(channel), label, motifs_per_cell, match)
            for label, order in _orders(series, labels, n_classes, rng)
            for window in _windows(series.lengths, window_fractions)
            if len(rows := _fitting(order, series.lengths, window, profile_cap))
            for channel in np.flatnonzero(~is_constant)
        ]
        with threadpool_limits(1, user_api="blas"):
            pool = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")
            tables = pool(delayed(_motifs)(series, *cell) for cell in cells)
            table = np.concatenate(
                [np.empty((0, 5), dtype=np.int64), *_told(tables, len(cells), "motifs", report)]
            )
            found = cls._at(series, table, match, locality)
            found = found._rated(series, labels, pool, report)._selected(shape_tokens)
            return found._thresholded(series, labels, rng)

    @classmethod
    def _at(cls, series: Series, table: np.ndarray, match: str, locality: float | None) -> Self:
        """Return shapes at given places, without prior and threshold."""
        label, channel, window, source, start = table.T
        ends = zip(source, channel, start, start + window, strict=True)
        patterns = tuple(series.values[case, row, first:last].copy() for case, row, first, last in ends)
        zero, unknown = np.zeros(len(table)), np.full(len(table), np.nan)
        places = channel, label, window, source, start, start / series.lengths[source]
        return cls(*places, zero, zero, unknown, unknown, patterns, match, locality)

    def _taken(self, rows: np.ndarray) -> Self:
        taken = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, patterns=tuple(self.patterns[row] for row in rows), **taken)

    def _groups(self) -> list[np.ndarray]:
        """Return the rows of each channel and window."""
        pairs, place = np.unique(np.stack([self.channel, self.window], axis=1), axis=0, return_inverse=True)
        return np.split(
            np.argsort(place.ravel(), kind="stable"),
            np.cumsum(np.bincount(place.ravel(), minlength=len(pairs)))[:-1],
        )

    def _nearest(self, series: Series, rows: np.ndarray) -> Nearest:
        """Return the nearest windows for shapes of one channel and window."""
        patterns = np.stack([self.patterns[row] for row in rows])
        channel, relative, threshold = int(self.channel[rows[0]]), self.relative[rows], self.threshold[rows]
        return nearest(
            series, channel, patterns, relative, threshold, match=self.measure, locality=self.locality
        )

    def _rated(self, series: Series, labels: np.ndarray, pool: Parallel, report: _Report) -> Self:
        """Return the shapes with their prior."""
        groups = self._groups() if len(self) else []
        rated = pool(delayed(self._rate)(series, labels, rows) for rows in groups)
        values = np.empty((3, len(self)))
        for rows, part in zip(groups, _told(rated, len(groups), "priors", report), strict=True):
            values[:, rows] = part
        return replace(self, prior=values[0], inside=values[1], outside=values[2])

    def _rate(self, series: Series, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return prior and mean distances of shapes of one channel and window."""
        found = self._nearest(series, rows)
        share = _observed(series, self.channel[rows], found.start, found.start + self.window[rows])
        apart = np.where(share > 0, found.distance, np.nan)
        prior, inside, outside = shape_prior(apart, labels, self.label[rows], self.source[rows])
        return np.stack([prior, inside, outside])

    def _selected(self, most: int) -> Self:
        """Return the best shapes, no two alike, classes in turn."""
        if not len(self):
            return self
        order = np.lexsort((self.start, self.source, self.window, self.channel, self.label, -self.prior))
        pairs, place = np.unique(
            np.stack([self.label, self.channel], axis=1)[order], axis=0, return_inverse=True
        )
        ends = np.cumsum(np.bincount(place.ravel(), minlength=len(pairs)))
        cells = np.split(order[np.argsort(place.ravel(), kind="stable")], ends[:-1])
        is_kept = np.zeros(len(self), dtype=bool)
        for rows in cells:
            is_kept[rows[_unlike([self.patterns[row] for row in rows])]] = True
        order = order[is_kept[order]]
        turn = np.empty(len(order), dtype=np.int64)
        for label in np.unique(self.label):
            is_own = self.label[order] == label
            turn[is_own] = np.arange(is_own.sum())
        return self._taken(order[np.argsort(turn, kind="stable")][:most])

    def _thresholded(self, series: Series, labels: np.ndarray, rng: np.random.Generator) -> Self:
        """Return the shapes with a quantile of their distances in another case of their class."""
        quantiles, draws = rng.uniform(*_QUANTILES, len(self)), rng.random(len(self))
        order, threshold = series.order(), np.empty(len(self))
        for row, (label, source) in enumerate(zip(self.label, self.source, strict=True)):
            own = order[labels[order] == label]
            others = own[own != source] if len(own) > 1 else own
            case = others[int(draws[row] * len(others))]
            values = series.values[[case], self.channel[row], : series.lengths[case]]
            apart = distances(values, shortened(self.patterns[row][None], values.shape[1]), self.measure)
            threshold[row] = np.quantile(apart, quantiles[row])
        return replace(self, threshold=threshold)

    def match(self, series: Series) -> Matches:
        """Return where the shapes lie in series, each case by itself.

        Parameters
        ----------
        series
            Cases with the channels of the training data, scaled in the same way; of any length.

        Returns
        -------
        One token per case and shape: 16 means of equal parts of the window in the scale of the series, and three
        statistics. A case shorter than the window is taken whole, and has at most the share of the window observed
        that it fills.
        """
        distance, share = np.empty((2, len(series), len(self)))
        start = np.empty((len(series), len(self)), dtype=np.int64)
        with threadpool_limits(1, user_api="blas"):
            for rows in self._groups() if len(self) else []:
                found = self._nearest(series, rows)
                distance[:, rows], start[:, rows], share[:, rows] = found.distance, found.start, found.share
        end = np.minimum(start + self.window, series.lengths[:, None])
        spans = np.stack([start, end], axis=-1) / series.lengths[:, None, None]
        observed = _observed(series, self.channel, start, start + self.window)
        values = contents(series, self.channel, start, end, CONTENT_POINTS)
        content = np.concatenate([values, np.stack([distance, spans[..., 0], share], axis=-1)], axis=-1)
        return Matches(np.where(observed[..., None] > 0, content, 0.0), spans, observed)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays by name."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        locality = np.nan if self.locality is None else self.locality
        points = np.concatenate([np.empty(0), *self.patterns])
        return {
            **arrays,
            "points": points,
            "is_raw": np.array(self.measure == "raw"),
            "locality": np.array(locality),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return what :meth:`to_arrays` was called on.

        Parameters
        ----------
        arrays
            What it returned.
        """
        known: dict[str, Any] = {field.name: arrays[field.name] for field in fields(cls)[:-3]}
        patterns = (
            tuple(np.split(arrays["points"], np.cumsum(known["window"])[:-1])) if len(known["window"]) else ()
        )
        locality = float(arrays["locality"])
        measure = "raw" if arrays["is_raw"] else "znorm"
        return cls(
            **known, patterns=patterns, measure=measure, locality=None if np.isnan(locality) else locality
        )


def _observed(series: Series, channel: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the share of observed points of windows ``(cases, windows)``, which may reach beyond the end."""
    case, last = np.arange(len(series))[:, None], np.minimum(end, series.lengths[:, None])
    there = series.counted[case, channel, last] - series.counted[case, channel, start]
    return there / (end - start)


def _windows(lengths: np.ndarray, fractions: Sequence[float]) -> list[int]:
    median = float(np.median(lengths))
    shortest = min(_SHORTEST, int(median))
    return sorted({max(round(fraction * median), shortest) for fraction in fractions})


def _orders(
    series: Series, labels: np.ndarray, n_classes: int, rng: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """Return each class that has motifs with its cases in random order."""
    order = series.order()
    least = min(2, int(np.bincount(labels, minlength=n_classes).max(initial=0)))
    own = [(label, rng.permutation(order[labels[order] == label])) for label in range(n_classes)]
    return [(label, rows) for label, rows in own if len(rows) >= max(least, 1)]


def _fitting(order: np.ndarray, lengths: np.ndarray, window: int, cap: int) -> np.ndarray:
    """Return the first cases that are long enough for a window and have at most ``cap`` points, but at least two."""
    order = order[lengths[order] >= window]
    n_fitting = int((np.cumsum(lengths[order]) <= cap).sum())
    return np.sort(order[: max(n_fitting, 2)])


def _motifs(
    series: Series, rows: np.ndarray, window: int, channel: int, label: int, n_motifs: int, match: str
) -> np.ndarray:
    """Return label, channel, window, case and start of the motifs of one cell, ``(motifs, 5)``."""
    longest = int(series.lengths[rows].max())
    there = (
        series.counted[rows, channel, window : longest + 1]
        - series.counted[rows, channel, : longest - window + 1]
    )
    is_start = np.arange(there.shape[1]) <= (series.lengths[rows] - window)[:, None]
    is_start &= there >= _OBSERVED * window
    apart = nearest_elsewhere(series.values[rows, channel, :longest], is_start, window, match)
    # The two windows of a motif are equally far from each other, whatever rounding makes of it.
    apart = np.round(apart / _STEP) * _STEP
    found: list[tuple[Any, ...]] = []
    while len(found) < n_motifs and np.isfinite(apart).any():
        case, start = np.unravel_index(apart.argmin(), apart.shape)
        found.append((label, channel, window, rows[case], start))
        apart[case, 2 * np.abs(np.arange(apart.shape[1]) - start) < window] = np.inf
    return np.array(found, dtype=np.int64).reshape(-1, 5)


def _told(results: Iterable[Any], total: int, what: str, report: _Report) -> Iterator[Any]:
    """Yield results, and report every tenth of them."""
    for done, result in enumerate(results, 1):
        if report and done * 10 // total > (done - 1) * 10 // total:
            report(f"{what}: {done:,} of {total:,} cells")
        yield result


def _unlike(patterns: Sequence[np.ndarray]) -> list[int]:
    """Return the patterns, best first, that are not a shifted copy of a better one."""
    longest = max(map(len, patterns))
    padded = np.zeros((len(patterns), 2 * longest))
    for row, pattern in enumerate(patterns):
        padded[row, : len(pattern)] = unit_patterns(pattern)
    waves = np.fft.rfft(padded)
    kept: list[int] = []
    for row, wave in enumerate(waves):
        aligned = np.fft.irfft(waves[kept] * wave.conj(), n=2 * longest)
        if aligned.max(initial=-1.0) <= _SAME:
            kept.append(row)
    return kept
