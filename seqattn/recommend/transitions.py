"""Which item follows which: sparse counts, and the teacher that distillation makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqattn.errors import ParameterError

__all__ = ["Teacher", "Transitions", "mass_of", "temperature_of"]


@dataclass(frozen=True, eq=False)
class Transitions:
    """How often item j follows item i, for the pairs that were seen.

    Attributes
    ----------
    offsets
        The successors of item i stand at ``offsets[i]`` to ``offsets[i + 1]`` (int64).
    successors
        Codes of items (int32), rising within a row.
    counts
        How often each pair was seen (float32).
    """

    offsets: np.ndarray
    successors: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(
        cls,
        offsets: np.ndarray,
        items: np.ndarray,
        n_items: int,
        *,
        span: int = 1,
        max_successors: int | None = None,
    ) -> Self:
        """Count the pairs of items that follow each other in the same sequence.

        Parameters
        ----------
        offsets
            Sequence u holds the items ``offsets[u]`` to ``offsets[u + 1]``.
        items
            Codes of items in the order of time.
        n_items
            Size of the catalogue.
        span
            How many steps apart two items may be; every distance counts alike.
        max_successors
            Most successors of an item that are kept, those with the largest counts; of equal counts the smaller
            codes. None keeps all.

        Examples
        --------
        >>> found = Transitions.of(np.array([0, 3, 5]), np.array([0, 1, 2, 0, 1]), 3)
        >>> found.offsets.tolist(), found.successors.tolist(), found.counts.tolist()
        ([0, 1, 2, 2], [1, 2], [2.0, 1.0])
        """
        pairs, counts = _counted(np.asarray(offsets), np.asarray(items), n_items, span)
        if max_successors is not None:
            pairs, counts = _strongest(pairs, counts, n_items, max_successors)
        starts = np.searchsorted(pairs, np.arange(n_items + 1, dtype=np.int64) * n_items)
        return cls(starts, (pairs % n_items).astype(np.int32), counts.astype(np.float32))

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self.offsets) - 1

    def shares(self) -> np.ndarray:
        """Return each count over the largest count of its row, in (0, 1]."""
        lengths = np.diff(self.offsets)
        full = np.flatnonzero(lengths)
        top = np.maximum.reduceat(self.counts, self.offsets[full]) if len(full) else self.counts[:0]
        return np.asarray(self.counts / np.repeat(top, lengths[full]), dtype=np.float64)


def _counted(
    offsets: np.ndarray, items: np.ndarray, n_items: int, span: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs as ``first * n_items + second``, sorted, and how often each was seen."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys = []
    for step in range(1, span + 1):
        same = np.flatnonzero(owner[step:] == owner[:-step])
        keys.append(items[same].astype(np.int64) * n_items + items[same + step])
    return np.unique(np.concatenate(keys), return_counts=True)


def _strongest(
    pairs: np.ndarray, counts: np.ndarray, n_items: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs with the largest counts of each first item."""
    first = pairs // n_items
    order = np.lexsort((pairs, -counts, first))
    place = np.arange(len(order)) - np.searchsorted(first, first)
    kept = np.sort(order[place < most])
    return pairs[kept], counts[kept]


def temperature_of(mass: float, n_items: int) -> float:
    r"""Return the temperature at which a single observed successor gets a share of the teacher.

    .. math:: \tau = 1 / \ln\Bigl(\frac{m}{1 - m} (n - 1)\Bigr)

    Parameters
    ----------
    mass
        The share m, above 1 / n and below 1.
    n_items
        Size n of the catalogue.

    Raises
    ------
    ParameterError
        The share is not above that of chance, or not below 1.

    Examples
    --------
    >>> round(temperature_of(0.65, 1_000_000), 3)
    0.069
    """
    odds = mass / (1 - mass) * (n_items - 1) if 0 < mass < 1 else 0.0
    if odds <= 1:
        raise ParameterError(
            f"teacher_mass={mass!r} is not allowed for {n_items} items. Give a number above 1 / {n_items} and below 1."
        )
    return 1 / math.log(odds)


