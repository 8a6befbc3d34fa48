"""Statistics of intervals against numpy.polyfit, and what intervals say about classes."""

from __future__ import annotations

import numpy as np
import pytest
from planted import noise, ragged, scaled, with_level

from seqattn.classify.series import Series
from seqattn.classify.values import Intervals, information_gain
from seqattn.data.panels import Panel

PARTS = (1, 2, 4, 8)


def intervals_of(series: Series, granularities: tuple[int, ...] = PARTS, **changes) -> Intervals:
    """Return intervals of series whose labels alternate."""
    given = {
        "labels": np.arange(len(series)) % 2,
        "constant": np.zeros(series.n_channels, dtype=bool),
        "rng": np.random.default_rng(0),
        **changes,
    }
    return Intervals.of(series, given["labels"], granularities, given["constant"], given["rng"])


def by_polyfit(series: Series, case: int, channel: int, first: int, last: int) -> list[float]:
    """Return mean, deviation and slope times length of the points of an interval that were there."""
    there = series.observed[case, channel, first:last]
    points, times = series.values[case, channel, first:last][there], np.arange(first, last)[there]
    if not there.any():
        return [np.nan] * 3
    slope = np.polyfit(times - times.mean(), points, 1)[0] if len(points) > 1 else 0.0
    return [points.mean(), points.std(), slope * (last - first)]


@pytest.mark.parametrize("gaps", [0.0, 0.5])
@pytest.mark.parametrize("lengths", [[64] * 3, [64, 33, 130, 24, 9]], ids=["equal", "ragged"])
def test_statistics_equal_a_fit_per_interval(lengths, gaps):
    series = scaled(ragged(0, lengths, gaps=gaps))
    found = intervals_of(series)
    raw, shares = found.raw(series), found.observed(series)
    assert raw.shape == (len(lengths), 3 * sum(PARTS), 3)
    for case, length in enumerate(lengths):
        length = int(series.lengths[case])
        for row, (channel, parts, place) in enumerate(
            zip(found.channel, found.parts, found.place, strict=True)
        ):
            first, last = length * place // parts, length * (place + 1) // parts
            expected = by_polyfit(series, case, channel, first, last)
            np.testing.assert_allclose(raw[case, row], expected, atol=1e-9)
            assert shares[case, row] == series.observed[case, channel, first:last].mean()


