"""Plots of a table as SVG text that stands inside a page and takes on its colours."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from seqattn.errors import MissingDependencyError
from seqattn.reproduce.contest import Contest
from seqattn.reproduce.summary import Summary

__all__ = ["differences", "ranks", "values"]

# The colour of text and axes while drawing; in the page it becomes that of the text around.
_INK = "#010203"
_OURS, _THEIRS = "#2f7ed8", "#d9772b"
_ROW, _HEAD = 0.24, 1.0


def values(summary: Summary) -> str:
    """Return one panel per data set: our models with their t intervals over seeds, and published figures.

    Parameters
    ----------
    summary
        What is told of the cells.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    names = {dataset: _names(summary, dataset) for dataset in summary.datasets}
    drawn = [dataset for dataset in summary.datasets if names[dataset]]
    lines = [drawn[place : place + 2] for place in range(0, len(drawn), 2)]
    heights = [_HEAD + _ROW * max(len(names[dataset]) for dataset in line) for line in lines]
    figure = _figure(9.5, sum(heights) + 0.3)
    grid = figure.add_gridspec(len(lines), 2 if len(drawn) > 1 else 1, height_ratios=heights)
    for row, line in enumerate(lines):
        for column, dataset in enumerate(line):
            _panel(figure.add_subplot(grid[row, column]), summary, dataset, names[dataset])
    marks: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        marks.update(zip(labels, handles, strict=True))
    figure.legend(marks.values(), marks.keys(), loc="outside upper left", ncols=2, frameon=False)
    return _svg(figure, "values")


def _names(summary: Summary, dataset: str) -> list[str]:
    ours = [model.name for model in summary.grid.models if summary.of(dataset, model.name) is not None]
    metric = summary.main.name
    theirs = [name for name in summary.others if summary.published(dataset, name, metric) is not None]
    return ours + theirs if ours else []


def _panel(axes: Any, summary: Summary, dataset: str, names: list[str]) -> None:
    published = {model.name: model.published for model in summary.grid.models}
    ours, theirs = "ours, with 95 % interval over seeds", "published"
    means = {name: found.mean for name in published if (found := summary.of(dataset, name)) is not None}
    floor, edge = _floor(list(means.values())), ("axes fraction", "data")
    for place, name in enumerate(names):
        found = summary.of(dataset, name) if name in published else None
        if found is not None and found.mean < floor:
            axes.annotate(f" ◂ {found.mean:.2f}", (0, place), xycoords=edge, va="center", color=_OURS)
        elif found is not None:
            half = 0.0 if found.low is None else found.mean - found.low
            axes.errorbar(
                found.mean, place, xerr=half, fmt="o", color=_OURS, capsize=3, markersize=6, label=ours
            )
        value = summary.published(dataset, published.get(name, name), summary.main.name)
        if value is not None:
            axes.plot(value[0], place, "D", color=_THEIRS, markerfacecolor="none", markersize=6, label=theirs)
    axes.set_xlim(left=max(axes.get_xlim()[0], floor))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{summary.main.title} ({summary.main.unit})")
    axes.set_title(dataset, loc="left", fontweight="bold")
    _plain(axes)


def _floor(values: list[float]) -> float:
    """Return the left end of a panel: a model that fails badly must not squeeze all others into one line."""
    low, high = float(np.quantile(values, 0.25)), max(values)
    return low - 1.5 * (high - low) if min(values) < low - 1.5 * (high - low) else -np.inf


