"""Time dense attention through ``attend`` against torch's fused call on the same numbers.

Run from the project's environment::

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/attention_dense.py

Per round every method runs once, in shuffled order; each time is divided by that of the bare fused call in the same
round. The table shows the median, smallest and largest ratio over the rounds; every time is a row of
``results/attention_dense.csv``. Below 1, ``attend`` is faster. Processor time, float32, causal.

What is compared
    ``padded``: ``attend`` and the fused call, both with the causal flag, on [4, 4, N, 64]: the price of the interface.
    ``ragged``: sequences of unequal length. ``attend`` on the packed batch, a new layout each time, so that the
    sorting into rectangles counts; ``attend`` with a layout that further layers share; the fused call on the padded
    batch with the causal flag alone; and the same with a mask, which is what the ratio is formed to.

Before anything is timed, each method's output and gradients are compared with those of the fused call.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import seqattn
from seqattn.attention import Layout, attend

RESULTS = Path(__file__).parent / "results" / "attention_dense.csv"
FIELDS = ("case", "method", "pass", "round", "seconds", "ratio", "version", "threads", "machine")
Methods = dict[str, Callable[[], Tensor]]


def padded(length: int) -> tuple[Methods, list[Tensor]]:
    """Return both ways to the same attention, the one to compare with first, and what gets gradients."""
    inputs = [torch.randn(4, 4, length, 64, requires_grad=True) for _ in range(3)]
    return {
        "fused": lambda: F.scaled_dot_product_attention(*inputs, is_causal=True),
        "attend": lambda: attend(*inputs, causal=True).output,
    }, inputs


def ragged(lengths: np.ndarray, heads: int, width: int) -> tuple[Methods, list[Tensor]]:
    """Return four ways to the same attention; all of them give the packed rows."""
    count, longest = len(lengths), int(lengths.max())
    places = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
    wide = torch.zeros(count, longest, 3, heads, width)
    wide[places] = torch.randn(int(lengths.sum()), 3, heads, width)
    wide.requires_grad_()
    packed = wide.detach()[places].requires_grad_()
    later = torch.ones(longest, longest).triu(1).bool()
    mask = torch.zeros(count, 1, longest, longest).masked_fill_(~places[:, None, None] | later, -torch.inf)
    shared = Layout.of(lengths)

    def fused(**arguments: Any) -> Tensor:
        q, k, v = wide.permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v, **arguments).transpose(1, 2)

    def ours(layout: Layout) -> Tensor:
        return attend(*packed.unbind(1), causal=True, layout=layout).output

    return {
        "fused, padded, mask": lambda: fused(attn_mask=mask),
        "fused, padded, causal flag": lambda: fused(is_causal=True),
        "attend, packed": lambda: ours(Layout.of(lengths)),
        "attend, packed, layout shared": lambda: ours(shared),
    }, [wide, packed]


def cases(seed: int) -> dict[str, Callable[[], tuple[Methods, list[Tensor]]]]:
    """Return the settings: three lengths, and three distributions of lengths beside that of event sequences."""
    draw = np.random.default_rng(seed)
    spread = {
        "events 37-100": (draw.integers(37, 101, 40), 2, 16),
        "uniform 10-200": (draw.integers(10, 201, 64), 4, 32),
        "geometric": (np.minimum(10 + draw.geometric(1 / 80, 64), 600), 4, 32),
        "heavy tail": (np.minimum((20 * (1 + draw.pareto(1.0, 64))).astype(int), 1200), 4, 32),
    }
    settings: dict[str, Callable[[], tuple[Methods, list[Tensor]]]] = {}
    for length in (50, 256, 1024):
        settings[f"padded {length}"] = lambda length=length: padded(length)
    for name, (lengths, heads, width) in spread.items():
        settings[f"ragged {name}"] = lambda a=lengths, b=heads, c=width: ragged(a, b, c)
    return settings


def forward(method: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    with torch.no_grad():
        method()


def both(method: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    output = method()
    output.backward(torch.ones_like(output))
    for x in inputs:
        x.grad = None


PASSES = {"forward": forward, "forward+backward": both}


def check(methods: Methods, inputs: list[Tensor]) -> None:
    """Stop if a method does not compute what the first one does: sums of the output and squares of the gradients."""
    found = {}
    for name, method in methods.items():
        output = method()
        if output.dim() == 4 and len(inputs) == 2:
            live = inputs[0].detach().flatten(2).ne(0).any(-1)
            output = output[live]
        (output**2).sum().backward()
        found[name] = (
            output.sum().item(),
            sum(x.grad.pow(2).sum().item() for x in inputs if x.grad is not None),
        )
        for x in inputs:
            x.grad = None
    first = next(iter(found.values()))
    for name, values in found.items():
        if not np.allclose(values, first, rtol=1e-3, atol=1e-2):
            raise SystemExit(f"{name} computes {values}, not {first}.")


def measure(
    methods: Methods, inputs: list[Tensor], rounds: int, draw: np.random.Generator
) -> list[dict[str, Any]]:
    """Return one row per method, pass and round."""
    rows = []
    names = list(methods)
    for label, run in PASSES.items():
        for name in names:
            run(methods[name], inputs)
        for number in range(rounds):
            seconds = {}
            for name in draw.permutation(names):
                start = time.process_time()
                run(methods[name], inputs)
                seconds[str(name)] = time.process_time() - start
            base = seconds[names[0]]
            rows += [
                {"method": name, "pass": label, "round": number, "seconds": value, "ratio": value / base}
                for name, value in seconds.items()
            ]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the ratios as text: median (smallest to largest)."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["pass"], row["method"]), []).append(row["ratio"])
    lines = [f"{'case':24} {'pass':18} {'method':32} ratio"]
    for (case, label, method), ratios in groups.items():
        middle = statistics.median(ratios)
        lines.append(f"{case:24} {label:18} {method:32} {middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    draw = np.random.default_rng(options.seed)
    about = {
        "version": f"seqattn {seqattn.__version__}, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    rows = []
    for case, make in cases(options.seed).items():
        methods, inputs = make()
        check(methods, inputs)
        rows += [{"case": case, **row, **about} for row in measure(methods, inputs, options.rounds, draw)]
    with options.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
