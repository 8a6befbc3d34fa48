"""Forecasts of everything within a horizon: how data are cut, what paths agree on, and the scores."""

from __future__ import annotations

import numpy as np
import pytest
from hawkes.reference import CROSS, HAWKES, hawkes_data, hawkes_process

from seqattn import PoissonProcess, Sequences
from seqattn.errors import DataError, ParameterError
from seqattn.hawkes.ahead import (
    consensus_events,
    cut_windows,
    horizon_caption,
    horizon_columns,
    score_paths,
)
from seqattn.hawkes.horizon import optimal_transport_distance, temporal_map


@pytest.fixture(scope="module")
def data() -> Sequences:
    return hawkes_data(HAWKES, 6, seed=4, t_end=30.0)


@pytest.fixture(scope="module")
def poisson(data) -> PoissonProcess:
    return PoissonProcess().fit(data)


# -- cutting ---------------------------------------------------------------------------------------------------


def test_history_and_horizon_together_are_the_sequence_up_to_the_end_of_the_horizon(data):
    windows = cut_windows(data, 7.0, cuts=3)
    assert len(windows.true) == 18
    for place, (since, kinds) in enumerate(windows.true):
        times, types = data.sequence(place // 3)
        at = float(windows.histories.end[place])
        known, own = windows.histories.sequence(place)
        assert at + 7.0 <= data.end[place // 3] + 1e-12
        assert known.tolist() == [t for t in times if t <= at]
        assert own.tolist() == [k for t, k in zip(times, types, strict=True) if t <= at]
        assert since.tolist() == [t - at for t in times if at < t <= at + 7.0]
        assert kinds.tolist() == [k for t, k in zip(times, types, strict=True) if at < t <= at + 7.0]


def test_cuts_lie_evenly_over_the_room_that_the_horizon_leaves(data):
    one, four = cut_windows(data, 10.0, 1), cut_windows(data, 10.0, 4)
    assert one.histories.end.tolist() == [10.0] * 6
    assert four.histories.end[:4].tolist() == [2.5, 7.5, 12.5, 17.5]


def test_sequences_shorter_than_the_horizon_are_left_out_and_counted():
    window = {"a": (0.0, 4.0), "b": (0.0, 9.0), "c": (0.0, 8.0)}
    table = {"seq_id": ["a", "b", "c"], "t": [1.0, 7.0, 2.0], "k": [0, 0, 0]}
    windows = cut_windows(Sequences.from_table(table, window=window), 8.0, 1)
    assert windows.n_left_out == 1
    assert [times.tolist() for times, _ in windows.true] == [[6.5], [2.0]]


def test_the_first_event_of_a_window_that_begins_there_is_history():
    windows = cut_windows(Sequences.from_lists([([1.0, 2.0, 6.0], [0, 1, 0])]), 5.0, 1)
    assert windows.histories.times.tolist() == [1.0]
    assert windows.histories.context.tolist() == [1]
    assert windows.true[0][0].tolist() == [1.0, 5.0]


def test_a_horizon_longer_than_every_window_is_refused(data):
    with pytest.raises(DataError, match=r"No window is as long as horizon=31\.0; the longest has 30\.0"):
        cut_windows(data, 31.0, 1)


# -- what paths agree on ---------------------------------------------------------------------------------------


def plain_consensus(times, paths, n_paths, tolerance):
    """The same by plain loops over what is left."""
    left, found = sorted(zip(times, paths, strict=True)), []
    while left:
        support = [len({path for t, path in left if abs(t - centre) <= tolerance}) for centre, _ in left]
        centre = left[support.index(max(support))][0]
        taken = []
        for path in sorted({path for _, path in left}):
            near = [event for event in left if event[1] == path and abs(event[0] - centre) <= tolerance]
            if near:
                taken.append(min(near, key=lambda event: (abs(event[0] - centre), event[0])))
        left = [event for event in left if event not in taken]
        found.append((float(np.median([t for t, _ in taken])), len(taken) / n_paths))
    return found


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 1.0, 20.0])
def test_consensus_is_that_of_plain_loops(tolerance):
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(0, 25))
        times, paths = rng.uniform(0, 6, n), rng.integers(0, 5, n)
        found = consensus_events(times, paths, 6, tolerance)
        assert list(zip(*map(list, found), strict=True)) == plain_consensus(times, paths, 6, tolerance)


