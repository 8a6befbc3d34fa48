"""Which tokens each member network has: found on the cases it learns from, without those it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from seqattn.classify.dilated import DilatedShapes
from seqattn.classify.motifs import MotifShapes
from seqattn.classify.recipe import Recipe, generator
from seqattn.classify.series import Series
from seqattn.classify.shapes import shape_prior
from seqattn.classify.values import Intervals, interval_gain

__all__ = ["chosen_intervals", "joined", "left_out_by", "member_shapes", "weighed", "without"]


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


def member_shapes(
    series: Series,
    labels: np.ndarray,
    channels: np.ndarray,
    recipe: Recipe,
    seed: int,
    away: np.ndarray,
    report: Callable[[str], None] | None,
) -> list[DilatedShapes] | list[MotifShapes]:
    """Return the shapes that are tokens of each member; without a channel that changes there are none.

    Parameters
    ----------
    series, labels
        Training cases and their classes.
    channels
        Numbers of the channels that change.
    recipe
        How tokens are made.
    seed
        Of all draws.
    away
        What :func:`left_out_by` returns.
    report
        Told what is being done.
    """
    rngs = [generator(seed, f"shapes {member}") for member in range(recipe.n_members)]
    is_wanted, parts = len(channels) > 0 and recipe.tokens != "value", without(away, recipe.n_members)
    if recipe.shapes == "motif" and is_wanted:
        cases = zip(parts, rngs, strict=True)
        return [_motifs(series, labels, rows, channels, recipe, rng, report) for rows, rng in cases]
    n_shapes = recipe.shape_tokens if is_wanted else 0
    if report is not None and is_wanted:
        report(f"{n_shapes * recipe.n_members:,} dilated shapes in {len(series):,} cases")
    return [
        DilatedShapes.draw(series, labels, n_shapes, channels, rng, among=rows)
        for rows, rng in zip(parts, rngs, strict=True)
    ]


def _motifs(
    series: Series,
    labels: np.ndarray,
    rows: np.ndarray,
    channels: np.ndarray,
    recipe: Recipe,
    rng: np.random.Generator,
    report: Callable[[str], None] | None,
) -> MotifShapes:
    """Find the motifs of some cases."""
    found = MotifShapes.find(
        series.select(rows),
        labels[rows],
        int(labels.max()) + 1,
        window_fractions=recipe.window_fractions,
        motifs_per_cell=recipe.motifs_per_cell,
        match=recipe.match,
        locality=recipe.locality,
        profile_cap=recipe.profile_cap,
        shape_tokens=recipe.shape_tokens,
        is_constant=np.isin(np.arange(series.n_channels), channels, invert=True),
        rng=rng,
        n_jobs=recipe.n_jobs,
        report=report,
    )
    return replace(found, source=rows[found.source])
