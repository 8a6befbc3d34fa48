"""Patterns that are windows inside segments: packed, in linear memory, tile by tile.

What the tiles are is said by :mod:`seqattn.attention.tiles`; here they are computed. Where a query is in several tiles,
their results are joined by their log-sums, and the gradient of each tile follows from the joined ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqattn.attention.biases import Relative
from seqattn.attention.costs import LANES, Work
from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.layout import Layout
from seqattn.attention.once import once
from seqattn.attention.packing import run_packed
from seqattn.attention.pattern import Pattern
from seqattn.attention.rectangles import all_finite, empty_attention
from seqattn.attention.sdpa import HIDDEN, lowered, raised
from seqattn.attention.tiles import BLOCK, CALL_SIZE, Part, Plan, Tile, make_plan

# What making the tiles costs before the first token, in decisions.
PLANNED = 1500
# The log-sum of a query that does not count: all its weights are then 0.
SILENT = 1e30
# A log-sum below this is one of hidden keys only.
HIDDEN_SUM = 1e-5 * HIDDEN


class Window(Kernel):
    """Windows inside segments, tile by tile; memory grows with the visible pairs at most."""

    name = "window"
    capability = Capability(
        devices=("cpu",),
        dtypes=(torch.float32, torch.float64),
        biases=("key", "separable", "relative"),
        bias_gradients=("key", "separable", "relative"),
        needs=("output", "lse"),
        cross=False,
        key_mask=False,
        lse_gradient=False,
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return whether the pattern has no segments and windows."""
        name = problem.pattern.name
        return [] if problem.pattern.is_tiled else [f"pattern {name!r} is not supported"]

    def cost(self, problem: Problem) -> float:
        """Return the time of the tiles: their calls, their pairs, what is gathered for them."""
        return problem.time(self.name, self.work(problem))

    def work(self, problem: Problem) -> Work:
        """Return what is done in a call.

        Parameters
        ----------
        problem
            The call.
        """
        pattern, heads, tokens = problem.pattern, problem.heads, problem.tokens
        segment = max(1.0, min(problem.keys, tokens / max(1, problem.batch), pattern.segment(problem.keys)))
        keys = min(segment, BLOCK + pattern.reach(problem.keys))
        row = heads * problem.width * problem.q.element_size()
        block = min(segment, BLOCK)
        moved = tokens * row * (2 + 2 * keys / block)
        steps = 3 + tokens * keys / block * heads * problem.width / CALL_SIZE
        decided = tokens * (heads if pattern.by_head else 1) if pattern.has_labels else 0
        if problem.layout is None:
            # A layout and its tiles are made for this call alone, and the sequences are packed and spread.
            decided += PLANNED + tokens
            moved += 4 * tokens * row
        matrices = tokens * heads / block
        single = tokens * heads * (int(keys) % LANES)
        return Work(steps, matrices, tokens * keys * heads, single, problem.width, moved, decided)

    def run(self, problem: Problem) -> Attention:
        """Compute the tiles of a packed call; padded input is packed before."""
        if 0 in problem.q.shape:
            return empty_attention(problem, self.name)
        if problem.layout is None:
            return run_packed(problem, self.run)
        if problem.layout.n_tokens == 0:
            return empty_attention(problem, self.name)
        relative = None if problem.bias is None else problem.bias.relative
        table = None if relative is None else relative.table
        # What is not finite in features and keys is found in the lowered call.
        low = lowered(problem)
        plan = _plan(problem.pattern, problem.layout, low)
        q, k, v = (_by_row(x, plan) for x in (low.q, low.k, low.v))
        finite = all_finite(low.q, low.k, low.v, table)
        output, lse = _Tiles.apply(q, k, v, table, 0 if relative is None else relative.first, plan, low.scale)
        output, lse = output.view(*low.q.shape[:2], -1), lse.view(low.q.shape[:2])
        if table is not None and table.isneginf().any():
            blind = lse < HIDDEN_SUM
            output, lse = output.masked_fill(blind[..., None], 0), lse.masked_fill(blind, -torch.inf)
        asked = lse if problem.need == "lse" else None
        result = Attention(output, None, asked, {"kernel": self.name, "finite": finite})
        return result if low is problem else raised(result, problem)


