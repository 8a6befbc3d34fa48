"""What every estimator promises, whatever its model. A new estimator is tested by being named in ESTIMATORS."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

import seqattn
from seqattn.errors import BackendError, DataError

END = 10.0
SETTINGS: dict[str, dict[str, Any]] = {
    "SAHP": {"epochs": 2, "random_state": 0, "device": "cpu"},
    "PoissonProcess": {},
    "RenewalProcess": {},
    "ExponentialHawkes": {},
    "EmpiricalMarkov": {},
}
ESTIMATORS = sorted(SETTINGS)
SEEDED = [name for name in ESTIMATORS if "random_state" in SETTINGS[name]]

pytestmark = pytest.mark.parametrize("name", ESTIMATORS)


def make(name: str, **settings: Any) -> Any:
    return getattr(seqattn, name)(window=(0.0, END), **SETTINGS[name], **settings)


def draw_events(seed: int, n_sequences: int = 16) -> pl.DataFrame:
    """Draw sequences in which a pair of types alternates more often than not, with gaps that depend on the type."""
    generator = np.random.default_rng(seed)
    rows = []
    for sequence in range(n_sequences):
        time, kind = 0.0, "a"
        while (time := time + generator.gamma(2.0, 0.6 if kind == "a" else 0.3)) < END:
            kind = "ab"[(kind == "a") ^ (generator.random() < 0.2)]
            rows.append((f"s{sequence:02d}", time, kind))
    return pl.DataFrame(rows, schema=["seq_id", "t", "k"], orient="row")


TRAIN, OTHER, TEST = draw_events(1), draw_events(2), draw_events(3, 7)
_FITTED: dict[str, Any] = {}


@pytest.fixture
def fitted(name: str) -> Any:
    """Return a fitted estimator that tests share and leave as it is."""
    if name not in _FITTED:
        _FITTED[name] = make(name).fit(TRAIN)
    return _FITTED[name]


def answers(model: Any, X: Any = TEST) -> dict[str, Any]:
    """Collect what a fitted model says about data: two models are equal if these are equal bit by bit."""
    table = pl.DataFrame(model.predict(X))
    likelihood = model.log_likelihood(X)
    return {
        **{column: table[column].to_list() for column in table.columns},
        "probability": model.predict_proba(X).tolist(),
        "likelihood": (likelihood.total, likelihood.time, likelihood.type, likelihood.n_events),
        "score": model.score(X),
    }


def as_pairs(table: pl.DataFrame) -> list[tuple[Any, list[str]]]:
    groups = table.group_by("seq_id", maintain_order=True)
    return [(group["t"].to_numpy(), group["k"].to_list()) for _, group in groups]


def by_event(model: Any, X: Any) -> pl.DataFrame:
    return pl.DataFrame(model.predict(X)).sort("seq_id", "position")


def assert_close(left: pl.DataFrame, right: pl.DataFrame) -> None:
    assert left.select("seq_id", "position", "k").equals(right.select("seq_id", "position", "k"))
    for column in ("t_mean", "t_median", "p"):
        np.testing.assert_allclose(left[column], right[column], rtol=1e-6, atol=1e-6, err_msg=column)


# -- scikit-learn's manners ------------------------------------------------------------------------------------


def test_the_list_names_every_exported_estimator(name):
    exported = {item for item in seqattn.__all__ if hasattr(getattr(seqattn, item), "fit")}
    # Of classifiers tests/classify/test_promises.py asks the same, and the checks of three libraries; of recommenders
    # tests/recommend/test_promises.py.
    exported -= {item for item in exported if is_classifier(getattr(seqattn, item)())}
    exported -= {item for item in exported if hasattr(getattr(seqattn, item), "recommend")}
    # A study of training takes classes, not events: tests/dynamics/test_study.py.
    assert exported - {"ScanAndSnapStudy"} == set(ESTIMATORS)


def test_the_constructor_stores_its_arguments_and_nothing_else(name):
    model = make(name)
    assert vars(model) == model.get_params(deep=False)


def test_a_clone_has_equal_parameters_and_is_not_fitted(name, fitted):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copied.score(TEST)


def test_parameters_can_be_read_and_set(name):
    model = getattr(seqattn, name)()
    assert model.set_params(**make(name).get_params()).get_params() == make(name).get_params()


def test_a_parameter_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match="no_such_parameter"):
        make(name).set_params(no_such_parameter=1)


def test_fit_returns_the_estimator_and_keeps_its_parameters(name):
    model = make(name)
    before = model.get_params()
    assert model.fit(TRAIN) is model
    assert model.get_params() == before


def test_fit_leaves_the_data_as_they_were(name):
    pair = (np.array([1.0, 2.0, 4.5]), ["a", "b", "a"])
    data = [pair, (np.array([0.5, 7.0]), ["b", "a"])]
    before = copy.deepcopy(data)
    make(name).fit(data)
    for (times, kinds), (times_before, kinds_before) in zip(data, before, strict=True):
        assert times.tolist() == times_before.tolist()
        assert kinds == kinds_before


@pytest.mark.slow
def test_cross_validation_works_on_lists_of_sequences(name):
    sequences = [
        (group["t"].to_numpy(), group["k"].to_list())
        for _, group in TRAIN.group_by("seq_id", maintain_order=True)
    ]
    values = cross_val_score(make(name, types=["a", "b"]), sequences, cv=2, error_score="raise")
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    "use",
    [
        lambda model, folder: model.score(TEST),
        lambda model, folder: model.log_likelihood(TEST),
        lambda model, folder: model.predict(TEST),
        lambda model, folder: model.predict_next(TEST),
        lambda model, folder: model.predict_proba(TEST),
        lambda model, folder: model.intensity(TEST, [1.0]),
        lambda model, folder: model.evaluate(TEST),
        lambda model, folder: model.save(folder / "model.safetensors"),
    ],
    ids=[
        "score",
        "log_likelihood",
        "predict",
        "predict_next",
        "predict_proba",
        "intensity",
        "evaluate",
        "save",
    ],
)
def test_use_before_fit_is_refused(name, use, tmp_path):
    with pytest.raises(NotFittedError):
        use(make(name), tmp_path)


# -- the same in, the same out ---------------------------------------------------------------------------------


def test_equal_seeds_give_equal_bits(name, fitted):
    assert answers(make(name).fit(TRAIN)) == answers(fitted)


def test_a_second_fit_forgets_the_first(name, fitted):
    again = make(name).fit(OTHER)
    assert answers(again) != answers(fitted)
    assert answers(again.fit(TRAIN)) == answers(fitted)


def test_the_seed_matters_where_there_is_one(name, fitted):
    if name in SEEDED:
        assert answers(make(name).set_params(random_state=1).fit(TRAIN)) != answers(fitted)
    else:
        assert "random_state" not in fitted.get_params()


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_give_equal_bits(name, fitted, make_copy):
    assert answers(make_copy(fitted)) == answers(fitted)


def test_a_saved_model_gives_equal_bits(name, fitted, tmp_path):
    opened = seqattn.load(fitted.save(tmp_path / "model.safetensors"))
    assert type(opened) is type(fitted)
    assert opened.get_params() == fitted.get_params()
    assert answers(opened) == answers(fitted)


def test_a_loaded_model_can_be_saved_and_fitted_again(name, fitted, tmp_path):
    first = fitted.save(tmp_path / "first.safetensors")
    opened = seqattn.load(first)
    assert opened.save(tmp_path / "second.safetensors").read_bytes() == first.read_bytes()
    assert answers(opened.fit(TRAIN)) == answers(fitted)


def test_answers_can_be_asked_for_twice(name, fitted):
    assert answers(fitted) == answers(fitted)


# -- no side effects -------------------------------------------------------------------------------------------


def random_states() -> tuple[Any, ...]:
    """Return numpy's and torch's states. Python's own moves with the runtime checks; test_imports.py bars its use."""
    _, numbers, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what must not move
    return (numbers.tolist(), rest, torch.get_rng_state().tolist())


