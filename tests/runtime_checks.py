"""The checker of types and shapes that jaxtyping puts around every function of the package while tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

from beartype import BeartypeConf, FrozenDict, beartype

F = TypeVar("F", bound=Callable[..., Any])

# Methods are decorated one by one, outside their class, where Self has no meaning to beartype; mypy checks it.
# A whole number may stand where a float is asked for, as everywhere in Python's typing.
_SETTINGS = BeartypeConf(hint_overrides=FrozenDict({Self: Any}), is_pep484_tower=True)


def check(function: F) -> F:
    return beartype(conf=_SETTINGS)(function)
