"""The result of an evaluation: figures with their errors, slices, and the protocol in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqattn.data.interactions import Interactions
from seqattn.recommend.beyond import list_metrics, popularity_of, slices
from seqattn.recommend.metrics import Estimate, check_ks, mean_over_users, user_metrics
from seqattn.recommend.ranking import Ranks, Scorer, target_ranks, top_items

__all__ = ["Evaluation", "evaluate_ranking", "protocol_text"]

_TIES = {
    "average": "equal scores share the mean of their ranks",
    "pessimistic": "equal scores stand before the target",
    "optimistic": "equal scores stand after the target",
}


@dataclass(frozen=True, eq=False)
class Evaluation(Mapping[str, Any]):
    """Figures of one evaluation, by name, with more about them beside.

    As a mapping it holds what is written to files: ``hr@K``, ``ndcg@K``, ``mrr@K``, ``mrr``, ``coverage@K`` and the
    other figures of lists, ``n_users``, ``n_targets``, ``n_candidates``, ``n_unreachable``, ``protocol``, and
    ``baselines`` where those were asked for.

    Attributes
    ----------
    figures
        The mapping.
    estimates
        Means over users with standard errors and 95 % intervals.
    users
        Figures of each user, in the order of the users with a target.
    slices
        Figures of groups of targets.
    """

    figures: dict[str, Any]
    estimates: dict[str, Estimate]
    users: dict[str, NDArray[np.float64]] = field(repr=False)
    slices: pl.DataFrame = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    @property
    def protocol(self) -> str:
        """How the figures were computed, in words."""
        return str(self.figures["protocol"])

    def to_table(self) -> pl.DataFrame:
        """Return one row per figure: ``metric``, ``value``, ``standard_error``, ``lower``, ``upper``.

        Figures that are no mean over users have nulls in the last three.
        """
        rows = [
            {"metric": name, "value": float(value)} | _bounds(self.estimates.get(name))
            for name, value in self.figures.items()
            if isinstance(value, float)
        ]
        kinds = dict.fromkeys(("value", "standard_error", "lower", "upper"), pl.Float64)
        return pl.DataFrame(rows, schema={"metric": pl.String, **kinds})


def _bounds(estimate: Estimate | None) -> dict[str, float | None]:
    names = ("standard_error", "lower", "upper")
    return {name: None if estimate is None else getattr(estimate, name) for name in names}


def evaluate_ranking(
    scorer: Scorer,
    histories: Interactions,
    targets: Interactions,
    training: Interactions,
    *,
    ks: Sequence[int] = (5, 10, 20),
    exclude_seen: bool = True,
    ties: str = "average",
    seen: Interactions | None = None,
    user_batch: int | None = None,
    item_chunk: int | None = None,
) -> Evaluation:
    """Return every figure of the ranking protocol.

    Parameters
    ----------
    scorer
        What scores the items.
    histories
        What is known of the users.
    targets
        Items to rank, for the same users in the same order; users without any are left out.
    training
        What the scorer learned from: popularity and transitions of the slices are counted there.
    ks
        Lengths of the lists.
    exclude_seen, ties, seen, user_batch, item_chunk
        As in :func:`seqattn.recommend.ranking.target_ranks`.

    Raises
    ------
    DataError
        There is no target, or a score is NaN.
    ParameterError
        A setting is not allowed.
    """
    ks = check_ks(ks)
    tiling: dict[str, Any] = {"user_batch": user_batch, "item_chunk": item_chunk}
    common: dict[str, Any] = {"exclude_seen": exclude_seen, "seen": seen, **tiling}
    ranks = target_ranks(scorer, histories, targets, ties=ties, **common)
    users = user_metrics(ranks, ks)
    estimates = mean_over_users(users)
    asked = np.unique(ranks.users)
    shown = None if seen is None else seen.select(asked)
    lists = top_items(scorer, histories.select(asked), ks[-1], **{**common, "seen": shown})[0]
    figures: dict[str, Any] = {name: estimate.value for name, estimate in estimates.items()}
    figures |= list_metrics(lists, histories.select(asked), popularity_of(training), ks)
    figures |= {
        "n_users": ranks.n_users,
        "n_targets": len(ranks.ranks),
        "n_candidates": ranks.n_items,
        "n_unreachable": ranks.n_unreachable,
        "protocol": protocol_text(ranks, "the user's whole history" if seen is None else "the rows given"),
    }
    return Evaluation(figures, estimates, users, slices(ranks, histories, training, ks))


def protocol_text(ranks: Ranks, seen: str) -> str:
    """Return how figures were computed, in one paragraph that can stand beside them.

    Parameters
    ----------
    ranks
        The ranks that they come from.
    seen
        Which rows were removed from the ranking, where some were.
    """
    targets = f"{len(ranks.ranks):,} target{'' if len(ranks.ranks) == 1 else 's'}"
    masked = f"items of {seen} are removed" if ranks.exclude_seen else "items seen before stay candidates"
    candidates = f", {ranks.candidates.mean():,.1f} candidates on average" if ranks.exclude_seen else ""
    lost = (
        f"; {ranks.n_unreachable:,} targets cannot be reached and count as misses"
        if ranks.n_unreachable
        else ""
    )
    return (
        f"full ranking over all {ranks.n_items:,} items; {masked}{candidates}; {_TIES[ranks.ties]}; "
        f"{ranks.n_users:,} user{'' if ranks.n_users == 1 else 's'} with {targets}{lost}"
    )
