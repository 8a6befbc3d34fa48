"""Lists of recommendations as tables."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqattn.data.ids import take_ids

__all__ = ["list_table"]


def list_table(
    users: pl.Series,
    item_ids: pl.Series,
    items: NDArray[np.int32],
    scores: NDArray[np.float32],
    *,
    names: tuple[str, str] = ("user_id", "item_id"),
    fallback: NDArray[np.bool_] | None = None,
) -> pl.DataFrame:
    """Return one row per user and place: who, what, ``rank`` from 1, ``score``.

    Parameters
    ----------
    users
        Ids of the rows of ``items``.
    item_ids
        Ids by item code.
    items, scores
        ``(users, k)``; places with the code -1 are left out.
    names
        Names of the first two columns.
    fallback
        Which users' lists are a fallback; a column tells, where there is one.

    Examples
    --------
    >>> items, scores = np.array([[1, -1]], np.int32), np.array([[0.5, np.nan]], np.float32)
    >>> list_table(pl.Series(["u"]), pl.Series(["a", "b"]), items, scores).rows()
    [('u', 'b', 1, 0.5)]
    """
    row, place = np.nonzero(items >= 0)
    columns = [
        take_ids(users, row).alias(names[0]),
        take_ids(item_ids, items[row, place]).alias(names[1]),
        pl.Series("rank", (place + 1).astype(np.int32)),
        pl.Series("score", scores[row, place]),
    ]
    if fallback is not None and fallback.any():
        columns.append(pl.Series("fallback", fallback[row]))
    return pl.DataFrame(columns)
