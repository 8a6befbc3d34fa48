"""The family ``uea``: labelled series of several channels, as ``.ts`` files in a folder or a ZIP archive."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from seqattn.data.known import Entry, Part, Progress, row_of
from seqattn.data.panels import Panel
from seqattn.errors import DataError

__all__ = ["SeriesPart", "SeriesSet"]

_ALSO = {"dev": ("valid", "validation", "val")}


@dataclass(frozen=True, kw_only=True)
class SeriesPart(Part):
    """One split of labelled series.

    Attributes
    ----------
    cases
        Number of cases.
    sha256
        SHA-256 of the ``.ts`` file that the figures of this project come from; None where there was none. Other
        copies of the archive spell the same numbers otherwise.
    """

    cases: int
    sha256: str | None = None

    @property
    def count(self) -> int | None:
        """Number of cases."""
        return self.cases

    def sizes(self) -> dict[str, int | None]:
        """Return the sizes of the split by name."""
        return {"cases": self.cases}


@dataclass(frozen=True, kw_only=True)
class SeriesSet(Entry):
    """A known set of labelled series.

    Attributes
    ----------
    name, title, source, licence, parts, notes, aliases
        As for every :class:`Entry`.
    domain
        What kind of measurement it is.
    channels, classes
        Their numbers.
    length
        Shortest and longest length over both splits.
    """

    family = "uea"
    domain: str
    channels: int
    classes: int
    length: tuple[int, int]

    @property
    def n_labels(self) -> int:
        """Number of classes."""
        return self.classes

    @property
    def is_downloadable(self) -> bool:
        """Every set of the archive is, by way of sktime."""
        return True

    def facts(self) -> dict[str, Any]:
        """Return domain, channels, classes and lengths."""
        names = ("domain", "channels", "classes", "length")
        return {name: getattr(self, name) for name in names}

    def by_hand(self) -> str:
        """Say where a user puts the files."""
        files = " and ".join(f"{self.name}_{split.upper()}.ts" for split in self.splits)
        return f"put {files} into {self.family}/{self.name}, or both in {self.family}/{self.name}.zip"

    def bring(self, folder: Path, progress: Progress | None) -> None:
        """Download the set through sktime; what is not the set is removed."""
        from seqattn.data.archive import fetch_ts

        files = fetch_ts(self.name, folder)
        try:
            for split, path in files.items():
                self.check(split, Panel.read(path))
        except DataError:
            for path in files.values():
                path.unlink()
            raise

    def check(self, split: str, data: Panel) -> None:
        """Refuse data that are not a split of this set.

        Parameters
        ----------
        split
            Name of the split.
        data
            What is to be it.

        Raises
        ------
        DataError
            Something differs; says what.
        """
        if differences := self.differences(split, data):
            raise DataError(f"What was found is not {split!r} of {self.name!r}: {'; '.join(differences)}.")

    def differences(self, split: str, data: Panel) -> list[str]:
        """Return in what data differ from what is known of a split, one text each.

        Parameters
        ----------
        split
            Name of the split.
        data
            What is to be it.
        """
        found = []
        if len(data) != self.parts[split].cases:
            found.append(f"{split} holds {len(data):,} of {self.parts[split].cases:,} cases")
        if data.n_channels != self.channels:
            found.append(f"{split} has {data.n_channels:,} channels instead of {self.channels:,}")
        low, high = int(data.lengths.min()), int(data.lengths.max())
        if low < self.length[0] or high > self.length[1]:
            text = f"{self.length[0]} to {self.length[1]}"
            found.append(f"{split} has series of {low} to {high} points instead of {text}")
        return found

    def load(self, path: Path, **options: Any) -> Panel:
        """Read a split."""
        return self.read(path, **options)

    def places(self, folder: Path) -> list[Path]:
        """Return the folder and the archive of the set."""
        return [folder / self.name, folder / f"{self.name}.zip"]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the entry that a row of ``index.toml`` describes."""
        low, high = row["length"]
        return cls(**row_of(row, SeriesPart, {"length": (low, high)}))

    @classmethod
    def read(cls, path: Path, **options: Any) -> Panel:
        """Read a ``.ts`` file."""
        return Panel.read(path, **options)

    @classmethod
    def split_files(cls, place: Path, split: str) -> list[Path]:
        """Return the ``.ts`` files of a split in a folder or a ZIP archive."""
        stems = (split, *_ALSO.get(split, ()))
        names = [path.name for path in place.iterdir()] if place.is_dir() else _members(place)
        return [place / name for name in sorted(names) if _is_of(name.lower(), stems)]

    @classmethod
    def looked_for(cls, split: str) -> str:
        """Say under which names files of a split are found."""
        stems = (split, *_ALSO.get(split, ()))
        return " / ".join(f"{stem}.ts, NAME_{stem.upper()}.ts" for stem in stems)

    @classmethod
    def is_whole(cls, path: Path) -> bool:
        """Tell a file of series from a folder or archive of splits."""
        return path.is_file() and not zipfile.is_zipfile(path)


def _is_of(name: str, stems: tuple[str, ...]) -> bool:
    return name.endswith(".ts") and any(
        name == f"{stem}.ts" or name.endswith(f"_{stem}.ts") for stem in stems
    )


def _members(place: Path) -> list[str]:
    if not (place.is_file() and zipfile.is_zipfile(place)):
        return []
    with zipfile.ZipFile(place) as archive:
        return archive.namelist()
