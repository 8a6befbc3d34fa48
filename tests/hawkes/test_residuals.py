from __future__ import annotations

import itertools
import json

import numpy as np
import polars as pl
import pytest
import torch
from hawkes.reference import HAWKES, hawkes_data, hawkes_process, poisson_data
from scipy import integrate, stats

from seqattn import SAHP, ExponentialHawkes, PoissonProcess, RenewalProcess, Sequences
from seqattn.errors import DataError, ParameterError
from seqattn.hawkes import residuals
from seqattn.hawkes.residuals import autocorrelation, ljung_box

DATA_SETS, PATHS = 200, 4


def poisson_process(rates) -> PoissonProcess:
    model = PoissonProcess(types=len(rates), window=(0.0, 1.0)).fit([([0.5], [0])])
    model.rate_ = np.array(rates)
    return model


def renewal_process(shape: float, scale: float) -> RenewalProcess:
    model = RenewalProcess(gaps="gamma", types=2, window=(0.0, 2.0)).fit([([0.5, 1.0], [0, 1])])
    model.shape_, model.share_ = np.array([shape, scale]), np.array([0.7, 0.3])
    return model


def renewal_data(n: int, seed: int, shape: float, scale: float, t_end: float) -> Sequences:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.gamma(shape, scale, (n, int(3 * t_end / (shape * scale)))), axis=1)
    rows = [(own[own <= t_end], (rng.uniform(size=(own <= t_end).sum()) < 0.3).astype(int)) for own in times]
    return Sequences.from_lists(rows, window=(0.0, t_end), labels=2)


def three_poisson(n: int, seed: int) -> Sequences:
    rng = np.random.default_rng(seed)
    rows = []
    for count in rng.poisson(100, n):
        kinds = rng.choice(3, size=count, p=[0.5, 0.3, 0.2])
        rows.append((np.sort(rng.uniform(0, 100.0, count)), kinds))
    return Sequences.from_lists(rows, window=(0.0, 100.0), labels=3)


def process_and_data(name: str, n: int, seed: int):
    if name == "hawkes":
        return hawkes_process(HAWKES), hawkes_data(HAWKES, n, seed)
    if name == "poisson":
        return poisson_process([0.5, 0.3, 0.2]), three_poisson(n, seed)
    return renewal_process(2.5, 0.4), renewal_data(n, seed, 2.5, 0.4, 100.0)


def checked(model, data: Sequences, **options):
    """Assess the model on many data sets cut from one."""
    groups = np.arange(len(data)).reshape(-1, PATHS)
    return [model.goodness_of_fit(data.select(rows), **options) for rows in groups]


def uniform(pvalues) -> float:
    return stats.kstest(np.asarray(pvalues, dtype=float), "uniform").pvalue


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hawkes", "poisson", "renewal"])
def test_all_tests_hold_their_level_under_the_true_process(name):
    model, data = process_and_data(name, DATA_SETS * PATHS, seed=11)
    fits = checked(model, data)
    assert uniform([fit.ks_pvalue for fit in fits]) > 1e-4
    assert uniform([fit.ljung_box_pvalue for fit in fits]) > 1e-4
    assert stats.kstest([fit.count_balance for fit in fits], "norm").pvalue > 1e-4
    for kind in range(fits[0].by_type.height):
        assert uniform([fit.by_type["ks_pvalue"][kind] for fit in fits]) > 1e-4
        assert stats.kstest([fit.by_type["count_balance"][kind] for fit in fits], "norm").pvalue > 1e-4
    lag1 = np.array([fit.lag1_correlation * np.sqrt(fit.n_events) for fit in fits])
    assert stats.kstest(lag1, "norm").pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hawkes", "poisson", "renewal"])
