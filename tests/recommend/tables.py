"""Small interaction tables, and scorers whose scores are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from seqattn.data.interactions import Interactions


def table(*histories: list[Any], users: list[Any] | None = None) -> pl.DataFrame:
    """Return a table with one history per user; times count from 0 in each."""
    names = users or list(range(len(histories)))
    rows = [
        (user, item, time)
        for user, items in zip(names, histories, strict=True)
        for time, item in enumerate(items)
    ]
    columns = list(zip(*rows, strict=True))
    return pl.DataFrame(dict(zip(("user_id", "item_id", "timestamp"), map(list, columns), strict=True)))


def random_table(seed: int, n_users: int = 60, n_items: int = 40, longest: int = 12) -> pl.DataFrame:
    """Return histories without repeats, of 3 items or more, in which every item occurs and some are frequent."""
    draw = np.random.default_rng(seed)
    weights = 1 / np.arange(1, n_items + 1)
    histories = [
        draw.choice(n_items, draw.integers(3, longest), replace=False, p=weights / weights.sum()).tolist()
        for _ in range(n_users)
    ]
    cover = [list(range(first, min(first + 5, n_items))) for first in range(0, n_items - 2, 5)]
    return table(*histories, *cover)


def plain(offsets: list[int], items: list[int], n_items: int) -> Interactions:
    """Return interactions of users 0, 1, ... with items 0 to n_items - 1, as given."""
    return Interactions(
        offsets=np.array(offsets, dtype=np.int64),
        items=np.array(items, dtype=np.int32),
        times=None,
        user_ids=pl.Series(range(len(offsets) - 1)),
        item_ids=pl.Series(range(n_items)),
        notes=(),
    )


class Given:
    """Scores from a matrix with one row per user; a user's row is found by the user's id."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = torch.as_tensor(np.asarray(matrix, dtype=np.float32))
        self.n_items = self.matrix.shape[1]
        self.largest = 0

    def states(self, histories: Interactions) -> Tensor:
        return torch.as_tensor(list(histories.user_ids))

    def scores(self, states: Any, first: int, last: int) -> Tensor:
        self.largest = max(self.largest, len(states) * (last - first))
        return self.matrix[states, first:last]
