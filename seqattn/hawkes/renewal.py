"""Gap laws in closed form, for the baselines whose next gap does not depend on the history."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import optimize, special, stats
from torch import Tensor

from seqattn.hawkes.forecast import NextEvent, next_event
from seqattn.hawkes.intensity import Intensity, LinearIntensity

GAP_LAWS = ("gamma", "lognormal")
# Probabilities below this lose digits; their logarithms are then computed directly.
_LATE = 1e-280
# Terms of the continued fraction of the incomplete gamma function, far beyond its argument's peak.
_FRACTIONS = 60


def gap_law(law: str, shape: tuple[float, float]) -> Any:
    """Return the frozen scipy distribution of a gap law.

    Parameters
    ----------
    law
        ``"gamma"`` with (shape, scale) or ``"lognormal"`` with (mean, standard deviation) of the logarithm.
    shape
        Its two parameters; the scale is in time units.
    """
    if law == "gamma":
        return stats.gamma(shape[0], scale=shape[1])
    return stats.lognorm(shape[1], scale=np.exp(shape[0]))


def log_survival(law: str, shape: tuple[float, float], time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the probability of longer gaps, also where the probability itself is 0 in float64.

    Parameters
    ----------
    law, shape
        As in :func:`gap_law`.
    time
        Lengths of gaps, at least 0.

    Notes
    -----
    For the gamma law beyond float64 the continued fraction of the upper incomplete gamma function is used.

    References
    ----------
    Abramowitz and Stegun (1964), Handbook of mathematical functions, 6.5.31.

    Examples
    --------
    >>> log_survival("gamma", (1.0, 2.0), np.array([1.0, 4000.0])).round(9).tolist()
    [-0.5, -2000.0]
    """
    if law == "lognormal":
        return np.asarray(gap_law(law, shape).logsf(time))
    first, x = shape[0], np.asarray(time) / shape[1]
    left = special.gammaincc(first, x)
    late = left < _LATE
    far = np.where(late, x, first + 1e3)
    fraction = np.zeros_like(far)
    for n in range(_FRACTIONS, 0, -1):
        fraction = n * (n - first) / (far + 2 * n + 1 - first - fraction)
    tail = first * np.log(far) - far - special.gammaln(first) - np.log(far + 1 - first - fraction)
    return np.where(late, tail, np.log(np.where(late, 1.0, left)))


