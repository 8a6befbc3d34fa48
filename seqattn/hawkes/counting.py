"""Counts, exposures and gaps of the scored part of sequences: what simple processes are estimated from.

Sums run over blocks of whole sequences, so that the events may be more than memory holds. What needs all values side by
side (medians, laws of gaps, starting points) is taken from :func:`manageable`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqattn.data.blocks import BLOCK
from seqattn.data.sequences import Sequences
from seqattn.errors import DataError

# A type that never occurred counts as half an event, so that its first occurrence is improbable, not impossible.
UNSEEN = 0.5


def manageable(sequences: Sequences, n_events: int = BLOCK) -> Sequences:
    """Return the sequences, or so many of them, drawn with a fixed seed, as have two million events.

    The sampling error of an estimate from two million events is far below what any data set of that size tells.
    """
    return sequences.sampled(n_events)


def scored_exposure(sequences: Sequences) -> NDArray[np.float64]:
    """Return the length of each sequence's scored part: from T0, or the last event conditioned on, to T1."""
    begin = np.array(sequences.start, dtype=np.float64)
    held = np.flatnonzero(sequences.context)
    begin[held] = sequences.times[sequences.offsets[:-1][held] + sequences.context[held] - 1]
    return np.asarray(sequences.end) - begin


def scored_events(sequences: Sequences) -> NDArray[np.bool_]:
    """Return which events are scored: all but those that a window conditions on."""
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    position = np.arange(sequences.n_events) - sequences.offsets[:-1][rows]
    return position >= np.asarray(sequences.context)[rows]


def event_rates(sequences: Sequences) -> NDArray[np.float64]:
    """Return scored events per time unit of each type, types that never occur counted as half an event.

    Raises
    ------
    DataError
        The scored windows have no length.
    """
    exposure = scored_exposure(sequences).sum()
    if not exposure > 0:
        raise DataError(
            "The windows have no length: no sequence has two events or a window of its own. "
            "Give the windows with window=(T0, T1)."
        )
    return np.maximum(scored_counts(sequences), UNSEEN) / exposure


def scored_counts(sequences: Sequences) -> NDArray[np.int64]:
    """Return the number of scored events of each type."""
    counts = np.zeros(len(sequences.labels), dtype=np.int64)
    for block in sequences.blocks():
        counts += np.bincount(block.types[scored_events(block)], minlength=len(counts))
    return counts


def mean_positive_gap(sequences: Sequences) -> float:
    """Return the mean of the gaps longer than zero, the first of each sequence counted from T0."""
    total, count = 0.0, 0
    for block in sequences.blocks():
        previous = np.concatenate([[0.0], block.times[:-1]])
        full = block.lengths > 0
        previous[block.offsets[:-1][full]] = block.start[full]
        gaps: NDArray[np.float64] = block.times - previous
        positive = gaps[gaps > 0]
        total, count = total + float(positive.sum()), count + len(positive)
    return total / count if count else 1.0


def transitions(sequences: Sequences) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return last type, type and gap of every scored event; the beginning of a window is type K."""
    types, lengths = np.asarray(sequences.types, dtype=np.int64), sequences.lengths
    last, previous = np.concatenate([[0], types[:-1]]), np.concatenate([[0.0], sequences.times[:-1]])
    first = sequences.offsets[:-1][lengths > 0]
    last[first], previous[first] = len(sequences.labels), sequences.start[lengths > 0]
    scored = scored_events(sequences)
    return last[scored], types[scored], (sequences.times - previous)[scored]


def tails(sequences: Sequences) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return last type and length of the censored piece of every sequence."""
    full = sequences.lengths > 0
    last = np.full(len(sequences), len(sequences.labels), dtype=np.int64)
    since = np.array(sequences.start, dtype=np.float64)
    last[full] = sequences.types[sequences.offsets[1:][full] - 1]
    since[full] = sequences.times[sequences.offsets[1:][full] - 1]
    return last, np.asarray(sequences.end) - since


def recurrences(sequences: Sequences) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the type of every event that its sequence has seen before, and the time since then."""
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    order = np.lexsort((np.arange(sequences.n_events), sequences.types, rows))
    row, kind, time = rows[order], np.asarray(sequences.types)[order].astype(np.int64), sequences.times[order]
    again = (np.diff(row) == 0) & (np.diff(kind) == 0)
    return kind[1:][again], np.diff(time)[again]


def inner_gaps(sequences: Sequences) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the type of every event but the first of its sequence, and the time since the event before it."""
    inside = np.ones(sequences.n_events, dtype=bool)
    inside[sequences.offsets[:-1][sequences.lengths > 0]] = False
    gaps = np.diff(sequences.times, prepend=0.0)
    return np.asarray(sequences.types)[inside].astype(np.int64), gaps[inside]


def scored_gaps(sequences: Sequences) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the gaps before scored events, and the positive censored last pieces."""
    left = tails(sequences)[1]
    return transitions(sequences)[2], left[left > 0]


def grouped_median(
    group: NDArray[np.int64], values: NDArray[np.float64], size: int, otherwise: float
) -> NDArray[np.float64]:
    """Return the median of each group, and ``otherwise`` for empty ones."""
    order = np.lexsort((values, group))
    ranked, bounds = values[order], np.searchsorted(group[order], np.arange(size + 1))
    low, high = bounds[:-1], bounds[1:]
    full = high > low
    answer = np.full(size, otherwise)
    middle = (low + high - 1)[full]
    answer[full] = (ranked[middle // 2] + ranked[(middle + 1) // 2]) / 2
    return answer
