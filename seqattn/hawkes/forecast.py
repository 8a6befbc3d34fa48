r"""The law of the next event, from the intensities after a token: mean, quantiles, type probabilities, CRPS.

With :math:`\Lambda(u) = \int_0^u \lambda`, :math:`S(u) = e^{-\Lambda(u)}` and density :math:`f = \lambda S`, all
answers come from one evaluation of the intensities on panels whose widths grow geometrically away from the token, up
to a horizon where either no survival is left or the intensities have reached their limits; beyond it the tail is
exactly exponential. There is no largest gap to choose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import legendre
from torch import Tensor

from seqattn.hawkes.intensity import Intensity

# Nodes per panel: with panels growing by a factor of at most 2.5, survival is integrated to about 1e-7.
_NODES = 8
_GROWTH = 1.5
# Expected events after which nothing is left to forecast: survival is below 1e-6, and for the smallest number 0.
_ENOUGH = 13.9
_MOST_EXPECTED = 700.0
# Least step as a share of the way so far.
_SMALLEST_STEP = 1e-12
# Largest accepted error of the total probability, and of the expected events relative to the compensator, before a
# token is computed again on shorter panels.
_MASS_ERROR = 1e-5
_COUNT_ERROR = 1e-3
_MOST_REFINEMENTS = 4
# Widths from a peak beyond which it is nothing, and widths that eight nodes integrate to 1e-4 of a peak.
_REACH = 4.5
_PIECE = 5.0
# Newton steps on the compensator itself, and the latest time that is asked of it.
_CORRECTIONS = 2
_FAR_OFF = 1e30
# Enough for 1e-12 of a panel, where a bracket must be halved at first too.
_NEWTON_STEPS = 20
# Elements of (tokens, nodes, types) per step.
_BLOCK = 1 << 18


class _Rule(NamedTuple):
    """Gauss-Legendre on (0, 1): nodes, weights, and the powers of the interpolant's integral from 0."""

    nodes: Tensor
    weights: Tensor
    to_nodes: Tensor  # values at the nodes -> integral from 0 to each node
    powers: Tensor  # values at the nodes -> coefficients of s, s^2, ... of the integral from 0 to s

    def until(self, values: Tensor, place: Tensor) -> Tensor:
        """Return the integral from 0 to a place in each row."""
        answer = torch.zeros_like(place)
        for column in reversed((self.powers @ values.T).unbind(0)):
            answer = (answer + column) * place
        return answer

    def place_of(self, values: Tensor, goal: Tensor) -> Tensor:
        """Return where in (0, 1) the integral reaches a goal: Newton's method inside a shrinking bracket."""
        columns = (self.powers @ values.T).unbind(0)
        low, high = torch.zeros_like(goal), torch.ones_like(goal)
        place = (goal / values.mean(1)).clamp(0, 1)
        for _ in range(_NEWTON_STEPS):
            value, slope = torch.zeros_like(goal), torch.zeros_like(goal)
            for column in reversed(columns):
                slope = slope * place + (value + column)
                value = (value + column) * place
            above = value > goal
            low, high = torch.where(above, low, place), torch.where(above, place, high)
            moved = place - (value - goal) / slope
            inside = (moved > low) & (moved < high)
            place = torch.where(inside, moved, (low + high) / 2)
        return place


