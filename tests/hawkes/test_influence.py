from __future__ import annotations

import datetime as dt
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hawkes.random_models import PLAIN
from hawkes.reference import HAWKES, hawkes_data, hawkes_process
from scipy import integrate, stats

from seqattn import SAHP, EmpiricalMarkov, PoissonProcess, RenewalProcess, Sequences
from seqattn.attention import Layout
from seqattn.data.batches import pack
from seqattn.errors import DataError, ParameterError
from seqattn.hawkes import deletion
from seqattn.hawkes.attended import attention_weights
from seqattn.hawkes.deletion import without_event
from seqattn.hawkes.influence import AttentionInfluence, EffectMatrix, InfluenceKernel, compare_with_truth

ONE = (np.array([0.5]), np.array([[0.6]]), 1.3)
THREE = (
    np.array([0.3, 0.2, 0.1]),
    np.array([[0.4, 0.3, 0.0], [0.0, 0.2, 0.35], [0.15, 0.05, 0.1]]),
    0.7,
)
SMALL = {
    "epochs": 1,
    "d_model": 8,
    "random_state": 0,
    "baselines": False,
    "device": "cpu",
    **PLAIN,
    "n_heads": 2,
}
TIMES = [([0.5, 1.0, 2.5, 4.0, 4.5], ["a", "b", "a", "c", "b"]), ([0.2, 1.1, 3.0], ["b", "a", "a"])]


@pytest.fixture(scope="module")
def lists() -> Sequences:
    return Sequences.from_lists(TIMES, window=(0.0, 6.0))


@pytest.fixture(scope="module")
def attentive(lists) -> SAHP:
    """A model in float64 whose weights are far from their start, so that every history matters."""
    return fitted(lists)


def fitted(lists: Sequences, **options: Any) -> SAHP:
    settings = {**SMALL, "precision": "float64", "validation": None, **options}
    model = SAHP(**settings).fit(lists)
    scramble(model)
    return model


