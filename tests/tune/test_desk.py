"""Trials that machines and storages cut are run again; only settings that fail by themselves fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from toy import SPACE, toy  # noqa: F401 - a fixture is found by its name

import seqattn
from seqattn.errors import BackendError, SeqattnError, StudyError
from seqattn.train.search import Plan
from seqattn.train.space import Space
from seqattn.train.workers import myself
from seqattn.tune import tune
from seqattn.tune.desk import Desk
from seqattn.tune.storage import claims_lock, is_begun


@pytest.fixture
def plan(toy: str, tmp_path: Path) -> Plan:  # noqa: F811
    space = Space(rules=SPACE, trial={"epochs": 4}, startup_trials=100)
    return Plan(toy, tmp_path / "study", trials=3, space=space, quiet=True, device="cpu")


def open_desk(plan: Plan, **change: Any) -> Desk:
    plan.output.mkdir(exist_ok=True)
    return Desk(replace(plan, **{"storage": str(plan.output / "study.journal"), "study": "s", **change}))


@pytest.fixture
def desk(plan: Plan) -> Desk:
    desk = open_desk(plan)
    desk.prepare({}, {})
    return desk


def leave(trial: optuna.Trial) -> None:
    """Let a trial be that of a process that is gone."""
    trial.set_user_attr("owner", {**myself(), "born": "long ago"})


def break_fit(monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]) -> None:
    """Do something before each fit, which is told how many there were."""
    task, done = seqattn.task("toy"), list[int]()
    fit = task.fit

    def broken(*parts: Any, **more: Any) -> Any:
        done.append(1)
        do(len(done) - 1)
        return fit(*parts, **more)

    monkeypatch.setattr(task, "fit", broken)


def states(desk: Desk) -> list[str]:
    return [trial.state.name for trial in desk.trials()]


# -- what counts as an attempt ---------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["", "parameters"])
def test_a_long_trial_that_makes_progress_never_fails_by_interruptions(plan, second):
    desk = open_desk(plan, second=second)
    desk.prepare({}, {})
    for epoch in range(1, 7):
        trial = desk.claim()
        assert (trial.number, trial.user_attrs["attempts"]) == (0, 1)
        desk.report(trial, epoch, 0.1 * epoch)
        leave(trial)
    assert desk.claim().number == 0


def test_epochs_that_were_known_before_are_no_progress(desk, capsys):
    desk.plan = replace(desk.plan, quiet=False)
    trial = desk.claim()
    desk.report(trial, 1, 0.5)
    leave(trial)
    for _ in range(3):
        trial = desk.claim()
        assert trial.number == 0
        leave(trial)
    assert desk.claim().number == 1
    assert states(desk)[0] == "FAIL"
    # A trial that is given up is told like any other.
    assert "trial 0: failed: Its process ended without a word. That was 3 times" in capsys.readouterr().err


def test_the_order_to_stop_gives_the_trial_back(plan, monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            break_fit(patch, lambda count: os.kill(os.getpid(), signal.SIGTERM))
            for _ in range(4):
                with pytest.raises(KeyboardInterrupt):
                    tune(plan)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert tune(plan).n_complete == 3


def test_a_storage_that_failed_does_not_count(plan, monkeypatch):
    def fail(count: int) -> None:
        raise optuna.exceptions.StorageInternalError("gone")

    with monkeypatch.context() as patch:
        break_fit(patch, fail)
        for _ in range(4):
            with pytest.raises(SeqattnError, match="storage .* failed: gone.* the same call goes on"):
                tune(plan)
    assert tune(plan).n_complete == 3


# -- trouble of the machine ------------------------------------------------------------------------------------


def test_a_full_disk_is_no_fault_of_the_settings(plan, monkeypatch):
    def fail(count: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        break_fit(patch, fail)
        for _ in range(4):
            with pytest.raises(
                SeqattnError, match=r"cannot go on: OSError.*No space left.* same call goes on"
            ):
                tune(plan)
    assert tune(plan).n_complete == 3


def test_settings_that_always_use_up_the_memory_fail_at_last(plan, monkeypatch):
    def fail(count: int) -> None:
        if count < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    with monkeypatch.context() as patch:
        break_fit(patch, fail)
        for _ in range(3):
            with pytest.raises(SeqattnError, match="three times in a row"):
                tune(plan)
        outcome = tune(plan)
    assert [trial["state"] for trial in outcome.trials] == ["fail", "complete", "complete"]
    assert outcome.trials[0]["reason"].startswith("OutOfMemoryError: CUDA out of memory")
    assert outcome.trials[0]["reason"].endswith("That was 3 times in a row without a new epoch.")


def test_a_device_that_is_not_there_ends_the_call_and_no_trial(plan):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BackendError, match="cuda"):
        tune(replace(plan, device="cuda"))
    assert not plan.output.exists()


def test_settings_that_failed_are_run_again_and_not_repeated(plan):
    desk = open_desk(plan)
    start = {"rate": 0.02, "width": 2}
    desk.prepare({}, {"one": (start, {}), "two": (start, {})})
    desk.finish(desk.claim(), TrialState.FAIL, None, {"reason": "ValueError: by accident"})
    again = desk.claim()
    assert (again.number, again.params) == (1, start)


def test_a_hopeless_study_says_what_to_do(plan):
    space = replace(plan.space, rules={**SPACE, "width": {"type": "choice", "choices": [3, 5]}})
    with pytest.raises(StudyError, match="choose another study name or another output folder") as caught:
        tune(replace(plan, trials=6, space=space))
    assert [trial["state"] for trial in caught.value.outcome.trials] == ["fail"] * 5
    assert [trial["feasible"] for trial in caught.value.outcome.trials] == [None] * 5


# -- the beginning of a study ----------------------------------------------------------------------------------


def test_a_study_cut_at_its_beginning_has_each_starting_point_once(plan, monkeypatch):
    starts = {
        name: ({"rate": rate, "width": 2}, {}) for name, rate in (("a", 0.01), ("b", 0.02), ("c", 0.03))
    }
    desk = open_desk(plan)
    enqueue, done = desk.study.enqueue_trial, list[int]()

    def cut(*parts: Any, **more: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        enqueue(*parts, **more)

    with monkeypatch.context() as patch:
        patch.setattr(desk.study, "enqueue_trial", cut)
        with pytest.raises(KeyboardInterrupt):
            desk.prepare({}, starts)
    assert not is_begun(desk.plan.storage, "s")
    again = open_desk(plan)
    again.prepare({}, starts)
    assert [trial.user_attrs["name"] for trial in again.trials()] == ["a", "b", "c"]
    assert is_begun(desk.plan.storage, "s")
    assert not is_begun(str(plan.output / "none.journal"), "s")
    assert not (plan.output / "none.journal").exists()


def test_a_misspelt_setting_is_refused_before_anything_runs(plan):
    space = replace(plan.space, rules={**SPACE, "widht": SPACE["width"]})
    with pytest.raises(SeqattnError, match=r"'widht' is not a setting of 'line'.*Did you mean 'width'"):
        tune(replace(plan, space=space))
    assert not plan.output.exists()


# -- signs of life ---------------------------------------------------------------------------------------------


def test_a_sign_of_life_for_a_trial_that_ended_meanwhile_ends_the_heartbeat(desk, monkeypatch):
    trial = desk.claim()
    monkeypatch.setattr(desk, "_is_mine", lambda number: True)
    desk.study.tell(trial.number, state=TrialState.FAIL)
    assert desk.beat(trial.number) is False


def test_a_full_disk_does_not_end_the_heartbeat(desk, monkeypatch):
    trial = desk.claim()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(desk.storage, "set_trial_user_attr", fail)
    assert desk.beat(trial.number) is True


# -- several commands ------------------------------------------------------------------------------------------


def test_commands_with_different_folders_share_the_lock_of_an_sqlite_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with claims_lock(f"sqlite:///{tmp_path}/study.db", "s"):
        assert [path.name for path in tmp_path.iterdir()] == ["study.db.claims.lock"]
        other = claims_lock("sqlite:///study.db", "s")
        assert other.acquire(wait=False) is False


def test_what_is_told_of_a_study_larger_than_asked_for(plan, capsys):
    tune(plan)
    tune(replace(plan, trials=2, quiet=False))
    assert "2 of 2 trials done; the study holds 3, all of which count" in capsys.readouterr().err


def test_no_more_workers_start_than_trials_are_left(plan, monkeypatch):
    tune(replace(plan, trials=2))
    counts = []
    monkeypatch.setattr(
        "seqattn.tune.search.run_processes",
        lambda work, arguments, count: counts.append(count) or [0] * count,
    )
    tune(plan, workers=5)
    assert counts == [1]


def test_costs_are_told_with_their_units(plan, capsys):
    tune(replace(plan, trials=1, limits={"parameters": 1e6, "seconds_per_1000": 1e6}, quiet=False))
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("trial 0"))
    assert " weights, " in line
    assert " s per 1,000 predictions" in line
