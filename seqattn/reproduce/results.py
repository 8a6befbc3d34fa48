"""Results of cells: what tells one cell from another, and the file to which finished ones are appended."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seqattn.errors import DataError
from seqattn.train.config import json_ready
from seqattn.train.folder import mend_lines

__all__ = ["Identity", "Results", "deciding"]

# Versions of these decide on figures; those of the others are only written down.
_DECIDING = ("seqattn", "torch", "numpy", "scipy")


def deciding(versions: Mapping[str, str], kind: str = "") -> dict[str, str]:
    """Return the versions that decide on figures.

    Parameters
    ----------
    versions
        Versions of all packages.
    kind
        Name of the model within the task; of "recbole:SASRec" the version of that package decides too.

    Examples
    --------
    >>> deciding({"python": "3.11", "torch": "2.13.0"})
    {'torch': '2.13.0'}
    """
    names = [*_DECIDING, *kind.split(":")[:-1]]
    return {name: versions[name] for name in names if name in versions}


@dataclass(frozen=True)
class Identity:
    """What decides on the figures of a cell; cells that differ in any of it are never mixed.

    Attributes
    ----------
    dataset, model, seed
        Its place in the grid.
    kind
        Name of the model within the task.
    settings
        Every constructor argument.
    evaluation
        Options of the evaluation.
    digests
        SHA-256 of the data by split.
    versions
        Of the packages that decide on figures.
    """

    dataset: str
    model: str
    seed: int
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str, int]:
        """Data set, model and seed."""
        return self.dataset, self.model, self.seed

    def key(self) -> str:
        """Return a short text that differs if anything differs."""
        text = json.dumps(json_ready(asdict(self)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """Return what a record of the same place in the grid has otherwise, one text per difference.

        Parameters
        ----------
        record
            A line of the results.

        Examples
        --------
        >>> mine = Identity("taxi", "SAHP", 0, "sahp", settings={"epochs": 40}, digests={"test": "a1"})
        >>> mine.differences({**asdict(mine), "settings": {"epochs": 2}, "digests": {"test": "b2"}})
        ['settings.epochs: 2 there, 40 now', 'other test data']
        """
        found = []
        for part in ("kind", "settings", "evaluation", "versions"):
            value = record.get(part)
            there = _flat(part, deciding(value, self.kind) if part == "versions" and value else value)
            now = _flat(part, json_ready(getattr(self, part)))
            found += [
                f"{name}: {there.get(name)!r} there, {now.get(name)!r} now"
                for name in dict.fromkeys([*there, *now])
                if there.get(name) != now.get(name)
            ]
        digests = record.get("digests", {})
        return found + [
            f"other {role} data" for role, value in self.digests.items() if digests.get(role) != value
        ]


def _flat(part: str, value: Any) -> dict[str, Any]:
    return (
        {f"{part}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {part: value}
    )


class Results:
    """A file of results, one line of JSON per cell that has ended; lines are only ever added.

    Parameters
    ----------
    path
        The file. No other process may write to it meanwhile. A last line that was only half written is removed.

    Raises
    ------
    DataError
        A line is not JSON.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        mend_lines(self.path)
        self.records = [self._parsed(number, line) for number, line in enumerate(self._lines(), 1)]

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []

    def _parsed(self, number: int, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
            record["key"], record["status"]
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"Line {number} of {str(self.path)!r} is damaged: {error}. Remove that line, and its cell runs anew."
            ) from error
        return dict(record)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line, and wait until the disk has it.

        Parameters
        ----------
        record
            What is written; numbers that are not finite become null.
        """
        line = json.dumps(json_ready(record), ensure_ascii=False, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(json.loads(line))

    def latest(self, key: str) -> dict[str, Any] | None:
        """Return the last record of a cell, or None.

        Parameters
        ----------
        key
            What :meth:`Identity.key` returns.
        """
        return next((record for record in reversed(self.records) if record["key"] == key), None)
