"""Batches of sequences for the models: packed tokens, planned by a token budget."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from seqattn.data.sequences import Sequences
from seqattn.errors import ParameterError

__all__ = ["NEVER", "Batches", "EventBatch", "batches", "pack", "plan_batches"]

# Time in model units since an event that did not happen. Finite, so that gradients are too.
NEVER = 1e6

# Sequences are sorted by length within pools of this many batches: long pools waste less padding, short ones
# mix better. Packed batches hold no padding, so a moderate pool is enough for even work per batch.
_POOL = 64


@dataclass(frozen=True)
class EventBatch:
    """Some sequences side by side: their tokens in one row, without padding.

    Each sequence has one token more than events: the start token at T0, then its events. The interval after a token
    reaches to the next event, and after the last token to T1.

    Attributes
    ----------
    offsets
        Tokens of sequence i stand at ``offsets[i]`` to ``offsets[i + 1]`` (int32).
    max_len
        Number of tokens of the longest sequence.
    types
        Type of each token; the number of types at start tokens.
    gap
        Time since the previous token, in model units; 0 at start tokens.
    elapsed
        Time since T0, in model units.
    age
        Time since the first event of the sequence, in model units; 0 at start tokens.
    until
        Length of the interval after the token, in model units.
    target
        Type of the next event, -1 at the last token of a sequence.
    scored
        Whether the interval after the token counts in the likelihood.
    position
        Position of the token in its sequence, 0 at start tokens.
    rows
        Number of each sequence in the :class:`Sequences` that it came from.
    since
        Time since the last event of each type up to and including the token, in model units, at most ``NEVER``, which
        also stands where there was none; ``None`` unless asked for.
    """

    offsets: Int[Tensor, " bounds"]
    max_len: int
    types: Int[Tensor, " tokens"]
    gap: Float[Tensor, " tokens"]
    elapsed: Float[Tensor, " tokens"]
    age: Float[Tensor, " tokens"]
    until: Float[Tensor, " tokens"]
    target: Int[Tensor, " tokens"]
    scored: Bool[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]
    rows: Int[Tensor, " batch"]
    since: Float[Tensor, "tokens types"] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_tokens(self) -> int:
        """Number of tokens, start tokens included."""
        return len(self.types)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> EventBatch:
        """Return the batch on a device, with times in ``dtype`` where that is given.

        Parameters
        ----------
        device
            Where to put the tensors.
        dtype
            Kind of the times; None leaves it.
        """
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                kind = dtype if value.is_floating_point() else None
                moved[field.name] = value.to(device=device, dtype=kind, non_blocking=True)
        return replace(self, **moved)

    def padded(
        self, values: Shaped[Tensor, "tokens *rest"], fill: float | int = 0.0
    ) -> Shaped[Tensor, "batch length *rest"]:
        """Return values per token as one row per sequence, padded on the right.

        Parameters
        ----------
        values
            One value, or array of values, per token.
        fill
            What stands behind the end of a sequence.

        Returns
        -------
        Shape (sequences, ``max_len``, ...).
        """
        counts = self.offsets.diff().long()
        row = torch.repeat_interleave(torch.arange(len(counts), device=values.device), counts)
        grid = values.new_full((len(counts), self.max_len, *values.shape[1:]), fill)
        return grid.index_put((row, self.position), values)


def plan_batches(
    lengths: np.ndarray | Sequence[int], budget: int, *, seed: int | None = None, epoch: int = 0
) -> list[np.ndarray]:
    """Divide sequences into batches of at most ``budget`` tokens, of similar length within a batch.

    Parameters
    ----------
    lengths
        Number of tokens of each sequence.
    budget
        Most tokens in a batch. A longer sequence is a batch of its own.
    seed
        Mixes the sequences and the order of the batches; the same seed and epoch give the same plan. None: sorted
        by length.
    epoch
        Number of the pass over the data, which gives each pass another mixture.

    Returns
    -------
    For each batch the numbers of its sequences; each sequence stands in exactly one batch.

    Raises
    ------
    ParameterError
        The budget is below 1, or the seed or epoch negative.

    Examples
    --------
    >>> [batch.tolist() for batch in plan_batches(np.array([5, 2, 3, 9]), budget=6)]
    [[1, 2], [0], [3]]
    """
    if budget < 1:
        raise ParameterError(f"A batch must hold at least 1 token, not {budget!r}.")
    sizes = np.asarray(lengths, dtype=np.int64)
    if seed is None:
        return _filled(np.argsort(sizes, kind="stable"), sizes, budget)
    if seed < 0 or epoch < 0:
        raise ParameterError(f"seed={seed!r} and epoch={epoch!r} must not be negative.")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(sizes))
    # A pool is told by the tokens before a sequence in the mixed order; lexsort keeps that order within ties.
    pool = (np.cumsum(sizes[order]) - 1) // (_POOL * budget)
    # Every other pool runs from long to short: a batch across two pools then meets equal lengths, not the extremes.
    rising = np.where(pool % 2 == 0, sizes[order], -sizes[order])
    plan = _filled(order[np.lexsort((rising, pool))], sizes, budget)
    return [plan[i] for i in rng.permutation(len(plan))]


def _filled(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Fill batches in order, each up to the budget."""
    total = np.concatenate([[0], np.cumsum(lengths[order])])
    plan, begin = [], 0
    while begin < len(order):
        end = int(np.searchsorted(total, total[begin] + budget, side="right")) - 1
        end = max(end, begin + 1)
        plan.append(order[begin:end])
        begin = end
    return plan


