"""The network: independence of branches, an independently written forward pass, windows, and causality."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seqattn.attention import Layout
from seqattn.recommend.model import HistoryBatch, MultiQueryNetwork, window_mean

LENGTHS = [1, 2, 3, 4, 5, 7, 12, 0, 9]


def made(n_items=30, scale=0.3, **settings):
    """Return a network in float64 with weights far from their start, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"d_model": 8, "n_heads": 2, "max_len": 12, "dropout": 0.0} | settings
        network = MultiQueryNetwork(n_items, **settings).double().eval()
        for parameter in network.parameters():
            parameter.data += scale * torch.randn_like(parameter)
    return network


def histories(n_items=30, lengths=LENGTHS):
    rng = np.random.default_rng(1)
    return [rng.integers(n_items, size=length) for length in lengths]


def gradients(network, output):
    """Return the gradient of a fixed function of the output, by name of the weight; zeros where there is none."""
    names, weights = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(output.sin().sum(), weights, allow_unused=True)
    return dict(zip(names, found, strict=True))


def norm(x, layer):
    mean = x.mean(-1, keepdim=True)
    spread = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (spread + layer.eps).sqrt() * layer.weight + layer.bias


def padded_branch(x, mask, branch, window, n_heads):
    """The branch of the paper on rows padded on the left, written with loops over positions and heads."""
    length, width = x.shape[1], x.shape[2]
    head = width // n_heads
    for block in branch.blocks:
        source = torch.zeros_like(x)
        for row in range(len(x)):
            for t in range(length):
                known = [x[row, s] for s in range(max(0, t - window + 1), t + 1) if mask[row, s]]
                if known:
                    source[row, t] = torch.stack(known).mean(0)
        q = norm(source, block.norm_query)
        Q, K, V = (value @ layer.weight.T + layer.bias for value, layer in (
            (q, block.query), (x, block.key), (x, block.value)))  # fmt: skip
        seen = torch.zeros_like(x)
        earlier = torch.ones(length, length).tril().bool()
        for h in range(n_heads):
            part = slice(h * head, (h + 1) * head)
            scores = Q[..., part] @ K[..., part].mT / math.sqrt(head)
            visible = earlier & mask[:, None, :]
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)
            seen[..., part] = weights @ V[..., part]
        o = norm(seen + q, block.norm_output)
        inner = (o @ block.inner.weight.T + block.inner.bias).clamp(min=0)
        x = (o + inner @ block.outer.weight.T + block.outer.bias) * mask[..., None]
    return norm(x, branch.norm)


def padded_states(network, lists, length, window=None):
    """States of lists in rows of one length, padded on the left, by the formulas of the paper."""
    n_heads = network.short.blocks[0].n_heads if network.short is not None else network.long.blocks[0].n_heads
    items = torch.zeros(len(lists), length, dtype=torch.int64)
    mask = torch.zeros(len(lists), length, dtype=torch.bool)
    for row, values in enumerate(lists):
        if len(values):
            items[row, -len(values) :] = torch.from_numpy(values)
            mask[row, -len(values) :] = True
    x = (network.table[items] * math.sqrt(network.table.shape[1]) + network.positions[-length:]) * mask[
        ..., None
    ]
    total = torch.zeros_like(x)
    if network.short is not None:
        total = total + network.alpha * padded_branch(x, mask, network.short, 1, n_heads)
    if network.long is not None:
        window = network.long.blocks[0].window
        total = total + (1 - network.alpha) * padded_branch(x, mask, network.long, window, n_heads)
    return torch.cat([total[row, mask[row]] for row in range(len(lists))])


@pytest.mark.parametrize(("alpha", "unused"), [(1.0, "long"), (0.0, "short")])
def test_a_share_of_one_or_zero_leaves_the_other_branch_without_influence(alpha, unused):
    network, batch = made(alpha=0.5), HistoryBatch.of(histories())
    network.alpha = alpha
    before = network(batch)
    found = gradients(network, before)
    assert all(value is None or not value.any() for name, value in found.items() if name.startswith(unused))
    used = {"long": "short", "short": "long"}[unused]
    assert all(value.abs().max() > 1e-9 for name, value in found.items()
               if name.startswith(used) and not name.endswith("key.bias"))  # fmt: skip
    with torch.no_grad():
        for parameter in getattr(network, unused).parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(network(batch), before)
    assert getattr(made(alpha=alpha), unused) is None


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.0])
def test_states_equal_an_independent_padded_forward_pass(alpha, n_layers):
    """Histories of 1 to 12 items, so with 11 to 0 places of padding on the left."""
    network = made(alpha=alpha, n_layers=n_layers, window=3)
    lists = histories(lengths=list(range(1, 13)))
    wanted = padded_states(network, lists, 12)
    found = network(HistoryBatch.of(lists))
    assert (found - wanted).abs().max() < 1e-10
    ours, theirs = gradients(network, found), gradients(network, wanted)
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() < 1e-9, name


