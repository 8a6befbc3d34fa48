"""Who sees whom in a call, block by block: what a second look at the weights goes through.

Kernels cut their patterns into tiles for speed and make them all at once. Here every block is made when it is its turn
and small, whatever the pattern is, so that even dense attention needs no more memory than its tokens do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqattn.attention.kernel import Problem
from seqattn.attention.layout import Layout
from seqattn.attention.pattern import HeadMix
from seqattn.attention.tiles import Pairs, Run
from seqattn.errors import BackendError

__all__ = ["Sight", "Tokens", "row_sights", "sights", "tokens_of"]

# Most weights of a block: 4 MB in float32. With 2**18 and 2**22 reducers take 1.05 to 1.25 times as long, with 2**16
# 1.8 to 2.5 times (dense, causal, 4,000 tokens, 4 heads; float32, one thread).
BLOCK_WEIGHTS = 2**20
# Queries of a block, if they are not too many then.
BLOCK_QUERIES = 64


class Sight(NamedTuple):
    """Some queries, the keys that one of them sees, and which of the pairs are visible.

    Tokens have the numbers of the call: ``query [rows, queries]``, ``key [rows, keys]``, ``head [rows or 1, heads]``,
    ``visible [rows, heads or 1, queries, keys]``.
    """

    query: Tensor
    key: Tensor
    head: Tensor
    visible: Tensor


class Tokens(NamedTuple):
    """The tokens of one side of a call, as numbered by it: packed one after the other, padded in rows of ``size``.

    ``number`` gives the number of each token that exists, ``place`` the place in its sequence of each number.
    """

    first: np.ndarray
    lengths: np.ndarray
    number: Tensor
    place: Tensor

    @classmethod
    def of(cls, lengths: np.ndarray, size: int | None) -> Tokens:
        """Return the tokens of sequences, padded to ``size`` or packed."""
        before = np.cumsum(lengths) - lengths
        first = before if size is None else np.arange(len(lengths)) * size
        within = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
        place = within if size is None else np.tile(np.arange(size), len(lengths))
        number = np.repeat(first, lengths) + within
        return cls(first, lengths, torch.from_numpy(number), torch.from_numpy(place))


def tokens_of(problem: Problem) -> tuple[Tokens, Tokens]:
    """Return the queries and the keys of a call.

    Parameters
    ----------
    problem
        The call.
    """
    if problem.layout is not None and problem.key_layout is not None:
        return Tokens.of(problem.layout.lengths, None), Tokens.of(problem.key_layout.lengths, None)
    sides = ((problem.lengths, problem.queries), (problem.key_lengths, problem.keys))
    queries, keys = (
        Tokens.of(
            np.full(problem.batch, size) if lengths is None else lengths.cpu().numpy().astype(np.int64), size
        )
        for lengths, size in sides
    )
    return queries, keys


def sights(problem: Problem, queries: Tokens, keys: Tokens) -> Iterator[Sight]:
    """Yield every visible pair of query and key once.

    Parameters
    ----------
    problem
        The call.
    queries, keys
        Its tokens.

    Raises
    ------
    BackendError
        The pattern is not made of windows in segments.
    """
    pattern = problem.pattern
    parts = pattern.slices() if isinstance(pattern, HeadMix) else [(slice(0, problem.heads), pattern)]
    for heads, part in parts:
        numbers = np.arange(heads.start, heads.stop)
        found = _crossed if problem.cross else _from_runs
        for sight in found(replace(problem, pattern=part), queries, keys, numbers):
            yield _unmasked(problem, sight)


def row_sights(problem: Problem, queries: Tokens, keys: Tokens, rows: np.ndarray) -> Iterator[Sight]:
    """Yield all keys of the sequences of some queries, in the order of the queries' numbers.

    Parameters
    ----------
    problem
        The call.
    queries, keys
        Its tokens.
    rows
        Numbers of queries, increasing, none of them padding.
    """
    heads = np.arange(problem.heads)
    ends = np.searchsorted(rows, queries.first)
    for sequence, (begin, end) in enumerate(pairwise([*ends, len(rows)])):
        if begin < end and keys.lengths[sequence]:
            for part in _cut(rows[begin:end], problem.heads * int(keys.lengths[sequence])):
                places = part - queries.first[sequence]
                yield _unmasked(problem, _defined(problem, queries, keys, sequence, places, heads))


def _unmasked(problem: Problem, sight: Sight) -> Sight:
    """Return what is left by the holes among the keys, on the device of the call."""
    sight = Sight(*(x.to(problem.q.device) for x in sight))
    if problem.key_mask is None:
        return sight
    exists = problem.key_mask.flatten()[sight.key]
    return sight._replace(visible=sight.visible & exists[:, None, None])


def _cut(queries: np.ndarray, weights: int) -> list[np.ndarray]:
    """Return queries, of so many weights each, in blocks."""
    size = max(1, min(BLOCK_QUERIES, BLOCK_WEIGHTS // weights))
    return [queries[first : first + size] for first in range(0, len(queries), size)]


def _crossed(problem: Problem, queries: Tokens, keys: Tokens, heads: np.ndarray) -> Iterator[Sight]:
    """Yield all pairs of each sequence of queries and its keys."""
    for sequence, (n, m) in enumerate(zip(queries.lengths, keys.lengths, strict=True)):
        if n and m:
            for places in _cut(np.arange(n), len(heads) * int(m)):
                yield _defined(problem, queries, keys, sequence, places, heads)


def _defined(
    problem: Problem, queries: Tokens, keys: Tokens, sequence: int, places: np.ndarray, heads: np.ndarray
) -> Sight:
    """Return some queries of a sequence with all of its keys, by the definition of the pattern."""
    n, m = int(queries.lengths[sequence]), int(keys.lengths[sequence])
    first, key_first = int(queries.first[sequence]), int(keys.first[sequence])
    i, j = torch.from_numpy(places), torch.arange(m)
    device = problem.q.device
    pattern = problem.pattern.of(slice(first, first + n)).of_keys(slice(key_first, key_first + m))
    visible = pattern.visible(i[:, None].to(device), j.to(device), m)
    if problem.causal:
        visible = visible & (j <= i[:, None] + (m - n)).to(device)
    shape = (1, 1, len(i), m) if visible.dim() == 2 else (1, len(heads), len(i), m)
    return Sight((i + first)[None], (j + key_first)[None], torch.from_numpy(heads)[None], visible.view(shape))


def _from_runs(problem: Problem, queries: Tokens, keys: Tokens, heads: np.ndarray) -> Iterator[Sight]:
    """Yield the windows of a pattern, for queries that are their own keys."""
    pattern = problem.pattern.of(queries.number)
    layout = Layout.of(queries.lengths) if problem.layout is None else problem.layout
    runs = pattern.runs(layout, len(heads))
    if runs is None:
        raise BackendError(
            f"Pattern {pattern.name!r} has no windows to go through. Ask for rows= of single queries."
        )
    place = queries.place[queries.number]
    length = torch.from_numpy(np.repeat(queries.lengths, queries.lengths))
    for run in runs:
        windows = _Windows.of(run, 1 if run.by_head else len(heads), problem.causal)
        for members in windows.groups(1 if run.by_head else len(heads)):
            yield _windowed(windows.select(members), queries, heads, place, length)


@dataclass(frozen=True, eq=False)
class _Windows:
    """Blocks of queries that follow each other in a segment, and the keys that they see.

    One entry per block: where its segment begins, its first query and the one behind its last, and its keys, which are
    the ``front`` first ones of the segment and those from ``start`` to before ``stop``.
    """

    run: Run
    causal: bool
    first: np.ndarray
    size: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    front: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @property
    def keys(self) -> np.ndarray:
        """How many keys the blocks have."""
        return self.front + self.stop - self.start

    @classmethod
    def of(cls, run: Run, heads: int, causal: bool, step: int = BLOCK_QUERIES) -> _Windows:
        """Return the blocks of a run, of ``step`` queries or fewer."""
        lengths, span = run.lengths, run.span
        counts = -(-lengths // step)
        segment = np.repeat(np.arange(len(lengths)), counts)
        begin = (np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)) * step
        size = lengths[segment]
        end = np.minimum(begin + step, size)
        start, stop = span.reach(begin, end, size)
        prefix = np.minimum(span.front, size)
        start = np.where(start <= prefix, 0, start)
        stop = np.minimum(stop, end) if causal else np.maximum(stop, prefix)
        start = np.minimum(start, stop)
        first = (np.cumsum(lengths) - lengths)[segment]
        found = cls(run, causal, first, size, begin, end, np.where(start > 0, prefix, 0), start, stop)
        most = max(1, BLOCK_WEIGHTS // (heads * int(found.keys.max(initial=1))))
        return found if step <= most else cls.of(run, heads, causal, most)

    def groups(self, heads: int) -> Iterator[np.ndarray]:
        """Yield which blocks are taken together: of like sizes, and not too large."""
        order = np.lexsort((self.end - self.begin, self.keys))[::-1]
        order = order[self.keys[order] > 0]
        queries = int((self.end - self.begin).max(initial=1))
        while len(order):
            widest = int(self.keys[order[0]])
            members = order[: max(1, BLOCK_WEIGHTS // (heads * queries * widest))]
            members = members[2 * self.keys[members] >= widest]
            yield members
            order = order[len(members) :]

    def select(self, members: np.ndarray) -> _Windows:
        """Return some of the blocks."""
        names = ("first", "size", "begin", "end", "front", "start", "stop")
        return replace(self, **{name: getattr(self, name)[members] for name in names})

    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return queries and keys by their places in the segment, and which pairs the window shows."""
        begin, end, front, start = (x[:, None] for x in (self.begin, self.end, self.front, self.start))
        across, down = np.arange(int(self.keys.max())), np.arange(int((end - begin).max()))
        column = np.minimum(across, self.keys[:, None] - 1)
        i = np.minimum(begin + down, end - 1)
        j = np.where(column < front, column, start + column - front)
        seen = self.run.span.sees(i[:, :, None], j[:, None], self.size[:, None, None])
        seen = seen & (begin + down < end)[:, :, None] & (across < self.keys[:, None])[:, None]
        return i, j, seen & (j[:, None] <= i[:, :, None]) if self.causal else seen


def _windowed(windows: _Windows, queries: Tokens, heads: np.ndarray, place: Tensor, length: Tensor) -> Sight:
    """Return what other patterns leave of some windows; ``place`` and ``length`` are those of packed tokens."""
    run, first = windows.run, windows.first[:, None]
    i, j, seen = windows.places()
    rows = [first + i, first + j]
    if run.order is not None:
        rows = [run.order[x] for x in rows]
    count = len(heads) if run.by_head else 1
    query, key = (torch.from_numpy(x // count) for x in rows)
    own = torch.from_numpy(rows[0][:, :1] % count)
    pairs = Pairs(
        place[query][:, :, None], place[key][:, None], length[query][:, :, None],
        query[:, :, None], key[:, None], own[:, :, None],
    )  # fmt: skip
    visible = torch.from_numpy(seen)
    for rule in run.hides:
        visible &= ~rule.shows(pairs).cpu()
    for rule in run.keeps:
        visible &= rule.shows(pairs).cpu()
    chosen = torch.from_numpy(heads)
    head = chosen[own] if run.by_head else chosen[None]
    return Sight(queries.number[query], queries.number[key], head, visible[:, None])
