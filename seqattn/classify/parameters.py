"""The parameters of the classifier; what they mean is told by :class:`seqattn.VSFormerClassifier`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags

from seqattn.attention.pattern import Pattern

__all__ = ["Parameters"]


class Parameters(ClassifierMixin, BaseEstimator):
    """The part of the classifier that holds its parameters."""

    def __init__(
        self,
        *,
        shapes: str = "dilated",
        window_fractions: Sequence[float] | np.ndarray = (0.2, 0.4, 0.8),
        motifs_per_cell: int = 2,
        match: str = "znorm",
        locality: float | None = 0.15,
        profile_cap: int = 4000,
        derivatives: bool = True,
        granularities: Sequence[int] | np.ndarray = (1, 2, 4, 8),
        shape_tokens: int = 64,
        value_tokens: int = 64,
        tokens: str = "both",
        prior: str = "key",
        prior_strength: float = 1.0,
        prior_floor: float = 0.05,
        learn_prior_strength: bool = False,
        prior_encoding: bool = True,
        fusion: str = "late",
        head: str = "flatten",
        readout_shapes: int = 4096,
        network_weight: float | None = None,
        max_length: int = 1024,
        d_model: int = 32,
        n_heads: int = 4,
        n_layers: int = 1,
        dropout: float = 0.5,
        label_smoothing: float = 0.1,
        class_weight: Any = None,
        n_members: int = 3,
        calibration: float | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        epochs: int | str = "auto",
        batch_size: int | str = "auto",
        validation: float | None = None,
        patience: int | None = None,
        attention: str | Pattern = "dense",
        device: str = "auto",
        precision: str = "float32",
        n_jobs: int | None = 1,
        memory: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.shapes = shapes
        self.window_fractions = window_fractions
        self.motifs_per_cell = motifs_per_cell
        self.match = match
        self.locality = locality
        self.profile_cap = profile_cap
        self.derivatives = derivatives
        self.granularities = granularities
        self.shape_tokens = shape_tokens
        self.value_tokens = value_tokens
        self.tokens = tokens
        self.prior = prior
        self.prior_strength = prior_strength
        self.prior_floor = prior_floor
        self.learn_prior_strength = learn_prior_strength
        self.prior_encoding = prior_encoding
        self.fusion = fusion
        self.head = head
        self.readout_shapes = readout_shapes
        self.network_weight = network_weight
        self.max_length = max_length
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_layers = n_layers
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.n_members = n_members
        self.calibration = calibration
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.validation = validation
        self.patience = patience
        self.attention = attention
        self.device = device
        self.precision = precision
        self.n_jobs = n_jobs
        self.memory = memory
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags
