from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hawkes.random_models import ADDITIONS, LOCAL, random_histories, random_model
from hawkes.reference import CROSS, HAWKES, hawkes_data, hawkes_process

import seqattn
from seqattn import EmpiricalMarkov, PoissonProcess, RenewalProcess
from seqattn.attention import Dilated, Local, Prefix, Routing
from seqattn.errors import ArtifactError, DataError, ParameterError

FORMS = {
    "plain": {},
    "all": ADDITIONS,
    "local": LOCAL,
    "dilated": {"attention": Dilated(3, dilation=2) | Prefix(1)},
    "routing": {"attention": Routing(3, window=4) | Local(1), "time_decay": True},
    "hidden": {"form": "hidden", "n_decays": 2, "time_decay": True},
    "paper": {"mu_eta_activation": "gelu", "learn_scale": False, "clock": "time", "share_layers": True},
}


@pytest.fixture(scope="module", params=[*FORMS, "poisson", "renewal", "markov", "hawkes"])
def model(request):
    if request.param in FORMS:
        return random_model(scale=2.5, **FORMS[request.param])
    if request.param == "hawkes":
        return hawkes_process(([0.1, 0.2, 0.1] * np.ones(3), 0.2 + 0.1 * np.eye(3), 1.5))
    kinds = {"poisson": PoissonProcess, "renewal": RenewalProcess, "markov": EmpiricalMarkov}
    return kinds[request.param](window=(0.0, 21.0)).fit(random_histories(0, (30, 20, 10)))


def surprises(model, data) -> list[np.ndarray]:
    """Return -log-likelihood of every event of every sequence from the batch pass."""
    scores = model._scores(data)
    order = np.lexsort((scores.position, scores.row))
    pieces = (scores.compensator - scores.log_total - scores.log_type)[order]
    row, ends = scores.row[order], scores.ends[order]
    return [pieces[(row == i) & ends] for i in range(len(data))]


def test_a_stream_says_what_the_batch_pass_says(model):
    data = random_histories(1, (40, 1, 13))
    for i, expected in enumerate(surprises(model, data)):
        stream = model.stream(start=0.0)
        times, kinds = data.sequence(i)
        one_by_one = [
            float(stream.push(t, k)[0]) for t, k in zip(times.tolist(), kinds.tolist(), strict=True)
        ]
        np.testing.assert_allclose(one_by_one, expected, rtol=1e-5, atol=1e-5)
        later = times[-1] + 0.4
        whole = model.intensity(data.select([i]), [later])[0, 0]
        np.testing.assert_allclose(stream.intensity(later), whole, rtol=1e-5)
        for now in (None, later):
            mine = stream.next_event(now, quantiles=(0.1, 0.9))
            theirs = model.predict_next(
                data.select([i]), times[-1] if now is None else now, quantiles=(0.1, 0.9)
            )
            assert mine.columns == theirs.columns[1:]
            for name in mine.columns:
                assert mine[name][0] == pytest.approx(theirs[name][0], rel=1e-5)
        assert stream.n_events == len(times)
        assert stream.last == times[-1]


def test_every_prefix_gives_the_forecast_of_its_position(model):
    data = random_histories(2, (25,))
    table, stream = model.predict(data), model.stream(start=0.0)
    for place, (t, k) in enumerate(zip(*data.sequence(0), strict=True)):
        forecast = stream.next_event()
        for name in ("t_mean", "t_median", "p"):
            assert forecast[name][0] == pytest.approx(table[name][place], rel=1e-5)
        stream.push(float(t), int(k))


def test_bursts_equal_single_events_to_the_bit(model):
    data = random_histories(3, (30,))
    times, kinds = data.sequence(0)
    single, burst = model.stream(start=0.0), model.stream(start=0.0)
    each = [single.push(t, k)[0] for t, k in zip(times.tolist(), kinds.tolist(), strict=True)]
    parts = [burst.push(times[:11], kinds[:11]), burst.push(times[11:12], [kinds[11]])]
    parts += [burst.push([], []), burst.push(pl.Series(times[12:]), pd.Series(kinds[12:]))]
    assert np.concatenate(parts).tolist() == each
    assert burst.intensity().tolist() == single.intensity().tolist()
    assert burst.n_events == 30