def pack(
    sequences: Sequences,
    rows: np.ndarray | Sequence[int],
    *,
    scale: float | int = 1.0,
    dtype: torch.dtype = torch.float32,
    recency: bool = False,
) -> EventBatch:
    """Return some sequences as one batch of packed tokens.

    Differences of times are taken in float64 and divided by ``scale`` before they are cast, so that large times
    (seconds since 1970) lose no digit of their gaps.

    Parameters
    ----------
    sequences
        Where the sequences come from.
    rows
        Numbers of the sequences.
    scale
        Length of one model unit, in the user's unit; positive.
    dtype
        Kind of the times in the batch.
    recency
        Whether the batch holds the time since the last event of each type.

    Examples
    --------
    >>> data = Sequences.from_lists([([1.0, 4.0], [0, 1])], window=(0, 10))
    >>> batch = pack(data, np.array([0]))
    >>> batch.types.tolist(), batch.until.tolist(), batch.target.tolist()
    ([2, 0, 1], [1.0, 3.0, 6.0], [0, 1, -1])
    """
    if not scale > 0:
        raise ParameterError(f"scale={scale!r} must be positive.")
    rows = np.array(rows, dtype=np.int64)
    # Of these sequences only: a batch must not cost more where there are more sequences.
    lengths = sequences.offsets[rows + 1] - sequences.offsets[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
    number = np.repeat(np.arange(len(rows)), lengths + 1)
    position = np.arange(offsets[-1]) - offsets[number]
    is_event = position > 0
    event = (sequences.offsets[rows][number] + position - 1)[is_event]
    start, end = np.asarray(sequences.start[rows]), np.asarray(sequences.end[rows])
    times, types = start[number], np.full(len(number), sequences.n_types, dtype=np.int64)
    times[is_event], types[is_event] = sequences.times[event], sequences.types[event]
    last = offsets[1:] - 1
    until, target = np.empty_like(times), np.full(len(types), -1, dtype=np.int64)
    until[:-1], target[:-1] = np.diff(times), types[1:]
    until[last], target[last] = end - times[last], -1
    gap = np.zeros_like(times)
    gap[is_event] = np.diff(times, prepend=0.0)[is_event]
    begun = np.minimum(offsets[:-1] + 1, last)[number]  # the token of the first event, or the start token
    seconds = {"gap": gap, "elapsed": times - start[number], "until": until}
    seconds["age"] = np.where(is_event, times - times[begun], 0.0)
    if recency:
        since = _recency(times, types, offsets[:-1][number], sequences.n_types)
        seconds["since"] = np.minimum(since, NEVER * scale)
    return EventBatch(
        offsets=torch.from_numpy(offsets.astype(np.int32)),
        max_len=int(lengths.max(initial=-1)) + 1,
        types=torch.from_numpy(types),
        target=torch.from_numpy(target),
        scored=torch.from_numpy(position >= sequences.context[rows][number]),
        position=torch.from_numpy(position),
        rows=torch.from_numpy(rows),
        **{name: torch.from_numpy(values / scale).to(dtype) for name, values in seconds.items()},
    )


def _recency(times: np.ndarray, types: np.ndarray, begin: np.ndarray, n_types: int) -> np.ndarray:
    """Return the time since the last event of each type, infinite where there was none."""
    latest = np.repeat(begin[:, None], n_types, axis=1)
    token = np.flatnonzero(types < n_types)
    latest[token, types[token]] = token
    # Start tokens of later sequences stand behind all earlier tokens, so that nothing is carried over.
    np.maximum.accumulate(latest, axis=0, out=latest)
    return np.where(latest > begin[:, None], times[:, None] - times[latest], np.inf)


class Batches:
    """A list of batches that are packed only when they are asked for.

    Parameters
    ----------
    sequences
        Where the sequences come from.
    plan
        Numbers of the sequences of each batch.
    scale
        Length of one model unit, in the user's unit.
    dtype
        Kind of the times in the batches.
    recency
        Whether the batches hold the time since the last event of each type.
    """

    def __init__(
        self,
        sequences: Sequences,
        plan: list[np.ndarray],
        scale: float | int,
        dtype: torch.dtype,
        recency: bool = False,
    ) -> None:
        self.sequences = sequences
        self.plan = plan
        self.scale = scale
        self.dtype = dtype
        self.recency = recency

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, i: int | np.integer) -> EventBatch:
        return pack(self.sequences, self.plan[i], scale=self.scale, dtype=self.dtype, recency=self.recency)

    def __iter__(self) -> Iterator[EventBatch]:
        return (self[i] for i in range(len(self)))

    def share(self, rank: int, size: int) -> Batches:
        """Return the part of each batch that one of several processes computes.

        Parameters
        ----------
        rank
            Number of the process, from 0.
        size
            Number of processes.

        Returns
        -------
        As many batches, with about the same number of tokens in the parts of all processes. Together the parts hold
        each sequence once; a part is empty where a batch has fewer sequences than there are processes.

        Examples
        --------
        >>> data = Sequences.from_lists([([1.0, 4.0], [0, 1]), ([2.0], [0]), ([3.0], [0])], window=(0, 10))
        >>> whole = batches(data, budget=9)
        >>> [whole.share(rank, 2)[0].rows.tolist() for rank in range(2)]
        [[0], [1, 2]]
        """
        lengths = self.sequences.lengths + 1
        parts = [rows[_portion(lengths[rows], rank, size)] for rows in self.plan]
        return Batches(self.sequences, parts, self.scale, self.dtype, self.recency)


