r"""Conditional intensities between two events: what every form offers, sums of forms, and the linear form.

An object of this module holds one state per token (a token is the start of a window or an event) and gives, for
``u`` time units after that token and as long as nothing else happens, the intensity of every event type.
Everything else in the head (likelihood, forecast, simulation, diagnosis) is written against :class:`Intensity`
alone. The forms of the self-attentive process stand in :mod:`seqattn.hawkes.decays` and
:mod:`seqattn.hawkes.kernels`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Elements of a (tokens, nodes, types) block: 2 MB in float32, so that a block stays in the cache of one core.
_BLOCK = 1 << 19
# An excitation counts as gone when it is below this share of the base rate.
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
    def bound(
        self, elapsed: Float[Tensor, " tokens"], until: Float[Tensor, " tokens"] | None = None
    ) -> Float[Tensor, " tokens"]:
        """Return an upper bound of the total intensity, valid from ``elapsed`` to ``until`` after the token.

        Without ``until`` it is valid for ever. Where :attr:`has_peaks` is false, ``until`` may make no difference.
        """

    @abstractmethod
    def settled(self) -> Float[Tensor, " tokens"]:
        """Return the time after which the intensities equal their limits to about 1e-4 (0 if constant)."""

    @abstractmethod
    def pace(self) -> Float[Tensor, " tokens"]:
        """Return the largest rate at which an intensity of the token changes (0 if constant)."""

    @property
    def has_peaks(self) -> bool:
        """Whether later peaks make a bound that holds for ever much higher than one that holds for a while."""
        return False

    @property
    def has_exact_compensator(self) -> bool:
        """Whether the compensator is good enough over any time to check other quadratures by it."""
        return False

    def peaks(self) -> tuple[Float[Tensor, "tokens peaks"], Float[Tensor, " peaks"]]:
        """Return how long after each token peaks at a distance come, ``-inf`` for none, and their widths.

        Decays are seen on pieces whose lengths grow geometrically; peaks must be known to be seen.
        """
        none = self.floor()
        return none.new_zeros(self.n_tokens, 0), none.new_zeros(0)

    @abstractmethod
    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        """Return the same intensities with the clock started ``by`` time units later."""

    def log_rate(
        self,
        elapsed: Float[Tensor, " chosen"],
        kind: Int[Tensor, " chosen"],
        tokens: Int[Tensor, " chosen"] | None = None,
    ) -> Float[Tensor, " chosen"]:
        """Return the logarithm of the intensity of one type (``kind``) at one time, for all or the given tokens."""
        chosen = self if tokens is None else self.select(tokens)
        return chosen.log_rates(elapsed).gather(1, kind[:, None])[:, 0]

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
        return self._mapped(lambda value: value.to(dtype))

    def detach(self) -> Self:
        """Return the same states cut off from the weights that made them."""
        return self._mapped(Tensor.detach)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        )

    def _blocks(self, elapsed: Tensor, nodes: int) -> Iterator[tuple[Self, Tensor]]:
        """Cut the tokens so that a (tokens, nodes, types) tensor stays small."""
        size = max(1, _BLOCK // max(1, nodes * self.n_types))
        for start in range(0, self.n_tokens, size):
            part = slice(start, start + size)
            yield self.select(part), elapsed[part]


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
    def has_exact_compensator(self) -> bool:
        return True

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

    def bound(
        self, elapsed: Float[Tensor, " tokens"], until: Float[Tensor, " tokens"] | None = None
    ) -> Float[Tensor, " tokens"]:
        return self.base.sum(1) + self.excitation.sum(1) * torch.exp(-self.rate * elapsed)

    def settled(self) -> Float[Tensor, " tokens"]:
        part = self.excitation.sum(1) / (_SETTLED * self.base.sum(1)).clamp(min=1e-300)
        return part.clamp(min=1).log() / self.rate

    def pace(self) -> Float[Tensor, " tokens"]:
        return torch.where(self.excitation.sum(1) > 0, self.rate, 0.0)

    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        return replace(self, excitation=self.excitation * torch.exp(-self.rate * by)[:, None])


@dataclass(frozen=True)
class SumIntensity(Intensity):
    """The sum of intensities with the same tokens and types.

    Parameters
    ----------
    parts
        What is added. At least one of them must stay above 0 for ever.
    """

    parts: tuple[Intensity, ...]

    @property
    def has_exact_compensator(self) -> bool:
        return all(part.has_exact_compensator for part in self.parts)

    @property
    def n_types(self) -> int:
        return self.parts[0].n_types

    @property
    def n_tokens(self) -> int:
        return self.parts[0].n_tokens

    def rates(self, elapsed: Float[Tensor, "tokens nodes"]) -> Float[Tensor, "tokens nodes types"]:
        return _sum(part.rates(elapsed) for part in self.parts)

    def log_rate(
        self,
        elapsed: Float[Tensor, " chosen"],
        kind: Int[Tensor, " chosen"],
        tokens: Int[Tensor, " chosen"] | None = None,
    ) -> Float[Tensor, " chosen"]:
        first, *others = (part.log_rate(elapsed, kind, tokens) for part in self.parts)
        return reduce(torch.logaddexp, others, first)

    def log_rates(self, elapsed: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens types"]:
        first, *others = (part.log_rates(elapsed) for part in self.parts)
        return reduce(torch.logaddexp, others, first)

    def compensator(self, elapsed: Float[Tensor, " tokens"], refine: int = 1) -> Float[Tensor, " tokens"]:
        return _sum(part.compensator(elapsed, refine) for part in self.parts)

    def compensator_by_type(
        self, elapsed: Float[Tensor, " tokens"], refine: int = 1
    ) -> Float[Tensor, "tokens types"]:
        return _sum(part.compensator_by_type(elapsed, refine) for part in self.parts)

    def limit(self) -> Float[Tensor, "tokens types"]:
        return _sum(part.limit() for part in self.parts)

    def floor(self) -> Float[Tensor, " tokens"]:
        return _sum(part.floor() for part in self.parts)

    def bound(
        self, elapsed: Float[Tensor, " tokens"], until: Float[Tensor, " tokens"] | None = None
    ) -> Float[Tensor, " tokens"]:
        return _sum(part.bound(elapsed, until) for part in self.parts)

    @property
    def has_peaks(self) -> bool:
        return any(part.has_peaks for part in self.parts)

    def settled(self) -> Float[Tensor, " tokens"]:
        return torch.stack([part.settled() for part in self.parts]).amax(0)

    def pace(self) -> Float[Tensor, " tokens"]:
        return torch.stack([part.pace() for part in self.parts]).amax(0)

    def peaks(self) -> tuple[Float[Tensor, "tokens peaks"], Float[Tensor, " peaks"]]:
        places, widths = zip(*(part.peaks() for part in self.parts), strict=True)
        return torch.cat(places, 1), torch.cat(widths)

    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        return replace(self, parts=tuple(part.shift(by) for part in self.parts))

    def select(self, index: Int[Tensor, " chosen"] | slice) -> Self:
        return replace(self, parts=tuple(part.select(index) for part in self.parts))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, parts=tuple(part._mapped(change) for part in self.parts))


def _sum(values: Iterator[Tensor]) -> Tensor:
    return reduce(torch.add, values)
