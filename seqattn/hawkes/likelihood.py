r"""Log-likelihoods of event sequences under three conventions, from per-interval pieces.

For a sequence with events :math:`t_1 \le \dots \le t_n` on the window :math:`[T_0, T_1]`,

.. math:: \log L = \sum_i \log\lambda_{k_i}(t_i) - \int_{T_0}^{T_1} \lambda(t)\, dt .

Every reported number belongs to the user's time unit: with model time :math:`t' = t/s` it is the model's
value minus :math:`n \log s`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from seqattn.data.batches import EventBatch
from seqattn.errors import ParameterError, suggest
from seqattn.hawkes.intensity import Intensity

CONVENTIONS = ("full", "to_last", "from_first")


@dataclass(frozen=True)
class LogLikelihood:
    """A log-likelihood with everything that is needed to compare it with another one.

    Parameters
    ----------
    per_event, time, type
        Nats per scored event: the whole, the part of the times and the part of the types given the times.
        ``per_event = time + type``.
    total
        Nats over all scored events.
    n_events
        Number of scored events.
    convention
        ``"full"`` (whole window), ``"to_last"`` (up to the last event) or ``"from_first"`` (events after the
        first one, between the first and the last).
    window
        How the ends of the windows came to be: ``"given"``, ``"last_event"`` (no tail is scored) or ``"max"``.
    """

    per_event: float
    time: float
    type: float
    total: float
    n_events: int
    convention: str
    window: str


@dataclass(frozen=True)
class IntervalScores:
    """Pieces of the likelihood, one row per token: the interval from that token to the next event or window end.

    Parameters
    ----------
    row, position
        Sequence of the token, and its place in it: 0 is the start of the window, i is event i.
    scored
        False for intervals that end with an event the window conditions on.
    ends
        Whether the interval ends with an event; otherwise it is the censored last one.
    log_total
        Log of the total intensity (events per user's time unit) at the event; 0 where none.
    log_type
        Log-probability of the event's type given its time; 0 where none.
    compensator
        Expected number of events in the interval.
    """

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    scored: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    log_total: NDArray[np.float64]
    log_type: NDArray[np.float64]
    compensator: NDArray[np.float64]

    def counted(self, convention: str) -> NDArray[np.bool_]:
        """Return which intervals a convention counts.

        Raises
        ------
        ParameterError
            The convention is unknown.
        """
        if convention not in CONVENTIONS:
            raise ParameterError(
                f"convention={convention!r} is unknown. Use one of {CONVENTIONS}.{suggest(convention, CONVENTIONS)}"
            )
        if convention == "full":
            return self.scored
        inside = self.scored & self.ends
        return inside if convention == "to_last" else inside & (self.position > 0)

    def log_likelihood(self, convention: str, window: str) -> LogLikelihood:
        """Return the sum over the set and its mean per scored event; nan per event if there is none."""
        chosen = self.counted(convention)
        n = int((chosen & self.ends).sum())
        time = float(self.log_total[chosen].sum() - self.compensator[chosen].sum())
        kind = float(self.log_type[chosen].sum())
        each = (lambda value: value / n) if n else (lambda value: float("nan"))
        return LogLikelihood(each(time + kind), each(time), each(kind), time + kind, n, convention, window)

    def per_sequence(self, convention: str, n_sequences: int) -> NDArray[np.float64]:
        """Return the log-likelihood of each sequence, in nats."""
        chosen = self.counted(convention)
        value = (self.log_total + self.log_type - self.compensator)[chosen]
        return np.bincount(self.row[chosen], weights=value, minlength=n_sequences).astype(np.float64)

    def events_per_sequence(self, convention: str, n_sequences: int) -> NDArray[np.int64]:
        """Return the number of scored events of each sequence."""
        chosen = self.counted(convention) & self.ends
        return np.bincount(self.row[chosen], minlength=n_sequences).astype(np.int64)

    def rescaled_gaps(self, convention: str = "full") -> NDArray[np.float64]:
        r"""Return gaps on the clock of the compensator, which are Exp(1) if the model is right (time rescaling).

        All windows are laid end to end, so that the censored last pieces become part of the next sequence's
        first gap and only the very last piece is dropped.
        """
        chosen = self.counted(convention)
        clock = np.cumsum(self.compensator[chosen])
        return np.diff(clock[self.ends[chosen]], prepend=0.0)

    @staticmethod
    def concatenate(parts: list[IntervalScores]) -> IntervalScores:
        """Return the pieces of several batches in the order of their sequences."""
        names = ("row", "position", "scored", "ends", "log_total", "log_type", "compensator")
        whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        order = np.lexsort((whole["position"], whole["row"]))
        return IntervalScores(**{name: values[order] for name, values in whole.items()})


@torch.no_grad()
def score_intervals(batch: EventBatch, intensity: Intensity, scale: float, refine: int = 1) -> IntervalScores:
    """Return the likelihood's pieces for the intervals of a batch.

    Parameters
    ----------
    batch
        Packed sequences in model units.
    intensity
        States after each token of the batch.
    scale
        The user's time units per model unit.
    refine
        Factor on the number of quadrature nodes.
    """
    ends = batch.target >= 0
    target = batch.target.clamp(min=0)
    log_total = intensity.log_total(batch.until).double()
    log_type = intensity.log_rate(batch.until, target).double() - log_total
    counts = (batch.offsets[1:] - batch.offsets[:-1]).long()
    return IntervalScores(
        row=torch.repeat_interleave(batch.rows, counts).cpu().numpy(),
        position=batch.position.cpu().numpy(),
        scored=batch.scored.cpu().numpy(),
        ends=ends.cpu().numpy(),
        log_total=torch.where(ends, log_total - np.log(scale), 0.0).cpu().numpy(),
        log_type=torch.where(ends, log_type, 0.0).cpu().numpy(),
        compensator=intensity.compensator(batch.until, refine).double().cpu().numpy(),
    )
