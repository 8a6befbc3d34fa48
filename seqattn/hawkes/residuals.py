r"""Goodness of fit of point processes: rescaled gaps, their independence, counts, and the reliability of types.

Time rescaling: on the clock of its own compensator :math:`\Lambda(t) = \int \lambda`, every point process becomes a
Poisson process of rate 1. If the model is right, the rescaled gaps are therefore independent and Exp(1), for all
events together and for the events of each type on the clock of their type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import stats

from seqattn.data.batches import EventBatch
from seqattn.data.labels import encode_label
from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, ParameterError, suggest
from seqattn.hawkes.diagnose import plot_goodness_of_fit
from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.likelihood import IntervalScores, score_intervals
from seqattn.hawkes.metrics import residual_metrics
from seqattn.hawkes.reliability import MarkReliability, MarkTally

FORMS = ("chain", "drop")
States = Callable[[Sequences], Iterator[tuple[EventBatch, Intensity]]]

# Lags that are drawn; the Ljung-Box test takes half as many, and fewer where there are few events.
_LAGS = 20
_TESTED_LAGS = 10
_QQ_POINTS = 200
_TYPES_SHOWN = 10
# (sequence, type) pairs whose clocks are held at once.
_CLOCK_CELLS = 1_000_000


@dataclass(frozen=True)
class GoodnessOfFit:
    r"""What speaks for or against a point process on some data; print it, or draw it with :meth:`plot`.

    Parameters
    ----------
    model
        Name of the model's class.
    form
        ``"chain"``: the rescaled windows laid end to end. ``"drop"``: the censored last piece of each left out.
    convention, window
        Which events and intervals count, and how the ends of the windows came to be, as in
        :class:`seqattn.hawkes.likelihood.LogLikelihood`.
    n_events, expected
        Number of scored events, and the compensator that belongs to them: its expectation. In the chain form that
        is the whole compensator, the last censored piece included.
    gaps
        Rescaled gaps in the order of the data; Exp(1) if the model is right.
    ks_statistic, ks_pvalue
        Kolmogorov-Smirnov test of the gaps against Exp(1).
    mean, variance
        Of the gaps; both 1 if the model is right.
    autocorrelation
        Of :math:`u_i = 1 - e^{-e_i}` at the lags 1, 2, ..., at most 20.
    ljung_box_pvalue, ljung_box_lags
        Ljung-Box test that the first lags are zero, and how many: 10, or a fifth of the events if that is less.
    count_balance
        (expected - n_events) / sqrt(n_events); standard normal in large samples if the model is right.
    marks
        Reliability of the types given the times, or None with a single type.
    by_type
        Table with a row per type: ``k``, ``n``, ``expected``, ``mean``, ``ks_pvalue``, ``count_balance``; or None.

    Notes
    -----
    Values are None where there are too few events for them. Kolmogorov-Smirnov is blind to the order of the gaps,
    Ljung-Box to their law: look at both. All p-values are too large on the data the model was fitted to.

    References
    ----------
    Brown, Barbieri, Ventura, Kass, Frank (2002), The time-rescaling theorem and its application to neural spike
    train data analysis. Ljung, Box (1978), On a measure of lack of fit in time series models.
    """

    model: str
    form: str
    convention: str
    window: str
    n_events: int
    expected: float
    gaps: NDArray[np.float64]
    ks_statistic: float
    ks_pvalue: float
    mean: float
    variance: float
    autocorrelation: NDArray[np.float64]
    ljung_box_pvalue: float | None
    ljung_box_lags: int
    count_balance: float
    marks: MarkReliability | None
    by_type: pl.DataFrame | None

    @property
    def lag1_correlation(self) -> float | None:
        """Correlation of u with its successor, None where it is not defined."""
        return float(self.autocorrelation[0]) if len(self.autocorrelation) else None

    def qq_points(self, most: int = _QQ_POINTS) -> NDArray[np.float64]:
        """Return quantiles of Exp(1) beside those of the gaps, of shape (points, 2).

        Parameters
        ----------
        most
            Most points. If there are more events, the points are spread evenly over the quantiles of Exp(1), and the
            two ends are among them.
        """
        n = len(self.gaps)
        theory = -np.log1p(-(np.arange(1, n + 1) - 0.5) / n)
        points = np.column_stack([theory, np.sort(self.gaps)])
        if n <= most:
            return points
        return points[np.unique(np.searchsorted(theory, np.linspace(theory[0], theory[-1], most)))]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single gaps as numbers, texts, lists and dictionaries that JSON can hold."""
        values = {
            name: value for name, value in vars(self).items() if name not in ("gaps", "marks", "by_type")
        }
        values["autocorrelation"] = self.autocorrelation.tolist()
        values["lag1_correlation"] = self.lag1_correlation
        values["qq_points"] = self.qq_points().tolist()
        values["marks"] = None if self.marks is None else self.marks.to_dict()
        rows = None if self.by_type is None else self.by_type.to_dicts()
        values["by_type"] = rows and [{**row, "k": encode_label(row["k"])} for row in rows]
        return values

    def plot(self, path: str | Path) -> Path:
        """Draw quantiles, distribution, autocorrelation and reliability of the types, and save them as PNG.

        Parameters
        ----------
        path
            File to write.

        Returns
        -------
        The path written.

        Raises
        ------
        MissingDependencyError
            matplotlib is not installed.
        """
        return plot_goodness_of_fit(self, path)

    def __str__(self) -> str:
        return "\n".join([*_report(self), *_report_of_types(self)])


