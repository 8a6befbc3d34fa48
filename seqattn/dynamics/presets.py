"""Settings of studies that are run by name: the published ones, and a first look at own sequences."""

from __future__ import annotations

from typing import Any

__all__ = ["OWN", "SMALL"]

SMALL: dict[str, Any] = {"lr_y": [1.0, 10.0], "lr_z": 1.0, "momentum": 0.9, "n_steps": 100, "n_seeds": 5}
"""Figure 4 of the paper: momentum 0.9, 100 steps of 128 sequences of 128 tokens, from 0."""

OWN: dict[str, Any] = {
    "lr_y": [20.0, 20.0, 100.0],
    "lr_z": [20.0, 200.0, 200.0],
    "n_steps": 600,
    "batch_size": 32,
    "seq_len": 33,
    "max_vocab": 800,
    # A record looks at all classes, of which words have thousands: 0.5 s each, against 0.02 s of a step.
    "n_records": 16,
    "n_snapshots": 4,
    "top_tokens": 50,
}
"""Rates at which attention to words moves within 600 steps; a rate of 1 hardly moves it."""
