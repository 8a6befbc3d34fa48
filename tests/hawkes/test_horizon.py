from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from seqattn.errors import DataError, ParameterError
from seqattn.hawkes.horizon import average_precisions, optimal_transport_distance, temporal_map


def draw_window(rng, most: int, n_types: int, grid: bool = False):
    n = int(rng.integers(0, most + 1))
    times = rng.integers(0, 6, n).astype(float) if grid else rng.uniform(0, 6, n)
    return times, rng.integers(0, n_types, n)


def matchings(n: int, m: int):
    """Give every set of pairs in which no member stands twice."""
    for size in range(min(n, m) + 1):
        for left in itertools.combinations(range(n), size):
            for right in itertools.permutations(range(m), size):
                yield tuple(zip(left, right, strict=True))


def cheapest(true, forecast, insert: float, delete: float) -> float:
    """The definition of the distance, over all matchings of events of the same type."""
    (times, kinds), (moved, guesses) = true, forecast
    best = np.inf
    for pairs in matchings(len(times), len(moved)):
        if all(kinds[i] == guesses[j] for i, j in pairs):
            cost = sum(min(abs(times[i] - moved[j]), insert + delete) for i, j in pairs)
            cost += insert * (len(times) - len(pairs)) + delete * (len(moved) - len(pairs))
            best = min(best, cost)
    return best


@pytest.mark.parametrize("costs", [(1.0, 1.0), (0.3, 2.0), (2.0, 0.3), (0.0, 1.0), (10.0, 10.0)])
def test_distance_is_the_least_over_all_matchings(costs):
    rng = np.random.default_rng(0)
    for _ in range(25):
        true, forecast = draw_window(rng, 5, 2), draw_window(rng, 5, 2, grid=True)
        value = optimal_transport_distance(true, forecast, costs)
        assert value == pytest.approx(cheapest(true, forecast, *costs), abs=1e-12)