def test_without_a_start_the_first_event_is_history(model):
    data = random_histories(4, (12,))
    times, kinds = data.sequence(0)
    begun = replace(data, start=times[:1], end=times[-1:], context=np.ones(1, dtype=np.int64))
    stream = model.stream()
    assert stream.last is None
    found = stream.push(times, kinds)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], surprises(model, begun)[0][1:], rtol=1e-5, atol=1e-5)


def test_a_saved_stream_goes_on_with_the_same_bits(model, tmp_path):
    times, kinds = random_histories(5, (30,)).sequence(0)
    stream = model.stream(start=0.0)
    stream.push(times[:17], kinds[:17])
    stream.save(tmp_path / "stream")
    resumed = model.stream().resume(tmp_path / "stream")
    assert (resumed.n_events, resumed.last) == (17, stream.last)
    assert resumed.push(times[17:], kinds[17:]).tolist() == stream.push(times[17:], kinds[17:]).tolist()
    assert resumed.next_event().equals(stream.next_event())
    # The file holds the state at the time of saving, not a view of what followed.
    again = model.stream().resume(tmp_path / "stream")
    assert again.n_events == 17
    assert again.push(times[17:], kinds[17:]).tolist() == pytest.approx(
        surprises_of(model, times, kinds)[17:]
    )


def surprises_of(model, times, kinds):
    stream = model.stream(start=0.0)
    return stream.push(times, kinds).tolist()


def test_a_stream_that_has_not_begun_can_be_saved(tmp_path):
    model = hawkes_process(HAWKES)
    path = model.stream().save(tmp_path / "stream")
    resumed = model.stream().resume(path)
    assert resumed.last is None
    assert np.isnan(resumed.push(3.0, 1)[0])


def test_a_stream_resumes_with_the_opened_model(tmp_path):
    train = random_histories(6, (12, 12, 12, 12))
    model = seqattn.SAHP(epochs=1, d_model=8, random_state=0, device="cpu", **LOCAL).fit(train)
    stream = model.stream(start=0.0)
    stream.push([1.0, 2.0, 4.0], [0, 2, 1])
    model.save(tmp_path / "model")
    stream.save(tmp_path / "stream")
    resumed = seqattn.load(tmp_path / "model").stream().resume(tmp_path / "stream")
    assert resumed.push(5.0, 1).tolist() == stream.push(5.0, 1).tolist()


def test_a_stream_of_another_model_is_refused(tmp_path):
    stream = hawkes_process(HAWKES).stream(start=0.0)
    stream.push(1.0, 0)
    path = stream.save(tmp_path / "stream")
    with pytest.raises(ArtifactError, match="another"):
        hawkes_process(CROSS).stream().resume(path)
    with pytest.raises(ArtifactError, match="another"):
        random_model(n_types=2).stream().resume(path)
    random_model(seed=1).stream(start=0.0).save(path)
    with pytest.raises(ArtifactError, match="another"):
        random_model(seed=2).stream().resume(path)
    model = PoissonProcess().fit([([1.0, 2.0], [0, 0])])
    with pytest.raises(ArtifactError, match="not a stream"):
        model.stream().resume(model.save(tmp_path / "model"))


def content(stream) -> dict[str, bytes]:
    held = {} if stream._histories is None else stream._histories.tensors()
    return {name: value.numpy().tobytes() for name, value in held.items()}


