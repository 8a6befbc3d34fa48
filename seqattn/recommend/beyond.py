"""What ranks do not show: how much of the catalogue lists use, how popular they are, and where the hits come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqattn.data.interactions import Interactions
from seqattn.recommend.metrics import check_ks, target_metrics
from seqattn.recommend.ranking import Ranks

__all__ = [
    "follows",
    "gini",
    "list_metrics",
    "popularity_fifth",
    "popularity_of",
    "slices",
    "transition_keys",
]

# Shortest history of each group, and its name.
_LENGTHS = ((0, "0-2"), (3, "3-4"), (5, "5-9"), (10, "10-19"), (20, "20+"))
_FIFTHS = ("1 (most popular)", "2", "3", "4", "5 (least popular)", "not in training")


def popularity_of(data: Interactions) -> NDArray[np.int64]:
    """Return the number of rows of each item.

    Parameters
    ----------
    data
        Interactions.
    """
    return np.bincount(data.items, minlength=data.n_items)


def popularity_fifth(popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return to which fifth of all training interactions each item belongs: 0 for the most popular items.

    Items are put in order of popularity; the first group begins each fifth of the interactions, and equally popular
    items share a group. Items that do not occur have 5. The groups from 1 on are called the tail: items that hold the
    least popular 80 % of the interactions.

    Parameters
    ----------
    popularity
        Interactions of each item.

    Examples
    --------
    >>> popularity_fifth(np.array([50, 25, 25, 0])).tolist()
    [0, 2, 2, 5]
    """
    distinct, place, count = np.unique(popularity, return_inverse=True, return_counts=True)
    rows = distinct * count
    before = rows[::-1].cumsum()[::-1] - rows
    share = before / max(int(rows.sum()), 1)
    found: NDArray[np.int64] = np.where(distinct > 0, np.floor(5 * share), 5).astype(np.int64)[place]
    return found


def gini(counts: NDArray[np.int64]) -> float:
    """Return how unequal counts are: 0 where all are equal, near 1 where one has everything.

    Parameters
    ----------
    counts
        Numbers of at least 0.

    Examples
    --------
    >>> gini(np.array([2, 2])), gini(np.array([0, 0, 0, 4]))
    (0.0, 0.75)
    """
    ordered, n = np.sort(counts).astype(np.float64), len(counts)
    total = ordered.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total)) if total else 0.0


def list_metrics(
    items: NDArray[np.int32], histories: Interactions, popularity: NDArray[np.int64], ks: Sequence[int]
) -> dict[str, float]:
    """Return figures of lists of recommendations, whatever the users chose.

    Parameters
    ----------
    items
        ``(users, k)``, best first, -1 where there is none; k at least the largest of ``ks``.
    histories
        What the users had.
    popularity
        Training interactions of each item.
    ks
        Lengths of the lists.

    Returns
    -------
    For each K: ``coverage@K``, the share of the catalogue that is in some list; ``gini@K`` of how often items are
    listed; ``log_popularity@K``, the mean of log(1 + popularity) in a list; ``popularity_lift@K``, how much that lies
    above the mean over the user's own history; ``tail_share@K``, the share of places with items of the tail (see
    :func:`popularity_fifth`).
    """
    logs, is_tail = np.log1p(popularity), popularity_fifth(popularity) > 0
    own = np.full(histories.n_users, np.nan)
    full = np.flatnonzero(histories.lengths)
    if len(full):
        own[full] = np.add.reduceat(logs[histories.items], histories.offsets[full]) / histories.lengths[full]
    found: dict[str, float] = {}
    for k in check_ks(ks):
        part = items[:, :k]
        there = part >= 0
        counts = np.bincount(part[there], minlength=len(popularity))
        with np.errstate(invalid="ignore"):
            mean = np.where(there, logs[part], 0).sum(1) / there.sum(1)
        found |= {
            f"coverage@{k}": float((counts > 0).mean()),
            f"gini@{k}": gini(counts),
            f"log_popularity@{k}": _mean(mean),
            f"popularity_lift@{k}": _mean(mean - own),
            f"tail_share@{k}": _mean(is_tail[part[there]]),
        }
    return found


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def transition_keys(data: Interactions) -> NDArray[np.int64]:
    """Return the distinct pairs of items that follow each other in some history, as ``first * n_items + second``.

    Parameters
    ----------
    data
        Interactions.
    """
    return np.unique(follows(data))


def follows(data: Interactions) -> NDArray[np.int64]:
    """Return every pair of neighbours in a history, as ``first * n_items + second``.

    Parameters
    ----------
    data
        Interactions.

    Examples
    --------
    >>> log = {"user_id": [1, 1, 1, 2], "item_id": [0, 1, 1, 0]}
    >>> follows(Interactions.of(log, time=None)).tolist()
    [1, 3]
    """
    is_first = np.zeros(data.n_rows + 1, dtype=bool)
    is_first[data.offsets[:-1]] = True
    second = np.flatnonzero(~is_first[:-1])
    return data.items[second - 1].astype(np.int64) * data.n_items + data.items[second]


def slices(ranks: Ranks, histories: Interactions, training: Interactions, ks: Sequence[int]) -> pl.DataFrame:
    """Return the figures of groups of targets.

    Targets are grouped by the length of the user's history, by how popular the target was in training (see
    :func:`popularity_fifth`), and by whether the target followed the last item of the history somewhere in training.

    Parameters
    ----------
    ranks
        Ranks of the targets.
    histories
        What was known of the users, in the order that ``ranks.users`` counts in.
    training
        What the model learned from.
    ks
        Lengths of the lists.

    Returns
    -------
    One row per slice and group: ``slice``, ``group``, ``n_targets``, ``share`` of all targets, and the means of
    :func:`seqattn.recommend.metrics.target_metrics`. Groups without a target are left out.
    """
    values = target_metrics(ranks.ranks, check_ks(ks))
    rows = []
    for name, groups, place in _groupings(ranks, histories, training):
        for number, group in enumerate(groups):
            chosen = place == number
            if chosen.any():
                means = {metric: float(column[chosen].mean()) for metric, column in values.items()}
                size = {"n_targets": int(chosen.sum()), "share": float(chosen.mean())}
                rows.append({"slice": name, "group": group, **size, **means})
    return pl.DataFrame(rows)


def _groupings(
    ranks: Ranks, histories: Interactions, training: Interactions
) -> list[tuple[str, Sequence[str], NDArray[np.int64]]]:
    lengths = histories.lengths[ranks.users]
    by_length = np.searchsorted([least for least, _ in _LENGTHS], lengths, side="right") - 1
    is_known = ranks.items < training.n_items
    fifth = np.full(len(ranks.items), 5)
    fifth[is_known] = popularity_fifth(popularity_of(training))[ranks.items[is_known]]
    last = np.full(len(ranks.users), -1, dtype=np.int64)
    last[lengths > 0] = histories.items[histories.offsets[1:][ranks.users[lengths > 0]] - 1]
    pairs = np.where((last >= 0) & is_known, last * training.n_items + ranks.items, -1)
    seen = np.where(last < 0, 2, np.where(np.isin(pairs, transition_keys(training)), 0, 1))
    return [
        ("history length", [name for _, name in _LENGTHS], by_length),
        ("popularity of the target", _FIFTHS, fifth),
        ("last transition", ("seen in training", "not seen in training", "no history"), seen),
    ]
