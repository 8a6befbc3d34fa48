"""What changes when one event is left out: copies of sequences without it, and a model's answers on both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from seqattn.data.batches import EventBatch
from seqattn.data.sequences import Sequences
from seqattn.hawkes.intensity import Intensity

# How a model answers: batches of sequences with the intensities after each token.
States = Callable[[Sequences], Iterator[tuple[EventBatch, Intensity]]]

# Most events in the copies that exist at one time (12 MB), and most numbers of one answer (16 MB).
_EVENTS = 1_000_000
_CELLS = 2_000_000


def rows_of(sequences: Sequences, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sequence in which each event stands, events being numbered through all sequences."""
    return np.searchsorted(sequences.offsets, places, side="right") - 1


def without_event(
    sequences: Sequences, places: NDArray[np.int64], until: NDArray[np.float64] | None = None
) -> Sequences:
    """Return one copy of a sequence for each event in ``places``, without that event; all else stays.

    Parameters
    ----------
    sequences
        Where the events come from.
    places
        Events to leave out, numbered through all sequences.
    until
        Time at which each copy ends, not before its event; later events are dropped. By default the window's end.

    Returns
    -------
    As many sequences as places. T0 stays, also where it was taken from the event that is left out. An event of the
    history that is left out counts as history no more.

    Examples
    --------
    >>> data = Sequences.from_lists([([0.5, 2.0, 2.5], ["a", "b", "a"])], window=(0, 3))
    >>> without_event(data, np.array([1])).to_frame()["t"].to_list()
    [0.5, 2.5]
    """
    row = rows_of(sequences, places)
    begin, stop = sequences.offsets[:-1][row], sequences.offsets[1:][row]
    end = sequences.end[row] if until is None else until
    stop = stop if until is None else _count_below(sequences.times, begin, stop, end, "right")
    lengths = stop - begin - 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    event = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], lengths)
    event += event >= np.repeat(places, lengths)
    history = begin + sequences.context[row]
    return replace(
        sequences,
        times=sequences.times[event],
        types=sequences.types[event],
        offsets=offsets,
        start=sequences.start[row],
        end=end,
        context=np.minimum(history, stop) - begin - (places < history),
        ids=sequences.ids[row],
        window="given",
    )


def change_of_counts(
    states: States, sequences: Sequences, places: NDArray[np.int64], horizon: float, scale: float
) -> NDArray[np.float64]:
    """Return how many events of each type are expected more with each event than without it.

    Parameters
    ----------
    states
        The model's answers.
    sequences
        Where the events come from.
    places
        The events, numbered through all sequences.
    horizon
        Length of the time after each event in which others are counted, in the user's unit.
    scale
        The user's time units per model unit.

    Returns
    -------
    Array of shape (places, types).
    """
    begin = sequences.times[places]
    end = begin + horizon
    copies = without_event(sequences, places, end)
    row = rows_of(sequences, places)
    used, place = np.unique(row, return_inverse=True)
    present = _expected_counts(states, sequences.select(used), place, begin, end, scale)
    return present - _expected_counts(states, copies, np.arange(len(places)), begin, end, scale)


def change_of_rate(
    states: States,
    sequences: Sequences,
    places: NDArray[np.int64],
    kind: int,
    lags: NDArray[np.float64],
    scale: float,
) -> NDArray[np.float64]:
    """Return by how much the intensity of one type is higher with each event than without it.

    Parameters
    ----------
    states, sequences, places, scale
        As in :func:`change_of_counts`.
    kind
        Code of the type whose intensity is asked for.
    lags
        Times since the event, in the user's unit.

    Returns
    -------
    Array of shape (places, lags), in events per time unit of the user.
    """
    at = sequences.times[places][:, None] + lags
    copies = without_event(sequences, places, at[:, -1])
    used, place = np.unique(rows_of(sequences, places), return_inverse=True)
    present = _rates_at(states, sequences.select(used), place, at, kind, scale)
    return present - _rates_at(states, copies, np.arange(len(places)), at, kind, scale)


