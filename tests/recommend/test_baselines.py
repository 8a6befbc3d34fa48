"""The baselines on the known data sets: an independent check of splits, ranking and ties."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from recommend.tables import random_table, table

from seqattn import MarkovRecommender, PopularityRecommender
from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.recommend.ranking import DotProducts, target_ranks

KS = (5, 10, 20)
# HR and NDCG at 5, 10 and 20: figures of others' code for the same files, whole history masked, ties at mid-rank.
KNOWN = {
    "amazon-beauty": (
        (0.0081, 0.0120, 0.0204, 0.0044, 0.0056, 0.0076),
        (0.0517, 0.0670, 0.0824, 0.0390, 0.0440, 0.0479),
    ),
    "amazon-sports": (
        (0.0057, 0.0091, 0.0151, 0.0041, 0.0052, 0.0067),
        (0.0285, 0.0371, 0.0466, 0.0207, 0.0235, 0.0259),
    ),
    "amazon-toys": (
        (0.0056, 0.0090, 0.0134, 0.0038, 0.0049, 0.0060),
        (0.0591, 0.0709, 0.0816, 0.0441, 0.0479, 0.0506),
    ),
    "yelp": (
        (0.0056, 0.0095, 0.0156, 0.0036, 0.0049, 0.0064),
        (0.0137, 0.0203, 0.0283, 0.0090, 0.0111, 0.0131),
    ),
    "lastfm": (
        (0.0248, 0.0385, 0.0606, 0.0135, 0.0180, 0.0236),
        (0.0284, 0.0422, 0.0697, 0.0189, 0.0235, 0.0304),
    ),
    "ml-1m": (
        (0.0219, 0.0394, 0.0699, 0.0138, 0.0194, 0.0270),
        (0.1359, 0.1917, 0.2606, 0.0942, 0.1121, 0.1295),
    ),
}
# Test users whose last transition was seen in training, in percent, and targets that were seen before.
FACTS = {"amazon-beauty": (8.6, 0), "amazon-sports": (5.1, 0), "amazon-toys": (8.1, 0), "yelp": (4.2, 2027)}


def read(name: str) -> Interactions:
    path = Path(os.environ.get("SEQATTN_DATA", ""), "rec", name, f"{name}.inter")
    if not path.is_file():
        pytest.skip(f"{name} is not there")
    return Interactions.read(path)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "lastfm" else pytest.mark.slow) for n in KNOWN]
)
def test_figures_are_those_of_others_to_four_digits(name):
    data = read(name)
    rest, test = data.without_last()[0], leave_one_out(data).test
    for model, expected in zip((PopularityRecommender(), MarkovRecommender()), KNOWN[name], strict=True):
        found = model.fit(rest).evaluate(test, KS, baselines=False)
        figures = [round(found[f"{kind}@{k}"], 4) for kind in ("hr", "ndcg") for k in KS]
        assert figures == list(expected), type(model).__name__
    if name in FACTS:
        seen = found.slices.filter(found.slices["group"] == "seen in training")["share"].item()
        assert (round(100 * seen, 1), found["n_unreachable"]) == FACTS[name]


@pytest.mark.slow
def test_dot_products_are_ranked_at_four_thousand_users_a_second():
    data = read("amazon-beauty")
    rest, test = data.without_last()[0], leave_one_out(data).test
    draw = torch.Generator().manual_seed(0)
    states, items = (torch.randn(n, 64, generator=draw) for n in (data.n_users, data.n_items))
    scorer = DotProducts(items, lambda histories: states[: histories.n_users])
    began = time.process_time()
    found = target_ranks(scorer, rest, test)
    assert found.n_users / (time.process_time() - began) >= 4000


def slow_markov(data: Interactions, history: list[int]) -> list[tuple[int, int]]:
    """Return count after the last item and popularity of each item, one row after the other."""
    counts, popularity = [0] * data.n_items, [0] * data.n_items
    for user in range(data.n_users):
        items = data.items_of(user).tolist()
        for item in items:
            popularity[item] += 1
        for first, second in itertools.pairwise(items):
            counts[second] += first == history[-1]
    return list(zip(counts, popularity, strict=True))


def test_transitions_come_first_and_popularity_breaks_ties():
    model = MarkovRecommender().fit(random_table(2), validation=None)
    for history in ([3], [1, 0], [7, 5]):
        keys = slow_markov(model.history_, history)
        order = sorted(range(len(keys)), key=lambda item: (-keys[item][0], -keys[item][1], item))
        found = model.recommend_for([history], k=len(keys), exclude_seen=False)
        assert model.history_.item_codes(found["item_id"]).tolist() == order
        scores = dict(zip(order, found["score"], strict=True))
        for one in order:
            for other in order:
                assert (scores[one] > scores[other]) == (keys[one] > keys[other])


def test_validation_rows_are_known_but_not_counted():
    rows = table([0, 1, 2], [0, 1, 3], [0, 2, 3])
    model = PopularityRecommender().fit(rows)
    assert model.popularity_.tolist() == [3, 2, 1, 0]
    assert model.history_.n_rows == 9
    assert model.training_.n_rows == 6
    assert model.recommend([0], k=4)["item_id"].to_list() == []  # 3 is cold: nobody had it in training
    markov = MarkovRecommender().fit(rows)
    assert markov.transitions_.tolist() == [[0, 1, 2], [0, 2, 1]]
    everything = MarkovRecommender().fit(rows, validation=None)
    assert everything.transitions_.tolist() == [[0, 1, 2], [0, 2, 1], [1, 2, 1], [1, 3, 1], [2, 3, 1]]


def test_test_items_change_nothing_that_was_learned():
    data = Interactions.of(random_table(4))
    split, rest = leave_one_out(data), data.without_last()[0]
    turned = split.test.items[::-1].copy()
    for kind in (PopularityRecommender, MarkovRecommender):
        model = kind().fit(rest)
        before = model.digest()
        model.evaluate(split.test)
        changed = Interactions(split.test.offsets, turned, None, data.user_ids, data.item_ids)
        model.evaluate(changed)
        assert model.digest() == before
        # A user with two rows before the target has none for validation.
        learned = rest.without_last()[0]
        np.testing.assert_array_equal(np.bincount(learned.items, minlength=data.n_items), model.popularity_)
