"""What the classifier does with input that is not nice: one test or more for each row of the model's table."""

from __future__ import annotations

import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.exceptions import DataConversionWarning, NotFittedError
from small_series import draw, write

import seqattn
from seqattn import VSFormerClassifier
from seqattn.cli import cli
from seqattn.data.panels import Panel
from seqattn.errors import DataError, ParameterError, SeqattnWarning
from seqattn.train.loop import Observer

TINY: dict[str, Any] = {
    "epochs": 1,
    "d_model": 8,
    "n_heads": 2,
    "shape_tokens": 8,
    "value_tokens": 8,
    "readout_shapes": 32,
    "n_members": 1,
    "random_state": 0,
}
KINDS: dict[str, dict[str, Any]] = {"dilated": {}, "motif": {"shapes": "motif"}}


def make(kind: str = "dilated", **settings: Any) -> VSFormerClassifier:
    return VSFormerClassifier(**{**TINY, **KINDS[kind], **settings})


def fit_beside(kind: str, name: str, X: Any, y: Any) -> None:
    """Fit with further cases."""
    make(kind).fit(series(), LABELS, **{name: (X, y)})


def series(seed: int = 0) -> np.ndarray:
    X = np.random.default_rng(seed).normal(size=(18, 2, 16))
    X[6:12, 0] += 3.0
    X[12:, 1] += 3.0
    return X


LABELS = np.repeat(["down", "flat", "up"], 6)
HELD_OUT = ("validation", "watch")
_FITTED: dict[str, VSFormerClassifier] = {}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fitted(kind: str) -> VSFormerClassifier:
    return shared(kind)


def shared(kind: str) -> VSFormerClassifier:
    """Return a fitted classifier that tests share and leave as it is."""
    if kind not in _FITTED:
        _FITTED[kind] = make(kind).fit(series(), LABELS)
    return _FITTED[kind]


def assert_shares(found: np.ndarray, n_cases: int, n_classes: int = 3) -> None:
    assert found.shape == (n_cases, n_classes)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


# -- values ----------------------------------------------------------------------------------------------------


def test_missing_values_are_taken(fitted, kind):
    X = series()
    X[np.random.default_rng(1).random(X.shape) < 0.3] = np.nan
    model = make(kind).fit(X, LABELS)
    assert model.score(X, LABELS) > 0.8
    assert fitted.score(X, LABELS) > 0.8


def test_a_channel_that_is_missing_everywhere_is_taken(kind):
    X = series()
    X[:, 1] = np.nan
    model = make(kind).fit(X, LABELS)
    assert model.score(X, LABELS) > 0.8
    assert_shares(model.predict_proba(series()), 18)


def test_a_case_that_lacks_a_channel_is_taken(fitted):
    X = series()[:3]
    X[0, 0] = np.nan
    assert_shares(fitted.predict_proba(X), 3)
    assert not fitted.tokenise(X).observed[0].all()


def test_a_case_without_values_gets_the_class_shares_with_a_warning(kind):
    X, y = series()[:15], LABELS[:15]
    model = make(kind).fit(X, y)
    with pytest.warns(
        SeqattnWarning, match=r"1 case\(s\) without any value, the first is case 1, get the class shares"
    ):
        found = model.predict_proba([X[0], np.full((2, 5), np.nan)])
    np.testing.assert_allclose(found[1], [6 / 15, 6 / 15, 3 / 15])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_refused_with_case_and_channel(fitted, kind, value):
    X = series()
    X[3, 1, 5] = value
    for use in (lambda: make(kind).fit(X, LABELS), lambda: fitted.predict(X), lambda: fitted.explain(X)):
        with pytest.raises(
            DataError, match=r"Case 3 holds an infinite value \(inf\) in channel 1 at time point 5"
        ):
            use()


def test_series_without_any_value_are_refused(kind):
    with pytest.raises(DataError, match="No case has a finite value. Check how missing values are written"):
        make(kind).fit(series() * np.nan, LABELS)


def test_a_class_without_any_value_is_refused(kind):
    X = series()
    X[LABELS == "up"] = np.nan
    with (
        pytest.warns(SeqattnWarning, match=r"6 training case\(s\) without any value"),
        pytest.raises(DataError, match="No case of the class 'up' has a value. Leave the class out"),
    ):
        make(kind).fit(X, LABELS)


