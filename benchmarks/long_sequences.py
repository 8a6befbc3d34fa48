"""Train SAHP with local attention on sequences of 50,000 events: time, memory and likelihood.

Run from the project's environment, with the data set ``bookorder`` where ``SEQATTN_DATA`` names it::

    python benchmarks/long_sequences.py --events 3319 12500 50000

Each length is a process of its own. The days of an order book are joined, each beginning where the one before ended,
until a sequence has at least so many events; all training days are used whatever the length, so that an epoch has the
same number of events. Memory is the highest resident size above that before the fit. The likelihood is that of the
test part, nats per event, convention ``from_first``, in seconds; it says that the model learned, and how little the cut
into days matters.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from processes import RESULTS, Memory, clocks, measure, named, told, write


def joined(X: Any, events: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give sequences of at least so many events, made of neighbouring ones."""
    times, types, begin = [], [], 0.0
    for row in range(len(X)):
        part = slice(X.offsets[row], X.offsets[row + 1])
        times.append(X.times[part] - X.start[row] + begin)
        types.append(X.types[part])
        begin += X.end[row] - X.start[row]
        if sum(map(len, times)) >= events:
            yield np.concatenate(times), np.concatenate(types)
            times, types, begin = [], [], 0.0
    if times:
        yield np.concatenate(times), np.concatenate(types)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Fit and evaluate in this process."""
    import torch

    from seqattn import SAHP, Sequences, load_dataset

    torch.set_num_threads(job["threads"])
    parts = {}
    for split in ("train", "dev", "test"):
        parts[split] = Sequences.from_lists(list(joined(load_dataset("bookorder", split), job["events"])))
    model = SAHP(attention=job["attention"], epochs=job["epochs"], baselines=False, random_state=job["seed"])
    memory, began = Memory(), clocks()
    model.fit(parts["train"], validation=parts["dev"])
    figures = named(clocks() - began, "fit_") | {"memory_mb": memory.above_start()}
    began = clocks()
    found = model.log_likelihood(parts["test"], convention="from_first")
    return (
        figures
        | named(clocks() - began, "score_")
        | {
            "longest": int(parts["train"].lengths.max()),
            "train_events": parts["train"].n_events,
            "loglik_per_event": found.per_event,
        }
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train SAHP on long sequences.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--events", type=int, nargs="+", default=[3319, 12_500, 50_000])
    parser.add_argument("--attention", default="local", help="pattern of the model")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "long_sequences.csv")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.job:
        print(json.dumps(run_job(options.job)))
        return
    records = []
    for events in options.events:
        about = {name: getattr(options, name) for name in ("attention", "epochs", "seed")}
        job = about | {"events": events, "threads": options.threads}
        record = {"events": events} | about | measure(__file__, sys.executable, job, options.threads)
        told(
            f"{record['longest']:,} events: fit {record['fit_wall_s']:.0f} s, {record['memory_mb']:,.0f} MB, "
            f"{record['loglik_per_event']:.4f} nats per event"
        )
        records.append(record)
    write(records, options.results)


if __name__ == "__main__":
    main()
