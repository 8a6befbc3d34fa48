"""Tokens sorted by label, cut into equal chunks: a query sees its own chunk and the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from seqattn.attention.layout import Layout
from seqattn.attention.pattern import Pattern, check_whole
from seqattn.attention.patterns import by_label, check_labels, fit_labels
from seqattn.attention.tiles import Run, Span

__all__ = ["SortedChunks"]


@dataclass(frozen=True, eq=False)
class SortedChunks(Pattern):
    r"""Tokens are sorted by label, those of one label by place, and cut into chunks; a query sees its own and the next.

    .. math:: 0 \le \lfloor r_j / s \rfloor - \lfloor r_i / s \rfloor \le 1

    with :math:`r_i` the rank of token i in its sequence. The last chunk of a sequence may be shorter and has no next
    one. There is no causal form: a later token changes the ranks of earlier ones.

    Parameters
    ----------
    labels
        Whole numbers, one per token: ``[tokens]`` for packed and ``[batch, length]`` for padded input; or one per token
        and head, ``[tokens, heads]`` or ``[batch, length, heads]``.
    size
        Number :math:`s` of tokens of a chunk; 1 or more.

    Raises
    ------
    ParameterError
        The labels are no whole numbers, or the size is below 1.

    Notes
    -----
    The published form fills the last chunk by repeating tokens, and adds the output of attention to the centroids
    themselves; neither is done here.

    References
    ----------
    Liu et al. (2025), CATANet: efficient content-aware token aggregation for lightweight image super-resolution.

    Examples
    --------
    >>> import torch
    >>> place = torch.arange(5)
    >>> SortedChunks(torch.tensor([1, 0, 1, 0, 2]), 2).visible(place[:, None], place).int().tolist()
    [[1, 0, 1, 0, 1], [1, 1, 1, 1, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    """

    labels: Shaped[Tensor, "..."]
    size: int

    name = "sorted chunks"
    causal = False
    cross = False
    has_labels = True
    is_alone = True
    advice = "A later token changes the ranks of earlier ones: use mode='token' of Routing."

    def __post_init__(self) -> None:
        check_labels("SortedChunks", self.labels)
        check_whole("SortedChunks", "size", self.size, least=1)
        # Padded labels look alike until fit() has made them one after the other.
        object.__setattr__(self, "by_head", self.labels.dim() == 2)

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        rows = self.labels.movedim(-1, 0) if self.labels.dim() == 2 else self.labels[None]
        chunks = rows.argsort(dim=-1, stable=True).argsort(dim=-1) // self.size
        i, j = torch.broadcast_tensors(torch.as_tensor(i), torch.as_tensor(j))
        ahead = chunks[:, j] - chunks[:, i]
        seen = (ahead == 0) | (ahead == 1)
        return seen if self.labels.dim() == 2 else seen[0]

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        labels = self.labels.cpu().numpy()
        order, _ = by_label(layout, labels)
        lengths = layout.lengths if labels.ndim == 1 else np.repeat(layout.lengths, labels.shape[1])
        return (Run(lengths, _Ahead(self.size), order, by_head=labels.ndim == 2),)

    def fit(self, size: Sequence[int], heads: int) -> SortedChunks:
        return replace(self, labels=fit_labels("SortedChunks", self.labels, size, heads))

    def of(self, tokens: Tensor | slice) -> SortedChunks:
        return replace(self, labels=self.labels[tokens])

    def reach(self, n: int) -> float:
        return min(n, 2 * self.size)


@dataclass(frozen=True)
class _Ahead(Span):
    """Blocks of ``size`` places; a query sees its own block and the next one."""

    size: int

    @property
    def block(self) -> int:
        """Number of queries in a tile."""
        return self.size

    def reach(self, begin: Any, end: Any, n: Any) -> tuple[Any, Any]:
        last = -(-end // self.size) * self.size
        return begin // self.size * self.size, np.minimum(last + self.size, n)

    def sees(self, i: Any, j: Any, n: Any) -> Any:
        first = i // self.size * self.size
        return (j >= first) & (j < first + 2 * self.size)
