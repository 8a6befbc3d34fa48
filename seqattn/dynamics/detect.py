"""When attention snaps, freezes or creeps: detectors with intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy.typing import NDArray

from seqattn.dynamics.result import StudyResult
from seqattn.dynamics.theory import snap_times
from seqattn.errors import ParameterError

__all__ = ["Detection", "creep", "detect_snap", "state", "t_freeze", "t_half", "t_peak"]

Series = Float[np.ndarray, "seeds times"]

_DRAWS = 200
_INTERVAL = (2.5, 97.5)
# Entropy per decade below which attention counts as frozen, and exponents of speed that count as a logarithm's.
_FROZEN = 0.002
_LOGARITHMIC = (0.7, 1.3)
# A loss above its start by this share has diverged.
_RISEN = 0.1


@dataclass(frozen=True)
class Detection:
    """What a detector found.

    Attributes
    ----------
    estimate
        The value, of the mean over seeds; nan where there is none.
    low, high
        Interval of 95 % by drawing seeds with replacement; nan for a single seed.
    status
        ``"ok"``, or why there is no value.
    """

    estimate: float
    low: float
    high: float
    status: str


def t_half(times: NDArray[np.float64], missed: Series) -> Detection:
    """Return the first time at which the model gives more than half to the right token.

    Parameters
    ----------
    times
        Times of the records.
    missed
        Probability that is not given to the right token, mean over classes.
    """
    return _over_seeds(lambda values: _first_below(times, values, 0.5), missed, "not_reached")


def t_peak(times: NDArray[np.float64], speed: Series) -> Detection:
    """Return the time of the largest speed of attention; status ``"no_peak"`` if that lies at an end.

    Parameters
    ----------
    times
        Times of the records.
    speed
        Length of the velocity of attention logits.
    """
    return _over_seeds(lambda values: _peak(times, values), speed, "no_peak")


def t_freeze(times: NDArray[np.float64], speed: Series, q: float = 0.1) -> Detection:
    """Return the last time at which the speed is above a share of its maximum.

    Parameters
    ----------
    times
        Times of the records.
    speed
        Length of the velocity of attention logits.
    q
        The share, between 0 and 1.
    """
    if not 0 < q < 1:
        raise ParameterError(f"q={q!r} is not allowed. Give a share between 0 and 1.")
    return _over_seeds(lambda values: _last_above(times, values, q), speed, "moving")


def creep(times: NDArray[np.float64], entropy: Series) -> Detection:
    """Return the slope of the entropy on distinct tokens, in nats per decade over the last decade of time.

    Parameters
    ----------
    times
        Times of the records.
    entropy
        Entropy on distinct tokens, mean over classes.
    """
    return _over_seeds(lambda values: _slope(times, values, np.log10), entropy, "no_distinct")


def state(times: NDArray[np.float64], entropy: Series, speed: Series, loss: Series) -> str:
    """Tell how attention moves at the end.

    Parameters
    ----------
    times
        Times of the records.
    entropy, speed, loss
        Records of one pair of rates.

    Returns
    -------
    ``"diverged"``, ``"frozen"``, ``"creeping"`` (entropy falls and speed with about the inverse of time) or
    ``"moving"``.
    """
    if not np.isfinite(loss).all() or (loss[:, -1] > loss[:, 0] * (1 + _RISEN)).any():
        return "diverged"
    slope = creep(times, entropy).estimate
    if abs(slope) < _FROZEN:
        return "frozen"
    with np.errstate(divide="ignore"):
        exponent = -_slope(times, np.log(speed.mean(0)), np.log)
    return "creeping" if slope < 0 and _LOGARITHMIC[0] <= exponent <= _LOGARITHMIC[1] else "moving"


def detect_snap(result: StudyResult) -> pl.DataFrame:
    """Return all detectors for each pair of rates.

    Parameters
    ----------
    result
        A study with records of ``one_minus_alpha``, ``speed``, ``entropy_distinct`` and ``loss``.

    Returns
    -------
    One row per pair of rates: each detector with ``_low``, ``_high`` and ``_status``, the state at the end, and the
    paper's times ``t0_first`` and ``t0``. These predict nothing where ``is_weak`` is false: classes are then so
    alike that attention feeds back on the decoder.
    """
    classes = result.classes
    missed, entropy = (result.array(name).mean(-1) for name in ("one_minus_alpha", "entropy_distinct"))
    speed, loss = result.array("speed"), result.array("loss")
    rows = []
    for lr_y, lr_z, runs in _pairs(result):
        found = {
            "t_half": t_half(result.times, missed[runs]),
            "t_peak": t_peak(result.times, speed[runs]),
            "t_freeze": t_freeze(result.times, speed[runs]),
            "creep": creep(result.times, entropy[runs]),
        }
        row: dict[str, object] = {"lr_y": lr_y, "lr_z": lr_z}
        for name, detection in found.items():
            estimate, low, high, status = astuple(detection)
            row |= {name: estimate, f"{name}_low": low, f"{name}_high": high, f"{name}_status": status}
        row["state"] = state(result.times, entropy[runs], speed[runs], loss[runs])
        expected = snap_times(
            lr_y=lr_y or np.nan, n_outputs=max(2, classes.n_outputs), n_classes=len(classes)
        )
        rows.append(row | {"t0_first": expected.first, "t0": expected.last})
    return pl.DataFrame(rows).with_columns(pl.lit(classes.lam_max < 1 / len(classes)).alias("is_weak"))


def _pairs(result: StudyResult) -> Iterator[tuple[float, float, NDArray[np.int64]]]:
    runs = result.runs
    pairs = list(dict.fromkeys(zip(runs.lr_y.tolist(), runs.lr_z.tolist(), strict=True)))
    for lr_y, lr_z in pairs:
        yield lr_y, lr_z, np.flatnonzero((runs.lr_y == lr_y) & (runs.lr_z == lr_z))


def _over_seeds(find: Callable[[NDArray], float], values: Series, missing: str) -> Detection:
    """Apply a detector to the mean over seeds, and to means over seeds drawn again."""
    if not np.isfinite(values[:, -1]).all():
        is_all = bool(np.isnan(values).all())
        return Detection(np.nan, np.nan, np.nan, missing if is_all else "diverged")
    n = len(values)
    estimate = find(values.mean(0))
    low = high = np.nan
    if n > 1:
        rng = np.random.default_rng(0)
        drawn = [find(values[rng.integers(n, size=n)].mean(0)) for _ in range(_DRAWS)]
        known = [value for value in drawn if np.isfinite(value)]
        low, high = np.percentile(known, _INTERVAL).tolist() if known else (np.nan, np.nan)
    return Detection(float(estimate), low, high, "ok" if np.isfinite(estimate) else missing)


def _first_below(times: NDArray, values: NDArray, level: float) -> float:
    below = np.flatnonzero(values < level)
    if not len(below):
        return np.nan
    return float(times[0]) if below[0] == 0 else _crossing(times, values, below[0] - 1, level)


def _last_above(times: NDArray, values: NDArray, q: float) -> float:
    level = q * np.nanmax(values)
    above = np.flatnonzero(values > level)
    return (
        np.nan
        if not len(above) or above[-1] == len(times) - 1
        else _crossing(times, values, above[-1], level)
    )


def _crossing(times: NDArray, values: NDArray, i: Any, level: float) -> float:
    """Where the line between two records meets a level."""
    share = (values[i] - level) / (values[i] - values[i + 1])
    return float(times[i] + share * (times[i + 1] - times[i]))


def _peak(times: NDArray, values: NDArray) -> float:
    """The top of the parabola through the largest value and its neighbours, over the logarithm of time."""
    i = int(np.nanargmax(values))
    if i <= 1 or i == len(times) - 1 or not np.isfinite(values[i - 1]):
        return np.nan
    x = np.log(times[i - 1 : i + 2])
    a, b, _ = np.polyfit(x - x[1], values[i - 1 : i + 2] / values[i], 2)
    return float(np.exp(x[1] - b / (2 * a))) if a < 0 else float(times[i])


def _slope(times: NDArray, values: NDArray, scale: Callable[[NDArray], NDArray]) -> float:
    last = times >= times[-1] / 10
    if last.sum() < 2 or not np.isfinite(values[last]).all():
        return np.nan
    return float(np.polyfit(scale(times[last]), values[last], 1)[0])
