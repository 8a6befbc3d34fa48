"""Attention: one call, patterns that say who sees whom, and kernels that compute it."""

from __future__ import annotations

from seqattn.attention.band import WeightBand
from seqattn.attention.biases import DenseBias, KeyBias, LogPrior, Relative, Separable
from seqattn.attention.calibrate import Calibration, calibrate
from seqattn.attention.call import attend, backends, explain
from seqattn.attention.context import ContextKeys
from seqattn.attention.experts import Experts
from seqattn.attention.kernel import Attention
from seqattn.attention.layout import Layout
from seqattn.attention.mix import Mix
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
from seqattn.attention.router import Router
from seqattn.attention.routing import Routing
from seqattn.attention.sorted import SortedChunks
from seqattn.attention.state import KeyValueState

__all__ = [
    "Attention",
    "Blocked",
    "Calibration",
    "ContextKeys",
    "Dense",
    "DenseBias",
    "Dilated",
    "Entropy",
    "Experts",
    "HeadMix",
    "KeyBias",
    "KeyValueState",
    "LagHistogram",
    "Layout",
    "Local",
    "LogPrior",
    "MeanLag",
    "Mix",
    "Neighborhood",
    "Prefix",
    "ReceivedMass",
    "Reducer",
    "Relative",
    "Router",
    "Routing",
    "Segments",
    "Separable",
    "SortedChunks",
    "TypeInfluence",
    "WeightBand",
    "WeightBlock",
    "attend",
    "backends",
    "calibrate",
    "explain",
]
