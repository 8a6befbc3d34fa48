from __future__ import annotations

import datetime as dt

import pytest
import torch
from recommend.tables import random_table

from seqattn import MQSATEDRecommender
from seqattn.errors import DataError, ParameterError

TINY = {"d_model": 4, "epochs": 1, "batch_size": 64, "max_len": 6, "random_state": 0, "device": "cpu"}
LOG = random_table(0)


@pytest.mark.parametrize("value", ["0.5", None, True, [0.5]])
@pytest.mark.parametrize("name", ["alpha", "dropout", "kd_weight", "l2", "tau_student", "teacher_mass"])
def test_settings_that_are_no_number_are_refused_by_name(name, value):
    with pytest.raises(ParameterError, match=f"{name}="):
        MQSATEDRecommender(**TINY).set_params(**{name: value}).fit(LOG)


@pytest.fixture(scope="module")
def fitted() -> MQSATEDRecommender:
    return MQSATEDRecommender(**TINY).fit(LOG, validation=None)


def test_a_new_user_with_one_row_is_known_and_nothing_is_learned(fitted, tmp_path):
    before = {name: value.clone() for name, value in fitted.module_.state_dict().items()}
    model = MQSATEDRecommender._from_artifact(_opened(fitted, tmp_path))
    model.partial_fit({"user_id": [9001], "item_id": [3], "timestamp": [0]})
    assert (
        model.recommend([9001], k=5)["item_id"].to_list()
        == fitted.recommend_for([[3]], k=5)["item_id"].to_list()
    )
    assert all(torch.equal(value, before[name]) for name, value in model.module_.state_dict().items())
    assert not model.module_.training


@pytest.mark.parametrize("changed", [{"d_model": 8}, {"max_len": 7}, {"alpha": 1.0}, {"n_layers": 2}])
def test_learning_more_with_another_network_is_refused_before_anything_changes(fitted, changed, tmp_path):
    model = MQSATEDRecommender._from_artifact(_opened(fitted, tmp_path)).set_params(**changed)
    with pytest.raises(ParameterError, match=r"not those of the fit any more.*fit again"):
        model.partial_fit({"user_id": [9001, 9001], "item_id": [3, 4], "timestamp": [0, 1]})
    assert model.history_.digest() == fitted.history_.digest()
    with pytest.raises(ParameterError, match="alpha=9"):
        model.set_params(alpha=9).partial_fit(LOG)


def test_dates_for_validation_beside_numbers_are_refused():
    later = LOG.head(3).with_columns(timestamp=dt.date(2024, 1, 1))
    with pytest.raises(DataError, match="dates and the others numbers"):
        MQSATEDRecommender(**TINY).fit(LOG, validation=later)


def _opened(model, folder):
    from seqattn.train.artifact import load_artifact

    return load_artifact(model.save(folder / "model.safetensors"))
