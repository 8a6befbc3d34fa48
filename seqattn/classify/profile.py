"""Nearest neighbours of all windows of a set of series among the windows of the other series: the matrix profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from seqattn.errors import ParameterError, suggest

__all__ = ["FLAT", "MATCHES", "moments", "nearest_elsewhere", "unit_patterns"]

MATCHES = ("znorm", "raw")
# Windows with a smaller deviation have no shape: noise of rounding would be blown up to one.
FLAT = 1e-4
# Products of whole windows beat running sums where windows are short or series are many. One CPU thread, float64,
# 4,000 points: 23 ms against 42 ms (28 series, 29 points), 30 against 40 (12, 126), 60 against 35 (4, 100), 96 against
# 23 (2, 200).
_LONGEST = 128
_LONGEST_PER_CASE = 12
# Windows in a tile of such products: 512 x 512 numbers stay in the cache.
_TILE = 512
# Steps after which a running sum is begun afresh.
_STEPS = 4096


def moments(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of all windows.

    Parameters
    ----------
    values
        Series ``(..., time)``.
    window
        Points of a window, at most ``time``.

    Returns
    -------
    Means and deviations ``(..., time - window + 1)``. They come from sums that run along the series: deviations
    below 1e-7 of the largest value are rounding.

    Examples
    --------
    >>> mean, deviation = moments(np.array([1.0, 3.0, 5.0]), 2)
    >>> mean, deviation
    (array([2., 4.]), array([1., 1.]))
    """
    level = values.mean(axis=-1, keepdims=True)
    centred = values - level
    mean = _sums(centred, window) / window
    squares = _sums(centred**2, window) / window
    return mean + level, np.sqrt(np.maximum(squares - mean**2, 0.0))


def _sums(values: np.ndarray, window: int) -> np.ndarray:
    total = np.cumsum(values, axis=-1)
    ahead = np.concatenate([np.zeros_like(total[..., :1]), total[..., :-window]], axis=-1)
    return total[..., window - 1 :] - ahead


def unit_patterns(patterns: np.ndarray) -> np.ndarray:
    """Return patterns with mean 0 and length 1, so that a product of two is their correlation.

    Parameters
    ----------
    patterns
        Patterns ``(..., points)``. Flat ones become 0.

    Examples
    --------
    >>> unit_patterns(np.array([[1.0, 5.0], [2.0, 2.0]])).round(3)
    array([[-0.707,  0.707],
           [ 0.   ,  0.   ]])
    """
    centred = patterns - patterns.mean(axis=-1, keepdims=True)
    size = np.sqrt((centred**2).sum(axis=-1, keepdims=True))
    return centred / np.where(size > 0, size, 1.0)


def nearest_elsewhere(
    cases: np.ndarray, is_start: np.ndarray, window: int, match: str = "znorm"
) -> np.ndarray:
    """Return the distance of every window to the nearest window of another series.

    The distance of two windows is 1 - their correlation (``znorm``) or the mean square of their difference
    (``raw``). A single series is compared with itself, beyond half a window from each start.

    Parameters
    ----------
    cases
        Series of one channel ``(cases, time)``, the shorter ones filled up at the end with anything finite.
    is_start
        Where a window may start, ``(cases, time - window + 1)``. Windows with a deviation below 1e-4 have no shape
        and are left out besides.
    window
        Points of a window.
    match
        ``"znorm"`` or ``"raw"``.

    Returns
    -------
    Distances ``(cases, time - window + 1)``, at least 0; infinite where no window may start or none is to be
    compared with.

    Raises
    ------
    ParameterError
        ``match`` is not one of the two.

    Notes
    -----
    Time grows with the square of the number of starts, memory linearly. Where windows are long, products of windows
    are carried on from start to start, and begun afresh every 4,096 steps.

    References
    ----------
    Zhu and others (2016), Matrix Profile II: exploiting a novel algorithm and GPUs to break the one hundred million
    barrier for time series motifs and joins, table 1 (STOMP).

    Examples
    --------
    >>> cases = np.array([[0.0, 1.0, 5.0, 0.0], [9.0, 9.0, 10.0, 14.0]])
    >>> nearest_elsewhere(cases, np.ones((2, 2), bool), 3).round(3)
    array([[0.   , 1.5  ],
           [0.018, 0.   ]])
    """
    if match not in MATCHES:
        raise ParameterError(f"match={match!r} is unknown. Use 'znorm' or 'raw'.{suggest(match, MATCHES)}")
    cases = cases - cases.mean()
    is_start = is_start & (moments(cases, window)[1] >= FLAT)
    is_short = window <= min(_LONGEST, _LONGEST_PER_CASE * len(cases))
    by = _by_products if is_short or len(cases) == 1 else _by_steps
    return np.where(is_start, np.maximum(-by(cases, is_start, window, match), 0.0), np.inf)


