"""Measure on this machine what the kernels cost, so that the choice between them fits it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqattn.attention.check import check_call
from seqattn.attention.costs import COSTS, Key, Rates, load, save
from seqattn.attention.kernel import Kernel, Problem
from seqattn.attention.layout import Layout
from seqattn.attention.pattern import Pattern
from seqattn.attention.patterns import Dense, Dilated, Local, Segments
from seqattn.attention.plain import Plain
from seqattn.attention.sdpa import Fused
from seqattn.attention.window import Window
from seqattn.errors import ParameterError

__all__ = ["Calibration", "calibrate"]

# Numbers of a tensor after whose end the C library keeps freed memory, as it does in any training run. Before, short
# unfused calls spend half of their time on page faults.
WARM = 6 * 2**20
# Sequences, tokens of each, heads, width, causal: from where calls cost most to where pairs do.
SIZES = (
    (1, 8, 2, 16, True), (300, 8, 2, 64, True), (300, 8, 2, 16, True), (400, 12, 2, 32, True), (200, 12, 4, 8, True),
    (32, 16, 2, 16, True), (80, 20, 2, 16, True), (80, 30, 4, 16, False), (32, 37, 2, 16, True),
    (16, 37, 4, 64, False), (16, 64, 4, 32, True),
    (8, 128, 4, 32, False), (4, 256, 4, 64, True), (4, 256, 4, 16, False), (2, 512, 4, 32, True),
    (1, 1024, 2, 64, True),
)  # fmt: skip
# Batches of uneven lengths, which make several rectangles.
UNEVEN = (range(1, 41), range(2, 91, 4), range(5, 300, 30), range(10, 60, 7))
# Tokens, window and width of long sequences.
WINDOWS = ((256, 16, 16), (512, 64, 32), (512, 128, 64), (1024, 128, 64), (2048, 128, 32), (2048, 32, 16))


@dataclass(frozen=True)
class Calibration:
    """The constants of this machine; print it.

    Parameters
    ----------
    rates
        Device, kernel and pass, and what a unit of work takes there.
    is_loaded
        Whether they come from a file and were not measured now.
    """

    rates: Mapping[Key, Rates]
    is_loaded: bool

    def rows(self) -> list[dict[str, str | float]]:
        """Return the constants as a table."""
        return [
            {
                "device": key.device,
                "kernel": key.kernel,
                "pass": "forward and backward" if key.training else "forward",
                "call µs": rates.call,
                "rectangle µs": rates.step,
                "matrix ns": rates.matrix,
                "pair ns": rates.pair,
                "single ns": rates.single,
                "feature ns": rates.feature,
                "byte ns": rates.byte,
                "decision ns": rates.decision,
            }
            for key, rates in self.rates.items()
        ]

    def __str__(self) -> str:
        rows = self.rows()
        lines = [list(rows[0])] if rows else []
        lines += [
            [value if isinstance(value, str) else f"{value:.3g}" for value in row.values()] for row in rows
        ]
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(size) for text, size in zip(line, wide, strict=True)).rstrip()
            for line in lines
        )


def calibrate(*, path: str | Path | None = None, again: bool = False, rounds: int = 3) -> Calibration:
    """Measure what the kernels cost on this machine, and choose by it in this process.

    Takes some seconds of one core. Results do not change by it, but for rounding where another kernel is taken.

    Parameters
    ----------
    path
        File that keeps the constants: they are read from it if it was written on this machine with this version of
        torch and number of threads, and else measured and written to it. ``None`` for no file.
    again
        Whether to measure even if the file has them.
    rounds
        How often each call is timed; the fastest time counts; 1 or more.

    Returns
    -------
    The constants, printable as a table.

    Raises
    ------
    ParameterError
        ``rounds`` is below 1, or the file holds something else.

    Notes
    -----
    A call is taken to last ``call + rectangles * rectangle + matrices * matrix + pairs * (pair + width * feature) +
    singles * single + bytes * byte + decisions * decision``, see ``costs.py``; the constants are fitted to the
    measured times with relative errors, none below 0.
    """
    if rounds < 1:
        raise ParameterError(f"rounds must be 1 or more, got {rounds}.")
    file = None if path is None else Path(path)
    kept = None if file is None or again else load(file)
    if kept is not None:
        COSTS.use(kept)
        return Calibration(kept, is_loaded=True)
    torch.ones(WARM)  # freed at once
    measured = {
        Key("cpu", kernel.name, training): _fitted(kernel, training, rounds)
        for kernel in (Fused(), Plain(), Window())
        for training in (False, True)
    }
    if file is not None:
        save(file, measured)
    COSTS.use(measured)
    return Calibration(measured, is_loaded=False)


def _fitted(kernel: Fused | Plain | Window, training: bool, rounds: int) -> Rates:
    """Return the constants that come nearest to the times of a kernel."""
    from scipy.optimize import nnls

    terms, times = [], []
    for problem in _problems(kernel, training):
        terms.append(kernel.work(problem).terms())
        times.append(_seconds(kernel, problem, rounds) * 1e6)
    seconds = np.array(times)
    found, _ = nnls(np.array(terms) / seconds[:, None], np.ones(len(seconds)))
    return Rates(*map(float, found))


def _problems(kernel: Kernel, training: bool) -> Iterator[Problem]:
    """Return the calls by which a kernel is measured."""
    draw = torch.Generator().manual_seed(0)

    def problem(lengths: list[int], heads: int, width: int, causal: bool, pattern: Pattern) -> Problem:
        shape = (sum(lengths), heads, width)
        q, k, v = (torch.randn(shape, generator=draw).requires_grad_(training) for _ in range(3))
        layout = Layout.of(lengths)
        return check_call(q, k, v, pattern, causal, None, None, layout, None, None, None, None, 0.0, "output")

    def labels(tokens: int) -> Tensor:
        return torch.randint(0, 8, (tokens, 4), generator=draw)

    if isinstance(kernel, Window):
        for length, window, width in WINDOWS:
            yield problem([length] * 2, 4, width, True, Local(window))
        for count, length in ((128, 20), (80, 50), (40, 100)):
            yield problem([length] * count, 2, 16, False, Local(16))
            yield problem([length] * count, 2, 64, True, Dilated(16))
        for lengths in ([20] * 32, [64] * 4, [1024] * 2):
            yield problem(lengths, 4, 32, True, Local(8))
            yield problem(lengths, 4, 32, True, Segments(labels(sum(lengths)), 16))
        return
    for count, length, heads, width, causal in SIZES:
        yield problem([length] * count, heads, width, causal, Dense())
    for uneven in UNEVEN:
        yield problem(list(uneven), 2, 16, True, Dense())
    for count, length in ((128, 20), (80, 50), (8, 256)):
        yield problem([length] * count, 2, 16, False, Local(16))
        yield problem([length] * count, 2, 64, True, Dense())
    for count, length in ((32, 20), (4, 128)):
        yield problem([length] * count, 4, 16, True, Segments(labels(count * length), 16))


def _seconds(kernel: Kernel, problem: Problem, rounds: int) -> float:
    """Return the processor time of a call, the smallest of some."""
    inputs = (problem.q, problem.k, problem.v)
    ones = torch.ones(*problem.q.shape)
    times = []
    for _ in range(rounds + 1):
        started = time.process_time()
        with torch.set_grad_enabled(problem.training):
            output = kernel.run(problem).output
            if problem.training:
                torch.autograd.grad(output, inputs, ones)
        times.append(time.process_time() - started)
    return min(times[1:])
