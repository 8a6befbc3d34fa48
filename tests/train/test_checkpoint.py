from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from train.small import Regression, cut, equal, rows, shuffled, weights

from seqattn.errors import ArtifactError
from seqattn.train.artifact import load_artifact, save_artifact
from seqattn.train.checkpoint import Part
from seqattn.train.loop import FitSettings, fit_module

TRAIN, VALID = rows(40, seed=1), rows(20, seed=2)
TIMES = ("seconds", "items_per_second")


class Interrupt:
    """An observer that raises when it is shown a given epoch."""

    def __init__(self, epoch, error=KeyboardInterrupt):
        self.at, self.error = epoch, error

    def begin(self, settings):
        pass

    def epoch(self, record):
        if record["epoch"] == self.at:
            raise self.error

    def end(self, history):
        pass


class Count:
    """An observer that counts epochs."""

    def __init__(self):
        self.calls = []

    def begin(self, settings):
        self.calls.append("begin")

    def epoch(self, record):
        self.calls.append(record["epoch"])

    def end(self, history):
        self.calls.append("end")


def fit(path, settings, *observers, module=None, valid=True, **options):
    module = module or Regression(dropout=0.3)
    batches = shuffled(TRAIN, 7)
    check = (lambda: cut(VALID, 20)) if valid else None
    return module, fit_module(
        module, batches, check, settings, observers=observers, checkpoint=path, **options
    )


def without_times(history):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in history.records]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit" / "checkpoint.safetensors"


