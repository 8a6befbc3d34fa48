"""Time the training of SAHP here and in EasyTPP 0.3.0: same data, batches, width, layers and optimiser.

Run from the project's environment, with the interpreter of an environment that holds EasyTPP::

    python benchmarks/hawkes_training.py --peer-python PATH --data taxi hawkes --rounds 5

Each measurement is a process of its own; the order of the sides alternates from round to round, so that a slow drift
of the machine falls on all. Waiting threads sleep (OMP_WAIT_POLICY=PASSIVE). Ratios are formed inside a round.

Sides
    ``easytpp``, ``paper`` (the paper's form) and ``defaults`` (SAHP() as it is, with the equal size below); the
    parameters stand in ``seqattn_side.py``. ``--ours`` adds a side ``given`` with parameters of one's own.

What is timed
    Whole epochs over the training split, the same sequences per step (``--batch``) in the same order for all. ``step``
    is everything the trainer does with a batch: forward, backward, optimiser, reading the loss. ``batch`` is the making
    of the padded or packed batch from the stored sequences. The ratio is formed from ``step``; the one with both
    stands beside it. The first steps of a process are not timed. Memory is the highest resident size from the
    building of the model on, less the size at that point.

What is equal
    Sequences and batches, d_model 32, 2 heads, 2 layers, no dropout, Adam with rate 1e-3, float32, the scored events
    (2..N of each sequence, the first being the origin) and the window (first to last event). Both losses are the
    negative log-likelihood per scored event in the user's unit, each by its own integral; both gradients are that of
    the batch's mean.

What is not
    - EasyTPP's encoder has attention alone: no feed-forward map, no residual, no norm, no output projection. Ours is
      complete, with one more token per sequence (the start of the window). Ours therefore does more arithmetic.
    - EasyTPP takes the mean of 20 equidistant points for the integral (its default), ours the rule that SAHP uses by
      default.
    - EasyTPP pads each batch to its longest sequence and masks; ours is packed.
    - EasyTPP uses times as they come; ours are divided by the mean gap, as SAHP does.
    - Our trainer clips the gradient's norm, checks that loss and gradient are finite, and moves the rate in one cycle
      that peaks at 1e-3; EasyTPP's keeps the rate. Both read the loss as a number after each step.
    - Our step is that of ``fit_module``, which ``SAHP.fit`` calls. EasyTPP's is its ``ModelWrapper.run_batch`` on
      batches of its collator: its runner's training epoch without logging, evaluation, files and data loader.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from processes import (
    BATCH,
    RATE,
    RESULTS,
    Data,
    Memory,
    alternating,
    clocks,
    cut,
    export,
    measure,
    named,
    paired,
    spread,
    told,
    write,
)

WARM_UP_STEPS = 10


# --- the two packages ----------------------------------------------------------------------------------------------


def train_easytpp(data: Data, orders: list[np.ndarray], job: dict[str, Any]) -> dict[str, Any]:
    """Train with EasyTPP's model, wrapper and collator as its runner does for the shipped SAHP example."""
    import easytpp_side as peer

    peer.load_package()
    make_batch = peer.collator(data)
    watch = Watch()
    wrapper = peer.build(data.n_types, job["seed"], training=True)
    losses = []
    for order in orders:
        totals = np.zeros(2)
        for batch in watch.batches(cut(order, job["batch"]), make_batch):
            totals += peer.train_batch(wrapper, batch)
        losses.append(totals[0] / totals[1])
    return watch.figures() | described(wrapper.model, losses, peer.version())


def train_seqattn(data: Data, orders: list[np.ndarray], job: dict[str, Any]) -> dict[str, Any]:
    """Train with seqattn's own loop on the given batches."""
    import seqattn_side as ours

    from seqattn.data.batches import pack
    from seqattn.train.loop import FitSettings, fit_module

    sequences = ours.sequences_of(data)
    model = ours.estimator(job["parameters"])
    watch = Watch()
    ours.begin(model, sequences, job["seed"])
    module, scale = model.module_, model.scale_

    def make_batch(rows: np.ndarray) -> Any:
        return pack(sequences, rows, scale=scale, recency=module.needs_recency)

    settings = FitSettings(epochs=len(orders), learning_rate=RATE, device="cpu", seed=job["seed"])
    history = fit_module(
        module, lambda epoch: watch.batches(cut(orders[epoch], job["batch"]), make_batch), None, settings
    )
    # In the user's unit: densities per model unit are larger by the factor scale.
    losses = [record["train_loss"] + np.log(scale) for record in history.records]
    return watch.figures() | described(module, losses, ours.version())


def described(module: Any, losses: list[float], version: str) -> dict[str, Any]:
    """Return the columns that tell that the right thing was trained, and that it learned."""
    return {
        "version": version,
        "parameters": sum(p.numel() for p in module.parameters()),
        "first_loss": losses[1],
        "last_loss": losses[-1],
    }


# --- one process ---------------------------------------------------------------------------------------------------


