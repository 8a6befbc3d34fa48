"""Searches end with exactly the trials asked for, lose nothing when they are interrupted, and test only the best."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest
from click.testing import CliRunner, Result
from small_events import write_splits

import seqattn
from seqattn.cli import cli
from seqattn.errors import ArtifactError, ParameterError, SeqattnError
from seqattn.hawkes import task
from seqattn.train.search import Outcome, Plan, starting_points
from seqattn.train.space import Space
from seqattn.train.workers import Watch, myself
from seqattn.tune import tune
from seqattn.tune.desk import Desk

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "import sys; from seqattn.cli import main; sys.argv[0] = 'seqattn'; main()"
SPACE = """
model = "sahp"
[space]
learning_rate = { type = "float", low = 1e-4, high = 1e-1, log = true }
d_model = { type = "choice", choices = [8, 16, 32] }
n_layers = { type = "int", low = 1, high = 3 }
[fixed]
n_heads = 1
[trial]
epochs = 2
baselines = false
[refit]
epochs = 3
[pruning]
startup_trials = 100
[start.defaults]
[start.published]
d_model = 8
weight_decay = 1e-3
"""
KEYS = {
    "study",
    "n_trials",
    "n_complete",
    "n_pruned",
    "n_failed",
    "best_value",
    "best_params",
    "test",
    "output",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data") / "clicks")


@pytest.fixture(scope="module")
def space_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def space(space_file: Path) -> Space:
    return Space.load(space_file)


@pytest.fixture
def plan(data: Path, space: Space, tmp_path: Path) -> Plan:
    return Plan("hawkes", tmp_path / "study", data=str(data), trials=4, space=space, quiet=True)


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["tune", "hawkes", *map(str, arguments)])
    assert result.exit_code == code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def start(*arguments: str | Path, folder: Path) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "tune", "hawkes", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def trials_in(journal: Path, name: str = "hawkes-clicks") -> list[optuna.trial.FrozenTrial]:
    """Read the trials of a study with nothing but Optuna."""
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=name, storage=storage).trials


def states(trials: list[optuna.trial.FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]


def facts(outcome: Outcome) -> list[tuple[Any, ...]]:
    """Collect what a trial is and gave, without times."""
    left_out = ("seconds",)
    return [
        tuple((key, value) for key, value in trial.items() if key not in left_out) for trial in outcome.trials
    ]


# -- what a search gives ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data: Path, space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Run one study by the command, for tests that only look."""
    folder = tmp_path_factory.mktemp("tune") / "study"
    return folder, run("--data", data, "--config", space_file, "--trials", "5", "--output", folder, "--json")


def test_the_command_prints_one_json_object_with_the_agreed_keys(finished):
    folder, result = finished
    values = json.loads(result.stdout)
    assert values.keys() >= KEYS
    assert [values[key] for key in ("n_trials", "n_complete", "n_pruned", "n_failed")] == [5, 5, 0, 0]
    assert (values["study"], values["output"]) == ("hawkes-clicks", str(folder))


def test_each_trial_is_told_in_a_line_and_kept_in_a_table(finished):
    folder, result = finished
    lines = [line for line in result.stderr.splitlines() if line.startswith("trial ")]
    assert len(lines) == 5
    assert lines[0].startswith("trial 0 (defaults): ")
    assert lines[-1].endswith("5 of 5 done")
    table = pl.read_csv(folder / "trials.csv")
    assert table["number"].to_list() == [0, 1, 2, 3, 4]
    assert table["state"].to_list() == ["complete"] * 5
    values = json.loads(result.stdout)
    assert values["best_value"] == table["value"].max()
    assert values["best_trial"] == table["value"].arg_max()


def test_the_value_of_a_trial_is_the_likelihood_of_its_best_epoch(finished, data):
    folder, result = finished
    values = json.loads(result.stdout)
    model = task.build({**values["best_params"], "n_heads": 1, "epochs": 2, "baselines": False}, seed=0)
    parts = task.splits(data)
    task.fit(model, parts["train"], parts["dev"])
    assert model.score(parts["dev"]) == values["best_value"]
    reported = trials_in(folder / "study.journal")[values["best_trial"]].intermediate_values
    assert max(reported.values()) == pytest.approx(values["best_value"], abs=1e-5)


