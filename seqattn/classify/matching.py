"""The window of every series that is nearest to a prototype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from seqattn.classify.profile import FLAT, moments, unit_patterns
from seqattn.classify.series import Series

__all__ = ["Nearest", "contents", "distances", "nearest", "shortened"]

# Share of observed points below which a window is taken only where there is no better one.
_OBSERVED = 0.5
# Bytes that a chunk of cases may take.
_CHUNK = 2**28
# Distances are rounded to this step: equal ones stay equal in whatever batch they were computed.
_STEP = 2.0**-32
# Added to the distance of windows that are mostly gaps.
_BLAME = 1e9


@dataclass(frozen=True)
class Nearest:
    """Windows that are nearest to prototypes.

    Attributes
    ----------
    distance, start
        Distance and first point of each, ``(cases, prototypes)``.
    share
        Share of the case's windows that are closer than the prototype's threshold, ``(cases, prototypes)``.
    """

    distance: np.ndarray
    start: np.ndarray
    share: np.ndarray


def distances(values: np.ndarray, patterns: np.ndarray, match: str) -> np.ndarray:
    """Return the distance of every window of series to every prototype.

    Parameters
    ----------
    values
        Series of one channel ``(cases, time)``.
    patterns
        Prototypes ``(prototypes, points)``, at most ``time`` points long.
    match
        ``"znorm"``: 1 - correlation, 1 where the window is flat. ``"raw"``: mean squared difference.

    Returns
    -------
    Distances ``(cases, prototypes, time - points + 1)``, at least 0, in steps of 2^-32.

    Examples
    --------
    >>> distances(np.array([[0.0, 1.0, 2.0, 1.0]]), np.array([[0.0, 1.0]]), "znorm")
    array([[[0., 0., 2.]]])
    """
    window = patterns.shape[1]
    windows = np.ascontiguousarray(sliding_window_view(values, window, axis=1))
    mean, deviation = moments(values, window)
    if match == "znorm":
        found = unit_patterns(patterns) @ windows.transpose(0, 2, 1)
        scale = 1 / np.where(deviation >= FLAT, np.sqrt(window) * deviation, np.inf)
        np.subtract(1.0, np.multiply(found, scale[:, None], out=found), out=found)
    else:
        found = (-2 / window) * patterns @ windows.transpose(0, 2, 1)
        found += (mean**2 + deviation**2)[:, None]
        found += (patterns**2).mean(axis=1)[:, None]
    return np.maximum(np.round(found / _STEP) * _STEP, 0.0)


def nearest(
    series: Series,
    channel: int,
    patterns: np.ndarray,
    relative: np.ndarray,
    threshold: np.ndarray,
    *,
    match: str,
    locality: float | None,
) -> Nearest:
    """Return the nearest window of every case for prototypes of one channel and length.

    Parameters
    ----------
    series
        Cases.
    channel
        Where the prototypes belong.
    patterns
        Prototypes ``(prototypes, points)``. A case shorter than that is taken whole and compared with the
        prototypes resampled to its length.
    relative
        Where each starts, as share of the length.
    threshold
        Distance below which a window counts as an occurrence.
    match
        ``"znorm"`` or ``"raw"``.
    locality
        Share of the length by which a window may start earlier or later than the prototype; None: anywhere. The
        nearest start that there is counts as within.

    Returns
    -------
    What was found. Of equally near windows it is the first. Windows that are mostly gaps are taken only where there
    are no others.
    """
    shape = len(series), len(patterns)
    found = Nearest(np.empty(shape), np.empty(shape, dtype=np.int64), np.empty(shape))
    for rows, points in _groups(series.lengths, patterns.shape):
        longest = int(series.lengths[rows].max())
        values = series.values[rows, channel, :longest]
        apart = distances(values, shortened(patterns, points), match)
        n_starts = series.lengths[rows] - points + 1
        places = np.arange(apart.shape[2])
        counted = places < n_starts[:, None]
        low, high = _range(series.lengths[rows], n_starts, relative, locality)
        rated = np.where((places >= low[..., None]) & (places <= high[..., None]), apart, np.inf)
        if not series.is_whole:
            there = (
                series.counted[rows, channel, points : longest + 1]
                - series.counted[rows, channel, : len(places)]
            )
            is_gap = there < _OBSERVED * points
            rated += np.where(is_gap, _BLAME, 0.0)[:, None]
            counted &= ~is_gap
        near = ((apart < threshold[:, None]) & counted[:, None]).sum(2)
        found.share[rows] = near / np.maximum(counted.sum(1), 1)[:, None]
        found.start[rows] = rated.argmin(2)
        found.distance[rows] = np.take_along_axis(apart, found.start[rows][..., None], 2)[..., 0]
    return found


def _groups(lengths: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield cases that are compared at once, and the points of their windows."""
    n_patterns, window = shape
    for points in np.unique(np.minimum(lengths, window)):
        rows = np.flatnonzero(np.minimum(lengths, window) == points)
        n_starts = int(lengths[rows].max()) - points + 1
        size = max(1, _CHUNK // (8 * n_starts * (points + 4 * n_patterns)))
        for first in range(0, len(rows), size):
            yield rows[first : first + size], int(points)


def _range(
    lengths: np.ndarray, n_starts: np.ndarray, relative: np.ndarray, locality: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return first and last start that each case allows each prototype."""
    last = (n_starts - 1)[:, None]
    if locality is None:
        return np.zeros((len(last), len(relative)), dtype=np.int64), np.broadcast_to(
            last, (len(last), len(relative))
        )
    # A start that lies on the border is within, whatever rounding makes of the product.
    low = np.ceil((relative - locality) * lengths[:, None] - 1e-9)
    high = np.floor((relative + locality) * lengths[:, None] + 1e-9)
    return np.clip(low, 0, last), np.clip(high, 0, last)


def shortened(patterns: np.ndarray, points: int) -> np.ndarray:
    """Return prototypes, resampled to a number of points where they have more.

    Parameters
    ----------
    patterns
        Prototypes ``(prototypes, points)``.
    points
        Most points to keep.

    Examples
    --------
    >>> shortened(np.array([[0.0, 1.0, 2.0, 3.0]]), 2)
    array([[0., 3.]])
    """
    if patterns.shape[1] <= points:
        return patterns
    places = np.linspace(0, patterns.shape[1] - 1, points)
    return np.stack([np.interp(places, np.arange(patterns.shape[1]), pattern) for pattern in patterns])


def contents(
    series: Series, channel: np.ndarray, start: np.ndarray, end: np.ndarray, points: int
) -> np.ndarray:
    """Return windows reduced to means of equal parts.

    Parameters
    ----------
    series
        Cases.
    channel
        Channel of each window, ``(windows,)``.
    start, end
        First point of each window of each case and one after its last, ``(cases, windows)``.
    points
        Number of parts. Where a window has fewer points, neighbouring parts share one.

    Returns
    -------
    Means ``(cases, windows, points)``.
    """
    found = np.empty((*start.shape, points))
    step = max(1, _CHUNK // (8 * (6 * (points + 1) * start.shape[1] + series.values[0].size)))
    for first in range(0, len(series), step):
        rows = slice(first, first + step)
        totals = np.pad(np.cumsum(series.values[rows], axis=-1), ((0, 0), (0, 0), (1, 0)))
        size = (end - start)[rows, :, None]
        places = start[rows, :, None] + size * (np.arange(points + 1) / points)
        whole = np.minimum(places.astype(np.int64), totals.shape[2] - 2)
        case = np.arange(len(totals))[:, None, None]
        below, above = totals[case, channel[:, None], whole], totals[case, channel[:, None], whole + 1]
        found[rows] = np.diff(below + (places - whole) * (above - below), axis=2) * points / size
    return found
