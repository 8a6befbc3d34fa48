"""Pictures of a study: its course, what mattered, settings side by side, and the choice between two objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqattn.report import new_figure, number
from seqattn.train.costs import COSTS

if TYPE_CHECKING:
    from seqattn.train.search import Outcome

__all__ = ["plot_bench", "plot_front", "plot_importance", "plot_parallel", "plot_trials"]

# An axis with this many different values shows them at equal distances.
_FEW = 6
# Positive numbers whose largest is this many times the smallest are shown on a logarithmic axis.
_WIDE = 30.0


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
        if state == "over a limit" and not chosen:
            continue
        numbers, values = [trial["number"] for trial in chosen], [trial["value"] for trial in chosen]
        axes.plot(numbers, np.maximum(values, floor), mark, color=color, label=f"{state} ({len(chosen)})")
        if state == "complete" and chosen:
            best = np.maximum(np.maximum.accumulate(values), floor)
            axes.step(numbers, best, where="post", color="C1", label="best so far")
    for trial in (trial for trial in trials if trial["value"] is not None):
        below = f"{number(trial['value'], 3)} ↓" if trial["value"] < floor else ""
        axes.annotate(f" {trial['name'] or ''} {below}", (trial["number"], max(trial["value"], floor)))
    axes.set_xlabel("trial")
    axes.set_ylabel(objective)
    axes.legend()
    figure.savefig(Path(path), dpi=120)
    return Path(path)


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
    figure.savefig(Path(path), dpi=120)
    return Path(path)


def _places(values: Sequence[Any]) -> tuple[list[float], dict[float, str]]:
    """Return where values lie on an axis from 0 to 1, and its marks."""
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    if len(distinct) <= _FEW or any(isinstance(value, str | bool) for value in distinct):
        spots = {value: (rank + 0.5) / len(distinct) for rank, value in enumerate(distinct)}
        return [spots[value] for value in values], {spot: number(value, 3) for value, spot in spots.items()}
    low, high = float(distinct[0]), float(distinct[-1])
    is_wide = low > 0 and high / low >= _WIDE
    heights = np.log(np.asarray(values, float)) if is_wide else np.asarray(values, float)
    shares = (heights - heights.min()) / (heights.max() - heights.min())
    marks = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low * (high / low) ** share if is_wide else low + (high - low) * share
        marks[share] = number(value, 2 if is_wide else 3)
    return shares.tolist(), marks


def plot_parallel(
    trials: Sequence[Mapping[str, Any]], path: str | Path, objective: str, settings: Sequence[str], best: int
) -> Path:
    """Draw each complete trial as a line through its settings to its objective, and save the picture as PNG.

    Numbers spread over more than a factor of thirty have a logarithmic axis; six values or fewer stand at equal
    distances.

    Parameters
    ----------
    trials
        Records as in :class:`seqattn.train.search.Outcome`.
    path
        File to write.
    objective
        What was maximised, with its unit.
    settings
        Names of the settings; those that not every complete trial has are left out.
    best
        Number of the trial that is drawn thick.

    Returns
    -------
    The path written.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    figure, axes = new_figure(whole=False)
    complete = [trial for trial in trials if trial["state"] == "complete"]
    names = [name for name in settings if all(trial.get(name) is not None for trial in complete)]
    figure.set_size_inches(max(8.0, 1.1 * len(names) + 3.0), 5.5)
    heights = []
    for place, name in enumerate([*names, "value"]):
        spots, marks = _places([trial[name] for trial in complete])
        heights.append(spots)
        axes.axvline(place, color="0.7", linewidth=0.8)
        for spot, text in marks.items():
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5}
            axes.text(place + 0.04, spot, text, fontsize=7, va="center", bbox=box, zorder=4)
    _lines(figure, axes, complete, np.asarray(heights), objective, best)
    axes.set_xticks(range(len(names) + 1), [*names, "objective"], rotation=25, ha="right")
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) + 0.5)
    axes.set_title(f"{len(complete)} complete trials of {len(trials)}", fontsize=10)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(Path(path), dpi=120)
    return Path(path)


def _lines(figure: Any, axes: Any, trials: Sequence[Any], heights: Any, objective: str, best: int) -> None:
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
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 1.1), ncols=2, fontsize=8, frameon=False)
    figure.colorbar(scale, ax=axes, label=objective, extend="min", pad=0.01)


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
    cost = outcome.second
    for state, mark, color in (("complete", "o", "0.6"), ("over a limit", "x", "C3")):
        chosen = [trial for trial in outcome.trials if _kind(trial) == state]
        if chosen:
            points = [trial[cost] for trial in chosen], [trial["value"] for trial in chosen]
            axes.plot(*points, mark, color=color, label=f"{state} ({len(chosen)})")
    front = [trial[cost] for trial in outcome.front], [trial["value"] for trial in outcome.front]
    axes.step(*front, "o-", color="C0", where="pre", label=f"beaten by none in both ({len(outcome.front)})")
    for trial in outcome.front:
        is_refitted = trial["number"] == outcome.best_trial
        text = f" {trial['number']}{' (refitted)' if is_refitted else ''}"
        axes.annotate(text, (trial[cost], trial["value"]), va="top")
    costs = [trial[cost] for trial in outcome.trials if trial.get(cost) is not None]
    if costs and min(costs) > 0 and math.log10(max(costs) / min(costs)) > 1:
        axes.set_xscale("log")
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel(objective)
    axes.legend()
    figure.savefig(Path(path), dpi=120)
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
    for name in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == name]
        lengths = [row["length"] for row in found]
        style = {"color": "black", "linestyle": "--"} if name == rows[0]["method"] else {"marker": "o"}
        axes[0].plot(lengths, [row["ratio"] for row in found], label=name, **style)
        axes[1].plot(lengths, [row["peak MB"] for row in found], label=name, **style)
    lengths = sorted({row["length"] for row in rows})
    for one, title in zip(axes, ("processor time / that of fused dense", "memory, MB"), strict=True):
        one.set(xscale="log", yscale="log", xlabel="tokens of a sequence", title=title)
        one.set_xticks(lengths, [f"{length:,}" for length in lengths])
        one.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    picture.savefig(Path(path), dpi=120)
    return Path(path)
