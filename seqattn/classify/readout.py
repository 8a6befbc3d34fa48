"""The linear readout: ridge regression on many token statistics, with probabilities from cases left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import softmax

__all__ = ["Readout", "stacked"]

_PENALTIES = np.logspace(-3, 5, 17)
_SHARPNESS = np.logspace(-1, 2.5, 50)
# How strongly the weights of the families are held at equal ones; matters for a few dozen cases only.
_EQUALITY = 0.3


@dataclass(frozen=True)
class Readout:
    r"""Ridge regressions of the classes on families of features, put together by cases left out.

    Each family (statistics of intervals, of normed shapes, of raw shapes and so on) has a regression of its own,

    .. math:: z_f = \tau_f (W_f x_f + b_f), \qquad
        W_f = \arg\min \sum_i u_i \lVert y_i - \bar y - W x_{fi} \rVert^2 + \lambda_f \lVert W \rVert^2

    with :math:`y_i` the one-hot class and :math:`u_i` the weight of a case, on standardised features. Penalty
    :math:`\lambda_f` and sharpness :math:`\tau_f` are those with the smallest log loss over training cases that are
    left out one at a time, which has a closed form; as much as one case more counts as being of no class in
    particular. The logits are :math:`\sum_f a_f z_f`; the weights :math:`a_f \ge 0` have the smallest log loss on the
    left-out outputs, and are held near equal ones by a penalty that counts as much as 0.3 cases. No training case is
    judged by a regression that has seen it. (The shapes are taken from the training cases, so a case is at distance 0
    from its own; among thousands of shapes of dozens of cases that is little, and nothing of test cases is in it.)

    Attributes
    ----------
    weights, bias
        What all of it comes to on the features as they come: ``(features, classes)`` and ``(classes,)``.
    share
        :math:`a_f` of each family.
    penalty, sharpness
        :math:`\lambda_f` and :math:`\tau_f`.
    left_out
        Logits of each training case from regressions without it, ``(cases, classes)``.

    References
    ----------
    Hoerl, Kennard (1970), Ridge regression: biased estimation for nonorthogonal problems. Wolpert (1992), Stacked
    generalization.
    """

    weights: np.ndarray
    bias: np.ndarray
    share: np.ndarray
    penalty: np.ndarray
    sharpness: np.ndarray
    left_out: np.ndarray

    @classmethod
    def fit(
        cls,
        families: Sequence[np.ndarray],
        labels: np.ndarray,
        n_classes: int,
        case_weights: np.ndarray | None = None,
    ) -> Self:
        """Fit a readout.

        Parameters
        ----------
        families
            Features ``(cases, features)`` of each family, all finite.
        labels
            Class of each case, as numbers from 0; at least two of them occur.
        n_classes
            How many classes there are.
        case_weights
            Weight of each case; None weighs all alike.
        """
        weights = (
            np.ones(len(labels)) if case_weights is None else case_weights * len(labels) / case_weights.sum()
        )
        parts = [
            _regression(features.astype(np.float64), labels, n_classes, weights) for features in families
        ]
        left_out = np.stack([part.left_out for part in parts])
        share = stacked(left_out, labels, weights, np.full(len(parts), 1 / len(parts)))
        return cls(
            weights=np.concatenate([a * part.weights for a, part in zip(share, parts, strict=True)]),
            bias=np.asarray(sum(a * part.bias for a, part in zip(share, parts, strict=True))),
            share=share,
            penalty=np.array([part.penalty for part in parts]),
            sharpness=np.array([part.sharpness for part in parts]),
            left_out=np.tensordot(share, left_out, 1),
        )

    def outputs(self, families: Sequence[np.ndarray]) -> np.ndarray:
        """Return the logits of cases, ``(cases, classes)``.

        Parameters
        ----------
        families
            Their features, as in :meth:`fit`.
        """
        ends = np.cumsum([features.shape[1] for features in families])
        parts = zip(families, np.split(self.weights, ends[:-1]), self.share, strict=True)
        products = [features @ weights for features, weights, share in parts if share]
        return np.asarray(sum(products, np.tile(self.bias, (len(families[0]), 1))))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays by name."""
        return {known.name: getattr(self, known.name) for known in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return what :meth:`to_arrays` was called on.

        Parameters
        ----------
        arrays
            What it returned.
        """
        return cls(**{known.name: arrays[known.name] for known in fields(cls)})


class _Regression(NamedTuple):
    """One family's part: logits are ``features @ weights + bias``."""

    weights: np.ndarray
    bias: np.ndarray
    penalty: float
    sharpness: float
    left_out: np.ndarray


def _regression(
    features: np.ndarray, labels: np.ndarray, n_classes: int, case_weights: np.ndarray
) -> _Regression:
    """Return the regression of one family with the best penalty and sharpness."""
    mean = np.average(features, axis=0, weights=case_weights)
    spread = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=case_weights))
    changes = spread > 1e-9 * (1 + np.abs(mean))
    spread = np.where(changes, spread, 1.0)
    targets = np.eye(n_classes)[labels]
    level = np.average(targets, axis=0, weights=case_weights)
    root = np.sqrt(case_weights)[:, None]
    scaled, wanted = (features - mean) / spread * changes * root, (targets - level) * root
    vectors, powers = _decomposed(scaled)
    projected = vectors.T @ wanted
    best: tuple[float, float, float, np.ndarray] = (np.inf, 1.0, 1.0, targets)
    for penalty in _PENALTIES * max(scaled.shape[1], 1) / 1000:
        outputs = _left_out(vectors, powers, projected, wanted, root, penalty) + level
        losses = [_log_loss(sharpness * outputs, labels, case_weights) for sharpness in _SHARPNESS]
        lowest = int(np.argmin(losses))
        if losses[lowest] < best[0]:
            best = (losses[lowest], float(penalty), float(_SHARPNESS[lowest]), outputs)
    _, penalty, sharpness, outputs = best
    weights = scaled.T @ (vectors @ (projected / (powers + penalty)[:, None]))
    weights = sharpness * weights * (changes / spread)[:, None]
    return _Regression(weights, sharpness * level - mean @ weights, penalty, sharpness, sharpness * outputs)


