"""Processes that work at the same time: started, told to stop, and recognised when they are gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch

__all__ = [
    "FileLock",
    "Heartbeat",
    "Watch",
    "become_worker",
    "is_alive",
    "is_device_trouble",
    "is_orphan",
    "myself",
    "run_processes",
    "stoppable",
    "undisturbed",
]

# Seconds between two signs of life, and without one after which a process on another machine is given up.
_BEAT = 20.0
_SILENCE = 180.0
# Seconds in which a worker gives back what it has in hand.
_PATIENCE = 20.0
# Seconds between two looks at a lock that somebody else holds: at first, and at most.
_FIRST_LOOK, _LAST_LOOK = 0.001, 0.05
# What PyTorch says, without a class of its own, when memory ran out or a GPU failed.
_TROUBLES = ("CUDA error", "CUDA out of memory", "cuDNN error", "CUBLAS_STATUS", "can't allocate memory")


def myself() -> dict[str, Any]:
    """Return what tells this process from every other one, as JSON values."""
    return {"host": socket.gethostname(), "kernel": _kernel(), "pid": os.getpid(), "born": _born(os.getpid())}


def _kernel() -> str:
    """Return what tells this machine's process numbers from those of others with its name, such as containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def is_alive(process: dict[str, Any]) -> bool | None:
    """Return whether a process is still at work; None if it is on another machine, where it cannot be looked at.

    Parameters
    ----------
    process
        What :func:`myself` returned there.
    """
    if (process["host"], process.get("kernel", "")) != (socket.gethostname(), _kernel()):
        return None
    born = _born(process["pid"])
    return born is not None and born == process["born"]


class Watch:
    """Notices who has been silent for long, by the clock of this process: those of two machines may differ.

    Parameters
    ----------
    patience
        Seconds without a new sign of life after which somebody is given up.
    clock
        Returns the time in seconds.
    """

    def __init__(self, patience: float = _SILENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._heard: dict[Hashable, tuple[Any, float]] = {}

    def is_silent(self, who: Hashable, sign: Any) -> bool:
        """Return whether the last sign of life has not changed for too long.

        Parameters
        ----------
        who
            Whose sign it is.
        sign
            Something that differs from sign to sign.
        """
        now = self._clock()
        if who not in self._heard or self._heard[who][0] != sign:
            self._heard[who] = (sign, now)
        return now - self._heard[who][1] >= self._patience


class Heartbeat(contextlib.AbstractContextManager[None]):
    """Gives signs of life from a thread of its own while a block runs, however long its steps take.

    Parameters
    ----------
    beat
        Gives a sign of life, and returns whether to go on.
    every
        Seconds between two.
    """

    def __init__(self, beat: Callable[[], bool], every: float = _BEAT) -> None:
        self._over = threading.Event()
        self._beat, self._every = beat, every
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.wait(self._every) and self._beat():
            pass

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._thread.join()


def _born(pid: int) -> str | None:
    """Return what tells a process from a later one with its number; None if it is gone."""
    if Path("/proc/self/stat").exists():
        try:
            words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (OSError, UnicodeDecodeError):
            return None
        return None if words[0] in "ZX" else words[19]
    if os.name != "posix":  # there a signal, even 0, would end the process
        return "unknown" if pid == os.getpid() else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def is_orphan() -> bool:
    """Return whether this is a worker and the process that started it is gone."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def run_processes(work: Callable[..., None], arguments: tuple[Any, ...], count: int) -> list[int | None]:
    """Run a function in several fresh processes, and wait for them.

    Ctrl-C reaches only this process, which asks the others to stop and waits until they have.

    Parameters
    ----------
    work
        A function of a module; it calls :func:`become_worker` first.
    arguments
        What it is called with.
    count
        Number of processes.

    Returns
    -------
    Exit codes.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=arguments) for _ in range(count)]
    try:
        with _deaf():
            for process in processes:
                process.start()
        for process in processes:
            # Not join at once: polars handles Ctrl-C so that waiting for a process without end goes on.
            connection.wait([process.sentinel])
            process.join()
    finally:
        _stop([process for process in processes if process.is_alive()])
    return [process.exitcode for process in processes]


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ignore Ctrl-C, and let processes that are started meanwhile inherit that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put off Ctrl-C and the order to stop until the block is left, so that no file or lock is left half done.

    Whoever asks once more, for example because a server hangs, is heard at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught: list[signal.Signals] = []
    mine = {number: handler for number, handler in handlers.items() if callable(handler)}

    def put_off(number: int, frame: FrameType | None) -> None:
        if caught:
            mine[signal.Signals(number)](number, frame)
        caught.append(signal.Signals(number))

    for number in mine:
        signal.signal(number, put_off)
    try:
        yield
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)
        for number in caught[:1]:
            mine[number](number, None)


class FileLock:
    """A lock among processes; the system lifts it when its holder ends, however it ends.

    In a ``with`` block interruptions end the wait for the lock; once it is held, they wait until it is released.

    Parameters
    ----------
    path
        File that stands for the lock. It is made, stays empty, and is never removed.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._held: list[Any] = []

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock, and return whether it is held.

        Parameters
        ----------
        wait
            Whether to wait until no other process holds it.
        """
        file = self._path.open("ab")
        if not _lock(file, wait):
            file.close()
            return False
        self._held.append(file)
        return True

    def release(self) -> None:
        """Let the next process have the lock."""
        self._held.pop().close()

    def __enter__(self) -> None:
        pause = _FIRST_LOOK
        while not self._enter():
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK)

    def _enter(self) -> bool:
        """Take the lock if it is free, and let interruptions wait from then on."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(undisturbed())
            if not self.acquire(wait=False):
                return False
            stack.callback(self.release)
            self._stack = stack.pop_all()
        return True

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


if sys.platform == "win32":
    import msvcrt

    def _lock(file: Any, wait: bool) -> bool:
        while True:
            with contextlib.suppress(OSError):  # it gives up after ten seconds
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return True
            if not wait:
                return False

else:
    import fcntl

    def _lock(file: Any, wait: bool) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def become_worker() -> None:
    """Make this process a worker: one thread, no warnings, and KeyboardInterrupt when it is told to stop."""
    signal.signal(signal.SIGTERM, _interrupt)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the first process has given those that concern the data


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let the order to stop interrupt the block as Ctrl-C does, unless the caller has a use of its own for it."""
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if threading.current_thread() is not threading.main_thread() or not is_free:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def is_device_trouble(error: BaseException) -> bool:
    """Return whether memory ran out or a GPU failed: trouble of the machine, though settings may have caused it.

    Parameters
    ----------
    error
        What a fit raised.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TROUBLES)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
