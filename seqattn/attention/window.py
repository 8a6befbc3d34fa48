"""Patterns that are windows inside segments: packed, in linear memory, tile by tile.

What the tiles are is said by :mod:`seqattn.attention.tiles`; here they are computed. Where a query is in several tiles,
their results are joined by their log-sums, and the gradient of each tile follows from the joined ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqattn.attention.biases import KeyBias
from seqattn.attention.costs import LANES, Work
from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.layout import Layout
from seqattn.attention.pattern import Pattern
from seqattn.attention.rectangles import all_finite, empty_attention
from seqattn.attention.sdpa import lowered, raised
from seqattn.attention.tiles import BLOCK, CALL_SIZE, Part, Plan, Tile, make_plan

# What making the tiles costs before the first token, in decisions.
PLANNED = 1500
# The log-sum of a query that does not count: all its weights are then 0.
SILENT = 1e30


class Window(Kernel):
    """Windows inside segments, tile by tile; memory grows with the visible pairs at most."""

    name = "window"
    capability = Capability(
        devices=("cpu",),
        dtypes=(torch.float32, torch.float64),
        patterns=(
            *("local", "neighborhood", "blocked", "dilated", "prefix", "segments"),
            *("union", "intersection"),
        ),
        biases=("key",),
        needs=("output", "lse"),
        cross=False,
        key_mask=False,
        lse_gradient=False,
    )

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
            return _run_padded(problem, self)
        if problem.layout.n_tokens == 0:
            return empty_attention(problem, self.name)
        bias = None if problem.bias is None else problem.bias.values
        finite = all_finite(problem.q, problem.k, problem.v, bias)
        low = lowered(problem)
        plan = _plan(problem.pattern, problem.layout, low)
        q, k, v = (_by_row(x, plan) for x in (low.q, low.k, low.v))
        output, lse = _Tiles.apply(q, k, v, plan, low.scale)
        output, lse = output.view(*low.q.shape[:2], -1), lse.view(low.q.shape[:2])
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
    """All tiles as one step of the gradient graph; what was gathered for them is gathered again, not kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
        solved = [_solve(part, q, k, v, scale) for part in plan.parts]
        output, lse = solved[0] if len(solved) == 1 else _joined(solved)
        ctx.save_for_backward(q, k, v, output, lse)
        ctx.plan, ctx.scale = plan, scale
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, lse = ctx.saved_tensors
        grad_q = None
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        for part in ctx.plan.parts:
            rows = []
            for tile in part.tiles:
                part_q, part_k, part_v = _backward(tile, grad, q, k, v, output, lse, ctx.scale)
                rows.append(_rows(part_q))
                grad_k.flatten(1).index_add_(0, tile.keys, _rows(part_k).flatten(1))
                grad_v.flatten(1).index_add_(0, tile.keys, _rows(part_v).flatten(1))
            if rows:
                found = _spread(part, rows, 0.0)
                grad_q = found if grad_q is None else grad_q.add_(found)
        return torch.zeros_like(q) if grad_q is None else grad_q, grad_k, grad_v, None, None


def _solve(part: Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return output ``[rows, heads, dim]`` and log-sums ``[rows, heads]`` of a run."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    outputs, sums = [], []
    for tile in part.tiles:
        rectangles = (
            tile.rectangle(q, tile.queries),
            tile.rectangle(k, tile.keys),
            tile.rectangle(v, tile.keys),
        )
        output, lse = fused(*rectangles, 0.0, tile.triangular, attn_mask=tile.mask(q.dtype), scale=scale)
        outputs.append(_rows(output))
        sums.append(_rows(lse))
    if not outputs:
        return torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf)
    return _spread(part, outputs, 0.0), _spread(part, sums, -torch.inf)


def _backward(
    tile: Tile, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the rectangles of a tile. Log-sums of all tiles of a query give it its true weights."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    rows, sums = grad.index_select(0, tile.queries), lse.index_select(0, tile.queries)
    if tile.silent is not None:
        rows.index_fill_(0, tile.silent, 0)
        sums.index_fill_(0, tile.silent, SILENT)
    rows, sums = (x.view(tile.rows, -1, *x.shape[1:]).transpose(1, 2) for x in (rows, sums))
    found: tuple[Tensor, Tensor, Tensor] = fused(
        rows,
        *(tile.rectangle(q, tile.queries), tile.rectangle(k, tile.keys), tile.rectangle(v, tile.keys)),
        tile.rectangle(output, tile.queries), sums, 0.0, tile.triangular, attn_mask=tile.mask(q.dtype), scale=scale,
    )  # fmt: skip
    return found


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
            pattern=problem.pattern.of(places),
            layout=layout, key_layout=layout, lengths=None, key_lengths=None,
        )
    )  # fmt: skip
    lse = None if result.lse is None else spread(result.lse, -torch.inf)
    return Attention(spread(result.output, 0.0), None, lse, result.stats)
