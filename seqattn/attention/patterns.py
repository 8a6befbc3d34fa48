"""Patterns say which keys a query may see.

A pattern is part of the model and is chosen by the user; how it is computed is a kernel's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from seqattn.attention.layout import Layout
from seqattn.attention.pattern import Pattern, check_whole
from seqattn.attention.ranks import Labels, ranks
from seqattn.attention.tiles import Band, Front, Grid, Pairs, Rule, Run, Shifted
from seqattn.errors import ParameterError

# Number of labels from which the lengths of segments are judged.
SAMPLE = 512


@dataclass(frozen=True)
class Dense(Pattern):
    """Every query sees every key.

    Examples
    --------
    >>> import torch
    >>> Dense().visible(torch.arange(2)[:, None], torch.arange(2)).tolist()
    [[True, True], [True, True]]
    """

    name = "dense"
    is_tiled = False  # one segment without a window would be a tile as large as the call

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        return (i == i) & (j == j)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        return (Run(layout.lengths, Band(None, None)),)

    def band(self) -> Band:
        return Band(None, None)


@dataclass(frozen=True)
class Local(Pattern):
    r"""Every query sees itself, some keys before it and some after it.

    .. math:: -\mathrm{right} \le i - j \le \mathrm{left}

    Parameters
    ----------
    left
        Number of keys before the query that it sees, itself not counted; 0 or more.
    right
        The same after it; under ``causal`` they stay hidden.

    Raises
    ------
    ParameterError
        A number is negative.

    Examples
    --------
    >>> import torch
    >>> place = torch.arange(4)
    >>> Local(1).visible(place[:, None], place).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """

    left: int = 128
    right: int = 0

    name = "local"

    def __post_init__(self) -> None:
        _check_count("Local", "left", self.left)
        _check_count("Local", "right", self.right)

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        return (i - j <= self.left) & (j - i <= self.right)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        return (Run(layout.lengths, Band(self.left, self.right)),)

    def band(self) -> Band:
        return Band(self.left, self.right)

    def reach(self, n: int) -> float:
        return min(n, self.left + self.right + 1)


@dataclass(frozen=True)
class Neighborhood(Pattern):
    """Every query sees the ``size`` nearest keys, itself among them; at both ends the window is shifted, not cut.

    There is no causal form: near the end of a sequence the window depends on where that end is.

    Parameters
    ----------
    size
        Number of keys that every query sees (all of a shorter sequence); odd, 1 or more.

    Raises
    ------
    ParameterError
        The size is even or below 1.

    References
    ----------
    Hassani et al. (2023), Neighborhood attention transformer, equation 1.

    Examples
    --------
    >>> import torch
    >>> place = torch.arange(4)
    >>> Neighborhood(3).visible(place[:, None], place, 4).int().tolist()
    [[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1]]
    """

    size: int = 129

    name = "neighborhood"
    causal = False
    cross = False
    advice = "Its windows depend on where the sequence ends: use Local, or Blocked, instead."

    def __post_init__(self) -> None:
        _check_count("Neighborhood", "size", self.size, least=1)
        if self.size % 2 == 0:
            raise ParameterError(f"size of Neighborhood must be odd, got {self.size}. Try {self.size + 1}.")

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        return Shifted(self.size).sees(i, j, n)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        return (Run(layout.lengths, Shifted(self.size)),)

    def reach(self, n: int) -> float:
        return min(n, self.size)


@dataclass(frozen=True)
class Blocked(Pattern):
    r"""Sequences are cut into blocks; every query sees its block and some keys on both sides of it.

    .. math:: b \lfloor i / b \rfloor - \mathrm{halo} \le j < b \lfloor i / b \rfloor + b + \mathrm{halo}

    Parameters
    ----------
    size
        Number :math:`b` of tokens of a block; 1 or more.
    halo
        Number of keys before, and without ``causal`` after, the block; 0 or more.

    Raises
    ------
    ParameterError
        A number is too small.

    References
    ----------
    Vaswani et al. (2021), Scaling local self-attention for parameter efficient visual backbones, section 2.2.

    Examples
    --------
    >>> import torch
    >>> place = torch.arange(4)
    >>> Blocked(2, 1).visible(place[:, None], place).int().tolist()
    [[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1]]
    """

    size: int = 64
    halo: int = 64

    name = "blocked"
    cross = False

    def __post_init__(self) -> None:
        _check_count("Blocked", "size", self.size, least=1)
        _check_count("Blocked", "halo", self.halo)

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        return Grid(self.size, self.halo).sees(i, j, n)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        return (Run(layout.lengths, Grid(self.size, self.halo)),)

    def memory(self) -> Band:
        return Band(self.size - 1 + self.halo, 0)

    def reach(self, n: int) -> float:
        return min(n, self.size + 2 * self.halo)


@dataclass(frozen=True)
class Dilated(Pattern):
    r"""Every query sees itself and keys at multiples of a distance from it.

    .. math:: d \mid i - j \;\text{and}\; -\mathrm{right} \le (i - j) / d \le \mathrm{left}

    Parameters
    ----------
    left
        Number of keys before the query that it sees, itself not counted; 0 or more.
    right
        The same after it; under ``causal`` they stay hidden.
    dilation
        Distance :math:`d` of these keys; 1 or more.

    Raises
    ------
    ParameterError
        A number is too small.

    Examples
    --------
    >>> import torch
    >>> place = torch.arange(5)
    >>> Dilated(1, dilation=2).visible(place[:, None], place).int().tolist()
    [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1]]
    """

    left: int = 32
    right: int = 0
    dilation: int = 4

    name = "dilated"
    cross = False

    def __post_init__(self) -> None:
        _check_count("Dilated", "left", self.left)
        _check_count("Dilated", "right", self.right)
        _check_count("Dilated", "dilation", self.dilation, least=1)

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        steps = self.dilation
        near = (i - j <= self.left * steps) & (j - i <= self.right * steps)
        return near & ((i - j) % steps == 0)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        phase = places(layout) % self.dilation
        order, lengths = by_label(layout, phase)
        return (Run(lengths, Band(self.left, self.right), order),)

    def memory(self) -> Band:
        return Band(self.left * self.dilation, 0)

    def reach(self, n: int) -> float:
        return min(-(-n // self.dilation), self.left + self.right + 1)

    def segment(self, n: int) -> float:
        return -(-n // self.dilation)


@dataclass(frozen=True)
class Prefix(Pattern):
    """Every query sees the first tokens of its sequence: start tokens, context, sinks.

    Under ``causal`` a query among the first tokens sees those up to itself.

    Parameters
    ----------
    n
        Number of tokens that everyone sees; 0 or more.

    Raises
    ------
    ParameterError
        ``n`` is negative.

    Examples
    --------
    >>> import torch
    >>> place = torch.arange(4)
    >>> (Local(1) | Prefix(1)).visible(place[:, None], place).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    """

    n: int = 1

    name = "prefix"

    def __post_init__(self) -> None:
        _check_count("Prefix", "n", self.n)

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        return (i == i) & (j < self.n)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        return (Run(layout.lengths, Front(self.n)),)

    def band(self) -> Band:
        return Band(-1, 0, self.n)

    def memory(self) -> Band:
        return Band(0, 0, self.n)

    def reach(self, n: int) -> float:
        return min(n, self.n)


@dataclass(frozen=True, eq=False)
class Segments(Pattern):
    """Every query sees the keys with its own label: the same session, day or entity, wherever they stand.

    Labels are data, so the pattern is made for one batch.

    Parameters
    ----------
    labels
        Whole numbers, one per token: ``[tokens]`` for packed and ``[batch, length]`` for padded input; or one per token
        and head, ``[tokens, heads]`` or ``[batch, length, heads]``.
    window
        Of the tokens with its label a query sees so many before and after it; ``None`` for all.
    key_labels
        Labels of the keys where they are other sequences than the queries, or have labels of their own; as ``labels``.
        There is then no window and no causal form.

    Raises
    ------
    ParameterError
        The labels are no whole numbers, the window is negative, or keys with labels of their own have a window.

    Examples
    --------
    >>> import torch
    >>> place = torch.arange(4)
    >>> Segments(torch.tensor([7, 3, 7, 7]), window=1).visible(place[:, None], place).int().tolist()
    [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 1, 1]]
    """

    labels: Shaped[Tensor, "..."]
    window: int | None = None
    key_labels: Shaped[Tensor, "..."] | None = None

    name = "segments"
    has_labels = True

    def __post_init__(self) -> None:
        check_labels("Segments", self.labels)
        if self.window is not None:
            _check_count("Segments", "window", self.window)
        is_keyed = self.key_labels is not None
        if self.key_labels is not None:
            check_labels("Segments", self.key_labels)
            if self.window is not None or self.key_labels.dim() != self.labels.dim():
                raise ParameterError(
                    "Segments with key_labels has no window, and as many axes of both labels, got window="
                    f"{self.window}, labels {list(self.labels.shape)} and key_labels {list(self.key_labels.shape)}."
                )
        # Padded labels look alike until fit() has made them one after the other.
        shown = {
            "by_head": self.labels.dim() == 2,
            "cross": is_keyed,
            "is_keyed": is_keyed,
            "causal": not is_keyed,
        }
        for name, value in shown.items():
            object.__setattr__(self, name, value)

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        if self.key_labels is not None:
            i, j = torch.broadcast_tensors(torch.as_tensor(i), torch.as_tensor(j))
            same = self.labels[i] == self.key_labels[j]
            return same.movedim(-1, 0) if self.labels.dim() == 2 else same
        labels = self.labels.movedim(-1, 0) if self.labels.dim() == 2 else self.labels[None]
        found = [_alike(row[i] == row[j], ranks(row)[i], ranks(row)[j], self.window) for row in labels]
        return found[0] if self.labels.dim() == 1 else torch.stack(found)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        if self.labels.device.type == "cpu":
            order, lengths = by_label(layout, self.labels.numpy())
        else:
            order, lengths = by_label_there(layout, self.labels)
        return (Run(lengths, Band(self.window, self.window), order, by_head=self.labels.dim() == 2),)

    def marks(self) -> list[Tensor]:
        return [self.labels if self.labels.dim() == 2 else self.labels[:, None]]

    def rule(self, labels: Iterator[Labels]) -> Rule:
        return _Labelled(*next(labels), self.window)

    def fit(self, size: Sequence[int], heads: int) -> Segments:
        labels = fit_labels("Segments", self.labels, size, heads)
        if len(size) == 1:
            return self
        # Of the keys too in this one step, because both are of one kind before and after it.
        keys = None if self.key_labels is None else self.key_labels.flatten(0, len(size) - 1)
        return replace(self, labels=labels, key_labels=keys)

    def of(self, tokens: Tensor | slice) -> Segments:
        return replace(self, labels=self.labels[tokens])

    def of_keys(self, tokens: slice) -> Segments:
        return self if self.key_labels is None else replace(self, key_labels=self.key_labels[tokens])

    def reach(self, n: int) -> float:
        return n if self.window is None else min(n, 2 * self.window + 1)

    def segment(self, n: int) -> float:
        # The share of tokens with the label of one of them, judged by some.
        labels = self.labels if self.labels.dim() == 1 else self.labels[:, 0]
        some = labels[:: 1 + len(labels) // SAMPLE]
        _, counts = some.unique(return_counts=True)
        return float(n * (counts / max(1, len(some))).square().sum())


def check_labels(pattern: str, labels: Tensor) -> None:
    """Refuse labels that are no whole numbers."""
    if labels.is_floating_point() or labels.is_complex() or labels.dim() < 1:
        raise ParameterError(
            f"labels of {pattern} must be whole numbers, one per token, got {labels.dtype} of shape "
            f"{list(labels.shape)}."
        )


def fit_labels(pattern: str, labels: Tensor, size: Sequence[int], heads: int) -> Tensor:
    """Return the labels of all tokens of a call, one after the other."""
    shape = tuple(labels.shape)
    if shape not in (tuple(size), (*size, heads)):
        raise ParameterError(
            f"The labels of {pattern} must be of shape {list(size)} or {[*size, heads]}, got {list(shape)}."
        )
    return labels.flatten(0, len(size) - 1)


def places(layout: Layout) -> np.ndarray:
    """Return the place of each token in its sequence."""
    lengths = layout.lengths
    return np.arange(layout.n_tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def by_label(layout: Layout, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens of one sequence and label side by side, and how many there are of each; in order inside.

    With labels ``[tokens, heads]`` rows are pairs of token and head.
    """
    sequence = np.repeat(np.arange(len(layout)), layout.lengths)
    heads = 1 if labels.ndim == 1 else labels.shape[1]
    flat = labels.ravel().astype(np.int64)
    group = (np.repeat(sequence, heads) * heads + np.tile(np.arange(heads), len(sequence))).astype(np.int64)
    low = int(flat.min(initial=0))
    key = group * (int(flat.max(initial=0)) - low + 1) + (flat - low)
    order = np.argsort(key, kind="stable")
    begins = np.flatnonzero(np.diff(key[order], prepend=-1))
    return order, np.diff(begins, append=len(order))


