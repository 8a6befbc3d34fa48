"""The picture of which classes are taken for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from seqattn.errors import MissingDependencyError

__all__ = ["draw_confusion"]

# Above this number of classes counts cannot be read inside the cells.
_MOST_WRITTEN = 15


def draw_confusion(true: np.ndarray, predicted: np.ndarray, path: str | Path) -> Path:
    """Draw the number of cases by true and predicted class, shaded by their share of the true class, as PNG.

    Parameters
    ----------
    true, predicted
        Labels, one per case.
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
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
    names = np.unique(np.concatenate([true, predicted]))
    counts = confusion_matrix(true, predicted, labels=names)
    side = 3.5 + 0.35 * min(len(names), 40)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(names)), [str(name) for name in names], rotation=90)
    axes.set_yticks(range(len(names)), [str(name) for name in names])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{np.trace(counts):,} of {counts.sum():,} cases right", fontsize=10)
    if len(names) <= _MOST_WRITTEN:
        _write_counts(axes, counts, shares)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    figure.savefig(Path(path), dpi=120)
    return Path(path)


def _write_counts(axes: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=colour)
