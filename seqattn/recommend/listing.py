"""Lists of items from a fitted recommender: for known users, for histories, after single items, and into a file."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from seqattn.data.ids import ids_of, take_ids
from seqattn.data.interactions import Interactions
from seqattn.data.table import like, to_pandas
from seqattn.errors import ParameterError
from seqattn.recommend.export import export_lists
from seqattn.recommend.fallback import WithFallback
from seqattn.recommend.histories import Columns, check_known, histories_of, of_single_items, own_rows
from seqattn.recommend.lists import list_table
from seqattn.recommend.ranking import Scorer, top_items
from seqattn.recommend.storing import Stored, digest_of, stored

__all__ = ["Listing"]


class Listing(BaseEstimator):
    """The part of the recommenders that lists items, from a scorer (:meth:`_scorer`) and the rows of the fit."""

    # Settings that subclasses make parameters of.
    unknown_items = "drop"
    cold_items = "exclude"
    duplicates = "keep"

    # All rows of the fit, those that chose the epoch included: what is known of the users.
    history_: Interactions
    # Which rows of the history nothing was learned from.
    held_out_: NDArray[np.bool_]
    # Rows of each item in the training part.
    popularity_: NDArray[np.int64]
    columns_: Columns
    frame_: str

    @abstractmethod
    def _scorer(self) -> Scorer:
        """Return what scores the items."""

    def _item_scorer(self) -> Scorer:
        """Return what scores items after a single one, for :meth:`similar_items`."""
        return self._scorer()

    def _fitted_state(self) -> Stored:
        """Return arrays and facts that a file holds besides the rows; without any, a file is learned from again."""
        return Stored({}, {})

    @property
    def training_(self) -> Interactions:
        """The rows that were learned from."""
        check_is_fitted(self, "history_")
        return self.history_.keep(~self.held_out_)

    @property
    def user_ids_(self) -> pl.Series:
        """Users by code."""
        check_is_fitted(self, "history_")
        return self.history_.user_ids

    @property
    def item_ids_(self) -> pl.Series:
        """Items by code."""
        check_is_fitted(self, "history_")
        return self.history_.item_ids

    def _ranker(self) -> Scorer:
        """Return the scorer, with popularity for users of whom nothing is known."""
        return WithFallback(self._scorer(), self.popularity_)

    def recommend(
        self,
        users: Any = None,
        k: int = 10,
        exclude_seen: bool = True,
        *,
        exclude: Any = None,
        candidates: Any = None,
        on_unknown: str = "error",
    ) -> Any:
        """Return the items that known users are most likely to choose next.

        Parameters
        ----------
        users
            Ids of users of the fit; None for all of them.
        k
            Length of the lists. A list is shorter where there are fewer candidates.
        exclude_seen
            Whether to leave out what the user has had, however long ago.
        exclude
            Ids of items that nobody gets.
        candidates
            Ids of the only items that may be listed. Items that nobody had in training are left out all the same,
            unless ``cold_items="keep"``.
        on_unknown
            ``"error"`` refuses users that were not in the fit, ``"popular"`` lists the most popular items for them.

        Returns
        -------
        A table ``user_id``, ``item_id``, ``rank`` (from 1), ``score``, in the order of the users; of pandas if the
        fit was given one, else of polars. Where a list is that of the most popular items because nothing was known of
        the user, a column ``fallback`` tells which.

        Raises
        ------
        UnknownIdError
            A user is not known, or, with ``cold_items="keep"``, a candidate; also a ``KeyError``.
        ParameterError
            ``k`` is not positive, or ``on_unknown`` is not known.
        """
        check_is_fitted(self, "history_")
        return self._in_kind(
            self._listed(self._of_users(users, on_unknown), k, exclude_seen, exclude, candidates)
        )

    def recommend_for(
        self,
        histories: Any,
        k: int = 10,
        exclude_seen: bool = True,
        *,
        exclude: Any = None,
        candidates: Any = None,
    ) -> Any:
        """Return the items that come next after histories, of users never seen in the fit as of others.

        Parameters
        ----------
        histories
            Interactions as in :meth:`fit`, with the columns of that fit. Or a list of lists of item ids in the order
            of time; its users are 0, 1, ...
        k, exclude_seen, exclude, candidates
            As in :meth:`recommend`. What counts as seen are these histories alone.

        Returns
        -------
        As :meth:`recommend`; of pandas if the histories are.

        Raises
        ------
        UnknownIdError
            With ``unknown_items="error"``, an item of a history is not known.

        Warns
        -----
        SeqattnWarning
            Items of the histories were not in the fit, and were dropped.
        """
        check_is_fitted(self, "history_")
        known = histories_of(histories, self.history_, self.columns_, self.unknown_items)
        return like(self._listed(known, k, exclude_seen, exclude, candidates), histories)

    def similar_items(self, items: Any, k: int = 10) -> Any:
        """Return the items that come next after single ones.

        Parameters
        ----------
        items
            Ids of items.
        k
            Length of the lists.

        Returns
        -------
        A table ``item_id``, ``similar_id``, ``rank``, ``score``.

        Raises
        ------
        UnknownIdError
            An item is not known.
        """
        check_is_fitted(self, "history_")
        given = ids_of(items, "items")
        single = of_single_items(given, self.history_)
        found = top_items(self._item_scorer(), single, k, exclude=self._cold())
        names = ("item_id", "similar_id")
        own = take_ids(self.item_ids_, single.items)
        return self._in_kind(list_table(own, self.item_ids_, *found, names=names))

    def export_topk(
        self,
        path: str | Path,
        k: int = 10,
        users: Any = None,
        exclude_seen: bool = True,
        *,
        exclude: Any = None,
        user_batch: int = 2048,
    ) -> Path:
        """Write the lists of :meth:`recommend` to a Parquet file, batch after batch of users.

        Parameters
        ----------
        path
            File that ends in .parquet. Its folder is made where it is not there.
        k, users, exclude_seen, exclude
            As in :meth:`recommend`.
        user_batch
            Users per row group; the lists of no more are in memory.

        Returns
        -------
        The path. Columns are ``user_id``, ``rank`` (int16), ``item_id``, ``score`` (float32) and ``fallback``, sorted
        by user, in the order of the codes, and rank. The schema's metadata hold ``model`` (its class), ``model_hash``,
        ``training_until`` (time of the last row), ``k`` and ``exclude_seen``. Ids that only Python can hold, such as
        tuples, are written as text.

        Raises
        ------
        UnknownIdError
            A user is not known.
        ParameterError
            The file has another ending, or a size is not positive.
        """
        check_is_fitted(self, "history_")
        if users is None:
            codes = np.arange(self.history_.n_users)
        else:
            given = ids_of(users, "users")
            codes = np.unique(check_known(self.history_.user_codes(given), given, "User"))
        barred = self._excluded(exclude)
        about = {"model": type(self).__name__, "model_hash": self.digest()}
        return export_lists(
            Path(path), self._ranker(), self.history_, codes, k, exclude_seen, barred, user_batch, about
        )

    def _of_users(self, users: Any, on_unknown: str) -> Interactions:
        if on_unknown not in ("error", "popular"):
            raise ParameterError(f"on_unknown={on_unknown!r} is not known. Use 'error' or 'popular'.")
        if users is None:
            return self.history_
        given = ids_of(users, "users")
        codes = self.history_.user_codes(given)
        if on_unknown == "error":
            advice = "Pass on_unknown='popular' for a list of popular items, or recommend_for with their histories."
            check_known(codes, given, "User", advice)
        return own_rows(self.history_, codes, given)

    def _listed(
        self, histories: Interactions, k: int, exclude_seen: bool, exclude: Any, candidates: Any
    ) -> pl.DataFrame:
        chosen = None if candidates is None else self._candidates(candidates)
        items, scores = top_items(
            self._ranker(),
            histories,
            k,
            exclude_seen=exclude_seen,
            exclude=self._excluded(exclude),
            candidates=chosen,
        )
        return list_table(histories.user_ids, self.item_ids_, items, scores, fallback=histories.lengths == 0)

    def _cold(self) -> NDArray[np.int64]:
        """Return the codes of items that are left out because nobody had them in training."""
        return (
            np.flatnonzero(self.popularity_ == 0) if self.cold_items == "exclude" else np.empty(0, np.int64)
        )

    def _excluded(self, exclude: Any) -> NDArray[np.int64]:
        if exclude is None:
            return self._cold()
        codes = self.history_.item_codes(ids_of(exclude, "exclude"))
        return np.concatenate([self._cold(), codes[codes >= 0]])

    def _candidates(self, candidates: Any) -> NDArray[np.int64]:
        given = ids_of(candidates, "candidates")
        codes = self.history_.item_codes(given)
        if self.cold_items == "keep":
            check_known(codes, given, "Item")
        found: NDArray[np.int64] = codes[codes >= 0]
        return found

    def _in_kind(self, frame: pl.DataFrame) -> Any:
        return to_pandas(frame) if self.frame_ == "pandas" else frame

    def digest(self) -> str:
        """Return the SHA-256 of everything that a file of the recommender holds."""
        check_is_fitted(self, "history_")
        return digest_of(stored(self))
