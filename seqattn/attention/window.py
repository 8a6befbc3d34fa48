"""Windows of keys around each query, with or without the first keys of the sequence, in linear time and memory.

Sequences are cut into tiles: some queries that follow each other, with all keys that one of them sees. Tiles whose
queries see their keys in the same way share one mask and one fused call. A short sequence is a single tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.layout import CALL_IN_PAIRS, Layout, cuts
from seqattn.attention.patterns import KeyBias, as_band
from seqattn.attention.rectangles import all_finite, empty_attention
from seqattn.attention.sdpa import lowered, raised

# Microseconds per call and nanoseconds per (query, key, head) pair, torch 2.13, one thread, float32.
CALL_US = (300.0, 900.0)
PAIR_NS = 2.5
BACKWARD = 3.5
# Numbers of keys in one call, all heads and features: what is gathered for it stays in the cache.
CALL_SIZE = 2**18
# With 32 or 128 queries in a tile, windows of 128 keys take 1.1 to 1.3 times as long (256 to 4096 tokens).
BLOCK, SMALL_BLOCK = 64, 32


class Window(Kernel):
    """A window around each query and a prefix, tile by tile; memory grows with the tokens only."""

    name = "window"
    capability = Capability(
        devices=("cpu",),
        dtypes=(torch.float32, torch.float64),
        patterns=("local", "union"),
        biases=("key",),
        needs=("output", "lse"),
        cross=False,
        key_mask=False,
        lse_gradient=False,
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return whether the union is no window with a prefix."""
        if problem.pattern.name != "union" or _band(problem) is not None:
            return []
        return ["of the unions, only those with a Local of nothing but Local and Prefix are supported"]

    def cost(self, problem: Problem) -> float:
        """Return the time of a few calls and of the pairs in their tiles."""
        band = _band(problem)
        if band is None:
            return math.inf
        tokens = problem.batch * problem.queries if problem.layout is None else problem.layout.n_tokens
        keys = min(problem.keys, band.block + band.left + band.right + band.prefix)
        work = tokens * keys * problem.heads * PAIR_NS / 1000
        return CALL_US[problem.training] + work * (BACKWARD if problem.training else 1.0)

    def run(self, problem: Problem) -> Attention:
        """Compute the tiles of a packed call; padded input is packed before."""
        if 0 in problem.q.shape:
            return empty_attention(problem, self.name)
        if problem.layout is None:
            return _run_padded(problem, self)
        if problem.layout.n_tokens == 0:
            return empty_attention(problem, self.name)
        bias = None if problem.bias is None else problem.bias.values
        finite = all_finite(problem.q, problem.k, problem.v, bias)
        low = lowered(problem)
        output, lse = _Tiles.apply(low.q, low.k, low.v, _plan(low), low.scale)
        asked = lse if problem.need == "lse" else None
        result = Attention(output, None, asked, {"kernel": self.name, "finite": finite})
        return result if low is problem else raised(result, problem)


class _Band(NamedTuple):
    """A window and a prefix, and how many queries make a tile."""

    left: int
    right: int
    prefix: int
    causal: bool

    @property
    def block(self) -> int:
        """Number of queries in a tile."""
        return SMALL_BLOCK if self.left + self.right <= SMALL_BLOCK else BLOCK

    def sees(self, i: Any, j: Any) -> Any:
        """Return which keys the queries see."""
        seen = ((i - j <= self.left) & (j - i <= self.right)) | (j < self.prefix)
        return seen & (j <= i) if self.causal else seen


def _band(problem: Problem) -> _Band | None:
    """Return the pattern of the call as a window, or ``None`` if it has none or it never ends."""
    band = as_band(problem.pattern)
    if band is None or band.left is None or band.left < 0:
        return None
    return _Band(band.left, 0 if problem.causal else band.right, band.prefix, problem.causal)


