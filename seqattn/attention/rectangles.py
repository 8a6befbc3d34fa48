"""The border between ragged batches and kernels that work on rectangles of queries and keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from seqattn.attention.kernel import Attention, Problem
from seqattn.attention.layout import Bucket, Side, to_slots, to_tokens
from seqattn.attention.masks import is_masked, shown
from seqattn.attention.terms import pair_scores


@dataclass(slots=True, eq=False)
class Block:
    """One rectangle of queries and keys, with all that hides a key in it.

    ``q [rows, heads, queries, dim]``, ``k`` and ``v`` with the same number of heads. Sequences lie at the left:
    row ``b`` has ``query_lengths[b]`` queries and ``key_lengths[b]`` keys (``None``: all). ``aligned`` says that
    every row has as many keys as queries; ``every_row_sees`` that no query is known to be without a key. ``bias`` is
    added per key, ``[rows, heads or 1, keys]``, and ``pairs`` per pair; ``shown`` returns what the pattern shows and is
    ``None`` where it shows all.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    aligned: bool
    every_row_sees: bool
    bias: Tensor | None
    pairs: Tensor | None
    query_lengths: Tensor | None
    key_lengths: Tensor | None
    key_mask: Tensor | None
    scale: float
    dropout: float
    need: str
    memo: dict[Any, Any] | None
    memo_key: Any
    shown: Callable[[], Tensor] | None

    @property
    def is_lower(self) -> bool:
        """Whether causality is the lower triangle; padding at the right is then hidden from all true queries."""
        return self.causal and self.aligned

    @property
    def is_triangular(self) -> bool:
        """Whether queries see the lower triangle, nothing else is hidden by a rule, and no mask adds anything."""
        return self.is_lower and self.shown is None and self.pairs is None

    def visible_keys(self) -> Bool[Tensor, "rows_or_1 heads_or_1 keys"] | None:
        """Return the keys that are not hidden from all queries, or ``None`` if no key is."""
        visible = None
        if self.key_lengths is not None and not self.is_lower:
            visible = before(self.key_lengths, self.k.shape[2])
        if self.key_mask is not None:
            visible = _both(visible, self.key_mask[:, None])
        if self.bias is not None:
            visible = _both(visible, ~self.bias.detach().isneginf())
        return visible

    def triangle(self) -> Bool[Tensor, "rows_or_1 1 queries keys"] | None:
        """Return which keys causality leaves to each query: all up to the last key for the last query."""
        if not self.causal:
            return None
        queries, keys = self.q.shape[2], self.k.shape[2]
        i = torch.arange(queries, device=self.q.device)[:, None]
        j = torch.arange(keys, device=self.q.device)
        if self.aligned:
            return (j <= i)[None, None]
        last_key = _each(self.key_lengths, keys, self.q)
        last_query = _each(self.query_lengths, queries, self.q)
        return j <= i + (last_key - last_query)

    def mask(self) -> tuple[Tensor | None, Tensor | None]:
        """Return what to add to the scores, and which rows see a key at all; ``None`` for nothing and for all.

        Rows without any visible key are left open, so that no kernel divides by zero; their output is to be
        replaced by 0.
        """
        if self.memo is None or self.bias is not None or self.pairs is not None:
            return self._mask()
        key = (self.causal, self.q.dtype, self.memo_key)
        if key not in self.memo:
            self.memo[key] = self._mask()
        kept: tuple[Tensor | None, Tensor | None] = self.memo[key]
        return kept

    def _mask(self) -> tuple[Tensor | None, Tensor | None]:
        keys = self.visible_keys()
        visible = _both(None if keys is None else keys[:, :, None], self.triangle())
        if self.pairs is not None:
            visible = _both(visible, ~self.pairs.detach().isneginf())
        if self.shown is not None:
            visible = _both(visible, self.shown())
        if visible is None:
            return None, None
        is_free = self.bias is None and self.pairs is None
        sees = None if self.every_row_sees and is_free else visible.any(-1)
        if self.shown is not None and sees is not None and sees.all():
            sees = None
        hidden = ~visible if sees is None else ~visible & sees[..., None]
        zeros = torch.zeros(hidden.shape, dtype=self.q.dtype, device=self.q.device)
        return zeros.masked_fill_(hidden, -torch.inf), sees


class Solved(NamedTuple):
    """What a rectangle gives: rows without a key are 0 (``lse``: ``-inf``); padded rows may hold anything finite.

    ``finite`` is false if an input may have been NaN or infinite, and ``None`` if nobody looked.
    """

    output: Tensor
    finite: bool | None
    lse: Tensor | None = None
    weights: Tensor | None = None


