"""Search for good settings with Optuna: one study, any number of workers, an exact total, and no lost work.

The trials of a study are numbered; those with a number below the total run, each once. A trial whose process is
gone goes back to the queue with its number and settings, so that interrupting a study costs no trial.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

import seqattn
from seqattn.data.catalog import resource
from seqattn.errors import ArtifactError, MissingDependencyError, ParameterError, SeqattnError, SeqattnWarning
from seqattn.train.config import json_ready, short_name
from seqattn.train.folder import make_folder, mend_lines
from seqattn.train.search import Outcome, Plan, Space, refit, starting_points, storage_place
from seqattn.train.workers import (
    FileLock,
    become_worker,
    is_alive,
    is_orphan,
    myself,
    run_processes,
    undisturbed,
)

__all__ = ["tune"]

# Seconds in which a process that took a trial signs it; if it ended in between, the trial has no owner.
_UNSIGNED = 60.0
# A trial that ended its process this often is not run again.
_ATTEMPTS = 3
# A study stops if this many first trials all fail.
_HOPELESS = 5
_POLL = 0.5


def tune(plan: Plan, workers: int = 1) -> Outcome:
    """Search settings on training and development data, refit the best, and test only that one.

    An interrupted call leaves every finished trial in the storage; the same call goes on from there, and returns at
    once when all is done. Progress goes to the standard error stream, one line per finished trial. The output folder
    gets the best settings (``best.toml``), model (``best/model.safetensors``) and its figures (``evaluation.json``).

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
        The first five trials all failed, or none completed.
    """
    plan = _settled(plan, workers)
    with _silent_optuna():
        parts = _parts(plan)
        starts = starting_points(seqattn.task(plan.task), plan)
        make_folder(plan.output)
        desk = _Desk(plan)
        desk.prepare({role: X.digest() for role, X in parts.items() if role != "test"}, starts)
        _search(plan, desk, parts, workers)
        return _conclude(plan, desk, parts)


def _settled(plan: Plan, workers: int) -> Plan:
    """Fill in what the plan leaves open, so that every worker understands it alike."""
    data = plan.data or seqattn.task(plan.task).DEFAULT_DATA
    space = plan.space if plan.space.rules else Space.load(resource("tuning", f"{plan.task}.toml"))
    return replace(
        plan,
        data=str(Path(data).resolve()) if Path(data).exists() else data,
        space=space.with_settings(plan.settings),
        storage=storage_place(plan.storage or str(Path(plan.output) / "study.journal"), workers),
        study=plan.study or f"{plan.task}-{short_name(data)}",
        deadline=time.time() + plan.timeout,
    )


def _parts(plan: Plan) -> dict[str, Any]:
    """Load the data by role; a single file is cut the same way every time."""
    module = seqattn.task(plan.task)
    parts: dict[str, Any] = module.splits(plan.data, module.SPLITS, seed=plan.seed, **plan.read)
    return parts


def _build(plan: Plan, *settings: Mapping[str, Any]) -> Any:
    return plan.build(seqattn.task(plan.task), *settings)


@contextlib.contextmanager
def _silent_optuna() -> Iterator[None]:
    """Keep Optuna's own log lines off the screen; failures are told with their reason."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _draw(trial: optuna.Trial, space: Space) -> None:
    """Draw the searched settings of a trial; one that was begun before keeps its own."""
    for name, rule in space.rules.items():
        if rule["type"] == "choice":
            trial.suggest_categorical(name, rule["choices"])
        else:
            draw = trial.suggest_int if rule["type"] == "int" else trial.suggest_float
            draw(name, rule["low"], rule["high"], log=rule.get("log", False))


