"""Optimisers of rows against Adam and against loops, and the penalty of rows that were not touched for a while."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seqattn.recommend.optimisers import LazyAdam, RowAdagrad, UncorrectedAdam

ROWS, DIM = 7, 3


def start(seed=0):
    return torch.nn.Parameter(torch.from_numpy(np.random.default_rng(seed).normal(size=(ROWS, DIM))))


def slopes(n, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, ROWS, DIM)))


def sparse(slope, rows):
    index = torch.tensor(rows)
    return torch.sparse_coo_tensor(index[None], slope[index], slope.shape, check_invariants=True)


def test_lazy_adam_is_adam_where_every_step_touches_all_rows():
    ours, theirs, dense = start(), start(), start()
    lazy = LazyAdam([ours, dense], lr=0.05, weight_decay=0.1)
    adam = torch.optim.Adam([theirs], lr=0.05, weight_decay=0.1)
    for slope in slopes(6):
        ours.grad, theirs.grad, dense.grad = sparse(slope, list(range(ROWS))), slope, slope
        lazy.step()
        adam.step()
    assert (ours - theirs).abs().max() < 1e-12
    assert (dense - theirs).abs().max() < 1e-12


def test_lazy_adam_gives_each_row_the_course_of_its_own_steps():
    """A row alone, touched at some steps, is Adam on these steps with the penalty of the steps between."""
    table, first = start(), start().detach().clone()
    lazy, decay = LazyAdam([table], lr=0.05, weight_decay=0.1), 0.1
    touched = [[0, 2], [2], [0, 5], [5], [0]]
    for slope, rows in zip(slopes(5), touched, strict=True):
        table.grad = sparse(slope, rows)
        lazy.step()
    for row in range(ROWS):
        value, mean, square, count, last = first[row].clone(), torch.zeros(DIM), torch.zeros(DIM), 0, 0
        for step, (slope, rows) in enumerate(zip(slopes(5), touched, strict=True), 1):
            if row in rows:
                grad = slope[row] + decay * (step - last) * value
                count, last = count + 1, step
                mean = 0.9 * mean + 0.1 * grad
                square = 0.999 * square + 0.001 * grad**2
                value = value - 0.05 * (mean / (1 - 0.9**count)) / (
                    (square / (1 - 0.999**count)).sqrt() + 1e-8
                )
        assert (table[row] - value).abs().max() < 1e-12, row
    assert torch.equal(table[1], first[1])


def test_row_adagrad_equals_a_loop_and_keeps_one_number_per_row():
    table, value = start(), start().detach().clone()
    optimiser, sums, last = RowAdagrad([table], lr=0.3, weight_decay=0.2), [0.0] * ROWS, [0] * ROWS
    for step, (slope, rows) in enumerate(zip(slopes(4), [[0, 1], [1], [6, 0], [0, 1]], strict=True), 1):
        table.grad = sparse(slope, rows)
        optimiser.step()
        for row in rows:
            grad = slope[row] + 0.2 * (step - last[row]) * value[row]
            last[row] = step
            sums[row] += float((grad**2).mean())
            value[row] = value[row] - 0.3 * grad / (math.sqrt(sums[row]) + 1e-8)
    assert (table - value).abs().max() < 1e-12
    assert optimiser.state[table]["sum"].shape == (ROWS,)
    assert max(each.numel() for each in optimiser.state[table].values()) == ROWS


def test_gradients_of_rows_named_twice_are_added():
    table, once = start(), start()
    table.grad = torch.sparse_coo_tensor(
        [[2, 2]], torch.ones(2, DIM).double(), (ROWS, DIM), check_invariants=True
    )
    once.grad = torch.sparse_coo_tensor(
        [[2]], 2 * torch.ones(1, DIM).double(), (ROWS, DIM), check_invariants=True
    )
    for parameter in (table, once):
        RowAdagrad([parameter], lr=0.1).step()
    assert torch.equal(table, once)


@pytest.mark.parametrize("kind", [LazyAdam, RowAdagrad])
def test_a_restored_state_goes_on_with_the_same_bits(kind):
    tables = []
    for interrupt in (False, True):
        table = start()
        optimiser = kind([table], lr=0.05, weight_decay=0.1)
        for step, slope in enumerate(slopes(6)):
            if interrupt and step == 3:
                kept = optimiser.state_dict()["state"]
                optimiser = kind([table], lr=0.05, weight_decay=0.1)
                groups = optimiser.state_dict()["param_groups"]
                optimiser.load_state_dict({"state": kept, "param_groups": groups})
            table.grad = sparse(slope, [step % ROWS, 6])
            optimiser.step()
        tables.append(table)
    assert torch.equal(*tables)


def test_uncorrected_adam_adds_its_small_number_to_the_plain_root():
    table, value = start(), start().detach().clone()
    optimiser = UncorrectedAdam([table], lr=0.05, eps=0.3, weight_decay=0.1)
    mean = square = torch.zeros(ROWS, DIM).double()
    for step, slope in enumerate(slopes(5), 1):
        table.grad = slope.clone()
        optimiser.step()
        grad = slope + 0.1 * value
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        rate = 0.05 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        value = value - rate * mean / (square.sqrt() + 0.3)
    assert (table - value).abs().max() < 1e-12