def test_constant_channels_and_cases_are_taken(kind):
    X = series()
    X[:, 1], X[4, 0] = 7.0, 0.0
    model = make(kind).fit(X, LABELS)
    assert model.score(X, LABELS) > 0.8
    assert 1 not in model.shapes_["channel"].to_list()
    assert_shares(model.predict_proba(series()), 18)


def test_data_that_never_change_give_shares_close_to_those_of_the_classes(kind):
    X, y = np.ones((16, 2, 12)), LABELS[:16]
    model = make(kind).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), np.tile([6 / 16, 6 / 16, 4 / 16], (16, 1)), atol=0.1)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_very_small_and_very_large_numbers_are_taken(fitted, kind, factor):
    model = make(kind).fit(factor * series(), LABELS)
    np.testing.assert_allclose(
        model.predict_proba(factor * series(1)), fitted.predict_proba(series(1)), atol=1e-6
    )


@pytest.mark.parametrize("factor", [1e15, 1e30, 1e300])
def test_new_values_of_any_size_give_finite_answers(fitted, factor):
    X = factor * series(1)
    assert_shares(fitted.predict_proba(X), 18)
    explanation = fitted.explain(X)
    np.testing.assert_allclose(
        explanation.map.sum(axis=(1, 2)), explanation.difference, rtol=1e-3, atol=1e-6 * factor
    )
    assert np.isfinite(explanation.difference).all()


def test_one_value_at_the_end_of_the_numbers_is_taken(kind):
    X = series()
    X[4, 0, 3], X[5, 0, 3] = 1.7e308, -1.7e308
    model = make(kind).fit(X, LABELS)
    assert_shares(model.predict_proba(X), 18)
    assert np.isfinite(model.explain(X).logits).all()


# -- lengths and channels --------------------------------------------------------------------------------------


def test_lengths_may_be_unequal_and_may_differ_at_predict(fitted, kind):
    X = [case[:, : 16 - row % 5] for row, case in enumerate(series())]
    model = make(kind).fit(X, LABELS)
    assert model.length_range_ == (12, 16)
    new = [np.tile(series()[0], 4), series()[7][:, :3], series()[17]]
    for each in (model, fitted):
        assert_shares(each.predict_proba(new), 3)
        assert each.predict(new)[2] == "up"


def test_another_number_of_channels_is_refused_with_both_numbers(fitted, kind):
    text = r"The cases have 3 channel\(s\), but the classifier was fitted with 2. Give the same channels"
    further = [partial(fit_beside, kind, name, y=LABELS[:2]) for name in HELD_OUT]
    for use in (fitted.predict, fitted.predict_proba, fitted.explain, fitted.tokenise, *further):
        with pytest.raises(DataError, match=text):
            use(np.zeros((2, 3, 16)))


def test_cases_with_unequal_channels_are_refused(kind):
    with pytest.raises(DataError, match=r"Case 1 has 1 channel\(s\), and case 0 has 2"):
        make(kind).fit([series()[0], series()[1][:1]], ["a", "b"])


def test_rows_of_another_length_are_refused_with_both_numbers():
    model = make().fit(series()[:, 0], LABELS)
    assert model.n_features_in_ == 16
    with pytest.raises(DataError, match="X has 12 features, but VSFormerClassifier is expecting 16 features"):
        model.predict(series()[:, 0, :12])
    assert_shares(model.predict_proba(list(series()[:, 0, :12])), 18)


def test_series_of_less_than_three_points_are_refused_with_the_case(fitted, kind):
    short = [*series()[:17], series()[17][:, :2]]
    text = r"Case 17 has 2 time point\(s\) .* at least 3 are needed"
    fits = [partial(fit_beside, kind, name, short, LABELS) for name in HELD_OUT]
    for use in (lambda: make(kind).fit(short, LABELS), lambda: fitted.predict(short), *fits):
        with pytest.raises(DataError, match=text):
            use()
    with pytest.raises(DataError, match=r"Case 0 has 2 time point\(s\)"):
        make(kind).fit(series()[:, :1, :2], LABELS)
    assert_shares(make(kind).fit(series()[..., :3], LABELS).predict_proba(series()), 18)


def test_swapped_axes_are_warned_of():
    X = np.random.default_rng(0).normal(size=(6, 70, 20))
    with pytest.warns(SeqattnWarning, match="70 channels and 20 time points: their axes look swapped"):
        make(network_weight=0.0).fit(X, [0, 1] * 3)


def frame(names: str = "ab", rows: int = 18) -> pd.DataFrame:
    return pd.DataFrame(
        {name: [pd.Series(case[i]) for case in series()[:rows]] for i, name in enumerate(names)}
    )


