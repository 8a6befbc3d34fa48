"""Reliability of the types of a point process: how often types happen that are given a certain probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqattn.data.batches import EventBatch
from seqattn.hawkes.intensity import Intensity

# (event, type) pairs whose probabilities are held at once.
_MARK_CELLS = 1 << 19


@dataclass(frozen=True)
class MarkReliability:
    r"""How often types happen that are given a certain probability, their time being known.

    The probability of type k at an event is :math:`\lambda_k(t_i) / \lambda(t_i)`. All (event, type) pairs are sorted
    by it and divided into ten bins of equal mass: each holds a tenth of the events that the probabilities add up to,
    so that thousands of types that hardly ever come fill one bin, not nine. Equal probabilities share a bin.

    Parameters
    ----------
    stated, observed
        Mean probability of the pairs of each bin, and the share of them that happened.
    mass
        Share of all probability in each bin, about 1/10; sums to 1.
    spread
        Standard error of ``observed`` if the probabilities are right. Bins that hold several types of one event
        have a smaller one.
    calibration_error
        Mean of \|stated - observed\| over the bins, weighted by their mass.
    brier
        Mean over the events of the squared distance between probabilities and what happened, in [0, 2].
    """

    stated: NDArray[np.float64]
    observed: NDArray[np.float64]
    mass: NDArray[np.float64]
    spread: NDArray[np.float64]
    calibration_error: float
    brier: float

    def to_dict(self) -> dict[str, Any]:
        """Return all values as lists and numbers."""
        return {name: value.tolist() if np.ndim(value) else value for name, value in vars(self).items()}


class MarkTally:
    """Sums over (event, type) pairs in narrow cells of log-odds, from which bins are made at the end."""

    STEP, REACH = 0.01, 30.0

    def __init__(self) -> None:
        self.size = int(2 * self.REACH / self.STEP) + 1
        self.pairs, self.stated, self.happened, self.noise = np.zeros((4, self.size))
        self.squares, self.n_events = 0.0, 0

    @torch.no_grad()
    def add(self, intensity: Intensity, batch: EventBatch, tokens: NDArray[np.int64]) -> None:
        """Add the events that end the intervals after ``tokens``."""
        size = max(1, _MARK_CELLS // intensity.n_types)
        for start in range(0, len(tokens), size):
            chosen = torch.from_numpy(tokens[start : start + size]).to(batch.until.device)
            logs = intensity.select(chosen).log_rates(batch.until[chosen]).double()
            self._count(torch.softmax(logs, 1).cpu().numpy(), batch.target[chosen].cpu().numpy())

    def _count(self, chance: NDArray[np.float64], kind: NDArray[np.int64]) -> None:
        with np.errstate(divide="ignore"):
            odds = np.log(chance) - np.log1p(-chance)
        cell = np.rint((odds.clip(-self.REACH, self.REACH) + self.REACH) / self.STEP).astype(np.int64)
        flat, own = cell.ravel(), np.arange(len(kind))
        self.pairs += np.bincount(flat, minlength=self.size)
        self.stated += np.bincount(flat, chance.ravel(), self.size)
        self.noise += np.bincount(flat, (chance * (1 - chance)).ravel(), self.size)
        self.happened += np.bincount(cell[own, kind], minlength=self.size)
        self.squares += float((chance**2).sum() + (1 - 2 * chance[own, kind]).sum())
        self.n_events += len(kind)

    def reliability(self, bins: int = 10) -> MarkReliability:
        """Return what was added, in bins of equal mass."""
        used = np.flatnonzero(self.pairs)
        mass = self.stated[used] / self.n_events
        # A cell belongs to the bin that holds the middle of its mass: it may fill several, but is never split.
        group = ((np.cumsum(mass) - mass / 2) * bins).astype(int).clip(0, bins - 1)
        columns = (self.pairs, self.stated, self.happened, self.noise)
        sums = [np.bincount(group, column[used], bins) for column in columns]
        pairs, stated, happened, noise = (column[np.unique(group)] for column in sums)
        return MarkReliability(
            stated=stated / pairs,
            observed=happened / pairs,
            mass=stated / self.n_events,
            spread=np.sqrt(noise) / pairs,
            calibration_error=float((stated / self.n_events * np.abs(stated - happened) / pairs).sum()),
            brier=self.squares / self.n_events,
        )
