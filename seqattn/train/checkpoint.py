"""The state of a fit in a file, so that training goes on where it was interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
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

__all__ = ["Checkpoint", "Part", "read_checkpoint", "write_checkpoint"]

_KIND = "checkpoint of a fit"


@dataclass(frozen=True)
class Part:
    """A place within a file, for a fit that trains several modules one after the other: one file holds them all.

    Attributes
    ----------
    path
        The file.
    name
        Which of the modules; a text without ``/``, not empty.
    """

    path: Path
    name: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A fit between two epochs.

    Attributes
    ----------
    weights
        The module's state dict.
    best
        State dict of the best epoch; empty if `weights` are those, or the fit is finished.
    optimiser
        State of the optimiser by parameter number; empty if the fit is finished.
    history
        The epochs so far.
    finished
        Whether training has ended.
    kept
        What observers keep, by name.
    average
        State of the moving average of weights; empty without one, or if the fit is finished.
    """

    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    optimiser: dict[int, dict[str, Tensor]]
    history: History
    finished: bool
    kept: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)


def write_checkpoint(place: Path | Part, state: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Replace the checkpoint at a place.

    Parameters
    ----------
    place
        The file, or a part of one whose other parts stay; until the new file is complete the old one stays.
    state
        What to keep.
    identity
        JSON values that tell which run this is.

    Raises
    ------
    ArtifactError
        The identity holds a value that cannot be saved.
    """
    path, name = _located(place)
    # A process killed while it wrote leaves its unfinished file behind.
    for partial in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    tensors = _flatten(state)
    about = {"identity": dict(identity), "history": state.history.to_json(), "finished": state.finished}
    if not name:
        save_artifact(path, _KIND, tensors, about)
        return
    there = _load(path) if path.exists() else Artifact(_KIND, "", {"parts": {}}, {})
    others = {key: value for key, value in there.tensors.items() if not key.startswith(f"{name}/")}
    own = {f"{name}/{key}": value for key, value in tensors.items()}
    save_artifact(path, _KIND, others | own, {"parts": {**_parts(there), name: about}})


def read_checkpoint(place: Path | Part, identity: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint at a place, or None if there is none yet.

    Parameters
    ----------
    place
        The file, or the part of one, that `write_checkpoint` wrote.
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
    path, name = _located(place)
    if not path.exists():
        return None
    artifact = _load(path)
    parts = _parts(artifact)
    if bool(name) == ("" in parts):
        raise ArtifactError(
            f"Checkpoint {str(path)!r} belongs to a model of another kind. Delete it or choose another folder."
        )
    if name not in parts:
        return None
    about = parts[name]
    differences = _differences(about["identity"], decode_metadata(encode_metadata(dict(identity))))
    if differences:
        raise ArtifactError(
            f"Checkpoint {str(path)!r} belongs to another run: {', '.join(differences)}. "
            "Delete it or choose another folder to train anew, or go back to its values to continue it."
        )
    prefix = f"{name}/" if name else ""
    tensors = {
        key.removeprefix(prefix): value for key, value in artifact.tensors.items() if key.startswith(prefix)
    }
    return _unflatten(tensors, History.from_json(about["history"]), about["finished"])


def _located(place: Path | Part) -> tuple[Path, str]:
    return (place.path, place.name) if isinstance(place, Part) else (place, "")


def _load(path: Path) -> Artifact:
    try:
        artifact = load_artifact(path)
    except ArtifactError as error:
        raise ArtifactError(f"{error} To train anew, delete it or choose another folder.") from error
    if artifact.kind != _KIND:
        raise ArtifactError(
            f"{str(path)!r} holds {artifact.kind!r}, not a checkpoint. Choose another folder."
        )
    return artifact


def _parts(artifact: Artifact) -> dict[str, Any]:
    """Return what is told of each part; a file without parts is one without a name."""
    return dict(artifact.metadata.get("parts", {"": artifact.metadata}))


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], above: str = "") -> list[str]:
    """Return sentences on the values that differ, those of mappings one by one."""
    found = []
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{above}{key}.")
        # Compared as text: nan equals nan there, and 1 differs from True.
        elif repr(old) != repr(new):
            found.append(f"{above}{key} is {old!r} there and {new!r} here")
    return found


def _flatten(state: Checkpoint) -> dict[str, Tensor]:
    tensors = {f"weights/{name}": value for name, value in state.weights.items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    tensors |= {f"kept/{name}": value for name, value in state.kept.items()}
    tensors |= {f"average/{name}": value for name, value in state.average.items()}
    for number, values in state.optimiser.items():
        tensors |= {f"optimiser/{number}/{name}": value for name, value in values.items()}
    return tensors


def _unflatten(tensors: Mapping[str, Tensor], history: History, finished: bool) -> Checkpoint:
    groups: dict[str, dict[str, Tensor]] = {
        name: {} for name in ("weights", "best", "optimiser", "kept", "average")
    }
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = value
    optimiser: dict[int, dict[str, Tensor]] = {}
    for name, value in groups["optimiser"].items():
        number, _, part = name.partition("/")
        optimiser.setdefault(int(number), {})[part] = value
    kept, average = groups["kept"], groups["average"]
    return Checkpoint(groups["weights"], groups["best"], optimiser, history, finished, kept, average)
