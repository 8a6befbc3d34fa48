"""Sequence classes: what they say about tokens, what they draw, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from random_classes import draw_classes
from scipy import sparse

from seqattn.dynamics import SequenceClasses, syn, syn_medium, syn_small
from seqattn.errors import DataError, ParameterError, SeqattnWarning

P = np.array([[0.5, 0.5, 0.0, 0.0], [0.25, 0.0, 0.75, 0.0], [0.0, 0.4, 0.6, 0.0]])
QUERY, LABEL = [0, 0, 1], [0, 1, 0]


def test_kinds_count_classes_over_all_queries_or_within_one():
    classes = SequenceClasses(P, QUERY, LABEL)
    assert classes.kinds().tolist() == ["common", "common", "common", "absent"]
    assert classes.kinds(local=True).tolist() == [
        ["common", "distinct", "distinct", "absent"],
        ["absent", "distinct", "distinct", "absent"],
    ]
    assert classes.owner.tolist() == [-1, -1, -1, -1]
    small = syn_small()
    assert small.owner[10:30].tolist() == [0] * 10 + [1] * 10


def test_sparse_and_dense_probabilities_are_the_same_classes():
    dense, thin = SequenceClasses(P, QUERY, LABEL), SequenceClasses(sparse.csr_array(P), QUERY, LABEL)
    assert dense.digest() == thin.digest()
    np.testing.assert_array_equal(thin.P, P)


def test_the_gram_matrix_is_that_of_scaled_rows():
    classes = draw_classes(0)
    rows = classes.P / np.linalg.norm(classes.P, axis=1, keepdims=True)
    np.testing.assert_allclose(classes.gram, rows @ rows.T, atol=1e-14)
    values = np.abs(np.linalg.eigvals(rows @ rows.T - np.eye(len(classes))))
    assert classes.lam_max == pytest.approx(values.max())
    assert classes.lam_min == pytest.approx(values.min(), abs=1e-12)


def test_the_published_small_setting_breaks_the_papers_own_assumption():
    small = syn_small()
    report = small.assumption_report(lr_y=1.0, lr_z=1.0, n_steps=100, norm="l2", momentum=0.9)
    assert small.lam_max == pytest.approx(10 / (10 + np.square(np.linspace(0.1, 1, 10)).sum()))
    assert not report.holds
    assert {"weak correlation", "many tokens", "fast decoder", "momentum"} <= set(report.failed)
    assert "FAILS" in str(report)


def test_the_assumptions_hold_where_they_are_meant_to():
    # One common token ties four classes weakly; tokens that never occur make M large.
    P = np.zeros((2, 40_000))
    P[:, 0], P[0, 1], P[1, 2] = 0.2, 0.8, 0.8
    classes = SequenceClasses(P, [0, 0], [0, 1])
    settings = {"lr_y": 0.5, "lr_z": 0.01, "n_steps": 1000, "norm": "l2", "optimizer": "sgd", "momentum": 0.0}
    report = classes.assumption_report(**settings, init="zero", seq_len=np.inf)
    assert report.failed == ()
    assert report.holds


def test_an_unknown_training_setting_is_refused():
    with pytest.raises(TypeError, match="learning"):
        syn_small().assumption_report(learning=1)


def test_counts_and_tokens_follow_the_classes():
    classes, rng = draw_classes(3), np.random.default_rng(0)
    counts, query, label = classes.sample(40_000, 12, rng, counts=True)
    assert (counts.sum(1) == 12).all()
    pairs = {(q, y) for q, y in zip(classes.query.tolist(), classes.label.tolist(), strict=True)}
    for q, y in pairs:
        rows = (query == q) & (label == y)
        own = (classes.query == q) & (classes.label == y)
        share = classes.weight[own].sum()
        assert rows.mean() == pytest.approx(share, abs=5 * np.sqrt(share / 40_000))
        expected = classes.weight[own] @ classes.P[own] / share
        np.testing.assert_allclose(counts[rows].mean(0) / 12, expected, atol=0.02)
    tokens, query, label = classes.sample(50, 12, rng)
    assert tokens.shape == (50, 12)
    assert not (tokens == classes.n_tokens - 1).any()  # absent
    # The order is drawn too: tokens of one sequence are not sorted.
    assert (np.diff(tokens, axis=1) < 0).any(1).mean() > 0.9


def test_draws_depend_on_the_generator_only():
    one, two = (draw_classes(3).sample(9, 5, np.random.default_rng(4)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_generators_build_what_they_say():
    small, medium = syn_small(), syn_medium(10)
    assert (len(small), small.n_tokens, small.n_queries, small.n_outputs) == (2, 34, 2, 34)
    assert small.P[0, :10].sum() == pytest.approx(10 / 15.5)
    assert (len(medium), medium.n_tokens, medium.n_queries) == (20, 240, 10)
    assert medium.query.tolist() == np.repeat(np.arange(10), 2).tolist()
    local = syn(queries=2, n_common=0, n_common_local=3, n_distinct=1, common_share=0.4, n_outputs=4)
    assert local.kinds()[4:10].tolist() == ["common"] * 6
    assert local.P[:, 4:10].sum(1).tolist() == pytest.approx([0.4] * 4)
    assert local.label.tolist() == [0, 1, 2, 3]


def test_each_query_with_one_next_token_is_worth_a_warning():
    with pytest.warns(SeqattnWarning, match="query alone decides"):
        SequenceClasses(P, [0, 1, 2], LABEL)
    with pytest.warns(SeqattnWarning, match="query alone decides"):
        SequenceClasses(P[:1], [0], [0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"P": P * 1.1}, "class 0 sums to 1.1"),
        ({"P": np.where(P == 0.4, -0.4, P)}, "class 2 holds -0.4"),
        ({"P": np.where(P == 0.75, np.nan, P)}, "class 1 holds nan"),
        ({"P": P * [[1], [0], [1]]}, "Class 1 has no token"),
        ({"P": P[0]}, "P"),
        ({"label": [0, 1, 5], "n_outputs": 3}, "label of class 2 is 5"),
        ({"label": [0, 1, 2], "n_outputs": 2}, "3 different labels"),
        ({"label": [0, -1, 0]}, "label of class 1 is -1"),
        ({"query": [0, 0, 7], "n_queries": 2}, "query of class 2 is 7"),
        ({"query": [0, 0]}, "query has shape"),
        ({"weight": [0.5, 0.5, 0.5]}, "weights sum to 1.5"),
        ({"weight": [0.5, 0.5, 0.0]}, "weight of class 2 is 0.0"),
        ({"weight": [0.5, 0.5]}, "weight has shape"),
        ({"token_names": ["a"]}, "token_names has 1"),
        ({"query_tokens": [0, 9]}, "query_tokens"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(change, said):
    with pytest.raises(DataError, match=said):
        SequenceClasses(**{"P": P, "query": QUERY, "label": LABEL, **change})


def test_queries_and_labels_must_be_whole_numbers():
    with pytest.raises(TypeError, match="query"):
        SequenceClasses(P, [0.0, 0.0, 1.0], LABEL)
    with pytest.raises(TypeError, match="label"):
        SequenceClasses(P, QUERY, ["a", "b", "a"])


def test_rows_and_weights_can_be_rescaled():
    classes = SequenceClasses(P * 3, QUERY, LABEL, weight=[1, 1, 2], normalize=True)
    np.testing.assert_allclose(classes.P, P)
    assert classes.weight.tolist() == [0.25, 0.25, 0.5]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"queries": 0}, "queries"),
        ({"n_common": 0, "n_distinct": 0}, "no token"),
        ({"distinct": [1.0, 2.0, 3.0]}, "distinct"),
        ({"common_share": 1.0}, "common_share"),
        ({"common_share": 0.5, "n_common": 0}, "common_share"),
    ],
)
def test_generators_refuse_what_makes_no_classes(settings, said):
    with pytest.raises(ParameterError, match=said):
        syn(**settings)
