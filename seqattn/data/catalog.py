"""Known data sets: what they are, where they lie, and how they are loaded."""

from __future__ import annotations

import contextlib
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqattn.data.known import Entry
from seqattn.data.rec import InteractionSet
from seqattn.data.tpp import EventSet
from seqattn.data.uea import SeriesSet
from seqattn.errors import DataError, ParameterError, suggest

__all__ = [
    "FAMILIES",
    "SPLITS",
    "Location",
    "cache_folder",
    "entries",
    "entry",
    "find",
    "is_on_disk",
    "load_dataset",
    "load_split",
    "resource",
    "searched",
    "splits_of",
]

# What is special to a family is with its kind of entry.
_KINDS: dict[str, type[Entry]] = {kind.family: kind for kind in (EventSet, SeriesSet, InteractionSet)}
FAMILIES = tuple(_KINDS)
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Location:
    """Where a data set was found: the folder, and which of the places it is.

    Attributes
    ----------
    path
        The folder with the files of the splits, or the archive.
    origin
        "SEQATTN_DATA", "cache", "embedded", or the name of an installed package of another project.
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
    names = FAMILIES if family is None else (_kind(family).family,)
    return [known for name in names for known in _read_index(name)]


def _kind(family: str) -> type[Entry]:
    if family not in _KINDS:
        raise ParameterError(f"There is no family {family!r}. Families: {', '.join(FAMILIES)}.")
    return _KINDS[family]


def _read_index(family: str) -> list[Entry]:
    index = tomllib.loads(resource("datasets", family, "index.toml").read_text(encoding="utf-8"))
    return [_kind(family).from_row(row) for row in index["sets"]]


def entry(name: str, family: str | None = None) -> Entry:
    """Return the catalogue's entry for a name or alias.

    Parameters
    ----------
    name
        Name or alias.
    family
        Family in which it is looked for; None looks in all.

    Raises
    ------
    DataError
        The name is not known; the nearest one is suggested.

    Examples
    --------
    >>> entry("mimic-ii").name, entry("BasicMotions").family
    ('mimic-ii/fold1', 'uea')
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


def searched(family: str) -> list[Location]:
    """Return the folders that are looked through for a family, in order.

    Parameters
    ----------
    family
        Family of the data.

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
    with contextlib.suppress(DataError):  # no text is embedded
        places.append(Location(resource("datasets", family), "embedded"))
    return places


def find(name: str, family: str | None = None) -> Location:
    """Find the folder or archive that holds a known data set.

    Looked at in this order: ``SEQATTN_DATA/<family>/<name>``, the cache folder, what is embedded in the package, and
    for ``ml-100k`` the example that an installed recbole has.

    Parameters
    ----------
    name
        Name or alias of the data set.
    family
        Family of the data; None looks in all.

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
    places = [
        Location(path, place.origin) for place in searched(known.family) for path in known.places(place.path)
    ]
    places += [Location(path, origin) for path, origin in known.elsewhere()]
    for place in places:
        if any(known.split_files(place.path, split) for split in known.splits):
            return place
    looked = ", ".join(repr(str(place.path)) for place in places)
    raise DataError(
        f"The data set {known.name!r} is not on this machine. Looked in: {looked}. {how_to_get(known)}"
    )


def how_to_get(known: Entry) -> str:
    """Say how a data set can be had.

    Parameters
    ----------
    known
        Its entry.
    """
    by_hand = f"{known.by_hand()} of a folder and set SEQATTN_DATA to that folder"
    if known.is_downloadable:
        return f"Download it with: seqattn datasets get {known.name}; or {by_hand}."
    return f"It cannot be downloaded from here. Its source is {known.source}; {by_hand}."


def load_dataset(name: str, split: str | None = None, *, family: str | None = None, **options: Any) -> Any:
    """Load a known data set.

    Parameters
    ----------
    name
        Name or alias. "taxi" and "BasicMotions" are part of the package; see :func:`find` for where others are
        looked for.
    split
        "train", "dev" or "test"; None loads all that the data set has.
    family
        Family of the data; None looks in all.
    options
        For event sequences as in :meth:`Sequences.from_table`; they replace what the catalogue says of types and
        window. For interactions as in :meth:`seqattn.data.interactions.Interactions.of`.

    Returns
    -------
    Data of one split, or a dictionary of all: :class:`Sequences` of events, :class:`seqattn.data.panels.Panel` of
    labelled series, :class:`seqattn.data.interactions.Interactions` of users with items, where the test split has the
    last row of each user, "dev" the one before, and both have the codes of the training split.

    Raises
    ------
    DataError
        The name is not known, or the data are not on this machine.

    Examples
    --------
    >>> load_dataset("taxi", "test").n_events
    14820
    >>> {split: len(panel) for split, panel in load_dataset("BasicMotions").items()}
    {'train': 40, 'test': 40}
    """
    known = entry(name, family)
    place = find(known.name, known.family)
    if split is not None:
        return _load_known(known, place.path, split, options)
    return {one: _load_known(known, place.path, one, options) for one in known.splits}


