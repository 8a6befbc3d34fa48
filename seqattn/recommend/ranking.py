"""Exact ranks and best lists over a whole catalogue, computed in tiles of users and items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from seqattn.data.interactions import Interactions
from seqattn.errors import DataError, ParameterError

__all__ = ["TIES", "DotProducts", "Ranks", "Scorer", "check_size", "target_ranks", "top_items"]

TIES = ("average", "pessimistic", "optimistic")
# Users and items of a tile: 256 x 16,384 scores have 16 MB. Up to the larger number of items one tile holds them all,
# and scores need not be computed twice.
_USERS, _ITEMS, _ITEMS_AT_ONCE = 256, 16_384, 32_768
# Items of one product in double precision: 256 x 2,048 numbers stay in the cache.
_PRODUCT = 2_048


@runtime_checkable
class Scorer(Protocol):
    """What ranks items: a state per user, and from it the scores of any range of items.

    Two calls with the same arguments must give the same bits.
    """

    n_items: int

    def states(self, histories: Interactions) -> Any:
        """Return what the scores of some users need, computed from their rows alone.

        Parameters
        ----------
        histories
            Users with the rows that are known of them, possibly none.
        """
        ...

    def scores(self, states: Any, first: int, last: int) -> Float[Tensor, "users items"]:
        """Return the scores of items ``first`` to ``last - 1``, float32 on the CPU; higher is better.

        Parameters
        ----------
        states
            What :meth:`states` returned.
        first, last
            Range of item codes.
        """
        ...


class DotProducts:
    """Scores that are products of a user's state with a table of items, the same bits in every tiling.

    Products are summed in double precision and rounded to float32. In float32 the last bits depend on the sizes of the
    tile: of 512 x 12,101 scores with 64 terms 83 % differed between one user at a time and 64 at a time, and none did
    when rounded. One pass takes about 1.4 times as long.

    Parameters
    ----------
    table
        One row per item.
    encode
        Returns the states ``(users, dim)`` of histories.
    """

    def __init__(
        self, table: Float[Tensor, "items dim"], encode: Callable[[Interactions], Float[Tensor, "users dim"]]
    ) -> None:
        self.table = table.detach().cpu()
        self.encode = encode
        self.n_items = len(table)

    def states(self, histories: Interactions) -> Float[Tensor, "users dim"]:
        """Return the states of some users in double precision, on the CPU.

        Parameters
        ----------
        histories
            Users with their rows.
        """
        with torch.no_grad():
            return self.encode(histories).detach().cpu().double()

    def scores(self, states: Any, first: int, last: int) -> Float[Tensor, "users items"]:
        """Return the products of states with items ``first`` to ``last - 1``.

        Parameters
        ----------
        states
            What :meth:`states` returned.
        first, last
            Range of item codes.
        """
        found = torch.empty(len(states), last - first)
        for begin in range(first, last, _PRODUCT):
            end = min(begin + _PRODUCT, last)
            found[:, begin - first : end - first] = states @ self.table[begin:end].double().T
        return found


@dataclass(frozen=True)
class Ranks:
    """Where the targets of users stand among the candidates.

    Attributes
    ----------
    users, items
        One entry per target, ordered by user: the user's position in the data given, and the item's code.
    ranks
        1 for the best; halves come from ties. Infinite where the target was no candidate.
    candidates
        Number of candidates of the target's user.
    n_users
        Users with at least one target.
    n_items
        Size of the catalogue.
    exclude_seen, ties
        As given to :func:`target_ranks`.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ranks: NDArray[np.float64]
    candidates: NDArray[np.int64]
    n_users: int
    n_items: int
    exclude_seen: bool
    ties: str

    @property
    def n_unreachable(self) -> int:
        """Targets that were no candidates: seen before and removed, or not in the catalogue."""
        return int(np.isinf(self.ranks).sum())