def test_a_rate_of_thirteen_tenths_is_rejected(name):
    model, data = process_and_data(name, 50 * PATHS, seed=12)
    if name == "poisson":
        model.rate_ = model.rate_ * 1.3
    elif name == "hawkes":
        model.mu_, model.excitation_ = model.mu_ * 1.3, model.excitation_ * 1.3
    else:
        model.shape_ = model.shape_ / [1, 1.3]
    fits = checked(model, data, by_type=False)
    assert uniform([fit.ks_pvalue for fit in fits]) < 1e-12
    assert np.mean([fit.ks_pvalue < 0.01 for fit in fits]) > 0.9
    assert np.mean([fit.count_balance > 2.5 for fit in fits]) > 0.9


@pytest.mark.slow
def test_dropped_pieces_bias_short_windows_and_the_chain_does_not():
    data = poisson_data(2000, seed=3, n_types=2, rate=0.5, t_end=3.0)
    model = poisson_process([0.5, 0.5])
    chain, drop = (model.goodness_of_fit(data, form=form) for form in ("chain", "drop"))
    assert abs(chain.mean - 1) < 4 / np.sqrt(chain.n_events)
    assert chain.ks_pvalue > 1e-3
    assert drop.mean < 0.8
    assert drop.ks_pvalue < 1e-12
    assert drop.n_events == chain.n_events == data.n_events
    for form, fit in (("chain", chain), ("drop", drop)):
        low = (fit.by_type["mean"] < 0.8).all()
        assert low is (form == "drop"), fit.by_type


def test_dependent_gaps_of_the_right_law_are_caught_by_their_order_only():
    """Independent Exp(1) gaps put in order within runs of three: no test of the law can see it."""
    rng = np.random.default_rng(0)
    model, fits = poisson_process([1.0]), []
    for _ in range(60):
        times = np.cumsum(np.sort(rng.exponential(size=(120, 3)), axis=1).ravel())
        data = Sequences.from_lists([(times, np.zeros(360, dtype=int))], window=(0.0, times[-1]), labels=1)
        fits.append(model.goodness_of_fit(data))
    assert uniform([fit.ks_pvalue for fit in fits]) > 1e-4
    assert max(fit.ljung_box_pvalue for fit in fits) < 1e-3


def test_gaps_of_each_type_equal_adaptive_quadrature_of_their_intensity():
    """Long windows end to end: the integral of lambda_k between events of type k, across sequences and their ends."""
    data = hawkes_data(HAWKES, 3, seed=5, t_end=12.0)
    data = Sequences.from_lists(
        [data.sequence(0), ([], []), data.sequence(1), ([3.0], [1]), data.sequence(2)],
        window=(0.0, 12.0),
        labels=2,
    )
    model = hawkes_process(HAWKES)
    mu, matrix, decay = HAWKES

    def integral(row: int, kind: int, low: float, high: float) -> float:
        times, kinds = data.sequence(row)

        def rate(t: float) -> float:
            past = times < t
            return mu[kind] + (matrix[kind, kinds[past]] * decay * np.exp(-decay * (t - times[past]))).sum()

        edges = [low, *times[(times > low) & (times < high)], high]
        return sum(integrate.quad(rate, *pair)[0] for pair in itertools.pairwise(edges))

    chain, drop = {0: [], 1: []}, {0: [], 1: []}
    whole = {0: 0.0, 1: 0.0}
    for kind in (0, 1):
        waiting = 0.0
        for row in range(len(data)):
            times, kinds = data.sequence(row)
            low = 0.0
            for time in times[kinds == kind]:
                piece = integral(row, kind, low, time)
                drop[kind].append(piece)
                chain[kind].append(waiting + piece)
                low, waiting = time, 0.0
            waiting += integral(row, kind, low, 12.0)
            whole[kind] += integral(row, kind, 0.0, 12.0)
    for form, expected in (("chain", chain), ("drop", drop)):
        for block in (1, 4_000_000):  # one sequence at a time, all at once
            clocks = residuals._TypeClocks(2, form)
            for first in range(0, len(data), 1 if block == 1 else len(data)):
                rows = np.arange(first, min(len(data), first + (1 if block == 1 else len(data))))
                for batch, intensity in model._states(data.select(rows)):
                    clocks.read(intensity, batch, batch.scored.numpy(), first)
                clocks.close(first)
            kind, gaps = clocks.gaps()
            for code in (0, 1):
                np.testing.assert_allclose(gaps[kind == code], expected[code], rtol=1e-9)
        table = model.goodness_of_fit(data, form=form).by_type
        totals = [whole[k] if form == "chain" else sum(drop[k]) for k in (0, 1)]
        np.testing.assert_allclose(table["expected"], totals, rtol=1e-9)
        np.testing.assert_allclose(table["mean"], [np.mean(expected[k]) for k in (0, 1)], rtol=1e-9)
        balance = [(totals[k] - len(drop[k])) / np.sqrt(len(drop[k])) for k in (0, 1)]
        np.testing.assert_allclose(table["count_balance"], balance, rtol=1e-9)
        tests = [stats.kstest(expected[k], "expon").pvalue for k in (0, 1)]
        np.testing.assert_allclose(table["ks_pvalue"], tests, rtol=1e-6)


