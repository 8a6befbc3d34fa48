"""Studies in a PostgreSQL database: one total over all processes, nothing finished lost, no password told."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import postgres
import pytest
from small_events import write_splits

from seqattn.errors import MissingDependencyError, ParameterError, SeqattnError
from seqattn.train.search import Plan
from seqattn.train.space import Space
from seqattn.tune import tune
from seqattn.tune.desk import Desk
from seqattn.tune.storage import claims_lock, explained, open_storage, shown

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "import sys; from seqattn.cli import main; sys.argv[0] = 'seqattn'; main()"
SPACE = """
model = "sahp"
[space]
learning_rate = { type = "float", low = 1e-4, high = 1e-1, log = true }
d_model = { type = "choice", choices = [4, 8] }
[fixed]
n_heads = 1
n_layers = 1
[trial]
epochs = 6
baselines = false
[refit]
epochs = 1
baselines = false
[pruning]
startup_trials = 100
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    why = postgres.missing() or (None if importlib.util.find_spec("psycopg") else "psycopg is not installed")
    if why:
        pytest.skip(why)
    with postgres.server() as address:
        yield address


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data") / "clicks")


@pytest.fixture(scope="module")
def space_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def plan(data: Path, space_file: Path, tmp_path: Path, url: str) -> Plan:
    space = Space.load(space_file)
    return Plan("hawkes", tmp_path, data=str(data), trials=3, storage=url, space=space, quiet=True)


def trials_in(url: str, name: str) -> list[optuna.trial.FrozenTrial]:
    """Read the trials of a study with nothing but Optuna."""
    address = url.replace("postgresql://", "postgresql+psycopg://")
    storage = optuna.storages.RDBStorage(address)
    try:
        known = {study.study_name for study in optuna.get_all_study_summaries(storage)}
        return optuna.load_study(study_name=name, storage=storage).trials if name in known else []
    finally:
        storage.remove_session()
        storage.engine.dispose()


def start(*words: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "tune", "hawkes", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_no_trial(url, data, space_file, tmp_path):
    # Two folders, as on two machines: nothing is shared but the database.
    options = {"--data": data, "--config": space_file, "--trials": 8, "--storage": url, "--study": "shared"}
    words = [str(word) for pair in options.items() for word in pair]
    first, second = (start(*words, "--output", name, "--json", folder=tmp_path) for name in ("a", "b"))
    finished: dict[int, Any] = {}
    # It is killed while it has a trial in hand, and after something was finished.
    while not (finished and any(_is_run_by(first.pid, trial) for trial in trials_in(url, "shared"))):
        assert first.poll() is None, first.communicate()
        finished = {trial.number: trial for trial in trials_in(url, "shared") if trial.state.is_finished()}
    os.kill(first.pid, signal.SIGKILL)
    killed_out, killed_err = first.communicate()
    out, err = second.communicate(timeout=500)
    assert second.returncode == 0, err
    trials = trials_in(url, "shared")
    assert [trial.number for trial in trials] == list(range(8))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert json.loads(out)["n_trials"] == 8
    for number, before in finished.items():
        assert (trials[number].value, trials[number].params) == (before.value, before.params)
    written = "".join(
        path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".toml", ".json", ".csv")
    )
    assert "learning_rate" in written
    for text in (killed_out, killed_err, out, err, written):
        assert "swordfish" not in text
    assert "ada:***@" in err


def _is_run_by(pid: int, trial: optuna.trial.FrozenTrial) -> bool:
    owner = trial.user_attrs.get("owner") or {}
    return trial.state.name == "RUNNING" and owner.get("pid") == pid


@pytest.mark.slow
def test_a_study_is_the_same_in_a_database_and_in_a_journal(plan, tmp_path):
    left_out = ("seconds",)
    there = tune(replace(plan, output=tmp_path / "there", study="same"))
    here = tune(replace(plan, output=tmp_path / "here", storage="", study="same"))
    for one, other in zip(there.trials, here.trials, strict=True):
        assert {key: one[key] for key in one if key not in left_out} == {
            key: other[key] for key in other if key not in left_out
        }
    assert there.test == here.test


def test_trials_that_many_take_at_once_are_taken_once(plan):
    # Each thread has a desk, and with it connections, of its own.
    desks = [Desk(replace(plan, study="rush", trials=9)) for _ in range(3)]
    desks[0].prepare({}, {})
    taken: list[int] = []

    def take(desk: Desk) -> None:
        while (trial := desk.claim()) is not None:
            taken.append(trial.number)

    threads = [threading.Thread(target=take, args=(desk,)) for desk in desks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(9))
    assert [trial.number for trial in desks[0].trials()] == list(range(9))


def test_an_interrupted_trial_goes_back_into_the_database(plan):
    desk = Desk(replace(plan, study="back"))
    desk.prepare({}, {})
    first = desk.claim()
    desk.give_back()
    assert [trial.state.name for trial in desk.trials()] == ["WAITING"]
    again = desk.claim()
    assert (again.number, again.params) == (first.number, first.params)


def test_the_lock_of_a_study_keeps_others_out(url):
    mine, theirs, other = (claims_lock(url, name) for name in ("one", "one", "another"))
    order: list[str] = []

    def wait() -> None:
        with theirs:
            order.append("they")

    waiting = threading.Thread(target=wait)
    with mine:
        waiting.start()
        with other:
            order.append("another study")
        waiting.join(0.3)
        order.append("mine is over")
    waiting.join()
    assert order == ["another study", "mine is over", "they"]


def test_a_wrong_password_is_refused_and_not_told(plan, url):
    wrong = url.replace("swordfish", "mackerel")
    with pytest.raises(ParameterError, match=r"'postgresql://ada:\*\*\*@.*cannot be opened: ") as caught:
        tune(replace(plan, storage=wrong))
    assert "mackerel" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_password_is_not_told():
    address = "postgresql+psycopg://ada:secret@host:5432/studies"
    assert shown(address) == "postgresql+psycopg://ada:***@host:5432/studies"
    assert (
        shown("postgresql://host/a?user=ada&password=secret") == "postgresql://host/a?password=***&user=ada"
    )
    assert shown("postgresql://ada:sec:ret@ho st:port/x") == "postgresql://***"
    assert shown("runs/study.journal") == "runs/study.journal"
    with (
        pytest.raises(SeqattnError, match="failed: login of ada with \\*\\*\\*") as caught,
        explained(address),
    ):
        raise optuna.exceptions.StorageInternalError("login of ada with secret")
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'seqattn\[postgres\]'"):
        open_storage("postgresql://host/studies")
