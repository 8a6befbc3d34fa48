"""The linear readout: ridge regression on many token statistics, with probabilities from cases left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch

__all__ = ["Readout"]

_PENALTIES = np.logspace(-3, 5, 17)
_SHARPNESS = np.logspace(-1, 2.5, 50)


@dataclass(frozen=True)
class Readout:
    r"""Ridge regression of the classes on standardised features, and a softmax of its outputs.

    .. math:: z = \tau (W x + b), \qquad
        W = \arg\min \sum_i \lVert y_i - \bar y - W x_i \rVert^2 + \lambda \lVert W \rVert^2

    with :math:`y_i` the one-hot class. Penalty :math:`\lambda` and sharpness :math:`\tau` are those with the smallest
    log loss over training cases that are left out one at a time, which has a closed form: no training case is ever
    judged by a fit that has seen it.

    Attributes
    ----------
    weights, bias
        :math:`\tau W` on the features as they come, ``(features, classes)``, and what is added, ``(classes,)``.
    penalty, sharpness
        :math:`\lambda` and :math:`\tau`.
    left_out
        Outputs :math:`z` of each training case from a fit without it, ``(cases, classes)``.

    References
    ----------
    Hoerl, Kennard (1970), Ridge regression. Golub, Heath, Wahba (1979), Generalized cross-validation, for the closed
    form of leaving one out.
    """

    weights: np.ndarray
    bias: np.ndarray
    penalty: float
    sharpness: float
    left_out: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, n_classes: int) -> Self:
        """Fit a readout.

        Parameters
        ----------
        features
            ``(cases, features)``, all finite.
        labels
            Class of each case, as numbers from 0; at least two of them occur.
        n_classes
            How many classes there are.
        """
        mean, spread = features.mean(axis=0), features.std(axis=0)
        changes = spread > 1e-9 * (1 + np.abs(mean))
        spread = np.where(changes, spread, 1.0)
        scaled = (features - mean) / spread * changes
        targets = np.eye(n_classes)[labels]
        level = targets.mean(axis=0)
        vectors, powers = _decomposed(scaled)
        projected = vectors.T @ (targets - level)
        best = (np.inf, 0.0, 0.0, np.empty(0))
        for penalty in _PENALTIES * scaled.shape[1] / 1000:
            outputs = _left_out(vectors, powers, projected, targets - level, penalty) + level
            losses = [_log_loss(sharpness * outputs, labels) for sharpness in _SHARPNESS]
            lowest = int(np.argmin(losses))
            if losses[lowest] < best[0]:
                best = (losses[lowest], float(penalty), float(_SHARPNESS[lowest]), outputs)
        _, penalty, sharpness, outputs = best
        weights = scaled.T @ (vectors @ (projected / (powers + penalty)[:, None]))
        weights = sharpness * weights / spread[:, None]
        return cls(weights, sharpness * level - mean @ weights, penalty, sharpness, sharpness * outputs)

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Return the outputs of cases, ``(cases, classes)``; their softmax is a probability.

        Parameters
        ----------
        features
            ``(cases, features)``.
        """
        return np.asarray(features @ self.weights + self.bias)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays by name."""
        return {known.name: np.asarray(getattr(self, known.name)) for known in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return what :meth:`to_arrays` was called on.

        Parameters
        ----------
        arrays
            What it returned.
        """
        numbers = {name: float(arrays[name]) for name in ("penalty", "sharpness")}
        return cls(arrays["weights"], arrays["bias"], left_out=arrays["left_out"], **numbers)


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
    vectors: np.ndarray, powers: np.ndarray, projected: np.ndarray, targets: np.ndarray, penalty: float
) -> np.ndarray:
    """Return what each case gets from a fit without it: (fitted - leverage * target) / (1 - leverage)."""
    shrink = powers / (powers + penalty)
    fitted = (vectors * shrink) @ projected
    leverage = np.minimum((vectors**2) @ shrink + 1 / len(vectors), 1 - 1e-9)[:, None]
    return np.asarray((fitted - leverage * targets) / (1 - leverage))


def _log_loss(outputs: np.ndarray, labels: np.ndarray) -> float:
    top = outputs.max(axis=1, keepdims=True)
    sums = np.log(np.exp(outputs - top).sum(axis=1)) + top[:, 0]
    return float((sums - outputs[np.arange(len(labels)), labels]).mean())
