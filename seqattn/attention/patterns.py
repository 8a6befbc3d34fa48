"""Patterns say which keys a query may see, and biases what is added to its scores.

A pattern is part of the model and is chosen by the user; how it is computed is a kernel's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from seqattn.errors import ParameterError, suggest


@dataclass(frozen=True)
class Pattern(ABC):
    """Return who may see whom, before causality and padding take their share.

    A subclass is a frozen dataclass with a ``name``, the definition :meth:`visible`, and what it can promise:
    ``causal`` (outputs of a prefix do not change when the sequence grows) and ``cross`` (queries and keys may be
    different sequences).
    """

    name = ""
    causal = True
    cross = True

    @abstractmethod
    def visible(self, i: Int[Tensor, "..."], j: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Return whether query ``i`` may see key ``j``.

        Parameters
        ----------
        i, j
            Positions in their sequences, counted from 0; any shapes that broadcast.

        Returns
        -------
        Booleans of the common shape.
        """

    def __or__(self, other: Pattern) -> Pattern:
        """Return the union: a key is visible if either pattern shows it."""
        return Union(self, other)


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

    def visible(self, i: Int[Tensor, "..."], j: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        return (i == i) & (j == j)


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

    left: int
    right: int = 0

    name = "local"

    def __post_init__(self) -> None:
        _check_count("Local", "left", self.left)
        _check_count("Local", "right", self.right)

    def visible(self, i: Int[Tensor, "..."], j: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        return (i - j <= self.left) & (j - i <= self.right)


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

    n: int

    name = "prefix"

    def __post_init__(self) -> None:
        _check_count("Prefix", "n", self.n)

    def visible(self, i: Int[Tensor, "..."], j: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        return (i == i) & (j < self.n)


@dataclass(frozen=True)
class Union(Pattern):
    """A key is visible if one of two patterns shows it; written ``first | second``.

    Parameters
    ----------
    first, second
        Patterns; unions too.
    """

    first: Pattern
    second: Pattern

    name = "union"

    def __post_init__(self) -> None:
        parts: tuple[object, ...] = (self.first, self.second)
        if not all(isinstance(part, Pattern) for part in parts):
            raise TypeError(f"The parts of a union must be patterns, got {parts!r}.")

    def visible(self, i: Int[Tensor, "..."], j: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        return self.first.visible(i, j) | self.second.visible(i, j)


def _check_count(pattern: str, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ParameterError(f"{name} of {pattern} must be a whole number of keys, 0 or more, got {value!r}.")


@dataclass(frozen=True)
class Band:
    """A window of ``left`` keys before and ``right`` after the query, and the first ``prefix`` keys.

    ``left`` is ``None`` where the window never ends, and -1 where there is none.
    """

    left: int | None
    right: int
    prefix: int


def as_band(pattern: Pattern) -> Band | None:
    """Return the pattern as one window with a prefix, or ``None`` if it has no such form.

    Every window holds the query itself, so the union of several is again one.
    """
    if isinstance(pattern, Dense):
        return Band(None, 0, 0)
    if isinstance(pattern, Local):
        return Band(pattern.left, pattern.right, 0)
    if isinstance(pattern, Prefix):
        return Band(-1, 0, pattern.n)
    parts = [as_band(part) for part in (pattern.first, pattern.second)] if isinstance(pattern, Union) else []
    bands = [part for part in parts if part is not None]
    if len(bands) < 2:
        return None
    lefts = [band.left for band in bands if band.left is not None]
    left = max(lefts) if len(lefts) == 2 else None
    return Band(left, max(band.right for band in bands), max(band.prefix for band in bands))


PATTERNS: dict[str, type[Pattern]] = {"dense": Dense}
"""The short strings that stand for a pattern with its default parameters."""


def as_pattern(pattern: str | Pattern) -> Pattern:
    """Return the pattern that a short string stands for; pattern objects pass through.

    Parameters
    ----------
    pattern
        A pattern object, or one of ``"dense"``.

    Raises
    ------
    ParameterError
        No pattern has this name.
    """
    if isinstance(pattern, Pattern):
        return pattern
    if pattern not in PATTERNS:
        known = ", ".join(repr(name) for name in PATTERNS)
        raise ParameterError(
            f"There is no attention pattern {pattern!r}. Patterns: {known}.{suggest(pattern, PATTERNS)}"
        )
    return PATTERNS[pattern]()


@dataclass(frozen=True, eq=False)
class KeyBias:
    r"""Add a number per key, which may be learnt, to all scores of that key.

    .. math:: s_{ij} = q_i \cdot k_j \, \mathrm{scale} + c_j

    The fused kernel takes it as one further feature, so it needs no mask and has an exact gradient. A linear decay
    with age, :math:`-\lambda (t_i - t_j)` under ``causal``, is the key bias :math:`\lambda t_j`, because the part of
    :math:`t_i` is constant in a row. ``-inf`` hides the key.

    Parameters
    ----------
    values
        Float ``[batch, heads or 1, keys]`` for padded input, ``[key tokens, heads or 1]`` for packed input. Large
        values cost precision: measure time from the middle of each sequence.
    """

    values: Float[Tensor, "..."]

    kind = "key"


Bias = KeyBias
"""What ``bias=`` accepts."""