@dataclass(frozen=True)
class _Tile:
    """Some tiles as one rectangle: which tokens stand in its slots, and what its queries see."""

    rows: int
    queries: Tensor
    keys: Tensor
    pads: Tensor | None
    visible: Tensor | None
    triangular: bool
    memo: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return what to add to the scores."""
        if self.visible is None:
            return None
        if dtype not in self.memo:
            zeros = torch.zeros(self.visible.shape, dtype=dtype)
            self.memo[dtype] = zeros.masked_fill_(~self.visible, -torch.inf)
        return self.memo[dtype]

    def rectangle(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return these tokens as ``[rows, heads, length, dim]``."""
        return x.index_select(0, tokens).view(self.rows, -1, *x.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class _Plan:
    """All tiles of a call, and in which slot each token is a query."""

    tiles: tuple[_Tile, ...]
    slot_of_token: Tensor


class _Cut(NamedTuple):
    """One entry per tile: where its sequence and its queries begin, how many they are, and which keys they see.

    Keys are the ``prefix`` first ones of the sequence, and those from ``start`` to before ``stop``.
    """

    first: np.ndarray
    begin: np.ndarray
    queries: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    prefix: np.ndarray

    @property
    def keys(self) -> np.ndarray:
        """How many keys the tiles have."""
        return self.prefix + self.stop - self.start


def _plan(problem: Problem) -> _Plan:
    """Return the tiles of a packed call, kept on its layout."""
    layout, band = problem.layout, _band(problem)
    if layout is None or band is None:
        raise TypeError("Only packed calls with a window have tiles.")
    heads, row_size = problem.heads, problem.heads * problem.q.shape[-1]
    plan: _Plan = layout.keep((band, heads, row_size), lambda: _make_plan(layout, band, heads, row_size))
    return plan


def _make_plan(layout: Layout, band: _Band, heads: int, row_size: int) -> _Plan:
    cut = _cut(layout.lengths, band)
    tiles, slots, used = [], np.zeros(layout.n_tokens, np.int64), 0
    for members in _groups(cut, heads, row_size):
        part = _Cut(*(column[members] for column in cut))
        width = int(part.queries.max())
        column = np.arange(width)
        filled = column < part.queries[:, None]
        tokens = part.first[:, None] + part.begin[:, None] + np.minimum(column, part.queries[:, None] - 1)
        slots[tokens[filled]] = used + np.flatnonzero(filled)
        used += filled.size
        tiles.append(_tile(part, band, tokens, filled))
    return _Plan(tuple(tiles), torch.from_numpy(slots))


def _cut(lengths: np.ndarray, band: _Band) -> _Cut:
    """Return the tiles of sequences of these lengths."""
    # Up to here a further tile saves less than its keys cost to gather.
    whole = lengths <= band.block + max(band.block, band.left + band.right)
    step = np.where(whole, np.maximum(lengths, 1), band.block)
    counts = -(-lengths // step)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    begin = (np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)) * step[sequence]
    size = lengths[sequence]
    queries = np.minimum(step[sequence], size - begin)
    start = np.maximum(begin - band.left, 0)
    start = np.where(start <= band.prefix, 0, start)
    stop = np.minimum(begin + queries + band.right, size)
    if not band.causal:
        stop = np.maximum(stop, np.minimum(band.prefix, size))
    first = (np.cumsum(lengths) - lengths)[sequence]
    return _Cut(first, begin, queries, start, stop, np.where(start > 0, band.prefix, 0))


def _groups(cut: _Cut, heads: int, row_size: int) -> list[np.ndarray]:
    """Return which tiles are computed together: those whose queries are as far from their first key, of like sizes."""
    order = np.lexsort((-cut.keys, -cut.queries, cut.begin - cut.start, cut.prefix))
    kind = np.stack([cut.prefix, cut.begin - cut.start], 1)[order]
    ends = [*np.flatnonzero((kind[1:] != kind[:-1]).any(1)) + 1, len(order)]
    groups = []
    for first, last in pairwise([0, *ends]):
        members = order[first:last]
        found = cuts(cut.queries[members].tolist(), cut.keys[members].tolist(), CALL_IN_PAIRS / heads)
        for low, high in pairwise([*found, len(members)]):
            rows = max(1, CALL_SIZE // (int(cut.keys[members[low:high]].max()) * row_size))
            groups += [members[place : min(place + rows, high)] for place in range(low, high, rows)]
    return groups


def _tile(part: _Cut, band: _Band, queries: np.ndarray, filled: np.ndarray) -> _Tile:
    """Return tiles as one rectangle. Padding holds the last token of its tile, which is finite if its sequence is."""
    prefix, lead = int(part.prefix[0]), int(part.begin[0] - part.start[0])
    counts = (part.stop - part.start)[:, None]
    column = np.arange(int(counts.max()))
    window = part.first[:, None] + part.start[:, None] + np.minimum(column, counts - 1)
    front = np.broadcast_to(part.first[:, None] + np.arange(prefix), (len(window), prefix))
    seen = band._replace(prefix=0 if prefix else band.prefix).sees(
        lead + np.arange(queries.shape[1])[:, None], column
    )[None]
    if not band.causal and (counts != counts[0]).any():
        # Otherwise no true query sees padding: it is later than all of them, or there is none.
        seen = seen & (column < counts[:, :, None])
    seen = np.concatenate([np.ones((*seen.shape[:2], prefix), bool), seen], 2)
    seen = seen | ~seen.any(2, keepdims=True)
    triangular = (
        band.causal and seen.shape[1] == seen.shape[2] and bool((seen[0] == np.tri(len(seen[0]))).all())
    )
    return _Tile(
        len(queries),
        torch.from_numpy(queries.ravel()),
        torch.from_numpy(np.concatenate([front, window], 1).ravel()),
        None if filled.all() else torch.from_numpy(np.flatnonzero(~filled)),
        None if triangular or seen.all() else torch.from_numpy(seen[:, None]),
        triangular,
    )


class _Tiles(torch.autograd.Function):
    """All tiles as one step of the gradient graph; what was gathered for them is gathered again, not kept."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: _Plan, scale: float
    ) -> tuple[Tensor, Tensor]:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        kept = []
        for tile in plan.tiles:
            part = (
                tile.rectangle(q, tile.queries),
                tile.rectangle(k, tile.keys),
                tile.rectangle(v, tile.keys),
            )
            kept += fused(*part, 0.0, tile.triangular, attn_mask=tile.mask(q.dtype), scale=scale)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.plan, ctx.scale = plan, scale
        output = torch.cat([_rows(x) for x in kept[::2]]).index_select(0, plan.slot_of_token)
        lse = torch.cat([_rows(x) for x in kept[1::2]]).index_select(0, plan.slot_of_token)
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q, k, v, *kept = ctx.saved_tensors
        grads_q, grad_k, grad_v = [], torch.zeros_like(k), torch.zeros_like(v)
        for tile, output, lse in zip(ctx.plan.tiles, kept[::2], kept[1::2], strict=True):
            rows = grad.index_select(0, tile.queries)
            if tile.pads is not None:
                rows.index_fill_(0, tile.pads, 0)
            part_q, part_k, part_v = fused(
                rows.view(tile.rows, -1, *rows.shape[1:]).transpose(1, 2),
                *(tile.rectangle(q, tile.queries), tile.rectangle(k, tile.keys), tile.rectangle(v, tile.keys)),
                output, lse, 0.0, tile.triangular, attn_mask=tile.mask(q.dtype), scale=ctx.scale,
            )  # fmt: skip
            grads_q.append(_rows(part_q))
            grad_k.flatten(1).index_add_(0, tile.keys, _rows(part_k).flatten(1))
            grad_v.flatten(1).index_add_(0, tile.keys, _rows(part_v).flatten(1))
        return torch.cat(grads_q).index_select(0, ctx.plan.slot_of_token), grad_k, grad_v, None, None


def _rows(x: Tensor) -> Tensor:
    """Return a rectangle ``[rows, heads, length, ...]`` as slots ``[slots, heads, ...]``."""
    return x.transpose(1, 2).flatten(0, 1)


def _run_padded(problem: Problem, kernel: Window) -> Attention:
    """Pack the sequences, so that nothing in the padding can pass, and spread the result."""
    batch, size = problem.batch, problem.queries
    lengths = [size] * batch if problem.lengths is None else problem.lengths.tolist()
    layout = Layout.of(lengths)
    live = torch.arange(size) < torch.from_numpy(layout.lengths)[:, None]
    places = live.flatten().nonzero()[:, 0]

    def packed(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1).index_select(0, places)

    def spread(x: Tensor, fill: float) -> Tensor:
        wide = x.new_full((batch * size, *x.shape[1:]), fill).index_copy(0, places, x)
        return wide.view(batch, size, *x.shape[1:]).transpose(1, 2)

    bias = None if problem.bias is None else KeyBias(packed(problem.bias.values))
    result = kernel.run(
        replace(
            problem, q=packed(problem.q), k=packed(problem.k), v=packed(problem.v), bias=bias,
            layout=layout, key_layout=layout, lengths=None, key_lengths=None,
        )
    )  # fmt: skip
    lse = None if result.lse is None else spread(result.lse, -torch.inf)
    return Attention(spread(result.output, 0.0), None, lse, result.stats)
