"""Hands out the trials of a study, each once, to processes on any number of machines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from seqattn.errors import ParameterError
from seqattn.train.config import json_ready
from seqattn.train.costs import COSTS
from seqattn.train.search import Plan
from seqattn.train.workers import Watch, is_alive, myself, undisturbed
from seqattn.tune.draws import NewSettings, distributions
from seqattn.tune.storage import FAILURES, claims_lock, open_storage, shown

__all__ = ["Desk", "first_value", "is_feasible"]

# A trial that ended its process this often is not run again.
_ATTEMPTS = 3
# A study stops if this many first trials all fail.
_HOPELESS = 5
# What a trial says of itself, and one with the same settings repeats.
_NOTES = ("epochs", "best_epoch", "reason", "costs")


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
        self.lock = claims_lock(self.storage, plan.storage, plan.study, Path(plan.output))
        self.watch = Watch()
        self._space = distributions(plan.space.rules)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials, or those in some states.

        Parameters
        ----------
        states
            Which; none for all.
        """
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
        return f"The first {_HOPELESS} trials of the study {self.plan.study!r} all failed. The first: " + str(
            first[0].user_attrs.get("reason")
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
                for name, (params, extra) in starts.items():
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
        """Take the next trial; None if all are taken.

        Settings that were tried before are not run again: such a trial ends at once with the known result, and waits
        in the queue while that is being found out.
        """
        while True:
            with self.lock:
                trial, twin = self._take()
                if trial is None or twin is None:
                    return trial
                if not twin.state.is_finished():
                    self._requeue(trial.number, trial.user_attrs["attempts"] - 1)
                    return None
                self._repeat(trial, twin)
            self._announce(trial.number)

    def _take(self) -> tuple[optuna.Trial | None, FrozenTrial | None]:
        """Return the next trial with its settings, and another one that has the same."""
        self._recover()
        every = self.trials()
        number = min(
            (trial.number for trial in every if trial.state == TrialState.WAITING), default=len(every)
        )
        if number >= self.plan.trials:
            return None, None
        # Backwards, so that what counts is the first trial with some settings, which was run.
        tried = {self._key(trial.params, _extra(trial)): trial for trial in every[::-1] if _was_tried(trial)}
        # A seed per trial: a study that was interrupted goes on with the draws that it would have had.
        seed = int(np.random.SeedSequence([self.plan.seed, number]).generate_state(1)[0])
        self.study.sampler = NewSettings(seed, self._space, lambda params: self._key(params, {}) in tried)
        trial = self.study.ask(self._space)
        trial.set_user_attr("owner", myself())
        trial.set_user_attr("seen", time.time())
        trial.set_user_attr("attempts", trial.user_attrs.get("attempts", 0) + 1)
        stored = self._stored(trial.number)
        return trial, tried.get(self._key(stored.params, _extra(stored)))

    def _key(self, params: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
        """Return what equal settings have in common; a setting with one value only tells nothing."""
        free = [repr(params.get(name)) for name, rule in self._space.items() if not rule.single()]
        return repr((free, sorted(extra.items())))

    def _repeat(self, trial: optuna.Trial, twin: FrozenTrial) -> None:
        """End a trial as the one with the same settings ended."""
        for step, value in twin.intermediate_values.items():
            trial.report(value, step)
        notes = {key: note for key, note in twin.user_attrs.items() if key in _NOTES}
        self._end(trial, twin.state, twin.values, {**notes, "seconds": 0.0, "same_as": twin.number})

    def _recover(self) -> None:
        """Put trials whose process is gone back into the queue, unless they seem to be what ends processes."""
        for trial in self.trials(TrialState.RUNNING):
            attempts = trial.user_attrs.get("attempts", 0)
            if self._is_running(trial):
                continue
            if attempts >= _ATTEMPTS:
                self._set(trial.number, "reason", f"Its process ended without a word, {attempts} times.")
                self.study.tell(trial.number, state=TrialState.FAIL)
            else:
                self._requeue(trial.number, attempts)

    def _is_running(self, trial: FrozenTrial) -> bool:
        """Tell by the process, or on another machine by its signs of life."""
        owner = trial.user_attrs.get("owner")
        if owner is None:  # it is signed under the lock that is held here, so nobody is about to
            return False
        alive = is_alive(owner)
        if alive is None:
            return not self.watch.is_silent(trial.number, (owner, trial.user_attrs.get("seen")))
        return alive

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
        except FAILURES:  # the next one may come through; if not, the trial itself finds out
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
        with self.lock:
            if not self._is_mine(trial.number):
                return False
            self._end(trial, state, values, notes)
        self._announce(trial.number)
        return True

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
        return now.state == TrialState.RUNNING and now.user_attrs.get("owner") == myself()

    def _stored(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._id(number))

    def _set(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def best(self) -> FrozenTrial | None:
        """Return the trial with the highest first objective among those that keep the limits."""
        good = [trial for trial in self.trials(TrialState.COMPLETE) if is_feasible(trial)]
        return max(good, key=lambda trial: (first_value(trial), -trial.number), default=None)

    def _announce(self, number: int) -> None:
        trial = self.trials()[number]
        notes, best = trial.user_attrs, self.best()
        ended = {
            TrialState.COMPLETE: f"{first_value(trial):.4f}{self._costs(trial)}",
            TrialState.PRUNED: f"pruned at {first_value(trial):.4f} after epoch {notes.get('epochs')}",
            TrialState.FAIL: f"failed: {notes.get('reason')}",
        }[trial.state]
        twin = f" as trial {notes['same_as']}, which has the same settings" if "same_as" in notes else ""
        so_far = f", best {first_value(best):.4f} (trial {best.number})" if best else ""
        name = f" ({notes['name']})" if "name" in notes else ""
        done = f"{len(self.finished())} of {self.plan.trials} done"
        self.plan.say(f"trial {number}{name}: {ended}{twin}, {notes.get('seconds', 0):.0f} s{so_far}, {done}")

    def _costs(self, trial: FrozenTrial) -> str:
        costs = trial.user_attrs.get("costs", {})
        over = {name: f" (over the limit {self.plan.limits[name]:g})" for name in trial.constraints}
        return "".join(
            f", {cost:.4g} {COSTS[name]}{over.get(name, '') if trial.constraints.get(name, 0) > 0 else ''}"
            for name, cost in costs.items()
        )


def _about(plan: Plan, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return what must be the same in every call of a study."""
    about = {"task": plan.task, "seed": plan.seed, "data": dict(digests), "space": plan.space.searched()}
    aims = {"limits": plan.limits, "second objective": plan.second}
    return about | {name: aim for name, aim in aims.items() if aim}


def _extra(trial: FrozenTrial) -> dict[str, Any]:
    return trial.user_attrs.get("extra", {})


def _was_tried(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING or trial.state.is_finished()
