"""The paper's own dynamics: attention driven by the gradient of its changed decoder update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp

from seqattn.dynamics import theory
from seqattn.dynamics.classes import SequenceClasses
from seqattn.errors import ParameterError, SeqattnError

__all__ = ["PaperPath", "paper_dynamics"]


@dataclass(frozen=True)
class PaperPath:
    """Attention under the paper's update.

    Attributes
    ----------
    t
        Times in steps.
    z
        Attention logits, of shape (times, queries, tokens).
    f2
        Squared decoder input, of shape (times, classes, tokens).
    growth
        The paper's B of each class, of shape (times, classes), classes weighed by 1.
    """

    t: NDArray[np.float64]
    z: NDArray[np.float64]
    f2: NDArray[np.float64]
    growth: NDArray[np.float64]


def paper_dynamics(
    t: ArrayLike,
    classes: SequenceClasses,
    *,
    lr_y: float,
    lr_z: float,
    units: str = "sgd",
    rtol: float = 1e-10,
) -> PaperPath:
    r"""Integrate attention with the decoder of the changed update, which has independent rows.

    .. math:: \dot z_m = \eta_Z \sum_{\psi(n) = m} w_n f_n \odot (g_n - (f_n \cdot g_n) f_n), \quad
       g_n = \gamma(t) F (F^T F)^{-1} q_n

    with :math:`q_n` equal to :math:`1 + 1/(V-1)` at n and to :math:`-V/(V-1)^2` elsewhere.

    Parameters
    ----------
    t
        Times in steps, not negative and not decreasing.
    classes
        Classes with labels of their own, linearly independent.
    lr_y, lr_z
        Rates of decoder and attention.
    units
        ``"sgd"`` (the default) weighs classes by their share, ``"paper"`` by 1.
    rtol
        Relative error allowed to the solver.

    Raises
    ------
    ParameterError
        Labels repeat: the paper's theory says nothing there.
    SeqattnError
        The solver failed.
    """
    K, M, Q = len(classes), classes.n_tokens, classes.n_queries
    if len(np.unique(classes.label)) < K:
        raise ParameterError(
            "Labels repeat. The paper's dynamics need a class of its own for each next token."
        )
    times = np.atleast_1d(np.asarray(t, dtype=np.float64))
    weight = classes.weight if units == "sgd" else np.ones(K)
    V = classes.n_outputs
    q = np.full((K, K), -V / (V - 1) ** 2) + np.eye(K) * (1 + 1 / (V - 1) + V / (V - 1) ** 2)

    def inputs(z: NDArray) -> NDArray:
        logits = z.reshape(Q, M)[classes.query]
        odds = classes.P * np.exp(logits - logits.max(1, keepdims=True))
        return odds / np.linalg.norm(odds, axis=1, keepdims=True)

    def velocity(time: float, state: NDArray) -> NDArray:
        F = inputs(state[: Q * M])
        size = theory.gamma(time, lr_y=lr_y, n_outputs=V, n_classes=K)
        mixed = size * np.linalg.solve(F @ F.T, q)
        g = mixed.T @ F
        s = (F * g).sum(1, keepdims=True)
        moved = np.zeros((Q, M))
        np.add.at(moved, classes.query, weight[:, None] * F * (g - s * F))
        return lr_z * np.concatenate([moved.ravel(), np.diag(mixed) - s[:, 0]])

    start = np.zeros(Q * M + K)
    done = solve_ivp(
        velocity,
        (0, max(times[-1], 1e-300)),
        start,
        method="DOP853",
        t_eval=times,
        rtol=rtol,
        atol=rtol * 1e-4,
    )
    if not done.success:
        raise SeqattnError(f"The solver stopped: {done.message}")
    z = done.y.T[:, : Q * M]
    f2 = np.stack([np.square(inputs(row)) for row in z])
    return PaperPath(times, z.reshape(-1, Q, M), f2, done.y.T[:, Q * M :])
