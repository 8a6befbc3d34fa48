"""What a search for settings searches: rules by setting, starting points, limits, as a TOML file holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from seqattn.errors import ParameterError
from seqattn.train.config import check_names, read_toml

__all__ = ["NO_VALUE", "Space", "check_rule", "is_inside", "is_number", "list_text"]

# TOML has no word for it.
NO_VALUE = "none"
_RULES = {"float": ("low", "high", "log"), "int": ("low", "high", "log"), "choice": ("choices",)}
_TABLES = ("space", "fixed", "trial", "refit", "start", "limit", "pruning")


@dataclass(frozen=True)
class Space:
    """What is searched, and what each trial and the final fit are given besides.

    Attributes
    ----------
    model
        Name of the model within the task; None is the task's first.
    rules
        Settings that are searched: ``type`` ("float", "int", "choice") with ``low``, ``high``, ``log`` or
        ``choices``. A choice may be a list; the choice "none" is no value. ``unless`` names values of other settings
        beside which this one means nothing: trials that differ in nothing else are the same.
    fixed, trial, refit
        Settings of every fit, of trials only, and of the final fit only.
    starts
        Settings that are tried first, by name; what one leaves out has the estimator's default.
    limits
        The most that a model may cost, by names in :data:`seqattn.train.costs.COSTS`.
    second
        A cost that is minimised beside the objective; empty for none.
    startup_trials, warmup_epochs
        Trials that must have completed before one is pruned, and epochs before which none is.
    """

    model: str | None = None
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    trial: dict[str, Any] = field(default_factory=dict)
    refit: dict[str, Any] = field(default_factory=dict)
    starts: dict[str, dict[str, Any]] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    startup_trials: int = 5
    warmup_epochs: int = 0
    second: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Space:
        """Read a search space from a TOML file.

        Parameters
        ----------
        path
            A file with the keys of ``tuning/hawkes.toml``.

        Raises
        ------
        ParameterError
            The file cannot be read, or holds something that is not known.
        """
        values = read_toml(path)
        check_names(values, ("model", "second", *_TABLES), f"a key of {str(path)!r}")
        for name in _TABLES:
            if not isinstance(values.setdefault(name, {}), dict):
                raise ParameterError(f"{name!r} in {str(path)!r} is {values[name]!r}. Give a table.")
        for name in ("model", "second"):
            if not isinstance(values.get(name, ""), str):
                raise ParameterError(f"{name!r} in {str(path)!r} is {values[name]!r}. Give a name.")
        for name, settings in values["start"].items():
            if not isinstance(settings, dict):
                raise ParameterError(
                    f"The starting point {name!r} in {str(path)!r} is {settings!r}. Give a table of settings, headed "
                    f"[start.{name}]."
                )
        check_names(values["pruning"], ("startup_trials", "warmup_epochs"), "a key of 'pruning'")
        for name, count in values["pruning"].items():
            if not (is_number(count, "int") and count >= 0):
                raise ParameterError(
                    f"{name!r} in {str(path)!r} is {count!r}. Give a whole number, at least 0."
                )
        if not values["space"]:
            raise ParameterError(f"{str(path)!r} has no table 'space', so there is nothing to search.")
        for name, rule in values["space"].items():
            check_rule(name, rule)
        parts = (values[name] for name in _TABLES[:-1])
        space = cls(values.get("model"), *parts, **values["pruning"])
        return replace(space, second=values.get("second", ""))

    def with_settings(self, settings: Mapping[str, Any]) -> Space:
        """Return the space with some settings fixed, which are then no longer searched.

        Parameters
        ----------
        settings
            Constructor arguments for every fit; they also replace those of trials and of the final fit.
        """
        rules = {
            name: rule
            for name, rule in self.rules.items()
            if name not in settings and not self.is_moot(name, settings)
        }
        trial, refit = ({**part, **_common(part, settings)} for part in (self.trial, self.refit))
        return replace(self, rules=rules, fixed={**self.fixed, **settings}, trial=trial, refit=refit)

    def is_moot(self, name: str, params: Mapping[str, Any]) -> bool:
        """Tell whether a searched setting means nothing beside the values of others.

        Parameters
        ----------
        name
            The searched setting.
        params
            Settings by name.

        Examples
        --------
        >>> rule = {"type": "choice", "choices": [1, 2], "unless": {"alpha": [1.0]}}
        >>> [Space(rules={"window": rule}).is_moot("window", {"alpha": alpha}) for alpha in (0.5, 1.0)]
        [False, True]
        """
        unless = self.rules[name].get("unless", {})
        return any(_plain(params[other]) in values for other, values in unless.items() if other in params)

    def encoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return searched settings as the sampler knows them: a list is written as text, and no value as "none".

        Parameters
        ----------
        params
            Values of searched settings.

        Examples
        --------
        >>> space = Space(rules={"parts": {"type": "choice", "choices": [[1, 2], "none"]}})
        >>> (
        ...     space.encoded({"parts": (1, 2)}),
        ...     space.decoded({"parts": "[1, 2]"}),
        ...     space.decoded({"parts": "none"}),
        ... )
        ({'parts': '[1, 2]'}, {'parts': [1, 2]}, {'parts': None})
        """
        return {name: _plain(value) if name in self.rules else value for name, value in params.items()}

    def decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings as an estimator takes them, the inverse of :meth:`encoded`.

        Parameters
        ----------
        params
            Settings of any kind.
        """
        meant = {
            (name, _plain(choice)): None if choice == NO_VALUE else choice
            for name, rule in self.rules.items()
            for choice in rule.get("choices", ())
        }
        return {
            name: meant.get((name, value), value) if isinstance(value, str) else value
            for name, value in params.items()
        }

    def searched(self) -> dict[str, Any]:
        """Return all but what is asked of the models, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key not in ("limits", "second")}


