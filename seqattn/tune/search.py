"""The search itself: trials are run, here or in processes of their own, and the best settings refitted and tested.

The trials of a study are numbered; those with a number below the total run, each once. A trial whose process is gone
goes back to the queue with its number and settings, and on from its checkpoint, so that interrupting a study costs no
trial.
"""

from __future__ import annotations

import contextlib
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
from seqattn.errors import SeqattnError, StudyError
from seqattn.train.config import short_name
from seqattn.train.folder import make_folder
from seqattn.train.search import (
    Outcome,
    Plan,
    refit,
    starting_points,
    storage_place,
    warm_starts,
)
from seqattn.train.settings import resolve_device
from seqattn.train.space import Space
from seqattn.train.workers import (
    FileLock,
    Heartbeat,
    become_worker,
    is_alive,
    is_device_trouble,
    is_orphan,
    run_processes,
    stoppable,
)
from seqattn.tune.desk import Desk
from seqattn.tune.records import best_of, extra_of, first_value, front_of, is_feasible, record_of
from seqattn.tune.scoring import Course, checkpoint_of, score
from seqattn.tune.storage import FAILURES, explained, is_begun, shown

__all__ = ["tune"]

_POLL = 0.5
_ENDED = "the same call goes on"


def tune(plan: Plan, workers: int = 1) -> Outcome:
    """Search settings on training and development data, refit the best, and test only that one.

    Without development data every trial is cross-validated on the training data. An interrupted call leaves every
    finished trial in the storage; the same call goes on from there, and returns at once when all is done. Where the
    storage is a PostgreSQL database, calls on any number of machines share a study. Progress goes to the standard error
    stream, one line per finished trial. The output folder gets the best settings (``best.toml``), model
    (``best/model.safetensors``) and its figures (``evaluation.json``).

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
    BackendError
        The device is not there.
    StudyError
        The first five trials all failed, none completed within the limits, or the one asked for has not.
    SeqattnError
        The storage or the machine failed: the same call goes on.
    """
    plan = _settled(plan, workers)
    resolve_device(plan.device)
    with stoppable(), _silent_optuna(), explained(plan.storage):
        parts = _parts(plan)
        starts = _starts(plan)
        make_folder(plan.output)
        desk = Desk(plan)
        desk.prepare({role: X.digest() for role, X in parts.items() if role != "test"}, starts)
        _search(plan, desk, parts, workers)
        return _conclude(plan, desk, parts)


def _settled(plan: Plan, workers: int) -> Plan:
    """Fill in what the plan leaves open, so that every worker understands it alike."""
    data = plan.data or seqattn.task(plan.task).DEFAULT_DATA
    space = plan.space if plan.space.rules else Space.load(resource("tuning", f"{plan.task}.toml"))
    return replace(
        plan,
        data=str(Path(data).resolve()) if is_on_disk(data) else data,
        space=space.with_settings(plan.settings),
        storage=storage_place(plan.storage or str(Path(plan.output) / "study.journal"), workers),
        study=plan.study or f"{plan.task}-{short_name(data)}",
        limits={**space.limits, **plan.limits},
        second=plan.second or space.second,
        deadline=time.time() + plan.timeout,
    )


