"""Pictures of a fitted point process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from seqattn.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from seqattn.hawkes.process import PointProcess
    from seqattn.hawkes.reliability import MarkReliability
    from seqattn.hawkes.residuals import GoodnessOfFit

# Curves beyond this number cannot be told apart.
_MOST_CURVES = 8
# Points beyond this number cannot be told apart in a panel.
_MOST_POINTS = 1000


def plot_intensity(model: PointProcess, X: Any, row: int, path: str | Path, n_points: int = 1000) -> Path:
    """Draw the intensities over one sequence with its events, and save the picture as PNG.

    Parameters
    ----------
    model
        A fitted point process.
    X
        Sequences, as in :meth:`seqattn.hawkes.process.PointProcess.log_likelihood`.
    row
        Which sequence, from 0.
    path
        File to write.
    n_points
        Number of times at which the intensities are computed, beside the events themselves.

    Returns
    -------
    The path written.

    Raises
    ------
    DataError
        There is no such sequence, or its window has no length.
    MissingDependencyError
        matplotlib is not installed.
    """
    sequences = model._read_new(X)
    if not 0 <= row < len(sequences):
        raise DataError(f"There is no sequence {row}: the data hold {len(sequences)}, counted from 0.")
    one = sequences.select([row])
    times, kinds = one.sequence(0)
    start, end = float(one.start[0]), float(one.end[0])
    if not end > start:
        raise DataError(f"The window of sequence {one.ids[0]!r} has no length, so there is nothing to draw.")
    # A point just after each event shows the jump: the intensity at an event belongs to its past.
    after = times + 1e-6 * (end - start)
    grid = np.unique(np.concatenate([np.linspace(start, end, n_points), times, after[after <= end]]))
    curves = model._intensity_at(one, grid)[0]
    figure = _new_figure(10, 5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    shown = _draw_curves(above, model, grid, curves, kinds)
    _draw_events(below, model, times, kinds, shown)
    unit = f" ({one.unit})" if one.unit else ""
    above.set_ylabel(f"intensity (events per {one.unit or 'time unit'})")
    above.set_title(f"{type(model).__name__}: sequence {one.ids[0]}, {len(times)} events")
    below.set_xlabel(f"time{unit}")
    figure.savefig(Path(path), dpi=120)
    return Path(path)


def _new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that needs no screen and touches no global state of matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_curves(axes: Axes, model: PointProcess, grid: Any, curves: Any, kinds: Any) -> list[int]:
    """Draw the total and the intensities of the types that happen most; return these types."""
    counts = np.bincount(kinds, minlength=curves.shape[1])
    shown = [int(kind) for kind in np.argsort(-counts, kind="stable")[:_MOST_CURVES]]
    shown = [kind for kind in shown if counts[kind]] or shown
    if curves.shape[1] > 1:
        axes.plot(grid, curves.sum(1), color="0.6", linewidth=1, label="all types")
    for place, kind in enumerate(shown):
        axes.plot(grid, curves[:, kind], color=f"C{place}", linewidth=1, label=str(model.labels_[kind]))
    axes.set_ylim(bottom=0)
    title = "type" if len(shown) == curves.shape[1] else f"type ({len(shown)} of {curves.shape[1]})"
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
    return shown


def _draw_events(axes: Axes, model: PointProcess, times: Any, kinds: Any, shown: list[int]) -> None:
    """Draw one row of marks per shown type, and one for all others."""
    rest = ~np.isin(kinds, shown)
    rows = [(f"C{place}", kinds == kind, str(model.labels_[kind])) for place, kind in enumerate(shown)]
    if rest.any():
        rows.append(("0.6", rest, "others"))
    for place, (color, chosen, _) in enumerate(rows):
        axes.eventplot(times[chosen], lineoffsets=-place, linelengths=0.8, colors=color)
    axes.set_yticks([-place for place in range(len(rows))], [name for _, _, name in rows], fontsize="x-small")
    axes.set_ylabel("events")


def plot_goodness_of_fit(fit: GoodnessOfFit, path: str | Path) -> Path:
    """Draw the goodness of fit of a point process in four panels (three with a single type), and save it as PNG.

    Parameters
    ----------
    fit
        What :meth:`seqattn.hawkes.process.PointProcess.goodness_of_fit` returned.
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
    panels = 3 if fit.marks is None else 4
    figure = _new_figure(*((13, 4.4) if panels == 3 else (10, 9)))
    axes = figure.subplots(*((1, 3) if panels == 3 else (2, 2))).ravel()
    _draw_quantiles(axes[0], fit)
    _draw_distribution(axes[1], fit)
    _draw_autocorrelation(axes[2], fit)
    if fit.marks is not None:
        _draw_reliability(axes[3], fit.marks)
    balance = f"{fit.n_events:,} events, {fit.expected:,.1f} expected"
    figure.suptitle(
        f"Goodness of fit of {fit.model}: {balance} ({fit.form} form, convention {fit.convention})"
    )
    figure.savefig(Path(path), dpi=120)
    return Path(path)


