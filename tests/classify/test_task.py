"""What the command line and the tuner are told of classification, with a quick classifier in the main one's place."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from small_series import draw, quick, write  # noqa: F401

import seqattn
from seqattn.classify import task
from seqattn.classify.metrics import METRICS, metrics
from seqattn.cli import cli
from seqattn.data.catalog import load_dataset
from seqattn.errors import DataError, ParameterError
from seqattn.train.folder import Afterwards

SIZES = {"TRAIN": 30, "TEST": 21}


@pytest.fixture(autouse=True)
def main_model(quick):  # noqa: F811
    return quick


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("data") / "moves"
    for seed, (split, size) in enumerate(SIZES.items()):
        write(draw(seed, size), place / f"moves_{split}.ts")
    return place


@pytest.fixture
def parts(folder):
    return task.splits(folder, task.SPLITS)


@pytest.fixture
def fitted(parts):
    return task.fit(task.build({}, seed=0), parts["train"])


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


# -- data ------------------------------------------------------------------------------------------------------


def test_a_set_without_development_data_gives_training_and_test_data(folder, parts):
    assert {role: len(part) for role, part in parts.items()} == {"train": 30, "test": 21}
    assert parts["train"].digest() == draw(0, 30).digest()
    assert list(task.splits(folder)) == ["train"]
    assert list(task.splits("BasicMotions", task.SPLITS)) == ["train", "test"]
    assert task.load_split("BasicMotions", "test").digest() == load_dataset("BasicMotions", "test").digest()


def test_development_data_are_used_where_there_are_some(tmp_path):
    for seed, split in enumerate(("train", "valid", "test")):
        write(draw(seed, 9), tmp_path / f"{split}.ts")
    parts = task.splits(tmp_path)
    assert list(parts) == ["train", "dev"]
    assert parts["dev"].digest() == draw(1, 9).digest()


def test_of_a_single_file_test_cases_are_cut_only_if_asked_for(tmp_path):
    path = write(draw(0, 30), tmp_path / "all.ts")
    assert {role: len(part) for role, part in task.splits(path).items()} == {"train": 30}
    cut = task.splits(path, task.SPLITS, share=0.2, seed=1)
    assert {role: len(part) for role, part in cut.items()} == {"train": 24, "test": 6}
    assert sorted(cut["test"].labels.tolist()) == ["down"] * 2 + ["flat"] * 2 + ["up"] * 2
    assert cut["test"].digest() == task.splits(path, task.SPLITS, share=0.2, seed=1)["test"].digest()
    assert cut["test"].digest() != task.splits(path, task.SPLITS, share=0.2, seed=2)["test"].digest()
    assert {role: len(part) for role, part in task.splits(path, task.SPLITS, share=None).items()} == {
        "train": 30
    }


def test_a_folder_without_test_data_is_refused_when_they_are_asked_for(tmp_path):
    write(draw(0, 9), tmp_path / "train.ts")
    with pytest.raises(DataError, match="has no file for the split 'test'"):
        task.splits(tmp_path, task.SPLITS)


def test_there_are_no_reading_options(folder, fitted):
    with pytest.raises(ParameterError, match="no reading options. Leave 'window' out"):
        task.load_split(folder, "train", window="max")
    assert task.reading(fitted) == {}
    assert task.load_new(fitted, folder, "test").digest() == draw(1, 21).digest()


def test_data_without_labels_cannot_be_learned_from_or_judged(fitted):
    bare = seqattn.data.panels.Panel(draw(0, 6).series)
    for use in (lambda: task.fit(task.build({}), bare), lambda: task.evaluate(fitted, bare)):
        with pytest.raises(DataError, match="have no labels"):
            use()
    assert task.describe(bare).startswith("6 cases, 2 channels, ")
    assert sum(len(frame) for frame in task.predict(fitted, bare)) == 6


def test_describe_counts():
    assert (
        task.describe(load_dataset("BasicMotions", "train")) == "40 cases, 6 channels, 100 points, 4 classes"
    )


# -- models ----------------------------------------------------------------------------------------------------


def test_build_passes_settings_and_seed_on_and_takes_lists_for_tuples():
    model = task.build({"sharpness": 2, "parts": [1, 2, 4], "reach": None}, seed=3)
    assert (model.sharpness, model.parts, model.reach, model.random_state) == (2.0, (1, 2, 4), None, 3)
    assert isinstance(model.sharpness, float)
    assert task.settings(model) == {"sharpness": 2.0, "parts": (1, 2, 4), "reach": None}
    assert task.build(task.settings(model)).get_params() == {**model.get_params(), "random_state": None}


@pytest.mark.parametrize(
    ("settings", "model", "text"),
    [
        ({"sharpnes": 2}, None, r"'sharpnes' is not a setting of 'vsformer'\. .* Did you mean 'sharpness'"),
        ({"sharpness": "high"}, None, r"sharpness='high' is of the wrong kind"),
        ({"random_state": 1}, None, "use --seed instead"),
        ({}, "vsformr", r"no model 'vsformr'\. .* Did you mean 'vsformer'"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, model, text):
    with pytest.raises(ParameterError, match=text):
        task.build(settings, model)


def test_a_model_of_epochs_is_told_of_development_data_checkpoint_and_observers(parts, tmp_path):
    class Epochs:
        validation = 0.2

        def fit(self, X, y, *, validation=None, checkpoint=None, observers=(), watch=None):
            self.told = (len(X), y.tolist(), validation, checkpoint, observers, watch)
            return self

    labels, dev, observer = parts["train"].labels.tolist(), parts["test"], Afterwards(lambda: None)
    model = task.fit(Epochs(), parts["train"], dev, checkpoint=tmp_path, observers=[observer], watch=dev)
    assert model.told == (30, labels, dev, tmp_path, [observer], dev)
    model.validation = None
    assert task.fit(model, parts["train"], dev).told == (30, labels, None, None, (), None)


# -- figures ---------------------------------------------------------------------------------------------------


def test_evaluate_gives_the_metrics_of_the_probabilities(parts, fitted):
    test = parts["test"]
    figures = task.evaluate(fitted, test)
    assert figures == metrics(test.labels, fitted.classes_, fitted.predict_proba(test))
    assert set(figures) == set(METRICS)
    assert figures["accuracy"] == fitted.score(test, test.labels)
    with pytest.raises(ParameterError, match="'trian' is not an option of evaluate"):
        task.evaluate(fitted, test, trian=parts["train"])


def test_evaluate_has_baselines_where_training_data_are_given(folder, parts, fitted):
    pytest.importorskip("seqattn.classify.baselines")
    assert {key: X.digest() for key, X in task.beside(folder, "test").items()} == {
        "train": parts["train"].digest()
    }
    assert task.beside(folder, "train") == task.beside(folder / "moves_TEST.ts", "test") == {}
    figures = task.evaluate(fitted, parts["test"], **task.beside(folder, "test"))
    assert figures["baselines"]["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert figures["baselines"]["majority"]["log_loss"] == pytest.approx(math.log(3))
    headers, rows = task.summary_rows(figures, "mine")
    assert [row[0] for row in rows] == ["mine", "majority", "nearest_neighbour"]
    assert {len(row) for row in rows} == {len(headers)}
    assert rows[0][headers.index("log loss")] == figures["log_loss"]


def test_the_objective_is_accuracy_less_a_tenth_of_the_log_loss(parts, fitted):
    test = parts["test"]
    figures = task.evaluate(fitted, test)
    assert task.objective(fitted, test) == pytest.approx(figures["accuracy"] - 0.1 * figures["log_loss"])
    halves = [task.tally(fitted, test.select(range(*ends))) for ends in ((0, 8), (8, 21))]
    assert task.objective_of(halves) == pytest.approx(task.objective(fitted, test))


def test_a_certain_error_costs_a_bounded_amount(parts, fitted):
    fitted.sharpness = 1e6
    tally = task.tally(fitted, parts["test"])
    errors = tally["cases"] - tally["right"]
    assert errors > 0
    assert tally["log_loss"] == pytest.approx(-errors * math.log(1e-6), rel=1e-6)


def test_a_label_that_was_not_learned_is_an_error(parts, fitted):
    strange = seqattn.data.panels.Panel(parts["test"].series, ["sideways"] * 21)
    tally = task.tally(fitted, strange)
    assert (tally["right"], tally["log_loss"]) == (0, pytest.approx(-21 * math.log(1e-6)))
    assert task.cases(fitted, strange) == ([0.0] * 21, [1] * 21)


def test_cases_add_up_to_the_accuracy(parts, fitted):
    totals, counts = task.cases(fitted, parts["test"])
    assert sum(totals) / sum(counts) == task.evaluate(fitted, parts["test"])["accuracy"]


def test_predictions_are_one_row_per_case_with_a_column_per_class(parts, fitted, monkeypatch):
    monkeypatch.setattr(task, "_BLOCK", 8)
    frames = list(task.predict(fitted, parts["test"]))
    assert [len(frame) for frame in frames] == [8, 8, 5]
    frame = pl.concat(frames)
    assert frame.columns == ["case", "predicted", "p_down", "p_flat", "p_up"]
    assert frame["case"].to_list() == list(range(21))
    assert frame["predicted"].to_list() == fitted.predict(parts["test"]).tolist()
    np.testing.assert_allclose(frame.select("^p_.*$").to_numpy(), fitted.predict_proba(parts["test"]))


def test_held_out_figures_are_those_of_development_data_or_the_model_s_own(parts, fitted):
    assert task.held_out(fitted, None) is None
    assert task.held_out(fitted, parts["test"]) == task.evaluate(fitted, parts["test"])
    fitted.validation_ = {"accuracy": 0.5, "n_cases": 4, "protocol": "4 cases that were held out"}
    assert task.held_out(fitted, None) == fitted.validation_
    assert "4 cases that were held out" in task.caption(fitted.validation_)


def test_a_picture_shows_which_classes_are_taken_for_which(parts, fitted, tmp_path):
    (path,) = task.plots(fitted, parts["test"], tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert task.plots(fitted, seqattn.data.panels.Panel(parts["test"].series), tmp_path) == []


# -- the command line ------------------------------------------------------------------------------------------


def test_fit_predict_and_evaluate_through_the_command_line(folder, parts, fitted, tmp_path):
    pytest.importorskip("seqattn.classify.baselines")
    told = run("fit", "classify", "--data", folder, "--output", tmp_path / "run", "--json")
    assert json.loads(told.stdout)["validation"] is None
    assert "train: 30 cases, 2 channels" in told.stderr
    figures = json.loads(run("evaluate", tmp_path / "run", "--json").stdout)
    expected = task.evaluate(fitted, parts["test"], train=parts["train"])
    assert figures == json.loads(json.dumps(expected))
    text = run("evaluate", tmp_path / "run", "--output", tmp_path / "judged").stdout
    assert "nearest_neighbour" in text
    assert {path.name for path in (tmp_path / "judged").iterdir()} == {
        "confusion.png",
        "evaluation.csv",
        "evaluation.json",
    }
    run("predict", tmp_path / "run", "--data", folder / "moves_TEST.ts", "--output", tmp_path / "p.csv")
    assert pl.read_csv(tmp_path / "p.csv")["predicted"].to_list() == fitted.predict(parts["test"]).tolist()


def test_the_embedded_set_is_the_default(tmp_path):
    told = run("fit", "classify", "--output", tmp_path / "run")
    assert "No --data: using 'BasicMotions'" in told.stderr
    assert "40 cases, 6 channels, 100 points, 4 classes" in told.stderr


def test_data_sets_of_both_families_are_listed_and_shown(monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", "")
    lines = run("datasets", "list").stdout.splitlines()
    row = next(line for line in lines if line.startswith("BasicMotions ")).split()
    assert row[1:6] == ["4", "40", "-", "40", "embedded"]
    text = run("datasets", "show", "JapaneseVowels").stdout
    for word in ("channels: 12", "length: 7, 29", "cases: 270", "seqattn datasets get JapaneseVowels"):
        assert word in text


def test_a_run_of_several_networks_is_replaced_and_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    monkeypatch.undo()
    few = {"n_members": 2, "readout_shapes": 64, "shape_tokens": 8, "d_model": 8}
    settings = [text for name, value in few.items() for text in ("--set", f"{name}={value}")]
    command = ["fit", "classify", "--data", folder, *settings, "--output", tmp_path / "run"]
    for epochs in (1, 2):
        run(*command, "--set", f"epochs={epochs}", "--overwrite")
        assert not list((tmp_path / "run").glob("checkpoint*"))
    assert len(seqattn.load(tmp_path / "run").history_.records) == 2