def _by_products(cases: np.ndarray, is_start: np.ndarray, window: int, match: str) -> np.ndarray:
    """Return minus the distances, from products of whole windows, tile by tile."""
    owners, starts = np.nonzero(is_start)
    windows = sliding_window_view(cases, window, axis=1)[is_start]
    windows = unit_patterns(windows) if match == "znorm" else windows / np.sqrt(window)
    squares = (windows**2).sum(1)
    best = np.full(len(windows), -np.inf)
    for first in range(0, len(windows), _TILE):
        for second in range(first, len(windows), _TILE):
            one, two = slice(first, first + _TILE), slice(second, second + _TILE)
            tile = windows[one] @ windows[two].T
            if match == "znorm":
                tile -= 1.0
            else:
                tile = 2 * tile - squares[one, None] - squares[two]
            if owners[one][-1] == owners[second] or first == second:
                near = owners[one, None] == owners[two]
                if len(cases) == 1:
                    near &= 2 * np.abs(starts[one, None] - starts[two]) < window
                tile[near] = -np.inf
            best[one] = np.maximum(best[one], tile.max(1))
            best[two] = np.maximum(best[two], tile.max(0))
    found = np.full(is_start.shape, -np.inf)
    found[is_start] = best
    return found


def _by_steps(cases: np.ndarray, is_start: np.ndarray, window: int, match: str) -> np.ndarray:
    """Return minus the distances, from products of windows that are carried on from start to start."""
    # The shortest series come last: what a series is compared with is cut to the longest of those behind it.
    order = np.argsort(-_ends(is_start), kind="stable")
    cases, is_start = cases[order], is_start[order]
    ends, terms = _ends(is_start), _terms(cases, is_start, window, match)
    best = np.full(is_start.shape, -np.inf)
    for row in range(len(cases) - 1):
        n_own, n_other = ends[row], ends[row + 1]
        if n_other == 0:
            break
        behind = slice(row + 1, None), slice(0, n_other)
        others = np.ascontiguousarray(cases[row + 1 :, : n_other + window - 1].T)
        highest = _compared(
            _running(cases[row, : n_own + window - 1], others, window),
            is_start[row],
            [term[row] for term in terms],
            [np.ascontiguousarray(term[behind].T) for term in terms[:2]],
            np.where(is_start[behind].T, 0.0, -np.inf),
            best[row],
        )
        best[behind] = np.maximum(best[behind], highest.T)
    found = np.empty_like(best)
    found[order] = best
    return found


def _ends(is_start: np.ndarray) -> np.ndarray:
    """Return one more than the last start of each series, 0 where there is none."""
    return np.where(is_start.any(1), is_start.shape[1] - is_start[:, ::-1].argmax(1), 0)


def _terms(cases: np.ndarray, is_start: np.ndarray, window: int, match: str) -> list[np.ndarray]:
    """Return a, b, c, d, e such that minus the distance of starts i and j is d_i (a_j <i, j> - c_i b_j) + e_i."""
    mean, deviation = moments(cases, window)
    ones = np.ones_like(mean)
    if match == "znorm":
        scale = 1 / np.where(is_start, np.sqrt(window) * deviation, 1.0)
        return [scale, mean * scale, window * mean, scale, -ones]
    squares = mean**2 + deviation**2
    return [2 / window * ones, squares, ones, ones, -squares]


def _running(own: np.ndarray, others: np.ndarray, window: int) -> Iterator[np.ndarray]:
    """Yield the products of each window of one series with all windows of others, ``(starts, others)``."""
    n_own, n_other = len(own) - window + 1, len(others) - window + 1
    firsts = np.stack([np.correlate(own, other) for other in others[:window].T], axis=1)
    # Products lie where their diagonal lies, so that they never move.
    diagonals, change = (
        np.empty((n_own + n_other - 1, others.shape[1])),
        np.empty((n_other - 1, others.shape[1])),
    )
    for start in range(n_own):
        now = diagonals[n_own - 1 - start :][:n_other]
        if start % _STEPS == 0:
            now[:] = np.stack(
                [np.correlate(other, own[start : start + window]) for other in others.T], axis=1
            )
        else:
            now[0] = firsts[start]
            now[1:] += np.multiply(others[window:], own[start + window - 1], out=change)
            now[1:] -= np.multiply(others[: n_other - 1], own[start - 1], out=change)
        yield now


def _compared(
    running: Iterator[np.ndarray],
    is_start: np.ndarray,
    own: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    blame: np.ndarray,
    best: np.ndarray,
) -> np.ndarray:
    """Enter the best score of each start of one series into ``best``, and return the best of each start of others."""
    (_, _, shift, factor, offset), (scales, levels) = own, others
    highest, scores, other = np.full(blame.shape, -np.inf), np.empty(blame.shape), np.empty(blame.shape)
    is_clean = not blame.any()
    for start, products in enumerate(running):
        if not is_start[start]:
            continue
        np.multiply(products, scales, out=scores)
        scores -= np.multiply(levels, shift[start], out=other)
        scores *= factor[start]
        scores += offset[start]
        if not is_clean:
            scores += blame
        best[start] = max(best[start], scores.max())
        np.maximum(highest, scores, out=highest)
    return highest
