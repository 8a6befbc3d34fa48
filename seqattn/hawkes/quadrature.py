r"""Integrals of decaying softplus intensities.

The integral of softplus(m + a exp(-g u)) is not elementary. What is here: the graded rule that is exact to about
1e-6 whatever the length of the interval, with its gradient formed in the forward pass; the plain rules kept for
comparison; and a softplus whose logarithm keeps its precision far below zero.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from seqattn.errors import ParameterError

INTEGRALS = ("graded", "gauss", "monte_carlo", "trapezoid")

# Beyond three decay times the exponential has fallen to 5 %, and the substitution v = exp(-g u) is smooth there.
_CUT = 3.0
# Elements per block of (tokens, types): a dozen work arrays of this size stay in a core's cache.
_BLOCK = 1 << 15


@lru_cache(maxsize=64)
def _legendre(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return tuple((nodes + 1) / 2), tuple(weights / 2)


def gauss_legendre(n: int, like: Tensor) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    """Return the nodes and weights of the n-point Gauss-Legendre rule on (0, 1).

    Parameters
    ----------
    n
        Number of nodes, at least 1. Polynomials up to degree 2 n - 1 are integrated exactly.
    like
        A tensor whose precision and device the result takes.

    Examples
    --------
    >>> nodes, weights = gauss_legendre(3, torch.zeros(1, dtype=torch.float64))
    >>> round(float((weights * nodes**5).sum()), 12)  # 1/6
    0.166666666667
    """
    nodes, weights = _legendre(n)
    return like.new_tensor(nodes), like.new_tensor(weights)


def log_softplus(argument: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return log(softplus(z)) without losing precision for very negative z, where it tends to z.

    Examples
    --------
    >>> log_softplus(torch.tensor([-200.0, 0.0]))
    tensor([-200.0000,   -0.3665])
    """
    low = argument < -15.0
    # Both branches must stay finite where they are not taken, or their gradients would be nan.
    negative = argument.clamp(max=-15.0)
    return torch.where(low, negative - negative.exp() / 2, softplus(argument.clamp(min=-15.0)).log())


