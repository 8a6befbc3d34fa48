"""What a run is made of, as text: TOML files, JSON, and ``key=value`` pairs."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date, time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import seqattn
from seqattn.data.catalog import is_on_disk, resource
from seqattn.errors import ParameterError, suggest

__all__ = [
    "Run",
    "check_names",
    "json_ready",
    "parse_pairs",
    "parse_value",
    "read_toml",
    "short_name",
    "to_toml",
    "versions",
]

_PACKAGES = ("torch", "numpy", "polars", "pandas", "scipy", "scikit-learn", "optuna", "safetensors", "click")
# Written down where they are installed, since models of theirs can stand in a table.
_OPTIONAL = ("recbole", "hopwise")
# TOML has no word for "no value" and wants capitals and digits in one way only; these spellings are meant all the same.
_WORDS: dict[str, Any] = {"none": None, "None": None, "null": None, "True": True, "False": False}
_NUMBER = re.compile(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Run:
    """Everything that is needed to repeat a training run.

    Attributes
    ----------
    task
        Name of the task.
    model
        Name of the model within the task; empty for the task's first.
    data
        Known name, file or folder; empty for the task's small data set.
    seed
        Seed of every random draw.
    device
        Where it runs: "auto", "cpu", "cuda" or "cuda:1".
    read
        Options with which the data are read.
    settings
        Constructor arguments of the estimator.
    digests
        SHA-256 of the data by split, as they were when the run was written down.
    """

    task: str = ""
    model: str = ""
    data: str = ""
    seed: int = 0
    device: str = "auto"
    read: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a run that :meth:`to_toml` or a person wrote.

        Parameters
        ----------
        path
            A TOML file with any of the attributes as keys. The text "none" stands for no value; the table
            ``versions`` is passed over.

        Raises
        ------
        ParameterError
            The file is absent, is not TOML, or holds a key or a kind of value that is not known.
        """
        values = read_toml(path)
        values.pop("versions", None)
        allowed = {known.name: type(getattr(cls(), known.name)) for known in fields(cls)}
        check_names(values, allowed, f"a key of {str(path)!r}")
        for name, value in values.items():
            if type(value) is not allowed[name]:
                raise ParameterError(f"{name} in {str(path)!r} is {value!r}. Give a {_KINDS[allowed[name]]}.")
        for name in ("read", "settings"):
            values[name] = {key: _without_word(value) for key, value in values.get(name, {}).items()}
        return cls(**values)

    @classmethod
    def of_options(
        cls, config: str | Path | None, task: str, settings: Iterable[str], read: Iterable[str], **given: Any
    ) -> Run:
        """Return the run that a command line describes.

        Parameters
        ----------
        config
            A file as in :meth:`load`, or the name of a preset in ``tuning/``, such as "paper" for
            ``hawkes-paper.toml``; its values are replaced by the others.
        task
            Name of the task.
        settings, read
            Texts as in :func:`parse_pairs`.
        given
            Other attributes; None stands for one that was not given.

        Raises
        ------
        ParameterError
            The file belongs to another task, or something cannot be read.
        """
        run = cls.load(_preset(config, task)) if config else cls()
        if run.task not in ("", task):
            raise ParameterError(f"{str(config)!r} belongs to the task {run.task!r}, not to {task!r}.")
        run = replace(run, **{name: value for name, value in given.items() if value is not None})
        return replace(
            run,
            task=task,
            # A run is repeated from anywhere, so a path is written in full.
            data=str(Path(run.data).resolve()) if run.data and is_on_disk(run.data) else run.data,
            read={**run.read, **parse_pairs(read, "--read")},
            settings={**run.settings, **parse_pairs(settings, "--set")},
        )

    def to_toml(self, versions: Mapping[str, str] | None = None) -> str:
        """Return the run as the text of a TOML file.

        Parameters
        ----------
        versions
            Versions of packages to write beside it, for the reader.
        """
        values = {known.name: getattr(self, known.name) for known in fields(self)}
        kept = {name: value for name, value in values.items() if value not in ("", {})}
        return to_toml({**kept, **({"versions": dict(versions)} if versions else {})})

    def differences(self, other: Run) -> list[str]:
        """Return what another run has otherwise, one text per difference; the device does not count.

        Parameters
        ----------
        other
            The run to compare with.

        Examples
        --------
        >>> Run("hawkes", seed=1, settings={"epochs": 3}).differences(Run("hawkes", settings={"epochs": 2}))
        ['seed is 1 and 0', 'settings.epochs is 3 and 2']
        """
        mine, theirs = _flat(self), _flat(other)
        return [
            f"{name} is {mine.get(name)!r} and {theirs.get(name)!r}"
            for name in [*mine, *(name for name in theirs if name not in mine)]
            if repr(mine.get(name)) != repr(theirs.get(name))
        ]


_KINDS = {str: "text", int: "whole number", dict: "table"}


def _without_word(value: Any) -> Any:
    return None if isinstance(value, str) and value in ("none", "None") else value