def _open(place: str) -> optuna.storages.BaseStorage:
    if "://" in place:
        return _open_database(place)
    path = Path(place)
    # Optuna's own locks outlive a process that is killed, and hold the others up.
    lock = FileLock(f"{place}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock:
            mend_lines(path)
        return JournalStorage(JournalFileBackend(place, lock_obj=cast(Any, lock)))
    except OSError as error:
        raise ParameterError(f"The study cannot be kept in {place!r}: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        raise ArtifactError(f"{place!r} is not a journal of Optuna, or is damaged: {error}") from error


def _open_database(url: str) -> optuna.storages.BaseStorage:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return optuna.storages.get_storage(url)
    except ImportError as error:
        raise MissingDependencyError(
            f"The storage {url.partition(':')[0]!r} needs a driver: {error}"
        ) from error
    except (SQLAlchemyError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ParameterError(f"The storage of the study cannot be opened: {reason}") from error


class _Desk:
    """Hands out trials one at a time under a lock, so that exactly as many run as were asked for."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.storage = _open(plan.storage)
        self.study = optuna.create_study(
            study_name=plan.study,
            storage=self.storage,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(plan.space.startup_trials, plan.space.warmup_epochs),
        )
        self.study_id = self.storage.get_study_id_from_name(plan.study)
        near = plan.storage if "://" not in plan.storage else str(Path(plan.output).resolve() / "study")
        self.lock = FileLock(f"{near}.claims.lock")

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        with undisturbed():
            return self.study.get_trials(deepcopy=False, states=states or None)

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that have ended, in the order in which they did."""
        ended = self.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return sorted(ended, key=lambda trial: (trial.datetime_complete is not None, trial.datetime_complete))

    def is_done(self) -> bool:
        return sum(trial.number < self.plan.trials for trial in self.finished()) == self.plan.trials

    def failure(self) -> str | None:
        """Return why the study has no prospect: its first trials all failed."""
        first = self.finished()[:_HOPELESS]
        if len(first) < _HOPELESS or any(trial.state != TrialState.FAIL for trial in first):
            return None
        return str(first[0].user_attrs.get("reason"))

    def prepare(self, digests: Mapping[str, str], starts: Mapping[str, tuple[Any, Any]]) -> None:
        """Enqueue the starting points of a new study; refuse one that was made with other data or settings."""
        plan = self.plan
        about = {"task": plan.task, "seed": plan.seed, "data": dict(digests), "space": asdict(plan.space)}
        about = json.loads(json.dumps(json_ready(about)))
        with self.lock:
            there = self.study.user_attrs.get("about")
            if there is None:
                for name, (params, extra) in starts.items():
                    self.study.enqueue_trial(params, user_attrs={"name": name, "extra": extra})
                self.study.set_user_attr("about", about)
        changed = [name for name in about if there is not None and there.get(name) != about[name]]
        if changed:
            raise ParameterError(
                f"The study {plan.study!r} in {plan.storage!r} was made with another {' and '.join(changed)}. "
                "Choose another output folder or study name, or go back to its values to continue it."
            )

    def claim(self) -> optuna.Trial | None:
        """Take the next trial; None if all are taken."""
        plan = self.plan
        with self.lock:
            self._recover()
            every = self.trials()
            queued = [trial.number for trial in every if trial.state == TrialState.WAITING]
            number = min(queued, default=len(every))
            if number >= plan.trials:
                return None
            # A seed per trial: a study that was interrupted goes on with the draws that it would have had.
            draws = int(np.random.SeedSequence([plan.seed, number]).generate_state(1)[0])
            self.study.sampler = optuna.samplers.TPESampler(seed=draws)
            trial = self.study.ask()
            if trial.number >= plan.trials:  # another machine has a lock of its own, and was faster
                self._requeue(trial.number, 0)
                return None
            # Signed before settings are drawn, which takes longer: an interruption then finds its owner.
            trial.set_user_attr("owner", myself())
            trial.set_user_attr("seen", time.time())
            trial.set_user_attr("attempts", trial.user_attrs.get("attempts", 0) + 1)
            _draw(trial, plan.space)
            return trial

    def _recover(self) -> None:
        """Put trials whose process is gone back into the queue, unless they seem to be what ends processes."""
        for trial in self.trials(TrialState.RUNNING):
            attempts = trial.user_attrs.get("attempts", 0)
            if _is_running(trial):
                continue
            if attempts >= _ATTEMPTS:
                self._set(trial.number, "reason", f"Its process ended without a word, {attempts} times.")
                self.study.tell(trial.number, state=TrialState.FAIL)
            else:
                self._requeue(trial.number, attempts)

    def _requeue(self, number: int, attempts: int) -> None:
        self._set(number, "attempts", attempts)
        self._set(number, "owner", None)
        self.storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def give_back(self) -> None:
        """Return what this process has in hand to the queue, as if it had not been taken."""
        with self.lock:
            for trial in self.trials(TrialState.RUNNING):
                if trial.user_attrs.get("owner") == myself():
                    self._requeue(trial.number, max(0, trial.user_attrs.get("attempts", 0) - 1))

    def finish(
        self, trial: optuna.Trial, state: TrialState, value: float | None, notes: Mapping[str, Any]
    ) -> None:
        """Write down how a trial ended."""
        with self.lock:
            if not self._is_mine(trial):
                return
            for key, note in notes.items():
                self._set(trial.number, key, note)
            self.study.tell(trial, value, state=state)
        self._announce(self.trials()[trial.number])

    @contextlib.contextmanager
    def last_fit(self) -> Iterator[None]:
        """Let one process at a time refit and test the best, where several calls share a study and a folder."""
        mine = {**myself(), "seen": time.time()}
        while True:
            with self.lock:
                other = self.study.user_attrs.get("last_fit")
                if other is None or not is_alive(other, other["seen"]):
                    self.study.set_user_attr("last_fit", mine)
                    break
            time.sleep(_POLL)
        try:
            yield
        finally:
            with self.lock:
                self.study.set_user_attr("last_fit", None)

    def _is_mine(self, trial: optuna.Trial) -> bool:
        now = self.storage.get_trial(self._id(trial.number))
        return now.state == TrialState.RUNNING and now.user_attrs.get("owner") == myself()

    def _set(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _announce(self, trial: FrozenTrial) -> None:
        notes = trial.user_attrs
        ended = {
            TrialState.COMPLETE: f"{_value(trial):.4f}",
            TrialState.PRUNED: f"pruned at {_value(trial):.4f} after epoch {notes.get('epochs')}",
            TrialState.FAIL: f"failed: {notes.get('reason')}",
        }[trial.state]
        best = max(self.trials(TrialState.COMPLETE), key=_value, default=None)
        so_far = f", best {_value(best):.4f} (trial {best.number})" if best else ""
        name = f" ({notes['name']})" if "name" in notes else ""
        done = f"{len(self.finished())} of {self.plan.trials} done"
        self.plan.say(f"trial {trial.number}{name}: {ended}, {notes.get('seconds', 0):.0f} s{so_far}, {done}")


def _value(trial: FrozenTrial) -> float:
    return -math.inf if trial.value is None else trial.value


def _is_running(trial: FrozenTrial) -> bool:
    owner = trial.user_attrs.get("owner")
    if owner is not None:
        return is_alive(owner, trial.user_attrs.get("seen", 0.0))
    started = trial.datetime_start
    return started is not None and time.time() - started.timestamp() < _UNSIGNED


class _Reporter:
    """Tells the study of each epoch, and ends a trial that falls behind."""

    def __init__(self, plan: Plan, desk: _Desk, trial: optuna.Trial, model: Any) -> None:
        self._plan, self._trial, self._model = plan, trial, model
        # A trial that is run again has reported some epochs already; equal seeds give equal values.
        self._known = set(desk.trials()[trial.number].intermediate_values)
        self.values: list[float] = []

    def begin(self, settings: Any) -> None:
        """Nothing is to be done."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Report the objective; a worker whose first process is gone stops."""
        if is_orphan():
            raise KeyboardInterrupt
        self.values.append(seqattn.task(self._plan.task).epoch_objective(self._model, record))
        with undisturbed():
            if record["epoch"] not in self._known:
                self._trial.report(self.values[-1], record["epoch"])
            self._trial.set_user_attr("seen", time.time())
            is_behind = self._trial.should_prune()
        if is_behind:
            raise optuna.TrialPruned

    def end(self, history: Any) -> None:
        """Nothing is to be done."""


def _search(plan: Plan, desk: _Desk, parts: Mapping[str, Any], workers: int) -> None:
    """Run trials until all have ended, here or in processes of their own."""
    done = len(desk.finished())
    plan.say(f"study {plan.study!r} in {plan.storage}: {done} of {plan.trials} trials done")
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
        with _silent_optuna():
            _work_off(plan, _Desk(plan), _parts(plan))
    except KeyboardInterrupt:
        sys.exit(130)
    except SeqattnError as error:
        plan.say(f"A worker stopped: {error}")
        sys.exit(error.exit_code)


def _work_off(plan: Plan, desk: _Desk, parts: Mapping[str, Any]) -> None:
    """Run trials until all have ended; one that is interrupted goes back."""
    try:
        _drain(plan, desk, parts)
    except KeyboardInterrupt:
        desk.give_back()
        raise


def _drain(plan: Plan, desk: _Desk, parts: Mapping[str, Any]) -> None:
    """Run trials until none is left, also none that another process may leave behind."""
    is_waiting = False
    while time.time() < plan.deadline and desk.failure() is None and not is_orphan():
        if (trial := desk.claim()) is not None:
            _run_trial(plan, desk, trial, parts)
            continue
        running = [trial for trial in desk.trials(TrialState.RUNNING) if trial.number < plan.trials]
        if desk.is_done() or not running:
            return
        owner = running[0].user_attrs.get("owner") or myself()
        if owner["host"] != myself()["host"] and not is_waiting:
            plan.say(f"waiting for trial {running[0].number}, which runs on {owner['host']!r}")
            is_waiting = True
        time.sleep(_POLL)


def _run_trial(plan: Plan, desk: _Desk, trial: optuna.Trial, parts: Mapping[str, Any]) -> None:
    started = time.perf_counter()
    values: list[float] = []
    state, value, notes = TrialState.FAIL, None, dict[str, Any]()
    try:
        model = _build(plan, plan.space.trial, trial.params, trial.user_attrs.get("extra", {}))
        reporter = _Reporter(plan, desk, trial, model)
        values = reporter.values
        with warnings.catch_warnings():
            # They concern the data, and each trial would repeat them.
            warnings.simplefilter("ignore", SeqattnWarning)
            seqattn.task(plan.task).fit(model, parts["train"], parts["dev"], observers=[reporter])
        value = float(seqattn.task(plan.task).objective(model, parts["dev"]))
        state = TrialState.COMPLETE
        if not math.isfinite(value):
            state, value, notes = TrialState.FAIL, None, {"reason": f"The objective is {value}."}
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except Exception as error:  # noqa: BLE001 - one failing setting must not end the study
        notes = {"reason": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    notes |= {"seconds": round(time.perf_counter() - started, 2), "epochs": len(values)}
    if values:
        notes["best_epoch"] = int(np.argmax(values)) + 1
    desk.finish(trial, state, value, notes)


def _conclude(plan: Plan, desk: _Desk, parts: Mapping[str, Any]) -> Outcome:
    """Refit the best settings, test them, and gather what is told."""
    finished = desk.finished()
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    failed = [trial for trial in finished if trial.state == TrialState.FAIL]
    reason = desk.failure()
    if reason is not None:
        raise SeqattnError(
            f"The first {_HOPELESS} trials of the study {plan.study!r} all failed. The first: {reason}"
        )
    if not complete:
        why = f" The first failed: {failed[0].user_attrs.get('reason')}" if failed else ""
        raise SeqattnError(f"No trial of the study {plan.study!r} has completed; {len(finished)} ended.{why}")
    best = max(complete, key=lambda trial: (_value(trial), -trial.number))
    params = {**best.params, **best.user_attrs.get("extra", {})}
    if not desk.is_done():
        plan.say(f"{len(finished)} of {plan.trials} trials done; the same call goes on")
    with desk.last_fit():
        figures = refit(seqattn.task(plan.task), plan, best.number, params, parts)
    return Outcome(
        study=plan.study,
        n_trials=len(finished),
        n_complete=len(complete),
        n_pruned=len(finished) - len(complete) - len(failed),
        n_failed=len(failed),
        best_value=_value(best),
        best_params=params,
        best_trial=best.number,
        dev=figures["dev"],
        test=figures["test"],
        output=Path(plan.output),
        trials=[_record(trial) for trial in sorted(finished, key=lambda trial: trial.number)],
        importance=_importance(desk.study, len(complete)),
    )


def _record(trial: FrozenTrial) -> dict[str, Any]:
    notes = {key: trial.user_attrs.get(key) for key in ("name", "epochs", "best_epoch", "seconds", "reason")}
    settings = {**trial.params, **trial.user_attrs.get("extra", {})}
    state = trial.state.name.lower()
    return {"number": trial.number, "state": state, "value": trial.value, **notes, **settings}


def _importance(study: optuna.Study, n_complete: int) -> dict[str, float]:
    if n_complete < 2:
        return {}
    try:
        return optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError, ZeroDivisionError):  # for example if all values are equal
        return {}
