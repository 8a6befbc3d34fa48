"""What a pattern is: a definition, a way to compute it, and what joins two of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqattn.attention.layout import Layout
from seqattn.attention.ranks import Labels, ranks
from seqattn.attention.tiles import Band, Pairs, Rule, Run
from seqattn.errors import ParameterError

__all__ = ["HeadMix", "Intersection", "Pair", "Pattern", "Union"]

# Sums of a place and a parameter must fit into 64 bits.
MOST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Pattern(Rule):
    """Return who may see whom, before causality and padding take their share.

    A subclass is a frozen dataclass with a ``name``, the definition :meth:`visible`, how it is computed,
    :meth:`runs`, and what it can promise: ``causal`` (outputs of a prefix do not change when the sequence grows) and
    ``cross`` (queries and keys may be different sequences). ``has_labels`` says that it was made for one batch,
    ``by_head`` that heads differ, ``is_mask`` that the output is one softmax over the visible keys, and ``is_alone``
    that it cannot be joined with others by ``|`` and ``&``, and ``is_keyed`` that keys have labels of their own.
    ``advice`` ends the refusal of what it cannot promise.
    """

    name = ""
    causal = True
    cross = True
    has_labels = False
    by_head = False
    is_mask = True
    is_alone = False
    is_keyed = False
    advice = "Choose another pattern."

    @abstractmethod
    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        """Return whether query ``i`` may see key ``j``.

        Parameters
        ----------
        i, j
            Positions in their sequences, counted from 0; tensors or arrays of any shapes that broadcast.
        n
            Number of tokens of the sequence; only windows that are shifted at its end ask for it.

        Returns
        -------
        Booleans of the common shape; with labels per head ``[heads, *common shape]``.
        """

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...] | None:
        """Return the segments and windows by which the pattern is computed, or ``None`` if it has none.

        Parameters
        ----------
        layout
            Where the sequences lie.
        heads
            Number of heads.
        """
        return None

    @property
    def is_tiled(self) -> bool:
        """Whether :meth:`runs` is defined, so that the pattern is computed tile by tile."""
        return type(self).runs is not Pattern.runs

    def band(self) -> Band | None:
        """Return the pattern as one window with a prefix, or ``None`` if it has no such form."""
        return None

    def memory(self) -> Band:
        """Return the window outside of which no later query sees a key; a window without end keeps everything."""
        band = self.band()
        return Band(None, 0) if band is None else Band(band.left, 0, 0 if band.left is None else band.prefix)

    def marks(self) -> list[Tensor]:
        """Return the labels of its parts, ``[tokens, heads or 1]`` each."""
        return []

    def rule(self, labels: Iterator[Labels]) -> Rule:
        """Return what says of pairs of tokens whether they are visible.

        Parameters
        ----------
        labels
            What :meth:`marks` returned, each with the ranks of the tokens.
        """
        return self

    def reach(self, n: int) -> float:
        """Return how many keys a query sees at most.

        Parameters
        ----------
        n
            Number of tokens of its sequence.
        """
        return n

    def segment(self, n: int) -> float:
        """Return about how many tokens the segments have by which the pattern is computed.

        Parameters
        ----------
        n
            Number of tokens of a sequence.
        """
        return n

    def shows(self, pairs: Pairs) -> Any:
        """Return which pairs are visible.

        Parameters
        ----------
        pairs
            Queries and keys of one sequence each.
        """
        return self.visible(pairs.i, pairs.j, pairs.n)

    def fit(self, size: Sequence[int], heads: int) -> Pattern:
        """Return the pattern for the tokens of a call, one after the other, if it belongs to such a call.

        Parameters
        ----------
        size
            ``[tokens]`` of packed or ``[batch, length]`` of padded input.
        heads
            Number of heads.

        Raises
        ------
        ParameterError
            Its labels are of another size.
        """
        return self

    def of(self, tokens: Tensor | slice) -> Pattern:
        """Return the pattern for some of these tokens; only labels depend on that.

        Parameters
        ----------
        tokens
            Their numbers.
        """
        return self

    def of_keys(self, tokens: slice) -> Pattern:
        """Return the pattern for some of the keys; only labels of keys depend on that.

        Parameters
        ----------
        tokens
            Their numbers.
        """
        return self

    def __or__(self, other: Pattern) -> Pattern:
        """Return the union: a key is visible if either pattern shows it."""
        return Union(self, other)

    def __and__(self, other: Pattern) -> Pattern:
        """Return the intersection: a key is visible if both patterns show it."""
        return Intersection(self, other)


@dataclass(frozen=True)
class Pair(Pattern):
    """Two patterns as one."""

    first: Pattern
    second: Pattern

    def __post_init__(self) -> None:
        parts: tuple[object, ...] = (self.first, self.second)
        if not all(isinstance(part, Pattern) for part in parts):
            raise TypeError(f"The parts of a {self.name} must be patterns, got {parts!r}.")
        for part in (self.first, self.second):
            if part.is_alone:
                raise ParameterError(
                    f"{part.name!r} cannot be joined by | or &. Give it heads of its own with HeadMix."
                )
        for name, join in (
            ("causal", all),
            ("cross", all),
            ("has_labels", any),
            ("by_head", any),
            ("is_keyed", any),
        ):
            both = (getattr(self.first, name), getattr(self.second, name))
            object.__setattr__(self, name, join(both))

    def _joint(self, runs: Sequence[Run], heads: int) -> list[Run]:
        """Return the runs in a form that both patterns understand."""
        return [run.with_heads(heads) for run in runs] if self.by_head else list(runs)

    def marks(self) -> list[Tensor]:
        return [*self.first.marks(), *self.second.marks()]

    def fit(self, size: Sequence[int], heads: int) -> Pattern:
        return replace(self, first=self.first.fit(size, heads), second=self.second.fit(size, heads))

    def of(self, tokens: Tensor | slice) -> Pattern:
        return replace(self, first=self.first.of(tokens), second=self.second.of(tokens))

    def of_keys(self, tokens: slice) -> Pattern:
        return replace(self, first=self.first.of_keys(tokens), second=self.second.of_keys(tokens))


@dataclass(frozen=True)
class Union(Pair):
    """A key is visible if one of two patterns shows it; written ``first | second``.

    Parameters
    ----------
    first, second
        Patterns; unions too.
    """

    name = "union"

    @property
    def is_tiled(self) -> bool:
        return self.first.is_tiled and self.second.is_tiled

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        return self.first.visible(i, j, n) | self.second.visible(i, j, n)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...] | None:
        band = self.band()
        if band is not None and (band.left is None or band.left >= 0):
            return (Run(layout.lengths, band),)
        first, second = self.first.runs(layout, heads), self.second.runs(layout, heads)
        if first is None or second is None:
            return None
        rule = self.first.rule(ranked(self.first, layout))
        return *first, *(replace(run, hides=(*run.hides, rule)) for run in self._joint(second, heads))

    def band(self) -> Band | None:
        # Every window holds the query itself, so the union of several is again one.
        first, second = self.first.band(), self.second.band()
        if first is None or second is None:
            return None
        left, right = _widest(first.left, second.left), _widest(first.right, second.right)
        return Band(left, right, max(first.prefix, second.prefix))

    def memory(self) -> Band:
        first, second = self.first.memory(), self.second.memory()
        return Band(_widest(first.left, second.left), 0, max(first.prefix, second.prefix))

    def rule(self, labels: Iterator[Labels]) -> Rule:
        first = self.first.rule(labels)
        return _Both(first, self.second.rule(labels), is_union=True)

    def reach(self, n: int) -> float:
        return min(n, self.first.reach(n) + self.second.reach(n))


@dataclass(frozen=True)
class Intersection(Pair):
    """A key is visible if two patterns both show it; written ``first & second``.

    Parameters
    ----------
    first, second
        Patterns.

    Examples
    --------
    >>> import torch
    >>> from seqattn.attention import Dilated, Local
    >>> place = torch.arange(4)
    >>> (Local(2) & Dilated(9, dilation=2)).visible(place[:, None], place).int().tolist()
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    """

    name = "intersection"

    @property
    def is_tiled(self) -> bool:
        return self.first.is_tiled or self.second.is_tiled

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        return self.first.visible(i, j, n) & self.second.visible(i, j, n)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...] | None:
        narrow, wide = self.first, self.second
        if (
            wide.is_tiled and wide.reach(layout.max_len) < narrow.reach(layout.max_len)
        ) or not narrow.is_tiled:
            narrow, wide = wide, narrow
        runs, rule = narrow.runs(layout, heads), wide.rule(ranked(wide, layout))
        if runs is None:
            return None
        return tuple(replace(run, keeps=(*run.keeps, rule)) for run in self._joint(runs, heads))

    def memory(self) -> Band:
        first, second = self.first.memory(), self.second.memory()
        lefts = [one.left for one in (first, second) if one.left is not None]
        if not lefts or first.prefix or second.prefix:
            return Band(_widest(first.left, second.left), 0, max(first.prefix, second.prefix))
        return Band(min(lefts), 0)

    def rule(self, labels: Iterator[Labels]) -> Rule:
        first = self.first.rule(labels)
        return _Both(first, self.second.rule(labels), is_union=False)

    def reach(self, n: int) -> float:
        return min(self.first.reach(n), self.second.reach(n))

    def segment(self, n: int) -> float:
        narrow = min(self.first, self.second, key=lambda one: one.reach(n))
        return narrow.segment(n)


@dataclass(frozen=True)
class HeadMix(Pattern):
    """Heads with patterns of their own: the first ones have the first pattern, and so on.

    Parameters
    ----------
    parts
        Pairs of a number of heads and their pattern; the numbers add up to all heads.

    Raises
    ------
    ParameterError
        There is no part, or a number of heads is below 1.

    References
    ----------
    Roy et al. (2020), Efficient content-based sparse attention with routing transformers, section 4.1: half of the
    heads local, half routing.

    Examples
    --------
    >>> import torch
    >>> from seqattn.attention import Dense, Local
    >>> place = torch.arange(3)
    >>> HeadMix(((1, Local(0)), (1, Dense()))).visible(place[:, None], place).int().tolist()
    [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 1], [1, 1, 1], [1, 1, 1]]]
    """

    parts: tuple[tuple[int, Pattern], ...]

    name = "head mix"
    by_head = True

    def __post_init__(self) -> None:
        counts = [count for count, _ in self.parts]
        if not counts or min(counts) < 1:
            raise ParameterError(
                f"HeadMix needs pairs of a number of heads, 1 or more, and a pattern, got {self.parts!r}."
            )
        kinds = [pattern for _, pattern in self.parts]
        for name, join in (("causal", all), ("cross", all), ("has_labels", any), ("is_keyed", any)):
            object.__setattr__(self, name, join(getattr(kind, name) for kind in kinds))

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        shown = []
        for count, pattern in self.parts:
            one = pattern.visible(i, j, n)
            labelled = pattern.by_head
            shown.append(one if labelled else one.expand(count, *one.shape))
        return torch.cat(shown)

    def marks(self) -> list[Tensor]:
        return [marks for _, pattern in self.parts for marks in pattern.marks()]

    def rule(self, labels: Iterator[Labels]) -> Rule:
        return _EachHead(tuple((count, pattern.rule(labels)) for count, pattern in self.parts))

    def memory(self) -> Band:
        memories = [pattern.memory() for _, pattern in self.parts]
        left = memories[0].left
        for one in memories[1:]:
            left = _widest(left, one.left)
        return Band(left, 0, max(one.prefix for one in memories))

    def slices(self) -> list[tuple[slice, Pattern]]:
        """Return which heads have which pattern."""
        ends = list(accumulate(count for count, _ in self.parts))
        return [
            (slice(end - count, end), pattern) for end, (count, pattern) in zip(ends, self.parts, strict=True)
        ]

    def fit(self, size: Sequence[int], heads: int) -> HeadMix:
        total = sum(count for count, _ in self.parts)
        if total != heads:
            raise ParameterError(f"The parts of HeadMix have {total} heads, and the call has {heads}.")
        return replace(self, parts=tuple((count, pattern.fit(size, count)) for count, pattern in self.parts))

    def of(self, tokens: Tensor | slice) -> HeadMix:
        return replace(self, parts=tuple((count, pattern.of(tokens)) for count, pattern in self.parts))


@dataclass(frozen=True)
class _Both(Rule):
    """Two rules as one."""

    first: Rule
    second: Rule
    is_union: bool

    def shows(self, pairs: Pairs) -> Any:
        """Return what one of them shows, or both."""
        first, second = self.first.shows(pairs), self.second.shows(pairs)
        return first | second if self.is_union else first & second


@dataclass(frozen=True)
class _EachHead(Rule):
    """One rule per part of the heads, whose axis is the third from the end."""

    parts: tuple[tuple[int, Rule], ...]

    def shows(self, pairs: Pairs) -> Any:
        """Return what the rule of each head shows."""
        shown = []
        for count, rule in self.parts:
            # Labels of a part are numbered by the heads of the part.
            heads = torch.arange(count, device=pairs.head.device)[:, None, None]
            one = rule.shows(pairs._replace(head=heads))
            shown.append(one.expand(*one.shape[:-3], count, *one.shape[-2:]))
        rows = max(len(one) for one in shown)
        return torch.cat([one.expand(rows, *one.shape[1:]) for one in shown], -3)


def check_whole(pattern: str, name: str, value: object, least: int) -> None:
    """Refuse a parameter that is no whole number, or too small.

    Parameters
    ----------
    pattern, name
        Names of the class and of its parameter.
    value
        What was given.
    least
        The smallest number that is allowed.

    Raises
    ------
    ParameterError
        It is not allowed.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ParameterError(f"{name} of {pattern} must be a whole number, {least} or more, got {value!r}.")
    if value > MOST:
        raise ParameterError(f"{name} of {pattern} must be {MOST} at most, got {value!r}.")


def ranked(pattern: Pattern, layout: Layout) -> Iterator[Labels]:
    """Return the labels of a pattern for all tokens of a layout, with their ranks.

    Parameters
    ----------
    pattern
        A pattern with or without labels.
    layout
        Where the sequences lie.
    """
    of_token = torch.from_numpy(np.repeat(np.arange(len(layout)), layout.lengths))
    for labels in pattern.marks():
        sequence = of_token.to(labels.device)
        _, group = labels.unique(return_inverse=True)
        yield Labels(
            labels, ranks((group + sequence[:, None] * (int(group.max()) + 1 if len(group) else 1)).T).T
        )


def _widest(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else max(first, second)
