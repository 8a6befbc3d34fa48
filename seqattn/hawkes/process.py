"""What every point process of this head can do once it gives intensities: score, forecast, evaluate."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from seqattn.data.batches import EventBatch, batches
from seqattn.data.sequences import Sequences
from seqattn.data.table import like
from seqattn.errors import ArtifactError, DataError, ParameterError, SeqattnWarning
from seqattn.hawkes.forecast import next_event
from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.likelihood import IntervalScores, LogLikelihood, score_intervals
from seqattn.hawkes.metrics import EventForecasts, residual_metrics, time_metrics, type_metrics
from seqattn.hawkes.tables import (
    check_begun,
    check_levels,
    empty_columns,
    event_tokens,
    fill,
    float_times,
    forecast_events,
    forecast_frame,
    last_times,
    present,
    previous_times,
    reading_names,
    window_of_fit,
)
from seqattn.train.artifact import Artifact, decode_label, encode_label, save_artifact
from seqattn.train.parameters import decode_parameter, encode_parameter, encode_parameters

# Tokens per batch where no gradient is kept.
_SCORING_BATCH = 8192
# Most (token, type) pairs per batch, so that thousands of types fit in memory.
_SCORING_CELLS = 4_000_000
# Share of the compensator that the quadrature may be off before a warning is given.
_INTEGRAL_ERROR = 1e-3


class PointProcess(BaseEstimator):
    """Base of the estimators for event sequences in continuous time.

    A subclass fits itself and yields, for batches of sequences, the intensities after each token
    (:meth:`_states`). Scores, forecasts and evaluation are then the same for all.
    """

    _fitted: ClassVar[tuple[str, ...]] = ()

    types: int | Sequence[Any] | None
    columns: Mapping[str, str] | None
    window: Any
    unknown: str
    baselines_: dict[str, PointProcess]
    scale_ = 1.0

    @abstractmethod
    def _states(self, sequences: Sequences) -> Iterator[tuple[EventBatch, Intensity]]:
        """Yield packed batches with the intensities after each of their tokens, both in model units."""

    def _read(self, X: Any, **options: Any) -> Sequences:
        """Return the input as sequences; tables are read with the estimator's columns and window."""
        if isinstance(X, Sequences):
            return Sequences.of(X, **options)
        reading = reading_names(self.columns)
        return Sequences.of(X, window=getattr(self, "window_", self.window), **reading, **options)

    def _read_training(self, X: Any) -> Sequences:
        """Read the data of ``fit`` and remember what later data are read with."""
        if self.unknown not in ("error", "ignore"):
            raise ParameterError(f"unknown={self.unknown!r} is not known. Use 'error' or 'ignore'.")
        self.__dict__.pop("window_", None)  # what an earlier fit remembered
        sequences = self._read(X, **({} if self.types is None else {"labels": self.types}))
        if sequences.n_events == 0:
            raise DataError("There is no event in the training data. Check the table and its columns.")
        self.labels_ = sequences.labels
        self.n_types_ = len(sequences.labels)
        self.unit_ = sequences.unit
        self.window_ = window_of_fit(self.window, sequences)
        return sequences

    def _read_new(self, X: Any) -> Sequences:
        check_is_fitted(self, "labels_")
        sequences = self._read(X, labels=self.labels_, unknown=self.unknown)
        if sequences.unit != self.unit_:
            kinds = ["dates" if unit else "numbers" for unit in (sequences.unit, self.unit_)]
            raise DataError(f"The times are {kinds[0]}, but the model was fitted to {kinds[1]}. Give those.")
        return sequences

    def _scores(self, sequences: Sequences, refine: int = 1) -> IntervalScores:
        parts = [
            score_intervals(batch, intensity, self.scale_, refine)
            for batch, intensity in self._states(sequences)
        ]
        if not parts:
            raise DataError("There is no sequence to score.")
        return IntervalScores.concatenate(parts)

    def log_likelihood(self, X: Any, convention: str = "full") -> LogLikelihood:
        r"""Return the log-likelihood of sequences, in nats and in the user's time unit.

        .. math:: \log L = \sum_i \log\lambda_{k_i}(t_i) - \int \lambda(t)\, dt

        Parameters
        ----------
        X
            Event table (polars, pandas), list of (times, types), :class:`seqattn.Sequences` or a file's path.
        convention
            ``"full"``: the window from T0 to T1 with all its events. ``"to_last"``: up to the last event.
            ``"from_first"``: events from the second on, between the first and the last; the one of most published
            tables.

        Returns
        -------
        A :class:`seqattn.hawkes.likelihood.LogLikelihood`: ``per_event = time + type``, ``total``, ``n_events``,
        ``convention`` and ``window``.

        Raises
        ------
        DataError
            The data cannot be read, or hold a type that was not in the training data.
        ParameterError
            The convention is unknown.

        Notes
        -----
        Events that a window conditions on (a window that begins at its first event by construction) are history and
        never scored. Per-event values divide the total of the set by its number of events.
        """
        sequences = self._read_new(X)
        return self._scores(sequences).log_likelihood(convention, sequences.window)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log-likelihood per event over the whole windows; higher is better.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        y
            Ignored.
        """
        return self.log_likelihood(X).per_event

    def integral_error(self, X: Any) -> float:
        """Return by what share of the total the compensator changes with twice the quadrature nodes.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        """
        sequences = self._read_new(X)
        return self._integral_error(sequences, self._scores(sequences))

    def _integral_error(self, sequences: Sequences, scores: IntervalScores) -> float:
        finer = self._scores(sequences, refine=2).compensator[scores.scored]
        whole = finer.sum()
        return float(np.abs(finer - scores.compensator[scores.scored]).sum() / whole) if whole > 0 else 0.0

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
        levels = check_levels(quantiles)
        sequences = self._read_new(X)
        columns = empty_columns(sequences.n_events, levels)
        previous = previous_times(sequences)
        for batch, intensity in self._states(sequences):
            tokens, events = event_tokens(batch, sequences)
            answer = next_event(intensity.select(tokens), levels)
            fill(columns, events, answer, previous[events], self.scale_, levels)
            columns["scored"][events] = batch.scored[tokens].numpy()
        rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
        position = np.arange(sequences.n_events) - sequences.offsets[:-1][rows]
        return like(forecast_frame(sequences, rows, {"position": position, **columns}), X)

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
        for batch, intensity in self._states(sequences):
            rows = batch.rows.numpy()
            waited = torch.from_numpy((at - last)[rows] / self.scale_).to(batch.until.dtype)
            state = intensity.select(batch.offsets[1:].long() - 1).shift(waited)
            fill(columns, rows, next_event(state, levels), at[rows], self.scale_, levels)
            span = torch.full_like(waited, (horizon or 0.0) / self.scale_)
            columns["p_event"][rows] = -np.expm1(-state.compensator(span).double().numpy())
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
        answer = np.empty((sequences.n_events, self.n_types_))
        for batch, intensity in self._states(sequences):
            tokens, events = event_tokens(batch, sequences)
            state = intensity.select(tokens)
            if when == "unknown":
                answer[events] = next_event(state).type_probability.numpy()
            else:
                answer[events] = torch.softmax(state.log_rates(batch.until[tokens]).double(), 1).numpy()
        return answer

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
        at = float_times(sequences, times, "times")
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
                state = intensity.select(torch.from_numpy(before) + int(batch.offsets[place]))
                elapsed = torch.from_numpy(since / self.scale_).to(batch.until.dtype)
                answer[row] = state.rates(elapsed[:, None])[:, 0].double().numpy() / self.scale_
        return answer

    def forecasts(self, X: Any, convention: str = "full") -> EventForecasts:
        """Return forecasts of the scored events beside what happened, for metrics of one's own.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        convention
            Which events are scored, as in :meth:`log_likelihood`.
        """
        sequences = self._read_new(X)
        return self._evaluated(sequences, convention)[1]

    def _evaluated(self, sequences: Sequences, convention: str) -> tuple[IntervalScores, EventForecasts]:
        """Score and forecast in one pass over the data, so that states are computed once."""
        scores, chosen, places = [], [], []
        for batch, intensity in self._states(sequences):
            part = score_intervals(batch, intensity, self.scale_)
            scores.append(part)
            counted = part.counted(convention) & part.ends
            tokens = torch.from_numpy(np.flatnonzero(counted))
            chosen.append(forecast_events(batch, intensity, tokens, self.scale_))
            places.append(np.asarray(sequences.offsets)[part.row[counted]] + part.position[counted])
        order = np.argsort(np.concatenate(places))  # from batches back to the order of the data
        names = [field.name for field in fields(EventForecasts)]
        joined = {name: np.concatenate([getattr(part, name) for part in chosen])[order] for name in names}
        return IntervalScores.concatenate(scores), EventForecasts(**joined)

    def evaluate(self, X: Any, convention: str = "full", baselines: bool = True) -> dict[str, Any]:
        """Return every metric of the task, beside the same metrics of the baselines fitted on the same data.

        Parameters
        ----------
        X
            Held-out sequences, as in :meth:`log_likelihood`.
        convention
            Which events and intervals count, as in :meth:`log_likelihood`.
        baselines
            Whether to evaluate the baselines that ``fit`` trained too.

        Returns
        -------
        Dictionary with ``loglik_per_event``, ``loglik_time``, ``loglik_type`` (nats per event), ``convention``,
        ``window``, ``n_events``, ``rmse`` of the mean, ``mae`` of the median and ``crps`` of the gap (user's time
        unit), ``accuracy``, ``macro_f1`` and further scores of the type with its time unknown
        (``accuracy_at_time``: known), ``ks_pvalue`` of the rescaled gaps, ``integral_error``, and ``baselines``
        (name to the same keys).

        Warns
        -----
        SeqattnWarning
            The quadrature of the compensator is off by more than 0.1 %.
        """
        sequences = self._read_new(X)
        scores, forecasts = self._evaluated(sequences, convention)
        likelihood = scores.log_likelihood(convention, sequences.window)
        if likelihood.n_events == 0:
            raise DataError(
                f"No event is scored under convention={convention!r}. Give longer sequences or windows."
            )
        error = self._integral_error(sequences, scores)
        if error > _INTEGRAL_ERROR:
            warnings.warn(
                f"The integral of the intensity is off by {error:.1e} of its value. Use more nodes.",
                SeqattnWarning,
                stacklevel=2,
            )
        result: dict[str, Any] = {
            "loglik_per_event": likelihood.per_event,
            "loglik_time": likelihood.time,
            "loglik_type": likelihood.type,
            "convention": convention,
            "window": likelihood.window,
            "n_events": likelihood.n_events,
            **time_metrics(forecasts),
            **type_metrics(forecasts, self.n_types_),
            **residual_metrics(scores.rescaled_gaps(convention)),
            "integral_error": error,
        }
        if baselines:
            trained = getattr(self, "baselines_", {})
            result["baselines"] = {
                name: model.evaluate(sequences, convention, baselines=False)
                for name, model in trained.items()
            }
        return result

    def audit_grid(self, X: Any, convention: str = "full", random_state: int = 0) -> dict[str, Any]:
        """Tell whether times lie on a grid, and what the likelihood is without it.

        Quantised times can be exploited by sharp peaks on the grid. The second figure spreads each time uniformly
        inside its cell; a large fall says that the first one owes its height to the grid.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        convention
            As in :meth:`log_likelihood`.
        random_state
            Seed of the spread.

        Returns
        -------
        Dictionary with ``spacing`` (``None`` if there is no grid), ``share`` of the times on it, ``loglik_per_event``
        and ``loglik_jittered``.
        """
        sequences = self._read_new(X)
        grid = sequences.grid()
        plain = self._scores(sequences).log_likelihood(convention, sequences.window).per_event
        spread = sequences if grid is None else sequences.jitter(random_state)
        value = self._scores(spread).log_likelihood(convention, spread.window).per_event
        found = {"spacing": grid and grid.spacing, "share": grid.share if grid else 0.0}
        return found | {"loglik_per_event": plain, "loglik_jittered": value}

    def _packed(self, sequences: Sequences, dtype: torch.dtype) -> Iterator[EventBatch]:
        """Yield batches for scoring: bucketed by length, never shuffled, smaller where there are many types."""
        budget = max(256, min(_SCORING_BATCH, _SCORING_CELLS // self.n_types_))
        yield from batches(sequences, budget, scale=self.scale_, dtype=dtype)

    def save(self, path: str | Path) -> Path:
        """Write the fitted estimator to one safetensors file; open it with :func:`seqattn.load`.

        Parameters
        ----------
        path
            File to write, or an existing folder, in which it becomes ``model.safetensors``.

        Returns
        -------
        The path of the file.

        Raises
        ------
        ArtifactError
            A parameter or label cannot be written as JSON.
        """
        check_is_fitted(self, "labels_")
        return save_artifact(path, type(self).__name__, *self._export())

    @classmethod
    def _from_artifact(cls, artifact: Artifact) -> Self:
        try:
            return cls._restored(artifact.tensors, artifact.metadata)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The file holds a {cls.__name__} whose parts do not fit together ({type(error).__name__}). "
                "Save the model again just after fit, with its parameters unchanged."
            ) from error

    def _export(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a file holds: tensors by name, and JSON values."""
        values = {name: getattr(self, name) for name in self._fitted}
        tensors = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        metadata = {
            "params": encode_parameters(self.get_params(deep=False)),
            "labels": [encode_label(label) for label in self.labels_],
            "unit": self.unit_,
            "window": encode_parameter(self.window_),
            "fitted": {name: value for name, value in values.items() if name not in tensors},
        }
        return tensors, metadata

    @classmethod
    def _restored(cls, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> Self:
        model = cls(**{name: decode_parameter(value) for name, value in metadata["params"].items()})
        model.labels_ = tuple(decode_label(label) for label in metadata["labels"])
        model.n_types_ = len(model.labels_)
        model.unit_ = metadata["unit"]
        model.window_ = decode_parameter(metadata["window"])
        for name, value in metadata["fitted"].items():
            setattr(model, name, value)
        for name in set(cls._fitted) - set(metadata["fitted"]):
            setattr(model, name, tensors[name].numpy())
        return model
