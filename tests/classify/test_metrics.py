"""Metrics against figures worked out by hand, and against scikit-learn where it has the same one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from seqattn.classify.metrics import METRICS, metrics
from seqattn.errors import DataError, SeqattnWarning

# Five cases of three classes: predictions a, b, b, c, a; the second and the last are wrong.
TRUE = ["a", "a", "b", "c", "c"]
GIVEN = np.array([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5], [0.4, 0.3, 0.3]])


def test_every_figure_as_worked_out_by_hand():
    found = metrics(TRUE, ["a", "b", "c"], GIVEN)
    assert tuple(found) == METRICS
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    # a: one hit of two predicted and two there; b: one hit of two predicted, one there; c: one of one, two there.
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, (0.7, 0.3, 0.8, 0.5, 0.3))) / 5)
    # Pairs in the right order, a: 0.7 and 0.3 against 0.1, 0.25, 0.4; b: 0.8 against all; c: all six.
    assert found["auroc"] == pytest.approx((5 / 6 + 1 + 1) / 3)
    squares = (0.09 + 0.04 + 0.01, 0.49 + 0.25 + 0.04, 0.01 + 0.04 + 0.01, 0.0625 + 0.0625 + 0.25)
    assert found["brier"] == pytest.approx((sum(squares) + 0.16 + 0.09 + 0.49) / 5)
    assert found["n_cases"] == 5


@pytest.mark.parametrize("classes", [["no", "yes"], [0, 1], [False, True]], ids=["text", "number", "Boolean"])
def test_two_classes_agree_with_scikit_learn(classes):
    generator = np.random.default_rng(0)
    y, p = generator.integers(0, 2, 40), generator.random(40)
    found = metrics(np.array(classes)[y], classes, np.stack([1 - p, p], axis=1))
    assert found["auroc"] == pytest.approx(roc_auc_score(y, p))
    assert found["log_loss"] == pytest.approx(log_loss(y, p))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, p > 0.5))
    assert found["brier"] == pytest.approx(2 * np.mean((p - y) ** 2))


def test_the_order_of_the_columns_is_that_of_the_classes():
    changed = metrics(TRUE, ["c", "a", "b"], GIVEN[:, [2, 0, 1]])
    assert changed == pytest.approx(metrics(TRUE, ["a", "b", "c"], GIVEN))


def test_answers_of_0_and_1_have_the_clipped_log_loss():
    found = metrics(["a", "a", "a", "b"], ["a", "b"], [[1, 0], [1, 0], [0, 1], [0, 1]])
    assert found["log_loss"] == pytest.approx(-math.log(np.finfo(float).eps) / 4)


def test_a_class_without_a_test_case_is_left_out_of_averages():
    found = metrics(["a", "b"], ["a", "b", "c"], [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    assert (found["balanced_accuracy"], found["macro_f1"], found["auroc"]) == (1.0, 1.0, 1.0)


def test_one_class_only_has_no_ranking():
    found = metrics(["a", "a"], ["a", "b"], [[0.6, 0.4], [0.4, 0.6]])
    assert math.isnan(found["auroc"])
    assert found["accuracy"] == 0.5
    alone = metrics([3, 3], [3], [[1.0], [1.0]])
    assert (alone["accuracy"], alone["log_loss"], alone["brier"]) == (1.0, 0.0, 0.0)


def test_a_label_that_was_not_in_training_is_an_error_and_told():
    with pytest.warns(SeqattnWarning, match="Labels that were not there in training: 'z'. Their cases"):
        found = metrics(["a", "b", "z"], ["a", "b"], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["log_loss"] == pytest.approx(-math.log(np.finfo(float).eps) / 3)
    assert found["brier"] == pytest.approx(1.5 / 3)


@pytest.mark.parametrize(
    ("y", "classes", "given", "message"),
    [
        (["1", "2"], [1, 2], np.eye(2), r"None of the labels \('1', '2'\) is among the classes \(1, 2\)"),
        ([], ["a"], np.empty((0, 1)), "There is no case"),
        (["a"], ["a", "b"], [[1.0]], r"shape \(1, 1\).*labels of shape \(1,\) and 2 classes"),
        (["a", "b"], ["a", "b"], [[1.0, 0.0], [np.nan, 1.0]], "The probabilities of case 1 are"),
    ],
    ids=["other type", "no case", "shape", "not finite"],
)
def test_what_cannot_be_judged_is_refused(y, classes, given, message):
    with pytest.raises(DataError, match=message):
        metrics(y, classes, given)
