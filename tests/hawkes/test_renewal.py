from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from seqattn import RenewalProcess
from seqattn.hawkes.renewal import RenewalIntensity, log_survival

LAWS = [("gamma", (0.3, 1.5)), ("gamma", (2.5, 1.0)), ("gamma", (40.0, 0.1)), ("lognormal", (0.0, 0.1))]


@pytest.mark.parametrize("shape", [0.1, 1.0, 2.5, 30.0])
def test_survival_is_the_integral_of_the_hazard_where_it_is_no_number_any_more(shape):
    """Between ages where float64 ends, log S falls by the integral of its own hazard."""
    low, high = 600.0, 2_000.0
    law = stats.gamma(shape)
    assert law.sf(high) == 0
    start, end = log_survival("gamma", (shape, 1.0), np.array([low, high]))
    assert start == pytest.approx(law.logsf(low), rel=1e-12)

    def hazard(x: float) -> float:
        return float(np.exp(law.logpdf(x) - log_survival("gamma", (shape, 1.0), np.array([x]))[0]))

    assert start - end == pytest.approx(integrate.quad(hazard, low, high, limit=200)[0], rel=1e-7)


@pytest.mark.parametrize(("law", "shape"), LAWS)
@pytest.mark.parametrize("age", [36.5, 1e4])
def test_after_very_long_waiting_forecasts_still_agree_with_the_intensity(law, shape, age):
    state = RenewalIntensity(torch.tensor([age]).double(), torch.ones(1).double(), law, shape, 1e-3)
    answer = state.next_event((0.9,), None)
    for time, level in ((answer.median, 0.5), (answer.quantiles[:, 0], 0.9)):
        passed = float(state.compensator_by_type(time)[0, 0])
        assert passed == pytest.approx(-np.log1p(-level), rel=2e-3)
    grid = np.linspace(0, 40 * float(answer.mean), 20_001)
    left = np.exp(log_survival(law, shape, age + grid) - log_survival(law, shape, np.array(age)))
    assert float(answer.mean) == pytest.approx(np.trapezoid(left, grid), rel=5e-3)
    assert float(state.bound(torch.zeros(1).double())) >= float(state.total(torch.zeros(1).double()))


@pytest.mark.parametrize("method", ["thinning", "inverse"])
def test_paths_go_on_after_very_long_waiting(method):
    rng = np.random.default_rng(0)
    model = RenewalProcess(gaps="gamma", window=(0.0, 200.0)).fit(
        [(rng.gamma(2, 1, 80).cumsum(), rng.integers(0, 2, 80))]
    )
    paths = model.sample(300, history=[([1.0], [0])], now=1e5, max_events=1, method=method, random_state=0)
    rest = paths.times - 1e5
    assert stats.kstest(rest, stats.expon(scale=model.shape_[1]).cdf).pvalue > 1e-4
