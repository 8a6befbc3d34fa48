"""Scores of a point process on data: log-likelihoods, metrics beside baselines, the audit of time grids."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from seqattn.data.batches import EventBatch
from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, SeqattnWarning
from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.likelihood import IntervalScores, LogLikelihood, score_intervals
from seqattn.hawkes.metrics import EventForecasts, residual_metrics, time_metrics, type_metrics
from seqattn.hawkes.reading import EventEstimator
from seqattn.hawkes.residuals import GoodnessOfFit, assess, goodness_of
from seqattn.hawkes.tables import forecast_events

# Share of the compensator that the quadrature may be off before a warning is given.
_INTEGRAL_ERROR = 1e-3


class Scoring(EventEstimator):
    """How well a point process explains data."""

    baselines_: dict[str, Any]

    def _scores(self, sequences: Sequences, refine: int = 1) -> IntervalScores:
        parts = self._each(
            sequences, lambda batch, intensity: score_intervals(batch, intensity, self.scale_, refine)
        )
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

        def both(
            batch: EventBatch, intensity: Intensity
        ) -> tuple[IntervalScores, EventForecasts, np.ndarray]:
            part = score_intervals(batch, intensity, self.scale_)
            counted = part.counted(convention) & part.ends
            tokens = torch.from_numpy(np.flatnonzero(counted)).to(batch.until.device)
            place = np.asarray(sequences.offsets)[part.row[counted]] + part.position[counted]
            return part, forecast_events(batch, intensity, tokens, self.scale_), place

        parts = self._each(sequences, both)
        if not parts:
            raise DataError("There is no sequence to score.")
        scores, chosen, places = map(list, zip(*parts, strict=True))
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
        (``accuracy_at_time``: known), ``ks_pvalue`` and ``ljung_box_pvalue`` of the rescaled gaps (their law and their
        independence), ``count_balance`` (expected minus scored events, in standard errors; all as in
        :meth:`goodness_of_fit`), ``integral_error``, and ``baselines`` (name to the same keys).

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
        residuals = goodness_of(
            scores, "chain", convention, sequences.window, type(self).__name__, None, None
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
            "ljung_box_pvalue": residuals.ljung_box_pvalue,
            "count_balance": residuals.count_balance,
            "integral_error": error,
        }
        if baselines:
            trained = getattr(self, "baselines_", {})
            result["baselines"] = {
                name: model.evaluate(sequences, convention, baselines=False)
                for name, model in trained.items()
            }
        return result

    def goodness_of_fit(
        self, X: Any, form: str = "chain", convention: str = "full", by_type: bool = True
    ) -> GoodnessOfFit:
        r"""Return tests of the model on data: gaps on the clock of the compensator, counts, reliability of types.

        .. math:: e_i = \Lambda(t_{i-1}, t_i), \qquad e^{(k)}_j = \int_{t^{(k)}_{j-1}}^{t^{(k)}_j} \lambda_k(t)\, dt

        are independent Exp(1) variables if the model is right (time rescaling).

        Parameters
        ----------
        X
            Held-out sequences, as in :meth:`log_likelihood`. On the training data all p-values are too large.
        form
            ``"chain"`` (default): the rescaled windows of all sequences are laid end to end in the order of the data,
            which gives one Poisson stream of rate 1; only its very last piece is censored. ``"drop"``: the censored
            last piece of each sequence is left out. Long gaps are then lost more often than short ones, so that even
            the true model shows a mean below 1, the more so the fewer events a window holds.
        convention
            Which events and intervals count, as in :meth:`log_likelihood`. ``"to_last"`` and ``"from_first"`` leave
            censored pieces out and are biased as ``form="drop"`` is.
        by_type
            Whether to follow the clock of each type too; takes about as long again as the rest.

        Returns
        -------
        A :class:`seqattn.hawkes.residuals.GoodnessOfFit`, to be printed, drawn or written as JSON.

        Raises
        ------
        DataError
            No event is scored, or the data cannot be read.
        ParameterError
            The form or the convention is unknown.

        Notes
        -----
        Events that a window conditions on are history: no gap ends with one.

        Examples
        --------
        >>> from seqattn import PoissonProcess
        >>> rows = [([1.0, 2.0, 7.0], ["a", "b", "a"]), ([4.0], ["a"])]
        >>> fit = PoissonProcess(window=(0.0, 10.0)).fit(rows).goodness_of_fit(rows)
        >>> [round(float(gap), 3) for gap in fit.gaps], round(fit.expected, 3)
        ([0.2, 0.2, 1.0, 1.4], 4.0)
        """
        return assess(
            self._states,
            self._read_new(X),
            scale=self.scale_,
            form=form,
            convention=convention,
            by_type=by_type,
            model=type(self).__name__,
        )

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
