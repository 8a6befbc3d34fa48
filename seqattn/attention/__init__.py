"""Attention: one call, patterns that say who sees whom, and kernels that compute it."""

from __future__ import annotations

from seqattn.attention.call import attend, backends, explain
from seqattn.attention.kernel import Attention
from seqattn.attention.layout import Layout
from seqattn.attention.patterns import Dense, KeyBias, Local, Prefix
from seqattn.attention.state import KeyValueState

__all__ = [
    "Attention",
    "Dense",
    "KeyBias",
    "KeyValueState",
    "Layout",
    "Local",
    "Prefix",
    "attend",
    "backends",
    "explain",
]
