"""Documentation that cannot drift: what users can reach explains its parameters, and states the defaults it has.

Every name without a leading underscore begins with a sentence. Parameters are explained where users get: at the names
that the packages export and at their methods, inherited ones included. Elsewhere a list of parameters may be left out,
but where there is one it must be right.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "seqattn").rglob("*.py")
)
SECTIONS = (
    "Parameters",
    "Attributes",
    "Methods",
    "Returns",
    "Yields",
    "Raises",
    "Warns",
    "See Also",
    "Notes",
    "References",
    "Examples",
)
# Only what is written as a value is a default to compare: "by default those found" is a sentence like any other.
VALUE = r"""``[^`]+``|None|True|False|[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?|"[^"]*"|'[^']*'"""
DEFAULT = re.compile(
    rf"(?:[Dd]efaults? to|[Dd]efault(?: is|:)?|[Bb]y default,?)\s+(?P<after>{VALUE})"
    r"|(?P<before>``[^`]+``)\s+\((?:the\s+)?default\)"
)


class Documented(NamedTuple):
    """A public name with its docstring and the parameters that a caller may give."""

    name: str
    text: str
    parameters: dict[str, inspect.Parameter]
    is_class: bool
    is_reachable: bool


def sections(text: str) -> dict[str, list[str]]:
    """Split a docstring at its underlined headings; the part before the first one has the name ''."""
    lines = inspect.cleandoc(text).splitlines()
    parts: dict[str, list[str]] = {"": []}
    current = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch(r"-{3,}", following) and line.strip():
            current = line.strip()
            parts[current] = []
        elif not re.fullmatch(r"-{3,}", line):
            parts[current].append(line)
    return parts


def entries(lines: list[str]) -> dict[str, str]:
    """Read a Parameters section: name -> description; ``a, b`` describes both."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if line and not line[0].isspace():
            head, _, kind = line.partition(" : ")
            names = [name.strip().lstrip("*") for name in head.split(",")]
            found.update(dict.fromkeys(names, kind))
        else:
            found.update({name: f"{found[name]} {line.strip()}".strip() for name in names})
    return found


def own_parameters(function: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.name not in ("self", "cls") and not p.name.startswith("_")}


def public_methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Give what a class defines itself, without what it overrides of a documented class of this package."""
    for name, member in vars(cls).items():
        if name.startswith("_") or not callable(getattr(cls, name)) or inspect.isclass(member):
            continue
        function = inspect.unwrap(getattr(member, "__func__", member))
        is_ours = getattr(function, "__module__", "").startswith("seqattn")
        if is_ours and not (_documented_above(cls, name) and not member.__doc__):
            yield name, function


def _documented_above(cls: type, name: str) -> bool:
    bases = (base for base in cls.__mro__[1:] if base.__module__.startswith("seqattn"))
    return any(name in vars(base) and vars(base)[name].__doc__ for base in bases)


def reachable() -> set[Any]:
    """Collect what the packages export, with the classes that exported ones inherit from."""
    packages = (importlib.import_module(name) for name in MODULES)
    exported = [
        getattr(package, name)
        for package in packages
        if hasattr(package, "__path__")
        for name in getattr(package, "__all__", ())
    ]
    classes = {base for item in exported if inspect.isclass(item) for base in item.__mro__}
    return classes | {inspect.unwrap(item) for item in exported if inspect.isfunction(item)}


def public_names(module: Any) -> Iterator[Documented]:
    reached = reachable()
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(member):
            for inner, text, parameters in names_of_class(member):
                yield Documented(name + inner, text, parameters, not inner, member in reached)
        elif inspect.isfunction(member):
            function = inspect.unwrap(member)
            yield Documented(
                name, function.__doc__ or "", own_parameters(function), False, function in reached
            )


def explains(cls: type) -> bool:
    """Tell whether a class, or one made from it that has no constructor of its own, explains its parameters."""
    is_said = bool(entries(sections(cls.__doc__ or "").get("Parameters", [])))
    heirs = (heir for heir in cls.__subclasses__() if "__init__" not in vars(heir))
    return is_said or any(map(explains, heirs))


def names_of_class(cls: type) -> Iterator[tuple[str, str, dict[str, inspect.Parameter]]]:
    is_built = "__init__" in vars(cls) or "__dataclass_fields__" in vars(cls)
    # A chapter of an estimator may hold the constructor that the estimator explains.
    is_said = bool(entries(sections(cls.__doc__ or "").get("Parameters", [])))
    is_built = is_said or (is_built and not explains(cls))
    is_protocol = getattr(cls, "_is_protocol", False)
    yield "", cls.__doc__ or "", own_parameters(cls) if is_built and not is_protocol else {}
    for name, function in public_methods(cls):
        yield f".{name}", function.__doc__ or "", own_parameters(function)
    for name, value in vars(cls).items():
        if isinstance(value, property) and not name.startswith("_") and not _documented_above(cls, name):
            yield f".{name}", value.__doc__ or "", {}


