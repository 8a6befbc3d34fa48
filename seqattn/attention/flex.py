"""Any pattern on a GPU: torch's FlexAttention, which compiles the rule of the pattern into the fused kernel.

The packed batch is one long sequence whose rule also asks for the same document. Which blocks of 128 by 128 tokens hold
a visible pair is told by the pattern's runs, without a look at the pairs. :func:`prepare` works on any device; only
:func:`_attended` needs a compiler, and trains on a GPU only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from seqattn.attention import gpu
from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.layout import Layout
from seqattn.attention.packing import run_packed
from seqattn.attention.pattern import Pattern, ranked
from seqattn.attention.ranks import Labels
from seqattn.attention.rectangles import empty_attention
from seqattn.attention.tiles import Pairs, Rule, Run
from seqattn.errors import BackendError

__all__ = ["Flex", "Long", "blocks", "prepare", "restored"]

BLOCK = 128
# The narrowest width that the compiled kernel takes, and the widest that fits its memory on chip.
NARROWEST, WIDEST = 16, 256
# Entries of the table of blocks, which is dense: 512 MiB for keys, as much for queries.
MOST_BLOCKS = 2**27
# Lengths are rounded up to eighths of a power of two, so that few of them are compiled; blocks beyond the end are free.
STEPS = 8
# Compilations of one pattern: lengths, with and without gradients.
COMPILATIONS = 64


class Flex(Kernel):
    """FlexAttention on the packed batch as one long sequence; blocks without a visible pair are skipped."""

    name = "flex"
    capability = Capability(
        devices=("cuda",),
        dtypes=(torch.float16, torch.bfloat16, torch.float32),
        patterns=(
            *("dense", "local", "neighborhood", "blocked", "dilated", "prefix", "segments"),
            *("union", "intersection"),
        ),
        biases=("key",),
        needs=("output", "lse"),
        cross=False,
        key_mask=False,
        lse_gradient=False,
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return what is too large, or cannot be compiled."""
        if problem.q.device.type != "cuda":
            return []
        missing = [] if find_spec("triton") else ["Triton, which compiles it, is not installed"]
        return [*size_refusals(problem), *missing]

    def cost(self, problem: Problem) -> float:
        """Return a guess of the time from nominal figures; compiling, once per pattern and length, is left out."""
        tokens = problem.batch * problem.queries if problem.layout is None else problem.layout.n_tokens
        keys = min(problem.keys, 2 * BLOCK + problem.pattern.reach(problem.keys))
        width = _power(max(problem.q.shape[-1], problem.v.shape[-1]))
        moved = 4 * tokens * problem.heads * width
        pairs = 2.0 * tokens * keys * problem.heads
        return gpu.microseconds(2, pairs, width, problem.q.element_size(), moved, problem.training)

    def run(self, problem: Problem) -> Attention:
        """Compute a packed call; padded input is packed before."""
        if 0 in problem.q.shape:
            return empty_attention(problem, self.name)
        if problem.layout is None:
            return run_packed(problem, self.run)
        return restored(problem, *_attended(problem, prepare(problem)), self.name)


