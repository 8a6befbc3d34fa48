"""Pictures of the figures of the paper on training dynamics, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqattn.errors import MissingDependencyError
from seqattn.reproduce.figures import Figure

__all__ = ["draw"]

# Colours that differ in brightness too (Okabe and Ito); styles and marks tell them apart in grey.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKS = "os^vD"
_STEPS = "time (steps)"
_ENTROPY = "entropy on distinct tokens (nats)"


def draw(figure: Figure, curves: pl.DataFrame, path: str | Path) -> Path:
    """Draw a figure and return the file.

    Parameters
    ----------
    figure
        The figure.
    curves
        Its points with the columns of :data:`seqattn.dynamics.figures.CURVES`.
    path
        File to write.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    drawn = _DRAWINGS[figure.name](figure, curves)
    drawn.savefig(path, dpi=120)
    return Path(path)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Drawing
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
    drawing = Drawing(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def _one(figure: Figure) -> tuple[Any, Any]:
    drawing = _figure(7.0, 4.5)
    axes = drawing.subplots()
    axes.set_title(_wrapped(figure.title), fontsize="medium")
    return drawing, axes


def _wrapped(title: str) -> str:
    words = title.split()
    half = len(words) // 2
    return title if len(title) < 60 else "\n".join([" ".join(words[:half]), " ".join(words[half:])])


def _names(curves: pl.DataFrame, column: str) -> list[str]:
    return curves[column].unique(maintain_order=True).to_list()


def _lines(curves: pl.DataFrame, panel: str) -> Iterator[tuple[int, str, Any, Any]]:
    own = curves.filter(pl.col("panel") == panel)
    for number, series in enumerate(_names(own, "series")):
        points = own.filter(pl.col("series") == series)
        yield number, series, points["x"].to_numpy(), points["y"].to_numpy()


def _odds(figure: Figure, curves: pl.DataFrame) -> Any:
    drawing, axes = _one(figure)
    for number, series, x, y in _lines(curves, ""):
        axes.plot(x, y, linestyle=_STYLES[number], color=_COLOURS[number], label=f"{series} of the decoder")
    for number, _, x, _ in _lines(curves, "snap"):
        axes.axvline(x[0], color=_COLOURS[number], linewidth=0.8, linestyle=_STYLES[number])
        axes.annotate("t0", (x[0], 0.99), xycoords=("data", "axes fraction"), fontsize="x-small", va="top")
    axes.set_xlim(0, figure.settings["n_steps"])
    axes.set_ylim(0)
    axes.set_xlabel(_STEPS)
    axes.set_ylabel("growth of the odds, exp(2 B)")
    axes.legend(fontsize="small", loc="lower right")
    return drawing


def _heat(figure: Figure, curves: pl.DataFrame) -> Any:
    panels = _names(curves, "panel")
    drawing = _figure(4.2 * len(panels) + 1, 4.8)
    every = drawing.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    top, image = curves["y"].max(), None
    for axes, panel in zip(every, panels, strict=True):
        lines = list(_lines(curves, panel))
        cells, times = np.stack([y for *_, y in lines]), lines[0][2]
        image = axes.pcolormesh(
            np.arange(len(times) + 1), np.arange(len(lines) + 1), cells, cmap="viridis", vmin=0, vmax=top
        )
        n_common = sum(series.startswith("common") for _, series, *_ in lines)
        axes.axhline(n_common, color="white", linewidth=1.5)
        axes.set_xticks(np.arange(len(times)) + 0.5, [f"{time:g}" for time in times])
        axes.set_yticks(
            [n_common / 2, (n_common + len(lines)) / 2], ["common", "distinct"], rotation=90, va="center"
        )
        axes.set_title(panel, fontsize="medium")
        axes.set_xlabel(_STEPS)
    every[0].set_ylabel("tokens of class 0, rare ones below")
    drawing.colorbar(image, ax=list(every), label="attention (share)")
    drawing.suptitle(figure.title)
    return drawing


def _medium(figure: Figure, curves: pl.DataFrame) -> Any:
    panels = _names(curves, "panel")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    drawing = _figure(4.6 * columns, 3.4 * rows + 0.8)
    every = drawing.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, panel in zip(every, panels, strict=False):
        own = curves.filter(pl.col("panel") == panel)
        for number, rate in enumerate(_names(own, "series")):
            _against_published(axes, figure, own.filter(pl.col("series") == rate), panel, rate, number)
        axes.set_xscale("log")
        axes.set_xticks(figure.settings["ratio"], [f"{ratio:g}" for ratio in figure.settings["ratio"]])
        axes.minorticks_off()
        axes.set_title(f"{panel}, after {figure.settings['n_steps']} steps", fontsize="medium")
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    for axes in every[: len(panels)]:
        axes.set_xlabel("ratio of the rates, decoder / attention")
    for place in range(0, len(panels), columns):
        every[place].set_ylabel(_ENTROPY)
    handles, labels = every[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    return drawing


def _against_published(
    axes: Any, figure: Figure, own: pl.DataFrame, panel: str, rate: str, number: int
) -> None:
    points = own.group_by("x", maintain_order=True).agg(
        pl.col("y").mean().alias("mean"), pl.col("y").std().fill_null(0.0).alias("std")
    )
    colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
    axes.errorbar(
        points["x"], points["mean"], points["std"], color=colour, marker=mark, linestyle=_STYLES[number % 5],
        capsize=2, markersize=4, label=f"{rate} of attention",
    )  # fmt: skip
    theirs = [
        (x, value)
        for x in points["x"]
        if (value := figure.value(f"{panel}, {rate}, ratio {x:g}", "entropy_distinct"))
    ]
    if theirs:
        xs, ys = zip(*theirs, strict=True)
        label = "published" if number == 0 else None
        axes.plot(xs, ys, "x", color="0.35", markersize=7, markeredgewidth=1.5, zorder=4, label=label)


def _decoder(figure: Figure, curves: pl.DataFrame) -> Any:
    drawing, axes = _one(figure)
    for number, series, x, y in _lines(curves, "flow"):
        axes.plot(x, y, color=_COLOURS[number], linestyle=_STYLES[number], label=f"h, {series}")
    for number, _, x, y in _lines(curves, "steps"):
        few = slice(None, None, max(1, len(x) // 15))
        label = "h*, the same in steps" if number == 0 else None
        axes.plot(x[few], y[few], _MARKS[number], color=_COLOURS[number], markersize=4, label=label)
    axes.set_xlabel("times that the class was seen")
    axes.set_ylabel("V h, own logit minus mean (about)")
    axes.legend(fontsize="small", loc="lower right")
    return drawing


def _exponent(figure: Figure, curves: pl.DataFrame) -> Any:
    drawing, axes = _one(figure)
    for number, series, x, y in _lines(curves, ""):
        axes.plot(x, y, color=_COLOURS[number], linestyle=_STYLES[number], label=series)
    for number, _, x, y in _lines(curves, "snap"):
        label = "at t0" if number == 0 else None
        axes.plot(x, y, _MARKS[number], color=_COLOURS[number], label=label)
    axes.set_xlim(0, figure.settings["n_steps"])
    axes.set_ylim(0)
    axes.set_xlabel(_STEPS)
    axes.set_ylabel("growth exponent B")
    axes.legend(
        fontsize="small", loc="lower right", title="rates, decoder / attention", title_fontsize="small"
    )
    return drawing


def _maps(figure: Figure, curves: pl.DataFrame) -> Any:
    panels = _names(curves, "panel")
    rows = len({panel.partition(",")[0] for panel in panels})
    columns = -(-len(panels) // rows)
    drawing = _figure(3.0 * columns + 1.5, 3.2 * rows + 0.6)
    from matplotlib.colors import PowerNorm

    every = drawing.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for place, panel in enumerate(panels):
        axes = every[place // columns][place % columns]
        lines = list(_lines(curves, panel))
        words = [series.partition(" ")[2] for _, series, *_ in lines]
        # Keys that a query does not see are left white, not shown as 0.
        seen = np.ma.masked_array(np.stack([y for *_, y in lines]), ~np.tri(len(lines), dtype=bool))
        image = axes.imshow(seen, cmap="viridis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        axes.set_title(panel, fontsize="medium")
        axes.set_xticks(range(len(words)), words, rotation=90, fontsize=4.5)
        axes.set_yticks(range(len(words)), words, fontsize=4.5)
        if place // columns == rows - 1:
            axes.set_xlabel("words attended to", fontsize="small")
        if place % columns == 0:
            axes.set_ylabel("attending words", fontsize="small")
    drawing.colorbar(
        image, ax=every.ravel().tolist(), label="attention (share, scale of square roots)", shrink=0.7
    )
    drawing.suptitle(figure.title)
    return drawing


def _courses(figure: Figure, curves: pl.DataFrame) -> Any:
    panels = _names(curves, "panel")
    drawing = _figure(5.2 * len(panels), 4.6)
    every = drawing.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    titles = {
        "layer": ("one ordinary layer", "rate"),
        "free logits": ("free logits", "rates, decoder / attention"),
    }
    for axes, panel in zip(every, panels, strict=True):
        own = curves.filter(pl.col("panel") == panel)
        title, legend = titles[panel]
        for number, series in enumerate(_names(own, "series")):
            points = (
                own.filter(pl.col("series") == series).group_by("x", maintain_order=True)
                .agg(pl.col("y").mean().alias("mean"), pl.col("y").min().alias("low"), pl.col("y").max().alias("high"))
            )  # fmt: skip
            colour = _COLOURS[number % len(_COLOURS)]
            label = series.removeprefix("rates ").removeprefix("rate ")
            axes.plot(points["x"], points["mean"], color=colour, linestyle=_STYLES[number % 5], label=label)
            axes.fill_between(
                points["x"], points["low"], points["high"], color=colour, alpha=0.15, linewidth=0
            )
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel(_STEPS)
        axes.set_ylim(0, 1.03)
        axes.legend(fontsize="small", title=legend, title_fontsize="small", loc="lower left")
    every[0].set_ylabel("entropy over that of even attention (share)")
    drawing.suptitle(figure.title)
    return drawing


_DRAWINGS: Mapping[str, Callable[[Figure, pl.DataFrame], Any]] = {
    "figure3": _odds,
    "figure4": _heat,
    "figure5": _heat,
    "figure6": _medium,
    "figure7": _maps,
    "figure8": _decoder,
    "figure9": _exponent,
    "figure10": _courses,
}
