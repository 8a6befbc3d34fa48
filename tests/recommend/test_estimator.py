"""The estimators: planted structure, leakage, seeds, interruptions, files, growth, and refused settings."""

from __future__ import annotations

import json
import pickle

import numpy as np
import polars as pl
import pytest
import torch
from recommend.tables import random_table, table
from sklearn.base import clone

from seqattn import load
from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.errors import FitError, ParameterError, SeqattnError
from seqattn.recommend import MQSATEDRecommender, SASRecRecommender
from seqattn.recommend.batches import TrainingHistories, latest

SMALL = {"d_model": 8, "epochs": 3, "batch_size": 16, "max_len": 8, "random_state": 0}
LOG = random_table(0)


def weights(model):
    return {name: value.clone() for name, value in model.module_.state_dict().items()}


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def pairs_log(n_users, seed=0, shuffled=False):
    """Users with three of twelve pairs each, in which item 2 i + 1 always follows item 2 i."""
    draw, rows = np.random.default_rng(seed), []
    for _ in range(n_users):
        chosen = draw.choice(12, 3, replace=False)
        items = np.stack([2 * chosen, 2 * chosen + 1], 1).ravel()
        rows.append((draw.permutation(items) if shuffled else items).tolist())
    return table(*rows)


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_an_item_that_always_follows_another_comes_first_after_it(loss):
    settings = {"d_model": 16, "epochs": 40, "batch_size": 32, "learning_rate": 0.01, "random_state": 0}
    model = MQSATEDRecommender(**settings, dropout=0.1, loss=loss, n_negatives=12)
    model.fit(pairs_log(200), validation=None)
    asked = [[2 * i] for i in range(12)]
    assert model.recommend_for(asked, k=1)["item_id"].to_list() == [2 * i + 1 for i in range(12)]
    assert model.loss_ == loss


def test_rare_pairs_are_found_by_distillation_and_lost_in_shuffled_histories():
    """Each of the pairs comes up about twice."""
    hits = []
    for shuffled in (False, True):
        log = pairs_log(8, shuffled=shuffled)
        settings = {"d_model": 16, "epochs": 60, "dropout": 0.1, "learning_rate": 0.01, "kd_weight": 1.0}
        model = MQSATEDRecommender(**settings, random_state=0).fit(log, validation=None)
        seen = sorted(set(log["item_id"].to_list()) & set(range(0, 24, 2)))
        found = model.similar_items(seen, k=1)["similar_id"].to_list()
        hits.append(np.mean([follower == item + 1 for item, follower in zip(seen, found, strict=True)]))
    assert hits[0] > 0.9 > hits[1]


def test_rows_for_validation_reach_neither_weights_nor_counts():
    """All last items are replaced; what is learnt in one epoch has the same bits."""
    changed = LOG.with_columns(
        pl.when(pl.col("timestamp") == pl.col("timestamp").max().over("user_id"))
        .then((pl.col("item_id") + 7) % 40)
        .otherwise(pl.col("item_id"))
        .alias("item_id")
    )
    items = sorted(LOG["item_id"].unique().to_list())
    models = [MQSATEDRecommender(**SMALL | {"epochs": 1}).fit(log, items=items) for log in (LOG, changed)]
    assert same(*map(weights, models))
    assert np.array_equal(models[0].popularity_, models[1].popularity_)
    assert np.array_equal(models[0].transitions_.counts, models[1].transitions_.counts)
    assert models[0].best_score_ != models[1].best_score_