@dataclass(frozen=True, eq=False)
class Long:
    """A packed call as one sequence ``[1, heads, length, dim]``, its length and widths rounded up.

    ``bias`` is added to the scores of keys, ``[length, heads or 1]``; ``mask`` holds the visible blocks, and the rule
    for the pairs inside them as its ``mask_mod``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    mask: BlockMask
    scale: float

    @property
    def score_mod(self) -> Callable[..., Tensor] | None:
        """What is done to each score, in the form that FlexAttention takes."""
        if self.bias is None:
            return None
        return _added(self.bias)


def prepare(problem: Problem) -> Long:
    """Return a packed call in the form of FlexAttention; nothing here needs a GPU or a compiler.

    Parameters
    ----------
    problem
        The call, packed, without refusals.
    """
    layout = problem.layout
    if layout is None:
        raise TypeError("A padded call is not one sequence.")
    size = rounded(layout.n_tokens)
    q, k, v = (_long(x, size) for x in (problem.q, problem.k, problem.v))
    mask = _mask(problem, layout, size)
    values = problem.key_bias
    if values is None:
        return Long(q, k, v, None, mask, problem.scale)
    bias = F.pad(values, (0, 0, 0, size - layout.n_tokens)).to(torch.promote_types(q.dtype, torch.float32))
    hidden = bias.detach().isneginf()
    mask = copy(mask)
    mask.mask_mod = _shown(mask.mask_mod, hidden)
    return Long(q, k, v, bias.masked_fill(hidden, 0), mask, problem.scale)


def restored(problem: Problem, output: Tensor, lse: Tensor | None, kernel: str) -> Attention:
    """Return the result of the long sequence as that of the call.

    Parameters
    ----------
    problem
        The call.
    output
        ``[1, heads, length, dim]``.
    lse
        ``[1, heads, length]``, if asked for.
    kernel
        Name for ``stats``.
    """
    tokens = problem.q.shape[0]
    found = output[0, :, :tokens, : problem.v.shape[-1]].transpose(0, 1)
    sums = None if lse is None else lse[0, :, :tokens].transpose(0, 1)
    return Attention(found, None, sums, {"kernel": kernel, "finite": None})


def size_refusals(problem: Problem) -> list[str]:
    """Return whether heads are too wide or the batch is too long.

    Parameters
    ----------
    problem
        The call.
    """
    width = max(problem.q.shape[-1], problem.v.shape[-1])
    tokens = problem.batch * problem.queries if problem.layout is None else problem.layout.n_tokens
    entries = (rounded(tokens) // BLOCK) ** 2 * (problem.heads if problem.pattern.by_head else 1)
    reasons = []
    if width > WIDEST:
        reasons.append(f"heads of width {width} are wider than {WIDEST}")
    if entries > MOST_BLOCKS:
        reasons.append(f"{entries} pairs of blocks are more than {MOST_BLOCKS}; split the batch")
    if gpu.index_size(1, problem.heads, rounded(tokens), _power(width)) >= gpu.INDEX:
        reasons.append("the batch is too long for 32-bit indices; split it")
    return reasons


def rounded(tokens: int) -> int:
    """Return the length to which a batch is filled up: whole blocks, and few different lengths.

    Parameters
    ----------
    tokens
        Number of tokens.

    Examples
    --------
    >>> rounded(1), rounded(128), rounded(1100), rounded(10_000)
    (128, 128, 1152, 10240)
    """
    step = max(BLOCK, _power(tokens) // (2 * STEPS))
    return gpu.up_to(max(tokens, 1), step)


def _power(size: int) -> int:
    """Return the next power of two that a width may have."""
    return max(NARROWEST, 1 << max(size - 1, 0).bit_length())


def _long(x: Tensor, size: int) -> Tensor:
    return F.pad(x, (0, _power(x.shape[-1]) - x.shape[-1], 0, 0, 0, size - x.shape[0])).transpose(0, 1)[None]


def _mask(problem: Problem, layout: Layout, size: int) -> BlockMask:
    """Return blocks and rule of a call; they are kept on the layout, of labels those of the last ones."""
    pattern, causal, heads = problem.pattern, problem.causal, problem.heads
    key = ("flex", pattern, causal, heads)

    def make() -> BlockMask:
        found = torch.from_numpy(blocks(pattern, layout, causal, heads, size // BLOCK))
        found = found.to(layout.offsets.device, torch.int8)[None]
        order = found.argsort(dim=-1, descending=True, stable=True).to(torch.int32)
        rule = _rule(pattern, layout, causal, size)
        return BlockMask.from_kv_blocks(
            found.sum(-1, dtype=torch.int32), order, BLOCK_SIZE=BLOCK, mask_mod=rule
        )

    kept: BlockMask = layout.keep_last("flex", key, make) if pattern.has_labels else layout.keep(key, make)
    return kept


def blocks(pattern: Pattern, layout: Layout, causal: bool, heads: int, size: int) -> np.ndarray:
    """Return which pairs of blocks may hold a visible pair: ``[heads or 1, size, size]``, queries first.

    Parameters
    ----------
    pattern
        Any pattern with runs.
    layout
        Where the sequences lie.
    causal
        Whether later keys are hidden.
    heads
        Number of heads.
    size
        Number of blocks.
    """
    runs = pattern.runs(layout, heads)
    if runs is None:
        raise TypeError(f"Pattern {pattern.name!r} has no runs.")
    by_head = any(run.by_head for run in runs)
    whole = [run.with_heads(heads) if by_head else run for run in runs]
    marks = np.zeros((heads if by_head else 1, size, size + 1), np.int32)
    for run in whole:
        _mark(marks, run, heads if by_head else 1, causal)
    return marks.cumsum(-1)[..., :-1] > 0


def _mark(marks: np.ndarray, run: Run, heads: int, causal: bool) -> None:
    """Add the blocks of a run: +1 where a range of keys begins, -1 behind its end.

    Rows of one segment in one block of queries follow each other, and so do the keys that they see.
    """
    rows = np.arange(int(run.lengths.sum())) if run.order is None else run.order
    token, head = rows // heads, rows % heads
    segment = np.repeat(np.arange(len(run.lengths)), run.lengths)
    first = (np.cumsum(run.lengths) - run.lengths)[segment]
    piece = np.flatnonzero(np.diff(segment, prepend=-1) | np.diff(token // BLOCK, prepend=-1))
    stop = np.append(piece[1:], len(rows))
    size = run.lengths[segment[piece]]
    begin, end = piece - first[piece], stop - first[piece]
    low, high = run.span.reach(begin, end, size)
    if causal:
        high = np.minimum(high, end)
    front = np.minimum(run.span.front, np.minimum(size, end) if causal else size)
    for start, behind in ((low, high), (np.zeros_like(front), front)):
        some = behind > start
        places = head[piece[some]], token[piece[some]] // BLOCK
        keys = first[piece[some]] + start[some], first[piece[some]] + behind[some] - 1
        np.add.at(marks, (*places, token[keys[0]] // BLOCK), 1)
        np.add.at(marks, (*places, token[keys[1]] // BLOCK + 1), -1)


def _rule(pattern: Pattern, layout: Layout, causal: bool, size: int) -> Callable[..., Tensor]:
    """Return the rule for single pairs in the form that FlexAttention takes."""
    lengths, device = layout.lengths, layout.offsets.device
    place = np.arange(layout.n_tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    def filled(values: np.ndarray, fill: int) -> Tensor:
        wide = np.pad(values, (0, size - layout.n_tokens), constant_values=fill)
        return torch.from_numpy(wide).to(device)

    places, of = filled(place, 0), filled(np.repeat(lengths, lengths), 1)
    sequence = filled(np.repeat(np.arange(len(layout)), lengths), -1)
    return _visible(pattern.rule(_filled(pattern, layout, size)), places, of, sequence, causal)


def _filled(pattern: Pattern, layout: Layout, size: int) -> Iterator[Labels]:
    """Return the labels of a pattern with their ranks, up to the rounded length."""
    for labels in ranked(pattern, layout):
        more = (0, 0, 0, size - layout.n_tokens)
        yield Labels(F.pad(labels.label, more), F.pad(labels.rank, more))


def _visible(
    rule: Rule, place: Tensor, length: Tensor, sequence: Tensor, causal: bool
) -> Callable[..., Tensor]:
    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        i, j = place[query], place[key]
        seen: Tensor = rule.shows(Pairs(i, j, length[query], query, key, head))
        seen = seen & (sequence[query] == sequence[key])
        return seen & (j <= i) if causal else seen

    return visible


def _shown(rule: Callable[..., Tensor], hidden: Tensor) -> Callable[..., Tensor]:
    """Return the rule without the hidden keys, ``[length, heads or 1]``."""
    every = hidden.shape[1] == 1

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        column = head * 0 if every else head
        return rule(batch, head, query, key) & ~hidden[key, column]

    return visible


def _added(bias: Tensor) -> Callable[..., Tensor]:
    every = bias.shape[1] == 1

    def added(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias[key, head * 0 if every else head]

    return added


def _attended(problem: Problem, long: Long) -> tuple[Tensor, Tensor | None]:
    """Return output and log-sums: the only step that compiles."""
    pattern = problem.pattern
    kind = pattern.name if pattern.has_labels else pattern
    compiled = _compiled((kind, problem.causal, long.bias is not None, long.q.dtype, long.q.shape[-1]))
    found: tuple[Tensor, Tensor | None] = compiled(
        long.q, long.k, long.v, long.score_mod, long.mask, long.scale, problem.need == "lse"
    )
    return found


@lru_cache(maxsize=256)
def _compiled(kind: tuple[Any, ...]) -> Callable[..., Any]:
    """Return the compiled call for one kind of pattern, type and width."""
    wanted: dict[str, Any] = {"recompile_limit": COMPILATIONS, "isolate_recompiles": True}
    known = inspect.signature(torch.compile).parameters
    more = {name: value for name, value in wanted.items() if name in known}
    return torch.compile(_called, fullgraph=True, dynamic=False, **more)


def _called(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: Callable[..., Tensor] | None,
    mask: BlockMask,
    scale: float,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    # After a failed compilation torch runs this as plain Python, 25 times slower and with dense scores.
    if not torch.compiler.is_compiling():
        raise BackendError(
            'FlexAttention was not compiled and would form all scores. Use another kernel, or kernel="reference".'
        )
    grouped = q.shape[1] != k.shape[1]
    if not with_lse:
        return flex_attention(q, k, v, score_mod, mask, scale, enable_gqa=grouped), None
    from torch.nn.attention.flex_attention import AuxRequest

    output, aux = flex_attention(
        q, k, v, score_mod, mask, scale, enable_gqa=grouped, return_aux=AuxRequest(lse=True)
    )
    return output, aux.lse
