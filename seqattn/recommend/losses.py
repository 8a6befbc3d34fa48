"""Losses over a whole catalogue that never hold the scores of all rows and items.

Every loss is a sum over rows of ``log sum exp(scores)`` minus terms that are linear in the scores. The linear terms
cost as little as an embedding; the log-sums are one function that walks over chunks of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from seqattn.recommend.transitions import Teacher

__all__ = ["chunk_rows", "distillation_loss", "log_normaliser", "ranking_loss"]

# A chunk that stays in the cache is faster: 1,500 rows, 12,101 items, width 64, one core: 32 to 512 rows at once take
# 0.15 to 0.17 s, all rows 0.20 s. Below the least number of rows the products of matrices get slow.
_CACHE, _FEW_ROWS = 8 * 2**20, 64
# Items per product of states and table: the same rows take 0.040 s in blocks of 1,024 items and 0.074 s in one (MKL).
_BLOCK = 1024


def chunk_rows(n_items: int, memory_mb: float, itemsize: int = 4) -> int:
    """Return how many rows of scores are formed at once.

    Parameters
    ----------
    n_items
        Scores per row.
    memory_mb
        Most MiB that the scores may take.
    itemsize
        Bytes of a score.

    Examples
    --------
    >>> chunk_rows(12_101, 256), chunk_rows(1_000_000, 256)
    (173, 64)
    """
    width = max(n_items, 1) * itemsize
    return max(1, min(int(memory_mb * 2**20 // width), max(_FEW_ROWS, _CACHE // width)))


class _LogNormaliser(torch.autograd.Function):
    """The sum of log-sums with its gradients, which are formed while the scores are there."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        extra: Tensor | None,
        offset: Tensor | None,
        hits: tuple[Tensor, Tensor] | None,
        memory_mb: float,
        is_half: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:2]
        sums = _Sums(states.detach(), table.detach(), extra, offset, hits, wanted, is_half)
        with torch.autocast(states.device.type, enabled=False):
            sums.walk(chunk_rows(len(table), memory_mb, table.element_size()))
        ctx.save_for_backward(sums.of_states, sums.of_table, sums.of_extra)
        return sums.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if part is None else part * grads[0] for part in ctx.saved_tensors]
        needed = ctx.needs_input_grad
        return (*(part if needed[i] else None for i, part in enumerate(found)), None, None, None, None)


class _Sums:
    """One walk over chunks of rows."""

    def __init__(
        self,
        states: Tensor,
        table: Tensor,
        extra: Tensor | None,
        offset: Tensor | None,
        hits: tuple[Tensor, Tensor] | None,
        wanted: tuple[bool, ...],
        is_half: bool,
    ) -> None:
        self.states, self.table, self.extra, self.offset, self.hits = states, table, extra, offset, hits
        self.narrow = torch.bfloat16 if is_half else table.dtype
        self.product_table = table.to(self.narrow)
        self.total = states.new_zeros((), dtype=torch.float64)
        self.of_states = torch.empty_like(states) if wanted[0] else None
        self.of_table = torch.zeros_like(table) if wanted[1] else None
        self.of_extra = None if extra is None else torch.empty_like(extra)

    def walk(self, chunk: int) -> None:
        rows = len(self.states)
        buffer = self.table.new_empty(min(chunk, rows), len(self.table))
        for first in range(0, rows, chunk):
            self._chunk(slice(first, min(first + chunk, rows)), buffer)
        self.total = self.total.to(self.table.dtype)

    def _chunk(self, rows: slice, buffer: Tensor) -> None:
        part = self.states[rows]
        scores = self._scores(part, rows, buffer[: len(part)])
        top = scores.amax(1)
        torch.softmax(scores, 1, out=scores)  # in place: 4 times as fast as exp, for it is vectorised
        log_sum = top - scores.amax(1).log()
        share = None
        if self.extra is not None and self.of_extra is not None:
            inner, log_sum = log_sum, torch.logaddexp(log_sum, self.extra[rows])
            share = (inner - log_sum).exp_()[:, None]
            self.of_extra[rows] = (self.extra[rows] - log_sum).exp_()
        self.total += log_sum.sum(dtype=torch.float64)
        self._add_gradients(rows, part, scores, share)

    def _scores(self, part: Tensor, rows: slice, scores: Tensor) -> Tensor:
        if self.narrow == scores.dtype:
            for first in range(0, len(self.table), _BLOCK):
                block = slice(first, first + _BLOCK)
                torch.mm(part, self.table[block].T, out=scores[:, block])
        else:
            scores.copy_(part.to(self.narrow) @ self.product_table.T)
        if self.offset is not None:
            scores += self.offset
        if self.hits is not None:
            row, column = self.hits
            low, high = torch.searchsorted(row, row.new_tensor([rows.start, rows.stop])).tolist()
            # Finite, so that a row in which all are hit has a log-sum that vanishes beside the extra one.
            scores[row[low:high] - rows.start, column[low:high]] = torch.finfo(scores.dtype).min / 2
        return scores

    def _add_gradients(self, rows: slice, part: Tensor, chances: Tensor, share: Tensor | None) -> None:
        chances = chances.to(self.narrow)
        if self.of_states is not None:
            found = chances @ self.product_table
            self.of_states[rows] = found if share is None else found * share
        if self.of_table is not None:
            weighed = part if share is None else part * share
            if self.narrow == part.dtype:
                self.of_table.addmm_(chances.T, weighed)
            else:
                self.of_table += chances.T @ weighed.to(self.narrow)


