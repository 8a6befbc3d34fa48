"""What a fitted model costs: time of its predictions and number of its weights."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from seqattn.errors import ParameterError

__all__ = ["COSTS", "PeakMemory", "cost_text", "measure_cost"]

# Name -> what it counts, with its unit.
COSTS = {"seconds_per_1000": "seconds per 1,000 predictions", "parameters": "number of weights"}

_TEXTS = {"seconds_per_1000": "{:.3g} s per 1,000 predictions", "parameters": "{:,.0f} weights"}
_RUNS = 3
_ENOUGH = 5.0


def cost_text(name: str, cost: float) -> str:
    """Return a cost as it is told within a sentence.

    Parameters
    ----------
    name
        One of ``COSTS``.
    cost
        What was measured.

    Examples
    --------
    >>> cost_text("parameters", 3809), cost_text("seconds_per_1000", 0.01234)
    ('3,809 weights', '0.0123 s per 1,000 predictions')
    """
    return _TEXTS[name].format(cost)


def measure_cost(task: ModuleType, model: Any, X: Any, name: str) -> float:
    """Return what a fitted model costs.

    Parameters
    ----------
    task
        Module of the task.
    model
        The fitted estimator.
    X
        Held-out data, all of which it predicts.
    name
        One of ``COSTS``. Time is that of the fastest of three runs, or of as many as begin within 5 s: other work on
        the machine only ever adds to it.

    Raises
    ------
    ParameterError
        The model has no weights to count.
    """
    if name == "parameters":
        if not hasattr(model, "module_"):
            raise ParameterError(
                f"{type(model).__name__} has no weights to count. Limit 'seconds_per_1000' instead."
            )
        return float(sum(weight.numel() for weight in model.module_.parameters()))
    times: list[float] = []
    while len(times) < _RUNS and sum(times) < _ENOUGH:
        started = time.perf_counter()
        n_predictions = sum(len(frame) for frame in task.predict(model, X))
        times.append(time.perf_counter() - started)
    return 1000 * min(times) / max(n_predictions, 1)


class PeakMemory:
    """The highest resident memory of this process from the making of this object on, less that at its start."""

    def __init__(self) -> None:
        refs = Path("/proc/self/clear_refs")
        if refs.exists():
            refs.write_text("5", encoding="ascii")  # what importing torch took would hide what comes after
        self._start = _highest_mb()

    def above_start(self) -> float:
        """Return the rise so far, in MB of 2^20 bytes."""
        return max(0.0, _highest_mb() - self._start)


def _highest_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        found = next(
            line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")
        )
        return int(found.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
