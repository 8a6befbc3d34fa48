"""How a pattern is computed: rows put into an order, cut into segments, attended inside a window, and put back.

A :class:`Run` says the order, the segments and the window; a pattern is one run or several whose pairs of query and
key are disjoint. A run is cut into tiles: some queries that follow each other, with all keys that one of them sees.
Tiles whose queries see their keys in the same way share one mask and one fused call. Everything here is known from
lengths and labels alone, and is numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqattn.attention.layout import CALL_IN_PAIRS, Layout, cuts

__all__ = ["Band", "Front", "Grid", "Pairs", "Plan", "Run", "Shifted", "Span", "Tile", "make_plan"]

# Numbers of keys in one call, all heads and features: what is gathered for it stays in the cache.
CALL_SIZE = 2**18
# With 32 or 128 queries in a tile, windows of 128 keys take 1.1 to 1.3 times as long (256 to 4096 tokens).
BLOCK, SMALL_BLOCK = 64, 32
# Queries that look at a few first keys only: a tile costs little more than its queries.
FRONT_BLOCK = 256


class Pairs(NamedTuple):
    """Pairs of query and key: their places in a sequence of ``n`` tokens, their tokens, and the head, if it matters.

    Tensors that broadcast.
    """

    i: Any
    j: Any
    n: Any
    query: Any
    key: Any
    head: Any


class Rule(ABC):
    """Says of pairs whether they are visible."""

    @abstractmethod
    def shows(self, pairs: Pairs) -> Any:
        """Return which pairs are visible.

        Parameters
        ----------
        pairs
            Queries and keys of one sequence each.
        """


class Span(ABC):
    """A window inside a segment: which keys queries may see, by their places in the segment."""

    @property
    def front(self) -> int:
        """Number of first keys that every query sees besides its window."""
        return 0

    @property
    def block(self) -> int:
        """Number of queries in a tile."""
        return BLOCK

    @abstractmethod
    def reach(self, begin: Any, end: Any, n: Any) -> tuple[Any, Any]:
        """Return the first key that one of the queries ``begin`` to ``end - 1`` sees, and the one behind the last."""

    @abstractmethod
    def sees(self, i: Any, j: Any, n: Any) -> Any:
        """Return which keys the queries see, in a segment of ``n`` tokens."""

    def is_whole(self, n: np.ndarray) -> np.ndarray:
        """Return which segments are a single tile."""
        return n <= self.block

    def kind(self, begin: np.ndarray, end: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return a number per tile; tiles with equal ones, as far from their first key, see alike."""
        return np.zeros_like(begin)


@dataclass(frozen=True)
class Band(Span):
    """A window of ``left`` keys before and ``right`` after the query, and the first ``prefix`` keys.

    ``left`` and ``right`` are ``None`` where the window never ends; ``left`` is -1 where there is none.
    """

    left: int | None
    right: int | None
    prefix: int = 0

    @property
    def front(self) -> int:
        """Number of first keys that every query sees besides its window."""
        return self.prefix

    @property
    def block(self) -> int:
        """Number of queries in a tile."""
        return SMALL_BLOCK if self._width() <= SMALL_BLOCK else BLOCK

    def _width(self) -> float:
        return sum(float("inf") if side is None else side for side in (self.left, self.right))

    def reach(self, begin: Any, end: Any, n: Any) -> tuple[Any, Any]:
        start = begin * 0 if self.left is None else np.maximum(begin - self.left, 0)
        return start, n if self.right is None else np.minimum(end + self.right, n)

    def sees(self, i: Any, j: Any, n: Any) -> Any:
        seen = (i == i) & (j == j)
        if self.left is not None:
            seen = seen & (i - j <= self.left)
        if self.right is not None:
            seen = seen & (j - i <= self.right)
        return seen | (j < self.prefix)

    def is_whole(self, n: np.ndarray) -> np.ndarray:
        # Up to here a further tile saves less than its keys cost to gather.
        return n <= self.block + max(self.block, self._width())


@dataclass(frozen=True)
class Front(Span):
    """The first ``size`` keys."""

    size: int

    @property
    def block(self) -> int:
        """Number of queries in a tile."""
        return FRONT_BLOCK

    def reach(self, begin: Any, end: Any, n: Any) -> tuple[Any, Any]:
        return begin * 0, np.minimum(self.size, n)

    def sees(self, i: Any, j: Any, n: Any) -> Any:
        return (i == i) & (j < self.size)


