"""Time the training of SAHP here and in EasyTPP 0.3.0: same data, batches, width, layers and optimiser.

Run from the project's environment, with the interpreter of an environment that holds EasyTPP::

    python benchmarks/hawkes_training.py --peer-python PATH --data taxi taobao stackoverflow --rounds 5

Each measurement is a process of its own; the order of the two sides alternates from round to round (ABBA), so
that a slow drift of the machine falls on both. Waiting threads sleep (OMP_WAIT_POLICY=PASSIVE).

What is timed
    Whole epochs over the training split, the same 32 sequences per step in the same order for both. ``step`` is
    everything the trainer does with a batch: forward, backward, optimiser, reading the loss. ``batch`` is the making
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
      default. Other parameters of SAHP can be given with ``--ours``.
    - EasyTPP pads each batch to its longest sequence and masks; ours is packed.
    - EasyTPP uses times as they come; ours are divided by the mean gap, as SAHP does.
    - Our trainer clips the gradient's norm, checks that loss and gradient are finite, and moves the rate in one cycle
      that peaks at 1e-3; EasyTPP's keeps the rate. Both read the loss as a number after each step.
    - Our step is that of ``fit_module``, which ``SAHP.fit`` calls. EasyTPP's is its ``ModelWrapper.run_batch`` on
      batches of its collator: its runner's training epoch without logging, evaluation, files and data loader.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

D_MODEL, N_HEADS, N_LAYERS, BATCH, RATE = 32, 2, 2, 32, 1e-3
WARM_UP_STEPS = 10
SIDES = ("seqattn", "easytpp")
RESULTS = Path(__file__).parent / "results" / "hawkes_training.csv"


class Data(NamedTuple):
    """Event sequences end to end, as the file between the processes holds them."""

    times: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    n_types: int

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give (times, types) of each sequence."""
        for first, last in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.times[first:last], self.types[first:last]


# --- the two sides -------------------------------------------------------------------------------------------------