def _starts(plan: Plan) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return what a new study begins with; one that has begun has its starting points from when it did."""
    module, starts = seqattn.task(plan.task), dict[str, Any]()
    if plan.warm_start and not is_begun(plan.storage, plan.study):
        warm = replace(plan.space, starts=warm_starts(module, plan))
        starts = starting_points(module, replace(plan, space=warm))
    return {**starts, **starting_points(module, plan)}


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


def _search(plan: Plan, desk: Desk, parts: Mapping[str, Any], workers: int) -> None:
    """Run trials until all have ended, here or in processes of their own."""
    numbers = [trial.number for trial in desk.finished()]
    left = plan.trials - sum(number < plan.trials for number in numbers)
    more = (
        f"; the study holds {len(numbers)}, all of which count" if len(numbers) > plan.trials - left else ""
    )
    plan.say(
        f"study {plan.study!r} in {shown(plan.storage)}: {plan.trials - left} of {plan.trials} trials done{more}"
    )
    if left == 0 or desk.failure() is not None:
        return
    if workers == 1:
        _work_off(plan, desk, parts)
        return
    codes = run_processes(_work, (plan,), min(workers, left))
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
    """Run trials until all have ended; one that is interrupted, or cut by trouble of the machine, goes back."""
    try:
        _drain(plan, desk, parts)
    except (KeyboardInterrupt, *FAILURES):
        _give_back(desk)
        raise
    except Exception as error:
        if not _is_of_machine(error):
            raise
        # Only what the settings may have caused counts against the trial.
        trouble = _reason(error) if is_device_trouble(error) else ""
        _give_back(desk, trouble)
        more = "; a trial that meets this three times in a row without a new epoch fails" if trouble else ""
        raise SeqattnError(
            f"This machine cannot go on: {_reason(error)}. What it had in hand is given back; mend the cause (disk, "
            f"memory or device), and the same call goes on{more}."
        ) from error


def _give_back(desk: Desk, trouble: str = "") -> None:
    # Where the storage fails too, the others find out that this process is gone.
    with contextlib.suppress(*FAILURES, OSError):
        desk.give_back(trouble)


def _is_of_machine(error: Exception) -> bool:
    """Return whether it is the machine that failed, and so would with other settings."""
    return isinstance(error, OSError) or is_device_trouble(error)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


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
    state, values, notes = TrialState.FAIL, None, dict[str, Any]()
    course = Course(plan, desk, trial)
    try:
        values, notes = score(plan, trial, parts, course)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except FAILURES:  # nothing to do with the settings
        raise
    except Exception as error:
        if _is_of_machine(error):
            raise
        notes = {"reason": _reason(error)}
    notes |= {"seconds": round(time.perf_counter() - started, 2), "epochs": len(course.values)}
    if "dev" not in parts:
        notes["folds"] = len(course.values)
    elif course.values:
        notes["best_epoch"] = max(sorted(course.values), key=lambda epoch: course.values[epoch])
    if desk.finish(trial, state, values, notes):
        _remove(plan, trial.number)


def _remove(plan: Plan, number: int) -> None:
    """Remove what a trial would have gone on from."""
    for ending in (".safetensors", ".json"):
        checkpoint_of(plan, number).with_suffix(ending).unlink(missing_ok=True)


def _conclude(plan: Plan, desk: Desk, parts: Mapping[str, Any]) -> Outcome:
    """Refit the best settings, test them, and gather what is told."""
    finished = desk.finished()
    for trial in finished:
        _remove(plan, trial.number)
    found = _found(plan, desk, finished)
    if not desk.is_done():
        plan.say(f"{len(finished)} of {plan.trials} trials done; {_ENDED}")
    try:
        best = _chosen(plan, desk, finished)
    except SeqattnError as error:
        raise StudyError(str(error), found) from None
    params = {**best.params, **extra_of(best)}
    with _last_fit(plan):
        figures = refit(seqattn.task(plan.task), plan, best.number, params, parts)
    return replace(
        found,
        best_value=first_value(best),
        best_params=params,
        best_trial=best.number,
        dev=figures["dev"],
        test=figures["test"],
    )


def _found(plan: Plan, desk: Desk, finished: list[FrozenTrial]) -> Outcome:
    """Return what a study found, with no trial chosen yet."""
    complete, pruned, failed = (
        [trial for trial in finished if trial.state == state]
        for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    )
    return Outcome(
        study=plan.study,
        n_trials=len(finished),
        n_complete=len(complete),
        n_pruned=len(pruned),
        n_failed=len(failed),
        n_infeasible=sum(not is_feasible(trial) for trial in complete),
        output=Path(plan.output),
        trials=[record_of(trial) for trial in sorted(finished, key=lambda trial: trial.number)],
        importance=_importance(desk.study, len(complete)),
        rules=plan.space.rules,
        second=plan.second,
        front=front_of(desk.study.best_trials, plan.second) if plan.second else [],
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
        return _asked_for(plan.choose, complete)
    best = best_of(complete)
    if best is None:
        nearest = min(complete, key=lambda trial: max(trial.constraints.values()))
        raise SeqattnError(
            f"None of the {len(complete)} complete trials keeps the limits {plan.limits}. Trial {nearest.number} "
            f"came nearest: {nearest.user_attrs['costs']}. Allow more, or search smaller models."
        )
    return best


def _asked_for(number: int, complete: list[FrozenTrial]) -> FrozenTrial:
    by_number = {trial.number: trial for trial in complete}
    if number not in by_number:
        numbers = ", ".join(map(str, sorted(by_number)))
        raise SeqattnError(f"Trial {number} has not completed. Choose one of {numbers}.")
    return by_number[number]


@contextlib.contextmanager
def _last_fit(plan: Plan) -> Iterator[None]:
    """Let one process at a time refit and test the best, where several calls share a folder."""
    lock = FileLock(Path(plan.output) / "best.lock")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
