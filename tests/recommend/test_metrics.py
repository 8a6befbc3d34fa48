from __future__ import annotations

import numpy as np
import pytest
from recommend.tables import Given, plain, random_table

from seqattn.data.interactions import Interactions
from seqattn.errors import DataError, ParameterError
from seqattn.recommend.beyond import follows, gini, list_metrics, popularity_fifth, slices
from seqattn.recommend.evaluation import evaluate_ranking
from seqattn.recommend.metrics import check_ks, mean_over_users, target_metrics, user_metrics
from seqattn.recommend.ranking import Ranks, target_ranks


def ranks_of(users: list[int], ranks: list[float]) -> Ranks:
    pairs = len(users)
    return Ranks(
        users=np.array(users, dtype=np.int64),
        items=np.arange(pairs),
        ranks=np.array(ranks, dtype=np.float64),
        candidates=np.full(pairs, 100),
        n_users=len(set(users)),
        n_items=100,
        exclude_seen=True,
        ties="average",
    )


def test_rank_three_gives_the_values_worked_out_by_hand():
    found = target_metrics(np.array([3.0]), (2, 3, 5))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "hr@2": 0.0,
            "hr@3": 1.0,
            "hr@5": 1.0,
            "ndcg@2": 0.0,
            "ndcg@3": 0.5,
            "ndcg@5": 0.5,
            "mrr@2": 0.0,
            "mrr@3": 1 / 3,
            "mrr@5": 1 / 3,
            "mrr": 1 / 3,
        }
    )


@pytest.mark.parametrize(("rank", "hit"), [(5.0, 1.0), (5.5, 1.0), (6.0, 0.0), (np.inf, 0.0)])
def test_a_rank_halfway_past_the_end_is_in_the_list(rank, hit):
    found = target_metrics(np.array([rank]), (5,))
    assert found["hr@5"].item() == hit
    assert found["ndcg@5"].item() == pytest.approx(hit / np.log2(rank + 1))
    assert found["mrr"].item() == pytest.approx(1 / rank)


def test_several_targets_share_the_gain_of_an_ideal_list():
    # Targets at 1, 3 and 9 for the first user, at 2 for the second.
    found = user_metrics(ranks_of([0, 0, 0, 4], [9, 1, 3, 2]), (2, 5))
    ideal_two, ideal_three = 1 + 1 / np.log2(3), 1 + 1 / np.log2(3) + 0.5
    assert found["hr@2"].tolist() == [1, 1]
    assert found["recall@2"] == pytest.approx([1 / 3, 1])
    assert found["recall@5"] == pytest.approx([2 / 3, 1])
    assert found["ndcg@2"] == pytest.approx([1 / ideal_two, 1 / np.log2(3)])
    assert found["ndcg@5"] == pytest.approx([1.5 / ideal_three, 1 / np.log2(3)])
    assert found["mrr"] == pytest.approx([1, 0.5])


def test_means_have_the_error_and_the_interval_of_the_normal_law():
    (found,) = mean_over_users({"hr@5": np.array([1.0, 0.0, 0.0, 0.0])}).values()
    assert found.value == 0.25
    assert found.standard_error == pytest.approx(0.25)  # deviations 0.75, -0.25, ...: sqrt(0.75 / 3) / 2
    assert (found.lower, found.upper) == pytest.approx((0.0, 0.25 + 1.959964 * 0.25))
    assert np.isnan(mean_over_users({"mrr": np.array([0.5])})["mrr"].standard_error)


def test_intervals_cover_the_truth_as_often_as_they_say():
    draw = np.random.default_rng(0)
    hits = (draw.random((2000, 400)) < 0.3).astype(float)
    bounds = [mean_over_users({"hr": row})["hr"] for row in hits]
    covered = np.mean([b.lower <= 0.3 <= b.upper for b in bounds])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize("ks", [(), (0,), (2.5,), (True,), ("5",)])
def test_lengths_of_lists_that_cannot_be_are_refused(ks):
    with pytest.raises(ParameterError, match="ks="):
        check_ks(ks)


def test_nothing_to_look_at_is_refused():
    with pytest.raises(DataError, match="no target"):
        user_metrics(ranks_of([], []), (5,))


