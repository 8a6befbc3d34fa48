from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from seqattn.errors import DataError, ParameterError
from seqattn.train.config import Run
from seqattn.train.folder import Afterwards, RunFolder, make_folder, mend_lines
from seqattn.train.history import History
from seqattn.train.settings import FitSettings

RUN = Run(task="hawkes", model="sahp", data="taxi", settings={"epochs": 3})


def test_a_run_is_complete_with_its_figures(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.begin(RUN)
    folder.model.touch()
    assert folder.figures() is None
    folder.finish({"loss": float("nan"), "n": 3})
    assert RunFolder(tmp_path / "a" / "b").figures() == {"loss": None, "n": 3}


def test_the_same_run_leaves_the_folder_as_it_is(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin(RUN, {"torch": "1"})
    folder.finish({})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    RunFolder(tmp_path).begin(replace(RUN, device="cuda"), {"torch": "2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.safetensors", "figures.json"])
def test_the_work_of_another_run_is_kept_unless_it_may_be_replaced(tmp_path, name):
    folder = RunFolder(tmp_path)
    folder.begin(RUN)
    (tmp_path / name).write_text("{}")
    other = replace(RUN, settings={"epochs": 5})
    with pytest.raises(ParameterError, match=r"settings\.epochs is 5 and 3"):
        folder.begin(other)
    assert (tmp_path / name).exists()
    (tmp_path / "notes.txt").write_text("mine")
    folder.begin(other, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "notes.txt"]
    assert "epochs = 5" in folder.config.read_text()


def test_a_run_that_never_got_to_work_is_no_hindrance(tmp_path):
    RunFolder(tmp_path).begin(RUN)
    RunFolder(tmp_path).begin(replace(RUN, seed=9))
    assert "seed = 9" in (tmp_path / "config.toml").read_text()


def test_a_model_of_unknown_origin_is_not_replaced(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ParameterError, match=r"already holds model\.safetensors"):
        RunFolder(tmp_path).begin(RUN)


def test_fit_keeps_checkpoint_and_history_in_the_folder_and_saves_the_model(tmp_path):
    seen = {}

    def fit(model, train, dev, *, checkpoint, observers):
        seen.update(train=train, dev=dev)
        checkpoint.touch()
        for observer in observers:
            observer.begin(FitSettings(epochs=1, learning_rate=0.1))
            observer.epoch({"epoch": 1, "valid_loss": 0.5})
            observer.end(History())

    told = []
    folder = RunFolder(tmp_path)
    model = SimpleNamespace(save=lambda path: path.write_text("model"))
    assert not folder.has_begun
    task = ModuleType("task")
    task.fit = fit
    folder.fit(task, model, "train", "dev", [Afterwards(lambda: told.append(1))])
    assert folder.has_begun
    assert (seen, told) == ({"train": "train", "dev": "dev"}, [1])
    assert folder.model.read_text() == "model"
    assert json.loads(folder.history.read_text()) == {"epoch": 1, "valid_loss": 0.5}
    folder.finish({})
    assert not folder.has_begun


def test_damaged_figures_are_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.model.touch()
    (tmp_path / "figures.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"figures\.json' is damaged"):
        folder.figures()


def test_a_folder_is_made_with_its_parents_and_left_clean(tmp_path):
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(ParameterError, match="Choose another output folder"):
            make_folder(path)


@pytest.mark.parametrize(
    ("content", "left"),
    [(b"", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"half", b""), (b"a\n\n", b"a\n\n")],
)
def test_only_whole_lines_are_left(tmp_path, content, left):
    path = tmp_path / "lines"
    path.write_bytes(content)
    mend_lines(path)
    assert path.read_bytes() == left
    mend_lines(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_is_tried_without_touching_what_another_command_has_in_it(tmp_path):
    (tmp_path / ".seqattn-probe").touch()
    make_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".seqattn-probe"]
