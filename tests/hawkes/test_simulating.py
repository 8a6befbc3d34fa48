from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from hawkes.random_models import ADDITIONS, LOCAL, PLAIN, random_histories, random_model
from hawkes.reference import CROSS, HAWKES, hawkes_data, hawkes_process
from scipy import stats

from seqattn import SAHP, EmpiricalMarkov, PoissonProcess, RenewalProcess, Sequences
from seqattn.data.batches import pack
from seqattn.errors import DataError, ParameterError
from seqattn.hawkes import simulating
from seqattn.hawkes.decays import MarkIntensity
from seqattn.hawkes.forecast import next_event
from seqattn.hawkes.intensity import LinearIntensity, SumIntensity
from seqattn.hawkes.kernels import KernelIntensity
from seqattn.hawkes.simulating import Paths, _thinned

FORMS = {
    "plain": {},
    "all": ADDITIONS,
    "local": LOCAL,
    "hidden": {"form": "hidden", "n_decays": 2, "own_kernels": 2},
}
METHODS = ("thinning", "inverse")


def paths_of(name: str, method: str, n: int = 300, t_end: float = 8.0, **options):
    model = random_model(**FORMS[name])
    return model, model.sample(n, t_end, method=method, random_state=1, **options)


def residual(model, data) -> np.ndarray:
    """Return events minus expected events of each sequence: a martingale at the end of its window."""
    scores = model._scores(data)
    expected = np.bincount(scores.row, scores.compensator * scores.scored, len(data))
    return np.bincount(scores.row[scores.ends & scores.scored], minlength=len(data)) - expected


def first_events(data) -> tuple[np.ndarray, np.ndarray]:
    full = np.flatnonzero(data.lengths > data.context)
    place = data.offsets[:-1][full] + data.context[full]
    return data.times[place] - data.start[full], data.types[place]


def same_law(left, right) -> None:
    """Gaps by Kolmogorov and Smirnov, types by the chi-squared test of homogeneity."""
    assert stats.ks_2samp(left[0], right[0]).pvalue > 1e-4
    counts = np.array([np.bincount(kinds, minlength=3) for kinds in (left[1], right[1])])
    assert stats.chi2_contingency(counts[:, counts.sum(0) > 0]).pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FORMS)
def test_counts_and_rescaled_gaps_follow_the_intensity(name, method):
    model, data = paths_of(name, method)
    off = residual(model, data)
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(data))
    assert data.n_events > 1_000
    fit = model.goodness_of_fit(data)
    assert stats.kstest(fit.gaps, "expon").pvalue > 1e-4
    # Types given the times: the score of the true law has mean zero, for each type.
    batch = pack(data, np.arange(len(data)), recency=model.module_.needs_recency)
    with torch.no_grad():
        state = model.module_(batch).detach()
    ends = (batch.target >= 0).nonzero()[:, 0]
    share = torch.softmax(state.select(ends).log_rates(batch.until[ends]), 1).double().numpy()
    hit = np.eye(3)[batch.target[ends].numpy()] - share
    assert (np.abs(hit.mean(0)) < 4 * hit.std(0) / np.sqrt(len(ends))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_thinning_and_inversion_agree_in_law(name):
    model = random_model(**FORMS[name])
    drawn = [
        model.sample(2_000, 50.0, max_events=1, method=method, random_state=seed)
        for seed, method in enumerate(METHODS)
    ]
    same_law(*map(first_events, drawn))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FORMS)
def test_first_gap_after_a_history_has_the_law_that_is_forecast(name, method):
    """Gaps against 1 - S and types against their probabilities, both from the forecast, after waiting."""
    model = random_model(dtype=torch.float64, **FORMS[name])
    history, now = random_histories(0, (12,)), 20.7
    paths = model.sample(1_000, history=history, now=now, max_events=1, method=method, random_state=2)
    gaps, kinds = first_events(paths)
    assert len(gaps) == 1_000
    batch = pack(history, np.array([0]), dtype=torch.float64, recency=model.module_.needs_recency)
    with torch.no_grad():
        waited = torch.tensor([now - history.times[-1]])
        state = model.module_(batch).select(torch.tensor([12])).shift(waited)
        passed = (
            state.select(torch.zeros(1_000, dtype=torch.long)).compensator(torch.from_numpy(gaps)).numpy()
        )
    assert stats.kstest(passed, "expon").pvalue > 1e-4
    table = model.predict_next(history, now, quantiles=(0.2, 0.8))
    assert abs(gaps.mean() + now - table["t_mean"][0]) < 4 * gaps.std() / np.sqrt(1_000)
    for level in (0.2, 0.8):
        share = (now + gaps <= table[f"t_q{level}"][0]).mean()
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 1_000)
    probability = next_event(state).type_probability[0].numpy()
    assert stats.chisquare(np.bincount(kinds, minlength=3), 1_000 * probability).pvalue > 1e-4


