"""Without development data a trial is cross-validated on training data, can be interrupted, and sees no test data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_series import VSFormerClassifier, draw, quick, write  # noqa: F401

import seqattn
from seqattn.classify import task
from seqattn.cli import cli
from seqattn.data.catalog import resource
from seqattn.data.panels import Panel
from seqattn.train.config import Run
from seqattn.train.search import Plan, starting_points
from seqattn.train.space import Space, is_inside
from seqattn.tune import tune

SPACE = """
[space]
sharpness = { type = "float", low = 0.01, high = 30.0, log = true }
parts = { type = "choice", choices = [[1, 2], [1, 2, 4]] }
reach = { type = "choice", choices = ["none", 0.5, 4.0] }
[pruning]
startup_trials = 100
[start.defaults]
[start.wide]
parts = [1, 2, 4]
reach = 4.0
"""


@pytest.fixture(autouse=True)
def main_model(quick):  # noqa: F811
    return quick


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, (split, size) in enumerate((("TRAIN", 30), ("TEST", 21))):
        write(draw(seed, size), tmp_path / "moves" / f"moves_{split}.ts")
    return tmp_path / "moves"


@pytest.fixture
def plan(data: Path, tmp_path: Path) -> Plan:
    (tmp_path / "space.toml").write_text(SPACE)
    space = Space.load(tmp_path / "space.toml")
    return Plan("classify", tmp_path / "study", data=str(data), trials=4, space=space, seed=5, quiet=True)


def cross_validated(train: Panel, seed: int, **settings: object) -> float:
    """Return the objective by the definition, fold by fold and case by case."""
    right, losses = [], []
    for learned, predicted in task.folds(train, seed):
        model = VSFormerClassifier(**settings).fit(train.select(learned))
        cases = train.select(predicted)
        for label, row in zip(cases.labels, model.predict_proba(cases), strict=True):
            right.append(model.classes_[row.argmax()] == label)
            losses.append(-np.log(max(row[model.classes_.tolist().index(label)], 1e-6)))
    return float(np.mean(right) - 0.1 * np.mean(losses))


def test_the_value_of_a_trial_is_that_of_cross_validation_on_training_data(plan):
    outcome = tune(plan)
    assert (outcome.n_trials, outcome.n_complete, outcome.dev) == (4, 4, None)
    train, test = draw(0, 30), draw(1, 21)
    for trial in outcome.trials:
        settings = {
            "sharpness": trial["sharpness"],
            "parts": tuple(json.loads(trial["parts"])),
            "reach": None if trial["reach"] == "none" else trial["reach"],
        }
        assert trial["value"] == pytest.approx(cross_validated(train, 5, **settings))
        if trial["number"] == outcome.best_trial:
            best = VSFormerClassifier(**settings).fit(train)
    assert outcome.best_value == max(trial["value"] for trial in outcome.trials)
    assert outcome.trials[0]["parts"] == "[1, 2]"
    assert (outcome.trials[1]["parts"], outcome.trials[1]["reach"]) == ("[1, 2, 4]", 4.0)
    assert outcome.trials[0]["best_epoch"] is None
    refitted = seqattn.load(outcome.output / "best")
    np.testing.assert_array_equal(refitted.predict_proba(test), best.predict_proba(test))
    assert outcome.test["accuracy"] == best.score(test, test.labels)
    assert not list((outcome.output / "trials").iterdir())


def test_test_data_decide_nothing(plan, data, tmp_path):
    first = tune(plan)
    write(Panel(draw(9, 12).series, draw(9, 12).labels[::-1]), data / "moves_TEST.ts")
    other = Plan(**{**vars(plan), "output": tmp_path / "other"})
    second = tune(other)
    kept = [[{**trial, "seconds": 0} for trial in found.trials] for found in (first, second)]
    assert kept[0] == kept[1]
    assert (first.best_params, first.best_trial) == (second.best_params, second.best_trial)
    assert first.test != second.test


def test_an_interrupted_trial_goes_on_with_its_next_fold(plan, monkeypatch):
    fits: list[int] = []
    fit = VSFormerClassifier.fit

    def interrupted(model: VSFormerClassifier, X: Panel, y: object = None) -> VSFormerClassifier:
        fits.append(len(X))
        if len(fits) == 5:
            raise KeyboardInterrupt
        return fit(model, X, y)

    monkeypatch.setattr(VSFormerClassifier, "fit", interrupted)
    alone = Plan(**{**vars(plan), "trials": 1})
    with pytest.raises(KeyboardInterrupt):
        tune(alone)
    assert (plan.output / "trials" / "0.json").exists()
    outcome = tune(alone)
    # Of 15 folds four were finished; one of them is fitted again, for its model. The last fit is on everything.
    assert fits[5:] == [24] * (15 - 3) + [30]
    assert outcome.best_value == pytest.approx(cross_validated(draw(0, 30), 5))


def test_a_trial_that_falls_behind_after_a_fold_is_pruned(plan):
    space = Space(
        rules={"sharpness": {"type": "choice", "choices": [1.0, 0.9, 1.1, 1e-6]}},
        starts={str(value): {"sharpness": value} for value in (1.0, 0.9, 1.1, 1e-6)},
        startup_trials=3,
        warmup_epochs=2,
    )
    outcome = tune(Plan(**{**vars(plan), "space": space}))
    states = [trial["state"] for trial in outcome.trials]
    assert states == ["complete"] * 3 + ["pruned"]
    assert outcome.trials[3]["epochs"] == 2


def test_failing_settings_fail_their_trial_only(plan):
    space = Space(
        rules={"sharpness": {"type": "choice", "choices": [1.0, 99.0]}},
        starts={"good": {"sharpness": 1.0}, "bad": {"sharpness": 99.0}},
    )
    outcome = tune(Plan(**{**vars(plan), "space": space, "trials": 2}))
    assert [trial["state"] for trial in outcome.trials] == ["complete", "fail"]
    assert outcome.trials[1]["reason"] == "ValueError: too sharp"


def test_the_command_writes_settings_that_fit_takes(plan, data, tmp_path):
    pytest.importorskip("seqattn.classify.baselines")
    command = ["tune", "classify", "--data", data, "--trials", 3, "--config", tmp_path / "space.toml"]
    result = CliRunner().invoke(cli, [*map(str, command), "--output", str(tmp_path / "found"), "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["n_complete"], found["dev"]) == (3, None)
    assert set(found["test"]["baselines"]) == {"majority", "nearest_neighbour"}
    assert (tmp_path / "found" / "best" / "confusion.png").exists()
    again = ["fit", "classify", "--config", tmp_path / "found" / "best.toml", "--output", tmp_path / "again"]
    assert CliRunner().invoke(cli, list(map(str, again))).exit_code == 0
    one, other = (seqattn.load(tmp_path / name) for name in ("found/best", "again"))
    assert one.get_params() == other.get_params()
    np.testing.assert_array_equal(one.centres_, other.centres_)


def test_development_data_of_a_folder_are_used_instead(plan, data):
    write(draw(7, 15), data / "moves_VALID.ts")
    outcome = tune(Plan(**{**vars(plan), "trials": 1}))
    model = VSFormerClassifier().fit(draw(0, 30))
    assert outcome.best_value == outcome.dev == pytest.approx(task.objective(model, draw(7, 15)))


def test_the_space_that_comes_with_the_package_is_that_of_the_estimator(monkeypatch, tmp_path):
    space = Space.load(resource("tuning", "classify.toml"))
    monkeypatch.undo()
    assert list(starting_points(task, Plan("classify", tmp_path, space=space))) == ["defaults", "paper"]
    usual = seqattn.VSFormerClassifier().get_params()
    assert {name: usual[name] for name, rule in space.rules.items() if not is_inside(usual[name], rule)} == {}
    paper = Run.of_options("paper", "classify", (), ()).settings
    assert {**usual, **paper} == {**usual, **space.starts["paper"]}


def test_folds_of_a_classifier_of_several_networks_leave_nothing_to_each_other(plan, monkeypatch):
    monkeypatch.undo()
    halves = np.arange(30) < 15
    folds = [
        (np.flatnonzero(halves), np.flatnonzero(~halves)),
        (np.flatnonzero(~halves), np.flatnonzero(halves)),
    ]
    monkeypatch.setattr(task, "folds", lambda X, seed: iter(folds))
    settings = {"n_members": 2, "epochs": 1, "readout_shapes": 64, "shape_tokens": 8}
    space = Space(rules={"d_model": {"type": "choice", "choices": [8, 16]}}, starts={"small": {"d_model": 8}})
    outcome = tune(Plan(**{**vars(plan), "space": space, "trials": 1, "settings": settings}))
    assert [trial["state"] for trial in outcome.trials] == ["complete"]
    assert not list((outcome.output / "trials").iterdir())
