"""Estimators from settings, as the command line and searches give them: names and kinds are checked first."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from seqattn.errors import ParameterError, suggest
from seqattn.train.config import check_names
from seqattn.train.space import NO_VALUE

__all__ = ["ELSEWHERE", "build_estimator", "known_model", "own_settings"]

# Constructor arguments that every run states elsewhere than among its settings.
ELSEWHERE = {"random_state": "--seed", "device": "--device", "verbose": "--quiet"}
# Constructor arguments are checked against the plain words of their annotations; other words allow anything.
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float,),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
    "Pattern": (),
}


def known_model(model: str | None, models: Iterable[str]) -> str:
    """Return the name of a model of a task; None is its first.

    Parameters
    ----------
    model
        What was asked for.
    models
        Names of the models that there are.

    Raises
    ------
    ParameterError
        There is none of that name; the nearest one is suggested.

    Examples
    --------
    >>> known_model(None, ["sahp", "poisson"])
    'sahp'
    """
    names = list(models)
    model = model or names[0]
    if model not in names:
        raise ParameterError(
            f"There is no model {model!r}. Models: {', '.join(names)}.{suggest(model, names)}"
        )
    return model


def build_estimator(
    kind: type[Any],
    model: str,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    elsewhere: Mapping[str, str] = ELSEWHERE,
) -> Any:
    """Return an estimator that is ready to be fitted.

    Parameters
    ----------
    kind
        Its class.
    model
        What the task calls it.
    settings
        Constructor arguments that the user chose.
    given
        Constructor arguments from elsewhere, used where the estimator has them and they are not None.
    elsewhere
        Arguments that are no settings, with the option that states them.

    Raises
    ------
    ParameterError
        A name is unknown (the nearest one is suggested), a value is of the wrong kind, or the model has no device.
    """
    parameters = inspect.signature(kind.__init__).parameters
    checked = _checked(settings, parameters, model, elsewhere)
    device = given.get("device")
    if device not in (None, "auto", "cpu") and "device" not in parameters:
        raise ParameterError(
            f"The model {model!r} runs on the CPU only, but device={device!r} was asked for."
        )
    usual = {name: value for name, value in given.items() if name in parameters and value is not None}
    return kind(**{**usual, **checked})


def own_settings(estimator: Any, elsewhere: Mapping[str, str] = ELSEWHERE) -> dict[str, Any]:
    """Return the constructor arguments that :func:`build_estimator` takes as ``settings``.

    Parameters
    ----------
    estimator
        An estimator.
    elsewhere
        As in :func:`build_estimator`.
    """
    params = estimator.get_params(deep=False)
    return {name: value for name, value in params.items() if name not in elsewhere}


def _checked(
    settings: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    model: str,
    elsewhere: Mapping[str, str],
) -> dict[str, Any]:
    """Return settings with whole numbers where numbers are wanted; refuse names and kinds that are not known."""
    for name in settings:
        if name in elsewhere and name in parameters:
            raise ParameterError(f"{name!r} is not a setting of a run: use {elsewhere[name]} instead.")
    allowed = [name for name in parameters if name not in ("self", *elsewhere)]
    if settings and not allowed:
        raise ParameterError(f"The model {model!r} has no settings. Leave {next(iter(settings))!r} out.")
    check_names(settings, allowed, f"a setting of {model!r}")
    return {
        name: _converted(name, value, str(parameters[name].annotation)) for name, value in settings.items()
    }


def _converted(name: str, value: Any, annotation: str) -> Any:
    if isinstance(value, list) and "tuple" in annotation:  # files know lists only
        return tuple(value)
    words = annotation.replace("|", " ").split()
    if value is None and words == [
        "str"
    ]:  # files and shells have no other word for nothing than one that may be meant
        return NO_VALUE
    kinds = tuple(kind for word in words for kind in _KINDS.get(word, (object,)))
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and float in kinds and int not in kinds:
        return float(value)
    if not isinstance(value, kinds) or (
        isinstance(value, bool) and bool not in kinds and object not in kinds
    ):
        raise ParameterError(f"{name}={value!r} is of the wrong kind. Allowed: {' or '.join(words)}.")
    return value