def test_equal_branches_make_the_share_irrelevant():
    network, batch = made(window=1), HistoryBatch.of(histories())
    network.long.load_state_dict(network.short.state_dict())
    states = []
    for network.alpha in (0.0, 0.3, 1.0):
        states.append(network(batch))
    assert max((state - states[0]).abs().max() for state in states) < 1e-12
    network.long.norm.bias.data += 1
    assert (network(batch) - states[0]).abs().min() < 1e-12 < network(batch).sub(states[2]).abs().max() + 1
    network.alpha = 0.3
    assert (network(batch) - states[0]).abs().max() > 0.1


@pytest.mark.parametrize("window", [1, 2, 3, 5, 100])
def test_the_window_mean_equals_a_loop_over_positions(window):
    layout = Layout.of(LENGTHS)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(layout.n_tokens, 3))).requires_grad_()
    wanted, first = [], 0
    for length in LENGTHS:
        rows = x[first : first + length]
        wanted += [rows[max(0, t + 1 - window) : t + 1].mean(0) for t in range(length)]
        first += length
    wanted, found = torch.stack(wanted), window_mean(x, layout, window)
    assert (found - wanted).abs().max() < 1e-12
    slopes = [torch.autograd.grad(value.sin().sum(), x)[0] for value in (found, wanted)]
    assert (slopes[0] - slopes[1]).abs().max() < 1e-12


def test_large_values_elsewhere_in_the_batch_move_no_window_mean():
    small = torch.full((4, 1), 0.1)
    beside = torch.cat([torch.full((50, 1), 1e6), small])
    assert torch.equal(window_mean(beside, Layout.of([50, 4]), 3)[50:], window_mean(small, Layout.of([4]), 3))


@pytest.mark.parametrize("attention", ["dense", "local(4)", "2 * local(3)"])
def test_no_state_depends_on_a_later_item_or_on_another_user(attention):
    n_heads = 2
    network = made(attention=attention, n_heads=n_heads, window=4)
    lists = histories()
    whole = network(HistoryBatch.of(lists))
    alone = torch.cat([network(HistoryBatch.of([values])) for values in lists if len(values)])
    assert (whole - alone).abs().max() < 1e-10
    first = sum(LENGTHS[:6])
    for changed in range(LENGTHS[6]):
        other = [values.copy() for values in lists]
        other[6][changed] = (other[6][changed] + 1) % 30
        moved = (network(HistoryBatch.of(other)) - whole).abs().amax(1) > 1e-9
        own = torch.zeros_like(moved)
        own[first + changed] = True
        assert not moved[: first + changed].any()
        assert not moved[first + LENGTHS[6] :].any()
        assert moved[own].all()


def test_a_pattern_changes_what_is_seen():
    lists = histories()
    dense, local = (made(attention=attention)(HistoryBatch.of(lists)) for attention in ("dense", "local(2)"))
    assert (dense - local).abs().max() > 1e-3


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("attention", ["dense", "local(4)", "2 * local(3)", "routing(2, 4)"])
def test_last_states_are_those_of_the_last_items_and_zero_without_any(attention, n_layers):
    network, lists = made(attention=attention, n_heads=2, n_layers=n_layers, window=4), histories()
    states = network(HistoryBatch.of(lists))
    found = network.last_states(HistoryBatch.of(lists))
    for row, end in enumerate(np.cumsum(LENGTHS)):
        wanted = states[end - 1] if LENGTHS[row] else torch.zeros(8)
        assert (found[row] - wanted).abs().max() < 1e-12


def test_dropout_acts_in_training_only():
    network = made(dropout=0.5)
    batch = HistoryBatch.of(histories())
    assert torch.equal(network(batch), network(batch))
    network.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert (network(batch) - network(batch)).abs().max() > 0.1


def test_renumbered_items_with_their_rows_give_the_same_states():
    network, lists = made(), histories()
    order = torch.from_numpy(np.random.default_rng(3).permutation(30))
    before = network(HistoryBatch.of(lists))
    with torch.no_grad():
        network.table[order] = network.table.clone()
    after = network(HistoryBatch.of([order.numpy()[values] for values in lists]))
    assert torch.equal(before, after)