def test_the_starting_points_come_first_with_the_defaults_of_the_estimator(finished):
    folder, _ = finished
    table = pl.read_csv(folder / "trials.csv")
    assert table["name"].to_list() == ["defaults", "published", None, None, None]
    usual = seqattn.SAHP()
    for name in ("learning_rate", "d_model", "n_layers"):
        assert table[name][0] == getattr(usual, name)
    assert (table["d_model"][1], table["weight_decay"][1]) == (8, 1e-3)


def test_the_saved_model_gives_the_test_figures(finished, data):
    folder, result = finished
    model = seqattn.load(folder / "best")
    assert model.epochs == 3
    figures = json.loads(result.stdout)
    expected = model.evaluate(pl.read_csv(data / "test.csv"))
    assert figures["test"] == json.loads(json.dumps(expected))
    assert figures["dev"] == model.score(pl.read_csv(data / "dev.csv"))
    written = json.loads((folder / "evaluation.json").read_text())
    assert (written["test"], written["trial"]) == (figures["test"], figures["best_trial"])


def test_the_best_settings_are_a_configuration_of_fit(finished, tmp_path):
    folder, result = finished
    command = ["fit", "hawkes", "--config", str(folder / "best.toml"), "--output", str(tmp_path), "--json"]
    again = CliRunner().invoke(cli, command)
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["validation"]["loglik_per_event"] == json.loads(result.stdout)["dev"]


