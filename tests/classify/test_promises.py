"""What may not change an answer of the classifier, and what must: form, order, names, units, padding, seeds."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import seqattn
from seqattn import VSFormerClassifier
from seqattn.data.panels import Panel
from seqattn.errors import SeqattnWarning

TINY: dict[str, Any] = {
    "epochs": 3,
    "d_model": 8,
    "n_heads": 2,
    "shape_tokens": 12,
    "value_tokens": 12,
    "readout_shapes": 64,
    "n_members": 1,
    "random_state": 0,
}
# The motifs of the paper, several networks, probabilities made to fit: every branch of a fit.
KINDS: dict[str, dict[str, Any]] = {
    "dilated": {"n_members": 2},
    "motif": {"shapes": "motif", "calibration": 0.25, "readout_shapes": 0, "class_weight": "balanced"},
}


def draw(seed: int, n_cases: int = 24) -> tuple[list[np.ndarray], np.ndarray]:
    """Cases of two channels whose level and shape tell the class more often than not, with gaps."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n_cases) % 3)
    series = []
    for code in codes:
        case = rng.normal(0, 1, (2, 24))
        case[0] += 0.4 * code
        case[1] += 1.5 * np.sin(np.arange(24) * (0.3 + 0.2 * code) + rng.uniform(0, 6))
        case[rng.integers(2), rng.integers(24, size=2)] = np.nan
        series.append(case)
    return series, np.array(["down", "flat", "up"])[codes]


def ragged(series: list[np.ndarray]) -> list[np.ndarray]:
    return [case[:, : 24 - number % 7] for number, case in enumerate(series)]


TRAIN, LABELS = draw(0)
TEST, TRUTH = draw(1, 9)
_FITTED: dict[str, VSFormerClassifier] = {}


def make(kind: str, **settings: Any) -> VSFormerClassifier:
    return VSFormerClassifier(**{**TINY, **KINDS[kind], **settings})


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fitted(kind: str) -> VSFormerClassifier:
    """Return a fitted classifier that tests share and leave as it is."""
    if kind not in _FITTED:
        _FITTED[kind] = make(kind).fit(TRAIN, LABELS)
    return _FITTED[kind]


def assert_close(found: np.ndarray, wanted: np.ndarray, most: float = 1e-6) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=most)


# -- forms of input --------------------------------------------------------------------------------------------


def nested(cases: list[np.ndarray]) -> pd.DataFrame:
    return pd.DataFrame({f"c{i}": [pd.Series(case[i]) for case in cases] for i in range(2)})


def rows(cases: list[np.ndarray]) -> pd.DataFrame:
    frames = [pd.DataFrame(case.T, columns=["c0", "c1"]) for case in cases]
    return pd.concat(frames, keys=range(len(cases)), names=["case", "time"])


FORMS = {
    "numpy3D": np.stack,
    "df-list": lambda cases: [pd.DataFrame(case.T) for case in cases],
    "nested_univ": nested,
    "pd-multiindex": rows,
    "polars": lambda cases: pl.from_pandas(rows(cases).reset_index()),
    "panel": Panel,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input_gives_equal_bits(fitted, form):
    assert FORMS[form](TEST) is not TEST
    assert fitted.predict_proba(FORMS[form](TEST)).tobytes() == fitted.predict_proba(TEST).tobytes()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "numpy3D"])
def test_a_fit_on_every_form_gives_equal_bits(form):
    wanted = make("dilated", epochs=1).fit(ragged(TRAIN), LABELS)
    model = make("dilated", epochs=1).fit(FORMS[form](ragged(TRAIN)), LABELS)
    assert model.predict_proba(TEST).tobytes() == wanted.predict_proba(TEST).tobytes()
    assert not hasattr(model, "n_features_in_")