@pytest.mark.slow
def test_refit_on_simulated_paths_reaches_the_generator():
    generator = random_model(seed=3, n_types=2, own_kernels=1)
    train, test = (generator.sample(n, 40.0, random_state=n) for n in (300, 80))
    options = {
        **PLAIN,
        "own_kernels": 1,
        "d_model": 16,
        "random_state": 0,
        "device": "cpu",
        "baselines": False,
        "dropout": 0.0,
    }
    model = SAHP(epochs=12, **options).fit(train)
    gap = generator.score(test) - model.score(test)
    assert -0.02 < gap < 0.02


@dataclass(frozen=True)
class Overconfident(MarkIntensity):
    """An intensity whose bound is too low."""

    def bound(self, elapsed):
        return 0.5 * super().bound(elapsed)


def test_an_intensity_above_its_bound_is_an_error(monkeypatch):
    model = hawkes_process(HAWKES)
    wrong = Overconfident(torch.zeros(1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1, 2), torch.ones(2))
    monkeypatch.setattr(
        model, "_recall", lambda memory: wrong.select(torch.zeros(len(memory), dtype=torch.long))
    )
    with pytest.raises(DataError, match="bound"):
        model.sample(50, 10.0, random_state=0)
    assert model.sample(50, 10.0, random_state=0, method="inverse").n_events > 0


@pytest.mark.parametrize("method", METHODS)
def test_paths_that_were_cut_short_say_so(method):
    model = hawkes_process(HAWKES)
    data = model.sample(200, 20.0, max_events=8, method=method, random_state=0)
    cut = data.lengths == 8
    assert 0 < cut.sum() < 200
    assert data.truncated.tolist() == cut.tolist()
    last = data.times[data.offsets[1:][cut] - 1]
    assert data.end[cut].tolist() == last.tolist()
    assert (data.end[~cut] == 20.0).all()
    free = model.sample(200, 20.0, method=method, random_state=0)
    assert not free.truncated.any()
    assert free.lengths.max() > 8
    # Without an end, nothing is cut short: the number of events is what was asked for.
    counted = model.sample(5, max_events=8, method=method, random_state=0)
    assert counted.lengths.tolist() == [8] * 5
    assert not counted.truncated.any()


