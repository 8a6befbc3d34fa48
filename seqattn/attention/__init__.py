"""Attention: one call, patterns that say who sees whom, and kernels that compute it."""

from __future__ import annotations

from seqattn.attention.band import WeightBand
from seqattn.attention.biases import KeyBias
from seqattn.attention.call import attend, backends, explain
from seqattn.attention.kernel import Attention
from seqattn.attention.layout import Layout
from seqattn.attention.pattern import HeadMix
from seqattn.attention.patterns import Blocked, Dense, Dilated, Local, Neighborhood, Prefix, Segments
from seqattn.attention.reducers import (
    Entropy,
    LagHistogram,
    MeanLag,
    ReceivedMass,
    Reducer,
    TypeInfluence,
    WeightBlock,
)
from seqattn.attention.routing import Router, Routing
from seqattn.attention.state import KeyValueState

__all__ = [
    "Attention",
    "Blocked",
    "Dense",
    "Dilated",
    "Entropy",
    "HeadMix",
    "KeyBias",
    "KeyValueState",
    "LagHistogram",
    "Layout",
    "Local",
    "MeanLag",
    "Neighborhood",
    "Prefix",
    "ReceivedMass",
    "Reducer",
    "Router",
    "Routing",
    "Segments",
    "TypeInfluence",
    "WeightBand",
    "WeightBlock",
    "attend",
    "backends",
    "explain",
]
