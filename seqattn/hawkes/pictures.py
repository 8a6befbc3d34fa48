"""Drawings of influence: matrices of types by types, and curves over the time since an event."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqattn.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Above this number of types values cannot be read inside the cells, nor every label beside the axis.
_MOST_WRITTEN = 12
_MOST_LABELS = 30
# Longer labels are cut.
_LONGEST_LABEL = 24


def draw_matrix(
    values: NDArray[np.float64],
    path: str | Path,
    *,
    title: str,
    rows: tuple[str, Sequence[Any]],
    columns: tuple[str, Sequence[Any]],
    scale: str,
    is_signed: bool,
) -> Path:
    """Draw a matrix as a heat map with its labels, and save it as PNG.

    Parameters
    ----------
    values
        The matrix; nan is left grey.
    path
        File to write.
    title
        What is shown, unit included.
    rows, columns
        Name of each axis, and its labels.
    scale
        What the colours stand for.
    is_signed
        True: colours diverge from white at 0. False: they darken from white at 0.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    n_rows, n_columns = values.shape
    longest = max((len(_short(name)) for name in (*rows[1], *columns[1])), default=1)
    size = [min(10.0, max(3.0, 0.55 * n)) for n in (n_columns, n_rows)]
    # The layout for cells of one shape; "tight" below cuts off what it leaves empty.
    figure = _figure((size[0] + 2.5 + 0.08 * longest, size[1] + 1.2 + 0.08 * longest), "compressed")
    axes = figure.subplots()
    top = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap="RdBu_r" if is_signed else "Blues",
        vmin=-top if is_signed else 0.0,
        vmax=top,
        interpolation="nearest",
    )
    axes.set_facecolor("0.85")  # shines through where there is no value
    _write_labels(axes, rows, columns)
    axes.tick_params(axis="x", labelrotation=90 if 0.09 * longest > size[0] / n_columns else 0)
    if max(n_rows, n_columns) <= _MOST_WRITTEN:
        _write_values(axes, values, top)
    axes.set_title(title, fontsize="medium")
    bar = axes.inset_axes((1 + 0.15 / size[0], 0, 0.2 / size[0], 1))  # as high as the matrix, of one width
    figure.colorbar(image, cax=bar, label=scale)
    figure.savefig(Path(path), dpi=120, bbox_inches="tight", pad_inches=0.1)
    return Path(path)


def draw_curve(
    across_values: NDArray[np.float64],
    values: NDArray[np.float64],
    error: NDArray[np.float64],
    path: str | Path,
    *,
    title: str,
    across: str,
    up: str,
) -> Path:
    """Draw a curve with a band of two standard errors, and save it as PNG.

    Parameters
    ----------
    across_values, values, error
        The curve and its standard errors; where these are nan there is no band.
    path
        File to write.
    title, across, up
        Title and names of the axes, units included.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    figure = _figure((7.0, 4.0))
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.fill_between(
        across_values,
        values - 2 * error,
        values + 2 * error,
        color="C0",
        alpha=0.25,
        linewidth=0,
        label="± 2 standard errors",
    )
    axes.plot(
        across_values, values, color="C0", linewidth=1.5, marker="." if len(values) < 20 else "", label="mean"
    )
    axes.set_xlim(left=0)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(frameon=False)
    figure.savefig(Path(path), dpi=120)
    return Path(path)


def _figure(
    size: tuple[float, float], layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _write_labels(axes: Axes, rows: tuple[str, Sequence[Any]], columns: tuple[str, Sequence[Any]]) -> None:
    """Write the labels beside the axes, every n-th where there are many."""
    for (name, labels), set_ticks, set_name in (
        (rows, axes.set_yticks, axes.set_ylabel),
        (columns, axes.set_xticks, axes.set_xlabel),
    ):
        step = -(-len(labels) // _MOST_LABELS)
        places = range(0, len(labels), max(1, step))
        set_ticks(places, [_short(labels[place]) for place in places], fontsize="small")
        set_name(name if step <= 1 else f"{name} (one label in {step})")


def _write_values(axes: Axes, values: NDArray[np.float64], top: float) -> None:
    """Write the values into their cells, with two or three digits for the largest."""
    digits = min(8, max(0, (2 if top >= 1 else 1) - int(np.floor(np.log10(top)))))
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
            color = "white" if abs(value) > 0.6 * top else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize="small", color=color)


def _short(label: Any) -> str:
    text = str(label)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
