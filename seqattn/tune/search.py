"""The search itself: trials are run, here or in processes of their own, and the best settings refitted and tested.

The trials of a study are numbered; those with a number below the total run, each once. A trial whose process is gone
goes back to the queue with its number and settings, and on from its checkpoint, so that interrupting a study costs no
trial.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

import seqattn
from seqattn.data.catalog import is_on_disk, resource
from seqattn.errors import ArtifactError, SeqattnError, SeqattnWarning
from seqattn.train.config import short_name
from seqattn.train.costs import measure_cost
from seqattn.train.folder import make_folder
from seqattn.train.history import History
from seqattn.train.search import Outcome, Plan, Space, refit, starting_points, storage_place, warm_starts
from seqattn.train.workers import (
    FileLock,
    Heartbeat,
    become_worker,
    is_alive,
    is_orphan,
    run_processes,
    undisturbed,
)
from seqattn.tune.desk import Desk, first_value, is_feasible
from seqattn.tune.storage import FAILURES, explained, shown

__all__ = ["tune"]

_POLL = 0.5
_ENDED = "the same call goes on"


def tune(plan: Plan, workers: int = 1) -> Outcome:
    """Search settings on training and development data, refit the best, and test only that one.

    An interrupted call leaves every finished trial in the storage; the same call goes on from there, and returns at
    once when all is done. Where the storage is a PostgreSQL database, calls on any number of machines share a study.
    Progress goes to the standard error stream, one line per finished trial. The output folder gets the best settings
    (``best.toml``), model (``best/model.safetensors``) and its figures (``evaluation.json``).

    Parameters
    ----------
    plan
        What is searched, on which data, and where the results go.
    workers
        Processes that run trials at the same time, each with one thread if there are several.

    Returns
    -------
    What was found.

    Raises
    ------
    ParameterError
        An argument cannot be used, or the study in the storage was made with other data or settings.
    SeqattnError
        The first five trials all failed, none completed within the limits, or the storage failed.
    """
    plan = _settled(plan, workers)
    with _silent_optuna(), explained(plan.storage):
        parts = _parts(plan)
        starts = starting_points(seqattn.task(plan.task), plan)
        make_folder(plan.output)
        desk = Desk(plan)
        desk.prepare({role: X.digest() for role, X in parts.items() if role != "test"}, starts)
        _search(plan, desk, parts, workers)
        return _conclude(plan, desk, parts)


def _settled(plan: Plan, workers: int) -> Plan:
    """Fill in what the plan leaves open, so that every worker understands it alike."""
    data = plan.data or seqattn.task(plan.task).DEFAULT_DATA
    space = plan.space if plan.space.rules else Space.load(resource("tuning", f"{plan.task}.toml"))
    plan = replace(
        plan,
        data=str(Path(data).resolve()) if is_on_disk(data) else data,
        space=space.with_settings(plan.settings),
        storage=storage_place(plan.storage or str(Path(plan.output) / "study.journal"), workers),
        study=plan.study or f"{plan.task}-{short_name(data)}",
        limits={**space.limits, **plan.limits},
        second=plan.second or space.second,
        deadline=time.time() + plan.timeout,
    )
    starts = {**warm_starts(seqattn.task(plan.task), plan), **plan.space.starts}
    return replace(plan, space=replace(plan.space, starts=starts))


def _parts(plan: Plan) -> dict[str, Any]:
    """Load the data by role; a single file is cut the same way every time."""
    module = seqattn.task(plan.task)
    parts: dict[str, Any] = module.splits(plan.data, module.SPLITS, seed=plan.seed, **plan.read)
    return parts


@contextlib.contextmanager
def _silent_optuna() -> Iterator[None]:
    """Keep Optuna's own log lines off the screen; failures are told with their reason."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class _Reporter:
    """Tells the study of each epoch, and ends a trial that falls behind."""

    def __init__(self, plan: Plan, desk: Desk, trial: optuna.Trial, model: Any) -> None:
        self._plan, self._trial, self._model = plan, trial, model
        # A trial that is run again has reported some epochs already; equal seeds give equal values.
        self._known = dict(desk.trials()[trial.number].intermediate_values)
        self.values: dict[int, float] = {}

    def _value(self, record: Mapping[str, Any]) -> float:
        return float(seqattn.task(self._plan.task).epoch_objective(self._model, record))

    def begin(self, settings: Any) -> None:
        """Nothing is to be done."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Report the objective; a worker whose first process is gone stops."""
        if is_orphan():
            raise KeyboardInterrupt
        number = record["epoch"]
        before = {epoch: value for epoch, value in self._known.items() if epoch < number}
        self.values = {**before, **self.values, number: self._value(record)}
        if self._plan.second:  # Optuna compares trials on their way by one objective only
            return
        with undisturbed():
            if number not in self._known:
                self._trial.report(self.values[number], number)
            is_behind = self._trial.should_prune()
        if is_behind:
            raise optuna.TrialPruned

    def end(self, history: History) -> None:
        """Take in the epochs before an interruption too."""
        self.values = {record["epoch"]: self._value(record) for record in history.records}


