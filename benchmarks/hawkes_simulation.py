"""Time the simulation of many SAHP paths in one call, against a loop over single paths.

Run from the project's environment::

    python benchmarks/hawkes_simulation.py --data taxi --rounds 3

Every setting (``paper``, ``defaults``, see ``seqattn_side.py``) is first trained for ``--epochs`` epochs (default 1)
in a process of its own. Each measurement then is a fresh process that opens the model and draws paths from nothing;
the order alternates from round to round, and ratios are formed inside a round. Waiting threads sleep
(OMP_WAIT_POLICY=PASSIVE).

What is timed
    ``call``: ``model.sample(10000, max_events=100)``, once, after two short paths that are not timed. ``loop``:
    ``model.sample(1, max_events=100)`` for each of ``--singles`` paths (default 20); its seconds are scaled up to
    the number of paths of the call. Both for ``method="thinning"`` and ``"inverse"``. Memory is the highest resident
    size from the opening of the model on, less the size at that point; it holds the paths themselves.

What is checked
    Every path has as many events as asked for. The mean time of the last event, with its standard error, stands in
    the results: both methods and both ways draw from one law, so they must agree within the errors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from processes import (
    RESULTS,
    Memory,
    alternating,
    clocks,
    export,
    measure,
    named,
    paired,
    spread,
    told,
    write,
)

METHODS = ("thinning", "inverse")
WAYS = ("call", "loop")


# --- one process ---------------------------------------------------------------------------------------------------


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Train one setting, or measure it, in this process."""
    import seqattn_side as ours

    import seqattn

    if job["way"] == "train":
        return ours.fit_and_save(job)
    memory = Memory()
    model = seqattn.load(job["weights"])
    given = {"max_events": job["events"], "method": job["method"]}
    model.sample(2, max_events=2, method=job["method"], random_state=job["seed"])
    seeds = job["seed"] + 1 + np.arange(job["singles"])
    begun = clocks()
    if job["way"] == "call":
        drawn = [model.sample(job["paths"], **given, random_state=job["seed"])]
    else:
        drawn = [model.sample(1, **given, random_state=int(seed)) for seed in seeds]
    seconds = clocks() - begun
    ends = np.concatenate([checked(paths, job["events"]) for paths in drawn])
    figures = named(seconds * job["paths"] / len(ends)) | {"memory_mb": memory.above_start()}
    error = float(ends.std(ddof=1) / np.sqrt(len(ends)))
    return figures | {"mean_end": float(ends.mean()), "error_of_end": error, "version": ours.version()}


def checked(paths: Any, events: int) -> np.ndarray:
    """Return the time that each path took; refuse paths that are too short."""
    if (paths.lengths - paths.context != events).any():
        raise SystemExit(f"A path has fewer than {events} events.")
    return np.asarray(paths.times[paths.offsets[1:] - 1] - paths.start)


# --- the driver ----------------------------------------------------------------------------------------------------


def compare(name: str, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Train every setting once, then run all rounds on one data set; give one record per process."""
    train = export(name, "train", folder, options.seed)
    shared = {"train": str(train), "seed": options.seed, "epochs": options.epochs}
    sizes = {"paths": options.paths, "events": options.events, "singles": options.singles}

    def run(side: str, way: str, method: str) -> dict[str, Any]:
        own = {"way": way, "method": method, "parameters": options.sides[side]}
        weights = str(folder / f"{name}.{side}.weights")
        return measure(__file__, sys.executable, shared | sizes | own | {"weights": weights}, options.threads)

    for side in options.sides:
        told(f"{name}, {side}: trained to {run(side, 'train', '')['loss']:.3f}")
    cells = [(side, method, way) for side in options.sides for method in METHODS for way in WAYS]
    for number, (side, method, way) in alternating(cells, options.rounds):
        about = {"data": name, "round": number, "side": side, "method": method, "way": way, **sizes}
        record = about | {"ours": json.dumps(options.sides[side])} | run(side, way, method)
        told(line(record))
        yield record


def line(record: dict[str, Any]) -> str:
    """Return one process's figures in words."""
    scaled = " (scaled up)" if record["way"] == "loop" else ""
    return (
        f"{record['data']:>14} round {record['round']} {record['side']:>8} {record['method']:>8} {record['way']}: "
        f"{record['cpu_s']:8.2f} s processor, {record['wall_s']:8.2f} wall{scaled}, {record['memory_mb']:5.0f} MB, "
        f"mean end {record['mean_end']:.3f} +- {record['error_of_end']:.3f}"
    )


def summary(records: list[dict[str, Any]]) -> Iterator[str]:
    """Give lines with seconds and memory of the call and, over the rounds, how many times slower the loop is."""
    sizes = f"{records[0]['paths']:,} paths of {records[0]['events']:,} events"
    yield (
        f"| {sizes} | seconds, processor | seconds, wall | memory, MB | loop over single paths / call, processor "
        "| wall | mean end, call | mean end, loop |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, side, method in dict.fromkeys((r["data"], r["side"], r["method"]) for r in records):
        call, loop = (
            [r for r in records if (r["data"], r["side"], r["method"], r["way"]) == (name, side, method, way)]
            for way in WAYS
        )
        cells = [spread([r[f"{clock}_s"] for r in call]) for clock in ("cpu", "wall")]
        cells.append(spread([r["memory_mb"] for r in call], 0))
        cells += [
            spread(paired(loop, call, lambda r, clock=clock: r[f"{clock}_s"]), 0) for clock in ("cpu", "wall")
        ]
        cells += [mean_end(ways) for ways in (call, loop)]
        yield f"| {name}, {side} {method} | " + " | ".join(cells) + " |"


def mean_end(records: list[dict[str, Any]]) -> str:
    """Return the mean time of the last event; the seed, and so the paths, are the same in every round."""
    return " +- ".join(
        f"{statistics.median(r[name] for r in records):.3f}" for name in ("mean_end", "error_of_end")
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time the simulation of many paths of SAHP.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", nargs="+", default=["taxi"], help="names of data sets, or 'hawkes'")
    parser.add_argument("--settings", nargs="*", default=["paper", "defaults"], help="'paper', 'defaults'")
    parser.add_argument(
        "--ours", type=json.loads, help="JSON of parameters of SAHP for one more side, named 'given'"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, default=1, help="epochs of training before anything is measured"
    )
    parser.add_argument("--paths", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=100, help="events per path")
    parser.add_argument("--singles", type=int, default=20, help="paths of the loop")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "hawkes_simulation.csv")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.job:
        print(json.dumps(run_job(options.job)))
        return
    from seqattn_side import sides

    options.sides = sides(options.settings, options.ours)
    with tempfile.TemporaryDirectory() as folder:
        records = [record for name in options.data for record in compare(name, options, Path(folder))]
    write(records, options.results)
    print("\n".join(summary(records)))


if __name__ == "__main__":
    main()
