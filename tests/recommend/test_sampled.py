"""Sampled losses: exact with the whole catalogue, close with many draws, sparse where a step touches little."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recommend.counted import LISTS, N, drawn, transitions

from seqattn.attention import Layout
from seqattn.recommend.losses import distillation_loss, ranking_loss
from seqattn.recommend.model import HistoryBatch, MultiQueryNetwork
from seqattn.recommend.objective import Objective
from seqattn.recommend.sampled import (
    Drawn,
    Proposal,
    is_sampled,
    sampled_distillation_loss,
    sampled_ranking_loss,
)
from seqattn.recommend.transitions import Teacher

ITEMS = torch.tensor([0, 0, 3, 1, 20, 5, 0, 4])
TARGETS = torch.tensor([1, 2, 3, 9, 21, 6, 49, 0])


def inputs():
    return [drawn(*shape).requires_grad_() for shape in ((8, 6), (8, 6), (N, 6))]


def sampled(drawn_items, states, heads, table, teacher, zero_class=False):
    """Both sampled losses from rows of one table."""
    wrong = table[drawn_items.items]
    rec = sampled_ranking_loss(states, TARGETS, table[TARGETS], wrong, drawn_items, zero_class=zero_class)
    successors = table[teacher.rows(ITEMS.unique())[1]]
    return rec, sampled_distillation_loss(heads, ITEMS, wrong, successors, teacher, drawn_items)


def exact(states, heads, table, teacher, zero_class=False):
    rec = ranking_loss(states, TARGETS, table, zero_class=zero_class)
    return rec, distillation_loss(heads, ITEMS, table, teacher)


def gap(found, wanted, leaves):
    """Largest difference of gradients of both losses, over the largest entry."""
    worst = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        slopes = [
            torch.autograd.grad(v, leaves, allow_unused=True, retain_graph=True) for v in (ours, theirs)
        ]
        for a, b in zip(*slopes, strict=True):
            if b is not None:
                worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst


@pytest.mark.parametrize("zero_class", [False, True])
@pytest.mark.parametrize("lists", [LISTS, [[0, j] for j in range(1, N)] + [[0, 0]], [[30, 31]]])
def test_with_the_whole_catalogue_the_losses_are_exact(lists, zero_class):
    """Also where every item is a successor, and where none of the batch's items has any."""
    teacher, leaves = Teacher(transitions(lists), 0.3).double(), inputs()
    found = sampled(Drawn(torch.arange(N), None, N), *leaves, teacher, zero_class)
    wanted = exact(*leaves, teacher, zero_class)
    for ours, theirs in zip(found, wanted, strict=True):
        assert abs(ours - theirs) < 1e-9 * abs(theirs)
    assert gap(found, wanted, leaves) < 1e-8


@pytest.mark.parametrize("kind", ["uniform", "popularity", "batch"])
def test_the_mean_over_draws_of_the_normaliser_is_the_exact_one(kind):
    """The weighted negatives estimate the sum of exponentials without bias, whatever they are drawn by."""
    states, _, table = (value.detach() for value in inputs())
    states = 0.3 * states  # large scores are rare, and few draws would not tell of them
    popularity = np.arange(N) % 7 + 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        proposal, sums = Proposal(kind, 10, popularity), []
        shares = torch.from_numpy(popularity / popularity.sum())
        for _ in range(1500):
            targets = torch.multinomial(shares, 10, replacement=True) if kind == "batch" else TARGETS
            got = proposal(targets)
            loss = sampled_ranking_loss(states[:1], TARGETS[:1], table[TARGETS[:1]], table[got.items], got)
            sums.append(float((loss + states[0] @ table[TARGETS[0]]).exp()))
    wanted = float((states[:1] @ table.T).exp().sum())
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - wanted) < 4 * error
    assert error < 0.015 * wanted


@pytest.mark.parametrize("zero_class", [False, True])
@pytest.mark.parametrize("kind", ["popularity", "batch"])
def test_negatives_that_come_as_often_as_expected_make_the_losses_exact(kind, zero_class, monkeypatch):
    """No chance is left then, so that the correction of importance is an identity, its gradient included."""
    teacher, leaves = Teacher(transitions(), 0.3).double(), inputs()
    popularity = np.arange(N) % 7 + 1
    as_expected = torch.repeat_interleave(torch.arange(N), torch.from_numpy(3 * popularity))
    proposal = Proposal(kind, len(as_expected), popularity - (kind == "popularity"))
    monkeypatch.setattr(proposal, "_popular", lambda: as_expected)
    found = sampled(proposal(as_expected), *leaves, teacher, zero_class)
    wanted = exact(*leaves, teacher, zero_class)
    for ours, theirs in zip(found, wanted, strict=True):
        assert abs(ours - theirs) < 1e-6 * abs(theirs)  # the weights are in float32
    assert gap(found, wanted, leaves) < 1e-5


@pytest.mark.parametrize("kind", ["popularity", "batch"])
def test_with_many_draws_the_losses_approach_the_exact_ones(kind):
    """Over draws of 400,000 items the gradients lie 0.005 to 0.035 off, and half of that with four times as many."""
    teacher, leaves = Teacher(transitions(), 0.3).double(), inputs()
    popularity = np.arange(N) % 7 + 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shares = torch.from_numpy(popularity / popularity.sum())
        targets = torch.multinomial(shares, 400_000, replacement=True)
        found = sampled(Proposal(kind, 400_000, popularity)(targets), *leaves, teacher)
    wanted = exact(*leaves, teacher)
    for ours, theirs in zip(found, wanted, strict=True):
        assert abs(ours - theirs) < 2e-3 * abs(theirs)
    assert gap(found, wanted, leaves) < 0.05