def scramble(model: SAHP) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.module_.parameters():
            weight.add_(0.4 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def pairs_of(data: Sequences) -> list[tuple[list[float], list[Any]]]:
    return [
        (data.sequence(i)[0].tolist(), data.label_array(data.sequence(i)[1]).tolist())
        for i in range(len(data))
    ]


def nothing(labels: tuple[Any, ...]) -> Sequences:
    """Return a watched window without events."""
    return Sequences.from_lists([([1.0], ["a"]), ([], [])], window=(0.0, 6.0), labels=labels).select([1])


def one_removed(times: list[float], kinds: list[Any], j: int, **options: Any) -> Sequences:
    rows = [(times[:j] + times[j + 1 :], kinds[:j] + kinds[j + 1 :])]
    return Sequences.from_lists(rows, **options)


# -- leaving out an event --------------------------------------------------------------------------------------


def test_a_copy_lacks_its_event_and_keeps_all_else():
    rng = np.random.default_rng(0)
    rows = [(np.sort(rng.uniform(0, 9, n)), rng.integers(0, 3, n)) for n in (4, 0, 1, 7, 0)]
    data = Sequences.from_lists(rows, window=(0.0, 10.0), labels=3)
    copies = without_event(data, np.arange(data.n_events))
    place = 0
    for row, (times, kinds) in enumerate(rows):
        for j in range(len(times)):
            left, types = copies.sequence(place)
            assert left.tolist() == np.delete(times, j).tolist()
            assert types.tolist() == np.delete(kinds, j).tolist()
            assert (copies.start[place], copies.end[place], copies.ids[place]) == (0.0, 10.0, data.ids[row])
            place += 1
    assert len(copies) == data.n_events == place


def test_a_copy_ends_where_it_is_told_with_the_events_up_to_then():
    data = Sequences.from_lists([([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1])], window=(0.0, 9.0), labels=2)
    copies = without_event(data, np.array([0, 1, 3]), np.array([1.5, 3.0, 4.0]))
    assert [copies.sequence(i)[0].tolist() for i in range(3)] == [[], [1.0, 3.0], [1.0, 2.0, 3.0]]
    assert copies.end.tolist() == [1.5, 3.0, 4.0]


def test_history_that_is_left_out_is_history_no_more():
    times = np.arange(1.0, 9.0)
    data = Sequences.from_lists([(times, [0] * 8)], window=(0.0, 9.0), chunk=3, left_context=2)
    assert data.context.tolist() == [0, 2, 2]
    second = int(data.offsets[1])
    copies = without_event(data, np.array([0, second, second + 1, second + 2]))
    assert copies.context.tolist() == [0, 1, 1, 2]
    first = Sequences.from_lists([([2.0, 5.0], [0, 0])])
    copy = without_event(first, np.array([0]))
    assert (copy.start[0], copy.context[0], copy.sequence(0)[0].tolist()) == (2.0, 0, [5.0])


# -- effects of a process that is known ------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [ONE, HAWKES, THREE], ids=["K=1", "K=2", "K=3"])
@pytest.mark.parametrize("horizon", [0.01, 1.5, 40.0])
def test_effects_of_a_hawkes_process_are_its_excitations(truth, horizon):
    """The process is linear, so that every single event has this effect whatever happens besides."""
    effect = hawkes_process(truth).effect_matrix(hawkes_data(truth, 30, seed=0), horizon)
    exact = truth[1] * (1 - np.exp(-truth[2] * horizon))
    np.testing.assert_allclose(effect.values, exact, atol=1e-11)
    assert effect.standard_error.max() < 1e-11
    assert (effect.n_events == 200).all()


def test_the_kernel_of_a_hawkes_process_is_exponential():
    lags = [0.001, 0.1, 0.5, 2.0, 9.0]
    model, data = hawkes_process(THREE), hawkes_data(THREE, 10, seed=0)
    for k, b in ((0, 1), (1, 0), (2, 2)):
        kernel = model.kernel(k, b, lags, data)
        exact = THREE[1][k, b] * THREE[2] * np.exp(-THREE[2] * np.array(lags))
        np.testing.assert_allclose(kernel.value, exact, atol=1e-11)
        assert (kernel.target, kernel.cause, kernel.n_events) == (k, b, 200)
        assert kernel.lag.tolist() == lags


def test_events_of_a_poisson_process_have_no_effect():
    data = hawkes_data(HAWKES, 5, seed=0)
    model = PoissonProcess().fit(data)
    assert np.abs(model.effect_matrix(data, 3.0).values).max() < 1e-13
    assert np.abs(model.kernel(0, 1, [0.5, 3.0], data).value).max() < 1e-13


def test_an_event_that_inhibits_has_a_negative_effect():
    """Gamma gaps of shape above 1: an event sets the hazard back to zero. Exact by the law's survival function."""
    data = Sequences.from_lists([([4.0], [0]), ([2.0, 5.0], [1, 0])], window=(0.0, 8.0), labels=2)
    model = RenewalProcess(gaps="gamma").fit(data)
    law = stats.gamma(model.shape_[0], scale=model.shape_[1])

    def mass(low: float, high: float) -> float:
        return float(law.logsf(low) - law.logsf(high))

    effect = model.effect_matrix(data, 3.5)
    by_zero = mass(0, 3.5) - mass(4, 7.5)  # the event at 5.0 has less than 3.5 after it
    by_one = mass(0, 3) + mass(0, 0.5) - mass(2, 5) - mass(0, 0.5)
    np.testing.assert_allclose(effect.values, np.outer(model.share_, [by_zero, by_one]), rtol=1e-9)
    assert (effect.values < 0).all()
    assert effect.n_events.tolist() == [1, 1]


def test_effects_in_other_units_agree():
    data = hawkes_data(HAWKES, 5, seed=0)
    slow = Sequences.from_lists(
        [(np.array(t) * 1000, k) for t, k in pairs_of(data)], window=(0.0, 1e5), labels=2
    )
    mu, matrix, decay = HAWKES
    model, other = hawkes_process(HAWKES), hawkes_process((mu / 1000, matrix, decay / 1000))
    np.testing.assert_allclose(
        other.effect_matrix(slow, 2000.0).values, model.effect_matrix(data, 2.0).values, atol=1e-10
    )
    one, two = model.kernel(0, 1, [0.5], data), other.kernel(0, 1, [500.0], slow)
    assert two.value[0] * 1000 == pytest.approx(one.value[0], rel=1e-9)


# -- effects of a process that is not linear -------------------------------------------------------------------


def change_of_intensity(
    model: SAHP, times: list[float], kinds: list[str], j: int, at: np.ndarray
) -> np.ndarray:
    """Return the change of all intensities at some times, by asking the model about two lists; (times, types)."""
    options = {"window": (0.0, 6.0), "labels": model.labels_}
    whole = Sequences.from_lists([(times, kinds)], **options)
    return model.intensity(whole, at)[0] - model.intensity(one_removed(times, kinds, j, **options), at)[0]


def expected_effects(model: SAHP, horizon: float) -> dict[str, list[np.ndarray]]:
    nodes, weights = np.polynomial.legendre.leggauss(60)
    found: dict[str, list[np.ndarray]] = {}
    for times, kinds in TIMES:
        for j, begin in enumerate(times):
            end = begin + horizon
            if end > 6.0:
                continue
            edges = np.array([begin, *(t for t in times if begin < t < end), end])
            total = np.zeros(3)
            for low, high in pairwise(edges):
                at = (low + high) / 2 + (high - low) / 2 * nodes
                total += (high - low) / 2 * weights @ change_of_intensity(model, times, kinds, j, at)
            found.setdefault(kinds[j], []).append(total)
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"form": "hidden"}, {"own_kernels": 2, "gap_kernels": 2, "n_decays": 2, "time_decay": True}],
    ids=["mark", "hidden", "kernels"],
)
def test_effects_of_an_attentive_process_equal_quadrature(options, lists):
    model = fitted(lists, **options)
    effect = model.effect_matrix(lists, 1.75)
    found = expected_effects(model, 1.75)
    assert effect.n_events.tolist() == [len(found[label]) for label in "abc"] == [4, 2, 1]
    exact = np.stack([np.mean(found[label], axis=0) for label in "abc"], axis=1)
    assert np.abs(exact).max() > 0.05
    np.testing.assert_allclose(effect.values, exact, atol=2e-4)
    error = [np.std(found[label], axis=0, ddof=1) / np.sqrt(len(found[label])) for label in "ab"]
    np.testing.assert_allclose(effect.standard_error[:, :2], np.stack(error, axis=1), atol=2e-4)
    assert np.isnan(effect.standard_error[:, 2]).all()