def test_channels_of_a_frame_in_another_order_are_refused_and_other_names_warned_of(tmp_path):
    model = make(network_weight=0.0).fit(frame(), LABELS)
    loaded = seqattn.load(model.save(tmp_path))
    for each in (model, loaded):
        assert each.channel_names_ == ("a", "b")
        assert_shares(each.predict_proba(frame(rows=3)), 3)
        with pytest.raises(
            DataError, match="channels are 'b', 'a', but .* with 'a', 'b'. Give them in the order"
        ):
            each.predict(frame()[["b", "a"]])
        with pytest.warns(SeqattnWarning, match="channels are 'x', 'y', but .* taken in the order given"):
            each.predict(frame("xy"))
    model.fit(series(), LABELS)
    assert model.channel_names_ is None
    model.predict(frame("ba"))


def test_one_case_is_predicted_and_none_is_refused(fitted):
    assert_shares(fitted.predict_proba(series()[:1]), 1)
    for nothing in (series()[:0], []):
        with pytest.raises(DataError, match=r"There are no cases: 0 sample\(s\) were given"):
            fitted.predict(nothing)


# -- kinds of arrays -------------------------------------------------------------------------------------------

ARRAYS = {
    "object": lambda X, folder: X.astype(object),
    "fortran": lambda X, folder: np.asfortranarray(X),
    "float32": lambda X, folder: X.astype(np.float32),
    "reversed": lambda X, folder: X[::-1].copy()[::-1],
    "read-only": lambda X, folder: _locked(X.copy()),
    "memory-mapped": lambda X, folder: np.load(_saved(X, folder), mmap_mode="r"),
    "lists": lambda X, folder: X.tolist(),
}


def _locked(X: np.ndarray) -> np.ndarray:
    X.flags.writeable = False
    return X


def _saved(X: np.ndarray, folder: Path) -> Path:
    np.save(folder / "X.npy", X)
    return folder / "X.npy"


@pytest.mark.parametrize("form", ARRAYS)
def test_arrays_of_any_kind_give_equal_bits_and_are_not_written_to(form, tmp_path):
    X = series().astype(np.float32).astype(float)
    given = ARRAYS[form](X, tmp_path)
    before = np.array(given, dtype=float).tobytes()
    found = make().fit(given, LABELS).predict_proba(given)
    assert found.tobytes() == make().fit(X, LABELS).predict_proba(X).tobytes()
    assert np.array(given, dtype=float).tobytes() == before


def test_whole_numbers_are_taken():
    X = np.round(series() * 10).astype(np.int16)
    assert make().fit(X, LABELS).predict_proba(X).tobytes() == (
        make().fit(X.astype(float), LABELS).predict_proba(X.astype(float)).tobytes()
    )


# -- labels ----------------------------------------------------------------------------------------------------


def test_one_class_gives_a_constant_classifier_with_a_warning(kind, tmp_path):
    with pytest.warns(SeqattnWarning, match="All labels are 'only': every prediction will be that class"):
        model = make(kind).fit(series(), ["only"] * 18)
    for each in (model, seqattn.load(model.save(tmp_path))):
        assert each.predict(series()).tolist() == ["only"] * 18
        assert each.predict_proba(series()).tolist() == [[1.0]] * 18
        with pytest.raises(DataError, match="knows one class only"):
            each.explain(series())


def test_a_class_with_one_case_is_warned_of_by_name(kind):
    labels = LABELS.astype("<U9")
    labels[0] = "rare"
    with pytest.warns(SeqattnWarning, match="1 of 4 classes have one training case, for example 'rare'"):
        model = make(kind).fit(series(), labels)
    assert_shares(model.predict_proba(series()), 18, 4)
    own = model.shapes_.filter(model.shapes_["class"] == "rare")
    assert own["prior"].to_list() == [0.0] * len(own)
    if kind == "motif":
        assert len(own) == 0


@pytest.mark.filterwarnings("ignore:The number of unique classes is greater")
def test_classes_of_one_case_each_can_be_learnt(kind):
    with pytest.warns(SeqattnWarning, match="18 of 18 classes have one training case"):
        model = make(kind).fit(series(), np.arange(18))
    assert_shares(model.predict_proba(series()), 18, 18)


