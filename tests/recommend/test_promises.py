"""What every recommender promises, whatever its model. A new one is tested by being named in RECOMMENDERS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from recommend.tables import random_table
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import seqattn.recommend
from seqattn.errors import BackendError

TINY = {"d_model": 4, "epochs": 2, "batch_size": 16, "max_len": 6, "random_state": 0, "device": "cpu"}
RECOMMENDERS: dict[str, dict[str, Any]] = {
    "MQSATEDRecommender": TINY,
    "SASRecRecommender": TINY,
    "PopularityRecommender": {},
    "MarkovRecommender": {},
}
LOG, OTHER = random_table(0), random_table(1)

pytestmark = pytest.mark.parametrize("name", RECOMMENDERS)


def make(name: str) -> Any:
    return getattr(seqattn.recommend, name)(**RECOMMENDERS[name])


def answers(model: Any) -> tuple[Any, ...]:
    """Collect what a fitted recommender says: two are equal if these are equal bit by bit."""
    figures = {
        key: value for key, value in model.evaluate(OTHER, exclude_seen=False).items() if key != "baselines"
    }
    return model.recommend(k=5).rows(), model.similar_items([0, 1], k=5).rows(), figures


def random_states() -> tuple[Any, ...]:
    _, numbers, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what must not move
    return (numbers.tolist(), rest, torch.get_rng_state().tolist())


def test_the_list_names_every_exported_recommender(name):
    exported = set(seqattn.__all__) | set(seqattn.recommend.__all__)
    found = {getattr(seqattn.recommend, item, None) for item in exported}
    assert {item.__name__ for item in found if hasattr(item, "recommend")} == set(RECOMMENDERS)


def test_the_constructor_stores_its_arguments_and_nothing_else(name):
    model = make(name)
    assert vars(model) == model.get_params(deep=False)
    assert RECOMMENDERS[name].items() <= model.get_params().items()


def test_fit_returns_the_recommender_and_keeps_its_parameters_and_the_data(name):
    model, before, data = make(name), make(name).get_params(), LOG.clone()
    assert model.fit(data) is model
    assert model.get_params() == before
    assert data.equals(LOG)


def test_equal_settings_give_equal_bits_and_a_second_fit_forgets_the_first(name):
    first, again = make(name).fit(LOG), make(name).fit(OTHER)
    before = answers(first)
    assert answers(again) != before
    assert answers(again.fit(LOG)) == before
    assert answers(clone(first).fit(LOG)) == before


def test_rows_may_be_mixed(name):
    mixed = LOG.sample(fraction=1.0, shuffle=True, seed=1)
    model, other = make(name).fit(LOG), make(name).fit(mixed)
    assert model.recommend(LOG["user_id"].unique().sort(), k=5).equals(
        other.recommend(LOG["user_id"].unique().sort(), k=5)
    )


def test_use_before_fit_is_refused(name, tmp_path):
    model = make(name)
    uses = (
        model.recommend,
        lambda: model.recommend_for([[0]]),
        lambda: model.similar_items([0]),
        lambda: model.predict(LOG),
        lambda: model.evaluate(LOG),
        lambda: model.score(LOG),
        lambda: model.export_topk(tmp_path / "lists.parquet"),
        lambda: model.save(tmp_path / "model.safetensors"),
    )
    for use in uses:
        with pytest.raises(NotFittedError):
            use()


def test_a_parameter_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match="no_such_parameter"):
        make(name).set_params(no_such_parameter=1)


def test_nothing_is_printed_and_no_global_state_is_touched(name, capfd):
    before = (random_states(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
    answers(make(name).fit(LOG))
    assert before == (
        random_states(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there_is_never_replaced_silently(name):
    model = make(name)
    if "device" in RECOMMENDERS[name]:
        with pytest.raises(BackendError, match="cuda"):
            model.set_params(device="cuda").fit(LOG)
    else:
        assert "device" not in model.get_params()
