"""Measure attention against its targets, and how time and memory grow with the length.

Run from the project's environment, with the extra ``bench`` for the rows about other packages::

    python benchmarks/attention_targets.py

Every row is measured in a process of its own with ``--threads`` threads (default 1) and sleeping waits. Per round every
method runs once, in shuffled order, forward and backward; the ratio is formed inside the round, and the table gives the
median and the smallest over the rounds: 7, or 3 above 2,048 tokens. Processor time, float32, causal, 4 sequences of 4
heads of width 64 (above 4,096 tokens 1 of 2 heads) unless the row says otherwise. Before anything is timed the outputs
of our side are compared with the definition in float64, at 64 rows of the first sequence and of the last one, and up to
1,024 packed tokens the gradients too; an error above 1e-4 stops the run. Raw rows go to
``results/attention_targets.csv`` with the rate of a large matrix product and of copying on this machine. What is in the
file already is not measured again, unless ``--again`` says so.

``--growth`` measures, instead, seconds and peak memory of each pattern up to 65,536 tokens (one sequence, 2 heads of
width 32, forward and backward), each in a process of its own whose allocator gives memory back: rows, table and plot
``results/attention_growth.*``. A slope of 1 is linear.

What is compared
    ``routing, labels given``: segments with as many labels as the root of the length. ``routing``: labels by a router
    whose centroids are updated, against ``routing_transformer`` with as many clusters of equal size, updated too.
    ``local-attention``: in its exact mode a query sees 128 keys and itself, as in ``Local(128)``. ``time decay``: a
    learned rate of each head as a bias per key, against the fused call without any. ``heavy tail``: 64 packed
    sequences, against the fused call on the padded batch with a mask. ``peak memory``: above that before the call, of
    ``Local(128)`` at 4,096 tokens over that of unfused dense attention.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FIELDS = (
    "row", "target", "method", "base", "round", "seconds", "peak_mb", "ratio", "error", "gflops", "copy_gb_s",
    "threads", "version", "machine",
)  # fmt: skip
GROWTH_FIELDS = ("pattern", "length", "seconds", "peak_mb", "threads", "version", "machine")
# What a row may be at most: the time of ours over that of the other side.
TARGETS = {
    "dense, N = 50": 1.15, "dense, N = 256": 1.05, "dense, N = 1024": 1.02,
    "local 128, N = 512": 0.60, "local 128, N = 1024": 0.40, "local 128, N = 4096": 0.15, "local 128, N = 16384": 0.06,
    "local 128 / local-attention, N = 1024": 0.55, "local 128 / local-attention, N = 4096": 0.40,
    "dilated 32 keys, N = 4096": 0.14,
    "routing, labels given, N = 1024": 0.55, "routing, labels given, N = 4096": 0.17,
    "routing / routing_transformer, N = 1024": 0.80, "routing / routing_transformer, N = 4096": 0.60,
    "time decay, N = 2048, width 32": 1.35, "packed / padded with mask, heavy tail": 0.22,
    "peak memory, local 128 / unfused dense, N = 4096": 0.10,
}  # fmt: skip
GROWTH = ("local", "neighborhood", "blocked", "dilated", "segments", "prefix or local", "routing")
LENGTHS = (4096, 8192, 16384, 32768, 65536)
ALLOWED_ERROR = 1e-4


@dataclass
class Row:
    """Two sides, what gets gradients, and our side's pattern for the check (``None``: against the other side)."""

    sides: dict[str, Callable[[], Any]]
    inputs: dict[str, list[Any]]
    pattern: Any = None
    layout: Any = None
    bias: Any = None
    extra: list[Any] = field(default_factory=list)


def tensors(length: int, batch: int = 4, heads: int = 4, width: int = 64) -> tuple[list[Any], list[Any], Any]:
    """Return the same numbers padded and packed, and the layout."""
    import torch

    from seqattn.attention import Layout

    wide = [torch.randn(batch, heads, length, width) for _ in range(3)]
    packed = [x.transpose(1, 2).flatten(0, 1).contiguous().requires_grad_() for x in wide]
    return [x.requires_grad_() for x in wide], packed, Layout.of([length] * batch)