def differences(summary: Summary) -> str:
    """Return the differences between the reference and the best baseline by data set, with their intervals.

    Parameters
    ----------
    summary
        What is told of the cells.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    found = summary.comparisons
    figure = _figure(9.5, _HEAD + 0.32 * len(found))
    axes = figure.subplots()
    for place, comparison in enumerate(found):
        result = comparison.paired
        ends = [[result.difference - result.low], [result.high - result.difference]]
        axes.errorbar(result.difference, place, xerr=ends, fmt="o", color=_OURS, capsize=3, markersize=6)
    axes.axvline(0.0, color=_INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(found)), [f"{each.dataset}: {each.first} - {each.second}" for each in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    what = f"difference in {summary.main.title} ({summary.main.unit})"
    axes.set_xlabel(f"{what}; right of 0: {summary.grid.reference} is better")
    _plain(axes)
    return _svg(figure, "differences")


def ranks(found: Contest, name: str = "ranks") -> str:
    """Return a critical-difference diagram: average ranks on a line, bars over models that cannot be told apart.

    Parameters
    ----------
    found
        A contest.
    name
        Tells the pictures of one page apart.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    n_models, n_bars = len(found.models), len(found.cliques)
    n_left = (n_models + 1) // 2
    depth = 0.35 * n_bars + 0.6
    figure = _figure(9.5, _HEAD + 0.28 * (depth + n_left))
    axes = figure.subplots()
    low, high = min(found.ranks), max(found.ranks)
    ends = (int(np.floor(low)), max(int(np.ceil(high)), int(np.floor(low)) + 1))
    reach = 0.02 * (ends[1] - ends[0])
    for place, (model, rank) in enumerate(zip(found.models, found.ranks, strict=True)):
        is_left = place < n_left
        level = depth + (place if is_left else n_models - 1 - place)
        edge = ends[0] - reach if is_left else ends[1] + reach
        axes.plot([rank, rank, edge], [0, level, level], color=_INK, linewidth=0.8)
        side = "right" if is_left else "left"
        axes.text(edge, level, f" {model} ({rank:.2f}) ", ha=side, va="center", color=_INK)
    by_name = dict(zip(found.models, found.ranks, strict=True))
    for place, clique in enumerate(found.cliques):
        level = 0.35 * (place + 1)
        bar = [by_name[clique[0]] - reach / 2, by_name[clique[-1]] + reach / 2]
        axes.plot(bar, [level, level], color=_OURS, linewidth=4, solid_capstyle="butt")
    _scale(axes, ends, depth + n_left)
    return _svg(figure, name)


def _scale(axes: Any, ends: tuple[int, int], bottom: float) -> None:
    """Put the scale of ranks on top, with room for names at both sides."""
    axes.plot(ends, [0, 0], color=_INK, linewidth=1)
    for tick in range(ends[0], ends[1] + 1):
        axes.plot([tick, tick], [-0.2, 0], color=_INK, linewidth=1)
        axes.text(tick, -0.35, str(tick), ha="center", va="bottom", color=_INK)
    width = ends[1] - ends[0]
    axes.set_xlim(ends[0] - 0.5 * width, ends[1] + 0.5 * width)
    axes.set_ylim(bottom, -1.2)
    axes.set_axis_off()


def _plain(axes: Any) -> None:
    axes.grid(axis="x", color=_INK, alpha=0.15)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="both", length=0, colors=_INK)


def _figure(width: float, height: float) -> Any:
    """Return a figure of its own, apart from the state of pyplot, that can be written as SVG."""
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Any, name: str) -> str:
    """Return a figure as SVG that stands inside HTML: no header, no metadata, text as text, ink as around it."""
    from matplotlib import rc_context

    for axes in figure.axes:
        axes.set_facecolor("none")
    text = io.StringIO()
    # The salt keeps the ids of two pictures in one page apart, and equal from call to call.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True)
    body = re.sub(
        r"<metadata>.*?</metadata>", "", text.getvalue()[text.getvalue().index("<svg") :], flags=re.S
    )
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # nothing refers to them, and two pictures have the same
    size = re.search(r'viewBox="([^"]*)"', body)
    head = f'<svg role="img" viewBox="{size.group(1) if size else ""}" style="width:100%;max-width:60rem">'
    return (
        re.sub(r"<svg[^>]*>", head, body, count=1)
        .replace(_INK, "currentColor")
        .replace("#000000", "currentColor")
    )
