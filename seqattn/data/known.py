"""What the catalogue says of a data set, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

__all__ = ["Entry", "Part", "Progress", "row_of"]

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is known of one split of a data set; every family has its own kind."""

    @property
    def count(self) -> int | None:
        """Number of sequences or cases."""
        return None

    def sizes(self) -> dict[str, int | None]:
        """Return the sizes of the split by name."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Entry(ABC):
    """A known data set; every family has its own kind, which knows its files and how they are read.

    Attributes
    ----------
    name
        Its name.
    title
        What it is, in one line.
    source
        Repository or page that it comes from.
    licence
        Licence as its source states it, or "not stated".
    parts
        For each split what is known of it.
    notes
        Oddities worth knowing.
    aliases
        Other names.
    """

    family: ClassVar[str]
    name: str
    title: str
    source: str
    licence: str
    parts: Mapping[str, Any]
    notes: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits."""
        return tuple(self.parts)

    @property
    @abstractmethod
    def n_labels(self) -> int:
        """Number of event types or classes."""

    @property
    @abstractmethod
    def is_downloadable(self) -> bool:
        """Whether :meth:`bring` can bring it."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what only sets of this family have, by name."""

    @abstractmethod
    def by_hand(self) -> str:
        """Say where a user puts the files."""

    @abstractmethod
    def bring(self, folder: Path, progress: Progress | None) -> None:
        """Download every split into a folder and check it.

        Parameters
        ----------
        folder
            An existing folder, which may hold what an earlier call has brought.
        progress
            Called with the name of the file, the bytes that are there and the bytes in all (None where not known).
        """

    @abstractmethod
    def load(self, path: Path, **options: Any) -> Any:
        """Read a file of the set, with what is known of it.

        Parameters
        ----------
        path
            The file of a split.
        options
            As for :meth:`read`; they replace what is known.
        """

    def elsewhere(self) -> list[tuple[Path, str]]:
        """Return further folders that may hold the set, each with a word for where that is; looked through last."""
        return []

    def places(self, folder: Path) -> list[Path]:
        """Return where the set lies in a folder of its family: folders or archives, in the order of preference.

        Parameters
        ----------
        folder
            Folder of the family.
        """
        return [folder / self.name]

    @classmethod
    @abstractmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the entry that a row of ``index.toml`` describes.

        Parameters
        ----------
        row
            The row.
        """

    @classmethod
    @abstractmethod
    def read(cls, path: Path, **options: Any) -> Any:
        """Read a file of this family.

        Parameters
        ----------
        path
            The file.
        options
            Reading options of the family.
        """

    @classmethod
    def cut(cls, data: Any, path: Path, split: str) -> Any:
        """Return a split of what was read from a file, which holds nothing else unless the family says so.

        Parameters
        ----------
        data
            All that the file holds.
        path
            The file.
        split
            Name of the split.
        """
        return data

    @classmethod
    @abstractmethod
    def split_files(cls, place: Path, split: str) -> list[Path]:
        """Return what a folder or archive holds for a split.

        Parameters
        ----------
        place, split
            A path, which need not exist, and the name of the split.
        """

    @classmethod
    @abstractmethod
    def looked_for(cls, split: str) -> str:
        """Say under which names :meth:`split_files` looks.

        Parameters
        ----------
        split
            Name of the split.
        """

    @classmethod
    def is_whole(cls, path: Path) -> bool:
        """Tell data that have no splits from a folder of splits.

        Parameters
        ----------
        path
            What a user names.
        """
        return path.is_file()


def row_of(row: Mapping[str, Any], part: type[Part], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an entry from a row of ``index.toml``.

    Parameters
    ----------
    row
        The row.
    part
        Kind of its splits.
    own
        What only this family has, in place of the row's own values.
    """
    parts = {split: part(**values) for split, values in row["parts"].items()}
    return {**row, **own, "parts": parts, "aliases": tuple(row.get("aliases", ()))}