def _flat(run: Run) -> dict[str, Any]:
    """Return the values of a run by name, as they are after writing and reading."""
    flat: dict[str, Any] = {}
    for name, value in tomllib.loads(run.to_toml()).items():
        if name != "device":
            flat |= (
                {f"{name}.{key}": item for key, item in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
    return flat


def short_name(data: str) -> str:
    """Return a short name of data for folders and titles.

    Parameters
    ----------
    data
        Known name or path.

    Examples
    --------
    >>> short_name("mimic-ii/fold1"), short_name("/data/events.csv")
    ('mimic-ii-fold1', 'events')
    """
    return Path(data).stem if Path(data).is_absolute() or is_on_disk(data) else data.replace("/", "-")


def check_names(given: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Refuse names that are not allowed, and say which is near.

    Parameters
    ----------
    given
        Names to check.
    allowed
        Names that there are.
    what
        What they are to be, for the message: "a setting".

    Raises
    ------
    ParameterError
        A name is not allowed.

    Examples
    --------
    >>> check_names(["epochs"], ["epochs", "dropout"], "a setting")
    """
    allowed = list(allowed)
    for name in given:
        if name not in allowed:
            raise ParameterError(
                f"{name!r} is not {what}. Allowed: {', '.join(allowed)}.{suggest(name, allowed)}"
            )


def parse_pairs(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """Read ``key=value`` texts, as they come from a command line.

    Parameters
    ----------
    pairs
        The texts; a later one replaces an earlier one with the same key.
    option
        Name of the option that they were given with, for the message.

    Raises
    ------
    ParameterError
        A text is not of this form.

    Examples
    --------
    >>> parse_pairs(["epochs=3", "form=hidden", "window=[0, 100]"], "--set")
    {'epochs': 3, 'form': 'hidden', 'window': [0, 100]}
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ParameterError(f"{option} {pair!r} is not of the form key=value. Example: {option} seed=1")
        values[name.strip()] = parse_value(text.strip(), f"{option} {name.strip()}")
    return values


def parse_value(text: str, what: str = "The value") -> Any:
    """Read a value in TOML's syntax; a word needs no quotes, and ``none`` is no value.

    Parameters
    ----------
    text
        For example ``3``, ``1e-3``, ``true``, ``"a text"``, ``word``, ``[0, 100]``.
    what
        What it is the value of, for the message.

    Raises
    ------
    ParameterError
        The text begins like a quoted text, list or table, and is none.

    Examples
    --------
    >>> [parse_value(text) for text in ("3", "1e-3", ".5", "true", "hidden", "none")]
    [3, 0.001, 0.5, True, 'hidden', None]
    """
    if text in _WORDS:
        return _WORDS[text]
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in tuple("[{\"'"):
            raise ParameterError(
                f"{what} is {text!r}, which is not a TOML value: {error}. "
                'Examples: 3, 1e-3, true, "text", [0, 100].'
            ) from None
        return text
    return values["value"] if len(values) == 1 else text


def _preset(config: str | Path, task: str) -> Path:
    """Return the file that a name stands for, or the path as it is."""
    place, start = Path(config), f"{task}-"
    presets = {path.stem.removeprefix(start): path for path in resource("tuning").glob(f"{start}*.toml")}
    if place.exists() or place.suffix or len(place.parts) > 1:
        return place
    if str(config) not in presets:
        raise ParameterError(
            f"There is no file and no preset {str(config)!r}. Presets of {task}: {', '.join(map(repr, presets))}."
            f"{suggest(str(config), presets)}"
        )
    return presets[str(config)]


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ParameterError
        The file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParameterError(f"The file {str(path)!r} cannot be read: {reason}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ParameterError(f"{str(path)!r} is not a TOML file: {error}.") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Return values as the text of a TOML file: plain ones first, then one table per mapping.

    Parameters
    ----------
    values
        Texts, numbers, truth values, None (written as the text "none"), dates, lists and mappings of them.

    Raises
    ------
    ParameterError
        A value is of another kind.

    Examples
    --------
    >>> print(to_toml({"seed": 1, "settings": {"form": "mark", "patience": None}}), end="")
    seed = 1
    <BLANKLINE>
    [settings]
    form = "mark"
    patience = "none"
    """
    plain = [
        f"{_key(key)} = {_text(value)}" for key, value in values.items() if not isinstance(value, Mapping)
    ]
    tables = []
    for key, table in values.items():
        if isinstance(table, Mapping):
            lines = [f"{_key(name)} = {_text(value)}" for name, value in table.items()]
            tables.append("\n".join([f"[{_key(key)}]", *lines]))
    return "\n\n".join(["\n".join(plain), *tables] if plain else tables) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _quoted(key)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_text(item)}' for key, item in value.items())}}}"
    raise ParameterError(f"{value!r} cannot be written to a TOML file. Give texts, numbers, lists or tables.")


def json_ready(value: Any) -> Any:
    """Return a value as JSON knows it; numbers that are not finite become None.

    Parameters
    ----------
    value
        Mappings, lists, numbers, texts, dates, paths, numpy's numbers and arrays; anything else becomes its text.

    Examples
    --------
    >>> json_ready({"a": float("nan"), "b": np.arange(2), 3: Path("x")})
    {'a': None, 'b': [0, 1], '3': 'x'}
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.isoformat() if isinstance(value, date | time) else str(value)


def versions() -> dict[str, str]:
    """Return the versions of Python, seqattn and the packages that it stands on."""
    found = {"seqattn": seqattn.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    for name in _OPTIONAL:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
