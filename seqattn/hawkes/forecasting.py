"""Forecasts of a point process: of every event from those before it, of the next one, and the intensities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from seqattn.data.batches import EventBatch
from seqattn.data.blocks import BLOCK
from seqattn.data.sequences import Sequences
from seqattn.data.table import like
from seqattn.errors import ParameterError
from seqattn.hawkes.forecast import next_event
from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.reading import EventEstimator
from seqattn.hawkes.tables import (
    Part,
    check_begun,
    check_levels,
    empty_columns,
    event_tokens,
    fill,
    float_times,
    forecast_columns,
    forecast_frame,
    last_times,
    present,
    previous_times,
)

# Events whose forecasts are held at once; whole sequences. Batches are made inside such a block, so that a table comes
# out the same bit for bit whether it is asked for in one piece or in many.
_FORECASTS = BLOCK // 8


class Forecasting(EventEstimator):
    """What a point process expects."""

    def predict(self, X: Any, quantiles: Sequence[float] = ()) -> Any:
        """Forecast every event from the events before it, all positions in one pass.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        quantiles
            Levels in (0, 1) of which the times are added as columns ``t_q<level>``.

        Returns
        -------
        A table (pandas if ``X`` was pandas, else polars) with one row per event: ``seq_id``, ``position`` (from 0),
        ``t_mean`` and ``t_median`` (time of the event as expected just after the previous one; datetimes if the
        input had them), ``k`` (most probable type whenever the event comes), ``p`` (its probability) and ``scored``
        (False for events the window conditions on, which no metric counts).

        Raises
        ------
        ParameterError
            A level is not in (0, 1).
        """
        levels, sequences = check_levels(quantiles), self._read_new(X)
        parts = [self._forecasts(block, levels) for block in _forecast_blocks(sequences)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
        return like(forecast_frame(sequences, rows, columns), X)

    def predict_blocks(self, X: Any, quantiles: Sequence[float] = ()) -> Iterator[pl.DataFrame]:
        """Forecast every event as :meth:`predict` does, and yield the table in pieces of whole sequences.

        With ``X`` in a saved folder (:meth:`seqattn.Sequences.prepare`) neither the events nor the forecasts are ever
        in memory together.

        Parameters
        ----------
        X, quantiles
            As in :meth:`predict`.

        Returns
        -------
        Iterator over polars tables, which one below the other are the table of :meth:`predict`, bit for bit.

        Raises
        ------
        ParameterError
            A level is not in (0, 1).
        """
        levels, sequences = check_levels(quantiles), self._read_new(X)
        return (self._forecast_table(block, levels) for block in _forecast_blocks(sequences))

    def _forecast_table(self, sequences: Sequences, levels: tuple[float, ...]) -> pl.DataFrame:
        rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
        return forecast_frame(sequences, rows, self._forecasts(sequences, levels))

    def _forecasts(self, sequences: Sequences, levels: tuple[float, ...]) -> dict[str, NDArray[Any]]:
        """Return the columns of the forecasts of every event."""
        columns = empty_columns(sequences.n_events, levels)
        previous = previous_times(sequences)

        def part(batch: EventBatch, intensity: Intensity) -> Part:
            tokens, events = event_tokens(batch, sequences)
            answer = next_event(intensity.select(tokens), levels)
            values = forecast_columns(answer, previous[events], self.scale_, levels)
            return events, {**values, "scored": batch.scored[tokens].cpu().numpy()}

        fill(columns, self._each(sequences, part))
        first = np.repeat(sequences.offsets[:-1], sequences.lengths)
        return {"position": np.arange(sequences.n_events) - first, **columns}

    def predict_next(
        self, X: Any, now: Any = None, quantiles: Sequence[float] = (), horizon: float | None = None
    ) -> Any:
        """Forecast the next event after the end of each sequence.

        Parameters
        ----------
        X
            Histories, as in :meth:`log_likelihood`.
        now
            Time up to which nothing more has happened: one number (or datetime) for all sequences or one each, not
            before the last event. By default the end of each window.
        quantiles
            Levels in (0, 1) of which the times are added as columns ``t_q<level>``.
        horizon
            If given, column ``p_event`` holds the probability of an event within ``horizon`` time units after
            ``now``.

        Returns
        -------
        A table with one row per sequence: ``seq_id``, ``t_mean``, ``t_median``, ``k``, ``p``, and what was asked for.

        Raises
        ------
        DataError
            ``now`` is before the last event of a sequence.
        ParameterError
            A level is not in (0, 1), or the horizon is negative.
        """
        levels = check_levels(quantiles)
        if horizon is not None and not horizon >= 0:
            raise ParameterError(f"horizon={horizon!r} is no time span. Give a number of at least 0.")
        sequences = self._read_new(X)
        at, last = present(sequences, now), last_times(sequences)
        columns = empty_columns(len(sequences), levels)
        columns["p_event"] = np.zeros(len(sequences))

        def part(batch: EventBatch, intensity: Intensity) -> Part:
            rows = batch.rows.cpu().numpy()
            waited = torch.from_numpy((at - last)[rows] / self.scale_).to(batch.until)
            state = intensity.select(batch.offsets[1:].long() - 1).shift(waited)
            values = forecast_columns(next_event(state, levels), at[rows], self.scale_, levels)
            span = torch.full_like(waited, (horizon or 0.0) / self.scale_)
            return rows, {**values, "p_event": -np.expm1(-state.compensator(span).double().cpu().numpy())}

        fill(columns, self._each(sequences, part))
        del columns["scored"]
        if horizon is None:
            del columns["p_event"]
        return like(forecast_frame(sequences, np.arange(len(sequences)), columns), X)

    def predict_proba(self, X: Any, when: str = "unknown") -> NDArray[np.float64]:
        r"""Return the probability of each type for every event, given the events before it.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        when
            ``"unknown"``: the time of the event is not known, :math:`\int \lambda_k S\,du`; ``"given"``: at the
            time it happened, :math:`\lambda_k/\lambda`.

        Returns
        -------
        Array of shape (events, types) in the order of ``labels_``; rows sum to 1.

        Raises
        ------
        ParameterError
            ``when`` has another value.
        """
        if when not in ("unknown", "given"):
            raise ParameterError(f"when={when!r} is unknown. Use 'unknown' or 'given'.")
        sequences = self._read_new(X)
        columns = {"p": np.empty((sequences.n_events, self.n_types_))}

        def part(batch: EventBatch, intensity: Intensity) -> Part:
            tokens, events = event_tokens(batch, sequences)
            state = intensity.select(tokens)
            if when == "unknown":
                shares = next_event(state).type_probability
            else:
                shares = torch.softmax(state.log_rates(batch.until[tokens]).double(), 1)
            return events, {"p": shares.cpu().numpy()}

        fill(columns, self._each(sequences, part))
        return columns["p"]

    def intensity(self, X: Any, times: Any) -> NDArray[np.float64]:
        """Return the intensity of each type at given times, from the events strictly before them.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        times
            Increasing or not, in the user's unit (numbers, or datetimes if the data have them), none before a
            window's beginning. After the last event the intensities go on as if nothing more happened.

        Returns
        -------
        Array of shape (sequences, times, types), events per time unit.

        Raises
        ------
        DataError
            A time lies before the beginning of a sequence's window.
        """
        sequences = self._read_new(X)
        at = float_times(sequences.clock, times, "times")
        check_begun(sequences, at)
        return self._intensity_at(sequences, at)

    def _intensity_at(self, sequences: Sequences, at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the intensities at times on the clock of the sequences."""
        answer = np.empty((len(sequences), len(at), self.n_types_))
        for batch, intensity in self._states(sequences):
            for place, row in enumerate(batch.rows.tolist()):
                own, _ = sequences.sequence(row)
                before = np.searchsorted(own, at, side="left")
                since = at - np.concatenate([[sequences.start[row]], own])[before]
                tokens = torch.from_numpy(before).to(batch.until.device) + int(batch.offsets[place])
                state = intensity.select(tokens)
                elapsed = torch.from_numpy(since / self.scale_).to(batch.until)
                answer[row] = state.rates(elapsed[:, None])[:, 0].double().cpu().numpy() / self.scale_
        return answer


def _forecast_blocks(sequences: Sequences) -> Iterator[Sequences]:
    """Return runs of whole sequences; at least one, also of no sequences."""
    return sequences.blocks(_FORECASTS) if sequences.n_events > _FORECASTS else iter([sequences])
