"""The base of all point processes of this head: whoever gives intensities can do what its chapters hold."""

from __future__ import annotations

from seqattn.hawkes.ahead import LongHorizon
from seqattn.hawkes.forecasting import Forecasting
from seqattn.hawkes.influence import Influence
from seqattn.hawkes.scoring import Scoring
from seqattn.hawkes.stream import Streaming


class PointProcess(Scoring, Forecasting, LongHorizon, Streaming, Influence):
    """Base of the estimators for event sequences in continuous time.

    A subclass fits itself and yields, for batches of sequences, the intensities after each token
    (:meth:`seqattn.hawkes.reading.EventEstimator._states`). Scores, forecasts and evaluation are then the same for all.
    """
