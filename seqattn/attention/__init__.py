"""Attention: one call, patterns that say who sees whom, and kernels that compute it."""

from __future__ import annotations

from seqattn.attention.biases import KeyBias
from seqattn.attention.calibrate import Calibration, calibrate
from seqattn.attention.call import attend, backends, explain
from seqattn.attention.kernel import Attention
from seqattn.attention.layout import Layout
from seqattn.attention.pattern import HeadMix
from seqattn.attention.patterns import Blocked, Dense, Dilated, Local, Neighborhood, Prefix, Segments
from seqattn.attention.routing import Router, Routing
from seqattn.attention.state import KeyValueState

__all__ = [
    "Attention",
    "Blocked",
    "Calibration",
    "Dense",
    "Dilated",
    "HeadMix",
    "KeyBias",
    "KeyValueState",
    "Layout",
    "Local",
    "Neighborhood",
    "Prefix",
    "Router",
    "Routing",
    "Segments",
    "attend",
    "backends",
    "calibrate",
    "explain",
]
