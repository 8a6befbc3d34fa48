"""The definition, computed as written: slow, complete, and what every other kernel is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqattn.attention.costs import Work
from seqattn.attention.kernel import NEEDS, Attention, Capability, Kernel, Problem
from seqattn.attention.layout import Layout
from seqattn.attention.rectangles import all_finite, empty_attention, statistic_dtype
from seqattn.attention.terms import Terms


class Reference(Kernel):
    """One sequence after the other, the visible keys taken from ``pattern.visible``."""

    name = "reference"
    capability = Capability(
        biases=("key", "separable", "relative", "dense"),
        bias_gradients=("key", "separable", "relative", "dense"),
        needs=NEEDS,
        dropout=True,
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return whether the weights are too many to be kept."""
        return problem.unkept()

    def cost(self, problem: Problem) -> float:
        """Return the time of a Python loop over the sequences."""
        pairs = problem.batch * problem.heads * problem.queries * problem.keys
        return problem.time(self.name, Work(max(1, problem.batch), 0, pairs, 0, problem.width, 0))

    def run(self, problem: Problem) -> Attention:
        """Compute all sequences and put them together."""
        if problem.batch == 0:
            return empty_attention(problem, self.name)
        if problem.layout is None or problem.key_layout is None:
            return _run_padded(problem)
        return _run_packed(problem, problem.layout, problem.key_layout)


def _run_packed(problem: Problem, layout: Layout, key_layout: Layout) -> Attention:
    n, m = layout.lengths.tolist(), key_layout.lengths.tolist()
    first, first_key = layout.offsets.tolist(), key_layout.offsets.tolist()
    tensors = (problem.q.split(n), problem.k.split(m), problem.v.split(m))
    parts = []
    for b, (q, k, v) in enumerate(zip(*tensors, strict=True)):
        queries, keys = slice(first[b], first[b + 1]), slice(first_key[b], first_key[b + 1])
        bias = None if problem.bias is None else _packed_bias(problem.bias, b, queries, keys)
        part = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        parts.append(_one(problem, (first[b], first_key[b]), *part, bias))
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
        bias = None if problem.bias is None else _padded_bias(problem.bias, b, n[b], m[b])
        mask = None if problem.key_mask is None else problem.key_mask[b, : m[b]]
        tensors = problem.q[b, :, : n[b]], problem.k[b, :, : m[b]], problem.v[b, :, : m[b]]
        output, lse, weight = _one(problem, (b * size[0], b * size[1]), *tensors, bias, mask)
        outputs.append(_grow(output, size[0], output.shape[-1]))
        sums.append(F.pad(lse, (0, size[0] - n[b]), value=-torch.inf))
        weights.append(_grow(weight, *size))
    return _attention(problem, torch.stack(outputs), torch.stack(sums), weights)


def _packed_bias(bias: Terms, b: int, queries: slice, keys: slice) -> list[Tensor]:
    """Return what is added in a sequence, the tokens of which stand at these places."""
    key, features = None if bias.key is None else bias.key.values[keys].T, bias.separable
    products = None
    if features is not None:
        products = features.query[queries].transpose(0, 1), features.key[keys].transpose(0, 1)
    return _terms(bias, b, key, products, (queries.stop - queries.start, keys.stop - keys.start))


def _padded_bias(bias: Terms, b: int, n: int, m: int) -> list[Tensor]:
    """Return what is added in a sequence of ``n`` queries and ``m`` keys."""
    key = None if bias.key is None else bias.key.values[b, :, :m]
    features = bias.separable
    products = None if features is None else (features.query[b, :, :n], features.key[b, :, :m])
    return _terms(bias, b, key, products, (n, m))


def _terms(
    bias: Terms, b: int, key: Tensor | None, products: tuple[Tensor, Tensor] | None, size: tuple[int, int]
) -> list[Tensor]:
    """Return the terms of a sequence as they are defined, pair by pair: ``[heads or 1, queries or 1, keys]`` each."""
    n, m = size
    found = [] if key is None else [key[:, None]]
    if products is not None:
        a, c = products
        found.append((a[:, :, None] * c[:, None, :]).sum(-1))
    if bias.relative is not None:
        i, j = torch.arange(n)[:, None], torch.arange(m)
        found.append(bias.relative.at((i - j).to(bias.relative.table.device)))
    if bias.dense is not None:
        values = bias.dense.values
        found.append(values[b if len(values) > 1 else 0, :, :n, :m])
    return found


def _one(
    problem: Problem,
    first: tuple[int, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: list[Tensor] | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, lse and weights of one sequence ``[heads, length, dim]``; ``first`` numbers its first tokens."""
    q, k, v, *added = (x.to(statistic_dtype(q)) for x in (q, k, v, *(bias or [])))
    i = torch.arange(q.shape[1], device=q.device)[:, None]
    j = torch.arange(k.shape[1], device=q.device)[None, :]
    pattern = problem.pattern.of(slice(first[0], first[0] + q.shape[1]))
    pattern = pattern.of_keys(slice(first[1], first[1] + k.shape[1]))
    visible = pattern.visible(i, j, k.shape[1])
    visible = visible if visible.dim() == 3 else visible[None]
    for term in added:
        visible = visible & (term != -torch.inf)
    if problem.causal:
        visible = visible & (j <= i + (k.shape[1] - q.shape[1]))
    if mask is not None:
        visible = visible & mask
        k, v = (x.masked_fill(~mask[:, None], 0) for x in (k, v))
        added = [term.masked_fill(~mask, 0) for term in added]
    groups = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    sees = visible.any(-1, keepdim=True)
    scores = q @ k.transpose(1, 2) * problem.scale
    for term in added:
        scores = scores + term.masked_fill(term == -torch.inf, 0)
    scores = scores.masked_fill(~visible & sees, -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True) if scores.shape[-1] else scores.sum(-1, keepdim=True)
    weights = (scores - lse).exp().masked_fill(~sees, 0)
    output = F.dropout(weights, problem.dropout) @ v
    return output, lse.masked_fill(~sees, -torch.inf)[..., 0], weights


def _grow(x: Tensor, rows: int, columns: int) -> Tensor:
    return F.pad(x, (0, columns - x.shape[-1], 0, rows - x.shape[-2]))


def _attention(problem: Problem, output: Tensor, lse: Tensor, weights: list[Tensor]) -> Attention:
    dtype = problem.q.dtype
    bias = [] if problem.bias is None else [x for term in problem.bias.all() for x in term.tensors()]
    return Attention(
        output.to(dtype),
        torch.stack(weights).to(dtype) if problem.need == "weights" else None,
        None if problem.need == "output" else lse,
        {"kernel": "reference", "finite": all_finite(problem.q, problem.k, problem.v, *bias)},
    )
