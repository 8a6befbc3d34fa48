"""What the published theorems assume, checked for classes and training settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from seqattn.dynamics.classes import SequenceClasses

__all__ = ["Assumption", "AssumptionReport", "report"]

# What "much larger" means here.
_MUCH = 10.0


@dataclass(frozen=True)
class Assumption:
    """One assumption of the paper.

    Attributes
    ----------
    name
        What is assumed.
    required
        The condition in words and numbers.
    found
        What holds for the data or settings.
    holds
        Whether it is fulfilled.
    """

    name: str
    required: str
    found: str
    holds: bool


@dataclass(frozen=True)
class AssumptionReport:
    """Which assumptions of the published theory hold.

    Attributes
    ----------
    rows
        The assumptions that could be checked.
    correlation
        ``G0 V``: mean scalar product of two classes before training, times the number of outputs. Between 0.8 and 10
        the published size of the growth is about right where outputs are classes; below it is too small.
    """

    rows: tuple[Assumption, ...]
    correlation: float

    @property
    def holds(self) -> bool:
        """Whether all of them are fulfilled."""
        return all(row.holds for row in self.rows)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of those that are not fulfilled."""
        return tuple(row.name for row in self.rows if not row.holds)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"{'holds' if row.holds else 'FAILS':5}  {row.name:{width}}  needs {row.required}; found {row.found}"
            for row in self.rows
        ]
        return "\n".join([*lines, f"G0 V = {self.correlation:.3g}"])


def report(classes: SequenceClasses, **settings: Any) -> AssumptionReport:
    """Check the assumptions of the published theorems.

    Parameters
    ----------
    classes
        The data.
    **settings
        As in :meth:`seqattn.dynamics.SequenceClasses.assumption_report`.

    Raises
    ------
    TypeError
        A setting is not known.
    """
    unknown = settings.keys() - {
        "lr_y",
        "lr_z",
        "n_steps",
        "norm",
        "optimizer",
        "momentum",
        "init",
        "seq_len",
    }
    if unknown:
        raise TypeError(f"assumption_report takes no setting {sorted(unknown)[0]!r}.")
    return AssumptionReport(
        (*_of_data(classes), *_of_training(classes, settings)), _mean_correlation(classes)
    )


def _mean_correlation(classes: SequenceClasses) -> float:
    n = len(classes)
    if n < 2:
        return 0.0
    return float((classes.gram.sum() - np.trace(classes.gram)) / (n * (n - 1)) * classes.n_outputs)


def _of_data(classes: SequenceClasses) -> list[Assumption]:
    K, M = len(classes), classes.n_tokens
    n_labels = len(np.unique(classes.label))
    limit, least = 1 / K, 6 / M**0.5
    top, low = classes.lam_max, classes.lam_min
    spread = float(classes.weight.max() / classes.weight.min())
    rows = [
        Assumption("unique next tokens", "one class per next token", f"{n_labels} of {K}", n_labels == K),
        Assumption("equal classes", "equal weights", f"largest/smallest {spread:.3g}", spread < 1 + 1e-9),
        Assumption("many tokens", f"M >> 100 and K^2 = {K * K}", f"M = {M}", min(M / 100, M / K**2) >= _MUCH),
        Assumption("weak correlation", f"max |lambda| < 1/K = {limit:.3g}", f"{top:.3g}", top < limit),
    ]
    if low == low:  # unknown for very many classes
        rows.append(
            Assumption(
                "correlation at all",
                f"min |lambda| > 6/sqrt(M) = {least:.3g}",
                f"{low:.3g}",
                bool(low > least),
            )
        )
    return rows


def _of_training(classes: SequenceClasses, given: Mapping[str, Any]) -> list[Assumption]:
    K, M = len(classes), classes.n_tokens
    rows = []
    if "lr_y" in given:
        rates = np.atleast_1d(np.asarray(given["lr_y"], dtype=float))
        found = _span(rates)
        rows.append(
            Assumption(
                "small decoder rate",
                f"M^-0.99 = {M**-0.99:.2g} << lr_y < 1",
                found,
                bool((rates < 1).all() and (rates >= _MUCH * M**-0.99).all()),
            )
        )
        if "lr_z" in given:
            ratio = rates / np.maximum(np.atleast_1d(np.asarray(given["lr_z"], dtype=float)), 1e-300)
            rows.append(
                Assumption(
                    "fast decoder", "lr_y >> lr_z", f"ratio {_span(ratio)}", bool((ratio >= _MUCH).all())
                )
            )
    if "n_steps" in given:
        steps = given["n_steps"]
        rows.append(
            Assumption("late times", f"t >> K^2 = {K * K}", f"{steps:g}", bool(steps >= _MUCH * K * K))
        )
    wanted = {"norm": "l2", "optimizer": "sgd", "momentum": 0.0, "init": "zero", "seq_len": np.inf}
    for name, value in wanted.items():
        if name in given:
            found = given[name]
            same = bool(isinstance(found, str) == isinstance(value, str) and found == value)
            rows.append(
                Assumption(name, repr(value), repr(found) if np.ndim(found) == 0 else "an array", same)
            )
    return rows


def _span(values: np.ndarray) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
