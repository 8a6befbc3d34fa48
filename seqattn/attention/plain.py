"""Dense attention as two matrix products and a softmax: for short sequences, weights and dropout."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from seqattn.attention.kernel import NEEDS, Attention, Capability, Kernel, Problem
from seqattn.attention.rectangles import Block, Solved, all_finite, only, run_rectangles, statistic_dtype
from seqattn.attention.sdpa import with_products

# Microseconds per call and nanoseconds per (query, key, head) pair, torch 2.13, one thread, float32. With the fused
# call named directly there is no length at which this one is faster in training (0.3-0.8 of its speed from 4 to 64
# tokens, width 16 and 64).
CALL_US = (60.0, 250.0)
PAIR_NS = 2.6
PAIR_NS_PER_WIDTH = 0.05
BACKWARD = 4.0


class Plain(Kernel):
    """Matrix product, softmax, matrix product on rectangles; memory is quadratic in the length."""

    name = "plain"
    capability = Capability(
        dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        patterns=("dense",),
        biases=("key", "separable", "relative", "dense"),
        bias_gradients=("key", "separable", "relative", "dense"),
        needs=NEEDS,
        dropout=True,
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return whether the weights are too many to be kept."""
        return problem.unkept()

    def cost(self, problem: Problem) -> float:
        """Return the time of the calls and of the pairs in their rectangles."""
        calls, pairs = problem.pairs()
        width = max(problem.q.shape[-1], problem.v.shape[-1])
        work = pairs * (PAIR_NS + PAIR_NS_PER_WIDTH * width) / 1000
        return calls * CALL_US[problem.training] + work * (BACKWARD if problem.training else 1.0)

    def run(self, problem: Problem) -> Attention:
        """Compute the weights of each rectangle."""
        result = run_rectangles(with_products(problem), _solve, self.name)
        return _in_dtype(result, problem.q.dtype)


def _in_dtype(result: Attention, dtype: torch.dtype) -> Attention:
    """Return output and weights in the type of the call."""
    if result.output.dtype == dtype:
        return result
    weights = None if result.weights is None else result.weights.to(dtype)
    return replace(result, output=result.output.to(dtype), weights=weights)


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
