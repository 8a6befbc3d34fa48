"""The family ``tpp``: event sequences, as tables with a row per event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from seqattn.data.known import Entry, Part, Progress, row_of
from seqattn.data.sequences import Sequences
from seqattn.data.store import is_saved
from seqattn.data.table import ENDINGS

__all__ = ["EventPart", "EventSet"]

_ALSO = {"dev": ("valid", "validation", "val")}


@dataclass(frozen=True, kw_only=True)
class EventPart(Part):
    """One split of event sequences; None where something is not known.

    Attributes
    ----------
    sequences, events
        Sizes.
    types_sha256
        SHA-256 of the event types in file order, as 16-bit little-endian numbers.
    url
        Where the original file can be had.
    """

    sequences: int | None = None
    events: int | None = None
    types_sha256: str | None = None
    url: str | None = None

    @property
    def count(self) -> int | None:
        """Number of sequences."""
        return self.sequences

    def sizes(self) -> dict[str, int | None]:
        """Return the sizes of the split by name."""
        return {"sequences": self.sequences, "events": self.events}


@dataclass(frozen=True, kw_only=True)
class EventSet(Entry):
    """A known set of event sequences.

    Attributes
    ----------
    name, title, source, licence, parts, notes, aliases
        As for every :class:`Entry`.
    unit
        Unit of its times.
    types
        Number of event types K, numbered from 0.
    window
        Observation window, as for :meth:`Sequences.from_table`.
    """

    family = "tpp"
    unit: str
    types: int
    window: str | tuple[float, float] = "last_event"

    @property
    def n_labels(self) -> int:
        """Number of event types."""
        return self.types

    @property
    def urls(self) -> dict[str, str]:
        """Locations of the splits that can be downloaded."""
        return {split: part.url for split, part in self.parts.items() if part.url is not None}

    @property
    def is_downloadable(self) -> bool:
        """Whether every split has a location."""
        return set(self.urls) == set(self.splits)

    def facts(self) -> dict[str, Any]:
        """Return number of types, unit of time and window."""
        return {"types": self.types, "unit": self.unit, "window": self.window}

    def by_hand(self) -> str:
        """Say where a user puts the files."""
        files = ", ".join(f"{split}.parquet" for split in self.splits)
        return f"put {files} (columns seq_id, t, k) into {self.family}/{self.name}"

    def bring(self, folder: Path, progress: Progress | None) -> None:
        """Download the release in JSON and keep it as Parquet."""
        from seqattn.data.download import fetch_split

        for split, part in self.parts.items():
            fetch_split(self, split, part, folder, progress)

    def load(self, path: Path, **options: Any) -> Sequences:
        """Read a split with the types and the window of the set."""
        usual: dict[str, Any] = {"labels": self.types, "window": self.window}
        return Sequences.read(path, **{**usual, **options})

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the entry that a row of ``index.toml`` describes."""
        window = row.get("window", "last_event")
        settled = window if isinstance(window, str) else (float(window[0]), float(window[1]))
        return cls(**row_of(row, EventPart, {"window": settled}))

    @classmethod
    def read(cls, path: Path, **options: Any) -> Sequences:
        """Read a table of events, or saved sequences."""
        return Sequences.read(path, **options)

    @classmethod
    def split_files(cls, place: Path, split: str) -> list[Path]:
        """Return files of a known ending, or a saved folder."""
        found = []
        for stem in (split, *_ALSO.get(split, ())):
            found += [path for ending in ENDINGS if (path := place / f"{stem}{ending}").is_file()]
            found += [place / stem] if is_saved(place / stem) else []
        return found

    @classmethod
    def looked_for(cls, split: str) -> str:
        """Say under which names files of a split are found."""
        return f"{' / '.join((split, *_ALSO.get(split, ())))} with the endings {', '.join(ENDINGS)}"

    @classmethod
    def is_whole(cls, path: Path) -> bool:
        """Tell a file or saved sequences from a folder of splits."""
        return path.is_file() or (path.is_dir() and is_saved(path))