def test_the_figure_that_chooses_the_epoch_is_ndcg_at_20_of_the_full_ranking():
    model = MQSATEDRecommender(**SMALL).fit(LOG)
    assert model.best_epoch_ == np.argmax(model.validation_curve_) + 1
    split = leave_one_out(Interactions.of(LOG))
    # leave_one_out holds two rows out; here the last row of all of them is the one for validation.
    data, gains = Interactions.of(LOG), []
    scorer = model._scorer()
    history = model.training_
    scores = scorer.scores(scorer.states(history), 0, data.n_items).numpy()
    for user in range(data.n_users):
        target = data.items_of(user)[-1]
        left = np.setdiff1d(np.arange(data.n_items), history.items_of(user))
        rank = 1 + (scores[user, left] > scores[user, target]).sum()
        gains.append(1 / np.log2(rank + 1) if rank <= 20 and target in left else 0.0)
    assert split.train.n_users == data.n_users
    assert abs(np.mean(gains) - model.best_score_) < 1e-6


def test_a_subset_of_users_chooses_the_epoch_and_all_score_it():
    alone = SMALL | {"transition_weight": 0}
    every = MQSATEDRecommender(**alone).fit(LOG)
    some = MQSATEDRecommender(**alone, eval_users=20, eval_every=2).fit(LOG)
    assert np.isnan(some.validation_curve_).tolist() == [True, False, False]
    assert abs(some.best_score_ - every.validation_curve_[some.best_epoch_ - 1]) < 1e-12
    assert some.validation_curve_[1] != every.validation_curve_[1]


def test_training_stops_when_validation_does_not_improve():
    model = MQSATEDRecommender(**SMALL | {"epochs": 60, "learning_rate": 1e-8}, patience=2).fit(LOG)
    records = model.fit_history_.records
    assert len(records) == model.best_epoch_ + 2 < 60
    assert model.fit_history_.stopped_early


