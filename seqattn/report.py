"""What a person reads: tables, texts and pictures of results, and facts on machine and data sets."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from seqattn.data import catalog
from seqattn.errors import DataError, MissingDependencyError
from seqattn.train.config import json_ready, versions
from seqattn.train.costs import COSTS
from seqattn.train.history import History, history_of

if TYPE_CHECKING:
    from seqattn.data.known import Entry
    from seqattn.train.config import Run
    from seqattn.train.search import Outcome

__all__ = [
    "dataset_facts",
    "evaluation_text",
    "facts_text",
    "fit_figures",
    "fit_text",
    "json_ready",
    "machine",
    "new_figure",
    "number",
    "plot_training",
    "study_text",
    "table",
    "to_json",
    "versions",
    "write_table",
]

_EXTRAS = {"plot": ("matplotlib",), "dask": ("distributed",), "postgres": ("psycopg",)}


def number(value: Any, digits: int = 4) -> str:
    """Return a value as short text: numbers with a few significant digits, whole numbers in full, nothing as "-".

    Parameters
    ----------
    value
        Anything; numpy's numbers are taken as Python's.
    digits
        Significant digits of numbers that are not whole.

    Examples
    --------
    >>> [number(value) for value in (0.123456, -123456.7, 1e-12, 12, None, True, "SAHP")]
    ['0.1235', '-123,457', '1.000e-12', '12', '-', 'yes', 'SAHP']
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if 10.0**digits <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if value == 0 or 1e-4 <= abs(value) < 1e9 else f"{value:.{digits - 1}e}"


def _column(values: Sequence[Any], digits: int) -> list[str]:
    """Return values as texts, the numbers among them with equal decimals if their sizes allow that."""
    sizes = [
        abs(float(value)) for value in values if isinstance(value, float) and math.isfinite(value) and value
    ]
    exponents = [math.floor(math.log10(size)) for size in sizes]
    if not exponents or min(exponents) < -4 or max(exponents) >= digits:
        return [number(value, digits) for value in values]
    decimals = digits - max(*exponents, 0)
    return [
        f"{value:.{decimals}f}"
        if isinstance(value, float) and math.isfinite(value)
        else number(value, digits)
        for value in values
    ]


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], digits: int = 4) -> str:
    """Return a table of text with aligned columns: text to the left, numbers to the right.

    Parameters
    ----------
    headers
        Titles of the columns.
    rows
        Values by row, as many as there are titles.
    digits
        Significant digits of numbers that are not whole.

    Examples
    --------
    >>> print(table(["model", "value"], [["SAHP", 0.25], ["poisson", -1.5]]))
    model      value
    -------  -------
    SAHP      0.2500
    poisson  -1.5000
    """
    rows = [list(row) for row in rows]
    columns = []
    for place, header in enumerate(headers):
        values = [row[place] for row in rows]
        texts = _column(values, digits)
        width = max(len(header), *map(len, texts), 1)
        is_text = any(isinstance(value, str) for value in values) or not values
        cells = [header, "-" * width, *texts]
        columns.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def to_json(value: Any) -> str:
    """Return a value as JSON text that every reader accepts.

    Parameters
    ----------
    value
        Anything that :func:`seqattn.train.config.json_ready` takes; numbers that are not finite become null.
    """
    return json.dumps(json_ready(value), indent=2, ensure_ascii=False, allow_nan=False)


