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
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch

__all__ = ["FileLock", "become_worker", "is_alive", "is_orphan", "myself", "run_processes", "undisturbed"]

# Another host's processes cannot be looked at; they are given up when they were silent for this long, in seconds.
_SILENCE = 1800.0
# Seconds in which a worker gives back what it has in hand.
_PATIENCE = 20.0


def myself() -> dict[str, Any]:
    """Return what tells this process from every other one, as JSON values."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}


def is_alive(process: dict[str, Any], seen: float) -> bool:
    """Return whether a process may still be at work.

    Parameters
    ----------
    process
        What :func:`myself` returned there.
    seen
        When it was last heard of, in seconds since 1970. Counts only for processes of other hosts.
    """
    if process["host"] != socket.gethostname():
        return time.time() - seen < _SILENCE
    born = _born(process["pid"])
    return born is not None and born == process["born"]


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
    """Put off Ctrl-C and the order to stop until the block is left, so that no file or lock is left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught: list[signal.Signals] = []
    mine = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in mine:
        signal.signal(number, lambda signum, frame: caught.append(signal.Signals(signum)))
    try:
        yield
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)
        for number in caught[:1]:
            mine[number](number, None)


class FileLock:
    """A lock among processes; the system lifts it when its holder ends, however it ends.

    In a ``with`` block interruptions wait until the lock is released.

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
        self._stack = contextlib.ExitStack()
        with self._stack:
            self._stack.enter_context(undisturbed())
            self.acquire()
            self._stack.callback(self.release)
            self._stack = self._stack.pop_all()

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


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