def _draw_quantiles(axes: Axes, fit: GoodnessOfFit) -> None:
    """Draw quantiles against quantiles, with the band in which each order statistic lies with 95 %."""
    theory, found = fit.qq_points(_MOST_POINTS).T
    n = fit.n_events
    rank = np.rint(0.5 - n * np.expm1(-theory))
    low, high = (-np.log1p(-stats.beta.ppf(level, rank, n + 1 - rank)) for level in (0.025, 0.975))
    axes.fill_between(theory, low, high, color="C0", alpha=0.15, linewidth=0, label="95 % pointwise")
    axes.plot([0, theory[-1]], [0, theory[-1]], color="0.4", linewidth=1)
    axes.plot(theory, found, ".", color="C1", markersize=4, label="rescaled gaps")
    axes.set_xlabel("quantile of Exp(1)")
    axes.set_ylabel("quantile of the rescaled gaps (expected events)")
    axes.set_title(
        f"Quantiles: mean {fit.mean:.3f}, variance {fit.variance:.3f} (want 1, 1)", fontsize="medium"
    )
    axes.legend(loc="upper left", fontsize="small")


def _draw_distribution(axes: Axes, fit: GoodnessOfFit) -> None:
    """Draw the empirical minus the exponential distribution function, with the bands of the KS test."""
    n = fit.n_events
    own = np.sort(-np.expm1(-fit.gaps))
    shown = np.unique(np.linspace(0, n - 1, min(n, _MOST_POINTS)).round().astype(int))
    steps = np.column_stack([shown / n, (shown + 1) / n]).ravel() - np.repeat(own[shown], 2)
    for level, style in ((0.95, "--"), (0.99, ":")):
        width = stats.kstwo.ppf(level, n)
        axes.axhline(
            width, color="C0", linestyle=style, linewidth=1, label=f"{100 * level:.0f} % band of the KS test"
        )
        axes.axhline(-width, color="C0", linestyle=style, linewidth=1)
    axes.axhline(0, color="0.4", linewidth=1)
    axes.plot(np.repeat(own[shown], 2), steps, color="C1", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_xlabel("1 - exp(-e), e the rescaled gap")
    axes.set_ylabel("empirical minus exponential distribution")
    axes.set_title(
        f"Kolmogorov-Smirnov: D = {fit.ks_statistic:.4f}, p = {fit.ks_pvalue:.3g}", fontsize="medium"
    )
    axes.margins(y=0.3)
    axes.legend(loc="upper right", fontsize="small")


def _draw_autocorrelation(axes: Axes, fit: GoodnessOfFit) -> None:
    """Draw the correlation of the transformed gaps with later ones."""
    lag = np.arange(1, len(fit.autocorrelation) + 1)
    for level, style in ((1.96, "--"), (2.576, ":")):
        label = "95 % pointwise" if style == "--" else "99 % pointwise"
        axes.axhline(level / np.sqrt(fit.n_events), color="C0", linestyle=style, linewidth=1, label=label)
        axes.axhline(-level / np.sqrt(fit.n_events), color="C0", linestyle=style, linewidth=1)
    axes.axhline(0, color="0.4", linewidth=1)
    axes.vlines(lag, 0, fit.autocorrelation, color="C1", linewidth=2)
    axes.plot(lag, fit.autocorrelation, "o", color="C1", markersize=4)
    axes.set_xlim(0, max(2, len(lag) + 1))
    axes.locator_params(axis="x", integer=True)
    axes.margins(y=0.3)
    axes.set_xlabel("lag (events)")
    axes.set_ylabel("autocorrelation of 1 - exp(-e)")
    pvalue = "too few events" if fit.ljung_box_pvalue is None else f"p = {fit.ljung_box_pvalue:.3g}"
    axes.set_title(f"Independence: Ljung-Box {pvalue} ({fit.ljung_box_lags} lags)", fontsize="medium")
    axes.legend(loc="upper right", fontsize="small")


def _draw_reliability(axes: Axes, marks: MarkReliability) -> None:
    """Draw how often types happened against the probability they were given."""
    axes.plot([0, 1], [0, 1], color="0.4", linewidth=1)
    style: dict[str, Any] = {"fmt": "o", "color": "C1", "markersize": 5, "linewidth": 1, "capsize": 3}
    low, high = (np.clip(marks.observed + sign * 1.96 * marks.spread, 0, 1) for sign in (-1, 1))
    spread = np.abs(np.stack([low, high]) - marks.observed)
    axes.errorbar(marks.stated, marks.observed, spread, label="bins of equal mass, 95 %", **style)
    # With many types all probabilities are small: the panel then ends where they end.
    most = min(1.0, 1.2 * max(marks.stated.max(), high.max()))
    axes.set_xlim(-0.02 * most, 1.02 * most)
    axes.set_ylim(-0.02 * most, 1.02 * most)
    axes.set_xlabel("stated probability of the type, its time known")
    axes.set_ylabel("share that happened")
    title = f"Types: calibration error {marks.calibration_error:.4f}, Brier score {marks.brier:.4f}"
    axes.set_title(title, fontsize="medium")
    axes.legend(loc="upper left", fontsize="small")
