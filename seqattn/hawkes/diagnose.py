"""Pictures of a fitted point process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqattn.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from seqattn.hawkes.process import PointProcess

# Curves beyond this number cannot be told apart.
_MOST_CURVES = 8


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
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
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
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    shown = _draw_curves(above, model, grid, curves, kinds)
    _draw_events(below, model, times, kinds, shown)
    unit = f" ({one.unit})" if one.unit else ""
    above.set_ylabel(f"intensity (events per {one.unit or 'time unit'})")
    above.set_title(f"{type(model).__name__}: sequence {one.ids[0]}, {len(times)} events")
    below.set_xlabel(f"time{unit}")
    figure.savefig(Path(path), dpi=120)
    return Path(path)


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
