"""Mixed attention is the mix of two softmaxes, and context tokens are keys that do not look."""

from __future__ import annotations

import pytest
import torch

from seqattn.attention import ContextKeys, KeyBias, Layout, Local, Mix, attend
from seqattn.errors import ParameterError


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()


def mixed(heads=2):
    mix = Mix(heads).double()
    with torch.no_grad():
        mix.gate.copy_(torch.tensor([-0.5, 1.5]))
        mix.log_strength.copy_(torch.tensor([0.3, -1.0]))
        mix.lag.copy_(torch.tensor([0.0, 1.7]))
    return mix


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_mix_is_what_its_formula_says(causal):
    mix, times = mixed(), torch.tensor([0.0, 0.4, 2.0, 2.1, 5.0], dtype=torch.float64)
    q, k, v = (normal(5, 2, 3, seed=seed) for seed in range(3))
    hidden = torch.ones(5, 5).triu(1).bool() if causal else torch.zeros(5, 5).bool()
    outputs, weights = [], []
    for h in (0, 1):
        content = (q[:, h] @ k[:, h].T * 3**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        lag = times[:, None] - times - mix.lag[h]
        place = (-mix.log_strength[h].exp() * lag**2).masked_fill(hidden, -torch.inf).softmax(-1)
        g = mix.gate[h].sigmoid()
        weights.append((1 - g) * content + g * place)
        outputs.append(weights[-1] @ v[:, h])
    wanted, leaves = torch.stack(outputs, 1), [q, k, v, *mix.parameters()]
    packed = mix(q, k, v, times, layout=Layout.of([5]), causal=causal, need="weights")
    padded = mix(*(x.transpose(0, 1)[None] for x in (q, k, v)), times[None], causal=causal)
    assert (packed.weights[0] - torch.stack(weights)).abs().max() < 1e-12
    assert (packed.weights.sum(-1) - 1).abs().max() < 1e-12
    direction = normal(5, 2, 3, seed=9).detach()
    grads = torch.autograd.grad((wanted * direction).sum(), leaves, retain_graph=True)
    for found in (packed.output, padded.output[0].transpose(0, 1)):
        assert (found - wanted).abs().max() < 1e-12
        for grad, expected in zip(
            torch.autograd.grad((found * direction).sum(), leaves, retain_graph=True), grads, strict=True
        ):
            assert (grad - expected).abs().max() < 1e-10


def test_lags_keep_their_digits_in_long_sequences():
    mix = Mix(1)
    with torch.no_grad():
        mix.gate.fill_(100.0)  # positions only
        mix.log_strength.fill_(2.0)
        mix.lag.fill_(3.0)
    tokens = torch.zeros(1, 1, 20_000, 1)
    values = torch.arange(20_000.0)[None, None, :, None] % 7
    seen = mix(tokens, tokens, values, torch.arange(20_000.0)[None], pattern=Local(8), causal=True).output
    assert (seen[0, 0, 100:, 0] - values[0, 0, 97:-3, 0]).abs().max() < 0.01


def test_a_mix_says_what_it_cannot_return():
    tokens = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ParameterError, match="no need='lse'"):
        Mix(2)(tokens, tokens, tokens, torch.zeros(1, 3), need="lse")


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_context_is_seen_by_all_and_sees_nothing(causal):
    """The definition, sequence by sequence, with contexts of all lengths, none among them."""
    sizes = [(2, 3), (0, 2), (3, 1), (1, 0)]
    own = [normal(n, 2, 3, seed=b) for b, (_, n) in enumerate(sizes)]
    context = [normal(c, 2, 3, seed=b + 10) for b, (c, _) in enumerate(sizes)]
    bias = [normal(c + n, 1, seed=b + 20).detach() for b, (c, n) in enumerate(sizes)]
    wanted = []
    for x, more, added in zip(own, context, bias, strict=True):
        keys = torch.cat([more, x])
        scores = torch.einsum("ihd,jhd->hij", x, keys) * 3**-0.5 + added.T[:, None]
        if causal:
            i, j = torch.arange(len(x))[:, None], torch.arange(len(keys))
            scores = scores.masked_fill(j > i + len(more), -torch.inf)
        wanted.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), keys))
    counts, lengths = ([size[side] for size in sizes] for side in (0, 1))
    keys = ContextKeys.packed(Layout.of(counts), Layout.of(lengths))
    k = keys.join(torch.cat(context), torch.cat(own))
    packed = attend(
        torch.cat(own), k, k, causal=causal, bias=KeyBias(torch.cat(bias)), **keys.arguments
    ).output
    assert (packed - torch.cat(wanted)).abs().max() < 1e-12

    def padded(parts, fill):
        rows = torch.full((len(parts), 2, 3, 3), fill, dtype=torch.float64)
        for b, part in enumerate(parts):
            rows[b, :, : len(part)] = part.transpose(0, 1)
        return rows

    keys = ContextKeys.padded(torch.tensor(counts), torch.tensor(lengths), (3, 3))
    k = keys.join(padded(context, torch.nan), padded(own, torch.nan))
    wide = torch.zeros(4, 1, 6, dtype=torch.float64)
    for b, part in enumerate(bias):
        wide[b, 0, : len(part)] = part[:, 0]
    found = attend(padded(own, 0.0), k, k, causal=causal, bias=KeyBias(wide), **keys.arguments).output
    for b, part in enumerate(wanted):
        assert not len(part) or (found[b, :, : len(part)] - part.transpose(0, 1)).abs().max() < 1e-12
    leaves = [*own, *context]
    for output in (packed, found):
        total = (output**2).sum() + sum(x.sum() * 0 for x in leaves)
        grads = torch.autograd.grad(total, leaves, retain_graph=True)
        expected = torch.autograd.grad(
            sum((x**2).sum() for x in wanted) + sum(x.sum() * 0 for x in leaves), leaves, retain_graph=True
        )
        assert all((a - b).abs().max() < 1e-10 for a, b in zip(grads, expected, strict=True) if a.numel())


def test_contexts_and_sequences_must_be_as_many():
    with pytest.raises(ParameterError, match="2 contexts for 1 sequences"):
        ContextKeys.packed(Layout.of([1, 1]), Layout.of([3]))
