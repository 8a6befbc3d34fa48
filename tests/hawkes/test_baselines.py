from __future__ import annotations

import numpy as np
import pytest
from hawkes.reference import HAWKES, double_sum_log_likelihood, hawkes_data, hawkes_process, poisson_data
from scipy import integrate, stats

from seqattn import EmpiricalMarkov, ExponentialHawkes, PoissonProcess, RenewalProcess, Sequences
from seqattn.errors import DataError, ParameterError
from seqattn.hawkes.exponential import HawkesLikelihood


def test_poisson_interval_covers():
    data = poisson_data(30, 0)
    low, high = PoissonProcess().fit(data).interval(0.999).T
    assert (low < 0.25).all()
    assert (high > 0.25).all()


def test_hawkes_gradient_equals_finite_differences():
    data = hawkes_data(HAWKES, 5, seed=1)
    problem = HawkesLikelihood(data)
    rng = np.random.default_rng(0)
    x = rng.normal(-0.5, 0.3, 7)
    _, slope = problem.loss(x)
    for i in range(7):
        step = np.zeros(7)
        step[i] = 1e-6
        numeric = (problem.loss(x + step)[0] - problem.loss(x - step)[0]) / 2e-6
        assert slope[i] == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_hawkes_likelihood_equals_double_sum_also_with_history():
    rows = [(np.array([0.0, 1.0, 1.5, 4.0]), [0, 1, 1, 0]), (np.array([2.0, 2.25]), [1, 0])]
    data = Sequences.from_lists(rows, labels=2)
    value = HawkesLikelihood(data).value_and_slopes(*HAWKES)[0]
    exact = sum(sum(double_sum_log_likelihood(t, k, t[0], t[-1], HAWKES, first=1)) for t, k in rows)
    assert value == pytest.approx(exact, rel=1e-12)


def test_hawkes_parameters_are_recovered():
    model = ExponentialHawkes().fit(hawkes_data(HAWKES, 240, seed=0))
    np.testing.assert_allclose(model.mu_, HAWKES[0], atol=0.02)
    np.testing.assert_allclose(model.excitation_, HAWKES[1], atol=0.04)
    assert model.decay_[0] == pytest.approx(2.0, rel=0.08)
    assert model.spectral_radius_ == pytest.approx(0.5, abs=0.05)


def test_simulated_paths_follow_the_process():
    """Mean counts from the renewal equation, and rescaled gaps that are Exp(1)."""
    model = hawkes_process(HAWKES)
    data = model.sample(400, 100.0, random_state=3)
    mu, matrix, decay = HAWKES
    # E lambda(t) = (I + A beta (beta(I - A))^-1 (I - exp(-beta (I - A) t))) mu
    root = decay * (np.eye(2) - matrix)

    def rate(t: float) -> np.ndarray:
        values, vectors = np.linalg.eig(-root * t)
        fade = (vectors * np.exp(values)) @ np.linalg.inv(vectors)
        return (np.eye(2) + decay * matrix @ np.linalg.inv(root) @ (np.eye(2) - fade.real)) @ mu

    for kind in range(2):
        expected = integrate.quad(lambda t, kind=kind: rate(t)[kind], 0, 100)[0]
        counts = np.array([(data.sequence(i)[1] == kind).sum() for i in range(400)])
        assert abs(counts.mean() - expected) < 4 * counts.std() / 20
    assert stats.kstest(model._scores(data).rescaled_gaps(), "expon").pvalue > 1e-3


def test_too_many_types_for_excitations():
    rows = [(np.arange(300.0), list(range(300)))]
    with pytest.raises(DataError, match="300 types.*at most 256"):
        ExponentialHawkes().fit(rows)


