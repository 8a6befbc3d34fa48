"""Statistics against values worked out by hand and by other means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from seqattn.reproduce.statistics import holm, paired, spread


def test_the_interval_over_seeds_is_that_of_students_t():
    found = spread([1.0, 2.0, 4.0])
    mean, std = 7 / 3, ((16 / 9 + 1 / 9 + 25 / 9) / 2) ** 0.5
    assert (found.mean, found.std, found.n) == (pytest.approx(mean), pytest.approx(std), 3)
    # The quantile by integrating the density of t with two degrees of freedom, 1 / (2 + x^2)^1.5.
    quantile = (found.high - found.mean) / (std / 3**0.5)
    mass = integrate.quad(lambda x: (2 + x * x) ** -1.5, -quantile, quantile)[0]
    assert mass == pytest.approx(0.95, abs=1e-9)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_value_has_no_spread():
    found = spread([0.5])
    assert (found.mean, found.std, found.low, found.high, found.n) == (0.5, None, None, None, 1)


def test_intervals_over_seeds_hold_the_mean_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 4))
    hits = sum(found.low <= 3.0 <= found.high for found in map(spread, draws.tolist()))
    assert abs(hits / 2000 - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5


def test_the_difference_is_the_total_divided_by_the_events():
    found = paired([10.0, 3.0, 99.0], [4.0, 5.0, 1.0], [3, 1, 0])
    assert found.difference == (6.0 - 2.0) / 4
    assert (found.n_cases, found.share) == (2, 0.5)


def test_the_bootstrap_interval_is_that_of_all_possible_draws():
    change, counts = np.array([1.0, -2.0, 4.0, 0.5]), np.array([2, 5, 3, 1])
    every = [
        change[list(rows)].sum() / counts[list(rows)].sum() for rows in itertools.product(range(4), repeat=4)
    ]
    found = paired(change, np.zeros(4), counts, level=0.8, resamples=20_000)
    low, high = np.quantile(every, [0.1, 0.9])
    near = np.quantile(every, [0.08, 0.12, 0.88, 0.92])
    assert near[0] <= found.low <= near[1], (low, found)
    assert near[2] <= found.high <= near[3], (high, found)


def test_the_paired_test_is_the_t_test_of_the_differences():
    first, second = np.array([1.0, 4.0, 2.5, 8.0]), np.array([0.5, 4.5, 1.0, 5.0])
    change = first - second
    t = change.mean() / (change.std(ddof=1) / 2)
    assert paired(first, second, [1, 1, 1, 1]).pvalue == pytest.approx(2 * stats.t.sf(abs(t), 3), rel=1e-12)


def test_equal_models_have_no_difference_and_no_test():
    found = paired([1.0, 2.0], [1.0, 2.0], [1, 2])
    assert (found.difference, found.low, found.high, found.pvalue, found.share) == (0, 0, 0, None, 0.5)


def test_the_same_call_draws_the_same_cases():
    values = np.random.default_rng(1).normal(size=50)
    assert paired(values, np.zeros(50), np.ones(50)) == paired(values, np.zeros(50), np.ones(50))


@pytest.mark.parametrize(
    ("pvalues", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # the example of many textbooks
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_as_worked_out_by_hand(pvalues, expected):
    assert holm(pvalues) == pytest.approx(expected)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    generator = np.random.default_rng(2)
    for _ in range(200):
        pvalues = generator.beta(0.3, 1.0, size=6)
        rejected = set()
        for step, place in enumerate(np.argsort(pvalues)):
            if pvalues[place] > 0.05 / (6 - step):
                break
            rejected.add(int(place))
        assert {place for place, value in enumerate(holm(pvalues.tolist())) if value <= 0.05} == rejected
