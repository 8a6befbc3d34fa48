"""What the comparisons share: data between processes, fresh processes, clocks, memory, tables of paired ratios.

The other package's interpreter imports this file too, so nothing here needs seqattn at import.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

D_MODEL, N_HEADS, N_LAYERS, BATCH, RATE = 32, 2, 2, 32, 1e-3
WAIT_POLICY = "PASSIVE"
RESULTS = Path(__file__).parent / "results"

# A Hawkes process with exponential kernels: base rates, excitation, decay, end of the windows, sequences per split.
HAWKES = ((0.3, 0.2), ((0.4, 0.3), (0.0, 0.5)), 2.0, 100.0, {"train": 240, "test": 30})


class Data(NamedTuple):
    """Event sequences end to end, as the file between the processes holds them."""

    times: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    n_types: int

    @classmethod
    def read(cls, path: str) -> Data:
        with np.load(path) as file:
            return cls(file["times"], file["types"], file["offsets"], int(file["n_types"]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give (times, types) of each sequence."""
        for first, last in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.times[first:last], self.types[first:last]


def export(name: str, split: str, folder: Path, seed: int) -> Path:
    """Write a split to a file that both sides can read, once; return its path."""
    path = folder / f"{name}.{split}.npz"
    if not path.exists():
        found = _simulated(split, seed) if name == "hawkes" else _loaded(name, split)
        np.savez(path, times=found.times, types=found.types, offsets=found.offsets, n_types=len(found.labels))
    return path


def _loaded(name: str, split: str) -> Any:
    from seqattn import load_dataset

    return load_dataset(name, split=split)


def _simulated(split: str, seed: int) -> Any:
    """Return sequences of the reference process; nothing is fitted."""
    from seqattn import ExponentialHawkes

    base, excitation, decay, end, counts = HAWKES
    process = ExponentialHawkes()
    process.mu_, process.excitation_ = np.array(base), np.array(excitation)
    process.decay_ = np.array([decay])
    process.labels_ = tuple(range(len(base)))
    process.n_types_, process.unit_, process.window_ = len(base), None, process.window
    return process.sample(counts[split], end, random_state=seed + sorted(counts).index(split))


# --- one process ---------------------------------------------------------------------------------------------------


def clocks() -> np.ndarray:
    """Return processor and wall seconds."""
    return np.array([time.process_time(), time.perf_counter()])


def named(seconds: np.ndarray, what: str = "") -> dict[str, float]:
    """Return processor and wall seconds as columns."""
    return dict(zip((f"{what}cpu_s", f"{what}wall_s"), np.asarray(seconds).tolist(), strict=True))


def status(field: str) -> float:
    """Return a size from this process's status, in MB."""
    for entry in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if entry.startswith(field + ":"):
            return float(entry.split()[1]) / 1024
    raise SystemExit(f"The system does not tell {field}; this comparison needs Linux.")


class Memory:
    """The highest resident size from the making of this object on, less the size at that point."""

    def __init__(self) -> None:
        # Imports leave a peak of their own: let the highest resident size count from here on.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.resident = status("VmRSS")

    def above_start(self) -> float:
        """Return the rise so far, in MB."""
        return status("VmHWM") - self.resident


def cut(order: np.ndarray, size: int = BATCH) -> list[np.ndarray]:
    """Return batches of sequences in the given order."""
    return [order[first : first + size] for first in range(0, len(order), size)]


# --- the driver ----------------------------------------------------------------------------------------------------


def measure(script: str, python: str, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run one job of a script in a fresh process and return its figures, with the circumstances."""
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": WAIT_POLICY,
    }
    load = os.getloadavg()[0]
    done = subprocess.run(
        [python, script, "--job", json.dumps(job)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"The job {job} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    circumstances = {"threads": threads, "wait_policy": WAIT_POLICY, "load": round(load, 2)}
    return figures | circumstances | {"machine": machine}


def alternating(sides: Sequence[Any], rounds: int) -> Iterator[tuple[int, Any]]:
    """Give (round, side), every other round backwards, so that a slow drift of the machine falls on all sides."""
    for number in range(rounds):
        for side in sides[:: -1 if number % 2 else 1]:
            yield number, side


def told(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


def write(records: list[dict[str, Any]], path: Path) -> None:
    """Write one row per process; columns that a side lacks stay empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in records for name in row)))
        table.writeheader()
        table.writerows(records)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and, in brackets, the smallest and largest value."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def paired(
    above: list[dict[str, Any]],
    below: list[dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
) -> list[float]:
    """Return the ratio of a value in each round."""
    other = {record["round"]: value(record) for record in below}
    return [value(record) / other[record["round"]] for record in above]
