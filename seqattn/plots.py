"""Pictures of a study: its course, what mattered, settings side by side, and the choice between two objectives."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqattn.report import new_figure, number
from seqattn.train.costs import COSTS

if TYPE_CHECKING:
    from seqattn.train.search import Outcome

__all__ = ["plot_bench", "plot_front", "plot_importance", "plot_parallel", "plot_patterns", "plot_trials"]

# An axis with this many different values shows them at equal distances.
_FEW = 6
# Dots per inch.
_DOTS = 120
# Longest name of a starting point that is written in full.
_LONG = 24
# Places of a text beside a point, in the order in which they are tried: to the right or left, above or below.
_CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def _kind(trial: Mapping[str, Any]) -> str:
    is_over = trial["state"] == "complete" and not trial.get("feasible", True)
    return "over a limit" if is_over else str(trial["state"])


def plot_trials(trials: Sequence[Mapping[str, Any]], path: str | Path, objective: str) -> Path:
    """Draw the objective of each trial of a study and the best so far, and save the picture as PNG.

    Parameters
    ----------
    trials
        Records as in :class:`seqattn.train.search.Outcome`.
    path
        File to write.
    objective
        What was maximised, with its unit.

    Returns
    -------
    The path written.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    figure, axes = new_figure()
    complete = [trial["value"] for trial in trials if trial["state"] == "complete"] or [0.0]
    # A setting that fails badly must not squeeze all others into one line: it is drawn at the lower edge.
    low, high = float(np.quantile(complete, 0.25)), max(complete)
    floor = low - 1.5 * (high - low) if high > low else min(complete)
    for state, mark, color in (("complete", "o", "C0"), ("pruned", "x", "0.6"), ("over a limit", "s", "C3")):
        chosen = [trial for trial in trials if _kind(trial) == state and trial["value"] is not None]
        if not chosen:
            continue
        numbers, values = [trial["number"] for trial in chosen], [trial["value"] for trial in chosen]
        axes.plot(numbers, np.maximum(values, floor), mark, color=color, label=f"{state} ({len(chosen)})")
        if state == "complete":
            best = np.maximum(np.maximum.accumulate(values), floor)
            axes.step(numbers, best, where="post", color="C1", label="best so far")
    if n_failed := sum(trial["state"] == "fail" for trial in trials):
        axes.plot([], [], " ", label=f"failed ({n_failed})")
    axes.set_xlabel("trial")
    axes.set_ylabel(objective)
    axes.margins(0.08)
    axes.set_xlim(-0.5, max([1, *(trial["number"] for trial in trials)]) + 0.5)
    axes.ticklabel_format(axis="y", useOffset=False)
    figure.legend(loc="outside upper center", ncols=5)
    _label(figure, axes, [_tag(trial, floor) for trial in trials if trial["value"] is not None])
    figure.savefig(Path(path), dpi=_DOTS)
    return Path(path)


def _tag(trial: Mapping[str, Any], floor: float) -> tuple[str, tuple[float, float]]:
    """Return the name of a trial, its value if it lies below the picture, and where that is written."""
    name = textwrap.shorten(str(trial["name"] or ""), _LONG, placeholder="...")
    name = name if name != "..." else f"{str(trial['name'])[: _LONG - 3]}..."
    below = f"{number(trial['value'], 3)} ↓" if trial["value"] < floor else ""
    return f"{name} {below}".strip(), (trial["number"], max(trial["value"], floor))


def _label(figure: Any, axes: Any, labels: Sequence[tuple[str, tuple[float, float]]]) -> None:
    """Write texts beside points where they neither overlap nor leave the axes; what has no place is left out."""
    figure.set_dpi(_DOTS)
    figure.draw_without_rendering()
    frame, taken = axes.bbox, list[Any]()
    for text, point in labels:
        for right, up in _CORNERS if text else ():
            note = axes.annotate(
                text,
                point,
                (4 * right, 4 * up),
                textcoords="offset points",
                ha="left" if right > 0 else "right",
                va="bottom" if up > 0 else "top",
                fontsize=8,
            )
            box = note.get_window_extent().padded(
                2.0
            )  # it is saved with other dots, which letters are fitted to
            is_inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            if is_inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()


