"""The generators of random numbers that a whole process shares, which RecBole draws from: lent to it, and kept."""

from __future__ import annotations

import contextlib
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["apart", "set_shared_state", "shared_state"]


@contextlib.contextmanager
def apart(seed: int) -> Iterator[Path]:
    """Run an engine in a temporary folder with generators of its own; afterwards all are as they were.

    Parameters
    ----------
    seed
        From which Python's, numpy's and torch's shared generators start, which the engine draws from.

    Yields
    ------
    The folder.
    """
    state = shared_state()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        with (
            tempfile.TemporaryDirectory(prefix="seqattn-") as folder,
            torch.random.fork_rng(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield Path(folder)
    finally:
        set_shared_state(state)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


def shared_state() -> dict[str, Any]:
    """Return the state of the generators that the whole process shares, as plain values and tensors."""
    state: Any = np.random.get_state()  # noqa: NPY002 - the engine draws from this very generator
    kind, keys, *rest = state
    version, words, spare = random.getstate()
    return {
        "python": [version, torch.tensor(words), spare],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }


def set_shared_state(state: Mapping[str, Any]) -> None:
    """Put the generators that the whole process shares back into a state.

    Parameters
    ----------
    state
        What :func:`shared_state` returned.
    """
    version, words, spare = state["python"]
    random.setstate((version, tuple(words.tolist()), spare))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