def run_rectangles(problem: Problem, solve: Callable[[Block], Solved], kernel: str) -> Attention:
    """Return the whole call, each rectangle of it computed by ``solve``.

    Parameters
    ----------
    problem
        The call.
    solve
        Computes one rectangle.
    kernel
        Name for ``stats``.
    """
    if is_empty(problem):
        return empty_attention(problem, kernel)
    if problem.layout is None:
        return _run_padded(problem, solve, kernel)
    return join(problem, [solve(block) for block in packed_blocks(problem)], kernel)


def is_empty(problem: Problem) -> bool:
    """Return whether no query sees any key."""
    if problem.layout is None:
        return 0 in problem.q.shape or 0 in problem.k.shape
    return not problem.plan().buckets


def before(lengths: Tensor, size: int) -> Bool[Tensor, "rows 1 places"]:
    """Return which of ``size`` places lie inside sequences of these lengths."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None])[:, None]


def only(rows: Tensor, sees: Tensor | None) -> Tensor:
    """Return the rows of queries that see a key, and 0 for the others."""
    return rows if sees is None else rows.masked_fill(~sees[..., None], 0)


def _run_padded(problem: Problem, solve: Callable[[Block], Solved], kernel: str) -> Attention:
    """Replace padding by 0 on both sides, so that nothing in it can pass."""
    q, k, v = problem.q, problem.k, problem.v
    live = None if problem.lengths is None else before(problem.lengths, q.shape[2])
    used = None if problem.key_lengths is None else before(problem.key_lengths, k.shape[2])
    used = _both(used, None if problem.key_mask is None else problem.key_mask[:, None])
    pairs = pair_scores(problem.bias, q.shape[2], k.shape[2], None, live, used)
    bias = problem.key_bias
    if live is not None:
        q = q.masked_fill(~live[..., None], 0)
    if used is not None:
        k, v = (x.masked_fill(~used[..., None], 0) for x in (k, v))
        bias = None if bias is None else bias.masked_fill(~used, 0)
    lengths = (problem.lengths, problem.key_lengths, problem.key_mask)
    solved = solve(_block(problem, q, k, v, bias, pairs, lengths, problem.aligned, None))
    stats = {"kernel": kernel, "finite": solved.finite}
    if live is None:
        return Attention(solved.output, solved.weights, solved.lse, stats)
    return Attention(
        _fill(solved.output, ~live[..., None], 0.0),
        _fill(solved.weights, ~live[..., None], 0.0),
        _fill(solved.lse, ~live, -torch.inf),
        stats,
    )


def packed_blocks(problem: Problem) -> list[Block]:
    """Return the rectangles of a packed call."""
    plan = problem.plan()
    buckets = plan.buckets
    q = to_slots(problem.q, plan.query)
    k, v = (to_slots(x, plan.key) for x in (problem.k, problem.v))
    bias = None if problem.key_bias is None else to_slots(problem.key_bias, plan.key)
    parts = zip(cut(q, buckets, 0), cut(k, buckets, 1), cut(v, buckets, 1), strict=True)
    biases = None if bias is None else cut(bias[..., None], buckets, 1)
    blocks = []
    for place, (part_q, part_k, part_v) in enumerate(parts):
        bucket = buckets[place]
        lengths = (bucket.query_lengths, bucket.key_lengths, None)
        part_bias = None if biases is None else biases[place][..., 0]
        pairs = _bucket_pairs(problem, bucket)
        blocks.append(
            _block(problem, part_q, part_k, part_v, part_bias, pairs, lengths, bucket.aligned, bucket)
        )
    return blocks


def _bucket_pairs(problem: Problem, bucket: Bucket) -> Tensor | None:
    """Return what is added to the scores of the pairs of a bucket."""
    if problem.bias is None or not problem.bias.has_pairs:
        return None
    sides = ((bucket.query_lengths, bucket.queries), (bucket.key_lengths, bucket.keys))
    inside = (None if lengths is None else before(lengths, size) for lengths, size in sides)
    return pair_scores(problem.bias, bucket.queries, bucket.keys, bucket.sequences, *inside)


def all_finite(q: Tensor, k: Tensor, v: Tensor, *biases: Tensor | None) -> bool | None:
    """Return whether all numbers are finite, a bias of ``-inf`` aside, or ``None`` on a GPU.

    Sums that overflow count as not finite; that costs time only.
    """
    if q.device.type != "cpu":
        return None
    added = [bias.detach().clamp(min=-6e4) for bias in biases if bias is not None]
    return sum_is_finite(q, k, v, *added)


def sum_is_finite(*tensors: Tensor) -> bool:
    """Return whether the sum of all numbers is finite."""
    half = tensors[0].dtype in (torch.float16, torch.bfloat16)
    return all(math.isfinite(x.detach().sum(dtype=torch.float32 if half else None)) for x in tensors)


def join(problem: Problem, parts: list[Solved], kernel: str) -> Attention:
    """Return the result of a packed call from those of its rectangles."""
    side = problem.plan().query
    lse = weights = None
    if parts[0].lse is not None:
        lse = join_rows([part.lse[..., None] for part in parts if part.lse is not None], side).squeeze(-1)
        lse = lse if side.unused is None else lse.index_fill(0, side.unused, -torch.inf)
    if parts[0].weights is not None:
        weights = _weights(problem, [part.weights for part in parts])
    finite = None if parts[0].finite is None else all(part.finite for part in parts)
    output = join_rows([part.output for part in parts], side)
    return Attention(output, weights, lse, {"kernel": kernel, "finite": finite})


def _block(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    pairs: Tensor | None,
    lengths: tuple[Tensor | None, Tensor | None, Tensor | None],
    aligned: bool,
    bucket: Bucket | None,
) -> Block:
    # A single query sees all keys up to the last: causality is then no restriction, and needs no mask.
    causal = problem.causal and q.shape[2] > 1
    masked = is_masked(problem)
    labelled = problem.pattern.has_labels
    if bucket is None:
        every_row_sees = aligned and lengths == (None, None, None)
    else:
        every_row_sees = bucket.every_row_sees or not causal
    return Block(
        q,
        _all_heads(k, q.shape[1]),
        _all_heads(v, q.shape[1]),
        causal,
        aligned,
        every_row_sees and not masked,
        bias,
        pairs,
        *lengths,
        problem.scale,
        problem.dropout,
        problem.need,
        None if bucket is None or labelled else bucket.memo,
        problem.pattern if masked else None,
        partial(shown, problem, bucket, lengths[1]) if masked else None,
    )


def cut(slots: Tensor, buckets: tuple[Bucket, ...], which: int) -> list[Tensor]:
    """Return rows in slots as rectangles ``[rows, heads, length, dim]``; ``which`` is 0 for queries, 1 for keys."""
    shapes = [(bucket.rows, (bucket.queries, bucket.keys)[which]) for bucket in buckets]
    parts = slots.split([count * length for count, length in shapes]) if len(shapes) > 1 else (slots,)
    return [
        part.view(count, length, *slots.shape[1:]).transpose(1, 2)
        for part, (count, length) in zip(parts, shapes, strict=True)
    ]


def join_rows(parts: list[Tensor], side: Side) -> Tensor:
    """Return the packed tensor of rectangles ``[rows, heads, length, dim]``."""
    slots = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    return to_tokens(slots[0] if len(slots) == 1 else torch.cat(slots), side)


def _weights(problem: Problem, parts: list[Any]) -> Tensor:
    """Return the weights of all sequences in their order, padded to the longest."""
    queries, keys = problem.queries, problem.keys
    weights = parts[0].new_zeros(problem.batch, problem.heads, queries, keys)
    for part, bucket in zip(parts, problem.plan().buckets, strict=True):
        if bucket.query_lengths is not None:
            part = part.masked_fill(~before(bucket.query_lengths, bucket.queries)[..., None], 0)
        wide = F.pad(part, (0, keys - bucket.keys, 0, queries - bucket.queries))
        weights = weights.index_copy(0, bucket.sequences, wide)
    return weights


def empty_attention(problem: Problem, kernel: str) -> Attention:
    """Return zeros that still hang on the inputs, so that a backward pass gives zeros too."""
    q, k, v = problem.q, problem.k, problem.v
    nothing = q[..., :0].sum() + k[..., :0].sum() + v[..., :0].sum()
    for bias in () if problem.bias is None else problem.bias.all():
        nothing = nothing + sum(x[..., :0].sum() for x in bias.tensors())
    output = q.new_zeros(*q.shape[:-1], v.shape[-1]) + nothing
    lse = weights = None
    if problem.need != "output":
        lse = torch.full(q.shape[:-1], -torch.inf, device=q.device, dtype=statistic_dtype(q))
    if problem.need == "weights":
        weights = q.new_zeros(problem.batch, problem.heads, problem.queries, problem.keys)
    return Attention(output, weights, lse, {"kernel": kernel, "finite": True})


def statistic_dtype(q: Tensor) -> torch.dtype:
    """Return the precision of scores and their sums: at least float32."""
    return q.dtype if q.dtype == torch.float64 else torch.float32


def _all_heads(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _each(lengths: Tensor | None, size: int, like: Tensor) -> Tensor:
    """Return the lengths, or one size for all, fit to be compared with places."""
    if lengths is None:
        return torch.full((1, 1, 1, 1), size, device=like.device)
    return lengths[:, None, None, None]


def _fill(x: Tensor | None, where: Tensor, value: float) -> Any:
    return None if x is None else x.masked_fill(where, value)


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second
