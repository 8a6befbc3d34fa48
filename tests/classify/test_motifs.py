"""The discovery of motifs on data with planted patterns, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from seqattn.classify.matching import distances
from seqattn.classify.motifs import MotifShapes
from seqattn.classify.series import Series

SETTING = {
    "window_fractions": (0.3,),
    "motifs_per_cell": 2,
    "match": "znorm",
    "locality": None,
    "profile_cap": 4000,
    "shape_tokens": 64,
}


def series_of(values: np.ndarray) -> Series:
    """Return series without gaps."""
    return Series(values, np.full(len(values), values.shape[2]), np.ones(values.shape, dtype=bool))


def find(series: Series, labels: np.ndarray, seed: int = 0, **changes) -> MotifShapes:
    """Return motifs with small settings."""
    setting = {**SETTING, "is_constant": np.zeros(series.n_channels, bool), **changes}
    return MotifShapes.find(series, labels, int(labels.max()) + 1, rng=np.random.default_rng(seed), **setting)


def noise(seed: int, n_cases: int = 16, n_channels: int = 3, time: int = 100) -> np.ndarray:
    """Return white noise."""
    return np.random.default_rng(seed).normal(size=(n_cases, n_channels, time))


def planted(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return noise, labels, and where each case of class 1 has 30 points of a pattern in channel 2."""
    rng = np.random.default_rng([seed, 1])
    values, labels, places = noise(seed), np.arange(16) % 2, rng.integers(0, 71, 16)
    pattern = 2 * np.sin(np.linspace(0, 3 * np.pi, 30)) + np.linspace(-1, 1, 30)
    for row in np.flatnonzero(labels):
        values[row, 2, places[row] : places[row] + 30] = pattern + 0.2 * rng.normal(size=30)
    return values, labels, places


@pytest.mark.slow
def test_planted_patterns_are_found():
    hits, priors, unplanted = 0, [], []
    for seed in range(50):
        values, labels, places = planted(seed)
        shapes = find(series_of(values), labels)
        top = np.flatnonzero(shapes.label == 1)[0]
        overlap = 30 - abs(shapes.start[top] - places[shapes.source[top]])
        hits += shapes.channel[top] == 2 and overlap >= 24
        priors.append(shapes.prior[top])
        unplanted.append(find(series_of(noise(seed)), labels).prior.max())
    assert hits >= 48
    assert min(priors) > max(unplanted)


