"""Models against each other over data sets: ranks, tests and groups as worked out by hand and by all signs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from seqattn.reproduce.contest import cliques, contest
from seqattn.reproduce.statistics import holm


def signed_rank(change: np.ndarray) -> float:
    """The two-sided p-value by all signs of the ranks, each as likely as the others; zeros are left out."""
    change = change[change != 0]
    order = stats.rankdata(np.abs(change))
    mine = order[change > 0].sum()
    sums = np.array([np.dot(order, signs) for signs in itertools.product((0, 1), repeat=len(order))])
    return min(1.0, 2 * min(np.mean(sums <= mine), np.mean(sums >= mine)))


def test_average_ranks_share_ties():
    values = [[0.3, 0.1, 0.3], [5.0, 1.0, 2.0]]
    found = contest(values, ["a", "b", "c"], ["x", "y"])
    assert dict(zip(found.models, found.ranks, strict=True)) == {"a": 1.25, "c": 1.75, "b": 3.0}
    assert found.models == ["a", "c", "b"]
    lower = contest(values, ["a", "b", "c"], ["x", "y"], higher_is_better=False)
    assert dict(zip(lower.models, lower.ranks, strict=True)) == {"b": 1.0, "c": 2.25, "a": 2.75}


def test_wins_ties_losses_and_differences_from_both_sides():
    found = contest([[0.5, 0.7], [0.9, 0.9], [0.4, 0.1], [0.8, 0.2]], ["a", "b"], list("wxyz"))
    mine, theirs = found.pair("a", "b"), found.pair("b", "a")
    assert (mine.wins, mine.ties, mine.losses) == (theirs.losses, theirs.ties, theirs.wins) == (2, 1, 1)
    assert mine.difference == -theirs.difference == pytest.approx((-0.2 + 0 + 0.3 + 0.6) / 4)
    assert (mine.low, mine.high) == (-theirs.high, -theirs.low)
    assert mine.low < mine.difference < mine.high
    assert dict(zip(found.models, found.means, strict=True)) == pytest.approx({"a": 0.65, "b": 0.475})
    smaller = contest([[0.5, 0.7], [0.4, 0.1], [0.8, 0.2]], ["a", "b"], list("xyz"), higher_is_better=False)
    assert smaller.pair("a", "b").wins == 1
    with pytest.raises(KeyError):
        found.pair("a", "c")


def test_the_interval_is_that_of_all_possible_draws_of_data_sets():
    change = np.array([0.1, -0.2, 0.4, 0.05, 0.3])
    means = [change[list(rows)].mean() for rows in itertools.product(range(5), repeat=5)]
    pair = contest(np.stack([change, 0 * change], axis=1), ["a", "b"], list("vwxyz")).pair("a", "b")
    near = np.quantile(means, [0.02, 0.03, 0.97, 0.98])
    assert near[0] <= pair.low <= near[1]
    assert near[2] <= pair.high <= near[3]


def test_equal_columns_and_single_data_sets_have_no_interval_to_draw():
    pair = contest([[0.5, 0.25], [0.75, 0.5]], ["a", "b"], ["x", "y"]).pair("a", "b")
    assert (pair.difference, pair.low, pair.high) == (0.25, 0.25, 0.25)
    assert contest([[0.5, 0.2]], ["a", "b"], ["x"]).pair("b", "a").low is None


def test_tests_over_data_sets_need_six():
    found = contest(np.arange(15.0).reshape(5, 3), ["a", "b", "c"], list("vwxyz"))
    assert (found.friedman_pvalue, found.cliques, found.is_tested) == (None, [], False)
    assert {pair.pvalue for pair in found.pairs} == {None}
    assert contest(np.arange(18.0).reshape(6, 3), ["a", "b", "c"], list("uvwxyz")).is_tested


def test_every_pair_is_tested_by_all_signs_and_holm():
    generator = np.random.default_rng(3)
    values = generator.normal(loc=[0.0, 0.3, 6.0, 6.4], size=(9, 4))
    values[0, 1] = values[0, 0]
    found = contest(values, list("abcd"), [str(number) for number in range(9)])
    assert found.friedman_pvalue == pytest.approx(stats.friedmanchisquare(*values.T).pvalue)
    columns = dict(zip("abcd", values.T, strict=True))
    raw = [signed_rank(columns[pair.first] - columns[pair.second]) for pair in found.pairs]
    assert len(raw) == 6
    assert [pair.pvalue for pair in found.pairs] == pytest.approx(holm(raw))
    assert sorted(map(sorted, found.cliques)) == [["a", "b"], ["c", "d"]]


def test_models_that_agree_everywhere_are_not_different():
    found = contest(np.tile([[0.5, 0.5, 0.5]], (8, 1)), list("abc"), list("stuvwxyz"))
    assert {pair.pvalue for pair in found.pairs} == {1.0}
    assert (found.cliques, found.friedman_pvalue) == ([["a", "b", "c"]], 1.0)


@pytest.mark.parametrize(
    ("different", "expected"),
    [
        # A line by hand: 0-1 and 1-2 and 2-3 alike, 0-2, 0-3, 1-3 differ: bars that overlap in one model each.
        ({(0, 2), (0, 3), (1, 3)}, [[0, 1], [1, 2], [2, 3]]),
        # 0 is like 2 but not like 1, which lies between them: no bar can say so.
        ({(0, 1)}, [[1, 2, 3]]),
        # 3 is apart from 0 only.
        ({(0, 3)}, [[0, 1, 2], [1, 2, 3]]),
        (set(itertools.combinations(range(4), 2)), []),
        (set(), [[0, 1, 2, 3]]),
        # 1-2 differ: what spans them is cut there.
        ({(1, 2)}, [[0, 1], [2, 3]]),
    ],
)
def test_groups_as_worked_out_by_hand(different, expected):
    assert cliques(4, lambda first, second: (first, second) in different) == expected
