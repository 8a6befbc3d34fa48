"""The ways in which one ragged batch can be handed to ``attend``."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from attention.oracle import VISIBLE, head_label, label

from seqattn.attention import (
    Blocked,
    Dense,
    Dilated,
    HeadMix,
    KeyBias,
    Layout,
    Local,
    Neighborhood,
    Prefix,
    Segments,
    SortedChunks,
    attend,
    backends,
)
from seqattn.attention.check import check_call
from seqattn.attention.pattern import Pair
from seqattn.errors import BackendError, ParameterError

LAYOUTS = ("packed", "padded")


def labels(lengths, heads=None, start=0):
    """Return the labels of the oracle for packed sequences, whose first tokens have the places ``start``."""
    places = [start + i for n in lengths for i in range(n)]
    if heads is None:
        return torch.tensor([label(i) for i in places], dtype=torch.int64)
    each = [[head_label(i, h % 2) for h in range(heads)] for i in places]
    return torch.tensor(each, dtype=torch.int64).view(len(places), heads)


# The patterns whose definitions are written down in the oracle, for sequences of given lengths and some heads.
PATTERNS = {
    "dense": lambda n, h: Dense(),
    "self": lambda n, h: Local(0),
    "local": lambda n, h: Local(3),
    "both sides": lambda n, h: Local(2, 1),
    "prefix": lambda n, h: Prefix(2),
    "local and prefix": lambda n, h: Local(2) | Prefix(2),
    "wide": lambda n, h: Local(40, 7),
    "wide and prefix": lambda n, h: Prefix(5) | Local(33),
    "three parts": lambda n, h: Local(1, 4) | Prefix(3) | Local(20),
    "neighborhood": lambda n, h: Neighborhood(5),
    "wide neighborhood": lambda n, h: Neighborhood(41),
    "blocked": lambda n, h: Blocked(4, 2),
    "dilated": lambda n, h: Dilated(2, 1, dilation=3),
    "segments": lambda n, h: Segments(labels(n)),
    "near in segments": lambda n, h: Segments(labels(n), window=2),
    "segments per head": lambda n, h: Segments(labels(n, h), window=4),
    "common labels": lambda n, h, m=None: Segments(labels(n), key_labels=labels(m or n, start=1)),
    "common labels per head": lambda n, h, m=None: Segments(
        labels(n, h), key_labels=labels(m or n, h, start=2)
    ),
    "sorted chunks": lambda n, h: SortedChunks(labels(n), 4),
    "sorted chunks per head": lambda n, h: SortedChunks(labels(n, h), 3),
    "local or dilated": lambda n, h: Local(2) | Dilated(2, 1, dilation=3),
    "segments or prefix": lambda n, h: Segments(labels(n, h), window=1) | Prefix(2),
    "two prefixes": lambda n, h: Prefix(2) | Prefix(3),
    "local in segments": lambda n, h: Local(9) & Segments(labels(n)),
    "half and half": lambda n, h: HeadMix(
        tuple((1, Local(1, 1) | Prefix(2) if head % 2 else Local(3)) for head in range(h))
    ),
    "dilated in segments per head": lambda n, h: Dilated(4, dilation=3) & Segments(labels(n, h), window=3),
}


def pattern_for(batch, name, layout="packed"):
    """Return a pattern of the oracle for a batch; labels are padded where the batch is."""
    sizes = [batch.queries, batch.heads, *([batch.key_lengths] if name.startswith("common") else [])]
    if layout == "packed":
        return PATTERNS[name](*sizes)
    rows = len(batch.queries)
    sizes = [size if isinstance(size, int) else [max(size, default=0)] * rows for size in sizes]
    return _in_rows(PATTERNS[name](*sizes), rows, *(size[0] if rows else 0 for size in sizes[::2]))


def _in_rows(pattern, rows, size, key_size=0):
    if isinstance(pattern, Segments | SortedChunks):
        wide = pattern.labels.view(rows, size, *pattern.labels.shape[1:])
        if isinstance(pattern, SortedChunks) or pattern.key_labels is None:
            return replace(pattern, labels=wide)
        keys = pattern.key_labels.view(rows, key_size, *pattern.labels.shape[1:])
        return replace(pattern, labels=wide, key_labels=keys)
    if isinstance(pattern, Pair):
        first, second = (_in_rows(part, rows, size) for part in (pattern.first, pattern.second))
        return replace(pattern, first=first, second=second)
    return pattern


class Way(NamedTuple):
    """A kernel and a pattern that it computes."""

    kernel: str
    pattern: str

    def __str__(self):
        return f"{self.kernel}, {self.pattern}"

    def arguments(self, batch, layout):
        """Return how ``attend`` is told of kernel and pattern."""
        return {"kernel": self.kernel, "pattern": pattern_for(batch, self.pattern, layout)}

    @property
    def can(self):
        return backends()[self.kernel]

    def refuses(self, batch, layout, **arguments):
        """Return whether pattern or kernel cannot do the call; it must then say so."""
        kind = PATTERNS[self.pattern]([1], 1)
        reasons = {
            "has no meaning with causal=True": arguments.get("causal", False) and not kind.causal,
            "has no meaning with other keys": batch.keys is not None and not kind.cross,
            "keys of another sequence are not supported": batch.keys is not None and not self.can.cross,
        }
        wrong = [reason for reason, holds in reasons.items() if holds]
        if wrong:
            with pytest.raises((BackendError, ParameterError), match=wrong[0]):
                call(batch, layout, way=self, **arguments)
        return bool(wrong)


# Dense, of keys with labels of their own, and those that take long.
UNTILED = {"dense", "wide", "wide and prefix", "wide neighborhood", "common labels", "common labels per head"}

# Every kernel is named here with every kind of pattern that it computes.
WAYS = (
    *(Way("plain", pattern) for pattern in ("dense", "segments per head")),
    *(Way("sdpa", pattern) for pattern in ("dense", "neighborhood", "segments or prefix")),
    Way("mixed", "dense"),
    *(
        Way("reference", pattern)
        for pattern in (
            "dense",
            "both sides",
            "prefix",
            "local and prefix",
            "neighborhood",
            "segments per head",
            "common labels per head",
        )
    ),
    *(Way("groups", pattern) for pattern in ("common labels", "common labels per head")),
    *(Way("window", pattern) for pattern in VISIBLE if pattern not in UNTILED),
)

# Kernels of GPUs with every kind of pattern that they compute: run as they are in tests/gpu, and with the step on the
# device replaced by loops in test_varlen.py and test_flex.py. Mixed heads are split into calls before any kernel.
VARLEN_PATTERNS = (
    *("dense", "self", "local", "both sides", "wide", "dilated"),
    *("segments", "near in segments", "segments per head"),
)
# Labels of keys are for cross attention, and ranks of sorted chunks are no rule for pairs of tokens.
_NOT_FLEX = (
    "half and half",
    "common labels",
    "common labels per head",
    "sorted chunks",
    "sorted chunks per head",
)
FLEX_PATTERNS = tuple(pattern for pattern in VISIBLE if pattern not in _NOT_FLEX)
GPU_WAYS = (
    *(Way("varlen", pattern) for pattern in VARLEN_PATTERNS),
    *(Way("flex", pattern) for pattern in FLEX_PATTERNS),
)

CAUSAL_WAYS = tuple(way for way in WAYS if PATTERNS[way.pattern]([1], 1).causal)


def call(batch, layout, fill=0.0, way=None, **arguments):
    """Return the result of ``attend`` for a batch, in a packed or padded layout; ``way`` names kernel and pattern."""
    if way is not None:
        arguments |= way.arguments(batch, layout)
    return attend(**inputs(batch, layout, fill), **arguments)


_DEFAULTS = {"causal": False, "bias": None, "dropout": 0.0, "need": "output"}


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


def checked(batch, layout, name, /, **arguments):
    """Return the description of a call that kernels get."""
    given = inputs(batch, layout) | {"pattern": pattern_for(batch, name, layout)} | arguments
    names = list(inspect.signature(check_call).parameters)
    return check_call(**dict.fromkeys(names[6:12]) | _DEFAULTS | given)


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
