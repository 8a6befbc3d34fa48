"""Windows inside segments on a GPU: rows put into segments, one call of torch's variable-length attention, and back.

Any pattern whose runs are one plain window inside segments has this form: dense and local ones, dilated ones, labels
and token-choice routing, where one cluster of one head is one sequence. :func:`prepare` is plain indexing on any
device; only :func:`_attended` needs a GPU.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqattn.attention import gpu
from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.layout import Layout, Side, to_slots, to_tokens
from seqattn.attention.packing import run_packed
from seqattn.attention.rectangles import empty_attention
from seqattn.attention.tiles import Band, Run
from seqattn.errors import ParameterError

__all__ = ["Rows", "Varlen", "prepare", "restored"]

# The widest head of the kernel, and what widths are padded to.
WIDEST, STEP = 256, 8
# Compute capability from which the kernel exists.
CAPABILITY = (8, 0)


class Varlen(Kernel):
    """Torch's variable-length attention on segments of packed rows; no masks, no padding."""

    name = "varlen"
    capability = Capability(
        devices=("cuda",),
        dtypes=(torch.float16, torch.bfloat16),
        patterns=("dense", "local", "dilated", "segments", "union"),
        needs=("output", "lse"),
        key_mask=False,
        lse_gradient=False,
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return what is more than a plain window, or too large, or not there."""
        if problem.q.device.type != "cuda":
            return []
        missing = _missing(torch.cuda.get_device_capability(problem.q.device))
        return [*form_refusals(problem), *size_refusals(problem), *missing]

    def cost(self, problem: Problem) -> float:
        """Return a guess of the time from nominal figures."""
        tokens = problem.batch * problem.queries if problem.layout is None else problem.layout.n_tokens
        keys = min(problem.keys, gpu.BLOCK + problem.pattern.reach(problem.keys))
        width = max(problem.q.shape[-1], problem.v.shape[-1])
        in_place = problem.layout is not None and not problem.pattern.has_labels
        moved = 0 if in_place else 8 * tokens * problem.heads * width
        pairs = tokens * keys * problem.heads
        return gpu.microseconds(1, pairs, width, problem.q.element_size(), moved, problem.training)

    def run(self, problem: Problem) -> Attention:
        """Compute a packed call; padded input is packed before."""
        if 0 in problem.q.shape or 0 in problem.k.shape:
            return empty_attention(problem, self.name)
        if problem.layout is None:
            return run_packed(problem, self.run)
        rows = prepare(problem)
        return restored(problem, rows, *_attended(rows, problem.need == "lse"), self.name)


@dataclass(frozen=True, eq=False)
class Rows:
    """The arguments of variable-length attention, and the way back.

    ``q [rows, heads, dim]`` holds segments end to end as ``query_offsets`` says, ``k`` and ``v`` those of the keys.
    Row ``i`` of a segment of ``n`` queries and ``m`` keys sees the keys from ``i + m - n - window[0]`` to
    ``i + m - n + window[1]``; -1 stands for no end. ``query_lengths`` are those of the segments, on the CPU.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    query_lengths: np.ndarray
    longest: tuple[int, int]
    window: tuple[int, int]
    scale: float
    side: Side
    by_head: bool


@dataclass(frozen=True, eq=False)
class _Order:
    """What depends on lengths and labels only: the order of the rows, and where segments lie."""

    side: Side
    lengths: np.ndarray
    offsets: Tensor
    span: Band
    by_head: bool


def prepare(problem: Problem) -> Rows:
    """Return a packed call in the form of variable-length attention; nothing here needs a GPU.

    Parameters
    ----------
    problem
        The call, packed, without refusals.
    """
    order, key_layout = _order(problem), problem.key_layout
    if key_layout is None:
        raise TypeError("A padded call has no rows.")
    q, k, v = problem.q, problem.k, problem.v
    if order.by_head:
        groups = problem.heads // k.shape[1]
        k, v = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (k, v))
    width = gpu.up_to(max(q.shape[-1], v.shape[-1]), STEP)
    q, k, v = (_in_order(_widened(x, width), order) for x in (q, k, v))
    keys = (order.offsets, order.lengths) if not problem.cross else (key_layout.offsets, key_layout.lengths)
    return Rows(
        q, k, v, order.offsets, keys[0], order.lengths,
        (int(order.lengths.max(initial=0)), int(keys[1].max(initial=0))),
        _window(order.span, problem.causal), problem.scale, order.side, order.by_head,
    )  # fmt: skip