def documented_parameters(item: Documented) -> dict[str, str]:
    parts = sections(item.text)
    found = entries(parts.get("Parameters", []))
    return found if found or not item.is_class else entries(parts.get("Attributes", []))


def assert_all(module: str, check: Callable[[Documented], str | None]) -> None:
    """Fail with every complaint that ``check`` has about the public names of a module."""
    names = public_names(importlib.import_module(module))
    found = [f"{module}.{item.name} {text}" for item in names if (text := check(item))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_public_name_begins_with_a_sentence(name):
    def check(item: Documented) -> str | None:
        first = inspect.cleandoc(item.text).split("\n\n")[0]
        return None if re.search(r"\w.*[.:]$", first, re.S) else f"begins with {first!r}"

    assert_all(name, check)
    module = importlib.import_module(name)
    is_empty = not ast.parse(Path(module.__file__).read_text()).body
    assert is_empty or re.search(r"\.", module.__doc__ or ""), "the module has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_the_documented_parameters_are_those_of_the_signature(name):
    def check(item: Documented) -> str | None:
        documented = list(documented_parameters(item))
        if not documented and not item.is_reachable:
            return None
        return (
            None
            if sorted(documented) == sorted(item.parameters)
            else f"explains {documented}, takes {list(item.parameters)}"
        )

    assert_all(name, check)


@pytest.mark.parametrize("name", MODULES)
def test_the_documented_defaults_are_those_of_the_signature(name):
    def check(item: Documented) -> str | None:
        wrong = [
            f"{parameter} is documented with default {stated!r}, has {item.parameters[parameter].default!r}"
            for parameter, text in documented_parameters(item).items()
            for stated in stated_defaults(text)
            if parameter in item.parameters and not agrees(stated, item.parameters[parameter].default)
        ]
        return "; ".join(wrong) or None

    assert_all(name, check)


def stated_defaults(text: str) -> list[str]:
    return [found["after"] or found["before"] for found in DEFAULT.finditer(text)]


def agrees(stated: str, default: Any) -> bool:
    """Compare a default as written with the one in force, as values where it is written as one."""
    text = stated.strip("`")
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        # None often stands for something found at run time, and the text names that.
        return default is None or text in (repr(default), str(default))
    return type(value) is type(default) and value == default


@pytest.mark.parametrize("name", MODULES)
def test_headings_are_known_and_in_one_order(name):
    def check(item: Documented) -> str | None:
        found = [heading for heading in sections(item.text) if heading]
        if unknown := [heading for heading in found if heading not in SECTIONS]:
            return f"has unknown headings {unknown}"
        return (
            None if found == sorted(found, key=SECTIONS.index) else f"has its headings in the order {found}"
        )

    assert_all(name, check)


GOOD = """One sentence.

    Parameters
    ----------
    a
        Length, in seconds. Default: 3.
    b : str
        A word, by default ``"x"``.
    *rest
        More, more.

    Returns
    -------
    A number.
    """


def test_the_reader_of_docstrings_finds_names_and_descriptions():
    found = entries(sections(GOOD)["Parameters"])
    assert list(found) == ["a", "b", "rest"]
    assert found["a"] == "Length, in seconds. Default: 3."


@pytest.mark.parametrize(
    ("text", "default", "is_right"),
    [
        ("Default: 3.", 3, True),
        ("Default: 3.", 4, False),
        ("The default is 0.5; more is slower.", 0.5, True),
        ("The default is 0.5; more is slower.", 0.25, False),
        ('One of ``"a"``, ``"b"`` (default ``"a"``).', "a", True),
        ('One of ``"a"``, ``"b"`` (default ``"a"``).', "b", False),
        ("Defaults to ``None``.", None, True),
        ("Defaults to ``True``.", 1, False),
        ("Defaults to 1e-3.", 0.001, True),
        ("Patterns, by default ``Dense()``.", "Dense()", True),
        ("By default ``study.journal`` in the folder.", None, True),
        ("By default ``study.journal`` in the folder.", "x", False),
        ('``"gap"`` (default), ``"time"``.', "gap", True),
        ('``"gap"`` (the default), ``"time"``.', "time", False),
    ],
)
def test_the_reader_of_defaults_compares_values(text, default, is_right):
    (stated,) = stated_defaults(text)
    assert agrees(stated, default) is is_right


def test_a_sentence_about_what_happens_by_default_states_no_value():
    assert stated_defaults("By default those found in the data. The default depends on the device.") == []