def test_the_kernel_of_an_attentive_process_is_the_mean_of_differences(attentive, lists):
    lags = np.array([0.25, 0.5, 1.0])
    kernel = attentive.kernel("b", "a", lags, lists)
    each = [
        change_of_intensity(attentive, times, kinds, j, t + lags)[:, 1]
        for times, kinds in TIMES
        for j, t in enumerate(times)
        if kinds[j] == "a"
    ]
    np.testing.assert_allclose(kernel.value, np.mean(each, axis=0), atol=1e-10)
    np.testing.assert_allclose(kernel.standard_error, np.std(each, axis=0, ddof=1) / 2, atol=1e-10)


def test_the_effect_is_the_integral_of_the_kernel(attentive, lists):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    kernel = attentive.kernel("c", "b", 0.75 * (nodes + 1), lists)
    effect = attentive.effect_matrix(lists, 1.5)
    # The intensity jumps at later events, so that the rule is good to the distance of its nodes.
    assert weights @ kernel.value * 0.75 == pytest.approx(effect.values[2, 1], abs=2e-3)


def test_effects_do_not_depend_on_how_the_work_is_cut(attentive, lists, monkeypatch):
    whole = attentive.effect_matrix(lists, 1.0)
    curve = attentive.kernel("a", "b", [0.5, 1.0], lists)
    table = attentive.deletion_effects(lists)
    monkeypatch.setattr(deletion, "_EVENTS", 7)
    monkeypatch.setattr(deletion, "_CELLS", 4)
    np.testing.assert_allclose(attentive.effect_matrix(lists, 1.0).values, whole.values, atol=1e-13)
    np.testing.assert_allclose(
        attentive.effect_matrix(lists, 1.0).standard_error, whole.standard_error, atol=1e-13
    )
    np.testing.assert_allclose(attentive.kernel("a", "b", [0.5, 1.0], lists).value, curve.value, atol=1e-13)
    np.testing.assert_allclose(attentive.deletion_effects(lists)["effect"], table["effect"], atol=1e-12)


def test_events_at_one_time_are_left_out_one_by_one():
    """Both of two events at one time excite; without one of them the other still does."""
    with pytest.warns(match="zero"):
        data = Sequences.from_lists([([1.0, 2.0, 2.0, 3.0], [0, 0, 1, 1])], window=(0.0, 5.0), labels=2)
    effect = hawkes_process(HAWKES).effect_matrix(data, 1.0)
    np.testing.assert_allclose(effect.values, HAWKES[1] * (1 - np.exp(-2.0)), atol=1e-13)
    assert effect.n_events.tolist() == [2, 2]


# -- which events count ----------------------------------------------------------------------------------------


def test_only_events_with_their_horizon_inside_the_window_count():
    data = hawkes_data(HAWKES, 10, seed=0)
    inside = data.times + 30.0 <= 100.0
    effect = hawkes_process(HAWKES).effect_matrix(data, 30.0, max_events=10_000)
    assert effect.n_events.tolist() == np.bincount(data.types[inside]).tolist()
    with pytest.raises(DataError, match="101 time units.*inside its window"):
        hawkes_process(HAWKES).effect_matrix(data, 101.0)


