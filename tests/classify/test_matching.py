"""Matches of prototypes against a loop over all windows of all cases."""

from __future__ import annotations

import numpy as np
import pytest

from seqattn.classify import matching
from seqattn.classify.matching import contents, distances, nearest, shortened
from seqattn.classify.series import Series


def ragged(seed: int, lengths: list[int], n_channels: int = 2) -> Series:
    """Return random walks of given lengths."""
    rng = np.random.default_rng(seed)
    values = np.zeros((len(lengths), n_channels, max(lengths)))
    observed = np.zeros(values.shape, dtype=bool)
    for row, length in enumerate(lengths):
        values[row, :, :length] = np.cumsum(rng.normal(size=(n_channels, length)), axis=1)
        observed[row, :, :length] = True
    return Series(values, np.array(lengths), observed)


def apart(window: np.ndarray, pattern: np.ndarray, match: str) -> float:
    """Return the distance of two windows by the book."""
    if match == "raw":
        return float(np.mean((window - pattern) ** 2))
    return float(1 - np.corrcoef(window, pattern)[0, 1]) if window.std() >= 1e-4 else 1.0


@pytest.mark.parametrize("match", ["znorm", "raw"])
@pytest.mark.parametrize("locality", [None, 0.1])
def test_nearest_windows_equal_those_of_a_loop(match, locality):
    series = ragged(1, [30, 24, 41, 12, 9])
    patterns, relative = ragged(2, [12, 12, 12]).values[:, 0], np.array([0.0, 0.3, 0.9])
    threshold = np.array([0.3, 0.6, 0.9])
    found = nearest(series, 1, patterns, relative, threshold, match=match, locality=locality)
    for row, length in enumerate(series.lengths):
        case = series.values[row, 1, :length]
        points = min(12, int(length))
        for column, pattern in enumerate(shortened(patterns, points)):
            all_apart = [
                apart(case[place : place + points], pattern, match) for place in range(length - points + 1)
            ]
            allowed = [
                place
                for place in range(len(all_apart))
                if locality is None or abs(place - relative[column] * length) <= locality * length
            ]
            # Too near to the end for its place: the last start is the nearest.
            allowed = allowed or [len(all_apart) - 1]
            best = min(allowed, key=all_apart.__getitem__)
            assert found.start[row, column] == best
            assert found.distance[row, column] == pytest.approx(all_apart[best], abs=1e-9)
            assert found.share[row, column] == np.mean(np.array(all_apart) < threshold[column])


@pytest.mark.parametrize("match", ["znorm", "raw"])
def test_windows_that_are_mostly_gaps_are_no_part_of_the_share(match):
    whole = ragged(5, [30, 24, 41, 12, 19])
    gone = np.random.default_rng(5).random(whole.observed.shape) < 0.45
    series = Series(whole.values, whole.lengths, whole.observed & ~gone)
    patterns, threshold = ragged(6, [12, 12]).values[:, 0], np.array([0.9, 0.8])
    found = nearest(series, 1, patterns, np.zeros(2), threshold, match=match, locality=None)
    left_out = 0
    for row, length in enumerate(series.lengths):
        starts = range(length - 11)
        seen = [place for place in starts if series.observed[row, 1, place : place + 12].sum() >= 6]
        left_out += len(starts) - len(seen)
        for column, pattern in enumerate(patterns):
            near = [
                apart(series.values[row, 1, place : place + 12], pattern, match) < threshold[column]
                for place in seen
            ]
            assert found.share[row, column] == (np.mean(near) if near else 0.0)
    assert left_out


def test_a_case_alone_is_matched_as_in_company(monkeypatch):
    series = ragged(3, [40, 22, 31, 7, 33])
    patterns = ragged(4, [9] * 5).values[:, 0]
    setting = {"relative": np.full(5, 0.4), "threshold": np.full(5, 0.5), "match": "znorm", "locality": 0.3}
    together = nearest(series, 0, patterns, **setting)
    monkeypatch.setattr(matching, "_CHUNK", 1)
    for row in range(len(series)):
        alone = nearest(series.select([row]), 0, patterns, **setting)
        assert np.array_equal(alone.start[0], together.start[row])
        assert np.array_equal(alone.distance[0], together.distance[row])
        assert np.array_equal(alone.share[0], together.share[row])


def test_windows_that_are_mostly_gaps_come_last():
    values = np.zeros((2, 1, 40))
    ramp = np.arange(10.0)
    values[:, 0, 2:12], values[:, 0, 25:35] = ramp, ramp**2
    observed = np.ones(values.shape, dtype=bool)
    observed[1, 0, 1:8] = False
    found = nearest(
        Series(values, np.array([40, 40]), observed),
        0,
        ramp[None],
        np.zeros(1),
        np.zeros(1),
        match="znorm",
        locality=None,
    )
    assert found.start[0, 0] == 2
    assert found.start[1, 0] >= 3
    assert 0 < found.distance[1, 0] < 1


def test_a_flat_window_is_neither_like_nor_unlike():
    found = distances(np.full((1, 8), 3.0), np.array([[0.0, 1.0, 0.0]]), "znorm")
    assert np.array_equal(found, np.ones((1, 1, 6)))


def test_contents_are_means_of_equal_parts():
    series = ragged(5, [50, 50], n_channels=3)
    start, end = np.array([[4, 0], [18, 43]]), np.array([[36, 7], [50, 50]])
    found = contents(series, np.array([2, 0]), start, end, 16)
    # 32 points: means of neighbours. 7 points: means of the points, each seven-sixteenths of a part long.
    np.testing.assert_allclose(found[0, 0], series.values[0, 2, 4:36].reshape(16, 2).mean(1), atol=1e-12)
    repeated = np.repeat(series.values[1, 0, 43:50], 16).reshape(16, 7).mean(1)
    np.testing.assert_allclose(found[1, 1], repeated, atol=1e-12)
