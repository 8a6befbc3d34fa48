"""What is told of the trials of a study: in a line when one ends, in a table at the end, and in the front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from seqattn.train.costs import cost_text

__all__ = [
    "best_of",
    "epochs_of",
    "extra_of",
    "first_value",
    "front_of",
    "is_feasible",
    "line_of",
    "record_of",
]

_NOTES = ("name", "epochs", "best_epoch", "seconds", "same_as", "reason")


def first_value(trial: FrozenTrial) -> float:
    """Return what is maximised; minus infinity for a trial without a value.

    Parameters
    ----------
    trial
        A trial of the study.
    """
    return trial.values[0] if trial.values else -math.inf


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial keeps every limit.

    Parameters
    ----------
    trial
        A trial of the study.
    """
    return all(excess <= 0 for excess in trial.constraints.values())


def extra_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the settings of a trial that are not searched.

    Parameters
    ----------
    trial
        A trial of the study.
    """
    return trial.user_attrs.get("extra", {})


def epochs_of(trial: FrozenTrial) -> int:
    """Return the last epoch that a trial has told of; 0 if none.

    Parameters
    ----------
    trial
        A trial of the study.
    """
    return max([trial.user_attrs.get("epochs", 0), *trial.intermediate_values])


def best_of(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial with the highest first objective among those that are complete and keep the limits.

    Parameters
    ----------
    trials
        Trials of the study.
    """
    good = [trial for trial in trials if trial.state == TrialState.COMPLETE and is_feasible(trial)]
    return max(good, key=lambda trial: (first_value(trial), -trial.number), default=None)


def line_of(trial: FrozenTrial, limits: Mapping[str, float]) -> str:
    """Return how a trial ended.

    Parameters
    ----------
    trial
        A trial that has ended.
    limits
        The most that a model may cost.
    """
    notes = trial.user_attrs
    ended = {
        TrialState.COMPLETE: f"{first_value(trial):.4f}{_costs(trial, limits)}",
        TrialState.PRUNED: f"pruned at {first_value(trial):.4f} after {_step(trial)}",
        TrialState.FAIL: f"failed: {notes.get('reason')}",
    }[trial.state]
    name = f" ({notes['name']})" if "name" in notes else ""
    twin = f" as trial {notes['same_as']}, which has the same settings" if "same_as" in notes else ""
    return f"trial {trial.number}{name}: {ended}{twin}, {notes.get('seconds', 0):.0f} s"


def _step(trial: FrozenTrial) -> str:
    return f"{'fold' if 'folds' in trial.user_attrs else 'epoch'} {trial.user_attrs.get('epochs')}"


def _costs(trial: FrozenTrial, limits: Mapping[str, float]) -> str:
    over = {name: f" (over the limit {limits[name]:g})" for name in limits}
    return "".join(
        f", {cost_text(name, cost)}{over.get(name, '') if trial.constraints.get(name, 0) > 0 else ''}"
        for name, cost in trial.user_attrs.get("costs", {}).items()
    )


def record_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return a row of the table of trials.

    Parameters
    ----------
    trial
        A trial that has ended.

    Returns
    -------
    As in :class:`seqattn.train.search.Outcome`. Only a complete trial is feasible or not.
    """
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.values[0] if trial.values else None,
        "feasible": is_feasible(trial) if trial.state == TrialState.COMPLETE else None,
        **trial.user_attrs.get("costs", {}),
        **{key: trial.user_attrs.get(key) for key in _NOTES},
        **trial.params,
        **extra_of(trial),
    }


def front_of(trials: Iterable[FrozenTrial], second: str) -> list[dict[str, Any]]:
    """Return the trials that none beats in both objectives, the best of the first one first.

    Parameters
    ----------
    trials
        Those that Optuna finds; of trials with the same settings only the one that was run is kept.
    second
        The second objective.
    """
    front = [trial for trial in trials if "same_as" not in trial.user_attrs]
    return [
        {"number": trial.number, "value": trial.values[0], second: trial.values[1]}
        for trial in sorted(front, key=lambda trial: (-first_value(trial), trial.number))
    ]
