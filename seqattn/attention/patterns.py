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
