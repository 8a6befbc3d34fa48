from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from seqattn.train.workers import (
    FileLock,
    Heartbeat,
    Watch,
    is_alive,
    is_device_trouble,
    is_orphan,
    myself,
    run_processes,
    stoppable,
    undisturbed,
)

# Workers import this file, and find the folder where they leave traces in the environment.
PLACE = "SEQATTN_TEST_PLACE"


def leave_a_trace(text: str) -> None:
    Path(os.environ[PLACE], f"{os.getpid()}").write_text(text)


def test_this_process_is_alive_and_no_orphan():
    assert is_alive(myself())
    assert not is_orphan()


def test_a_process_that_ended_is_not_alive():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    there = {**myself(), "pid": process.pid, "born": None}
    born = Path(f"/proc/{process.pid}/stat")
    if born.exists():
        there["born"] = born.read_text().rpartition(")")[2].split()[19]
        assert is_alive(there)
    process.kill()
    deadline = time.monotonic() + 20
    while is_alive(there):  # not yet waited for: what is left of it counts as gone
        assert time.monotonic() < deadline
    process.communicate()
    assert not is_alive(there)


def test_a_later_process_with_the_same_number_is_another():
    assert not is_alive({**myself(), "born": "0"})


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"kernel": "another boot"}])
def test_a_process_that_cannot_be_looked_at_is_neither_alive_nor_gone(change):
    assert is_alive({**myself(), **change}) is None


def test_silence_is_counted_from_the_last_sign_by_the_clock_here():
    now = [100.0]
    watch = Watch(10.0, clock=lambda: now[0])
    assert not watch.is_silent("a", 1)
    now[0] = 109.0
    assert not watch.is_silent("a", 1)
    assert not watch.is_silent("b", 1)
    now[0] = 110.0
    assert watch.is_silent("a", 1)
    assert not watch.is_silent("a", 2)
    assert not watch.is_silent("b", 1)
    now[0] = 119.0
    assert watch.is_silent("b", 1)


def test_a_heart_beats_while_a_block_runs_and_stops_when_told():
    beats = threading.Semaphore(0)

    def beat() -> bool:
        beats.release()
        return True

    with Heartbeat(beat, every=0.001):
        assert all(beats.acquire(timeout=20) for _ in range(3))
    while beats.acquire(blocking=False):
        pass
    assert not beats.acquire(timeout=0.05)

    last = []
    told = threading.Event()
    with Heartbeat(lambda: bool(last.append(1) or told.set()), every=0.001):
        assert told.wait(20)
        told.clear()
        assert not told.wait(0.05)
    assert last == [1]


@pytest.mark.slow
def test_processes_run_apart_and_their_exit_codes_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv(PLACE, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    assert run_processes(leave_a_trace, ("hello",), 2) == [0, 0]
    traces = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert list(traces.values()) == ["hello", "hello"]
    assert str(os.getpid()) not in traces


def test_an_interruption_waits_until_the_block_is_left():
    done = []

    def interrupted() -> None:
        with undisturbed():
            with undisturbed():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("after")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with undisturbed():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_in_the_block_leaves_the_handlers_as_they_were():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="mine"), undisturbed():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is before


HOLD = """
import sys, time
from seqattn.train.workers import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_others_out_and_ends_with_its_holder(tmp_path):
    path = tmp_path / "a.lock"
    root = Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        taken: list[float] = []
        mine = FileLock(path)
        waiting = threading.Thread(target=lambda: mine.acquire() and taken.append(time.monotonic()))
        waiting.start()
        waiting.join(0.3)
        assert not taken
        killed = time.monotonic()
        holder.kill()
        waiting.join(30)
        mine.release()
    assert taken[0] >= killed


def test_an_interruption_waits_until_the_lock_is_released(tmp_path):
    done = []

    def interrupted() -> None:
        with FileLock(tmp_path / "a.lock"):
            os.kill(os.getpid(), signal.SIGINT)
            done.append("in")
        done.append("after")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["in"]
    with FileLock(tmp_path / "a.lock"):
        done.append("free")
    assert done == ["in", "free"]


def test_the_wait_for_a_lock_can_be_interrupted(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    holder = FileLock(tmp_path / "a.lock")
    holder.acquire()
    # The last resort, so that a wait that hears nothing fails and does not hang.
    rescue = threading.Timer(5.0, holder.release)
    rescue.start()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), FileLock(tmp_path / "a.lock"):
        pass
    assert time.monotonic() - started < 4.0
    rescue.cancel()
    holder.release()
    assert signal.getsignal(signal.SIGINT) is before
    with FileLock(tmp_path / "a.lock"):
        pass


def test_a_second_interruption_is_heard_at_once():
    done = []

    def interrupted() -> None:
        with undisturbed():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("first")
            os.kill(os.getpid(), signal.SIGINT)
            done.append("second")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["first"]


def test_the_order_to_stop_interrupts_as_ctrl_c_does():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        heard = []
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        with stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_memory_that_ran_out_is_no_fault_of_the_program():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_device_trouble(caught.value)
    assert is_device_trouble(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_device_trouble(MemoryError())
    assert not is_device_trouble(RuntimeError("shapes do not fit"))
    assert not is_device_trouble(ValueError("CUDA error"))


def test_a_lock_that_cannot_be_had_leaves_the_handlers_as_they_were(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(FileNotFoundError), FileLock(tmp_path / "none" / "a.lock"):
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_a_lock_that_is_held_is_not_waited_for_if_so_asked(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire(wait=False)
    assert not second.acquire(wait=False)
    first.release()
    assert second.acquire(wait=False)
    second.release()


@pytest.mark.slow
def test_ctrl_c_is_heard_at_once_though_polars_handles_it_too(tmp_path):
    (tmp_path / "napping.py").write_text(
        "import pathlib, time\ndef nap(path): pathlib.Path(path).touch(), time.sleep(60)\n"
    )
    code = "import sys, polars, napping; from seqattn.train.workers import run_processes as run; "
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code} run(napping.nap, (sys.argv[1],), 1)", str(tmp_path / "begun")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), str(tmp_path)]),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert "KeyboardInterrupt" in errors
