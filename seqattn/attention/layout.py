"""Where the sequences of a packed batch lie, and how they are grouped into dense calls.

A packed batch holds its sequences end to end in one tensor, without padding. Kernels want rectangles. So the
sequences are sorted by length and cut into buckets of similar length; each bucket is gathered into a rectangle.
The index tensors for that depend on the lengths only, and are kept on the :class:`Layout`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from seqattn.errors import ParameterError

# A further rectangle costs as much as this many (query, key, head) pairs. Between 5,000 and 20,000 the time changes by
# less than 3 %; 2,500 and 40,000 lose 5 % (heads 1 to 4, width 16 to 64, 40 to 200 sequences, float32, one thread).
CALL_IN_PAIRS = 10_000


class Layout:
    """Return the places of the sequences in a packed tensor ``[tokens, heads, dim]``.

    Make one per batch and hand it to every layer: it keeps the index tensors that the kernels derive from it. The
    lengths are read from ``offsets`` once, here; on a GPU that is the only synchronisation.

    Parameters
    ----------
    offsets
        Int32 ``[sequences + 1]``, beginning at 0 and never decreasing: sequence ``b`` holds the tokens
        ``offsets[b]`` to ``offsets[b + 1] - 1``. Empty sequences are allowed. Not to be changed afterwards.
    max_len
        Number of tokens of the longest sequence, or more; ``None`` counts.

    Raises
    ------
    ParameterError
        The offsets are no offsets, or ``max_len`` is below the longest sequence.

    Examples
    --------
    >>> layout = Layout.of([3, 0, 2])
    >>> layout.offsets.tolist(), layout.max_len, len(layout)
    ([0, 3, 3, 5], 3, 3)
    """

    __slots__ = ("_kept", "lengths", "max_len", "n_tokens", "offsets")

    def __init__(self, offsets: Int[Tensor, "..."], max_len: int | None = None) -> None:
        if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.is_floating_point():
            raise ParameterError(
                f"offsets must be integers of shape [sequences + 1], got {offsets.dtype} of shape "
                f"{list(offsets.shape)}."
            )
        places = offsets.detach().cpu().numpy().astype(np.int64)
        lengths = np.diff(places)
        if places[0] != 0 or (lengths < 0).any():
            raise ParameterError(
                f"offsets must begin at 0 and never decrease, got {_short(places)}. Use Layout.of(lengths)."
            )
        longest = int(lengths.max(initial=0))
        if max_len is not None and max_len < longest:
            raise ParameterError(
                f"max_len={max_len} is below the longest sequence, which has {longest} tokens."
            )
        self.offsets = offsets.to(torch.int32)
        self.max_len = longest if max_len is None else int(max_len)
        self.lengths = lengths
        self.n_tokens = int(places[-1])
        self._kept: dict[Any, Any] = {}

    @classmethod
    def of(cls, lengths: Any, device: torch.device | str = "cpu") -> Layout:
        """Return the layout of sequences with these lengths.

        Parameters
        ----------
        lengths
            Number of tokens per sequence, not negative: list, array or tensor.
        device
            Where the packed tensors lie.
        """
        counts = np.asarray(lengths.cpu() if isinstance(lengths, Tensor) else lengths, dtype=np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(torch.from_numpy(offsets).to(device, torch.int32))

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"Layout({len(self)} sequences, {self.n_tokens} tokens, max_len={self.max_len})"

    def plan(self, keys: Layout, heads: int) -> Plan:
        """Return the buckets for queries of this layout and keys of another, or the same, one.

        Parameters
        ----------
        keys
            Layout of the keys; as many sequences as here.
        heads
            Number of query heads; with more heads padding costs more, so buckets get narrower.
        """
        found: Plan = self.keep((keys, heads), lambda: _plan(self, keys, CALL_IN_PAIRS / max(heads, 1)))
        return found

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was kept under a key; the first time, what ``make`` returns.

        Parameters
        ----------
        key
            Anything hashable on which the kept object depends besides the lengths.
        make
            Derives the object from this layout.
        """
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def keep_last(self, slot: str, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was kept in a slot if it was under this key; otherwise put there what ``make`` returns.

        Parameters
        ----------
        slot
            Name of the place; it holds one object.
        key
            Anything hashable on which the object depends besides the lengths, such as a pattern with labels.
        make
            Derives the object from this layout.
        """
        last, found = self._kept.get(slot, (None, None))
        if last != key:
            found = make()
            self._kept[slot] = (key, found)
        return found


@dataclass(frozen=True)
class Side:
    """Say which token stands in which slot of the rectangles, and the reverse; ``None`` for "the same order"."""

    token_of_slot: Tensor | None
    slot_of_token: Tensor | None
    pads: Tensor | None
    unused: Tensor | None


@dataclass(frozen=True)
class Bucket:
    """One rectangle: ``rows`` sequences of ``queries`` by ``keys`` slots; lengths are ``None`` where all are full."""

    rows: int
    queries: int
    keys: int
    query_lengths: Tensor | None
    key_lengths: Tensor | None
    aligned: bool
    sequences: Tensor
    every_row_sees: bool
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Plan:
    """The buckets of a packed call, with ``pairs`` the number of (query, key) pairs in all rectangles."""

    query: Side
    key: Side
    buckets: tuple[Bucket, ...]
    pairs: int


def _plan(queries: Layout, keys: Layout, call_in_pairs: float) -> Plan:
    n, m = queries.lengths, keys.lengths
    order = np.lexsort((-m, -n))
    order = order[(n[order] > 0) & (m[order] > 0)]
    bounds = cuts(n[order].tolist(), m[order].tolist(), call_in_pairs)
    device = queries.offsets.device
    buckets, wide_n, wide_m = [], np.zeros(len(order), np.int64), np.zeros(len(order), np.int64)
    for first, last in pairwise([*bounds, len(order)]):
        bucket = _bucket(order[first:last], n, m, device)
        wide_n[first:last], wide_m[first:last] = bucket.queries, bucket.keys
        buckets.append(bucket)
    query = _side(queries, order, wide_n)
    key = query if keys is queries else _side(keys, order, wide_m)
    return Plan(query, key, tuple(buckets), int((wide_n * wide_m).sum()))


def cuts(n: list[int], m: list[int], call_in_pairs: float) -> list[int]:
    """Return where buckets begin: one ends before its padding would cost more than a further call.

    For evenly spread lengths that is the best size: the cost per sequence of calls and padding is least where
    both are equal.
    """
    found: list[int] = []
    used = widest_n = widest_m = 0
    for place, (queries, keys) in enumerate(zip(n, m, strict=True)):
        grown = max(widest_m, keys)
        waste = (place - found[-1] + 1) * widest_n * grown - used - queries * keys if found else 0
        if not found or waste > call_in_pairs:
            found.append(place)
            used, widest_n, grown = 0, queries, keys
        used += queries * keys
        widest_m = grown
    return found


def _bucket(members: np.ndarray, n: np.ndarray, m: np.ndarray, device: torch.device) -> Bucket:
    queries, keys = n[members], m[members]

    def ragged(lengths: np.ndarray) -> Tensor | None:
        even = lengths.min() == lengths.max()
        return None if even else torch.from_numpy(lengths).to(device)

    return Bucket(
        rows=len(members),
        queries=int(queries.max()),
        keys=int(keys.max()),
        query_lengths=ragged(queries),
        key_lengths=ragged(keys),
        aligned=bool((queries == keys).all()),
        sequences=torch.from_numpy(members).to(device),
        every_row_sees=bool((queries <= keys).all()),
    )


def _side(layout: Layout, order: np.ndarray, width: np.ndarray) -> Side:
    """Return the index tensors for sequences ``order``, each in a row of ``width`` slots."""
    lengths = layout.lengths[order]
    if width.sum() == layout.n_tokens and (width == lengths).all() and (order[1:] > order[:-1]).all():
        return Side(None, None, None, None)
    first = np.cumsum(layout.lengths) - layout.lengths
    places = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
    ends = np.repeat(lengths, width) - 1
    tokens = np.repeat(first[order], width) + np.minimum(places, ends)
    pads = np.flatnonzero(places > ends)
    slots = np.zeros(layout.n_tokens, np.int64)
    filled = places <= ends
    slots[tokens[filled]] = np.flatnonzero(filled)
    used = np.zeros(layout.n_tokens, bool)
    used[tokens] = True
    unused = np.flatnonzero(~used)

    def tensor(index: np.ndarray) -> Tensor:
        return torch.from_numpy(index).to(layout.offsets.device)

    return Side(
        tensor(tokens),
        tensor(slots),
        tensor(pads) if len(pads) else None,
        tensor(unused) if len(unused) else None,
    )


class _Move(torch.autograd.Function):
    """Gather rows; the gradient is gathered back, which is cheaper than adding it up row by row."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, there: Tensor, back: Tensor, blank: Tensor | None, unused: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(there, back, blank, unused)
        return _gather(rows, there, blank)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        there, back, blank, unused = ctx.saved_tensors
        return _Move.apply(grads[0], back, there, unused, blank), None, None, None, None


def _gather(rows: Tensor, index: Tensor, blank: Tensor | None) -> Tensor:
    moved = rows.index_select(0, index)
    return moved if blank is None else moved.index_fill_(0, blank, 0)


def to_slots(
    rows: Shaped[Tensor, "tokens *rest"], side: Side, blank: bool = False
) -> Shaped[Tensor, "slots *rest"]:
    """Return the rows in the order of the rectangles.

    Padding holds a row of its own sequence, which is finite whenever the sequence is, or 0 if ``blank``. The gradient
    of padding is not passed on.
    """
    if side.token_of_slot is None or side.slot_of_token is None:
        return rows
    pads = side.pads if blank else None
    moved: Tensor = _Move.apply(rows, side.token_of_slot, side.slot_of_token, pads, side.unused)
    return moved


def to_tokens(slots: Shaped[Tensor, "slots *rest"], side: Side) -> Shaped[Tensor, "tokens *rest"]:
    """Return the rows in the order of the packed tensor, with 0 for tokens that are in no rectangle."""
    if side.token_of_slot is None or side.slot_of_token is None:
        return slots
    moved: Tensor = _Move.apply(slots, side.slot_of_token, side.token_of_slot, side.unused, side.pads)
    return moved


def _short(values: np.ndarray) -> str:
    text = ", ".join(str(value) for value in values[:8].tolist())
    return f"[{text}, ...]" if len(values) > 8 else f"[{text}]"
