"""The model's exact motion in a few numbers, for classes that are alike, and with attention held fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp

from seqattn.dynamics.classes import SequenceClasses
from seqattn.errors import ParameterError, SeqattnError

__all__ = ["DecoderPath", "ReducedPath", "Symmetric", "decoder_ode", "reduced_ode"]


@dataclass(frozen=True)
class Symmetric:
    """Classes that differ only in which tokens they are made of.

    Parameters
    ----------
    n_classes
        K, all of equal weight and with labels of their own.
    n_outputs
        V, at least K.
    distinct
        Probabilities of the tokens that belong to one class, alike in all.
    common
        Probabilities of the tokens that all classes share; with ``distinct`` they sum to 1.
    next_per_query
        Classes of each query.
    """

    n_classes: int
    n_outputs: int
    distinct: tuple[float, ...]
    common: tuple[float, ...]
    next_per_query: int

    def __post_init__(self) -> None:
        if self.n_outputs < self.n_classes or self.n_classes % self.next_per_query:
            raise ParameterError(
                f"{self.n_classes} classes with {self.n_outputs} outputs and {self.next_per_query} per query "
                "cannot be. Give at least as many outputs as classes, and a divisor of their number per query."
            )
        total = sum(self.distinct) + sum(self.common)
        if abs(total - 1) > 1e-8:
            raise ParameterError(f"The probabilities of distinct and common tokens sum to {total!r}, not 1.")

    @classmethod
    def of(cls, classes: SequenceClasses) -> Symmetric | None:
        """Return the reduced form of classes, or None where they are not symmetric."""
        K = len(classes)
        sizes = np.bincount(classes.query, minlength=classes.n_queries)
        is_common = classes.kinds() == "common"
        shared = classes.P[:, is_common]
        own = [np.sort(classes.P[k, classes.owner == k]) for k in range(K)]
        alike = (
            len(np.unique(classes.label)) == K
            and np.ptp(classes.weight) < 1e-12
            and np.ptp(sizes[sizes > 0]) == 0
            and bool((np.ptp(shared, axis=0) < 1e-12).all())
            and len({len(profile) for profile in own}) == 1
            and bool((np.ptp(np.stack(own), axis=0) < 1e-12).all())
        )
        if not alike or not len(own[0]) or not shared.shape[1]:
            return None
        common = tuple(shared[0].tolist())
        return cls(K, classes.n_outputs, tuple(own[0].tolist()), common, int(sizes.max()))


@dataclass(frozen=True)
class ReducedPath:
    """Where attention stands over time.

    Attributes
    ----------
    t
        Times in steps.
    z_distinct, z_common
        Attention logits, of shape (times, tokens).
    margin
        Own logit minus the largest other.
    one_minus_alpha
        Probability that the model does not give to the right token.
    speed
        Length of the velocity of one query's logits, all its tokens counted.
    entropy_distinct
        Entropy of attention among the distinct tokens, in nats.
    common_mass
        Attention on common tokens together.
    """

    t: NDArray[np.float64]
    z_distinct: NDArray[np.float64]
    z_common: NDArray[np.float64]
    margin: NDArray[np.float64]
    one_minus_alpha: NDArray[np.float64]
    speed: NDArray[np.float64]
    entropy_distinct: NDArray[np.float64]
    common_mass: NDArray[np.float64]


def reduced_ode(
    t: ArrayLike, data: Symmetric, *, lr_y: float, lr_z: float, rtol: float = 1e-8
) -> ReducedPath:
    r"""Return the exact gradient flow from 0 with the l2 norm, for symmetric classes.

    The state has three numbers per distinct token and two per common one, whatever the numbers of classes and outputs:
    the attention logits, the decoder row :math:`(a, -b, -c)` of a distinct token in its own, other and idle columns,
    and the row :math:`e` of a common one in real columns.

    Parameters
    ----------
    t
        Times in steps, not negative and not decreasing.
    data
        The classes.
    lr_y, lr_z
        Rates of decoder and attention.
    rtol
        Relative error allowed to the solver; 1e-8 is enough for plots.

    Raises
    ------
    SeqattnError
        The solver failed.
    """
    system = _Reduced(data, lr_y, lr_z)
    states = _solved(system.velocity, np.zeros(3 * system.D + 2 * system.C), t, rtol)
    rows = [system.observed(state) for state in states]
    names = ("margin", "one_minus_alpha", "speed", "entropy_distinct", "common_mass")
    return ReducedPath(
        np.atleast_1d(np.asarray(t, dtype=np.float64)),
        states[:, : system.D],
        states[:, system.D : system.D + system.C],
        *(np.array([row[name] for row in rows]) for name in names),
    )


class _Reduced:
    """The equations of motion of symmetric classes."""

    def __init__(self, data: Symmetric, lr_y: float, lr_z: float) -> None:
        self.K, self.V, self.r = data.n_classes, data.n_outputs, data.next_per_query
        self.log_d, self.log_rho = np.log(data.distinct), np.log(data.common)
        self.D, self.C = len(data.distinct), len(data.common)
        self.lr_y, self.lr_z = lr_y / self.K, lr_z / self.K

    def _parts(self, state: NDArray) -> tuple[NDArray, ...]:
        cuts = np.cumsum([self.D, self.C, self.D, self.D])
        return tuple(np.split(state, cuts))

    def _seen(self, state: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """The decoder input on distinct and common tokens, and what it is the normed form of."""
        z, z_common = self._parts(state)[:2]
        logits = np.concatenate([self.log_d + z, self.log_rho + z_common])
        odds = np.exp(logits - logits.max())
        f = odds / np.linalg.norm(odds)
        return f[: self.D], f[self.D :], odds / odds.sum()

    def _probabilities(self, state: NDArray) -> tuple[float, float, float, float]:
        """Probabilities of one other and one idle column, one minus that of the own, and the margin."""
        _, _, b, c, e = self._parts(state)
        f, f_common, _ = self._seen(state)
        idle, others = self.V - self.K, self.K - 1
        a = others * b + idle * c
        height = f_common @ e
        own, other = f @ a + height, -f @ b + height
        rest = -f @ c - self.K * height / idle if idle else -np.inf
        odds_other, odds_idle = np.exp(other - own), np.exp(rest - own)
        missed = others * odds_other + idle * odds_idle
        top = max(other if others else -np.inf, rest)
        return odds_other / (1 + missed), odds_idle / (1 + missed), missed / (1 + missed), own - top

    def velocity(self, t: float, state: NDArray) -> NDArray:
        _, _, b, c, e = self._parts(state)
        f, f_common, _ = self._seen(state)
        other, idle, missed, _ = self._probabilities(state)
        n_idle, n_other = self.V - self.K, self.K - 1
        a = n_other * b + n_idle * c
        g = a * missed + n_other * b * other + n_idle * c * idle
        g_common = e * self.V * idle if n_idle else np.zeros(self.C)
        s = f @ g + f_common @ g_common
        return np.concatenate(
            [
                self.lr_z * f * (g - f * s),
                self.lr_z * self.r * f_common * (g_common - f_common * s),
                self.lr_y * f * other,
                self.lr_y * f * idle if n_idle else np.zeros(self.D),
                self.lr_y * f_common * n_idle * idle,
            ]
        )

    def observed(self, state: NDArray) -> dict[str, float]:
        _, _, missed, margin = self._probabilities(state)
        mass = self._seen(state)[2]
        moved = self.velocity(0.0, state)
        own = mass[: self.D] / mass[: self.D].sum()
        entropy = -np.sum(own * np.log(np.maximum(own, 1e-300)))
        length = self.r * np.square(moved[: self.D]).sum() + np.square(moved[self.D : self.D + self.C]).sum()
        values = (margin, missed, np.sqrt(length), entropy, mass[self.D :].sum())
        names = ("margin", "one_minus_alpha", "speed", "entropy_distinct", "common_mass")
        return dict(zip(names, map(float, values), strict=True))


@dataclass(frozen=True)
class DecoderPath:
    """Differences of decoder logits over time, with attention held fixed.

    Attributes
    ----------
    own_other
        Own logit minus another class's.
    own_idle
        Own logit minus that of a column which is no class; nan where there is none.
    """

    own_other: NDArray[np.float64]
    own_idle: NDArray[np.float64]


def decoder_ode(
    t: ArrayLike, *, n_classes: int, n_outputs: int, correlation: float, lr_y: float, rtol: float = 1e-10
) -> DecoderPath:
    """Return how the decoder learns from inputs of which any two have one scalar product.

    Parameters
    ----------
    t
        Times in steps, not negative and not decreasing.
    n_classes, n_outputs
        K and V, which is at least K.
    correlation
        Scalar product of the inputs of two classes, from 0 to below 1.
    lr_y
        Rate of the decoder.
    rtol
        Relative error allowed to the solver.

    Notes
    -----
    The paper's remark that correlation only slows the decoder by a factor is right for V = K alone.
    """
    K, V, rho = n_classes, n_outputs, correlation
    if not 2 <= K <= V or not 0 <= rho < 1:
        raise ParameterError(
            f"n_classes={K}, n_outputs={V}, correlation={rho!r} cannot be. Give 2 <= K <= V and [0, 1)."
        )
    idle, rate = V - K, lr_y / K

    def velocity(_: float, state: NDArray) -> NDArray:
        x, y = state  # own minus idle, other minus idle
        other, spare = np.exp(y - x), np.exp(-x) if idle else 0.0
        total = 1 + (K - 1) * other + idle * spare
        B, C = other / total, spare / total
        missed = (K - 1) * B + idle * C
        shared = rho * V * C
        return rate * np.array([(1 - rho) * (missed + C) + shared, (1 - rho) * (C - B) + shared])

    path = _solved(velocity, np.zeros(2), t, rtol)
    own_idle = path[:, 0] if idle else np.full(len(path), np.nan)
    return DecoderPath(path[:, 0] - path[:, 1], own_idle)


def _solved(
    velocity: Callable[[float, NDArray], NDArray], start: NDArray, t: Any, rtol: float
) -> NDArray[np.float64]:
    """Integrate from 0 to each of the times."""
    times = np.atleast_1d(np.asarray(t, dtype=np.float64))
    if not (times >= 0).all() or (np.diff(times) < 0).any():
        raise ParameterError("The times must not be negative nor decrease.")
    if times[-1] == 0:
        return np.repeat(start[None], len(times), axis=0)
    done = solve_ivp(
        velocity, (0, times[-1]), start, method="DOP853", t_eval=times, rtol=rtol, atol=rtol * 1e-4
    )
    if not done.success:
        raise SeqattnError(f"The solver stopped: {done.message}")
    return np.asarray(done.y.T)