@dataclass(frozen=True)
class _Counted(KernelIntensity):
    """Kernels that count the times at which they are asked for their intensity."""

    asked: ClassVar[list[int]] = []

    def rates(self, elapsed):
        self.asked.append(elapsed.numel())
        return super().rates(elapsed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_narrow_peak_far_ahead_neither_holds_thinning_up_nor_is_missed(dtype):
    """A bound that included the peak for ever would need about a thousand proposals per event."""
    n, rate, centre, width = 3000, 0.05, 35.0, 7e-4
    kernels = _Counted(
        torch.full((n, 1, 1), 1.0, dtype=dtype),
        torch.full((n, 1), 5.0, dtype=dtype),
        torch.full((1, 1), centre, dtype=dtype),
        torch.full((1, 1), width, dtype=dtype),
    )
    base = torch.full((n, 1), rate, dtype=dtype)
    state = SumIntensity((LinearIntensity(base, 0 * base, torch.ones(n, dtype=dtype)), kernels))
    within = torch.full((n,), 60.0, dtype=torch.float64)
    _Counted.asked.clear()
    gap = _thinned(state, within, torch.Generator().manual_seed(0))[0].numpy()
    assert sum(_Counted.asked) < 60 * n

    def expected_events(t):
        return rate * t + np.logaddexp(0, 1.0) * stats.norm.cdf((t - centre + 5) / width)

    def share_until(t):
        return np.expm1(-expected_events(t)) / np.expm1(-expected_events(60.0))

    assert stats.kstest(gap[np.isfinite(gap)], share_until).pvalue > 1e-3
    at_peak = np.abs(gap - (centre - 5)) < 5 * width
    share = np.exp(-rate * 30) * (1 - np.exp(-np.logaddexp(0, 1.0)))
    assert stats.binomtest(int(at_peak.sum()), n, share).pvalue > 1e-3


def test_an_explosive_process_ends_where_it_is_told():
    model = hawkes_process((np.array([1.0]), np.array([[1.5]]), 2.0))
    assert model.spectral_radius_ > 1
    data = model.sample(3, 1_000.0, max_events=500, random_state=0)
    assert data.lengths.tolist() == [500] * 3
    assert data.truncated.all()
    assert (data.end < 100.0).all()


@pytest.mark.parametrize(
    "choice",
    [slice(1, 4), slice(None, None, -1), [2], [3, 3, 0], [], np.array([True, False] * 3), 4, np.int64(2)],
    ids=str,
)
def test_chosen_paths_keep_their_flags(choice):
    data = hawkes_process(HAWKES).sample(6, 10.0, max_events=10, random_state=1)
    data = replace(data, truncated=np.array([True, False, False, True, True, False]))
    chosen = data.select(choice)
    rows = np.atleast_1d(
        np.arange(6)[choice if not isinstance(choice, list) else np.array(choice, dtype=int)]
    )
    assert chosen.truncated.tolist() == data.truncated[rows].tolist()
    assert chosen.ids.tolist() == data.ids[rows].tolist()


def test_saved_paths_keep_their_flags(tmp_path):
    paths = hawkes_process(HAWKES).sample(40, 20.0, max_events=8, random_state=0)
    assert 0 < paths.truncated.sum() < 40
    paths.save(tmp_path / "paths")
    assert Paths.open(tmp_path / "paths").truncated.tolist() == paths.truncated.tolist()
    assert Sequences.open(tmp_path / "paths").digest() == paths.digest()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["plain", "all", "hawkes"])
def test_same_seed_same_bits_and_the_global_state_is_left_alone(name, method):
    model = hawkes_process(HAWKES) if name == "hawkes" else random_model(**FORMS[name])
    before = (torch.random.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    first, second, other = (model.sample(20, 5.0, method=method, random_state=seed) for seed in (7, 7, 8))
    assert first.digest() == second.digest()
    assert first.digest() != other.digest()
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("method", METHODS)
def test_many_histories_of_unequal_length_go_on(method):
    model, history = random_model(**ADDITIONS), random_histories(1, (0, 3, 80, 1, 0, 25))
    paths = model.sample(3, 24.0, history=history, method=method, random_state=0)
    assert paths.ids.tolist() == [(i, path) for i in range(6) for path in range(3)]
    assert (paths.start == 21.0).all()
    assert (paths.end == 24.0).all()
    assert paths.context.tolist() == [0] * 18
    assert ((paths.times > 21.0) & (paths.times <= 24.0)).all()
    assert (np.diff(paths.times)[np.diff(np.repeat(np.arange(18), paths.lengths)) == 0] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "all"])
def test_continued_paths_follow_the_intensity_given_their_histories(name):
    """History and continuation as one sequence, the history not scored: counts equal the compensator."""
    model, history = random_model(**FORMS[name]), random_histories(2, (0, 5, 40, 1))
    paths = model.sample(150, 27.0, history=history, random_state=3)
    rows = np.repeat(np.arange(4), 150)
    known = history.select(rows)
    pairs = [
        tuple(map(np.concatenate, zip(known.sequence(i), paths.sequence(i), strict=True))) for i in range(600)
    ]
    whole = replace(
        known,
        times=np.concatenate([times for times, _ in pairs]),
        types=np.concatenate([kinds for _, kinds in pairs]),
        offsets=np.concatenate([[0], np.cumsum([len(times) for times, _ in pairs])]),
        end=np.full(600, 27.0),
    )
    scores, before = model._scores(whole), model._scores(known)
    expected = np.bincount(scores.row, scores.compensator, 600) - np.bincount(
        before.row, before.compensator, 600
    )
    off = paths.lengths - expected
    for one in np.split(off, 4):
        assert abs(one.mean()) < 4 * one.std() / np.sqrt(150)


