"""Recommenders that every evaluation is printed beside: what is popular, and what came after the last item."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from seqattn.data.interactions import Interactions
from seqattn.recommend.beyond import follows
from seqattn.recommend.ranking import Scorer
from seqattn.recommend.recommender import Recommender
from seqattn.train.loop import Observer

__all__ = ["MarkovRecommender", "PopularityRecommender"]


class PopularityRecommender(Recommender):
    """The same list for everyone: items by their number of training interactions.

    Parameters
    ----------
    unknown_items
        Items of new histories that were not in the fit: ``"drop"`` leaves them out with a warning, ``"error"`` refuses
        them.
    cold_items
        Items that nobody had in training: ``"exclude"`` recommends none of them, ``"keep"`` treats them like others.
    duplicates
        Rows that come twice: ``"keep"``, ``"drop"`` or ``"drop_consecutive"``, see
        :meth:`seqattn.data.interactions.Interactions.of`.

    Attributes
    ----------
    popularity_
        Training interactions of each item; the scores.

    Examples
    --------
    >>> log = {"user_id": [1, 1, 2, 2, 3, 3], "item_id": list("abacab"), "timestamp": [0, 1, 0, 1, 0, 1]}
    >>> PopularityRecommender().fit(log, validation=None).recommend([2], k=1).rows()
    [(2, 'b', 1, 2.0)]
    """

    def __init__(
        self, *, unknown_items: str = "drop", cold_items: str = "exclude", duplicates: str = "keep"
    ) -> None:
        self.unknown_items = unknown_items
        self.cold_items = cold_items
        self.duplicates = duplicates

    def _learn(
        self,
        train: Interactions,
        validation: Interactions | None,
        *,
        checkpoint: Path | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        pass  # popularity_ is there already

    def _scorer(self) -> Scorer:
        return _SameForAll(self.popularity_.astype(np.float32))


class MarkovRecommender(Recommender):
    """Items by how often they came directly after the user's last item in training, then by popularity.

    Scores are whole numbers that only tell the order: pairs of items by their count and the second item's popularity,
    above all items that never came after the last one, by their popularity. Ties are those of both.

    Parameters
    ----------
    unknown_items, cold_items, duplicates
        As in :class:`PopularityRecommender`.

    Attributes
    ----------
    transitions_
        ``(pairs, 3)``: first item, second item, and how often the second came directly after the first.

    Examples
    --------
    >>> log = {"user_id": [1, 1, 2, 2, 3, 3], "item_id": list("abacab"), "timestamp": [0, 1, 0, 1, 0, 1]}
    >>> model = MarkovRecommender().fit(log, validation=None)
    >>> model.recommend_for([["a"]], k=2)["item_id"].to_list()
    ['b', 'c']
    """

    transitions_: NDArray[np.int64]

    def __init__(
        self, *, unknown_items: str = "drop", cold_items: str = "exclude", duplicates: str = "keep"
    ) -> None:
        self.unknown_items = unknown_items
        self.cold_items = cold_items
        self.duplicates = duplicates

    def _learn(
        self,
        train: Interactions,
        validation: Interactions | None,
        *,
        checkpoint: Path | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        pairs, counts = np.unique(follows(train), return_counts=True)
        self.transitions_ = np.stack([pairs // train.n_items, pairs % train.n_items, counts], axis=1)

    def _scorer(self) -> Scorer:
        return _AfterLast(self.transitions_, self.popularity_)


class _SameForAll:
    """Scores that do not depend on the user."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values, self.n_items = torch.from_numpy(values), len(values)

    def states(self, histories: Interactions) -> int:
        return histories.n_users

    def scores(self, states: Any, first: int, last: int) -> Float[Tensor, "users items"]:
        return self.values[first:last].repeat(states, 1)


class _AfterLast:
    """Scores of the pairs (last item, candidate), whole numbers below 2 ** 24 so that float32 holds them exactly."""

    def __init__(self, transitions: NDArray[np.int64], popularity: NDArray[np.int64]) -> None:
        first, self.second, counts = transitions.T
        levels, level = np.unique(popularity, return_inverse=True)
        _, order = np.unique(counts * len(levels) + level[self.second], return_inverse=True)
        self.n_items = len(popularity)
        self.level = torch.from_numpy(level.astype(np.float32))
        self.above = (len(levels) + order).astype(np.float32)
        self.bounds = np.searchsorted(first, np.arange(self.n_items + 1))

    def states(self, histories: Interactions) -> NDArray[np.int64]:
        """Return the last item of each history, -1 where there is none."""
        found = np.full(histories.n_users, -1, dtype=np.int64)
        full = histories.lengths > 0
        found[full] = histories.items[histories.offsets[1:][full] - 1]
        return found

    def scores(self, states: Any, first: int, last: int) -> Float[Tensor, "users items"]:
        found = self.level[first:last].repeat(len(states), 1)
        known = np.maximum(states, 0)
        sizes = np.where(states < 0, 0, self.bounds[known + 1] - self.bounds[known])
        ends = np.cumsum(sizes)
        pairs = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.bounds[known] - ends + sizes, sizes)
        rows, items = np.repeat(np.arange(len(states)), sizes), self.second[pairs]
        inside = (items >= first) & (items < last)
        found[rows[inside], items[inside] - first] = torch.from_numpy(self.above[pairs[inside]])
        return found
