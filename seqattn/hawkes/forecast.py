r"""The law of the next event, from the intensities after a token: mean, quantiles, type probabilities, CRPS.

With :math:`\Lambda(u) = \int_0^u \lambda`, :math:`S(u) = e^{-\Lambda(u)}` and density :math:`f = \lambda S`, all
answers come from one evaluation of the intensities on panels whose widths grow geometrically away from the token, up
to a horizon where either no survival is left or the intensities have reached their limits; beyond it the tail is
exactly exponential. There is no largest gap to choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.polynomial import legendre
from torch import Tensor

from seqattn.hawkes.intensity import Intensity

# Nodes per panel: with panels growing by a factor of at most _GROWTH, survival is integrated to about 1e-7.
_NODES = 8
_GROWTH = 2.5
_MOST_PANELS = 64
# Survival below which nothing is left to forecast.
_NOTHING_LEFT = 1e-6
# Largest accepted error of the total probability before a token is computed again on more panels.
_MASS_ERROR = 1e-5
_BLOCK = 1 << 21


@lru_cache(maxsize=1)
def _collocation() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes and weights on (0, 1), and the matrix that integrates the interpolant from 0 to each node."""
    nodes, weights = legendre.leggauss(_NODES)
    x = (nodes + 1) / 2
    powers = np.vander(x, _NODES, increasing=True)
    antiderivative = x[:, None] ** np.arange(1, _NODES + 1) / np.arange(1, _NODES + 1)
    return x, weights / 2, antiderivative @ np.linalg.inv(powers)