def test_consensus_gives_every_event_the_same_weight():
    rng = np.random.default_rng(1)
    times, paths = rng.uniform(0, 10, 200), rng.integers(0, 20, 200)
    for tolerance in (0.01, 0.5, 3.0):
        scores = consensus_events(times, paths, 20, tolerance)[1]
        assert scores.sum() == pytest.approx(10.0)
        assert (np.diff(scores) <= 0).all()
        assert scores.max() <= 1


def test_paths_that_agree_give_their_events_with_certainty():
    times, scores = consensus_events([1.0, 1.0, 1.1, 4.0] * 3, np.repeat([0, 1, 2], 4), 3, 0.05)
    assert sorted(times.tolist()) == [1.0, 1.0, 1.1, 4.0]
    assert scores.tolist() == [1.0] * 4


# -- scores ----------------------------------------------------------------------------------------------------


def draw_windows(rng, n: int, n_types: int = 2):
    sizes = rng.integers(0, 6, n)
    return [(rng.uniform(0, 5, size), rng.integers(0, n_types, size)) for size in sizes]


def test_paths_that_come_true_have_no_distance_and_full_precision():
    true = draw_windows(np.random.default_rng(2), 10)
    found = score_paths(true, [[window] * 3 for window in true], 0.5, [0.01, 0.1])
    assert (found["otd"], found["t_map"]) == (0.0, 1.0)
    assert found["events_forecast"] == pytest.approx(np.mean([len(times) for times, _ in true]))


def test_a_forecast_of_nothing_costs_one_insertion_per_event():
    true = draw_windows(np.random.default_rng(3), 10)
    found = score_paths(true, [[([], [])]] * 10, (0.25, 9.0), [0.1])
    assert found["otd"] == pytest.approx(0.25 * np.mean([len(times) for times, _ in true]))
    assert (found["t_map"], found["events_forecast"]) == (0.0, 0.0)


def test_the_distance_is_the_mean_over_windows_and_paths():
    rng = np.random.default_rng(4)
    true, paths = draw_windows(rng, 6), [draw_windows(rng, 4) for _ in range(6)]
    each = [
        optimal_transport_distance(a, b, (1.0, 0.5))
        for a, sample in zip(true, paths, strict=True)
        for b in sample
    ]
    assert score_paths(true, paths, (1.0, 0.5), [0.1])["otd"] == pytest.approx(np.mean(each))


def test_precision_is_that_of_the_consensus_for_each_type_by_itself():
    rng = np.random.default_rng(5)
    true, paths = draw_windows(rng, 8), [draw_windows(rng, 5) for _ in range(8)]
    tolerances, values = [0.3, 1.0], []
    for tolerance in tolerances:
        for kind in (0, 1):
            own = [(t[k == kind], 0 * k[k == kind]) for t, k in true]
            called = []
            for sample in paths:
                pool = [(t, i) for i, (times, kinds) in enumerate(sample) for t in times[kinds == kind]]
                at, scores = consensus_events([t for t, _ in pool], [i for _, i in pool], 5, tolerance)
                called.append((at, scores[:, None]))
            values.append(temporal_map(own, called, tolerance))
    assert score_paths(true, paths, 1.0, tolerances)["t_map"] == pytest.approx(np.mean(values))


def test_there_is_no_precision_where_nothing_happened():
    found = score_paths([([], []), ([], [])], [[([1.0], [0])], [([], [])]], 2.0, [0.1])
    assert found == {"otd": 1.0, "t_map": None, "events_forecast": 0.5}


# -- the estimator ---------------------------------------------------------------------------------------------


def test_a_poisson_process_forecasts_as_many_events_as_its_rates_say(poisson, data):
    found = poisson.evaluate_horizon(data, 10.0, n_paths=100, random_state=0)
    expected = 10.0 * data.n_events / (30.0 * 6)
    assert found["events_forecast"] == pytest.approx(expected, abs=4 * np.sqrt(expected / 600))


