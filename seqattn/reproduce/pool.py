"""Processes that run cells, one per cell, handed out by joblib: on this machine or by an engine that it knows."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import joblib
from joblib import parallel

import seqattn
from seqattn.errors import BackendError, MissingDependencyError, ParameterError
from seqattn.train.config import check_names
from seqattn.train.folder import make_folder

__all__ = ["Launcher", "backends", "run_all"]

_CODE = "from seqattn.reproduce.cell import main; main()"
# Seconds in which a cell that is told to stop does.
_PATIENCE = 20.0


class Launcher:
    """Runs a cell in a process of its own and returns its outcome, whatever becomes of the process.

    Parameters
    ----------
    say
        Told when a cell begins; where the launcher is sent to another process, nobody is.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._running: list[subprocess.Popen[bytes]] = []
        self._is_stopping = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Launcher, ()

    def __call__(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Run a cell and wait for it.

        Parameters
        ----------
        order
            As for :func:`seqattn.reproduce.cell.run`, with ``key``, ``title`` and ``threads``.

        Returns
        -------
        ``key``; ``status``: "complete" with the figures, "failed" with the ``reason``, or "interrupted".
        """
        if self._is_stopping:
            return {"key": order["key"], "status": "interrupted"}
        log = make_folder(order["folder"]) / "log.txt"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", _CODE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(order["threads"]),
                start_new_session=True,  # Ctrl-C in a terminal is for the first process, which passes it on
            )
        self._running.append(process)
        if self._say is not None:
            self._say(f"{order['title']}: begins (process {process.pid})")
        outcome = self._outcome(process, json.dumps(order).encode() + b"\n", log)
        return {"key": order["key"], **outcome}

    def _outcome(self, process: subprocess.Popen[bytes], order: bytes, log: Path) -> dict[str, Any]:
        with cast(IO[bytes], process.stdin) as there:
            with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit code tells more
                there.write(order)
                there.flush()
            process.stdin = None  # it stays open as long as the answer is awaited
            answer = _answer(process)
        code = process.returncode
        if code == 0:
            return dict(json.loads(answer.splitlines()[-1]))
        if self._is_stopping:
            return {"status": "interrupted"}
        return {"status": "failed", "reason": _reason(code, log)}

    def stop(self) -> None:
        """Tell the processes that run to stop, and wait until they have; no further one starts."""
        self._is_stopping = True
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answer(process: subprocess.Popen[bytes]) -> bytes:
    """Return what a process writes until it ends."""
    # Waiting without end would not hear Ctrl-C: polars handles that signal so that a blocked read goes on.
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_PATIENCE)[0]


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a cell: this package, and threads that do not spin while they wait."""
    path = os.pathsep.join(
        filter(None, [str(Path(seqattn.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    given = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    return {**given, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def _reason(code: int, log: Path) -> str:
    """Say in words how a process ended that gave no answer."""
    if code == -signal.SIGKILL:
        return "The process was killed (SIGKILL): by a person, or because the memory was not enough."
    if code < 0:
        return f"The process was ended by {signal.Signals(-code).name}."
    if code == 130:
        return "The process was told to stop (SIGTERM)."
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"The process ended with exit code {code}: {lines[-1] if lines else 'without a word'}"


def backends() -> list[str]:
    """Return the names of what can hand out cells: "local", and what joblib knows besides.

    Examples
    --------
    >>> {"local", "dask"} <= set(backends())
    True
    """
    return list(dict.fromkeys(["local", *parallel.EXTERNAL_BACKENDS, *parallel.BACKENDS]))


def run_all(
    orders: Iterable[Mapping[str, Any]],
    launcher: Launcher,
    workers: int = 1,
    backend: str = "local",
    scheduler: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Run cells and yield their outcomes in the order in which they end.

    Parameters
    ----------
    orders
        What is run.
    launcher
        Runs one.
    workers
        How many run at the same time. With a ``scheduler`` its workers decide.
    backend
        One of :func:`backends`. "local" takes processes of this machine, "dask" workers of dask.distributed: two
        of this machine, say, with ``workers=2``, or those of a scheduler.
    scheduler
        Address of a scheduler that runs already.

    Raises
    ------
    ParameterError
        There is no such backend, or a scheduler was given to one that has none.
    MissingDependencyError
        The backend's package is not installed.
    BackendError
        No scheduler answers at the address.
    """
    check_names([backend], backends(), "a backend")
    if scheduler is not None and backend != "dask":
        raise ParameterError(
            f"backend={backend!r} has no scheduler. Use backend='dask', or leave the scheduler out."
        )
    # Each cell has its own process in any case; here threads only wait for them.
    name = "threading" if backend == "local" else backend
    with _engine(backend, workers, scheduler), joblib.parallel_config(name, n_jobs=workers):
        pool = joblib.Parallel(batch_size=1, pre_dispatch="all", return_as="generator_unordered")
        yield from pool(joblib.delayed(launcher)(order) for order in orders)


@contextlib.contextmanager
def _engine(backend: str, workers: int, scheduler: str | None) -> Iterator[None]:
    """Start what a backend needs, and end it afterwards."""
    if backend != "dask":
        yield
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingDependencyError(
            "backend='dask' needs dask.distributed: pip install 'seqattn[dask]'."
        ) from error
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
            )
            scheduler = stack.enter_context(cluster).scheduler_address
        try:
            client = Client(scheduler)
        except OSError as error:
            raise BackendError(
                f"No Dask scheduler answers at {scheduler!r}. Start one, or correct it."
            ) from error
        stack.enter_context(client)
        yield
