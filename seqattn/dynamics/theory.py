r"""Theory in three layers: what is exact for the model, what the paper states, and what is a rule of thumb.

The paper proves its growth law for a changed decoder update and weakly correlated classes. Gradient descent on the same
model agrees in kind, not in size; so each curve here says which layer it belongs to, see ``LAYERS``. Times ``t`` count
optimiser steps; ``K`` classes, ``V`` outputs, rates ``lr_y`` of the decoder and ``lr_z`` of attention.

References
----------
Tian, Wang, Chen, Du (2023), Scan and Snap: understanding training dynamics and token composition in 1-layer
transformer, arXiv 2305.16380.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.reduced import DecoderPath, ReducedPath, Symmetric, decoder_ode, reduced_ode
from seqattn.errors import ParameterError

__all__ = [
    "LAYERS",
    "B",
    "DecoderPath",
    "Gamma",
    "ReducedPath",
    "SnapTimes",
    "Symmetric",
    "attention_drift",
    "chi_bounds",
    "decoder_ode",
    "early_law",
    "gamma",
    "growth_constant",
    "h",
    "h_steps",
    "joma_estimate",
    "reduced_ode",
    "snap_times",
]

LAYERS = {
    "early_law": "exact",
    "reduced_ode": "exact",
    "decoder_ode": "exact",
    "h": "paper",
    "gamma": "paper",
    "Gamma": "paper",
    "B": "paper",
    "chi_bounds": "paper",
    "snap_times": "paper",
    "joma_estimate": "heuristic",
}

# Newton falls by at most 1 a step where the exponential rules, and starts at most ln ln V above the root there.
_NEWTON = 60


def h(t: ArrayLike, *, lr_y: float, n_outputs: int, n_classes: int = 1) -> NDArray[np.float64]:
    r"""Return the paper's decoder growth: own logit minus mean, divided by V - 1.

    .. math:: e^{V h} + (V - 1) V h = V \eta_Y s + 1, \quad s = t / K

    Parameters
    ----------
    t
        Times in steps, not negative.
    lr_y
        Rate of the decoder, positive.
    n_outputs
        V, at least 2.
    n_classes
        K; the default is 1, which makes ``t`` the number of times that the class was seen.

    Returns
    -------
    The solution with a relative residual below 1e-12, of the shape of ``t``.

    Notes
    -----
    Newton's method on the difference from 1, without Lambert's function, whose argument overflows.

    Examples
    --------
    >>> float(h(0.0, lr_y=1.0, n_outputs=10))
    0.0
    """
    V = _outputs(n_outputs)
    rise = V * lr_y * _times(t) / n_classes
    u = np.minimum(rise / V, np.log1p(rise))
    for _ in range(_NEWTON):
        step = (np.expm1(u) + (V - 1) * u - rise) / (np.exp(u) + V - 1)
        u = u - step
        if np.all(np.abs(step) <= 1e-16 * (1 + u)):
            break
    return np.asarray(u / V)


def h_steps(n_steps: int, *, lr_y: float, n_outputs: int) -> NDArray[np.float64]:
    """Return the same growth in whole steps of gradient descent, at 0, 1, ..., ``n_steps`` views of the class."""
    V = _outputs(n_outputs)
    values = np.zeros(n_steps + 1)
    for s in range(n_steps):
        values[s + 1] = values[s] + lr_y / (V - 1 + np.exp(V * values[s]))
    return values


def gamma(t: ArrayLike, *, lr_y: float, n_outputs: int, n_classes: int) -> NDArray[np.float64]:
    r"""Return the size of the gradient that reaches attention, :math:`(V-1)^2 h / (V - 1 + e^{V h})`."""
    V, height = n_outputs, h(t, lr_y=lr_y, n_outputs=n_outputs, n_classes=n_classes)
    return np.asarray((V - 1) ** 2 * height / (V - 1 + np.exp(V * height)))


def Gamma(  # noqa: N802 - the paper's letter
    t: ArrayLike, *, lr_y: float, lr_z: float, n_outputs: int, n_classes: int
) -> NDArray[np.float64]:
    r"""Return :math:`\eta_Z \int_0^t \gamma = (\eta_Z/\eta_Y) K (V-1)^2 h^2 / 2`."""
    height = h(t, lr_y=lr_y, n_outputs=n_outputs, n_classes=n_classes)
    return np.asarray(lr_z / lr_y * n_classes * (n_outputs - 1) ** 2 * height**2 / 2)


def B(  # noqa: N802 - the paper's letter
    t: ArrayLike,
    *,
    lr_y: float,
    lr_z: float,
    n_outputs: int,
    n_classes: int,
    C0: float,
    units: str = "sgd",
) -> NDArray[np.float64]:
    r"""Return the paper's growth exponent for one query and one common token.

    .. math:: B(t) = \tfrac14 \ln(1 + 4\,\Gamma(t) / C_0)

    Parameters
    ----------
    t
        Times in steps.
    lr_y, lr_z
        Rates of decoder and attention.
    n_outputs, n_classes
        V and K.
    C0
        Constant of the data, see :func:`growth_constant`.
    units
        ``"sgd"`` (the default) weighs classes by their share 1/K, as gradient descent does; ``"paper"`` by 1.

    Notes
    -----
    The paper prints :math:`\tfrac14 \ln(C_0 + 4\Gamma)`, which is not 0 at the start; the constant is left out here.
    """
    if units not in ("sgd", "paper"):
        raise ParameterError(f"units={units!r} is not known. Allowed: 'sgd', 'paper'.")
    grown = Gamma(t, lr_y=lr_y, lr_z=lr_z, n_outputs=n_outputs, n_classes=n_classes)
    return np.asarray(np.log1p(4 * grown / C0) / 4 / (n_classes if units == "sgd" else 1))


def growth_constant(classes: SequenceClasses) -> float:
    """Return C0 of :func:`B` from the mean scalar product of the classes: 1 / ((K - 1) G0^2).

    Raises
    ------
    ParameterError
        No token is shared, and nothing would grow.
    """
    K = len(classes)
    G0 = (classes.gram.sum() - np.trace(classes.gram)) / max(1, K * (K - 1))
    if G0 <= 0:
        raise ParameterError("The classes share no token, so attention does not move and B has no constant.")
    return float(1 / ((K - 1) * G0**2))


def chi_bounds(growth: ArrayLike, share: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Return the paper's bounds of the growth of the dominant distinct token's odds, :math:`\chi = e^{2 \Delta z}`.

    Parameters
    ----------
    growth
        B in the units of the run.
    share
        Square of the token's part of the decoder input at the start.

    Returns
    -------
    Lower and upper bound, :math:`e^{2 f^2 B}` and :math:`e^{2 B}`.
    """
    growth = np.asarray(growth, dtype=np.float64)
    return np.exp(2 * np.asarray(share) * growth), np.exp(2 * growth)


