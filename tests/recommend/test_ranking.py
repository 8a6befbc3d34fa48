from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recommend.tables import Given, plain, random_table, table

from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.errors import DataError, ParameterError
from seqattn.recommend.ranking import TIES, DotProducts, target_ranks, top_items


def slow_rank(scores: list[float], target: int, gone: set[int], ties: str) -> float:
    """Rank by the definition, one item at a time."""
    if target in gone or target >= len(scores):
        return np.inf
    others = [s for item, s in enumerate(scores) if item not in gone and item != target]
    higher = sum(s > scores[target] for s in others)
    equal = sum(s == scores[target] for s in others)
    return 1 + higher + {"average": equal / 2, "pessimistic": equal, "optimistic": 0}[ties]


@st.composite
def cases(draw: Callable[..., Any]) -> Any:
    n_users, n_items = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    level = st.integers(-2, 2) | st.just(-np.inf)
    scores = draw(
        st.lists(st.lists(level, min_size=n_items, max_size=n_items), min_size=n_users, max_size=n_users)
    )
    rows = st.lists(st.lists(st.integers(0, n_items - 1), max_size=6), min_size=n_users, max_size=n_users)
    return scores, draw(rows), draw(rows)


def as_rows(lists: list[list[int]], n_items: int) -> Interactions:
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists])])
    return plain(offsets.tolist(), [item for items in lists for item in items], n_items)


@given(cases(), st.sampled_from(TIES), st.booleans(), st.integers(1, 10), st.integers(1, 6))
@settings(max_examples=60)
def test_ranks_follow_the_definition_in_every_tiling(case, ties, exclude_seen, chunk, batch):
    scores, had, wanted = case
    n_items = len(scores[0])
    found = target_ranks(
        Given(scores),
        as_rows(had, n_items),
        as_rows(wanted, n_items),
        ties=ties,
        exclude_seen=exclude_seen,
        item_chunk=chunk,
        user_batch=batch,
    )
    expected = [
        (user, item, slow_rank(scores[user], item, set(had[user]) if exclude_seen else set(), ties))
        for user, items in enumerate(wanted)
        for item in sorted(set(items))
    ]
    assert (
        list(zip(found.users.tolist(), found.items.tolist(), found.ranks.tolist(), strict=True)) == expected
    )
    assert found.n_users == sum(bool(items) for items in wanted)
    left = [n_items - (len(set(had[user])) if exclude_seen else 0) for user, _, _ in expected]
    assert found.candidates.tolist() == left


@given(cases(), st.booleans(), st.integers(1, 10), st.integers(1, 6), st.integers(1, 12))
@settings(max_examples=60)
def test_lists_hold_the_best_candidates_in_order_in_every_tiling(case, exclude_seen, chunk, batch, k):
    scores, had, other = case
    n_items = len(scores[0])
    barred = np.array(sorted(set(other[0])), dtype=np.int64)
    items, found = top_items(
        Given(scores),
        as_rows(had, n_items),
        k,
        exclude_seen=exclude_seen,
        exclude=barred,
        item_chunk=chunk,
        user_batch=batch,
    )
    for user, row in enumerate(scores):
        gone = set(barred.tolist()) | (set(had[user]) if exclude_seen else set())
        order = [i for i in sorted(range(n_items), key=lambda i: (-row[i], i)) if row[i] > -np.inf]
        expected = [item for item in order if item not in gone][:k]
        assert items[user].tolist() == expected + [-1] * (min(k, n_items) - len(expected))
        assert found[user, : len(expected)].tolist() == [row[item] for item in expected]
        assert np.isnan(found[user, len(expected) :]).all()


def test_candidates_are_the_only_items_listed():
    items, _ = top_items(Given([[4, 3, 2, 1]]), plain([0, 1], [1], 4), 4, candidates=np.array([1, 2, 3]))
    assert items.tolist() == [[2, 3, -1, -1]]


def test_a_target_outside_the_catalogue_is_unreachable():
    found = target_ranks(Given([[1, 2]]), plain([0, 0], [], 3), plain([0, 2], [1, 2], 3))
    assert found.ranks.tolist() == [1.0, np.inf]
    assert found.n_unreachable == 1


def test_rows_that_count_as_seen_can_differ_from_the_history():
    history, seen = plain([0, 2], [0, 1], 3), plain([0, 1], [1], 3)
    scorer, target = Given([[3, 2, 1]]), plain([0, 1], [2], 3)
    assert target_ranks(scorer, history, target).ranks.tolist() == [1.0]
    assert target_ranks(scorer, history, target, seen=seen).ranks.tolist() == [2.0]
    assert top_items(scorer, history, 1, seen=seen)[0].tolist() == [[0]]


def products(n_users: int, n_items: int, dim: int = 64) -> DotProducts:
    draw = torch.Generator().manual_seed(7)
    states, items = torch.randn(n_users, dim, generator=draw), torch.randn(n_items, dim, generator=draw)
    return DotProducts(items, lambda histories: states[torch.as_tensor(list(histories.user_ids))])