def test_blocks_and_batches_do_not_change_the_result(monkeypatch):
    data = hawkes_data(HAWKES, 12, seed=6)
    model = hawkes_process(HAWKES)
    whole = model.goodness_of_fit(data)
    monkeypatch.setattr(residuals, "_CLOCK_CELLS", 6)
    monkeypatch.setattr("seqattn.hawkes.reliability._MARK_CELLS", 10)
    monkeypatch.setattr("seqattn.hawkes.reading._SCORING_BATCH", 300)
    small = model.goodness_of_fit(data)
    np.testing.assert_allclose(small.gaps, whole.gaps, rtol=1e-9)
    for name in ("expected", "mean", "ks_pvalue", "count_balance"):
        np.testing.assert_allclose(small.by_type[name], whole.by_type[name], rtol=1e-6)
    assert small.marks.brier == pytest.approx(whole.marks.brier, rel=1e-12)
    assert small.marks.calibration_error == pytest.approx(whole.marks.calibration_error, abs=1e-9)


def test_the_stream_follows_the_data_not_the_lengths_of_the_sequences():
    """Sorting windows by their number of events would turn the stream from sparse to dense."""
    rows = [([1.0, 2.0, 3.0], [0, 0, 1]), ([2.5], [1]), ([0.5, 3.5], [1, 0])]
    data = Sequences.from_lists(rows, window=(0.0, 4.0), labels=2)
    fit = poisson_process([0.5, 0.25]).goodness_of_fit(data)
    ends = np.array([1.0, 2.0, 3.0, 6.5, 8.5, 11.5])
    np.testing.assert_allclose(fit.gaps, 0.75 * np.diff(ends, prepend=0.0))
    assert fit.expected == pytest.approx(9.0)
    assert fit.count_balance == pytest.approx((9.0 - 6) / np.sqrt(6))
    np.testing.assert_allclose(fit.by_type["mean"], [0.5 * 11.5 / 3, 0.25 * 8.5 / 3])
    dropped = poisson_process([0.5, 0.25]).goodness_of_fit(data, form="drop")
    np.testing.assert_allclose(dropped.gaps, 0.75 * np.array([1, 1, 1, 2.5, 0.5, 3.0]))


def test_events_a_window_conditions_on_are_not_residuals():
    rows = [([5.0, 6.0, 9.0], [0, 1, 0]), ([1.0], [1]), ([2.0, 4.0], [1, 1])]
    data = Sequences.from_lists(rows, labels=2)  # windows begin at their first event
    fit = poisson_process([0.5, 0.25]).goodness_of_fit(data)
    assert fit.n_events == 3
    np.testing.assert_allclose(fit.gaps, 0.75 * np.array([1.0, 3.0, 2.0]))
    assert fit.by_type["n"].to_list() == [1, 2]
    np.testing.assert_allclose(fit.by_type["mean"], [0.5 * 4.0, 0.25 * (1.0 + 5.0) / 2])
    assert fit.window == "last_event"


