"""Tokens of cases as batches of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seqattn.classify.model import CaseBatch
from seqattn.classify.tokens import Tokens

__all__ = ["Cases", "case_batch"]


def case_batch(
    tokens: Tokens,
    own: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    dtype: torch.dtype = torch.float32,
) -> CaseBatch:
    """Return the tokens of cases as tensors.

    Parameters
    ----------
    tokens
        The tokens.
    own
        Numbers of the tokens that the network takes, shapes first; None for all.
    labels, weights
        Class and weight of each case, where they are known.
    dtype
        Kind of the numbers.
    """
    n_shapes = tokens.shape.shape[1]
    own = np.arange(tokens.share.shape[1]) if own is None else own
    shapes, values = own[own < n_shapes], own[own >= n_shapes] - n_shapes

    def numbers(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

    return CaseBatch(
        shape=numbers(tokens.shape[:, shapes]),
        shape_span=numbers(tokens.shape_span[:, shapes]),
        value=numbers(tokens.value[:, values]),
        observed=torch.from_numpy(tokens.share[:, own] > 0),
        labels=torch.from_numpy(np.zeros(0, dtype=np.int64) if labels is None else labels),
        weights=numbers(np.zeros(0) if weights is None else weights),
    )


@dataclass(frozen=True)
class Cases:
    """The batches of one pass over cases.

    Attributes
    ----------
    whole
        All cases.
    rows
        Numbers of the cases of each batch.
    """

    whole: CaseBatch
    rows: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, whole: CaseBatch, size: int, rng: np.random.Generator | None = None) -> Cases:
        """Return the batches of one pass, in random order if ``rng`` is given.

        Parameters
        ----------
        whole
            All cases.
        size
            Cases per batch.
        rng
            Where the order comes from.
        """
        order = np.arange(len(whole)) if rng is None else rng.permutation(len(whole))
        return cls(whole, torch.from_numpy(order).split(size))

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.rows)

    def __iter__(self) -> Iterator[CaseBatch]:
        """Yield the batches."""
        return (self.whole.select(rows) for rows in self.rows)

    def share(self, rank: int, size: int) -> Any:
        """Return the part of each batch that one of several processes computes.

        Parameters
        ----------
        rank
            Number of the process, from 0.
        size
            Number of processes.
        """
        return Cases(self.whole, tuple(rows[rank::size] for rows in self.rows))