LABELS_REFUSED = {
    "missing number": (np.where(np.arange(18) == 3, np.nan, 1.0), r"y is missing \(None or NaN\) for case 3"),
    "missing text": ([*LABELS[:-1], None], r"y is missing \(None or NaN\) for case 17"),
    "continuous": (np.linspace(0, 1, 18), "The labels y are no classes. Unknown label type: continuous"),
    "two columns": (np.zeros((18, 2), int), r"y has the shape \(18, 2\): y should be a 1d array"),
    "mixed objects": (np.array(["a", 1] * 9, dtype=object), "The labels y are of several types: int, str"),
    "too few": (LABELS[:5], r"y has the shape \(5,\), and there are 18 cases"),
    "none": (None, "requires y to be passed, but the target y is None"),
    "complex": (np.arange(18) % 2 + 1j, "y holds complex numbers"),
    "a set": ({"a", "b"}, "y is one set"),
    "one label": ("a", "y is one str"),
    "lists of unequal length": ([[0], [1, 2]], "y holds lists of unequal length"),
    "missing text of pandas": (
        pd.Series(["a", pd.NA] * 9, dtype="string"),
        r"y is missing \(None or NaN\) for case 1",
    ),
}


@pytest.mark.parametrize("what", LABELS_REFUSED)
def test_labels_that_are_no_classes_are_refused(what):
    labels, text = LABELS_REFUSED[what]
    with pytest.raises(DataError, match=text):
        make().fit(series(), labels)


def test_a_column_of_labels_is_taken_with_a_warning():
    with pytest.warns(DataConversionWarning, match="column-vector y was passed"):
        model = make().fit(series(), LABELS[:, None])
    assert model.predict(series()).shape == (18,)


SCORES_REFUSED = {
    "one label": ((LABELS[:1],), r"y has 1 label\(s\), and there are 18 case\(s\)"),
    "too few": ((LABELS[:5],), r"y has 5 label\(s\), and there are 18 case\(s\)"),
    "two columns": ((np.zeros((18, 2)),), "y should be a 1d array"),
    "another kind": (
        (np.arange(18) % 3,),
        r"None of the labels \(0, 1, 2\) is among the classes \('down', 'flat'",
    ),
    "few weights": ((LABELS, np.ones(3)), r"sample_weight has the shape \(3,\), and there are 18"),
    "words as weights": ((LABELS, ["a"] * 18), "sample_weight holds something that is no number"),
    "weights below 0": ((LABELS, -np.ones(18)), "sample_weight must be finite, at least 0"),
    "no weight": ((LABELS, np.zeros(18)), "sample_weight must be .* above 0 for one case"),
}


@pytest.mark.parametrize("what", SCORES_REFUSED)
def test_a_score_of_what_does_not_fit_is_refused(what):
    given, text = SCORES_REFUSED[what]
    with pytest.raises(DataError, match=text):
        shared("dilated").score(series(), *given)


@pytest.mark.parametrize("form", [lambda y: y[:, None], pd.DataFrame])
def test_a_score_takes_a_column_of_labels_with_a_warning(form):
    model = shared("dilated")
    wrong = np.where(np.arange(18) < 3, "up", model.predict(series()))
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        found = model.score(series(), form(wrong))
    assert found == pytest.approx(15 / 18)
    weights = np.where(np.arange(18) < 3, 5.0, 1.0)
    assert model.score(series(), wrong, weights) == pytest.approx(0.5)
    assert model.score(series(), np.where(wrong == "down", "new", wrong)) == pytest.approx(12 / 18)


FURTHER_REFUSED = {
    "no labels": (series(), TypeError, "{} is of the type 'ndarray'. Give a panel with labels, or a pair"),
    "three parts": ((series(), LABELS, LABELS), TypeError, "{} is of the type 'tuple'"),
    "a panel without labels": (Panel(series()), DataError, "The cases of {} have no labels"),
    "too few labels": ((series(), LABELS[:4]), DataError, r"y has the shape \(4,\), and there are 18 cases"),
    "other labels": ((series(), np.arange(18)), DataError, "None of the labels .* is among the classes"),
}


@pytest.mark.parametrize("name", HELD_OUT)
@pytest.mark.parametrize("what", FURTHER_REFUSED)
def test_further_cases_that_cannot_be_used_are_refused(what, name):
    given, kind, text = FURTHER_REFUSED[what]
    with pytest.raises(kind, match=text.format(name)):
        make().fit(series(), LABELS, **{name: given})


def test_held_out_cases_of_a_new_class_are_refused_before_anything_is_learnt(monkeypatch):
    monkeypatch.setattr(VSFormerClassifier, "_learn", None)
    with pytest.raises(DataError, match="The held-out cases have the class 'new'"):
        make().fit(series(), LABELS, validation=(series(), [*LABELS[:-1], "new"]))


