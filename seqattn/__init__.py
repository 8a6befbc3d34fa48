"""Attention models for sequences and events outside images.

The names below are loaded on first use, so that ``import seqattn`` stays cheap and does not import torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqattn.data.catalog import load_dataset
    from seqattn.data.sequences import Sequences
    from seqattn.hawkes import SAHP, EmpiricalMarkov, ExponentialHawkes, PoissonProcess, RenewalProcess

__version__ = "0.1.0"

TASKS = ("hawkes",)

_ESTIMATORS = {
    "SAHP": "seqattn.hawkes",
    "PoissonProcess": "seqattn.hawkes",
    "RenewalProcess": "seqattn.hawkes",
    "ExponentialHawkes": "seqattn.hawkes",
    "EmpiricalMarkov": "seqattn.hawkes",
}
_HOMES = {
    **_ESTIMATORS,
    "Sequences": "seqattn.data.sequences",
    "load_dataset": "seqattn.data.catalog",
}

__all__ = [
    "SAHP",
    "EmpiricalMarkov",
    "ExponentialHawkes",
    "PoissonProcess",
    "RenewalProcess",
    "Sequences",
    "__version__",
    "load",
    "load_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'seqattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def load(path: str | Path) -> Any:
    """Open an estimator that was saved with its ``save`` method.

    Parameters
    ----------
    path
        A file written by ``save``, or a folder that holds ``model.safetensors``.

    Returns
    -------
    The fitted estimator; it predicts the same bits as the one that was saved.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, was not written by seqattn, or by a newer version.
    """
    from seqattn.errors import ArtifactError
    from seqattn.train.artifact import load_artifact

    artifact = load_artifact(path)
    if artifact.kind not in _ESTIMATORS:
        raise ArtifactError(
            f"{str(path)!r} holds {artifact.kind!r}, which this version of seqattn ({__version__}) does not "
            "know. Install the version that wrote it, or a newer one."
        )
    return __getattr__(artifact.kind)._from_artifact(artifact)


def task(name: str) -> ModuleType:
    """Return the module that tells the command line and the tuner how to run a task.

    Parameters
    ----------
    name
        One of ``seqattn.TASKS``.

    Raises
    ------
    ParameterError
        There is no such task.
    """
    from seqattn.errors import ParameterError, suggest

    if name not in TASKS:
        raise ParameterError(f"There is no task {name!r}. Tasks: {', '.join(TASKS)}.{suggest(name, TASKS)}")
    return importlib.import_module(f"seqattn.{name}.task")
