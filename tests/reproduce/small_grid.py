"""A grid of small models over small data sets, which stand where the catalogue looks for known ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

GRID = """
title = "Small sets"
task = "hawkes"
reference = "SAHP"
protocol = "from_first"
protocol_text = "Events 2 to N."
evaluation = { convention = "from_first" }

[[metrics]]
name = "loglik_per_event"
title = "log-likelihood per event"
unit = "nats"

[[metrics]]
name = "rmse"
title = "RMSE"
unit = "hours"
higher_is_better = false

[[models]]
name = "SAHP"
model = "sahp"
published = "SAHP"
[models.settings]
baselines = false
epochs = 1
d_model = 8
n_heads = 1
n_layers = 1
n_decays = 1
own_kernels = 0
gap_kernels = 0

[[models]]
name = "PoissonProcess"
model = "poisson"
is_baseline = true
is_deterministic = true

[[models]]
name = "broken"
model = "sahp"
settings = { d_model = 9, n_heads = 2, epochs = 1 }
is_deterministic = true

[[datasets]]
name = "taxi"

[[datasets]]
name = "hawkes2d"

[[published]]
source = "a paper"
protocol = "from_first"
metric = "loglik_per_event"
[published.figures.taxi]
"SAHP" = 0.298
"THP" = 0.372
"""


def draw(seed: int, n_sequences: int) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    parts = []
    for sequence in range(n_sequences):
        n = int(generator.integers(8, 14))
        times, types = generator.gamma(2.0, 0.5, n).cumsum(), generator.integers(0, 2, n)
        parts.append(pl.DataFrame({"seq_id": [sequence] * n, "t": times, "k": types}))
    return pl.concat(parts)


def write_known(folder: Path, *names: str, n_train: int = 12) -> Path:
    """Write small data under the names of known sets, and return the folder for SEQATTN_DATA."""
    for name in names:
        place = folder / "tpp" / name
        place.mkdir(parents=True, exist_ok=True)
        for seed, (split, size) in enumerate({"train": n_train, "dev": 4, "test": 6}.items()):
            draw(seed, size).write_csv(place / f"{split}.csv")
    return folder


def write_grid(path: Path) -> Path:
    path.write_text(GRID)
    return path
