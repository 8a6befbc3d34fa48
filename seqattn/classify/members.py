"""Which tokens each member network has: found on the cases it learns from, without those it is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from seqattn.classify.dilated import DilatedShapes
from seqattn.classify.motifs import MotifShapes
from seqattn.classify.series import Series
from seqattn.classify.shapes import shape_prior
from seqattn.classify.values import Intervals, interval_gain

__all__ = ["chosen_intervals", "joined", "left_out_by", "weighed", "without"]


def left_out_by(labels: np.ndarray, n_members: int, rng: np.random.Generator) -> np.ndarray:
    """Return which member does without each case, in equal parts of each class; -1 for none.

    With one member, and of a class with one case, none is left out.

    Parameters
    ----------
    labels
        Classes of the cases, as numbers.
    n_members
        How many members there are.
    rng
        Where the draws come from.
    """
    away = np.full(len(labels), -1)
    for code in np.unique(labels) if n_members > 1 else ():
        rows = rng.permutation(np.flatnonzero(labels == code))
        if len(rows) > 1:
            away[rows] = (np.arange(len(rows)) + rng.integers(n_members)) % n_members
    return away


def without(away: np.ndarray, n_members: int) -> Iterator[np.ndarray]:
    """Yield for each member the cases that it learns from.

    Parameters
    ----------
    away
        What :func:`left_out_by` returns.
    n_members
        How many members there are.
    """
    return (np.flatnonzero(away != member) for member in range(n_members))


def joined(parts: Sequence[DilatedShapes] | Sequence[MotifShapes]) -> DilatedShapes | MotifShapes:
    """Return the shapes of all members as one.

    Parameters
    ----------
    parts
        Shapes of each, of one kind.
    """

    def together(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], np.ndarray):
            return np.concatenate(values)
        return sum(values, ()) if isinstance(values[0], tuple) else values[0]

    return replace(parts[0], **{known.name: together(known.name) for known in fields(parts[0])})


def weighed(
    shapes: DilatedShapes, sizes: Sequence[int], distances: np.ndarray, labels: np.ndarray, away: np.ndarray
) -> DilatedShapes:
    """Return the shapes of all members with their priors, each from the cases of its member.

    Parameters
    ----------
    shapes
        The shapes, member by member.
    sizes
        How many each member has.
    distances
        Of all training cases to all shapes, ``(cases, shapes)``; NaN where nothing was observed.
    labels
        Classes of the cases.
    away
        What :func:`left_out_by` returns.
    """
    first, found = 0, []
    for rows, size in zip(without(away, len(sizes)), sizes, strict=True):
        own = slice(first, first + size)
        first += size
        source = np.searchsorted(rows, shapes.source[own])
        found.append(shape_prior(distances[rows, own], labels[rows], shapes.label[own], source))
    prior, inside, outside = (np.concatenate(part) for part in zip(*found, strict=True))
    return replace(shapes, prior=prior, inside=inside, outside=outside)


def chosen_intervals(
    intervals: Intervals,
    series: Series,
    labels: np.ndarray,
    constant: np.ndarray,
    most: int,
    away: np.ndarray,
    rngs: Sequence[np.random.Generator],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each member the intervals that say most about the classes of its cases, and their priors.

    Parameters
    ----------
    intervals
        All intervals, with what they say about all cases.
    series, labels
        Training cases and their classes.
    constant
        Which channels never change; they have no gain.
    most
        How many intervals a member has at most.
    away
        What :func:`left_out_by` returns.
    rngs
        Where the permutations of labels come from, one source per member.
    """
    if len(rngs) == 1:
        return [(np.arange(min(most, len(intervals))), intervals.prior[:most])]
    raw, found = intervals.raw(series), []
    for rows, rng in zip(without(away, len(rngs)), rngs, strict=True):
        prior = interval_gain(raw[rows], labels[rows], constant[intervals.channel], rng).max(axis=1)
        # The order of the intervals comes from all labels: it may not decide between equal ones.
        best = np.lexsort((intervals.place, intervals.parts, intervals.channel, -prior))[:most]
        found.append((best, prior[best]))
    return found
