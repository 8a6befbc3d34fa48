"""Hands out the trials of a study, each once, to processes on any number of machines."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from seqattn.errors import ParameterError
from seqattn.train.config import json_ready
from seqattn.train.search import Plan
from seqattn.train.workers import Watch, is_alive, myself, undisturbed
from seqattn.tune.draws import NewSettings, distributions, draw
from seqattn.tune.records import best_of, epochs_of, extra_of, line_of
from seqattn.tune.storage import FAILURES, claims_lock, open_storage, patiently, shown

__all__ = ["Desk"]

# A trial whose process ended this often in a row, without an epoch finished in between, is not run again.
_ATTEMPTS = 3
# A study stops if this many first trials all fail.
_HOPELESS = 5
# What a trial says of itself, and one with the same settings repeats.
_NOTES = ("epochs", "best_epoch", "folds", "reason", "costs")


class Desk:
    """Hands out trials one at a time under a lock, so that exactly as many run as were asked for.

    Parameters
    ----------
    plan
        The plan of the search, with nothing left open.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.storage = open_storage(plan.storage)
        self.study = optuna.create_study(
            study_name=plan.study,
            storage=self.storage,
            directions=["maximize", "minimize"] if plan.second else ["maximize"],
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(plan.space.startup_trials, plan.space.warmup_epochs),
        )
        self.study_id = self.storage.get_study_id_from_name(plan.study)
        self.lock = claims_lock(plan.storage, plan.study)
        self.watch = Watch()
        self._space = distributions(plan.space.rules)
        # What this desk signs with, and the trials that it has handed out: one that is signed and was not, was cut.
        self._me = {**myself(), "desk": uuid.uuid4().hex}
        self._handed_out: set[int] = set()

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials, or those in some states.

        Parameters
        ----------
        states
            Which; none for all.
        """
        return patiently(lambda: self._trials(*states), self.plan.say)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        with undisturbed():
            return self.study.get_trials(deepcopy=False, states=states or None)

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that have ended, in the order in which they did."""
        ended = self.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return sorted(ended, key=lambda trial: (trial.datetime_complete is not None, trial.datetime_complete))

    def is_done(self) -> bool:
        """Return whether as many trials have ended as were asked for."""
        return sum(trial.number < self.plan.trials for trial in self.finished()) == self.plan.trials

    def failure(self) -> str | None:
        """Return why the study has no prospect: its first trials all failed."""
        first = self.finished()[:_HOPELESS]
        if len(first) < _HOPELESS or any(trial.state != TrialState.FAIL for trial in first):
            return None
        return (
            f"The first {_HOPELESS} trials of the study {self.plan.study!r} all failed. The first: "
            f"{first[0].user_attrs.get('reason')} To search other settings, or these after a change of the program, "
            "choose another study name or another output folder."
        )

    def prepare(self, digests: Mapping[str, str], starts: Mapping[str, tuple[Any, Any]]) -> None:
        """Enqueue the starting points of a new study; refuse one that was made with other data or settings.

        Parameters
        ----------
        digests
            Those of the data, by role.
        starts
            Searched and further settings that are tried first, by name.
        """
        about = json.loads(json.dumps(json_ready(_about(self.plan, digests))))
        with self.lock:
            there = self.study.user_attrs.get("about")
            if there is None:
                # A process that ended at this point has left some behind.
                there_already = {trial.user_attrs.get("name") for trial in self._trials()}
                for name, (params, extra) in starts.items():
                    if name in there_already:
                        continue
                    self.study.enqueue_trial(params, user_attrs={"name": name, "extra": extra})
                self.study.set_user_attr("about", about)
        there = about if there is None else there
        changed = [name for name in sorted(about.keys() | there.keys()) if there.get(name) != about.get(name)]
        if changed:
            raise ParameterError(
                f"The study {self.plan.study!r} in {shown(self.plan.storage)!r} was made with another "
                f"{' and '.join(changed)}. Choose another output folder or study name, or go back to its values to "
                "continue it."
            )

    def claim(self) -> optuna.Trial | None:
        """Take the next trial; None if there is none to take now.

        Settings that were tried before are not run again: such a trial ends at once with the known result. One with
        settings that are being tried is passed over until the result is known. What failed is run again.
        """
        is_over = False
        while not is_over:
            trial, ended, is_over = patiently(self._next, self.plan.say)
            for number in ended:
                self._announce(number)
        return trial

    def _next(self) -> tuple[optuna.Trial | None, list[int], bool]:
        """Return the next trial, the numbers of those that ended meanwhile, and whether it is no use to look again."""
        with self.lock:
            ended = self._recover()
            trial, twin = self._take()
            if trial is None or twin is None:
                self._handed_out |= set() if trial is None else {trial.number}
                return trial, ended, True
            if twin.state.is_finished():
                self._repeat(trial, twin)
                return None, [*ended, trial.number], False
            self._requeue(trial.number, trial.user_attrs["attempts"] - 1)
            return None, ended, False

    def _take(self) -> tuple[optuna.Trial | None, FrozenTrial | None]:
        """Return the next trial with its settings, and another one that has the same and did not fail."""
        every = self._trials()
        # Backwards, so that what counts is the first trial with some settings, which was run.
        tried = [
            (self._key(trial.params, extra_of(trial)), trial) for trial in every[::-1] if _was_tried(trial)
        ]
        taken = {key for key, _ in tried}
        twins = {key: trial for key, trial in tried if trial.state != TrialState.FAIL}
        waiting = next((trial for trial in every if self._can_begin(trial, twins)), None)
        number = len(every) if waiting is None else waiting.number
        if number >= self.plan.trials:
            return None, None
        trial = self._begin(number, waiting is None, taken)
        if (
            trial.number >= self.plan.trials
        ):  # another took the last number after the server had lifted the lock
            self._requeue(trial.number, 0)
            return None, None
        stored = self._stored(trial.number)
        return trial, twins.get(self._key(stored.params, extra_of(stored)))

    def _can_begin(self, trial: FrozenTrial, twins: Mapping[str, FrozenTrial]) -> bool:
        """Return whether a trial waits, and not for one with the same settings."""
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if trial.state != TrialState.WAITING or trial.number >= self.plan.trials:
            return False
        twin = twins.get(self._key(params, extra_of(trial)))
        return twin is None or twin.state.is_finished()

    def _begin(self, number: int, is_new: bool, taken: set[str]) -> optuna.Trial:
        """Sign for a trial, and draw its settings."""
        # A seed per trial: a study that was interrupted goes on with the draws that it would have had.
        seed = int(np.random.SeedSequence([self.plan.seed, number]).generate_state(1)[0])
        sampler = NewSettings(seed, self._space, lambda params: self._key(params, {}) in taken)
        # Not self.study.ask(), which takes the first that waits, whatever it waits for.
        study = optuna.load_study(
            study_name=self.plan.study, storage=self.storage, sampler=sampler, pruner=self.study.pruner
        )
        id_ = self.storage.create_new_trial(self.study_id) if is_new else self._id(number)
        if not is_new:
            self.storage.set_trial_state_values(id_, TrialState.RUNNING)
        trial = optuna.Trial(study, id_)
        draw(trial, self._space)
        before = self._stored(trial.number)
        trial.set_user_attr("owner", self._me)
        trial.set_user_attr("seen", time.time())
        trial.set_user_attr("begun", epochs_of(before))
        trial.set_user_attr("attempts", _attempts(before) + 1)
        return trial

    def _key(self, params: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
        """Return what equal settings have in common; one with one value only tells nothing, nor does a moot one."""
        free = [
            repr(rule.to_external_repr(rule.to_internal_repr(params[name])))
            if name in params and not self.plan.space.is_moot(name, params)
            else ""
            for name, rule in self._space.items()
            if not rule.single()
        ]
        return repr((free, sorted(extra.items())))

    def _repeat(self, trial: optuna.Trial, twin: FrozenTrial) -> None:
        """End a trial as the one with the same settings ended."""
        told = self._stored(trial.number).intermediate_values
        for step, value in twin.intermediate_values.items():
            if step not in told:
                trial.report(value, step)
        notes = {key: note for key, note in twin.user_attrs.items() if key in _NOTES}
        self._end(trial, twin.state, twin.values, {**notes, "seconds": 0.0, "same_as": twin.number})

    def _recover(self) -> list[int]:
        """Put trials whose process is gone back into the queue, and end those that seem to be what ends processes."""
        failed = []
        for trial in self._trials(TrialState.RUNNING):
            attempts = _attempts(trial)
            if self._is_running(trial):
                continue
            if attempts < _ATTEMPTS:
                self._requeue(trial.number, attempts)
            else:
                self._give_up(trial, "Its process ended without a word.")
                failed.append(trial.number)
        return failed

    def _give_up(self, trial: FrozenTrial, why: str) -> None:
        reason = f"{why} That was {_attempts(trial)} times in a row without a new epoch."
        self._set(trial.number, "reason", reason)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _is_running(self, trial: FrozenTrial) -> bool:
        """Tell by the process, or on another machine by its signs of life."""
        owner = trial.user_attrs.get("owner")
        if owner is None:  # it is signed under the lock that is held here, so nobody is about to
            return False
        if owner == self._me:
            return trial.number in self._handed_out
        alive = is_alive(owner)
        if alive is None:
            return not self.watch.is_silent(trial.number, (owner, trial.user_attrs.get("seen")))
        return alive

    def _requeue(self, number: int, attempts: int) -> None:
        self._set(number, "attempts", attempts)
        self._set(number, "owner", None)
        self.storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def give_back(self, trouble: str = "") -> None:
        """Return what this process has in hand to the queue, as if it had not been taken.

        Parameters
        ----------
        trouble
            Why, if it may be the settings that are to blame; then it counts as taken.
        """
        failed = []
        with self.lock:
            for trial in self._trials(TrialState.RUNNING):
                if trial.user_attrs.get("owner") != self._me:
                    continue
                self._handed_out.discard(trial.number)
                if trouble and _attempts(trial) >= _ATTEMPTS:
                    self._give_up(trial, trouble)
                    failed.append(trial.number)
                else:
                    self._requeue(trial.number, max(0, _attempts(trial) - (not trouble)))
        for number in failed:
            self._announce(number)

    def beat(self, number: int) -> bool:
        """Give a sign of life for a trial, and return whether it is still this process's.

        Parameters
        ----------
        number
            Number of the trial.
        """
        try:
            if not self._is_mine(number):
                return False
            self._set(number, "seen", time.time())
        except UpdateFinishedTrialError:  # it ended between the two
            return False
        except (*FAILURES, OSError):  # the next one may come through; if not, the trial itself finds out
            pass
        return True

    def finish(
        self, trial: optuna.Trial, state: TrialState, values: list[float] | None, notes: Mapping[str, Any]
    ) -> bool:
        """Write down how a trial ended, and return whether it was still this process's.

        Parameters
        ----------
        trial
            What :meth:`claim` returned.
        state
            How it ended.
        values
            What was found; None if it was pruned or failed.
        notes
            Further JSON values; ``costs`` are held against the limits.
        """

        def end() -> bool:
            with self.lock:
                now = self._stored(trial.number)
                if now.user_attrs.get("owner") != self._me:
                    return False
                if not now.state.is_finished():  # as it is if the answer to a first try was lost
                    self._end(trial, state, values, notes)
            return True

        was_mine = patiently(end, self.plan.say)
        self._handed_out.discard(trial.number)
        if was_mine:
            self._announce(trial.number)
        return was_mine

    def report(self, trial: optuna.Trial, epoch: int, value: float) -> None:
        """Tell what a trial reached after an epoch.

        Parameters
        ----------
        trial
            What :meth:`claim` returned.
        epoch
            Number of the epoch.
        value
            The objective.
        """

        def tell() -> None:
            with undisturbed():
                if self.plan.second:  # Optuna knows courses of one objective only
                    trial.set_user_attr("epochs", epoch)
                else:
                    trial.report(value, epoch)

        patiently(tell, self.plan.say)

    def is_behind(self, trial: optuna.Trial) -> bool:
        """Return whether a trial has fallen behind the others and is to end.

        Parameters
        ----------
        trial
            What :meth:`claim` returned.
        """

        def ask() -> bool:
            with undisturbed():
                return bool(trial.should_prune())  # numpy has one of its own

        return not self.plan.second and patiently(ask, self.plan.say)

    def is_below_median(self, trial: optuna.Trial, step: int, value: float) -> bool:
        """Return whether a trial is to end because complete ones were better after the same step, half of them or more.

        Unlike in :meth:`is_behind` its best step does not count: a mean over folds that was high by chance is no merit.

        Parameters
        ----------
        trial
            What :meth:`claim` returned.
        step
            The step.
        value
            The objective after it.
        """
        space = self.plan.space
        if self.plan.second or step < space.warmup_epochs:
            return False
        others = [
            known.intermediate_values[step]
            for known in self.trials(TrialState.COMPLETE)
            if step in known.intermediate_values and known.number != trial.number
        ]
        return len(others) >= max(space.startup_trials, 1) and value < float(np.median(others))

    def _end(
        self, trial: optuna.Trial, state: TrialState, values: list[float] | None, notes: Mapping[str, Any]
    ) -> None:
        for name, cost in notes.get("costs", {}).items():
            # A process that ended at this point has left some behind.
            if name in self.plan.limits and name not in trial.constraints:
                trial.set_constraint(name, cost - self.plan.limits[name])
        for key, note in notes.items():
            self._set(trial.number, key, note)
        self.study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)

    def _is_mine(self, number: int) -> bool:
        now = self._stored(number)
        return now.state == TrialState.RUNNING and now.user_attrs.get("owner") == self._me

    def _stored(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._id(number))

    def _set(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def best(self) -> FrozenTrial | None:
        """Return the trial with the highest first objective among those that keep the limits."""
        return best_of(self.trials())

    def _announce(self, number: int) -> None:
        trials = self.trials()
        best, done = best_of(trials), sum(trial.state.is_finished() for trial in trials)
        so_far = f", best {best.values[0]:.4f} (trial {best.number})" if best else ""
        line = line_of(trials[number], self.plan.limits)
        self.plan.say(f"{line}{so_far}, {done} of {self.plan.trials} done")


def _about(plan: Plan, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return what must be the same in every call of a study."""
    about = {"task": plan.task, "seed": plan.seed, "data": dict(digests), "space": plan.space.searched()}
    aims = {"limits": plan.limits, "second objective": plan.second}
    return about | {name: aim for name, aim in aims.items() if aim}


def _attempts(trial: FrozenTrial) -> int:
    """Return how often in a row a trial was taken without a new epoch."""
    is_further = epochs_of(trial) > trial.user_attrs.get("begun", 0)
    return 0 if is_further else trial.user_attrs.get("attempts", 0)


def _was_tried(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING or trial.state.is_finished()
