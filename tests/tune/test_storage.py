"""Studies in a PostgreSQL database: one total over all processes, nothing finished lost, no password told."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import postgres
import pytest
import sqlalchemy
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
    first = start(*words, "--output", "a", "--json", folder=tmp_path)
    with killed_at_the_end(first):
        # It stands still, with a trial in hand and something finished, until another has done some of the work.
        finished = stopped_with_a_trial(first, url)
        second = start(*words, "--output", "b", "--json", folder=tmp_path)
        with killed_at_the_end(second):
            wait_for(
                lambda: any(_owner(trial) == second.pid for trial in trials_in(url, "shared")), second, 60.0
            )
            first.kill()
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


@contextlib.contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def stopped_with_a_trial(process: subprocess.Popen[str], url: str) -> dict[int, Any]:
    """Stop a worker that has a trial in hand, and return the trials finished so far, of which there are some."""
    wait_for(lambda: trials_in(url, "shared"), process)
    while True:
        # A trial may take less time than a look at the database.
        process.send_signal(signal.SIGSTOP)
        trials = trials_in(url, "shared")
        finished = {trial.number: trial for trial in trials if trial.state.is_finished()}
        if finished and any(_is_run_by(process.pid, trial) for trial in trials):
            return finished
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()


def wait_for(happened: Callable[[], Any], process: subprocess.Popen[str], at_most: float = math.inf) -> None:
    """Wait until something happened, or for as long as it may take: one that stands still may hold the lock."""
    until = time.monotonic() + at_most
    while not happened() and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def _is_run_by(pid: int, trial: optuna.trial.FrozenTrial) -> bool:
    return trial.state.name == "RUNNING" and _owner(trial) == pid


def _owner(trial: optuna.trial.FrozenTrial) -> int | None:
    return (trial.user_attrs.get("owner") or {}).get("pid")


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


@contextlib.contextmanager
def restarting(url: str) -> Iterator[None]:
    """Stop the server, and start it while the block runs."""
    folder = Path(url.rpartition("host=")[2])
    postgres.control(folder, "stop")
    starting = threading.Thread(target=postgres.control, args=(folder, "start"))
    starting.start()
    try:
        yield
    finally:
        starting.join()


@pytest.mark.slow
def test_a_server_that_restarts_costs_nothing(plan, url):
    desk = Desk(replace(plan, study="restart", trials=2))
    desk.prepare({}, {})
    with restarting(url):
        first = desk.claim()
    with restarting(url):
        desk.report(first, 1, 0.25)
    with restarting(url):
        assert desk.finish(first, optuna.trial.TrialState.COMPLETE, [0.5], {"epochs": 1})
    with restarting(url):
        assert desk.trials()[0].values == [0.5]
    assert desk.claim().number == 1
    assert [trial.state.name for trial in desk.trials()] == ["COMPLETE", "RUNNING"]
    assert desk.claim() is None
    assert desk.trials()[0].intermediate_values == {1: 0.25}


@pytest.mark.parametrize("call", ["claim", "finish"])
@pytest.mark.parametrize("cut", [1, 3, 5, 8])
def test_a_connection_lost_anywhere_leaves_the_total_exact(plan, monkeypatch, call, cut):
    desk = Desk(replace(plan, study=f"lost {call} {cut}", trials=2))
    desk.prepare({}, {})
    trial = desk.claim() if call == "finish" else None
    calls = []

    def losing(method: Any) -> Any:
        def lose(*parts: Any, **more: Any) -> Any:
            given = method(*parts, **more)
            calls.append(1)
            if len(calls) == cut:  # what was written is there, and only the answer is lost
                raise sqlalchemy.exc.OperationalError("", None, Exception("server closed the connection"))
            return given

        return lose

    for name in ("create_new_trial", "set_trial_user_attr", "set_trial_state_values", "set_trial_param"):
        monkeypatch.setattr(desk.storage, name, losing(getattr(desk.storage, name)))
    if call == "claim":
        trial = desk.claim()
    assert desk.finish(trial, optuna.trial.TrialState.COMPLETE, [0.5], {"epochs": 1, "seconds": 1.0})
    assert len(calls) >= min(cut, 3)
    second = desk.claim()
    assert (trial.number, second.number) == (0, 1)
    assert desk.claim() is None
    assert [trial.state.name for trial in desk.trials()] == ["COMPLETE", "RUNNING"]


def test_a_lock_that_hangs_can_be_left(url):
    before = signal.getsignal(signal.SIGINT)
    holding, release = threading.Event(), threading.Event()
    holder = threading.Thread(target=_hold, args=(claims_lock(url, "hang"), holding, release))
    holder.start()
    assert holding.wait(30)
    rescue = threading.Timer(20, release.set)
    rescue.start()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), claims_lock(url, "hang"):
        pass
    assert not release.is_set()
    rescue.cancel()
    release.set()
    holder.join()
    assert signal.getsignal(signal.SIGINT) is before


def _hold(lock: Any, holding: threading.Event, release: threading.Event) -> None:
    with lock:
        holding.set()
        release.wait()


@pytest.mark.parametrize(
    "place", ["postgresql://ada:sec:ret@ho st:port/x", "postgresql://ada:se@cret:x@h:p/x"]
)
def test_a_url_that_cannot_be_read_says_so_and_names_the_form(place):
    with pytest.raises(
        ParameterError, match="no URL that can be read.*postgresql://USER@HOST:PORT/DATABASE"
    ) as caught:
        open_storage(place)
    assert "ret" not in str(caught.value)


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