def test_events_that_a_window_conditions_on_are_not_left_out():
    data = Sequences.from_lists([([1.0, 2.0, 4.0], [0, 1, 1])], labels=2)
    assert data.context.tolist() == [1]
    effect = hawkes_process(HAWKES).effect_matrix(data, 2.0)
    assert effect.n_events.tolist() == [0, 1]
    assert np.isnan(effect.values[:, 0]).all()
    np.testing.assert_allclose(effect.values[:, 1], HAWKES[1][:, 1] * (1 - np.exp(-4.0)), atol=1e-13)


def test_some_types_may_be_asked_for_in_any_order(attentive, lists):
    whole = attentive.effect_matrix(lists, 1.0)
    some = attentive.effect_matrix(lists, 1.0, types=["c", "a"])
    assert (some.causes, some.labels) == (("c", "a"), ("a", "b", "c"))
    np.testing.assert_array_equal(some.n_events, whole.n_events[[2, 0]])
    np.testing.assert_allclose(some.values, whole.values[:, [2, 0]], atol=1e-12)


def test_events_are_drawn_by_the_seed_and_by_nothing_else(attentive, lists):
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state must not be touched
    draws = [
        attentive.effect_matrix(lists, 1.0, max_events=1, random_state=seed).values for seed in (3, 3, 4, 5)
    ]
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.testing.assert_array_equal(draws[0], draws[1])
    assert any(np.abs(draw - draws[0]).max() > 1e-3 for draw in draws[2:])


def test_the_mean_of_many_draws_is_the_mean_of_all(lists):
    model = EmpiricalMarkov().fit(lists)
    whole = model.effect_matrix(lists, 1.0).values
    draws = [model.effect_matrix(lists, 1.0, max_events=1, random_state=seed).values for seed in range(100)]
    error = np.std(draws, axis=0) / 10
    assert error.max() > 1e-3
    assert (np.abs(np.mean(draws, axis=0) - whole) < 4.5 * error + 1e-12).all()


def test_too_many_pairs_of_types_are_refused():
    labels = 3000
    data = Sequences.from_lists([([1.0, 2.0], [0, 1])], window=(0.0, 9.0), labels=labels)
    model = EmpiricalMarkov(types=labels, window=(0.0, 9.0)).fit(data)
    with pytest.raises(ParameterError, match=r"at most 1,333 types.*types="):
        model.effect_matrix(data, 1.0)
    assert model.effect_matrix(data, 1.0, types=[1, 0]).values.shape == (labels, 2)


@pytest.mark.parametrize("horizon", [0.0, -1.0, float("nan"), float("inf"), True])
def test_impossible_horizons_are_refused(horizon, lists):
    with pytest.raises(ParameterError, match="horizon="):
        PoissonProcess().fit(lists).effect_matrix(lists, horizon)


@pytest.mark.parametrize("grid", [[], [0.0, 1.0], [2.0, 1.0], [1.0, 1.0], [[1.0]], [float("nan")]])
def test_impossible_grids_are_refused(grid, lists):
    with pytest.raises(ParameterError, match="positive, increasing"):
        PoissonProcess().fit(lists).kernel("a", "b", grid, lists)


def test_labels_that_do_not_exist_are_refused_with_a_suggestion():
    rows = [([1.0, 2.0, 3.0], ["buy", "sell", "buy"])]
    data = Sequences.from_lists(rows, window=(0.0, 5.0))
    model = PoissonProcess().fit(data)
    with pytest.raises(ParameterError, match=r"k: there is no type 'buys'.*'sell'.*Did you mean 'buy'"):
        model.kernel("buys", "sell", [1.0], data)
    with pytest.raises(ParameterError, match=r"b: there is no type \['buy'\]"):
        model.kernel("buy", ["buy"], [1.0], data)
    with pytest.raises(ParameterError, match="types: there is no type 1"):
        model.effect_matrix(data, 1.0, types=["buy", 1])
    for wrong in ("buy", []):
        with pytest.raises(ParameterError, match="list of type labels|at least one"):
            model.effect_matrix(data, 1.0, types=wrong)
    with pytest.raises(ParameterError, match="max_events=0"):
        model.effect_matrix(data, 1.0, max_events=0)


# -- effects on the likelihood ---------------------------------------------------------------------------------


def explicit_deletion_effects(model: Any, data: Sequences, own: np.ndarray) -> list[float]:
    """Return the change of log-likelihood less the event's own term, one event at a time."""
    answer, place = [], 0
    for row in range(len(data)):
        times, kinds = pairs_of(data.select([row]))[0]
        whole = model.log_likelihood(data.select([row])).total
        for j in range(len(times)):
            window = (float(data.start[row]), float(data.end[row]))
            less = one_removed(times, kinds, j, window=window, labels=data.labels)
            answer.append(whole - model.log_likelihood(less).total - own[place])
            place += 1
    return answer


