from __future__ import annotations

import numpy as np
import pytest
import torch
from hawkes.reference import CROSS, HAWKES, double_sum_log_likelihood, hawkes_data, hawkes_process

from seqattn import PoissonProcess, Sequences
from seqattn.data.batches import pack
from seqattn.errors import ParameterError
from seqattn.hawkes.decays import MarkIntensity
from seqattn.hawkes.forecast import next_event
from seqattn.hawkes.intensity import LinearIntensity
from seqattn.hawkes.likelihood import IntervalScores, score_intervals


def by_hand(sequences: Sequences, parameters, scale: float = 1.0):
    """The Hawkes process written as form A: softplus with sharpness 1e-3 is linear to rounding."""
    mu, matrix, decay = parameters
    batch = pack(sequences, np.arange(len(sequences)), scale=scale, dtype=torch.float64)
    felt = np.zeros((batch.n_tokens, len(mu)))
    for start, stop in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        state = np.zeros(len(mu))
        for token in range(start, stop):
            state = state * np.exp(-decay * scale * float(batch.gap[token]))
            if int(batch.types[token]) < len(mu):
                state[int(batch.types[token])] += 1
            felt[token] = matrix @ state * decay
    sharp = 1e-3
    asymptote = torch.from_numpy(np.broadcast_to(mu * scale / sharp, felt.shape).copy())
    amplitude = torch.from_numpy(felt * scale / sharp)
    rate = torch.full(felt.shape, decay * scale, dtype=torch.float64)
    scales = torch.full((len(mu),), sharp, dtype=torch.float64)
    linear = LinearIntensity(asymptote * sharp, amplitude * sharp, rate[:, 0])
    return batch, MarkIntensity(asymptote, amplitude[:, None], rate[:, None], scales, nodes=24), linear


@pytest.mark.parametrize("parameters", [HAWKES, CROSS])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_form_a_set_by_hand_is_the_hawkes_process(parameters, scale):
    data = hawkes_data(parameters, 6, seed=3)
    batch, intensity, _ = by_hand(data, parameters, scale)
    scores = score_intervals(batch, intensity, scale)
    for convention in ("full", "to_last", "from_first"):
        log_time = log_type = 0.0
        for row in range(len(data)):
            times, kinds = data.sequence(row)
            end = 100.0 if convention == "full" else times[-1]
            first = 1 if convention == "from_first" else 0
            time, kind = double_sum_log_likelihood(times, kinds, 0.0, end, parameters, first)
            log_time, log_type = log_time + time, log_type + kind
        value = scores.log_likelihood(convention, "given")
        assert value.total == pytest.approx(log_time + log_type, rel=1e-6)
        assert value.time * value.n_events == pytest.approx(log_time, rel=1e-6)
        assert value.type * value.n_events == pytest.approx(log_type, rel=1e-6)
        assert value.n_events == data.n_events - (len(data) if convention == "from_first" else 0)


def test_form_a_set_by_hand_forecasts_like_the_hawkes_process():
    batch, intensity, linear = by_hand(hawkes_data(HAWKES, 4, seed=5), HAWKES)
    one, other = next_event(intensity, (0.9,), batch.until), next_event(linear, (0.9,), batch.until)
    for name in ("mean", "median", "quantiles", "type_probability", "crps"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=2e-5, atol=1e-8)
    torch.testing.assert_close(
        intensity.compensator(batch.until), linear.compensator(batch.until), rtol=1e-6, atol=0
    )


def test_baseline_recursion_equals_the_double_sum():
    data = hawkes_data(HAWKES, 5, seed=8)
    model = hawkes_process(HAWKES)
    total = sum(
        sum(double_sum_log_likelihood(*data.sequence(i), 0.0, 100.0, HAWKES)) for i in range(len(data))
    )
    assert model.log_likelihood(data).total == pytest.approx(total, rel=1e-10)


def test_windows_add_up():
    data = hawkes_data(HAWKES, 3, seed=9)
    model = hawkes_process(HAWKES)
    for cut in (17.3, 50.0, 99.9):
        parts = []
        for row in range(len(data)):
            times, kinds = data.sequence(row)
            early = times <= cut
            head = Sequences.from_lists([(times[early], kinds[early])], window=(0.0, cut), labels=2)
            parts.append(model.log_likelihood(head).total)
            # The rest of the window given the past: all terms that belong to times after the cut.
            whole = model.log_likelihood(
                Sequences.from_lists([(times, kinds)], window=(0.0, 100.0), labels=2)
            ).total
            late = 0.0
            intensities = model.intensity(data.select([row]), times[~early])[0]
            late += np.log(intensities[np.arange((~early).sum()), kinds[~early]]).sum()
            grid = np.unique(np.concatenate([np.linspace(cut, 100.0, 20_001), times[~early]]))
            middle, half = (grid[1:] + grid[:-1]) / 2, np.diff(grid) / 2
            for side in (-1, 1):  # two-point Gauss-Legendre in every cell
                points = middle + side * half / np.sqrt(3)
                late -= (model.intensity(data.select([row]), points)[0].sum(1) * half).sum()
            assert parts[-1] + late == pytest.approx(whole, abs=1e-6)