def _common(part: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in part}


def list_text(value: Any) -> str:
    """Return a list as text.

    Parameters
    ----------
    value
        A list or tuple of JSON values.

    Examples
    --------
    >>> list_text((0.2, 0.4))
    '[0.2, 0.4]'
    """
    return json.dumps(list(value))


def _plain(value: Any) -> Any:
    if value is None:
        return NO_VALUE
    return list_text(value) if isinstance(value, list | tuple) else value


def check_rule(name: str, rule: Any) -> None:
    """Refuse a rule that names no values to choose from.

    Parameters
    ----------
    name
        Name of the searched setting.
    rule
        Its rule, as in :class:`Space`.

    Raises
    ------
    ParameterError
        The rule is none.

    Examples
    --------
    >>> check_rule("dropout", {"type": "float", "low": 0.0, "high": 0.5})
    """
    kind = str(rule.get("type") if isinstance(rule, dict) else None)
    check_names([kind], _RULES, f"a type for the searched setting {name!r}")
    keys = _RULES[kind]
    given = [key for key in rule if key not in ("type", "unless")]
    check_names(given, keys, f"a key of the searched setting {name!r}")
    unless = rule.get("unless", {})
    if not (isinstance(unless, dict) and all(isinstance(values, list) for values in unless.values())):
        raise ParameterError(
            f"'unless' of the searched setting {name!r} is {unless!r}. Give a list of values for each other setting."
        )
    missing = [key for key in keys if key not in rule and key != "log"]
    if missing:
        raise ParameterError(f"The searched setting {name!r} has no {missing[0]!r}.")
    if kind == "choice":
        is_good = isinstance(rule["choices"], list) and len(rule["choices"]) > 0
    else:
        numbers = [is_number(rule[key], kind) for key in ("low", "high")]
        is_known = isinstance(rule.get("log", False), bool)
        is_good = (
            is_known
            and all(numbers)
            and rule["low"] <= rule["high"]
            and (rule["low"] > 0 or not rule.get("log"))
        )
    if not is_good:
        raise ParameterError(
            f"The searched setting {name!r} is {rule}. Give a list of choices, or finite numbers with low <= high "
            "(and 0 < low if log, which is true or false)."
        )


def is_number(value: Any, kind: str) -> bool:
    """Return whether a value is a finite number.

    Parameters
    ----------
    value
        Anything.
    kind
        ``"int"`` for whole numbers only, or ``"float"``.

    Examples
    --------
    >>> is_number(3, "float"), is_number(3.5, "int"), is_number(True, "int"), is_number(float("inf"), "float")
    (True, False, False, False)
    """
    is_of_kind = isinstance(value, int if kind == "int" else int | float) and not isinstance(value, bool)
    return is_of_kind and math.isfinite(value)


def is_inside(value: Any, rule: Mapping[str, Any]) -> bool:
    """Return whether a rule allows a value.

    Parameters
    ----------
    value
        Anything.
    rule
        As in :class:`Space`.

    Examples
    --------
    >>> (
    ...     is_inside(2, {"type": "choice", "choices": [1, 2]}),
    ...     is_inside(2.5, {"type": "int", "low": 1, "high": 3}),
    ... )
    (True, False)
    """
    if rule["type"] == "choice":
        value = _plain(value)
        return any(type(value) is type(choice) and value == choice for choice in map(_plain, rule["choices"]))
    return is_number(value, rule["type"]) and bool(rule["low"] <= value <= rule["high"])
