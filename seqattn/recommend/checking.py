"""What the settings of the recommenders with a network may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from seqattn.attention.check import check_promises
from seqattn.attention.named import as_pattern
from seqattn.errors import ParameterError, suggest
from seqattn.recommend.sampled import NEGATIVES

__all__ = ["check_settings"]

_CHOICES = {
    "loss": ("auto", "full", "sampled"),
    "negatives": NEGATIVES,
    "optimizer": ("auto", "adam", "lazy_adam", "row_adagrad"),
    "mode": ("default", "paper"),
}
# What may be given beside a value that is allowed.
_WHOLE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("d_model", "max_len", "n_layers", "n_heads", "window", "span", "n_members"), ()),
    **dict.fromkeys(("n_negatives", "batch_size", "eval_every"), ()),
    **dict.fromkeys(("max_successors", "eval_users"), (None,)),
    "patience": (None, "auto"),
}
_NUMBERS: dict[str, tuple[str, Callable[[Any], bool], tuple[Any, ...]]] = {
    "alpha": ("a number from 0 to 1", lambda x: 0 <= x <= 1, ()),
    "dropout": ("a number from 0 to below 1", lambda x: 0 <= x < 1, ()),
    "kd_share": ("a number above 0, up to 1", lambda x: 0 < x <= 1, ("auto",)),
    "teacher_mass": ("a number between 0 and 1", lambda x: 0 < x < 1, ()),
    "average": ("a number from 0 to below 1", lambda x: 0 <= x < 1, (None, "auto")),
    "transition_weight": ("0 or a positive number", lambda x: 0 <= x < np.inf, ("auto",)),
    **dict.fromkeys(("kd_weight", "l2"), ("0 or a positive number", lambda x: 0 <= x < np.inf, ())),
    **dict.fromkeys(("tau_student", "loss_memory_mb"), ("a positive number", lambda x: 0 < x < np.inf, ())),
    "tau_teacher": ("a positive number", lambda x: 0 < x < np.inf, (None,)),
    "learning_rate": ("a positive number", lambda x: 0 < x < np.inf, ("auto",)),
}


def check_settings(model: Any) -> None:
    """Refuse settings that are not allowed, before anything is done with data.

    Parameters
    ----------
    model
        The recommender.

    Raises
    ------
    ParameterError
        A setting has a value that is not allowed; says which are.
    """
    for name, choices in _CHOICES.items():
        _require_choice(name, getattr(model, name), choices)
    for name, others in _WHOLE.items():
        value = getattr(model, name)
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)
        _require(name, value, whole, "a whole number of at least 1", others)
    for name, (allowed, holds, others) in _NUMBERS.items():
        value = getattr(model, name)
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        _require(name, value, number and holds(value), allowed, others)
    _check_together(model)
    check_promises(as_pattern(model.attention), causal=True, cross=False)


def _check_together(model: Any) -> None:
    if model.window > model.max_len:
        raise ParameterError(
            f"window={model.window!r} is longer than the histories, max_len={model.max_len!r}. Give a smaller one."
        )
    if model.d_model % model.n_heads:
        raise ParameterError(
            f"d_model={model.d_model!r} is not a multiple of n_heads={model.n_heads!r}. "
            f"Try d_model={model.n_heads * max(1, round(model.d_model / model.n_heads))}."
        )
    if model.mode == "paper" and model.max_len < 2:
        raise ParameterError("mode='paper' trains on max_len - 1 items; give max_len=2 or more.")
    if model.mode == "paper" and model.precision == "bf16":
        raise ParameterError("mode='paper' has norms that bfloat16 breaks. Use precision='float32'.")
    if model.loss == "sampled" and model.optimizer == "adam":
        raise ParameterError(
            "optimizer='adam' moves every row of the table, but loss='sampled' has gradients for few. Use "
            "'lazy_adam', 'row_adagrad' or 'auto'."
        )


def _require_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        words = ", ".join(map(repr, allowed))
        raise ParameterError(f"{name}={value!r} is not known. Use one of {words}.{suggest(value, allowed)}")


def _require(name: str, value: Any, holds: bool, allowed: str, others: tuple[Any, ...]) -> None:
    is_other = value is None or isinstance(value, str)
    if not holds and not (is_other and value in others):
        words = " or ".join([allowed, *map(repr, others)])
        raise ParameterError(f"{name}={value!r} is not allowed. Give {words}.")