def test_split_of_compensator_at_any_point():
    _, intensity, _ = by_hand(hawkes_data(HAWKES, 2, seed=1), HAWKES)
    whole = torch.rand(intensity.n_tokens, dtype=torch.float64) * 5
    for share in (0.0, 0.3, 1.0):
        first = whole * share
        rest = intensity.shift(first).compensator(whole - first)
        torch.testing.assert_close(
            intensity.compensator(first) + rest, intensity.compensator(whole), rtol=1e-6, atol=0
        )


def test_poisson_formula_and_time_unit():
    rows = [([1.0, 2.0, 7.0], [0, 1, 0]), ([], []), ([3.0], [1])]
    data = Sequences.from_lists(rows, window=(0.0, 10.0), labels=2)
    model = PoissonProcess().fit(data)
    np.testing.assert_allclose(model.rate_, [2 / 30, 2 / 30])
    exact = 4 * np.log(2 / 30) - 4
    assert model.log_likelihood(data).total == pytest.approx(exact, rel=1e-12)
    faster = Sequences.from_lists([(np.array(t) * 60, k) for t, k in rows], window=(0.0, 600.0), labels=2)
    shifted = PoissonProcess().fit(faster).log_likelihood(faster).total
    assert shifted == pytest.approx(exact - 4 * np.log(60), rel=1e-12)


def test_empty_sequence_scores_its_window():
    data = Sequences.from_lists([([], []), ([1.0], [0])], window=(0.0, 10.0), labels=2)
    model = hawkes_process(HAWKES)
    result = model.log_likelihood(data.select([0]))
    assert result.total == pytest.approx(-10 * HAWKES[0].sum(), rel=1e-12)
    assert result.n_events == 0
    assert np.isnan(result.per_event)


def test_events_a_window_conditions_on_are_not_scored():
    rows = [([0.0, 1.0, 3.0], [0, 1, 0])]
    origin = hawkes_process(HAWKES).log_likelihood(Sequences.from_lists(rows, labels=2))
    given = hawkes_process(HAWKES).log_likelihood(
        Sequences.from_lists(rows, window=(0.0, 3.0), labels=2), "from_first"
    )
    assert origin.n_events == given.n_events == 2
    assert origin.total == pytest.approx(given.total, rel=1e-12)
    assert origin.window == "last_event"


def test_impossible_events_are_not_capped():
    """No epsilon hides an event that the model deems impossible: the penalty grows without end."""
    asymptote = torch.full((2, 1), -300.0)
    intensity = MarkIntensity(asymptote, torch.zeros(2, 1, 1), torch.ones(2, 1, 1), torch.ones(1))
    data = Sequences.from_lists([([1.0], [0])], window=(0.0, 2.0), labels=1)
    scores = score_intervals(pack(data, np.array([0])), intensity, 1.0)
    assert scores.log_likelihood("full", "given").total == pytest.approx(-300.0)


def test_chain_of_rescaled_gaps_drops_only_the_last_piece():
    scores = IntervalScores(
        row=np.array([0, 0, 1, 1]),
        position=np.array([0, 1, 0, 1]),
        scored=np.ones(4, dtype=bool),
        ends=np.array([True, False, True, False]),
        log_total=np.zeros(4),
        log_type=np.zeros(4),
        compensator=np.array([0.5, 0.25, 1.0, 9.0]),
    )
    assert scores.rescaled_gaps().tolist() == [0.5, 1.25]


def test_unknown_convention_is_refused():
    with pytest.raises(ParameterError, match="'from_frist'.*Did you mean 'from_first'"):
        hawkes_process(HAWKES).log_likelihood(hawkes_data(HAWKES, 1, seed=0), "from_frist")


def test_an_event_whose_term_is_zero_still_counts():
    """One published program counts events by log terms that are not zero."""
    data = Sequences.from_lists([([1.0, 2.0], [0, 0])], window=(0.0, 3.0), labels=1)
    model = PoissonProcess().fit(data)
    model.rate_ = np.array([1.0])
    result = model.log_likelihood(data)
    assert result.n_events == 2
    assert result.total == pytest.approx(-3.0)