@pytest.mark.parametrize("convention", ["to_last", "from_first"])
def test_conventions_choose_what_counts(convention):
    rows = [([1.0, 2.0], [0, 1]), ([3.0], [0])]
    data = Sequences.from_lists(rows, window=(0.0, 4.0), labels=2)
    fit = poisson_process([0.5, 0.5]).goodness_of_fit(data, convention=convention)
    assert fit.gaps.tolist() == ([1.0, 1.0, 3.0] if convention == "to_last" else [1.0])
    assert fit.expected == sum(fit.gaps)
    assert fit.by_type["n"].to_list() == ([2, 1] if convention == "to_last" else [0, 1])
    assert fit.by_type["expected"].to_list() == [fit.expected / 2] * 2


def test_a_type_without_events_shows_what_was_expected_of_it():
    data = Sequences.from_lists(
        [([1.0, 2.0, 3.0], ["a", "b", "a"])], window=(0.0, 4.0), labels=["a", "b", "c"]
    )
    model = PoissonProcess().fit(data)
    model.rate_ = np.array([0.5, 0.25, 2.0])
    table = model.goodness_of_fit(data).by_type
    assert table["k"].to_list() == ["a", "b", "c"]
    assert table.row(2) == ("c", 0, 8.0, None, None, None)
    assert "expected" in str(model.goodness_of_fit(data))


def test_one_event_and_none():
    model = poisson_process([1.0])
    one = model.goodness_of_fit(Sequences.from_lists([([2.0], [0]), ([], [])], window=(0.0, 4.0), labels=1))
    assert one.gaps.tolist() == [2.0]
    assert (one.expected, one.count_balance) == (8.0, 7.0)
    assert one.ks_pvalue == pytest.approx(stats.kstest([2.0], "expon").pvalue)
    assert (one.lag1_correlation, one.ljung_box_pvalue, one.ljung_box_lags) == (None, None, 0)
    json.dumps(one.to_dict(), allow_nan=False)
    assert "1 events, 8.0 expected" in str(one)
    some = Sequences.from_lists([([], []), ([1.0], [0])], window=(0.0, 4.0), labels=1)
    with pytest.raises(DataError, match="No event is scored"):
        model.goodness_of_fit(some.select([0]))
    with pytest.raises(DataError, match="no sequence"):
        model.goodness_of_fit(poisson_data(2, 0, 1).select([]))
    with pytest.raises(ParameterError, match="'chian'.*Did you mean 'chain'"):
        model.goodness_of_fit(poisson_data(2, 0, 1), form="chian")


def test_a_single_type_has_no_reliability_of_types():
    fit = poisson_process([1.0]).goodness_of_fit(poisson_data(3, 0, 1, 1.0))
    assert fit.marks is None
    assert "calibration" not in str(fit)
    assert fit.by_type["ks_pvalue"][0] == pytest.approx(fit.ks_pvalue)


def test_gaps_that_are_no_numbers_are_refused():
    model = poisson_process([np.inf, 1.0])
    data = Sequences.from_lists([([1.0, 2.0], [0, 1])], window=(0.0, 3.0), labels=2)
    with pytest.raises(DataError, match="expects inf events in interval 0 .* of sequence"):
        model.goodness_of_fit(data)


def test_autocorrelation_and_ljung_box_equal_their_definitions():
    values = np.random.default_rng(0).normal(size=50)
    centred = values - values.mean()
    found = autocorrelation(values, 3)
    for lag in (1, 2, 3):
        exact = sum(centred[i] * centred[i + lag] for i in range(50 - lag)) / sum(centred**2)
        assert found[lag - 1] == pytest.approx(exact)
    statistic = 50 * 52 * sum(found[h - 1] ** 2 / (50 - h) for h in (1, 2, 3))
    density = integrate.quad(lambda x: stats.chi2.pdf(x, 3), statistic, np.inf)[0]
    assert ljung_box(found, 50) == pytest.approx(density)
    assert len(autocorrelation(np.ones(5), 3)) == 0
    assert len(autocorrelation(np.array([1.0, 2.0]), 3)) == 1


