"""What the parameters of the classifier may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight

from seqattn.attention.named import as_pattern
from seqattn.classify.parameters import Parameters
from seqattn.classify.recipe import KINDS
from seqattn.errors import ParameterError
from seqattn.train.settings import FitSettings, resolve_device, resolve_precision

__all__ = ["check_parameters", "class_weights"]

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
_SWITCHES = ("derivatives", "learn_prior_strength", "prior_encoding")


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
        if not isinstance(value, str) or value not in allowed:
            words = " or ".join(map(repr, allowed))
            raise ParameterError(f"{name}={value!r} is not allowed. Give {words}.")
    for name, least in _WHOLE.items():
        _require_whole(name, getattr(model, name), least)
    for name in ("epochs", "batch_size"):
        if not _is_word(getattr(model, name), "auto"):
            _require_whole(name, getattr(model, name), 1)
    if model.d_model % model.n_heads:
        raise ParameterError(f"d_model={model.d_model} is no multiple of n_heads={model.n_heads}.")
    _check_numbers(model)
    _check_several(model)
    _check_training(model)
    _check_weights(model.class_weight)
    for name in _SWITCHES:
        if not isinstance(getattr(model, name), bool | np.bool_):
            raise ParameterError(f"{name}={getattr(model, name)!r} is not allowed. Give True or False.")
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


def _check_training(model: Parameters) -> None:
    """Refuse what is not needed before the first step, or never where no network is trained."""
    FitSettings(
        epochs=1,
        learning_rate=model.learning_rate,
        weight_decay=model.weight_decay,
        patience=model.patience,
        precision=model.precision,
    )
    resolve_precision(model.precision, resolve_device(model.device))
    as_pattern(model.attention)
    verbose: Any = model.verbose
    if not isinstance(verbose, int | np.integer) or verbose < 0:
        raise ParameterError(f"verbose={verbose!r} is not allowed. Give a whole number, at least 0.")
    whole = isinstance(model.n_jobs, int | np.integer) and not isinstance(model.n_jobs, bool)
    if not (model.n_jobs is None or (whole and model.n_jobs != 0)):
        raise ParameterError(
            f"n_jobs={model.n_jobs!r} is not allowed. Give a number of threads, -1 for one per core, or None for one."
        )
    try:
        check_random_state(model.random_state)
    except ValueError:
        raise ParameterError(
            f"random_state={model.random_state!r} is not allowed. Give a whole number from 0 to 2**32 - 1, a "
            "numpy.random.RandomState, or None."
        ) from None


def _check_weights(given: Any) -> None:
    """Refuse weights of classes that are none, whatever the classes are."""
    if given is None or _is_word(given, "balanced"):
        return
    if not isinstance(given, Mapping):
        raise ParameterError(
            f"class_weight={given!r} is not allowed. Give None, 'balanced', or a mapping from class to weight."
        )
    for label, weight in given.items():
        if not (_is_number(weight) and 0 < weight < np.inf):
            raise ParameterError(
                f"class_weight gives class {label!r} the weight {weight!r}. Give a number above 0, or leave the cases "
                "of that class out."
            )


def class_weights(given: Any, classes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the weight of each case by its class; their mean is 1.

    Parameters
    ----------
    given
        The parameter ``class_weight``.
    classes
        The classes.
    codes
        Class of each case, as a number from 0.

    Raises
    ------
    ParameterError
        A mapping names what is no class.

    Examples
    --------
    >>> class_weights("balanced", np.array(["a", "b"]), np.array([0, 0, 0, 1])).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0]
    """
    if given is None:
        return np.ones(len(codes))
    labels = classes.tolist()
    unknown = [label for label in given if label not in labels] if isinstance(given, Mapping) else []
    if unknown:
        raise ParameterError(f"class_weight names {unknown[0]!r}, which is no class. Classes: {labels}.")
    weights = compute_class_weight(
        dict(given) if isinstance(given, Mapping) else given, classes=classes, y=classes[codes]
    )[codes]
    return np.asarray(weights * len(codes) / weights.sum())


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


def _is_word(value: Any, word: str) -> bool:
    return isinstance(value, str) and value == word


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _require_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name}={value!r} is not allowed. Give a whole number, at least {least}.")
