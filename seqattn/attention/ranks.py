"""Labels of tokens, and the place of each token among those of its label."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Labels(NamedTuple):
    """Labels of tokens, and how many earlier tokens of the sequence have the same: ``[tokens, heads or 1]``."""

    label: Tensor
    rank: Tensor


def ranks(labels: Int[Tensor, "*rows tokens"]) -> Int[Tensor, "*rows tokens"]:
    """Return how many earlier tokens of the row have the same label.

    Parameters
    ----------
    labels
        Labels in the order of time.
    """
    ordered, order = labels.sort(dim=-1, stable=True)
    place = torch.arange(labels.shape[-1], device=labels.device).expand_as(labels)
    is_first = torch.ones_like(labels, dtype=torch.bool)
    is_first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = torch.where(is_first, place, 0).cummax(-1).values if labels.shape[-1] else place
    return torch.zeros_like(place).scatter(-1, order, place - first)
