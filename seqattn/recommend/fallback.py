"""Popularity as the score of users of whom nothing is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from seqattn.data.interactions import Interactions
from seqattn.recommend.ranking import Scorer

__all__ = ["WithFallback"]


class WithFallback:
    """A scorer that is asked only about users with a history; the others get popularity.

    Parameters
    ----------
    scorer
        What scores the items for users with rows.
    popularity
        Score of each item for all others.
    """

    def __init__(self, scorer: Scorer, popularity: NDArray[np.int64]) -> None:
        self.scorer, self.n_items = scorer, scorer.n_items
        self.popularity = torch.from_numpy(popularity.astype(np.float32))

    def states(self, histories: Interactions) -> Any:
        """Return which users have rows, and the scorer's states of those.

        Parameters
        ----------
        histories
            Users with their rows.
        """
        full = histories.lengths > 0
        if full.all():
            return None, self.scorer.states(histories)
        return full, self.scorer.states(histories.select(full)) if full.any() else None

    def scores(self, states: Any, first: int, last: int) -> Float[Tensor, "users items"]:
        """Return the scores of items ``first`` to ``last - 1``.

        Parameters
        ----------
        states
            What :meth:`states` returned.
        first, last
            Range of item codes.
        """
        full, inner = states
        if full is None:
            return self.scorer.scores(inner, first, last)
        found = self.popularity[first:last].repeat(len(full), 1)
        if inner is not None:
            found[torch.from_numpy(full)] = self.scorer.scores(inner, first, last)
        return found
