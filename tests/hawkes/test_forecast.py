from __future__ import annotations

import numpy as np
import pytest
import torch

from seqattn.hawkes.decays import HiddenIntensity, MarkIntensity
from seqattn.hawkes.forecast import next_event, reach
from seqattn.hawkes.intensity import LinearIntensity, SumIntensity
from seqattn.hawkes.kernels import KernelIntensity


def random_mark(tokens: int, types: int, seed: int, spread: float = 1.5, decays: int = 1) -> MarkIntensity:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    rate = torch.nn.functional.softplus(2 * draw(tokens, decays, types)) + 1e-6
    asymptote, amplitude = spread * draw(tokens, types) - 1, spread * draw(tokens, decays, types)
    return MarkIntensity(asymptote, amplitude, rate, draw(types).exp())


def random_decays(tokens: int, types: int, seed: int) -> MarkIntensity:
    return random_mark(tokens, types, seed, decays=4)


def random_sum(tokens: int, types: int, seed: int) -> SumIntensity:
    """Decays, kernels on own gaps and on common gaps, some of them sharp."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    own = KernelIntensity(
        draw(tokens, 3, types), draw(tokens, types), 3 * draw(3, types), 0.02 + draw(3, types)
    )
    sharp = KernelIntensity(
        2 * draw(tokens, 2, types) - 2, draw(tokens, 1), 0.2 + draw(2, types), 0.01 + 0.05 * draw(2, types)
    )
    return SumIntensity((random_mark(tokens, types, seed, decays=2), own, sharp))


def random_hidden(tokens: int, types: int, seed: int) -> HiddenIntensity:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return HiddenIntensity(
        draw(tokens, 8), 2 * draw(tokens, 2, 8), draw(tokens, 2, 8).exp(), draw(types, 8), draw(types)
    )


def on_a_grid(intensity, token: int, seen: float, step: float = 2e-4, points: int = 400_001):
    """Brute force on an equidistant grid: mean, median, type probabilities, CRPS."""
    u = torch.arange(points, dtype=torch.float64) * step
    rates = intensity.select(torch.tensor([token])).rates(u[None])[0]
    total = rates.sum(1)
    mass = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(total, dx=step)])
    survival = torch.exp(-mass)
    assert survival[-1] < 1e-6
    median = float(np.interp(np.log(2), mass, u))
    types = torch.trapezoid(rates * survival[:, None], dx=step, dim=0)
    score = torch.trapezoid(((1 - survival) - (u >= seen).double()) ** 2, dx=step)
    return float(torch.trapezoid(survival, dx=step)), median, types, float(score)


@pytest.mark.parametrize("make", [random_mark, random_hidden, random_decays, random_sum])
def test_all_answers_equal_brute_force(make):
    intensity = make(5, 3, seed=4)
    seen = torch.tensor([0.01, 0.3, 1.0, 2.0, 5.0], dtype=torch.float64)
    answer = next_event(intensity, (0.1, 0.9), seen)
    for token in range(5):
        mean, median, types, score = on_a_grid(intensity, token, float(seen[token]))
        assert float(answer.mean[token]) == pytest.approx(mean, rel=1e-4)
        assert float(answer.median[token]) == pytest.approx(median, rel=1e-4)
        torch.testing.assert_close(answer.type_probability[token], types, rtol=1e-3, atol=1e-5)
        assert float(answer.crps[token]) == pytest.approx(score, abs=3e-4)


def test_probability_sums_to_one_for_extreme_states():
    wild = random_mark(400, 4, seed=7, spread=8.0)
    answer = next_event(wild)
    assert answer.mass_error < 1e-4
    torch.testing.assert_close(answer.type_probability.sum(1), torch.ones(400, dtype=torch.float64))
    assert torch.isfinite(answer.mean).all()
    assert (answer.mean > 0).all()
    assert (answer.median > 0).all()


def test_quantiles_invert_the_compensator():
    intensity = random_mark(200, 3, seed=8, spread=3.0)
    levels = (0.01, 0.25, 0.75, 0.999)
    answer = next_event(intensity, levels)
    for place, level in enumerate(levels):
        reached = intensity.compensator(answer.quantiles[:, place], refine=3)
        torch.testing.assert_close(reached, torch.full_like(reached, -np.log1p(-level)), rtol=2e-3, atol=1e-6)


@pytest.mark.slow
def test_mean_equals_the_average_of_simulated_gaps():
    intensity = random_mark(1, 2, seed=11)
    rng = np.random.default_rng(0)
    grid = torch.linspace(0, 80, 800_001, dtype=torch.float64)
    total = intensity.rates(grid[None])[0].sum(1)
    mass = torch.cat(
        [torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(total, dx=1e-4)]
    ).numpy()
    gaps = np.interp(rng.exponential(size=200_000), mass, grid.numpy())
    error = gaps.std() / len(gaps) ** 0.5
    assert abs(float(next_event(intensity).mean) - gaps.mean()) < 4 * error


def test_constant_intensity_is_the_exponential_law():
    rates = torch.tensor([[0.5, 1.5], [1e-4, 1e-4], [2000.0, 1.0]], dtype=torch.float64)
    answer = next_event(LinearIntensity(rates, torch.zeros_like(rates), torch.ones(3, dtype=torch.float64)))
    total = rates.sum(1)
    torch.testing.assert_close(answer.mean, 1 / total, rtol=1e-10, atol=0)
    torch.testing.assert_close(answer.median, np.log(2) / total, rtol=1e-10, atol=0)
    torch.testing.assert_close(answer.type_probability, rates / total[:, None], rtol=1e-10, atol=0)


def test_waiting_conditions_on_nothing_having_happened():
    intensity = random_mark(3, 2, seed=5)
    waited = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    later = intensity.shift(waited)
    u = torch.rand(3, 6, dtype=torch.float64)
    torch.testing.assert_close(later.rates(u), intensity.rates(u + waited[:, None]))
    # The mean residual time from its definition: integral of S(w + u) / S(w).
    answer = next_event(later).mean
    for token in range(3):
        grid = waited[token] + torch.arange(800_001, dtype=torch.float64) * 5e-4
        total = intensity.select(torch.tensor([token])).rates(grid[None])[0].sum(1)
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(total, dx=5e-4)])
        assert float(answer[token]) == pytest.approx(
            float(torch.trapezoid(torch.exp(-mass), dx=5e-4)), rel=1e-4
        )


def test_order_and_company_of_tokens_do_not_matter():
    intensity = random_mark(300, 3, seed=9, spread=4.0)
    whole = next_event(intensity).mean
    alone = torch.cat([next_event(intensity.select(torch.tensor([i]))).mean for i in (0, 17, 299)])
    torch.testing.assert_close(whole[[0, 17, 299]], alone, rtol=1e-6, atol=0)


def test_no_tokens_give_empty_answers():
    answer = next_event(random_mark(4, 3, seed=1).select(slice(0, 0)), (0.1,))
    assert answer.mean.shape == (0,)
    assert answer.quantiles.shape == (0, 1)
    assert answer.type_probability.shape == (0, 3)


@pytest.mark.parametrize("base", [1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
def test_a_small_final_intensity_does_not_blow_up_the_mean(base):
    """What survives divided by the final intensity is the tail: it must be small where that intensity is tiny."""
    rate = torch.full((1, 1), base, dtype=torch.float64)
    intensity = LinearIntensity(rate, torch.full_like(rate, 5.0), torch.full((1,), 0.1, dtype=torch.float64))
    u = torch.arange(0, 3000.0, 1e-3, dtype=torch.float64)
    survival = torch.exp(-(base * u + 50 * -torch.expm1(-0.1 * u)))
    exact = float(torch.trapezoid(survival, u) + survival[-1] / base)
    assert float(next_event(intensity).mean) == pytest.approx(exact, rel=1e-5)


def test_many_narrow_peaks_are_all_seen():
    """Two hundred sharp peaks, none of which brings much: the walk must not end among them."""
    kernels = KernelIntensity(
        torch.full((1, 200, 1), float(np.log(np.expm1(0.02)))).double(),
        torch.zeros(1, 1).double(),
        torch.linspace(0.1, 30, 200)[:, None].double(),
        torch.full((200, 1), 1e-3).double(),
    )
    base = torch.full((1, 1), 1e-3, dtype=torch.float64)
    intensity = SumIntensity((LinearIntensity(base, 0 * base, base[:, 0]), kernels))
    u = torch.linspace(0, 40, 400_001, dtype=torch.float64)
    jumps = torch.special.ndtr((u[:, None] - kernels.centre.T) / 1e-3).sum(1) * 0.02
    survival = torch.exp(-(1e-3 * u + jumps))
    exact = float(torch.trapezoid(survival, u) + survival[-1] / 1e-3)
    assert float(next_event(intensity).mean) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("make", [random_mark, random_decays, random_sum])
def test_times_are_reached_when_the_compensator_says_so(make):
    intensity = make(200, 3, seed=12)
    goal = torch.linspace(0.01, 6, 200, dtype=torch.float64)
    time = reach(intensity, goal, torch.full_like(goal, 1e9))
    torch.testing.assert_close(intensity.compensator(time, refine=3), goal, rtol=1e-5, atol=1e-6)


def test_times_are_reached_in_wild_states_too():
    intensity = random_mark(200, 3, seed=13, spread=6.0, decays=4)
    goal = torch.linspace(0.01, 6, 200, dtype=torch.float64)
    time = reach(intensity, goal, torch.full_like(goal, 1e9))
    torch.testing.assert_close(intensity.compensator(time), goal, rtol=1e-4, atol=1e-5)


def test_many_small_kernels_count_together():
    """Eight thousand kernels of 7e-6 events each bring 0.05 events, which no forecast may leave out."""
    n_types = 1000
    kernels = KernelIntensity(
        torch.full((1, 8, n_types), -11.9, dtype=torch.float64),
        torch.zeros(1, n_types, dtype=torch.float64),
        torch.linspace(5, 15, 8, dtype=torch.float64)[:, None].expand(-1, n_types),
        torch.ones(8, n_types, dtype=torch.float64),
    )
    rate = torch.full((1, n_types), 0.01 / n_types, dtype=torch.float64)
    whole = SumIntensity((LinearIntensity(rate, 0 * rate, torch.ones(1, dtype=torch.float64)), kernels))
    answer = next_event(whole, (0.3,))
    for time, level in ((answer.median, 0.5), (answer.quantiles[:, 0], 0.3)):
        assert float(whole.compensator(time)) == pytest.approx(-np.log1p(-level), rel=1e-5)
