"""The matrix profile against a double loop over all pairs of windows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from seqattn.classify import profile
from seqattn.classify.profile import FLAT, moments, nearest_elsewhere
from seqattn.errors import ParameterError

WAYS = (profile._by_products, profile._by_steps)


def distance(one: np.ndarray, two: np.ndarray, match: str) -> float:
    """Return the distance of two windows by the book."""
    if match == "raw":
        return float(np.mean((one - two) ** 2))
    one, two = (one - one.mean()) / one.std(), (two - two.mean()) / two.std()
    return float(1 - np.mean(one * two))


def by_loops(cases: np.ndarray, is_start: np.ndarray, window: int, match: str) -> np.ndarray:
    """Return the profile by comparing each window with each window of every other series."""
    windows = sliding_window_view(cases, window, axis=1)
    is_start = is_start & (windows.std(axis=2) >= FLAT)
    found = np.full(is_start.shape, np.inf)
    starts = list(zip(*np.nonzero(is_start), strict=True))
    for case, start in starts:
        apart = [
            distance(windows[case, start], windows[place], match) for place in starts if place[0] != case
        ]
        found[case, start] = min(apart, default=np.inf)
    return found


def walks(seed: int, n_cases: int, time: int) -> np.ndarray:
    """Return random walks."""
    return np.cumsum(np.random.default_rng(seed).normal(size=(n_cases, time)), axis=1)


@pytest.mark.parametrize("match", ["znorm", "raw"])
@pytest.mark.parametrize("window", [5, 20])
@pytest.mark.parametrize("way", WAYS)
def test_profile_equals_a_double_loop(way, window, match, monkeypatch):
    cases = walks(window, 4, 40)
    # Starts are missing at random, as gaps make them, and at the ends of two cases, as their lengths do.
    is_start = np.random.default_rng(1).random((4, 41 - window)) < 0.8
    is_start[1, 12:] = is_start[2, 20:] = False
    cases[3, 5 : 5 + window] = 2.0  # one flat window
    monkeypatch.setattr(profile, "_by_products", way)
    monkeypatch.setattr(profile, "_by_steps", way)
    expected = by_loops(cases, is_start, window, match)
    found = nearest_elsewhere(cases, is_start, window, match)
    assert np.array_equal(np.isinf(found), np.isinf(expected))
    assert np.isfinite(expected).sum() > 30
    there = np.isfinite(expected)
    np.testing.assert_allclose(found[there], expected[there], atol=1e-8, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_pattern_within_one_series_is_no_neighbour(way, monkeypatch):
    cases, pattern = walks(3, 3, 120), walks(4, 1, 15)[0]
    cases[0, 10:25] = cases[0, 70:85] = pattern
    monkeypatch.setattr(profile, "_by_products", way)
    monkeypatch.setattr(profile, "_by_steps", way)
    is_start = np.ones((3, 106), dtype=bool)
    alone = nearest_elsewhere(cases, is_start, 15)
    assert alone[0, 10] > 0.01
    cases[2, 33:48] = 3 * pattern - 7
    assert nearest_elsewhere(cases, is_start, 15)[0, 10] < 1e-9


def test_a_match_across_the_end_of_a_series_never_wins():
    pattern = walks(5, 1, 20)[0]
    cases = walks(6, 3, 60)
    cases[0, -10:], cases[1, :10] = pattern[:10], pattern[10:]
    cases[2, 20:40] = pattern
    found = nearest_elsewhere(cases, np.ones((3, 41), dtype=bool), 20)
    joined = nearest_elsewhere(
        np.stack([cases[:2].ravel(), np.pad(cases[2], (0, 60))]), np.ones((2, 101), bool), 20
    )
    assert joined[1, 20] < 1e-9  # the match is there for whoever looks across
    assert found[2, 20] > 0.01


def test_a_single_series_is_compared_beyond_half_a_window():
    case = walks(7, 1, 90)
    windows = sliding_window_view(case[0], 12)
    expected = [
        min(distance(one, two, "znorm") for other, two in enumerate(windows) if abs(start - other) >= 6)
        for start, one in enumerate(windows)
    ]
    np.testing.assert_allclose(
        nearest_elsewhere(case, np.ones((1, 79), bool), 12)[0], expected, atol=1e-8, rtol=0
    )


def test_running_products_are_begun_afresh():
    # What rounding leaves of the first, huge products would stay in all that follow.
    cases = walks(8, 2, 5000)
    cases[:, :50] *= 1e7
    *_, last = profile._running(cases[0], cases[1][:, None], 40)
    direct = sliding_window_view(cases[1], 40) @ cases[0, -40:]
    np.testing.assert_allclose(last[4096:, 0], direct[4096:], rtol=1e-12)


@pytest.mark.slow
def test_running_products_do_not_drift():
    # 8,000 steps along the longest diagonal, begun afresh at 4,096: more steps are no further apart.
    cases = walks(8, 2, 8400)
    scores = profile._by_steps(cases, np.ones((2, 8001), bool), 400, "znorm")
    some = np.random.default_rng(9).choice(8001, 40, replace=False)
    own, other = (profile.unit_patterns(sliding_window_view(case, 400)) for case in cases)
    np.testing.assert_allclose(scores[0, some], (own[some] @ other.T).max(axis=1) - 1, atol=1e-9, rtol=0)


def test_moments_equal_those_of_each_window():
    values = walks(10, 3, 50) + 1e3
    mean, deviation = moments(values, 9)
    windows = sliding_window_view(values, 9, axis=1)
    np.testing.assert_allclose(mean, windows.mean(2), rtol=1e-12)
    np.testing.assert_allclose(deviation, windows.std(2), rtol=1e-9)


def test_an_unknown_distance_names_the_nearest():
    with pytest.raises(ParameterError, match="match='znrm' is unknown.*Did you mean 'znorm'"):
        nearest_elsewhere(walks(0, 2, 20), np.ones((2, 16), bool), 5, "znrm")