def _by_row(x: Tensor, plan: Plan) -> Tensor:
    """Return ``[tokens, heads, dim]`` as the rows of the plan."""
    return x.reshape(-1, 1, x.shape[-1]) if plan.by_head else x


def _plan(pattern: Pattern, layout: Layout, problem: Problem) -> Plan:
    """Return the tiles of a call; they are kept on the layout unless they follow from labels."""
    heads, width = problem.heads, problem.q.shape[-1]

    def make() -> Plan:
        runs = pattern.runs(layout, heads)
        if runs is None:
            raise TypeError(f"Pattern {pattern.name!r} has no runs.")
        return make_plan(runs, layout, problem.causal, heads, width)

    if pattern.has_labels:
        return make()
    plan: Plan = layout.keep((pattern, problem.causal, heads, width), make)
    return plan


class _Tiles(torch.autograd.Function):
    """All tiles as one step of the gradient graph; what was gathered for them is gathered again, not kept.

    A table of distances goes into the masks. Its gradient needs the weights, so then each tile forms them.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, first: int, plan: Plan, scale: float
    ) -> tuple[Tensor, Tensor]:
        masks = _Masks(plan, None if table is None else Relative(table.to(q.dtype), first), q.dtype)
        solved = [_solve(part, q, k, v, masks, scale) for part in plan.parts]
        output, lse = solved[0] if len(solved) == 1 else _joined(solved)
        ctx.save_for_backward(q, k, v, output, lse, table)
        ctx.masks, ctx.scale = masks, scale
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, lse, table = ctx.saved_tensors
        masks: _Masks = ctx.masks
        grad_q = None
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        grad_table = table.new_zeros(table.shape) if ctx.needs_input_grad[3] else None
        if table is not None:
            lse = lse.masked_fill(lse < HIDDEN_SUM, SILENT)
        for part in masks.plan.parts:
            rows = []
            for tile in part.tiles:
                inner = _Inner.of(tile, grad, q, k, v, output, lse, masks.of(tile), ctx.scale)
                if grad_table is None:
                    part_q, part_k, part_v = inner.fused()
                else:
                    part_q, part_k, part_v, scores = inner.plain()
                    masks.collect(tile, scores, grad_table)
                rows.append(_rows(part_q))
                grad_k.flatten(1).index_add_(0, tile.keys, _rows(part_k).flatten(1))
                grad_v.flatten(1).index_add_(0, tile.keys, _rows(part_v).flatten(1))
            if rows:
                found = _spread(part, rows, 0.0)
                grad_q = found if grad_q is None else grad_q.add_(found)
        grad_q = torch.zeros_like(q) if grad_q is None else grad_q
        return grad_q, grad_k, grad_v, grad_table, None, None, None


@dataclass(frozen=True, eq=False)
class _Masks:
    """What is added to the scores of each tile: what hides keys, and a table of distances."""

    plan: Plan
    relative: Relative | None
    dtype: torch.dtype

    def of(self, tile: Tile) -> Tensor | None:
        """Return what is added in a tile, ``[tiles or 1, heads or 1, queries, keys]``."""
        if self.relative is None:
            return tile.mask(self.dtype)
        table = self.relative.table.detach()
        table = table.masked_fill(table.isneginf(), HIDDEN)
        index, heads = self._index(tile), self._heads(tile)
        added = table[:, index].transpose(0, 1) if heads is None else table[heads, index][:, None]
        if tile.triangular:
            return added.masked_fill(torch.ones(index.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
        return added if tile.visible is None else added.masked_fill(~tile.visible, -torch.inf)

    def collect(self, tile: Tile, grad: Tensor, into: Tensor) -> None:
        """Add the gradient of the scores, ``[tiles, heads, queries, keys]``, to that of the table."""
        if self.relative is None:
            return
        index, heads = self._index(tile), self._heads(tile)
        if len(index) == 1:
            grad = grad.sum(0, keepdim=True)
        if len(into) == 1:
            grad = grad.sum(1, keepdim=True)
        if heads is None:
            heads, index = torch.arange(grad.shape[1])[:, None, None], index[:, None]
        place = heads * into.shape[1] + index
        into.view(-1).index_add_(0, place.flatten(), grad.flatten().to(into.dtype))

    def _index(self, tile: Tile) -> Tensor:
        """Return which entry of the table each pair has, ``[tiles or 1, queries, keys]``."""
        if self.relative is None:
            raise TypeError("There is no table.")
        return self.relative.entry(self.plan.distances(tile))

    def _heads(self, tile: Tile) -> Tensor | None:
        """Return the row of the table for each tile, if tiles have one head each."""
        if self.relative is None or not self.plan.by_head or len(self.relative.table) == 1:
            return None
        return self.plan.heads(tile)[:, None, None]


def _solve(part: Part, q: Tensor, k: Tensor, v: Tensor, masks: _Masks, scale: float) -> tuple[Tensor, Tensor]:
    """Return output ``[rows, heads, dim]`` and log-sums ``[rows, heads]`` of a run."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    outputs, sums = [], []
    for tile in part.tiles:
        rectangles = (
            tile.rectangle(q, tile.queries),
            tile.rectangle(k, tile.keys),
            tile.rectangle(v, tile.keys),
        )
        mask = masks.of(tile)
        output, lse = fused(*rectangles, 0.0, tile.triangular and mask is None, attn_mask=mask, scale=scale)
        outputs.append(_rows(output))
        sums.append(_rows(lse))
    if not outputs:
        return torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf)
    return _spread(part, outputs, 0.0), _spread(part, sums, -torch.inf)


