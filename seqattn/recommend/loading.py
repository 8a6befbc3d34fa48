"""How interactions come to a recommender: splits of known data, files cut by users, and new data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqattn.data import catalog
from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.errors import DataError, MissingDependencyError
from seqattn.train.config import check_names

__all__ = ["deviations", "load_new", "load_split", "reading", "splits"]

_FAMILY = "rec"
_READING = ("user", "item", "time", "duplicates")
_KNOWN = ("users", "items")
# What is used where nothing is named, and may be missing.
_USUAL = "ml-100k"


def load_split(data: str | Path, split: str, /, **read: Any) -> Interactions:
    """Load one split of a known data set or folder, or a whole file.

    Parameters
    ----------
    data
        Known name, folder with ``train``/``dev``/``test`` files or with one table of its own name, or file.
    split
        ``"train"``, ``"dev"`` or ``"test"``; a file has no splits and is read whole. Of one table the last row of each
        user is the test split, the one before the dev split.
    read
        ``user``, ``item``, ``time``, ``duplicates``, as in :meth:`seqattn.data.interactions.Interactions.of`.

    Raises
    ------
    DataError
        The data cannot be found or used.
    MissingDependencyError
        It is the table that recbole ships, and neither that package nor the table is there.
    ParameterError
        There is no such reading option.
    """
    check_names([name for name in read if name not in _KNOWN], _READING, "a reading option")
    read = {name: None if name == "time" and value == "none" else value for name, value in read.items()}
    try:
        found: Interactions = catalog.load_split(data, split, family=_FAMILY, **read)
    except DataError as error:
        if str(data) == _USUAL and "not on this machine" in str(error):
            raise MissingDependencyError(
                f"{error} It also comes with RecBole: pip install 'seqattn[recbole]', with Python 3.11."
            ) from error
        raise
    return found


def splits(
    data: str | Path,
    roles: Sequence[str] = ("train", "dev"),
    /,
    *,
    share: float | None = 0.1,
    seed: int = 0,
    **read: Any,
) -> dict[str, Interactions]:
    """Load the parts that training needs; what is one table is cut by the last rows of each user.

    Parameters
    ----------
    data, read
        As in :func:`load_split`.
    roles
        Which parts: ``"train"``, ``"dev"``, ``"test"``.
    share
        None keeps a single file whole for training; every other value is taken alike, for nothing is cut by share.
    seed
        Not used: nothing is cut at random.

    Returns
    -------
    Interactions by role. Where a folder has no development part, the last rows of training are it.

    Raises
    ------
    DataError
        The data cannot be found or used.
    """
    there = catalog.splits_of(data, _FAMILY)
    parts = {
        role: load_split(data, role, **read) for role in roles if role in there or (there and role != "dev")
    }
    if not there:
        whole = load_split(data, "train", **read)
        if share is None:
            return {"train": whole}
        if "test" in roles:
            cut = leave_one_out(whole)
            found = {"train": cut.train, "dev": cut.validation, "test": cut.test}
            return {role: found[role] for role in roles}
        parts = {"train": whole}
    if "dev" in roles and "dev" not in parts and "train" in parts and share is not None:
        parts = _with_dev(parts)
    return {role: parts[role] for role in roles if role in parts}


def _with_dev(parts: Mapping[str, Interactions]) -> dict[str, Interactions]:
    """Take the last row of each user with three or more as development data."""
    whole = parts["train"]
    train, following = whole.without_last()
    is_last = whole.keep(_last_rows(whole, following >= 0))
    return {**parts, "train": train, "dev": is_last} if is_last.n_rows else dict(parts)


def _last_rows(data: Interactions, chosen: np.ndarray) -> np.ndarray:
    rows = np.zeros(data.n_rows, dtype=bool)
    rows[data.offsets[1:][chosen] - 1] = True
    return rows


def reading(model: Any) -> dict[str, Any]:
    """Return the reading options that a fitted model remembers: the names of its columns where they are not the usual.

    Parameters
    ----------
    model
        A fitted recommender.
    """
    usual = {"user": "user_id", "item": "item_id", "time": "timestamp"}
    return {name: value for name, value in model.columns_.named().items() if value != usual[name]}


def load_new(
    model: Any,
    data: str | Path,
    split: str,
    into: Path | None = None,
    usual: Mapping[str, Any] | None = None,
    /,
    **read: Any,
) -> Interactions:
    """Load data for a fitted recommender, with its ids.

    Parameters
    ----------
    model
        A fitted recommender.
    data, split, read
        As in :func:`load_split`. For a file or folder the reading options replace those that the model remembers.
    into
        Not used: interactions are read into memory as numbers.
    usual
        Reading options that stand unless others are given.

    Returns
    -------
    The users with rows. Items have the codes of the model, new ones the next.
    """
    options = {**(reading(model) if catalog.is_on_disk(data) else {}), **(usual or {}), **read}
    found = load_split(data, split, users=model.user_ids_, items=model.item_ids_, **options)
    return found.select(found.lengths > 0)


def deviations(name: str, parts: Mapping[str, Interactions]) -> list[str]:
    """Return in what data differ from what the catalogue says of the data set of that name.

    Parameters
    ----------
    name
        Known name of the data set.
    parts
        The data by split.
    """
    known: Any = catalog.entry(name, _FAMILY)
    return [text for split, X in parts.items() for text in known.differences(split, X)]
