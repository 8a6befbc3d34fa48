from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from small_events import TINY, write_splits
from train import company
from train.company import Company, Counted
from train.small import rows

from seqattn import SAHP, Sequences
from seqattn.errors import BackendError
from seqattn.train.checkpoint import read_checkpoint
from seqattn.train.distributed import Processes, _refuse_shared, alone, processes, together

SAHP_OPTIONS = dict(
    **TINY | {"epochs": 4},
    batch_size=60,
    dropout=0.0,
    learning_rate=0.01,
    weight_decay=0.01,
    precision="float64",
    random_state=0,
    device="cpu",
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    company = Company(2, tmp_path_factory.mktemp("pair"))
    yield company
    company.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    company = Company(3, tmp_path_factory.mktemp("three"))
    yield company
    company.close()


def batches(*sizes, seed=0):
    data = rows(sum(sizes), seed, torch.float64)
    parts = zip(data.x.split(sizes), data.y.split(sizes), strict=True)
    return [Counted(x, y) for x, y in parts]


def close(ours, theirs, tolerance=1e-9):
    """Check that weights and losses of two fits agree."""
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, value in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], value, rtol=tolerance, atol=tolerance, msg=name)
    flat = [
        [math.nan if x is None else x for epoch in fit["losses"] for x in epoch] for fit in (ours, theirs)
    ]
    np.testing.assert_allclose(*flat, rtol=tolerance, atol=tolerance)


def sequences(lengths, seed=0, n_types=3):
    """Return sequences of given lengths; one more type is known and never occurs."""
    generator = np.random.default_rng(seed)
    rows = [(np.cumsum(generator.gamma(2.0, 0.5, n)), generator.integers(0, n_types, n)) for n in lengths]
    return Sequences.from_lists(rows, window=(0.0, 400.0), labels=list(range(n_types + 1)))


EVEN, SKEWED = [9] * 14, [1, 1, 2, 150, 3, 1, 70, 2, 5, 1, 1, 90, 2, 4, 2, 0]
TRAIN = {"even": sequences(EVEN), "skewed": sequences(SKEWED)}
DEV = sequences([5, 1, 30, 2, 2, 60], seed=1)


SETTINGS = [{}, {"clip": 0.5, "weight_decay": 0.01}, {"clip": None, "weight_decay": 0.1, "betas": (0.7, 0.9)}]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "clipped", "decay"])
def test_joint_steps_are_those_of_one_process(pair, three, settings):
    # Batches of one or two rows leave processes without work, some parts hold no counted row, and a layer is used
    # now and then only.
    train, valid = batches(20, 1, 7, 2, 1, 30, 1), batches(11, 1, 5, seed=1)
    expected = company.fit_branched(train, valid, **settings)
    for answer in (
        *pair.run(company.fit_branched, train, valid, **settings),
        *three.run(company.fit_branched, train, valid, **settings),
    ):
        close(answer, expected)


@pytest.mark.parametrize("kind", ["even", "skewed"])
def test_joint_fits_of_the_estimator_are_those_of_one_process(pair, three, kind):
    with pytest.warns(match="never occur"):
        expected = company.fit_sahp(TRAIN[kind], DEV, **SAHP_OPTIONS)
    for answer in (
        *pair.run(company.fit_sahp, TRAIN[kind], DEV, **SAHP_OPTIONS),
        *three.run(company.fit_sahp, TRAIN[kind], DEV, **SAHP_OPTIONS),
    ):
        close(answer, expected)
        for name, tensors in expected["baselines"].items():
            for key, value in tensors.items():
                assert np.array_equal(answer["baselines"][name][key], value), (name, key)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*never occur")
def test_centroids_of_joint_fits_are_those_of_one_process(pair):
    options = SAHP_OPTIONS | {"attention": "routing(3, window=8, commitment=0.01) | prefix(1)", "epochs": 2}
    expected = company.fit_sahp(TRAIN["skewed"], DEV, **options)
    centroids = [name for name in expected["weights"] if name.endswith("centroids")]
    assert centroids
    for answer in pair.run(company.fit_sahp, TRAIN["skewed"], DEV, **options):
        close(answer, expected)