def test_no_global_random_state_is_touched(name):
    before = random_states()
    model = make(name).fit(TRAIN)
    model.predict(TEST)
    model.evaluate(TEST)
    assert random_states() == before


def test_results_do_not_depend_on_global_random_states(name, fitted):
    numpy_state = np.random.get_state()  # noqa: NPY002 - as users' own code may do it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        np.random.seed(12345)  # noqa: NPY002
        model = make(name).fit(TRAIN)
    np.random.set_state(numpy_state)  # noqa: NPY002
    assert answers(model) == answers(fitted)


def test_nothing_is_printed(name, capfd):
    model = make(name).fit(TRAIN)
    model.evaluate(TEST)
    assert capfd.readouterr() == ("", "")


def test_the_default_settings_of_torch_stay(name):
    before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
    make(name).fit(TRAIN).score(TEST)
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()) == before


# -- what may not matter ---------------------------------------------------------------------------------------


def test_sequences_do_not_influence_each_other(name, fitted):
    alone = pl.concat([by_event(fitted, group) for _, group in TEST.group_by("seq_id")])
    assert_close(alone.sort("seq_id", "position"), by_event(fitted, TEST))


def test_the_total_is_the_sum_over_sequences(name, fitted):
    parts = [fitted.log_likelihood(group) for _, group in TEST.group_by("seq_id")]
    whole = fitted.log_likelihood(TEST)
    assert sum(part.total for part in parts) == pytest.approx(whole.total, rel=1e-6)
    assert sum(part.n_events for part in parts) == whole.n_events