def train_easytpp(data: Data, orders: list[np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Train with EasyTPP's model, wrapper and collator as its runner does for the shipped SAHP example."""
    import importlib.metadata
    import logging

    import easy_tpp.model  # noqa: F401 (registers the models)
    import torch
    from easy_tpp.config_factory.data_config import DataSpecConfig
    from easy_tpp.config_factory.model_config import BaseConfig, ModelConfig, TrainerConfig
    from easy_tpp.model.basemodel import BaseModel
    from easy_tpp.model_wrapper import ModelWrapper
    from easy_tpp.utils import RunnerPhase

    logging.disable(logging.CRITICAL)
    torch.manual_seed(options.seed)
    specs = DataSpecConfig(num_event_types=data.n_types, pad_token_id=data.n_types, padding_side="right")
    make_batch = easytpp_collator(data, specs)
    model_config = ModelConfig(
        model_id="SAHP",
        hidden_size=D_MODEL,
        num_layers=N_LAYERS,
        num_heads=N_HEADS,
        dropout_rate=0.0,
        use_ln=False,
        loss_integral_num_sample_per_step=20,
        training=True,
        num_event_types=data.n_types,
        num_event_types_pad=data.n_types + 1,
        event_pad_index=data.n_types,
    )
    trainer = TrainerConfig(seed=options.seed, batch_size=BATCH, optimizer="adam", learning_rate=RATE)
    base = BaseConfig(stage="train", backend="torch", model_id="SAHP", specs={})
    watch = Watch()
    wrapper = ModelWrapper(BaseModel.generate_model_from_config(model_config), base, model_config, trainer)
    losses = []
    for order in orders:
        totals = np.zeros(2)
        for batch in watch.batches(cut(order), make_batch):
            totals += wrapper.run_batch(batch, phase=RunnerPhase.TRAIN)[:2]
        losses.append(totals[0] / totals[1])
    return watch.figures() | {
        "version": f"easy-tpp {importlib.metadata.version('easy-tpp')}, torch {torch.__version__}",
        "parameters": sum(p.numel() for p in wrapper.model.parameters()),
        "first_loss": losses[1],
        "last_loss": losses[-1],
    }


def easytpp_collator(data: Data, specs: Any) -> Callable[[np.ndarray], Any]:
    """Return EasyTPP's own way from row numbers to a padded batch, on the lists that its loader keeps."""
    from easy_tpp.preprocess.data_collator import TPPDataCollator
    from easy_tpp.preprocess.dataset import TPPDataset
    from easy_tpp.preprocess.event_tokenizer import EventTokenizer

    dataset = TPPDataset(
        {
            "time_seqs": [times.tolist() for times, _ in data.rows()],
            "type_seqs": [types.tolist() for _, types in data.rows()],
            "time_delta_seqs": [np.diff(times, prepend=times[0]).tolist() for times, _ in data.rows()],
        }
    )
    collate = TPPDataCollator(
        tokenizer=EventTokenizer(specs), padding=True, truncation=False, return_tensors="pt"
    )
    return lambda rows: collate([dataset[int(row)] for row in rows])


def train_seqattn(data: Data, orders: list[np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Train with seqattn's own loop on the given batches."""
    import inspect

    import torch

    import seqattn
    from seqattn.data.batches import pack
    from seqattn.hawkes.baselines import event_rates
    from seqattn.hawkes.model import SelfAttentiveHawkes
    from seqattn.train.loop import FitSettings, fit_module

    sequences = seqattn.Sequences.from_lists(list(data.rows()), labels=data.n_types)
    gaps = np.concatenate([np.diff(times) for times, _ in data.rows()])
    scale = float(gaps[gaps > 0].mean())
    given = {"d_model": D_MODEL, "n_heads": N_HEADS, "n_layers": N_LAYERS, "dropout": 0.0, **options.ours}
    known = inspect.signature(SelfAttentiveHawkes).parameters
    parameters = {name: value for name, value in seqattn.SAHP(**given).get_params().items() if name in known}
    watch = Watch()
    torch.manual_seed(options.seed)
    module = SelfAttentiveHawkes(torch.from_numpy(event_rates(sequences) * scale).float(), **parameters)
    settings = FitSettings(epochs=len(orders), learning_rate=RATE, device="cpu", seed=options.seed)
    history = fit_module(
        module,
        lambda epoch: watch.batches(cut(orders[epoch]), lambda rows: pack(sequences, rows, scale=scale)),
        None,
        settings,
    )
    # In the user's unit: densities per model unit are larger by the factor scale.
    losses = [record["train_loss"] + np.log(scale) for record in history.records]
    return watch.figures() | {
        "version": f"seqattn {seqattn.__version__}, torch {torch.__version__}",
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
            self.seconds.append(np.concatenate([ready - asked, clocks() - ready]))


class Watch:
    """Seconds for making batches and for what the trainer does with them; memory above the start."""

    def __init__(self) -> None:
        import torch

        # The first optimiser of a process imports torch's compiler, some 80 MB on either side.
        torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True).step()
        # Imports leave a peak of their own: let the highest resident size count from here on.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.resident = memory("VmRSS")
        self.epochs: list[list[np.ndarray]] = []

    def batches(self, rows: list[np.ndarray], make: Callable[[np.ndarray], Any]) -> Batches:
        """Return the batches of one epoch, on the clock."""
        self.epochs.append([])
        return Batches(rows, make, self.epochs[-1])

    def figures(self) -> dict[str, float]:
        """Return the sums over all epochs but the first, which is the warm-up."""
        seconds = sum(np.sum(steps, axis=0) for steps in self.epochs[1:])
        names = ("batch_cpu_s", "batch_wall_s", "step_cpu_s", "step_wall_s")
        return dict(zip(names, seconds.tolist(), strict=True)) | {
            "memory_mb": memory("VmHWM") - self.resident
        }


def clocks() -> np.ndarray:
    return np.array([time.process_time(), time.perf_counter()])


def memory(field: str) -> float:
    """Return a size from this process's status, in MB."""
    for entry in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if entry.startswith(field + ":"):
            return float(entry.split()[1]) / 1024
    raise SystemExit(f"The system does not tell {field}; this comparison needs Linux.")


def cut(order: np.ndarray) -> list[np.ndarray]:
    return [order[first : first + BATCH] for first in range(0, len(order), BATCH)]


def run_side(options: argparse.Namespace) -> None:
    """Measure one side in this process and print the figures as JSON."""
    with np.load(options.file) as file:
        data = Data(file["times"], file["types"], file["offsets"], int(file["n_types"]))
        orders = list(file["orders"][: options.epochs + 1])
    orders[0] = orders[0][: WARM_UP_STEPS * BATCH]
    train = {"easytpp": train_easytpp, "seqattn": train_seqattn}[options.side]
    print(json.dumps(train(data, orders, options)))


# --- the driver ----------------------------------------------------------------------------------------------------


def export(name: str, path: Path, epochs: int, seed: int) -> int:
    """Write the training split and the order of its rows to a file both sides can read; return its events."""
    from seqattn import load_dataset

    split = load_dataset(name, split="train")
    draws = np.random.default_rng(seed)
    np.savez(
        path,
        times=split.times,
        types=split.types,
        offsets=split.offsets,
        n_types=split.n_types,
        orders=np.stack([draws.permutation(len(split)) for _ in range(epochs + 1)]),
    )
    return int(split.n_events)


def measure(side: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a fresh process and return its figures."""
    python = options.peer_python if side == "easytpp" else sys.executable
    threads = str(options.threads)
    settings = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    passed = [
        "--side",
        side,
        "--file",
        str(path),
        "--epochs",
        str(options.epochs),
        "--seed",
        str(options.seed),
    ]
    passed += ["--ours", json.dumps(options.ours)]
    done = subprocess.run(
        [python, __file__, *passed], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"The process of {side} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def per_second(figures: dict[str, Any], clock: str, parts: tuple[str, ...] = ("step",)) -> float:
    """Return events per second of the given clock over the given parts of the work."""
    seconds = sum(figures[f"{part}_{clock}_s"] for part in parts)
    return float(figures["events"] * figures["epochs"] / seconds)


def compare(name: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run all rounds on one data set; return one record per process."""
    path = folder / f"{name}.npz"
    events = export(name, path, options.epochs, options.seed)
    records = []
    for number in range(options.rounds):
        for side in SIDES[:: -1 if number % 2 else 1]:
            figures = measure(side, path, options)
            settings = {
                "threads": options.threads,
                "epochs": options.epochs,
                "ours": json.dumps(options.ours),
            }
            records.append(
                {"data": name, "round": number, "side": side, "events": events, **settings, **figures}
            )
            print(line(records[-1]), file=sys.stderr, flush=True)
    return records


def line(record: dict[str, Any]) -> str:
    """Return one process's figures in words."""
    return (
        f"{record['data']:>14} round {record['round']} {record['side']:>8}: "
        f"{per_second(record, 'cpu'):8,.0f} events/s processor, {per_second(record, 'wall'):8,.0f} wall, "
        f"{per_second(record, 'cpu', ('step', 'batch')):8,.0f} with batches, {record['memory_mb']:5.0f} MB, "
        f"loss {record['first_loss']:.3f} to {record['last_loss']:.3f}"
    )


def summary(records: list[dict[str, Any]]) -> Iterator[str]:
    """Give lines with the ratio seqattn / EasyTPP, the median of the rounds and their range, for each data set."""
    yield "| seqattn / EasyTPP | events/s, processor | events/s, wall | events/s, processor, with batches | memory |"
    yield "| --- | --- | --- | --- | --- |"
    for name in dict.fromkeys(record["data"] for record in records):
        chosen = [record for record in records if record["data"] == name]
        ours, peers = ([r for r in chosen if r["side"] == side] for side in SIDES)
        pairs = list(zip(ours, peers, strict=True))
        columns = [
            [per_second(a, "cpu") / per_second(b, "cpu") for a, b in pairs],
            [per_second(a, "wall") / per_second(b, "wall") for a, b in pairs],
            [
                per_second(a, "cpu", ("step", "batch")) / per_second(b, "cpu", ("step", "batch"))
                for a, b in pairs
            ],
            [a["memory_mb"] / b["memory_mb"] for a, b in pairs],
        ]
        cells = [f"{statistics.median(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in columns]
        yield f"| {name} | " + " | ".join(cells) + " |"


def write(records: list[dict[str, Any]], path: Path) -> None:
    """Write one row per process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(records[0]))
        table.writeheader()
        table.writerows(records)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare the training speed of SAHP with EasyTPP's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--peer-python", help="interpreter of an environment with easy-tpp 0.3.0")
    parser.add_argument("--data", nargs="+", default=["taxi"], help="names of data sets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs per process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ours", type=json.loads, default={}, help="JSON of parameters of SAHP that differ from its defaults"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.side and not options.peer_python:
        parser.error("--peer-python is needed: the interpreter of an environment with easy-tpp 0.3.0")
    return options


def main() -> None:
    options = arguments()
    if options.side:
        run_side(options)
        return
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.data:
            records += compare(name, options, Path(folder))
    write(records, options.results)
    print("\n".join(summary(records)))


if __name__ == "__main__":
    main()