def panel_nodes(rule: str, n: int, elapsed: Float[Tensor, " tokens"]) -> tuple[Tensor, Tensor]:
    """Return nodes as fractions of the interval, of shape (1 or tokens, nodes), and their weights.

    Parameters
    ----------
    rule
        ``"gauss"``: one panel of ``n`` nodes. ``"graded"``: four panels with edges at 1/64, 1/16 and 1/4, ``n // 3``
        nodes each. ``"trapezoid"``: ``n`` equidistant points with both ends. ``"monte_carlo"``: ``n`` uniform draws
        per token from torch's generator, for training only.
    n
        Number of nodes.
    elapsed
        Lengths of the intervals; only their number, precision and device are used.

    Raises
    ------
    ParameterError
        The rule is unknown.
    """
    if rule == "gauss":
        nodes, weights = gauss_legendre(n, elapsed)
    elif rule == "graded":
        base, base_weights = gauss_legendre(max(2, n // 3), elapsed)
        edges = elapsed.new_tensor([0.0, 1 / 64, 1 / 16, 1 / 4, 1.0])
        nodes = (edges[:-1, None] + edges.diff()[:, None] * base).flatten()
        weights = (edges.diff()[:, None] * base_weights).flatten()
    elif rule == "trapezoid":
        nodes = torch.linspace(0, 1, n, dtype=elapsed.dtype, device=elapsed.device)
        weights = torch.full_like(nodes, 1 / (n - 1))
        weights[[0, -1]] /= 2
    elif rule == "monte_carlo":
        draws = torch.rand(elapsed.shape[0], n, dtype=elapsed.dtype, device=elapsed.device)
        return draws, elapsed.new_full((n,), 1 / n)
    else:
        raise ParameterError(f"integral={rule!r} is unknown. Use one of {INTEGRALS}.")
    return nodes[None], weights


def decay_integral(
    asymptote: Float[Tensor, "tokens types"],
    amplitude: Float[Tensor, "tokens types"],
    rate: Float[Tensor, "tokens types"],
    scale: Float[Tensor, " types"],
    elapsed: Float[Tensor, " tokens"],
    nodes: int = 12,
    by_type: bool = False,
) -> Tensor:
    r"""Integrate softplus intensities with exponential decay from the token on.

    .. math:: I_k = s_k \int_0^{\Delta} \mathrm{softplus}\bigl(m_k + a_k e^{-\gamma_k u}\bigr)\, du

    With :math:`c = \min(\Delta, 3/\gamma)`: Gauss-Legendre in u on (0, c]; on (c, :math:`\Delta`] the asymptote is
    taken out and :math:`v = e^{-\gamma u}` substituted, so that the number of nodes need not grow with
    :math:`\gamma\Delta`. No tensor with an axis of nodes is built, and the gradient is formed in the forward pass.

    Parameters
    ----------
    asymptote, amplitude, rate
        :math:`m`, :math:`a` and :math:`\gamma > 0`.
    scale
        :math:`s > 0`.
    elapsed
        :math:`\Delta \ge 0`.
    nodes
        Nodes of the first part; the second part has half as many.
    by_type
        Whether to return each type (no gradient then) or the sum over types.

    Returns
    -------
    Expected numbers of events, of shape (tokens,) or (tokens, types). With 12 nodes the relative error is below 1e-5
    for :math:`m, a` of ordinary size (standard normal: 1e-8) and any :math:`\gamma\Delta`.

    Examples
    --------
    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> exact = 2.0 * torch.log1p(torch.e**one)  # constant intensity
    >>> value = decay_integral(one, 0 * one, one, one[0], 2 * one[0])
    >>> bool(torch.isclose(value, exact[0]))
    True
    """
    if by_type:
        with torch.no_grad():
            work = _integrate(asymptote, amplitude, rate, elapsed, nodes, gradients=False)
            return work[0] * scale
    return _DecayIntegral.apply(asymptote, amplitude, rate, scale, elapsed, nodes)


class _DecayIntegral(torch.autograd.Function):
    """Sum over types; values and gradients come from one sweep over the nodes, block by block."""

    @staticmethod
    def forward(
        ctx: Any, m: Tensor, a: Tensor, rate: Tensor, scale: Tensor, elapsed: Tensor, nodes: int
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        size = max(1, _BLOCK // max(1, m.shape[1]))
        total = m.new_empty(m.shape[0])
        gradients = [torch.empty_like(m) for _ in range(3)] if wanted else []
        by_scale = torch.zeros_like(m) if wanted else m
        for start in range(0, m.shape[0], size):
            rows = slice(start, start + size)
            value, *slopes = _integrate(m[rows], a[rows], rate[rows], elapsed[rows], nodes, wanted)
            torch.mv(value, scale, out=total[rows])
            for whole, slope in zip(gradients, slopes, strict=False):
                torch.mul(slope, scale, out=whole[rows])
            if wanted:
                by_scale[rows] = value
        if wanted:
            last = m + a * torch.exp(-rate * elapsed[:, None])
            ctx.save_for_backward(*gradients, by_scale, softplus(last) @ scale)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        by_m, by_a, by_rate, by_scale, by_elapsed = ctx.saved_tensors
        column = upstream[:, None]
        return (
            by_m * column,
            by_a * column,
            by_rate * column,
            upstream @ by_scale,
            by_elapsed * upstream,
            None,
        )


def _integrate(
    m: Tensor, a: Tensor, rate: Tensor, elapsed: Tensor, nodes: int, gradients: bool
) -> list[Tensor]:
    """Return the integral per type and, if wanted, its derivatives by m, a and the rate."""
    span = rate * elapsed[:, None]
    sums = _near_part(m, a, span.clamp(max=_CUT), nodes, gradients)
    beyond = (span > _CUT).view(-1).nonzero()[:, 0]
    if len(beyond):  # a few per cent of the pairs as a rule: the far part is computed for these only
        far = [values.reshape(-1)[beyond] for values in (m, a, span)]
        parts = _far_part(far[0], far[1], far[2], max(2, nodes // 2), gradients)
        for whole, part in zip(sums, parts, strict=True):
            whole.view(-1).index_add_(0, beyond, part)
    # Up to here time is counted in units of 1 / rate.
    sums[0].div_(rate)
    if gradients:
        sums[1].div_(rate)
        sums[2].div_(rate)
        sums[3].div_(rate).div_(rate)
    return sums


def _near_part(m: Tensor, a: Tensor, span: Tensor, nodes: int, gradients: bool) -> list[Tensor]:
    """Gauss-Legendre in time on (0, span], span in units of 1 / rate."""
    value = torch.zeros_like(m)
    by_m, by_a, by_rate = (torch.zeros_like(m) for _ in range(3)) if gradients else (value, value, value)
    for node, weight in zip(*_legendre(nodes), strict=True):
        decay = torch.exp(span * -node)
        argument = torch.addcmul(m, a, decay)
        value.add_(softplus(argument), alpha=weight)
        if gradients:
            slope = argument.sigmoid_()
            by_m.add_(slope, alpha=weight)
            slope.mul_(decay)
            by_a.add_(slope, alpha=weight)
            by_rate.add_(slope, alpha=weight * node)
    value.mul_(span)
    if not gradients:
        return [value]
    return [value, by_m.mul_(span), by_a.mul_(span), by_rate.mul_(span * span).mul_(-a)]


def _far_part(m: Tensor, a: Tensor, span: Tensor, nodes: int, gradients: bool) -> list[Tensor]:
    r"""Beyond the cut: (span - cut) softplus(m) plus the integral of (softplus(m + a v) - softplus(m)) / v over v.

    The derivative by the rate follows from the scaling of the integral: with time in units of 1 / rate, raising the
    rate moves both ends, so that it is the end value minus the mean value.
    """
    rest = span - _CUT
    low, high = torch.exp(-span), float(np.exp(-_CUT))
    base, base_slope = softplus(m), torch.sigmoid(m)
    excess = torch.zeros_like(m)
    slopes, slopes_v = (torch.zeros_like(m), torch.zeros_like(m)) if gradients else (excess, excess)
    width = high - low
    for node, weight in zip(*_legendre(nodes), strict=True):
        v = low + width * node
        move = a * v
        argument = m + move
        # The quotient loses all digits for tiny moves; its limit there is the derivative of the softplus.
        rise = torch.where(move.abs() < 1e-3, base_slope * move, softplus(argument) - base)
        excess.add_(rise / v, alpha=weight)
        if gradients:
            slope = argument.sigmoid_()
            slopes_v.add_(slope, alpha=weight)
            slopes.add_((slope - base_slope) / v, alpha=weight)
    excess.mul_(width)
    value = torch.addcmul(excess, rest, base)
    if not gradients:
        return [value]
    by_m = torch.addcmul(slopes.mul_(width), rest, base_slope)
    ends = span * (softplus(m + a * low) - base) - _CUT * (softplus(m + a * high) - base)
    return [value, by_m, slopes_v.mul_(width), ends - excess]