@pytest.mark.parametrize(
    ("t", "k", "error", "message"),
    [
        ([3.0, 2.5], [0, 1], DataError, "Event 1 of the burst, at 2.5, lies before"),
        (1.5, 0, DataError, "Event 0 of the burst, at 1.5, lies before the event before it, at 2.0"),
        ([3.0, 4.0], [0, 7], DataError, "Type 7 was not in the training data. Types: 0, 1, 2."),
        (3.0, None, DataError, "Type None"),
        (3.0, [0], DataError, r"Type \[0\]"),
        ([3.0], [[0]], DataError, r"Type \[0\]"),
        ([3.0, None], [0, 1], DataError, "Time 1 of the burst is missing"),
        (np.nan, 0, DataError, "missing or infinite"),
        (np.inf, 0, DataError, "missing or infinite"),
        (None, 0, DataError, "missing or infinite"),
        ("3.0", 0, DataError, "holds text"),
        (pd.Timestamp("2024-01-01"), 0, DataError, "Give numbers|Pass numbers"),
        ([3.0, 4.0], [0], ParameterError, "k holds 1 types for 2 times"),
        ([3.0, 4.0], 0, ParameterError, "k holds 1 types for 2 times"),
        ([], [0], ParameterError, "k holds 1 types for 0 times"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_what_is_refused_leaves_the_stream_as_it_was(t, k, error, message, begun):
    if not begun and "at 2.0" in message:
        pytest.skip("nothing lies before the first event")
    model = random_model(**LOCAL)
    stream = model.stream(start=0.0) if begun else model.stream()
    if begun:
        stream.push([1.0, 2.0], [0, 1])
    before, facts = content(stream), (stream.n_events, stream.last)
    with pytest.raises(error, match=message):
        stream.push(t, k)
    assert content(stream) == before
    assert (stream.n_events, stream.last) == facts
    other = model.stream(start=0.0) if begun else model.stream()
    if begun:
        other.push([1.0, 2.0], [0, 1])
    np.testing.assert_array_equal(stream.push(3.0, 2), other.push(3.0, 2))


def test_an_empty_burst_does_not_begin_a_stream():
    stream = hawkes_process(HAWKES).stream()
    assert stream.push([], []).shape == (0,)
    with pytest.raises(DataError, match="no beginning"):
        stream.intensity()
    assert np.isnan(stream.push(5.0, 0)[0])
    assert stream.last == 5.0


@pytest.mark.parametrize("moment", [np.nan, np.inf, 1.0])
def test_there_is_no_answer_for_moments_that_are_past_or_no_moments(moment):
    stream = hawkes_process(HAWKES).stream(start=0.0)
    stream.push(2.0, 0)
    for ask in (stream.intensity, stream.next_event):
        with pytest.raises(DataError, match="before the last event|missing or infinite"):
            ask(moment)
    if not np.isfinite(moment):
        with pytest.raises(DataError, match="missing or infinite"):
            hawkes_process(HAWKES).stream(start=moment)


def test_equal_times_are_taken_in_their_order(model):
    times, kinds = [1.0, 2.0, 2.0, 2.0, 3.0], [0, 1, 1, 2, 0]
    stream = model.stream(start=0.0)
    found = stream.push(times, kinds)
    assert np.isfinite(found).all()
    with pytest.warns(seqattn.errors.SeqattnWarning, match="gaps between events are zero"):
        data = seqattn.Sequences.from_lists([(times, kinds)], window=(0.0, 4.0), labels=3)
    np.testing.assert_allclose(found, surprises(model, data)[0], rtol=1e-5, atol=1e-5)


def test_memory_does_not_grow_beyond_the_context():
    model = random_model(d_model=8, n_layers=1, **LOCAL)
    many = random_histories(0, (5_000,), t_end=5_000.0)
    stream = model.stream(start=0.0)

    def size() -> int:
        return sum(len(part) for part in content(stream).values())

    stream.push(many.times[:10], many.types[:10])
    early = size()
    stream.push(many.times[10:100], many.types[10:100])
    assert size() == early
    stream._histories = model._histories(many)
    assert size() == early


@pytest.mark.slow
def test_far_beyond_the_context_a_stream_still_equals_the_batch_pass():
    model = random_model(**LOCAL)
    rng = np.random.default_rng(1)
    times, kinds = np.cumsum(rng.exponential(size=150)), rng.integers(0, 3, 150)
    data = seqattn.Sequences.from_lists([(times, kinds)], window=(0.0, times[-1] + 1), labels=3)
    found = model.stream(start=0.0).push(times, kinds)
    np.testing.assert_allclose(found, surprises(model, data)[0], rtol=1e-5, atol=2e-5)
    # What lies beyond the reach of all layers must not matter, and what lies inside must.
    changed = kinds.copy()
    changed[:75] = (changed[:75] + 1) % 3
    other = model.stream(start=0.0).push(times, changed)
    assert not np.allclose(other[70:80], found[70:80], rtol=1e-6)


def test_late_in_a_long_stream_gaps_keep_their_digits():
    """A million model units after the start, float32 has a grain of 0.06."""
    model = random_model(own_kernels=2, gap_kernels=2, time_features=False, time_decay=True)
    gaps, kinds = np.random.default_rng(2).exponential(size=30), [0, 1, 2] * 10
    # A stream whose first event comes late; the age of later events is counted from it.
    late, early = model.stream(), model.stream()
    late.push(1e6, 0), early.push(0.0, 0)
    found, expected = late.push(1e6 + gaps.cumsum(), kinds), early.push(gaps.cumsum(), kinds)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # The same late in one window; only the start token's age differs, and with its type events it is forgotten.
    long, short = model.stream(start=0.0), model.stream(start=1e6 - 500.0)
    for stream in (long, short):
        stream.push(1e6 + np.array([-2.0, -1.0, 0.0]), [0, 1, 2])
    first = long.push(1e6 + gaps.cumsum(), kinds)
    second = short.push(1e6 + gaps.cumsum(), kinds)
    assert np.abs(first - second).max() < 1.0


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_dates_go_in_and_come_out(zone, tmp_path):
    def day(number: float) -> dt.datetime:
        moment = pd.Timestamp("2024-03-01") + pd.Timedelta(days=number)
        return (moment.tz_localize("UTC").tz_convert(zone) if zone else moment).to_pydatetime()

    data = [([day(0.5), day(1.0), day(3.0)], ["a", "b", "a"]), ([day(4.0), day(5.0)], ["a", "a"])]
    model = RenewalProcess(gaps="gamma").fit(data)
    stream, numbers = model.stream(start=day(10)), model.stream(start=day(20))
    found = stream.push([day(11), day(12.5)], ["a", "b"])
    assert found.tolist() == pytest.approx(numbers.push([day(21), day(22.5)], ["a", "b"]).tolist(), rel=1e-12)
    assert stream.last == day(12.5)
    answer = stream.next_event(day(13), quantiles=(0.5,))
    assert answer["t_mean"][0] > day(13)
    assert answer["t_median"][0] == answer["t_q0.5"][0]
    path = stream.save(tmp_path / "stream")
    resumed = model.stream().resume(path)
    assert resumed.last == stream.last
    assert resumed.next_event(day(13), quantiles=(0.5,)).equals(answer)
    assert resumed.push(day(14), "a") == stream.push(day(14), "a")
    with pytest.raises(DataError, match="time zone"):
        stream.push(dt.datetime(2024, 5, 1, tzinfo=None if zone else dt.UTC), "a")
    with pytest.raises(DataError, match="lies before") as error:
        stream.push(day(2), "a")
    assert "2024-03-03" in str(error.value)
    with pytest.raises(DataError, match="numbers"):
        stream.push(1.0, "a")
    with pytest.raises(DataError, match="dates"):
        model.stream().push(1.0, "a")


def test_dates_of_all_kinds_begin_a_stream():
    days = [pd.Timestamp(f"2024-01-0{day}").to_pydatetime() for day in (1, 2, 4)]
    model = PoissonProcess().fit([(days, ["a", "b", "a"])])
    kinds = [days[0], np.datetime64("2024-01-01"), pd.Timestamp("2024-01-01"), dt.date(2024, 1, 1)]
    values = []
    for first in kinds:
        stream = model.stream()
        stream.push(first, "a")
        values.append(float(stream.push(days[1], "b")[0]))
    assert values == [values[0]] * 4
    assert model.stream(start=np.datetime64("2024-01-01")).push(days[1], "b")[0] == values[0]


def test_streams_leave_the_global_random_state_alone():
    before = (torch.random.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    random_model(**ADDITIONS).stream(start=0.0).push([1.0, 2.0], [0, 1])
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_surprises_sum_to_the_negative_log_likelihood():
    data = hawkes_data(HAWKES, 1, seed=3)
    model = hawkes_process(HAWKES)
    found = model.stream(start=0.0).push(*data.sequence(0))
    assert found.sum() == pytest.approx(-model.log_likelihood(data, "to_last").total, rel=1e-12)


def test_resuming_an_empty_stream_forgets_the_one_before(tmp_path):
    model = PoissonProcess(window=(0.0, 10.0)).fit([([1.0, 2.0, 7.0], ["a", "b", "a"])])
    path = model.stream().save(tmp_path / "empty.safetensors")
    with pytest.raises(ArtifactError, match=r"state of a stream.*resume"):
        seqattn.load(path)
    stream = model.stream(start=0.0)
    stream.push(2.0, "a")
    stream.resume(path)
    assert (stream.n_events, stream.last) == (0, None)
    assert np.isnan(stream.push(1.0, "a")).all()
    assert stream.push([], []).shape == (0,)
