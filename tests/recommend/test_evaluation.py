from __future__ import annotations

import pytest
from recommend.tables import random_table

from seqattn import MarkovRecommender, PopularityRecommender
from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.errors import ParameterError
from seqattn.recommend import SASRecRecommender, task

SMALL = {"d_model": 8, "epochs": 1, "batch_size": 64, "max_len": 8, "random_state": 0}
SPLIT = leave_one_out(Interactions.of(random_table(0)))


def fitted(model):
    return model.fit(SPLIT.train, validation=SPLIT.validation)


def test_a_fitted_recommender_stands_beside_the_baselines_with_its_own_figures():
    model, other = fitted(PopularityRecommender()), fitted(SASRecRecommender(**SMALL))
    found = model.evaluate(SPLIT.test, beside={"sasrec": other})
    assert list(found["baselines"]) == ["popularity", "markov", "sasrec"]
    assert found["baselines"]["sasrec"] == dict(other.evaluate(SPLIT.test, baselines=False))
    alone = model.evaluate(SPLIT.test, baselines=False, beside={"sasrec": other})
    assert list(alone["baselines"]) == ["sasrec"]
    # The rows that chose the epoch are ranked as if they had not happened yet, for both.
    held_out = task.evaluate(model, SPLIT.validation, beside={"sasrec": other})
    assert held_out["baselines"]["sasrec"]["ndcg@20"] == pytest.approx(other.best_score_, abs=1e-9)


def test_a_recommender_of_other_rows_is_refused():
    model = fitted(MarkovRecommender())
    others = (
        MarkovRecommender().fit(SPLIT.train, validation=None),
        MarkovRecommender().fit(SPLIT.train.joined(SPLIT.validation), validation=None),
    )
    for other in others:
        with pytest.raises(ParameterError, match="'it' was fitted to other rows"):
            model.evaluate(SPLIT.test, beside={"it": other})
