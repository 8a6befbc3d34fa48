"""Drawings of what decides: shapes of a class on the series they come near to, and one case with what spoke for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from seqattn.classify.dilated import DilatedShapes
from seqattn.classify.motifs import MotifShapes
from seqattn.classify.series import Scaling
from seqattn.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from seqattn.classify.explain import Explanation

__all__ = ["Drawn", "draw_explanation", "draw_shapes", "drawn"]

# Rows of channels and labelled contributions in a picture: more cannot be read.
_MOST_CHANNELS = 8
_ROWS = 10
_COLUMNS = 3
# Longer shapes are curves without a mark for each point.
_MARKED = 30
# Contributions per point below this share of the largest one stay white, so that the strong ones stand out.
_FAINT = 0.15
# For and against differ in colour, and in grey by their hatching.
_FOR, _AGAINST = "#e08214", "#5a8fc0"
_HATCH = "////"
# Inches of a curve, and of each row of numbered bars above it.
_CURVE, _LANE = 0.95, 0.16
# Room to the right of a bar for its number, as share of the length.
_ROOM = 0.04


@dataclass(frozen=True)
class Drawn:
    """One shape as it is drawn, in the user's units and points.

    Attributes
    ----------
    title
        What is written above it.
    label
        What its values are.
    times, values
        The points of the shape, where it lies.
    case_times, case_values
        The series under it; empty without one.
    """

    title: str
    label: str
    times: np.ndarray
    values: np.ndarray
    case_times: np.ndarray
    case_values: np.ndarray


def drawn(
    shapes: DilatedShapes | MotifShapes,
    number: int,
    scaling: Scaling,
    title: str = "",
    case: tuple[np.ndarray, int] | None = None,
) -> Drawn:
    """Return a shape as it is drawn: on the case that comes nearest to it, or alone where it was taken from.

    Parameters
    ----------
    shapes
        The shapes of a fitted classifier.
    number
        Which one.
    scaling
        What brought the series to one scale, which is undone here.
    title
        What is written above it.
    case
        Scaled values of the shape's channel in one case ``(time,)`` with the first point of the match; None draws the
        shape alone.

    Returns
    -------
    The drawing. A shape without level and spread takes those of the points under it; alone it keeps its own scale.
    """
    offsets, values, is_normed = _outline(shapes, number)
    channel = int(shapes.channel[number])
    is_difference = channel >= len(scaling.mean)
    own = channel % len(scaling.mean)
    level = 0.0 if is_difference else float(scaling.mean[own])
    spread = float(scaling.spread[own])
    name = f"difference of channel {own}" if is_difference else f"channel {own}"
    first = int(shapes.start[number]) if case is None else case[1]
    times = (first + offsets) * float(scaling.factor)
    nothing = np.zeros(0)
    if case is None:
        if is_normed:
            return Drawn(title, f"{name}\n(deviations from its mean)", times, values, nothing, nothing)
        return Drawn(title, name, times, values * spread + level, nothing, nothing)
    under = case[0]
    places = np.minimum(first + offsets, len(under) - 1)
    if is_normed:
        values = _unit(values) * under[places].std() + under[places].mean()
    case_times = np.arange(len(under)) * float(scaling.factor)
    return Drawn(title, name, times, values * spread + level, case_times, under * spread + level)


def _unit(values: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and deviation 1; flat ones are 0."""
    centred = values - values.mean()
    spread = centred.std()
    return centred / spread if spread > 0 else centred