@pytest.mark.filterwarnings("ignore:.*never occur")
def test_in_float32_the_losses_agree_to_its_precision(pair):
    options = {**SAHP_OPTIONS, "precision": "float32", "learning_rate": 1e-3, "baselines": False}
    expected = company.fit_sahp(TRAIN["skewed"], DEV, **options)
    for answer in pair.run(company.fit_sahp, TRAIN["skewed"], DEV, **options):
        np.testing.assert_allclose(answer["losses"], expected["losses"], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*never occur")
def test_without_a_seed_the_processes_draw_one_together(pair):
    options = {**SAHP_OPTIONS, "random_state": None, "baselines": False, "dropout": 0.3}
    first, second = pair.run(company.fit_sahp, TRAIN["even"], None, **options, validation=0.3)
    close(second, first, 0)
    again, _ = pair.run(company.fit_sahp, TRAIN["even"], None, **options, validation=0.3)
    close(again, first, 0)  # the first process begins from the same global generator


def test_each_process_drops_units_of_its_own(pair):
    # Both get the same row: with the same draws the gradient would be that of the row alone.
    row = rows(1, dtype=torch.float64)
    twice = [Counted(row.x.repeat(4, 1), row.y.repeat(4, 1))] * 3
    first, second = pair.run(company.fit_branched, twice, None, dropout=0.5)
    close(second, first, 0)
    once = [Counted(row.x, row.y)] * 3
    with pytest.raises(AssertionError):
        close(first, company.fit_branched(once, None, dropout=0.5))


# --- decisions and observers ---


def test_patience_ends_all_processes_after_the_same_epoch(pair):
    train, valid = batches(9, 1, 12), batches(8, seed=5)
    settings = {"epochs": 30, "patience": 2, "learning_rate": 0.5}
    expected = company.fit_branched(train, valid, **settings)
    assert len(expected["losses"]) < 30
    for answer in pair.run(company.fit_branched, train, valid, **settings):
        assert answer["history"].best_epoch == expected["history"].best_epoch
        assert answer["history"].stopped_early
        close(answer, expected)


def test_observers_are_told_in_the_first_process_and_stop_all(pair):
    first, second = pair.run(company.fit_branched, batches(9, 1), None, stop_after=2)
    assert first["calls"] == ["begin", -1, 1, -2, 2, "end"]
    assert second["calls"] == []
    assert first["history"].to_json() == second["history"].to_json()
    assert len(second["losses"]) == 2
    close(second, first, 0)


@pytest.mark.parametrize("kind", [KeyError, company.Stubborn])
def test_what_an_observer_raises_is_raised_everywhere(pair, kind):
    train = batches(9, 1)
    first, second = pair.run(company.fit_branched, train, None, stop_after=2, error=(kind, "pruned", "b"))
    assert first["error"] == (kind.__name__, str(kind("pruned", "b")))
    travels = kind is KeyError
    assert second["error"] == (first["error"] if travels else ("SeqattnError", "Stubborn: pruned"))


# --- checkpoints ---


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 2), (2, 3)])
def test_a_checkpoint_goes_on_under_another_number_of_processes(pair, three, tmp_path, before, after):
    def fit(size, **options):
        if size == 1:
            return [company.fit_branched(train, valid, **options)]
        return {2: pair, 3: three}[size].run(company.fit_branched, train, valid, **options)

    train, valid, path = batches(9, 1, 12), batches(8, 3), str(tmp_path / "checkpoint.safetensors")
    expected = company.fit_branched(train, valid)
    fit(before, checkpoint=path, stop_after=3, error=(KeyError, "cut"))
    assert len(read_checkpoint(Path(path), _identity_of(path)).history.records) == 2
    for answer in fit(after, checkpoint=path):
        close(answer, expected)
    if before == after:
        close(answer, fit(after)[0], 0)
    for answer in fit(before, checkpoint=path):  # it is finished
        close(answer, expected)


def _identity_of(path):
    from seqattn.train.artifact import load_artifact

    return load_artifact(path).metadata["identity"]


# --- errors ---


@pytest.mark.parametrize("call", [1, 4, 6], ids=["first step", "second epoch", "validation"])
def test_an_error_in_one_process_is_raised_in_all(pair, call):
    # Steps 1 and 2 of each epoch are training, 3 and 4 validation; the second process has no part of the small batch.
    train = batches(9, 12)
    answers = pair.run(company.fit_failing, train, 1, call, "raises")
    assert answers == [("MemoryError", "no memory in process 1")] * 2


