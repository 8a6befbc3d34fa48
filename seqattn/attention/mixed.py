"""Packed batches of mixed lengths: short rectangles unfused and long ones fused, each the cheaper way."""

from __future__ import annotations

from dataclasses import replace

import torch

from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.masks import MASKED
from seqattn.attention.plain import Plain
from seqattn.attention.rectangles import empty_attention, is_empty
from seqattn.attention.sdpa import Fused, lowered, raised, run_packed

FUSED, PLAIN = Fused(), Plain()


class Mixed(Kernel):
    """Each rectangle by the cheaper of the kernels ``sdpa`` and ``plain``."""

    name = "mixed"
    capability = Capability(
        devices=("cpu",),
        dtypes=(torch.float32, torch.float64),
        patterns=MASKED,
        biases=("key",),
        needs=("output", "lse"),
        lse_gradient=False,
    )
    dropout_refusal = FUSED.dropout_refusal

    def limits(self, problem: Problem) -> list[str]:
        """Return what a mask cannot hold."""
        return FUSED.limits(problem)

    def cost(self, problem: Problem) -> float:
        """Return the time of the cheaper way for each rectangle."""
        if problem.layout is None:
            return min(FUSED.cost(problem), PLAIN.cost(problem))
        ways = _ways(problem)
        if len(set(ways)) < 2:
            return (PLAIN if any(ways) else FUSED).cost(problem)
        parts = zip(ways, FUSED.bucket_costs(problem), PLAIN.bucket_costs(problem), strict=True)
        saved = sum(fused - plain for is_unfused, fused, plain in parts if is_unfused)
        return FUSED.cost(problem) - saved

    def run(self, problem: Problem) -> Attention:
        """Compute each rectangle its way."""
        if is_empty(problem):
            return empty_attention(problem, self.name)
        ways = _ways(problem)
        if problem.layout is None:
            result = (PLAIN if any(ways) else FUSED).run(problem)
            return replace(result, stats={**result.stats, "kernel": self.name})
        low = lowered(problem)
        result = run_packed(low, ways, self.name)
        return result if low is problem else raised(result, problem)


def _ways(problem: Problem) -> list[bool]:
    """Return of each rectangle whether it is computed unfused; log-sums come from the fused call only."""
    costs = zip(FUSED.bucket_costs(problem), PLAIN.bucket_costs(problem), strict=True)
    return [problem.need == "output" and plain < fused for fused, plain in costs]