def groups(
    sequences: Sequences, places: NDArray[np.int64], width: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the events in groups whose copies, and answers of ``width`` numbers each, fit in memory.

    Parameters
    ----------
    sequences
        Where the events come from.
    places
        The events, numbered through all sequences.
    width
        How many numbers are asked for per event.

    Yields
    ------
    Numbers within ``places``, and the events themselves.
    """
    share = np.maximum(sequences.lengths[rows_of(sequences, places)] / _EVENTS, width / _CELLS)
    number = np.floor(np.cumsum(share) - share)
    for chosen in np.split(np.arange(len(places)), np.flatnonzero(np.diff(number)) + 1):
        yield chosen, places[chosen]


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Stretches of time cut at the events: which stretch, whose token drives it, from when on, how long."""

    stretch: NDArray[np.int64]
    row: NDArray[np.int64]
    token: NDArray[np.int64]
    since: NDArray[np.float64]
    length: NDArray[np.float64]


def _pieces(
    sequences: Sequences, rows: NDArray[np.int64], begin: NDArray[np.float64], end: NDArray[np.float64]
) -> _Pieces:
    """Cut the stretches (begin, end] of given sequences at their events, in float64."""
    low, high = sequences.offsets[:-1][rows], sequences.offsets[1:][rows]
    first, last = (_count_below(sequences.times, low, high, at, "right") - low for at in (begin, end))
    count = last - first + 1
    stretch = np.repeat(np.arange(len(rows)), count)
    token = np.arange(len(stretch)) + np.repeat(first - np.cumsum(count) + count, count)
    row, begin, end = rows[stretch], begin[stretch], end[stretch]
    following = low[stretch] + token  # the event that ends the interval after the token
    times = np.append(sequences.times, np.inf)
    at = np.where(token > 0, times[following - 1], sequences.start[row])
    until = np.where(following < high[stretch], times[following], np.inf)
    since = np.maximum(at, begin) - at
    length = np.maximum(np.minimum(until, end) - np.maximum(at, begin), 0.0)
    return _Pieces(stretch, row, token, since, length)


@torch.no_grad()
def _expected_counts(
    states: States,
    sequences: Sequences,
    rows: NDArray[np.int64],
    begin: NDArray[np.float64],
    end: NDArray[np.float64],
    scale: float,
) -> NDArray[np.float64]:
    """Integrate the intensities of all types over stretches of time; shape (stretches, types)."""
    parts = _pieces(sequences, rows, begin, end)
    answer = torch.zeros(len(rows), sequences.n_types, dtype=torch.float64)
    for batch, intensity in states(sequences):
        for chosen, tokens in _own_tokens(batch, intensity, len(sequences), parts.row, parts.token):
            since, length = (_model_times(batch, part[chosen], scale) for part in (parts.since, parts.length))
            count = intensity.select(tokens).shift(since).compensator_by_type(length)
            answer.index_add_(0, torch.from_numpy(parts.stretch[chosen]), count.double().cpu())
    return answer.numpy()


@torch.no_grad()
def _rates_at(
    states: States,
    sequences: Sequences,
    rows: NDArray[np.int64],
    at: NDArray[np.float64],
    kind: int,
    scale: float,
) -> NDArray[np.float64]:
    """Return the intensity of one type at times (rows, lags), from the events strictly before them."""
    row, time = np.repeat(rows, at.shape[1]), at.ravel()
    low, high = sequences.offsets[:-1][row], sequences.offsets[1:][row]
    token = _count_below(sequences.times, low, high, time, "left") - low
    times = np.append(sequences.times, np.inf)
    since = time - np.where(token > 0, times[low + token - 1], sequences.start[row])
    answer = np.empty(len(time))
    for batch, intensity in states(sequences):
        for chosen, tokens in _own_tokens(batch, intensity, len(sequences), row, token):
            elapsed = _model_times(batch, since[chosen], scale)
            log_rate = intensity.log_rate(elapsed, torch.full_like(tokens, kind), tokens)
            answer[chosen] = log_rate.double().exp().cpu().numpy() / scale
    return answer.reshape(at.shape)


def _own_tokens(
    batch: EventBatch,
    intensity: Intensity,
    n_sequences: int,
    row: NDArray[np.int64],
    token: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Yield which of the (row, token) pairs lie in a batch, and where, a bounded number at a time."""
    place = np.full(n_sequences, -1)
    place[batch.rows.cpu().numpy()] = np.arange(len(batch))
    mine = np.flatnonzero(place[row] >= 0)
    first = batch.offsets.cpu().numpy().astype(np.int64)
    size = max(1, _CELLS // intensity.n_types)
    for begin in range(0, len(mine), size):
        chosen = mine[begin : begin + size]
        yield chosen, torch.from_numpy(first[place[row[chosen]]] + token[chosen]).to(batch.until.device)


def _model_times(batch: EventBatch, values: NDArray[np.float64], scale: float) -> torch.Tensor:
    return torch.from_numpy(values / scale).to(batch.until)


def _count_below(
    values: NDArray[np.float64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    at: NDArray[np.float64],
    side: str,
) -> NDArray[np.int64]:
    """Search each number in a sorted stretch of values of its own, as ``numpy.searchsorted`` does in one."""
    low, high = low.copy(), high.copy()
    while (is_open := low < high).any():
        middle = (low + high) // 2
        value = values[np.minimum(middle, len(values) - 1)]
        below = is_open & ((value <= at) if side == "right" else (value < at))
        low = np.where(below, middle + 1, low)
        high = np.where(is_open & ~below, middle, high)
    return low
