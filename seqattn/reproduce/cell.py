"""One cell of a grid in a process of its own: data and settings come in as a line of JSON, its figures go out as one.

The process ends when the one that started it is gone. It keeps a checkpoint after each epoch, so that the same cell
goes on from there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import seqattn
from seqattn.errors import DataError, SeqattnError
from seqattn.reproduce.results import deciding
from seqattn.train.callbacks import Progress
from seqattn.train.config import Run, json_ready, versions
from seqattn.train.costs import PeakMemory
from seqattn.train.folder import RunFolder
from seqattn.train.history import History, history_of
from seqattn.train.loop import Observer
from seqattn.train.settings import FitSettings
from seqattn.train.workers import FileLock, become_worker

__all__ = ["main", "run", "run_figure"]


def main() -> None:
    """Read an order from the standard input, run its cell, and write the outcome to the standard output."""
    order = json.loads(sys.stdin.buffer.readline())
    become_worker()
    torch.set_num_threads(order["threads"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work = run_figure if "figure" in order else run
        outcome = {"status": "complete", **work(order)}
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:
        outcome = {"status": "failed", "reason": "The memory was not enough."}
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the other cells
        outcome = {"status": "failed", "reason": _sentence(error)}
    sys.stdout.write(f"\n{json.dumps(json_ready(outcome), allow_nan=False)}\n")


def _sentence(error: Exception) -> str:
    text = str(error) if isinstance(error, SeqattnError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]


def _end_with_parent() -> None:
    """Wait until the other end of the standard input is closed, then stop as if told to."""
    # Not sys.stdin.read: its lock would be held at the end of the process.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def run(order: Mapping[str, Any]) -> dict[str, Any]:
    """Train a model on training data, choose its epoch on development data if there are any, and test it once.

    Parameters
    ----------
    order
        ``task``, ``dataset``, ``kind`` (the model's name within the task), ``seed``, ``device``, ``settings``,
        ``evaluation``, ``digests`` and ``versions`` that must be found, the ``folder`` of the run, and ``watched``:
        metric to the ``key`` in the records of epochs whose best value it is, and ``higher_is_better``.

    Returns
    -------
    ``metrics`` (with ``fit_seconds`` and ``predict_seconds``, those of ``cases``), ``cases`` (totals and counts by
    test case), ``seconds`` of all, ``memory_mb`` (the highest resident memory above that before the fit), ``epochs``,
    ``best_epoch``.

    Raises
    ------
    DataError
        The data or the versions on this machine are others.
    """
    _check("versions", order["versions"], deciding(versions(), order["kind"]))
    module = seqattn.task(order["task"])
    parts = module.splits(order["dataset"], module.SPLITS)
    digests = {role: X.digest() for role, X in parts.items()}
    _check("digests", order["digests"], digests)
    folder = RunFolder(order["folder"])
    lock = FileLock(folder.path / "lock")
    lock.acquire()  # a process that was told to stop may still be about to
    model = module.build(order["settings"], order["kind"], seed=order["seed"], device=order["device"])
    of_run = Run(order["task"], order["kind"], order["dataset"], order["seed"], order["device"])
    of_run.settings.update(module.settings(model))
    of_run.digests.update(digests)
    folder.begin(of_run, versions())
    figures = folder.figures()
    if figures is None:
        figures = _figures(module, model, parts, folder, order)
        folder.finish(figures)
    return figures


def run_figure(order: Mapping[str, Any]) -> dict[str, Any]:
    """Compute a part of a figure of the paper on training dynamics.

    Parameters
    ----------
    order
        ``figure``, ``part``, ``settings`` and ``seeds`` as :func:`seqattn.dynamics.figures.compute` takes them,
        ``versions`` that must be found, and the ``folder`` for its curves.

    Returns
    -------
    ``values``, a list of dicts, ``seconds`` and ``memory_mb``, the rise of the memory. The curves are written to
    ``curves.parquet`` in the folder.
    """
    from seqattn.dynamics.figures import compute

    _check("versions", order["versions"], deciding(versions()))
    began, memory = time.perf_counter(), PeakMemory()
    found = compute(order["figure"], order["part"], order["settings"], order["seeds"])
    found.curves.write_parquet(Path(order["folder"], "curves.parquet"))
    seconds = round(time.perf_counter() - began, 2)
    return {
        "values": found.values.to_dicts(),
        "seconds": seconds,
        "memory_mb": round(memory.above_start(), 1),
    }


def _check(what: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    for name, value in expected.items():
        if found.get(name) != value:
            raise DataError(
                f"The {what} here are not those of the process that asked: {name} is {found.get(name)!r}, "
                f"wanted is {value!r}. Use the same data and packages on every machine."
            )


def _figures(
    module: Any, model: Any, parts: Mapping[str, Any], folder: RunFolder, order: Mapping[str, Any]
) -> dict[str, Any]:
    evaluation, watched = order["evaluation"], order.get("watched", {})
    began, memory, clock = time.perf_counter(), PeakMemory(), _Clock()
    watch = parts["test"] if watched else None
    folder.fit(module, model, parts["train"], parts.get("dev"), [Progress(), clock], watch)
    fitted = time.perf_counter()
    metrics = module.evaluate(model, parts["test"], **evaluation)
    evaluated = time.perf_counter()
    totals, counts = module.cases(model, parts["test"], **evaluation)
    ended = time.perf_counter()
    history = history_of(model)
    records = history.records if history else []
    # Of a fit that was interrupted, the epochs before count too; what was only watched does not.
    training = fitted - began + clock.before
    training -= getattr(model, "fit_report_", {}).get("watched_seconds", 0.0) if watched else 0.0
    metrics |= {"fit_seconds": training, "predict_seconds": ended - evaluated, **_best(records, watched)}
    figures: dict[str, Any] = json_ready(
        {
            "metrics": {name: value for name, value in metrics.items() if not isinstance(value, dict | list)},
            "cases": {"totals": totals, "counts": counts},
            "seconds": round(training + ended - fitted, 2),
            "memory_mb": round(memory.above_start(), 1),
            "epochs": len(records) if history else None,
            "best_epoch": history.best_epoch if history else None,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
    )
    return figures


class _Clock(Observer):
    """Adds up the seconds of epochs before this call, of each network that the model trains."""

    def __init__(self) -> None:
        self.before = 0.0
        self._n_epochs = 0

    def begin(self, settings: FitSettings) -> None:
        self._n_epochs = 0

    def epoch(self, record: dict[str, Any]) -> None:
        self._n_epochs += 1

    def end(self, history: History) -> None:
        n_before = len(history.records) - self._n_epochs
        self.before += sum(record["seconds"] for record in history.records[:n_before])


def _best(records: Sequence[Mapping[str, Any]], watched: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return metrics with the epoch chosen on the test data; only those that were looked at."""
    found = {}
    for name, metric in watched.items():
        values = [record[metric["key"]] for record in records if record.get(metric["key"]) is not None]
        if values:
            found[name] = max(values) if metric["higher_is_better"] else min(values)
    return found
