"""The order of interactions: by user, then time, then row, in passes that are linear where the log allows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import sparse

__all__ = ["DUPLICATES", "Ordered", "ordered"]

DUPLICATES = ("keep", "drop", "drop_consecutive")


@dataclass(frozen=True)
class Ordered:
    """Rows in their order, and what was counted.

    Attributes
    ----------
    offsets, items, times
        As in :class:`seqattn.data.interactions.Interactions`; times as they were given to :func:`ordered`.
    n_users
        Number of users with rows.
    n_tied, n_tied_users
        Rows that have the time of the row before, and the users who have such rows.
    n_repeated
        Rows that repeat user, item and time of an earlier one.
    is_dropped
        Whether these were dropped.
    n_consecutive
        Rows that were dropped because their item is that of the row before.
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    n_users: int
    n_tied: int = 0
    n_tied_users: int = 0
    n_repeated: int = 0
    is_dropped: bool = False
    n_consecutive: int = 0

    def notes(self) -> Iterator[str]:
        """Return what was counted, a sentence or two each."""
        if self.n_tied:
            share = self.n_tied_users / max(self.n_users, 1)
            yield (
                f"{self.n_tied:,} rows have the time of the user's row before; such rows keep the order of the table. "
                f"This concerns {self.n_tied_users:,} of {self.n_users:,} users ({share:.1%})."
            )
        if self.n_repeated:
            done = "dropped" if self.is_dropped else "kept"
            rows = "1 row that repeats" if self.n_repeated == 1 else f"{self.n_repeated:,} rows that repeat"
            yield f"{rows} user, item and time of an earlier one: {done} (duplicates='keep' or 'drop' decides)."
        if self.n_consecutive:
            rows = (
                "1 row that repeats"
                if self.n_consecutive == 1
                else f"{self.n_consecutive:,} rows that repeat"
            )
            yield f"{rows} the item of the user's row before: dropped."


def ordered(
    users: np.ndarray, items: np.ndarray, times: np.ndarray | None, n_users: int, duplicates: str = "keep"
) -> Ordered:
    """Bring the rows of each user together, sorted by time; rows of one time keep their order.

    Parameters
    ----------
    users, items
        Codes by row.
    times
        Times by row, None where the order of the rows is the order.
    n_users
        Number of users.
    duplicates
        One of :data:`DUPLICATES`.

    Examples
    --------
    >>> users, items, times = np.array([1, 0, 1]), np.array([5, 6, 7]), np.array([9, 1, 3])
    >>> ordered(users, items, times, 2).items.tolist()
    [6, 7, 5]
    """
    order = _order(users, times, n_users)
    if order is not None:
        users, items = users[order], items[order]
        times = None if times is None else times[order]
    is_same = users[1:] == users[:-1]
    tied = (
        np.zeros(0, dtype=np.int64)
        if times is None
        else np.flatnonzero(is_same & (times[1:] == times[:-1])) + 1
    )
    repeated = _repeated(users, items, times, tied)
    n_tied_users = int(np.count_nonzero(np.diff(users[tied], prepend=-1)))
    n_consecutive, lost = 0, repeated if duplicates == "drop" else np.zeros(0, dtype=np.int64)
    if duplicates == "drop_consecutive":
        lost = np.flatnonzero(is_same & (items[1:] == items[:-1])) + 1
        n_consecutive = len(lost)
    if len(lost):
        kept = np.ones(len(users), dtype=bool)
        kept[lost] = False
        users, items, times = users[kept], items[kept], None if times is None else times[kept]
    sizes = np.bincount(users, minlength=n_users)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Ordered(
        offsets,
        items,
        times,
        int(np.count_nonzero(sizes)),
        len(tied),
        n_tied_users,
        len(repeated),
        duplicates == "drop",
        n_consecutive,
    )


def _order(users: np.ndarray, times: np.ndarray | None, n_users: int) -> np.ndarray | None:
    """Return the order of the rows, None where they stand in it.

    A log that is sorted by time needs no comparison: its rows are dealt out to the users in one pass.
    """
    is_grouped = not (users[1:] < users[:-1]).any()
    falls = None if times is None else times[1:] < times[:-1]
    if falls is None or not (falls & (users[1:] == users[:-1]) if is_grouped else falls).any():
        return None if is_grouped else _dealt(users, n_users)
    by_time = pl.Series("t", times).to_frame().select(pl.arg_sort_by("t", maintain_order=True)).to_series()
    order = by_time.to_numpy()
    return order[_dealt(users[order], n_users)]


def _dealt(users: np.ndarray, n_users: int) -> np.ndarray:
    """Return the stable order by user: a sparse matrix of users x rows, turned from triplets to rows by counting."""
    n = len(users)
    cells = sparse.coo_array((np.ones(n, dtype=np.int8), (users, np.arange(n))), shape=(n_users, n))
    return cells.tocsr().indices


def _repeated(users: np.ndarray, items: np.ndarray, times: np.ndarray | None, tied: np.ndarray) -> np.ndarray:
    """Return the rows that repeat user, item and time of an earlier one; only rows that share a time can."""
    if times is None or not len(tied):
        return np.zeros(0, dtype=np.int64)
    rows = np.union1d(tied, tied - 1)
    run = np.cumsum(np.isin(rows, tied, invert=True))  # each first row of a time begins another run
    table = pl.DataFrame({"run": run, "item": items[rows]})
    is_first = table.select(pl.struct("run", "item").is_first_distinct()).to_series().to_numpy()
    return rows[~is_first]
