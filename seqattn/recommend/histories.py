"""Rows for learning, recommending and evaluating: divided, and with the codes of a fit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqattn.data.ids import codes_among, ids_of, take_ids
from seqattn.data.interactions import Interactions
from seqattn.errors import DataError, ParameterError, SeqattnWarning, UnknownIdError

__all__ = [
    "Columns",
    "Divided",
    "check_known",
    "divided",
    "histories_of",
    "known_rows",
    "of_single_items",
    "own_rows",
]

_SHOWN = 5


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a fit.

    Attributes
    ----------
    user, item, time
        The names; no time where the order of the rows is the order.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = "timestamp"

    def named(self) -> dict[str, Any]:
        """Return the names as arguments of :meth:`seqattn.data.interactions.Interactions.of`."""
        return {"user": self.user, "item": self.item, "time": self.time}


@dataclass(frozen=True)
class Divided:
    """Rows of a fit.

    Attributes
    ----------
    history
        All rows.
    held_out
        Which of them are for validation.
    validation
        Those rows as targets; None where there are none.
    """

    history: Interactions
    held_out: NDArray[np.bool_]
    validation: Interactions | None


def divided(data: Interactions, validation: Any, columns: Columns) -> Divided:
    """Return the rows of a fit with those for validation marked.

    Parameters
    ----------
    data
        The rows given to ``fit``.
    validation
        ``"leave_one_out"``, None, or further interactions.
    columns
        Names of their columns.

    Raises
    ------
    ParameterError
        A text that names no way to divide.

    Warns
    -----
    SeqattnWarning
        There is no row for validation, or rows of unknown users were left out.
    """
    if validation is None:
        return Divided(data, np.zeros(data.n_rows, dtype=bool), None)
    if isinstance(validation, str) and validation == "leave_one_out":
        history, held_out = data, _last_rows(data)
    elif isinstance(validation, str) and "." not in validation:
        raise ParameterError(
            f"validation={validation!r} is not known. Use 'leave_one_out', later interactions, or None."
        )
    else:
        history, held_out = _appended(data, _later(validation, data, columns))
    if not held_out.any():
        warnings.warn(
            "No user has a row for validation: nothing chooses the epoch, and the last one is taken. Users need three "
            "rows; pass validation=None if this is meant.",
            SeqattnWarning,
            stacklevel=4,
        )
        return Divided(history, held_out, None)
    return Divided(history, held_out, history.keep(held_out))


def _last_rows(data: Interactions) -> NDArray[np.bool_]:
    """Mark the last row of each user with three or more."""
    held_out = np.zeros(data.n_rows, dtype=bool)
    held_out[data.offsets[1:][data.lengths >= 3] - 1] = True
    return held_out


def _later(validation: Any, data: Interactions, columns: Columns) -> Interactions:
    """Read rows for validation with the users of the fit, its items first."""
    found = Interactions.read(validation, **columns.named(), users=data.user_ids, items=data.item_ids)
    strange = int(found.lengths[data.n_users :].sum())
    if strange:
        text = f"{strange:,} of {found.n_rows:,} rows for validation are of users without a row for training"
        warnings.warn(f"{text}, and were left out.", SeqattnWarning, stacklevel=5)
    return found.select(np.arange(data.n_users))


def _appended(data: Interactions, more: Interactions) -> tuple[Interactions, NDArray[np.bool_]]:
    """Put rows behind those of the same users, and mark them."""
    if data.times is not None and more.times is not None and data.clock.unit != more.clock.unit:
        raise DataError(
            "The rows for validation have dates and the others numbers as times, or the other way round."
        )
    order = np.argsort(np.concatenate([data.users, more.users]), kind="stable")
    times = None
    if data.times is not None and more.times is not None:
        times = np.concatenate([data.times, more.times])[order]
    joined = replace(
        data,
        offsets=data.offsets + more.offsets,
        items=np.concatenate([data.items, more.items])[order],
        times=times,
        item_ids=more.item_ids,
    )
    return joined, order >= data.n_rows


def own_rows(history: Interactions, codes: NDArray[np.int64], ids: pl.Series) -> Interactions:
    """Return the rows of some users; code -1 gives none.

    Where all are known, ids are of the kind of the fit, else of that in which they were asked for.

    Parameters
    ----------
    history
        All rows.
    codes, ids
        Users.
    """
    chosen = history.select(np.maximum(codes, 0))
    rows = chosen.keep(np.repeat(codes >= 0, chosen.lengths))
    return rows if (codes >= 0).all() else replace(rows, user_ids=ids)


def histories_of(given: Any, known: Interactions, columns: Columns, unknown_items: str) -> Interactions:
    """Return histories with the item codes of a fit, unknown items dropped.

    Parameters
    ----------
    given
        Interactions of any form, or a list of lists of item ids.
    known
        The rows of the fit.
    columns
        Names of the columns.
    unknown_items
        ``"drop"`` or ``"error"``.

    Raises
    ------
    UnknownIdError
        Items are not known, and ``unknown_items="error"``.
    DataError
        The rows cannot be used.

    Warns
    -----
    SeqattnWarning
        Items were dropped.
    """
    if isinstance(given, list | tuple):
        found, strange = _of_lists(given, known)
    else:
        found = Interactions.read(given, **columns.named(), items=known.item_ids)
        strange = found.item_ids[known.n_items :]
    is_known = found.items < known.n_items
    if not is_known.all():
        if unknown_items == "error":
            raise UnknownIdError(
                _unknown("Item", strange.to_list()) + " Pass unknown_items='drop' to do without."
            )
        gone = int((found.keep(is_known).lengths == 0).sum() - (found.lengths == 0).sum())
        text = f"{int((~is_known).sum()):,} of {found.n_rows:,} rows have items that were not in the fit, and were "
        rest = f"dropped; {gone:,} of {found.n_users:,} histories have no row left." if gone else "dropped."
        warnings.warn(text + rest, SeqattnWarning, stacklevel=3)
        found = found.keep(is_known)
    return replace(found, item_ids=known.item_ids)


def _of_lists(given: list[Any] | tuple[Any, ...], known: Interactions) -> tuple[Interactions, pl.Series]:
    """Read lists of item ids; unknown ones get codes behind the known, and are returned."""
    if not all(isinstance(history, list | tuple | np.ndarray | pl.Series) for history in given):
        raise TypeError(
            "Histories must be a table, a file, or a list of lists of item ids, such as [['a', 'b']]."
        )
    flat = [item for history in given for item in history]
    ids = ids_of(flat, "histories") if flat else known.item_ids[:0]
    codes = codes_among(ids, known.item_ids)
    strange = take_ids(ids, np.flatnonzero(codes < 0))
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in given], dtype=np.int64)])
    items = np.where(codes < 0, known.n_items, codes).astype(np.int32)
    users = pl.Series("user_id", np.arange(len(given)))
    return Interactions(offsets.astype(np.int64), items, None, users, known.item_ids), strange


def of_single_items(ids: pl.Series, known: Interactions) -> Interactions:
    """Return one history per item, with that item alone.

    Parameters
    ----------
    ids
        The items.
    known
        The rows of the fit.

    Raises
    ------
    UnknownIdError
        An item is not known.
    """
    codes = check_known(known.item_codes(ids), ids, "Item").astype(np.int32)
    users = pl.Series("user_id", np.arange(len(ids)))
    return Interactions(np.arange(len(ids) + 1), codes, None, users, known.item_ids)


def known_rows(X: Any, known: Interactions, columns: Columns) -> Interactions:
    """Return targets for the users of a fit, in their order; new items have codes behind the known ones.

    Parameters
    ----------
    X
        Interactions of any form.
    known
        The rows of the fit.
    columns
        Names of the columns.

    Raises
    ------
    DataError
        None of the users is known, or there is no row.

    Warns
    -----
    SeqattnWarning
        Rows of unknown users were left out.
    """
    found = Interactions.read(X, **columns.named(), users=known.user_ids, items=known.item_ids)
    strange, rows = int(found.lengths[known.n_users :].sum()), found.n_rows
    if strange == rows:
        what = "None of the rows is of a user of the fit" if rows else "There is no row to evaluate"
        raise DataError(f"{what}. Give later interactions of the same users, with ids of the same kind.")
    if strange:
        text = f"{strange:,} of {rows:,} rows are of users that were not in the fit, and were left out"
        warnings.warn(f"{text}.", SeqattnWarning, stacklevel=4)
    return found.select(np.arange(known.n_users))


def check_known(codes: NDArray[Any], ids: pl.Series, what: str, advice: str = "") -> NDArray[np.int64]:
    """Return codes, and refuse ids that have none.

    Parameters
    ----------
    codes
        Codes, -1 where an id is not known.
    ids
        The ids.
    what
        "User" or "Item", for the message.
    advice
        A sentence on what to do.

    Raises
    ------
    UnknownIdError
        Names up to five ids.
    """
    gone = np.flatnonzero(codes < 0)
    if len(gone):
        strange = list(dict.fromkeys(ids[int(row)] for row in gone))
        raise UnknownIdError(_unknown(what, strange) + (f" {advice}" if advice else ""))
    return codes.astype(np.int64)


def _unknown(what: str, strange: list[Any]) -> str:
    distinct = list(dict.fromkeys(strange))
    named = ", ".join(map(repr, distinct[:_SHOWN]))
    more = f" and {len(distinct) - _SHOWN:,} more" if len(distinct) > _SHOWN else ""
    return (
        f"{what} {named}{more} was not in the fit."
        if len(distinct) == 1
        else (f"{what}s {named}{more} were not in the fit.")
    )