def write_table(path: str | Path | None, headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV text with all digits, and write it to a file if one is named.

    Parameters
    ----------
    path
        The file; None writes none.
    headers
        Titles of the columns.
    rows
        Values by row; None is an empty cell.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([headers, *rows])
    if path is not None:
        Path(path).write_text(text.getvalue(), encoding="utf-8")
    return text.getvalue()


def new_figure(whole: bool = True) -> tuple[Any, Any]:
    """Return a figure with its axes, apart from the state of pyplot.

    Parameters
    ----------
    whole
        Whether the first axis is marked at whole numbers only.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def plot_training(history: History, path: str | Path, unit: str = "nats per event", title: str = "") -> Path:
    """Draw training and held-out loss by epoch, with the best epoch marked, and save the picture as PNG.

    Parameters
    ----------
    history
        What happened in each epoch.
    path
        File to write.
    unit
        Unit of the loss.
    title
        Text above the picture.

    Returns
    -------
    The path written.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    figure, axes = new_figure()
    epochs = [record["epoch"] for record in history.records]
    marker = "o" if len(epochs) < 3 else ""
    for key, label in (("train_loss", "training"), ("valid_loss", "held out")):
        losses = [record[key] for record in history.records]
        if any(loss is not None for loss in losses):
            axes.plot(epochs, losses, marker=marker, label=label)
    if history.best_epoch is not None:
        best = history.records[history.best_epoch - 1]["valid_loss"]
        axes.plot(history.best_epoch, best, "k*", markersize=12, label=f"best: epoch {history.best_epoch}")
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"loss ({unit})")
    axes.set_title(title)
    axes.legend()
    figure.savefig(Path(path), dpi=120)
    return Path(path)


def evaluation_text(task: ModuleType, evaluation: Mapping[str, Any], name: str, what: str) -> str:
    """Return the table of an evaluation below a line that says what its figures mean.

    Parameters
    ----------
    task
        Module of the task.
    evaluation
        What the task's ``evaluate`` returned.
    name
        How the model is called in the table.
    what
        Which data it is about.
    """
    text = f"{what}. {task.caption(evaluation)}\n\n{table(*task.summary_rows(evaluation, name))}"
    headers, rows = task.detail_rows(evaluation) if hasattr(task, "detail_rows") else ([], [])
    return f"{text}\n\n{table(headers, rows)}" if rows else text


def fit_figures(task: ModuleType, model: Any, dev: Any, run: Run) -> dict[str, Any]:
    """Return what is told of a fit as JSON values: its epochs, and every metric on held-out data.

    Parameters
    ----------
    task
        Module of the task.
    model
        The fitted estimator.
    dev
        Held-out data, or None.
    run
        What was run.
    """
    history = history_of(model)
    figures: dict[str, Any] = json_ready(
        {
            "task": run.task,
            "model": run.model,
            "data": run.data,
            "epochs": len(history.records) if history else None,
            "best_epoch": history.best_epoch if history else None,
            "stopped_early": history.stopped_early if history else None,
            "validation": task.held_out(model, dev),
        }
    )
    return figures


def facts_text(facts: Mapping[str, Any], indent: str = "") -> str:
    """Return nested facts as indented lines.

    Parameters
    ----------
    facts
        Values by name: texts, numbers, lists, and mappings of the same kind.
    indent
        What each line begins with.

    Examples
    --------
    >>> print(facts_text({"name": "taxi", "sizes": {"train": 1400}}))
    name: taxi
    sizes:
      train: 1,400
    """
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}:", facts_text(value, indent + "  ")]
        else:
            text = ", ".join(map(number, value)) if isinstance(value, list | tuple) else number(value)
            lines.append(f"{indent}{name}: {text}")
    return "\n".join(lines)


def fit_text(task: ModuleType, figures: Mapping[str, Any], model: Path) -> str:
    """Return what a person is told of a fit.

    Parameters
    ----------
    task
        Module of the task.
    figures
        ``validation``, ``model``, ``best_epoch`` and ``epochs`` of the run.
    model
        Where the model was saved.
    """
    lines = ["Nothing was held out, so there are no figures."]
    if figures["validation"] is not None:
        held_out = "Held-out cases" if "protocol" in figures["validation"] else "Development data"
        lines = [evaluation_text(task, figures["validation"], figures["model"], held_out), ""]
    if figures["best_epoch"] is not None:
        lines.append(f"Best epoch: {figures['best_epoch']} of {figures['epochs']}.")
    return "\n".join([*lines, f"Model: {model}"])


