"""Constructor arguments of estimators as JSON values, for files of fitted models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from seqattn.attention import pattern, patterns, routing
from seqattn.attention.pattern import Pattern
from seqattn.errors import ArtifactError
from seqattn.train.artifact import decode_label, encode_label

__all__ = ["decode_parameter", "encode_parameter", "encode_parameters"]


def encode_parameters(
    params: Mapping[str, Any], instead: str = "Give numbers, texts, or lists and mappings of them"
) -> dict[str, Any]:
    """Return all constructor arguments as JSON; one that cannot be written is named.

    Parameters
    ----------
    params
        Arguments by name.
    instead
        What the user of the model can do about one that cannot be written.

    Raises
    ------
    ArtifactError
        An argument is a table or another object that a file cannot hold.
    """
    encoded = {}
    for name, value in params.items():
        try:
            encoded[name] = encode_parameter(value)
        except (ArtifactError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The parameter {name} is a {type(value).__name__}, which a file of the model cannot hold. "
                f"{instead}, or replace it: model.set_params({name}=...)."
            ) from error
    return encoded


def encode_parameter(value: Any) -> Any:
    """Return a constructor argument as JSON: names, numbers, labels, mappings and lists; arrays as lists."""
    if isinstance(value, Mapping):
        return {"pairs": [[encode_label(name), encode_parameter(item)] for name, item in value.items()]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        return encode_parameter(value.tolist())  # constructors are annotated with sequences
    if isinstance(value, list):
        return {"list": [encode_parameter(item) for item in value]}
    if isinstance(value, tuple):
        return {"tuple": [encode_parameter(item) for item in value]}
    if isinstance(value, Pattern):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"pattern": type(value).__name__, "fields": encode_parameter(parts)}
    if isinstance(value, np.random.RandomState | np.random.Generator):
        return {"label": encode_label(None)}  # a generator's state is no part of the fitted model
    return {"label": encode_label(value)}


def decode_parameter(value: Mapping[str, Any]) -> Any:
    """Return the constructor argument that :func:`encode_parameter` wrote."""
    if "pairs" in value:
        return {decode_label(name): decode_parameter(item) for name, item in value["pairs"]}
    if "mapping" in value:  # files written while keys became text
        return {name: decode_parameter(item) for name, item in value["mapping"].items()}
    if "list" in value:
        return [decode_parameter(item) for item in value["list"]]
    if "tuple" in value:
        return tuple(decode_parameter(item) for item in value["tuple"])
    if "pattern" in value:
        kinds = {**vars(pattern), **vars(patterns), **vars(routing)}
        return kinds[value["pattern"]](**decode_parameter(value["fields"]))
    return decode_label(value["label"])