def _search(plan: Plan, desk: Desk, parts: Mapping[str, Any], workers: int) -> None:
    """Run trials until all have ended, here or in processes of their own."""
    done = len(desk.finished())
    plan.say(f"study {plan.study!r} in {shown(plan.storage)}: {done} of {plan.trials} trials done")
    if desk.is_done() or desk.failure() is not None:
        return
    count = min(workers, plan.trials)
    if count == 1:
        _work_off(plan, desk, parts)
        return
    codes = run_processes(_work, (plan,), count)
    if any(codes) and not desk.is_done() and desk.failure() is None:
        raise SeqattnError(
            f"Workers ended before the study was done (exit codes {codes}). The same call goes on."
        )


def _work(plan: Plan) -> None:
    """Run trials in a process of its own."""
    become_worker()
    try:
        with _silent_optuna(), explained(plan.storage):
            _work_off(plan, Desk(plan), _parts(plan))
    except KeyboardInterrupt:
        sys.exit(130)
    except SeqattnError as error:
        plan.say(f"A worker stopped: {error}")
        sys.exit(error.exit_code)


def _work_off(plan: Plan, desk: Desk, parts: Mapping[str, Any]) -> None:
    """Run trials until all have ended; one that is interrupted goes back."""
    try:
        _drain(plan, desk, parts)
    except KeyboardInterrupt:
        desk.give_back()
        raise


def _drain(plan: Plan, desk: Desk, parts: Mapping[str, Any]) -> None:
    """Run trials until none is left, also none that another process may leave behind."""
    is_waiting = False
    while time.time() < plan.deadline and desk.failure() is None and not is_orphan():
        if (trial := desk.claim()) is not None:
            with Heartbeat(lambda number=trial.number: desk.beat(number)):  # type: ignore[misc]
                _run_trial(plan, desk, trial, parts)
            continue
        running = [trial for trial in desk.trials(TrialState.RUNNING) if trial.number < plan.trials]
        if desk.is_done() or not running:
            return
        owner = running[0].user_attrs.get("owner")
        if owner is not None and is_alive(owner) is None and not is_waiting:
            plan.say(f"waiting for trial {running[0].number}, which runs on {owner['host']!r}")
            is_waiting = True
        time.sleep(_POLL)


