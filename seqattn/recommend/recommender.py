"""What all recommenders share: reading interactions, fitting, scores of pairs, evaluation, files."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from seqattn.data.ids import ids_of
from seqattn.data.interactions import Interactions
from seqattn.data.table import as_frame, is_pandas, need_columns
from seqattn.errors import ParameterError, SeqattnWarning
from seqattn.recommend.beyond import popularity_of
from seqattn.recommend.evaluation import Evaluation, evaluate_ranking
from seqattn.recommend.histories import (
    Columns,
    check_known,
    divided,
    known_rows,
)
from seqattn.recommend.listing import Listing
from seqattn.recommend.metrics import user_metrics
from seqattn.recommend.ranking import target_ranks
from seqattn.recommend.storing import Stored, restored, stored
from seqattn.train.artifact import Artifact, save_artifact
from seqattn.train.loop import Observer

__all__ = ["Recommender"]


class Recommender(Listing):
    """Base of the recommenders: a subclass learns (:meth:`_learn`) and scores items (:meth:`_scorer`).

    A fit leaves ``user_ids_`` and ``item_ids_``, ids by code of the kind in which they were given; ``history_``, all
    rows of the fit, those that chose the epoch included; ``held_out_``, which of these nothing was learned from; and
    ``popularity_``, the rows of each item in the training part.
    """

    @abstractmethod
    def _learn(
        self,
        train: Interactions,
        validation: Interactions | None,
        *,
        checkpoint: Path | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Learn from histories; the targets for validation belong to the same users in the same order."""

    def _check(self) -> None:
        """Refuse parameters that cannot be; runs before any data are read."""
        for name, allowed in (("unknown_items", ("drop", "error")), ("cold_items", ("exclude", "keep"))):
            if getattr(self, name) not in allowed:
                words = " or ".join(map(repr, allowed))
                raise ParameterError(f"{name}={getattr(self, name)!r} is not known. Use {words}.")

    def _restore(self, state: Stored) -> None:
        """Take what :meth:`_fitted_state` returned."""
        self._learn(self.training_, None)

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        user: str = "user_id",
        item: str = "item_id",
        time: str | None = "timestamp",
        validation: Any = "leave_one_out",
        items: Any = None,
        checkpoint: str | Path | None = None,
        observers: Sequence[Observer] = (),
    ) -> Self:
        """Learn from interactions of users with items.

        Parameters
        ----------
        X
            A table of polars or pandas, one with the Arrow protocol, a mapping of columns, the path of a file
            (``.inter``, ``.csv``, ``.parquet``), or :class:`seqattn.data.interactions.Interactions`.
        y
            Ignored.
        user, item, time
            Names of the columns. ``time=None``: the order of the rows is the order.
        validation
            ``"leave_one_out"``: the last row of each user with three or more. Or later interactions of the same users.
            They choose the epoch of models that are trained in epochs, and are not learned from otherwise; as part of
            ``history_`` they count as known when recommendations are made. None learns from everything.
        items
            Further items of the catalogue, which nobody need have had yet.
        checkpoint
            File that is written after each epoch. If it exists and belongs to this fit, training goes on from it.
        observers
            Told of every epoch, see :class:`seqattn.train.loop.Observer`.

        Returns
        -------
        The recommender.

        Raises
        ------
        DataError
            Rows cannot be used, there is one item only, or no user has two rows.
        ParameterError
            A parameter has a value that is not allowed.
        TypeError
            ``X`` is no table.

        Warns
        -----
        SeqattnWarning
            Rows have equal times or come twice, or no user has a row for validation.
        """
        self._check()
        columns = Columns(user, item, time)
        data = Interactions.of(X, **columns.named(), items=items, duplicates=self.duplicates)
        data.check_learnable()
        parts = divided(data, validation, columns)
        self.columns_, self.frame_ = columns, "pandas" if is_pandas(X) else "polars"
        self._take(parts.history, parts.held_out)
        place = None if checkpoint is None else Path(checkpoint)
        self._learn(self.training_, parts.validation, checkpoint=place, observers=observers)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Add interactions to those known, and learn from all of them.

        Users and items may be new. Rows that chose the epoch before are learned from too. Without an earlier fit this
        is a fit without validation.

        Parameters
        ----------
        X
            As in :meth:`fit`, with the columns of that fit.
        y
            Ignored.
        """
        if not hasattr(self, "history_"):
            return self.fit(X, validation=None)
        self._check_more()
        new = Interactions.of(X, **self.columns_.named(), duplicates=self.duplicates)
        merged = self.history_.joined(new)
        self._take(merged, np.zeros(merged.n_rows, dtype=bool))
        self._learn_more(new.recoded(merged.user_ids, merged.item_ids))
        return self

    def _check_more(self) -> None:
        """Refuse parameters with which nothing can be added; runs before any data are read."""
        self._check()

    def _learn_more(self, new: Interactions) -> None:
        """Learn after rows were added to ``history_``; the new ones are given with its codes."""
        self._learn(self.training_, None)

    def _take(self, history: Interactions, held_out: NDArray[np.bool_]) -> None:
        self.history_, self.held_out_ = history, held_out
        self.popularity_ = popularity_of(history.keep(~held_out))

    # -- scores and evaluation -----------------------------------------------------------------------------------

    def predict(self, X: Any) -> NDArray[np.float32]:
        """Return the score of each pair of a user and an item; higher is more likely.

        Parameters
        ----------
        X
            A table with the columns of users and items of the fit.

        Raises
        ------
        DataError
            A column is missing.
        UnknownIdError
            A user or an item is not known.
        """
        check_is_fitted(self, "history_")
        frame = as_frame(X)
        need_columns(frame, [self.columns_.user, self.columns_.item], X)
        users, items = (ids_of(frame[name], name) for name in (self.columns_.user, self.columns_.item))
        rows = check_known(self.history_.user_codes(users), users, "User")
        codes = check_known(self.history_.item_codes(items), items, "Item")
        return self._scores_of(rows, codes)

    def _scores_of(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        scorer, found = self._ranker(), np.empty(len(users), dtype=np.float32)
        distinct, place = np.unique(users, return_inverse=True)
        for begin in range(0, len(distinct), 256):
            state = scorer.states(self.history_.select(distinct[begin : begin + 256]))
            asked = np.flatnonzero((place >= begin) & (place < begin + 256))
            for first in range(0, scorer.n_items, 16_384):
                last = min(first + 16_384, scorer.n_items)
                inside = asked[(items[asked] >= first) & (items[asked] < last)]
                if len(inside):
                    scores = scorer.scores(state, first, last).numpy()
                    found[inside] = scores[place[inside] - begin, items[inside] - first]
        return found

    def evaluate(
        self,
        X: Any,
        ks: Sequence[int] = (5, 10, 20),
        *,
        exclude_seen: bool = True,
        ties: str = "average",
        baselines: bool = True,
        beside: Mapping[str, Recommender] | None = None,
    ) -> Evaluation:
        """Return how high the items stand that users chose after the fit.

        Every item of the catalogue is a candidate, but for those that the user had before. What each figure means is
        told in :func:`seqattn.recommend.metrics.user_metrics` and :func:`seqattn.recommend.beyond.list_metrics`; the
        entry ``protocol`` says how it was computed.

        Parameters
        ----------
        X
            Interactions as in :meth:`fit`, with the columns of that fit: the targets.
        ks
            Lengths of the lists.
        exclude_seen
            Whether items of the user's history are removed from the ranking. Targets among them are misses, counted in
            ``n_unreachable``, as are targets that are no item of the catalogue.
        ties
            ``"average"``, ``"pessimistic"`` or ``"optimistic"``.
        baselines
            Whether to score popularity and first-order transitions of the same training rows too.
        beside
            Further fitted recommenders by name, such as a :class:`SASRecRecommender`, whose figures stand among the
            baselines. They must know and have learned from the same rows, or else the figures would not compare.

        Returns
        -------
        A mapping from names to figures, with standard errors, intervals and slices beside.

        Raises
        ------
        DataError
            None of the users is known, or rows cannot be used.
        ParameterError
            A setting is not allowed, or a recommender of ``beside`` was fitted to other rows.

        Warns
        -----
        SeqattnWarning
            Users are not known and were left out, or all targets are in the histories already.
        """
        targets = self._targets(X)
        others = {**(self._baselines() if baselines else {}), **self._comparable(beside or {})}
        options: dict[str, Any] = {"ks": ks, "exclude_seen": exclude_seen, "ties": ties}
        found = self._evaluated(targets, options)
        if exclude_seen and found["n_unreachable"] == found["n_targets"]:
            text = "Every target is in the history of its user already, and counts as a miss. Give the rows that came"
            warnings.warn(
                f"{text} after those of the fit, or pass exclude_seen=False.", SeqattnWarning, stacklevel=2
            )
        if others:
            figures = {name: dict(model._evaluated(targets, options)) for name, model in others.items()}
            found.figures["baselines"] = figures
        return found

    def _comparable(self, others: Mapping[str, Recommender]) -> Mapping[str, Recommender]:
        """Refuse recommenders that were fitted to other rows."""
        for name, model in others.items():
            if not isinstance(model, Recommender):
                raise TypeError(f"{name!r} is of type {type(model).__name__}, not a recommender.")
            check_is_fitted(model, "history_")
            same = model.history_.digest() == self.history_.digest()
            if not same or not np.array_equal(model.held_out_, self.held_out_):
                raise ParameterError(
                    f"The recommender {name!r} was fitted to other rows, and its figures cannot stand beside these. "
                    "Fit both to the same rows with the same validation; mode='paper' cuts histories, and compares "
                    "with others of that mode only."
                )
        return others

    def _targets(self, X: Any) -> Interactions:
        check_is_fitted(self, "history_")
        return known_rows(X, self.history_, self.columns_)

    def _evaluated(self, targets: Interactions, options: Mapping[str, Any]) -> Evaluation:
        return evaluate_ranking(self._ranker(), self.history_, targets, self.training_, **options)

    def _baselines(self) -> dict[str, Recommender]:
        """Return the simple recommenders that every evaluation is printed beside, of the same training rows."""
        from seqattn.recommend.baselines import MarkovRecommender, PopularityRecommender

        found: dict[str, Recommender] = {
            "popularity": PopularityRecommender(),
            "markov": MarkovRecommender(),
        }
        for model in found.values():
            model._take(self.history_, self.held_out_)
            model._learn(self.training_, None)
        return found

    def score(self, X: Any, y: Any = None) -> float:
        """Return NDCG at 10 of the full ranking without seen items, ties at mid-rank; higher is better.

        Parameters
        ----------
        X
            As in :meth:`evaluate`.
        y
            Ignored.
        """
        targets = self._targets(X)
        ranks = target_ranks(self._ranker(), self.history_, targets)
        return float(user_metrics(ranks, (10,))["ndcg@10"].mean())

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write settings, histories and what was learned to one file; open it with :func:`seqattn.load`.

        Parameters
        ----------
        path
            File to write, or an existing folder, in which it becomes ``model.safetensors``.

        Returns
        -------
        The path of the file.

        Raises
        ------
        ArtifactError
            An id or a parameter is of a kind that a file cannot hold.
        """
        check_is_fitted(self, "history_")
        content = stored(self)
        return save_artifact(path, type(self).__name__, content.arrays, content.facts)

    @classmethod
    def _from_artifact(cls, artifact: Artifact) -> Self:
        return restored(cls, artifact)
