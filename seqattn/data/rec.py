"""The family ``rec``: interactions of users with items, as one table that is cut by users or as a table per split."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.data.known import Entry, Part, Progress, row_of
from seqattn.data.splitfile import read_split_file
from seqattn.data.table import ENDINGS
from seqattn.errors import DataError

__all__ = ["InteractionPart", "InteractionSet", "sequences_sha256"]

_ALSO = {"dev": ("valid", "validation", "val")}
_STEMS = ("train", "dev", "test", *_ALSO["dev"])
_WHOLE = (*ENDINGS, ".npy")
_PARTS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class InteractionPart(Part):
    """One split of interactions.

    Attributes
    ----------
    rows
        Number of interactions.
    """

    rows: int

    @property
    def count(self) -> int | None:
        """Number of interactions."""
        return self.rows

    def sizes(self) -> dict[str, int | None]:
        """Return the sizes of the split by name."""
        return {"interactions": self.rows}


@dataclass(frozen=True, kw_only=True)
class InteractionSet(Entry):
    """A known set of interactions, whose last row of each user is for testing and the one before for validation.

    Attributes
    ----------
    name, title, source, licence, parts, notes, aliases
        As for every :class:`Entry`.
    users, items, interactions
        Their numbers.
    length
        Fewest and most rows of a user.
    url
        Where the original file can be had, None if nowhere.
    form
        How the original file is written: "inter", "npy" (see :func:`seqattn.data.splitfile.read_split_file`), "lists"
        (a line per user: the user, then the items) or "movielens" (the archive with ``ratings.dat``).
    sequences_sha256
        What :func:`sequences_sha256` gives; None where copies of the set differ in the order of tied rows.
    packaged
        Where an installed package of another project has the file, such as "recbole/dataset_example/ml-100k".
    """

    family = "rec"
    users: int
    items: int
    interactions: int
    length: tuple[int, int]
    url: str | None = None
    form: str = "inter"
    sequences_sha256: str | None = None
    packaged: str | None = None

    @property
    def n_labels(self) -> int:
        """Number of items."""
        return self.items

    @property
    def is_downloadable(self) -> bool:
        """Whether the original file has a location."""
        return self.url is not None

    def facts(self) -> dict[str, Any]:
        """Return the numbers of users, items and interactions, and the lengths of histories."""
        return {name: getattr(self, name) for name in ("users", "items", "interactions", "length")}

    def by_hand(self) -> str:
        """Say where a user puts the file."""
        return f"put {self.name}.inter (columns user_id, item_id, timestamp) into {self.family}/{self.name}"

    def bring(self, folder: Path, progress: Progress | None) -> None:
        """Download the original file, and keep it as ``.inter`` once it was checked."""
        from seqattn.data.download import download

        done = folder / f"{self.name}.inter"
        if done.is_file():
            return
        raw = folder / f"original.{self.form}"
        if not raw.is_file():
            download(str(self.url), raw, progress)
        try:
            data = Interactions.read(_FORMS[self.form](raw))
            self.check(data)
        except (DataError, OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
            raw.unlink(missing_ok=True)
            raise DataError(f"What {self.url} holds is not {self.name!r}: {error} It was removed.") from error
        part = folder / "writing.inter"
        data.to_inter(part)
        part.replace(done)
        raw.unlink()

    def check(self, data: Interactions) -> None:
        """Refuse interactions that are not the whole of this set.

        Parameters
        ----------
        data
            What is to be it.

        Raises
        ------
        DataError
            A number, or the content, is another one.
        """
        found = {"users": data.n_users, "items": data.n_items, "interactions": data.n_rows}
        for name, value in found.items():
            if value != getattr(self, name):
                raise DataError(f"it has {value:,} {name} instead of {getattr(self, name):,}.")
        if self.sequences_sha256 not in (None, sequences_sha256(data)):
            raise DataError("its sequences are others, as a digest of them says.")

    def differences(self, split: str, data: Interactions) -> list[str]:
        """Return in what interactions differ from what is known of a split, one text each.

        Parameters
        ----------
        split
            Name of the split.
        data
            What is to be it.
        """
        found = {"users": (data.n_users, self.users), "items": (data.n_items, self.items)}
        found["interactions"] = (data.n_rows, self.parts[split].rows)
        return [f"{split} has {n:,} of {known:,} {name}" for name, (n, known) in found.items() if n != known]

    def load(self, path: Path, **options: Any) -> Interactions:
        """Read a file of the set; what is counted in it is known and no warning."""
        return Interactions.read(_table(path), **options)

    def elsewhere(self) -> list[tuple[Path, str]]:
        """Return the folder in an installed package, which is looked for and not imported."""
        if self.packaged is None:
            return []
        package, *rest = self.packaged.split("/")
        found = importlib.util.find_spec(package)
        roots = [] if found is None else list(found.submodule_search_locations or ())
        return [(Path(root, *rest), package) for root in roots]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the entry that a row of ``index.toml`` describes."""
        low, high = row["length"]
        return cls(**row_of(row, InteractionPart, {"length": (low, high)}))

    @classmethod
    def read(cls, path: Path, **options: Any) -> Interactions:
        """Read a table of interactions, or an object array of the MQSA-TED authors."""
        return Interactions.of(_table(path), **options)

    @classmethod
    def cut(cls, data: Interactions, path: Path, split: str) -> Interactions:
        """Return a split of a table that holds all rows: targets are the last rows of each user."""
        return data if path.stem in _STEMS else getattr(leave_one_out(data), _PARTS[split])

    @classmethod
    def split_files(cls, place: Path, split: str) -> list[Path]:
        """Return tables named by splits, or else the table with the name of the folder, of which splits are cut."""
        if any(_named(place, stem) for stem in _STEMS):
            return [path for stem in (split, *_ALSO.get(split, ())) for path in _named(place, stem)]
        return _named(place, place.name or place.resolve().name) if split in _PARTS else []

    @classmethod
    def looked_for(cls, split: str) -> str:
        """Say under which names files of a split are found."""
        names = " / ".join((split, *_ALSO.get(split, ())))
        return f"{names} or the name of the folder, with the endings {', '.join(_WHOLE)}"


