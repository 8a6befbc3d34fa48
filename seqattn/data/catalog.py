"""Known data sets: what they are, where they lie, and how they are loaded."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqattn.data.sequences import Sequences
from seqattn.data.store import is_saved
from seqattn.data.table import ENDINGS
from seqattn.errors import DataError, ParameterError, suggest

__all__ = [
    "FAMILIES",
    "SPLITS",
    "Entry",
    "Location",
    "Part",
    "cache_folder",
    "entries",
    "entry",
    "find",
    "is_on_disk",
    "is_prepared",
    "load_dataset",
    "load_split",
    "resource",
    "searched",
]

FAMILIES = ("tpp",)
SPLITS = ("train", "dev", "test")
_ALSO = {"dev": ("valid", "validation", "val")}


@dataclass(frozen=True)
class Part:
    """What is known of one split of a data set; None where it is not known.

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


@dataclass(frozen=True)
class Entry:
    """A known data set.

    Attributes
    ----------
    name, family
        Its name, and the family of data that it belongs to.
    title
        What its events are, in one line.
    source
        Repository or page that it comes from.
    licence
        Licence as its source states it, or "not stated".
    unit
        Unit of its times.
    types
        Number of event types K, numbered from 0.
    parts
        For each split what is known of it.
    window
        Observation window, as for :meth:`Sequences.from_table`.
    notes
        Oddities worth knowing.
    aliases
        Other names.
    """

    name: str
    family: str
    title: str
    source: str
    licence: str
    unit: str
    types: int
    parts: Mapping[str, Part]
    window: str | tuple[float, float] = "last_event"
    notes: str = ""
    aliases: tuple[str, ...] = field(default=())

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits."""
        return tuple(self.parts)

    @property
    def urls(self) -> dict[str, str]:
        """Locations of the splits that can be downloaded."""
        return {split: part.url for split, part in self.parts.items() if part.url is not None}


@dataclass(frozen=True)
class Location:
    """Where a data set was found: the folder, and which of the places it is.

    Attributes
    ----------
    path
        The folder with the files of the splits.
    origin
        "SEQATTN_DATA", "cache" or "embedded".
    """

    path: Path
    origin: str


def resource(*parts: str) -> Path:
    """Return the path of something in ``datasets/`` or ``tuning/``, in an installed package or a working copy.

    Parameters
    ----------
    parts
        The path, beginning with "datasets" or "tuning".

    Raises
    ------
    DataError
        It is not there.

    Examples
    --------
    >>> resource("datasets", "tpp", "index.toml").name
    'index.toml'
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package / "_resources", package.parent):
        if (path := root.joinpath(*parts)).exists():
            return path
    raise DataError(f"{'/'.join(parts)!r} is not part of this installation of seqattn.")


def entries(family: str | None = None) -> list[Entry]:
    """Return the known data sets, of one family or of all.

    Examples
    --------
    >>> "taxi" in [known.name for known in entries("tpp")]
    True
    """
    if family is not None and family not in FAMILIES:
        raise ParameterError(f"There is no family {family!r}. Families: {', '.join(FAMILIES)}.")
    return [known for name in FAMILIES if family in (None, name) for known in _read_index(name)]


def _read_index(family: str) -> list[Entry]:
    index = tomllib.loads(resource("datasets", family, "index.toml").read_text(encoding="utf-8"))
    return [_entry(family, row) for row in index["sets"]]


def _entry(family: str, row: dict[str, Any]) -> Entry:
    parts = {split: Part(**row["parts"][split]) for split in SPLITS if split in row["parts"]}
    window = row.get("window", "last_event")
    rest = {key: row[key] for key in ("name", "title", "source", "licence", "unit", "types")}
    return Entry(
        family=family,
        parts=parts,
        window=window if isinstance(window, str) else (float(window[0]), float(window[1])),
        notes=row.get("notes", ""),
        aliases=tuple(row.get("aliases", ())),
        **rest,
    )


def entry(name: str, family: str = "tpp") -> Entry:
    """Return the catalogue's entry for a name or alias.

    Raises
    ------
    DataError
        The name is not known; the nearest one is suggested.

    Examples
    --------
    >>> entry("mimic-ii").name
    'mimic-ii/fold1'
    """
    known = entries(family)
    for found in known:
        if name == found.name or name in found.aliases:
            return found
    names = [found.name for found in known]
    raise DataError(f"There is no known data set {name!r}. Known: {', '.join(names)}.{suggest(name, names)}")