def test_equal_seeds_give_equal_bits_and_others_do_not():
    first, again, other = (
        weights(MQSATEDRecommender(**SMALL | {"random_state": seed}).fit(LOG)) for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not same(first, other)
    copied = clone(MQSATEDRecommender(**SMALL))
    thawed = pickle.loads(pickle.dumps(MQSATEDRecommender(**SMALL)))
    assert same(first, weights(copied.fit(LOG)))
    assert same(first, weights(thawed.fit(LOG)))


def test_the_global_generators_are_left_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    MQSATEDRecommender(**SMALL).fit(LOG)
    assert torch.equal(torch.rand(3), wanted)


def test_names_of_users_change_nothing():
    renamed = LOG.with_columns((997 * (pl.col("user_id") + 3) % 1009).alias("user_id"))
    models = [MQSATEDRecommender(**SMALL).fit(log) for log in (LOG, renamed)]
    assert models[0].history_.items.tolist() != models[1].history_.items.tolist()
    assert same(*map(weights, models))


@pytest.mark.parametrize("kind", [MQSATEDRecommender, SASRecRecommender])
@pytest.mark.parametrize("settings", [{}, {"loss": "sampled", "n_negatives": 10}], ids=["full", "sampled"])
def test_an_interrupted_fit_goes_on_with_the_same_bits(kind, settings, tmp_path):
    class Stop:
        def begin(self, settings):
            pass

        def epoch(self, record):
            if record["epoch"] == 3:
                raise KeyboardInterrupt

        def end(self, history):
            pass

    settings = SMALL | {"epochs": 5} | settings
    whole = kind(**settings).fit(LOG)
    with pytest.raises(KeyboardInterrupt):
        kind(**settings).fit(LOG, checkpoint=tmp_path / "fit", observers=[Stop()])
    resumed = kind(**settings).fit(LOG, checkpoint=tmp_path / "fit")
    assert same(weights(whole), weights(resumed))
    assert whole.validation_curve_.tolist() == resumed.validation_curve_.tolist()
    with pytest.raises(SeqattnError, match="another run"):
        kind(**settings | {"l2": 0.5}).fit(LOG, checkpoint=tmp_path / "fit")


def test_a_loss_that_is_not_finite_ends_the_fit_with_the_best_weights():
    seen = {}

    class Spoil:
        def begin(self, settings):
            pass

        def epoch(self, record):
            seen[record["epoch"]] = weights(model)
            if record["epoch"] == 2:
                model.module_.positions.data.fill_(float("nan"))

        def end(self, history):
            raise AssertionError("the fit did not end well")

    model = MQSATEDRecommender(**SMALL | {"epochs": 4, "learning_rate": 0.01}, average=None)
    with pytest.raises(FitError, match=r"epoch 3, batch 1 \(loss nan in its part 'rec'\)"):
        model.fit(LOG, observers=[Spoil()])
    best = weights(model)
    assert same(best, seen[1]) or same(best, seen[2])
    assert len(model.recommend(k=3)) > 0
    assert issubclass(FitError, RuntimeError)


@pytest.mark.parametrize("kind", [MQSATEDRecommender, SASRecRecommender])
def test_a_saved_recommender_gives_the_same_bits_in_a_fresh_process(kind, tmp_path, run_python):
    model = kind(**SMALL, attention="local(4)").fit(LOG.with_columns(pl.col("item_id").cast(pl.String)))
    place = model.save(tmp_path / "model.safetensors")
    found = run_python(
        "import sys, json, seqattn; m = seqattn.load(sys.argv[1]);"
        "t = m.recommend(k=5); s = m.similar_items(['3'], k=3);"
        "print(json.dumps([t['item_id'].to_list(), [x.hex() for x in t['score'].to_list()], s['similar_id'].to_list(),"
        "m.best_epoch_, m.loss_, m.transitions_.counts.tolist()]))",
        str(place),
    )
    assert not found.returncode, found.stderr
    lists = model.recommend(k=5)
    assert json.loads(found.stdout) == [
        lists["item_id"].to_list(),
        [score.hex() for score in lists["score"].to_list()],
        model.similar_items(["3"], k=3)["similar_id"].to_list(),
        model.best_epoch_,
        model.loss_,
        model.transitions_.counts.tolist(),
    ]
    again = load(place)
    assert lists["item_id"].dtype == pl.String
    assert again.recommend(k=5).equals(lists)
    assert again.fit_history_ == model.fit_history_


def test_new_rows_bring_new_users_and_items_and_keep_what_was_learnt():
    settings = {"d_model": 16, "epochs": 40, "batch_size": 32, "learning_rate": 0.01, "random_state": 0}
    model = MQSATEDRecommender(**settings, dropout=0.1).fit(pairs_log(200), validation=None)
    before = weights(model)
    more = {"user_id": [900, 900, 900], "item_id": [4, 77, 5], "timestamp": [0, 1, 2]}
    model.partial_fit(more)
    after = weights(model)
    assert after["table"].shape[0] == before["table"].shape[0] + 1
    assert 0 < (after["table"][:-1] - before["table"]).abs().max() < 0.02
    assert model.recommend([900], k=3).height == 3
    asked = [[2 * i] for i in range(12) if i != 2]
    assert model.recommend_for(asked, k=1)["item_id"].to_list() == [2 * i + 1 for i in range(12) if i != 2]


def test_paper_mode_cuts_histories_before_anything_and_runs_all_epochs():
    log = random_table(1, longest=16)
    still = SMALL | {"epochs": 25, "learning_rate": 1e-9}
    model = MQSATEDRecommender(**still, mode="paper").fit(log)
    assert len(model.fit_history_.records) == 25
    assert len(MQSATEDRecommender(**still, mode="paper", patience=1).fit(log).fit_history_.records) < 5
    assert len(MQSATEDRecommender(**still).fit(log).fit_history_.records) < 25
    whole = Interactions.of(log)
    kept = latest(whole.keep(~_last(whole)), 8)
    assert np.array_equal(model.training_.items, kept.items)
    assert whole.lengths.max() > 9
    assert np.array_equal(model.history_.lengths, kept.lengths + 1)
    assert model.transitions_.counts.sum() == np.maximum(kept.lengths - 1, 0).sum()
    start = MQSATEDRecommender(**SMALL | {"epochs": 1, "l2": 0.0}, mode="paper").fit(log).module_.positions
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.RandomState(0).randint(2**31 - 1)))
        torch.empty(whole.n_items, 8).normal_(0, 0.01)
        first = torch.empty(8, 8).normal_(0, 0.01)
    assert torch.equal(start[0], first[0])
    assert (start[1:] != first[1:]).any(1).all()
    assert model.module_.short.norm.eps == 1e-24
    assert abs(model.teacher_mass_ - 1 / (1 + (whole.n_items - 1) * np.exp(-10))) < 1e-12


@pytest.mark.parametrize(("mode", "n_classes"), [("paper", 41), ("default", 40)])
def test_paper_mode_has_one_class_more_than_there_are_items(mode, n_classes):
    """A network that has learnt nothing scores all items about 0, as the further class."""
    settings = SMALL | {"epochs": 1, "learning_rate": 1e-12, "l2": 0.0, "dropout": 0.0}
    model = MQSATEDRecommender(**settings, mode=mode).fit(LOG, validation=None)
    assert model.fit_history_.records[0]["train_parts"]["rec"] == pytest.approx(np.log(n_classes), abs=2e-3)


def _last(data):
    found = np.zeros(data.n_rows, dtype=bool)
    found[data.offsets[1:] - 1] = True
    return found


def test_the_default_trains_on_as_many_inputs_as_the_network_takes():
    data = Interactions.of(table(list(range(12)), [1, 2], [3]), items=range(12))
    histories = TrainingHistories(data, 8)
    assert sorted(histories.lengths) == [1, 8]
    batch = histories.batch(np.argsort(histories.lengths))
    assert batch.items.tolist() == [1, *range(3, 11)]
    assert batch.targets.tolist() == [2, *range(4, 12)]
    full = MQSATEDRecommender(**SMALL).fit(random_table(1, longest=16))
    assert full.history_.lengths.max() > 9


def test_the_softmax_sasrec_is_the_member_with_one_branch_and_no_distillation():
    member = MQSATEDRecommender(**SMALL, alpha=1.0, kd_weight=0.0).fit(LOG)
    assert same(weights(member), weights(SASRecRecommender(**SMALL).fit(LOG)))
    assert member.teacher_mass_ is None
    assert member.module_.long is None
    assert list(member.fit_history_.records[0]["train_parts"]) == ["rec"]


def test_bfloat16_products_learn_about_the_same():
    exact, half = (MQSATEDRecommender(**SMALL, precision=each).fit(LOG) for each in ("float32", "bf16"))
    losses = [model.fit_history_.records[-1]["train_loss"] for model in (exact, half)]
    assert losses[0] != losses[1]
    assert abs(losses[1] / losses[0] - 1) < 0.01


@pytest.mark.parametrize(("settings", "text"), [
    ({"window": 9}, "window=9 is longer"),
    ({"alpha": 1.5}, "alpha=1.5"),
    ({"alpha": float("nan")}, "alpha=nan"),
    ({"tau_student": 0.0}, "tau_student=0.0"),
    ({"tau_teacher": -1.0}, "tau_teacher=-1.0"),
    ({"teacher_mass": 1.0}, "teacher_mass=1.0"),
    ({"kd_weight": -0.1}, "kd_weight=-0.1"),
    ({"n_heads": 3}, "not a multiple of n_heads=3"),
    ({"span": 0}, "span=0"),
    ({"dropout": 1.0}, "dropout=1.0"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"loss": "ful"}, "Did you mean 'full'"),
    ({"negatives": "popular"}, "Did you mean 'popularity'"),
    ({"mode": "papers"}, "Did you mean 'paper'"),
    ({"optimizer": "adam", "loss": "sampled"}, "lazy_adam"),
    ({"mode": "paper", "precision": "bf16"}, "precision='float32'"),
    ({"epochs": 0}, "epochs=0"),
    ({"learning_rate": 0.0}, "learning_rate=0.0"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(settings, text):
    with pytest.raises(ParameterError, match=text):
        MQSATEDRecommender(**SMALL | settings).fit(LOG)