def test_the_process_that_made_the_data_forecasts_better_than_one_without_memory():
    data = hawkes_data(CROSS, 40, 7, 40.0)
    models = (hawkes_process(CROSS), PoissonProcess().fit(data))
    ours, other = (model.evaluate_horizon(data, 3.0, cuts=3, n_paths=5, random_state=0) for model in models)
    assert ours["n_windows"] == other["n_windows"] == 120
    assert ours["otd"] < 0.9 * other["otd"]
    assert ours["t_map"] > other["t_map"]


def test_what_was_done_is_told_with_the_figures(poisson, data):
    found = poisson.evaluate_horizon(data, 10.0, n_paths=3, cuts=2, cost=0.5, tolerances=0.2, random_state=0)
    true = cut_windows(data, 10.0, 2).true
    facts = {"horizon": 10.0, "unit": None, "n_windows": 12, "n_left_out": 0, "n_paths": 3, "cuts": 2}
    assert facts.items() <= found.items()
    assert (found["cost"], found["tolerances"], found["n_truncated"]) == ([0.5, 0.5], [0.2], 0)
    assert found["n_events"] == sum(len(times) for times, _ in true)
    nothing = found["baselines"]["no_events"]
    assert nothing["otd"] == pytest.approx(0.5 * found["events_true"])
    assert nothing["t_map"] == 0.0


def test_a_seed_gives_the_same_figures_and_another_gives_others(poisson, data):
    first, again, other = (poisson.evaluate_horizon(data, 5.0, random_state=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["otd"] != other["otd"]


def test_baselines_draw_with_the_seed_of_the_model(poisson, data):
    model = hawkes_process(HAWKES)
    model.baselines_ = {"poisson": poisson}
    found = model.evaluate_horizon(data, 5.0, random_state=3)
    alone = poisson.evaluate_horizon(data, 5.0, random_state=3)
    assert found["baselines"].keys() == {"poisson", "no_events"}
    assert found["baselines"]["poisson"] == {name: alone[name] for name in found["baselines"]["poisson"]}
    assert "baselines" not in model.evaluate_horizon(data, 5.0, baselines=False, random_state=3)


def test_paths_cut_short_are_counted(poisson, data):
    found = poisson.evaluate_horizon(data, 20.0, max_events=1, n_paths=5, random_state=0)
    assert found["n_truncated"] == 30
    assert found["events_forecast"] == 1.0


def test_dates_are_forecast_in_seconds():
    day = np.datetime64("2024-01-01", "us")
    times = day + np.array([0, 60, 120, 300, 360, 600]).astype("timedelta64[s]")
    table = {"seq_id": [0] * 6, "t": times, "k": ["a", "b"] * 3}
    found = PoissonProcess().fit(table).evaluate_horizon(table, 200.0, random_state=0)
    # One cut in the middle of the 400 seconds that the horizon leaves: at 200, with the events at 300 and 360 ahead.
    assert (found["unit"], found["n_events"]) == ("s", 2)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"horizon": 0.0}, ParameterError, r"horizon=0\.0 is no time span"),
        ({"horizon": float("nan")}, ParameterError, "is no time span"),
        ({"horizon": True}, ParameterError, "horizon=True is no time span"),
        ({"horizon": 99.0}, DataError, "No window is as long"),
        ({"horizon": 5.0, "cuts": 0}, ParameterError, "cuts=0 is not allowed"),
        ({"horizon": 5.0, "n_paths": 0}, ParameterError, "n_paths=0 is not allowed"),
        ({"horizon": 5.0, "cost": -1.0}, ParameterError, r"cost=-1\.0 must be a time of 0 or more"),
        ({"horizon": 5.0, "tolerances": []}, ParameterError, "at least one"),
        ({"horizon": 5.0, "tolerances": [-1.0]}, ParameterError, "must be times of 0 or more"),
        ({"horizon": 5.0, "method": "thining"}, ParameterError, "Did you mean 'thinning'"),
    ],
)
def test_what_makes_no_sense_is_refused(poisson, data, options, error, text):
    with pytest.raises(error, match=text):
        poisson.evaluate_horizon(data, **options)