def test_own_case_does_not_count():
    # Nothing is shared: with its own case, at distance 0 among two, a shape would seem twice as near to its class.
    values = np.random.default_rng(2).normal(size=(4, 1, 60)).cumsum(axis=2)
    shapes = find(series_of(values), np.array([0, 0, 1, 1]))
    apart = shapes.match(series_of(values)).content[..., 16]
    for row in range(len(shapes)):
        own = [case for case in range(4) if case // 2 == shapes.label[row] and case != shapes.source[row]]
        other = [case for case in range(4) if case // 2 != shapes.label[row]]
        assert shapes.inside[row] == pytest.approx(apart[own, row].mean())
        assert shapes.outside[row] == pytest.approx(apart[other, row].mean())
        expected = max(0.0, 1 - shapes.inside[row] / shapes.outside[row]) / 6
        assert shapes.prior[row] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_low_quantiles_in_another_case(seed):
    values = np.random.default_rng(2).normal(size=(4, 1, 60)).cumsum(axis=2)
    shapes = find(series_of(values), np.array([0, 0, 1, 1]), seed)
    for row, pattern in enumerate(shapes.patterns):
        other = values[[shapes.source[row] ^ 1], 0]
        low, high = np.quantile(distances(other, pattern[None], "znorm"), [0.05, 0.1])
        assert low <= shapes.threshold[row] <= high


def test_a_shape_that_all_classes_share_has_no_prior():
    twins = noise(3, 2)
    values = np.concatenate([twins, twins])
    shapes = find(series_of(values), np.array([0, 0, 1, 1]))
    assert len(shapes)
    assert np.array_equal(shapes.prior, np.zeros(len(shapes)))
    everywhere = find(series_of(np.repeat(noise(4, 1), 4, axis=0)), np.array([0, 0, 1, 1]))
    assert np.array_equal(everywhere.prior, np.zeros(len(everywhere)))


def test_classes_of_one_case_have_no_shapes_unless_all_are_such():
    values = noise(5, 4)
    assert set(find(series_of(values), np.array([0, 0, 0, 1])).label) == {0}
    alone = find(series_of(values), np.arange(4))
    assert set(alone.label) == {0, 1, 2, 3}
    assert np.array_equal(alone.prior, np.zeros(len(alone)))


def test_shapes_do_not_depend_on_names_order_or_threads():
    values, labels, _ = planted(6)
    shapes = find(series_of(values), labels)
    threads = find(series_of(values), labels, n_jobs=3)
    for name, value in shapes.to_arrays().items():
        assert np.array_equal(threads.to_arrays()[name], value, equal_nan=name == "locality")
    order = np.random.default_rng(7).permutation(16)
    moved = find(series_of(values[order]), labels[order])
    assert np.array_equal(order[moved.source], shapes.source)
    assert np.array_equal(moved.start, shapes.start)
    np.testing.assert_allclose(moved.threshold, shapes.threshold, atol=1e-9)
    for other in (find(series_of(values), 1 - labels), find(series_of(values[:, ::-1]), labels)):
        np.testing.assert_allclose(np.sort(other.prior), np.sort(shapes.prior), atol=1e-9)


def test_a_capped_class_is_drawn_by_content_and_seed():
    values, labels, _ = planted(8)
    setting = {"profile_cap": 400, "shape_tokens": 256}
    shapes = find(series_of(values), labels, **setting)
    assert max(len(set(shapes.source[shapes.label == label])) for label in (0, 1)) <= 4
    order = np.random.default_rng(9).permutation(16)
    moved = find(series_of(values[order]), labels[order], **setting)
    assert np.array_equal(order[moved.source], shapes.source)
    other = find(series_of(values), labels, seed=1, **setting)
    assert set(other.source) != set(shapes.source)


def test_no_two_shapes_of_a_class_and_channel_are_alike():
    values, labels, _ = planted(10)
    shapes = find(series_of(values), labels, motifs_per_cell=5)
    assert len(shapes) > 10
    units = [
        (pattern - pattern.mean()) / np.linalg.norm(pattern - pattern.mean()) for pattern in shapes.patterns
    ]
    for one in range(len(shapes)):
        for two in range(one):
            if (shapes.label[one], shapes.channel[one]) == (shapes.label[two], shapes.channel[two]):
                assert np.correlate(units[one], units[two], "full").max() <= 0.95 + 1e-9


def test_classes_take_turns_and_the_best_come_first():
    values, labels, _ = planted(11)
    shapes = find(series_of(values), labels, shape_tokens=7)
    assert shapes.label.tolist() == [0, 1, 0, 1, 0, 1, 0] or shapes.label.tolist() == [1, 0] * 3 + [1]
    everything = find(series_of(values), labels, shape_tokens=10_000)
    for label in (0, 1):
        own = everything.prior[everything.label == label]
        assert np.array_equal(own, np.sort(own)[::-1])
        assert np.array_equal(shapes.prior[shapes.label == label], own[: (shapes.label == label).sum()])


def test_patterns_lie_where_the_shapes_say():
    values, labels, _ = planted(12)
    shapes = find(series_of(values), labels, window_fractions=(0.1, 0.3))
    assert set(shapes.window) == {10, 30}
    for row, pattern in enumerate(shapes.patterns):
        source, channel, start = shapes.source[row], shapes.channel[row], shapes.start[row]
        assert np.array_equal(pattern, values[source, channel, start : start + shapes.window[row]])
        assert labels[source] == shapes.label[row]
    matches = shapes.match(series_of(values))
    own = matches.content[shapes.source, np.arange(len(shapes)), 16]
    np.testing.assert_allclose(own, 0, atol=1e-9)
    np.testing.assert_allclose(matches.spans[shapes.source, np.arange(len(shapes)), 0], shapes.start / 100)


def test_constant_channels_and_gaps_have_no_motifs():
    values, labels, _ = planted(13)
    shapes = find(series_of(values), labels, is_constant=np.array([False, True, False]))
    assert set(shapes.channel) == {0, 2}
    observed = np.ones(values.shape, dtype=bool)
    observed[:, 0], observed[:, 2, :50] = False, False
    gaps = find(Series(values, np.full(16, 100), observed), labels)
    assert set(gaps.channel) == {1, 2}
    # Half of the 30 points must be there: a window may start 15 points before the gap ends.
    assert gaps.start[gaps.channel == 2].min() >= 35
    assert gaps.match(Series(values, np.full(16, 100), observed)).observed.min() >= 0.5


def test_cases_without_the_channel_say_nothing_of_the_prior():
    values, labels, _ = planted(19)
    observed = np.ones(values.shape, dtype=bool)
    observed[[3, 6], 2] = False
    values[[3, 6], 2] = 0.0
    gaps = Series(values, np.full(16, 100), observed)
    shapes = find(gaps, labels)
    there = np.setdiff1d(np.arange(16), [3, 6])
    matches = shapes.match(gaps)
    for row in np.flatnonzero(shapes.channel == 2):
        assert not matches.content[[3, 6], row].any()
        assert not matches.observed[[3, 6], row].any()
        other = there[labels[there] != shapes.label[row]]
        assert shapes.outside[row] == pytest.approx(matches.content[other, row, 16].mean())


def test_a_case_shorter_than_the_window_is_matched_whole():
    values, labels, _ = planted(14)
    shapes = find(series_of(values), labels)
    short = series_of(values[:3, :, :12])
    matches = shapes.match(short)
    assert np.array_equal(matches.spans, np.broadcast_to([0.0, 1.0], matches.spans.shape))
    np.testing.assert_allclose(matches.observed, 12 / 30)
    assert np.isfinite(matches.content).all()


def test_padding_and_company_change_nothing():
    values, labels, _ = planted(15)
    lengths = np.random.default_rng(16).integers(50, 100, 16)
    inside = np.arange(100) < lengths[:, None, None]
    ragged = Series(np.where(inside, values, 0.0), lengths, np.broadcast_to(inside, values.shape))
    shapes = find(ragged, labels, locality=0.2)
    assert (shapes.start + shapes.window <= lengths[shapes.source]).all()
    together = shapes.match(ragged)
    for row in (0, 7, 15):
        alone = shapes.match(ragged.select([row]))
        assert np.array_equal(alone.spans[0], together.spans[row])
        np.testing.assert_allclose(alone.content[0], together.content[row], atol=1e-9)
        assert np.array_equal(alone.observed[0], together.observed[row])


@pytest.mark.parametrize("locality", [None, 0.15])
def test_shapes_come_back_from_arrays(locality):
    values, labels, _ = planted(17)
    shapes = find(series_of(values), labels, window_fractions=(0.1, 0.2), locality=locality, match="raw")
    back = MotifShapes.from_arrays(shapes.to_arrays())
    assert (back.measure, back.locality) == ("raw", locality)
    assert np.array_equal(back.match(series_of(values)).content, shapes.match(series_of(values)).content)
    empty = find(series_of(values), labels, is_constant=np.ones(3, dtype=bool))
    assert len(MotifShapes.from_arrays(empty.to_arrays())) == 0
    assert empty.match(series_of(values)).content.shape == (16, 0, 19)


def test_progress_is_told_by_cells():
    values, labels, _ = planted(18)
    told: list[str] = []
    find(series_of(values), labels, report=told.append)
    assert told[-1] == "priors: 3 of 3 cells"
    assert "motifs: 6 of 6 cells" in told
