"""Attention as two matrix products and a softmax: for short sequences, weights and dropout."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from seqattn.attention.costs import Work
from seqattn.attention.kernel import NEEDS, Attention, Capability, Kernel, Problem
from seqattn.attention.masks import MASKED, mask_limits
from seqattn.attention.rectangles import (
    Block,
    Solved,
    all_finite,
    is_empty,
    only,
    run_rectangles,
    statistic_dtype,
)
from seqattn.attention.sdpa import (
    bucket_costs,
    lowered,
    raised,
    rectangle_work,
    run_packed,
    solve_unfused,
    with_products,
)

# How much longer it takes when each step is one of the gradient graph, without and with the backward pass.
SEPARATE = (1.3, 2.0)


class Plain(Kernel):
    """Matrix product, softmax, matrix product on rectangles; memory is quadratic in the length."""

    name = "plain"
    capability = Capability(
        dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        patterns=MASKED,
        biases=("key", "separable", "relative", "dense"),
        bias_gradients=("key", "separable", "relative", "dense"),
        needs=NEEDS,
        dropout=True,
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return whether the weights are too many to be kept, or the pattern too large for a mask."""
        return [*mask_limits(problem), *problem.unkept()]

    def cost(self, problem: Problem) -> float:
        """Return the time of the calls, of the pairs in their rectangles, and of what is gathered for them."""
        slower = 1.0 if _wants_output_only(problem) else SEPARATE[problem.training]
        return slower * problem.time(self.name, self.work(problem))

    def work(self, problem: Problem) -> Work:
        """Return what is done in a call.

        Parameters
        ----------
        problem
            The call.
        """
        return rectangle_work(problem, is_fused=False)

    def bucket_costs(self, problem: Problem) -> list[float]:
        """Return the time of each rectangle alone.

        Parameters
        ----------
        problem
            The call.
        """
        return bucket_costs(self.name, problem, is_fused=False)

    def run(self, problem: Problem) -> Attention:
        """Compute the weights of each rectangle, with a backward pass of their own where only the output is wanted."""
        if not _wants_output_only(problem) or is_empty(problem):
            return _in_dtype(run_rectangles(with_products(problem), _solve, self.name), problem.q.dtype)
        exact = statistic_dtype(problem.q)
        wide = replace(problem, q=problem.q.to(exact), k=problem.k.to(exact), v=problem.v.to(exact))
        low = lowered(wide)
        if low.layout is None:
            result = run_rectangles(low, solve_unfused, self.name)
        else:
            result = run_packed(low, [True] * len(low.plan().buckets), self.name)
        result = result if low is wide else raised(result, wide)
        return _in_dtype(result, problem.q.dtype)


def _in_dtype(result: Attention, dtype: torch.dtype) -> Attention:
    """Return output and weights in the type of the call."""
    if result.output.dtype == dtype:
        return result
    weights = None if result.weights is None else result.weights.to(dtype)
    return replace(result, output=result.output.to(dtype), weights=weights)


def _wants_output_only(problem: Problem) -> bool:
    """Return whether nothing is asked for but the output, and nothing is added per pair."""
    has_pairs = problem.bias is not None and problem.bias.has_pairs
    return problem.need == "output" and not problem.dropout and not has_pairs


def _solve(block: Block) -> Solved:
    dtype = block.q.dtype
    finite = all_finite(block.q, block.k, block.v, block.bias, block.pairs)
    mask, sees = block.mask()
    q, k, v = (x.to(statistic_dtype(x)) for x in (block.q, block.k, block.v))
    scores = torch.matmul(q * block.scale, k.transpose(-1, -2))
    if block.bias is not None:
        scores = scores + block.bias.masked_fill(block.bias.isneginf(), 0).to(scores.dtype)[:, :, None]
    if block.pairs is not None:
        scores = scores + block.pairs.masked_fill(block.pairs.isneginf(), 0).to(scores.dtype)
    if mask is not None:
        scores = scores + mask
    weights = only(scores.softmax(-1), sees)
    kept = F.dropout(weights, block.dropout) if block.dropout else weights
    output = torch.matmul(kept, v).to(dtype)
    if block.need == "output":
        return Solved(output, finite)
    lse = scores.logsumexp(-1)
    if sees is not None:
        lse = lse.masked_fill(~sees, -torch.inf)
    return Solved(output, finite, lse, weights.to(dtype) if block.need == "weights" else None)