@dataclass(frozen=True)
class _Pairs:
    """Distinct (row of a batch, item) pairs, ordered by row and item."""

    rows: NDArray[np.int64]
    items: NDArray[np.int64]

    @classmethod
    def of(cls, data: Interactions, users: NDArray[np.int64]) -> _Pairs:
        part = data.select(users)
        rows, items = np.repeat(np.arange(len(users)), part.lengths), part.items.astype(np.int64)
        stride = max(int(items.max(initial=0)) + 1, 1)
        return cls(*np.divmod(np.unique(rows * stride + items), stride))

    def within(self, first: int, last: int) -> NDArray[np.int64]:
        return np.flatnonzero((self.items >= first) & (self.items < last))

    def has(self, other: _Pairs) -> NDArray[np.bool_]:
        """Tell which of another's pairs are among these."""
        stride = int(max(self.items.max(initial=0), other.items.max(initial=0))) + 1
        return np.isin(other.rows * stride + other.items, self.rows * stride + self.items)


def target_ranks(
    scorer: Scorer,
    histories: Interactions,
    targets: Interactions,
    *,
    exclude_seen: bool = True,
    ties: str = "average",
    seen: Interactions | None = None,
    user_batch: int | None = None,
    item_chunk: int | None = None,
) -> Ranks:
    """Return the exact rank of every target among all items of the catalogue.

    The rank is 1 plus the number of candidates that score higher. With several targets of one user, each is a candidate
    beside the others. A target that comes twice counts once.

    Parameters
    ----------
    scorer
        What scores the items.
    histories
        What is known of the users.
    targets
        Items to rank, for the same users in the same order; users without any are left out.
    exclude_seen
        Whether items that the user has had are no candidates. A target among them is unreachable.
    ties
        ``"average"``: equal scores share the mean of their ranks. ``"pessimistic"``: all of them stand before the
        target. ``"optimistic"``: none does.
    seen
        The rows that count as seen, for the same users; None takes ``histories``.
    user_batch, item_chunk
        Users and items of a tile; no more scores than one tile holds are in memory. They change no rank.

    Returns
    -------
    One rank per distinct target.

    Raises
    ------
    DataError
        The users of histories and targets differ in number, or a score is NaN.
    ParameterError
        ``ties`` is not known, or a size is not positive.

    Examples
    --------
    >>> import polars as pl
    >>> rows = pl.DataFrame({"user_id": [0, 0, 1], "item_id": [0, 1, 2], "timestamp": [0, 1, 0]})
    >>> history = Interactions.of(rows)
    >>> scorer = DotProducts(torch.eye(3), lambda h: torch.tensor([[0.3, 0.2, 0.1]]).expand(h.n_users, -1))
    >>> target_ranks(scorer, history, history, exclude_seen=False).ranks.tolist()
    [1.0, 2.0, 3.0]
    """
    if ties not in TIES:
        raise ParameterError(f"ties={ties!r} is not known. Use one of {', '.join(map(repr, TIES))}.")
    for other in (targets, seen):
        _check_users(histories, other)
    chunk = _item_chunk(scorer, item_chunk)
    users = np.flatnonzero(targets.lengths)
    parts = []
    for batch in _batches(users, user_batch):
        wanted = _Pairs.of(targets, batch)
        gone = _Pairs.of(histories if seen is None else seen, batch if exclude_seen else batch[:0])
        ranks, candidates = _ranks(_Tiles(scorer, histories.select(batch), chunk), wanted, gone, ties)
        parts.append((batch[wanted.rows], wanted.items, ranks, candidates[wanted.rows]))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.empty(0)] * 4
    whole, items, ranks, candidates = columns
    return Ranks(
        users=whole.astype(np.int64),
        items=items.astype(np.int64),
        ranks=ranks.astype(np.float64),
        candidates=candidates.astype(np.int64),
        n_users=len(users),
        n_items=scorer.n_items,
        exclude_seen=exclude_seen,
        ties=ties,
    )


def _check_users(histories: Interactions, other: Interactions | None) -> None:
    if other is not None and other.n_users != histories.n_users:
        raise DataError(
            f"There are histories of {histories.n_users} users, but {other.n_users} users in the rows beside them. "
            "Give the same users in the same order; a user may have no row."
        )


