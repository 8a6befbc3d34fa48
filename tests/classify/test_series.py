"""Scaling, gaps, shortening and differences against loops over single points."""

from __future__ import annotations

import numpy as np
import pytest
from planted import ragged, scaled

from seqattn.classify.series import Scaling, Series
from seqattn.data.panels import Panel

NAN = np.nan


def equal(left: Series, right: Series) -> bool:
    """Return whether two series are the same bit by bit."""
    return all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in vars(Series)["__match_args__"]
    )


def test_level_and_spread_are_those_of_all_finite_training_points():
    panel = ragged(0, [9, 14, 30, 11], gaps=0.3)
    found = Scaling.of(panel, 1024)
    for channel in range(panel.n_channels):
        points = np.concatenate([case[channel] for case in panel.series])
        assert found.mean[channel] == pytest.approx(np.nanmean(points), rel=1e-12)
        assert found.spread[channel] == pytest.approx(np.nanstd(points), rel=1e-12)
    new = ragged(1, [20, 5])
    for case, values in enumerate(found.apply(new).values):
        known = new.series[case]
        expected = (known - found.mean[:, None]) / found.spread[:, None]
        np.testing.assert_allclose(values[:, : known.shape[1]], expected, rtol=1e-12)
        assert (values[:, known.shape[1] :] == 0).all()


def test_a_level_far_from_zero_costs_no_digits():
    far = Panel([np.array([[0.0, 1.0, 2.0, 3.0]]) + 1e9])
    assert Scaling.of(far, 10).spread[0] == pytest.approx(np.sqrt(1.25), rel=1e-6)


def test_channels_that_never_change_or_were_never_seen_are_constant():
    panel = Panel([[[3.0, 3.0, NAN], [NAN, NAN, NAN], [1.0, 2.0, 1.0]], [[3.0, 3.0], [NAN, NAN], [2.0, 2.0]]])
    found = Scaling.of(panel, 10)
    assert found.is_constant.tolist() == [True, True, False]
    assert found.spread[:2].tolist() == [1.0, 1.0]
    assert found.mean[:2].tolist() == [3.0, 0.0]
    series = found.apply(Panel([[[5.0, NAN], [7.0, 8.0], [NAN, NAN]]]))
    assert series.values[0, 0].tolist() == [2.0, 2.0]
    assert series.values[0, 1].tolist() == [7.0, 8.0]
    assert series.values[0, 2].tolist() == [0.0, 0.0]
    assert series.observed[0].tolist() == [[True, False], [True, True], [False, False]]


def test_rounding_does_not_make_a_constant_channel_change():
    assert Scaling.of(Panel([[[0.1] * 7]] * 3), 10).is_constant.all()


def test_gaps_are_straight_lines_and_ends_are_held():
    own = Scaling(np.zeros(1), np.ones(1), np.array([False]), 1, 9)
    found = own.apply(Panel([[[NAN, NAN, 2.0, NAN, NAN, 8.0, 5.0, NAN, 1.0]]]))
    assert found.values[0, 0].tolist() == [2.0, 2.0, 2.0, 4.0, 6.0, 8.0, 5.0, 3.0, 1.0]
    assert found.observed[0, 0].tolist() == [False, False, True, False, False, True, True, False, True]
    assert not found.is_whole


@pytest.mark.parametrize("extra", [1, 40])
def test_missing_points_at_the_end_do_not_count(extra):
    panel = ragged(3, [12, 7, 20], gaps=0.2)
    padded = Panel([np.pad(case, ((0, 0), (0, extra)), constant_values=NAN) for case in panel.series])
    assert equal(scaled(panel), scaled(padded))
    assert scaled(padded).lengths.tolist() == [12, 7, 20]


def test_a_case_without_any_value_has_one_point_that_was_not_there():
    found = scaled(Panel([[[1.0, 2.0]], [[NAN, NAN]]]))
    assert found.lengths.tolist() == [2, 1]
    assert found.observed.tolist() == [[[True, True]], [[False, False]]]