def length_of(name: str) -> int:
    return int(name.split("N = ")[1].split(",")[0])


def dense_row(name: str) -> Row:
    import torch.nn.functional as F

    from seqattn.attention import Dense, attend

    wide, _, layout = tensors(length_of(name))
    return Row(
        {
            "ours": lambda: attend(*wide, causal=True).output,
            "fused dense": lambda: F.scaled_dot_product_attention(*wide, is_causal=True),
        },
        {"ours": wide, "fused dense": wide}, Dense(), layout,
    )  # fmt: skip


def pattern_row(name: str) -> Row:
    import torch
    import torch.nn.functional as F

    from seqattn.attention import Dilated, Local, Segments, attend

    length = length_of(name)
    size = {"batch": 1, "heads": 2} if length > 4096 else {}
    wide, packed, layout = tensors(length, **size)
    if name.startswith("routing"):
        tokens, heads = packed[0].shape[:2]
        pattern: Any = Segments(torch.randint(0, round(length**0.5), (tokens, heads)))
    else:
        pattern = Dilated(31, dilation=4) if name.startswith("dilated") else Local(128)
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: attend(*packed, pattern=pattern, causal=True, layout=layout).output
    }
    if "local-attention" in name:
        from local_attention import LocalAttention

        model = LocalAttention(
            128, causal=True, look_backward=1, exact_windowsize=True, autopad=True, use_rotary_pos_emb=False
        )
        sides["local-attention"] = lambda: model(*wide)
    else:
        sides["fused dense"] = lambda: F.scaled_dot_product_attention(*wide, is_causal=True)
    return Row(sides, dict(zip(sides, (packed, wide), strict=True)), pattern, layout)


def routing_row(name: str) -> Row:
    from routing_transformer.routing_transformer import KmeansAttention

    from seqattn.attention import Router, Segments, attend

    length = length_of(name)
    wide, packed, layout = tensors(length)
    clusters = round(length**0.5)
    router, model = Router(4, clusters, 64), KmeansAttention(clusters, length // clusters, 4, 64, causal=True)

    def ours() -> Any:
        output = attend(*packed, pattern=Segments(router(packed[0]), 128), causal=True, layout=layout).output
        router.update()
        return output

    def theirs() -> Any:
        output = model(*wide)[0]
        model.kmeans.update()
        return output

    return Row({"ours": ours, "routing_transformer": theirs}, {"ours": packed, "routing_transformer": wide})


def decay_row(name: str) -> Row:
    import torch
    import torch.nn.functional as F

    from seqattn.attention import Dense, KeyBias, attend

    length = length_of(name)
    wide, packed, layout = tensors(length, width=32)
    rate = torch.full((4,), 0.5, requires_grad=True)
    times = torch.linspace(-5, 5, length).repeat(4)[:, None]
    return Row(
        {
            "ours": lambda: attend(*packed, causal=True, layout=layout, bias=KeyBias(rate * times)).output,
            "fused dense": lambda: F.scaled_dot_product_attention(*wide, is_causal=True),
        },
        {"ours": packed, "fused dense": wide}, Dense(), layout, (rate * times).detach(), [rate],
    )  # fmt: skip


def ragged_row(name: str) -> Row:
    import numpy as np
    import torch
    import torch.nn.functional as F

    from seqattn.attention import Dense, Layout, attend

    draw = np.random.default_rng(0)
    lengths = np.minimum((20 * (1 + draw.pareto(1.0, 64))).astype(int), 1200)
    longest, total = int(lengths.max()), int(lengths.sum())
    packed = [torch.randn(total, 4, 32, requires_grad=True) for _ in range(3)]
    wide = [torch.zeros(64, 4, longest, 32) for _ in range(3)]
    places = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
    for x, y in zip(wide, packed, strict=True):
        x.transpose(1, 2)[places] = y.detach()
        x.requires_grad_()
    hidden = ~places[:, None, None] | torch.ones(longest, longest).triu(1).bool()
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    return Row(
        {
            "ours": lambda: attend(*packed, causal=True, layout=Layout.of(lengths)).output,
            "fused dense, mask": lambda: F.scaled_dot_product_attention(*wide, attn_mask=mask),
        },
        {"ours": packed, "fused dense, mask": wide}, Dense(), Layout.of(lengths),
    )  # fmt: skip


def made(name: str) -> Row:
    """Return the two sides of a row."""
    if name.startswith("dense"):
        return dense_row(name)
    if "routing_transformer" in name:
        return routing_row(name)
    if name.startswith("time decay"):
        return decay_row(name)
    return ragged_row(name) if name.startswith("packed") else pattern_row(name)


def rows_of_definition(row: Row, sequence: int, rows: Any) -> Any:
    """Return some rows of a sequence by the definition, in float64: ``[rows, heads, dim]``."""
    import torch

    n = int(row.layout.lengths[sequence])
    here = slice(int(row.layout.offsets[sequence]), int(row.layout.offsets[sequence]) + n)
    q, k, v = (
        x.detach().transpose(1, 2).flatten(0, 1)[here] if x.dim() == 4 else x.detach()[here]
        for x in row.inputs["ours"]
    )
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    j = torch.arange(n)
    seen = row.pattern.of(here).visible(rows[:, None], j, n) & (j <= rows[:, None])
    scores = q[:, rows] @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    if row.bias is not None:
        scores = scores + row.bias[here].double().T[:, None]
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1)