def test_uniform_negatives_are_distinct_and_equally_likely():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for n_negatives, n_items in ((3, 40), (30, 40), (99, 40)):
            proposal = Proposal("uniform", n_negatives, np.ones(n_items))
            counts = torch.zeros(n_items)
            for _ in range(2000):
                items = proposal(TARGETS).items
                assert (items.diff() > 0).all()
                assert len(items) == min(n_negatives, n_items)
                counts[items] += 1
            share = min(n_negatives, n_items) / n_items
            assert (counts / 2000 - share).abs().max() <= 5 * np.sqrt(share * (1 - share) / 2000)


def test_popular_items_are_drawn_by_one_more_than_their_count():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        proposal = Proposal("popularity", 4, np.array([0, 8, 0, 2]))
        counts = torch.stack([proposal(TARGETS).items.bincount(minlength=4) for _ in range(3000)]).sum(0)
    wanted = torch.tensor([1, 9, 1, 3]) / 14
    assert (counts / counts.sum() - wanted).abs().max() < 0.02


def objective(n_items, n_negatives, lists=LISTS, kd_share=1.0):
    network = MultiQueryNetwork(n_items, d_model=8, max_len=10, dropout=0.0)
    teacher = Teacher(transitions(lists, n_items), 0.2)
    proposal = Proposal("uniform", n_negatives, np.ones(n_items))
    options = {"kd_weight": 0.1, "tau_student": 0.1, "zero_class": False, "memory_mb": 16, "is_half": False}
    options["kd_share"] = kd_share
    return [Objective(network, teacher, each, **options) for each in (None, proposal)]


def batch():
    return HistoryBatch(ITEMS, Layout.of([5, 3]), TARGETS)


@pytest.mark.parametrize("which", [0, 1], ids=["exact", "sampled"])
def test_distilling_a_part_of_the_positions_is_right_on_average(which, monkeypatch):
    """Eight positions, two at a time: the four draws that make a whole have the mean of all at once."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = objective(N, N)[which]
        part = objective(N, N, kd_share=0.25)[which]
    part.network.load_state_dict(whole.network.state_dict())
    order, found, grad = torch.tensor([3, 0, 6, 1, 7, 2, 5, 4]), [], 0.0
    for first in range(0, 8, 2):
        drawn = lambda n, first=first, **_: order.roll(-first) if n == 8 else torch.arange(n)  # noqa: E731
        monkeypatch.setattr(torch, "randperm", drawn)
        found.append(part.loss(batch()))
        grad += torch.autograd.grad(found[-1].total, part.network.table)[0].to_dense() / 4
    monkeypatch.undo()
    wanted = whole.loss(batch())
    assert len({round(float(loss.parts["kd"]), 6) for loss in found}) == 4
    assert torch.isclose(sum(loss.parts["kd"] for loss in found) / 4, wanted.parts["kd"], rtol=1e-5)
    assert all(torch.isclose(loss.parts["rec"], wanted.parts["rec"], rtol=1e-5) for loss in found)
    exact = torch.autograd.grad(wanted.total, whole.network.table)[0].to_dense()
    torch.testing.assert_close(grad, exact, rtol=1e-4, atol=1e-5)


def test_the_objective_with_all_items_as_negatives_is_the_exact_one_with_a_sparse_gradient():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        both = objective(N, N)
        found = []
        for each in both:
            loss = each.loss(batch())
            loss.total.backward()
            grad = each.network.table.grad
            found.append(
                (
                    float(loss.total.detach()),
                    grad.to_dense().clone(),
                    each.network.positions.grad.clone(),
                    grad,
                )
            )
            each.network.zero_grad()
    assert abs(found[0][0] - found[1][0]) < 1e-5 * found[0][0]
    assert (found[0][1] - found[1][1]).abs().max() < 1e-5 * found[0][1].abs().max()
    assert (found[0][2] - found[1][2]).abs().max() < 1e-4 * found[0][2].abs().max()
    assert found[1][3].is_sparse
    assert not found[0][3].is_sparse


def test_a_sampled_step_allocates_nothing_of_the_size_of_the_catalogue():
    n_items = 50_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        each, sizes = objective(n_items, 64)[1], []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                out = function(*args, **(kwargs or {}))
                parts = out if isinstance(out, tuple | list) else [out]
                tensors = [one for one in parts if isinstance(one, torch.Tensor)]
                sizes.extend((one.numel(), str(function)) for one in tensors if one.layout == torch.strided)
                return out

        with Watch():
            each.loss(batch()).total.backward()
    # The views of the table itself are no allocation.
    views = ("detach", "alias", "view")
    assert max(size for size, name in sizes if not any(word in name for word in views)) < n_items
    grad = each.network.table.grad
    assert grad.is_sparse
    assert grad.coalesce().indices().shape[1] < 200


@pytest.mark.parametrize(("settings", "wanted"), [
    ((1500, 12_101, 64, 256, False), False),
    ((1500, 200_000, 64, 256, False), False),
    ((1500, 500_000, 64, 256, False), True),
    ((1500, 500_000, 64, 256, True), False),
    ((10, 3_000_000, 1, 256, False), True),
])  # fmt: skip
def test_the_loss_is_sampled_by_work_and_by_memory(settings, wanted):
    assert is_sampled(*settings) is wanted
