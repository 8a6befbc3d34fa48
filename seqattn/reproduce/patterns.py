"""The same model with one attention pattern after the other: quality, time and memory, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from seqattn.attention.named import as_pattern
from seqattn.errors import ParameterError
from seqattn.reproduce.grid import DataSet, Grid, Model, nouns
from seqattn.reproduce.run import Reproduction
from seqattn.reproduce.statistics import paired
from seqattn.reproduce.summary import Summary

__all__ = ["pattern_grid", "pattern_rows"]


def pattern_grid(task: str, datasets: Sequence[str], patterns: Sequence[str]) -> Grid:
    """Return the grid that fits the main model of a task with one attention pattern after the other.

    Parameters
    ----------
    task
        Name of a task with a table, whose metrics and protocol are taken.
    datasets
        Known names, files or folders.
    patterns
        Values of the model's argument ``attention``. The others are compared with the first.

    Raises
    ------
    ParameterError
        The task has no table, a pattern is not known, or a name is missing or given twice.

    Examples
    --------
    >>> [model.settings["attention"] for model in pattern_grid("hawkes", ["taxi"], ["dense", "local"]).models]
    ['dense', 'local']
    """
    tables = {grid.task: grid for grid in map(Grid.of, nouns())}
    if task not in tables:
        raise ParameterError(f"There is no table for the task {task!r}. Tasks: {', '.join(tables)}.")
    for what, names in (("data set", datasets), ("pattern", patterns)):
        if not names:
            raise ParameterError(f"No {what} is given. Give at least one.")
        twice = [name for name in names if list(names).count(name) > 1]
        if twice:
            raise ParameterError(f"The {what} {twice[0]!r} is given twice. Give each once.")
    for pattern in patterns:
        as_pattern(pattern)
    table = tables[task]
    usual = next(model for model in table.models if model.name == table.reference)
    return replace(
        table,
        title=f"Attention patterns of {table.reference}: {table.metrics[0].title}",
        reference=patterns[0],
        models=tuple(
            Model(name, usual.model, usual.preset, {**usual.settings, "attention": name}) for name in patterns
        ),
        datasets=tuple(DataSet(name) for name in datasets),
        published=(),
    )


def pattern_rows(result: Reproduction) -> list[dict[str, Any]]:
    """Return one row per data set and pattern.

    Parameters
    ----------
    result
        What was run for a :func:`pattern_grid`.

    Returns
    -------
    Rows with ``dataset``, ``pattern``, ``mean`` and ``std`` over seeds of the first metric, ``n_seeds``,
    ``difference`` to the first pattern with its 95 % interval ``low`` to ``high`` (bootstrap over test cases), and
    medians over seeds: ``seconds`` of training and evaluation, ``memory_mb`` above that before the fit.
    """
    summary = Summary(result)
    rows = [
        _row(summary, dataset, model.name) for dataset in summary.datasets for model in summary.grid.models
    ]
    return [row for row in rows if row["n_seeds"]]


def _row(summary: Summary, dataset: str, pattern: str) -> dict[str, Any]:
    found = summary.of(dataset, pattern)
    records = _records(summary.result, dataset, pattern)
    row: dict[str, Any] = {"dataset": dataset, "pattern": pattern}
    row |= {"mean": found and found.mean, "std": found and found.std, "n_seeds": found.n if found else 0}
    row |= _difference(records, _records(summary.result, dataset, summary.grid.reference), pattern)
    row |= {name: _median(records, name) for name in ("seconds", "memory_mb")}
    return row


def _records(result: Reproduction, dataset: str, pattern: str) -> list[dict[str, Any]]:
    return [one for one in result.complete if (one["dataset"], one["model"]) == (dataset, pattern)]


def _difference(
    records: Sequence[Mapping[str, Any]], usual: Sequence[Mapping[str, Any]], pattern: str
) -> dict[str, float | None]:
    """Return the mean over the seeds that both have, less that of the first pattern, case by case."""
    cases = [{one["seed"]: one["cases"] for one in each if one["cases"]} for each in (records, usual)]
    both = sorted(cases[0].keys() & cases[1].keys())
    if not both or (usual and usual[0]["model"] == pattern):
        return {"difference": None, "low": None, "high": None}
    first, second = (np.mean([each[seed]["totals"] for seed in both], axis=0) for each in cases)
    found = paired(first, second, np.asarray(cases[0][both[0]]["counts"]))
    return {"difference": found.difference, "low": found.low, "high": found.high}


def _median(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [one[name] for one in records if one.get(name) is not None]
    return median(values) if values else None