def _constants(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weights, partial = (torch.from_numpy(values).to(like.device) for values in _collocation())
    return x, weights, partial


@dataclass(frozen=True)
class NextEvent:
    """Answers about the next event after each token; times are counted from the token, in model units.

    Parameters
    ----------
    mean, median
        Expected and median time to the next event, of shape (tokens,).
    quantiles
        Times at the levels asked for, of shape (tokens, levels).
    type_probability
        Probability that the next event is of each type whenever it comes, of shape (tokens, types); rows sum to 1.
    crps
        Continuous ranked probability score of the observed times, of shape (tokens,); nan where none was given.
    mass_error
        Largest distance of the total probability from 1, a check on the quadrature.
    """

    mean: Float[Tensor, " tokens"]
    median: Float[Tensor, " tokens"]
    quantiles: Float[Tensor, "tokens levels"]
    type_probability: Float[Tensor, "tokens types"]
    crps: Float[Tensor, " tokens"]
    mass_error: float


@torch.no_grad()
def next_event(
    intensity: Intensity,
    levels: tuple[float, ...] = (),
    observed: Float[Tensor, " tokens"] | None = None,
) -> NextEvent:
    """Return the law of the next event after each token.

    Parameters
    ----------
    intensity
        States of the tokens.
    levels
        Levels of the quantiles wanted beside the median, each in (0, 1).
    observed
        Times that were observed, for the CRPS.

    Returns
    -------
    Answers for all tokens. The mean is the integral of the survival function, the probabilities that of the
    density per type; both are exact to about 1e-5.

    Examples
    --------
    >>> from seqattn.hawkes.intensity import LinearIntensity
    >>> rate = torch.full((1, 2), 0.5, dtype=torch.float64)
    >>> answer = next_event(LinearIntensity(rate, 0 * rate, rate[:, 0]))
    >>> [round(float(x), 6) for x in (answer.mean, answer.median, answer.type_probability[0, 0])]
    [1.0, 0.693147, 0.5]
    """
    closed = getattr(intensity, "next_event", None)
    if closed is not None:
        return closed(levels, observed)
    panels = _panel_counts(intensity)
    order = torch.argsort(panels[0])
    parts, start = [], 0
    while start < len(order):
        # Tokens are sorted by their number of panels, so that a block wastes few.
        most = int(panels[0][order[min(start + 4096, len(order)) - 1]])
        size = max(1, _BLOCK // (most * _NODES * intensity.n_types))
        rows = order[start : start + min(size, 4096)]
        seen = None if observed is None else observed[rows].double()
        count = int(panels[0][rows[-1]])
        parts.append(_solve(intensity.select(rows), panels[1][rows], panels[2][rows], count, levels, seen))
        start += len(rows)
    return _assemble(parts, order, intensity, levels)


def _panel_counts(intensity: Intensity) -> tuple[Tensor, Tensor, Tensor]:
    """Return per token the number of panels, the width of the first and the horizon."""
    floor = intensity.floor().double().clamp(min=1e-30)
    now = intensity.total(torch.zeros_like(intensity.floor())).double()
    ceiling = torch.maximum(now, intensity.limit().double().sum(1))
    enough = -np.log(_NOTHING_LEFT) / floor
    horizon = torch.minimum(torch.maximum(intensity.settled().double(), 1e-3 / ceiling), enough)
    first = torch.minimum(0.5 / torch.maximum(intensity.pace().double(), ceiling), horizon)
    growths = torch.log(horizon / first) / np.log(_GROWTH)
    return (1 + growths.ceil()).clamp(2, _MOST_PANELS).long(), first, horizon


def _assemble(
    parts: list[NextEvent], order: Tensor, intensity: Intensity, levels: tuple[float, ...]
) -> NextEvent:
    if not parts:
        none = intensity.floor().double()
        types = none.new_zeros(0, intensity.n_types)
        return NextEvent(none, none, none.new_zeros(0, len(levels)), types, none, 0.0)
    back = torch.argsort(order)
    names = ("mean", "median", "quantiles", "type_probability", "crps")
    joined = {name: torch.cat([getattr(part, name) for part in parts])[back] for name in names}
    return NextEvent(**joined, mass_error=max(part.mass_error for part in parts))


def _solve(
    intensity: Intensity,
    first: Tensor,
    horizon: Tensor,
    panels: int,
    levels: tuple[float, ...],
    seen: Tensor | None,
) -> NextEvent:
    law = _Law.build(intensity, first, horizon, panels)
    error = law.mass_error()
    if float(error) > _MASS_ERROR and panels < _MOST_PANELS:
        return _solve(intensity, first / 2, horizon, min(2 * panels, _MOST_PANELS), levels, seen)
    wanted = [law.quantile(level) for level in (0.5, *levels)]
    crps = law.crps(seen) if seen is not None else torch.full_like(wanted[0], torch.nan)
    quantiles = torch.stack(wanted[1:], 1) if levels else wanted[0].new_zeros(len(crps), 0)
    return NextEvent(law.mean(), wanted[0], quantiles, law.type_probability(), crps, float(error))


@dataclass(frozen=True)
class _Law:
    """Survival on the panels of each token: everything in float64 except the intensities themselves."""

    intensity: Intensity
    edges: Tensor  # (tokens, panels + 1)
    width: Tensor  # (tokens, panels)
    rates: Tensor  # (tokens, panels, nodes, types)
    total: Tensor  # (tokens, panels, nodes)
    start: Tensor  # (tokens, panels + 1): compensator at the edges
    survival: Tensor  # (tokens, panels, nodes)
    limit: Tensor  # (tokens, types)

    @classmethod
    def build(cls, intensity: Intensity, first: Tensor, horizon: Tensor, panels: int) -> _Law:
        x, weights, partial = _constants(first)
        ratio = (horizon / first).log() / (panels - 1)
        steps = torch.arange(panels, dtype=torch.float64, device=first.device)
        edges = first[:, None] * torch.exp(ratio[:, None] * steps)
        edges = torch.cat([torch.zeros_like(first)[:, None], edges], 1)
        width = edges.diff(dim=1)
        times = edges[:, :-1, None] + width[:, :, None] * x
        rates = intensity.rates(times.flatten(1).to(intensity.floor().dtype))
        rates = rates.view(*times.shape, -1)
        total = rates.sum(-1).double()
        start = torch.cumsum((total @ weights) * width, 1)
        start = torch.cat([torch.zeros_like(first)[:, None], start], 1)
        inside = start[:, :-1, None] + (total @ partial.T) * width[:, :, None]
        return cls(
            intensity, edges, width, rates, total, start, torch.exp(-inside), intensity.limit().double()
        )

    def _integral(self, values: Tensor) -> Tensor:
        weights = _constants(self.width)[1]
        return ((values @ weights) * self.width).sum(1)

    @property
    def _left(self) -> Tensor:
        """Survival at the horizon; from there on the intensities are constant."""
        return torch.exp(-self.start[:, -1])

    def mass_error(self) -> Tensor:
        mass = self._integral(self.total * self.survival) + self._left
        return (mass - 1).abs().amax()

    def mean(self) -> Tensor:
        return self._integral(self.survival) + self._left / self.limit.sum(1).clamp(min=1e-300)

    def type_probability(self) -> Tensor:
        weights = _constants(self.width)[1]
        factor = self.survival * self.width[:, :, None] * weights
        inside = torch.einsum("tpqk,tpq->tk", self.rates, factor.to(self.rates.dtype)).double()
        whole = inside + self._left[:, None] * self.limit / self.limit.sum(1, keepdim=True).clamp(min=1e-300)
        return whole / whole.sum(1, keepdim=True)

    def quantile(self, level: float) -> Tensor:
        """Find where the compensator reaches -log(1 - level): the panel, then Newton steps inside it."""
        goal = torch.full_like(self.start[:, :1], -np.log1p(-level))
        panel = (torch.searchsorted(self.start, goal)[:, 0] - 1).clamp(0, self.width.shape[1] - 1)
        low, high = (self._at(self.edges, panel + shift) for shift in (0, 1))
        base, top = (self._at(self.start, panel + shift) for shift in (0, 1))
        time = low + (high - low) * ((goal[:, 0] - base) / (top - base)).clamp(0, 1)
        for _ in range(4):
            reached, rate = self._advance(low, base, time)
            step = (reached - goal[:, 0]) / rate.clamp(min=1e-300)
            time = torch.minimum(torch.maximum(time - step, low), high)
        beyond = self.edges[:, -1] + (goal[:, 0] - self.start[:, -1]) / self.limit.sum(1).clamp(min=1e-300)
        return torch.where(goal[:, 0] > self.start[:, -1], beyond, time)

    def _advance(self, low: Tensor, base: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the compensator and the total intensity at ``time``, from the edge ``low`` below it."""
        x, weights, _ = _constants(time)
        nodes = low[:, None] + (time - low)[:, None] * torch.cat([x, torch.ones_like(x[:1])])
        total = self.intensity.rates(nodes.to(self.rates.dtype)).sum(-1).double()
        return base + (total[:, :-1] @ weights) * (time - low), total[:, -1]

    def crps(self, seen: Tensor) -> Tensor:
        r"""Integral of the squared survival plus :math:`g - 2\int_0^g S`, g being what was seen."""
        tail = self._left**2 / (2 * self.limit.sum(1).clamp(min=1e-300))
        return self._integral(self.survival**2) + tail + seen - 2 * self._survival_until(seen)

    def _survival_until(self, seen: Tensor) -> Tensor:
        x, weights, partial = _constants(seen)
        inside = torch.minimum(seen, self.edges[:, -1])
        panel = (torch.searchsorted(self.edges, inside[:, None])[:, 0] - 1).clamp(0, self.width.shape[1] - 1)
        done = torch.cumsum((self.survival @ weights) * self.width, 1)
        done = torch.cat([torch.zeros_like(done[:, :1]), done], 1)
        low, base = self._at(self.edges, panel), self._at(self.start, panel)
        width = (inside - low)[:, None]
        total = self.intensity.rates((low[:, None] + width * x).to(self.rates.dtype)).sum(-1).double()
        survival = torch.exp(-base[:, None] - (total @ partial.T) * width)
        final = self.limit.sum(1).clamp(min=1e-300)
        tail = self._left * -torch.expm1(-final * (seen - inside)) / final
        return self._at(done, panel) + (survival @ weights) * width[:, 0] + tail

    @staticmethod
    def _at(values: Tensor, column: Int[Tensor, " tokens"]) -> Tensor:
        return values.gather(1, column[:, None])[:, 0]