def _load_known(known: Entry, place: Path, split: str, options: dict[str, Any]) -> Any:
    if split not in known.splits:
        raise DataError(
            f"{known.name!r} has no split {split!r}. Splits: {', '.join(known.splits)}.{suggest(split, known.splits)}"
        )
    path = _one_file(type(known), place, split)
    return known.cut(known.load(path, **options), path, split)


def load_split(data: str | Path, split: str, *, family: str = "tpp", **options: Any) -> Any:
    """Load one split of what a user names: a file, a folder, or a known data set.

    Parameters
    ----------
    data
        A file, which is read whole whatever the split; a folder with the files ``train``, ``dev`` and ``test`` of
        any ending that can be read ("valid", "validation" and "val" stand for "dev"); a folder written by
        :meth:`Sequences.save`; for series a folder or ZIP archive with ``NAME_TRAIN.ts`` and ``NAME_TEST.ts``; for
        interactions a folder NAME with one table ``NAME.inter`` (or of another ending) too, of which the last rows of
        each user are held out; or a known name. See :func:`is_on_disk` for what is both.
    split
        Name of the split: "train", "dev", "test", or another that the folder has.
    family
        Family of the data.
    options
        For event sequences as in :meth:`Sequences.from_table`, for interactions as in
        :meth:`seqattn.data.interactions.Interactions.of`.

    Raises
    ------
    DataError
        Nothing of that name exists, or the folder lacks the split; says which files were looked for.

    Examples
    --------
    >>> load_split("taxi", "dev").n_events
    7404
    """
    path, kind = Path(data), _kind(family)
    if kind.is_whole(path):
        return kind.read(path, **options)
    if is_on_disk(path):
        file = _one_file(kind, path, split)
        return kind.cut(kind.read(file, **options), file, split)
    known = _known(data, family)
    return _load_known(known, find(known.name, family).path, split, options)


def _known(data: str | Path, family: str) -> Entry:
    """Return the entry of what a user names, which is no path."""
    names = _known_names(family)
    if str(data) not in names:
        raise DataError(
            f"There is no file, folder or known data set {str(data)!r}. Known data sets: {', '.join(names)}."
            f"{suggest(data, names)}"
        )
    return entry(str(data), family)


def splits_of(data: str | Path, family: str) -> tuple[str, ...]:
    """Return which of the splits "train", "dev" and "test" there are of what a user names; none of a single file.

    Parameters
    ----------
    data, family
        As in :func:`load_split`.

    Raises
    ------
    DataError
        Nothing of that name exists.

    Examples
    --------
    >>> splits_of("BasicMotions", "uea")
    ('train', 'test')
    """
    path, kind = Path(data), _kind(family)
    if kind.is_whole(path):
        return ()
    if is_on_disk(path):
        return tuple(split for split in SPLITS if kind.split_files(path, split))
    return _known(data, family).splits


def is_on_disk(data: str | Path) -> bool:
    """Tell whether data are a file or folder: one that exists, and has data in it if it is called as a known data set.

    So a known name stays one where there is a folder of that name with results.

    Parameters
    ----------
    data
        What a user names.
    """
    path = Path(data)
    is_results = path.is_dir() and str(data) in [name for family in FAMILIES for name in _known_names(family)]
    if not is_results or any(kind.is_whole(path) for kind in _KINDS.values()):
        return path.exists()
    return any(kind.split_files(path, split) for kind in _KINDS.values() for split in SPLITS)


def _known_names(family: str) -> list[str]:
    return [name for known in entries(family) for name in (known.name, *known.aliases)]


def _one_file(kind: type[Entry], place: Path, split: str) -> Path:
    found = kind.split_files(place, split)
    what = "folder" if place.is_dir() else "archive"
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"The {what} {str(place)!r} holds {names} for the split {split!r}. Keep one of them.")
    if found:
        return found[0]
    there = [path.name for path in place.iterdir()] if place.is_dir() else []
    holds = f" The folder holds: {', '.join(sorted(there)[:20]) or 'nothing'}." if place.is_dir() else ""
    raise DataError(
        f"The {what} {str(place)!r} has no file for the split {split!r}. Looked for {kind.looked_for(split)}.{holds}"
    )
