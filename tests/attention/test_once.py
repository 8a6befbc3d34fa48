"""Second derivatives are right or refused, in every layout and with every kernel."""

from __future__ import annotations

import pytest
import torch
from attention.calls import LAYOUTS, WAYS, call
from attention.oracle import Ragged

# Ours, and torch's own for its fused call.
REFUSALS = ("no second derivative", "not implemented")


def curvature(layout, way):
    """Return the derivative, along fixed directions, of the gradient of a sum of outputs."""
    batch = Ragged([5, 1, 4], dim=2, value_dim=2)
    output = call(batch, layout, way=way).output
    # A sum asks for no derivative of its own gradient, so nothing but the inputs can carry the second one.
    first = torch.autograd.grad(output.sum(), batch.all_leaves(), create_graph=True)
    draw = torch.Generator().manual_seed(2)
    # Something else that can be differentiated must not stand in for what cannot.
    total = sum(leaf.square().sum() for leaf in batch.all_leaves())
    total = total + sum((x * torch.randn(x.shape, generator=draw, dtype=x.dtype)).sum() for x in first)
    return torch.autograd.grad(total, batch.all_leaves())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_second_derivative_is_that_of_the_definition_or_refused(way, layout):
    wanted, found, refusal = curvature(layout, way._replace(kernel="reference")), None, ""
    try:
        found = curvature(layout, way)
    except RuntimeError as error:
        refusal = str(error)
    if found is None:
        assert way.kernel not in ("plain", "reference")
        assert any(reason in refusal for reason in REFUSALS)
        return
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)