def study_text(task: ModuleType, outcome: Outcome) -> str:
    """Return what a person is told of a study: starting points beside the best, its test figures, and the files.

    Parameters
    ----------
    task
        Module of the task.
    outcome
        What the study found.
    """
    rows = [
        [
            trial["name"],
            trial["number"],
            trial["value"] if trial["state"] == "complete" else None,
            trial["state"],
        ]
        for trial in outcome.trials
        if trial["name"] is not None
    ]
    rows.append(["best", outcome.best_trial, outcome.best_value, "complete"])
    counts = f"{outcome.n_complete} complete, {outcome.n_pruned} pruned, {outcome.n_failed} failed"
    if outcome.n_infeasible:
        counts += f"; {outcome.n_infeasible} of the complete ones above a limit"
    best = ", ".join(f"{name}={number(value)}" for name, value in outcome.best_params.items())
    files = {"Model": "best/model.safetensors", "Settings": "best.toml", "Trials": "trials.csv"}
    pictures = [f"Plot: {path}" for path in sorted(outcome.output.rglob("*.png"))]
    parts = [
        f"Study {outcome.study!r}: {outcome.n_trials} trials ({counts}). Objective: {task.OBJECTIVE}:",
        table(["settings", "trial", "value", "state"], rows),
        *([_front_text(outcome)] if outcome.second else []),
        f"Best: {best}",
        evaluation_text(task, outcome.test, "best, refitted", "Test data"),
        "\n".join([f"{what}: {outcome.output / name}" for what, name in files.items()] + pictures),
    ]
    return "\n\n".join(parts)


def _front_text(outcome: Outcome) -> str:
    rows = [[trial["number"], trial["value"], trial[outcome.second]] for trial in outcome.front]
    headers = ["trial", "value", COSTS[outcome.second]]
    return f"Beaten by none in both objectives (--choose N refits another):\n{table(headers, rows)}"


def machine() -> dict[str, Any]:
    """Return versions, extras, devices, threads, and where data are looked for and found."""
    import torch

    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    extras = {
        name: "installed"
        if all(map(util.find_spec, needed))
        else f"not installed: pip install 'seqattn[{name}]'"
        for name, needed in _EXTRAS.items()
    }
    known = {
        "versions": versions(),
        "extras": extras,
        "platform": platform.platform(),
        "devices": ["cpu", *gpus],
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }
    try:
        places = {
            family: {p.origin: str(p.path) for p in catalog.searched(family)} for family in catalog.FAMILIES
        }
    except DataError as error:
        return {**known, "data": str(error)}
    found = {entry.name: _found(entry)[0] for entry in catalog.entries()}
    return {**known, "folders": places, "data": found}


def _found(entry: Entry) -> tuple[str | None, str | None]:
    """Return in which of the places a data set is, and its folder there; None if it is not on this machine."""
    try:
        place = catalog.find(entry.name, entry.family)
    except DataError:
        return None, None
    return place.origin, str(place.path)


def dataset_facts(name: str) -> dict[str, Any]:
    """Return what is known of a data set: description, sizes, licence, source, and where it is.

    Parameters
    ----------
    name
        Its name or an alias.

    Raises
    ------
    DataError
        There is no such data set; the nearest name is suggested.
    """
    entry = catalog.entry(name)
    origin, path = _found(entry)
    return {
        **{key: getattr(entry, key) for key in ("name", "family", "title")},
        **entry.facts(),
        **{key: getattr(entry, key) for key in ("source", "licence", "notes")},
        "labels": entry.n_labels,
        "sizes": {role: part.sizes() for role, part in entry.parts.items()},
        "counts": {role: part.count for role, part in entry.parts.items()},
        "found": origin,
        "path": path,
        "how_to_get": None if origin else catalog.how_to_get(entry),
        "downloadable": entry.is_downloadable,
    }
