"""The linear readout against regressions that are fitted again without each case, and on simulated classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from seqattn.classify.readout import Readout


def simulated(seed: int, n_cases: int = 60, n_classes: int = 3, sizes: tuple[int, ...] = (5, 80)) -> tuple:
    """Return families of features of which a few tell the class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n_cases) % n_classes)
    families = [rng.normal(size=(n_cases, size)) * 10 ** rng.uniform(-2, 2, size) + 3 for size in sizes]
    for family in families:
        family[:, :n_classes] += np.eye(n_classes)[labels] * family.std(axis=0)[:n_classes]
    return families, labels


def ridge(features, labels, n_classes, weights, spread, penalty, kept):
    """Return the map of a weighted ridge regression of some cases, by the normal equations with an intercept."""
    targets = np.eye(n_classes)[labels][kept]
    columns = np.column_stack([features[kept] / spread, np.ones(len(kept))])
    weighted = columns * weights[kept, None]
    damping = np.diag([*[penalty] * features.shape[1], 0.0])
    found = np.linalg.solve(columns.T @ weighted + damping, weighted.T @ targets)
    return lambda rows: rows / spread @ found[:-1] + found[-1]


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("size", [7, 90], ids=["more cases", "more features"])
def test_left_out_outputs_equal_fits_without_each_case(size, weighted):
    families, labels = simulated(0, sizes=(size,))
    weights = np.random.default_rng(1).uniform(0.2, 4, 60) if weighted else np.ones(60)
    found = Readout.fit(families, labels, 3, weights)
    features, weights = families[0], weights * 60 / weights.sum()
    # The unit of each feature is that of all cases: it only says what the penalty means.
    mean = np.average(features, axis=0, weights=weights)
    spread = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    (penalty,), (sharpness,), (share,) = found.penalty, found.sharpness, found.share
    whole = ridge(features, labels, 3, weights, spread, penalty, np.arange(60))
    np.testing.assert_allclose(found.outputs(families), share * sharpness * whole(features), atol=1e-8)
    for case in range(60):
        others = np.delete(np.arange(60), case)
        without = ridge(features, labels, 3, weights, spread, penalty, others)
        expected = share * sharpness * without(features[[case]])[0]
        np.testing.assert_allclose(found.left_out[case], expected, atol=1e-8)


def log_loss(logits, labels, weights=None):
    return -np.average(np.log(softmax(logits, axis=1)[np.arange(len(labels)), labels]), weights=weights)


def test_outputs_are_the_sum_of_their_features_and_a_constant():
    families, labels = simulated(2, sizes=(5, 80, 9))
    found = Readout.fit(families, labels, 3)
    whole = np.concatenate(families, axis=1)
    parts = whole[:, :, None] * found.weights
    np.testing.assert_allclose(parts.sum(axis=1) + found.bias, found.outputs(families), atol=1e-9)
    alone = [Readout.fit([family], labels, 3) for family in families]
    for number, one in enumerate(alone):
        assert found.penalty[number] == one.penalty[0]
        assert found.sharpness[number] == one.sharpness[0]
    summed = sum(
        share / one.share[0] * one.outputs([family])
        for share, one, family in zip(found.share, alone, families, strict=True)
    )
    np.testing.assert_allclose(found.outputs(families), summed, atol=1e-8)


def test_shares_are_not_negative_and_no_others_do_better():
    families, labels = simulated(3, sizes=(4, 60, 9))
    weights = np.random.default_rng(4).uniform(0.2, 4, 60)
    weights *= 60 / weights.sum()
    found = Readout.fit([*families, np.random.default_rng(5).normal(size=(60, 9))], labels, 3, weights)
    assert (found.share >= 0).all()
    parts = [
        Readout.fit([family], labels, 3, weights)
        for family in [*families, np.random.default_rng(5).normal(size=(60, 9))]
    ]
    left_out = np.stack([part.left_out / part.share[0] for part in parts])

    def objective(share):
        held = 0.3 / 60 * ((share - 1 / 4) ** 2).sum()
        outputs = np.tensordot(share, left_out, 1)
        # As much as one case more is of no class in particular.
        of_none = np.mean([log_loss(outputs, np.full(60, label), weights) for label in range(3)])
        return 60 / 61 * log_loss(outputs, labels, weights) + of_none / 61 + held

    lowest = objective(found.share)
    rng = np.random.default_rng(6)
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(50):
            other = np.maximum(found.share + rng.normal(size=4) * scale, 0)
            assert objective(other) >= lowest - 1e-7


def test_a_family_that_would_be_subtracted_is_left_out():
    """Without the bound the share of the second family would be -0.08."""
    rng, labels = np.random.default_rng(6), np.arange(30) % 3
    families = [rng.normal(size=(30, size)) for size in (3, 20, 100)]
    families[0] += np.eye(3)[labels] * 1.5
    assert Readout.fit(families, labels, 3).share[1] == 0


def test_classes_that_can_be_separated_are():
    rng = np.random.default_rng(7)
    labels = np.arange(40) % 4
    features = [np.eye(4)[labels] * 3 + rng.normal(size=(40, 4)) * 0.1, rng.normal(size=(40, 200))]
    found = Readout.fit(features, labels, 4)
    assert (found.left_out.argmax(axis=1) == labels).all()
    new = rng.integers(0, 4, 500)
    outputs = found.outputs(
        [np.eye(4)[new] * 3 + rng.normal(size=(500, 4)) * 0.1, rng.normal(size=(500, 200))]
    )
    assert (outputs.argmax(axis=1) == new).all()


