from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from seqattn.hawkes.decays import HiddenIntensity, MarkIntensity
from seqattn.hawkes.intensity import SumIntensity
from seqattn.hawkes.kernels import KernelBank, KernelIntensity, kernel_starts


def draws(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=generator)


def random_kernels(tokens: int = 5, kernels: int = 3, types: int = 2, seed: int = 0, common: bool = False):
    draw = draws(seed)
    since = draw(tokens, 1 if common else types)
    argument = 4 * draw(tokens, kernels, types) - 2
    return KernelIntensity(argument, since, 2 * draw(kernels, types), 0.03 + 0.3 * draw(kernels, types))


def random_decays(tokens: int = 5, types: int = 2, seed: int = 1) -> MarkIntensity:
    draw = draws(seed)
    amplitude = 4 * draw(tokens, 3, types) - 2
    return MarkIntensity(draw(tokens, types) - 1, amplitude, 5 * draw(tokens, 3, types), 0.5 + draw(types))


def by_hand(kernels: KernelIntensity, token: int, kind: int, u: float) -> float:
    since = float(kernels.since[token, kind if kernels.since.shape[1] > 1 else 0])
    amplitude = np.logaddexp(0, kernels.argument[token, :, kind].numpy())
    return float(amplitude @ stats.norm.pdf(since + u, kernels.centre[:, kind], kernels.width[:, kind]))


@pytest.mark.parametrize("common", [False, True])
def test_rates_and_logarithms_are_sums_of_normal_densities(common):
    kernels = random_kernels(common=common)
    u = torch.tensor([0.0, 0.1, 0.5, 1.0, 4.0], dtype=torch.float64)
    rates = kernels.rates(u[None].expand(5, -1))
    for token in range(5):
        for kind in range(2):
            values = [by_hand(kernels, token, kind, float(x)) for x in u]
            assert rates[token, :, kind].tolist() == pytest.approx(values, rel=1e-12, abs=1e-22)
    torch.testing.assert_close(kernels.log_rates(u).exp(), torch.diagonal(rates).T, rtol=1e-10, atol=1e-22)
    rows, kind = torch.tensor([3, 0, 3]), torch.tensor([1, 0, 0])
    some = kernels.log_rate(u[rows], kind, rows)
    torch.testing.assert_close(some, kernels.log_rates(u)[rows, kind], rtol=1e-12, atol=0)


def test_far_from_all_peaks_the_logarithm_stays_finite():
    far = torch.full((5,), 1e4, dtype=torch.float32)
    kernels = random_kernels().to(torch.float32)
    kernels.argument.requires_grad_()
    value = kernels.log_rate(far, torch.zeros(5, dtype=torch.long))
    assert torch.isfinite(value).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), kernels.argument)[0]).all()


@pytest.mark.parametrize("common", [False, True])
def test_integral_equals_quadrature(common):
    kernels = random_kernels(common=common)
    elapsed = torch.tensor([0.0, 0.2, 1.0, 2.5, 30.0], dtype=torch.float64)
    by_type = kernels.compensator_by_type(elapsed)
    for token in range(5):
        for kind in range(2):
            edges = np.linspace(0, float(elapsed[token]), 60)
            parts = (
                integrate.quad(lambda u, t=token, k=kind: by_hand(kernels, t, k, u), a, b, epsabs=1e-13)[0]
                for a, b in pairwise(edges)
            )
            assert float(by_type[token, kind]) == pytest.approx(sum(parts), abs=1e-10)
    torch.testing.assert_close(kernels.compensator(elapsed), by_type.sum(1))


def test_gradient_of_the_integral_equals_finite_differences():
    kernels, elapsed = random_kernels(), torch.rand(5, dtype=torch.float64) * 2
    inputs = [x.clone().requires_grad_() for x in (kernels.argument, kernels.centre, kernels.width, elapsed)]

    def integral(argument, centre, width, elapsed):
        return KernelIntensity(argument, kernels.since, centre, width).compensator(elapsed)

    assert torch.autograd.gradcheck(integral, inputs)


def test_many_types_go_through_in_blocks():
    draw = draws(4)
    wide = KernelIntensity(draw(300, 2, 400), draw(300, 400), draw(2, 400), 0.1 + draw(2, 400))
    elapsed = draw(300)
    torch.testing.assert_close(wide.compensator(elapsed), wide.compensator_by_type(elapsed).sum(1))