def _report(fit: GoodnessOfFit) -> list[str]:
    title = f"Goodness of fit of {fit.model}: {fit.n_events:,} events, {fit.expected:,.1f} expected"
    rows = [
        ("gaps against Exp(1)", f"KS D = {fit.ks_statistic:.4f}, p = {fit.ks_pvalue:.3g}"),
        ("mean, variance of gaps", f"{fit.mean:.3f}, {fit.variance:.3f} (1, 1 if right)"),
    ]
    if fit.ljung_box_pvalue is not None:
        tested = f"Ljung-Box p = {fit.ljung_box_pvalue:.3g} ({fit.ljung_box_lags} lags)"
        rows.append(("lag-1 correlation", f"{fit.lag1_correlation:.3f}, {tested}"))
    rows.append(("count balance", f"{fit.count_balance:+.2f} ((expected - events) / sqrt(events))"))
    if fit.marks is not None:
        error, brier = fit.marks.calibration_error, fit.marks.brier
        rows.append(("types at known times", f"calibration error {error:.4f}, Brier score {brier:.4f}"))
    rows.append(("counted", f"convention {fit.convention}, window {fit.window}, {fit.form} form"))
    return [title, *(f"  {name:<23} {text}" for name, text in rows)]


def _report_of_types(fit: GoodnessOfFit) -> list[str]:
    """Show the types with the smallest p-values, and how many there would be by chance."""
    if fit.by_type is None or fit.by_type.height < 2:
        return []
    tested = fit.by_type.filter(pl.col("ks_pvalue").is_not_null()).sort("ks_pvalue", maintain_order=True)
    low = int((tested["ks_pvalue"] < 0.01).sum())
    title = f"  types with KS p < 0.01: {low} of {tested.height} ({0.01 * tested.height:.2g} by chance)"
    lines = [title, f"  {'type':>16} {'events':>9} {'expected':>11} {'mean':>7} {'KS p':>9} {'balance':>8}"]
    lines += [
        f"  {str(row['k'])[:16]:>16} {row['n']:>9,} {row['expected']:>11,.1f} {row['mean']:>7.3f} "
        f"{row['ks_pvalue']:>9.3g} {row['count_balance']:>+8.2f}"
        for row in tested.head(_TYPES_SHOWN).to_dicts()
    ]
    left = tested.height - _TYPES_SHOWN
    return [*lines, f"  ... and {left} with larger p"] if left > 0 else lines


def autocorrelation(values: NDArray[np.float64], lags: int) -> NDArray[np.float64]:
    """Return the correlations of a series with itself at lags 1, 2, ...; none if it is constant or short.

    Parameters
    ----------
    values
        The series.
    lags
        Most lags; a series of n values has at most n - 1.

    Examples
    --------
    >>> autocorrelation(np.array([0.0, 1.0, 0.0, 1.0]), 2).tolist()
    [-0.75, 0.5]
    """
    centred = values - values.mean() if len(values) else values
    power = centred @ centred
    if not power > 0:
        return np.empty(0)
    most = min(lags, len(values) - 1)
    return np.array([centred[:-lag] @ centred[lag:] for lag in range(1, most + 1)]) / power


