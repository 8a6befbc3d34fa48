"""Dense attention through torch's fused call, with nothing that would make it leave the fused path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from seqattn.attention import gpu
from seqattn.attention.costs import LANES, Work
from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.layout import to_slots
from seqattn.attention.masks import MASKED, is_masked, mask_limits, mask_pairs
from seqattn.attention.once import once
from seqattn.attention.rectangles import (
    Block,
    Solved,
    all_finite,
    cut,
    empty_attention,
    is_empty,
    join,
    join_rows,
    only,
    packed_blocks,
    run_rectangles,
    statistic_dtype,
    sum_is_finite,
)
from seqattn.attention.unfused import again_backward, unfused, unfused_backward, unfused_output

# Under the causal flag keys beyond this many after the first query of a block are left out.
KEY_BLOCK = 512
# The feature of a key that is hidden: its score is so low that its weight is exactly 0, and finite.
HIDDEN = -1e30
# With fewer keys than this, NaN scores may come out as 0; the widest vector registers hold 16 numbers today.
SWALLOWED = 32
# Not the unfused one: where none of these can run, torch says so.
GPU_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
# On a GPU widths are multiples of 8: what every fused kernel takes, in half precision too.
WIDTH_STEP = 8


class Fused(Kernel):
    """Torch's fused call on rectangles: a bias per key and holes under the causal flag are one further feature."""

    name = "sdpa"
    capability = Capability(
        devices=("cpu", "cuda"),
        dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        patterns=MASKED,
        biases=("key", "separable", "relative", "dense"),
        needs=("output", "lse"),
        lse_gradient=False,
    )
    gradient_refusal = (
        "that is learnt leaves the fused path: about 7 times the time of a call without it at 2000 tokens, forward "
        "and backward, and memory quadratic in the length"
    )
    dropout_refusal = (
        "dropout > 0 leaves the fused path: 2-12 times slower forward, 1.4-6 times forward and backward from 50 "
        "tokens on, and memory quadratic in the length"
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return what a mask cannot hold, and what only holds on a GPU."""
        on_gpu = [] if problem.q.device.type == "cpu" else gpu_refusals(problem)
        return [*mask_limits(problem), *on_gpu]

    def cost(self, problem: Problem) -> float:
        """Return the time of the calls, of the pairs in their rectangles, and of what is gathered for them."""
        work = self.work(problem)
        if problem.q.device.type == "cpu":
            return problem.time(self.name, work)
        size = problem.q.element_size()
        return gpu.microseconds(int(work.steps), work.pairs, problem.width, size, 0, problem.training)

    def work(self, problem: Problem) -> Work:
        """Return what is done in a call.

        Parameters
        ----------
        problem
            The call.
        """
        return rectangle_work(problem, is_fused=True)

    def bucket_costs(self, problem: Problem) -> list[float]:
        """Return the time of each rectangle alone.

        Parameters
        ----------
        problem
            The call.
        """
        return bucket_costs(self.name, problem, is_fused=True)

    def run(self, problem: Problem) -> Attention:
        """Compute one fused call per rectangle."""
        if is_empty(problem):
            return empty_attention(problem, self.name)
        low = lowered(problem)
        if low.layout is not None and low.q.device.type == "cpu":
            result = run_packed(low, [False] * len(low.plan().buckets), self.name)
        else:
            result = run_rectangles(low, _solve, self.name)
        return result if low is problem else raised(result, problem)


def gpu_refusals(problem: Problem) -> list[str]:
    """Return what torch's fused kernels for GPUs cannot do; one of them always runs, the unfused one never.

    Parameters
    ----------
    problem
        The call.
    """
    reasons = []
    if problem.need == "lse" or problem.look is not None:
        reasons.append("need='lse' is available on the CPU only")
    if problem.q.dtype == torch.float64:
        reasons.append("no fused kernel for torch.float64 on a GPU")
    if problem.heads > gpu.LAUNCH:
        reasons.append(f"more than {gpu.LAUNCH} heads do not fit a launch grid")
    width = max(problem.q.shape[-1], problem.v.shape[-1]) + 1
    if gpu.index_size(1, problem.heads, problem.queries, width) >= gpu.INDEX:
        reasons.append("a single sequence is too long for 32-bit indices")
    return reasons


def with_products(problem: Problem) -> Problem:
    """Return the same call with a separable bias as further features of queries and keys.

    In half precision they would lose their digits, so that the call is then one in float32.
    """
    separable = None if problem.bias is None else problem.bias.separable
    if problem.bias is None or separable is None:
        return problem
    q, k, v = (x.to(statistic_dtype(x)) for x in (problem.q, problem.k, problem.v))
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and separable.key.shape[1] > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    products = separable.key / problem.scale
    q, k = (_beside(x, more) for x, more in ((q, separable.query), (k, products)))
    rest = replace(problem.bias, separable=None)
    return replace(problem, q=q, k=k, v=v, bias=rest if rest.all() else None)


def _beside(x: Tensor, features: Tensor) -> Tensor:
    return torch.cat([x, features.to(x.dtype).expand(*x.shape[:-1], features.shape[-1])], -1)


def lowered(problem: Problem) -> Problem:
    """Return the same call in the form that the fused kernel takes: equal heads, equal widths, only biases of pairs.

    A separable bias becomes features. A bias per key and hidden keys become one feature: 1 in the query, bias / scale
    in the key. The values get a feature too, 1 for keys that are not hidden: where the output of it is 0, the row sees
    no key.
    """
    problem = with_products(problem)
    q, k, v = problem.q, problem.k, problem.v
    featured = _needs_feature(problem)
    width = common_width(q.shape[-1] + featured, v.shape[-1] + featured, q.device.type)
    if not featured and k.shape[1] == q.shape[1] and v.shape[-1] == q.shape[-1] == width:
        return problem
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if featured:
        # In half precision the bias would lose its digits.
        q, k, v = (x.to(statistic_dtype(x)) for x in (q, k, v))
        feature, shown = _feature(problem, k)
        q = torch.cat([q, q.new_ones(*q.shape[:-1], 1)], -1)
        k, v = torch.cat([k, feature], -1), torch.cat([v, shown], -1)
    q, k, v = (x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    if featured:
        pairs = None if problem.bias is None else problem.bias.pairs_only()
        return replace(problem, q=q, k=k, v=v, bias=pairs, key_mask=None)
    return replace(problem, q=q, k=k, v=v)


def common_width(width: int, value_width: int, device: str) -> int:
    """Return the width that queries, keys and values are padded to; on a GPU rows must begin at aligned places.

    Parameters
    ----------
    width, value_width
        Features of keys and of values.
    device
        Type of the device.
    """
    wide = max(width, value_width)
    return wide if device == "cpu" else gpu.up_to(wide, WIDTH_STEP)


def _needs_feature(problem: Problem) -> bool:
    """Return whether something is hidden or added per key that no mask should carry.

    A mask beside the causal flag is an error on some devices, and a mask instead of the flag takes quadratic memory.
    """
    triangular = problem.causal and problem.aligned and problem.queries > 1
    return problem.key_bias is not None or (problem.key_mask is not None and triangular)


def _feature(problem: Problem, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return the feature of the keys and that of the values."""
    size = (*k.shape[:-1], 1)
    feature = torch.zeros(1, dtype=k.dtype, device=k.device)
    hidden = torch.zeros(1, dtype=torch.bool, device=k.device)
    if problem.key_bias is not None:
        values = problem.key_bias[..., None]
        hidden = values.detach().isneginf()
        feature = values.masked_fill(hidden, 0).to(k.dtype) / problem.scale
    if problem.key_mask is not None:
        hidden = hidden | ~problem.key_mask[:, None, :, None]
    return feature.masked_fill(hidden, HIDDEN).expand(size), (~hidden).to(k.dtype).expand(size)


def raised(result: Attention, problem: Problem) -> Attention:
    """Return the result of a lowered call in the form of the call itself."""
    width = problem.v.shape[-1]
    output, lse = result.output[..., :width], result.lse
    if _needs_feature(problem):
        blind = result.output.detach()[..., width] < 0.5
        output = output.masked_fill(blind[..., None], 0)
        lse = None if lse is None else lse.masked_fill(blind, -torch.inf)
    return Attention(output.to(problem.q.dtype), None, lse, result.stats)


def _solve(block: Block) -> Solved:
    mask, sees = _mask(block)
    output, lse = _call(block, mask)
    return _solved(block, output, lse, sees)


def _mask(block: Block) -> tuple[Tensor | None, Tensor | None]:
    """Return what is added to the scores, unless the causal flag says it all, and which queries see a key."""
    if block.is_triangular:
        return None, None
    mask, sees = block.mask()
    if block.pairs is None or mask is None:
        return mask, sees
    return mask + block.pairs.masked_fill(block.pairs.isneginf(), 0).to(mask.dtype), sees


def _solved(block: Block, output: Tensor, lse: Tensor | None, sees: Tensor | None) -> Solved:
    """Return the result with nothing in the rows that see no key."""
    finite = _finite(block, output, lse, sees)
    if lse is None or block.need != "lse":
        return Solved(only(output, sees), finite)
    return Solved(only(output, sees), finite, lse if sees is None else lse.masked_fill(~sees, -torch.inf))


def _finite(block: Block, output: Tensor, lse: Tensor | None, sees: Tensor | None) -> bool | None:
    """Return whether the inputs were finite, judged by the output, which is at hand: a quarter of the time.

    Rows whose scores are all NaN come out as 0 with ``lse`` 0 when there are fewer keys than a vector register holds
    (torch 2.13). A finite row may have ``lse`` 0 too: then the inputs decide.
    """
    if lse is None:
        return None
    if sees is not None or block.pairs is not None:
        return all_finite(block.q, block.k, block.v, block.pairs)
    return sum_is_finite(output) and (block.k.shape[2] >= SWALLOWED or bool(lse.abs().amin() > 0))


def _call(block: Block, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return output and lse of the fused call.

    On the CPU the kernel is named, because the general call falls back to the unfused path silently.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (block.q, block.k, block.v))
    if q.device.type == "cpu":
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, lse = fused(q, k, v, 0.0, block.is_triangular, attn_mask=mask, scale=block.scale)
        return output, lse
    return _launched(q, k, v, mask, block.is_triangular, block.scale), None


def _launched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Return the output of torch's own choice among its fused kernels, as many rows at a time as fit a launch."""
    rows, heads, length, width = q.shape
    if mask is not None:
        mask = gpu.aligned_mask(mask).expand(rows, heads, length, k.shape[2])
    with sdpa_kernel(GPU_KERNELS):
        parts = [
            F.scaled_dot_product_attention(
                q[part], k[part], v[part], None if mask is None else mask[part], is_causal=causal, scale=scale
            )
            for part in gpu.row_chunks(rows, heads, length, width)
        ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def rectangle_work(problem: Problem, is_fused: bool) -> Work:
    """Return what a kernel for rectangles does in a call.

    Parameters
    ----------
    problem
        The call.
    is_fused
        Whether the causal flag saves pairs.
    """
    sizes = problem.rectangles()
    pairs = sum(_pairs(problem, size, is_fused) for size in sizes) * problem.heads
    row = problem.heads * problem.width * problem.q.element_size()
    moved = 0.0 if problem.layout is None else 4.0 * row * sum(rows * queries for rows, queries, _ in sizes)
    decided = 0
    if is_masked(problem) and (problem.layout is None or problem.pattern.has_labels):
        decided = mask_pairs(problem)
    matrices = problem.batch * problem.heads
    single = sum(_single(size, is_fused) for size in sizes) * problem.heads
    return Work(len(sizes), matrices, pairs, single, problem.width, moved, decided)


def bucket_costs(kernel: str, problem: Problem, is_fused: bool) -> list[float]:
    """Return the time of each rectangle alone, in microseconds.

    Parameters
    ----------
    kernel
        Name of the kernel.
    problem
        The call.
    is_fused
        Whether the causal flag saves pairs.
    """
    heads = problem.heads
    call = problem.time(kernel, Work(0, 0, 0, 0, problem.width, 0))
    works = [
        Work(
            1,
            size[0] * heads,
            _pairs(problem, size, is_fused) * heads,
            _single(size, is_fused) * heads,
            problem.width,
            0,
        )
        for size in problem.rectangles()
    ]
    return [problem.time(kernel, work) - call for work in works]


def _single(size: tuple[int, int, int], is_fused: bool) -> int:
    """Return how many pairs go alone: the last ones of a row in the fused call, all of a short one in a softmax."""
    rows, queries, keys = size
    return rows * queries * (keys % LANES if is_fused or keys < LANES else 0)


def _pairs(problem: Problem, size: tuple[int, int, int], is_fused: bool) -> float:
    """Return how many pairs of a rectangle are computed."""
    rows, queries, keys = size
    if is_fused and problem.causal and problem.aligned and not is_masked(problem):
        keys = min(keys, (keys + KEY_BLOCK) // 2)
    return float(rows * queries * keys)


class _Packed(torch.autograd.Function):
    """All rectangles of a packed call as one step of the gradient graph: a third of the overhead of many steps.

    ``ways`` says of each rectangle whether it is computed unfused.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, problem: Problem, ways: Sequence[bool]
    ) -> tuple[Tensor, Tensor | None, bool | None]:
        kept: list[Tensor | None] = []
        parts = []
        blocks = packed_blocks(problem)
        for block, is_unfused in zip(blocks, ways, strict=True):
            mask, sees = block.mask() if is_unfused else _mask(block)
            if is_unfused:
                output, weights = unfused(block.q, block.k, block.v, mask, block.scale)
                parts.append(solved_unfused(block, output, sees))
                kept += [block.q, block.k, block.v, None, weights, None, sees]
            else:
                output, lse = _call(block, mask)
                parts.append(_solved(block, output, lse, sees))
                kept += [block.q, block.k, block.v, output, lse, mask, sees]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.problem, ctx.ways = problem, ways
        ctx.triangular = [block.is_triangular for block in blocks]
        result = join(problem, parts, "")
        if result.lse is not None:
            ctx.mark_non_differentiable(result.lse)
        return result.output, result.lse, result.stats["finite"]

    @staticmethod
    @once
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return *_packed_backward(ctx, grad_output), None, None


class _PackedUnfused(_Packed):
    """The same where no rectangle is fused: there is a second derivative then."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return *_packed_backward(ctx, grad_output), None, None

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return run_rectangles(replace(ctx.problem, q=q, k=k, v=v), solve_unfused, "").output

        return *again_backward(run, ctx.saved_tensors[:3], grad_output), None, None


def _packed_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of packed q, k and v."""
    plan, scale, kept = ctx.problem.plan(), ctx.problem.scale, ctx.saved_tensors[3:]
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grads = to_slots(grad_output, plan.query, blank=True)
    parts = []
    for place, grad in enumerate(cut(grads, plan.buckets, 0)):
        q, k, v, output, second, mask, sees = kept[7 * place : 7 * place + 7]
        grad = only(grad, sees)
        if ctx.ways[place]:
            parts.append(unfused_backward(grad, q, k, v, second, scale))
        else:
            triangular = ctx.triangular[place]
            found = fused(grad, q, k, v, output, second, 0.0, triangular, attn_mask=mask, scale=scale)
            parts.append(found)
    sides = (plan.query, plan.key, plan.key)
    return tuple(
        join_rows(list(part), side) for part, side in zip(zip(*parts, strict=True), sides, strict=True)
    )


def run_packed(problem: Problem, ways: Sequence[bool], kernel: str) -> Attention:
    """Return the result of a packed call on the CPU, from its :func:`lowered` form.

    Parameters
    ----------
    problem
        The call.
    ways
        Of each rectangle, whether it is computed unfused.
    kernel
        Name for ``stats``.
    """
    step = _PackedUnfused if all(ways) else _Packed
    output, lse, finite = step.apply(problem.q, problem.k, problem.v, problem, ways)
    return Attention(output, None, lse, {"kernel": kernel, "finite": finite})


def solve_unfused(block: Block) -> Solved:
    """Return the output of a rectangle, computed unfused."""
    mask, sees = block.mask()
    output = unfused_output(block.q, block.k, block.v, mask, block.scale)
    return solved_unfused(block, output, sees)


def solved_unfused(block: Block, output: Tensor, sees: Tensor | None) -> Solved:
    """Return an output with nothing in the rows that see no key; it also tells whether the inputs were finite."""
    finite = None
    if output.device.type == "cpu":
        # Weights of 0 hide nothing that is not finite: 0 times NaN is NaN.
        finite = sum_is_finite(output) if sees is None else all_finite(block.q, block.k, block.v, None)
    return Solved(only(output, sees), finite)