def test_lists_are_described_by_values_worked_out_by_hand():
    # Items 0 to 3 have 6, 2, 2 and 0 training interactions; the first holds the first fifth of them alone.
    popularity = np.array([6, 2, 2, 0])
    items = np.array([[0, 1], [0, -1]], dtype=np.int32)
    found = list_metrics(items, plain([0, 2, 2], [1, 2], 4), popularity, (1, 2))
    assert found["coverage@1"] == 0.25
    assert found["coverage@2"] == 0.5
    assert found["gini@1"] == 0.75
    assert found["log_popularity@1"] == pytest.approx(np.log(7))
    assert found["log_popularity@2"] == pytest.approx(((np.log(7) + np.log(3)) / 2 + np.log(7)) / 2)
    assert found["popularity_lift@1"] == pytest.approx(np.log(7) - np.log(3))  # of the user with a history
    assert (found["tail_share@1"], found["tail_share@2"]) == pytest.approx((0.0, 1 / 3))


def test_popularity_fifths_hold_a_fifth_of_the_interactions_each():
    popularity = np.random.default_rng(0).permutation(np.arange(1, 1001))
    fifth = popularity_fifth(popularity)
    shares = np.array([popularity[fifth == number].sum() for number in range(5)]) / popularity.sum()
    assert shares == pytest.approx(np.full(5, 0.2), abs=0.003)
    assert popularity[fifth == 0].min() > popularity[fifth == 1].max()
    assert popularity_fifth(np.array([3, 0, 3])).tolist() == [0, 5, 0]


def test_gini_is_that_of_all_pairs():
    counts = np.random.default_rng(0).integers(0, 20, 50)
    pairs = np.abs(counts[:, None] - counts[None, :]).sum()
    assert gini(counts) == pytest.approx(pairs / (2 * 50**2 * counts.mean()))
    assert gini(np.zeros(3, dtype=np.int64)) == 0.0


def test_slices_cover_all_targets_and_average_to_the_whole():
    data = Interactions.of(random_table(5))
    rest, last = data.without_last()
    targets = plain(list(range(data.n_users + 1)), last.tolist(), data.n_items)
    scorer = Given(np.random.default_rng(1).normal(size=(data.n_users, data.n_items)))
    ranks = target_ranks(scorer, rest, targets)
    table = slices(ranks, rest, rest, (5,))
    whole = user_metrics(ranks, (5,))
    for (_, *_), group in table.group_by("slice"):
        assert group["n_targets"].sum() == data.n_users
        for name in ("hr@5", "ndcg@5", "mrr"):
            assert (group[name] * group["n_targets"]).sum() / data.n_users == pytest.approx(
                whole[name].mean()
            )


def test_slices_by_transition_and_length_follow_the_definition():
    data = Interactions.of(random_table(5))
    rest, last = data.without_last()
    targets = plain(list(range(data.n_users + 1)), last.tolist(), data.n_items)
    ranks = target_ranks(Given(np.zeros((data.n_users, data.n_items))), rest, targets)
    table = slices(ranks, rest, rest, (5,))
    pairs = {
        (int(a), int(b))
        for u in range(rest.n_users)
        for a, b in zip(rest.items_of(u)[:-1], rest.items_of(u)[1:], strict=True)
    }
    seen = sum((int(rest.items_of(u)[-1]), int(last[u])) in pairs for u in range(data.n_users))
    counts = dict(table.filter(table["slice"] == "last transition").select("group", "n_targets").iter_rows())
    assert counts["seen in training"] == seen
    assert 0 < seen < data.n_users
    lengths = dict(table.filter(table["slice"] == "history length").select("group", "n_targets").iter_rows())
    assert lengths.get("3-4", 0) == ((rest.lengths >= 3) & (rest.lengths < 5)).sum()
    assert lengths.get("10-19", 0) == ((rest.lengths >= 10) & (rest.lengths < 20)).sum()
    assert len(follows(rest)) == rest.n_rows - rest.n_users


def test_the_protocol_names_ranking_mask_ties_users_and_candidates():
    history, targets = plain([0, 2, 3], [0, 1, 2], 5), plain([0, 1, 2], [1, 4], 5)
    found = evaluate_ranking(Given(np.zeros((2, 5))), history, targets, history, ks=(2,))
    assert found.protocol == (
        "full ranking over all 5 items; items of the user's whole history are removed, 3.5 candidates on average; "
        "equal scores share the mean of their ranks; 2 users with 2 targets; 1 targets cannot be reached and count as "
        "misses"
    )
    kept = evaluate_ranking(
        Given(np.zeros((2, 5))), history, targets, history, exclude_seen=False, ties="optimistic"
    )
    assert "items seen before stay candidates; equal scores stand after the target" in kept.protocol
    table = found.to_table()
    assert table.filter(table["metric"] == "hr@2")["standard_error"].item() is not None
    assert table.filter(table["metric"] == "coverage@2")["standard_error"].item() is None
    assert found["n_users"] == 2
    assert found["n_unreachable"] == 1