FACES = """
import json
import sys
sys.path[:0] = [sys.argv[1]]
from test_promises import FORMS, LABELS, TEST, TINY, TRAIN
from seqattn import VSFormerClassifier as Plain
from seqattn.classify.{library} import VSFormerClassifier
wanted = Plain(**TINY).fit(TRAIN, LABELS).predict_proba(TEST).tobytes()
found = dict()
for form in {forms}:
    face = VSFormerClassifier(**TINY).fit(FORMS[form](TRAIN), LABELS)
    found[form] = face.predict_proba(FORMS[form](TEST)).tobytes() == wanted
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "forms"),
    [("sktime", ("numpy3D", "df-list", "nested_univ", "pd-multiindex")), ("aeon", ("numpy3D",))],
)
def test_every_form_gives_equal_bits_through_a_face(library, forms, run_python, request):
    pytest.importorskip(library)
    done = run_python(FACES.format(library=library, forms=forms), str(request.path.parent))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(forms, True)


# -- scikit-learn's tools --------------------------------------------------------------------------------------


def test_a_pipeline_and_its_steps_give_equal_bits(fitted):
    pipeline = make_pipeline(FunctionTransformer(), clone(fitted)).fit(np.stack(TRAIN), LABELS)
    assert pipeline.predict_proba(np.stack(TEST)).tobytes() == fitted.predict_proba(TEST).tobytes()


@pytest.mark.slow
def test_cross_validation_takes_arrays_and_lists():
    by_array = cross_val_score(make("dilated"), np.stack(TRAIN), LABELS, cv=2, error_score="raise")
    by_list = cross_val_score(make("dilated"), ragged(TRAIN), LABELS, cv=2, error_score="raise")
    assert by_array.min() > 1 / 3
    assert by_list.shape == (2,)


@pytest.mark.slow
def test_a_grid_search_finds_the_setting_that_can_work():
    grid = {"network_weight": [0.0, 0.5], "tokens": ["value", "both"]}
    search = GridSearchCV(make("dilated", epochs=1), grid, cv=2, error_score="raise")
    search.fit(np.stack(TRAIN), LABELS)
    assert len(search.cv_results_["mean_test_score"]) == 4
    alone = make("dilated", epochs=1, **search.best_params_).fit(TRAIN, LABELS)
    assert search.predict_proba(np.stack(TEST)).tobytes() == alone.predict_proba(TEST).tobytes()


def test_a_clone_that_is_fitted_gives_equal_bits(fitted):
    again = clone(fitted).fit(TRAIN, LABELS)
    assert again.predict_proba(TEST).tobytes() == fitted.predict_proba(TEST).tobytes()
    assert again.fit_report_["learnt"] == fitted.fit_report_["learnt"]


def test_a_second_fit_forgets_the_first(fitted, kind):
    model = make(kind).fit(np.stack(TRAIN)[:, :1, :15], LABELS)
    model.fit(TRAIN, LABELS)
    assert model.predict_proba(TEST).tobytes() == fitted.predict_proba(TEST).tobytes()


def test_pickle_and_file_keep_every_bit(fitted, tmp_path):
    loaded = seqattn.load(fitted.save(tmp_path / "model.safetensors"))
    for copy in (pickle.loads(pickle.dumps(fitted)), loaded):
        assert copy.predict_proba(TEST).tobytes() == fitted.predict_proba(TEST).tobytes()
        assert copy.predict(TEST).tolist() == fitted.predict(TEST).tolist()
        assert copy.get_params() == fitted.get_params()
        assert copy.fit_report_ == fitted.fit_report_
        assert (copy.n_channels_, copy.length_range_) == (fitted.n_channels_, fitted.length_range_)
        assert copy.shapes_.equals(fitted.shapes_)
    assert loaded.save(tmp_path / "again").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_neither_fit_nor_predict_changes_parameters_or_data(fitted, kind):
    model, given = make(kind), np.stack(TRAIN)
    before = model.get_params()
    model.fit(given, LABELS)
    state = pickle.dumps(vars(model))
    model.predict(np.stack(TEST))
    assert model.get_params() == before
    assert given.tobytes() == np.stack(TRAIN).tobytes()
    assert pickle.dumps(vars(model)) == state


# -- seeds, processes, threads ---------------------------------------------------------------------------------

ALONE = """
import json
import sys
import torch
torch.set_num_threads(int(sys.argv[2]))
sys.path[:0] = [sys.argv[1]]
from test_promises import KINDS, LABELS, TEST, TRAIN, make
def bits(kind):
    model = make(kind, n_jobs=int(sys.argv[2])).fit(TRAIN, LABELS)
    return model.predict_proba(TEST).tobytes().hex()
print(json.dumps([bits(kind) for kind in KINDS]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "4"])
def test_another_process_gives_equal_bits_with_any_number_of_threads(threads, run_python, request):
    done = run_python(ALONE, str(request.path.parent), threads, OMP_NUM_THREADS=threads)
    assert done.returncode == 0, done.stderr[-3000:]
    here = [make(kind).fit(TRAIN, LABELS).predict_proba(TEST).tobytes().hex() for kind in KINDS]
    assert json.loads(done.stdout.splitlines()[-1]) == here


def test_the_seed_matters(fitted, kind):
    other = make(kind, random_state=1).fit(TRAIN, LABELS)
    assert np.abs(other.predict_proba(TEST) - fitted.predict_proba(TEST)).max() > 1e-4


def test_without_a_seed_two_fits_differ():
    models = [make("dilated", random_state=None, epochs=1).fit(TRAIN, LABELS) for _ in range(2)]
    assert models[0].predict_proba(TEST).tobytes() != models[1].predict_proba(TEST).tobytes()