@dataclass(frozen=True)
class Grid(Span):
    """Blocks of ``size`` tokens; a query sees its own block and ``halo`` keys on either side of it."""

    size: int
    halo: int

    @property
    def block(self) -> int:
        """Number of queries in a tile."""
        return self.size

    def reach(self, begin: Any, end: Any, n: Any) -> tuple[Any, Any]:
        first = begin // self.size * self.size
        last = -(-end // self.size) * self.size
        return np.maximum(first - self.halo, 0), np.minimum(last + self.halo, n)

    def sees(self, i: Any, j: Any, n: Any) -> Any:
        first = i // self.size * self.size
        return (j >= first - self.halo) & (j < first + self.size + self.halo)


@dataclass(frozen=True)
class Shifted(Span):
    """The ``size`` keys nearest to the query, fewer only in a shorter sequence: windows are shifted at both ends."""

    size: int

    @property
    def block(self) -> int:
        """Number of queries in a tile."""
        return SMALL_BLOCK if self.size <= SMALL_BLOCK else BLOCK

    def _first(self, i: Any, n: Any) -> Any:
        last = n - self.size
        return _between(i - self.size // 2, last * (last > 0))

    def reach(self, begin: Any, end: Any, n: Any) -> tuple[Any, Any]:
        return self._first(begin, n), np.minimum(self._first(end - 1, n) + self.size, n)

    def sees(self, i: Any, j: Any, n: Any) -> Any:
        first = self._first(i, n)
        return (j >= first) & (j < first + self.size)

    def is_whole(self, n: np.ndarray) -> np.ndarray:
        return n <= self.block + max(self.block, self.size)

    def kind(self, begin: np.ndarray, end: np.ndarray, n: np.ndarray) -> np.ndarray:
        half = self.size // 2
        inner = (begin >= half) & (end + half <= n)
        # At an end of the sequence the rest of it decides.
        return np.where(inner, 0, 1 + begin * (n.max(initial=0) + 1) + n)


def _between(x: Any, high: Any) -> Any:
    """Return numbers or tensors cut to the range from 0 to ``high``."""
    x = x * (x > 0)
    return x + (high - x) * (x > high)


@dataclass(frozen=True, eq=False)
class Run:
    """Pairs of query and key: inside segments, inside a window of places there.

    Parameters
    ----------
    lengths
        Number of rows of each segment.
    span
        The window.
    order
        The row at each place, segment after segment, inside a segment in the order of time; ``None`` for all rows as
        they are.
    by_head
        Whether a row is a pair of token and head (``token * heads + head``) and not a token with all its heads.
    hides, keeps
        Pairs that one of the first shows are left out, and those that one of the second does not show.
    """

    lengths: np.ndarray
    span: Span
    order: np.ndarray | None = None
    by_head: bool = False
    hides: tuple[Rule, ...] = ()
    keeps: tuple[Rule, ...] = ()

    def with_heads(self, heads: int) -> Run:
        """Return the same pairs for rows that are pairs of token and head."""
        if self.by_head:
            return self
        order = np.arange(int(self.lengths.sum())) if self.order is None else self.order
        each = (order * heads + np.arange(heads)[:, None]).ravel()
        lengths = np.tile(self.lengths, heads)
        return Run(lengths, self.span, each, True, self.hides, self.keeps)


@dataclass(frozen=True, eq=False)
class Tile:
    """Some tiles as one rectangle: which rows stand in its slots, and what its queries see.

    ``silent`` are the slots of queries whose result does not count: padding, and those that see no key. ``lead`` is
    the distance from the first key to the first query, in tokens, where keys and queries follow each other; else
    ``None``.
    """

    rows: int
    queries: Tensor
    keys: Tensor
    silent: Tensor | None
    visible: Tensor | None
    triangular: bool
    lead: int | None = None
    memo: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return what to add to the scores; kept where all tiles of the rectangle share it."""
        if self.visible is None:
            return None
        if dtype in self.memo:
            return self.memo[dtype]
        made = torch.zeros(self.visible.shape, dtype=dtype).masked_fill_(~self.visible, -torch.inf)
        if self.visible.shape[0] == 1:
            self.memo[dtype] = made
        return made

    def rectangle(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return these rows as ``[tiles, heads, length, dim]``."""
        return x.index_select(0, rows).view(self.rows, -1, *x.shape[1:]).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Part:
    """The tiles of a run, and the slot in which each row is a query; -1 where it is in none or sees nothing."""

    tiles: tuple[Tile, ...]
    slot_of_row: Tensor
    is_full: bool


class Places(NamedTuple):
    """Per token: its place in its sequence, and the length of that; and how many rows a token has."""

    place: Tensor
    length: Tensor
    rows: int

    @classmethod
    def of(cls, layout: Layout, rows: int) -> Places:
        """Return the places of all tokens."""
        lengths = layout.lengths
        place = np.arange(layout.n_tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return cls(torch.from_numpy(place), torch.from_numpy(np.repeat(lengths, lengths)), rows)

    def pairs(self, queries: np.ndarray, keys: np.ndarray) -> Pairs:
        """Return all pairs in tiles of rows: ``[tiles, queries, keys]``."""
        rows, columns = torch.from_numpy(queries)[:, :, None], torch.from_numpy(keys)[:, None, :]
        query, key = rows // self.rows, columns // self.rows
        return Pairs(self.place[query], self.place[key], self.length[query], query, key, rows % self.rows)


@dataclass(frozen=True, eq=False)
class Plan:
    """All tiles of a call, run by run."""

    parts: tuple[Part, ...]
    by_head: bool
    places: Places

    def distances(self, tile: Tile) -> Tensor:
        """Return how many tokens each key stands before its query: ``[tiles or 1, queries, keys]``."""
        queries, keys = len(tile.queries) // tile.rows, len(tile.keys) // tile.rows
        if tile.lead is not None:
            return (torch.arange(queries)[:, None] + tile.lead - torch.arange(keys))[None]
        place, rows = self.places.place, self.places.rows
        i = place[tile.queries.div(rows, rounding_mode="floor")].view(tile.rows, -1, 1)
        j = place[tile.keys.div(rows, rounding_mode="floor")].view(tile.rows, 1, -1)
        return i - j

    def heads(self, tile: Tile) -> Tensor:
        """Return the head of each tile, where rows are pairs of token and head."""
        return tile.queries.view(tile.rows, -1)[:, 0] % self.places.rows


class _Cut(NamedTuple):
    """One entry per tile: where its segment and its queries begin, how many they are, and which keys they see.

    Keys are the ``front`` first ones of the segment, and those from ``start`` to before ``stop``.
    """

    first: np.ndarray
    begin: np.ndarray
    queries: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    front: np.ndarray
    size: np.ndarray
    kind: np.ndarray

    @property
    def keys(self) -> np.ndarray:
        """How many keys the tiles have."""
        return self.front + self.stop - self.start


def make_plan(runs: Sequence[Run], layout: Layout, causal: bool, heads: int, width: int) -> Plan:
    """Return the tiles of a call.

    Parameters
    ----------
    runs
        Disjoint parts of the pattern.
    layout
        Where the sequences lie.
    causal
        Whether later keys are hidden.
    heads
        Number of heads.
    width
        Number of features of a key in one head.
    """
    by_head = any(run.by_head for run in runs)
    same = 1 if by_head else heads
    rows = layout.n_tokens * (heads if by_head else 1)
    whole = [run.with_heads(heads) if by_head else run for run in runs]
    places = Places.of(layout, heads if by_head else 1)
    parts = tuple(_part(run, places, causal, same, same * width, rows) for run in whole)
    return Plan(parts, by_head, places)


def _part(run: Run, places: Places, causal: bool, heads: int, row_size: int, rows: int) -> Part:
    cut = _cut(run, causal)
    tiles, slots, used = [], np.full(rows, -1, np.int64), 0
    for members in _groups(cut, heads, row_size):
        part = _Cut(*(column[members] for column in cut))
        tile, silent, queries = _tile(part, run, places, causal)
        shown = ~silent.ravel()
        slots[queries.ravel()[shown]] = used + np.flatnonzero(shown)
        used += silent.size
        tiles.append(tile)
    return Part(tuple(tiles), torch.from_numpy(slots), bool((slots >= 0).all()))


def _cut(run: Run, causal: bool) -> _Cut:
    """Return the tiles of a run."""
    lengths, span = run.lengths, run.span
    step = np.where(span.is_whole(lengths), np.maximum(lengths, 1), span.block)
    counts = -(-lengths // step)
    segment = np.repeat(np.arange(len(lengths)), counts)
    begin = (np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)) * step[segment]
    size = lengths[segment]
    queries = np.minimum(step[segment], size - begin)
    start, stop = span.reach(begin, begin + queries, size)
    start = np.where(start <= span.front, 0, start)
    if causal:
        stop = np.minimum(stop, begin + queries)
    else:
        stop = np.maximum(stop, np.minimum(span.front, size))
    start = np.minimum(start, stop)
    first = (np.cumsum(lengths) - lengths)[segment]
    front = np.where(start > 0, np.minimum(span.front, size), 0)
    kind = span.kind(begin, begin + queries, size)
    return _Cut(first, begin, queries, start, stop, front, size, kind)


def _groups(cut: _Cut, heads: int, row_size: int) -> list[np.ndarray]:
    """Return which tiles are computed together: those that see alike, of like sizes; none without keys."""
    keys, lead = cut.keys, cut.begin - cut.start
    order = np.lexsort((-keys, -cut.queries, cut.kind, lead, cut.front))
    order = order[keys[order] > 0]
    kind = np.stack([cut.front, lead, cut.kind], 1)[order]
    ends = [*np.flatnonzero((kind[1:] != kind[:-1]).any(1)) + 1, len(order)]
    groups = []
    for first, last in pairwise([0, *ends]):
        members = order[first:last]
        found = cuts(cut.queries[members].tolist(), keys[members].tolist(), CALL_IN_PAIRS / heads)
        for low, high in pairwise([*found, len(members)]):
            rows = max(1, CALL_SIZE // (int(keys[members[low:high]].max()) * row_size))
            groups += [members[place : min(place + rows, high)] for place in range(low, high, rows)]
    return groups


def _tile(part: _Cut, run: Run, places: Places, causal: bool) -> tuple[Tile, np.ndarray, np.ndarray]:
    """Return tiles as one rectangle, which of their queries do not count, and the rows of the queries.

    Padding holds the last row of its tile, which is finite if its sequence is.
    """
    front, counts = int(part.front[0]), (part.stop - part.start)[:, None]
    across = np.arange(int(part.queries.max()))
    column = np.arange(int(counts.max()))
    queries = part.first[:, None] + part.begin[:, None] + np.minimum(across, part.queries[:, None] - 1)
    keys = part.first[:, None] + part.start[:, None] + np.minimum(column, counts - 1)
    keys = np.concatenate(
        [np.broadcast_to(part.first[:, None] + np.arange(front), (len(keys), front)), keys], 1
    )
    if run.order is not None:
        queries, keys = run.order[queries], run.order[keys]
    seen = _seen(part, run.span, across, column, front, causal)
    if run.hides or run.keeps:
        seen = seen & _allowed(run, places, queries, keys)
    blind = np.asarray(~seen.any(2))
    silent = np.broadcast_to(blind, queries.shape) | (across >= part.queries[:, None])
    seen = seen | blind[:, :, None]
    is_square = seen.shape[0] == 1 and seen.shape[1] == seen.shape[2]
    triangular = causal and is_square and bool((seen[0] == np.tri(len(seen[0]), dtype=bool)).all())
    tile = Tile(
        len(queries),
        torch.from_numpy(queries.ravel()),
        torch.from_numpy(keys.ravel()),
        torch.from_numpy(np.flatnonzero(silent)) if silent.any() else None,
        None if triangular or seen.all() else torch.from_numpy(seen[:, None]),
        triangular,
        int(part.begin[0] - part.start[0]) if run.order is None and not front else None,
    )
    return tile, silent, queries


def _seen(
    part: _Cut, span: Span, across: np.ndarray, column: np.ndarray, front: int, causal: bool
) -> np.ndarray:
    """Return what the queries of each tile see, or of all if they see alike: ``[tiles or 1, queries, keys]``."""
    i, j = (part.begin[0] + across)[:, None], part.start[0] + column
    seen = span.sees(i, j, part.size[0])
    if causal:
        seen = seen & (j <= i)
    seen, counts = seen[None], part.stop - part.start
    if (counts != counts[0]).any() and not (causal and bool((part.begin + part.queries == part.stop).all())):
        # Otherwise no true query sees padding: it is later than all of them, or there is none.
        seen = seen & (column < counts[:, None, None])
    return np.concatenate([np.ones((*seen.shape[:2], front), bool), seen], 2)


def _allowed(run: Run, places: Places, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return which pairs other patterns leave: ``[tiles, queries, keys]``."""
    pairs = places.pairs(queries, keys)
    allowed = torch.ones(len(queries), queries.shape[1], keys.shape[1], dtype=torch.bool)
    for rule in run.hides:
        allowed &= ~rule.shows(pairs)
    for rule in run.keeps:
        allowed &= rule.shows(pairs)
    return allowed.numpy()
