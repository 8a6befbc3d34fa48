"""Dilated shapes against loops over all windows of all cases, and the priors of all shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import noise, ragged, scaled, with_pattern

from seqattn.classify import dilated
from seqattn.classify.dilated import DilatedShapes, _others
from seqattn.classify.members import weighed
from seqattn.classify.series import Series
from seqattn.classify.shapes import shape_prior
from seqattn.data.panels import Panel

# Distances are computed in float32, for prototypes with large points in float64.
STEP = 2.0**-18
SETS = {
    "equal": ragged(0, [50] * 7, n_channels=3),
    "ragged": ragged(1, [50, 31, 74, 40, 12, 28, 5], n_channels=3),
    "gappy": ragged(2, [50, 31, 74, 40, 28, 60, 45], n_channels=3, gaps=0.5),
}


def with_priors(shapes: DilatedShapes, series: Series, labels: np.ndarray) -> DilatedShapes:
    """Return shapes of all cases with their priors."""
    return weighed(
        shapes, [len(shapes)], shapes.statistics(series)[0][..., 0], labels, np.full(len(labels), -1)
    )


def draw(panel: Panel, n_shapes: int = 40, seed: int = 0, **changes) -> tuple[DilatedShapes, Series]:
    """Return shapes of a panel with three channels, and its series."""
    series, rng = scaled(panel), np.random.default_rng(seed)
    channels = np.arange(panel.n_channels)
    return DilatedShapes.draw(series, panel.labels, n_shapes, channels, rng, **changes), series


def normed(points: np.ndarray) -> np.ndarray:
    """Return points of channels without level and spread; flat ones are 0."""
    spread = points.std(axis=1, keepdims=True)
    return np.where(
        spread > 1e-4, (points - points.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-4), 0.0
    )


def windows(shapes: DilatedShapes, shape: int, series: Series, case: int) -> list[tuple[np.ndarray, bool]]:
    """Return every window of a case, and whether half of its points were there."""
    own, length = shapes.channels[shape][shapes.channels[shape] >= 0], int(series.lengths[case])
    step = int(shapes.dilation[shape])
    found = []
    for start in range(max(length - (shapes.points - 1) * step, 1)):
        places = np.minimum(start + np.arange(shapes.points) * step, length - 1)
        points = series.values[case][own][:, places]
        if shapes.is_normed[shape]:
            points = normed(points)
        found.append((points, series.observed[case][own][:, places].mean() >= 0.5))
    return found


def by_loop(shapes: DilatedShapes, shape: int, series: Series, case: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of all windows, infinite where too little was there, and which were there."""
    own = (shapes.channels[shape] >= 0).sum()
    pattern = shapes.patterns[shape, :own]
    every = windows(shapes, shape, series, case)
    apart = [((points - pattern) ** 2).mean() if is_there else np.inf for points, is_there in every]
    return np.array(apart), np.array([is_there for _, is_there in every])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("most_channels", [1, 3])
@pytest.mark.parametrize("is_normed", [None, True, False], ids=["drawn", "normed", "raw"])
def test_statistics_equal_a_loop_over_windows(name, most_channels, is_normed):
    shapes, series = draw(SETS[name], most_channels=most_channels, together=3, is_normed=is_normed)
    found, start = shapes.statistics(series)
    for case in range(len(series)):
        for shape in range(len(shapes)):
            apart, is_there = by_loop(shapes, shape, series, case)
            if not is_there.any():
                assert np.isnan(found[case, shape]).all()
                continue
            nearest, place, share = found[case, shape]
            assert nearest == pytest.approx(apart.min(), abs=STEP)
            assert apart[start[case, shape]] == pytest.approx(apart.min(), abs=STEP)
            assert place == start[case, shape] / max(len(apart) - 1, 1)
            certain = ~np.isclose(apart, shapes.threshold[shape], rtol=0, atol=2 * STEP)
            low = (apart < shapes.threshold[shape])[certain].sum() / is_there.sum()
            assert low <= share + 1e-12
            assert share <= low + (~certain).sum() / is_there.sum() + 1e-12


