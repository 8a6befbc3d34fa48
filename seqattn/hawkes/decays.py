r"""The two decaying forms of the self-attentive Hawkes process, each with one or more decays.

Between events the argument of the softplus (form A) or of the hidden units (form B) relaxes to its asymptote,

.. math:: z(u) = m + \sum_c a_c e^{-\gamma_c u},

with a state of its own after each token. One decay is the paper; it makes z monotone. Several decays need not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear, softplus
from torch.utils.checkpoint import checkpoint

from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.quadrature import decay_integral, log_softplus, panel_nodes

# A decay counts as finished when it moves the argument by less than this.
_SETTLED = 1e-4


@dataclass(frozen=True)
class Decaying(Intensity):
    r"""What both forms share: the relaxing argument :math:`m + \sum_c a_c e^{-\gamma_c u}` of each unit.

    Parameters
    ----------
    asymptote
        :math:`m`, of shape (tokens, units); a unit is a type in form A and a hidden unit in form B.
    amplitude, rate
        :math:`a` and :math:`\gamma > 0`, of shape (tokens, decays, units).
    """

    asymptote: Float[Tensor, "tokens units"]
    amplitude: Float[Tensor, "tokens decays units"]
    rate: Float[Tensor, "tokens decays units"]

    _token_fields: ClassVar[tuple[str, ...]] = ("asymptote", "amplitude", "rate")

    @property
    def n_tokens(self) -> int:
        return self.asymptote.shape[0]

    def _argument(self, elapsed: Float[Tensor, "tokens nodes"]) -> Float[Tensor, "tokens nodes units"]:
        argument, time = self.asymptote[:, None].expand(-1, elapsed.shape[1], -1).clone(), elapsed[:, :, None]
        for amplitude, rate in zip(self.amplitude.unbind(1), self.rate.unbind(1), strict=True):
            # Exponentials of less than -80 are slow on processors.
            argument.addcmul_(amplitude[:, None], (-rate[:, None] * time).clamp_(min=-80.0).exp_())
        return argument

    def _highest(self, elapsed: Tensor) -> Tensor:
        """Return a bound of the argument from ``elapsed`` on: what is positive falls, what is negative ends at 0."""
        decay = torch.exp(-self.rate * elapsed[:, None, None])
        return self.asymptote + (self.amplitude.clamp(min=0) * decay).sum(1)

    def _lowest(self, elapsed: Tensor) -> Tensor:
        decay = torch.exp(-self.rate * elapsed[:, None, None])
        return self.asymptote + (self.amplitude.clamp(max=0) * decay).sum(1)

    def settled(self) -> Float[Tensor, " tokens"]:
        share = _SETTLED / self.amplitude.shape[1]
        return ((self.amplitude.abs() / share).clamp(min=1).log() / self.rate).flatten(1).amax(1)

    def pace(self) -> Float[Tensor, " tokens"]:
        return self.rate.flatten(1).amax(1)

    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        return replace(self, amplitude=self.amplitude * torch.exp(-self.rate * by[:, None, None]))


@dataclass(frozen=True)
class MarkIntensity(Decaying):
    r"""Each type decays on its own: form A, the intensity of the paper.

    .. math:: \lambda_k(u) = s_k\,\mathrm{softplus}\Bigl(m_k + \sum_c a_{kc} e^{-\gamma_{kc} u}\Bigr)

    With one decay, :math:`s_k m_k = \mu_k` and :math:`s_k (m_k + a_k) = \eta_k` this is equation 13 of the paper with a
    sharpness per type.

    Parameters
    ----------
    asymptote, amplitude, rate
        :math:`m` of shape (tokens, types), :math:`a` and :math:`\gamma > 0` of shape (tokens, decays, types).
    scale
        :math:`s > 0`, of shape (types,).
    integral
        ``"graded"`` (exact to about 1e-6), ``"gauss"``, ``"trapezoid"`` or ``"monte_carlo"``.
    nodes
        Number of nodes; for ``"graded"`` those of the first panel.

    References
    ----------
    Zhang, Lipani, Kirnap, Yilmaz (2020), Self-attentive Hawkes process, section 3.
    """

    scale: Float[Tensor, " types"]
    integral: str = "graded"
    nodes: int = 8

    @property
    def n_types(self) -> int:
        return self.asymptote.shape[1]

    @property
    def has_exact_compensator(self) -> bool:
        return self.integral == "graded"

    def rates(self, elapsed: Float[Tensor, "tokens nodes"]) -> Float[Tensor, "tokens nodes types"]:
        return self.scale * softplus(self._argument(elapsed))

    def log_rate(
        self,
        elapsed: Float[Tensor, " chosen"],
        kind: Int[Tensor, " chosen"],
        tokens: Int[Tensor, " chosen"] | None = None,
    ) -> Float[Tensor, " chosen"]:
        rows = torch.arange(self.n_tokens, device=kind.device) if tokens is None else tokens
        types, decays = self.n_types, self.amplitude.shape[1]
        each = (rows * decays * types + kind)[:, None] + types * torch.arange(decays, device=kind.device)
        amplitude, rate = (_taken(values, each) for values in (self.amplitude, self.rate))
        fallen = (amplitude * torch.exp(-rate * elapsed[:, None])).sum(1)
        return self.scale.log()[kind] + log_softplus(_taken(self.asymptote, rows * types + kind) + fallen)

    def log_rates(self, elapsed: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens types"]:
        return self.scale.log() + log_softplus(self._argument(elapsed[:, None])[:, 0])

    def compensator(self, elapsed: Float[Tensor, " tokens"], refine: int = 1) -> Float[Tensor, " tokens"]:
        if self.integral == "graded":
            parts = (self.asymptote, self.amplitude, self.rate, self.scale)
            return decay_integral(*parts, elapsed, self.nodes * refine)
        return _by_nodes(self, elapsed, refine).sum(1)

    def compensator_by_type(
        self, elapsed: Float[Tensor, " tokens"], refine: int = 1
    ) -> Float[Tensor, "tokens types"]:
        if self.integral == "graded":
            parts = (self.asymptote, self.amplitude, self.rate, self.scale)
            return decay_integral(*parts, elapsed, self.nodes * refine, by_type=True)
        return _by_nodes(self, elapsed, refine)

    def limit(self) -> Float[Tensor, "tokens types"]:
        return self.scale * softplus(self.asymptote)

    def floor(self) -> Float[Tensor, " tokens"]:
        return (self.scale * softplus(self.asymptote + self.amplitude.clamp(max=0).sum(1))).sum(1)

    def bound(
        self, elapsed: Float[Tensor, " tokens"], until: Float[Tensor, " tokens"] | None = None
    ) -> Float[Tensor, " tokens"]:
        return softplus(self._highest(elapsed)) @ self.scale


@dataclass(frozen=True)
class HiddenIntensity(Decaying):
    r"""Hidden units decay and are then mixed into types: form B, what the authors' program computes.

    .. math:: c(u) = \tanh\Bigl(m + \sum_c a_c e^{-\gamma_c u}\Bigr),\qquad
        \lambda(u) = \mathrm{softplus}(W c(u) + b)

    The intensity is bounded above by :math:`\mathrm{softplus}(|W_k|_1 + b_k)` and need not be monotone.

    Parameters
    ----------
    asymptote, amplitude, rate
        :math:`m` of shape (tokens, dim), :math:`a` and :math:`\gamma > 0` of shape (tokens, decays, dim).
    weight, bias
        :math:`W` of shape (types, dim) and :math:`b` of shape (types,).
    integral, nodes
        As in :class:`MarkIntensity`; ``"graded"`` uses four panels of ``nodes // 2`` Gauss-Legendre nodes with
        edges at 1/64, 1/16 and 1/4 of the interval.
    """

    weight: Float[Tensor, "types dim"]
    bias: Float[Tensor, " types"]
    integral: str = "graded"
    nodes: int = 8

    @property
    def n_types(self) -> int:
        return self.weight.shape[0]

    def _units(self, elapsed: Tensor) -> Tensor:
        return torch.tanh(self._argument(elapsed))

    def rates(self, elapsed: Float[Tensor, "tokens nodes"]) -> Float[Tensor, "tokens nodes types"]:
        return softplus(linear(self._units(elapsed), self.weight, self.bias))

    def log_rate(
        self,
        elapsed: Float[Tensor, " chosen"],
        kind: Int[Tensor, " chosen"],
        tokens: Int[Tensor, " chosen"] | None = None,
    ) -> Float[Tensor, " chosen"]:
        chosen = self if tokens is None else self.select(tokens)
        state = chosen._units(elapsed[:, None])[:, 0]
        return log_softplus((state * self.weight[kind]).sum(1) + self.bias[kind])

    def log_rates(self, elapsed: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens types"]:
        return log_softplus(linear(self._units(elapsed[:, None])[:, 0], self.weight, self.bias))

    def compensator_by_type(
        self, elapsed: Float[Tensor, " tokens"], refine: int = 1
    ) -> Float[Tensor, "tokens types"]:
        return _by_nodes(self, elapsed, refine)

    def limit(self) -> Float[Tensor, "tokens types"]:
        return softplus(linear(torch.tanh(self.asymptote), self.weight, self.bias))

    def _extreme(self, elapsed: Tensor, highest: bool) -> Tensor:
        """Return a bound of the intensities by interval arithmetic: every unit lies between two values."""
        low, high = torch.tanh(self._lowest(elapsed)), torch.tanh(self._highest(elapsed))
        positive, negative = self.weight.clamp(min=0), self.weight.clamp(max=0)
        upper, lower = (high, low) if highest else (low, high)
        return softplus(upper @ positive.T + lower @ negative.T + self.bias)

    def floor(self) -> Float[Tensor, " tokens"]:
        return self._extreme(torch.zeros_like(self.asymptote[:, 0]), highest=False).sum(1)

    def bound(
        self, elapsed: Float[Tensor, " tokens"], until: Float[Tensor, " tokens"] | None = None
    ) -> Float[Tensor, " tokens"]:
        return self._extreme(elapsed, highest=True).sum(1)


def _taken(values: Tensor, places: Tensor) -> Tensor:
    """Return the elements at places of the flattened values; a tenth of the cost of indexing by several tensors."""
    return values.reshape(-1).index_select(0, places.reshape(-1)).view(places.shape)


def _by_nodes(intensity: MarkIntensity | HiddenIntensity, elapsed: Tensor, refine: int) -> Tensor:
    """Integrate by nodes that all types share, in blocks that are computed again for the gradient."""
    fractions, weights = panel_nodes(intensity.integral, intensity.nodes * refine, elapsed)
    parts = []
    start = 0
    for part, time in intensity._blocks(elapsed, fractions.shape[1]):
        rows = slice(start, start + time.shape[0]) if fractions.shape[0] > 1 else slice(None)
        start += time.shape[0]
        arguments = (part, time, fractions[rows], weights)
        parts.append(checkpoint(_weighted_rates, *arguments, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts) if parts else elapsed.new_zeros(0, intensity.n_types)


def _weighted_rates(part: Intensity, time: Tensor, fractions: Tensor, weights: Tensor) -> Tensor:
    rates = part.rates(time[:, None] * fractions)
    return torch.einsum("tqk,q->tk", rates, weights) * time[:, None]
