"""Series whose classes differ in one known place, and series with gaps and of unequal lengths."""

from __future__ import annotations

import numpy as np

from seqattn.classify.series import Scaling, Series
from seqattn.data.panels import Panel

BUMP = np.sin(np.linspace(0, 3 * np.pi, 30)) * 3


def noise(seed: int, n_cases: int = 30, n_channels: int = 2, time: int = 40, n_classes: int = 3) -> Panel:
    """White noise with labels that mean nothing."""
    values = np.random.default_rng(seed).normal(size=(n_cases, n_channels, time))
    return Panel(values, np.arange(n_cases) % n_classes)


def ragged(
    seed: int, lengths: list[int], n_channels: int = 3, gaps: float = 0.0, n_classes: int = 2
) -> Panel:
    """Random walks of given lengths; a share of their points is missing, in runs and alone."""
    rng = np.random.default_rng(seed)
    cases = [np.cumsum(rng.normal(size=(n_channels, length)), axis=1) for length in lengths]
    for case in cases if gaps else ():
        case[rng.random(case.shape) < gaps / 2] = np.nan
        size = int(gaps * case.shape[1])
        first = int(rng.integers(0, case.shape[1] - size))
        case[rng.integers(n_channels), first : first + size] = np.nan
    return Panel(cases, np.arange(len(lengths)) % n_classes)


def with_pattern(
    seed: int, n_cases: int = 40, n_channels: int = 3, time: int = 100
) -> tuple[Panel, np.ndarray]:
    """Noise; cases of the class "with" have 30 points of a pattern in channel 2. Also returns where each begins."""
    rng = np.random.default_rng(seed)
    values, starts = rng.normal(size=(n_cases, n_channels, time)), rng.integers(0, time - 30, n_cases)
    labels = np.where(np.arange(n_cases) % 2 == 1, "with", "without")
    for case in np.flatnonzero(labels == "with"):
        values[case, 2, starts[case] : starts[case] + 30] = BUMP + rng.normal(size=30) * 0.1
    return Panel(values, labels), starts


def with_level(
    seed: int, n_cases: int = 40, n_channels: int = 3, time: int = 80, height: float = 1.0
) -> Panel:
    """Noise; in class 1 the second quarter of channel 1 lies higher."""
    values = np.random.default_rng(seed).normal(size=(n_cases, n_channels, time))
    labels = np.arange(n_cases) % 2
    values[labels == 1, 1, time // 4 : time // 2] += height
    return Panel(values, labels)


def with_order(seed: int, n_cases: int = 60, time: int = 80) -> Panel:
    """Two bumps at random places; the classes differ only in which one comes first."""
    rng = np.random.default_rng(seed)
    places = np.linspace(-1, 1, 16)
    saw, hill = places * 3, (1 - np.abs(places)) * 6 - 3
    values, labels = rng.normal(size=(n_cases, 1, time)) * 0.3, np.arange(n_cases) % 2
    for case, label in enumerate(labels):
        first, second = rng.integers(0, time // 2 - 16), rng.integers(time // 2, time - 16)
        before, after = (saw, hill) if label else (hill, saw)
        values[case, 0, first : first + 16] += before
        values[case, 0, second : second + 16] += after
    return Panel(values, labels)


def scaled(panel: Panel, max_length: int = 1024) -> Series:
    """Return a panel scaled by itself."""
    return Scaling.of(panel, max_length).apply(panel)
