"""How labelled series come to a classifier: splits of known data, files cut into parts, and new data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqattn.classify.folds import cut
from seqattn.data import catalog
from seqattn.data.panels import Panel
from seqattn.errors import DataError, ParameterError

__all__ = ["deviations", "labels_of", "load_new", "load_split", "reading", "splits", "training_part"]

_FAMILY = "uea"


def load_split(data: str | Path, split: str, /, **read: Any) -> Panel:
    """Load one split of a known data set, folder or archive, or a whole file.

    Parameters
    ----------
    data
        Known name, folder or ZIP archive with ``NAME_TRAIN.ts`` and ``NAME_TEST.ts``, or ``.ts`` file.
    split
        ``"train"`` or ``"test"``, or ``"dev"`` where there is one; a file has no splits and is read whole.
    read
        Reading options; there are none.

    Raises
    ------
    DataError
        The data cannot be found or used.
    ParameterError
        There is no such reading option.
    """
    if read:
        raise ParameterError(f"Files of series have no reading options. Leave {next(iter(read))!r} out.")
    panel: Panel = catalog.load_split(data, split, family=_FAMILY)
    return panel


def splits(
    data: str | Path,
    roles: Sequence[str] = ("train", "dev"),
    /,
    *,
    share: float | None = 0.2,
    seed: int = 0,
    **read: Any,
) -> dict[str, Panel]:
    """Load the parts that training needs.

    The sets of the archive have no development part: the role ``"dev"`` is left out unless there are files for it. Of
    a single file test cases are cut at random, the same share of every class.

    Parameters
    ----------
    data, read
        As in :func:`load_split`.
    roles
        Which parts: ``"train"``, ``"dev"``, ``"test"``.
    share
        Share of a single file's cases for testing; None keeps the file whole.
    seed
        Seed of the cut.

    Returns
    -------
    Panels by role.

    Raises
    ------
    DataError
        The data cannot be found or used.
    """
    there = catalog.splits_of(data, _FAMILY)
    if there:
        wanted = [role for role in roles if role in there or role != "dev"]
        return {role: load_split(data, role, **read) for role in wanted}
    whole = load_split(data, "train", **read)
    if "test" not in roles or share is None:
        return {"train": whole}
    kept, held_out = cut(labels_of(whole), share, seed)
    return {"train": whole.select(kept), "test": whole.select(held_out)}


def labels_of(X: Panel) -> np.ndarray:
    """Return the labels of a panel.

    Parameters
    ----------
    X
        A panel.

    Raises
    ------
    DataError
        It has none.
    """
    if X.labels is None:
        raise DataError(
            "The data have no labels, and learning and evaluation need one per case. A .ts file names its classes "
            "behind '@classLabel true' and ends every line with one."
        )
    return X.labels


def training_part(data: str | Path, split: str, /, **read: Any) -> Panel | None:
    """Return the training data that lie beside some other split; None if there are none.

    Parameters
    ----------
    data, read
        As in :func:`load_split`.
    split
        The other split.
    """
    if split == "train" or "train" not in catalog.splits_of(data, _FAMILY):
        return None
    return load_split(data, "train", **read)


def reading(model: Any) -> dict[str, Any]:
    """Return the reading options that a fitted model remembers: none.

    Parameters
    ----------
    model
        A fitted classifier.
    """
    return {}


def load_new(
    model: Any,
    data: str | Path,
    split: str,
    into: Path | None = None,
    usual: Mapping[str, Any] | None = None,
    /,
    **read: Any,
) -> Panel:
    """Load data for a fitted classifier.

    Parameters
    ----------
    model
        A fitted classifier; it says itself which series it takes.
    data, split, read
        As in :func:`load_split`.
    into
        Not used: series are read into memory.
    usual
        Reading options that stand unless others are given.
    """
    return load_split(data, split, **{**(usual or {}), **read})


def deviations(name: str, parts: Mapping[str, Panel]) -> list[str]:
    """Return in what data differ from what the catalogue says of the data set of that name.

    Parameters
    ----------
    name
        Known name of the data set.
    parts
        The data by split.

    Examples
    --------
    >>> train = load_split("BasicMotions", "train")
    >>> deviations("BasicMotions", {"train": train.select(range(39))})
    ['train holds 39 of 40 cases']
    """
    known: Any = catalog.entry(name, _FAMILY)
    return [text for split, X in parts.items() for text in known.differences(split, X)]
