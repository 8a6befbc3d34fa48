"""The picture of how good a recommender is for which users and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqattn.errors import MissingDependencyError

__all__ = ["draw_slices"]


def draw_slices(rows: Sequence[Mapping[str, Any]], path: str | Path, metric: str = "ndcg@10") -> Path:
    """Draw a figure by groups of targets as bars, with the number of targets beside, as PNG.

    Parameters
    ----------
    rows
        Groups, each with ``slice``, ``group``, ``n_targets`` and the figure.
    path
        File to write.
    metric
        Which figure.

    Returns
    -------
    The path written.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
    figure = Figure(figsize=(7.0, 1.0 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    kinds = list(dict.fromkeys(row["slice"] for row in rows))
    colours = [f"C{kinds.index(row['slice'])}" for row in rows]
    bars = axes.barh(range(len(rows)), [row[metric] for row in rows], color=colours)
    axes.bar_label(
        bars, [f"{row[metric]:.4f} of {row['n_targets']:,}" for row in rows], padding=3, fontsize=8
    )
    axes.set_yticks(range(len(rows)), [f"{row['slice']}: {row['group']}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel(metric.upper())
    figure.savefig(Path(path), dpi=120)
    return Path(path)
