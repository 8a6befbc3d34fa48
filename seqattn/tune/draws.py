"""The settings of the next trial: drawn by Optuna, and drawn again where another trial has them already."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from seqattn.train.space import list_text

__all__ = ["NewSettings", "distributions", "draw"]

# A space with so few free settings that this many draws find none is as good as used up.
_TRIES = 20
_KINDS = {"int": IntDistribution, "float": FloatDistribution}


def distributions(rules: Mapping[str, Mapping[str, Any]]) -> dict[str, BaseDistribution]:
    """Return what Optuna draws from.

    Parameters
    ----------
    rules
        Searched settings, as in :class:`seqattn.train.search.Space`.
    """
    return {name: _distribution(rule) for name, rule in rules.items()}


def _distribution(rule: Mapping[str, Any]) -> BaseDistribution:
    if rule["type"] == "choice":
        choices = [list_text(choice) if isinstance(choice, list) else choice for choice in rule["choices"]]
        return CategoricalDistribution(choices)
    return _KINDS[rule["type"]](rule["low"], rule["high"], log=rule.get("log", False))


def draw(trial: optuna.Trial, space: Mapping[str, BaseDistribution]) -> None:
    """Give a trial the settings that it does not have yet.

    Parameters
    ----------
    trial
        A trial that runs.
    space
        What is drawn from.
    """
    for name, rule in space.items():
        if isinstance(rule, CategoricalDistribution):
            trial.suggest_categorical(name, rule.choices)
        elif isinstance(rule, IntDistribution):
            trial.suggest_int(name, rule.low, rule.high, log=rule.log)
        elif isinstance(rule, FloatDistribution):
            trial.suggest_float(name, rule.low, rule.high, log=rule.log)


class NewSettings(optuna.samplers.TPESampler):
    """Optuna's TPE sampler, which draws all settings of a trial at once, and again if another trial has them.

    Parameters
    ----------
    seed
        Seed of the draws.
    space
        What is drawn from.
    is_taken
        Whether another trial has these settings.
    """

    def __init__(
        self,
        seed: int,
        space: Mapping[str, BaseDistribution],
        is_taken: Callable[[Mapping[str, Any]], bool],
    ) -> None:
        with warnings.catch_warnings():
            # Optuna calls both experimental: settings that go together are drawn together, and what runs elsewhere is
            # not proposed again.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(seed=seed, multivariate=True, constant_liar=True)
        self._free = {name: rule for name, rule in space.items() if not rule.single()}
        self._is_taken = is_taken

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what is drawn at once: everything, unless the trial was begun before or came with its settings."""
        return {} if trial.params or "fixed_params" in trial.system_attrs else dict(self._free)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return settings that no other trial has; after some tries, others too."""
        params: dict[str, Any] = {}
        for _ in range(_TRIES if search_space else 0):
            together = super().infer_relative_search_space(study, trial)
            params = super().sample_relative(study, trial, together)
            for name, rule in search_space.items():
                if name not in params:
                    params[name] = self.sample_independent(study, trial, name, rule)
            if not self._is_taken(params):
                break
        return params
