from __future__ import annotations

import numpy as np
import pytest
from hawkes.reference import HAWKES, hawkes_data, hawkes_process, poisson_data

from seqattn import PoissonProcess, Sequences


def poisson_process(rates) -> PoissonProcess:
    model = PoissonProcess(types=len(rates), window=(0.0, 1.0)).fit([([0.5], [0])])
    model.rate_ = np.array(rates)
    return model


def all_pairs(model, data):
    """Return the probability of each type at each event, and whether it happened."""
    return model.predict_proba(data, when="given"), np.eye(data.n_types)[data.types]


def test_brier_score_and_bins_equal_their_definitions():
    data = hawkes_data(HAWKES, 5, seed=8)
    model = hawkes_process(HAWKES)
    marks = model.goodness_of_fit(data).marks
    chance, happened = all_pairs(model, data)
    assert marks.brier == pytest.approx(((chance - happened) ** 2).sum(1).mean(), rel=1e-9)
    assert marks.mass.sum() == pytest.approx(1)
    np.testing.assert_allclose(marks.mass, 0.1, atol=0.03)
    # The bins are runs of the pairs in the order of their probability.
    pairs = np.rint(marks.mass * data.n_events / marks.stated).astype(int)
    assert pairs.sum() == chance.size
    order, cuts = np.argsort(chance.ravel(), kind="stable"), np.cumsum(pairs)[:-1]
    for values, found in ((chance, marks.stated), (happened, marks.observed)):
        exact = [part.mean() for part in np.split(values.ravel()[order], cuts)]
        np.testing.assert_allclose(found, exact, rtol=1e-9)
    error = np.sum(marks.mass * np.abs(marks.stated - marks.observed))
    assert marks.calibration_error == pytest.approx(error)


@pytest.mark.slow
def test_reliability_lies_within_its_spread_under_the_truth_and_shows_boasting():
    data = hawkes_data(HAWKES, 150, seed=9)
    truth = hawkes_process(HAWKES)
    marks = truth.goodness_of_fit(data, by_type=False).marks
    assert (np.abs(marks.observed - marks.stated) < 4 * marks.spread).all()
    assert marks.calibration_error < 0.02
    boasting = hawkes_process((HAWKES[0] * [1.0, 0.2], HAWKES[1] * [[1.0], [0.2]], HAWKES[2]))
    worse = boasting.goodness_of_fit(data, by_type=False).marks
    assert worse.calibration_error > 0.1
    assert worse.brier > marks.brier


def test_equal_probabilities_share_a_bin():
    data = poisson_data(5, seed=1, n_types=3)
    marks = poisson_process([0.5, 0.3, 0.2]).goodness_of_fit(data).marks
    np.testing.assert_allclose(marks.stated, [0.2, 0.3, 0.5])
    np.testing.assert_allclose(marks.observed, np.bincount(data.types)[::-1] / data.n_events)
    np.testing.assert_allclose(marks.mass, [0.2, 0.3, 0.5])


def test_impossible_types_do_not_break_the_bins():
    data = Sequences.from_lists([([1.0, 2.0, 3.0], [0, 0, 1])], window=(0.0, 4.0), labels=2)
    marks = poisson_process([1.0, 0.0]).goodness_of_fit(data, by_type=False).marks
    assert marks.calibration_error == pytest.approx(1 / 3)
    assert marks.brier == pytest.approx(2 / 3)