@pytest.mark.parametrize("kind", ["hawkes", "attentive", "markov"])
def test_deletion_effects_equal_an_explicit_loop(kind, attentive, lists):
    model = {"hawkes": hawkes_process(THREE), "markov": EmpiricalMarkov(), "attentive": attentive}[kind]
    if kind == "markov":
        model.fit(lists)
    if kind == "hawkes":
        model.labels_ = lists.labels
    scores = model._scores(lists)
    own = (scores.log_total + scores.log_type)[scores.ends]
    table = model.deletion_effects(lists)
    np.testing.assert_allclose(table["effect"], explicit_deletion_effects(model, lists, own), atol=1e-6)
    np.testing.assert_allclose(table["effect"], table["log_intensity"] - table["expected"], atol=1e-12)
    assert table["position"].to_list() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert table["seq_id"].to_list() == [0] * 5 + [1] * 3
    assert table["t"].to_list() == lists.times.tolist()
    assert table["k"].to_list() == [kind for _, kinds in TIMES for kind in kinds]
    assert np.abs(table["effect"]).max() > 0.01


def test_deletion_effects_of_a_hawkes_process_equal_their_double_sum():
    mu, matrix, decay = HAWKES
    times, kinds = np.array([1.0, 1.5, 1.5, 3.0, 3.2]), np.array([0, 1, 0, 0, 1])
    with pytest.warns(match="zero"):
        data = Sequences.from_lists([(times, kinds)], window=(0.0, 4.0), labels=2)
    table = hawkes_process(HAWKES).deletion_effects(data)

    def rate(i: int, left_out: int) -> float:
        past = [j for j in range(i) if j != left_out]
        pull = matrix[kinds[i], kinds[past]] * decay * np.exp(-decay * (times[i] - times[past]))
        return float(mu[kinds[i]] + pull.sum())

    for j in range(5):
        gain = sum(np.log(rate(i, -1) / rate(i, j)) for i in range(j + 1, 5))
        mass = matrix[:, kinds[j]].sum() * (1 - np.exp(-decay * (4.0 - times[j])))
        assert table["log_intensity"][j] == pytest.approx(gain, abs=1e-12)
        assert table["expected"][j] == pytest.approx(mass, abs=1e-12)


def test_deletion_effects_leave_the_history_of_a_window_out_of_the_score():
    """The first event opens the window; what it does to the others is seen, its own density is not asked for."""
    data = Sequences.from_lists([([1.0, 1.5, 3.0], [0, 1, 0])], labels=2)
    mu, matrix, decay = HAWKES
    first = hawkes_process(HAWKES).deletion_effects(data).row(0, named=True)
    faded = np.exp(-decay * np.array([0.5, 2.0]))
    after_b = decay * matrix[:, 1] * np.exp(-decay * 1.5)
    gain = np.log(1 + decay * matrix[1, 0] * faded[0] / mu[1])
    gain += np.log1p(decay * matrix[0, 0] * faded[1] / (mu[0] + after_b[0]))
    assert first["log_intensity"] == pytest.approx(gain, abs=1e-12)
    assert first["expected"] == pytest.approx(matrix[:, 0].sum() * (1 - faded[1]), abs=1e-12)


def test_an_event_that_made_another_possible_has_an_infinite_effect():
    model = hawkes_process((np.array([0.5, 0.0]), np.array([[0.0, 0.0], [0.5, 0.0]]), 1.0))
    rows = [([1.0, 2.0], [0, 1]), ([1.0, 2.0, 2.5], [0, 0, 0])]
    table = model.deletion_effects(Sequences.from_lists(rows, window=(0.0, 4.0), labels=2))
    assert np.isposinf(table["effect"].to_numpy()).tolist() == [True, False, False, False, False]
    assert np.isfinite(table["effect"].to_numpy()[1:]).all()


def test_deletion_effects_of_chosen_sequences(attentive, lists):
    whole, second = attentive.deletion_effects(lists), attentive.deletion_effects(lists, rows=[1])
    assert second["seq_id"].to_list() == [1, 1, 1]
    np.testing.assert_allclose(second["effect"], whole["effect"][5:], atol=1e-12)
    for wrong in ([2], [-1]):
        with pytest.raises(DataError, match="rows="):
            attentive.deletion_effects(lists, rows=wrong)
    with pytest.raises(DataError, match="no event"):
        attentive.deletion_effects(nothing(lists.labels))


def test_deletion_effects_of_a_pandas_table_are_one():
    frame = pd.DataFrame({"seq_id": ["x"] * 3, "t": [0.5, 1.0, 2.0], "k": ["a", "b", "a"]})
    model = EmpiricalMarkov(window=(0.0, 3.0)).fit(frame)
    table = model.deletion_effects(frame)
    assert isinstance(table, pd.DataFrame)
    assert table["k"].tolist() == ["a", "b", "a"]


