"""Baselines and peers: what they predict, what they keep, and that they leave the process as it was."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import seqattn
from seqattn.classify.baselines import MajorityClass, NearestNeighbour, PanelClassifier
from seqattn.classify.peers import MiniRocket, MultiRocketHydra
from seqattn.data.panels import Panel
from seqattn.errors import DataError, MissingDependencyError

NEEDS_AEON = pytest.mark.slow  # its kernels are compiled on first use
EVERY = [
    MajorityClass(),
    NearestNeighbour(),
    pytest.param(MiniRocket(n_kernels=84, random_state=3), marks=NEEDS_AEON),
    pytest.param(MultiRocketHydra(n_kernels=2, n_groups=4, random_state=3), marks=NEEDS_AEON),
]
each = pytest.mark.parametrize("model", EVERY, ids=lambda model: type(model).__name__)


def waves(seed: int, n: int = 24, longest: int = 30) -> Panel:
    """Slow and fast waves with noise, of unequal length."""
    generator = np.random.default_rng(seed)
    labels = np.array(["slow", "fast"])[np.arange(n) % 2]
    series = []
    for label in labels:
        time = np.arange(int(generator.integers(longest - 8, longest + 1)))
        base = np.sin(time * (0.3 if label == "slow" else 1.1) + generator.uniform(0, 6))
        series.append(np.stack([base, -base]) + generator.normal(0, 0.1, (2, len(time))))
    return Panel(series, labels)


@each
def test_a_saved_classifier_predicts_the_same_once_it_is_opened(model: PanelClassifier, tmp_path):
    fitted = clone(model).fit(waves(0))
    opened = seqattn.load(fitted.save(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(opened.predict_proba(waves(1)), fitted.predict_proba(waves(1)))
    assert opened.get_params() == model.get_params()
    assert opened.classes_.tolist() == ["fast", "slow"]
    assert opened.training_.digest() == fitted.training_.digest()


@pytest.mark.slow
def test_a_drawn_seed_is_kept_in_the_file(tmp_path):
    fitted = MultiRocketHydra(n_kernels=2, n_groups=4).fit(waves(0))
    opened = seqattn.load(fitted.save(tmp_path / "m.safetensors"))
    assert opened.seed_ == fitted.seed_
    assert opened.random_state is None
    assert MultiRocketHydra(n_kernels=2, n_groups=4).fit(waves(0)).seed_ != fitted.seed_


@each
def test_every_label_type_comes_back(model: PanelClassifier, tmp_path):
    panel = waves(0)
    for labels in (np.arange(24) % 2 == 0, np.arange(24) % 2 * 7 - 2):
        fitted = clone(model).fit(Panel(panel.series, labels))
        opened = seqattn.load(fitted.save(tmp_path / "m.safetensors"))
        assert opened.predict(panel).dtype == fitted.predict(panel).dtype == labels.dtype


@each
def test_wrong_use_is_refused(model: PanelClassifier):
    with pytest.raises(NotFittedError):
        clone(model).predict(waves(1))
    with pytest.raises(DataError, match="There are no labels to learn from"):
        clone(model).fit(Panel(waves(0).series))
    fitted = clone(model).fit(waves(0))
    with pytest.raises(
        DataError, match=r"The cases have 1 channel\(s\), but the classifier was fitted with 2"
    ):
        fitted.predict(np.zeros((3, 1, 20)))
    with pytest.raises(DataError, match="There are no labels to compare with"):
        fitted.score(waves(1).series)


@each
def test_gaps_and_other_lengths_are_taken(model: PanelClassifier):
    holed = [
        np.where(np.random.default_rng(4).random(case.shape) < 0.1, np.nan, case) for case in waves(1).series
    ]
    fitted = clone(model).fit(waves(0))
    for case in ([*holed], waves(2, longest=60).series, waves(2, longest=12).series):
        found = fitted.predict_proba(list(case))
        np.testing.assert_allclose(found.sum(axis=1), 1.0)


def test_the_majority_predicts_the_shares_of_training():
    model = MajorityClass().fit(np.zeros((5, 1, 4)), [2, 1, 1, 1, 2])
    assert model.predict_proba(np.ones((2, 1, 9))).tolist() == [[0.6, 0.4], [0.6, 0.4]]
    assert model.score(np.ones((2, 1, 9)), [1, 2]) == 0.5


def test_the_nearest_neighbour_is_that_of_a_double_loop():
    generator = np.random.default_rng(0)
    train, test = (
        generator.normal(size=(30, 3, 8)) * [[1], [50], [0.1]],
        generator.normal(size=(20, 3, 8)) * [[1], [50], [0.1]],
    )
    labels = generator.integers(0, 4, 30)
    spread = train.transpose(1, 0, 2).reshape(3, -1).std(axis=1)
    expected = []
    for case in test:
        distances = [
            sum(((case[c] - other[c]) ** 2).sum() / spread[c] ** 2 for c in range(3)) for other in train
        ]
        expected.append(labels[int(np.argmin(distances))])
    assert NearestNeighbour().fit(train, labels).predict(test).tolist() == expected


def test_a_short_case_continues_with_the_mean_and_a_long_one_is_cut():
    model = NearestNeighbour().fit(
        [[[0.0, 0.0, 3.0]], [[0.0, 0.0, 1.0]], [[8.0, 4.0, 0.0]]], ["three", "one", "far"]
    )
    mean = 16 / 9  # nearer to 1 than to 3
    assert abs(mean - 1) < abs(mean - 3)
    assert model.predict([[[0.0, 0.0]], [[0.0, 0.0, 2.9, 99.0]]]).tolist() == ["one", "three"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "longest"), [(MiniRocket, 8), (MultiRocketHydra, 8), (MultiRocketHydra, 9)]
)
def test_series_that_aeon_refuses_as_too_short_are_continued(model: Any, longest: int):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(20, 2, longest)) + (np.arange(20) % 2 * 3)[:, None, None]
    assert model(random_state=0).fit(X, np.arange(20) % 2).score(X, np.arange(20) % 2) == 1.0


@pytest.mark.slow
def test_a_peer_is_the_classifier_of_aeon_itself():
    from aeon.classification.convolution_based import MiniRocketClassifier

    generator = np.random.default_rng(5)
    X, y, Z = generator.normal(size=(30, 2, 20)), np.arange(30) % 3, generator.normal(size=(25, 2, 20))
    theirs = MiniRocketClassifier(n_kernels=168, random_state=7).fit(X, y).predict_proba(Z)
    ours = MiniRocket(n_kernels=168, random_state=7).fit(X, y).predict_proba(Z)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("model", [MiniRocket(random_state=1), MultiRocketHydra(random_state=1)])
def test_a_peer_leaves_seeds_and_threads_as_they_were(model: Any):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002
        model.fit(waves(0)).predict(waves(1))
        np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[1])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_without_aeon_its_extra_is_named(monkeypatch):
    for name in ("aeon", "aeon.classification"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'seqattn\[aeon\]'"):
        MiniRocket().fit(waves(0))