def error_of(row: Row) -> float | None:
    """Return how far our side is from the definition."""
    import torch

    from seqattn.attention import KeyBias, attend

    if row.pattern is None:
        return None
    output = row.sides["ours"]()
    flat = output.transpose(1, 2).flatten(0, 1) if output.dim() == 4 else output
    errors = []
    for sequence in {0, len(row.layout) - 1}:
        n, first = int(row.layout.lengths[sequence]), int(row.layout.offsets[sequence])
        rows = torch.linspace(0, n - 1, min(n, 64)).long()
        errors.append(
            (flat[first + rows].detach().double() - rows_of_definition(row, sequence, rows)).abs().max()
        )
    if row.layout.max_len <= 1024 and row.inputs["ours"][0].dim() == 3:
        inputs = row.inputs["ours"]
        exact = [x.detach().double().requires_grad_() for x in inputs]
        bias = None if row.bias is None else KeyBias(row.bias.double())
        wanted = attend(
            *exact, pattern=row.pattern, causal=True, layout=row.layout, bias=bias, kernel="reference"
        ).output
        direction = torch.randn_like(output)
        found = torch.autograd.grad(output, inputs, direction)
        grads = torch.autograd.grad(wanted, exact, direction.double())
        errors += [(a.double() - b).abs().max() for a, b in zip(found, grads, strict=True)]
    return float(max(errors))


def seconds_of(row: Row, side: str) -> float:
    import torch

    inputs = row.inputs[side] + (row.extra if side == "ours" else [])
    started = time.process_time()
    output = row.sides[side]()
    torch.autograd.grad(output, inputs, torch.ones_like(output))
    return time.process_time() - started


def machine_rates() -> dict[str, float]:
    """Return the rate of a large matrix product and of copying, the best of some."""
    import torch

    a, b = (torch.randn(2048, 2048) for _ in range(2))
    x, y = torch.randn(2**25), torch.empty(2**25)
    best = []
    for run in (lambda: a @ b, lambda: y.copy_(x)):
        times = []
        for _ in range(5):
            started = time.process_time()
            run()
            times.append(time.process_time() - started)
        best.append(min(times))
    return {"gflops": 2 * 2048**3 / best[0] / 1e9, "copy_gb_s": 2 * x.nbytes / best[1] / 1e9}


