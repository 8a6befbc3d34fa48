"""A second look at a call: its weights as exp(score - lse), block by block, from the log-sums that a kernel found.

The output is that of a kernel that gives log-sums; it differs from that of any other by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqattn.attention.band import WeightBand
from seqattn.attention.kernel import MAX_WEIGHTS, Attention, Problem
from seqattn.attention.reducers import Extent, WeightBlock
from seqattn.attention.sights import Sight, Tokens, row_sights, sights, tokens_of
from seqattn.attention.terms import Terms
from seqattn.errors import BackendError

__all__ = ["weighed"]


@torch.no_grad()
def weighed(problem: Problem, result: Attention) -> Attention:
    """Return the result of a call with what its second look asks for.

    Parameters
    ----------
    problem
        The call; it has a second look.
    result
        What a kernel found, ``lse`` included.
    """
    look = problem.look
    if look is None:
        raise TypeError("The call has no second look.")
    scores = _Scores(problem, result.lse)
    found = replace(result, lse=scores.lse_of_call) if problem.need == "output" else result
    if look.rows is not None:
        found = replace(found, weights=_rows(problem, scores, look.rows))
    if look.band:
        found = replace(found, band=_band(problem, scores))
    if look.reducers:
        reduced = _reduced(problem, scores)
        found = replace(found, reduced=reduced if look.several else reduced[0])
    return found


class _Scores:
    """The scores of a call, for any block of it."""

    def __init__(self, problem: Problem, lse: Tensor | None) -> None:
        if lse is None:
            raise TypeError("The log-sums of the call are needed.")
        self.problem = problem
        self.queries, self.keys = tokens_of(problem)
        self.lse_of_call = lse.detach()
        self.q, self.k, self.lse = (_by_token(x, problem) for x in (problem.q, problem.k, lse[..., None]))
        self.places = [side.place.to(lse.device) for side in (self.queries, self.keys)]
        self.added = None if problem.bias is None else _Added(problem, problem.bias, self.queries)

    def blocks(self) -> Iterator[WeightBlock]:
        """Yield all weights of the call."""
        for sight in sights(self.problem, self.queries, self.keys):
            yield self.weigh(sight)

    def weigh(self, sight: Sight) -> WeightBlock:
        """Return the weights of a block."""
        groups = self.problem.heads // self.problem.k.shape[1]
        q = self.q[sight.query[:, None], sight.head[..., None]].to(self.lse.dtype)
        k = self.k[sight.key[:, None], sight.head[..., None] // groups].to(self.lse.dtype)
        scores = torch.matmul(q * self.problem.scale, k.transpose(-1, -2))
        places = [side[x] for side, x in zip(self.places, (sight.query, sight.key), strict=True)]
        if self.added is not None:
            self.added.add(scores, sight, *places)
        lse = self.lse[sight.query[:, None], sight.head[..., None]]
        # Without a visible key the log-sum is -inf, and with a bias of -inf nothing else is visible.
        weights = (scores - lse).exp_().masked_fill_(~sight.visible | lse.isneginf(), 0)
        return WeightBlock(weights, sight.visible, sight.query, sight.key, sight.head, *places)


class _Added:
    """What the biases of a call add to the scores, for any block of it."""

    def __init__(self, problem: Problem, terms: Terms, queries: Tokens) -> None:
        self.key = None if terms.key is None else _by_token(terms.key.values[..., None], problem)
        features = terms.separable
        self.features = None
        if features is not None:
            self.features = (_by_token(features.query, problem), _by_token(features.key, problem))
        self.relative, self.dense = terms.relative, terms.dense
        self.sequence = torch.zeros_like(queries.place)
        self.sequence[queries.number] = torch.from_numpy(
            np.repeat(np.arange(len(queries.lengths)), queries.lengths)
        )
        self.sequence = self.sequence.to(problem.q.device)

    def add(self, scores: Tensor, sight: Sight, i: Tensor, j: Tensor) -> None:
        """Add to the scores ``[rows, heads, queries, keys]`` of a block with these places of its tokens."""
        if self.key is not None:
            scores += _of(self.key, sight.key, sight.head)[..., 0][:, :, None]
        if self.features is not None:
            query, key = (x.to(scores.dtype) for x in self.features)
            of_keys = _of(key, sight.key, sight.head).transpose(-1, -2)
            scores += torch.matmul(_of(query, sight.query, sight.head), of_keys)
        if self.relative is not None:
            table, entry = self.relative.table.detach(), self.relative.entry(i[:, :, None] - j[:, None])
            scores += table[_head(sight, len(table))[..., None, None], entry[:, None]]
        if self.dense is not None:
            values = self.dense.values.detach()
            sequence = self.sequence[sight.query] * (len(values) > 1)
            head = _head(sight, values.shape[1])[..., None, None]
            scores += values[sequence[:, None, :, None], head, i[:, None, :, None], j[:, None, None]]


def _head(sight: Sight, heads: int) -> Tensor:
    """Return the heads of a block in a tensor that has all heads or one for all."""
    return sight.head if heads > 1 else sight.head * 0


def _of(x: Tensor, token: Tensor, head: Tensor) -> Tensor:
    """Return ``[rows, heads, tokens, dim]`` of ``[tokens, heads or 1, dim]``."""
    return x[token[:, None], (head if x.shape[1] > 1 else head * 0)[..., None]]


def _by_token(x: Tensor, problem: Problem) -> Tensor:
    """Return ``[tokens, heads, dim]`` of either layout, tokens as the call numbers them."""
    x = x.detach()
    return x if problem.layout is not None else x.transpose(1, 2).flatten(0, 1)


def _reduced(problem: Problem, scores: _Scores) -> tuple[Any, ...]:
    """Return what each reducer makes of all weights, in one pass."""
    packed = problem.layout is not None
    sizes = [(x.shape[0],) if packed else (x.shape[0], x.shape[2]) for x in (problem.q, problem.k)]
    extent = Extent(sizes[0], sizes[1], problem.heads, problem.q.device)
    reducers = () if problem.look is None else problem.look.reducers
    totals = [reducer.start(extent) for reducer in reducers]
    for block in scores.blocks():
        for reducer, total in zip(reducers, totals, strict=True):
            reducer.add(total, block)
    return tuple(reducer.result(total, extent) for reducer, total in zip(reducers, totals, strict=True))


def _rows(problem: Problem, scores: _Scores, rows: Tensor) -> Tensor:
    """Return the weights of some queries."""
    flat = rows.cpu()
    if problem.layout is None:
        flat = flat.expand(problem.batch, -1) + torch.arange(problem.batch)[:, None] * problem.queries
    asked, back = flat.unique(return_inverse=True)
    live = np.isin(asked.numpy(), scores.queries.number.numpy())
    found = scores.q.new_zeros(len(asked), problem.heads, problem.keys)
    place = torch.full((len(scores.q),), -1, device=found.device)
    place[asked.to(found.device)] = torch.arange(len(asked), device=found.device)
    for sight in row_sights(problem, scores.queries, scores.keys, asked.numpy()[live]):
        weights = scores.weigh(sight).weights[0].transpose(0, 1)
        found[place[sight.query[0]], :, : weights.shape[-1]] = weights.to(found.dtype)
    found = found[back.to(found.device)]
    return found if problem.layout is not None else found.transpose(1, 2)


def _band(problem: Problem, scores: _Scores) -> WeightBand:
    """Return the weights of the visible keys only."""
    tokens, heads = scores.q.shape[:2]
    alike = not problem.pattern.by_head
    width = _width(problem, scores)
    values = problem.q.new_zeros(tokens, heads, width)
    keys = torch.full((tokens, 1 if alike else heads, width), -1, device=values.device)
    used = torch.zeros(tokens, heads, dtype=torch.int64, device=values.device)
    for block in scores.blocks():
        token, head = (
            x.expand(len(block.query), -1, -1) for x in (block.query[:, None], block.head[..., None])
        )
        visible = block.visible.expand(block.weights.shape)
        column = visible.cumsum(-1) - 1 + used[token, head][..., None]
        row, h, i, j = visible.nonzero(as_tuple=True)
        place = (block.query[row, i], head[row, h, 0], column[row, h, i, j])
        values[place] = block.weights[row, h, i, j].to(values.dtype)
        keys[place[0], place[1] * (not alike), place[2]] = block.key[row, j]
        used.index_put_((token, head), visible.sum(-1), accumulate=True)
    return _as_band(problem, scores, *_ordered(values, keys))


def _width(problem: Problem, scores: _Scores) -> int:
    """Return how many keys a query sees at most."""
    tokens, heads = scores.q.shape[:2]
    counts = torch.zeros(tokens, heads, dtype=torch.int64, device=scores.q.device)
    for sight in sights(problem, scores.queries, scores.keys):
        seen = sight.visible.sum(-1)
        counts.index_put_((sight.query[:, None], sight.head[..., None]), seen, accumulate=True)
    width = int(counts.max()) if counts.numel() else 0
    if counts.numel() * width > MAX_WEIGHTS:
        raise BackendError(
            f"need='band' cannot be given: a query sees up to {width} keys, and {counts.numel() * width} weights are "
            f"more than {MAX_WEIGHTS}. Ask for rows= of single queries or for reduce=."
        )
    return width


def _ordered(values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return a band with the keys of each query in their order, as unions do not find them."""
    late = (keys[..., 1:] < keys[..., :-1]) & (keys[..., 1:] >= 0)
    if not late.any():
        return values, keys
    order = keys.masked_fill(keys < 0, int(keys.max()) + 1).argsort(-1)
    return values.gather(-1, order.expand(values.shape)), keys.gather(-1, order)


def _as_band(problem: Problem, scores: _Scores, values: Tensor, keys: Tensor) -> WeightBand:
    """Return the band in the layout of the call."""
    if problem.layout is None:
        keys = torch.where(keys < 0, keys, scores.places[1][keys.clamp(min=0)])
        values, keys = (
            x.unflatten(0, (problem.batch, problem.queries)).transpose(1, 2) for x in (values, keys)
        )
    return WeightBand(values, keys, problem.layout, problem.key_layout, problem.keys)