def test_quantiles_are_those_of_the_gaps():
    fit = poisson_process([1.0]).goodness_of_fit(poisson_data(5, 0, 1, 1.0))
    points = fit.qq_points(10_000)
    n = fit.n_events
    assert len(points) == n
    np.testing.assert_allclose(stats.expon.cdf(points[:, 0]), (np.arange(n) + 0.5) / n)
    assert points[:, 1].tolist() == sorted(fit.gaps)
    few = fit.qq_points(50)
    assert len(few) <= 50
    assert few[0].tolist() == points[0].tolist()
    assert few[-1].tolist() == points[-1].tolist()
    assert {tuple(point) for point in few} <= {tuple(point) for point in points}


def test_result_goes_to_json_with_labels_of_any_kind(tmp_path):
    named = [("x", 1), ("y", 2)]
    rows = [([1.0, 2.0, 5.0], [named[0], named[1], named[0]]), ([2.0], [named[1]])]
    data = Sequences.from_lists(rows, window=(0.0, 6.0), labels=named)
    fit = PoissonProcess(types=named).fit(data).goodness_of_fit(data)
    values = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    assert values["by_type"][0]["k"] == {"tuple": ["x", 1]}
    assert values["n_events"] == 4
    assert values["model"] == "PoissonProcess"
    assert "gaps" not in values
    assert len(values["qq_points"]) == 4
    assert values["marks"]["brier"] == fit.marks.brier
    assert "('x', 1)" in str(fit)


def test_the_report_names_the_worst_types_first():
    data = three_poisson(30, seed=2)
    text = str(poisson_process([0.5, 0.6, 0.2]).goodness_of_fit(data))
    lines = text.splitlines()
    header = next(i for i, line in enumerate(lines) if "KS p < 0.01" in line)
    assert "1 of 3 (0.03 by chance)" in lines[header]
    assert lines[header + 2].split()[0] == "1"
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("form", ["mark", "hidden"])
def test_attention_models_are_assessed_like_the_others(form):
    train, test = hawkes_data(HAWKES, 10, seed=1), hawkes_data(HAWKES, 6, seed=2)
    model = SAHP(form=form, epochs=1, d_model=8, random_state=0, baselines=False, device="cpu").fit(train)
    fit = model.goodness_of_fit(test)
    scores = model._scores(test)
    np.testing.assert_allclose(fit.gaps, scores.rescaled_gaps(), rtol=1e-5)
    assert fit.ks_pvalue == pytest.approx(model.evaluate(test)["ks_pvalue"], rel=1e-4)
    assert fit.by_type["n"].to_list() == np.bincount(test.types).tolist()
    assert fit.by_type["expected"].sum() == pytest.approx(fit.expected, rel=1e-4)
    chance, happened = model.predict_proba(test, when="given"), np.eye(2)[test.types]
    assert fit.marks.brier == pytest.approx(((chance - happened) ** 2).sum(1).mean(), rel=1e-6)


def test_nothing_depends_on_the_time_unit():
    data = hawkes_data(HAWKES, 4, seed=3)
    slow = Sequences.from_lists(
        [(data.sequence(i)[0] * 60, data.sequence(i)[1]) for i in range(4)], window=(0.0, 6000.0), labels=2
    )
    fast = hawkes_process(HAWKES).goodness_of_fit(data)
    mu, matrix, decay = HAWKES
    other = hawkes_process((mu / 60, matrix, decay / 60)).goodness_of_fit(slow)
    np.testing.assert_allclose(other.gaps, fast.gaps, rtol=1e-9)
    np.testing.assert_allclose(other.by_type["ks_pvalue"], fast.by_type["ks_pvalue"], rtol=1e-6)


def test_no_gradient_is_kept():
    data = hawkes_data(HAWKES, 2, seed=4)
    model = ExponentialHawkes().fit(data)
    with torch.enable_grad():
        assert model.goodness_of_fit(data).by_type.schema["ks_pvalue"] == pl.Float64
