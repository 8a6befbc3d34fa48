"""Losses over a sample of the catalogue, weighted so that they estimate those over all of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqattn.recommend.losses import log_normaliser
from seqattn.recommend.transitions import Teacher

__all__ = [
    "NEGATIVES",
    "Drawn",
    "Proposal",
    "is_sampled",
    "sampled_distillation_loss",
    "sampled_ranking_loss",
]

NEGATIVES = ("uniform", "popularity", "batch")


@dataclass(frozen=True)
class Drawn:
    """The negatives of a step, shared by all its rows.

    Attributes
    ----------
    items
        Codes, rising; several of one item may have been drawn.
    log_weights
        Logarithm of one over the expected number of times that the item is drawn; None where all items are equally
        likely and none is drawn twice.
    n_items
        Size of the catalogue.
    """

    items: Int[Tensor, " drawn"]
    log_weights: Float[Tensor, " drawn"] | None
    n_items: int

    def matches(self, wanted: Int[Tensor, " rows"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return where items are among the negatives.

        Parameters
        ----------
        wanted
            Codes.

        Returns
        -------
        Row of ``wanted`` and place in ``items`` of each pair that agrees, and the number of pairs by row.
        """
        low = torch.searchsorted(self.items, wanted)
        counts = torch.searchsorted(self.items, wanted, right=True) - low
        rows = torch.repeat_interleave(torch.arange(len(wanted), device=wanted.device), counts)
        ends = counts.cumsum(0)
        within = torch.arange(len(rows), device=wanted.device) - (ends - counts)[rows]
        return rows, low[rows] + within, counts


class Proposal(nn.Module):
    """Draw negatives: all items alike, by popularity, or the targets of the step.

    Parameters
    ----------
    kind
        One of ``NEGATIVES``. ``"uniform"`` draws without repetition. ``"popularity"`` draws items by one more than
        their number of training targets. ``"batch"`` takes the targets of the step, so items that are nobody's target
        are never a negative.
    n_negatives
        How many to draw; uniform ones at most the catalogue. Without meaning for ``"batch"``.
    popularity
        Training targets by item.
    """

    counts: Int[Tensor, " items"]
    reach: Int[Tensor, " items"]

    def __init__(self, kind: str, n_negatives: int, popularity: np.ndarray) -> None:
        super().__init__()
        counts = np.asarray(popularity, dtype=np.int64) + (kind == "popularity")
        self.kind, self.n_items = kind, len(counts)
        self.n_negatives = min(n_negatives, self.n_items) if kind == "uniform" else n_negatives
        # Whole numbers: a cumulative share in float32 is coarser than the items of a large catalogue.
        if kind != "uniform":
            self.register_buffer("counts", torch.from_numpy(counts), persistent=False)
            self.register_buffer("reach", torch.from_numpy(counts.cumsum()), persistent=False)

    def forward(self, targets: Int[Tensor, " rows"]) -> Drawn:
        """Return the negatives of a step.

        Parameters
        ----------
        targets
            Codes of its targets.
        """
        if self.kind == "uniform":
            return Drawn(_distinct(self.n_negatives, self.n_items, targets.device), None, self.n_items)
        items = targets if self.kind == "batch" else self._popular()
        items = items.sort().values
        expected = self.counts[items].double() / self.reach[-1] * len(items)
        return Drawn(items, -expected.log().float(), self.n_items)

    def _popular(self) -> Tensor:
        draws = torch.randint(int(self.reach[-1]), (self.n_negatives,), device=self.reach.device)
        return torch.searchsorted(self.reach, draws, right=True)


def _distinct(n: int, n_items: int, device: torch.device) -> Tensor:
    """Return distinct items, every set of them equally likely."""
    if 4 * n > n_items:
        return torch.randperm(n_items, device=device)[:n].sort().values
    found = torch.empty(0, dtype=torch.int64, device=device)
    while len(found) < n:
        found = torch.cat([found, torch.randint(n_items, (n + 64,), device=device)]).unique()
    return found[torch.randperm(len(found), device=device)[:n]].sort().values


def sampled_ranking_loss(
    states: Float[Tensor, "rows dim"],
    targets: Int[Tensor, " rows"],
    right: Float[Tensor, "rows dim"],
    wrong: Float[Tensor, "drawn dim"],
    drawn: Drawn,
    *,
    zero_class: bool = False,
    memory_mb: float = 256,
) -> Float[Tensor, ""]:
    r"""Return an estimate of :func:`seqattn.recommend.losses.ranking_loss` from negatives.

    .. math:: \sum_t \Bigl[\log\Bigl(z + e^{s_t \cdot E_{y_t}} + \sum_{j \ne y_t} \omega_{tj} e^{s_t \cdot E_j}\Bigr)
        - s_t \cdot E_{y_t}\Bigr], \qquad \omega_{tj} = \frac{n - 1}{k_t} \text{ or } \frac{1}{k q_j}

    The target is always there, so it is not weighted; where it was also drawn it does not count again. With uniform
    negatives :math:`k_t` is the number of those that are not the target: with the whole catalogue the loss is exact.

    Parameters
    ----------
    states, targets, zero_class, memory_mb
        As for the exact loss.
    right, wrong
        Embeddings of the targets and of the negatives.
    drawn
        The negatives.
    """
    score = (states * right).sum(1)
    rows, places, counts = drawn.matches(targets)
    others = len(drawn.items) - counts
    rest = (drawn.n_items - 1) / others.clamp(min=1).to(score.dtype)
    shift = rest.log() if drawn.log_weights is None else torch.zeros_like(score)
    own = torch.logaddexp(score, torch.zeros_like(score)) if zero_class else score
    offset = None if drawn.log_weights is None else drawn.log_weights.to(score.dtype)
    total = log_normaliser(
        states, wrong, extra=own - shift, offset=offset, hits=(rows, places), memory_mb=memory_mb
    )
    return total + shift.sum() - score.sum()