def check_size(name: str, value: Any) -> None:
    """Refuse a size that is no whole number of at least 1.

    Parameters
    ----------
    name
        What it is called, for the message.
    value
        The size.

    Raises
    ------
    ParameterError
        It is another value.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ParameterError(f"{name}={value!r} is not a positive whole number.")


def _item_chunk(scorer: Scorer, given: int | None) -> int:
    chosen = given if given is not None else _ITEMS if scorer.n_items > _ITEMS_AT_ONCE else _ITEMS_AT_ONCE
    check_size("item_chunk", chosen)
    return chosen


def _batches(users: NDArray[np.int64], size: int | None) -> Iterator[NDArray[np.int64]]:
    size = _USERS if size is None else size
    check_size("user_batch", size)
    return (users[begin : begin + size] for begin in range(0, len(users), size))


class _Tiles:
    """The scores of a batch of users, range after range; where one range holds all items they are computed once."""

    def __init__(self, scorer: Scorer, histories: Interactions, chunk: int) -> None:
        self.scorer, self.chunk, self.n_users = scorer, chunk, histories.n_users
        self.state = scorer.states(histories)
        self.kept: NDArray[np.float32] | None = None

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        n_items = self.scorer.n_items
        if n_items <= self.chunk:
            self.kept = self._scores(0, n_items) if self.kept is None else self.kept
            yield 0, self.kept
            return
        for first in range(0, n_items, self.chunk):
            yield first, self._scores(first, min(first + self.chunk, n_items))

    def _scores(self, first: int, last: int) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self.scorer.scores(self.state, first, last).numpy()
        if np.isnan(scores.max(initial=-np.inf)):
            item = first + int(np.flatnonzero(np.isnan(scores).any(axis=0))[0])
            raise DataError(
                f"The model scores item number {item} with NaN. Its weights are not finite: fit it again, with a lower "
                "learning rate."
            )
        return scores


def _ranks(
    tiles: _Tiles, wanted: _Pairs, gone: _Pairs, ties: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the rank of each wanted pair, and the number of candidates of each user of the batch."""
    n_items = tiles.scorer.n_items
    level = np.full(len(wanted.rows), np.nan, dtype=np.float32)
    for first, scores in tiles:
        inside = wanted.within(first, first + scores.shape[1])
        level[inside] = scores[wanted.rows[inside], wanted.items[inside] - first]
    higher, equal = (np.zeros(len(level), dtype=np.int64) for _ in range(2))
    for first, scores in tiles:
        _count(scores, first, wanted.rows, level, gone, higher, equal)
    share = {"average": 0.5, "pessimistic": 1.0, "optimistic": 0.0}[ties]
    is_lost = gone.has(wanted) | (wanted.items >= n_items)
    removed = np.bincount(gone.rows[gone.items < n_items], minlength=tiles.n_users)
    return np.where(is_lost, np.inf, 1.0 + higher + share * (equal - 1)), n_items - removed


def _count(
    scores: NDArray[np.float32],
    first: int,
    rows: NDArray[np.int64],
    level: NDArray[np.float32],
    gone: _Pairs,
    higher: NDArray[np.int64],
    equal: NDArray[np.int64],
) -> None:
    """Add to the targets' counts the candidates of one tile; targets of one user are taken one after the other."""
    slots = np.arange(len(rows)) - np.searchsorted(rows, rows)
    inside = gone.within(first, first + scores.shape[1])
    gone_rows = gone.rows[inside]
    gone_scores = scores[gone_rows, gone.items[inside] - first]
    for slot in range(int(slots.max(initial=-1)) + 1):
        pairs = np.flatnonzero(slots == slot)
        block = scores if len(pairs) == len(scores) else scores[rows[pairs]]
        place = np.full(len(scores), -1)
        place[rows[pairs]] = pairs
        at = place[gone_rows]
        at, lost = at[at >= 0], gone_scores[at >= 0]
        for counts, compare in ((higher, np.greater), (equal, np.equal)):
            counts[pairs] += np.count_nonzero(compare(block, level[pairs, None]), axis=1)
            counts -= np.bincount(at[compare(lost, level[at])], minlength=len(level))