def _decomposed(scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left singular vectors of features and their squared singular values, by the smaller product."""
    cases, features = scaled.shape
    matrix = torch.from_numpy(scaled)
    if cases <= features:
        powers, vectors = torch.linalg.eigh(matrix @ matrix.T)
        return vectors.numpy(), powers.clamp(min=0).numpy()
    powers, right = torch.linalg.eigh(matrix.T @ matrix)
    keep = powers > 1e-10 * powers.max()
    vectors = (matrix @ right[:, keep]) / powers[keep].sqrt()
    return vectors.numpy(), powers[keep].numpy()


def _left_out(
    vectors: np.ndarray,
    powers: np.ndarray,
    projected: np.ndarray,
    wanted: np.ndarray,
    root: np.ndarray,
    penalty: float,
) -> np.ndarray:
    """Return what each case gets from a fit without it: (fitted - leverage * target) / (1 - leverage)."""
    shrink = powers / (powers + penalty)
    fitted = (vectors * shrink) @ projected
    leverage = np.minimum((vectors**2) @ shrink + root[:, 0] ** 2 / (root**2).sum(), 1 - 1e-9)[:, None]
    return np.asarray((fitted - leverage * wanted) / (1 - leverage) / root)


def _log_loss(outputs: np.ndarray, labels: np.ndarray, case_weights: np.ndarray) -> float:
    """Return the mean log loss; as much as one case more is of no class in particular."""
    top = outputs.max(axis=1, keepdims=True)
    sums = np.log(np.exp(outputs - top).sum(axis=1)) + top[:, 0]
    share = 1 / (len(labels) + 1)
    known = (1 - share) * outputs[np.arange(len(labels)), labels] + share * outputs.mean(axis=1)
    return float(np.average(sums - known, weights=case_weights))


def _softened(targets: np.ndarray) -> np.ndarray:
    """Return the targets of :func:`_log_loss`.

    Otherwise a few dozen cases that are all right when left out would ask for probabilities of 0 and 1.
    """
    share = 1 / (len(targets) + 1)
    return (1 - share) * targets + share / targets.shape[1]


def stacked(
    left_out: np.ndarray, labels: np.ndarray, case_weights: np.ndarray, usual: np.ndarray
) -> np.ndarray:
    r"""Return the factors with which several logits are added up for the smallest log loss.

    .. math:: \arg\min_{a \ge 0} \sum_i u_i \, \mathrm{loss}\Bigl(\sum_f a_f z_{fi}, y_i\Bigr)
        + 0.3 \, \lVert a - a_0 \rVert^2

    Parameters
    ----------
    left_out
        Logits of cases that their makers have not seen, ``(makers, cases, classes)``.
    labels, case_weights
        Class and weight of each case.
    usual
        :math:`a_0`.
    """
    n_cases, n_classes = left_out.shape[1:]
    weights = case_weights / case_weights.sum()
    targets = _softened(np.eye(n_classes)[labels])

    def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
        outputs = np.tensordot(factors, left_out, 1)
        wrong = (softmax(outputs, axis=1) - targets) * weights[:, None]
        held = _EQUALITY / n_cases * (factors - usual)
        value = _log_loss(outputs, labels, weights) + (held * (factors - usual)).sum()
        return value, np.einsum("fnc,nc->f", left_out, wrong) + 2 * held

    # As exact as it goes: rounding errors may not decide after how many steps it ends.
    bounds = [(0, None)] * len(usual)
    return np.asarray(minimize(loss, usual, jac=True, bounds=bounds, tol=1e-14).x)
