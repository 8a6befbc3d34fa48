"""What all kinds of shapes have in common: how cases come near to them, and how much that says about classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Matches", "shape_prior"]

# Distances below this fit every case alike.
_SMALL = 1e-3


@dataclass(frozen=True)
class Matches:
    """How cases come nearest to shapes.

    Attributes
    ----------
    content
        What the tokens tell, ``(cases, shapes, features)``: points of the nearest window, then its distance, its
        relative place, and the share of windows that are near. 0 where nothing was observed.
    spans
        First and last point of the nearest window as shares of the case's length, ``(cases, shapes, 2)``.
    observed
        Share of the window's points that were there, ``(cases, shapes)``.
    """

    content: np.ndarray
    spans: np.ndarray
    observed: np.ndarray

    def select(self, rows: Any) -> Matches:
        """Return some cases.

        Parameters
        ----------
        rows
            Their numbers, or a mask.
        """
        return Matches(self.content[rows], self.spans[rows], self.observed[rows])


def shape_prior(
    distances: np.ndarray, labels: np.ndarray, label: np.ndarray, source: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Return how much nearer shapes are to their own class than to the others.

    .. math:: p = \frac{n}{n + 5} \max\bigl(0,\, 1 - D_{in} / D_{out}\bigr)

    :math:`D_{in}` is the mean distance to the :math:`n` training cases of the shape's class without the case that it
    was taken from, :math:`D_{out}` the mean over all others.

    Parameters
    ----------
    distances
        Of each training case to each shape, ``(cases, shapes)``; NaN where nothing was observed.
    labels
        Class of each case.
    label, source
        Class of each shape, and the case it was taken from.

    Returns
    -------
    prior
        In [0, 1]; 0 where :math:`D_{out}` is below 0.001, or one of the two groups is empty.
    inside, outside
        The two means; NaN for a group without cases.

    Notes
    -----
    The paper has the ratio. That it becomes a weight in this way, the case left out and the factor for small classes
    are choices made here; :math:`\exp(-D_{in} / D_{out})` would be another map.
    """
    is_own = labels[:, None] == label
    is_other = np.arange(len(labels))[:, None] != source
    inside, n_inside = _masked_mean(distances, is_own & is_other)
    outside, n_outside = _masked_mean(distances, ~is_own)
    is_fit = (n_inside > 0) & (n_outside > 0) & (np.nan_to_num(outside) >= _SMALL)
    ratio = np.divide(inside, outside, out=np.ones_like(inside), where=is_fit)
    return n_inside / (n_inside + 5) * np.clip(1 - ratio, 0, 1), inside, outside


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means over the first axis where the mask is true and the value is there, and how many there are."""
    mask = mask & np.isfinite(values)
    counts = mask.sum(axis=0)
    sums = np.where(mask, values, 0.0).sum(axis=0)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0), counts
