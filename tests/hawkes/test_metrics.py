from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from seqattn.hawkes.metrics import (
    EventForecasts,
    calibration_error,
    residual_metrics,
    time_metrics,
    type_metrics,
)


def forecasts(**columns) -> EventForecasts:
    n = len(next(iter(columns.values())))
    names = ("gap", "mean", "median", "crps", "p_guess", "p_kind", "squares")
    values = dict.fromkeys(names, np.full(n, 0.5)) | dict.fromkeys(
        ("kind", "guess", "rank", "guess_at_time"), np.zeros(n, dtype=np.int64)
    )
    return EventForecasts(**{**values, **{name: np.asarray(value) for name, value in columns.items()}})


def test_errors_of_the_gap_are_absolute_in_the_users_unit():
    """One published program reports the root of the mean relative squared error under the name RMSE."""
    result = time_metrics(
        forecasts(gap=[1.0, 100.0], mean=[2.0, 103.0], median=[3.0, 100.0], crps=[0.25, 0.75])
    )
    assert result == {"rmse": pytest.approx(np.sqrt(5.0)), "mae": 1.0, "crps": 0.5}


def test_f1_is_not_accuracy_under_another_name():
    kind, guess = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 0, 0, 2])
    result = type_metrics(forecasts(kind=kind, guess=guess, guess_at_time=kind, rank=[1, 1, 1, 4, 1]), 3)
    assert result["accuracy"] == accuracy_score(kind, guess) == 0.8
    assert result["accuracy_at_time"] == 1.0
    assert result["macro_f1"] == pytest.approx(f1_score(kind, guess, average="macro", zero_division=0))
    assert result["macro_f1"] == pytest.approx((6 / 7 + 0 + 1) / 3)
    assert result["top3_accuracy"] == 0.8


def test_log_loss_and_brier_score_of_known_probabilities():
    chances = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    kind = np.array([0, 1])
    result = type_metrics(
        forecasts(
            kind=kind,
            guess=chances.argmax(1),
            p_guess=chances.max(1),
            p_kind=chances[[0, 1], kind],
            squares=(chances**2).sum(1),
        ),
        3,
    )
    assert result["type_log_loss"] == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)
    onehot = np.eye(3)[kind]
    assert result["type_brier"] == pytest.approx(((chances - onehot) ** 2).sum(1).mean())


def test_calibration_error_is_small_for_the_truth_and_large_for_boasting():
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.2, 0.9, 20_000)
    happened = rng.uniform(size=20_000) < chance
    assert calibration_error(chance, happened) < 0.02
    assert calibration_error(np.minimum(chance + 0.2, 1), happened) > 0.15


def test_residuals_accept_the_truth_and_reject_a_wrong_rate():
    rng = np.random.default_rng(1)
    gaps = rng.exponential(size=3000)
    assert residual_metrics(gaps)["ks_pvalue"] > 0.01
    assert residual_metrics(gaps * 1.3)["ks_pvalue"] < 1e-6
    assert residual_metrics(gaps)["residual_mean"] == pytest.approx(1, abs=0.06)
    assert residual_metrics(gaps[:0])["ks_pvalue"] is None
