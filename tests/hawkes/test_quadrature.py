from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

from seqattn.errors import ParameterError
from seqattn.hawkes.decays import HiddenIntensity, MarkIntensity
from seqattn.hawkes.quadrature import decay_integral, log_softplus, panel_nodes


def exact(asymptote: float, amplitudes, rates, elapsed: float) -> float:
    """Adaptive quadrature on dyadic pieces, so that no scale is missed."""

    def value(u: float) -> float:
        return float(np.logaddexp(0, asymptote + np.sum(amplitudes * np.exp(-rates * u))))

    edges = [0.0, *(elapsed * 2.0**-k for k in range(20, -1, -1))]
    parts = (integrate.quad(value, a, b, epsabs=1e-14, epsrel=1e-12)[0] for a, b in pairwise(edges))
    return float(sum(parts))


def tensors(asymptote: float, amplitudes, rates):
    """One token and one type."""
    parts = (np.array([[asymptote]]), np.array(amplitudes)[None, :, None], np.array(rates)[None, :, None])
    return [torch.from_numpy(part).double() for part in parts]


@pytest.mark.parametrize(("spread", "tolerance"), [(1.0, 1e-6), (3.0, 1e-4)])
@pytest.mark.parametrize("reach", [1e-4, 1e-2, 1.0, 2.99, 3.01, 5.0, 30.0, 300.0, 1e4])
@pytest.mark.parametrize("decays", [1, 4])
def test_integral_equals_adaptive_quadrature(reach, spread, tolerance, decays):
    rng = np.random.default_rng(int(reach * 1e4))
    one = torch.ones(1, dtype=torch.float64)
    for _ in range(4):
        m, amplitudes = rng.normal(0, spread), rng.normal(0, spread, decays)
        rates = rng.uniform(0.1, 5.0) * 10.0 ** -np.arange(decays)
        elapsed = reach / rates[0]
        value = decay_integral(*tensors(m, amplitudes, rates), one, elapsed * one, 12)
        assert float(value) == pytest.approx(exact(m, amplitudes, rates, elapsed), rel=tolerance)


def test_more_nodes_reach_hard_cases():
    one = torch.ones(1, dtype=torch.float64)
    value = float(decay_integral(*tensors(-6.0, [14.0], [0.7]), one, 40 * one, 64))
    assert value == pytest.approx(exact(-6.0, np.array([14.0]), np.array([0.7]), 40.0), rel=1e-8)


def test_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    inputs = [draw(6, 3), draw(6, 2, 3), draw(6, 2, 3).exp(), draw(3).exp()]
    elapsed = torch.tensor([0.001, 0.01, 0.5, 2.0, 10.0, 300.0], dtype=torch.float64)
    inputs = [value.requires_grad_() for value in (*inputs, elapsed)]
    # 40 nodes: the formed gradient is that of the integral, the differences are those of the quadrature.
    assert torch.autograd.gradcheck(lambda *x: decay_integral(*x, 40), inputs, eps=1e-6, atol=1e-6)


def test_float32_loses_little():
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(500, *shape, dtype=torch.float64, generator=generator) for shape in ((4,), (3, 4))]
    rate = torch.rand(500, 3, 4, dtype=torch.float64, generator=generator) * 5 + 0.01
    scale, elapsed = torch.ones(4, dtype=torch.float64), torch.logspace(-4, 4, 500, dtype=torch.float64)
    wide = decay_integral(*parts, rate, scale, elapsed)
    narrow = decay_integral(*(value.float() for value in (*parts, rate, scale, elapsed)))
    torch.testing.assert_close(narrow.double(), wide, rtol=5e-6, atol=0)


def test_types_add_up_to_the_total():
    parts = [torch.randn(7, *shape, dtype=torch.float64) for shape in ((3,), (2, 3))]
    parts.append(torch.rand(7, 2, 3, dtype=torch.float64) + 0.1)
    intensity = MarkIntensity(*parts, torch.rand(3, dtype=torch.float64) + 0.5)
    elapsed = torch.linspace(0, 20, 7, dtype=torch.float64)
    torch.testing.assert_close(intensity.compensator_by_type(elapsed).sum(1), intensity.compensator(elapsed))


@pytest.mark.parametrize("rule", ["gauss", "graded", "trapezoid"])
def test_plain_rules_agree_on_short_intervals(rule):
    parts = [torch.randn(5, *shape, dtype=torch.float64) for shape in ((3,), (2, 3))]
    parts.append(torch.rand(5, 2, 3, dtype=torch.float64))
    scale, elapsed = torch.ones(3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    best = MarkIntensity(*parts, scale).compensator(elapsed)
    other = MarkIntensity(*parts, scale, integral=rule, nodes=60).compensator(elapsed)
    torch.testing.assert_close(other, best, rtol=1e-3 if rule == "trapezoid" else 1e-9, atol=0)


def test_monte_carlo_is_unbiased():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [part.expand(4000, *part.shape[1:]) for part in tensors(0.2, [1.5], [0.8])]
        elapsed = torch.full((4000,), 5.0, dtype=torch.float64)
        one = torch.ones(1, dtype=torch.float64)
        draws = MarkIntensity(*parts, one, integral="monte_carlo", nodes=20).compensator(elapsed)
    error = float(draws.std()) / len(draws) ** 0.5
    assert abs(float(draws.mean()) - exact(0.2, np.array([1.5]), np.array([0.8]), 5.0)) < 4 * error


def test_hidden_form_integral_equals_a_fine_grid():
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    intensity = HiddenIntensity(draw(3, 6), draw(3, 2, 6), draw(3, 2, 6).exp(), draw(2, 6), draw(2), nodes=16)
    elapsed = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    rates = torch.stack(
        [intensity.select(torch.tensor([i])).rates((grid * elapsed[i])[None])[0] for i in range(3)]
    )
    fine = torch.trapezoid(rates, dx=1 / 200_000, dim=1) * elapsed[:, None]
    torch.testing.assert_close(intensity.compensator_by_type(elapsed), fine, rtol=1e-6, atol=0)


def test_hidden_form_gives_gradients_through_blocks():
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    inputs = [draw(3, 4), draw(3, 2, 4), draw(3, 2, 4).exp(), draw(2, 4), draw(2)]
    inputs = [value.requires_grad_() for value in inputs]
    elapsed = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: HiddenIntensity(*x).compensator(elapsed), inputs)


def test_log_softplus_keeps_precision_and_gradient_far_below_zero():
    z = torch.tensor([-800.0, -100.0, -15.5, -14.5, 0.0, 30.0], requires_grad=True)
    value = log_softplus(z)
    z64 = z.detach().double()
    wanted = torch.where(z64 < -30, z64, torch.log(torch.log1p(z64.clamp(min=-30).exp())))
    torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-6)
    value.sum().backward()
    assert torch.isfinite(z.grad).all()
    assert float(z.grad[0]) == pytest.approx(1.0)


def test_unknown_rule_is_refused():
    with pytest.raises(ParameterError, match="simpson.*gauss"):
        panel_nodes("simpson", 4, torch.ones(2))
