"""How tokens are made, and where random draws come from."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

__all__ = ["KINDS", "Recipe", "generator"]

KINDS = ("dilated", "motif")


def generator(seed: int, name: str) -> np.random.Generator:
    """Return the source of random draws for one purpose; purposes do not disturb each other.

    Parameters
    ----------
    seed
        Of the whole fit.
    name
        The purpose.
    """
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


@dataclass(frozen=True)
class Recipe:
    """How tokens are made; the attributes are parameters of :class:`seqattn.VSFormerClassifier`.

    Attributes
    ----------
    shapes, window_fractions, motifs_per_cell, match, locality, profile_cap
        Which shapes, and how motifs are found.
    derivatives
        Whether first differences are further channels.
    granularities
        Into how many parts the time axis is cut.
    shape_tokens, value_tokens
        How many tokens of each kind at most.
    tokens
        Which kinds there are.
    readout_shapes
        How many dilated shapes the readout reads, in all families; 0 for no readout.
    max_length
        Points beyond which series are shortened.
    n_jobs
        Threads of the search for motifs.
    n_members
        How many networks have tokens of their own.
    """

    shapes: str
    window_fractions: tuple[float, ...]
    motifs_per_cell: int
    match: str
    locality: float | None
    profile_cap: int
    derivatives: bool
    granularities: tuple[int, ...]
    shape_tokens: int
    value_tokens: int
    tokens: str
    readout_shapes: int
    max_length: int
    n_jobs: int | None
    n_members: int = 1