def _outline(shapes: DilatedShapes | MotifShapes, number: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return where the points of a shape lie from its first one, their values, and whether level and spread are out."""
    if isinstance(shapes, MotifShapes):
        values = np.asarray(shapes.patterns[number], dtype=np.float64)
        return np.arange(len(values)), values, shapes.measure == "znorm"
    offsets = np.arange(shapes.points) * int(shapes.dilation[number])
    return offsets, shapes.patterns[number, 0], bool(shapes.is_normed[number])


def draw_shapes(shapes: Sequence[Drawn], path: str | Path, title: str) -> Path:
    """Draw shapes beside each other, each on the series under it, and save the picture.

    Parameters
    ----------
    shapes
        At least one.
    path
        File to write; its ending names the form.
    title
        What is shown.

    Returns
    -------
    The path written.

    Raises
    ------
    DataError
        The file cannot be written, or its ending names no form of pictures.
    MissingDependencyError
        matplotlib is not installed.
    """
    n_columns = min(_COLUMNS, len(shapes))
    n_rows = math.ceil(len(shapes) / n_columns)
    figure = _figure((1.5 + 3.3 * n_columns, 1.2 + 2.1 * n_rows))
    every = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, one in zip(every, shapes, strict=False):
        if len(one.case_times):
            axes.plot(one.case_times, one.case_values, color="0.65", linewidth=1.0, label="nearest case")
        mark = "o" if len(one.times) <= _MARKED else ""
        axes.plot(
            one.times, one.values, color="black", marker=mark, linewidth=1.5, markersize=3, label="shape"
        )
        axes.locator_params(axis="x", integer=True)
        axes.set_title(one.title, fontsize="small")
        axes.set_ylabel(one.label, fontsize="small")
        axes.tick_params(labelsize="small")
    for axes in every[len(shapes) :]:
        axes.set_visible(False)
    figure.supxlabel("time (points)", fontsize="medium")
    figure.suptitle(title, fontsize="medium")
    figure.legend(
        *every[0].get_legend_handles_labels(),
        loc="outside upper right",
        ncols=2,
        frameon=False,
        fontsize="small",
    )
    return _saved(figure, Path(path))


def draw_explanation(explanation: Explanation, case: int, path: str | Path, name: str) -> Path:
    """Draw a case with the points that spoke for and against a class and its ten largest contributions, and save it.

    Channels stand one below the other, those with the largest contributions where there are more than eight.

    Parameters
    ----------
    explanation
        What :meth:`seqattn.VSFormerClassifier.explain` returned.
    case
        Number of the case in it.
    path
        File to write; its ending names the form.
    name
        How the case is called.

    Returns
    -------
    The path written.

    Raises
    ------
    DataError
        The file cannot be written, or its ending names no form of pictures.
    MissingDependencyError
        matplotlib is not installed.
    """
    series, found = explanation.series[case], explanation.map[case]
    top = explanation.top(_ROWS, case)
    length, channels = series.shape[1], _shown(found, top)
    lanes = [_lanes(top, channel, length) for channel in channels]
    heights = [_CURVE + _LANE * len(set(own.values())) for own in lanes]
    figure = _figure((11.0, max(4.5, 1.3 + sum(heights))))
    left, right = figure.subfigures(1, 2, width_ratios=(2.2, 1.0))
    every = left.subplots(len(channels), 1, sharex=True, squeeze=False, height_ratios=heights).ravel()
    scale = float(np.abs(found).max()) or 1.0
    for axes, channel, own in zip(every, channels, lanes, strict=True):
        _draw_channel(axes, series[channel], found[channel, :length] / scale)
        _draw_bars(axes, top, own)
        axes.set_ylabel(f"channel {channel}", fontsize="small")
        axes.tick_params(labelsize="small")
    every[-1].set_xlim(-0.5, (length - 0.5) * (1 + _ROOM))
    every[-1].set_xlabel("time (points)")
    every[-1].locator_params(axis="x", integer=True)
    target = explanation.classes[explanation.target[case]]
    hidden = "" if len(channels) == len(series) else f" ({len(channels)} of {len(series)} channels)"
    figure.suptitle(f"What spoke for class {target} in {name}{hidden}", fontsize="medium")
    whole, part = float(explanation.difference[case]), float(top["contribution"].sum())
    right.suptitle(
        f"logit {_signed(whole)} from its training mean,\n{_signed(part)} of it in the largest {len(top)} parts",
        fontsize="small",
    )
    _draw_rows(right.subplots(), top)
    _legend(left, len(top))
    return _saved(figure, Path(path))


def _shown(found: np.ndarray, top: pl.DataFrame) -> list[int]:
    """Return the channels that are drawn: those of the largest contributions first, then by their sum."""
    named = [channel for row in top["channels"].to_list() for channel in row[:1]]
    order = [*dict.fromkeys(named), *np.argsort(-np.abs(found).sum(axis=1), kind="stable").tolist()]
    return sorted(list(dict.fromkeys(order))[:_MOST_CHANNELS])


def _draw_channel(axes: Any, values: np.ndarray, shares: np.ndarray) -> None:
    """Draw a curve on a ground whose strength is what each point contributes."""
    edges = np.arange(len(values) + 1) - 0.5
    for is_against, color in ((False, _FOR), (True, _AGAINST)):
        strength = np.clip(-shares if is_against else shares, 0.0, 1.0)
        strength = np.where(strength < _FAINT, 0.0, strength)
        for first, last, height in _runs(strength):
            axes.axvspan(edges[first], edges[last], color=color, alpha=0.15 + 0.6 * height, linewidth=0)
        if is_against:
            for first, last, _ in _runs((strength > 0).astype(float)):
                axes.axvspan(
                    edges[first], edges[last], fill=False, hatch=_HATCH, edgecolor="0.45", linewidth=0
                )
    axes.plot(np.arange(len(values)), values, color="black", linewidth=1.0)


def _runs(values: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield first point, end and value of each stretch of equal values above 0."""
    ends = np.flatnonzero(np.diff(values)) + 1
    for first, last in zip([0, *ends], [*ends, len(values)], strict=True):
        if values[first] > 0:
            yield int(first), int(last), float(values[first])


def _lanes(top: pl.DataFrame, channel: int, length: int) -> dict[int, int]:
    """Return in which row above a channel's curve each of the largest contributions is drawn, by its rank."""
    ends, lanes = list[float](), dict[int, int]()
    for rank, row in enumerate(top.iter_rows(named=True), start=1):
        if channel in row["channels"]:
            free = [number for number, end in enumerate(ends) if end <= row["start"]]
            lanes[rank] = free[0] if free else len(ends)
            ends[lanes[rank] : lanes[rank] + 1] = [row["end"] + _ROOM * length]
    return lanes


def _draw_bars(axes: Any, top: pl.DataFrame, lanes: dict[int, int]) -> None:
    """Draw the spans of the largest contributions in a channel as numbered bars above the curve."""
    low, high = axes.get_ylim()
    step = _LANE / _CURVE * (high - low)
    for rank, lane in lanes.items():
        row = top.row(rank - 1, named=True)
        height = high + (lane + 0.5) * step
        style = "-" if row["contribution"] > 0 else ":"
        axes.plot(
            [row["start"] - 0.5, row["end"] - 0.5], [height, height], style, color="black", linewidth=1.5
        )
        axes.annotate(
            str(rank), (row["end"] - 0.5, height), (2, 0), textcoords="offset points", fontsize=7, va="center"
        )
    axes.set_ylim(low, high + len(set(lanes.values())) * step)


def _draw_rows(axes: Any, top: pl.DataFrame) -> None:
    """Draw the largest contributions as bars with what they are."""
    shares = top["contribution"].to_list()
    for place, share in enumerate(shares):
        color, hatch = (_FOR, "") if share > 0 else (_AGAINST, _HATCH)
        axes.barh(place, share, color=color, hatch=hatch, edgecolor="0.3", linewidth=0.5)
    names = [_row_name(rank, row) for rank, row in enumerate(top.iter_rows(named=True), start=1)]
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize="small")
    axes.set_xlabel("part of the logit", fontsize="small")


def _row_name(rank: int, row: dict[str, Any]) -> str:
    channels = row["channels"]
    where = f"channel {channels[0]}" if len(channels) == 1 else f"{len(channels)} channels"
    where = f"differences, {where}" if row["is_difference"] else where
    first, last = round(row["start"]), max(math.ceil(row["end"]) - 1, round(row["start"]))
    return f"{rank}. {row['kind']}, no. {row['number']}\n{where}, {first} to {last}"


def _legend(figure: Any, n_rows: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=_FOR, label="for"),
        Patch(facecolor=_AGAINST, hatch=_HATCH, edgecolor="0.45", label="against"),
        Line2D([], [], color="black", linewidth=1.5, label=f"1 to {n_rows}: span of a part for"),
        Line2D([], [], color="black", linewidth=1.5, linestyle=":", label="of a part against"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _saved(figure: Any, path: Path) -> Path:
    """Save a picture in the form that the ending of its path names."""
    kinds = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise DataError(f"{str(path)!r} ends like no picture. Endings: {', '.join(kinds)}.")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from None
    return path
