"""Scores that also count how often an item followed the last ones of a history in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from seqattn.data.interactions import Interactions
from seqattn.recommend.batches import latest
from seqattn.recommend.ranking import Scorer
from seqattn.recommend.transitions import Transitions

__all__ = ["WithTransitions"]

# How many of the last items count, and what each counts beside the one after it.
_DEPTH, _FADING = 3, 0.5


class WithTransitions:
    r"""Add to the scores what followed the last items of the history in training.

    .. math:: \mathrm{score}_{uj} + w \ln\Bigl(1 + \sum_{k=0}^{2} 2^{-k} C_{i_{T-k} j}\Bigr)

    Few items have ever followed three given ones, so the sums are sparse.

    Parameters
    ----------
    scorer
        What is added to.
    transitions
        The counts C.
    weight
        :math:`w`, 0 or more.
    """

    def __init__(self, scorer: Scorer, transitions: Transitions, weight: float) -> None:
        self.scorer, self.weight, self.n_items = scorer, weight, scorer.n_items
        shape = (transitions.n_items, transitions.n_items)
        counts = transitions.counts.astype(np.float32)
        self.counts = csr_array((counts, transitions.successors, transitions.offsets), shape=shape)

    def states(self, histories: Interactions) -> tuple[Any, csr_array]:
        """Return the states of the scorer, and what is added for each user, sparse.

        Parameters
        ----------
        histories
            Users with their rows.
        """
        last = latest(histories, _DEPTH)
        ends = np.repeat(last.offsets[1:], last.lengths)
        fading = (_FADING ** (ends - 1 - np.arange(last.n_rows))).astype(np.float32)
        shape = (last.n_users, self.counts.shape[0])
        added = csr_array((fading, (last.users, last.items)), shape=shape) @ self.counts
        added.data = (self.weight * np.log1p(added.data)).astype(np.float32)
        return self.scorer.states(histories), added

    def scores(self, states: Any, first: int, last: int) -> Float[Tensor, "users items"]:
        """Return the scores of items ``first`` to ``last - 1``.

        Parameters
        ----------
        states
            What :meth:`states` returned.
        first, last
            Range of item codes.
        """
        inner, added = states
        found = self.scorer.scores(inner, first, last)
        part = added[:, first:last].tocoo()
        rows, columns = (torch.from_numpy(each.astype(np.int64)) for each in part.coords)
        # Not in place: the scores may be the scorer's own.
        return found.index_put((rows, columns), torch.from_numpy(part.data), accumulate=True)
