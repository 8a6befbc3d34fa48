"""Attention models for sequences and events outside images.

The names below are loaded on first use, so that ``import seqattn`` stays cheap and does not import torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqattn.classify import VSFormerClassifier
    from seqattn.data.catalog import load_dataset
    from seqattn.data.sequences import Sequences
    from seqattn.dynamics import ScanAndSnapStudy
    from seqattn.hawkes import SAHP, EmpiricalMarkov, ExponentialHawkes, PoissonProcess, RenewalProcess
    from seqattn.recommend import (
        MarkovRecommender,
        MQSATEDRecommender,
        PopularityRecommender,
        SASRecRecommender,
    )
    from seqattn.train.artifact import Artifact

__version__ = "0.1.0"

TASKS = ("hawkes", "classify", "recommend")
# Tasks that are searched and not fitted for predictions.
STUDIES = ("dynamics",)

_ESTIMATORS = {
    "MajorityClass": "seqattn.classify.baselines",
    "NearestNeighbour": "seqattn.classify.baselines",
    "MiniRocket": "seqattn.classify.peers",
    "MultiRocketHydra": "seqattn.classify.peers",
    "SAHP": "seqattn.hawkes",
    "PoissonProcess": "seqattn.hawkes",
    "RenewalProcess": "seqattn.hawkes",
    "ExponentialHawkes": "seqattn.hawkes",
    "EmpiricalMarkov": "seqattn.hawkes",
    "VSFormerClassifier": "seqattn.classify",
    "MQSATEDRecommender": "seqattn.recommend",
    "SASRecRecommender": "seqattn.recommend",
    "PopularityRecommender": "seqattn.recommend",
    "MarkovRecommender": "seqattn.recommend",
    "PeerRecommender": "seqattn.recommend.peers",
    "ScanAndSnapStudy": "seqattn.dynamics",
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
    "MQSATEDRecommender",
    "MarkovRecommender",
    "PoissonProcess",
    "PopularityRecommender",
    "RenewalProcess",
    "SASRecRecommender",
    "ScanAndSnapStudy",
    "Sequences",
    "VSFormerClassifier",
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


def load(path: str | Path, device: str | None = None) -> Any:
    """Open an estimator that was saved with its ``save`` method.

    Parameters
    ----------
    path
        A file written by ``save``, or a folder that holds ``model.safetensors``.
    device
        Where it runs from now on: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``. ``None``: as it was fitted, or on
        the CPU with a warning where that device is not there.

    Returns
    -------
    The fitted estimator; on the same device it predicts the same bits as the one that was saved.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, was not written by seqattn, or by a newer version.
    BackendError
        The device is not there.
    ParameterError
        The device is not known, or the estimator runs on the CPU only.
    """
    from seqattn.errors import ArtifactError
    from seqattn.train.artifact import load_artifact

    artifact = load_artifact(path)
    if artifact.kind == "Stream":
        raise ArtifactError(
            f"{str(path)!r} holds the state of a stream. Open its model, then: model.stream().resume({str(path)!r})."
        )
    if artifact.kind not in _ESTIMATORS:
        raise ArtifactError(
            f"{str(path)!r} holds {artifact.kind!r}, which this version of seqattn ({__version__}) does not "
            "know. Install the version that wrote it, or a newer one."
        )
    if device is not None:
        _send(artifact, device)
    return __getattr__(artifact.kind)._from_artifact(artifact)


def _send(artifact: Artifact, device: str) -> None:
    """Put a device in place of the one that a saved estimator was fitted with."""
    from seqattn.errors import ParameterError
    from seqattn.train.parameters import encode_parameter
    from seqattn.train.settings import resolve_device

    params = artifact.metadata["params"]
    if "device" not in params and device not in ("auto", "cpu"):
        raise ParameterError(f"{artifact.kind} runs on the CPU only, but device={device!r} was asked for.")
    resolve_device(device)
    if "device" in params:
        params["device"] = encode_parameter(device)


def task(name: str) -> ModuleType:
    """Return the module that tells the command line and the tuner how to run a task.

    Parameters
    ----------
    name
        One of ``seqattn.TASKS``, or of ``seqattn.STUDIES``, which have no predictions.

    Raises
    ------
    ParameterError
        There is no such task.
    """
    from seqattn.errors import ParameterError, suggest

    known = (*TASKS, *STUDIES)
    if name not in known:
        listed = f"Tasks: {', '.join(TASKS)}; studies: {', '.join(STUDIES)}."
        raise ParameterError(f"There is no task {name!r}. {listed}{suggest(name, known)}")
    return importlib.import_module(f"seqattn.{name}.task")