def test_the_order_of_sequences_does_not_matter(name, fitted):
    turned = pl.concat([group for _, group in reversed(list(TEST.group_by("seq_id", maintain_order=True)))])
    assert_close(by_event(fitted, turned), by_event(fitted, TEST))
    assert fitted.score(turned) == pytest.approx(fitted.score(TEST), rel=1e-6)


def test_rows_of_sequences_may_be_mixed(name, fitted):
    assert_close(by_event(fitted, TEST.sort("t")), by_event(fitted, TEST))


def test_pandas_and_polars_give_equal_bits(name, fitted):
    import pandas as pd

    frame = pd.DataFrame({column: TEST[column].to_list() for column in TEST.columns})
    table = fitted.predict(frame)
    assert isinstance(table, pd.DataFrame)
    assert isinstance(fitted.predict(TEST), pl.DataFrame)
    assert {column: table[column].tolist() for column in table.columns} == fitted.predict(TEST).to_dict(
        as_series=False
    )
    assert fitted.score(frame) == fitted.score(TEST)


def test_tables_lists_and_sequences_give_equal_bits(name, fitted):
    pairs = [
        (group["t"].to_numpy(), group["k"].to_list())
        for _, group in TEST.group_by("seq_id", maintain_order=True)
    ]
    sequences = seqattn.Sequences.from_table(TEST, window=(0.0, END))
    assert fitted.score(pairs) == fitted.score(TEST)
    assert fitted.score(sequences) == fitted.score(TEST)


# -- what is said about every event ----------------------------------------------------------------------------


def test_every_event_has_one_forecast(name, fitted):
    table = fitted.predict(TEST)
    assert table.columns[:6] == ["seq_id", "position", "t_mean", "t_median", "k", "p"]
    assert table["seq_id"].to_list() == TEST["seq_id"].to_list()
    assert table.select(pl.int_range(pl.len()).over("seq_id").alias("position")).equals(
        table.select("position")
    )
    assert set(table["k"]) <= {"a", "b"}


def test_forecasts_lie_after_the_event_before(name, fitted):
    previous = TEST.select(pl.col("t").shift(1).over("seq_id").fill_null(0.0))["t"]
    table = fitted.predict(TEST)
    assert (table["t_mean"] >= previous).all()
    assert (table["t_median"] >= previous).all()
    assert table.select(pl.col("t_mean", "t_median").is_finite()).to_numpy().all()


def test_type_probabilities_sum_to_one_and_their_largest_is_the_forecast(name, fitted):
    probability, table = fitted.predict_proba(TEST), fitted.predict(TEST)
    np.testing.assert_allclose(probability.sum(1), 1.0, atol=1e-5)
    assert [fitted.labels_[code] for code in probability.argmax(1)] == table["k"].to_list()
    np.testing.assert_allclose(probability.max(1), table["p"], rtol=1e-6)


