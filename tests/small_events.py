"""Small event tables for tests of commands and searches: two types that alternate more often than not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

TINY = {"d_model": 8, "n_heads": 1, "n_layers": 1, "epochs": 2}
SIZES = {"train": 12, "dev": 5, "test": 5}


def draw(seed: int, n_sequences: int, names: tuple[str, str, str] = ("seq_id", "t", "k")) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    rows = []
    for sequence in range(n_sequences):
        time, kind = 0.0, 0
        for _ in range(generator.integers(6, 12)):
            time += generator.gamma(2.0, 0.5)
            kind = kind ^ int(generator.random() < 0.7)
            rows.append((f"s{sequence}", time, "ab"[kind]))
    return pl.DataFrame(rows, schema=list(names), orient="row")


def write_splits(folder: Path, splits: tuple[str, ...] = ("train", "dev", "test")) -> Path:
    """Write a folder of splits as CSV, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(splits):
        draw(seed, SIZES[split]).write_csv(folder / f"{split}.csv")
    return folder
