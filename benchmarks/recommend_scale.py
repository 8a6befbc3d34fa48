"""Memory and time of the recommender on large catalogues and long logs: train, rank, write lists.

Run from the project's environment::

    python benchmarks/recommend_scale.py

Each job is a process of its own on one thread. Memory as in ``large_data.py``: ``peak_mb`` is the highest resident
size, ``anonymous_mb`` its part that the system cannot take back, ``start_mb`` what Python, torch and polars take;
``export_mb`` is what writing the lists took beyond what was there before.

Data
    Simulated as in ``recommend_data.py``: items are drawn by a power of their rank, in a catalogue of the size named.
Jobs
    ``exact``: steps of 256 users with the exact loss over 200,000 items. ``sampled``: steps with the sampled loss over
    1,000,000 items. ``rank``: ranks of a target among 1,000,000 items, seen ones left out. ``log``: a file of
    20,000,000 rows in no order is read, split, and 50 steps of its first epoch are made. ``export``: the best 20 of
    12,101 items for 22,363 users, written to Parquet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from large_data import Watch
from processes import RESULTS, clocks, measure, named, told, write
from recommend_data import simulated

JOBS = ("exact", "sampled", "rank", "log", "export")
# Items, users, steps or users ranked.
SIZES = {
    "exact": (200_000, 256 * 10, 8),
    "sampled": (1_000_000, 256 * 10, 8),
    "rank": (1_000_000, 2_000, 100),
    "log": (200_000, 1_000_000, 50),
    "export": (12_101, 22_363, 22_363),
}


class EnoughError(Exception):
    """The steps asked for are done."""


class Steps:
    """Ends a fit after some steps, and knows how long they took."""

    def __init__(self, most: int) -> None:
        self.most, self.done, self.begun = most, 0, 0.0

    def begin(self, settings: Any) -> None:
        """Nothing to do."""

    def batch(self, batch: Any) -> None:
        """Count the step that is about to begin; the first one is left out of the time."""
        if self.done == 1:
            self.begun = time.process_time()
        self.done += 1
        if self.done > self.most:
            raise EnoughError

    def epoch(self, record: Any) -> None:
        """Nothing to do."""

    def end(self, history: Any) -> None:
        """Nothing to do."""

    def seconds(self) -> float:
        """Return CPU seconds per step."""
        return (time.process_time() - self.begun) / max(self.done - 2, 1)


def drawn(n_items: int, n_users: int, seed: int) -> dict[str, np.ndarray]:
    """Return nine rows per user on average."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 16, n_users)
    users = np.repeat(np.arange(n_users), lengths)
    items = (n_items * rng.random(len(users)) ** 2).astype(np.int64)
    return {"user_id": users, "item_id": items, "timestamp": np.arange(len(users))}


def model(**settings: Any) -> Any:
    """Return a recommender of the default width for one thread."""
    from seqattn import MQSATEDRecommender

    return MQSATEDRecommender(epochs=1, random_state=0, device="cpu", **settings)


def steps(job: dict[str, Any]) -> dict[str, Any]:
    """Train for some steps."""
    n_items, n_users, most = SIZES[job["job"]]
    if job["job"] == "log":
        path = Path(job["folder"]) / "log.parquet"
        data: Any = path
    else:
        data = drawn(n_items, n_users, job["seed"])
    loss = {"exact": "full", "sampled": "sampled", "log": "auto"}[job["job"]]
    catalogue = None if job["job"] == "log" else np.arange(n_items)
    counter, fitting = Steps(most), model(loss=loss)
    with contextlib.suppress(EnoughError):
        fitting.fit(data, validation=None, items=catalogue, observers=[counter])
    return {"loss": fitting.loss_, "n_steps": counter.done - 1, "step_cpu_s": round(counter.seconds(), 3)}


def rank(job: dict[str, Any]) -> dict[str, Any]:
    """Rank the last items of some users among all items."""
    from seqattn.data.interactions import Interactions, leave_one_out

    n_items, n_users, ranked = SIZES["rank"]
    parts = leave_one_out(Interactions.of(drawn(n_items, n_users, job["seed"]), items=np.arange(n_items)))
    fitted = model(loss="sampled", batch_size=n_users).fit(parts.train, validation=None)
    kept = np.zeros(parts.test.n_rows, dtype=bool)
    kept[:ranked] = True
    begin = clocks()
    found = fitted.evaluate(parts.test.keep(kept))
    return {"ranked_users": found["n_users"], **named(clocks() - begin)}


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Write the best items of all users."""
    from seqattn.train.costs import PeakMemory

    n_items, n_users, _ = SIZES["export"]
    fitted = model(loss="sampled").fit(
        drawn(n_items, n_users, job["seed"]), validation=None, items=np.arange(n_items)
    )
    begin, memory, path = clocks(), PeakMemory(), Path(job["folder"]) / "lists.parquet"
    fitted.export_topk(path, 20)
    size = round(path.stat().st_size / 2**20, 1)
    return {"file_mb": size, "export_mb": round(memory.above_start(), 1), **named(clocks() - begin)}


def run(job: dict[str, Any]) -> None:
    """Do one job in this process, and print its figures as one line."""
    from seqattn import __version__
    from seqattn.recommend import estimator  # noqa: F401 - so that imports are not measured

    warnings.simplefilter("ignore")
    watch = Watch()
    watch.start()
    begin = clocks()
    found = {"rank": rank, "export": export}.get(job["job"], steps)(job)
    print(json.dumps({**named(clocks() - begin), **found, **watch.figures(), "version": __version__}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "recommend_scale.csv")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        run(json.loads(chosen.job))
        return
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.jobs:
            told(f"{time.strftime('%H:%M:%S')} {name}")
            job = {"job": name, "seed": chosen.seed, "folder": folder}
            if name == "log":
                make({**job, "n": 20_000_000})
            found = measure(__file__, sys.executable, job, 1)
            told(json.dumps(found))
            records.append({"job": name, "n_items": SIZES[name][0], **found})
            write(records, chosen.results)


def make(job: dict[str, Any]) -> None:
    """Write the log."""
    from seqattn.data.table import write_frames

    write_frames(Path(job["folder"]) / "log.parquet", simulated({**job, "order": "shuffled", "ids": "text"}))


if __name__ == "__main__":
    main()
