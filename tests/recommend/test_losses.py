"""Chunked losses against plain ones, their gradients, and distillation against a dense teacher."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from recommend.counted import LISTS, N, dense_counts, drawn, transitions
from torch.nn.functional import cross_entropy

from seqattn.recommend import losses
from seqattn.recommend.losses import chunk_rows, distillation_loss, log_normaliser, ranking_loss
from seqattn.recommend.transitions import Teacher, mass_of, temperature_of

DIM, ROWS = 6, 23


@pytest.fixture(params=[1, 7, ROWS, 1000])
def chunk(request, monkeypatch):
    """Rows of scores at a time."""
    monkeypatch.setattr(losses, "chunk_rows", lambda *_: request.param)
    return request.param


@pytest.mark.parametrize("zero_class", [False, True])
def test_the_chunked_loss_is_the_cross_entropy(chunk, zero_class):
    states, table = (drawn(*shape).mul(3).requires_grad_() for shape in ((ROWS, DIM), (N, DIM)))
    targets = torch.arange(ROWS) * 2
    scores = states @ table.T
    if zero_class:
        scores = torch.cat([scores, torch.zeros(ROWS, 1)], 1)
    wanted = cross_entropy(scores, targets, reduction="sum")
    found = ranking_loss(states, targets, table, zero_class=zero_class)
    assert abs(found - wanted) < 1e-10 * abs(wanted)
    slopes = [torch.autograd.grad(5 * value, (states, table)) for value in (found, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert (ours - theirs).abs().max() < 1e-10


@pytest.mark.parametrize("parts", ["none", "extra", "offset", "hits", "all"])
def test_gradients_of_the_log_normaliser_are_those_of_differences(chunk, parts):
    states, table = (drawn(*shape).requires_grad_() for shape in ((5, 3), (9, 3)))
    extra = drawn(5).requires_grad_() if parts in ("extra", "all") else None
    offset = drawn(9) if parts in ("offset", "all") else None
    hits = (torch.tensor([0, 0, 3]), torch.tensor([2, 8, 4])) if parts in ("hits", "all") else None
    given = [value for value in (states, table, extra) if value is not None]

    def total(*values):
        return log_normaliser(*values[:2], extra=(*values, None)[2], offset=offset, hits=hits)

    assert torch.autograd.gradcheck(total, given)
    scores = states @ table.T + (0 if offset is None else offset)
    if hits is not None:
        scores = scores.index_put(hits, torch.tensor(-torch.inf, dtype=torch.float64))
    if extra is not None:
        scores = torch.cat([scores, extra[:, None]], 1)
    assert abs(total(*given) - scores.logsumexp(1).sum()) < 1e-10


def test_a_row_whose_items_are_all_hit_has_the_extra_score_alone():
    states, table, extra = (
        drawn(2, 3).requires_grad_(),
        drawn(4, 3).requires_grad_(),
        drawn(2).requires_grad_(),
    )
    hits = (torch.zeros(4, dtype=torch.int64), torch.arange(4))
    total = log_normaliser(states[:1], table, extra=extra[:1], hits=hits)
    assert abs(total - extra[0]) < 1e-12
    slopes = torch.autograd.grad(total, (states, table, extra))
    assert not slopes[0].any()
    assert not slopes[1].any()
    assert slopes[2].tolist() == [1.0, 0.0]


def test_large_scores_neither_overflow_nor_lose_the_loss():
    states, table = torch.tensor([[300.0], [-300.0]]), torch.tensor([[1.0], [0.0]])
    found = ranking_loss(states, torch.tensor([1, 0]), table)
    assert found.tolist() == 600.0


def test_float32_and_bfloat16_products_stay_close_to_float64():
    states, table, targets = drawn(200, 16), drawn(500, 16) / 2, torch.arange(200)
    exact = ranking_loss(states, targets, table)
    single = ranking_loss(states.float(), targets, table.float())
    half = ranking_loss(states.float(), targets, table.float(), is_half=True)
    assert abs(single - exact) < 1e-6 * exact
    assert 1e-8 * exact < abs(half - exact) < 3e-3 * exact
    slopes = []
    for is_half in (False, True):
        leaf = table.float().requires_grad_()
        slopes.append(
            torch.autograd.grad(ranking_loss(states.float(), targets, leaf, is_half=is_half), leaf)[0]
        )
    assert (slopes[1] - slopes[0]).norm() < 0.01 * slopes[0].norm()


def test_autocast_does_not_change_the_exact_loss():
    states, table, _targets = drawn(20, 8).float(), drawn(40, 8).float(), torch.arange(20)
    alone = log_normaliser(states, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_normaliser(states, table), alone)


def test_the_scores_of_no_more_than_a_chunk_exist():
    n_items, rows = 4000, 1000
    states, table = drawn(rows, 4).float().requires_grad_(), drawn(n_items, 4).float().requires_grad_()
    limit = chunk_rows(n_items, 1) * n_items
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.extend(each.untyped_storage().nbytes() // 4 for each in (found if isinstance(found, tuple | list)
                         else [found]) if isinstance(each, torch.Tensor))  # fmt: skip
            return found

    with Watch():
        ranking_loss(states, torch.arange(rows), table, memory_mb=1).backward()
    assert max(sizes) <= limit == 65 * n_items


@pytest.mark.parametrize(("span", "wanted"), [
    (1, {(0, 1): 3, (0, 2): 1, (1, 0): 1, (1, 2): 1, (1, 5): 1, (3, 3): 1, (3, 1): 1, (5, 6): 1, (6, 7): 1, (7, 8): 1}),
    (2, {(0, 1): 3, (0, 2): 2, (1, 0): 1, (1, 2): 2, (1, 5): 1, (3, 3): 1, (3, 1): 2, (5, 6): 1, (6, 7): 1, (7, 8): 1,
         (0, 0): 1, (0, 5): 1, (1, 6): 1, (5, 7): 1, (6, 8): 1}),
])  # fmt: skip
def test_transitions_are_those_counted_by_hand(span, wanted):
    found = dense_counts(transitions(span=span))
    assert {(int(i), int(j)): int(found[i, j]) for i, j in np.argwhere(found)} == wanted


def test_the_strongest_successors_are_kept():
    lists = [[0, 1], [0, 2], [0, 2], [0, 3], [0, 3], [0, 4], [1, 0]]
    found = dense_counts(transitions(lists, max_successors=2))
    assert {(int(i), int(j)): int(found[i, j]) for i, j in np.argwhere(found)} == {
        (0, 2): 2,
        (0, 3): 2,
        (1, 0): 1,
    }


@pytest.mark.parametrize("tau", [0.002, 0.05, 0.1, 3.0])
def test_the_teacher_is_the_softmax_of_scaled_counts(tau):
    counts = transitions()
    dense = torch.from_numpy(dense_counts(counts))
    top = dense.amax(1, keepdim=True).clamp(min=1)
    wanted = (dense / top / tau).softmax(1)
    found = Teacher(counts, tau).dense().double()
    assert (found - wanted).abs().max() < 1e-6
    assert (found.sum(1) - 1).abs().max() < 1e-5
    assert torch.equal(found[20], torch.full((N,), 1 / N).double()) or (found[20] - 1 / N).abs().max() < 1e-8


@pytest.mark.parametrize("n_items", [50, 12_101, 1_000_000])
@pytest.mark.parametrize("mass", [0.4, 0.65, 0.9])
def test_the_temperature_gives_an_only_successor_its_mass(mass, n_items):
    tau = temperature_of(mass, n_items)
    assert abs(math.exp(1 / tau) / (math.exp(1 / tau) + n_items - 1) - mass) < 1e-9
    assert abs(mass_of(tau, n_items) - mass) < 1e-9
    if n_items == 50:
        assert abs(Teacher(transitions([[0, 1]]), tau).dense()[0, 1] - mass) < 1e-6


@pytest.mark.parametrize("lists", [LISTS, [[7], [8]]], ids=["pairs", "no pair at all"])
def test_distillation_equals_the_dense_cross_entropy(chunk, lists):
    counts, tau = transitions(lists), 0.3
    dense = torch.from_numpy(dense_counts(counts))
    target = (dense / dense.amax(1, keepdim=True).clamp(min=1) / tau).softmax(1)
    items = torch.tensor([0, 0, 3, 1, 20, 5, 0, 4] * 3)[:ROWS]
    heads, table = (drawn(*shape).requires_grad_() for shape in ((ROWS, DIM), (N, DIM)))
    wanted = -(target[items] * (heads @ table.T).log_softmax(1)).sum()
    found = distillation_loss(heads, items, table, Teacher(counts, tau))
    assert abs(found - wanted) < 1e-6 * abs(wanted)
    slopes = [torch.autograd.grad(value, (heads, table)) for value in (found, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert (ours - theirs).abs().max() < 1e-5