def _named(place: Path, stem: str) -> list[Path]:
    return [path for ending in _WHOLE if (path := place / f"{stem}{ending}").is_file()]


def _table(path: Path) -> Path | pl.DataFrame:
    return read_split_file(path).drop("part") if path.suffix.lower() == ".npy" else path


def sequences_sha256(data: Interactions) -> str:
    """Return the SHA-256 of the histories in the order of users, whatever items are called.

    Items are numbered by their first appearance.

    Parameters
    ----------
    data
        The interactions.

    Examples
    --------
    >>> one = Interactions.of({"user_id": [1, 1], "item_id": ["b", "a"]}, time=None)
    >>> two = Interactions.of({"user_id": [1, 1], "item_id": [3, 7]}, time=None)
    >>> sequences_sha256(one) == sequences_sha256(two)
    True
    """
    _, first, items = np.unique(data.items, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype="<i4")
    number[np.argsort(first)] = np.arange(len(first))
    return hashlib.sha256(data.offsets.astype("<i8").tobytes() + number[items].tobytes()).hexdigest()


def _lists(path: Path) -> pl.DataFrame:
    """Read a line per user: the user, then the items in order."""
    users, items = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not all(word.isdecimal() for word in words):
            raise DataError(f"line {number} does not hold whole numbers only.")
        users += [int(words[0])] * (len(words) - 1) if words else []
        items += [int(word) for word in words[1:]]
    position = pl.int_range(pl.len()).over("user_id").alias("timestamp")
    return pl.DataFrame({"user_id": users, "item_id": items}).with_columns(position)


def _movielens(path: Path) -> pl.DataFrame:
    """Read ``ratings.dat`` of the archive: user::item::rating::time."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if Path(name).name == "ratings.dat"]
        if not names:
            raise DataError("the archive has no 'ratings.dat'.")
        content = archive.read(names[0]).replace(b"::", b"\t")
    names = ["user_id", "item_id", "rating", "timestamp"]
    try:
        return pl.read_csv(content, separator="\t", has_header=False, new_columns=names)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"'ratings.dat' cannot be read: {error}.") from error


_FORMS: dict[str, Callable[[Path], Any]] = {
    "inter": lambda path: path,
    "npy": _table,
    "lists": _lists,
    "movielens": _movielens,
}
