"""Means over recent tokens: of true tokens only, of one sequence only, and with all their digits."""

from __future__ import annotations

import pytest
import torch

from seqattn.attention import Layout
from seqattn.errors import ParameterError
from seqattn.nn.queries import recent_mean


def expected(x, window):
    """Return the means of one sequence, token by token."""
    return torch.stack([x[max(0, t - window + 1) : t + 1].mean(0) for t in range(len(x))]) if len(x) else x


def normal(*shape):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 7, 8, 100])
def test_means_are_those_of_the_last_tokens_of_the_sequence(window):
    lengths = [5, 0, 1, 12, 3]
    x = normal(sum(lengths), 2)
    wanted = torch.cat([expected(part, window) for part in x.split(lengths)])
    found = recent_mean(x, window, layout=Layout.of(lengths))
    assert (found - wanted).abs().max() < 1e-12
    direction = normal(sum(lengths), 2).detach().sin()
    grads = [torch.autograd.grad((y * direction).sum(), x)[0] for y in (found, wanted)]
    assert (grads[0] - grads[1]).abs().max() < 1e-12


@pytest.mark.parametrize("window", [1, 2, 3, 6])
def test_holes_do_not_count(window):
    """Padding at either side, holes, and a row without any token."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1], [0] * 6]).bool()
    x = normal(4, 6, 2)
    poisoned = x.masked_fill(~mask[..., None], torch.nan)
    found = recent_mean(poisoned, window, mask=mask)
    for row in range(4):
        assert torch.equal(found[row][~mask[row]], torch.zeros_like(found[row][~mask[row]]))
        wanted = expected(x[row][mask[row]], window)
        assert not len(wanted) or (found[row][mask[row]] - wanted).abs().max() < 1e-12
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert (grad[~mask] == 0).all()
    whole = recent_mean(x, window)
    assert (whole[1] - expected(x[1], window)).abs().max() < 1e-12


def test_nothing_passes_the_window_or_the_border():
    x = normal(9, 1).detach()
    clean = recent_mean(x, 3, layout=Layout.of([5, 4]))
    x[1] = torch.nan
    found = recent_mean(x, 3, layout=Layout.of([5, 4]))
    assert found.isnan()[:, 0].nonzero()[:, 0].tolist() == [1, 2, 3]
    kept = ~found.isnan()
    assert torch.equal(found[kept], clean[kept])
    for cut in (1, 3, 5):
        assert torch.equal(
            recent_mean(x[:cut], 3, layout=Layout.of([cut])).nan_to_num(), found[:cut].nan_to_num()
        )


def test_long_sequences_keep_their_digits():
    x = torch.full((200_000, 1), 0.1)
    x[:1000] = 1e6
    assert (recent_mean(x, 3, layout=Layout.of([len(x)]))[2000:] - 0.1).abs().max() < 1e-8


def test_wrong_calls_are_named():
    x = torch.zeros(4, 2)
    with pytest.raises(ParameterError, match="1 or more, got 0"):
        recent_mean(x, 0, layout=Layout.of([4]))
    with pytest.raises(ParameterError, match=r"must be \[3, dim\] .* got x \[4, 2\]"):
        recent_mean(x, 2, layout=Layout.of([3]))
    with pytest.raises(ParameterError, match=r"got x \[4, 2\] and mask None"):
        recent_mean(x, 2)