def _portion(lengths: np.ndarray, rank: int, size: int) -> np.ndarray:
    """Return what a process gets when each sequence, long ones first, goes to the one that has the least."""
    loads = [(0, number) for number in range(size)]
    own = []
    for place in np.argsort(-lengths, kind="stable").tolist():
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + int(lengths[place]), number))
        if number == rank:
            own.append(place)
    return np.sort(np.array(own, dtype=np.int64))


def batches(
    sequences: Sequences,
    budget: int,
    *,
    scale: float | int = 1.0,
    dtype: torch.dtype = torch.float32,
    recency: bool = False,
    seed: int | None = None,
    epoch: int = 0,
) -> Batches:
    """Return all sequences in batches of at most ``budget`` tokens.

    Parameters
    ----------
    sequences
        What to divide.
    budget
        Most tokens in a batch, start tokens included.
    scale
        Length of one model unit, in the user's unit.
    dtype
        Kind of the times in the batches.
    recency
        As in :func:`pack`.
    seed, epoch
        As in :func:`plan_batches`.

    Returns
    -------
    A list-like object of :class:`EventBatch`, packed when asked for.

    Examples
    --------
    >>> data = Sequences.from_lists([([1.0, 4.0], [0, 1]), ([2.0], [0])], window=(0, 10))
    >>> [batch.n_tokens for batch in batches(data, budget=4)]
    [2, 3]
    """
    plan = plan_batches(sequences.lengths + 1, budget, seed=seed, epoch=epoch)
    return Batches(sequences, plan, scale, dtype, recency)