class _Inner(NamedTuple):
    """A tile of the backward pass. Log-sums of all tiles of a query give it its true weights."""

    grad: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    lse: Tensor
    mask: Tensor | None
    triangular: bool
    scale: float

    @classmethod
    def of(
        cls, tile: Tile, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor,
        mask: Tensor | None, scale: float,
    ) -> _Inner:  # fmt: skip
        """Return a tile with what is known of the whole call."""
        rows, sums = grad.index_select(0, tile.queries), lse.index_select(0, tile.queries)
        if tile.silent is not None:
            rows.index_fill_(0, tile.silent, 0)
            sums.index_fill_(0, tile.silent, SILENT)
        rows, sums = (x.view(tile.rows, -1, *x.shape[1:]).transpose(1, 2) for x in (rows, sums))
        return cls(
            rows, tile.rectangle(q, tile.queries), tile.rectangle(k, tile.keys), tile.rectangle(v, tile.keys),
            tile.rectangle(output, tile.queries), sums, mask, tile.triangular and mask is None, scale,
        )  # fmt: skip

    def fused(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of queries, keys and values."""
        call = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        found: tuple[Tensor, Tensor, Tensor] = call(
            *self[:6], 0.0, self.triangular, attn_mask=self.mask, scale=self.scale
        )
        return found

    def plain(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of queries, keys, values and scores."""
        scores = torch.matmul(self.q * self.scale, self.k.transpose(-1, -2))
        if self.mask is not None:
            scores = scores + self.mask
        weights = (scores - self.lse[..., None]).exp_()
        mean = (self.grad * self.output).sum(-1, keepdim=True)
        found = weights * (torch.matmul(self.grad, self.v.transpose(-1, -2)) - mean)
        across = torch.matmul(found.transpose(-1, -2), self.q * self.scale)
        values = torch.matmul(weights.transpose(-1, -2), self.grad)
        return torch.matmul(found, self.k) * self.scale, across, values, found


def _joined(solved: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return output and log-sums of disjoint sets of keys together; rows that see none have 0 and ``-inf``."""
    sums = torch.stack([lse for _, lse in solved])
    lse = sums.logsumexp(0)
    shares = (sums - lse.masked_fill(lse.isneginf(), 0)).exp_()
    output = solved[0][0] * shares[0][..., None]
    for (more, _), share in zip(solved[1:], shares[1:], strict=True):
        output.addcmul_(more, share[..., None])
    return output, lse


def _spread(part: Part, slots: list[Tensor], nothing: float) -> Tensor:
    """Return rows in their own order, from those of the tiles."""
    joined = slots[0] if len(slots) == 1 else torch.cat(slots)
    if part.is_full:
        return joined.index_select(0, part.slot_of_row)
    found = joined.index_select(0, part.slot_of_row.clamp(min=0))
    outside = (part.slot_of_row < 0).view(-1, *[1] * (found.dim() - 1))
    return found.masked_fill_(outside, nothing)


def _rows(x: Tensor) -> Tensor:
    """Return a rectangle ``[tiles, heads, length, ...]`` as slots ``[slots, heads, ...]``."""
    return x.transpose(1, 2).flatten(0, 1)