def plot_importance(importance: Mapping[str, float], path: str | Path) -> Path:
    """Draw how much each searched setting matters, and save the picture as PNG.

    Parameters
    ----------
    importance
        Share of each setting in the spread of the objective.
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
    figure, axes = new_figure(whole=False)
    names = sorted(importance, key=lambda name: importance[name])
    bars = axes.barh(names, [importance[name] for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel("importance (share of the spread of the objective)")
    axes.margins(x=0.1)
    figure.savefig(Path(path), dpi=_DOTS)
    return Path(path)


def _texts(values: Sequence[Any], digits: int = 3) -> list[str]:
    """Return values as short texts, with as many digits as it takes to tell them apart."""
    for more in range(digits, 12):
        texts = [number(value, more) for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts


def _places(values: Sequence[Any], rule: Mapping[str, Any]) -> tuple[list[float], dict[float, str]]:
    """Return where the values of a setting lie on an axis from 0 to 1, and its marks, by the rule of the search."""
    is_word = any(not isinstance(value, int | float) or isinstance(value, bool) for value in values)
    # Lists are values too, and cannot be sorted or looked up.
    distinct = list({str(value) if is_word else value: value for value in values}.values())
    distinct.sort(key=number if is_word else float)
    if is_word or len(distinct) <= _FEW:
        marks = {(rank + 0.5) / len(distinct): text for rank, text in enumerate(_texts(distinct))}
        spots = list(marks)
        return [spots[distinct.index(value)] for value in values], marks
    low, high, is_log = float(distinct[0]), float(distinct[-1]), bool(rule.get("log"))
    heights = np.log(np.asarray(values, float)) if is_log else np.asarray(values, float)
    places = (heights - heights.min()) / (heights.max() - heights.min())
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    ticks = [low * (high / low) ** share if is_log else low + (high - low) * share for share in shares]
    return places.tolist(), dict(zip(shares, _texts(ticks, 2 if is_log else 3), strict=True))


def plot_parallel(outcome: Outcome, path: str | Path, objective: str) -> Path:
    """Draw each complete trial as a line through its settings to its objective, and save the picture as PNG.

    Numbers have a logarithmic axis if they were searched on one; words, and six numbers or fewer, stand at equal
    distances. Settings that not every complete trial has are left out.

    Parameters
    ----------
    outcome
        What a study found: at least one complete trial. The one that was refitted, if any, is drawn thick.
    path
        File to write.
    objective
        What was maximised, with its unit.

    Returns
    -------
    The path written.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    figure, axes = new_figure(whole=False)
    complete = [trial for trial in outcome.trials if trial["state"] == "complete"]
    settings = dict.fromkeys([*outcome.rules, *outcome.best_params])
    names = [name for name in settings if all(trial.get(name) is not None for trial in complete)]
    figure.set_size_inches(max(8.0, 1.1 * len(names) + 3.0), 5.5)
    heights = []
    for place, name in enumerate([*names, "value"]):
        spots, marks = _places([trial[name] for trial in complete], outcome.rules.get(name, {}))
        heights.append(spots)
        axes.axvline(place, color="0.7", linewidth=0.8)
        for spot, text in marks.items():
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5}
            axes.text(place + 0.04, spot, text, fontsize=7, va="center", bbox=box, zorder=4)
    _lines(figure, axes, complete, np.asarray(heights), objective, outcome.best_trial)
    axes.set_xticks(range(len(names) + 1), [*names, "objective"], rotation=25, ha="right")
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlim(-0.1, len(names) + 0.5)
    trials = "trial" if len(complete) == 1 else "trials"
    axes.set_title(f"{len(complete)} complete {trials} of {len(outcome.trials)}", fontsize=10)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(Path(path), dpi=_DOTS)
    return Path(path)


