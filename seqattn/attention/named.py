"""Patterns as text: ``local``, ``local(32) | prefix(1)``, ``2 * local(32) + 2 * routing(clusters=8)``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from seqattn.attention.pattern import HeadMix, Pattern
from seqattn.attention.patterns import Blocked, Dense, Dilated, Local, Neighborhood, Prefix
from seqattn.attention.routing import Routing
from seqattn.errors import ParameterError, suggest

__all__ = ["PATTERNS", "as_pattern"]

PATTERNS: dict[str, type[Pattern]] = {
    pattern.name: pattern for pattern in (Dense, Local, Neighborhood, Blocked, Dilated, Routing)
}
"""The short strings that stand for a pattern with its default parameters."""

_KINDS: dict[str, type[Pattern]] = {Prefix.name: Prefix, **PATTERNS}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_BOOLS = {"true": True, "false": False}
_EXAMPLES = "'local(32) | prefix(1)', 'routing(clusters=8, window=32)', '2 * local(32) + 2 * routing'"


def as_pattern(pattern: str | Pattern) -> Pattern:
    """Return the pattern that a text stands for; pattern objects pass through.

    A text is a name, or a name with parameters in parentheses: numbers, words, ``true`` and ``false``, as its class
    takes them. ``|`` joins two patterns to their union, ``&`` to their intersection, and ``2 * this + 2 * that`` gives
    two heads the one and two heads the other. Nothing in the text is run.

    Parameters
    ----------
    pattern
        A pattern object, or a text made of the names ``"dense"``, ``"local"``, ``"neighborhood"``, ``"blocked"``,
        ``"dilated"``, ``"prefix"`` and ``"routing"``.

    Raises
    ------
    ParameterError
        No pattern has this name, a parameter is not one of it, or the text is of another form.

    Examples
    --------
    >>> as_pattern("local(32, right=4)")
    Local(left=32, right=4)
    >>> as_pattern("local(8) | prefix(1)") == Local(8) | Prefix(1)
    True
    >>> as_pattern("1 * local(8) + 3 * dense").parts
    ((1, Local(left=8, right=0)), (3, Dense()))
    """
    if isinstance(pattern, Pattern):
        return pattern
    text = str(pattern).strip()
    try:
        return _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ParameterError):
            raise
        raise _unreadable(text) from None


def _read(node: ast.expr) -> Pattern:
    """Return the pattern of a part of the text."""
    match node:
        case ast.BinOp(left, ast.BitOr(), right):
            return _one(left) | _one(right)
        case ast.BinOp(left, ast.BitAnd(), right):
            return _one(left) & _one(right)
        case ast.BinOp(_, ast.Add() | ast.Mult(), _):
            return HeadMix(tuple(_heads(node)))
        case ast.Name(name):
            return _kind(name)()
        case ast.Call(ast.Name(name), values, options):
            return _made(_kind(name), values, options)
    raise _unreadable(ast.unparse(node))


def _one(node: ast.expr) -> Pattern:
    """Return a side of ``|`` or ``&``."""
    pattern = _read(node)
    if isinstance(pattern, HeadMix):
        raise ParameterError(
            f"Numbers of heads cannot stand beside | or &: {ast.unparse(node)!r}. Put parentheses around what the "
            "heads share, such as '2 * (local(32) | prefix(1)) + 2 * dense'."
        )
    return pattern


def _heads(node: ast.expr) -> Iterator[tuple[int, Pattern]]:
    """Yield numbers of heads and their patterns from ``2 * this + 2 * that``."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            yield from _heads(left)
            yield from _heads(right)
        case ast.BinOp(ast.Constant(int(count)), ast.Mult(), right):
            yield count, _one(right)
        case _:
            raise _unreadable(ast.unparse(node))


def _made(kind: type[Pattern], values: list[ast.expr], options: list[ast.keyword]) -> Pattern:
    """Return a pattern with its parameters."""
    names = [field.name for field in fields(kind)]
    given = [*zip(names, values, strict=False), *((option.arg or "**", option.value) for option in options)]
    allowed = f"Parameters of {kind.name!r}: {', '.join(names) or 'none'}."
    if len(values) > len(names):
        raise ParameterError(f"{len(values)} values are too many. {allowed}")
    for place, (name, _) in enumerate(given):
        if name not in names:
            raise ParameterError(f"There is no parameter {name!r}. {allowed}{suggest(name, names)}")
        if name in (before for before, _ in given[:place]):
            raise ParameterError(f"{name!r} is given twice. {allowed}")
    wanted = {field.name: type(field.default) for field in fields(kind)}
    return kind(**{name: _value(node, f"{name} of {kind.name!r}", wanted[name]) for name, node in given})


def _value(node: ast.expr, what: str, kind: type) -> Any:
    """Return a number or a truth value, or a word as text, if it is of the kind of the default."""
    try:
        value = _BOOLS.get(node.id, node.id) if isinstance(node, ast.Name) else ast.literal_eval(node)
    except ValueError:
        value = ast.unparse(node)
    if type(value) is int and kind is float:
        return float(value)
    if type(value) is not kind:
        raise ParameterError(f"{what} must be {_WORDS[kind]}, got {value!r}.")
    return value


def _kind(name: str) -> type[Pattern]:
    if name not in _KINDS:
        known = ", ".join(repr(one) for one in _KINDS)
        raise ParameterError(
            f"There is no attention pattern {name!r}. Patterns: {known}.{suggest(name, _KINDS)}"
        )
    return _KINDS[name]


def _unreadable(text: str) -> ParameterError:
    return ParameterError(f"{text!r} is no attention pattern. Examples: {_EXAMPLES}.")
