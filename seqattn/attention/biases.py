"""Biases say what is added to the scores of queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["Bias", "KeyBias"]


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