def test_the_table_gets_two_columns_and_a_row_for_nothing():
    def scores(value):
        return {"otd": value, "t_map": value / 10}

    ahead = {**scores(1.0), "baselines": {"poisson": scores(2.0), "no_events": scores(3.0)}}
    headers, rows = horizon_columns(["model", "x"], [["SAHP", 7], ["poisson", 8]], ahead)
    assert headers == ["model", "x", "OTD", "T-mAP"]
    assert rows == [["SAHP", 7, 1.0, 0.1], ["poisson", 8, 2.0, 0.2], ["no_events", None, 3.0, 0.3]]


def test_the_caption_names_horizon_windows_paths_costs_and_tolerances(poisson, data):
    text = horizon_caption(poisson.evaluate_horizon(data, 4.0, n_paths=2, random_state=0))
    for word in ("horizon of 4,", "6 histories", "2 paths each", "costs 2 and 2", "tolerances 0.2, 0.4, 0.8"):
        assert word in text


# -- paths of a given length -----------------------------------------------------------------------------------


def test_a_horizon_is_counted_from_the_present_of_each_history(poisson, data):
    presents = np.linspace(31.0, 36.0, 6)
    paths = poisson.sample(2, horizon=4.0, history=data, now=presents, random_state=0)
    assert paths.end.tolist() == (np.repeat(presents, 2) + 4.0).tolist()
    same = poisson.sample(2, 34.0, history=data, random_state=0)
    assert poisson.sample(2, horizon=4.0, history=data, random_state=0).digest() == same.digest()


def test_a_horizon_is_counted_from_the_start_of_paths_from_nothing(poisson):
    paths = poisson.sample(3, horizon=4.0, start=5.0, random_state=0)
    assert paths.digest() == poisson.sample(3, 9.0, start=5.0, random_state=0).digest()


def test_two_ends_or_none_are_refused(poisson):
    with pytest.raises(ParameterError, match="both say where paths end"):
        poisson.sample(1, 5.0, horizon=2.0)
    with pytest.raises(ParameterError, match="Paths need an end"):
        poisson.sample(1)


def test_histories_without_a_sequence_are_refused(poisson, data):
    with pytest.raises(DataError, match="There is no history to go on from"):
        poisson.sample(1, 50.0, history=data.select([]))


def test_tables_of_paths_name_sequence_and_path(poisson, data):
    nothing = poisson.sample(4, 20.0, random_state=0)
    assert nothing.to_frame().columns == ["seq_id", "t", "k"]
    back = Sequences.from_table(nothing.to_frame(), window=(0.0, 20.0), labels=data.labels)
    assert back.times.tolist() == nothing.times.tolist()
    assert back.ids.tolist() == [0, 1, 2, 3]
    after = poisson.sample(2, horizon=20.0, history=data, random_state=0)
    frame = after.to_frame()
    assert frame.columns == ["seq_id", "path", "t", "k"]
    assert frame.select("seq_id", "path").unique(maintain_order=True).rows() == [
        (i, j) for i in range(6) for j in range(2)
    ]
    assert after.id_columns([3, 0], name="user").rows() == [(1, 1), (0, 0)]


def test_tables_of_paths_after_chunks_name_the_chunk_too(poisson):
    rows = {"seq_id": ["u"] * 6, "t": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "k": [0, 1] * 3}
    chunks = Sequences.from_table(rows, chunk=3)
    frame = poisson.sample(2, horizon=30.0, history=chunks, random_state=0).to_frame()
    assert frame.columns == ["seq_id", "chunk", "path", "t", "k"]
    keys = frame.select("seq_id", "chunk", "path").unique(maintain_order=True).rows()
    assert keys == [("u", i, j) for i in range(2) for j in range(2)]


def test_chosen_paths_keep_their_flags(poisson):
    paths = poisson.sample(6, 4.0, max_events=5, random_state=0)
    assert 0 < paths.truncated.sum() < 6
    for chosen in (slice(1, 5, 2), [4, 0], np.arange(6) % 2 == 0):
        assert paths.select(chosen).truncated.tolist() == paths.truncated[chosen].tolist()
    assert paths.select([]).truncated.tolist() == []