def restored(problem: Problem, rows: Rows, output: Tensor, lse: Tensor | None, kernel: str) -> Attention:
    """Return the result for the rows as that of the call.

    Parameters
    ----------
    problem
        The call.
    rows
        What :func:`prepare` returned for it.
    output
        ``[rows, heads, dim]``.
    lse
        ``[rows, heads]``, if asked for.
    kernel
        Name for ``stats``.
    """
    tokens, heads = problem.q.shape[:2]
    found = to_tokens(output, rows.side).reshape(tokens, heads, -1)[..., : problem.v.shape[-1]]
    sums = None if lse is None else to_tokens(lse, rows.side).reshape(tokens, heads)
    return Attention(found, None, sums, {"kernel": kernel, "finite": None})


def form_refusals(problem: Problem) -> list[str]:
    """Return why the pattern of a call is more than one plain window inside segments.

    Parameters
    ----------
    problem
        The call; of its pattern only the form is looked at, not the labels.
    """
    if problem.pattern.is_keyed:
        return ["labels of the keys are not supported"]
    try:
        runs = problem.pattern.of(slice(0, 0)).runs(Layout.of([0]), problem.heads)
    except ParameterError as error:
        return [str(error)]
    if runs is None or len(runs) != 1:
        return [f"pattern {problem.pattern.name!r} is not a single window inside segments"]
    run = runs[0]
    if run.hides or run.keeps or not _is_plain(run):
        return [f"the window of pattern {problem.pattern.name!r} has exceptions, a prefix or shifted ends"]
    if problem.cross:
        return _cross_refusals(problem, run)
    return []


def _is_plain(run: Run) -> bool:
    span = run.span
    if not isinstance(span, Band) or span.prefix:
        return False
    return all(side is None or side >= 0 for side in (span.left, span.right))


def _cross_refusals(problem: Problem, run: Run) -> list[str]:
    """Return why keys of other sequences do not fit: windows are aligned at the last key, and empty rows are untested.

    The rest of the library counts windows from the first token on both sides.
    """
    if run.span != Band(None, None):
        return ["windows over keys of another sequence are not supported"]
    if problem.layout is None or problem.key_layout is None:
        return ["padded keys of another sequence are not supported"]
    queries, keys = problem.layout.lengths, problem.key_layout.lengths
    if ((queries > 0) & (keys < (queries if problem.causal else 1))).any():
        return ["a query sees no key"]
    return []


def size_refusals(problem: Problem) -> list[str]:
    """Return whether heads are too wide or a segment too long.

    Parameters
    ----------
    problem
        The call.
    """
    width = gpu.up_to(max(problem.q.shape[-1], problem.v.shape[-1]), STEP)
    reasons = []
    if width > WIDEST:
        reasons.append(f"heads of width {width} are wider than {WIDEST}")
    if problem.heads > gpu.LAUNCH:
        reasons.append(f"more than {gpu.LAUNCH} heads do not fit a launch grid")
    if gpu.index_size(1, problem.heads, problem.queries + gpu.BLOCK, width) >= gpu.INDEX:
        reasons.append("a single sequence is too long for 32-bit indices")
    return reasons


def _missing(capability: tuple[int, int]) -> list[str]:
    """Return what a device of this compute capability, or the installed torch, lacks."""
    reasons = []
    if capability < CAPABILITY:
        reasons.append(f"compute capability {capability} is below {CAPABILITY}")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return [*reasons, "this torch has no variable-length attention"]
    wanted = {"window_size", "enable_gqa", "return_aux"} - set(inspect.signature(varlen_attn).parameters)
    if wanted:
        reasons.append(f"variable-length attention of this torch lacks {', '.join(sorted(wanted))}")
    return reasons