def test_an_error_that_cannot_travel_is_told_in_words(pair):
    first, second = pair.run(company.fit_failing, batches(9, 12), 1, 1, "refuses to travel")
    assert (first, second[0]) == (("SeqattnError", "Stubborn: a"), "Stubborn")


@pytest.mark.parametrize(("call", "where"), [(1, "Training"), (3, "Validation")])
def test_a_loss_that_is_not_finite_in_one_process_ends_all(pair, call, where):
    answers = pair.run(company.fit_failing, batches(9, 12), 1, call, "infinite")
    assert answers[0] == answers[1]
    assert answers[0][1].startswith(f"{where} loss is not finite in epoch 1, batch 1 (loss")


def test_processes_with_different_settings_are_refused(pair):
    answers = pair.run(company.fit_unlike, batches(9))
    assert answers[0] == answers[1]
    assert answers[0][0] == "DataError"
    assert "Processes 0 and 1 do not train the same: learning_rate is 0.01 and 0.02." in answers[0][1]


def test_two_processes_on_one_gpu_are_refused():
    _refuse_shared([("a", "cuda:0"), ("a", "cuda:1"), ("b", "cuda:0")])
    with pytest.raises(BackendError, match="Processes 1 and 2 both compute on cuda:1 of a"):
        _refuse_shared([("a", "cuda:0"), ("a", "cuda:1"), ("a", "cuda:1")])


# --- scores and forecasts ---


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.warns(match="never occur"):
        fitted = SAHP(**{**SAHP_OPTIONS, "epochs": 1, "precision": "float32"}).fit(
            TRAIN["even"], validation=DEV
        )
    return fitted.save(tmp_path_factory.mktemp("model") / "model.safetensors")


MANY = sequences(list(range(1, 40)), seed=2)


def test_shared_scores_and_forecasts_are_those_of_one_process(pair, three, model):
    expected, n_computed, n_batches = company.scores(model, MANY, False)
    assert n_computed == 6 * n_batches  # evaluate scores twice, the second time with more nodes
    assert n_batches > 3
    for crew in (pair, three):
        answers = crew.run(company.scores, model, MANY, True)
        assert [answer for answer, _, _ in answers] == [expected] * len(answers)
        own = [number for _, number, _ in answers]
        assert sum(own) == n_computed
        assert all(own)


def test_without_a_block_each_process_scores_for_itself(pair, model):
    alone, told = zip(*pair.run(company.score_in_the_first, model, MANY), strict=True)
    assert alone[1] is None
    assert alone[0] == told[0] == told[1]


def test_an_error_in_one_process_ends_shared_scoring(pair, model):
    assert pair.run(company.fail_to_score, model, MANY) == [("MemoryError", "no memory for this batch")] * 2


# --- a single process ---


def test_a_single_process_starts_nothing():
    with together():
        assert processes() == Processes(0, 1)
    with alone():
        assert processes() == Processes(0, 1)
    assert not torch.distributed.is_initialized()


def test_one_process_under_torchrun_is_a_single_one(monkeypatch):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    assert processes() == Processes(0, 1)
    assert not torch.distributed.is_initialized()


# --- torchrun ---


def torchrun(folder, *arguments):
    # The time limit is far below the 30 minutes for which a silent process is waited for.
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


COMMANDS = """
import os, sys
from seqattn.cli import cli

def run(*words):
    cli(list(words), standalone_mode=False)

run("fit", "hawkes", "--data", "data", "--output", "run", "--json",
    *(f"--set={pair}" for pair in ("epochs=2", "d_model=8", "n_heads=1", "n_layers=1", "dropout=0.0")))
run("evaluate", "run", "--json")
run("evaluate", "run", "--quiet", "--output", "report")
run("predict", "run", "--output", "forecasts.csv", "--json")
"""