def _run_trial(plan: Plan, desk: Desk, trial: optuna.Trial, parts: Mapping[str, Any]) -> None:
    started = time.perf_counter()
    checkpoint = _checkpoint(plan, trial.number)
    state, values, notes = TrialState.FAIL, None, dict[str, Any]()
    course: dict[int, float] = {}
    try:
        model = plan.build(
            seqattn.task(plan.task), plan.space.trial, trial.params, trial.user_attrs.get("extra", {})
        )
        reporter = _Reporter(plan, desk, trial, model)
        try:
            _fit(plan, model, parts, checkpoint, reporter)
        finally:
            course = reporter.values
        values, notes = _measured(plan, model, parts["dev"])
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except FAILURES:  # nothing to do with the settings
        raise
    except Exception as error:  # noqa: BLE001 - one failing setting must not end the study
        notes = {"reason": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    notes |= {"seconds": round(time.perf_counter() - started, 2), "epochs": len(course)}
    if course:
        notes["best_epoch"] = max(sorted(course), key=lambda epoch: course[epoch])
    if desk.finish(trial, state, values, notes):
        checkpoint.unlink(missing_ok=True)


def _checkpoint(plan: Plan, number: int) -> Path:
    return Path(plan.output) / "trials" / f"{number}.safetensors"


def _fit(plan: Plan, model: Any, parts: Mapping[str, Any], checkpoint: Path, reporter: _Reporter) -> None:
    """Fit, going on from the checkpoint if this machine has one that fits."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    has_begun = checkpoint.exists()
    fit = seqattn.task(plan.task).fit
    with warnings.catch_warnings():
        # They concern the data, and each trial would repeat them.
        warnings.simplefilter("ignore", SeqattnWarning)
        try:
            fit(model, parts["train"], parts["dev"], checkpoint=checkpoint, observers=[reporter])
        except ArtifactError:
            if not has_begun:
                raise
            # Damaged, or left by another study in this folder.
            checkpoint.unlink(missing_ok=True)
            fit(model, parts["train"], parts["dev"], checkpoint=checkpoint, observers=[reporter])


def _measured(plan: Plan, model: Any, dev: Any) -> tuple[list[float] | None, dict[str, Any]]:
    """Return the objectives of a fitted model, None if one of them is no number, and what it costs."""
    task = seqattn.task(plan.task)
    values = [float(task.objective(model, dev))]
    names = dict.fromkeys([*plan.limits, *([plan.second] if plan.second else [])])
    costs = {name: measure_cost(task, model, dev, name) for name in names}
    if plan.second:
        values.append(costs[plan.second])
    if not all(map(math.isfinite, values)):
        return None, {"reason": f"The objective is {values[0]}."}
    return values, {"costs": costs} if costs else {}


def _conclude(plan: Plan, desk: Desk, parts: Mapping[str, Any]) -> Outcome:
    """Refit the best settings, test them, and gather what is told."""
    finished = desk.finished()
    for trial in finished:
        _checkpoint(plan, trial.number).unlink(missing_ok=True)
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    failed = [trial for trial in finished if trial.state == TrialState.FAIL]
    best = _chosen(plan, desk, finished)
    params = {**best.params, **best.user_attrs.get("extra", {})}
    if not desk.is_done():
        plan.say(f"{len(finished)} of {plan.trials} trials done; {_ENDED}")
    with _last_fit(plan):
        figures = refit(seqattn.task(plan.task), plan, best.number, params, parts)
    return Outcome(
        study=plan.study,
        n_trials=len(finished),
        n_complete=len(complete),
        n_pruned=len(finished) - len(complete) - len(failed),
        n_failed=len(failed),
        n_infeasible=sum(not is_feasible(trial) for trial in complete),
        best_value=first_value(best),
        best_params=params,
        best_trial=best.number,
        dev=figures["dev"],
        test=figures["test"],
        output=Path(plan.output),
        trials=[_record(trial) for trial in sorted(finished, key=lambda trial: trial.number)],
        importance=_importance(desk.study, len(complete)),
        second=plan.second,
        front=_front(plan, desk),
    )


def _chosen(plan: Plan, desk: Desk, finished: list[FrozenTrial]) -> FrozenTrial:
    """Return the trial that is refitted: the best, or the one that was asked for."""
    reason = desk.failure()
    if reason is not None:
        raise SeqattnError(reason)
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    if not complete:
        reasons = [trial.user_attrs.get("reason") for trial in finished if trial.state == TrialState.FAIL]
        why = f" The first failed: {reasons[0]}" if reasons else ""
        raise SeqattnError(f"No trial of the study {plan.study!r} has completed; {len(finished)} ended.{why}")
    if plan.choose is not None:
        asked = [trial for trial in complete if trial.number == plan.choose]
        if not asked:
            numbers = ", ".join(
                str(trial.number) for trial in sorted(complete, key=lambda trial: trial.number)
            )
            raise SeqattnError(f"Trial {plan.choose} has not completed. Choose one of {numbers}.")
        return asked[0]
    best = desk.best()
    if best is None:
        nearest = min(complete, key=lambda trial: max(trial.constraints.values()))
        raise SeqattnError(
            f"None of the {len(complete)} complete trials keeps the limits {plan.limits}. Trial {nearest.number} "
            f"came nearest: {nearest.user_attrs['costs']}. Allow more, or search smaller models."
        )
    return best


@contextlib.contextmanager
def _last_fit(plan: Plan) -> Iterator[None]:
    """Let one process at a time refit and test the best, where several calls share a folder."""
    lock = FileLock(Path(plan.output) / "best.lock")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _record(trial: FrozenTrial) -> dict[str, Any]:
    keys = ("name", "epochs", "best_epoch", "seconds", "same_as", "reason")
    notes = {key: trial.user_attrs.get(key) for key in keys}
    settings = {**trial.params, **trial.user_attrs.get("extra", {})}
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.values[0] if trial.values else None,
        "feasible": is_feasible(trial),
        **trial.user_attrs.get("costs", {}),
        **notes,
        **settings,
    }


def _front(plan: Plan, desk: Desk) -> list[dict[str, Any]]:
    """Return the trials that none beats in both objectives, the best of the first one first."""
    if not plan.second:
        return []
    front = sorted(desk.study.best_trials, key=lambda trial: (-first_value(trial), trial.number))
    return [
        {"number": trial.number, "value": trial.values[0], plan.second: trial.values[1]} for trial in front
    ]


def _importance(study: optuna.Study, n_complete: int) -> dict[str, float]:
    if n_complete < 2:
        return {}
    try:
        if len(study.directions) == 1:
            return optuna.importance.get_param_importances(study)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that low values are its target, hence the sign
            return optuna.importance.get_param_importances(study, target=lambda trial: -first_value(trial))
    except (ValueError, RuntimeError, ZeroDivisionError):  # for example if all values are equal
        return {}