class Batches:
    """Make batches one by one, and tell the watch when one was asked for and when it was ready."""

    def __init__(
        self, rows: list[np.ndarray], make: Callable[[np.ndarray], Any], seconds: list[np.ndarray]
    ) -> None:
        self.rows, self.make, self.seconds = rows, make, seconds

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        for rows in self.rows:
            asked = clocks()
            batch = self.make(rows)
            ready = clocks()
            yield batch
            self.seconds.append(np.stack([ready - asked, clocks() - ready]))


class Watch:
    """Seconds for making batches and for what the trainer does with them; memory above the start."""

    def __init__(self) -> None:
        import torch

        # The first optimiser of a process imports torch's compiler, some 80 MB on either side.
        torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True).step()
        self.memory = Memory()
        self.epochs: list[list[np.ndarray]] = []

    def batches(self, rows: list[np.ndarray], make: Callable[[np.ndarray], Any]) -> Batches:
        """Return the batches of one epoch, on the clock."""
        self.epochs.append([])
        return Batches(rows, make, self.epochs[-1])

    def figures(self) -> dict[str, float]:
        """Return the sums over all epochs but the first, which is the warm-up."""
        batch, step = sum(np.sum(steps, axis=0) for steps in self.epochs[1:])
        return named(batch, "batch_") | named(step, "step_") | {"memory_mb": self.memory.above_start()}


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one side in this process."""
    data, draws = Data.read(job["file"]), np.random.default_rng(job["seed"])
    orders = [draws.permutation(len(data)) for _ in range(job["epochs"] + 1)]
    orders[0] = orders[0][: WARM_UP_STEPS * job["batch"]]
    train = train_easytpp if job["side"] == "easytpp" else train_seqattn
    return train(data, orders, job)


# --- the driver ----------------------------------------------------------------------------------------------------


def compare(name: str, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Run all rounds on one data set; give one record per process."""
    path = export(name, "train", folder, options.seed)
    events = len(Data.read(str(path)).times)
    for number, side in alternating(["easytpp", *options.sides], options.rounds):
        parameters = options.sides.get(side, {})
        job = {"side": side, "file": str(path), "epochs": options.epochs, "seed": options.seed}
        job["batch"] = options.batch
        python = options.peer_python if side == "easytpp" else sys.executable
        figures = measure(__file__, python, job | {"parameters": parameters}, options.threads)
        about = {"data": name, "round": number, "side": side, "events": events, "epochs": options.epochs}
        about["batch"] = options.batch
        record = about | {"ours": json.dumps(parameters)} | figures
        told(line(record))
        yield record


def per_second(record: dict[str, Any], clock: str, parts: tuple[str, ...] = ("step",)) -> float:
    """Return events per second of the given clock over the given parts of the work."""
    seconds = sum(record[f"{part}_{clock}_s"] for part in parts)
    return float(record["events"] * record["epochs"] / seconds)


def line(record: dict[str, Any]) -> str:
    """Return one process's figures in words."""
    return (
        f"{record['data']:>14} round {record['round']} {record['side']:>8}: "
        f"{per_second(record, 'cpu'):8,.0f} events/s processor, {per_second(record, 'wall'):8,.0f} wall, "
        f"{per_second(record, 'cpu', ('step', 'batch')):8,.0f} with batches, {record['memory_mb']:5.0f} MB, "
        f"loss {record['first_loss']:.3f} to {record['last_loss']:.3f}"
    )


def summary(records: list[dict[str, Any]]) -> Iterator[str]:
    """Give lines with the ratios to EasyTPP: the median of the rounds and their range."""
    yield "| seqattn / EasyTPP | events/s, processor | events/s, wall | events/s, processor, with batches | memory |"
    yield "| --- | --- | --- | --- | --- |"
    values: list[Callable[[dict[str, Any]], float]] = [
        lambda record: per_second(record, "cpu"),
        lambda record: per_second(record, "wall"),
        lambda record: per_second(record, "cpu", ("step", "batch")),
        lambda record: float(record["memory_mb"]),
    ]
    for name, side in dict.fromkeys((record["data"], record["side"]) for record in records):
        if side == "easytpp":
            continue
        own, peer = (
            [r for r in records if r["data"] == name and r["side"] == which] for which in (side, "easytpp")
        )
        cells = [spread(paired(own, peer, value)) for value in values]
        yield f"| {name}, {side} | " + " | ".join(cells) + " |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare the training speed of SAHP with EasyTPP's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--peer-python", help="interpreter of an environment with easy-tpp 0.3.0")
    parser.add_argument("--data", nargs="+", default=["taxi"], help="names of data sets, or 'hawkes'")
    parser.add_argument("--settings", nargs="*", default=["paper", "defaults"], help="'paper', 'defaults'")
    parser.add_argument(
        "--ours", type=json.loads, help="JSON of parameters of SAHP for one more side, named 'given'"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs per process")
    parser.add_argument("--batch", type=int, default=BATCH, help="sequences per step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "hawkes_training.csv")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.job and not options.peer_python:
        parser.error("--peer-python is needed: the interpreter of an environment with easy-tpp 0.3.0")
    return options


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