@lru_cache(maxsize=8)
def _rule(device: torch.device) -> _Rule:
    nodes, weights = legendre.leggauss(_NODES)
    x, order = (nodes + 1) / 2, np.arange(1, _NODES + 1)
    powers = np.linalg.inv(np.vander(x, _NODES, increasing=True)) / order[:, None]
    values = (x, weights / 2, (x[:, None] ** order) @ powers, powers)
    return _Rule(*(torch.from_numpy(value).to(device) for value in values))


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
    size = max(1, _BLOCK // (_NODES * intensity.n_types))
    parts = []
    for start in range(0, intensity.n_tokens, size):
        rows = slice(start, start + size)
        seen = None if observed is None else observed[rows].double()
        parts.append(_solve(intensity.select(rows), levels, seen))
    return _joined(parts, intensity, levels)


def _joined(parts: list[NextEvent], intensity: Intensity, levels: tuple[float, ...]) -> NextEvent:
    if not parts:
        none = intensity.floor().double()
        types = none.new_zeros(0, intensity.n_types)
        return NextEvent(none, none, none.new_zeros(0, len(levels)), types, none, 0.0)
    names = ("mean", "median", "quantiles", "type_probability", "crps")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return NextEvent(**joined, mass_error=max(part.mass_error for part in parts))


def _solve(
    intensity: Intensity, levels: tuple[float, ...], seen: Tensor | None, refinement: int = 0
) -> NextEvent:
    """Walk away from all tokens at once; tokens whose probability does not add up walk again in shorter steps."""
    goals = -np.log1p(-np.array([0.5, *levels]))
    goals = intensity.floor().new_tensor(goals, dtype=torch.float64).expand(intensity.n_tokens, -1)
    walk = _Walk(intensity, goals, seen, 0.5**refinement)
    walk.run()
    answer, error = walk.answer()
    bad = ((error > _MASS_ERROR) | (walk.count_error() > _COUNT_ERROR)).nonzero()[:, 0]
    if len(bad) and refinement < _MOST_REFINEMENTS:
        again = _solve(intensity.select(bad), levels, None if seen is None else seen[bad], refinement + 1)
        for name in ("mean", "median", "quantiles", "type_probability", "crps"):
            getattr(answer, name)[bad] = getattr(again, name)
        error[bad] = again.mass_error
    return replace(answer, mass_error=float(error.amax()) if len(error) else 0.0)


@torch.no_grad()
def reach(
    intensity: Intensity, goal: Float[Tensor, " tokens"], within: Float[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Return when the compensator reaches a goal: with goals drawn from Exp(1), times of next events.

    Parameters
    ----------
    intensity
        States of the tokens.
    goal
        Expected numbers of events, positive.
    within
        Time after each token beyond which nobody wants to know.

    Returns
    -------
    Times since the tokens in float64, infinite where the goal is not reached within the time.

    Examples
    --------
    >>> from seqattn.hawkes.intensity import LinearIntensity
    >>> rate = torch.full((2, 1), 0.5, dtype=torch.float64)
    >>> constant = LinearIntensity(rate, 0 * rate, rate[:, 0])
    >>> reach(constant, torch.tensor([1.0, 1.0]), torch.tensor([9.0, 1.5])).tolist()
    [2.0, inf]
    """
    walk = _Walk(intensity, goal.double()[:, None], None, 1.0, within.double())
    walk.run()
    time = walk.found()[:, 0]
    if intensity.has_exact_compensator:
        for _ in range(_CORRECTIONS):
            time = _corrected(intensity, time, goal.double())
    return torch.where(time <= within, time, torch.inf)


def _corrected(intensity: Intensity, time: Tensor, goal: Tensor) -> Tensor:
    """Take a step of Newton's method on the exact compensator, where it moves the time a little."""
    at = time.clamp(max=_FAR_OFF).to(intensity.floor().dtype)
    miss = intensity.compensator(at).double() - goal
    moved = time - miss / intensity.total(at).double().clamp(min=1e-300)
    return torch.where((moved > time / 2) & (moved < 2 * time), moved, time)


class _Walk:
    """Panels side by side, one per token and step; tokens drop out once nothing is left to happen after them.

    Everything is in float64 except the intensities themselves.
    """

    def __init__(
        self,
        intensity: Intensity,
        goals: Tensor,
        seen: Tensor | None,
        factor: float,
        within: Tensor | None = None,
    ) -> None:
        self.intensity = self.current = intensity  # states of all tokens, and of those still going
        self.peaks, self.peak_widths = intensity.peaks()
        self.rule = _rule(goals.device)
        self.goals, self.seen, self.factor = goals, seen, factor
        self.limit = intensity.limit().double()
        zero = torch.zeros(intensity.n_tokens, dtype=torch.float64, device=goals.device)
        self.place, self.passed = zero.clone(), zero.clone()  # how far, and the compensator up to there
        self.mean, self.mass, self.squares, self.until_seen = (zero.clone() for _ in range(4))
        self.types = torch.zeros_like(self.limit)
        self.times = torch.full_like(goals, torch.nan, dtype=torch.float64)
        self.going = torch.arange(len(zero), device=goals.device)
        # Times are only drawn where a time is given within which they count; no sums are then kept.
        self.draws = within is not None
        now, final = intensity.total(torch.zeros_like(intensity.floor())).double(), self.limit.sum(1)
        ceiling = torch.maximum(now, final).clamp(min=1e-30)
        # What is left beyond the end adds its share divided by the final intensity to the mean: little of it must
        # be left where that intensity is small.
        rest = (ceiling / final.clamp(min=1e-300)).log().clamp(max=_MOST_EXPECTED - _ENOUGH)
        self.enough = goals[:, 0] if self.draws else _ENOUGH + rest
        self.horizon = torch.maximum(intensity.settled().double(), 1e-3 / ceiling)
        self.first = torch.minimum(0.5 / torch.maximum(intensity.pace().double(), ceiling), self.horizon)
        if within is not None:
            self.horizon = torch.minimum(self.horizon, within)

    def run(self) -> None:
        """Walk until nobody is left."""
        while self.step():
            pass

    def step(self) -> bool:
        """Go one panel further with every token still going; return whether any is left."""
        rows = self.going
        if not len(rows):
            return False
        start, passed = self.place[rows], self.passed[rows]
        width = torch.maximum(_GROWTH * start, self.first[rows])
        width = torch.minimum(width, self._until_peaks(start)) * self.factor
        width = torch.maximum(width, _SMALLEST_STEP * start)  # a step that rounding swallows would never end
        width = torch.minimum(width, self.horizon[rows] - start)
        times = start[:, None] + width[:, None] * self.rule.nodes
        rates = self.current.rates(times.to(self._dtype))
        total = rates.sum(-1).double() * width[:, None]
        reached = passed + total @ self.rule.weights
        if not self.draws:
            survival = torch.exp(-(passed[:, None] + total @ self.rule.to_nodes.T))
            self._add(rows, width, rates, total, survival)
            self._find_seen(rows, start, width, survival)
        self._find_times(rows, start, width, total, passed, reached)
        self.place[rows], self.passed[rows] = start + width, reached
        self._drop(rows, (reached < self.enough[rows]) & (start + width < self.horizon[rows]))
        return len(self.going) > 0

    def _until_peaks(self, start: Tensor) -> Tensor:
        """Return how long a panel may be: up to the reach of a peak, and a few widths long within it."""
        if not self.peak_widths.shape[0]:
            return torch.full_like(start, torch.inf)
        distance = self.peaks - start.to(self.peaks.dtype)[:, None]
        reach = _REACH * self.peak_widths
        piece = torch.maximum(distance - reach, _PIECE * self.peak_widths)
        return piece.masked_fill_(distance < -reach, torch.inf).amin(1).to(start.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.intensity.floor().dtype

    def _add(self, rows: Tensor, width: Tensor, rates: Tensor, total: Tensor, survival: Tensor) -> None:
        weights = self.rule.weights
        self.mean[rows] += (survival @ weights) * width
        self.squares[rows] += (survival**2 @ weights) * width
        self.mass[rows] += (total * survival) @ weights
        factor = survival * width[:, None] * weights
        self.types[rows] += torch.einsum("tqk,tq->tk", rates, factor.to(rates.dtype)).double()

    def _find_times(
        self, rows: Tensor, start: Tensor, width: Tensor, total: Tensor, passed: Tensor, reached: Tensor
    ) -> None:
        """Find where the compensator reaches its goals inside a panel, on the interpolant."""
        for column in range(self.goals.shape[1]):
            goal = self.goals[rows, column]
            inside = ((passed < goal) & (reached >= goal)).nonzero()[:, 0]
            if not len(inside):
                continue
            place = self.rule.place_of(total[inside], goal[inside] - passed[inside])
            self.times[rows[inside], column] = start[inside] + width[inside] * place

    def found(self) -> Tensor:
        """Return the times at which the goals are reached, those beyond the horizon from the final intensities."""
        final = self.limit.sum(1, keepdim=True).clamp(min=1e-300)
        beyond = self.place[:, None] + (self.goals - self.passed[:, None]) / final
        return torch.where(self.times.isnan(), beyond, self.times)

    def _find_seen(self, rows: Tensor, start: Tensor, width: Tensor, survival: Tensor) -> None:
        """Add up the survival until what was seen, for the CRPS."""
        if self.seen is not None:
            part = ((self.seen[rows] - start) / width.clamp(min=1e-300)).clamp(0, 1)
            self.until_seen[rows] += self.rule.until(survival, part) * width

    def _drop(self, rows: Tensor, still: Tensor) -> None:
        kept = still.nonzero()[:, 0]
        if len(kept) < len(rows):
            self.going = rows[kept]
            self.current = self.current.select(kept)
            self.peaks = self.peaks[kept]

    def count_error(self) -> Tensor:
        """Return by what share the expected events so far miss the compensator, where that is known well."""
        if not self.intensity.has_exact_compensator:
            return torch.zeros_like(self.passed)
        exact = self.intensity.compensator(self.place.to(self._dtype)).double()
        return (self.passed - exact).abs() / exact.clamp(min=1.0)

    def answer(self) -> tuple[NextEvent, Tensor]:
        """Return the answers with the exponential tails added, and by what the probability of each misses 1."""
        left, final = torch.exp(-self.passed), self.limit.sum(1).clamp(min=1e-300)
        types = self.types + (left / final)[:, None] * self.limit
        quantiles = self.found()
        crps = torch.full_like(left, torch.nan)
        if self.seen is not None:
            later = (self.seen - self.place).clamp(min=0)
            until = self.until_seen + left * -torch.expm1(-final * later) / final
            crps = self.squares + left**2 / (2 * final) + self.seen - 2 * until
        answer = NextEvent(
            self.mean + left / final,
            quantiles[:, 0],
            quantiles[:, 1:],
            types / types.sum(1, keepdim=True),
            crps,
            0.0,
        )
        return answer, (self.mass + left - 1).abs()