@pytest.mark.parametrize("name", SETS)
def test_thresholds_lie_between_two_distances_in_another_case_of_the_class(name):
    panel = SETS[name]
    shapes, series = draw(panel, most_channels=2)
    for shape in range(len(shapes)):
        candidates = []
        for case in np.flatnonzero(panel.labels == shapes.label[shape]):
            apart, is_there = by_loop(shapes, shape, series, case)
            if case == shapes.source[shape]:
                continue
            ordered = np.sort(apart[is_there])
            ranks = {int(share * (len(ordered) - 1)) for share in np.linspace(0.05, 0.1, 100)}
            candidates += [
                (ordered[rank] + ordered[min(rank + 1, len(ordered) - 1)]) / 2
                for rank in ranks
                if len(ordered)
            ] or [np.inf]
        found = shapes.threshold[shape]
        assert any(found == one or abs(found - one) <= STEP for one in candidates)


def test_no_case_is_its_own_other():
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 1, 2, 0, 2, 2, 3])
    source = np.repeat(np.arange(8), 200)
    others = _others(labels, source, rng)
    assert (labels[others] == labels[source]).all()
    is_single = labels[source] == 3
    assert (others[~is_single] != source[~is_single]).all()
    assert (others[is_single] == source[is_single]).all()
    assert set(others[labels[source] == 2]) == {3, 5, 6}


@pytest.mark.parametrize("name", SETS)
def test_prototypes_are_pieces_of_their_source(name):
    panel = SETS[name]
    shapes, series = draw(panel, most_channels=3)
    assert np.array_equal(shapes.label, panel.labels[shapes.source])
    distances = shapes.statistics(series)[0][..., 0]
    for shape in range(len(shapes)):
        own = shapes.channels[shape][shapes.channels[shape] >= 0]
        assert len(set(own)) == len(own) >= 1
        points, _ = windows(shapes, shape, series, shapes.source[shape])[shapes.start[shape]]
        np.testing.assert_allclose(shapes.patterns[shape, : len(own)], points, atol=1e-12)
        if windows(shapes, shape, series, shapes.source[shape])[shapes.start[shape]][1]:
            assert distances[shapes.source[shape], shape] <= STEP


@pytest.mark.parametrize("name", SETS)
def test_tokens_hold_the_points_and_the_span_of_the_nearest_window(name):
    shapes, series = draw(SETS[name])
    matches = shapes.match(series)
    statistics, start = shapes.statistics(series)
    for case in range(len(series)):
        length = int(series.lengths[case])
        for shape in range(len(shapes)):
            if np.isnan(statistics[case, shape, 0]):
                assert matches.observed[case, shape] == 0
                assert not matches.content[case, shape].any()
                continue
            first, span = start[case, shape], (shapes.points - 1) * shapes.dilation[shape] + 1
            places = np.minimum(first + np.arange(shapes.points) * shapes.dilation[shape], length - 1)
            channel = shapes.channels[shape, 0]
            assert matches.spans[case, shape] == pytest.approx(
                [first / length, min(first + span, length) / length]
            )
            there = series.observed[case, channel, places].mean() * min(length / span, 1.0)
            assert matches.observed[case, shape] == pytest.approx(there)
            points = series.values[case, channel, places] if there else np.zeros(shapes.points)
            assert np.array_equal(matches.content[case, shape, :-3], points)
    is_there = matches.observed > 0
    assert np.array_equal(matches.content[..., -3:][is_there], statistics[is_there])
    assert (matches.spans >= 0).all()
    assert (matches.spans <= 1).all()


@pytest.mark.parametrize("name", SETS)
def test_statistics_do_not_depend_on_the_company(name, monkeypatch):
    shapes, series = draw(SETS[name], n_shapes=64, most_channels=2, together=4)
    together, start = shapes.statistics(series)
    for case in range(len(series)):
        alone, where = shapes.statistics(series.select([case]))
        assert np.array_equal(alone[0], together[case], equal_nan=True)
        assert np.array_equal(where[0], start[case])
    monkeypatch.setattr(dilated, "_BLOCK", 1)
    assert np.array_equal(shapes.statistics(series)[0], together, equal_nan=True)


