"""Cross attention by common labels: the queries and keys of one label are a dense call of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqattn.attention.biases import KeyBias
from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.layout import Layout
from seqattn.attention.patterns import Dense, Segments
from seqattn.attention.rectangles import empty_attention
from seqattn.attention.sdpa import Fused
from seqattn.attention.terms import Terms

# Microseconds per call and nanoseconds per token and head to sort and move them, one thread.
CALL_US = 300.0
TOKEN_NS = 300.0


class Groups(Kernel):
    """Tokens brought together by label, then the fused call with every label of a sequence as a sequence."""

    name = "groups"
    capability = Capability(
        devices=("cpu",),
        dtypes=(torch.float32, torch.float64),
        patterns=("segments",),
        biases=("key",),
        needs=("output", "lse"),
        causal=False,
        key_mask=False,
        lse_gradient=False,
    )

    def limits(self, problem: Problem) -> list[str]:
        """Return whether labels of the keys are missing."""
        pattern = problem.pattern
        lacks = isinstance(pattern, Segments) and pattern.key_labels is None
        return ["keys have no labels of their own"] if lacks else []

    def cost(self, problem: Problem) -> float:
        """Return the time of the sort, and of the dense call at most."""
        tokens = problem.batch * (problem.queries + problem.keys) * problem.heads
        return CALL_US + tokens * TOKEN_NS / 1000 + Fused().cost(problem)

    def run(self, problem: Problem) -> Attention:
        """Sort queries and keys by label, attend, and put the results back."""
        pattern = problem.pattern
        if not isinstance(pattern, Segments) or pattern.key_labels is None:
            raise TypeError("This kernel computes Segments with labels of the keys.")
        if 0 in problem.q.shape or 0 in problem.k.shape:
            return empty_attention(problem, self.name)
        wide = problem.heads if pattern.by_head else 1
        q = _Side.of(problem.layout, problem.lengths, problem, problem.queries, pattern.labels, wide)
        k = _Side.of(problem.key_layout, problem.key_lengths, problem, problem.keys, pattern.key_labels, wide)
        queries, keys = _sorted(q, k)
        bias = problem.key_bias
        if bias is not None:
            bias = k.rows(bias[..., None], wide)[keys.order]
        found = Fused().run(
            replace(
                problem,
                q=q.rows(problem.q, wide)[queries.order],
                k=k.rows(problem.k, wide)[keys.order],
                v=k.rows(problem.v, wide)[keys.order],
                bias=None if bias is None else Terms(KeyBias(bias[..., 0])),
                pattern=Dense(),
                layout=queries.layout,
                key_layout=keys.layout,
                lengths=None,
                key_lengths=None,
                aligned=False,
            )
        )  # fmt: skip
        lse = (
            None
            if found.lse is None
            else _put(problem, found.lse[..., None], queries.order, -torch.inf)[..., 0]
        )
        output = _put(problem, found.output, queries.order, 0.0)
        return Attention(output, None, lse, {**found.stats, "kernel": self.name})


class _Sorted(NamedTuple):
    """The row at each place when rows of one label stand together, and where the labels lie."""

    order: Tensor
    layout: Layout


class _Side(NamedTuple):
    """Queries or keys: which rows there are, to which sequence and head they belong, and their labels."""

    row: np.ndarray
    owner: np.ndarray
    label: np.ndarray
    is_packed: bool

    @classmethod
    def of(
        cls,
        layout: Layout | None,
        lengths: Tensor | None,
        problem: Problem,
        size: int,
        labels: Tensor,
        wide: int,
    ) -> _Side:
        """Return a side of a call; a row is a token, or with ``wide`` heads a token and a head."""
        batch = problem.batch
        if layout is not None:
            token, counts = np.arange(layout.n_tokens), layout.lengths
        else:
            counts = np.full(batch, size) if lengths is None else lengths.cpu().numpy()
            token = np.flatnonzero((np.arange(size) < counts[:, None]).ravel())
        head = np.arange(wide)
        owner = np.repeat(np.arange(batch), counts)[:, None] * wide + head
        label = labels.cpu().numpy().reshape(len(labels), -1)[token]
        return cls((token[:, None] * wide + head).ravel(), owner.ravel(), label.ravel(), layout is not None)

    def rows(self, x: Tensor, wide: int) -> Tensor:
        """Return ``[batch, heads, length, dim]`` or ``[tokens, heads, dim]`` as ``[rows, heads of a row, dim]``."""
        tokens = x if self.is_packed else x.transpose(1, 2).flatten(0, 1)
        if wide == 1:
            return tokens
        return tokens.repeat_interleave(wide // tokens.shape[1], 1).reshape(-1, 1, x.shape[-1])


def _sorted(*sides: _Side) -> list[_Sorted]:
    """Return the rows of both sides by sequence, head and label, with a place for every label of either side."""
    joined = np.stack(
        [np.concatenate([side.owner for side in sides]), np.concatenate([side.label for side in sides])]
    )
    names, group = np.unique(joined, axis=1, return_inverse=True)
    found = []
    for side, own in zip(sides, np.split(group.ravel(), [len(sides[0].row)]), strict=True):
        order = torch.from_numpy(side.row[np.argsort(own, kind="stable")])
        found.append(_Sorted(order, Layout.of(np.bincount(own, minlength=names.shape[1]))))
    return found


def _put(problem: Problem, rows: Tensor, order: Tensor, fill: float) -> Tensor:
    """Return rows in the form of the queries; those that belong to no label have ``fill``."""
    q, width = problem.q, rows.shape[-1]
    count = q.shape[:-1].numel() // rows.shape[1]
    found = rows.new_full((count, *rows.shape[1:]), fill).index_copy(0, order, rows)
    if problem.layout is not None:
        return found.view(*q.shape[:-1], width)
    return found.view(q.shape[0], q.shape[2], q.shape[1], width).transpose(1, 2)
