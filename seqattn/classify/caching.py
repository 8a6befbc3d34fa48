"""Tokens that were learnt before, found again by what they were learnt of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_memory

import seqattn
from seqattn.classify.recipe import Recipe
from seqattn.classify.tokens import Tokeniser, Tokens
from seqattn.data.panels import Panel

__all__ = ["learn_tokens"]


def learn_tokens(
    memory: Any,
    panel: Panel,
    labels: np.ndarray,
    recipe: Recipe,
    seed: int,
    report: Callable[[str], None] | None = None,
) -> tuple[Tokeniser, Tokens]:
    """Return what :meth:`Tokeniser.learn` returns, from a cache if it is there.

    The key is the content of everything that decides the tokens: values and labels of the cases, recipe, seed and
    version of this package. Threads are no part of it.

    Parameters
    ----------
    memory
        Folder, or a :class:`joblib.Memory`, that keeps what was learnt; None keeps nothing.
    panel, labels, recipe, seed, report
        As in :meth:`Tokeniser.learn`.
    """
    if memory is None:
        return Tokeniser.learn(panel, labels, recipe, seed, report)
    parts = {**vars(recipe), "n_jobs": None, "seed": seed, "version": seqattn.__version__}
    digest = hashlib.sha256(f"{panel.digest()} {sorted(parts.items())}".encode())
    digest.update(np.ascontiguousarray(labels, dtype=np.int64).tobytes())
    cached = check_memory(str(memory) if isinstance(memory, Path) else memory).cache(
        _learn, ignore=["panel", "labels", "recipe", "seed", "report"]
    )
    found: tuple[Tokeniser, Tokens] = cached(digest.hexdigest(), panel, labels, recipe, seed, report)
    return found


def _learn(
    key: str,
    panel: Panel,
    labels: np.ndarray,
    recipe: Recipe,
    seed: int,
    report: Callable[[str], None] | None,
) -> tuple[Tokeniser, Tokens]:
    return Tokeniser.learn(panel, labels, recipe, seed, report)
