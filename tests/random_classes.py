"""Random classes for the tests of training dynamics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.pairwise import Parameters


def draw_classes(
    seed: int,
    K: int = 5,
    M: int = 9,
    V: int | None = None,
    queries: int = 2,
    unique: bool = False,
    equal: bool = False,
    **more: Any,
) -> SequenceClasses:
    """Draw classes with common, distinct and absent tokens; the last token is absent."""
    rng = np.random.default_rng(seed)
    P = rng.random((K, M)) * (rng.random((K, M)) < 0.7)
    P[:, 0] = rng.random(K) + 0.1
    P[:, -1] = 0
    label = rng.permutation(K) if unique else np.r_[0, 1, rng.integers(0, max(2, K - 2), K - 2)]
    query = np.r_[np.zeros(2, int), rng.integers(0, queries, K - 2)]
    weight = np.ones(K) if equal else rng.random(K) + 0.2
    return SequenceClasses(
        P,
        query,
        label,
        weight,
        n_outputs=V or int(label.max()) + 1,
        n_queries=queries,
        normalize=True,
        **more,
    )


def draw_parameters(classes: SequenceClasses, seed: int, n_runs: int = 3, scale: float = 1.0) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    start = Parameters.zeros(classes, n_runs)
    return Parameters(
        *(
            scale * torch.randn(part.shape, generator=generator, dtype=part.dtype)
            for part in (start.Y, start.Z)
        )
    )