@pytest.mark.parametrize(("most", "factor"), [(30, 1), (29, 2), (15, 2), (14, 3), (4, 8)])
def test_long_series_become_means_of_neighbours_with_one_factor_for_all(most, factor):
    panel = ragged(4, [30, 11, 16], gaps=0.4)
    own = Scaling.of(panel, most)
    assert (own.factor, own.length) == (factor, -(-30 // factor))
    found, full = own.apply(panel), Scaling(own.mean, own.spread, own.is_constant, 1, 30)
    for case, given in enumerate(panel.series):
        length = -(-given.shape[1] // factor)
        assert found.lengths[case] == length
        plain = (given - full.mean[:, None]) / full.spread[:, None]
        for channel in range(panel.n_channels):
            for place in range(length):
                part = plain[channel, place * factor : (place + 1) * factor]
                is_there = np.isfinite(part).any()
                assert found.observed[case, channel, place] == is_there
                if is_there:
                    assert found.values[case, channel, place] == pytest.approx(np.nanmean(part), abs=1e-12)


def test_differences_are_of_neighbours_that_were_both_there():
    panel = ragged(5, [9, 14, 6], gaps=0.3)
    plain = scaled(panel)
    found = plain.differences()
    assert np.array_equal(found.values[:, :3], plain.values)
    assert np.array_equal(found.observed[:, :3], plain.observed)
    for case, length in enumerate(plain.lengths):
        for channel in range(3):
            steps, there = found.values[case, 3 + channel], found.observed[case, 3 + channel]
            assert steps[0] == 0
            assert there[0] == plain.observed[case, channel, 0]
            for place in range(1, length):
                before, now = plain.values[case, channel, place - 1 : place + 1]
                assert steps[place] == now - before
                assert there[place] == plain.observed[case, channel, place - 1 : place + 1].all()
            assert not steps[length:].any()
            assert not there[length:].any()


def test_cases_do_not_depend_on_those_beside_them():
    panel = ragged(6, [9, 30, 6, 17], gaps=0.2)
    together, own = scaled(panel).differences(), Scaling.of(panel, 1024)
    for case in range(len(panel)):
        assert equal(own.apply(panel.select([case])).differences(), together.select([case]))


def test_counts_of_points_before_each_place():
    series = scaled(ragged(7, [9, 14], gaps=0.4))
    for place in range(15):
        assert np.array_equal(series.counted[..., place], series.observed[..., :place].sum(-1))


def test_a_scaling_comes_back_from_its_arrays():
    panel = ragged(8, [9, 30], gaps=0.2)
    own = Scaling.of(panel, 12)
    again = Scaling.from_arrays(own.to_arrays())
    assert equal(own.apply(panel), again.apply(panel))
    assert (again.factor, again.length) == (own.factor, own.length)


@pytest.mark.parametrize("unit", [1.0, 2.0**1000, 2.0**-1000])
def test_units_near_the_end_of_the_numbers_change_no_bit_of_scaled_values(unit):
    panel = ragged(0, [9, 14, 30, 11], gaps=0.3)
    large = Panel([case * unit for case in panel.series])
    found, plain = Scaling.of(large, 1024), Scaling.of(panel, 1024)
    assert np.array_equal(found.mean, plain.mean * unit)
    assert np.array_equal(found.spread, plain.spread * unit)
    assert equal(found.apply(large), plain.apply(panel))


def test_the_largest_numbers_have_a_mean_and_a_deviation():
    most = np.finfo(float).max
    found = Scaling.of(Panel([np.array([[most, -most, most, -most]])]), 10)
    assert (found.mean[0], found.spread[0]) == (0.0, most)


def test_values_beyond_a_million_deviations_count_as_that_far():
    scaling = Scaling.of(Panel([np.array([[-1.0, 1.0]])]), 10)
    new = np.array([[-np.finfo(float).max, -2e6, -9e5, NAN, 9e5, 1e300]])
    assert scaling.apply(Panel([new])).values[0, 0].tolist() == [-1e6, -1e6, -9e5, 0.0, 9e5, 1e6]


def test_training_values_are_never_cut():
    # The most that one point among n can lie from the mean is the root of n - 1 deviations.
    values = np.zeros((1, 1, 100_000))
    values[0, 0, 7] = 1e300
    found = Scaling.of(Panel(values), 100_000).apply(Panel(values)).values
    assert found.max() == pytest.approx(np.sqrt(99_999), rel=1e-9)
