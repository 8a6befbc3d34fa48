"""What a cell tells of its run: the time of a fit that was cut, the epoch that is best on test data, no dev part."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from seqattn.classify import task as classify
from seqattn.classify.estimator import VSFormerClassifier
from seqattn.data.panels import Panel
from seqattn.reproduce.cell import _figures
from seqattn.train.folder import RunFolder
from seqattn.train.history import History

PAUSE = 0.05


class Model:
    """Learns in epochs and saves a file; says which data it was given."""

    def __init__(self) -> None:
        self.history_ = History()
        self.seen: dict[str, Any] = {}

    def save(self, path: Path) -> None:
        path.write_text("saved")


def task(before: int, values: tuple[float | None, ...]) -> ModuleType:
    """A task whose fit goes on after some epochs, and takes a known time for the others."""

    def fit(model: Model, train: Any, valid: Any, *, checkpoint: Path, observers: Any, **more: Any) -> None:
        model.seen = {"train": train, "valid": valid, **more}
        for number, value in enumerate(values):
            told = {} if value is None else {"watched_accuracy": value}
            record = {"epoch": number + 1, "train_loss": 0.0, "valid_loss": None, "seconds": 100.0, **told}
            model.history_.records.append(record)
            model.fit_report_ = {} if value is None else {"watched_seconds": 14.0}
            if number >= before:
                end = time.perf_counter() + PAUSE
                while time.perf_counter() < end:
                    pass
                for observer in observers:
                    if type(observer).__name__ == "_Clock":
                        observer.epoch(record)
        for observer in observers:
            if type(observer).__name__ == "_Clock":
                observer.end(model.history_)

    module = ModuleType("task")
    module.fit, module.evaluate = fit, lambda model, X: {"accuracy": 0.5}
    module.cases = lambda model, X: ([1.0], [1])
    return module


def figures(tmp_path: Path, before: int, values: tuple[float | None, ...], **order: Any) -> tuple[Any, Model]:
    model, parts = Model(), {"train": "train", "test": "test"}
    given = {"evaluation": {}, **order}
    return _figures(task(before, values), model, parts, RunFolder(tmp_path), given), model


WATCHED = {"accuracy_best_epoch": {"key": "watched_accuracy", "higher_is_better": True}}


def test_the_best_epoch_on_test_data_is_told_where_it_was_asked_for(tmp_path):
    found, model = figures(tmp_path, 0, (0.3, 0.8, 0.6), watched=WATCHED)
    assert found["metrics"]["accuracy_best_epoch"] == 0.8
    assert found["metrics"]["accuracy"] == 0.5
    assert model.seen == {"train": "train", "valid": None, "watch": "test"}
    least = {"m": {"key": "watched_accuracy", "higher_is_better": False}}
    assert figures(tmp_path, 0, (0.3, 0.8, 0.6), watched=least)[0]["metrics"]["m"] == 0.3


@pytest.mark.parametrize("watched", [{}, WATCHED])
def test_without_records_of_it_there_is_no_best_epoch(tmp_path, watched):
    found, model = figures(tmp_path, 0, (None, None), watched=watched)
    assert "accuracy_best_epoch" not in found["metrics"]
    assert ("watch" in model.seen) == bool(watched)


def test_test_data_are_not_handed_to_the_fit_unless_asked_for(tmp_path):
    assert figures(tmp_path, 0, (None,))[1].seen == {"train": "train", "valid": None}


def test_the_epochs_before_an_interruption_count_and_watching_does_not(tmp_path):
    found, _ = figures(tmp_path, 2, (None, None, None))
    assert 200 + PAUSE <= found["metrics"]["fit_seconds"] < 201
    found, _ = figures(tmp_path, 1, (0.1, 0.2, 0.3), watched=WATCHED)
    assert 100 + 2 * PAUSE - 14 <= found["metrics"]["fit_seconds"] < 100 + 2 * PAUSE - 14 + 1
    assert np.isclose(found["seconds"], found["metrics"]["fit_seconds"], atol=0.1)
    assert 0 <= found["metrics"]["predict_seconds"] < 0.1


QUICK = {
    "shape_tokens": 8,
    "value_tokens": 8,
    "readout_shapes": 64,
    "d_model": 8,
    "n_heads": 2,
    "device": "cpu",
}


def noisy(seed: int, n_cases: int) -> Panel:
    rng = np.random.default_rng(seed)
    codes = np.arange(n_cases) % 2
    return Panel(0.5 * codes[:, None, None] + rng.normal(size=(n_cases, 2, 12)), codes)


class Stop(Exception):
    pass


class Cut:
    """Notes the records of all members, and ends the process' work at one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.records = at, []

    def begin(self, settings: Any) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        if len(self.records) + 1 == self.at:
            raise Stop
        self.records.append(record)

    def end(self, history: History) -> None:
        pass


def test_a_cell_that_goes_on_tells_what_an_uninterrupted_one_does(tmp_path):
    parts, order = {"train": noisy(0, 16), "test": noisy(1, 40)}, {"evaluation": {}, "watched": WATCHED}

    def model() -> VSFormerClassifier:
        return VSFormerClassifier(**QUICK, epochs=4, n_members=2, learning_rate=0.05, random_state=0)

    straight = _figures(classify, model(), parts, RunFolder(tmp_path / "straight"), order)
    folder, cut = RunFolder(tmp_path / "cut"), Cut(7)
    with pytest.raises(Stop):
        folder.fit(classify, model(), parts["train"], None, [cut], parts["test"])
    began = time.perf_counter()
    resumed = _figures(classify, model(), parts, folder, order)
    wall = time.perf_counter() - began
    assert resumed["cases"] == straight["cases"]
    name = "accuracy_best_epoch"
    assert resumed["metrics"][name] == straight["metrics"][name]
    # The epochs before the cut, of both members, count with their own seconds.
    before = sum(record["seconds"] for record in cut.records)
    assert before < resumed["metrics"]["fit_seconds"] < before + wall
    folder.finish(resumed)
    assert not [path.name for path in folder.path.iterdir() if "checkpoint" in path.name]


def test_a_fit_that_was_finished_before_counts_with_all_its_members(tmp_path):
    parts, folder, cut = {"train": noisy(0, 16), "test": noisy(1, 4)}, RunFolder(tmp_path), Cut(0)
    model = VSFormerClassifier(**QUICK, epochs=4, n_members=3, random_state=0)
    folder.fit(classify, model, parts["train"], None, [cut])
    assert len(cut.records) == 12
    began = time.perf_counter()
    found = _figures(classify, model, parts, folder, {"evaluation": {}})
    wall, before = time.perf_counter() - began, sum(record["seconds"] for record in cut.records)
    assert before < found["metrics"]["fit_seconds"] < before + wall
