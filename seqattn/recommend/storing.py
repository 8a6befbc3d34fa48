"""Fitted recommenders as arrays and facts for one file, ids with their kind."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import polars as pl

from seqattn.data.clock import Clock
from seqattn.data.interactions import Interactions
from seqattn.data.labels import decode_label, encode_label
from seqattn.errors import ArtifactError, DataError
from seqattn.recommend.histories import Columns
from seqattn.train.artifact import Artifact, encode_metadata
from seqattn.train.parameters import decode_parameter, encode_parameters

__all__ = ["Stored", "digest_of", "restored", "stored"]

_STATE = "state."

Model = TypeVar("Model")


@dataclass(frozen=True)
class Stored:
    """Contents of a file.

    Attributes
    ----------
    arrays
        Arrays or tensors by name.
    facts
        JSON values.
    """

    arrays: dict[str, Any]
    facts: dict[str, Any]


def stored(model: Any) -> Stored:
    """Return what a file of a fitted recommender holds.

    Parameters
    ----------
    model
        A fitted :class:`seqattn.recommend.recommender.Recommender`.

    Raises
    ------
    ArtifactError
        An id or a parameter is of a kind that a file cannot hold.
    """
    history, state = model.history_, model._fitted_state()
    users, items = _ids_out(history.user_ids, "User"), _ids_out(history.item_ids, "Item")
    arrays = {
        "offsets": history.offsets,
        "items": history.items,
        "held_out": model.held_out_,
        **({} if history.times is None else {"times": history.times}),
        **{f"user_ids.{name}": array for name, array in users.arrays.items()},
        **{f"item_ids.{name}": array for name, array in items.arrays.items()},
        **{_STATE + name: array for name, array in state.arrays.items()},
    }
    facts = {
        "params": encode_parameters(model.get_params(deep=False)),
        "columns": asdict(model.columns_) if hasattr(model, "columns_") else asdict(Columns()),
        "frame": getattr(model, "frame_", "polars"),
        "clock": _clock_out(history.clock),
        "notes": list(history.notes),
        "user_ids": users.facts,
        "item_ids": items.facts,
        "state": state.facts,
    }
    return Stored(arrays, facts)


def restored(kind: type[Model], artifact: Artifact) -> Model:
    """Return the recommender that a file holds.

    Parameters
    ----------
    kind
        Its class.
    artifact
        The file's contents.

    Raises
    ------
    ArtifactError
        The parts do not fit together.
    """
    try:
        return _again(kind, artifact)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"The file holds a {kind.__name__} whose parts do not fit together ({type(error).__name__}). "
            "Save the recommender again just after fit, with its parameters unchanged."
        ) from error


def _again(kind: type[Model], artifact: Artifact) -> Model:
    facts, tensors = artifact.metadata, artifact.tensors
    history = Interactions(
        offsets=tensors["offsets"].numpy(),
        items=tensors["items"].numpy(),
        times=tensors["times"].numpy() if "times" in tensors else None,
        user_ids=_ids_in(facts["user_ids"], _under(tensors, "user_ids."), "user_id"),
        item_ids=_ids_in(facts["item_ids"], _under(tensors, "item_ids."), "item_id"),
        notes=tuple(facts["notes"]),
        clock=_clock_in(facts["clock"]),
    )
    model: Any = kind(**{name: decode_parameter(value) for name, value in facts["params"].items()})
    model.columns_, model.frame_ = Columns(**facts["columns"]), facts["frame"]
    model._take(history, tensors["held_out"].numpy())
    model._restore(Stored(_under(tensors, _STATE), facts["state"]))
    found: Model = model
    return found


def _under(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def digest_of(content: Stored) -> str:
    """Return the SHA-256 of contents.

    Parameters
    ----------
    content
        What :func:`stored` returned.
    """
    found = hashlib.sha256(json.dumps(encode_metadata(content.facts), sort_keys=True).encode())
    for name, value in sorted(content.arrays.items()):
        array = np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.detach().cpu().numpy())
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _ids_out(ids: pl.Series, what: str) -> Stored:
    """Return ids of Python objects one by one, other columns as Arrow bytes, which keep their kind."""
    if ids.dtype == pl.Object:
        try:
            return Stored({}, {"objects": [encode_label(key, what) for key in ids.to_list()]})
        except DataError as error:
            raise ArtifactError(str(error)) from error
    # The numbers behind categories depend on what else the process has read.
    is_category = isinstance(ids.dtype, pl.Categorical)
    column = ids.cast(pl.String) if is_category else ids
    buffer = io.BytesIO()
    pl.DataFrame({"id": column.rechunk()}).write_ipc(buffer)
    return Stored({"arrow": np.frombuffer(buffer.getvalue(), dtype=np.uint8)}, {"category": is_category})


def _ids_in(facts: Mapping[str, Any], arrays: Mapping[str, Any], name: str) -> pl.Series:
    if "objects" in facts:
        return pl.Series(name, [decode_label(key) for key in facts["objects"]], dtype=pl.Object)
    ids = pl.read_ipc(io.BytesIO(arrays["arrow"].numpy().tobytes()))["id"].alias(name)
    return ids.cast(pl.Categorical) if facts["category"] else ids


def _clock_out(clock: Clock) -> dict[str, Any]:
    zero = None if clock.zero is None else [str(clock.zero.dtype), int(clock.zero.astype(np.int64))]
    return {"unit": clock.unit, "zero": zero, "time_zone": clock.time_zone}


def _clock_in(facts: Mapping[str, Any]) -> Clock:
    zero: np.datetime64 | None = None
    if facts["zero"] is not None:
        dtype, count = facts["zero"]
        zero = np.int64(count).astype(dtype)
    return Clock(facts["unit"], zero, facts["time_zone"])
