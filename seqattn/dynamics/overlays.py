"""Theory on the time grid of a study, each curve with the layer that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqattn.dynamics import theory
from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.reduced import Symmetric
from seqattn.errors import ParameterError

__all__ = ["SCHEMA", "overlays"]

SCHEMA = {
    "lr_y": pl.Float64,
    "lr_z": pl.Float64,
    "time": pl.Float64,
    "layer": pl.String,
    "quantity": pl.String,
    "klass": pl.Int32,
    "value": pl.Float64,
    "is_valid": pl.Boolean,
}
_REDUCED = ("one_minus_alpha", "common_mass", "entropy_distinct", "margin", "speed")

Curve = tuple[str, str, int | None, NDArray[np.float64]]


def overlays(
    classes: SequenceClasses,
    rates: list[tuple[float, float]],
    times: NDArray[np.float64],
    settings: Mapping[str, Any],
) -> pl.DataFrame:
    """Return the theory for a study's data, rates and times.

    Parameters
    ----------
    classes
        The data.
    rates
        Pairs of rates of decoder and attention.
    times
        Times of the study, in steps.
    settings
        Values of ``norm``, ``optimizer``, ``momentum``, ``init`` and ``seq_len``, and ``n_steps``.

    Returns
    -------
    One row per pair, time and curve. ``layer`` is ``"exact"`` (the model's own flow) or ``"paper"``; ``is_valid`` tells
    whether what the layer assumes is fulfilled. Under momentum times are effective ones, t / (1 - momentum). There
    is no theory of Adam, and the table is empty.
    """
    parts = []
    if settings["optimizer"] == "sgd":
        effective = times / (1 - settings["momentum"])
        for lr_y, lr_z in rates:
            if lr_y > 0 and lr_z > 0:
                report = classes.assumption_report(lr_y=lr_y, lr_z=lr_z, **settings)
                is_exact = settings["norm"] == "l2" and settings["init"] == "zero"
                curves = [*_exact(classes, lr_y, lr_z, effective)] if is_exact else []
                # The flow is the limit of plain steps on whole classes.
                is_flow = settings["momentum"] == 0 and np.isinf(settings["seq_len"])
                valid = {"exact": bool(is_flow), "paper": report.holds}
                curves += _paper(classes, lr_y, lr_z, effective)
                parts += [_frame(lr_y, lr_z, times, curve, valid) for curve in curves]
    return pl.concat(parts) if parts else pl.DataFrame(schema=SCHEMA)


def _exact(classes: SequenceClasses, lr_y: float, lr_z: float, times: NDArray) -> Iterator[Curve]:
    data = Symmetric.of(classes)
    if data is None:
        return
    path = theory.reduced_ode(times, data, lr_y=lr_y, lr_z=lr_z)
    for name in _REDUCED:
        yield "exact", name, None, getattr(path, name)


def _paper(classes: SequenceClasses, lr_y: float, lr_z: float, times: NDArray) -> Iterator[Curve]:
    V, K = max(2, classes.n_outputs), len(classes)
    rates: dict[str, Any] = {"lr_y": lr_y, "n_outputs": V, "n_classes": K}
    u = V * theory.h(times, **rates)
    yield "paper", "one_minus_alpha", None, (V - 1) / (V - 1 + np.exp(u))
    yield "paper", "margin", None, u
    try:
        C0 = theory.growth_constant(classes)
    except ParameterError:
        return
    growth = theory.B(times, lr_z=lr_z, C0=C0, **rates)
    yield "paper", "B", None, growth
    share = np.square(classes.P) / np.square(classes.P).sum(1, keepdims=True)
    for k in range(K):
        own = classes.owner == k
        if own.any():
            low, high = theory.chi_bounds(growth, share[k, own].max())
            yield "paper", "chi_low", k, low
            yield "paper", "chi_high", k, high


def _frame(lr_y: float, lr_z: float, times: NDArray, curve: Curve, valid: Mapping[str, bool]) -> pl.DataFrame:
    layer, quantity, klass, values = curve
    columns = {"time": times, "value": values}
    fixed = {
        "lr_y": lr_y,
        "lr_z": lr_z,
        "layer": layer,
        "quantity": quantity,
        "klass": klass,
        "is_valid": valid[layer],
    }
    frame = pl.DataFrame(columns).with_columns(**{name: pl.lit(value) for name, value in fixed.items()})
    return frame.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
