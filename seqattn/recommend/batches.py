"""Histories for training and validation in batches of users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seqattn.attention import Layout
from seqattn.data.interactions import Interactions
from seqattn.recommend.model import HistoryBatch

__all__ = ["HeldOut", "TrainingHistories", "UserBatches", "held_out_batches", "latest", "latest_batch"]

# Users per batch of validation; the ranking forms its own tiles within.
_RANKED_AT_ONCE = 1024


def latest(data: Interactions, most: int) -> Interactions:
    """Return the last rows of each user.

    Parameters
    ----------
    data
        Histories.
    most
        How many rows of a user are kept.
    """
    ends = np.repeat(data.offsets[1:], data.lengths)
    return data.keep(np.arange(data.n_rows) >= ends - most)


def latest_batch(data: Interactions, most: int) -> HistoryBatch:
    """Return the last items of all users as one batch without targets.

    Parameters
    ----------
    data
        Histories.
    most
        How many items of a user are taken.
    """
    found = latest(data, most)
    return HistoryBatch(torch.from_numpy(found.items.astype(np.int64)), Layout.of(found.lengths))


class TrainingHistories:
    """The users that something can be learnt from, in an order that depends on their items alone.

    Names of users thus change nothing that is learnt.

    Parameters
    ----------
    data
        Histories.
    max_inputs
        Most items of a user that are shown to the network; each has the next one as its target.
    """

    def __init__(self, data: Interactions, max_inputs: int) -> None:
        users = np.flatnonzero(data.lengths >= 2)
        users = users[np.argsort(_marks(data)[users], kind="stable")]
        self.items = data.items
        self.lengths = np.minimum(data.lengths[users] - 1, max_inputs)
        self.starts = data.offsets[users + 1] - 1 - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> HistoryBatch:
        """Return some users, with the item that follows each of theirs.

        Parameters
        ----------
        rows
            Numbers of users, 0 to ``len(self) - 1``.
        """
        at = self._places(rows)
        items, targets = (torch.from_numpy(self.items[at + step].astype(np.int64)) for step in (0, 1))
        return HistoryBatch(items, Layout.of(self.lengths[rows]), targets)

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Return where the items of users stand that have a target, which is the next one."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        return np.arange(lengths.sum()) + np.repeat(self.starts[rows] - ends + lengths, lengths)

    def popularity(self, n_items: int) -> np.ndarray:
        """Return how often each item is a target in an epoch.

        Parameters
        ----------
        n_items
            Size of the catalogue.
        """
        targets = self.items[self._places(np.arange(len(self))) + 1]
        return np.bincount(targets, minlength=n_items)


def _marks(data: Interactions) -> np.ndarray:
    """Return a number for each user that depends on the items in their order; sums wrap around."""
    place = np.arange(data.n_rows) - np.repeat(data.offsets[:-1], data.lengths)
    with np.errstate(over="ignore"):
        factor = (2 * place.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (data.items.astype(np.uint64) + np.uint64(1)) * factor
        mixed ^= mixed >> np.uint64(29)
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * np.uint64(0xBF58476D1CE4E5B9))])
        return np.asarray(total[data.offsets[1:]] - total[data.offsets[:-1]])


class UserBatches:
    """Batches of an epoch: every user once, in an order drawn anew.

    Parameters
    ----------
    histories
        The users.
    size
        Users per batch.
    seed, epoch
        What the order follows from.
    """

    def __init__(self, histories: TrainingHistories, size: int, seed: int, epoch: int) -> None:
        order = np.random.default_rng([seed, epoch]).permutation(len(histories))
        self._histories = histories
        self._rows = [order[first : first + size] for first in range(0, len(order), size)]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[HistoryBatch]:
        return (self._histories.batch(rows) for rows in self._rows)

    def share(self, rank: int, size: int) -> UserBatches:
        """Return as many batches with the users of one process.

        Parameters
        ----------
        rank, size
            Number of the process, and of processes.
        """
        part = object.__new__(UserBatches)
        part._histories, part._rows = self._histories, [rows[rank::size] for rows in self._rows]
        return part


@dataclass(frozen=True)
class HeldOut:
    """Users with the items to rank for validation.

    Attributes
    ----------
    histories, targets
        Rows of the same users.
    """

    histories: Interactions
    targets: Interactions

    def __len__(self) -> int:
        return self.histories.n_users

    def to(self, device: Any) -> HeldOut:
        """Return the batch itself; ranking moves what it needs.

        Parameters
        ----------
        device
            Not used.
        """
        return self


class _HeldOutBatches(list[HeldOut]):
    """Batches of validation; each process ranks every n-th user."""

    def share(self, rank: int, size: int) -> list[HeldOut]:
        """Return the users of one process."""
        parts = [np.arange(rank, len(batch), size) for batch in self]
        return [
            HeldOut(batch.histories.select(part), batch.targets.select(part))
            for batch, part in zip(self, parts, strict=True)
        ]


def held_out_batches(
    histories: Interactions, targets: Interactions, most_users: int | None, seed: int
) -> list[HeldOut]:
    """Return the users with a target in batches.

    Parameters
    ----------
    histories, targets
        Rows of the same users.
    most_users
        How many users are drawn; None for all of them.
    seed
        What the draw follows from.
    """
    users = np.flatnonzero(targets.lengths)
    if most_users is not None and most_users < len(users):
        users = np.sort(np.random.default_rng([seed, 1]).permutation(users)[:most_users])
    cuts = range(0, len(users), _RANKED_AT_ONCE)
    parts = [users[first : first + _RANKED_AT_ONCE] for first in cuts]
    return _HeldOutBatches(HeldOut(histories.select(part), targets.select(part)) for part in parts)
