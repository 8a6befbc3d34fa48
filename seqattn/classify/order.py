"""The order in which cases and classes are learnt: by content, so that the user's order and names change nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from seqattn.classify.model import VSFormer
from seqattn.classify.readout import Readout
from seqattn.classify.series import Scaling
from seqattn.classify.tokens import Tokeniser
from seqattn.data.panels import Panel

__all__ = ["class_order", "content_order", "renumber"]


def content_order(panel: Panel, codes: np.ndarray) -> np.ndarray:
    """Return the numbers of the cases in an order that depends neither on theirs nor on the units of the channels.

    Parameters
    ----------
    panel
        The cases.
    codes
        Their classes as numbers, which order equal cases.
    """
    return Scaling.of(panel, sys.maxsize).apply(panel).order(codes)


def class_order(codes: np.ndarray) -> np.ndarray:
    """Return the classes by the first case that has them.

    Parameters
    ----------
    codes
        Classes of the cases in the order of :func:`content_order`, as numbers from 0; each occurs.

    Examples
    --------
    >>> class_order(np.array([2, 2, 0, 1]))
    array([2, 0, 1])
    """
    _, first = np.unique(codes, return_index=True)
    return np.argsort(first)


def renumber(
    order: np.ndarray,
    tokeniser: Tokeniser,
    readout: Readout | None,
    modules: Sequence[VSFormer],
    means: dict[str, np.ndarray],
) -> tuple[Tokeniser, Readout | None]:
    """Return what was learnt with the classes numbered anew; networks and means are changed in place.

    Parameters
    ----------
    order
        The number each class had, by its new number.
    tokeniser, readout, modules
        What was learnt.
    means
        Means over the training cases; those of logits have the classes last.
    """
    new = np.argsort(order)

    def named(shapes: Any) -> Any:
        return replace(shapes, label=new[shapes.label])

    banks = tuple(named(bank) for bank in tokeniser.banks)
    tokeniser = replace(tokeniser, shapes=named(tokeniser.shapes), banks=banks)
    if readout is not None:
        readout = replace(
            readout,
            weights=readout.weights[:, order],
            bias=readout.bias[order],
            left_out=readout.left_out[:, order],
        )
    for module in modules:
        _renumber_network(module, torch.from_numpy(order), torch.from_numpy(new))
    for name in means:
        if name == "logits" or name.startswith("network."):
            means[name] = means[name][..., order]
    return tokeniser, readout


@torch.no_grad()
def _renumber_network(module: VSFormer, order: torch.Tensor, new: torch.Tensor) -> None:
    nobody = torch.tensor([len(order)])
    order, new = (torch.cat([some, nobody]).to(module.label.device) for some in (order, new))
    module.decision.weight.copy_(module.decision.weight[order[:-1]])
    module.decision.bias.copy_(module.decision.bias[order[:-1]])
    module.classes.weight.copy_(module.classes.weight[order])
    module.label.copy_(new[module.label])