def by_label_there(layout: Layout, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the same as :func:`by_label`, sorted where the labels are: on a GPU they are waited for once."""
    heads = 1 if labels.dim() == 1 else labels.shape[1]
    sequence = torch.from_numpy(np.repeat(np.arange(len(layout)), layout.lengths)).to(labels.device)
    group = (sequence[:, None] * heads + torch.arange(heads, device=labels.device)).flatten()
    flat = labels.flatten().to(torch.int64)
    inner = flat.argsort(stable=True)
    order = inner[group[inner].argsort(stable=True)]
    group, flat = group[order], flat[order]
    is_first = torch.ones_like(flat, dtype=torch.bool)
    is_first[1:] = (group[1:] != group[:-1]) | (flat[1:] != flat[:-1])
    found = torch.stack([order, is_first.to(torch.int64)]).cpu().numpy()
    return found[0], np.diff(np.flatnonzero(found[1]), append=len(order))


def _alike(same: Tensor, i: Tensor, j: Tensor, window: int | None) -> Tensor:
    return same if window is None else same & ((i - j).abs() <= window)


@dataclass(frozen=True, eq=False)
class _Labelled(Rule):
    """Segments as a rule on pairs of tokens of one sequence, by label and rank."""

    label: Tensor
    rank: Tensor
    window: int | None

    def shows(self, pairs: Pairs) -> Tensor:
        """Return which of the pairs have one label and are near enough."""
        head = pairs.head if self.label.shape[1] > 1 else 0
        i, j = (pairs.query, head), (pairs.key, head)
        return _alike(self.label[i] == self.label[j], self.rank[i], self.rank[j], self.window)


def _check_count(pattern: str, name: str, value: object, least: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ParameterError(
            f"{name} of {pattern} must be a whole number of keys, {least} or more, got {value!r}."
        )
    check_whole(pattern, name, value, least)