# -- order, names, units, padding ------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["reversed", "sorted by class"])
def test_the_order_of_training_cases_changes_nothing(fitted, kind, by):
    order = np.arange(len(LABELS))[::-1] if by == "reversed" else np.argsort(LABELS, kind="stable")
    model = make(kind).fit([TRAIN[row] for row in order], LABELS[order])
    assert_close(model.predict_proba(TEST), fitted.predict_proba(TEST))


def test_a_case_alone_gets_what_it_gets_among_others(fitted):
    together = fitted.predict_proba(ragged(TEST))
    assert_close(np.concatenate([fitted.predict_proba([case]) for case in ragged(TEST)]), together)
    assert_close(fitted.predict_proba(ragged(TEST)[::-1])[::-1], together)


def padded(cases: list[np.ndarray]) -> np.ndarray:
    return Panel([np.pad(case, ((0, 0), (0, 5)), constant_values=np.nan) for case in cases]).to_array()


def test_missing_points_at_the_end_change_nothing(fitted, kind):
    assert_close(fitted.predict_proba(padded(ragged(TEST))), fitted.predict_proba(ragged(TEST)))
    models = [make(kind).fit(X, LABELS) for X in (padded(ragged(TRAIN)), ragged(TRAIN))]
    assert_close(*[model.predict_proba(TEST) for model in models])
    assert models[0].length_range_ == models[1].length_range_ == (18, 24)


@pytest.mark.parametrize("scale", [np.array([[4.0], [0.125]]), np.array([[1e3], [0.37]])], ids=["2^k", "any"])
def test_units_of_channels_change_nothing(fitted, kind, scale):
    shift = np.array([[-20.0], [3.0]])
    model = make(kind).fit([scale * case + shift for case in TRAIN], LABELS)
    # Scaled anew the series differ in the last bits of float64, the networks' inputs then in some of float32.
    assert_close(
        model.predict_proba([scale * case + shift for case in TEST]), fitted.predict_proba(TEST), 1e-5
    )


NAMES = {
    "text, turned around": ("zero", "one", "a half"),
    "whole numbers": (7, -3, 4),
    "objects": np.array(["x", "y", "z"], dtype=object),
}


@pytest.mark.parametrize("names", NAMES)
def test_names_of_classes_change_nothing_but_names(fitted, kind, names):
    new = np.asarray(NAMES[names])
    renamed = new[np.searchsorted(fitted.classes_, LABELS)]
    model = make(kind).fit(TRAIN, renamed)
    assert model.classes_.tolist() == sorted(new.tolist())
    columns = np.searchsorted(model.classes_, new)
    assert_close(model.predict_proba(TEST)[:, columns], fitted.predict_proba(TEST))
    assert model.predict(TEST).dtype == renamed.dtype
    assert (
        model.predict(TEST).tolist() == new[np.searchsorted(fitted.classes_, fitted.predict(TEST))].tolist()
    )
    shapes = [model.shapes_["class"].to_list(), fitted.shapes_["class"].to_list()]
    assert shapes[0] == [new.tolist()[fitted.classes_.tolist().index(name)] for name in shapes[1]]
    logits, wanted = (each.explain(TEST).logits for each in (model, fitted))
    assert_close(logits[:, columns], wanted)


@pytest.mark.parametrize("dtype", ["<U5", "i8", "i2", "u1", "bool", "object"])
def test_predictions_have_the_type_of_the_labels(dtype, tmp_path):
    labels = np.where(LABELS == "up", "1", "0") if dtype == "object" else np.where(LABELS == "up", 1, 0)
    labels = labels.astype(dtype)
    model = make("dilated", network_weight=0.0).fit(TRAIN, labels)
    loaded = seqattn.load(model.save(tmp_path))
    for each in (model, loaded):
        assert each.classes_.dtype == labels.dtype
        assert each.predict(TEST).dtype == labels.dtype
        assert set(each.predict(TEST).tolist()) <= set(labels.tolist())


def test_labels_in_a_column_are_taken_with_a_warning(fitted, kind):
    from sklearn.exceptions import DataConversionWarning

    with pytest.warns(DataConversionWarning, match="column-vector y"):
        model = make(kind).fit(TRAIN, LABELS[:, None])
    assert model.predict_proba(TEST).tobytes() == fitted.predict_proba(TEST).tobytes()


def test_a_case_without_values_does_not_disturb_the_others(fitted, kind):
    nothing = np.full((2, 9), np.nan)
    with pytest.warns(SeqattnWarning, match=r"1 case\(s\) without any value, the first is case 0"):
        found = fitted.predict_proba([nothing, *TEST])
    assert_close(found[1:], fitted.predict_proba(TEST))
    assert_close(found[0], np.full(3, 1 / 3))
    with pytest.warns(SeqattnWarning, match=r"1 training case\(s\) without any value, the first is case 24"):
        model = make(kind).fit([*TRAIN, nothing], [*LABELS, "up"])
    assert_close(model.predict_proba(TEST), fitted.predict_proba(TEST))