# -- attention -------------------------------------------------------------------------------------------------


def with_even_attention(model: SAHP) -> SAHP:
    """Set all queries and keys to zero: every key in reach gets the same weight."""
    width = model.d_model
    with torch.no_grad():
        for block in model.module_.encoder.blocks:
            block.attention.inputs.weight[: 2 * width] = 0
            block.attention.inputs.bias[: 2 * width] = 0
    return model


def weights_by_hand(model: SAHP, times: list[float], kinds: list[str]) -> np.ndarray:
    """Return the weights (layers, heads, queries, keys) of one sequence from what the encoder's layers were given."""
    data = Sequences.from_lists([(times, kinds)], window=(0.0, 6.0), labels=model.labels_)
    given: list[torch.Tensor] = []
    inputs = {block.attention.inputs for block in model.module_.encoder.blocks}
    watches = [one.register_forward_hook(lambda *call: given.append(call[2])) for one in inputs]
    with torch.no_grad():
        model.module_.encode(pack(data, [0], scale=model.scale_, dtype=torch.float64))
    for watch in watches:
        watch.remove()
    found = []
    for mixed in given:
        q, k, _ = mixed.view(len(mixed), 3, model.n_heads, -1).numpy().transpose(1, 2, 0, 3)
        heads = []
        for query, key in zip(q, k, strict=True):
            scores = query @ key.T / np.sqrt(query.shape[1])
            scores = np.exp(np.where(np.tri(len(scores)) > 0, scores, -np.inf))
            heads.append(scores / scores.sum(1, keepdims=True))
        found.append(heads)
    return np.array(found)


def influence_by_loop(model: SAHP, lists: Sequences, reduce: Any) -> np.ndarray:
    code = {label: place for place, label in enumerate(model.labels_)}
    paid, even = np.zeros((3, 3)), np.zeros((3, 3))
    for times, kinds in pairs_of(lists):
        weights = reduce(weights_by_hand(model, times, kinds))
        for i in range(1, len(times) + 1):
            for j in range(1, i + 1):
                pair = code[kinds[i - 1]], code[kinds[j - 1]]
                paid[pair] += weights[i, j]
                even[pair] += 1 / (i + 1)
    return np.where(even > 0, paid / np.where(even > 0, even, 1), np.nan)


def rollout_by_hand(weights: np.ndarray) -> np.ndarray:
    flow = np.eye(weights.shape[-1])
    for layer in weights.mean(1):
        flow = (layer + np.eye(len(layer))) / 2 @ flow
    return flow


REDUCTIONS = {
    "mean": ({}, lambda w: w.mean((0, 1))),
    "layer": ({"layer": 1}, lambda w: w[1].mean(0)),
    "head": ({"head": 1}, lambda w: w[:, 1].mean(0)),
    "both": ({"layer": 0, "head": 0}, lambda w: w[0, 0]),
    "rollout": ({"rollout": True}, rollout_by_hand),
}


@pytest.mark.parametrize("share", [False, True], ids=["own layers", "shared layers"])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_attention_influence_equals_a_loop_over_pairs(name, share, lists):
    model = fitted(lists, share_layers=share)
    options, reduce = REDUCTIONS[name]
    found = model.attention_influence(lists, **options)
    np.testing.assert_allclose(found.values, influence_by_loop(model, lists, reduce), atol=1e-10)
    assert np.nanmax(np.abs(found.values - 1)) > 0.05
    assert found.n_pairs.tolist() == [[6, 3, 0], [3, 4, 1], [2, 1, 1]]
    assert np.isnan(found.values[0, 2])


def test_even_attention_has_influence_one(lists):
    model = with_even_attention(fitted(lists))
    for options in ({}, {"layer": 1, "head": 0}):
        values = model.attention_influence(lists, **options).values
        np.testing.assert_allclose(values[np.isfinite(values)], 1.0, rtol=1e-12)


def test_rollout_of_even_attention_is_known():
    """One layer: half stays where it is, half spreads evenly over i events and the start."""
    data = Sequences.from_lists([([1.0, 2.0], ["a", "b"])], window=(0.0, 6.0))
    model = with_even_attention(fitted(data, n_layers=1))
    values = model.attention_influence(data, rollout=True).values
    own = [(0.5 + 0.5 / 2) / (1 / 2), (0.5 + 0.5 / 3) / (1 / 3)]
    np.testing.assert_allclose(values, [[own[0], np.nan], [0.5, own[1]]], rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"time_decay": True}, {"max_context": 2}, {"share_layers": True}])