def test_a_spike_leaves_the_intervals_after_it_as_they_are():
    values = np.random.default_rng(1).normal(size=(2, 1, 64))
    values[1, 0, 40:48] = 0.3
    values[:, 0, 3] = 1e7
    series = Series(values, np.array([64, 64]), np.ones(values.shape, dtype=bool))
    found = intervals_of(series)
    raw = found.raw(series)
    for row in np.flatnonzero(found.place > 0):
        parts, place = found.parts[row], found.place[row]
        for case in range(2):
            expected = by_polyfit(series, case, 0, 64 * place // parts, 64 * (place + 1) // parts)
            np.testing.assert_allclose(raw[case, row], expected, atol=1e-9)


def test_a_ramp_has_its_slope_at_every_granularity():
    values = (2.0 - 0.25 * np.arange(48.0)).reshape(1, 1, 48).repeat(2, axis=0)
    series = Series(values, np.array([48, 48]), np.ones(values.shape, dtype=bool))
    found = intervals_of(series)
    np.testing.assert_allclose(found.raw(series)[0, :, 2], -0.25 * 48 / found.parts, atol=1e-11)


def test_intervals_without_change_have_no_deviation_and_no_slope():
    values = np.full((2, 1, 40), 0.1 + 0.2)
    values[0, 0, 20:] = -1e6 / 3
    series = Series(values, np.array([40, 40]), np.ones(values.shape, dtype=bool))
    found = intervals_of(series, (2, 4))
    assert not found.raw(series)[..., 1].any()
    assert np.abs(found.raw(series)[..., 2]).max() < 1e-6


def test_tokens_are_in_units_of_training_deviations_and_0_where_nothing_was_there():
    panel = ragged(2, [64, 33, 130, 24], gaps=0.3)
    empty = panel.series[1].copy()
    empty[1] = np.nan
    series = scaled(Panel([panel.series[0], empty, *panel.series[2:]]))
    found = intervals_of(series)
    tokens, raw = found.tokens(series), found.raw(series)
    assert np.isnan(raw[1, found.channel == 1]).all()
    assert not tokens[1, found.channel == 1].any()
    assert not found.observed(series)[1, found.channel == 1].any()
    others = raw[:, found.channel != 1]
    expected = (others - np.nanmean(others, axis=0)) / np.nanstd(others, axis=0)
    np.testing.assert_allclose(tokens[:, found.channel != 1], np.nan_to_num(expected), atol=1e-9)


def test_parts_of_fewer_than_three_points_are_left_out_except_the_first():
    series = scaled(ragged(3, [12, 12, 11]))
    assert set(intervals_of(series, (1, 2, 4, 8)).parts) == {1, 2, 4}
    assert set(intervals_of(series, (8, 16)).parts) == {8}
    assert len(intervals_of(series, (2, 2, 4))) == 3 * (2 + 4)


def test_cases_do_not_depend_on_those_beside_them():
    series = scaled(ragged(4, [40, 22, 31, 60], gaps=0.3))
    found = intervals_of(series)
    for case in range(4):
        assert np.array_equal(found.tokens(series.select([case]))[0], found.tokens(series)[case])


def test_intervals_come_back_from_their_arrays():
    series = scaled(ragged(5, [40, 22, 31, 60], gaps=0.3))
    found = intervals_of(series)
    again = Intervals.from_arrays(found.to_arrays())
    assert np.array_equal(again.tokens(series), found.tokens(series))
    assert np.array_equal(again.prior, found.prior)


# -- what they say about classes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_cases", "n_classes"), [(15, 3), (40, 2), (60, 3), (150, 6)])
def test_what_separates_the_classes_takes_all_uncertainty_away(n_cases, n_classes):
    labels = np.arange(n_cases) % n_classes
    features = labels[:, None] * 10 + np.random.default_rng(0).random((n_cases, 4))
    gain = information_gain(features, labels, np.random.default_rng(1))
    np.testing.assert_allclose(gain, 1.0, atol=1e-12)


@pytest.mark.parametrize(("n_cases", "n_classes", "most"), [(15, 3, 0.07), (30, 6, 0.04), (150, 26, 0.01)])
def test_noise_says_next_to_nothing(n_cases, n_classes, most):
    """Without the correction for chance the means would be 0.16, 0.30 and 0.16; what is left is the cut at 0."""
    rng = np.random.default_rng(2)
    labels = rng.permutation(np.arange(n_cases) % n_classes)
    gain = information_gain(rng.normal(size=(n_cases, 4000)), labels, rng)
    assert gain.mean() < most
    assert (gain == 0).mean() == pytest.approx(0.5, abs=0.1)


def test_one_class_and_equal_values_say_nothing():
    features = np.random.default_rng(3).normal(size=(20, 3))
    rng = np.random.default_rng(4)
    assert not information_gain(features, np.zeros(20, dtype=np.int64), rng).any()
    assert not information_gain(np.ones((20, 3)), np.arange(20) % 2, rng).any()


def test_being_missing_can_say_everything():
    labels = np.arange(40) % 2
    features = np.where(labels[:, None] == 1, np.nan, np.random.default_rng(5).normal(size=(40, 3)))
    gain = information_gain(features, labels, np.random.default_rng(6))
    np.testing.assert_allclose(gain, 1.0, atol=1e-12)


def test_names_of_classes_and_any_rising_map_of_values_change_nothing():
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 60)
    features = rng.normal(size=(60, 5)) + labels[:, None]
    plain = information_gain(features, labels, np.random.default_rng(8))
    assert (plain > 0.1).all()
    bent = information_gain(np.exp(features), labels, np.random.default_rng(8))
    renamed = information_gain(features, np.array([2, 0, 1])[labels], np.random.default_rng(8))
    assert np.array_equal(bent, plain)
    np.testing.assert_allclose(renamed, plain, atol=1e-12)


def test_constant_channels_have_no_prior_and_the_best_interval_comes_first():
    panel = with_level(0, n_cases=300, height=0.5)
    series = scaled(panel)
    found = intervals_of(series, labels=panel.labels)
    assert (found.channel[0], found.parts[0], found.place[0]) == (1, 4, 1)
    assert (np.diff(found.prior) <= 0).all()
    assert found.gain[0].argmax() == 0
    silent = intervals_of(series, labels=panel.labels, constant=np.array([False, True, False]))
    assert not silent.prior[silent.channel == 1].any()
    assert silent.channel[0] != 1


def test_labels_that_mean_nothing_leave_small_priors():
    panel = noise(9, n_cases=150)
    found = intervals_of(scaled(panel), labels=panel.labels)
    assert found.prior.mean() < 0.05