def test_tilings_and_threads_change_no_rank_of_dot_products():
    n_users, n_items = 300, 5000
    draw = np.random.default_rng(0)
    had = plain(list(range(0, 5 * n_users + 1, 5)), draw.integers(0, n_items, 5 * n_users).tolist(), n_items)
    wanted = plain(list(range(n_users + 1)), draw.integers(0, n_items, n_users).tolist(), n_items)
    scorer, before = products(n_users, n_items), torch.get_num_threads()
    results, lists = [], []
    try:
        for batch, chunk, threads in ((256, None, 1), (1, 5000, 1), (37, 777, 2), (300, 1, 1), (64, 4999, 2)):
            if chunk == 1:
                continue
            torch.set_num_threads(threads)
            ranks = target_ranks(scorer, had, wanted, user_batch=batch, item_chunk=chunk)
            results.append(ranks.ranks.tolist())
            items, scores = top_items(scorer, had, 20, user_batch=batch, item_chunk=chunk)
            lists.append((items.tolist(), scores.tolist()))
    finally:
        torch.set_num_threads(before)
    assert all(found == results[0] for found in results)
    assert all(found == lists[0] for found in lists)


def test_no_more_scores_than_one_tile_are_asked_for():
    scorer = Given(np.random.default_rng(0).normal(size=(50, 200)))
    rows = plain(list(range(51)), [0] * 50, 200)
    target_ranks(scorer, rows, rows, user_batch=8, item_chunk=16)
    top_items(scorer, rows, 30, user_batch=8, item_chunk=16)
    assert scorer.largest == 8 * 16


def test_random_scores_hit_as_often_as_chance():
    n_users, n_items, k = 4000, 200, 10
    draw = np.random.default_rng(1)
    offsets = list(range(0, 5 * n_users + 1, 5))
    had = plain(offsets, np.argsort(draw.random((n_users, n_items)))[:, :5].ravel().tolist(), n_items)
    fresh = [
        int(next(i for i in draw.permutation(n_items) if i not in had.items_of(u))) for u in range(n_users)
    ]
    found = target_ranks(
        Given(draw.normal(size=(n_users, n_items))), had, plain(list(range(n_users + 1)), fresh, n_items)
    )
    chance = k / (n_items - 5)
    assert abs((found.ranks <= k).mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / n_users)


@pytest.mark.parametrize(("ties", "rank"), [("average", 49.5), ("pessimistic", 98.0), ("optimistic", 1.0)])
def test_constant_scores_follow_the_rule_for_ties(ties, rank):
    had, wanted = plain([0, 2], [1, 2], 100), plain([0, 1], [50], 100)
    assert target_ranks(Given(np.zeros((1, 100))), had, wanted, ties=ties).ranks.tolist() == [rank]


def test_nothing_seen_is_listed_however_long_the_history():
    data = Interactions.of(random_table(3, n_users=80, n_items=60, longest=50))
    scorer = Given(np.random.default_rng(0).normal(size=(data.n_users, data.n_items)))
    items, _ = top_items(scorer, data, 60)
    for user in range(data.n_users):
        assert not set(items[user].tolist()) & set(data.items_of(user).tolist())
        assert (items[user] >= 0).sum() == data.n_items - len(set(data.items_of(user).tolist()))


def test_targets_that_were_seen_are_unreachable_and_counted():
    data = Interactions.of(table([0, 1, 2, 0], [3, 4, 5, 6]))
    split = leave_one_out(data)
    histories = data.without_last()[0]
    scorer = Given(np.zeros((2, data.n_items)))
    found = target_ranks(scorer, histories, split.test)
    assert np.isinf(found.ranks).tolist() == [True, False]
    assert found.n_unreachable == 1
    assert target_ranks(scorer, histories, split.test, exclude_seen=False).n_unreachable == 0


def test_a_score_that_is_no_number_is_refused_with_its_item():
    rows = plain([0, 1], [0], 3)
    for use in (lambda s: target_ranks(s, rows, rows), lambda s: top_items(s, rows, 2)):
        with pytest.raises(DataError, match="item number 2 with NaN"):
            use(Given([[0, 1, np.nan]]))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ties": "mean"}, "ties='mean'"),
        ({"user_batch": 0}, "user_batch=0"),
        ({"item_chunk": -1}, "item_chunk=-1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, text):
    rows = plain([0, 1], [0], 3)
    with pytest.raises(ParameterError, match=text):
        target_ranks(Given([[0, 1, 2]]), rows, rows, **settings)


def test_users_must_be_the_same():
    with pytest.raises(DataError, match="1 users, but 2 users"):
        target_ranks(Given([[0.0], [1.0]]), plain([0, 1], [0], 1), plain([0, 1, 2], [0, 0], 1))
