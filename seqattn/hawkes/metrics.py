"""Scores of next-event forecasts: times, types and the residual check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score


@dataclass(frozen=True)
class EventForecasts:
    """Forecasts of scored events beside what happened, one row per event, in the user's time unit.

    Parameters
    ----------
    gap
        Time since the previous event (or the start of the window).
    mean, median, crps
        Expected and median gap, and the continuous ranked probability score of the observed one.
    kind, guess
        Codes of the type that happened and of the most probable one.
    p_guess, p_kind
        Probabilities that were given to them.
    squares
        Sum of squared probabilities over all types.
    rank
        Place of the type that happened among the types by probability, from 1.
    guess_at_time
        Most probable type once the time of the event is known.
    """

    gap: NDArray[np.float64]
    mean: NDArray[np.float64]
    median: NDArray[np.float64]
    crps: NDArray[np.float64]
    kind: NDArray[np.int64]
    guess: NDArray[np.int64]
    p_guess: NDArray[np.float64]
    p_kind: NDArray[np.float64]
    squares: NDArray[np.float64]
    rank: NDArray[np.int64]
    guess_at_time: NDArray[np.int64]

    def select(self, chosen: NDArray[np.bool_]) -> EventForecasts:
        """Return the chosen rows only."""
        return EventForecasts(**{name: values[chosen] for name, values in vars(self).items()})


def time_metrics(forecasts: EventForecasts) -> dict[str, float]:
    """Return RMSE of the mean, MAE of the median and mean CRPS, all in the user's time unit."""
    return {
        "rmse": float(np.sqrt(np.mean((forecasts.mean - forecasts.gap) ** 2))),
        "mae": float(np.mean(np.abs(forecasts.median - forecasts.gap))),
        "crps": float(np.mean(forecasts.crps)),
    }


def type_metrics(forecasts: EventForecasts, n_types: int) -> dict[str, float | None]:
    """Return the scores of the type of the next event, its time unknown unless the name says otherwise.

    With one type there is nothing to forecast, and every value is ``None``.

    Notes
    -----
    F1 is averaged over the types that occur or are guessed. ``calibration_error`` compares the probability of the
    guess with how often it was right, in ten bins of equal size.
    """
    kind, guess = forecasts.kind, forecasts.guess
    names = (
        "accuracy",
        "accuracy_at_time",
        "macro_f1",
        "weighted_f1",
        "top3_accuracy",
        "type_log_loss",
        "type_brier",
        "calibration_error",
    )
    if n_types == 1:
        return dict.fromkeys(names)
    right = kind == guess
    values = (
        np.mean(right),
        np.mean(kind == forecasts.guess_at_time),
        f1_score(kind, guess, average="macro", zero_division=0),
        f1_score(kind, guess, average="weighted", zero_division=0),
        np.mean(forecasts.rank <= 3),
        -np.mean(np.log(np.maximum(forecasts.p_kind, np.finfo(float).tiny))),
        np.mean(1 - 2 * forecasts.p_kind + forecasts.squares),
        calibration_error(forecasts.p_guess, right),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def calibration_error(probability: NDArray[np.float64], happened: NDArray[np.bool_], bins: int = 10) -> float:
    """Return the mean distance between stated probability and frequency over bins of equal size.

    Parameters
    ----------
    probability
        Stated probabilities, in [0, 1].
    happened
        Whether each came true.
    bins
        Number of bins.

    Examples
    --------
    >>> round(calibration_error(np.full(100, 0.7), np.arange(100) < 60), 6)
    0.1
    """
    if np.ptp(probability) == 0:  # equal probabilities belong in one bin, in whatever order they come
        return float(abs(probability[0] - happened.mean()))
    order = np.argsort(probability, kind="stable")
    groups = [part for part in np.array_split(order, bins) if len(part)]
    return float(
        sum(len(part) * abs(probability[part].mean() - happened[part].mean()) for part in groups) / len(order)
    )


def residual_metrics(gaps: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the Kolmogorov-Smirnov test of rescaled gaps against Exp(1), with their mean and variance.

    Parameters
    ----------
    gaps
        Rescaled gaps, from :meth:`seqattn.hawkes.likelihood.IntervalScores.rescaled_gaps`.
    """
    if not len(gaps):
        return {"ks_statistic": None, "ks_pvalue": None, "residual_mean": None, "residual_variance": None}
    test = stats.kstest(gaps, "expon")
    return {
        "ks_statistic": float(test.statistic),
        "ks_pvalue": float(test.pvalue),
        "residual_mean": float(gaps.mean()),
        "residual_variance": float(gaps.var()),
    }


def table_rows(evaluation: Mapping[str, object], name: str) -> list[list[object]]:
    """Return one row per model for the table on the screen: the evaluated one first, then its baselines."""
    keys = (
        "loglik_per_event",
        "loglik_time",
        "loglik_type",
        "rmse",
        "mae",
        "crps",
        "accuracy",
        "macro_f1",
        "ks_pvalue",
    )
    baselines = evaluation.get("baselines")
    others = baselines.items() if isinstance(baselines, Mapping) else ()
    return [[title, *(values.get(key) for key in keys)] for title, values in [(name, evaluation), *others]]
