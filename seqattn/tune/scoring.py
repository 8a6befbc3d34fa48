"""How a trial gets its value: on development data by epochs, or without them by cross-validation, fold by fold."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

import seqattn
from seqattn.errors import ArtifactError, SeqattnWarning
from seqattn.train.costs import measure_cost
from seqattn.train.history import History
from seqattn.train.search import Plan
from seqattn.train.workers import is_orphan
from seqattn.tune.desk import Desk

__all__ = ["Course", "checkpoint_of", "score"]


def checkpoint_of(plan: Plan, number: int) -> Path:
    """Return the file from which a trial goes on after an interruption.

    Parameters
    ----------
    plan
        The plan of the search.
    number
        Number of the trial.
    """
    return Path(plan.output) / "trials" / f"{number}.safetensors"


class Course:
    """What a trial has reached after each step; tells the study of it, and ends a trial that falls behind.

    Parameters
    ----------
    plan, desk, trial
        The search, and the trial that runs.
    """

    def __init__(self, plan: Plan, desk: Desk, trial: optuna.Trial) -> None:
        self.plan = plan
        self._desk, self._trial = desk, trial
        # A trial that is run again has reported some steps already; equal seeds give equal values.
        self._known = dict(desk.trials()[trial.number].intermediate_values)
        self.values: dict[int, float] = {}

    def epoch(self, number: int, value: float) -> None:
        """Report the objective after an epoch; a worker whose first process is gone stops.

        Parameters
        ----------
        number
            Number of the epoch.
        value
            The objective after it; the best one so far counts.
        """
        self._tell(number, value)
        if self._desk.is_behind(self._trial):
            raise optuna.TrialPruned

    def fold(self, number: int, value: float) -> None:
        """Report the objective over the folds so far; a worker whose first process is gone stops.

        Parameters
        ----------
        number
            Number of the fold.
        value
            The objective over all folds up to it; it alone counts.
        """
        self._tell(number, value)
        if self._desk.is_below_median(self._trial, number, value):
            raise optuna.TrialPruned

    def _tell(self, step: int, value: float) -> None:
        stop_orphan()
        before = {number: known for number, known in self._known.items() if number < step}
        self.values = {**before, **self.values, step: value}
        if step not in self._known:
            self._desk.report(self._trial, step, value)


def stop_orphan() -> None:
    """End a worker whose first process is gone as if it had been interrupted."""
    if is_orphan():
        raise KeyboardInterrupt


class _Epochs:
    """An observer that tells the course of each epoch."""

    def __init__(self, course: Course, model: Any) -> None:
        self._course, self._model = course, model

    def _value(self, record: Mapping[str, Any]) -> float:
        task = seqattn.task(self._course.plan.task)
        return float(task.epoch_objective(self._model, record))

    def begin(self, settings: Any) -> None:
        """Nothing is to be done."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Tell the objective."""
        self._course.epoch(record["epoch"], self._value(record))

    def end(self, history: History) -> None:
        """Take in the epochs before an interruption too."""
        self._course.values = {record["epoch"]: self._value(record) for record in history.records}


class _Watch:
    """An observer that only looks whether the worker is still wanted: epochs of a fold are compared with nothing."""

    def begin(self, settings: Any) -> None:
        """Nothing is to be done."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Stop a worker whose first process is gone."""
        stop_orphan()

    def end(self, history: History) -> None:
        """Nothing is to be done."""


def score(
    plan: Plan, trial: optuna.Trial, parts: Mapping[str, Any], course: Course
) -> tuple[list[float] | None, dict[str, Any]]:
    """Fit what a trial asks for, and return its objectives and what else is noted of it.

    Parameters
    ----------
    plan
        The plan of the search.
    trial
        The trial.
    parts
        Data by role. Without ``"dev"`` the task divides the training data, see ``folds`` of its module.
    course
        Is told of each step.

    Returns
    -------
    The objectives, None if one of them is no number, and notes.
    """
    values = _by_epochs if "dev" in parts else _by_folds
    return _with_costs(plan, *values(plan, trial, parts, course))


def _build(plan: Plan, trial: optuna.Trial) -> Any:
    return plan.build(
        seqattn.task(plan.task), plan.space.trial, trial.params, trial.user_attrs.get("extra", {})
    )


def _by_epochs(
    plan: Plan, trial: optuna.Trial, parts: Mapping[str, Any], course: Course
) -> tuple[float, Any, Any]:
    task, model = seqattn.task(plan.task), _build(plan, trial)
    _fit(
        plan, model, parts["train"], parts["dev"], checkpoint_of(plan, trial.number), [_Epochs(course, model)]
    )
    return float(task.objective(model, parts["dev"])), model, parts["dev"]


def _by_folds(
    plan: Plan, trial: optuna.Trial, parts: Mapping[str, Any], course: Course
) -> tuple[float, Any, Any]:
    """Score every fold by a model that has not seen it; what is prepared from data is prepared in each fold anew."""
    task, train, checkpoint = seqattn.task(plan.task), parts["train"], checkpoint_of(plan, trial.number)
    kept = checkpoint.with_suffix(".json")
    tallies: list[dict[str, float]] = _kept(kept)
    model = held_out = None
    for number, (learned, predicted) in enumerate(task.folds(train, plan.seed), 1):
        held_out = train.select(predicted)
        if number > len(tallies):
            model = _build(plan, trial)
            _fit(plan, model, train.select(learned), None, checkpoint, [_Watch()])
            tallies.append(task.tally(model, held_out))
            checkpoint.unlink(missing_ok=True)
            kept.write_text(json.dumps(tallies), encoding="utf-8")
        course.fold(number, task.objective_of(tallies[:number]))
    return task.objective_of(tallies), model, held_out


def _kept(path: Path) -> list[dict[str, float]]:
    """Return the folds that were finished before an interruption; the last one is run again, for its model."""
    try:
        found: list[dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found[:-1]


def _fit(plan: Plan, model: Any, train: Any, dev: Any, checkpoint: Path, observers: Sequence[Any]) -> None:
    """Fit, going on from the checkpoint if this machine has one that fits."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    has_begun = checkpoint.exists()
    fit = seqattn.task(plan.task).fit
    with warnings.catch_warnings():
        # They concern the data, and each trial would repeat them.
        warnings.simplefilter("ignore", SeqattnWarning)
        try:
            fit(model, train, dev, checkpoint=checkpoint, observers=observers)
        except ArtifactError:
            if not has_begun:
                raise
            # Damaged, or left by another study in this folder.
            checkpoint.unlink(missing_ok=True)
            fit(model, train, dev, checkpoint=checkpoint, observers=observers)


def _with_costs(
    plan: Plan, value: float, model: Any, held_out: Any
) -> tuple[list[float] | None, dict[str, Any]]:
    """Return the objectives, and what the model costs as a note."""
    task, values = seqattn.task(plan.task), [value]
    names = dict.fromkeys([*plan.limits, *([plan.second] if plan.second else [])])
    costs = {name: measure_cost(task, model, held_out, name) for name in names}
    if plan.second:
        values.append(costs[plan.second])
    if not all(map(math.isfinite, values)):
        return None, {"reason": f"The objective is {values[0]}."}
    return values, {"costs": costs} if costs else {}