def measure(name: str, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Return one record per side and round."""
    import torch

    torch.manual_seed(seed)
    row = made(name)
    error = error_of(row)
    if error is not None and not error < ALLOWED_ERROR:
        raise SystemExit(f"{name}: our side is {error} away from the definition.")
    ours, other = row.sides
    for side in row.sides:
        seconds_of(row, side)
    found = []
    for number in range(rounds):
        order = [ours, other] if torch.rand(()) < 0.5 else [other, ours]
        times = {side: seconds_of(row, side) for side in order}
        ratio = times[ours] / times[other]
        for side, value in times.items():
            record = {"method": side, "base": other, "round": number, "seconds": value, "error": error}
            found.append(record | ({"ratio": ratio} if side == ours else {}))
    return found


def highest() -> float:
    """Return the highest resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def weigh(name: str, length: int) -> dict[str, float]:
    """Return seconds and peak memory, above that before, of one forward and backward pass of a pattern."""
    import torch

    from seqattn.attention import Blocked, Dilated, Layout, Local, Neighborhood, Prefix, Segments, attend

    torch.manual_seed(0)
    size = {"heads": 4, "width": 64} if name == "dense" or name == "local 128" else {"heads": 2, "width": 32}
    batch = 4 if size["heads"] == 4 else 1

    def run(n: int) -> float:
        inputs = [torch.randn(batch * n, size["heads"], size["width"], requires_grad=True) for _ in range(3)]
        patterns: dict[str, Callable[[], Any]] = {
            "local": Local, "local 128": lambda: Local(128), "neighborhood": Neighborhood, "blocked": Blocked,
            "dilated": Dilated, "segments": lambda: Segments(torch.arange(batch * n) // 100),
            "prefix or local": lambda: Prefix(4) | Local(),
            "routing": lambda: Segments(torch.randint(0, math.isqrt(n), (batch * n, size["heads"])), 128),
        }  # fmt: skip
        started = time.process_time()
        if name == "dense":
            q, k, v = (x.unflatten(0, (batch, n)).transpose(1, 2) for x in inputs)
            hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
            scores = (q @ k.transpose(2, 3) * size["width"] ** -0.5).masked_fill(hidden, -torch.inf)
            output = scores.softmax(-1) @ v
        else:
            output = attend(
                *inputs,
                pattern=patterns[name](),
                causal=name != "neighborhood",
                layout=Layout.of([n] * batch),
            ).output
        torch.autograd.grad(output, inputs, torch.ones_like(output))
        return time.process_time() - started

    run(256)
    before = highest()
    seconds = run(length)
    return {"seconds": seconds, "peak_mb": highest() - before}


def work(task: dict[str, Any]) -> Any:
    """Do in this process what the main one asks for."""
    import torch

    torch.set_num_threads(task["threads"])
    if task["kind"] == "rates":
        return machine_rates()
    if task["kind"] == "weigh":
        return weigh(task["name"], task["length"])
    return measure(task["name"], task["rounds"], task["seed"])


def fresh(task: dict[str, Any]) -> Any:
    """Return the answer of a process of its own, or ``None`` if a package is missing."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(task["threads"]), "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    if task["kind"] == "weigh":
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run(
        [sys.executable, __file__, "--task", json.dumps(task)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr:
            return None
        raise SystemExit(done.stderr or done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


def about(threads: int) -> dict[str, Any]:
    import torch

    import seqattn

    return {
        "threads": threads,
        "version": f"seqattn {seqattn.__version__}, torch {torch.__version__}",
        "machine": f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def records_in(path: Path, again: bool) -> list[dict[str, Any]]:
    if again or not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, fields: tuple[str, ...], records: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(records)


def memory_records(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    length = length_of(name)
    found = {
        side: fresh({"kind": "weigh", "name": side, "length": length, "threads": options.threads})
        for side in ("local 128", "dense")
    }
    ratio = found["local 128"]["peak_mb"] / found["dense"]["peak_mb"]
    return [
        {"method": side, "base": "dense", "round": 0, **values}
        | ({"ratio": ratio} if side != "dense" else {})
        for side, values in found.items()
    ]


def targets(options: argparse.Namespace) -> None:
    """Measure what is not in the file, and print the table."""
    path = options.results / "attention_targets.csv"
    records = records_in(path, options.again)
    known = {record["row"] for record in records}
    wanted = [name for name in TARGETS if any(part in name for part in options.rows) or not options.rows]
    rates = fresh({"kind": "rates", "threads": options.threads})
    print(f"matrix product {rates['gflops']:.0f} GFLOP/s, copy {rates['copy_gb_s']:.1f} GB/s")
    for name in wanted:
        if name in known:
            continue
        if name.startswith("peak memory"):
            found = memory_records(name, options)
        else:
            length = length_of(name) if "N = " in name else 1200
            rounds = options.rounds if length <= 2048 else max(3, options.rounds // 2)
            rounds = 4 * rounds if length <= 256 else rounds
            task = {"name": name, "rounds": rounds, "seed": options.seed, "threads": options.threads}
            found = fresh({"kind": "row", **task})
        if found is None:
            print(f"{name}: the other package is not installed")
            continue
        shared = {"row": name, "target": TARGETS[name], **rates, **about(options.threads)}
        records += [{**shared, **record} for record in found]
        write(path, FIELDS, records)
    print(f"{'row':52} {'ratio':>7} {'lowest':>7} {'target':>7} {'error':>9}")
    for name in wanted:
        mine = [
            record for record in records if record["row"] == name and record.get("ratio") not in (None, "")
        ]
        if mine:
            ratios = [float(record["ratio"]) for record in mine]
            middle, target = statistics.median(ratios), TARGETS[name]
            error = mine[0].get("error")
            told = f"{float(error):9.1e}" if error not in (None, "") else f"{'-':>9}"
            met = "" if middle <= target else " MISSED"
            print(f"{name:52} {middle:7.3f} {min(ratios):7.3f} {target:7.2f} {told}{met}")


def growth(options: argparse.Namespace) -> None:
    """Measure time and memory over the length, and print the table and draw the plot."""
    path = options.results / "attention_growth.csv"
    records = records_in(path, options.again)
    known = {(record["pattern"], int(record["length"])) for record in records}
    for name in GROWTH:
        for length in (n for n in LENGTHS if n <= options.longest):
            if (name, length) in known:
                continue
            found = fresh({"kind": "weigh", "name": name, "length": length, "threads": options.threads})
            records.append({"pattern": name, "length": length, **found, **about(options.threads)})
            write(path, GROWTH_FIELDS, records)
    print(f"{'pattern':18} {'tokens':>7} {'s':>8} {'µs a token':>10} {'MB':>8} {'kB a token':>10}")
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for record in records:
        point = int(record["length"]), float(record["seconds"]), float(record["peak_mb"])
        curves.setdefault(record["pattern"], []).append(point)
    for name, points in curves.items():
        for length, seconds, peak in points:
            each = f"{1e6 * seconds / length:10.2f} {peak:8.1f} {1024 * peak / length:10.2f}"
            print(f"{name:18} {length:7} {seconds:8.3f} {each}")
        slopes = [
            math.log(points[-1][which] / points[0][which]) / math.log(points[-1][0] / points[0][0])
            if len(points) > 1 and points[0][which] > 0 else math.nan
            for which in (1, 2)
        ]  # fmt: skip
        print(f"{name:18} slope of time {slopes[0]:.2f}, of memory {slopes[1]:.2f}")
    draw(curves, options.results / "attention_growth.png")


def draw(curves: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, which, label in zip(both, (1, 2), ("seconds", "peak memory, MB"), strict=True):
        for name, points in curves.items():
            axes.loglog([point[0] for point in points], [point[which] for point in points], "o-", label=name)
        lengths = sorted({point[0] for points in curves.values() for point in points})
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
        axes.set_title(f"{label}, forward and backward")
    both[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", nargs="*", default=[], help="Parts of the names of rows to measure.")
    parser.add_argument("--growth", action="store_true", help="Measure growth with the length instead.")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="Forget what is in the file.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(work(json.loads(options.task))))
    elif options.growth:
        growth(options)
    else:
        targets(options)


if __name__ == "__main__":
    main()
