"""Dense attention through torch's fused call, with nothing that would make it leave the fused path."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.rectangles import Block, Solved, run_rectangles, statistic_dtype

# Microseconds per call and nanoseconds per (query, key, head) pair, torch 2.13, one thread, float32.
CALL_US = (40.0, 130.0)
PAIR_NS = 1.3
PAIR_NS_PER_WIDTH = 0.04
BACKWARD = 3.2
# The feature of a key that is hidden: its score is so low that its weight is exactly 0, and finite.
HIDDEN = -1e30


class Fused(Kernel):
    """Torch's fused call on rectangles: a bias per key and holes under the causal flag are one further feature."""

    name = "sdpa"
    capability = Capability(
        devices=("cpu", "cuda"),
        dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        patterns=("dense",),
        biases=("key",),
        needs=("output", "lse"),
        lse_gradient=False,
    )
    dropout_refusal = (
        "dropout > 0 leaves the fused path: 2-12 times slower forward, 1.4-6 times forward and backward from 50 "
        "tokens on, and memory quadratic in the length"
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return what only holds on a GPU."""
        if problem.q.device.type == "cpu":
            return []
        reasons = []
        if problem.need == "lse":
            reasons.append("need='lse' is available on the CPU only")
        if max(problem.batch, problem.heads) > 65535:
            reasons.append("more than 65535 sequences or heads do not fit a launch grid")
        return reasons

    def cost(self, problem: Problem) -> float:
        """Return the time of the calls and of the pairs in their rectangles."""
        calls, pairs = problem.pairs()
        width = max(problem.q.shape[-1], problem.v.shape[-1])
        work = pairs * (PAIR_NS + PAIR_NS_PER_WIDTH * width) / 1000
        return calls * CALL_US[problem.training] + work * (BACKWARD if problem.training else 1.0)

    def run(self, problem: Problem) -> Attention:
        """Compute one fused call per rectangle."""
        return run_rectangles(problem, _solve, self.name)


def _solve(block: Block) -> Solved:
    dtype, width = block.q.dtype, block.v.shape[-1]
    if block.is_triangular:
        keys = block.visible_keys()
        mask, sees = None, None if keys is None else keys.cumsum(-1) > 0
    else:
        keys = None
        mask, sees = block.mask()
    q, k, v = _with_feature(block, keys)
    if mask is not None:
        mask = mask.to(q.dtype)
    output, lse = _call(*_equal_widths(q, k, v), mask, block)
    if output.shape[-1] != width:
        output = output[..., :width]
    if sees is not None:
        output = output.masked_fill(~sees[..., None], 0)
        lse = None if lse is None else lse.masked_fill(~sees, -torch.inf)
    return Solved(output.to(dtype), lse if block.need == "lse" else None)


def _with_feature(block: Block, keys: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v, with bias and hidden keys as one feature: 1 in the query, bias / scale in the key."""
    q, k, v = block.q, block.k, block.v
    if block.bias is None and keys is None:
        return q, k, v
    # In half precision the bias would lose its digits.
    q, k, v = (x.to(statistic_dtype(x)) for x in (q, k, v))
    if block.bias is None:
        feature = torch.zeros(1, 1, k.shape[2], dtype=k.dtype, device=k.device)
    else:
        feature = block.bias.masked_fill(block.bias.isneginf(), 0).to(k.dtype) / block.scale
    if keys is not None:
        feature = feature.masked_fill(~keys, HIDDEN)
    feature = feature.expand(k.shape[0], k.shape[1], -1)[..., None]
    return torch.cat([q, q.new_ones(*q.shape[:-1], 1)], -1), torch.cat([k, feature], -1), v


def _equal_widths(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v, the narrower ones filled up with zeros: unequal widths leave the fused path."""
    width = max(q.shape[-1], v.shape[-1])
    q, k, v = (x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # type: ignore[return-value]


def _call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block: Block) -> tuple[Tensor, Tensor | None]:
    """Run the fused call. On the CPU it is named, because the general one falls back to the unfused path silently."""
    if q.device.type == "cpu":
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, lse = fused(q, k, v, 0.0, block.is_triangular, attn_mask=mask, scale=block.scale)
        return output, lse
    if mask is not None:
        mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    output = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=block.is_triangular, scale=block.scale
    )
    return output, None