# -- sizes -----------------------------------------------------------------------------------------------------


def test_many_channels_and_long_series_are_bounded_and_reported(kind):
    wide = np.random.default_rng(0).normal(size=(6, 300, 12))
    with pytest.warns(SeqattnWarning, match="axes look swapped"):
        report = make(kind, network_weight=0.0).fit(wide, [0, 1] * 3).fit_report_
    assert report["shape_tokens"] <= 8
    assert report["value_tokens"] <= 8
    long = np.random.default_rng(0).normal(size=(6, 1, 5000))
    model = make(kind, max_length=200, network_weight=0.0).fit(long, [0, 1] * 3)
    assert (model.fit_report_["longest"], model.fit_report_["points_per_mean"]) == (5000, 25)
    assert model.fit_report_["capped"] == ["max_length"]


def test_the_report_names_what_was_capped(kind, monkeypatch):
    X, rest = series(), {"network_weight": 0.0}
    assert make(kind, **rest).fit(X, LABELS).fit_report_["capped"] == []
    searched = make(kind, profile_cap=80, **rest).fit(X, LABELS).fit_report_["capped"]
    assert searched == (["profile_cap"] if kind == "motif" else [])
    # The readout of many cases has fewer shapes: here "many" begins at 9.
    monkeypatch.setattr("seqattn.classify.tokens._LARGEST_SYSTEM", 9)
    assert make(kind, **rest).fit(X, LABELS).fit_report_["capped"] == ["readout_shapes"]


# -- use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use", ["predict", "predict_proba", "score", "explain", "tokenise", "save", "shapes_"]
)
def test_use_before_fit_is_refused(use, tmp_path):
    model = make()
    arguments = {"save": [tmp_path], "score": [series(), LABELS], "shapes_": ["shapes_"]}.get(use, [series()])
    asked = model.__getattribute__ if use == "shapes_" else getattr(model, use)
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        asked(*arguments)


class Interrupt(Observer):
    def begin(self, settings: Any) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    def end(self, history: Any) -> None: ...


FITS_ENDED = {
    "a parameter": ({"epochs": 0}, {}, ParameterError),
    "weights of no class": ({"class_weight": {"x": 1}}, {}, ParameterError),
    "held-out cases": ({}, {"validation": (series()[:, :1], LABELS)}, DataError),
    "watched cases": ({}, {"watch": series()}, TypeError),
    "an interruption": ({}, {"observers": [Interrupt()]}, KeyboardInterrupt),
}


@pytest.mark.parametrize("is_refit", [False, True])
@pytest.mark.parametrize("what", FITS_ENDED)
def test_after_a_fit_that_came_to_no_end_nothing_is_fitted(what, is_refit):
    settings, given, kind = FITS_ENDED[what]
    model = pickle.loads(pickle.dumps(shared("dilated"))) if is_refit else make()
    with pytest.raises(kind):
        model.set_params(**settings).fit(series(), LABELS, **given)
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        model.predict(series())
    assert [name for name in vars(model) if name.endswith("_")] == []