@dataclass(frozen=True)
class SnapTimes:
    """Times at which the paper has attention slow down.

    Attributes
    ----------
    first
        ``K ln V / lr_y``, up to which the decoder grows in proportion to time.
    last
        ``2 K ln V / lr_y``, after which attention creeps; the paper's factor 1 + o(1) is left out.
    """

    first: float
    last: float


def snap_times(*, lr_y: float, n_outputs: int, n_classes: int) -> SnapTimes:
    """Return the paper's times of the snap, in steps.

    Examples
    --------
    >>> round(snap_times(lr_y=1.0, n_outputs=34, n_classes=2).first, 3)
    7.053
    """
    first = float(n_classes * np.log(_outputs(n_outputs)) / lr_y)
    return SnapTimes(first, 2 * first)


def attention_drift(classes: SequenceClasses, n_outputs: int | None = None) -> NDArray[np.float64]:
    r"""Return in which direction training moves attention first, without training.

    .. math:: \sum_{k: \psi(k) = m} p_k f_k \odot (I - f_k f_k^T)(F_{y(k)} - \bar f / V)

    Parameters
    ----------
    classes
        Any classes, with repeated labels or not.
    n_outputs
        V; that of the classes by default.

    Returns
    -------
    One number per query and token; positive where attention rises at first. For the l2 norm and a start from 0.
    """
    V = classes.n_outputs if n_outputs is None else n_outputs
    f = classes.P / np.linalg.norm(classes.P, axis=1, keepdims=True)
    weighted = classes.weight[:, None] * f
    same = classes.label[:, None] == classes.label
    pull = same @ weighted - weighted.sum(0) / V
    own = (f * pull).sum(1, keepdims=True)
    drift = np.zeros((classes.n_queries, classes.n_tokens))
    np.add.at(drift, classes.query, weighted * (pull - own * f))
    return drift


def early_law(t: ArrayLike, classes: SequenceClasses, *, lr_y: float, lr_z: float) -> NDArray[np.float64]:
    r"""Return attention logits soon after a start from 0, exact up to :math:`t^3`.

    Parameters
    ----------
    t
        Times in steps.
    classes
        The data; the l2 norm is meant.
    lr_y, lr_z
        Rates of decoder and attention.

    Returns
    -------
    Logits of shape (*t.shape, queries, tokens).
    """
    times = _times(t)[..., None, None]
    return np.asarray(lr_y * lr_z * times**2 / 2 * attention_drift(classes))


def joma_estimate(Y: ArrayLike, mass: ArrayLike, *, lr_y: float, lr_z: float) -> NDArray[np.float64]:
    r"""Estimate attention logits from the decoder, as JoMA integrates attention out: a rule of thumb.

    .. math:: \sum_m z_{ml} \approx \frac{\eta_Z}{2 \eta_Y} \bigl(|Y_l|^2 - \bar c_l |Y|^2\bigr)

    Parameters
    ----------
    Y
        Decoder logits of shape (..., tokens, outputs).
    mass
        Mean attention to each token before training, of shape (tokens,). With that of later times the sign turns.
    lr_y, lr_z
        Rates of decoder and attention.

    Returns
    -------
    One number per token. Its correlation with the true sums is high early in training; its size is wrong by up to a
    factor of 8, so only the correlation should be reported.

    References
    ----------
    Tian, Wang, Zhang, Chen, Du (2024), JoMA: demystifying multilayer transformers via joint dynamics of MLP and
    attention, arXiv 2310.00535.
    """
    rows = np.square(np.asarray(Y, dtype=np.float64)).sum(-1)
    return np.asarray(lr_z / (2 * lr_y) * (rows - np.asarray(mass) * rows.sum(-1, keepdims=True)))


def _times(t: Any) -> NDArray[np.float64]:
    times = np.asarray(t, dtype=np.float64)
    if not (times >= 0).all():
        raise ParameterError(f"t holds {float(times[~(times >= 0)].ravel()[0])!r}. Give times from 0 on.")
    return times


def _outputs(n: int) -> int:
    if n < 2:
        raise ParameterError(f"n_outputs={n!r} is not allowed. Give at least 2.")
    return n