@pytest.mark.parametrize("is_normed", [True, False])
def test_distances_stay_exact_beside_spikes(is_normed):
    panel = ragged(3, [50, 44, 61, 50], n_channels=3)
    spiky = [case.copy() for case in panel.series]
    for row, case in enumerate(spiky):
        case[row % 3, 7 * row + 5] += 1e5
    shapes, series = draw(
        Panel(spiky, panel.labels), n_shapes=64, most_channels=3, together=8, is_normed=is_normed
    )
    series = Series(series.values * 200, series.lengths, series.observed)
    patterns = shapes.patterns * (1 if is_normed else 200)
    shapes = DilatedShapes.from_arrays({**shapes.to_arrays(), "patterns": patterns})
    assert is_normed or (patterns**2).mean(axis=2).max() > 1e4
    found, start = shapes.statistics(series)
    for case in range(len(series)):
        for shape in range(len(shapes)):
            apart, _ = by_loop(shapes, shape, series, case)
            assert found[case, shape, 0] == pytest.approx(apart.min(), abs=1e-5, rel=1e-5)
            assert apart[start[case, shape]] == pytest.approx(apart.min(), abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("is_normed", [True, False])
def test_the_first_of_equal_windows_is_the_nearest(is_normed):
    wave = np.random.default_rng(4).normal(size=(2, 6))
    # The level of the second part differs by rounding only.
    case = np.concatenate([np.tile(wave, 9), np.tile(wave * 3 / 3 + 1e-15, 9)], axis=1)
    panel = Panel([case, np.concatenate([case, wave, wave], axis=1)], [0, 1])
    shapes, series = draw(panel, n_shapes=128, most_channels=2, together=16, is_normed=is_normed)
    start = shapes.statistics(series)[1]
    assert (start < 6).all()


def test_more_points_in_other_cases_change_no_bit():
    shapes, series = draw(SETS["ragged"], n_shapes=64, most_channels=3, together=16)
    longer = Panel([*SETS["ragged"].series, np.ones((3, 333))], np.append(SETS["ragged"].labels, 0))
    values = np.zeros((8, 3, 333))
    values[:7, :, : series.values.shape[2]] = series.values
    observed = np.zeros(values.shape, dtype=bool)
    observed[:7, :, : series.values.shape[2]] = series.observed
    values[7], observed[7] = longer.series[7], True
    found = shapes.statistics(Series(values, np.append(series.lengths, 333), observed))
    for one, other in zip(found, shapes.statistics(series), strict=True):
        assert np.array_equal(one[:7], other, equal_nan=True)


def test_two_threads_find_the_same_bits():
    shapes, series = draw(SETS["ragged"], n_shapes=64, most_channels=3, together=8)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(shapes.statistics(series))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other, equal_nan=True)


def test_the_seed_decides_and_nothing_else():
    panel = SETS["gappy"]
    first, second, third = (draw(panel, seed=seed)[0].to_arrays() for seed in (1, 1, 2))
    for name, value in first.items():
        assert np.array_equal(value, second[name], equal_nan=True)
    assert not np.array_equal(first["start"], third["start"])


def test_shapes_come_back_from_their_arrays():
    shapes, series = draw(SETS["gappy"], most_channels=2)
    again = DilatedShapes.from_arrays(shapes.to_arrays())
    for one, other in zip(
        vars(shapes.match(series)).values(), vars(again.match(series)).values(), strict=True
    ):
        assert np.array_equal(one, other)


def test_no_shapes_are_no_shapes():
    shapes, series = draw(SETS["equal"], n_shapes=0)
    assert shapes.statistics(series)[0].shape == (7, 0, 3)
    assert shapes.match(series).content.shape[:2] == (7, 0)


def test_flat_windows_have_distance_1_and_divide_by_nothing():
    panel = Panel([np.full((1, 30), 2.0), np.random.default_rng(0).normal(size=(1, 30))], [0, 0])
    shapes, series = draw(panel, is_normed=True)
    found, _ = shapes.statistics(series)
    assert np.isfinite(found).all()
    is_flat = shapes.source == 0
    np.testing.assert_allclose(found[0, ~is_flat, 0], 1.0, atol=1e-9)
    assert not found[0, is_flat, 0].any()


# -- priors ----------------------------------------------------------------------------------------------------


