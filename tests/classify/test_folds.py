"""Divisions of labelled cases: nothing is lost, every class is everywhere, and seeds count."""

from __future__ import annotations

import numpy as np
import pytest

from seqattn.classify.folds import cut, folds
from seqattn.errors import DataError, ParameterError

SIZES = [(100, 30), (15, 3), (7, 2), (40, 5), (3, 1)]


def labels_of(sizes: tuple[int, ...]) -> np.ndarray:
    found = np.repeat([f"c{i}" for i in range(len(sizes))], sizes)
    return np.random.default_rng(0).permutation(found)


@pytest.mark.parametrize("sizes", SIZES)
def test_folds_predict_every_case_that_others_can_tell_equally_often(sizes):
    labels = labels_of(sizes)
    counts, divisions = np.zeros(len(labels), int), list(folds(labels, 0))
    for learned, predicted in divisions:
        counts[predicted] += 1
        assert sorted([*learned, *predicted]) == list(range(len(labels)))
        assert set(labels[learned]) == set(labels), "a class is not learned from"
    is_single = np.isin(labels, [f"c{i}" for i, size in enumerate(sizes) if size == 1])
    assert set(counts[is_single]) <= {0}
    (repeats,) = set(counts[~is_single])
    smallest = min(size for size in sizes if size > 1)
    assert len(divisions) == repeats * min(5, smallest)
    assert repeats == {130: 1, 18: 3, 9: 3, 45: 3, 4: 3}[len(labels)]


def test_classes_are_spread_evenly_over_the_folds():
    labels = labels_of((50, 25, 25))
    for _, predicted in folds(labels, 1):
        assert np.unique(labels[predicted], return_counts=True)[1].tolist() == [10, 5, 5]


def test_the_seed_decides_the_folds():
    labels = labels_of((30, 30))

    def text(seed: int) -> str:
        return repr([predicted.tolist() for _, predicted in folds(labels, seed)])

    assert text(3) == text(3) != text(4)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_cut_takes_its_share_of_every_class(sizes):
    labels = labels_of(sizes)
    kept, held_out = cut(labels, 0.2, seed=1)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for number, size in enumerate(sizes):
        count = int((labels[held_out] == f"c{number}").sum())
        assert count == (0 if size == 1 else max(round(size * 0.2), 1))
    assert cut(labels, 0.2, seed=1)[1].tolist() == held_out.tolist()


def test_what_cannot_be_divided_is_refused():
    alone = np.array(["a", "b", "c"])
    with pytest.raises(DataError, match="No class has two cases"):
        list(folds(alone, 0))
    with pytest.raises(DataError, match="No class has two cases"):
        cut(alone, 0.5, 0)
    with pytest.raises(ParameterError, match="share to hold out is 1"):
        cut(alone, 1, 0)
