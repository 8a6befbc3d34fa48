"""Times that were rounded: finding the grid, and spreading times inside its cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Grid", "find_grid", "spread", "spread_ties"]

_SAMPLE = 2000
_NEAR = 0.05
_SHARE = 0.9
# A grid ten million times finer than the median gap cannot be exploited, and may be the grid of the numbers themselves.
_FINEST = 1e-7


@dataclass(frozen=True)
class Grid:
    """Times that were rounded to multiples of a spacing.

    Attributes
    ----------
    spacing
        Distance of the grid points, in the unit of the times.
    share
        Share of the gaps between neighbouring events that are whole multiples of the spacing, ties included.
    """

    spacing: float
    share: float


def find_grid(gaps: np.ndarray, largest: float) -> Grid | None:
    """Find the coarsest spacing of which at least nine in ten gaps are multiples.

    Parameters
    ----------
    gaps
        Gaps between neighbouring events, not negative.
    largest
        Largest absolute time, from which the rounding of the numbers themselves follows.

    Returns
    -------
    The grid, or None where the times look continuous.

    Notes
    -----
    The spacing is the greatest common divisor of gaps by Euclid's algorithm with a tolerance. The tolerance goes
    from coarse to fine, and each candidate is counted on all gaps: a continuous gap lies within a twentieth of a
    multiple by chance in one case out of ten, so that no chance divisor reaches nine in ten.

    Examples
    --------
    >>> find_grid(np.array([3.0, 5.0, 2.0, 8.0, 7.0, 0.0]), 25.0)
    Grid(spacing=1.0, share=1.0)
    """
    positive = gaps[gaps > 0]
    if len(positive) < 4:
        return None
    sample = np.random.default_rng(0).permutation(positive)[:_SAMPLE]
    middle = float(np.median(sample))
    finest = max(float(np.finfo(np.float64).eps) * float(largest) * 64, _FINEST * middle)
    tolerance = 0.1 * middle
    while tolerance > finest:
        candidates = {_common_divisor(part, tolerance) for part in _parts(sample)}
        for spacing in sorted(candidates, reverse=True):
            if _share(sample, spacing) >= _SHARE and (share := _share(gaps, spacing)) >= _SHARE:
                return Grid(_refined(sample, spacing), share)
        tolerance /= 10
    return None


def _parts(sample: np.ndarray) -> list[np.ndarray]:
    """Cut a sample into small groups, so that a few odd gaps do not spoil every divisor."""
    size = 8 if len(sample) >= 64 else len(sample)
    return [sample[i : i + size] for i in range(0, min(len(sample), 20 * size) - size + 1, size)]


def _common_divisor(gaps: np.ndarray, tolerance: float) -> float:
    divisor = float(gaps[0])
    for gap in gaps[1:]:
        rest = float(gap)
        while rest > tolerance:
            divisor, rest = rest, abs(divisor - round(divisor / rest) * rest)
    return divisor


def _share(gaps: np.ndarray, spacing: float) -> float:
    multiples = gaps / spacing
    whole = np.round(multiples)
    fits = (np.abs(multiples - whole) < _NEAR) & ((whole >= 1) | (gaps == 0))
    return float(fits.mean())


def _refined(gaps: np.ndarray, spacing: float) -> float:
    """Average the rounding out of a spacing, by the least squares of gaps on their multiples.

    A multiple is trusted only while its error, multiple by multiple, is far below one half.
    """
    for _ in range(3):
        multiples = np.round(gaps / spacing)
        safe = (multiples >= 1) & (np.abs(gaps / spacing - multiples) < _NEAR)
        if not safe.any():
            break
        better = float(gaps[safe] @ multiples[safe] / (multiples[safe] @ multiples[safe]))
        if abs(better - spacing) <= 1e-15 * spacing:
            break
        spacing = better
    return _tidy(spacing)


def _tidy(spacing: float) -> float:
    """Return the short number beside a spacing that rounding has moved, such as 1.0 for 0.9999999999998."""
    for number in (round(spacing), 1 / round(1 / spacing) if spacing < 1 else 0.0, float(f"{spacing:.6g}")):
        if number and abs(number - spacing) <= 1e-9 * spacing:
            return float(number)
    return spacing


def spread(
    times: np.ndarray, offsets: np.ndarray, limits: np.ndarray, spacing: float, rng: np.random.Generator
) -> np.ndarray:
    """Move each time uniformly inside the cell that begins at it, keeping the order within each sequence.

    Parameters
    ----------
    times
        Times, not decreasing within a sequence.
    offsets
        Bounds of the sequences.
    limits
        Latest time allowed, one per sequence (infinite where there is none).
    spacing
        Width of a cell.
    rng
        Source of the draws.
    """
    number = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    room = np.clip(limits[number] - times, 0.0, spacing)
    moved = times + rng.random(len(times)) * room
    return moved[np.lexsort((moved, number))]


def spread_ties(
    times: np.ndarray, offsets: np.ndarray, limits: np.ndarray, spacing: float, rng: np.random.Generator
) -> np.ndarray:
    """Move tied times apart: the first of equal times stays, the others spread over the cell after it.

    The cell ends at the next later time of the sequence where that comes first.
    """
    number = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    new = np.ones(len(times), dtype=bool)
    new[1:] = (times[1:] != times[:-1]) | (number[1:] != number[:-1])
    group = np.cumsum(new) - 1
    heads = np.flatnonzero(new)
    last = np.append(number[heads][1:] != number[heads][:-1], True)
    following = np.append(times[heads][1:], np.inf)
    bound = np.where(last, limits[number[heads]], following)
    room = np.minimum(bound - times[heads], spacing)[group]
    # Sequences and groups come in increasing order, so sorting by the pair keeps each group in its place.
    moved = np.where(new, times, times + rng.random(len(times)) * room)
    return moved[np.lexsort((moved, group))]