def test_distance_is_that_of_an_assignment_problem_with_capped_costs():
    """As HoTPP's program computes it: events of different types cost as much as an insertion and a deletion."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        true, forecast = draw_window(rng, 60, 3), draw_window(rng, 60, 3)
        insert, delete = rng.uniform(0.05, 1.0, 2)
        table = np.minimum(np.abs(forecast[0][:, None] - true[0]), insert + delete)
        table[forecast[1][:, None] != true[1]] = insert + delete
        row, column = linear_sum_assignment(table)
        exact = table[row, column].sum()
        exact += insert * (len(true[0]) - len(row)) + delete * (len(forecast[0]) - len(row))
        value = optimal_transport_distance(true, forecast, (float(insert), float(delete)))
        assert value == pytest.approx(exact, rel=1e-12)


def test_distance_is_a_metric_if_both_costs_are_equal():
    rng = np.random.default_rng(2)
    for _ in range(30):
        a, b, c = (draw_window(rng, 8, 2) for _ in range(3))
        ab, ba, bc, ac = (optimal_transport_distance(*pair, 0.7) for pair in ((a, b), (b, a), (b, c), (a, c)))
        assert ab == pytest.approx(ba)
        assert ac <= ab + bc + 1e-12
        assert optimal_transport_distance(a, a, 0.7) == 0
        shuffled = rng.permutation(len(a[0]))
        assert optimal_transport_distance((a[0][shuffled], a[1][shuffled]), b, 0.7) == pytest.approx(ab)


def test_distance_scales_with_the_time_unit():
    rng = np.random.default_rng(3)
    true, forecast = draw_window(rng, 20, 2), draw_window(rng, 20, 2)
    hours = optimal_transport_distance(true, forecast, (0.5, 0.25))
    minutes = optimal_transport_distance(
        (true[0] * 60, true[1]), (forecast[0] * 60, forecast[1]), (30.0, 15.0)
    )
    assert minutes == pytest.approx(60 * hours)


def test_missing_events_are_inserted_and_superfluous_ones_deleted():
    some, none = ([1.0, 2.0, 3.0], [0, 0, 1]), ([], [])
    assert optimal_transport_distance(some, none, (2.0, 5.0)) == 6.0
    assert optimal_transport_distance(none, some, (2.0, 5.0)) == 15.0
    assert optimal_transport_distance(none, none, 1.0) == 0.0


@pytest.mark.parametrize("cost", [-1.0, float("nan"), (1.0, float("inf"))])
def test_costs_must_be_finite_and_not_negative(cost):
    with pytest.raises(ParameterError, match="0 or more"):
        optimal_transport_distance(([], []), ([], []), cost)


@pytest.mark.parametrize(
    ("window", "text"),
    [
        (([1.0], []), r"shapes \(1,\) and \(0,\)"),
        (([np.nan], [0]), "missing or infinite"),
        (([1.0], [-1]), "codes from 0"),
        (([1.0], ["buy"]), "'buy'"),
    ],
)
def test_windows_must_be_times_and_codes(window, text):
    with pytest.raises(DataError, match=text):
        optimal_transport_distance(([], []), window, 1.0)


def draw_forecast(rng, most: int, n_types: int, grid: bool):
    n = int(rng.integers(0, most + 1))
    scores = rng.integers(0, 3, (n, n_types)) / 4 if grid else rng.normal(size=(n, n_types))
    return rng.uniform(0, 6, n), scores


def largest_matching(near: np.ndarray) -> int:
    return max(len(pairs) for pairs in matchings(*near.shape) if all(near[i, j] for i, j in pairs))


def precision_by_definition(true, forecast, kind: int, tolerance: float) -> float:
    """Count a largest matching afresh for every score, by trying all of them."""
    total = sum((kinds == kind).sum() for _, kinds in true)
    levels = np.unique(np.concatenate([scores[:, kind] for _, scores in forecast]))[::-1]
    area = recall = 0.0
    for level in levels:
        hits = called = 0
        for (times, kinds), (guessed, scores) in zip(true, forecast, strict=True):
            chosen = guessed[scores[:, kind] >= level]
            hits += largest_matching(np.abs(chosen[:, None] - times[kinds == kind]) <= tolerance)
            called += len(chosen)
        area += (hits / total - recall) * hits / called
        recall = hits / total
    return area


@pytest.mark.parametrize("grid", [False, True], ids=["distinct scores", "equal scores"])
def test_precision_is_that_of_the_largest_matching_at_every_score(grid):
    rng = np.random.default_rng(4)
    compared = 0
    for _ in range(25):
        true = [draw_window(rng, 4, 2) for _ in range(2)]
        forecast = [draw_forecast(rng, 5, 2, grid) for _ in range(2)]
        kinds = np.concatenate([kinds for _, kinds in true])
        if not len(kinds) or not sum(len(times) for times, _ in forecast):
            continue
        values = average_precisions(true, forecast, 0.8)
        for kind in range(2):
            if (kinds == kind).any():
                exact = precision_by_definition(true, forecast, kind, 0.8)
                assert values[kind] == pytest.approx(exact, abs=1e-12)
                compared += 1
            else:
                assert np.isnan(values[kind])
    assert compared > 30


def test_a_matching_that_takes_the_nearest_first_would_find_less():
    """The event at 1.0 must be left to the later forecast, which reaches no other."""
    true, forecast = [([1.0, 0.2], [0, 0])], [([0.7, 1.5], [[0.9], [0.8]])]
    assert temporal_map(true, forecast, 0.5) == 1.0


def test_the_order_of_equal_scores_does_not_decide():
    rng = np.random.default_rng(5)
    true = [draw_window(rng, 8, 3) for _ in range(6)]
    forecast = [draw_forecast(rng, 8, 3, grid=True) for _ in range(6)]
    value = temporal_map(true, forecast, [0.2, 1.0])
    assert 0 < value < 1
    for _ in range(10):
        mixed = []
        for times, scores in forecast:
            order = rng.permutation(len(times))
            mixed.append((times[order], scores[order]))
        windows = rng.permutation(6)
        assert temporal_map([true[i] for i in windows], [mixed[i] for i in windows], [0.2, 1.0]) == value


def test_only_the_order_of_scores_counts():
    rng = np.random.default_rng(6)
    true = [draw_window(rng, 8, 3) for _ in range(6)]
    forecast = [draw_forecast(rng, 8, 3, grid=False) for _ in range(6)]
    value = temporal_map(true, forecast, 0.7)
    assert temporal_map(true, [(t, np.exp(3 * s)) for t, s in forecast], 0.7) == value
    assert temporal_map(true, [(t, -s) for t, s in forecast], 0.7) != value


def test_exact_forecasts_score_one_and_false_alarms_and_misses_cost():
    true = [([1.0, 2.0, 4.0], [0, 1, 0]), ([3.0], [1])]
    exact = [(times, np.eye(2)[kinds]) for times, kinds in true]
    assert temporal_map(true, exact, [0.0, 0.5]) == 1.0
    # Type 0 is found once of twice; type 1 as before.
    missed = [([2.0, 4.0], np.eye(2)[[1, 0]]), exact[1]]
    assert temporal_map(true, missed, 0.5) == pytest.approx((0.5 + 1) / 2)
    assert temporal_map(true, missed, 0.5, average="weighted") == pytest.approx((0.5 + 1) / 2)
    # A false alarm of type 1, as sure as the true ones: two of three are right.
    alarmed = [([1.0, 2.0, 4.0, 9.0], np.eye(2)[[0, 1, 0, 1]]), exact[1]]
    assert temporal_map(true, alarmed, 0.5) == pytest.approx((1 + 2 / 3) / 2)
    nothing = [([], np.empty((0, 2)))] * 2
    assert temporal_map(true, nothing, 0.5) == 0.0


def test_one_type_whose_candidates_all_match_scores_one():
    """One published program gives such a type 0."""
    assert temporal_map([([1.0], [0])], [([1.0], [[0.3]])], 0.5) == 1.0


def test_types_are_weighted_by_how_often_they_happened():
    true = [([1.0, 2.0, 3.0], [0, 0, 1])]
    forecast = [([1.0, 2.0], np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))]
    assert average_precisions(true, forecast, 0.1)[:2].tolist() == [1.0, 0.0]
    assert temporal_map(true, forecast, 0.1) == 0.5
    assert temporal_map(true, forecast, 0.1, average="weighted") == pytest.approx(2 / 3)


def test_a_tolerance_of_exactly_the_distance_matches():
    true, forecast = [([1.0], [0])], [([1.5], [[1.0]])]
    assert temporal_map(true, forecast, 0.5) == 1.0
    assert temporal_map(true, forecast, 0.499) == 0.0


def test_windows_and_scores_that_do_not_fit_are_refused():
    one = [([1.0], [0])]
    good = [([1.0], [[1.0]])]
    for true, forecast, text in [
        (one, [], "1 true windows and 0 forecasts"),
        ([([], [])], good, "No event happened"),
        ([], [], "No event happened"),
        ([([1.0], [1])], good, r"\[1\] columns, but types up to 1"),
        (one * 2, [*good, ([1.0], [[1.0, 0.0]])], r"\[1, 2\] columns"),
        (one, [([1.0], [1.0])], "forecast 0 have shapes"),
        (one, [([1.0], [[np.nan]])], "missing or infinite"),
    ]:
        with pytest.raises(DataError, match=text):
            temporal_map(true, forecast, 0.5)
    with pytest.raises(ParameterError, match="'makro'.*Did you mean 'macro'"):
        temporal_map(one, good, 0.5, average="makro")
    for tolerances in (-1.0, [], float("inf")):
        with pytest.raises(ParameterError, match="0 or more"):
            temporal_map(one, good, tolerances)
