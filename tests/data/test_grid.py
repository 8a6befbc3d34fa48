import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqattn.data.grid import Grid, find_grid, spread, spread_ties
from seqattn.data.sequences import Sequences
from seqattn.errors import DataError


def times_on(spacing: float, n: int = 4000, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).geometric(0.02, n)) * spacing


@pytest.mark.parametrize("spacing", [1.0, 60.0, 0.001, 1 / 3600, 2.0**-13, 7 / 365.25, 1 / 60000, 0.25, 3.7])
def test_the_spacing_of_rounded_times_is_found(spacing):
    times = times_on(spacing)
    grid = find_grid(np.diff(times), times[-1])
    assert grid is not None
    assert grid.spacing == pytest.approx(spacing, rel=1e-9)
    assert grid.share == 1.0


def test_a_grid_behind_float32_rounding_is_found():
    times = times_on(7 / 365, n=300).astype(np.float32).astype(np.float64)
    grid = find_grid(np.diff(times), times[-1])
    assert grid is not None
    assert grid.spacing == pytest.approx(7 / 365, rel=1e-5)


def test_the_coarsest_spacing_is_reported():
    times = times_on(1.0) * 5
    assert find_grid(np.diff(times), times[-1]).spacing == 5.0


def test_some_gaps_off_the_grid_do_not_hide_it():
    rng = np.random.default_rng(1)
    times = times_on(1.0)
    odd = rng.random(len(times)) < 0.02
    times = times + odd * rng.random(len(times)) * 0.9
    grid = find_grid(np.diff(times), times[-1])
    assert grid.spacing == pytest.approx(1.0, rel=1e-3)
    assert 0.9 <= grid.share < 1.0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["exponential", "lognormal", "uniform"])
def test_continuous_times_have_no_grid(kind, seed):
    rng = np.random.default_rng(seed)
    gaps = {
        "exponential": rng.exponential(1.0, 500),
        "lognormal": rng.lognormal(0.0, 3.0, 500),
        "uniform": rng.uniform(0.7, 0.8, 500),
    }[kind]
    times = np.cumsum(gaps)
    assert find_grid(np.diff(times), times[-1]) is None


def test_too_few_gaps_tell_nothing():
    assert find_grid(np.array([1.0, 2.0, 3.0]), 6.0) is None


def test_ties_count_as_on_the_grid():
    assert find_grid(np.array([0.0, 0.0, 1.0, 2.0, 3.0, 5.0]), 11.0) == Grid(1.0, 1.0)


@given(st.integers(0, 100), st.integers(1, 60))
@settings(max_examples=50)
def test_spread_times_stay_in_their_cells_and_in_order(seed, n):
    rng = np.random.default_rng(seed)
    offsets = np.array([0, n // 3, n])
    times = np.concatenate([np.sort(rng.integers(0, 20, size)) for size in np.diff(offsets)]).astype(float)
    limits = np.array([19.25, np.inf])
    moved = spread(times, offsets, limits, 1.0, rng)
    assert np.array_equal(np.floor(moved), times)
    for begin, end, limit in zip(offsets[:-1], offsets[1:], limits, strict=True):
        assert np.all(np.diff(moved[begin:end]) >= 0)
        assert np.all(moved[begin:end] <= limit)


@given(st.integers(0, 100), st.integers(1, 60), st.sampled_from([0.5, 3.0]))
@settings(max_examples=50)
def test_tied_times_part_and_the_others_stay(seed, n, spacing):
    rng = np.random.default_rng(seed)
    offsets = np.array([0, n // 2, n])
    times = np.concatenate([np.sort(rng.integers(0, 10, size)) for size in np.diff(offsets)]).astype(float)
    moved = spread_ties(times, offsets, np.array([np.inf, np.inf]), spacing, rng)
    for begin, end in itertools.pairwise(offsets):
        old, new = times[begin:end], moved[begin:end]
        first = np.diff(old, prepend=-1.0) > 0
        assert np.array_equal(new[first], old[first])
        assert np.all(np.diff(new) > 0)
        assert np.all((new - old < spacing) & (new >= old))


def on_grid(window="last_event") -> Sequences:
    pairs = [(times_on(1.0, 50, seed), np.arange(50) % 3) for seed in range(4)]
    return Sequences.from_lists(pairs, window=window)


def test_jitter_is_undone_by_rounding_down():
    data = on_grid()
    moved = data.jitter(3)
    assert np.array_equal(np.floor(moved.times), data.times)
    assert not np.any(moved.times == data.times)
    assert np.array_equal(moved.types, data.types)


def test_jitter_moves_windows_that_came_from_events():
    moved = on_grid().jitter(0)
    assert np.array_equal(moved.start, moved.times[moved.offsets[:-1]])
    assert np.array_equal(moved.end, moved.times[moved.offsets[1:] - 1])


def test_jitter_keeps_given_windows_and_stays_inside():
    data = on_grid(window=(0, "max"))
    moved = data.jitter(0)
    assert np.array_equal(moved.start, data.start)
    assert np.array_equal(moved.end, data.end)
    assert moved.times.max() == data.times.max()


def test_jitter_is_uniform_within_the_cell():
    times = times_on(1.0, 20_000)
    moved = Sequences.from_lists([(times, np.zeros(20_000, int))]).jitter(1)
    part = np.sort(moved.times - times)
    # Kolmogorov's distance to the uniform law stays below 1.95 / sqrt(n) with probability 0.999.
    assert np.abs(part - (np.arange(20_000) + 0.5) / 20_000).max() < 1.95 / np.sqrt(20_000)


def test_jitter_repeats_with_its_seed_and_leaves_continuous_times_alone():
    data = on_grid()
    assert np.array_equal(data.jitter(1).times, data.jitter(1).times)
    assert not np.array_equal(data.jitter(1).times, data.jitter(2).times)
    smooth = Sequences.from_lists([(np.cumsum(np.random.default_rng(0).random(50)), np.zeros(50, int))])
    assert smooth.jitter(1) is smooth


def test_ties_without_any_positive_gap_cannot_be_spread():
    with pytest.raises(DataError, match="no grid cell"):
        Sequences.from_lists([([1.0, 1.0], [0, 1])], ties="jitter")
