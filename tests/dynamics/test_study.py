"""The study as an estimator: parameters, seeds, records, files, and what it refuses."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from seqattn.dynamics import ScanAndSnapStudy, sweep, syn, syn_medium, syn_small
from seqattn.dynamics.recorder import OF_CLASSES, OF_RUNS, QUANTITIES, record_times
from seqattn.errors import DataError, ParameterError, SeqattnWarning
from seqattn.train.artifact import load_artifact

QUICK = {"n_steps": 8, "n_records": 5, "n_snapshots": 3}


def fitted(**settings):
    return ScanAndSnapStudy(**{**QUICK, **settings}).fit(syn_medium(1))


def test_it_has_the_manners_of_an_estimator():
    study = fitted(lr_y=[1.0, 2.0], n_seeds=2)
    copied = clone(study)
    assert copied.get_params() == study.get_params()
    for use in (lambda: copied.score(), lambda: copied.to_parquet("x"), lambda: copied.save("x")):
        with pytest.raises(NotFittedError):
            use()
    torch.testing.assert_close(copied.fit(syn_medium(1)).parameters_.Z, study.parameters_.Z, rtol=0, atol=0)
    other = clone(study).set_params(random_state=5).fit(syn_medium(1))
    assert (other.parameters_.Z - study.parameters_.Z).abs().max() > 0
    assert pickle.loads(pickle.dumps(study)).score() == study.score()


def test_the_score_is_the_mean_log_probability_of_the_next_token():
    study = fitted(n_seeds=3)
    expected = -study.result_.array("loss")[:, -1].mean()
    assert study.score() == pytest.approx(expected, rel=1e-12)
    assert study.score(syn_medium(1)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(DataError, match="queries, tokens, outputs"):
        study.score(syn_medium(3))


def test_no_global_random_state_is_touched_and_torch_keeps_its_defaults():
    before = (torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled())
    fitted(init="uniform")
    assert (torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled()) == before


# -- records ---------------------------------------------------------------------------------------------------


def test_records_are_what_they_are_called():
    classes = syn_medium(3)
    study = ScanAndSnapStudy(trainer="batch", record=QUANTITIES, lr_y=3.0, **QUICK).fit(classes)
    result, Z = study.result_, study.parameters_.Z[0].numpy()
    odds = classes.P * np.exp(Z[classes.query])
    c = odds / odds.sum(1, keepdims=True)
    f = c / np.linalg.norm(c, axis=1, keepdims=True)
    logits = f @ study.parameters_.Y[0].numpy()
    alpha = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = np.arange(len(classes))
    right = alpha[rows, classes.label]
    others = np.where(np.arange(classes.n_outputs) == classes.label[:, None], -np.inf, logits)
    own = [c[k, classes.owner == k] / c[k, classes.owner == k].sum() for k in rows]
    expected = {
        "loss": -np.log(right).mean(),
        "one_minus_alpha": 1 - right,
        "margin": logits[rows, classes.label] - others.max(1),
        "common_mass": c[:, :10].sum(1),
        "entropy": -np.where(c > 0, c * np.log(np.where(c > 0, c, 1)), 0).sum(1),
        "entropy_distinct": [-(p * np.log(p)).sum() for p in own],
        "top_token": c.argmax(1),
        "z": Z,
        "c": c,
        "f2": f**2,
        "chi": np.exp(2 * Z[classes.query]),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(result.array(name)[0, -1], values, rtol=1e-9, atol=1e-12, err_msg=name)
    weakest = np.flatnonzero(classes.owner == 4)[0]
    strongest = np.flatnonzero(classes.owner == 4)[-1]
    ratio = result.array("ratio")[0, -1, 4, strongest]
    assert ratio == pytest.approx(f[4, strongest] ** 2 / f[4, weakest] ** 2 - 1)


def test_speed_is_the_length_of_the_velocity():
    classes = syn_medium(1)
    study = ScanAndSnapStudy(trainer="flow", n_steps=40, n_records=120, n_snapshots=120, rtol=1e-10).fit(
        classes
    )
    z, t = study.result_.array("z")[0, :, 0], study.result_.times
    middle = slice(40, 110)
    ahead = np.linalg.norm(np.gradient(z, t, axis=0), axis=1)[middle]
    np.testing.assert_allclose(study.result_.array("speed")[0][middle], ahead, rtol=1e-2)


def test_the_speed_of_noisy_runs_is_that_of_the_window_before():
    classes, rates = syn_medium(1), {"lr_y": 0.1, "lr_z": 0.1, "n_steps": 400}
    noisy = ScanAndSnapStudy(seq_len=np.inf, batch_size=4096, n_records=60, **rates).fit(classes).result_
    middle = noisy.times[-20:] * 10**-0.05
    flow = ScanAndSnapStudy(trainer="flow", record_at=middle, **rates).fit(classes).result_
    np.testing.assert_allclose(noisy.array("speed")[0][-20:], flow.array("speed")[0][1:-1], rtol=0.1)


def test_the_long_table_holds_every_record_once():
    study = fitted(lr_y=[1.0, 3.0], n_seeds=2, record=("loss", "entropy", "z", "c", "ratio"))
    table, result = study.result_.table, study.result_
    assert table.columns == [
        "run",
        "seed",
        "lr_y",
        "lr_z",
        "step",
        "time",
        "query",
        "klass",
        "token",
        "quantity",
        "value",
    ]
    assert not table.select("run", "time", "query", "klass", "token", "quantity").is_duplicated().any()
    row = table.filter(
        (pl.col("quantity") == "c") & (pl.col("run") == 3) & (pl.col("klass") == 1) & (pl.col("token") == 25)
    ).sort("time")
    np.testing.assert_array_equal(row["value"], result.array("c")[3, :, 1, 25])
    assert row["lr_y"].unique().to_list() == [3.0]
    assert row["seed"].unique().to_list() == [1]
    assert row["query"].unique().to_list() == [0]
    assert len(table.filter(pl.col("quantity") == "loss")) == 4 * len(result.times)
    # Tokens that a class does not have are left out.
    assert len(table.filter(pl.col("quantity") == "c")) == 4 * len(result.snapshot_times) * 2 * 20
    assert len(result.final) == 4 * 2


def test_records_go_to_parquet_with_what_repeats_them(tmp_path):
    study = fitted()
    path = study.to_parquet(tmp_path / "sub" / "study.parquet")
    assert pl.read_parquet(path).equals(study.result_.table)
    metadata = json.loads(pl.read_parquet_metadata(path)["seqattn"])
    assert metadata["seeds"] == [0]
    assert metadata["data"] == study.classes_.digest()
    assert metadata["params"]["n_steps"] == "8"
    assert "seqattn" in metadata["versions"]
    assert [p.name for p in path.parent.iterdir()] == ["study.parquet"]


def test_a_saved_study_is_the_same_study(tmp_path):
    study = fitted(lr_y=[1.0, 3.0], n_seeds=2)
    opened = ScanAndSnapStudy._from_artifact(load_artifact(study.save(tmp_path / "study.safetensors")))
    assert opened.get_params() == study.get_params()
    assert opened.result_.table.equals(study.result_.table)
    assert opened.score() == study.score()
    assert opened.classes_.digest() == study.classes_.digest()
    assert (
        opened.save(tmp_path / "again.safetensors").read_bytes()
        == (tmp_path / "study.safetensors").read_bytes()
    )


@pytest.mark.parametrize(
    ("record_at", "whole", "expected"),
    [
        ("linear", True, [0, 25, 50, 75, 100]),
        ([3, 10], True, [0, 3, 10, 100]),
        ([0.5], False, [0, 0.5, 100]),
    ],
)
def test_records_fall_where_they_are_asked_for(record_at, whole, expected):
    assert record_times(record_at, 100, 5, whole).tolist() == expected


def test_quantities_can_be_left_out():
    study = fitted(record=("loss",))
    assert list(study.result_.arrays) == ["loss"]
    with pytest.raises(ParameterError, match="Recorded: loss"):
        study.result_.array("entropy")
    assert set(OF_RUNS) | set(OF_CLASSES) < set(QUANTITIES)


# -- theory beside the run -------------------------------------------------------------------------------------


def test_theory_says_its_layer_and_whether_it_holds():
    study = ScanAndSnapStudy(trainer="flow", n_steps=50, n_records=20).fit(syn_small())
    with pytest.warns(SeqattnWarning, match="weak correlation") as caught:
        table = study.result_.theory
    assert len(caught) == 1
    assert study.result_.theory is table
    exact = table.filter((pl.col("layer") == "exact") & (pl.col("quantity") == "entropy_distinct"))
    np.testing.assert_allclose(exact["value"], study.result_.array("entropy_distinct")[0, :, 0], atol=1e-6)
    assert exact["is_valid"].all()
    assert not table.filter(pl.col("layer") == "paper")["is_valid"].any()
    assert "weak correlation" in study.result_.assumption_report.failed


def test_there_is_no_theory_of_adam_and_momentum_has_effective_time():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeqattnWarning)
        assert fitted(optimizer="adam").result_.theory.is_empty()
        slow = fitted(trainer="batch", momentum=0.9, record_at=[8]).result_.theory
        fast = fitted(trainer="batch", n_steps=80, record_at=[80]).result_.theory
    columns = ["layer", "quantity", "klass"]
    last = [
        table.sort("time").group_by(columns, maintain_order=True).last().sort(columns)
        for table in (slow, fast)
    ]
    np.testing.assert_allclose(last[0]["value"], last[1]["value"], rtol=1e-6)
    assert not slow["is_valid"].any()


# -- sweeps ----------------------------------------------------------------------------------------------------


def test_a_sweep_runs_every_pair_with_every_seed():
    study = ScanAndSnapStudy(n_steps=4, record_at=[4])
    result = sweep(study, {"lr_z": [0.5, 2.0], "ratio": [1.0, 10.0]}, 3, syn_medium(1))
    assert result.runs.lr_z.tolist() == [0.5] * 6 + [2.0] * 6
    assert result.runs.lr_y.tolist() == [0.5] * 3 + [5.0] * 3 + [2.0] * 3 + [20.0] * 3
    alone = ScanAndSnapStudy(n_steps=4, record_at=[4], lr_y=20.0, lr_z=2.0, random_state=1).fit(syn_medium(1))
    np.testing.assert_allclose(result.array("c")[10], alone.result_.array("c")[0], rtol=1e-10)
    assert not hasattr(study, "result_")
    with pytest.raises(ParameterError, match="momentum"):
        sweep(study, {"momentum": [0.1]}, 1, syn_medium(1))


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_y": -1.0}, "lr_y holds -1.0"),
        ({"lr_z": float("nan")}, "lr_z holds nan"),
        ({"lr_y": [1.0, 2.0], "lr_z": [1.0, 2.0, 3.0]}, "different lengths"),
        ({"lr_y": 1.0, "ratio": 2.0}, "Both lr_y and ratio"),
        ({"trainer": "sgdd"}, "Did you mean 'sgd'"),
        ({"optimizer": "rmsprop"}, "optimizer"),
        ({"norm": "l1"}, "norm"),
        ({"model": "deep"}, "model"),
        ({"momentum": 1.0}, "momentum"),
        ({"trainer": "flow", "momentum": 0.9}, "flow has no momentum"),
        ({"n_steps": 0}, "n_steps"),
        ({"n_steps": 2.5}, "n_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"seq_len": 1}, "seq_len"),
        ({"n_seeds": 0}, "n_seeds"),
        ({"random_state": -1}, "random_state"),
        ({"init": "normal"}, "init"),
        ({"init": (np.zeros((2, 2)), np.zeros((1, 34)))}, "start of Y"),
        ({"record": ("los",)}, "Did you mean 'loss'"),
        ({"record_at": [9]}, "outside 0 to n_steps=8"),
        ({"record_at": "logarithmic"}, "record_at"),
        ({"dt": -1.0}, "dt"),
        ({"max_bytes": 1e4}, "max_bytes=10000"),
        ({"model": "standard", "trainer": "flow"}, "standard"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, said):
    with pytest.raises(ParameterError, match=said):
        fitted(**settings)


def test_what_is_no_data_is_a_type_error():
    for X in (None, 3, object()):
        with pytest.raises(TypeError):
            ScanAndSnapStudy(**QUICK).fit(X)


def test_memory_is_told_and_kept():
    study = ScanAndSnapStudy(lr_y=np.geomspace(0.1, 10, 16).tolist(), n_seeds=4, **QUICK)
    told = study.estimate(syn_medium(3))
    study.fit(syn_medium(3))
    assert study.budget_ == told
    assert sum(values.nbytes for values in study.result_.arrays.values()) == told.records
    assert study.result_.table.height <= told.rows
    assert study.result_.table.estimated_size() <= told.table * 1.3
    with pytest.raises(ParameterError, match="most of it is the table of records"):
        study.set_params(n_records=400, n_steps=400, n_snapshots=400, max_bytes=1e8).estimate(syn_medium(3))


def test_a_run_that_diverges_is_marked_and_the_others_go_on():
    with pytest.warns(SeqattnWarning, match="1 of 2 runs diverged"):
        study = fitted(precision="float32", lr_y=[1.0, 1e39])
    assert study.result_.is_diverged.tolist() == [False, True]
    assert np.isfinite(study.result_.array("loss")[0]).all()
    assert np.isfinite(study.result_.array("loss")[1, 0])


def test_classes_without_common_or_distinct_tokens_run():
    for classes in (syn(n_common=0), syn(n_distinct=0)):
        result = ScanAndSnapStudy(**QUICK).fit(classes).result_
        assert np.isfinite(result.array("loss")).all()
    assert np.isnan(result.array("entropy_distinct")).all()