def _window(span: Band, causal: bool) -> tuple[int, int]:
    """Return how far a row sees to the left and to the right; -1 for no end."""
    left, right = (-1 if side is None else side for side in (span.left, span.right))
    return left, 0 if causal else right


def _order(problem: Problem) -> _Order:
    """Return the rows of a call; they are kept on the layout, of labels those of the last ones."""
    layout, pattern, heads = problem.layout, problem.pattern, problem.heads
    if layout is None:
        raise TypeError("A padded call has no rows.")

    def make() -> _Order:
        runs = pattern.runs(layout, heads)
        if runs is None or len(runs) != 1 or not isinstance(runs[0].span, Band):
            raise TypeError(f"Pattern {pattern.name!r} is not a single window inside segments.")
        return _ordered(runs[0], runs[0].span, layout)

    key = ("varlen", pattern, heads)
    found: _Order = layout.keep_last("varlen", key, make) if pattern.has_labels else layout.keep(key, make)
    return found


def _ordered(run: Run, span: Band, layout: Layout) -> _Order:
    device = layout.offsets.device
    side = Side(None, None, None, None)
    if run.order is not None:
        back = np.empty_like(run.order)
        back[run.order] = np.arange(len(run.order))
        side = Side(torch.from_numpy(run.order).to(device), torch.from_numpy(back).to(device), None, None)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(run.lengths)])
    return _Order(side, run.lengths, torch.from_numpy(ends).to(device, torch.int32), span, run.by_head)


def _widened(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def _in_order(x: Tensor, order: _Order) -> Tensor:
    """Return the rows segment by segment, the last dimension contiguous."""
    rows = x.reshape(-1, 1, x.shape[-1]) if order.by_head else x
    moved = to_slots(rows, order.side)
    return moved if moved.stride(-1) == 1 else moved.contiguous()


def _attended(rows: Rows, with_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Return output and log-sums of the rows: the only step that needs a GPU."""
    parts = [_launched(part, with_lse) for part in parted(rows)]
    outputs, sums = zip(*parts, strict=True)
    if len(parts) == 1:
        return parts[0]
    return torch.cat(outputs), torch.cat(sums) if with_lse else None


def _launched(rows: Rows, with_lse: bool) -> tuple[Tensor, Tensor | None]:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    found = varlen_attn(
        rows.q, rows.k, rows.v, rows.query_offsets, rows.key_offsets, *rows.longest,
        return_aux=AuxRequest(lse=with_lse), scale=rows.scale, window_size=rows.window,
        enable_gqa=rows.k.shape[1] != rows.q.shape[1],
    )  # fmt: skip
    if isinstance(found, Tensor):
        return found, None
    # Documented as [rows, heads], and [heads, rows] in torch 2.13.
    output, lse = found
    return output, lse.transpose(0, 1)


def parted(rows: Rows) -> list[Rows]:
    """Return the rows in parts that fit one launch each, cut between segments.

    Parameters
    ----------
    rows
        What :func:`prepare` returned.
    """
    cuts = gpu.segment_chunks(rows.query_lengths, rows.q.shape[1], rows.q.shape[-1])
    if len(cuts) < 2:
        return [rows]
    parts = []
    # Read once: there are several launches of the largest size behind.
    starts = [offsets.tolist() for offsets in (rows.query_offsets, rows.key_offsets)]
    for part in cuts:
        (n, n_end), (m, m_end) = ((one[part.start], one[part.stop]) for one in starts)
        places = slice(part.start, part.stop + 1)
        offsets = (rows.query_offsets[places] - n, rows.key_offsets[places] - m)
        k, v = rows.k[m:m_end], rows.v[m:m_end]
        parts.append(
            replace(rows, q=rows.q[n:n_end], k=k, v=v, query_offsets=offsets[0], key_offsets=offsets[1])
        )
    return parts
