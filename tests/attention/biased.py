"""The biases of a ragged batch as ``attend`` wants them."""

from __future__ import annotations

import torch
from attention.oracle import FIRST, FLOOR

from seqattn.attention import DenseBias, KeyBias, LogPrior, Relative, Separable

# What is added up, and the kinds that kernels are told of.
BIASES = {
    "separable": ("separable",),
    "relative": ("relative",),
    "dense": ("dense",),
    "prior per key": ("prior per key",),
    "prior per pair": ("prior per pair",),
    "all of tokens": ("key", "separable", "prior per key"),
    "all but dense": ("key", "separable", "relative"),
    "all": ("key", "separable", "relative", "dense", "prior per key", "prior per pair"),
}


def tensor(batch, name, layout, fill=0.0):
    """Return the numbers of all sequences as ``attend`` wants them."""
    leaves, heads = batch.leaves[name], batch.part_heads
    if name == "table":
        return leaves[0]
    if name in ("dense", "pair prior"):
        rows, columns = max(batch.queries, default=0), max(batch.key_lengths, default=0)
        wide = torch.full((len(leaves), heads, rows, columns), fill, dtype=batch.dtype)
        for b, leaf in enumerate(leaves):
            wide[b, :, : leaf.shape[1], : leaf.shape[2]] = leaf
        return wide
    if layout == "packed":
        return torch.cat([leaf.transpose(0, 1) for leaf in leaves])
    length = max(batch.queries if name == "a" else batch.key_lengths, default=0)
    wide = torch.full((len(leaves), heads, length, *leaves[0].shape[2:]), fill, dtype=batch.dtype)
    for b, leaf in enumerate(leaves):
        wide[b, :, : leaf.shape[1]] = leaf
    return wide


def bias_of(batch, layout, fill=0.0):
    """Return the bias of a batch."""

    def numbers(name):
        return tensor(batch, name, layout, fill)

    make = {
        "key": lambda: KeyBias(numbers("key")),
        "separable": lambda: Separable(numbers("a"), numbers("c")),
        "relative": lambda: Relative(numbers("table"), FIRST),
        "dense": lambda: DenseBias(numbers("dense")),
        "prior per key": lambda: LogPrior(numbers("key prior"), FLOOR),
        "prior per pair": lambda: LogPrior(numbers("pair prior"), FLOOR),
    }
    total, *rest = (make[kind]() for kind in batch.kinds)
    for one in rest:
        total = total + one
    return total