SETTINGS = FitSettings(epochs=8, learning_rate=0.05)
CASES = {
    "validated": (SETTINGS, True),
    "last weights": (SETTINGS, False),
    "patient": (FitSettings(40, 0.3, patience=3), True),
    "float64": (FitSettings(8, 0.05, precision="float64"), True),
    "bf16": (FitSettings(8, 0.05, precision="bf16"), True),
    "average": (FitSettings(8, 0.05, average=0.9), True),
    "average, last weights": (FitSettings(8, 0.05, average=0.9), False),
    "decay": (FitSettings(8, 0.05, weight_decay=0.1, clip=None, betas=(0.5, 0.9)), True),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fit_interrupted_in_every_epoch_ends_with_the_same_bits(path, case):
    settings, valid = CASES[case]
    expected, history = fit(None, settings, valid=valid)
    for epoch in range(1, len(history.records) + 1):
        with pytest.raises(KeyboardInterrupt):
            fit(path, settings, Interrupt(epoch), valid=valid)
    module, resumed = fit(path, settings, valid=valid)
    assert equal(weights(module), weights(expected))
    assert without_times(resumed) == without_times(history)
    assert [record["epoch"] for record in resumed.records] == list(range(1, len(history.records) + 1))
    assert (resumed.best_epoch, resumed.stopped_early) == (history.best_epoch, history.stopped_early)


def test_a_fit_interrupted_within_an_epoch_repeats_it(path):
    class Breaking(Regression):
        def __init__(self, last):
            super().__init__(dropout=0.3)
            self.last = last

        def loss(self, batch):
            self.last -= self.training
            if self.last < 0:
                raise KeyboardInterrupt
            return super().loss(batch)

    expected, _ = fit(None, SETTINGS)
    for steps in (3, 8, 15, 6, 1):
        with pytest.raises(KeyboardInterrupt):
            fit(path, SETTINGS, module=Breaking(steps))
    module, history = fit(path, SETTINGS)
    assert equal(weights(module), weights(expected))
    assert len(history.records) == 8


def test_a_checkpoint_does_not_change_the_fit(path):
    module, history = fit(path, SETTINGS)
    expected, plain = fit(None, SETTINGS)
    assert equal(weights(module), weights(expected))
    assert without_times(history) == without_times(plain)


def test_an_interruption_leaves_the_checkpoint_of_the_last_epoch(path):
    with pytest.raises(KeyboardInterrupt):
        fit(path, SETTINGS, Interrupt(3))
    assert len(load_artifact(path).metadata["history"]["records"]) == 2
    assert list(path.parent.iterdir()) == [path]


def test_a_finished_fit_is_not_repeated(path):
    expected, history = fit(path, SETTINGS)
    count = Count()
    before = path.read_bytes()
    module, again = fit(path, SETTINGS, count, module=Regression(seed=5, dropout=0.3))
    assert count.calls == ["begin", "end"]
    assert again == history
    assert equal(weights(module), weights(expected))
    assert path.read_bytes() == before


def test_a_fit_that_an_observer_ended_is_finished(path):
    class Stop(Count):
        def epoch(self, record):
            super().epoch(record)
            return record["epoch"] == 2

    fit(path, SETTINGS, Stop())
    count = Count()
    _, history = fit(path, SETTINGS, count)
    assert count.calls == ["begin", "end"]
    assert (len(history.records), history.stopped_early) == (2, True)


def test_a_resumed_fit_tells_its_observers_of_new_epochs_only(path):
    with pytest.raises(KeyboardInterrupt):
        fit(path, SETTINGS, Interrupt(6))
    count = Count()
    fit(path, SETTINGS, count)
    assert count.calls == ["begin", 6, 7, 8, "end"]


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(path):
    fit(path, SETTINGS, identity={"data": "abc", "model": {"d_model": 32}})
    before = path.read_bytes()
    with pytest.raises(ArtifactError) as caught:
        fit(path, FitSettings(8, 0.01), identity={"data": "abd", "model": {"d_model": 32}})
    text = str(caught.value)
    assert "data is 'abc' there and 'abd' here, learning_rate is 0.05 there and 0.01 here." in text
    assert "Delete it or choose another folder" in text
    assert "model" not in text.replace(str(path), "")
    assert path.read_bytes() == before


def test_of_settings_within_settings_only_those_that_differ_are_named(path):
    fit(path, SETTINGS, identity={"params": {"width": 3, "depth": 1, "head": {"kind": "mean"}}})
    with pytest.raises(ArtifactError) as caught:
        fit(path, SETTINGS, identity={"params": {"width": 4, "depth": 1, "head": {"kind": "max"}}})
    told = "params.head.kind is 'mean' there and 'max' here, params.width is 3 there and 4 here."
    assert f"belongs to another run: {told}" in str(caught.value)


def test_one_file_holds_several_fits(path):
    expected = [fit(None, FitSettings(8, rate))[0] for rate in (0.05, 0.02)]
    parts = [Part(path, name) for name in ("0", "1")]
    fit(parts[0], FitSettings(8, 0.05))
    with pytest.raises(KeyboardInterrupt):
        fit(parts[1], FitSettings(8, 0.02), Interrupt(5))
    assert list(path.parent.iterdir()) == [path]
    counts = [Count(), Count()]
    for part, rate, count, module in zip(parts, (0.05, 0.02), counts, expected, strict=True):
        resumed, _ = fit(part, FitSettings(8, rate), count)
        assert equal(weights(resumed), weights(module))
    assert [count.calls for count in counts] == [["begin", "end"], ["begin", 5, 6, 7, 8, "end"]]
    with pytest.raises(ArtifactError, match=r"learning_rate is 0\.05 there and 0\.02 here"):
        fit(parts[0], FitSettings(8, 0.02))


def test_a_file_of_one_fit_and_a_file_of_parts_are_not_mistaken_for_each_other(path):
    fit(path, SETTINGS)
    with pytest.raises(ArtifactError, match="belongs to a model of another kind"):
        fit(Part(path, "0"), SETTINGS)
    path.unlink()
    fit(Part(path, "0"), SETTINGS)
    with pytest.raises(ArtifactError, match="belongs to a model of another kind"):
        fit(path, SETTINGS)


def test_what_an_observer_keeps_comes_back_where_the_fit_goes_on(path):
    class Keep(Count):
        def __init__(self):
            super().__init__()
            self.losses = torch.zeros(0, dtype=torch.float64)

        def epoch(self, record):
            self.losses = torch.cat([self.losses, torch.tensor([record["train_loss"]], dtype=torch.float64)])

        def state(self):
            return {"losses": self.losses}

        def restore(self, tensors):
            self.losses = tensors["losses"]

    with pytest.raises(KeyboardInterrupt):
        fit(path, SETTINGS, Keep(), Interrupt(5))
    keep = Keep()
    _, history = fit(path, SETTINGS, keep)
    assert keep.losses.tolist() == [record["train_loss"] for record in history.records]
    again = Keep()
    fit(path, SETTINGS, again)
    assert torch.equal(again.losses, keep.losses)


def test_an_identity_may_hold_tuples_numpy_numbers_and_nan(path):
    identity = {"split": (0.8, np.float64(0.2)), "bound": float("nan"), "n": np.int64(3)}
    _, history = fit(path, SETTINGS, identity=identity)
    _, again = fit(path, SETTINGS, identity={"split": [0.8, 0.2], "bound": float("nan"), "n": 3})
    assert again == history


def test_a_module_of_another_shape_is_refused(path):
    fit(path, SETTINGS)
    with pytest.raises(ArtifactError, match=r"(?s)does not fit this module .*Delete it, or choose another"):
        fit(path, SETTINGS, module=Regression(width=9))


def test_a_damaged_checkpoint_is_refused_with_a_way_out(path):
    fit(path, SETTINGS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"cut short.*To train anew, delete it or choose another folder"):
        fit(path, SETTINGS)


def test_a_saved_model_is_not_taken_for_a_checkpoint(path):
    save_artifact(path, "SAHP", {}, {})
    with pytest.raises(ArtifactError, match="holds 'SAHP', not a checkpoint"):
        fit(path, SETTINGS)


def test_what_a_killed_process_left_half_written_is_removed(path):
    path.parent.mkdir()
    (path.parent / f".{path.name}.12345678.partial").write_bytes(b"half")
    (path.parent / "other.partial").write_bytes(b"of someone else")
    fit(path, SETTINGS)
    assert sorted(path.parent.iterdir()) == [path, path.parent / "other.partial"]


def test_a_finished_checkpoint_holds_the_weights_only(path):
    module, _ = fit(path, SETTINGS)
    tensors = load_artifact(path).tensors
    assert tensors.keys() == {f"weights/{name}" for name in weights(module)}


def test_tied_and_frozen_parts_are_resumed(path):
    class Tied(Regression):
        def __init__(self):
            super().__init__(dropout=0.3, width=3)
            self.third = torch.nn.Linear(3, 3)
            self.third.weight = self.first.weight
            torch.nn.init.zeros_(self.third.bias)
            self.second.requires_grad_(False)
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def loss(self, batch):
            self.steps += self.training
            return super().loss(type(batch)(torch.tanh(self.third(batch.x)), batch.y))

    expected, _ = fit(None, SETTINGS, module=Tied(), valid=False)
    with pytest.raises(KeyboardInterrupt):
        fit(path, SETTINGS, Interrupt(5), module=Tied(), valid=False)
    module, _ = fit(path, SETTINGS, module=Tied(), valid=False)
    assert equal(weights(module), weights(expected))
    assert module.steps == 6 * 8
    assert module.third.weight is module.first.weight


LIFE = """
import sys
from train.small import Regression, cut, rows, shuffled
from seqattn.train.artifact import save_artifact
from seqattn.train.loop import FitSettings, fit_module

class Tell:
    def begin(self, settings): pass
    def end(self, history): pass
    def epoch(self, record): print(record["epoch"], flush=True)

checkpoint, result = sys.argv[1:]
module = Regression(dropout=0.3, width=64)
data = rows(700, seed=1)
history = fit_module(
    module, shuffled(data, 7), lambda: cut(rows(20, seed=2), 20), FitSettings(24, 0.05),
    observers=[Tell()], checkpoint=checkpoint,
)
for record in history.records:
    del record["seconds"], record["items_per_second"]
save_artifact(result, "result", module.state_dict(), history.to_json())
"""


def start(*arguments):
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", LIFE, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(process, epochs, delay):
    """Kill a process a while after it told of some epochs; returns the epochs told of, and whether it was killed."""
    told = []
    with process:
        for line in process.stdout:
            told.append(int(line))
            if len(told) == epochs:
                try:
                    process.wait(delay)
                except subprocess.TimeoutExpired:
                    process.kill()
                break
        told += map(int, process.stdout)
        errors = process.stderr.read()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return told, process.returncode != 0


@pytest.mark.slow
def test_a_fit_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    uninterrupted = start(tmp_path / "whole", tmp_path / "expected")
    chance = random.Random(0)
    lives, was_killed = [], True
    while was_killed:
        process = start(tmp_path / "checkpoint", tmp_path / "result")
        told, was_killed = kill_after(process, 6, chance.uniform(0, 0.1))
        lives.append(told)
    assert kill_after(uninterrupted, 10**6, 0) == (list(range(1, 25)), False)
    assert len(lives) >= 3
    # The last life finds a finished fit if the one before was killed between its end and the result.
    assert all(later[0] > 1 for later in lives[1:] if later), "a life began anew"
    assert (tmp_path / "result").read_bytes() == (tmp_path / "expected").read_bytes()