def test_a_family_of_noise_gets_little_share():
    """On new cases it moves the logits by a small part of what the family moves them by that tells the class."""
    moved = []
    for seed in range(8):
        families, labels = simulated(seed, n_cases=120, sizes=(6,))
        rng = np.random.default_rng(100 + seed)
        found = Readout.fit([rng.normal(size=(120, 300)), *families], labels, 3)
        by_noise = rng.normal(size=(1000, 300)) @ found.weights[:300]
        by_family = families[0] @ found.weights[300:]
        moved.append(by_noise.std(axis=0).mean() / by_family.std(axis=0).mean())
    assert np.mean(moved) < 0.15


def test_labels_that_mean_nothing_give_the_shares_of_the_classes():
    rng = np.random.default_rng(8)
    labels = rng.permutation(np.repeat([0, 1], [60, 30]))
    found = Readout.fit([rng.normal(size=(90, 40)), rng.normal(size=(90, 500))], labels, 2)
    assert log_loss(found.left_out, labels) < np.log(2) + 0.02
    outputs = found.outputs([rng.normal(size=(400, 40)), rng.normal(size=(400, 500))])
    given = softmax(outputs, axis=1)[:, 1]
    assert given.std() < 0.1


@pytest.mark.parametrize("distance", [1.0, 2.0])
def test_probabilities_come_true(distance):
    """Two normal classes: among the cases that are given 80 %, 80 % belong to the class."""
    rng = np.random.default_rng(9)

    def cases(n):
        labels = rng.integers(0, 2, n)
        return rng.normal(size=(n, 10)) + distance / np.sqrt(10) * (labels[:, None] - 0.5), labels

    features, labels = cases(2000)
    found = Readout.fit([features], labels, 2)
    new, truth = cases(20000)
    given = softmax(found.outputs([new]), axis=1)[:, 1]
    for low in np.arange(0.1, 0.9, 0.1):
        rows = (given >= low) & (given < low + 0.1)
        if rows.sum() > 500:
            assert truth[rows].mean() == pytest.approx(given[rows].mean(), abs=0.05)
    right = 1 / (1 + np.exp(-new.sum(axis=1) * distance / np.sqrt(10)))
    best = -np.mean(truth * np.log(right) + (1 - truth) * np.log(1 - right))
    assert log_loss(found.outputs([new]), truth) < best + 0.01


def test_units_of_features_and_order_of_cases_change_nothing():
    families, labels = simulated(10)
    plain = Readout.fit(families, labels, 3)
    units = [10 ** np.random.default_rng(11).uniform(-3, 3, family.shape[1]) for family in families]
    scaled = [family * unit + 5 * unit for family, unit in zip(families, units, strict=True)]
    np.testing.assert_allclose(
        Readout.fit(scaled, labels, 3).outputs(scaled), plain.outputs(families), atol=1e-6
    )
    order = np.random.default_rng(12).permutation(60)
    turned = Readout.fit([family[order] for family in families], labels[order], 3)
    np.testing.assert_allclose(turned.left_out, plain.left_out[order], atol=1e-6)


def test_features_that_never_change_have_no_weight():
    families, labels = simulated(13, sizes=(6,))
    with_constant = np.column_stack([families[0], np.full(60, 1e6 / 3), np.zeros(60)])
    found = Readout.fit([with_constant], labels, 3)
    assert not found.weights[6:].any()
    again = with_constant + np.array([0.0] * 6 + [1e9, 5.0])
    np.testing.assert_allclose(found.outputs([again]), found.outputs([with_constant]), atol=1e-9)


def test_a_heavy_case_counts_like_its_copies():
    families, labels = simulated(14, n_cases=30, sizes=(5,))
    counts = np.random.default_rng(15).integers(1, 4, 30)
    heavy = Readout.fit(families, labels, 3, counts.astype(float))
    rows = np.repeat(np.arange(30), counts)
    features, weights = families[0], counts * 30 / counts.sum()
    mean = np.average(features, axis=0, weights=weights)
    spread = features[rows].std(axis=0)
    # Left out one at a time a copy is still seen, so only the map at a given penalty is the same.
    copied = ridge(
        features[rows],
        labels[rows],
        3,
        np.full(len(rows), 30 / counts.sum()),
        spread,
        heavy.penalty[0],
        np.arange(len(rows)),
    )
    np.testing.assert_allclose(mean, features[rows].mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(
        heavy.outputs(families), heavy.share * heavy.sharpness * copied(features), atol=1e-7
    )


def test_a_readout_comes_back_from_its_arrays():
    families, labels = simulated(16)
    found = Readout.fit(families, labels, 3)
    again = Readout.from_arrays(found.to_arrays())
    assert np.array_equal(again.outputs(families), found.outputs(families))


def test_outputs_are_the_sum_over_families_and_those_without_a_share_are_not_read():
    families, labels = simulated(17, sizes=(5, 40, 7))
    found = Readout.fit(families, labels, 3)
    without = replace(found, share=np.array([1.0, 0.0, 1.0]))
    weights = found.weights.copy()
    weights[5:45] = 0
    expected = np.concatenate(families, axis=1) @ weights + found.bias
    families[1][:] = np.nan
    np.testing.assert_allclose(without.outputs(families), expected, atol=1e-9)
