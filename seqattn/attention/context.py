"""Context tokens as keys only: they are seen and do not look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from seqattn.attention.layout import Layout
from seqattn.errors import ParameterError

__all__ = ["ContextKeys"]


@dataclass(frozen=True, eq=False)
class ContextKeys:
    r"""Say where keys of context tokens and of the sequences themselves stand when the context comes first.

    Queries of a sequence attend to ``[context; sequence]`` in one softmax, and context tokens attend to nothing: with
    ``n`` tokens and ``m`` of context that are ``n (n + m)`` pairs and not ``(n + m)^2``. Under ``causal`` a token sees
    the whole context and the sequence up to itself, because the last query stands at the last key. Make it with
    :meth:`packed` or :meth:`padded`, join keys, values and biases per key with :meth:`join`, and hand ``arguments`` to
    :func:`seqattn.attention.attend`.

    Parameters
    ----------
    index
        Which row of ``[all context; all sequences]`` stands at each place, ``[key tokens]`` or ``[batch, keys]``.
    layout, key_layout
        Packed input: where sequences and joint keys lie.
    lengths, key_lengths
        Padded input: how many there are.

    Examples
    --------
    >>> from seqattn.attention import attend
    >>> own, context = torch.randn(5, 2, 4), torch.randn(3, 2, 4)
    >>> keys = ContextKeys.packed(Layout.of([1, 2]), Layout.of([3, 2]))
    >>> k = v = keys.join(context, own)
    >>> attend(own, k, v, causal=True, **keys.arguments).output.shape
    torch.Size([5, 2, 4])
    """

    index: Int[Tensor, "..."]
    layout: Layout | None = None
    key_layout: Layout | None = None
    lengths: Int[Tensor, " batch"] | None = None
    key_lengths: Int[Tensor, " batch"] | None = None

    @classmethod
    def packed(cls, context: Layout, own: Layout) -> ContextKeys:
        """Return the places for packed tensors; kept on the layout of the sequences.

        Parameters
        ----------
        context, own
            Where context tokens and sequences lie in their tensors; as many of the one as of the other.

        Raises
        ------
        ParameterError
            The numbers of sequences differ.
        """
        if len(context) != len(own):
            raise ParameterError(f"There are {len(context)} contexts for {len(own)} sequences.")
        made: ContextKeys = own.keep(("context", context), lambda: cls._packed(context, own))
        return made

    @classmethod
    def _packed(cls, context: Layout, own: Layout) -> ContextKeys:
        first = np.cumsum(context.lengths) - context.lengths
        start = context.n_tokens + np.cumsum(own.lengths) - own.lengths
        counts = np.stack([context.lengths, own.lengths], 1).ravel()
        begins = np.stack([first, start], 1).ravel()
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        device = own.offsets.device
        index = torch.from_numpy(np.repeat(begins, counts) + inside).to(device)
        return cls(index, own, Layout.of(context.lengths + own.lengths, device))

    @classmethod
    def padded(
        cls,
        context: Int[Tensor, " batch"],
        own: Int[Tensor, " batch"],
        sizes: tuple[int, int],
    ) -> ContextKeys:
        """Return the places for padded tensors.

        Parameters
        ----------
        context, own
            How many tokens of context and of itself each sequence has.
        sizes
            Padded lengths of context and sequences.
        """
        place = torch.arange(sum(sizes), device=own.device).expand(len(own), -1)
        mine = place - context[:, None]
        index = torch.where(mine < 0, place, sizes[0] + mine.clamp(0, max(sizes[1] - 1, 0)))
        return cls(index, lengths=own, key_lengths=context + own)

    def join(self, context: Shaped[Tensor, "..."], own: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return keys, values or biases per key of contexts and sequences together.

        Parameters
        ----------
        context, own
            Packed ``[tokens, heads, ...]``, or padded ``[batch, heads, length, ...]``.
        """
        if self.key_layout is not None:
            return torch.cat([context, own]).index_select(0, self.index)
        both = torch.cat([context, own], 2)
        index = self.index[:, None].view(len(self.index), 1, -1, *[1] * (both.dim() - 3))
        return both.gather(2, index.expand(-1, both.shape[1], -1, *both.shape[3:]))

    @property
    def arguments(self) -> dict[str, Layout | Tensor | None]:
        """What :func:`seqattn.attention.attend` is told of layouts or lengths."""
        if self.key_layout is not None:
            return {"layout": self.layout, "key_layout": self.key_layout}
        return {"lengths": self.lengths, "key_lengths": self.key_lengths}
