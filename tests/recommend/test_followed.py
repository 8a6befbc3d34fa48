"""Scores with transitions, and networks whose scores are averaged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from recommend.tables import Given, plain, random_table

from seqattn import load
from seqattn.data.interactions import Interactions
from seqattn.recommend import MQSATEDRecommender
from seqattn.recommend.followed import WithTransitions
from seqattn.recommend.objective import network_scorer
from seqattn.recommend.ranking import target_ranks
from seqattn.recommend.transitions import Transitions

SMALL = {"d_model": 8, "epochs": 3, "batch_size": 16, "max_len": 8, "random_state": 0}
LOG = random_table(0)


def scores_of(model, histories):
    return model.recommend_for(histories, k=40, exclude_seen=False)


# -- what followed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.25, 2.0])
@pytest.mark.parametrize("span", [1, 2])
def test_scores_are_those_of_the_formula_written_out(weight, span):
    """Histories of none to five rows, one of them with repeats; in one tile, and in tiles of three items."""
    draw = np.random.default_rng(0)
    train = plain([0, 4, 4, 9, 15], draw.integers(0, 7, 15).tolist(), 7)
    asked = plain([0, 0, 1, 3, 8], [4, 1, 1, 0, 5, 2, 2, 6], 7)
    counts = np.zeros((7, 7))
    for user in range(train.n_users):
        items = train.items_of(user)
        for place in range(len(items)):
            for step in range(1, span + 1):
                if place + step < len(items):
                    counts[items[place], items[place + step]] += 1
    given = draw.normal(size=(4, 7)).astype(np.float32)
    expected = given.astype(np.float64)
    for user in range(4):
        for item in range(7):
            last = asked.items_of(user)[::-1][:3]
            followed = sum(0.5**age * counts[before, item] for age, before in enumerate(last))
            expected[user, item] += weight * math.log(1 + followed)
    transitions = Transitions.of(train.offsets, train.items, 7, span=span)
    scorer = WithTransitions(Given(given), transitions, weight)
    states = scorer.states(asked)
    whole = scorer.scores(states, 0, 7)
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    tiles = [scorer.scores(states, first, min(first + 3, 7)) for first in range(0, 7, 3)]
    assert torch.equal(torch.cat(tiles, 1), whole)
    assert scorer.n_items == 7


def test_the_scores_of_the_inner_scorer_stay_as_they_are():
    """Popularity hands out the same table in each call."""

    class Same(Given):
        def scores(self, states, first, last):
            return self.matrix[:, first:last]

    given = Same(np.zeros((2, 3)))
    transitions = Transitions.of(np.array([0, 3]), np.array([0, 1, 2]), 3)
    scorer = WithTransitions(given, transitions, 1.0)
    asked = plain([0, 1, 2], [0, 1], 3)
    first, again = (scorer.scores(scorer.states(asked), 0, 3) for _ in range(2))
    assert torch.equal(first, again)
    assert not given.matrix.any()


def test_the_weight_is_the_best_of_those_tried_on_the_rows_for_validation():
    model = MQSATEDRecommender(**SMALL).fit(LOG)
    histories, targets = model.training_, plain_targets(model)
    gains = {}
    for weight in (0.0, 0.25, 0.5, 1.0):
        scorer = network_scorer(model.module_)
        scorer = WithTransitions(scorer, model.transitions_, weight) if weight else scorer
        ranks = target_ranks(scorer, histories, targets).ranks
        gains[weight] = np.where(ranks < 20.5, 1 / np.log2(ranks + 1), 0).mean()
    assert model.transition_weight_ == max(gains, key=gains.get) > 0
    assert abs(model.best_score_ - gains[model.transition_weight_]) < 1e-9
    # The epoch is chosen by the network alone.
    assert abs(max(model.validation_curve_) - gains[0.0]) < 1e-6


def plain_targets(model):
    data = model.history_
    return data.keep(model.held_out_)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"transition_weight": 0.7}, 0.7),
        ({"transition_weight": 0}, 0.0),
        ({"mode": "paper"}, 0.0),
        ({"mode": "paper", "transition_weight": 0.7}, 0.7),
    ],
)
def test_a_given_weight_is_kept_and_the_papers_form_has_none(options, expected):
    model = MQSATEDRecommender(**SMALL | {"epochs": 1}, **options).fit(LOG)
    assert model.transition_weight_ == expected
    alone = MQSATEDRecommender(**SMALL | {"epochs": 1}, **options | {"transition_weight": 0}).fit(LOG)
    states = [each.module_.state_dict() for each in (model, alone)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert scores_of(model, [[3, 4]]).equals(scores_of(alone, [[3, 4]])) == (expected == 0)


def test_without_rows_for_validation_there_is_no_choice_and_no_weight():
    assert MQSATEDRecommender(**SMALL).fit(LOG, validation=None).transition_weight_ == 0


def test_a_saved_model_and_one_that_learned_more_keep_the_weight(tmp_path):
    model = MQSATEDRecommender(**SMALL, transition_weight=0.7).fit(LOG)
    opened = load(model.save(tmp_path / "model.safetensors"))
    assert opened.transition_weight_ == 0.7
    assert scores_of(opened, [[3, 4], [5]]).equals(scores_of(model, [[3, 4], [5]]))
    opened.partial_fit({"user_id": [900] * 2 + [901] * 2, "item_id": [3, 39] * 2, "timestamp": [0, 1] * 2})
    assert opened.transition_weight_ == 0.7
    before, after = (each.transitions_.counts.sum() for each in (model, opened))
    assert after > before


# -- members -----------------------------------------------------------------------------------------------------


def test_scores_of_members_are_the_mean_of_theirs():
    model = MQSATEDRecommender(**SMALL, n_members=3, transition_weight=0).fit(LOG, validation=None)
    asked = Interactions.of(LOG)
    scorers = [network_scorer(member) for member in model.module_.networks]
    each = [scorer.scores(scorer.states(asked), 0, 40) for scorer in scorers]
    assert min((each[0] - other).abs().max() for other in each[1:]) > 0.1
    scorer = model._scorer()
    found = scorer.scores(scorer.states(asked), 0, 40)
    torch.testing.assert_close(found, torch.stack(each).mean(0), atol=1e-5, rtol=1e-5)
    similar = [_similarities(scores) for scores in model.module_.networks]
    found = model._item_scorer()
    of_all = found.scores(found.states(plain(list(range(41)), list(range(40)), 40)), 0, 40)
    torch.testing.assert_close(of_all, torch.stack(similar).mean(0), atol=1e-4, rtol=1e-4)


def _similarities(member):
    table = member.table.detach()
    return table @ table.T * table.shape[1] ** 0.5 / 0.1


def test_the_first_member_is_the_only_one_of_a_single_fit():
    single, pair = (MQSATEDRecommender(**SMALL, n_members=n, transition_weight=0).fit(LOG) for n in (1, 2))
    first = pair.module_.networks[0].state_dict()
    assert all(torch.equal(value, first[name]) for name, value in single.module_.state_dict().items())
    assert np.array_equal(single.validation_curve_, pair.validation_curve_)
    assert single.best_epoch_ == pair.best_epoch_
    assert single.best_score_ != pair.best_score_


def test_members_are_saved_and_learn_more(tmp_path):
    model = MQSATEDRecommender(**SMALL | {"epochs": 1}, n_members=2).fit(LOG)
    opened = load(model.save(tmp_path / "model.safetensors"))
    assert scores_of(opened, [[3, 4], [5]]).equals(scores_of(model, [[3, 4], [5]]))
    opened.partial_fit({"user_id": [900] * 3, "item_id": [3, 99, 4], "timestamp": [0, 1, 2]})
    assert [len(member.table) for member in opened.module_.networks] == [41, 41]
    assert opened.recommend([900], k=3).height == 3
    with pytest.raises(Exception, match="n_members as they were"):
        opened.set_params(n_members=3).partial_fit({"user_id": [901], "item_id": [3], "timestamp": [0]})


def test_an_interrupted_fit_of_members_ends_with_the_same_bits(tmp_path):
    class Interrupt:
        def __init__(self, after):
            self.left = after

        def begin(self, settings): ...

        def epoch(self, record):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        def end(self, history): ...

    whole = MQSATEDRecommender(**SMALL, n_members=2).fit(LOG)
    place = tmp_path / "checkpoint.safetensors"
    for after in (2, 3):  # within the first network, and within the second
        with pytest.raises(KeyboardInterrupt):
            MQSATEDRecommender(**SMALL, n_members=2).fit(LOG, checkpoint=place, observers=[Interrupt(after)])
    resumed = MQSATEDRecommender(**SMALL, n_members=2).fit(LOG, checkpoint=place)
    theirs = whole.module_.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in resumed.module_.state_dict().items())
    assert resumed.best_score_ == whole.best_score_


# -- the average of the weights ----------------------------------------------------------------------------------


def test_the_average_changes_what_is_kept_and_not_what_is_learned():
    plainly, averaged = (
        MQSATEDRecommender(**SMALL, learning_rate=0.003, average=average, transition_weight=0).fit(LOG)
        for average in (None, 0.998)
    )
    losses = [[r["train_loss"] for r in each.fit_history_.records] for each in (plainly, averaged)]
    assert losses[0] == losses[1]
    assert not np.array_equal(plainly.validation_curve_, averaged.validation_curve_)
    # The rate by itself is 0.003 with the average and 0.001 without.
    by_itself = MQSATEDRecommender(**SMALL).fit(LOG).fit_history_.records[0]["learning_rate"]
    without = MQSATEDRecommender(**SMALL, average=None).fit(LOG).fit_history_.records[0]["learning_rate"]
    assert (by_itself, without) == (0.003, 0.001)


@pytest.mark.parametrize("options", [{"mode": "paper"}, {"loss": "sampled", "n_negatives": 8}])
def test_the_papers_form_and_the_sampled_loss_have_no_average(options):
    found = [
        MQSATEDRecommender(**SMALL, **options, **more).fit(LOG).module_.state_dict()
        for more in ({}, {"average": None}, {"average": 0.9, "learning_rate": 0.001})
    ]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert not all(torch.equal(value, found[2][name]) for name, value in found[0].items())
