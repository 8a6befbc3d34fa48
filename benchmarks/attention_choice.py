"""Compare the kernel that ``attend`` takes by itself with every other one that can do the call.

Run from the project's environment::

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/attention_choice.py

Per round every admissible kernel runs once, in shuffled order; every time is a row of ``results/attention_choice.csv``.
The table shows, case by case, the median time of the chosen kernel over that of the best one: 1 where the choice was
right. Processor time, float32. The written form ``reference`` takes part in tests only and is not timed. Outputs of
all kernels are compared with one another before anything is timed.

``--calibrate`` measures the constants of this machine first; otherwise the built-in ones decide.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import seqattn
from seqattn.attention import (
    Dilated,
    Layout,
    Local,
    Neighborhood,
    Prefix,
    Segments,
    attend,
    backends,
    calibrate,
    explain,
)
from seqattn.errors import BackendError

RESULTS = Path(__file__).parent / "results" / "attention_choice.csv"
FIELDS = ("case", "kernel", "pass", "round", "seconds", "chosen", "cost", "version", "threads", "machine")
# Numbers of a tensor after whose end the C library keeps freed memory, as it does in any training run. In a process
# that only had small tensors it gives memory back and fetches it again: 300 to 900 page faults a call, twice the time.
WARM = 6 * 2**20
TIMED = tuple(sorted(set(backends()) - {"reference"}))


def lengths(kind: str, count: int, longest: int, draw: np.random.Generator) -> list[int]:
    """Return how long the sequences of a batch are."""
    if kind == "equal":
        return [longest] * count
    if kind == "uniform":
        return draw.integers(1, longest + 1, count).tolist()
    return np.minimum((longest / 15 * (1 + draw.pareto(1.0, count))).astype(int), longest).tolist()


def cases(widths: list[int], longest: int, draw: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the calls: dense and with windows and labels, short and long, equal and ragged."""
    tokens = 8192
    for width in widths:
        for length in (20, 37, 50, 100, 256, 512, 1024, 2048, 4096):
            if length > longest:
                continue
            count = max(1, min(128, tokens // length // 2))
            heads = 2 if length <= 100 else 4
            where = {"layout": Layout.of([length] * count)}
            label = torch.from_numpy(draw.integers(0, max(2, round(length**0.5)), (length * count, heads)))
            patterns = {
                "dense": "dense",
                "local 16": Local(16),
                "local 128": Local(128),
                "local 32 and prefix": Local(32) | Prefix(1),
                "dilated": Dilated(16, dilation=4),
                "routing": Segments(label, 128),
            }
            for name, pattern in patterns.items():
                for causal in (True, False):
                    yield (
                        f"{name}, {count} x {heads} x {length} x {width}{', causal' * causal}",
                        {**where, "pattern": pattern, "causal": causal, "size": (heads, width)},
                    )
            yield (
                f"neighborhood, {count} x {heads} x {length} x {width}",
                {**where, "pattern": Neighborhood(33), "size": (heads, width)},
            )
        for kind, count, top in (("uniform", 64, 60), ("uniform", 64, 200), ("heavy tail", 64, 1200)):
            if top > longest:
                continue
            for name, pattern in {"dense": "dense", "local 32": Local(32)}.items():
                yield (
                    f"{name}, {kind} up to {top} x {width}, causal",
                    {
                        "layout": Layout.of(lengths(kind, count, top, draw)),
                        "pattern": pattern,
                        "causal": True,
                        "size": (4, width),
                    },
                )


def seconds(inputs: list[torch.Tensor], training: bool, **call: Any) -> float:
    started = time.process_time()
    with torch.set_grad_enabled(training):
        output = attend(*inputs, **call).output
        if training:
            torch.autograd.grad(output, inputs, torch.ones_like(output))
    return time.process_time() - started


def measure(
    call: dict[str, Any], training: bool, rounds: int, draw: np.random.Generator
) -> list[dict[str, Any]]:
    """Return one row per admissible kernel and round."""
    heads, width = call.pop("size")
    tokens = call["layout"].n_tokens
    inputs = [torch.randn(tokens, heads, width, requires_grad=training) for _ in range(3)]
    explained = explain(*inputs, training=training, **call)
    costs = {one.kernel: one.cost for one in explained.candidates if one.cost is not None}
    able, outputs = [], []
    for name in TIMED:
        if name not in costs or (name == "mixed" and explained.kernel != "mixed"):
            continue
        try:
            outputs.append(attend(*inputs, **call, kernel=name).output.detach())
        except BackendError:
            continue
        able.append(name)
    for output in outputs[1:]:
        if not torch.allclose(output, outputs[0], atol=1e-4):
            raise SystemExit(f"{able} differ by {(output - outputs[0]).abs().max()} in {explained.call}.")
    times: dict[str, list[float]] = {name: [] for name in able}
    for name in able:
        seconds(inputs, training, kernel=name, **call)
    for _ in range(rounds):
        for name in draw.permutation(able):
            times[str(name)].append(seconds(inputs, training, kernel=str(name), **call))
    return [
        {
            "kernel": name, "pass": "forward+backward" if training else "forward", "round": number, "seconds": value,
            "chosen": explained.kernel, "cost": costs[name],
        }
        for name in able
        for number, value in enumerate(times[name])
    ]  # fmt: skip


def ratios(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, str, float]]:
    """Return case, pass, chosen and best kernel, and the ratio of their median times."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    chosen = {}
    for row in rows:
        key = (row["case"], row["pass"])
        chosen[key] = row["chosen"]
        groups.setdefault(key, {}).setdefault(row["kernel"], []).append(float(row["seconds"]))
    found = []
    for key, times in groups.items():
        middle = {name: statistics.median(values) for name, values in times.items()}
        best = min(middle, key=lambda name: middle[name])
        found.append((*key, chosen[key], best, middle[chosen[key]] / middle[best]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--longest", type=int, default=4096)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    torch.ones(WARM)  # freed at once
    draw = np.random.default_rng(options.seed)
    if options.calibrate:
        print(calibrate())
    about = {
        "version": f"seqattn {seqattn.__version__}, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    rows = []
    with options.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for case, call in cases(options.width, options.longest, draw):
            for training in (False, True):
                rounds = options.rounds if call["layout"].max_len <= 2048 else min(options.rounds, 3)
                found = [
                    {"case": case, **row, **about} for row in measure(dict(call), training, rounds, draw)
                ]
                writer.writerows(found)
                rows += found
    table = sorted(ratios(rows), key=lambda row: -row[-1])
    for case, label, chosen, best, ratio in table:
        print(f"{case:48} {label:18} {chosen:8} best {best:8} {ratio:.2f}")
    worst, above = table[0][-1], sum(row[-1] > 1.25 for row in table)
    print(f"largest {worst:.2f}; above 1.25: {above} of {len(table)}")


if __name__ == "__main__":
    main()
