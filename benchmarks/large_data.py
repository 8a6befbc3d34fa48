"""Time and memory of data larger than memory: make, prepare, train one epoch, predict from Parquet to Parquet.

Run from the project's environment::

    python benchmarks/large_data.py --sequences 1000 10000 100000 1000000

Each step on each size is a process of its own. Every sequence has 20 events, so that a million sequences are 20 million
events. A step's seconds and memory are those between its first and its last line, without the imports.

Data
    Five types in a Markov chain, with gaps whose mean depends on the last type; written to one Parquet file by pieces.
Steps
    ``make`` the file; ``prepare`` it (``Sequences.prepare``, here with the columns named, windows to the last event);
    ``train`` one epoch on the saved folder, a tenth of the sequences held out; ``predict`` all events of the file with
    the command ``seqattn predict``, Parquet to Parquet.
Memory
    ``peak_mb`` is the highest resident size (VmHWM), pages of mapped files included, which the system takes back when
    others need them. ``anonymous_mb`` is the highest anonymous part (RssAnon, looked at every 20 ms), which it cannot.
    ``start_mb`` is what the process had before the step: Python, torch and polars.
Model
    ``--model small`` is d_model 16, one layer, one decay, no kernels, no baselines; ``defaults`` is SAHP() with one
    epoch; ``baselines`` is the small model with the baselines.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from processes import RESULTS, clocks, measure, named, status, told, write

LENGTH, TYPES, PIECE = 20, 5, 50_000
STEPS = ("make", "prepare", "train", "predict")
SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "n_decays": 1, "own_kernels": 0, "gap_kernels": 0}
MODELS = {
    "small": {**SMALL, "baselines": False},
    "baselines": {**SMALL, "baselines": True},
    "defaults": {},
}
# Sizes below this tell what a process costs, not what a sequence costs.
FROM = 10_000


# --- the steps -----------------------------------------------------------------------------------------------------


def simulated(n: int, seed: int) -> Iterator[Any]:
    """Give tables of 50,000 sequences each, the last one shorter."""
    import polars as pl

    rng = np.random.default_rng(seed)
    chain = rng.dirichlet(np.full(TYPES, 0.4), TYPES).cumsum(1)
    mean = rng.lognormal(0.0, 0.8, TYPES)
    for first in range(0, n, PIECE):
        rows = min(PIECE, n - first)
        kind, at = np.empty((LENGTH, rows), dtype=np.int64), np.empty((LENGTH, rows))
        kind[0], at[0] = rng.integers(0, TYPES, rows), rng.exponential(1.0, rows)
        for i in range(1, LENGTH):
            kind[i] = (rng.random(rows)[:, None] > chain[kind[i - 1]]).sum(1).clip(max=TYPES - 1)
            at[i] = at[i - 1] + rng.exponential(1.0, rows) * mean[kind[i - 1]]
        ids = np.repeat(np.arange(first, first + rows), LENGTH)
        yield pl.DataFrame({"seq_id": ids, "t": at.T.ravel(), "k": kind.T.ravel()})


def make(folder: Path, job: dict[str, Any]) -> Callable[[], None]:
    """Return what writes the file."""
    from seqattn.data.table import write_frames

    return lambda: told(f"{write_frames(folder / 'events.parquet', simulated(job['n'], job['seed'])):,} rows")


def prepare(folder: Path, job: dict[str, Any]) -> Callable[[], None]:
    """Return what turns the file into a saved folder."""
    from seqattn import Sequences

    return lambda: told(str(Sequences.prepare(folder / "events.parquet", folder / "events")))


def train(folder: Path, job: dict[str, Any]) -> Callable[[], None]:
    """Return what trains one epoch on the saved folder."""
    from seqattn import SAHP, Sequences

    def step() -> None:
        model = SAHP(**MODELS[job["model"]], epochs=1, random_state=job["seed"])
        model.fit(Sequences.open(folder / "events")).save(folder / "model.safetensors")

    return step


def predict(folder: Path, job: dict[str, Any]) -> Callable[[], None]:
    """Return what predicts every event of the file."""
    from seqattn.cli import cli

    files = [str(folder / name) for name in ("model.safetensors", "events.parquet", "forecasts.parquet")]
    line = ["--quiet", "predict", files[0], "--data", files[1], "--output", files[2]]
    return lambda: cli([*line[1:], line[0]], standalone_mode=False)


class Watch(threading.Thread):
    """Looks at the anonymous memory of this process every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.start_mb = status("VmRSS")
        self.anonymous = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            self.anonymous = max(self.anonymous, status("RssAnon"))

    def figures(self) -> dict[str, float]:
        """End, and return the columns about memory."""
        self.ended.set()
        self.join()
        sizes = {"start_mb": self.start_mb, "peak_mb": status("VmHWM")}
        return {**sizes, "anonymous_mb": max(self.anonymous, status("RssAnon"))}


