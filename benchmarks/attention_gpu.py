"""Time attention on a CUDA device, pattern by pattern, against torch's fused dense call of the same shape.

Run on a machine with a CUDA device::

    python benchmarks/attention_gpu.py --lengths 1024 4096 16384

Per round every kernel that can do a call runs once, in shuffled order, forward and backward; its time is divided by
that of the dense causal call in the same round. Every time is a row of ``results/attention_gpu.csv``, with the peak of
memory above the inputs. The table shows medians. A kernel counts only if its output agrees with that of the reference
kernel in float64, at the shortest length.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import seqattn
from seqattn.attention import Dilated, Layout, Local, Prefix, Segments, attend, backends
from seqattn.attention.pattern import Pattern
from seqattn.errors import BackendError

RESULTS = Path(__file__).parent / "results" / "attention_gpu.csv"
FIELDS = (
    "pattern",
    "kernel",
    "dtype",
    "length",
    "pass",
    "round",
    "seconds",
    "ratio",
    "peak_bytes",
    "version",
    "device",
)
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Largest error relative to the largest output.
TOLERANCES = {"bfloat16": 2e-2, "float32": 1e-4}
Run = Callable[[], Tensor]


def patterns(labels: Tensor) -> dict[str, Pattern | str]:
    return {
        "dense": "dense",
        "local 128": Local(128),
        "dilated 32 by 4": Dilated(32, dilation=4),
        "local 128 or prefix 4": Local(128) | Prefix(4),
        "routing 16, 128": Segments(labels, 128),
    }


def inputs(args: argparse.Namespace, length: int, dtype: torch.dtype) -> tuple[list[Tensor], Layout, Tensor]:
    shape = (args.batch * length, args.heads, args.width)
    leaves = [torch.randn(shape, device=args.device, dtype=dtype, requires_grad=True) for _ in range(3)]
    labels = torch.randint(0, 16, shape[:2], device=args.device)
    return leaves, Layout.of([length] * args.batch, args.device), labels


def ways(pattern: Pattern | str, leaves: list[Tensor], layout: Layout) -> dict[str, Run]:
    """Return the kernels that can do the call."""
    found: dict[str, Run] = {}
    for name in backends():
        if name in ("reference", "plain"):
            continue

        def run(name: str = name) -> Tensor:
            return attend(*leaves, pattern=pattern, causal=True, layout=layout, kernel=name).output

        try:
            run()
        except BackendError:
            continue
        found[name] = run
    return found


def dense(leaves: list[Tensor], batch: int) -> Tensor:
    q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in leaves)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def agrees(pattern: Pattern | str, leaves: list[Tensor], layout: Layout, run: Run, tolerance: float) -> bool:
    exact = [x.detach().double() for x in leaves]
    wanted = attend(*exact, pattern=pattern, causal=True, layout=layout, kernel="reference").output
    return bool((run().detach().double() - wanted).abs().max() <= tolerance * wanted.abs().max())


def timed(run: Run, leaves: list[Tensor], backward: bool) -> tuple[float, int]:
    """Return seconds and the peak of memory above the inputs."""
    for leaf in leaves:
        leaf.grad = None
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start.record()
    with torch.set_grad_enabled(backward):
        output = run()
    if backward:
        output.sum().backward()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000, torch.cuda.max_memory_allocated() - before


def measure(args: argparse.Namespace, dtype: str, length: int, writer: csv.DictWriter) -> None:
    leaves, layout, labels = inputs(args, length, TYPES[dtype])
    version, card = seqattn.__version__, torch.cuda.get_device_name()
    for name, pattern in patterns(labels).items():
        found = ways(pattern, leaves, layout)
        if length == min(args.lengths):
            wrong = [
                one
                for one, run in found.items()
                if not agrees(pattern, leaves, layout, run, TOLERANCES[dtype])
            ]
            if wrong:
                raise SystemExit(f"{name}, {dtype}: {', '.join(wrong)} differ from the definition.")
        for backward in (False, True):
            runs = found | {"torch, dense": lambda: dense(leaves, args.batch)}
            for run in runs.values():
                timed(run, leaves, backward)
            ratios: dict[str, list[float]] = {}
            for number in range(args.rounds):
                order = random.Random(number).sample(list(runs), len(runs))
                times = {one: timed(runs[one], leaves, backward) for one in order}
                for one, (seconds, peak) in times.items():
                    ratio = seconds / times["torch, dense"][0]
                    ratios.setdefault(one, []).append(ratio)
                    row = (
                        name,
                        one,
                        dtype,
                        length,
                        "both" if backward else "forward",
                        number,
                        seconds,
                        ratio,
                        peak,
                    )
                    writer.writerow(dict(zip(FIELDS, (*row, version, card), strict=True)))
            for one, values in ratios.items():
                way = "forward and backward" if backward else "forward"
                print(f"{name}, {dtype}, {length}, {way}: {one} {statistics.median(values):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    args.device = torch.device("cuda")
    torch.manual_seed(0)
    with args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for dtype in TYPES:
            for length in args.lengths:
                measure(args, dtype, length, writer)


if __name__ == "__main__":
    main()