PARAMETERS_REFUSED = {
    "a word": ({"shapes": "motifs"}, "shapes='motifs' is not allowed. Give 'dilated' or 'motif'."),
    "zero epochs": ({"epochs": 0}, "epochs=0 is not allowed. Give a whole number, at least 1."),
    "a Boolean": ({"n_members": True}, "n_members=True is not allowed. Give a whole number"),
    "a share": ({"dropout": 1.5}, "dropout=1.5 is not allowed. Give a number from 0 to below 1."),
    "less than nothing": (
        {"prior_strength": -1.0},
        "prior_strength=-1.0 is not allowed. Give a number, at least 0",
    ),
    "no part": ({"granularities": ()}, r"granularities=\(\) is not allowed. Give a tuple of whole numbers"),
    "parts of zero": ({"granularities": (0,)}, "granularities=0 is not allowed. Give a whole number"),
    "windows": ({"window_fractions": (2,)}, "window_fractions with 2 is not allowed. Give shares"),
    "heads": ({"n_heads": 3}, "d_model=8 is no multiple of n_heads=3"),
    "nothing": ({"readout_shapes": 0, "network_weight": 0}, "leave nothing to predict with"),
    "weights": ({"class_weight": {"x": 1}}, "class_weight names 'x', which is no class"),
    "attention": ({"attention": "dnse"}, "no attention pattern 'dnse'.*Did you mean 'dense'"),
    "held out": ({"validation": 2}, "validation=2 is not allowed. Give a share between 0 and 1"),
    "points": ({"max_length": 1}, "max_length=1 is not allowed. Give a whole number, at least 3."),
    "no mapping": (
        {"class_weight": [1, 2]},
        r"class_weight=\[1, 2\] is not allowed. Give None, 'balanced', or a",
    ),
    "a word as weights": ({"class_weight": "equal"}, "class_weight='equal' is not allowed"),
    "a word as weight": ({"class_weight": {"up": "a"}}, "class_weight gives class 'up' the weight 'a'"),
    "a word as switch": ({"derivatives": "no"}, "derivatives='no' is not allowed. Give True or False."),
    "another switch": ({"learn_prior_strength": "no"}, "learn_prior_strength='no' is not allowed"),
    "a number as switch": ({"prior_encoding": 2}, "prior_encoding=2 is not allowed"),
    "a list as choice": ({"head": ["mean"]}, r"head=\['mean'\] is not allowed"),
    "rate": ({"learning_rate": -0.1}, "learning_rate=-0.1 is not allowed. Give a positive number."),
    "decay": ({"weight_decay": -1}, "weight_decay=-1 is not allowed"),
    "no patience": ({"patience": 0}, "patience=0 is not allowed. Give a whole number, at least 1, or None."),
    "device": ({"device": "gpu"}, "device='gpu' is not known"),
    "precision": ({"precision": "half"}, "precision='half' is not known"),
    "no thread": ({"n_jobs": 0}, "n_jobs=0 is not allowed. Give a number of threads"),
    "threads": ({"n_jobs": "a"}, "n_jobs='a' is not allowed"),
    "talk": ({"verbose": "a"}, "verbose='a' is not allowed"),
    "seed below 0": ({"random_state": -1}, "random_state=-1 is not allowed. Give a whole number from 0"),
    "a word as seed": ({"random_state": "a"}, "random_state='a' is not allowed"),
    "generator": ({"random_state": np.random.default_rng(0)}, "random_state=Generator.* is not allowed"),
}


@pytest.mark.parametrize("what", PARAMETERS_REFUSED)
def test_parameters_that_are_not_allowed_are_refused(what):
    given, text = PARAMETERS_REFUSED[what]
    with pytest.raises(ParameterError, match=text):
        make(network_weight=0.0).set_params(**given).fit(series(), LABELS)


def test_patience_without_held_out_cases_is_warned_of():
    with pytest.warns(
        SeqattnWarning, match="patience=2 does nothing without held-out cases. Give validation"
    ):
        make(patience=2).fit(series(), LABELS)
    make(patience=2).fit(series(), LABELS, validation=(series(), LABELS))


def test_watched_cases_without_a_network_are_warned_of():
    with pytest.warns(SeqattnWarning, match="watch does nothing with network_weight=0: without a network"):
        make(network_weight=0.0).fit(series(), LABELS, watch=(series(), LABELS))


def test_nice_input_gives_no_warning(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(kind).fit(series(), LABELS).predict(series())


# -- the command line ------------------------------------------------------------------------------------------


def refused(*arguments: Any) -> str:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == 3, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


def test_the_command_line_refuses_data_with_code_3_and_the_same_text(tmp_path):
    good = write(draw(0, 12), tmp_path / "good.ts")
    settings = [word for name in ("epochs", "readout_shapes") for word in ("--set", f"{name}=1")]
    done = CliRunner().invoke(
        cli, ["fit", "classify", "--data", str(good), "--output", str(tmp_path / "run"), *settings]
    )
    assert done.exit_code == 0, done.output
    header = good.read_text().split("@data")[0]
    files = {
        "inf": ("1,2,inf:1,2,3:up\n", "Case 0 holds an infinite value"),
        "short": ("1,2,3:1,2,3:up\n1,2:1,2:down\n", "Case 1 has 2 time point(s)"),
        "channels": ("1,2,3:up\n", "2"),
    }
    for name, (lines, text) in files.items():
        path = tmp_path / f"{name}.ts"
        path.write_text(f"{header}@data\n{lines}")
        assert text in refused("predict", tmp_path / "run", "--data", path)
        assert text in refused("fit", "classify", "--data", path, "--output", tmp_path / name, *settings)
    assert "There is no" in refused("predict", tmp_path / "run", "--data", tmp_path / "nothing.ts")
