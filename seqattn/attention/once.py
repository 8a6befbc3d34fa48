"""Backward passes that have no derivative themselves, and say so.

Torch's ``once_differentiable`` says so only where the incoming gradient wants one. Under ``output.sum()`` it does not,
and the second derivative would lack a part without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from seqattn.errors import BackendError

Backward = Callable[..., tuple[Tensor | None, ...]]


class _Refused(torch.autograd.Function):
    """A gradient as it is, whose derivative with respect to what it was made of is refused."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *_: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise BackendError(
            "This attention kernel has no second derivative, and one was asked for (create_graph=True and then a "
            'gradient of the gradient). Use kernel="plain".'
        )


def once(backward: Backward) -> Backward:
    """Return the backward pass of an autograd function, refusing derivatives of its results.

    Parameters
    ----------
    backward
        Takes ``ctx`` and the gradients; what was saved on ``ctx`` are the tensors that its results depend on.
    """

    @wraps(backward)
    def guarded(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        made_of = [x for x in (*ctx.saved_tensors, *grads) if x is not None and x.requires_grad]
        return tuple(None if x is None else _Refused.apply(x, *made_of) for x in found)

    return guarded
