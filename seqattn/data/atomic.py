"""Interactions inside a data set object of RecBole or hopwise, read by its attributes: neither package is imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from seqattn.data.ids import token_ids
from seqattn.errors import DataError

__all__ = ["dataset_to_frame", "is_dataset"]

_PARTS = ("inter_feat", "field2id_token", "uid_field", "iid_field", "config")


def is_dataset(data: Any) -> bool:
    """Tell whether something is a data set of RecBole or of its fork hopwise, at any stage.

    Parameters
    ----------
    data
        What is asked about.

    Examples
    --------
    >>> is_dataset({"user_id": [1]})
    False
    """
    return all(hasattr(data, name) for name in _PARTS)


def dataset_to_frame(dataset: Any) -> pl.DataFrame:
    """Return the interactions of a data set of RecBole, with the ids of its files in place of its internal ones.

    Before RecBole divides a data set, it holds a table; afterwards the parts hold tensors, those of sequential models
    one row for each prefix of a history. The first item of a history is then only found in the prefix of length one, in
    the part that has this prefix.

    Parameters
    ----------
    dataset
        A ``recbole.data.dataset.Dataset``, whole or a part.

    Returns
    -------
    Columns ``user_id``, ``item_id`` and, where the data set has loaded times, ``timestamp``. Ids are whole numbers
    where every one is written as such, else text, as in files that seqattn reads. Parts have the times that RecBole
    keeps in float32, which in seconds since 1970 are right to a minute: their order is that of the rows.

    Raises
    ------
    DataError
        It is no such data set, or has no columns of users and items.
    """
    if not is_dataset(dataset):
        raise DataError(
            f"{type(dataset).__name__} is no data set of RecBole. Give what recbole.data.create_dataset returns, or a "
            "part of what its build method returns."
        )
    if dataset.uid_field is None or dataset.iid_field is None:
        raise DataError(
            "The data set has no columns of users and items. Set USER_ID_FIELD and ITEM_ID_FIELD."
        )
    users, items, times = _rows(dataset)
    columns = [
        _tokens(dataset, dataset.uid_field, users, "user_id"),
        _tokens(dataset, dataset.iid_field, items, "item_id"),
    ]
    if times is not None:
        columns.append(pl.Series("timestamp", times.astype(np.float64)))
    return pl.DataFrame(columns).filter(pl.Series((users != 0) & (items != 0)))


def _rows(dataset: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return internal ids and times, those first items included that stand in prefixes only."""
    held, names = dataset.inter_feat, (dataset.uid_field, dataset.iid_field, dataset.time_field)
    columns = {name: _array(held, name) for name in names if name is not None and name in held}
    users, items = columns[names[0]], columns[names[1]]
    times = columns.get(names[2])
    lengths_of = dataset.config["ITEM_LIST_LENGTH_FIELD"]
    if lengths_of is None or lengths_of not in held:
        return users, items, times
    suffix, first = dataset.config["LIST_SUFFIX"], _array(held, lengths_of) == 1
    items = np.concatenate([_array(held, names[1] + suffix)[first, 0], items])
    if times is not None:
        times = np.concatenate([_array(held, names[2] + suffix)[first, 0], times])
    return np.concatenate([users[first], users]), items, times


def _array(held: Any, name: str) -> np.ndarray:
    """Return a column of a table, or of tensors by name."""
    return np.asarray(held[name])


def _tokens(dataset: Any, field: str, codes: np.ndarray, name: str) -> pl.Series:
    tokens = pl.Series(name, [str(token) for token in dataset.field2id_token[field]])
    return token_ids(tokens.gather(codes.astype(np.int64)))
