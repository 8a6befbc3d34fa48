"""Interactions of users with items: flat columns and offsets, in the order of time."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from seqattn.data.clock import Clock, moment
from seqattn.data.ids import codes_among, digest_of_ids, from_pickle, ids_of, joined_ids, take_ids, to_pickle
from seqattn.data.logs import Columns, on_clock, read_log
from seqattn.data.ordering import DUPLICATES, ordered
from seqattn.data.text import write_inter
from seqattn.errors import DataError, ParameterError, SeqattnWarning

__all__ = ["Interactions", "Split", "leave_one_out", "temporal"]


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """Items that users have chosen, one run of rows per user, in the order of time.

    Made by :meth:`of` from anything it knows. Rows of user u stand at ``offsets[u]`` to ``offsets[u + 1]``; rows of
    one time keep the order of the table.

    Parameters
    ----------
    offsets
        Bounds of the users, one more than there are users (int64).
    items
        Code of each row's item: its position in ``item_ids`` (int32).
    times
        Time of each row (float64): the numbers as given, or seconds since the zero of ``clock`` where they were
        dates. None where the order of the rows is the order.
    user_ids, item_ids
        The distinct ids as columns, in the order of their codes and of the kind in which they were given; of Python
        objects where no other kind can hold them.
    notes
        What was counted while reading, one text each.
    clock
        What the times mean.
    n_ignored
        Number of further columns of the table, which were not read.

    Examples
    --------
    >>> log = {"user_id": ["u", "v", "u"], "item_id": [7, 5, 5], "timestamp": [2, 1, 1]}
    >>> data = Interactions.of(log)
    >>> data
    Interactions(2 users, 2 items, 3 rows)
    >>> data.items_of(0), data.item_ids.to_list()
    (array([0, 1], dtype=int32), [5, 7])
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    user_ids: pl.Series
    item_ids: pl.Series
    notes: tuple[str, ...] = ()
    clock: Clock = field(default_factory=Clock)
    n_ignored: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("offsets", np.int64), ("items", np.int32), ("times", np.float64)):
            array = getattr(self, name)
            if array is not None and getattr(array, "dtype", None) != kind:
                object.__setattr__(self, name, np.asarray(array, dtype=kind))
        n_rows, n_times = len(self.items), len(self.items) if self.times is None else len(self.times)
        if len(self.offsets) != len(self.user_ids) + 1 or self.offsets[-1] != n_rows or n_times != n_rows:
            raise DataError(
                "offsets must have one bound more than there are users and end at the number of rows, and every row "
                "needs a time where there are times."
            )

    @classmethod
    def of(
        cls,
        X: Any,
        *,
        user: str = "user_id",
        item: str = "item_id",
        time: str | None = "timestamp",
        users: Any = None,
        items: Any = None,
        duplicates: str = "keep",
    ) -> Self:
        """Read interactions from a table or a file.

        Rows are sorted by user, then time, then their order in the table. Codes follow the sorted ids; ids of kinds
        that have no common order are coded in order of appearance.

        Parameters
        ----------
        X
            A table of polars or pandas, one with the Arrow protocol, or a mapping of columns; the path of a file
            (``.inter``, ``.csv``, ``.tsv``, ``.parquet``, ``.jsonl``); or interactions, which pass unchanged if they
            have the ids asked for.
        user, item
            Columns of ids of any hashable kind. In text files ids are whole numbers where every one is written as
            such, else text.
        time
            Column of times, numbers or dates; None if the order of the rows is the order.
        users, items
            Known ids, whose codes come first; new ones are appended.
        duplicates
            "keep" keeps all rows, "drop" drops rows that repeat user, item and time of an earlier one,
            "drop_consecutive" rows whose item is that of the user's row before.

        Returns
        -------
        The interactions. Rows of one time and repeated rows are counted in a :class:`SeqattnWarning`.

        Raises
        ------
        DataError
            A value is missing, infinite or of the wrong kind; says how many, and where the first one is.
        ParameterError
            A name of a column is none, or ``duplicates`` is not known.
        TypeError
            The input is neither table nor path.

        Examples
        --------
        >>> Interactions.of(
        ...     {"user_id": [1, 1], "item_id": ["b", "c"]}, time=None, items=["c"]
        ... ).item_ids.to_list()
        ['c', 'b']
        """
        made = cls.read(X, user=user, item=item, time=time, users=users, items=items, duplicates=duplicates)
        if not isinstance(X, Interactions):
            for text in made.notes:
                warnings.warn(text, SeqattnWarning, stacklevel=2)
        return made

    @classmethod
    def read(
        cls, X: Any, *, users: Any = None, items: Any = None, duplicates: str = "keep", **columns: str | None
    ) -> Self:
        """Read interactions as :meth:`of` does, without a warning: what was counted is in ``notes`` only.

        Parameters
        ----------
        X, users, items, duplicates
            As for :meth:`of`.
        columns
            ``user``, ``item`` and ``time``, as for :meth:`of`.
        """
        if duplicates not in DUPLICATES:
            raise ParameterError(
                f"duplicates={duplicates!r} is not one of {', '.join(map(repr, DUPLICATES))}."
            )
        known = [
            None if ids is None else ids_of(ids, name, is_once=True)
            for name, ids in (("users", users), ("items", items))
        ]
        if isinstance(X, cls):
            return (X if duplicates == "keep" else X._without_repeats(duplicates)).recoded(*known)
        log = read_log(X, Columns(**columns), *known)  # type: ignore[arg-type]
        rows = ordered(log.users, log.items, log.times, len(log.user_ids), duplicates)
        times = None if rows.times is None else on_clock(rows.times, log.clock)
        notes = tuple(rows.notes())
        return cls(
            rows.offsets, rows.items, times, log.user_ids, log.item_ids, notes, log.clock, log.n_ignored
        )

    def _without_repeats(self, duplicates: str) -> Self:
        kept = ordered(self.users, self.items, self.times, self.n_users, duplicates)
        return replace(self, offsets=kept.offsets, items=kept.items, times=kept.times, notes=(*kept.notes(),))

    def __getstate__(self) -> dict[str, Any]:
        return {name: to_pickle(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: from_pickle(value) for name, value in state.items()})

    def __len__(self) -> int:
        return self.n_users

    def __repr__(self) -> str:
        return f"Interactions({self.n_users:,} users, {self.n_items:,} items, {self.n_rows:,} rows)"

    @property
    def n_users(self) -> int:
        """Number of users, those without rows included."""
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        """Number of items, those without rows included."""
        return len(self.item_ids)

    @property
    def n_rows(self) -> int:
        """Number of interactions."""
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """Number of rows of each user."""
        return np.diff(self.offsets)

    @property
    def users(self) -> np.ndarray:
        """Code of each row's user (int32)."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), self.lengths)

    def items_of(self, user: int | np.integer) -> np.ndarray:
        """Return the item codes of one user, in the order of time.

        Parameters
        ----------
        user
            Code of the user.
        """
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def user_codes(self, ids: Any) -> np.ndarray:
        """Return the codes of users (int64), -1 for unknown ones.

        Parameters
        ----------
        ids
            List, array or column of ids.
        """
        return codes_among(ids_of(ids, "users"), self.user_ids).astype(np.int64)

    def item_codes(self, ids: Any) -> np.ndarray:
        """Return the codes of items (int64), -1 for unknown ones.

        Parameters
        ----------
        ids
            List, array or column of ids.
        """
        return codes_among(ids_of(ids, "items"), self.item_ids).astype(np.int64)

    def select(self, users: Any) -> Self:
        """Return some users with all their rows; items keep their codes.

        Parameters
        ----------
        users
            Codes of the users, in the order wanted, or a Boolean for each user.
        """
        chosen = np.asarray(users)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        return self._taken(chosen, take_ids(self.user_ids, chosen))

    def _taken(self, users: np.ndarray, ids: pl.Series) -> Self:
        """Return the rows of some users under new ids; the code -1 gives a user without rows."""
        lengths = np.where(users < 0, 0, self.lengths[users])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], lengths)
        items, times = self.items[rows], None if self.times is None else self.times[rows]
        return replace(self, offsets=offsets, items=items, times=times, user_ids=ids)

    def keep(self, rows: np.ndarray) -> Self:
        """Return some rows only; users and items keep their codes, and users may be left without rows.

        Parameters
        ----------
        rows
            A Boolean for each row.
        """
        offsets = np.concatenate([[0], np.cumsum(rows)])[self.offsets].astype(np.int64)
        items, times = self.items[rows], None if self.times is None else self.times[rows]
        return replace(self, offsets=offsets, items=items, times=times)

    def without_last(self, n: int = 1) -> tuple[Self, np.ndarray]:
        """Return all but the last ``n`` rows of each user who has at least ``n + 2``, and what came next.

        Parameters
        ----------
        n
            Number of rows, at least 1.

        Returns
        -------
        The rest, in which users with fewer rows keep theirs, and for each user the item of the first row that was
        taken away (int32), -1 where none was.
        """
        if n < 1:
            raise ParameterError(f"n={n!r} must be a whole number of at least 1.")
        cut = self.lengths >= n + 2
        ends = self.offsets[1:] - np.where(cut, n, 0)
        place = np.minimum(ends, max(self.n_rows - 1, 0))
        following = np.where(cut, self.items[place], -1) if self.n_rows else np.full(self.n_users, -1)
        return self.keep(_up_to(self, ends)), following.astype(np.int32)

    def recoded(self, users: pl.Series | None = None, items: pl.Series | None = None) -> Self:
        """Return the same rows with known ids first, then those that are new.

        Parameters
        ----------
        users, items
            Known ids, distinct; None leaves the codes as they are.
        """
        user_ids = self.user_ids if users is None else joined_ids(users, self.user_ids, "Users")
        item_ids = self.item_ids if items is None else joined_ids(items, self.item_ids, "Items")
        if user_ids is self.user_ids and item_ids is self.item_ids:
            return self
        codes = codes_among(self.item_ids, item_ids)[self.items] if self.n_rows else self.items
        wide = replace(self, items=codes, item_ids=item_ids)
        owners = np.full(len(user_ids), -1, dtype=np.int64)
        owners[codes_among(self.user_ids, user_ids)] = np.arange(self.n_users)
        return wide if users is None else wide._taken(owners, user_ids)

    def joined(self, other: Interactions) -> Self:
        """Return these rows and those of others together, in the order of time; at one time these come first.

        Ids of others that are new get the next codes. Without times the rows of others come last.

        Parameters
        ----------
        other
            Other interactions, with times if these have some.

        Raises
        ------
        DataError
            Only one of the two has times, or dates stand against numbers.
        """
        if (self.times is None) != (other.times is None) or self.clock.unit != other.clock.unit:
            raise DataError(
                "Interactions can be joined where both have no times, both numbers, or both dates."
            )
        more = other.recoded(self.user_ids, self.item_ids)
        users, items = np.concatenate([self.users, more.users]), np.concatenate([self.items, more.items])
        times = None if self.times is None else np.concatenate([self.times, more.times])
        rows = ordered(users, items, times, more.n_users)
        found: dict[str, Any] = {"user_ids": more.user_ids, "item_ids": more.item_ids}
        found["notes"] = tuple(dict.fromkeys((*self.notes, *other.notes)))
        return replace(self, offsets=rows.offsets, items=rows.items, times=rows.times, **found)

    def to_table(self, user: str = "user_id", item: str = "item_id", time: str = "timestamp") -> pl.DataFrame:
        """Return a polars table with a row per interaction: user, item and, where there are times, time.

        Parameters
        ----------
        user, item, time
            Names of the columns.
        """
        columns = [
            take_ids(self.user_ids, self.users).alias(user),
            take_ids(self.item_ids, self.items).alias(item),
        ]
        if self.times is not None:
            columns.append(self.clock.series(self.times, time))
        return pl.DataFrame(columns)

    def to_inter(self, path: str | Path) -> None:
        """Write a file that RecBole reads: ``user_id:token``, ``item_id:token`` and, with times, ``timestamp:float``.

        Parameters
        ----------
        path
            A file that ends in ``.inter``.

        Raises
        ------
        DataError
            An id has a tab or a line break in it.
        """
        names = ("user_id", "item_id", "timestamp")
        table = self.to_table()
        if self.times is not None:
            table = table.with_columns(pl.Series("timestamp", self.times))
        write_inter(path, table, names[: table.width])

    def digest(self) -> str:
        """Return the SHA-256 of ids, rows and times."""
        found = hashlib.sha256(digest_of_ids(self.user_ids) + digest_of_ids(self.item_ids))
        for part in (self.offsets, self.items, *([] if self.times is None else [self.times])):
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()

    def check_learnable(self) -> None:
        """Refuse what nothing can be learned from.

        Raises
        ------
        DataError
            There is one item only, or no user has two rows.
        """
        if self.n_items < 2:
            raise DataError(
                "There is one item only, and nothing to choose from. Give a log with two items or more."
            )
        if not (self.lengths >= 2).any():
            raise DataError(
                f"None of the {self.n_users:,} users has two rows, so that no item follows another. Give longer "
                "histories, or check that the column of users is the right one."
            )


def _up_to(data: Interactions, ends: np.ndarray) -> np.ndarray:
    """Return whether each row comes before the end of its user."""
    return np.arange(data.n_rows) < np.repeat(ends, data.lengths)


@dataclass(frozen=True)
class Split:
    """Interactions in three parts, with the same codes of users and items.

    Attributes
    ----------
    train
        What is learned from.
    validation, test
        The targets; their histories are the parts before.
    notes
        What was counted.
    """

    train: Interactions
    validation: Interactions
    test: Interactions
    notes: tuple[str, ...] = ()


def leave_one_out(interactions: Interactions) -> Split:
    """Hold out the last row of each user for testing, and the one before for validation.

    Training knows what other users did later than a target: :func:`temporal` has no such knowledge of the future.

    Parameters
    ----------
    interactions
        The whole log.

    Returns
    -------
    The parts. Users with fewer than three rows are in the training part only, which a note counts.

    Examples
    --------
    >>> log = Interactions.of({"user_id": [1, 1, 1, 2], "item_id": list("abcb")}, time=None)
    >>> split = leave_one_out(log)
    >>> [part.lengths.tolist() for part in (split.train, split.validation, split.test)]
    [[1, 1], [1, 0], [1, 0]]
    """
    data, enough = interactions, interactions.lengths >= 3
    ends = data.offsets[1:] - np.where(enough, 2, 0)
    place = np.arange(data.n_rows) - np.repeat(ends, data.lengths)
    short = int((~enough).sum())
    users = "1 user has" if short == 1 else f"{short:,} users have"
    notes = (f"{users} fewer than 3 rows and no target.",) if short else ()
    return Split(data.keep(place < 0), data.keep(place == 0), data.keep(place == 1), notes)


def temporal(interactions: Interactions, t_valid: Any, t_test: Any) -> Split:
    """Cut a log at two moments that are the same for all users.

    This is the only split in which nothing is learned from a time after a target.

    Parameters
    ----------
    interactions
        The whole log, with times.
    t_valid, t_test
        Rows before ``t_valid`` are for training, those from there before ``t_test`` for validation, the others for
        testing: numbers, or dates where the times are dates.

    Returns
    -------
    The parts; a user may have several targets, and users without a row for training have no history.

    Raises
    ------
    DataError
        There are no times.
    ParameterError
        The moments are not in order.

    Examples
    --------
    >>> log = Interactions.of({"user_id": [1, 1, 1], "item_id": list("abc"), "timestamp": [0, 5, 9]})
    >>> [part.n_rows for part in (lambda s: (s.train, s.validation, s.test))(temporal(log, 5, 6))]
    [1, 1, 1]
    """
    data = interactions
    if data.times is None:
        raise DataError(
            "The interactions have no times to be cut at. Use leave_one_out, or read a column of times."
        )
    first = moment(t_valid, data.clock, "t_valid")
    second = moment(t_test, data.clock, "t_test")
    if not first <= second:
        raise ParameterError(f"t_valid={t_valid!r} is later than t_test={t_test!r}. Give them in order.")
    part = (data.times >= first).astype(np.int8) + (data.times >= second)
    lost = int((np.bincount(data.users[part == 0], minlength=data.n_users) == 0).sum())
    users = "1 user has" if lost == 1 else f"{lost:,} users have"
    notes = (f"{users} no row before the first cut.",) if lost else ()
    return Split(data.keep(part == 0), data.keep(part == 1), data.keep(part == 2), notes)