def test_pictures_are_drawn(finished):
    folder, _ = finished
    for name in ("history.png", "importance.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_finished_study_is_told_at_once_and_tests_nothing_again(finished, data, space_file, monkeypatch):
    folder, first = finished

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the test data were looked at once more")

    monkeypatch.setattr(task, "evaluate", fail)
    monkeypatch.setattr(task, "fit", fail)
    again = run("--data", data, "--config", space_file, "--trials", "5", "--output", folder, "--json")
    assert again.stdout == first.stdout
    assert "5 of 5 trials done" in again.stderr


def test_the_table_shows_the_starting_points_beside_the_best(finished, data, space_file):
    folder, _ = finished
    text = run("--data", data, "--config", space_file, "--trials", "5", "--output", folder, "--quiet").stdout
    firsts = [line.split()[0] for line in text.splitlines() if line]
    for name in ("defaults", "published", "best", "best,", "poisson", "markov"):
        assert name in firsts
    assert str(folder / "best" / "model.safetensors") in text


def test_other_data_or_settings_are_refused(finished, data, space_file, tmp_path):
    folder, _ = finished
    command = ("--config", space_file, "--trials", "5", "--output", folder)
    for change in (("--data", data, "--seed", "3"), ("--data", data, "--set", "dropout=0.3")):
        refused = run(*command, *change, code=2)
        assert "was made with another" in refused.stderr
    other = write_splits(tmp_path / "clicks")
    (other / "train.csv").write_text((other / "dev.csv").read_text())
    assert "was made with another data" in run(*command, "--data", other, code=2).stderr


# -- totals ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_in_two_calls_equals_one_in_one_call(plan, tmp_path):
    straight = tune(replace(plan, output=tmp_path / "straight", trials=12))
    tune(replace(plan, trials=5))
    resumed = tune(replace(plan, trials=12))
    assert facts(resumed) == facts(straight)
    assert resumed.test == straight.test


def test_fewer_trials_than_starting_points_run_only_these(plan):
    outcome = tune(replace(plan, trials=1))
    assert [trial["name"] for trial in outcome.trials] == ["defaults"]
    assert outcome.importance == {}


def test_settings_given_are_fixed_and_not_searched(plan):
    outcome = tune(replace(plan, trials=3, settings={"d_model": 4, "epochs": 1}))
    assert {"d_model", "epochs"} & set(outcome.best_params) == set()
    assert all(trial["epochs"] == 1 for trial in outcome.trials)
    model = seqattn.load(plan.output / "best")
    assert (model.d_model, model.epochs) == (4, 1)


def test_a_better_trial_in_a_longer_study_replaces_the_tested_model(plan):
    first = tune(replace(plan, trials=1))
    later = tune(replace(plan, trials=12))
    assert later.best_trial != first.best_trial
    assert later.best_value > first.best_value
    model = seqattn.load(plan.output / "best")
    assert model.learning_rate == later.best_params["learning_rate"]


def test_a_single_file_gives_three_parts_that_do_not_overlap(data, space, tmp_path):
    rows = pl.concat(
        [
            pl.read_csv(data / f"{split}.csv").with_columns(seq_id=pl.col("seq_id") + split)
            for split in ("train", "dev")
        ]
    )
    rows.write_csv(tmp_path / "events.csv")
    plan = Plan(
        "hawkes", tmp_path / "study", data=str(tmp_path / "events.csv"), trials=1, space=space, quiet=True
    )
    outcome = tune(plan)
    parts = task.splits(tmp_path / "events.csv", task.SPLITS)
    ids = [set(part.ids.tolist()) for part in parts.values()]
    assert sum(map(len, ids)) == len(set().union(*ids)) == rows["seq_id"].n_unique()
    assert outcome.test["n_events"] == parts["test"].n_scored


def test_no_trial_starts_after_the_time_is_over(plan):
    with pytest.raises(SeqattnError, match=r"No trial .* has completed; 0 ended\."):
        tune(replace(plan, timeout=0.0))


# -- failures and pruning --------------------------------------------------------------------------------------


def test_a_failing_setting_is_recorded_and_the_study_goes_on(plan, space):
    # The width is odd, which only the fit finds out.
    rules = {**space.rules, "d_model": {"type": "choice", "choices": [8, 7]}}
    starts = {"bad": {"d_model": 7}, "good": {"d_model": 8}}
    outcome = tune(replace(plan, trials=2, space=replace(space, rules=rules, starts=starts)))
    assert (outcome.n_complete, outcome.n_failed, outcome.n_trials) == (1, 1, 2)
    assert outcome.trials[0]["state"] == "failed" or outcome.trials[0]["state"] == "fail"
    assert outcome.trials[0]["reason"].startswith("ParameterError: d_model=7 must be even")


def test_a_study_whose_first_five_trials_fail_stops_with_the_reason(plan, space):
    rules = {**space.rules, "d_model": {"type": "choice", "choices": [7, 9]}}
    hopeless = replace(plan, trials=50, space=replace(space, rules=rules, starts={}))
    with pytest.raises(SeqattnError, match=r"first 5 trials .* all failed\. The first: .*d_model="):
        tune(hopeless)
    assert states(trials_in(plan.output / "study.journal")) == ["FAIL"] * 5
    with pytest.raises(SeqattnError, match="all failed"):
        tune(hopeless)
    assert len(trials_in(plan.output / "study.journal")) == 5


def test_a_trial_that_falls_behind_is_pruned_and_counted(plan, space):
    starts = {"good": {"learning_rate": 0.03}, "bad": {"learning_rate": 1e-4}}
    quick = replace(
        space, starts=starts, startup_trials=1, warmup_epochs=1, trial={"epochs": 8, "baselines": False}
    )
    outcome = tune(replace(plan, trials=2, space=quick))
    assert (outcome.n_complete, outcome.n_pruned) == (1, 1)
    assert outcome.trials[1]["epochs"] < 8
    assert outcome.best_trial == 0


# -- several workers, interruptions ----------------------------------------------------------------------------


def command(data: Path, space_file: Path, folder: Path, trials: int, *more: str) -> list[str]:
    options = {"--data": data, "--config": space_file, "--trials": trials, "--output": folder}
    return [str(word) for pair in options.items() for word in pair] + list(more)


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def finished_trials(folder: Path) -> dict[int, Any]:
    journal = folder / "study.journal"
    if not journal.exists() or b"about" not in journal.read_bytes():
        return {}
    return {trial.number: trial for trial in trials_in(journal) if trial.state.is_finished()}


@pytest.mark.slow
def test_two_workers_end_with_exactly_the_trials_asked_for(data, space_file, tmp_path):
    result = run(*command(data, space_file, tmp_path, 6, "--workers", "2", "--json"))
    trials = trials_in(tmp_path / "study.journal")
    assert [trial.number for trial in trials] == list(range(6))
    assert states(trials) == ["COMPLETE"] * 6
    assert json.loads(result.stdout)["n_trials"] == 6
    assert len({trial.user_attrs["owner"]["pid"] for trial in trials}) == 2
    assert os.getpid() not in {trial.user_attrs["owner"]["pid"] for trial in trials}


@pytest.mark.slow
def test_two_commands_at_once_share_one_study_and_one_folder(data, space_file, tmp_path):
    words = [*command(data, space_file, tmp_path / "study", 6), "--json", "--set", "epochs=8"]
    processes = [start(*words, folder=tmp_path) for _ in range(2)]
    found = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], found
    first, second = (json.loads(out) for out, _ in found)
    assert first == second
    assert states(trials_in(tmp_path / "study" / "study.journal")) == ["COMPLETE"] * 6
    # The test data are looked at once: one of the two found the figures of the other.
    assert sum("the only look at the test data" in err for _, err in found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victims", ["all", "the first process"])
def test_a_killed_study_goes_on_and_loses_nothing(data, space_file, tmp_path, victims):
    words = command(data, space_file, tmp_path, 6, "--workers", "2", "--set", "epochs=12")
    process = start(*words, folder=tmp_path)
    wait_for(lambda: len(finished_trials(tmp_path)) >= 2, process)
    if victims == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()
    before = finished_trials(tmp_path)
    result = run(*words, "--json")
    after = trials_in(tmp_path / "study.journal")
    assert states(after) == ["COMPLETE"] * 6
    assert {number: after[number].value for number in before} == {
        n: trial.value for n, trial in before.items()
    }
    assert json.loads(result.stdout)["n_trials"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupted_study_keeps_what_is_finished_in_all_workers(data, space_file, tmp_path, workers):
    words = command(data, space_file, tmp_path, 6, "--workers", workers, "--set", "epochs=12")
    process = start(*words, folder=tmp_path)
    wait_for(lambda: len(finished_trials(tmp_path)) >= 1, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert f"Finished trials are kept with the study of '{tmp_path}'; the same command goes on." in err
    trials = trials_in(tmp_path / "study.journal")
    assert "RUNNING" not in states(trials)
    assert "FAIL" not in states(trials)
    again = run(*words)
    assert (
        f"{len(finished_trials(tmp_path)) and states(trials).count('COMPLETE')} of 6 trials done"
        in again.stderr
    )
    assert states(trials_in(tmp_path / "study.journal")) == ["COMPLETE"] * 6


@pytest.fixture
def desk(plan: Plan) -> Desk:
    settled = replace(plan, storage=str(plan.output / "study.journal"), study="s", trials=3)
    plan.output.mkdir()
    desk = Desk(settled)
    desk.prepare({}, {})
    return desk


def gone() -> dict[str, Any]:
    """Describe a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return {**myself(), "pid": process.pid}


def test_a_trial_of_a_process_that_is_gone_goes_back_with_number_and_settings(desk):
    first = desk.claim()
    first.set_user_attr("owner", gone())
    again = desk.claim()
    assert (again.number, again.params) == (first.number, first.params)


def test_a_trial_of_a_living_process_is_left_alone(desk):
    numbers = [desk.claim().number for _ in range(3)]
    assert numbers == [0, 1, 2]
    assert desk.claim() is None


def test_a_trial_whose_process_number_was_given_to_another_goes_back(desk):
    first = desk.claim()
    first.set_user_attr("owner", {**myself(), "born": "long ago"})
    assert desk.claim().number == 0


def test_a_trial_of_another_machine_goes_back_after_a_long_silence(desk):
    now = [0.0]
    desk.watch = Watch(180.0, clock=lambda: now[0])
    first = desk.claim()
    first.set_user_attr("owner", {**myself(), "host": "elsewhere"})
    assert desk.claim().number == 1
    # The clock of the other machine is of no importance, only that it tells something new.
    first.set_user_attr("seen", -1e9)
    now[0] = 170.0
    assert desk.claim().number == 2
    now[0] = 345.0
    assert desk.claim() is None
    now[0] = 351.0
    assert desk.claim().number == 0


def test_a_trial_that_ends_its_process_three_times_has_failed(desk):
    for _ in range(3):
        trial = desk.claim()
        assert trial.number == 0
        trial.set_user_attr("owner", gone())
    assert desk.claim().number == 1
    failed = desk.trials()[0]
    assert failed.state.name == "FAIL"
    assert failed.user_attrs["reason"] == (
        "Its process ended without a word. That was 3 times in a row without a new epoch."
    )


def test_an_interruption_does_not_count_as_an_end_of_its_process(desk):
    for _ in range(5):
        trial = desk.claim()
        assert (trial.number, trial.user_attrs["attempts"]) == (0, 1)
        desk.give_back()


def test_what_a_worker_finds_out_too_late_is_dropped(desk):
    slow = desk.claim()
    slow.set_user_attr("owner", gone())
    other = desk.claim()
    other.set_user_attr("owner", {**myself(), "pid": -1, "host": "elsewhere"})
    desk.finish(slow, optuna.trial.TrialState.COMPLETE, [1.0], {})
    assert desk.trials()[0].state.name == "RUNNING"


# -- storage ---------------------------------------------------------------------------------------------------


def test_sqlite_is_refused_for_several_workers_with_the_reason(data, tmp_path):
    for place in (f"sqlite:///{tmp_path}/study.db", tmp_path / "study.sqlite3"):
        result = run("--data", data, "--storage", place, "--workers", "2", "--output", tmp_path, code=2)
        assert "SQLite cannot serve 2 workers: each write locks the whole file" in result.stderr
        assert "journal" in result.stderr


def test_sqlite_serves_one_worker_and_goes_on(plan, tmp_path):
    at = replace(plan, storage=str(tmp_path / "study.db"))
    assert tune(replace(at, trials=1)).n_trials == 1
    assert tune(replace(at, trials=3)).n_complete == 3


@pytest.mark.parametrize("storage", ["study.txt", "nosuchbase://host/name"])
def test_a_storage_that_cannot_be_used_is_refused(plan, storage):
    with pytest.raises(ParameterError, match="storage"):
        tune(replace(plan, storage=storage))


def test_a_file_that_is_no_journal_is_refused(plan, tmp_path):
    (tmp_path / "notes.log").write_text("these are notes\nof somebody\n")
    with pytest.raises(ArtifactError, match=r"notes\.log' is not a journal"):
        tune(replace(plan, storage=str(tmp_path / "notes.log")))


def test_a_half_written_last_line_of_the_journal_is_no_hindrance(plan):
    tune(replace(plan, trials=2))
    journal = plan.output / "study.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 6, "worker_id": "abc')
    assert tune(replace(plan, trials=3)).n_complete == 3


def test_two_studies_share_a_storage(plan, tmp_path):
    storage = str(tmp_path / "all.journal")
    for name in ("one", "two"):
        outcome = tune(replace(plan, trials=1, storage=storage, study=name, output=tmp_path / name))
        assert (outcome.study, outcome.n_trials) == (name, 1)


# -- search spaces ---------------------------------------------------------------------------------------------


def test_a_starting_point_outside_of_the_space_is_refused(plan, space):
    with pytest.raises(ParameterError, match=r"'far' has d_model=64, outside of"):
        tune(replace(plan, space=replace(space, starts={"far": {"d_model": 64}})))


@pytest.mark.parametrize("part", ["fixed", "trial", "refit"])
def test_a_setting_that_the_estimator_does_not_know_is_refused_at_once(plan, space, part):
    with pytest.raises(ParameterError, match="'n_layer' is not a setting of 'sahp'"):
        tune(replace(plan, space=replace(space, **{part: {"n_layer": 1}})))
    assert not plan.output.exists()


def test_a_range_that_is_none_is_refused(plan, space):
    rules = {**space.rules, "n_layers": {"type": "int", "low": 3, "high": 1}}
    with pytest.raises(ParameterError, match="The searched setting 'n_layers' is"):
        tune(replace(plan, space=replace(space, rules=rules)))


def test_the_space_that_comes_with_the_package_holds_the_defaults_and_the_published_settings(tmp_path):
    from seqattn.data.catalog import resource

    space = Space.load(resource("tuning", "hawkes.toml"))
    assert next(iter(space.starts)) == "defaults"
    assert {"easytpp", "authors"} <= set(space.starts)
    # Otherwise the best of the trials is not the best of the final fits.
    assert "epochs" not in space.trial.keys() | space.refit.keys()
    assert space.fixed["epochs"] == seqattn.SAHP().epochs
    settled = Plan("hawkes", tmp_path, space=space)
    assert list(starting_points(task, settled)) == list(space.starts)