def test_the_weights_are_those_that_the_encoder_uses(options, lists):
    """Weights times values must be what each layer passed on in the model's own forward pass."""
    model = fitted(lists, **options)
    module = model.module_
    data = Sequences.from_lists(TIMES[:1], window=(0.0, 6.0), labels=model.labels_)
    batch = pack(data, [0], scale=model.scale_, dtype=torch.float64)
    given, passed = [], []
    watches = []
    for block in module.encoder.blocks:
        watches.append(block.attention.inputs.register_forward_hook(lambda *call: given.append(call[2])))
        watches.append(
            block.attention.output.register_forward_pre_hook(lambda *call: passed.append(call[1][0]))
        )
    with torch.no_grad():
        module.encode(batch)
        for watch in watches:
            watch.remove()
        layout, times = Layout(batch.offsets, batch.max_len), module.clock_of_keys(batch.elapsed)
        layers = list(attention_weights(module.encoder, module.embed(batch), layout, times))
    assert len(layers) == len(given) == len(passed) == 2
    for weights, mixed, output in zip(layers, given, passed, strict=True):
        values = mixed.view(len(mixed), 3, 2, -1)[:, 2]
        seen = torch.einsum("hqk,khd->qhd", weights[0], values)
        torch.testing.assert_close(seen.reshape(output.shape), output, rtol=1e-9, atol=1e-12)


def test_local_attention_is_measured_by_what_is_in_reach(lists):
    """Two events and the start token are seen besides the event itself: an even spread has influence 1."""
    model = with_even_attention(fitted(lists, max_context=2))
    found = model.attention_influence(lists)
    np.testing.assert_allclose(found.values[np.isfinite(found.values)], 1.0, rtol=1e-12)
    assert found.n_pairs.sum() == (1 + 2 + 3 + 3 + 3) + (1 + 2 + 3)
    assert model.attention_influence(lists, rollout=True).n_pairs.sum() == 18


def test_attention_influence_does_not_depend_on_the_batches(attentive, lists, monkeypatch):
    whole = attentive.attention_influence(lists)
    monkeypatch.setattr("seqattn.hawkes.attended._WEIGHTS", 1)
    split = attentive.attention_influence(lists)
    np.testing.assert_allclose(split.values, whole.values, atol=1e-12)


def test_attention_that_is_not_there_is_refused(attentive, lists, monkeypatch):
    with pytest.raises(ParameterError, match=r"PoissonProcess has no attention.*effect_matrix"):
        PoissonProcess().fit(lists).attention_influence(lists)
    for options, words in (
        ({"layer": 2}, "no layer 2: the model has 2"),
        ({"head": -1}, "no head -1"),
        ({"layer": True}, "no layer True"),
        ({"head": 0, "rollout": True}, "does not go with rollout"),
    ):
        with pytest.raises(ParameterError, match=words):
            attentive.attention_influence(lists, **options)
    monkeypatch.setattr("seqattn.hawkes.influence.MAX_WEIGHTS", 50)
    with pytest.raises(DataError, match=r"Sequence 0 has 5 events.*72 weights.*chunk="):
        attentive.attention_influence(lists)


# -- results ---------------------------------------------------------------------------------------------------


def matrix(values: Any, labels: tuple[Any, ...] = ("a", "b"), horizon: float = 1.5) -> EffectMatrix:
    values = np.array(values, dtype=float)
    return EffectMatrix(values, values * 0 + 0.01, np.array([7, 9]), labels, labels, horizon, None)


def test_the_table_of_effects_names_cause_and_target():
    frame = matrix([[0.1, 0.2], [0.3, 0.4]]).to_frame()
    assert frame.columns == ["target", "cause", "effect", "standard_error", "n_events"]
    assert frame.filter(pl.col("target") == "b", pl.col("cause") == "a")["effect"].to_list() == [0.3]
    assert frame.filter(pl.col("cause") == "b")["n_events"].to_list() == [9, 9]
    mixed = matrix([[0.1, 0.2], [0.3, 0.4]], labels=(1, "b")).to_frame()
    assert mixed["cause"].to_list() == [1, "b", 1, "b"]


def test_the_text_of_effects_shows_the_unit_and_the_largest_entries():
    text = str(matrix([[0.1, -0.25], [0.3, np.nan]]))
    assert text.splitlines() == [
        "Extra events expected within 1.5 time units per event:",
        "target \\ cause       a        b",
        "             a  0.1000  -0.2500",
        "             b  0.3000      nan",
    ]
    values = np.zeros((20, 20))
    values[3, 17], values[4, 4] = -2.0, 1.0
    large = EffectMatrix(values, values, np.ones(20, int), tuple(range(20)), tuple(range(20)), 2.0, "s")
    lines = str(large).splitlines()
    assert "within 2 s per event; the 20 largest of 400 entries" in lines[0]
    assert lines[2].split() == ["17", "3", "-2.0000"]
    assert lines[3].split() == ["4", "4", "1.0000"]