@pytest.mark.parametrize("law", ["gamma", "lognormal"])
def test_renewal_law_is_recovered_with_censored_tails(law):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        gaps = rng.gamma(2.5, 0.8, 40) if law == "gamma" else rng.lognormal(0.3, 0.7, 40)
        times = np.cumsum(gaps)
        times = times[times < 12.0]
        rows.append((times, rng.integers(0, 2, len(times))))
    data = Sequences.from_lists(rows, window=(0.0, 12.0), labels=2)
    model = RenewalProcess().fit(data)
    assert model.law_ == law
    wanted = (2.5, 0.8) if law == "gamma" else (0.3, 0.7)
    np.testing.assert_allclose(model.shape_, wanted, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("law", ["gamma", "lognormal"])
def test_renewal_answers_equal_their_definitions(law):
    rows = [([0.5, 1.0, 2.5, 4.0], [0, 0, 1, 0]), ([0.3, 0.9, 3.0], [1, 0, 0])]
    data = Sequences.from_lists(rows, window=(0.0, 5.0), labels=2)
    model = RenewalProcess(gaps=law).fit(data)
    first, second = model.shape_
    chosen = (
        stats.gamma(first, scale=second) if law == "gamma" else stats.lognorm(second, scale=np.exp(first))
    )
    share = np.array([5, 2]) / 7
    exact = sum(chosen.logpdf(np.diff([0.0, *t])).sum() + chosen.logsf(5.0 - t[-1]) for t, _ in rows)
    exact += 5 * np.log(share[0]) + 2 * np.log(share[1])
    assert model.log_likelihood(data).total == pytest.approx(exact, rel=1e-9)
    forecasts = model.forecasts(data)
    np.testing.assert_allclose(forecasts.mean, chosen.mean())
    np.testing.assert_allclose(forecasts.median, chosen.median())
    gap = forecasts.gap[1]
    score = (
        integrate.quad(lambda u: chosen.cdf(u) ** 2, 0, gap)[0]
        + integrate.quad(lambda u: chosen.sf(u) ** 2, gap, np.inf)[0]
    )
    assert forecasts.crps[1] == pytest.approx(score, rel=1e-6)
    waited = model.predict_next(data.select([0]), now=9.0, quantiles=(0.25,))
    left = chosen.sf(5.0)
    beyond = integrate.quad(lambda u: chosen.sf(5.0 + u), 0, np.inf)[0] / left
    assert waited["t_mean"][0] == pytest.approx(9.0 + beyond, rel=1e-6)
    assert chosen.sf(waited["t_q0.25"][0] - 4.0) / left == pytest.approx(0.75, rel=1e-9)


def test_renewal_stands_ties():
    data = Sequences.from_lists([([1.0, 1.0 + 1e-9, 2.0, 5.0], [0, 1, 0, 1])], window=(0.0, 6.0), labels=2)
    model = RenewalProcess().fit(data)
    with pytest.warns(match="zero|equal|ties"):
        tied = Sequences.from_lists([([1.0, 1.0, 2.0], [0, 1, 0])], window=(0.0, 6.0), labels=2)
    assert np.isfinite(model.log_likelihood(tied).total)


def test_unknown_gap_law_is_refused():
    with pytest.raises(ParameterError, match="'weibull'.*'gamma'"):
        RenewalProcess(gaps="weibull").fit(poisson_data(2, 0))


def test_markov_counts_transitions_and_gaps():
    rows = [([1.0, 2.0, 4.0, 5.0], ["a", "b", "a", "b"]), ([1.0, 3.0], ["a", "b"])]
    data = Sequences.from_lists(rows, window=(0.0, 5.0))
    model = EmpiricalMarkov().fit(data)
    after_a = model.predict_proba(data)[1]
    np.testing.assert_allclose(after_a, [(0 + 0.5) / 4, (3 + 0.5) / 4])
    # Three gaps after "a": 1, 1 and 2; one pseudo-event at the overall rate of 6 per 10.
    rate = (3 + 1) / (4 + 10 / 6)
    forecasts = model.forecasts(data)
    assert forecasts.mean[1] == pytest.approx(1 / rate)
    assert forecasts.median[1] == pytest.approx(1.0)


def test_markov_learns_alternation_that_poisson_cannot():
    times = np.arange(1.0, 41.0)
    data = Sequences.from_lists([(times, [i % 2 for i in range(40)])] * 3, window=(0.0, 41.0), labels=2)
    markov, poisson = EmpiricalMarkov().fit(data), PoissonProcess().fit(data)
    assert markov.evaluate(data)["accuracy"] > 0.95
    assert poisson.evaluate(data)["loglik_type"] == pytest.approx(np.log(0.5))
    assert markov.evaluate(data)["loglik_type"] > -0.1


def test_windows_without_length_are_refused():
    with pytest.raises(DataError, match="windows have no length"):
        PoissonProcess().fit([([1.0], ["a"]), ([2.0], ["b"])])


def test_window_max_is_the_largest_time_of_the_fit():
    """A shorter test set is watched as long as the training set was; a longer one is refused."""
    model = PoissonProcess(window=(0.0, "max")).fit([([1.0, 2.0, 8.0], [0, 0, 0])])
    assert model.rate_.tolist() == [3 / 8]
    short = model.log_likelihood([([1.0], [0])])
    assert short.total == pytest.approx(np.log(3 / 8) - 3)
    with pytest.raises(DataError, match="9"):
        model.score([([9.0], [0])])


def test_hawkes_decay_stays_finite_on_ties():
    rng = np.random.default_rng(0)
    rows = [(np.repeat(rng.exponential(1, 10).cumsum(), 2), [0, 1] * 10) for _ in range(20)]
    with pytest.warns(match="zero"):
        data = Sequences.from_lists(rows)
    model = ExponentialHawkes().fit(data)
    gaps = np.diff(data.times)
    assert model.decay_[0] <= 1.0001 / gaps[gaps > 0].min()
    assert np.isfinite(model.evaluate(data)["rmse"])


def test_hawkes_fit_does_not_depend_on_the_unit():
    data = hawkes_data(HAWKES, 20, seed=2)
    pairs = [data.sequence(i) for i in range(len(data))]
    slow = Sequences.from_lists([(t * 1e9, k) for t, k in pairs], window=(0.0, 1e11), labels=2)
    one, other = ExponentialHawkes().fit(data), ExponentialHawkes().fit(slow)
    np.testing.assert_allclose(other.mu_ * 1e9, one.mu_, rtol=1e-3)
    np.testing.assert_allclose(other.excitation_, one.excitation_, rtol=1e-3, atol=1e-3)
    assert other.decay_[0] * 1e9 == pytest.approx(one.decay_[0], rel=1e-3)


def test_poisson_interval_of_an_unseen_type_is_that_of_jeffreys():
    model = PoissonProcess(types=2, window=(0.0, 10.0)).fit([([1.0, 2.0], [0, 0])])
    np.testing.assert_allclose(model.interval(0.9)[1], stats.gamma.ppf([0.05, 0.95], 0.5, scale=0.1))
    with pytest.raises(ParameterError, match="level=2"):
        model.interval(2.0)