def _lines(
    figure: Any, axes: Any, trials: Sequence[Any], heights: Any, objective: str, best: int | None
) -> None:
    """Draw a line per trial in the colour of its objective; the worst quarter shares one colour."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = [trial["value"] for trial in trials]
    low, high = float(np.quantile(values, 0.25)), max(values)
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1.0), colormaps["viridis_r"])
    for column, trial in enumerate(trials):
        is_best, is_over = trial["number"] == best, _kind(trial) == "over a limit"
        axes.plot(
            range(len(heights)),
            heights[:, column],
            color="C3" if is_best else "0.8" if is_over else scale.to_rgba(trial["value"]),
            linewidth=2.5 if is_best else 1.0,
            linestyle="--" if is_over else "-",
            zorder=3 if is_best else 2,
            label=f"trial {best}, refitted" if is_best else None,
        )
    if any(_kind(trial) == "over a limit" for trial in trials):
        axes.plot([], [], "--", color="0.8", label="over a limit")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    if high > low:
        bar = figure.colorbar(scale, ax=axes, label=objective, extend="min", pad=0.01)
        bar.formatter.set_useOffset(False)


def plot_front(outcome: Outcome, path: str | Path, objective: str) -> Path:
    """Draw the objective of the complete trials against the second one, with those that none beats in both.

    Parameters
    ----------
    outcome
        What a study with a second objective found.
    path
        File to write, as PNG.
    objective
        What was maximised, with its unit.

    Returns
    -------
    The path written.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    figure, axes = new_figure(whole=False)
    from matplotlib.ticker import LogLocator, NullFormatter

    cost = outcome.second
    for state, mark, color in (("complete", "o", "0.6"), ("over a limit", "x", "C3")):
        chosen = [trial for trial in outcome.trials if _kind(trial) == state]
        if chosen:
            points = [trial[cost] for trial in chosen], [trial["value"] for trial in chosen]
            axes.plot(*points, mark, color=color, label=f"{state} ({len(chosen)})")
    front = [trial[cost] for trial in outcome.front], [trial["value"] for trial in outcome.front]
    axes.step(*front, "o-", color="C0", where="pre", label=f"beaten by none in both ({len(outcome.front)})")
    costs = [trial[cost] for trial in outcome.trials if trial.get(cost) is not None]
    if costs and min(costs) > 0 and math.log10(max(costs) / min(costs)) > 1:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, place: number(value, 3))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel(objective)
    axes.margins(0.08)
    figure.legend(loc="outside upper center", ncols=3)
    # The refitted one first, which is sure of a place.
    front_first = sorted(outcome.front, key=lambda trial: trial["number"] != outcome.best_trial)
    labels = [(str(trial["number"]), (trial[cost], trial["value"])) for trial in front_first]
    if front_first and front_first[0]["number"] == outcome.best_trial:
        labels[0] = (f"{labels[0][0]} (refitted)", labels[0][1])
    _label(figure, axes, labels)
    figure.savefig(Path(path), dpi=_DOTS)
    return Path(path)


def plot_bench(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw time over that of the fused dense call, and memory, against the length, and return the path.

    Parameters
    ----------
    rows
        What :func:`seqattn.benchmark.rows` returned.
    path
        File that ends in .png, .pdf or .svg.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    picture, _ = new_figure()
    picture.clear()
    picture.set_size_inches(11, 4.5)
    axes = picture.subplots(1, 2)
    several = len({row["width"] for row in rows}) > 1
    for name, width in dict.fromkeys((row["method"], row["width"]) for row in rows):
        found = [row for row in rows if (row["method"], row["width"]) == (name, width)]
        lengths = [row["length"] for row in found]
        style = {"color": "black", "linestyle": "--"} if name == rows[0]["method"] else {"marker": "o"}
        label = f"{name}, width {width}" if several else name
        axes[0].plot(lengths, [row["ratio"] for row in found], label=label, **style)
        axes[1].plot(lengths, [row["peak MB"] for row in found], label=label, **style)
    lengths = sorted({row["length"] for row in rows})
    for one, title in zip(axes, ("processor time / that of fused dense", "memory, MB"), strict=True):
        one.set(xscale="log", yscale="log", xlabel="tokens of a sequence", title=title)
        one.set_xticks(lengths, [f"{length:,}" for length in lengths])
        one.set_xticks([], minor=True)
        one.grid(alpha=0.3)
    axes[1].set_yscale("symlog", linthresh=1)  # small calls take no memory that shows
    axes[1].set_ylim(0, 1.5 * max(2, *(row["peak MB"] for row in rows)))
    picture.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    picture.savefig(Path(path), dpi=120)
    return Path(path)


def plot_patterns(rows: Sequence[Mapping[str, Any]], unit: str, path: str | Path) -> Path:
    """Draw the quality of each attention pattern against its time, one panel per data set, and return the path.

    Parameters
    ----------
    rows
        What :func:`seqattn.reproduce.patterns.pattern_rows` returned.
    unit
        What the quality is, with its unit.
    path
        File that ends in .png, .pdf or .svg.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    picture, _ = new_figure()
    picture.clear()
    picture.set_size_inches(5.5 * len(datasets), 4.5)
    colours = {
        pattern: f"C{place}" for place, pattern in enumerate(dict.fromkeys(row["pattern"] for row in rows))
    }
    for one, dataset in zip(picture.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):
        for row in (row for row in rows if row["dataset"] == dataset):
            colour = colours[row["pattern"]]
            one.errorbar(row["seconds"], row["mean"], yerr=row["std"], fmt="o", capsize=3, color=colour)
        one.set(xlabel="seconds of training and evaluation", ylabel=unit, title=dataset)
        one.ticklabel_format(useOffset=False)
        one.margins(x=0.1, y=0.1)
        one.set_xlim(left=0)
        one.grid(alpha=0.3)
    marks = [
        picture.axes[0].scatter([], [], color=colour, label=pattern) for pattern, colour in colours.items()
    ]
    picture.legend(handles=marks, fontsize=8, loc="outside lower center")
    picture.savefig(Path(path), dpi=120)
    return Path(path)
