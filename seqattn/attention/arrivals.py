"""What a call brings to sequences that grow."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from seqattn.attention.biases import Relative
from seqattn.attention.terms import Terms


class NewTokens(NamedTuple):
    """What a call brings: keys and values ``[rows, heads, new, dim]``, biases ``[rows, heads or 1, new]``, labels.

    Labels are ``[rows, all labels of a token, new]``; ``lengths`` says how many tokens of each row exist. A separable
    bias is ``a`` of the queries and ``c`` of the keys, ``[rows, heads or 1, new, rank]``; ``relative`` is a table.
    """

    k: Tensor
    v: Tensor
    bias: Tensor | None
    marks: Tensor | None
    lengths: Tensor | None
    a: Tensor | None = None
    c: Tensor | None = None
    relative: Relative | None = None

    @classmethod
    def of(
        cls, k: Tensor, v: Tensor, bias: Terms | None, marks: Tensor | None, lengths: Tensor | None
    ) -> NewTokens:
        """Return the tokens of a call with this bias."""
        if bias is None:
            return cls(k, v, None, marks, lengths)
        key = None if bias.key is None else bias.key.values
        a, c = (None, None) if bias.separable is None else bias.separable.tensors()
        return cls(k, v, key, marks, lengths, a, c, bias.relative)

    def channels(self) -> list[Tensor | None]:
        """Return what is kept of each token."""
        return [self.k, self.v, self.bias, self.marks, self.c]

    def live(self, where: Tensor) -> NewTokens:
        """Return them with 0 in place of those that do not exist; ``where [rows, new]`` says which do."""
        wide = ~where[:, None, :, None]
        k, v = (x.masked_fill(wide, 0) for x in (self.k, self.v))
        a, c = (None if x is None else x.masked_fill(wide, 0) for x in (self.a, self.c))
        bias = None if self.bias is None else self.bias.masked_fill(~where[:, None], 0)
        return self._replace(k=k, v=v, bias=bias, a=a, c=c)

    def piece(self, start: int, size: int) -> NewTokens:
        """Return some of the tokens."""
        here = slice(start, start + size)
        k, v = self.k[:, :, here], self.v[:, :, here]
        bias, marks, a, c = (
            None if x is None else x[:, :, here] for x in (self.bias, self.marks, self.a, self.c)
        )
        lengths = None if self.lengths is None else (self.lengths - start).clamp(0, k.shape[2])
        return NewTokens(k, v, bias, marks, lengths, a, c, self.relative)
