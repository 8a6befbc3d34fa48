"""The object arrays of the MQSA-TED authors: training, validation and test items of every user in one ``.npy`` file.

Such files are pickles, which can run any program when they are opened. Here nothing but numpy arrays of plain values
can come out of one.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqattn.errors import DataError

__all__ = ["read_split_file"]

_CALLED = {("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}
_PARTS = ("training", "validation", "test")


class _Unpickler(pickle.Unpickler):
    """Builds numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CALLED:
            raise DataError(f"it asks for {module}.{name}, which is no part of an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_split_file(path: str | Path) -> pl.DataFrame:
    """Read a file of five objects: three dictionaries from user to items, the number of users, and that of items.

    Parameters
    ----------
    path
        A ``.npy`` file. Users and items are numbered from 0; the items of a user are in the order of time.

    Returns
    -------
    A table with ``user_id``, ``item_id``, ``timestamp`` (the position in the user's history) and ``part``: 0 for
    training, 1 for validation, 2 for testing.

    Raises
    ------
    DataError
        The file is damaged or of another form, or would build something that is no array.

    References
    ----------
    Zhu, Shi, Zhang, Wu, Mo, Nie (2024), Collaboration and Transition: Distilling Item Transitions into Multi-Query
    Self-Attention for Sequential Recommendation, the data of the authors' program.
    """
    path = Path(path)
    try:
        objects = _objects(path)
    except (
        DataError,
        pickle.UnpicklingError,
        ValueError,
        EOFError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:
        raise DataError(f"{str(path)!r} is no file of three splits in an object array: {error}.") from error
    *parts, n_users, n_items = objects
    if not all(isinstance(part, dict) for part in parts):
        raise DataError(f"{str(path)!r} holds no three dictionaries from user to items, but {_kinds(parts)}.")
    frame = pl.concat(_rows(part, number, path) for number, part in enumerate(parts))
    last: Any = frame["item_id"].max()
    found = (frame["user_id"].n_unique(), int(last or 0) + 1)
    if found[0] != n_users or found[1] > n_items:
        raise DataError(
            f"{str(path)!r} states {n_users} users and {n_items} items, but holds {found[0]} and {found[1]}."
        )
    position = pl.int_range(pl.len()).over("user_id").alias("timestamp")
    return frame.sort("user_id", "part", maintain_order=True).with_columns(position)


def _objects(path: Path) -> list[Any]:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version} of the format is not known")
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        content = file.read()
    if not kind.hasobject or shape != (5,):
        raise ValueError(f"it holds {kind} of shape {shape} instead of five objects")
    array = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    if not isinstance(array, np.ndarray) or array.shape != (5,):
        raise ValueError("its content is no array of five objects")
    return list(array)


def _kinds(values: list[Any]) -> str:
    return ", ".join(type(value).__name__ for value in values)


def _rows(part: dict[Any, Any], number: int, path: Path) -> pl.DataFrame:
    """Return one row per item; each user has one item for validation and one for testing at most."""
    try:
        users = np.array(list(part), dtype=np.int64)
        lists = [np.atleast_1d(np.asarray(items, dtype=np.int64)) for items in part.values()]
        lengths = [len(items) for items in lists]
        items = np.concatenate([np.zeros(0, dtype=np.int64), *lists])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The {_PARTS[number]} part of {str(path)!r} does not hold whole numbers: {error}."
        ) from error
    if number and max(lengths, default=0) > 1:
        user = users[int(np.argmax(lengths))]
        raise DataError(
            f"The {_PARTS[number]} part of {str(path)!r} has {max(lengths)} items of user {user}, not one."
        )
    kinds = {"user_id": pl.Int64, "item_id": pl.Int64, "part": pl.Int8}
    rows = {
        "user_id": np.repeat(users, lengths),
        "item_id": items,
        "part": np.full(len(items), number, np.int8),
    }
    return pl.DataFrame(rows, schema=kinds)
