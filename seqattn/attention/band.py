"""Weights of windows in a form whose size grows with the visible keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqattn.attention.layout import Layout

__all__ = ["WeightBand"]


@dataclass(frozen=True, eq=False)
class WeightBand:
    """The weights of the keys that each query sees, side by side.

    Column ``c`` of a query belongs to the key that ``keys`` names there; keys come in their order. Queries that see
    fewer keys than others have weight 0 and key -1 at the end.

    Parameters
    ----------
    values
        Packed ``[tokens, heads, width]``, padded ``[batch, heads, queries, width]``, the width being the largest number
        of keys that a query sees.
    keys
        The same with one head where all heads see alike. Packed: number of the token, so that ``types[band.keys]`` are
        the types of the keys. Padded: place in the sequence.
    layout, key_layout
        Of packed input: where queries and keys lie.
    n_keys
        Number of keys of the longest sequence.
    """

    values: Float[Tensor, "..."]
    keys: Int[Tensor, "..."]
    layout: Layout | None
    key_layout: Layout | None
    n_keys: int

    def dense(self) -> Float[Tensor, "batch heads queries keys"]:
        """Return the weights as ``need="weights"`` gives them; as large as those are."""
        if self.layout is None or self.key_layout is None:
            return self._wide(self.keys)
        lengths = torch.from_numpy(self.layout.lengths).to(self.keys.device)
        first = self.key_layout.offsets[:-1].to(self.keys.dtype).repeat_interleave(lengths)
        rows = self._wide(self.keys - first[:, None, None]).transpose(0, 1)
        return torch.stack(
            [
                F.pad(part, (0, 0, 0, self.layout.max_len - part.shape[1]))
                for part in rows.split(lengths.tolist(), 1)
            ]
        )

    def _wide(self, place: Tensor) -> Tensor:
        """Return each row of values at the places of its keys."""
        wide = self.values.new_zeros(*self.values.shape[:-1], self.n_keys)
        place = place.masked_fill(self.keys < 0, 0).expand(self.values.shape)
        return wide.scatter_add_(-1, place, self.values)
