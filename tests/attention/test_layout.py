"""Layouts tell offsets from nonsense, and their buckets hold every token once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqattn.attention import Layout
from seqattn.attention.layout import CALL_IN_PAIRS, to_slots, to_tokens
from seqattn.errors import ParameterError

PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12)


def filled(side, lengths, rows, widths):
    """Return the tokens of each row of slots, by counting on one's own."""
    slots = torch.arange(int(sum(lengths))) if side.token_of_slot is None else side.token_of_slot
    pads = set() if side.pads is None else set(side.pads.tolist())
    tokens = [None if place in pads else token for place, token in enumerate(slots.tolist())]
    out, place = [], 0
    for count, width in zip(rows, widths, strict=True):
        for _ in range(count):
            out.append(tokens[place : place + width])
            place += width
    assert place == len(tokens)
    return out


@given(PAIRS, st.sampled_from([1, 4]))
def test_every_sequence_has_one_row_with_its_tokens_in_order(pairs, heads):
    n, m = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    queries, keys = Layout.of(n), Layout.of(m)
    plan = queries.plan(keys, heads)
    rows = [bucket.rows for bucket in plan.buckets]
    found_q = filled(plan.query, n, rows, [bucket.queries for bucket in plan.buckets])
    found_k = filled(plan.key, m, rows, [bucket.keys for bucket in plan.buckets])
    sequences = [b for bucket in plan.buckets for b in bucket.sequences.tolist()]
    assert sorted(sequences) == [b for b, pair in enumerate(pairs) if min(pair) > 0]
    for b, row_q, row_k in zip(sequences, found_q, found_k, strict=True):
        for row, lengths in ((row_q, n), (row_k, m)):
            first = sum(lengths[:b])
            assert [token for token in row if token is not None] == list(range(first, first + lengths[b]))
            assert row[: lengths[b]] == list(range(first, first + lengths[b]))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_moving_tokens_to_slots_and_back_changes_nothing(lengths):
    layout = Layout.of(lengths)
    side = layout.plan(layout, 2).query
    rows = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows.requires_grad_()
    slots = to_slots(rows, side)
    assert torch.equal(to_tokens(slots, side), rows)
    weight = torch.arange(slots.numel(), dtype=torch.float64).view_as(slots)
    (grad,) = torch.autograd.grad((to_tokens(slots * weight, side) * 2).sum(), rows)
    assert torch.equal(grad, to_tokens(weight, side) * 2)


def test_equal_lengths_are_one_rectangle_without_moving_anything():
    layout = Layout.of([7] * 5)
    plan = layout.plan(layout, 2)
    assert len(plan.buckets) == 1
    assert plan.query.token_of_slot is None


def test_padding_never_costs_more_than_the_calls_it_saves():
    lengths = np.random.default_rng(0).integers(1, 400, 300)
    layout = Layout.of(lengths)
    for heads in (1, 8):
        plan = layout.plan(layout, heads)
        waste = (plan.pairs - (lengths**2).sum()) * heads
        assert waste <= CALL_IN_PAIRS * len(plan.buckets)
        assert len(plan.buckets) < 150


def test_what_is_derived_is_kept():
    layout = Layout.of([5, 3, 4])
    assert layout.plan(layout, 2) is layout.plan(layout, 2)
    assert layout.plan(Layout.of([5, 3, 4]), 2) is not layout.plan(layout, 2)


@pytest.mark.parametrize(
    ("offsets", "max_len", "text"),
    [
        ([1, 2], None, r"begin at 0 and never decrease, got \[1, 2\]"),
        ([0, 3, 2], None, "never decrease"),
        ([0, 3], 2, "max_len=2 is below the longest sequence, which has 3 tokens"),
        ([[0, 3]], None, r"of shape \[1, 2\]"),
        ([], None, r"of shape \[0\]"),
    ],
)
def test_what_is_no_layout_is_refused(offsets, max_len, text):
    with pytest.raises((ParameterError, TypeError), match=text):
        Layout(torch.tensor(offsets, dtype=torch.int32), max_len)


def test_a_longer_bound_than_the_longest_sequence_is_allowed():
    layout = Layout(torch.tensor([0, 3, 5], dtype=torch.int32), 10)
    assert layout.max_len == 10
    assert layout.plan(layout, 1).buckets[0].queries == 3