def cache_folder() -> Path:
    """Return the folder for downloads: SEQATTN_CACHE, else the user's cache folder.

    The user's cache folder is XDG_CACHE_HOME where that is set, LOCALAPPDATA on Windows, and ``~/.cache`` elsewhere.
    """
    if chosen := os.environ.get("SEQATTN_CACHE"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "seqattn"
    local = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None
    return (Path(local) if local else Path.home() / ".cache") / "seqattn"


def searched(family: str = "tpp") -> list[Location]:
    """Return the folders that are looked through for a family, in order.

    Raises
    ------
    DataError
        SEQATTN_DATA is set, but is no folder.
    """
    places = [Location(cache_folder() / family, "cache")]
    if chosen := os.environ.get("SEQATTN_DATA"):
        folder = Path(chosen).expanduser()
        if not folder.is_dir():
            raise DataError(f"SEQATTN_DATA is {chosen!r}, which is not a folder. Correct or unset it.")
        places.insert(0, Location(folder / family, "SEQATTN_DATA"))
    return [*places, Location(resource("datasets", family), "embedded")]


def find(name: str, family: str = "tpp") -> Location:
    """Find the folder that holds a known data set.

    Looked at in this order: ``SEQATTN_DATA/<family>/<name>``, the cache folder, what is embedded in the package.

    Parameters
    ----------
    name
        Name or alias of the data set.
    family
        Family of the data.

    Raises
    ------
    DataError
        The name is not known, or the data are nowhere; says how to get them.

    Examples
    --------
    >>> find("taxi").path.name
    'taxi'
    """
    known = entry(name, family)
    places = searched(family)
    for place in places:
        folder = place.path / known.name
        if any(_split_files(folder, split) for split in known.splits):
            return Location(folder, place.origin)
    folders = ", ".join(repr(str(place.path / known.name)) for place in places)
    raise DataError(
        f"The data set {known.name!r} is not on this machine. Looked in: {folders}. {how_to_get(known)}"
    )


def how_to_get(known: Entry) -> str:
    """Say how a data set can be had."""
    files = ", ".join(f"{split}.parquet" for split in known.splits)
    by_hand = (
        f"put {files} (columns seq_id, t, k) into {known.family}/{known.name} of a folder "
        "and set SEQATTN_DATA to that folder"
    )
    if known.urls:
        return f"Download it with: seqattn datasets get {known.name}; or {by_hand}."
    return f"It cannot be downloaded from here. Its source is {known.source}; {by_hand}."


def load_dataset(
    name: str, split: str | None = None, *, family: str = "tpp", **options: Any
) -> Sequences | dict[str, Sequences]:
    """Load a known data set.

    Parameters
    ----------
    name
        Name or alias. "taxi" is part of the package; see :func:`find` for where others are looked for.
    split
        "train", "dev" or "test"; None loads all.
    family
        Family of the data.
    options
        As in :meth:`Sequences.from_table`; they replace what the catalogue says of types and window.

    Returns
    -------
    Sequences of one split, or a dictionary of all.

    Raises
    ------
    DataError
        The name is not known, or the data are not on this machine.

    Examples
    --------
    >>> load_dataset("taxi", "test").n_events
    14820
    """
    known = entry(name, family)
    place = find(name, family)
    if split is not None:
        return _load_known(known, place.path, split, options)
    return {one: _load_known(known, place.path, one, options) for one in known.splits}


def _load_known(known: Entry, folder: Path, split: str, options: dict[str, Any]) -> Sequences:
    usual: dict[str, Any] = {"labels": known.types, "window": known.window}
    if split not in known.splits:
        raise DataError(
            f"{known.name!r} has no split {split!r}. Splits: {', '.join(known.splits)}.{suggest(split, known.splits)}"
        )
    return Sequences.read(_one_file(folder, split), **{**usual, **options})


def load_split(data: str | Path, split: str, **options: Any) -> Sequences:
    """Load one split of what a user names: a file, a folder, or a known data set.

    Parameters
    ----------
    data
        A file, which is read whole whatever the split; a folder with the files ``train``, ``dev`` and ``test`` of
        any ending that can be read ("valid", "validation" and "val" stand for "dev"); a folder written by
        :meth:`Sequences.save`; or a known name. See :func:`is_on_disk` for what is both.
    split
        Name of the split: "train", "dev", "test", or another that the folder has.
    options
        As in :meth:`Sequences.from_table`.

    Raises
    ------
    DataError
        Nothing of that name exists, or the folder lacks the split; says which files were looked for.

    Examples
    --------
    >>> load_split("taxi", "dev").n_events
    7404
    """
    path = Path(data)
    if path.is_file() or (path.is_dir() and is_saved(path)):
        return Sequences.read(path, **options)
    if is_on_disk(path):
        return Sequences.read(_one_file(path, split), **options)
    names = _known_names()
    if str(data) not in names:
        raise DataError(
            f"There is no file, folder or known data set {str(data)!r}. Known data sets: {', '.join(names)}."
            f"{suggest(data, names)}"
        )
    known = entry(str(data))
    return _load_known(known, find(known.name).path, split, options)


def is_on_disk(data: str | Path) -> bool:
    """Tell whether data are a file or folder: one that exists, and has data in it if it is called as a known data set.

    So a known name stays one where there is a folder of that name with results.

    Parameters
    ----------
    data
        What a user names.
    """
    path = Path(data)
    if not path.is_dir() or is_saved(path) or str(data) not in _known_names():
        return path.exists()
    return any(_split_files(path, split) for split in SPLITS)


def is_prepared(data: str | Path, split: str) -> bool:
    """Tell whether a split is read from saved sequences, whose windows and times are settled.

    Parameters
    ----------
    data, split
        As in :func:`load_split`.
    """
    path = Path(data)
    if path.is_dir() and is_on_disk(path) and not is_saved(path):
        return any(is_saved(found) for found in _split_files(path, split))
    return is_saved(path)


def _known_names() -> list[str]:
    return [name for known in entries("tpp") for name in (known.name, *known.aliases)]


def _split_files(folder: Path, split: str) -> list[Path]:
    """Return what a folder holds for a split: files of a known ending, or a saved folder."""
    found = []
    for stem in (split, *_ALSO.get(split, ())):
        found += [path for ending in ENDINGS if (path := folder / f"{stem}{ending}").is_file()]
        found += [folder / stem] if is_saved(folder / stem) else []
    return found


def _one_file(folder: Path, split: str) -> Path:
    found = _split_files(folder, split)
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(
            f"The folder {str(folder)!r} holds {names} for the split {split!r}. Keep one of them."
        )
    if found:
        return found[0]
    stems = (split, *_ALSO.get(split, ()))
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
    raise DataError(
        f"The folder {str(folder)!r} has no file for the split {split!r}. Looked for {' / '.join(stems)} with the "
        f"endings {', '.join(ENDINGS)}. The folder holds: {there}."
    )