@pytest.mark.slow
def test_commands_under_torchrun_speak_and_write_once(tmp_path):
    write_splits(tmp_path / "data")
    script = tmp_path / "commands.py"
    script.write_text(COMMANDS)
    results = {}
    for name, start in {
        "one": [script],
        "two": ["-m", "torch.distributed.run", "--nproc-per-node=2", script],
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "data").symlink_to(tmp_path / "data")
        done = subprocess.run(
            [sys.executable, *map(str, start)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=500,
            check=True,
        )
        results[name] = done.stdout, done.stderr
        assert done.stderr.count("Run: run") == done.stderr.count("epoch 2/2") == 1
    assert len(results["one"][0].splitlines()) == len(results["two"][0].splitlines())
    first, second = ([_numbers(values) for values in _objects(stdout)] for stdout, _ in results.values())
    assert len(first) == 3
    assert [pytest.approx(values, rel=1e-4, abs=1e-6) for values in first] == second
    names = {name: sorted(path.name for path in (tmp_path / name).rglob("*")) for name in results}
    assert names["one"] == names["two"]
    tables = [pl.read_csv(tmp_path / name / "forecasts.csv") for name in results]
    assert tables[0].select("seq_id", "position").equals(tables[1].select("seq_id", "position"))
    np.testing.assert_allclose(*(table["t_mean"].to_numpy() for table in tables), rtol=1e-5)


def _objects(text):
    """Return the JSON objects among other lines."""
    found, decoder = [], json.JSONDecoder()
    while (place := text.find("{\n")) >= 0:
        value, end = decoder.raw_decode(text[place:])
        found.append(value)
        text = text[place + end :]
    return found


def _numbers(values, path=""):
    """Return the numbers of nested results by their path."""
    if isinstance(values, dict):
        return {
            key: x for name, value in values.items() for key, x in _numbers(value, f"{path}/{name}").items()
        }
    return {path: values} if isinstance(values, int | float) else {}


@pytest.mark.slow
def test_a_refusal_under_torchrun_is_told_once(tmp_path):
    done = torchrun(tmp_path, "-m", "seqattn", "fit", "hawkes", "--data", "nowhere")
    assert done.stdout == ""
    assert done.stderr.count("There is no file, folder or known data set 'nowhere'") == 1
    assert "exitcode  : 3" in done.stderr
    assert done.returncode == 1  # torchrun's own, whatever its processes return
    assert "seqattn/cli" not in done.stderr  # no traceback of ours


KILLED = """
import os, signal
from seqattn.cli import cli
from seqattn.hawkes.model import SelfAttentiveHawkes

whole, calls = SelfAttentiveHawkes.loss, 0

def loss(self, batch):
    global calls
    calls += 1
    if calls == CALL and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL if HARD else signal.SIGINT)
    return whole(self, batch)

SelfAttentiveHawkes.loss = loss
cli(["fit", "hawkes", "--data", "data", "--output", "run", "--set=batch_size=40", "--set=epochs=4", "--set=dropout=0.0",
    "--set=d_model=8", "--set=n_heads=1", "--set=n_layers=1", "--set=baselines=false", "--set=precision=float64"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_hard", [True, False], ids=["killed", "interrupted"])
def test_a_process_that_ends_takes_the_others_along(tmp_path, run_python, is_hard):
    write_splits(tmp_path / "data")
    script = tmp_path / "killed.py"
    script.write_text(KILLED.replace("CALL", "8").replace("HARD", str(is_hard)))
    done = torchrun(tmp_path, script)
    assert done.returncode != 0
    told = done.stderr.count("Error: Another process of this job has ended") + done.stderr.count(
        "Stopped. What"
    )
    assert told <= 1
    assert is_hard or told == 1
    path = tmp_path / "run" / "checkpoint.safetensors"
    n_epochs = len(read_checkpoint(path, _identity_of(path)).history.records)
    assert 1 <= n_epochs < 4
    assert not (tmp_path / "run" / "model.safetensors").exists()
    code = script.read_text().replace("== 8 and", "< 0 and").replace('"run"', "FOLDER")
    for folder in ("run", "fresh"):  # one process goes on, and one trains from the beginning
        assert run_python(code.replace("FOLDER", repr(folder)), folder=tmp_path, RANK="0").returncode == 0
    ours, fresh = (
        json.loads((tmp_path / folder / "figures.json").read_text()) for folder in ("run", "fresh")
    )
    assert _numbers(ours["validation"]) == pytest.approx(_numbers(fresh["validation"]), rel=1e-4, abs=1e-5)