def test_one_type_is_enough():
    model = random_model(n_types=1, **ADDITIONS)
    data = model.sample(100, 10.0, random_state=0)
    assert set(data.types.tolist()) == {0}
    off = residual(model, data)
    assert abs(off.mean()) < 4 * off.std() / 10


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_dates_go_in_and_come_out(zone):
    def day(number: float) -> dt.datetime:
        moment = pd.Timestamp("2024-03-01") + pd.Timedelta(days=number)
        return (moment.tz_localize("UTC").tz_convert(zone) if zone else moment).to_pydatetime()

    data = [([day(0.5), day(1.0), day(3.0)], ["a", "b", "a"]), ([day(4.0), day(5.0)], ["a", "a"])]
    model = RenewalProcess(gaps="gamma").fit(data)
    paths = model.sample(4, day(30), start=day(20), random_state=0)
    frame = paths.to_frame()
    assert frame["t"].min() >= day(20)
    assert frame["t"].max() <= day(30)
    assert frame["t"].dtype.time_zone == zone
    assert paths.time_series(paths.end).to_list() == [day(30)] * 4
    same = model.sample(4, day(130), start=day(120), random_state=0)
    np.testing.assert_allclose(same.times - same.start[0], paths.times - paths.start[0], atol=1e-4)
    more = model.sample(2, day(12), history=data, now=[day(6), day(7)], random_state=0)
    assert more.time_series(more.start).to_list() == [day(6), day(6), day(7), day(7)]
    assert (more.to_frame()["t"] > day(6)).all()
    with pytest.raises(DataError, match="before the path begins") as error:
        model.sample(1, day(2), history=data, random_state=0)
    assert "2024-03-0" in str(error.value)
    with pytest.raises(DataError, match="date"):
        model.sample(1, day(2), random_state=0)
    with pytest.raises(DataError, match="Pass dates"):
        model.sample(1, 5.0, start=day(1), random_state=0)
    with pytest.raises(DataError, match="time zone"):
        model.sample(
            1, dt.datetime(2024, 5, 1, tzinfo=None if zone else dt.UTC), start=day(1), random_state=0
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ParameterError, "end"),
        ({"t_end": -1.0}, DataError, "before the path begins"),
        ({"t_end": np.nan}, DataError, "end of the paths"),
        ({"t_end": [1.0, 2.0]}, (DataError, ParameterError), "end of the paths"),
        ({"t_end": 5.0, "start": np.nan}, DataError, "start"),
        ({"t_end": 5.0, "now": 1.0}, ParameterError, "now"),
        ({"t_end": 50.0, "start": 1.0, "history": [([1.0], [0])]}, ParameterError, "start"),
        ({"t_end": 5.0, "max_events": 0}, ParameterError, "max_events"),
        ({"t_end": 5.0, "n_paths": 0}, ParameterError, "n_paths"),
        ({"t_end": 5.0, "method": "thin"}, ParameterError, "thinning"),
        ({"t_end": 5.0, "history": [([1.0], [9])]}, DataError, "9"),
        ({"t_end": 5.0, "history": [([1.0, 3.0], [0, 0])], "now": 2.0}, DataError, "now"),
        ({"t_end": 2.0, "history": [([1.0, 3.0], [0, 0])]}, DataError, "before the path begins"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        hawkes_process(HAWKES).sample(**{"random_state": 0, **options})


def test_no_history_is_no_reason_to_fail_in_the_dark():
    model = hawkes_process(HAWKES)
    none = hawkes_data(HAWKES, 2, seed=0).select(np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match="no history"):
        model.sample(1, 5.0, history=none, random_state=0)


@pytest.mark.parametrize("method", METHODS)
def test_windows_without_length_hold_no_event(method):
    for model in (random_model(**ADDITIONS), hawkes_process(HAWKES)):
        data = model.sample(4, 3.0, start=3.0, method=method, random_state=0)
        assert data.n_events == 0
        assert (data.start == data.end).all()
        assert not data.truncated.any()


def test_paths_of_a_model_of_windows_that_begin_at_their_first_event():
    rows = [([0.0, 1.0, 1.5, 4.0], ["b", "a", "a", "b"]), ([2.0, 3.0], ["b", "a"]), ([1.0, 3.5], ["c", "a"])]
    model = PoissonProcess().fit(rows)
    assert model.first_share_.tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    data = model.sample(600, 13.0, start=3.0, random_state=0)
    assert (data.context == 1).all()
    first = data.offsets[:-1]
    assert (data.times[first] == 3.0).all()
    kinds = np.bincount(data.types[first], minlength=3)
    assert kinds[0] == 0
    assert abs(kinds[1] - 400) < 4 * np.sqrt(600 * 2 / 9)
    scored = data.lengths - 1
    assert abs(scored.mean() - 10 * model.rate_.sum()) < 4 * scored.std() / np.sqrt(600)
    off = residual(model, data)
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(600)


@pytest.mark.parametrize("shape", [0.4, 1.0, 3.0, "lognormal"])
def test_renewal_gaps_have_their_law_in_both_ways(shape):
    rng = np.random.default_rng(0)
    draw = (
        rng.lognormal(0.0, 0.7, (60, 30)) if shape == "lognormal" else rng.gamma(shape, 1 / shape, (60, 30))
    )
    rows = [(np.cumsum(gaps), rng.integers(0, 3, 30)) for gaps in draw]
    law = "lognormal" if shape == "lognormal" else "gamma"
    model = RenewalProcess(gaps=law, window=(0.0, 400.0)).fit(rows)
    # The fit saw long empty tails; only the law matters here.
    model.shape_ = np.array([0.0, 0.7]) if law == "lognormal" else np.array([shape, 1 / shape])
    law = stats.lognorm(0.7) if law == "lognormal" else stats.gamma(shape, scale=1 / shape)
    for method in METHODS:
        data = model.sample(400, start=0.0, max_events=4, method=method, random_state=1)
        gaps = np.diff(data.times.reshape(400, 4), prepend=0.0, axis=1).ravel()
        assert stats.kstest(gaps, law.cdf).pvalue > 1e-4
        # After waiting two units, what is left of the gap.
        later = model.sample(
            1_000, history=[([1.0], [0])], now=3.0, max_events=1, method=method, random_state=2
        )
        rest = later.times - 3.0
        assert stats.kstest(rest, lambda x: 1 - law.sf(2 + x) / law.sf(2)).pvalue > 1e-4


def test_markov_paths_follow_their_transitions():
    data = hawkes_data(CROSS, 60, seed=0)
    model = EmpiricalMarkov().fit(data)
    for seed, method in enumerate(METHODS):
        paths = model.sample(300, 30.0, method=method, random_state=seed)
        off = residual(model, paths)
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(300)
        inner = np.flatnonzero(np.diff(np.repeat(np.arange(300), paths.lengths)) == 0)
        after = paths.types[inner + 1][paths.types[inner] == 0]
        share = float((model._recall(torch.zeros(1, 1)).base / model.rate_[0])[0, 1])
        assert abs((after == 1).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(after))


@pytest.mark.slow
def test_more_paths_than_a_block_are_as_good_as_the_first(monkeypatch):
    model, history = hawkes_process(HAWKES), hawkes_data(HAWKES, 3, seed=1, t_end=5.0)
    data = model.sample(1_500, 9.0, history=history, random_state=0)
    assert len(data) == 4_500
    assert data.ids[[0, 1_499, 1_500, 4_499]].tolist() == [(0, 0), (0, 1_499), (1, 0), (2, 1_499)]
    single = [model.sample(1_500, 9.0, history=history.select([i]), random_state=i) for i in range(3)]
    for i, part in enumerate(single):
        block = data.select(np.arange(1_500 * i, 1_500 * (i + 1)))
        same_law(first_events(block), first_events(part))
        assert stats.ks_2samp(block.lengths, part.lengths).pvalue > 1e-4
    monkeypatch.setattr(simulating, "_PATHS", 7)
    small = model.sample(200, 9.0, history=history, random_state=0)
    assert stats.ks_2samp(small.lengths, data.lengths).pvalue > 1e-4
    # Blocks must not repeat each other's draws.
    assert len(np.unique(small.times)) == small.n_events


@pytest.mark.slow
def test_simulation_does_not_depend_on_the_unit():
    hours, seconds = random_model(scale=2.0, **ADDITIONS), random_model(scale=7_200.0, **ADDITIONS)
    for method in METHODS:
        short = hours.sample(30, 10.0, method=method, random_state=0)
        long = seconds.sample(30, 36_000.0, method=method, random_state=0)
        assert short.types.tolist() == long.types.tolist()
        np.testing.assert_allclose(long.times, 3_600 * short.times, rtol=1e-6)