def test_the_score_is_the_log_likelihood_per_event(name, fitted):
    likelihood = fitted.log_likelihood(TEST)
    assert fitted.score(TEST) == likelihood.per_event
    assert likelihood.convention == "full"
    assert likelihood.n_events == len(TEST)
    assert likelihood.time + likelihood.type == pytest.approx(likelihood.per_event, abs=1e-9)
    assert likelihood.per_event * likelihood.n_events == pytest.approx(likelihood.total, rel=1e-12)


@pytest.mark.parametrize(("convention", "n_events"), [("full", 0), ("to_last", 0), ("from_first", -7)])
def test_each_convention_says_what_it_counts(name, fitted, convention, n_events):
    likelihood = fitted.log_likelihood(TEST, convention=convention)
    assert likelihood.convention == convention
    assert likelihood.n_events == len(TEST) + n_events


def test_evaluation_has_the_agreed_keys(name, fitted):
    expected = {
        "loglik_per_event",
        "loglik_time",
        "loglik_type",
        "convention",
        "n_events",
        "rmse",
        "mae",
        "accuracy",
        "macro_f1",
        "ks_pvalue",
        "baselines",
    }
    found = fitted.evaluate(TEST)
    assert expected <= set(found)
    assert found["loglik_per_event"] == pytest.approx(fitted.score(TEST), rel=1e-9)
    for row in found["baselines"].values():
        assert expected - {"baselines"} <= set(row)


# -- what is refused -------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[], Any]] = {
    "a missing column": lambda: TEST.rename({"t": "time"}),
    "a null time": lambda: pl.DataFrame({"seq_id": ["s", "s"], "t": [1.0, None], "k": ["a", "b"]}),
    "a time that is no number": lambda: pl.DataFrame(
        {"seq_id": ["s", "s"], "t": [1.0, float("nan")], "k": ["a", "b"]}
    ),
    "an infinite time": lambda: pl.DataFrame(
        {"seq_id": ["s", "s"], "t": [1.0, float("inf")], "k": ["a", "b"]}
    ),
    "times that decrease": lambda: pl.DataFrame({"seq_id": ["s", "s"], "t": [2.0, 1.0], "k": ["a", "b"]}),
    "a null type": lambda: pl.DataFrame({"seq_id": ["s", "s"], "t": [1.0, 2.0], "k": ["a", None]}),
    "a time after the window": lambda: pl.DataFrame({"seq_id": ["s"], "t": [END + 1.0], "k": ["a"]}),
    "a time before the window": lambda: pl.DataFrame({"seq_id": ["s"], "t": [-1.0], "k": ["a"]}),
    "lists of unequal length": lambda: [([1.0, 2.0], ["a"])],
    "no rows": lambda: TEST.head(0),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_data_that_cannot_be_meant_are_refused_by_fit(name, kind):
    with pytest.raises(DataError):
        make(name).fit(REFUSED[kind]())


@pytest.mark.parametrize("kind", [*REFUSED, "an unknown type"])
def test_data_that_cannot_be_meant_are_refused_by_a_fitted_model(name, fitted, kind):
    unknown = pl.DataFrame({"seq_id": ["s"], "t": [1.0], "k": ["never seen"]})
    X = unknown if kind == "an unknown type" else REFUSED[kind]()
    with pytest.raises(DataError):
        fitted.score(X)


@pytest.mark.parametrize("X", [None, 3, object()], ids=["None", "number", "object"])
def test_what_is_no_data_at_all_is_a_type_error(name, fitted, X):
    with pytest.raises(TypeError):
        make(name).fit(X)
    with pytest.raises(TypeError):
        fitted.score(X)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there_is_never_replaced_silently(name):
    model = make(name)
    if "device" in SETTINGS[name]:
        with pytest.raises(BackendError, match="cuda"):
            model.set_params(device="cuda").fit(TRAIN)
    else:
        assert "device" not in model.get_params()
