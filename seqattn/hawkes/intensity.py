r"""Conditional intensities between two events: the forms, their integrals and their bounds.

An object of this module holds one state per token (a token is the start of a window or an event) and gives, for
``u`` time units after that token and as long as nothing else happens, the intensity of every event type.
Everything else in the head (likelihood, forecast, diagnosis) is written against :class:`Intensity` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from seqattn.hawkes.quadrature import decay_integral, log_softplus, panel_nodes

# Elements of a (tokens, nodes, types) block: 2 MB in float32, so that a block stays in the cache of one core.
_BLOCK = 1 << 19
# A decay counts as finished when it moves the argument of the softplus by less than this.
_SETTLED = 1e-4


@dataclass(frozen=True)
class Intensity(ABC):
    """Intensities of all types after each token, as functions of the time since that token.

    Subclasses are frozen dataclasses. Fields whose first axis is the token axis are listed in ``_token_fields``,
    so that states can be selected and moved to another precision in one place.
    """

    _token_fields: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def n_types(self) -> int:
        """Number of event types."""

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """Number of tokens, each with a state of its own."""

    @abstractmethod
    def rates(self, elapsed: Float[Tensor, "tokens nodes"]) -> Float[Tensor, "tokens nodes types"]:
        """Return the intensity of each type, in events per time unit, ``elapsed`` after each token."""

    @abstractmethod
    def limit(self) -> Float[Tensor, "tokens types"]:
        """Return the intensities that are reached if nothing ever happens."""

    @abstractmethod
    def floor(self) -> Float[Tensor, " tokens"]:
        """Return a lower bound of the total intensity, valid for all times after the token."""

    @abstractmethod
    def settled(self) -> Float[Tensor, " tokens"]:
        """Return the time after which the intensities equal their limits to about 1e-4 (0 if constant)."""

    @abstractmethod
    def pace(self) -> Float[Tensor, " tokens"]:
        """Return the largest rate at which an intensity of the token changes (0 if constant)."""

    @abstractmethod
    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        """Return the same intensities with the clock started ``by`` time units later."""

    def log_rate(
        self, elapsed: Float[Tensor, " tokens"], kind: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        """Return the logarithm of the intensity of one type per token (``kind``) at one time per token."""
        return self.log_rates(elapsed).gather(1, kind[:, None])[:, 0]

    def log_rates(self, elapsed: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens types"]:
        """Return the logarithms of all intensities at one time per token."""
        return self.rates(elapsed[:, None])[:, 0].log()

    def log_total(self, elapsed: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """Return the logarithm of the summed intensity, finite also where the sum underflows."""
        parts = [part.log_rates(time).logsumexp(1) for part, time in self._blocks(elapsed, 1)]
        return torch.cat(parts) if parts else elapsed.new_zeros(0)

    def total(self, elapsed: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """Return the summed intensity at one time per token."""
        parts = [part.rates(time[:, None])[:, 0].sum(1) for part, time in self._blocks(elapsed, 1)]
        return torch.cat(parts) if parts else elapsed.new_zeros(0)

    def compensator(self, elapsed: Float[Tensor, " tokens"], refine: int = 1) -> Float[Tensor, " tokens"]:
        """Return the expected number of events of any type within ``elapsed`` after the token.

        ``refine`` multiplies the number of quadrature nodes; closed forms have no use for it.
        """
        return self.compensator_by_type(elapsed, refine).sum(1)

    @abstractmethod
    def compensator_by_type(
        self, elapsed: Float[Tensor, " tokens"], refine: int = 1
    ) -> Float[Tensor, "tokens types"]:
        """Return the expected number of events of each type within ``elapsed`` after the token."""

    def select(self, index: Int[Tensor, " chosen"] | slice) -> Self:
        """Return the states of some tokens only."""
        return replace(self, **{name: getattr(self, name)[index] for name in self._token_fields})

    def to(self, dtype: torch.dtype) -> Self:
        """Return the same states in another floating-point precision."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value.to(dtype) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def detach(self) -> Self:
        """Return the same states cut off from the weights that made them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
        )

    def _blocks(self, elapsed: Tensor, nodes: int) -> Iterator[tuple[Self, Tensor]]:
        """Cut the tokens so that a (tokens, nodes, types) tensor stays small."""
        size = max(1, _BLOCK // max(1, nodes * self.n_types))
        for start in range(0, self.n_tokens, size):
            part = slice(start, start + size)
            yield self.select(part), elapsed[part]


@dataclass(frozen=True)
class MarkIntensity(Intensity):
    r"""Each type decays on its own: form A, the intensity of the paper.

    .. math:: \lambda_k(u) = s_k\,\mathrm{softplus}\bigl(m_k + a_k e^{-\gamma_k u}\bigr)

    With :math:`s_k m_k = \mu_k` and :math:`s_k (m_k + a_k) = \eta_k` this is equation 13 of the paper with a
    sharpness per type. The argument of the softplus moves monotonically from :math:`\eta_k / s_k` to
    :math:`\mu_k / s_k`.

    Parameters
    ----------
    asymptote, amplitude, rate
        :math:`m`, :math:`a` and :math:`\gamma > 0`, each of shape (tokens, types).
    scale
        :math:`s > 0`, of shape (types,).
    integral
        ``"graded"`` (exact to about 1e-6), ``"gauss"``, ``"trapezoid"`` or ``"monte_carlo"``.
    nodes
        Number of nodes; for ``"graded"`` those of the first part, the second part has half as many.

    References
    ----------
    Zhang, Lipani, Kirnap, Yilmaz (2020), Self-attentive Hawkes process, section 3.
    """

    asymptote: Float[Tensor, "tokens types"]
    amplitude: Float[Tensor, "tokens types"]
    rate: Float[Tensor, "tokens types"]
    scale: Float[Tensor, " types"]
    integral: str = "graded"
    nodes: int = 12

    _token_fields: ClassVar[tuple[str, ...]] = ("asymptote", "amplitude", "rate")

    @property
    def n_types(self) -> int:
        return self.asymptote.shape[1]

    @property
    def n_tokens(self) -> int:
        return self.asymptote.shape[0]

    def rates(self, elapsed: Float[Tensor, "tokens nodes"]) -> Float[Tensor, "tokens nodes types"]:
        decay = torch.exp(-self.rate[:, None] * elapsed[:, :, None])
        return self.scale * softplus(torch.addcmul(self.asymptote[:, None], self.amplitude[:, None], decay))

    def log_rate(
        self, elapsed: Float[Tensor, " tokens"], kind: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        column = kind[:, None]
        rate, amplitude = self.rate.gather(1, column)[:, 0], self.amplitude.gather(1, column)[:, 0]
        argument = self.asymptote.gather(1, column)[:, 0] + amplitude * torch.exp(-rate * elapsed)
        return self.scale.log()[kind] + log_softplus(argument)

    def log_rates(self, elapsed: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens types"]:
        decay = torch.exp(-self.rate * elapsed[:, None])
        return self.scale.log() + log_softplus(torch.addcmul(self.asymptote, self.amplitude, decay))

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
        return (self.scale * softplus(self.asymptote + self.amplitude.clamp(max=0))).sum(1)

    def settled(self) -> Float[Tensor, " tokens"]:
        return ((self.amplitude.abs() / _SETTLED).clamp(min=1).log() / self.rate).amax(1)

    def pace(self) -> Float[Tensor, " tokens"]:
        return self.rate.amax(1)

    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        return replace(self, amplitude=self.amplitude * torch.exp(-self.rate * by[:, None]))


@dataclass(frozen=True)
class HiddenIntensity(Intensity):
    r"""Hidden units decay and are then mixed into types: form B, what the authors' program computes.

    .. math:: c(u) = \tanh\bigl(m + a e^{-\gamma u}\bigr),\qquad \lambda(u) = \mathrm{softplus}(W c(u) + b)

    The intensity is bounded above by :math:`\mathrm{softplus}(|W_k|_1 + b_k)` and need not be monotone.

    Parameters
    ----------
    asymptote, amplitude, rate
        :math:`m`, :math:`a` and :math:`\gamma > 0`, each of shape (tokens, dim).
    weight, bias
        :math:`W` of shape (types, dim) and :math:`b` of shape (types,).
    integral, nodes
        As in :class:`MarkIntensity`; ``"graded"`` uses four panels of ``nodes // 3`` Gauss-Legendre nodes with
        edges at 1/64, 1/16 and 1/4 of the interval.
    """

    asymptote: Float[Tensor, "tokens dim"]
    amplitude: Float[Tensor, "tokens dim"]
    rate: Float[Tensor, "tokens dim"]
    weight: Float[Tensor, "types dim"]
    bias: Float[Tensor, " types"]
    integral: str = "graded"
    nodes: int = 12

    _token_fields: ClassVar[tuple[str, ...]] = ("asymptote", "amplitude", "rate")

    @property
    def n_types(self) -> int:
        return self.weight.shape[0]

    @property
    def n_tokens(self) -> int:
        return self.asymptote.shape[0]

    def _argument(self, elapsed: Tensor) -> Tensor:
        decay = torch.exp(-self.rate[:, None] * elapsed[:, :, None])
        return torch.tanh(torch.addcmul(self.asymptote[:, None], self.amplitude[:, None], decay))

    def rates(self, elapsed: Float[Tensor, "tokens nodes"]) -> Float[Tensor, "tokens nodes types"]:
        return softplus(torch.nn.functional.linear(self._argument(elapsed), self.weight, self.bias))

    def log_rate(
        self, elapsed: Float[Tensor, " tokens"], kind: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        state = self._argument(elapsed[:, None])[:, 0]
        return log_softplus((state * self.weight[kind]).sum(1) + self.bias[kind])

    def log_rates(self, elapsed: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens types"]:
        state = self._argument(elapsed[:, None])[:, 0]
        return log_softplus(torch.nn.functional.linear(state, self.weight, self.bias))

    def compensator_by_type(
        self, elapsed: Float[Tensor, " tokens"], refine: int = 1
    ) -> Float[Tensor, "tokens types"]:
        return _by_nodes(self, elapsed, refine)

    def limit(self) -> Float[Tensor, "tokens types"]:
        return softplus(torch.nn.functional.linear(torch.tanh(self.asymptote), self.weight, self.bias))

    def floor(self) -> Float[Tensor, " tokens"]:
        """Interval arithmetic: every hidden unit lies between its present value and its limit."""
        now, end = torch.tanh(self.asymptote + self.amplitude), torch.tanh(self.asymptote)
        low, high = torch.minimum(now, end), torch.maximum(now, end)
        positive, negative = self.weight.clamp(min=0), self.weight.clamp(max=0)
        return softplus(low @ positive.T + high @ negative.T + self.bias).sum(1)

    def settled(self) -> Float[Tensor, " tokens"]:
        return ((self.amplitude.abs() / _SETTLED).clamp(min=1).log() / self.rate).amax(1)

    def pace(self) -> Float[Tensor, " tokens"]:
        return self.rate.amax(1)

    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        return replace(self, amplitude=self.amplitude * torch.exp(-self.rate * by[:, None]))


@dataclass(frozen=True)
class LinearIntensity(Intensity):
    r"""Base rates plus excitations that die out with one common decay: the exponential Hawkes process.

    .. math:: \lambda_k(u) = \mu_k + E_k e^{-\beta u}

    With ``excitation = 0`` the intensity is constant between events (Poisson process, Markov renewal process with
    exponential gaps).

    Parameters
    ----------
    base
        :math:`\mu \ge 0`, of shape (tokens, types).
    excitation
        :math:`E \ge 0`, of shape (tokens, types).
    rate
        :math:`\beta > 0`, of shape (tokens,).
    """

    base: Float[Tensor, "tokens types"]
    excitation: Float[Tensor, "tokens types"]
    rate: Float[Tensor, " tokens"]

    _token_fields: ClassVar[tuple[str, ...]] = ("base", "excitation", "rate")

    @property
    def n_types(self) -> int:
        return self.base.shape[1]

    @property
    def n_tokens(self) -> int:
        return self.base.shape[0]

    def rates(self, elapsed: Float[Tensor, "tokens nodes"]) -> Float[Tensor, "tokens nodes types"]:
        decay = torch.exp(-self.rate[:, None] * elapsed)
        return torch.addcmul(self.base[:, None], self.excitation[:, None], decay[:, :, None])

    def compensator_by_type(
        self, elapsed: Float[Tensor, " tokens"], refine: int = 1
    ) -> Float[Tensor, "tokens types"]:
        grown = -torch.expm1(-self.rate * elapsed) / self.rate
        return self.base * elapsed[:, None] + self.excitation * grown[:, None]

    def limit(self) -> Float[Tensor, "tokens types"]:
        return self.base

    def floor(self) -> Float[Tensor, " tokens"]:
        return self.base.sum(1)

    def settled(self) -> Float[Tensor, " tokens"]:
        part = self.excitation.sum(1) / (_SETTLED * self.base.sum(1)).clamp(min=1e-300)
        return part.clamp(min=1).log() / self.rate

    def pace(self) -> Float[Tensor, " tokens"]:
        return torch.where(self.excitation.sum(1) > 0, self.rate, 0.0)

    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        return replace(self, excitation=self.excitation * torch.exp(-self.rate * by)[:, None])


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