def fit_gap_law(
    law: str, seen: NDArray[np.float64], censored: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the parameters that maximise the likelihood of gaps, and its logarithm.

    Parameters
    ----------
    law
        One of ``GAP_LAWS``.
    seen
        Observed gaps, positive.
    censored
        Times that passed without an event.
    """
    logs = np.log(seen)

    def loss(x: NDArray[np.float64]) -> float:
        shape = (np.exp(x[0]), np.exp(x[1])) if law == "gamma" else (x[0], np.exp(x[1]))
        chosen = gap_law(law, shape)
        return -float(chosen.logpdf(seen).sum() + chosen.logsf(censored).sum()) / len(seen)

    spread = max(logs.std(), 1e-3)
    start = [0.0, np.log(seen.mean())] if law == "gamma" else [logs.mean(), np.log(spread)]
    found = optimize.minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    first = np.exp(found.x[0]) if law == "gamma" else found.x[0]
    return np.array([first, np.exp(found.x[1])]), -found.fun * len(seen)


@dataclass(frozen=True)
class RenewalIntensity(Intensity):
    r"""Hazard of a gap law, split over independent types: :math:`\lambda_k(u) = p_k h(\text{age} + u)`.

    Parameters
    ----------
    age
        Time that has passed since the last event, of shape (tokens,).
    share
        Probabilities of the types, of shape (types,).
    law, shape
        As in :func:`gap_law`.
    shortest
        Shorter gaps are scored as if they were this long.
    """

    age: Float[Tensor, " tokens"]
    share: Float[Tensor, " types"]
    law: str
    shape: tuple[float, float]
    shortest: float

    _token_fields: ClassVar[tuple[str, ...]] = ("age",)

    @property
    def n_types(self) -> int:
        return len(self.share)

    @property
    def n_tokens(self) -> int:
        return len(self.age)

    @property
    def _gaps(self) -> Any:
        return gap_law(self.law, self.shape)

    def rates(self, elapsed: Float[Tensor, "tokens nodes"]) -> Float[Tensor, "tokens nodes types"]:
        time = (self.age[:, None] + elapsed).double().clamp(min=self.shortest).numpy()
        return torch.from_numpy(self._hazard(time))[:, :, None] * self.share

    def _hazard(self, time: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(self._gaps.logpdf(time) - log_survival(self.law, self.shape, time))

    def compensator_by_type(
        self, elapsed: Float[Tensor, " tokens"], refine: int = 1
    ) -> Float[Tensor, "tokens types"]:
        age = self.age.numpy()
        later = age + elapsed.double().numpy()
        passed = log_survival(self.law, self.shape, age) - log_survival(self.law, self.shape, later)
        return torch.from_numpy(passed)[:, None] * self.share

    def limit(self) -> Float[Tensor, "tokens types"]:
        final = 1 / self.shape[1] if self.law == "gamma" else 0.0
        return (final * self.share).expand(self.n_tokens, -1)

    def floor(self) -> Float[Tensor, " tokens"]:
        return torch.zeros_like(self.age)

    def bound(
        self, elapsed: Float[Tensor, " tokens"], until: Float[Tensor, " tokens"] | None = None
    ) -> Float[Tensor, " tokens"]:
        """Hazards rise to one top and fall after it; the top may be at 0 or at infinity."""
        top = _top_of_hazard(self.law, self.shape, self.shortest)
        reached = (self.age + elapsed).double().clamp(min=self.shortest).numpy()
        if not np.isfinite(top):
            return self.limit().sum(1)
        time = np.maximum(reached, top)
        return torch.from_numpy(self._hazard(time))

    def settled(self) -> Float[Tensor, " tokens"]:
        return torch.full_like(self.age, torch.inf)

    def pace(self) -> Float[Tensor, " tokens"]:
        return torch.full_like(self.age, 1 / self._gaps.median())

    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        return replace(self, age=self.age + by)

    def next_event(self, levels: tuple[float, ...], observed: Tensor | None) -> NextEvent:
        """Return the law of the next event in closed form, given the age."""
        age = self.age.numpy()
        left = self._gaps.sf(age)
        # Where next to nothing survives, sums in plain numbers have no digits left.
        late = left < _LATE
        age, left = np.where(late, 0.0, age), np.where(late, 1.0, left)
        quantiles = [torch.from_numpy(self._gaps.isf(left * (1 - level)) - age) for level in (0.5, *levels)]
        crps = np.full(len(age), np.nan) if observed is None else self._crps(observed.double().numpy())
        later = torch.stack(quantiles[1:], 1) if levels else torch.zeros(len(age), 0, dtype=torch.float64)
        mean = torch.from_numpy(self._mean_beyond(age) / left - age)
        share = self.share.expand(len(age), -1)
        answer = NextEvent(mean, quantiles[0], later, share, torch.from_numpy(crps), 0.0)
        return self._in_the_tail(answer, torch.from_numpy(late), levels) if late.any() else answer

    def _in_the_tail(self, answer: NextEvent, late: Tensor, levels: tuple[float, ...]) -> NextEvent:
        r"""Replace times by those of the tail.

        :math:`S(a + u)/S(a)` is nearly exponential (gamma) or :math:`(1 + u/a)^{-a h(a)}` (log-normal).
        """
        age = self.age.numpy()
        goal = -np.log1p(-np.array([0.5, *levels]))
        hazard = self._hazard(age[late.numpy()])[:, None]
        mean, times = 1 / hazard, goal / hazard
        if self.law == "lognormal":
            own = age[late.numpy()][:, None]
            mean, times = own / (own * hazard - 1), own * np.expm1(goal / (own * hazard))
        found = {"mean": mean[:, 0], "median": times[:, 0], "quantiles": times[:, 1:]}
        for name, values in found.items():
            getattr(answer, name)[late] = torch.from_numpy(values)
        return answer

    def _mean_beyond(self, age: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the expectation of the gap on the event that it exceeds the age."""
        first, second = self.shape
        if self.law == "gamma":
            return first * second * stats.gamma.sf(age, first + 1, scale=second)
        with np.errstate(divide="ignore"):
            reached = (np.log(age) - first) / second
        return np.exp(first + second**2 / 2) * special.ndtr(second - reached)

    def _crps(self, gap: NDArray[np.float64]) -> NDArray[np.float64]:
        """Closed forms for an age of zero (Jordan, Krueger, Lerch 2019, appendix A)."""
        first, second = self.shape
        if self.law == "gamma":
            higher = stats.gamma.cdf(gap, first + 1, scale=second)
            mean = first * second
            spread = second / special.beta(0.5, first)
            return gap * (2 * self._gaps.cdf(gap) - 1) - mean * (2 * higher - 1) - spread
        z = (np.log(np.maximum(gap, self.shortest)) - first) / second
        mean = np.exp(first + second**2 / 2)
        inner = special.ndtr(z - second) + special.ndtr(second / np.sqrt(2)) - 1
        return gap * (2 * special.ndtr(z) - 1) - 2 * mean * inner


@lru_cache(maxsize=16)
def _top_of_hazard(law: str, shape: tuple[float, float], shortest: float) -> float:
    """Return the time of the highest hazard."""
    if law == "gamma":
        return np.inf if shape[0] >= 1 else shortest
    gaps = gap_law(law, shape)

    def lower(log_time: float) -> float:
        time = np.exp(log_time)
        return float(gaps.logsf(time) - gaps.logpdf(time))

    bounds = (shape[0] - shape[1] ** 2 - 5 * shape[1], shape[0] + 5 * shape[1] + 5)
    found = optimize.minimize_scalar(lower, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return max(float(np.exp(found.x)), shortest)


@dataclass(frozen=True)
class MarkovIntensity(LinearIntensity):
    """Constant intensities whose median forecast is an observed median.

    Parameters
    ----------
    base, excitation, rate
        As in :class:`seqattn.hawkes.intensity.LinearIntensity`.
    median
        Median gap to forecast, of shape (tokens,); nan for the one of the exponential law.
    """

    median: Float[Tensor, " tokens"]

    _token_fields: ClassVar[tuple[str, ...]] = ("base", "excitation", "rate", "median")

    def shift(self, by: Float[Tensor, " tokens"]) -> Self:
        return replace(self, median=torch.where(by > 0, torch.nan, self.median))

    def next_event(self, levels: tuple[float, ...], observed: Tensor | None) -> NextEvent:
        """Return the law of the next event with the median replaced."""
        plain = next_event(LinearIntensity(self.base, self.excitation, self.rate), levels, observed)
        return replace(plain, median=torch.where(self.median.isnan(), plain.median, self.median))