def run(job: dict[str, Any]) -> None:
    """Do one step in this process, and print its figures as one line."""
    import torch

    from seqattn import __version__

    torch.set_num_threads(job["threads"])
    step = {"make": make, "prepare": prepare, "train": train, "predict": predict}[job["step"]](
        Path(job["folder"]), job
    )
    watch = Watch()
    watch.start()
    begin = clocks()
    with quiet():
        step()
    seconds = clocks() - begin
    print(
        json.dumps({**named(seconds), **watch.figures(), "version": __version__, "torch": torch.__version__})
    )


def quiet() -> Any:
    """Return a context in which what a command prints goes to standard error."""
    import contextlib

    return contextlib.redirect_stdout(sys.stderr)


# --- the driver ----------------------------------------------------------------------------------------------------


def slopes(records: list[dict[str, Any]], step: str, column: str) -> str:
    """Return the slope of a column against the number of sequences, both in logarithms."""
    rows = [row for row in records if row["step"] == step and row["n_sequences"] >= FROM]
    if len(rows) < 2:
        return ""
    size, value = (np.log([row[name] for row in rows]) for name in ("n_sequences", column))
    return f"{np.polyfit(size, value, 1)[0]:.2f}"


def table(records: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table, with the slopes below."""
    titles = ["step", "sequences", "events", "seconds", "events/s", "peak MB", "anonymous MB", "start MB"]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for row in sorted(records, key=lambda row: (STEPS.index(row["step"]), row["n_sequences"])):
        seconds = row["wall_s"]
        cells = [row["step"], f"{row['n_sequences']:,}", f"{row['n_events']:,}", f"{seconds:.2f}"]
        cells += [f"{row['n_events'] / seconds:,.0f}"]
        cells += [f"{row[name]:,.0f}" for name in ("peak_mb", "anonymous_mb", "start_mb")]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Slope of the logarithm, from {FROM:,} sequences on (1 is linear):", ""]
    for step in STEPS:
        found = {name: slopes(records, step, name) for name in ("wall_s", "cpu_s", "peak_mb")}
        if found["wall_s"]:
            lines.append(
                f"- {step}: seconds {found['wall_s']}, processor {found['cpu_s']}, peak {found['peak_mb']}"
            )
    return "\n".join(lines) + "\n"


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds and peak memory against the number of sequences."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, column, title in zip(axes, ("wall_s", "peak_mb"), ("seconds", "peak resident MB"), strict=True):
        for step in STEPS:
            rows = sorted((row["n_sequences"], row[column]) for row in records if row["step"] == step)
            axis.loglog(*zip(*rows, strict=True), marker="o", label=step)
        axis.set_xlabel("sequences of 20 events")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def clear(folder: Path, step: str) -> None:
    """Remove what a step that is done with leaves behind and no later one reads."""
    import shutil

    if step == "predict":
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=Path("large-data"), help="Where the data go, for a while."
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "large_data.csv")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        run(json.loads(chosen.job))
        return
    records: list[dict[str, Any]] = []
    for n in chosen.sequences:
        folder = chosen.folder / str(n)
        folder.mkdir(parents=True, exist_ok=True)
        for step in chosen.steps:
            settings = {"model": chosen.model, "threads": chosen.threads, "seed": chosen.seed}
            job = {"step": step, "n": n, "folder": str(folder.resolve()), **settings}
            told(f"{time.strftime('%H:%M:%S')} {n:,} sequences: {step}")
            found = measure(__file__, sys.executable, job, chosen.threads)
            sizes = {"step": step, "n_sequences": n, "n_events": n * LENGTH, "model": chosen.model}
            records.append({**sizes, **found})
            write(records, chosen.results)
            clear(folder, step)
    print(table(records))
    chosen.results.with_suffix(".md").write_text(table(records), encoding="utf-8")
    plot(records, chosen.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
