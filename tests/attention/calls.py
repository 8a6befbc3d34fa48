"""The ways in which one ragged batch can be handed to ``attend``."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from seqattn.attention import Dense, KeyBias, Layout, Local, Prefix, attend, backends
from seqattn.errors import BackendError

LAYOUTS = ("packed", "padded")
# The patterns whose definitions are written down in the oracle.
PATTERNS = {
    "dense": Dense(),
    "self": Local(0),
    "local": Local(3),
    "both sides": Local(2, 1),
    "prefix": Prefix(2),
    "local and prefix": Local(2) | Prefix(2),
    "wide": Local(40, 7),
    "wide and prefix": Prefix(5) | Local(33),
    "three parts": Local(1, 4) | Prefix(3) | Local(20),
}


class Way(NamedTuple):
    """A kernel and a pattern that it computes."""

    kernel: str
    pattern: str

    def __str__(self):
        return f"{self.kernel}, {self.pattern}"

    @property
    def arguments(self):
        return {"kernel": self.kernel, "pattern": PATTERNS[self.pattern]}

    @property
    def can(self):
        return backends()[self.kernel]

    def refuses(self, batch, layout, **arguments):
        """Return whether the call is of another sequence's keys and the kernel cannot do that; it must then say so."""
        if batch.keys is None or self.can.cross:
            return False
        with pytest.raises(BackendError, match="keys of another sequence are not supported"):
            call(batch, layout, **self.arguments, **arguments)
        return True


# Every kernel is named here with every kind of pattern that it computes.
WAYS = (
    Way("plain", "dense"),
    Way("sdpa", "dense"),
    *(Way("reference", pattern) for pattern in ("dense", "both sides", "prefix", "local and prefix")),
    *(
        Way("window", pattern)
        for pattern in ("self", "local", "both sides", "local and prefix", "three parts")
    ),
)


def call(batch, layout, fill=0.0, **arguments):
    """Return the result of ``attend`` for a batch, in a packed or padded layout."""
    return attend(**inputs(batch, layout, fill), **arguments)


def inputs(batch, layout, fill=0.0):
    """Return the arguments for a batch; padding holds ``fill``."""
    if layout == "packed":
        values = {name: batch.packed(name) for name in "qkv"}
        values["layout"] = Layout.of(batch.queries)
        if batch.keys is not None:
            values["key_layout"] = Layout.of(batch.keys)
        if batch.bias_heads:
            values["bias"] = KeyBias(batch.packed("bias")[..., 0])
        return values
    values = {name: batch.padded(name, fill) for name in "qkv"}
    values["lengths"] = torch.tensor(batch.queries, dtype=torch.int64)
    if batch.keys is not None:
        values["key_lengths"] = torch.tensor(batch.keys, dtype=torch.int32)
    if batch.bias_heads:
        values["bias"] = KeyBias(batch.padded("bias", fill)[..., 0])
    return values


def sequences(batch, layout, values):
    """Return a result, ``[tokens, heads, ...]`` or ``[batch, heads, length, ...]``, as one tensor per sequence."""
    if not batch.queries:
        return []
    if layout == "packed":
        return [part.transpose(0, 1) for part in values.split(batch.queries)]
    return [values[b, :, :n] for b, n in enumerate(batch.queries)]


def gradients(batch, parts, seed=5):
    """Return the gradients of all leaves for one fixed direction of the outputs."""
    draw = torch.Generator().manual_seed(seed)
    total = sum(
        (part.double() * torch.randn(part.shape, generator=draw, dtype=torch.float64)).sum() for part in parts
    )
    leaves = batch.all_leaves()
    if not leaves:
        return []
    total = total + sum(leaf[..., :0].sum() for leaf in leaves)
    grads = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)
    ]


def largest_error(found, wanted):
    """Return the largest difference over two lists of tensors; nothing to compare gives 0."""
    errors = [
        (a.detach().double() - b.detach().double()).abs().max().item()
        for a, b in zip(found, wanted, strict=True)
        if b.numel()
    ]
    return max(errors, default=0.0)