def processes():
    mark, kernels = random_decays(), random_kernels()
    draw = draws(7)
    hidden = HiddenIntensity(
        draw(5, 6), 6 * draw(5, 2, 6) - 3, 3 * draw(5, 2, 6), 2 * draw(2, 6) - 1, draw(2)
    )
    return {"mark": mark, "hidden": hidden, "kernels": kernels, "sum": SumIntensity((mark, kernels))}


@pytest.mark.parametrize("name", ["mark", "hidden", "kernels", "sum"])
def test_bounds_hold_from_now_on_and_the_floor_for_ever(name):
    intensity = processes()[name]
    u = torch.linspace(0, 12, 4001, dtype=torch.float64)
    total = intensity.rates(u[None].expand(5, -1)).sum(2)
    highest_later = total.flip(1).cummax(1).values.flip(1)
    for place in range(0, 4001, 200):
        bound = intensity.bound(u[place].expand(5))
        assert (bound * (1 + 1e-9) >= highest_later[:, place]).all()
    assert (intensity.floor()[:, None] <= total * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", ["mark", "hidden", "kernels", "sum"])
@pytest.mark.parametrize("length", [0.01, 0.3, 2.0])
def test_bounds_of_a_window_hold_in_it(name, length):
    intensity = processes()[name]
    u = torch.linspace(0, 12, 4001, dtype=torch.float64)
    total = intensity.rates(u[None].expand(5, -1)).sum(2)
    tight = 0
    for place in range(0, 3000, 100):
        inside = (u >= u[place]) & (u <= u[place] + length)
        bound = intensity.bound(u[place].expand(5), (u[place] + length).expand(5))
        assert (bound * (1 + 1e-9) >= total[:, inside].amax(1)).all()
        assert (bound <= intensity.bound(u[place].expand(5)) * (1 + 1e-12)).all()
        tight += int((bound < 0.5 * intensity.bound(u[place].expand(5))).sum())
    if length < 0.1:
        assert (tight > 0) == intensity.has_peaks


@pytest.mark.parametrize("name", ["mark", "hidden", "sum"])
def test_intensities_are_settled_when_they_say_so(name):
    intensity = processes()[name]
    rates = intensity.rates(intensity.settled()[:, None])[:, 0]
    torch.testing.assert_close(rates, intensity.limit(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["mark", "hidden", "kernels", "sum"])
def test_the_clock_can_be_started_later(name):
    intensity, by = processes()[name], torch.rand(5, dtype=torch.float64)
    u = torch.rand(5, 3, dtype=torch.float64)
    torch.testing.assert_close(intensity.shift(by).rates(u), intensity.rates(u + by[:, None]))


def test_kernels_with_nothing_in_them_change_no_bit():
    mark, kernels = random_decays(), random_kernels()
    nothing = KernelIntensity(
        torch.full_like(kernels.argument, -torch.inf), kernels.since, kernels.centre, kernels.width
    )
    whole, u = SumIntensity((mark, nothing)), torch.rand(5, dtype=torch.float64)
    kind = torch.tensor([0, 1, 0, 1, 0])
    assert torch.equal(whole.log_rate(u, kind), mark.log_rate(u, kind))
    assert torch.equal(whole.compensator(u), mark.compensator(u))
    assert torch.equal(whole.rates(u[:, None]), mark.rates(u[:, None]))
    assert torch.equal(whole.bound(u), mark.bound(u))


def test_kernels_start_at_the_quantiles_of_each_type():
    rng = np.random.default_rng(0)
    gaps = [rng.uniform(0, 1, 400), rng.uniform(10, 20, 400), rng.uniform(0, 1, 5)]
    types = np.repeat([0, 1, 2], [len(part) for part in gaps])
    centre, width = kernel_starts(types, np.concatenate(gaps), 3, 4)
    expected = np.quantile(gaps[1], [1 / 8, 3 / 8, 5 / 8, 7 / 8])
    assert centre[:, 1].tolist() == pytest.approx(expected)
    assert width[:, 1].tolist() == pytest.approx(0.7 * np.diff(np.quantile(gaps[1], np.arange(5) / 4)))
    pooled = np.quantile(np.concatenate(gaps), [1 / 8, 3 / 8, 5 / 8, 7 / 8])
    assert centre[:, 2].tolist() == pytest.approx(pooled)  # too few of its own


@pytest.mark.parametrize("n_types", [1, 22, 75, 1000])
def test_untrained_kernels_of_many_types_do_not_add_up(n_types):
    bank = KernelBank(8, 8, n_types)
    start = torch.nn.functional.softplus(bank.amplitude.bias)
    assert start.sum() < 10
    if n_types <= 22:
        assert start[0].item() == pytest.approx(np.log1p(np.exp(-3.0)))
