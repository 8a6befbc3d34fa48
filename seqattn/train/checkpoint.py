"""The state of a fit in a file, so that training goes on where it was interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from seqattn.errors import ArtifactError
from seqattn.train.artifact import (
    PARTIAL,
    Artifact,
    decode_metadata,
    encode_metadata,
    load_artifact,
    save_artifact,
)
from seqattn.train.history import History

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

_KIND = "checkpoint of a fit"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A fit between two epochs.

    Attributes
    ----------
    weights
        The module's state dict.
    best
        State dict of the best epoch; empty if that is the last one, or the fit is finished.
    optimiser
        State of the optimiser by parameter number; empty if the fit is finished.
    history
        The epochs so far.
    finished
        Whether training has ended.
    """

    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    optimiser: dict[int, dict[str, Tensor]]
    history: History
    finished: bool


def write_checkpoint(path: Path, state: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Replace the checkpoint at a path.

    Parameters
    ----------
    path
        The file; until the new one is complete the old one stays.
    state
        What to keep.
    identity
        JSON values that tell which run this is.

    Raises
    ------
    ArtifactError
        The identity holds a value that cannot be saved.
    """
    # A process killed while it wrote leaves its unfinished file behind.
    for partial in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    tensors = {f"weights/{name}": value for name, value in state.weights.items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    for number, values in state.optimiser.items():
        tensors |= {f"optimiser/{number}/{name}": value for name, value in values.items()}
    metadata = {"identity": dict(identity), "history": state.history.to_json(), "finished": state.finished}
    save_artifact(path, _KIND, tensors, metadata)


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint at a path, or None if there is none yet.

    Parameters
    ----------
    path
        The file that `write_checkpoint` wrote.
    identity
        JSON values that tell which run is to go on.

    Returns
    -------
    The state of the fit, on the CPU.

    Raises
    ------
    ArtifactError
        The file is damaged, is not a checkpoint, or belongs to a run with another identity.
    """
    if not path.exists():
        return None
    try:
        artifact = load_artifact(path)
    except ArtifactError as error:
        raise ArtifactError(f"{error} To train anew, delete it or choose another folder.") from error
    if artifact.kind != _KIND:
        raise ArtifactError(
            f"{str(path)!r} holds {artifact.kind!r}, not a checkpoint. Choose another folder."
        )
    differences = _differences(
        artifact.metadata["identity"], decode_metadata(encode_metadata(dict(identity)))
    )
    if differences:
        raise ArtifactError(
            f"Checkpoint {str(path)!r} belongs to another run: {differences}. "
            "Delete it or choose another folder to train anew, or go back to its values to continue it."
        )
    return _unflatten(artifact)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    # Compared as text: nan equals nan there, and 1 differs from True.
    changed = [
        key for key in sorted(there.keys() | here.keys()) if repr(there.get(key)) != repr(here.get(key))
    ]
    return ", ".join(f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in changed)


def _unflatten(artifact: Artifact) -> Checkpoint:
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimiser": {}}
    for name, value in artifact.tensors.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = value
    optimiser: dict[int, dict[str, Tensor]] = {}
    for name, value in groups["optimiser"].items():
        number, _, part = name.partition("/")
        optimiser.setdefault(int(number), {})[part] = value
    history, finished = History.from_json(artifact.metadata["history"]), artifact.metadata["finished"]
    return Checkpoint(groups["weights"], groups["best"], optimiser, history, finished)