def sampled_distillation_loss(
    heads: Float[Tensor, "rows dim"],
    items: Int[Tensor, " rows"],
    wrong: Float[Tensor, "drawn dim"],
    successors: Float[Tensor, "pairs dim"],
    teacher: Teacher,
    drawn: Drawn,
    *,
    memory_mb: float = 256,
) -> Float[Tensor, ""]:
    r"""Return an estimate of :func:`seqattn.recommend.losses.distillation_loss` from negatives.

    The successors of an item, of which the teacher knows something, are all there and count as they are; negatives
    that are none of them stand for the rest of the catalogue, in the log-sum and in the teacher's floor.

    Parameters
    ----------
    heads, items, teacher, memory_mb
        As for the exact loss.
    wrong
        Embeddings of the negatives.
    successors
        Embeddings of the successors of ``items.unique()``, end to end as :meth:`Teacher.rows` gives them.
    drawn
        The negatives.
    """
    distinct, which = items.unique(return_inverse=True)
    lengths, columns, weights = teacher.rows(distinct)
    floor = teacher.floor[items].to(heads.dtype)
    rows, pairs = _spread(lengths, which)
    drawn_rows, places, times = drawn.matches(columns)
    own = torch.ones_like(places, dtype=heads.dtype)
    if drawn.log_weights is not None:
        own = drawn.log_weights[places].exp().to(heads.dtype)
    covered = own.new_zeros(len(columns)).index_add_(0, drawn_rows, own)
    rest = _rest(drawn, lengths, times, len(distinct)).to(heads.dtype)[which]
    pull = floor[rows] * (1 - covered[pairs] * rest[rows]) + weights.to(heads.dtype)[pairs]
    top, linear = _by_pairs(heads, successors, rows, pairs, pull, memory_mb)
    common = wrong.sum(0) if drawn.log_weights is None else drawn.log_weights.exp().to(wrong.dtype) @ wrong
    spread = (heads * common).sum(1) @ (floor * rest)
    offset = None if drawn.log_weights is None else drawn.log_weights.to(heads.dtype)
    hits = _hits(drawn_rows, places, lengths, which)
    total = log_normaliser(
        heads, wrong, extra=top - rest.log(), offset=offset, hits=hits, memory_mb=memory_mb
    )
    return total + rest.log().sum() - linear - spread


def _rest(drawn: Drawn, lengths: Tensor, times: Tensor, n: int) -> Tensor:
    """Return by how much a uniform negative stands for others: items that are no successors by negatives of them."""
    if drawn.log_weights is not None:
        return torch.ones(n, device=lengths.device)
    row = torch.repeat_interleave(torch.arange(n, device=lengths.device), lengths)
    known = torch.zeros(n, dtype=torch.int64, device=lengths.device).index_add_(0, row, times)
    return (drawn.n_items - lengths).clamp(min=1) / (len(drawn.items) - known).clamp(min=1)


def _spread(lengths: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and the pair of each successor of each row, where row t has those of ``which[t]``."""
    counts = lengths[which]
    rows = torch.repeat_interleave(torch.arange(len(which), device=which.device), counts)
    within = torch.arange(len(rows), device=which.device) - (counts.cumsum(0) - counts)[rows]
    return rows, (lengths.cumsum(0) - lengths)[which][rows] + within


def _hits(drawn_rows: Tensor, places: Tensor, lengths: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and negatives that are successors of the row's item."""
    row = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    by_item = torch.bincount(row[drawn_rows], minlength=len(lengths))
    rows, at = _spread(by_item, which)
    return rows, places[at]


def _by_pairs(
    heads: Tensor, successors: Tensor, rows: Tensor, pairs: Tensor, pull: Tensor, memory_mb: float
) -> tuple[Tensor, Tensor]:
    """Return the log-sum over the successors of each row, and the sum of all their scores times ``pull``.

    The embeddings of all pairs never exist together: each part is computed again for its gradient.
    """
    size = max(1, int(memory_mb * 2**20 / (8 * heads.shape[1] * heads.element_size())))
    parts = zip(rows.split(size), pairs.split(size), strict=True)
    scores = [checkpoint(_scores, heads, successors, *part, use_reentrant=False) for part in parts]
    score = torch.cat(scores) if scores else heads.new_zeros(0)
    least = torch.finfo(heads.dtype).min / 2
    top = heads.new_full((len(heads),), least).scatter_reduce(0, rows, score.detach(), "amax")
    sums = heads.new_zeros(len(heads)).index_add(0, rows, (score - top[rows]).exp())
    return top + sums.clamp(min=torch.finfo(heads.dtype).tiny).log(), score @ pull


def _scores(heads: Tensor, successors: Tensor, rows: Tensor, pairs: Tensor) -> Tensor:
    return (heads[rows] * successors[pairs]).sum(1)


def is_sampled(n_tokens: float, n_items: int, width: int, memory_mb: float, on_gpu: bool) -> bool:
    """Return whether ``loss="auto"`` samples.

    Parameters
    ----------
    n_tokens
        Rows of a step.
    n_items, width
        Size of the table.
    memory_mb
        Most MiB of scores.
    on_gpu
        Whether a GPU computes; it takes 25 times the work.
    """
    work = n_tokens * n_items * width * 6
    return work > (5e12 if on_gpu else 2e11) or memory_mb * 2**20 < 32 * 4 * n_items
