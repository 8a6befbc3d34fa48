"""What the parameters of the classifier may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqattn.classify.parameters import Parameters
from seqattn.classify.recipe import KINDS
from seqattn.errors import ParameterError

__all__ = ["check_parameters"]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "shapes": KINDS,
    "match": ("znorm", "raw"),
    "tokens": ("both", "shape", "value"),
    "prior": ("key", "logit", "none"),
    "fusion": ("late", "joint"),
    "head": ("flatten", "mean"),
}
_WHOLE = {
    **dict.fromkeys(("shape_tokens", "value_tokens", "n_members", "motifs_per_cell", "profile_cap"), 1),
    **dict.fromkeys(("d_model", "n_heads", "n_layers"), 1),
    "max_length": 3,
    "readout_shapes": 0,
}


def check_parameters(model: Parameters) -> None:
    """Refuse parameters that are not allowed, before anything is done with data.

    Parameters
    ----------
    model
        The classifier.

    Raises
    ------
    ParameterError
        A parameter has a value that is not allowed; says which are.
    """
    for name, allowed in _CHOICES.items():
        value = getattr(model, name)
        if value not in allowed:
            words = " or ".join(map(repr, allowed))
            raise ParameterError(f"{name}={value!r} is not allowed. Give {words}.")
    for name, least in _WHOLE.items():
        _require_whole(name, getattr(model, name), least)
    for name in ("epochs", "batch_size"):
        if getattr(model, name) != "auto":
            _require_whole(name, getattr(model, name), 1)
    if model.d_model % model.n_heads:
        raise ParameterError(f"d_model={model.d_model} is no multiple of n_heads={model.n_heads}.")
    _check_numbers(model)
    _check_several(model)
    if not (model.memory is None or isinstance(model.memory, str | Path) or hasattr(model.memory, "cache")):
        raise ParameterError(
            f"memory={model.memory!r} is not allowed. Give a folder, a joblib.Memory, or None."
        )
    if not model.readout_shapes and model.network_weight == 0:
        raise ParameterError("readout_shapes=0 and network_weight=0 leave nothing to predict with.")


def _check_numbers(model: Parameters) -> None:
    bounds = {"dropout": 1, "label_smoothing": 1, "network_weight": np.inf}
    for name, high in bounds.items():
        value = getattr(model, name)
        if not ((value is None and name == "network_weight") or (_is_number(value) and 0 <= value < high)):
            raise ParameterError(f"{name}={value!r} is not allowed. Give a number from 0 to below {high}.")
    if not (_is_number(model.prior_strength) and 0 <= model.prior_strength < np.inf):
        raise ParameterError(
            f"prior_strength={model.prior_strength!r} is not allowed. Give a number, at least 0."
        )
    if not (_is_number(model.prior_floor) and 0 < model.prior_floor <= 1):
        raise ParameterError(
            f"prior_floor={model.prior_floor!r} is not allowed. Give a number above 0, at most 1."
        )
    for name in ("validation", "calibration", "locality"):
        value = getattr(model, name)
        if value is not None and not (_is_number(value) and 0 < value < 1):
            raise ParameterError(f"{name}={value!r} is not allowed. Give a share between 0 and 1, or None.")


def _check_several(model: Parameters) -> None:
    for name, kind in (("granularities", "whole numbers"), ("window_fractions", "shares above 0, at most 1")):
        values = getattr(model, name)
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or not len(values):
            raise ParameterError(f"{name}={values!r} is not allowed. Give a tuple of {kind}, at least one.")
    for parts in model.granularities:
        _require_whole("granularities", parts, 1)
    for share in model.window_fractions:
        if not (_is_number(share) and 0 < share <= 1):
            raise ParameterError(
                f"window_fractions with {share!r} is not allowed. Give shares of the length above 0, at most 1."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _require_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name}={value!r} is not allowed. Give a whole number, at least {least}.")
