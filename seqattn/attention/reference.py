"""The definition, computed as written: slow, complete, and what every other kernel is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqattn.attention.costs import Work
from seqattn.attention.kernel import NEEDS, Attention, Capability, Kernel, Problem
from seqattn.attention.layout import Layout
from seqattn.attention.rectangles import all_finite, empty_attention, statistic_dtype


class Reference(Kernel):
    """One sequence after the other, the visible keys taken from ``pattern.visible``."""

    name = "reference"
    capability = Capability(biases=("key",), needs=NEEDS, dropout=True)

    def cost(self, problem: Problem) -> float:
        """Return the time of a Python loop over the sequences."""
        pairs = problem.batch * problem.heads * problem.queries * problem.keys
        return problem.time(self.name, Work(problem.batch, 0, pairs, 0, problem.width, 0))

    def run(self, problem: Problem) -> Attention:
        """Compute all sequences and put them together."""
        if problem.batch == 0:
            return empty_attention(problem, self.name)
        if problem.layout is None or problem.key_layout is None:
            return _run_padded(problem)
        return _run_packed(problem, problem.layout, problem.key_layout)


def _run_packed(problem: Problem, layout: Layout, key_layout: Layout) -> Attention:
    n, m = layout.lengths.tolist(), key_layout.lengths.tolist()
    bias = problem.k.new_zeros(len(problem.k), 1) if problem.bias is None else problem.bias.values
    first = layout.offsets.tolist()[:-1]
    tensors = (problem.q.split(n), problem.k.split(m), problem.v.split(m), bias.split(m))
    parts = [
        _one(problem, start, *(x.transpose(0, 1) for x in part))
        for start, *part in zip(first, *tensors, strict=True)
    ]
    output = torch.cat([part[0].transpose(0, 1) for part in parts])
    lse = torch.cat([part[1].transpose(0, 1) for part in parts])
    size = (problem.queries, problem.keys)
    return _attention(problem, output, lse, [_grow(part[2], *size) for part in parts])


def _run_padded(problem: Problem) -> Attention:
    size = (problem.queries, problem.keys)
    n = [size[0]] * problem.batch if problem.lengths is None else problem.lengths.tolist()
    m = [size[1]] * problem.batch if problem.key_lengths is None else problem.key_lengths.tolist()
    outputs, sums, weights = [], [], []
    for b in range(problem.batch):
        bias = problem.k.new_zeros(1, m[b]) if problem.bias is None else problem.bias.values[b, :, : m[b]]
        mask = None if problem.key_mask is None else problem.key_mask[b, : m[b]]
        tensors = problem.q[b, :, : n[b]], problem.k[b, :, : m[b]], problem.v[b, :, : m[b]]
        output, lse, weight = _one(problem, b * size[0], *tensors, bias, mask)
        outputs.append(_grow(output, size[0], output.shape[-1]))
        sums.append(F.pad(lse, (0, size[0] - n[b]), value=-torch.inf))
        weights.append(_grow(weight, *size))
    return _attention(problem, torch.stack(outputs), torch.stack(sums), weights)


def _one(
    problem: Problem, first: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, lse and weights of one sequence ``[heads, length, dim]``; ``first`` numbers its first token."""
    q, k, v, bias = (x.to(statistic_dtype(q)) for x in (q, k, v, bias))
    i = torch.arange(q.shape[1], device=q.device)[:, None]
    j = torch.arange(k.shape[1], device=q.device)[None, :]
    pattern = problem.pattern.of(slice(first, first + q.shape[1]))
    visible = pattern.visible(i, j, k.shape[1]) & (bias != -torch.inf)[:, None, :]
    if problem.causal:
        visible = visible & (j <= i + (k.shape[1] - q.shape[1]))
    if mask is not None:
        visible = visible & mask
        k, v, bias = (
            k.masked_fill(~mask[:, None], 0),
            v.masked_fill(~mask[:, None], 0),
            bias.masked_fill(~mask, 0),
        )
    groups = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    sees = visible.any(-1, keepdim=True)
    scores = q @ k.transpose(1, 2) * problem.scale + bias.masked_fill(bias == -torch.inf, 0)[:, None, :]
    scores = scores.masked_fill(~visible & sees, -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True) if scores.shape[-1] else scores.sum(-1, keepdim=True)
    weights = (scores - lse).exp().masked_fill(~sees, 0)
    output = F.dropout(weights, problem.dropout) @ v
    return output, lse.masked_fill(~sees, -torch.inf)[..., 0], weights


def _grow(x: Tensor, rows: int, columns: int) -> Tensor:
    return F.pad(x, (0, columns - x.shape[-1], 0, rows - x.shape[-2]))


def _attention(problem: Problem, output: Tensor, lse: Tensor, weights: list[Tensor]) -> Attention:
    dtype = problem.q.dtype
    bias = None if problem.bias is None else problem.bias.values
    return Attention(
        output.to(dtype),
        torch.stack(weights).to(dtype) if problem.need == "weights" else None,
        None if problem.need == "output" else lse,
        {"kernel": "reference", "finite": all_finite(problem.q, problem.k, problem.v, bias)},
    )