def mass_of(temperature: float, n_items: int) -> float:
    r"""Return the share that the teacher gives a single observed successor.

    .. math:: m = \frac{e^{1 / \tau}}{e^{1 / \tau} + n - 1}

    Parameters
    ----------
    temperature
        :math:`\tau`, above 0.
    n_items
        Size n of the catalogue.

    Examples
    --------
    >>> round(mass_of(0.1, 12_101), 2)
    0.65
    """
    return 1 / (1 + (n_items - 1) * math.exp(-1 / temperature))


class Teacher(nn.Module):
    r"""Say how likely each item is to follow another, without a dense row.

    .. math:: p_{ij} \propto \exp\Bigl(\frac{C_{ij}}{\tau \max_k C_{ik}}\Bigr) \quad\Rightarrow\quad
        p_{ij} = f_i + w_{ij}, \qquad f_i = 1 / Z_i, \quad w_{ij} = r_{ij} / Z_i, \quad
        r = \mathrm{expm1}\Bigl(\frac{C_{ij}}{\tau \max_k C_{ik}}\Bigr), \quad Z_i = n + \sum_j r_{ij}

    The floor :math:`f_i` belongs to every item, the weight :math:`w_{ij}` to successors that were seen only. An item
    without any has a uniform row. Row maxima and sums are taken in logarithms, so that no temperature overflows.

    Parameters
    ----------
    transitions
        The counts C.
    temperature
        :math:`\tau`, above 0.

    References
    ----------
    Zhu et al. (2024), Collaborative filtering with transition-aware embedding distillation, WSDM, arXiv 2311.01056.
    """

    def __init__(self, transitions: Transitions, temperature: float) -> None:
        super().__init__()
        n, lengths = transitions.n_items, np.diff(transitions.offsets)
        sharp = transitions.shares() / temperature
        rising = sharp + np.log(-np.expm1(-sharp))  # log(expm1(x)) without overflow
        row = np.repeat(np.arange(n), lengths)
        total = np.logaddexp(_sum_of_exp(rising, transitions.offsets, lengths), math.log(n))
        self._keep("floor", np.exp(-total).astype(np.float32))
        self._keep("weights", np.exp(rising - total[row]).astype(np.float32))
        self._keep("columns", transitions.successors.astype(np.int64))
        self._keep("starts", transitions.offsets)

    floor: Float[Tensor, " items"]
    weights: Float[Tensor, " pairs"]
    columns: Int[Tensor, " pairs"]
    starts: Int[Tensor, " bounds"]

    def _keep(self, name: str, values: Any) -> None:
        """Keep an array that moves with the module and is no part of its weights."""
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)), persistent=False)

    def rows(
        self, items: Int[Tensor, " rows"]
    ) -> tuple[Int[Tensor, " rows"], Int[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Return the successors of items.

        Parameters
        ----------
        items
            Codes.

        Returns
        -------
        Number of successors of each, their codes end to end, and their weights.
        """
        first = self.starts[items]
        lengths = self.starts[items + 1] - first
        ends = lengths.cumsum(0)
        place = torch.arange(int(ends[-1]) if len(ends) else 0, device=items.device)
        at = place + torch.repeat_interleave(first - ends + lengths, lengths)
        return lengths, self.columns[at], self.weights[at]

    def dense(self) -> Float[Tensor, "items items"]:
        """Return the whole teacher; for small catalogues."""
        n = len(self.floor)
        row = torch.repeat_interleave(torch.arange(n, device=self.floor.device), self.starts.diff())
        return self.floor[:, None].repeat(1, n).index_put((row, self.columns), self.weights, accumulate=True)


def _sum_of_exp(values: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the logarithm of the sum of exponentials of each row, -inf for empty rows."""
    total = np.full(len(lengths), -np.inf)
    full = np.flatnonzero(lengths)
    if len(full):
        top = np.maximum.reduceat(values, offsets[full])
        sums = np.add.reduceat(np.exp(values - np.repeat(top, lengths[full])), offsets[full])
        total[full] = top + np.log(sums)
    return total