def ljung_box(correlations: NDArray[np.float64], n: int) -> float:
    r"""Return the p-value of the Ljung-Box test that correlations are those of an independent series.

    .. math:: Q = n (n + 2) \sum_h \rho_h^2 / (n - h) \sim \chi^2

    Parameters
    ----------
    correlations
        At the lags 1, 2, ...
    n
        Length of the series.

    Examples
    --------
    >>> round(ljung_box(np.array([0.1]), 100), 4)
    0.3101
    """
    lag = np.arange(1, len(correlations) + 1)
    statistic = n * (n + 2) * (correlations**2 / (n - lag)).sum()
    return float(stats.chi2.sf(statistic, len(correlations)))


def check_form(form: str) -> None:
    """Refuse a form of the rescaled gaps that does not exist."""
    if form not in FORMS:
        raise ParameterError(f"form={form!r} is unknown. Use one of {FORMS}.{suggest(form, FORMS)}")


def assess(
    states: States,
    sequences: Sequences,
    *,
    scale: float,
    form: str,
    convention: str,
    by_type: bool,
    model: str,
) -> GoodnessOfFit:
    """Return the goodness of fit of a model on sequences, in one pass over them.

    Parameters
    ----------
    states
        Function that yields batches of sequences with their intensities.
    sequences
        The data.
    scale
        The user's time units per model unit.
    form, convention, model
        As in :class:`GoodnessOfFit`.
    by_type
        Whether to follow the clock of every type.

    Raises
    ------
    ParameterError
        The form or the convention is unknown.
    DataError
        No event is scored, or the model gives an interval an infinite number of events.
    """
    check_form(form)
    clocks = _TypeClocks(sequences.n_types, form) if by_type else None
    tally = MarkTally() if sequences.n_types > 1 else None
    parts = []
    for first, block in _blocks(sequences):
        for batch, intensity in states(block):
            part = score_intervals(batch, intensity, scale)
            counted = part.counted(convention)
            _check_finite(part, counted, block)
            parts.append(replace(part, row=part.row + first))
            if tally is not None:
                tally.add(intensity, batch, np.flatnonzero(counted & part.ends))
            if clocks is not None:
                clocks.read(intensity, batch, counted, first)
        if clocks is not None:
            clocks.close(first)
    if not parts:
        raise DataError("There is no sequence to assess.")
    scores = IntervalScores.concatenate(parts)
    if not (scores.counted(convention) & scores.ends).any():
        raise DataError(
            f"No event is scored under convention={convention!r}. Give longer sequences or windows."
        )
    table = None if clocks is None else clocks.table(sequences)
    return goodness_of(scores, form, convention, sequences.window, model, tally, table)