def test_units_of_dates_are_seconds(tmp_path):
    start = dt.datetime(2026, 1, 1)  # noqa: DTZ001 - the data have no zone
    rows = [([start + dt.timedelta(seconds=s) for s in (0, 1, 3, 4)], [0, 1, 0, 1])] * 3
    model = EmpiricalMarkov().fit(rows)
    effect = model.effect_matrix(rows, 1.0)
    assert effect.unit == "s"
    assert "within 1 s" in str(effect)


def test_comparison_with_the_truth():
    truth = HAWKES[1] * (1 - np.exp(-3.0))
    exact = truth.copy()
    result = compare_with_truth(matrix(exact), truth)
    assert result == {"relative_error": 0.0, "spearman": pytest.approx(1.0), "n_entries": 4}
    wrong = compare_with_truth(matrix(2 * exact), truth)
    assert wrong["relative_error"] == pytest.approx(1.0)
    assert compare_with_truth(matrix(exact.T), truth)["spearman"] < 0.9
    attention = AttentionInfluence(-exact, np.ones((2, 2), int), ("a", "b"), "")
    assert compare_with_truth(matrix(exact), truth, attention)["attention_spearman"] == -1.0
    flat = compare_with_truth(matrix(np.ones((2, 2))), truth)
    assert np.isnan(flat["spearman"])
    assert np.isnan(compare_with_truth(matrix(exact), np.zeros((2, 2)))["relative_error"])
    with pytest.raises(ParameterError, match="shape"):
        compare_with_truth(matrix(exact), np.ones((3, 3)))


def test_comparison_with_the_truth_leaves_out_causes_that_never_happened():
    truth = HAWKES[1] * (1 - np.exp(-3.0))
    exact = truth.copy()
    exact[:, 1] = np.nan
    result = compare_with_truth(matrix(exact), truth)
    assert (result["relative_error"], result["n_entries"]) == (0.0, 2)
    swapped = EffectMatrix(truth[:, ::-1], exact, np.ones(2, int), ("a", "b"), ("b", "a"), 1.5, None)
    assert compare_with_truth(swapped, truth)["relative_error"] == pytest.approx(0, abs=1e-15)


def test_pictures_show_signs_and_gaps(tmp_path):
    """White at zero, red above, blue below, grey where nothing is known."""
    image = pytest.importorskip("matplotlib.image")
    path = matrix([[1.0, -1.0], [0.0, np.nan]]).plot(tmp_path / "effect.png")
    pixels = image.imread(path)[..., :3]
    red, green, blue = np.moveaxis(pixels, -1, 0)
    seen = {
        "red": (red > 0.35) & (blue < 0.2) & (green < 0.1),
        "blue": (blue > 0.35) & (red < 0.1) & (green < 0.3),
        "grey": (np.abs(pixels - 0.85).max(-1) < 0.01),
    }
    assert {name: bool(found.sum() > 1000) for name, found in seen.items()} == dict.fromkeys(seen, True)
    # One cell each: if the colours did not meet at zero, the cell of 0 would be red or blue too.
    assert seen["red"].sum() == pytest.approx(seen["blue"].sum(), rel=0.2)


def test_a_picture_of_a_kernel_has_a_band(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    lag, value = np.linspace(0.1, 2, 30), np.exp(-np.linspace(0.1, 2, 30))
    shares = []
    for error in (0.001, 0.2):
        curve = InfluenceKernel(lag, value, np.full(30, error), 5, "a", "b", "s")
        pixels = image.imread(curve.plot(tmp_path / "kernel.png"))[..., :3]
        shares.append(float((pixels[..., 2] - pixels[..., 0] > 0.1).mean()))
    assert shares[1] > 5 * shares[0]


def test_quadrature_of_scipy_agrees_with_a_single_effect(attentive):
    """One event in one sequence, by adaptive integration of the intensity itself."""
    data = Sequences.from_lists([([1.0], ["c"])], window=(0.0, 6.0), labels=attentive.labels_)
    empty = nothing(attentive.labels_)
    effect = attentive.effect_matrix(data, 4.0, types=["c"])
    for kind in range(3):

        def change(t: float, kind: int = kind) -> float:
            return float((attentive.intensity(data, [t]) - attentive.intensity(empty, [t]))[0, 0, kind])

        exact = integrate.quad(change, 1.0, 5.0, epsabs=1e-9, points=[1.0])[0]
        assert effect.values[kind, 0] == pytest.approx(exact, abs=1e-5)