def test_priors_equal_their_formula():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(20) % 3)
    distances = rng.random((20, 50)) * np.where(labels[:, None] == 1, 0.5, 1.0)
    distances[rng.random(distances.shape) < 0.1] = np.nan
    source = rng.integers(0, 20, 50)
    prior, inside, outside = shape_prior(distances, labels, labels[source], source)
    for shape in range(50):
        own = [
            distances[case, shape]
            for case in range(20)
            if labels[case] == labels[source[shape]] and case != source[shape]
        ]
        n_own = np.isfinite(own).sum()
        others = np.nanmean(distances[labels != labels[source[shape]], shape])
        assert inside[shape] == pytest.approx(np.nanmean(own))
        assert outside[shape] == pytest.approx(others)
        expected = n_own / (n_own + 5) * max(1 - np.nanmean(own) / others, 0)
        assert prior[shape] == pytest.approx(expected)
    assert prior.max() > 0.2


def test_the_case_a_shape_comes_from_does_not_count():
    distances = np.array([[0.0], [0.5], [1.0], [1.0]])
    labels, source = np.array([0, 0, 1, 1]), np.array([0])
    prior, inside, _ = shape_prior(distances, labels, np.array([0]), source)
    assert inside[0] == 0.5
    assert prior[0] == pytest.approx(1 / 6 * 0.5)


def test_two_equal_cases_of_two_classes_give_their_shapes_no_prior():
    case = np.random.default_rng(1).normal(size=(1, 40))
    panel = Panel([case, case], ["a", "b"])
    panel = Panel(panel.series, np.array([0, 1]))
    shapes, series = draw(panel)
    assert not with_priors(shapes, series, panel.labels).prior.any()
    # Also with a second case in each class, which is like the shape: the others hold the shape itself.
    near = case + np.random.default_rng(2).normal(size=(1, 40)) * 0.1
    panel = Panel([case, near, case, near], np.array([0, 0, 1, 1]))
    shapes, series = draw(panel)
    assert not with_priors(shapes, series, panel.labels).prior.any()


@pytest.mark.parametrize(("outside", "has_prior"), [(0.9e-3, False), (1.1e-3, True)])
def test_a_shape_that_fits_everybody_has_no_prior(outside, has_prior):
    distances = np.array([[0.0], [0.0], [outside], [outside]])
    prior, *_ = shape_prior(distances, np.array([0, 0, 1, 1]), np.array([0]), np.array([0]))
    assert (prior[0] > 0) == has_prior


def test_a_class_of_one_case_and_one_class_alone_have_no_priors():
    distances = np.random.default_rng(3).random((4, 2))
    prior, inside, _ = shape_prior(distances, np.array([0, 1, 1, 1]), np.array([0, 0]), np.array([0, 0]))
    assert not prior.any()
    assert np.isnan(inside).all()
    prior, _, outside = shape_prior(
        distances, np.zeros(4, dtype=np.int64), np.zeros(2, dtype=np.int64), np.array([0, 1])
    )
    assert not prior.any()
    assert np.isnan(outside).all()


def test_priors_do_not_depend_on_names_of_classes():
    rng = np.random.default_rng(4)
    labels, distances, source = np.arange(12) % 3, rng.random((12, 30)), rng.integers(0, 12, 30)
    plain = shape_prior(distances, labels, labels[source], source)[0]
    renamed = np.array([2, 0, 1])[labels]
    assert np.array_equal(shape_prior(distances, renamed, renamed[source], source)[0], plain)


def test_a_planted_pattern_has_the_largest_priors():
    panel, starts = with_pattern(0, n_cases=40)
    panel = Panel(panel.series, (panel.labels == "with").astype(np.int64))
    shapes, series = draw(panel, n_shapes=600)
    shapes = with_priors(shapes, series, panel.labels)
    best = np.argsort(-shapes.prior)[:10]
    for shape in best:
        source = shapes.source[shape]
        assert panel.labels[source] == 1
        assert shapes.channel[shape] == 2
        overlap = min(shapes.start[shape] + shapes.spans[shape], starts[source] + 30) - max(
            shapes.start[shape], starts[source]
        )
        assert overlap > 0
    copies = (noise(seed, n_cases=40, n_channels=3, time=100, n_classes=2) for seed in range(5))
    for copy in copies:
        plain, of_noise = draw(copy, n_shapes=600)
        known = with_priors(plain, of_noise, copy.labels)
        assert known.prior.max() < shapes.prior[best].min()
