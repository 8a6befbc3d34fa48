"""The encoder token by token equals its forward pass, and time decay is the bias that it says."""

from __future__ import annotations

import pytest
import torch

from seqattn.attention import Dense, Layout, Local, Prefix
from seqattn.errors import BackendError, ParameterError
from seqattn.nn.blocks import Encoder, SelfAttention

LENGTHS = [13, 1, 30, 7]


def made(**arguments):
    """Return an encoder with weights of its own, tokens and times."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(16, 4, 3, 0.2, **arguments).eval()
        for parameter in encoder.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        tokens = torch.randn(sum(LENGTHS), 16)
        gaps = [torch.rand(n, dtype=torch.float64).cumsum(0) for n in LENGTHS]
    return encoder, tokens, torch.cat(gaps)


def padded(x):
    """Return packed tokens as rows."""
    return torch.nn.utils.rnn.pad_sequence(x.split(LENGTHS), batch_first=True)


@pytest.mark.parametrize("pattern", [Dense(), Local(5), Local(5) | Prefix(1)], ids=repr)
@pytest.mark.parametrize("share_layers", [False, True])
@pytest.mark.parametrize("time_decay", [False, True])
@pytest.mark.parametrize("size", [None, 1, 4, 30])
def test_steps_equal_the_forward_pass(size, time_decay, share_layers, pattern):
    encoder, tokens, times = made(pattern=pattern, share_layers=share_layers, time_decay=time_decay)
    rows, clock = padded(tokens), padded(times) if time_decay else None
    states, found = encoder.start(), []
    with torch.no_grad():
        wanted = encoder(tokens, Layout.of(LENGTHS), causal=True, times=times if time_decay else None)
        for start in range(0, max(LENGTHS), size or 1):
            here = slice(start, start + (size or 1))
            new = rows[:, here] if size else rows[:, start]
            when = None if clock is None else clock[:, here] if size else clock[:, start]
            counts = (torch.tensor(LENGTHS) - start).clamp(0, size or 1)
            found.append(encoder.step(new, states, when, counts))
    output = torch.cat([part if size else part[:, None] for part in found], 1)
    assert len({id(state) for state in states}) == 3
    assert (output - padded(wanted)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_decay_lowers_scores_by_rate_times_age(dtype):
    """One layer of attention against a softmax over all pairs with the bias written out."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = SelfAttention(8, 2, time_decay=True).to(dtype)
        x, times = torch.randn(9, 8, dtype=dtype), 50 + torch.rand(9, dtype=torch.float64).cumsum(0)
    assert layer.log_decay.tolist() == [-3.0, 0.0]
    q, k, v = layer.inputs(x).view(9, 3, 2, 4).permute(1, 2, 0, 3).double()
    age = times[:, None] - times
    scores = q @ k.mT / 2 - layer.log_decay.exp().double()[:, None, None] * age
    weights = scores.masked_fill(age < 0, -torch.inf).softmax(-1)
    wanted = layer.output((weights @ v).transpose(0, 1).reshape(9, 8).to(dtype))

    encoder = Encoder(8, 2, 1, 0.0, time_decay=True).to(dtype)
    seen = {}
    encoder.blocks[0].attention = layer
    encoder.blocks[0].norm1 = torch.nn.Identity()
    layer.register_forward_hook(lambda module, inputs, output: seen.update(output=output))
    encoder(x, Layout.of([9]), causal=True, times=times)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert (seen["output"] - wanted).abs().max() < tolerance
    gradients = [
        torch.autograd.grad(output.square().sum(), layer.log_decay)[0] for output in (seen["output"], wanted)
    ]
    assert gradients[1].abs().min() > 1e-4
    assert (gradients[0] - gradients[1]).abs().max() < 10 * tolerance


def test_steps_may_count_time_from_anywhere():
    encoder, tokens, times = made(time_decay=True)
    states, moved = encoder.start(), encoder.start()
    with torch.no_grad():
        for t in range(7):
            new, when = padded(tokens)[:, t], padded(times)[:, t]
            near, far = encoder.step(new, states, when), encoder.step(new, moved, when + 1e6)
            assert (near - far).abs().max() < 1e-6


def test_without_time_decay_nothing_is_added():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = Encoder(8, 2, 2, 0.0)
        torch.manual_seed(0)
        decaying = Encoder(8, 2, 2, 0.0, time_decay=True)
    names = [name for name in decaying.state_dict() if "log_decay" not in name]
    assert names == list(plain.state_dict())
    assert len(decaying.state_dict()) == len(names) + 2
    assert all(torch.equal(plain.state_dict()[name], decaying.state_dict()[name]) for name in names)


def test_each_layer_learns_its_own_decay_unless_they_share_weights():
    for share_layers, count in ((False, 3), (True, 1)):
        encoder, tokens, times = made(time_decay=True, share_layers=share_layers)
        encoder(tokens, Layout.of(LENGTHS), causal=True, times=times).square().sum().backward()
        rates = [value for name, value in encoder.named_parameters() if "log_decay" in name]
        assert len(rates) == count
        assert all((rate.grad != 0).all() for rate in rates)


def test_calls_without_sense_are_refused():
    encoder, tokens, times = made(time_decay=True)
    layout = Layout.of(LENGTHS)
    with pytest.raises(ParameterError, match="needs causal=True"):
        encoder(tokens, layout, times=times)
    with pytest.raises(ParameterError, match="got time_decay=True and times None"):
        encoder(tokens, layout, causal=True)
    with pytest.raises(ParameterError, match="3 states, one per layer, got 2"), torch.no_grad():
        encoder.step(tokens, encoder.start()[:2], times)
    with pytest.raises(BackendError, match="no gradients"):
        encoder.step(tokens, encoder.start(), times)
    plain, _, _ = made()
    with pytest.raises(ParameterError, match="got time_decay=False and times given"):
        plain(tokens, layout, causal=True, times=times)