def _blocks(sequences: Sequences) -> Iterator[tuple[int, Sequences]]:
    """Cut the data into runs of sequences, so that the clocks of all their types fit in memory."""
    size = max(1, _CLOCK_CELLS // sequences.n_types)
    for first in range(0, len(sequences), size):
        yield first, sequences.select(np.arange(first, min(first + size, len(sequences))))


def _check_finite(part: IntervalScores, counted: NDArray[np.bool_], block: Sequences) -> None:
    wrong = np.flatnonzero(counted & ~np.isfinite(part.compensator))
    if len(wrong):
        value, row, position = (column[wrong[0]] for column in (part.compensator, part.row, part.position))
        raise DataError(
            f"The model expects {value} events in interval {position} (from 0) of sequence {block.ids[row]!r}, so "
            "there is no fit to assess. Check the times and their unit."
        )


def goodness_of(
    scores: IntervalScores,
    form: str,
    convention: str,
    window: str,
    model: str,
    tally: MarkTally | None,
    table: pl.DataFrame | None,
) -> GoodnessOfFit:
    """Return the assessment of rescaled gaps; marks and types are given by those who have them."""
    counted = scores.counted(convention)
    in_chain = form == "chain"
    kept = counted if in_chain else counted & scores.ends
    gaps = scores.rescaled_gaps(convention) if in_chain else scores.compensator[kept]
    n, expected = len(gaps), float(scores.compensator[kept].sum())
    residuals = residual_metrics(gaps)
    correlations = autocorrelation(-np.expm1(-gaps), _LAGS)
    lags = min(_TESTED_LAGS, n // 5, len(correlations))
    return GoodnessOfFit(
        model=model,
        form=form,
        convention=convention,
        window=window,
        n_events=n,
        expected=expected,
        gaps=gaps,
        ks_statistic=float(residuals["ks_statistic"] or 0.0),
        ks_pvalue=float(residuals["ks_pvalue"] or 0.0),
        mean=float(gaps.mean()),
        variance=float(gaps.var()),
        autocorrelation=correlations,
        ljung_box_pvalue=ljung_box(correlations[:lags], n) if lags else None,
        ljung_box_lags=lags,
        count_balance=(expected - n) / float(np.sqrt(n)),
        marks=None if tally is None else tally.reliability(),
        by_type=table,
    )


class _TypeClocks:
    """One clock per type, run by the type's compensator over the data in their order, read at the type's events.

    Batches come in any order inside a block; only one value per event and one clock per (sequence of the block, type)
    are kept.
    """

    def __init__(self, n_types: int, form: str) -> None:
        self.now = np.zeros(n_types)
        self.in_chain = form == "chain"
        self._totals: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        self._open: list[tuple[NDArray[Any], ...]] = []
        self._done: list[tuple[NDArray[Any], ...]] = []

    @torch.no_grad()
    def read(self, intensity: Intensity, batch: EventBatch, counted: NDArray[np.bool_], first: int) -> None:
        grown = intensity.compensator_by_type(batch.until).double().cpu().numpy() * counted[:, None]
        clock = np.cumsum(grown, axis=0)
        offsets, target = batch.offsets.cpu().numpy(), batch.target.cpu().numpy()
        before = clock[offsets[:-1]] - grown[offsets[:-1]]
        number = np.repeat(np.arange(len(batch)), np.diff(offsets))
        rows = batch.rows.cpu().numpy() + first
        tokens = np.flatnonzero(counted & (target >= 0))
        kind, owner = target[tokens], number[tokens]
        reading = clock[tokens, kind] - before[owner, kind]
        position = batch.position.cpu().numpy()[tokens]
        self._open.append((kind, rows[owner], position, reading))
        if self.in_chain:
            self._totals.append((rows, clock[offsets[1:] - 1] - before))

    def close(self, first: int) -> None:
        """Put the sequences of a block end to end."""
        kind, row, position, reading = (np.concatenate(column) for column in zip(*self._open, strict=True))
        if self.in_chain:
            rows = np.concatenate([rows for rows, _ in self._totals])
            totals = np.empty((len(rows), len(self.now)))
            totals[rows - first] = np.concatenate([values for _, values in self._totals])
            passed = self.now + np.cumsum(totals, axis=0)
            reading = reading + passed[row - first, kind] - totals[row - first, kind]
            self.now = passed[-1]
        self._done.append((kind, row, position, reading))
        self._open, self._totals = [], []

    def gaps(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the type of each rescaled gap, and the gaps, by type and then in the order of the data."""
        kind, row, position, reading = (np.concatenate(column) for column in zip(*self._done, strict=True))
        order = np.lexsort((position, row, kind))
        kind, row, reading = kind[order], row[order], reading[order]
        follows = kind[1:] == kind[:-1]
        if not self.in_chain:
            follows &= row[1:] == row[:-1]
        previous = np.where(np.concatenate([[False], follows]), np.roll(reading, 1), 0.0)
        return kind, reading - previous

    def table(self, sequences: Sequences) -> pl.DataFrame:
        """Return the statistics of each type with the user's labels."""
        kind, gaps = self.gaps()
        n_types = len(self.now)
        counts, sums = np.bincount(kind, minlength=n_types), np.bincount(kind, gaps, minlength=n_types)
        expected = self.now if self.in_chain else sums
        each = np.split(gaps, np.cumsum(counts)[:-1])
        present = np.maximum(counts, 1)
        pvalues = [float(stats.kstest(own, "expon").pvalue) if len(own) else None for own in each]
        frame = pl.DataFrame(
            {
                "n": counts,
                "expected": expected,
                "mean": sums / present,
                "ks_pvalue": pl.Series(pvalues, dtype=pl.Float64),
                "count_balance": (expected - counts) / np.sqrt(present),
            }
        )
        absent = pl.col("n") == 0
        frame = frame.with_columns(
            pl.when(absent).then(None).otherwise(pl.col(name)).alias(name)
            for name in ("mean", "count_balance")
        )
        return pl.DataFrame([sequences.label_series(np.arange(n_types))]).hstack(frame)