def log_normaliser(
    states: Float[Tensor, "rows dim"],
    table: Float[Tensor, "items dim"],
    *,
    extra: Float[Tensor, " rows"] | None = None,
    offset: Float[Tensor, " items"] | None = None,
    hits: tuple[Int[Tensor, " hits"], Int[Tensor, " hits"]] | None = None,
    memory_mb: float = 256,
    is_half: bool = False,
) -> Float[Tensor, ""]:
    r"""Return the sum over rows of the log-sum of exponentials of their scores.

    .. math:: \sum_t \log\Bigl(e^{a_t} + \sum_j e^{s_t \cdot E_j + b_j}\Bigr)

    The scores exist for a chunk of rows at a time, and the gradients are formed from them at once, in the forward
    pass. Second derivatives are not there.

    Parameters
    ----------
    states
        :math:`s`.
    table
        :math:`E`.
    extra
        :math:`a`, one further score per row; None for none.
    offset
        :math:`b`, added to the scores of an item; None for none. It gets no gradient.
    hits
        Rows (rising) and items of pairs that do not count.
    memory_mb
        Most MiB of scores at a time.
    is_half
        Whether the products of matrices run in bfloat16; sums and the softmax stay in the precision of the table.

    Returns
    -------
    The sum, added up in float64.

    Examples
    --------
    >>> float(log_normaliser(torch.zeros(2, 3), torch.zeros(4, 3))) == float(2 * torch.tensor(4.0).log())
    True
    """
    found: Tensor = _LogNormaliser.apply(states, table, extra, offset, hits, memory_mb, is_half)
    return found


def ranking_loss(
    states: Float[Tensor, "rows dim"],
    targets: Int[Tensor, " rows"],
    table: Float[Tensor, "items dim"],
    *,
    zero_class: bool = False,
    memory_mb: float = 256,
    is_half: bool = False,
) -> Float[Tensor, ""]:
    r"""Return the sum over rows of the softmax cross entropy over all items.

    .. math:: \sum_t \Bigl[\log\Bigl(z + \sum_j e^{s_t \cdot E_j}\Bigr) - s_t \cdot E_{y_t}\Bigr]

    Parameters
    ----------
    states
        :math:`s`.
    targets
        Codes :math:`y` of the right items.
    table
        :math:`E`.
    zero_class
        Whether a class without an item, whose score is 0, is one of the answers: z is 1 then, otherwise 0.
    memory_mb, is_half
        As in :func:`log_normaliser`.
    """
    extra = states.new_zeros(len(states), dtype=table.dtype) if zero_class else None
    total = log_normaliser(states, table, extra=extra, memory_mb=memory_mb, is_half=is_half)
    return total - (states * table.index_select(0, targets)).sum()


def distillation_loss(
    heads: Float[Tensor, "rows dim"],
    items: Int[Tensor, " rows"],
    table: Float[Tensor, "items dim"],
    teacher: Teacher,
    *,
    memory_mb: float = 256,
    is_half: bool = False,
) -> Float[Tensor, ""]:
    r"""Return the sum over rows of the cross entropy between the teacher and the student.

    .. math:: \sum_t \Bigl[\log \sum_j e^{h_t \cdot E_j} - h_t \cdot
        \Bigl(f_{i_t} \sum_j E_j + \sum_j w_{i_t j} E_j\Bigr)\Bigr]

    Parameters
    ----------
    heads
        What stands for the item :math:`i_t` in the student, over its temperature.
    items
        Codes :math:`i`.
    table
        :math:`E`.
    teacher
        Floors f and weights w.
    memory_mb, is_half
        As in :func:`log_normaliser`.
    """
    distinct, which = items.unique(return_inverse=True)
    lengths, columns, weights = teacher.rows(distinct)
    pulled = embedding_bag(
        columns,
        table,
        lengths.cumsum(0) - lengths,
        mode="sum",
        per_sample_weights=weights.to(table.dtype),
    )
    floor = teacher.floor[items].to(table.dtype)
    expected = pulled[which] + floor[:, None] * table.sum(0)
    total = log_normaliser(heads, table, memory_mb=memory_mb, is_half=is_half)
    return total - (heads * expected).sum()