def top_items(
    scorer: Scorer,
    histories: Interactions,
    k: int,
    *,
    exclude_seen: bool = True,
    exclude: NDArray[Any] | None = None,
    candidates: NDArray[Any] | None = None,
    seen: Interactions | None = None,
    user_batch: int | None = None,
    item_chunk: int | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the ``k`` candidates with the highest scores of each user, best first.

    Of equal scores the lower item code comes first. An item with the score minus infinity is never listed.

    Parameters
    ----------
    scorer
        What scores the items.
    histories
        What is known of the users.
    k
        Length of the lists.
    exclude_seen
        Whether items that the user has had are left out.
    exclude
        Codes of items that nobody gets.
    candidates
        Codes of the only items that may be listed; None for all.
    seen, user_batch, item_chunk
        As in :func:`target_ranks`.

    Returns
    -------
    Item codes and scores, ``(users, k)``, or as many columns as there are items if these are fewer; -1 and NaN after
    the last candidate.

    Raises
    ------
    DataError
        A score is NaN, or the users of ``seen`` differ in number.
    ParameterError
        A size or ``k`` is not positive.

    Examples
    --------
    >>> import polars as pl
    >>> rows = pl.DataFrame({"user_id": [0, 0, 1], "item_id": [0, 1, 2], "timestamp": [0, 1, 0]})
    >>> scorer = DotProducts(torch.eye(3), lambda h: torch.tensor([[0.3, 0.2, 0.1]]).expand(h.n_users, -1))
    >>> top_items(scorer, Interactions.of(rows), 2)[0].tolist()
    [[2, -1], [0, 1]]
    """
    check_size("k", k)
    k = min(k, scorer.n_items)
    _check_users(histories, seen)
    barred = _barred(scorer.n_items, exclude, candidates)
    chunk = _item_chunk(scorer, item_chunk)
    items = np.full((histories.n_users, k), -1, dtype=np.int32)
    found = np.full((histories.n_users, k), np.nan, dtype=np.float32)
    for batch in _batches(np.arange(histories.n_users), user_batch):
        gone = _Pairs.of(histories if seen is None else seen, batch if exclude_seen else batch[:0])
        tiles = _Tiles(scorer, histories.select(batch), chunk)
        best = np.empty((len(batch), 0), dtype=np.float32)
        codes = np.empty((len(batch), 0), dtype=np.int64)
        for first, scores in tiles:
            open_scores = _opened(scores, first, barred, gone)
            places = _best(open_scores, k)
            best = np.concatenate([best, np.take_along_axis(open_scores, places, 1)], axis=1)
            codes = np.concatenate([codes, places + first], axis=1)
            # Earlier ranges hold lower codes, and the sort is stable: equal scores stay in the order of their codes.
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, codes = np.take_along_axis(best, order, 1), np.take_along_axis(codes, order, 1)
        is_there = best > -np.inf
        items[batch, : best.shape[1]] = np.where(is_there, codes, -1)
        found[batch, : best.shape[1]] = np.where(is_there, best, np.nan)
    return items, found


def _barred(
    n_items: int, exclude: NDArray[Any] | None, candidates: NDArray[Any] | None
) -> NDArray[np.bool_] | None:
    """Tell of each item whether nobody gets it; None where everybody may get everything."""
    if exclude is None and candidates is None:
        return None
    barred = np.full(n_items, candidates is not None)
    if candidates is not None:
        barred[candidates] = False
    if exclude is not None:
        barred[exclude] = True
    return barred


def _opened(
    scores: NDArray[np.float32], first: int, barred: NDArray[np.bool_] | None, gone: _Pairs
) -> NDArray[np.float32]:
    """Return a copy of scores with minus infinity where there is no candidate."""
    found = np.array(scores, dtype=np.float32)
    if barred is not None:
        found[:, barred[first : first + found.shape[1]]] = -np.inf
    inside = gone.within(first, first + found.shape[1])
    found[gone.rows[inside], gone.items[inside] - first] = -np.inf
    return found


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the places of the ``k`` highest scores of each row in rising order; of equal ones the first."""
    k = min(k, scores.shape[1])
    values, places = torch.topk(torch.from_numpy(scores), k, dim=1)
    found: NDArray[np.int64] = np.sort(places.numpy(), axis=1)
    least = values[:, -1:].numpy()
    doubtful = np.flatnonzero(np.count_nonzero(scores >= least, axis=1) > k)
    if len(doubtful):
        block, least = scores[doubtful], least[doubtful]
        is_higher, is_equal = block > least, block == least
        open_places = k - np.count_nonzero(is_higher, axis=1)[:, None]
        taken = is_higher | (is_equal & (np.cumsum(is_equal, axis=1) <= open_places))
        found[doubtful] = np.nonzero(taken)[1].reshape(-1, k)
    return found
