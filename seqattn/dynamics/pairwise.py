r"""The one-layer model in its free parameters, with gradients written out and many runs at once.

Attention logits :math:`Z` (queries x tokens) and decoder logits :math:`Y` (tokens x outputs) are the parameters. A
class, or a sampled sequence, is a row :math:`b` of token probabilities or counts; nothing else of it matters to a
model without positions. A batch axis of runs leads everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from seqattn.dynamics.classes import SequenceClasses
from seqattn.errors import ParameterError, suggest

__all__ = ["NORMS", "Examples", "Forward", "Gradients", "Parameters", "forward", "gradients", "normalised"]

NORMS = ("l2", "none", "layernorm")


@dataclass(frozen=True)
class Parameters:
    """What is trained, for several runs.

    Attributes
    ----------
    Y
        Decoder logits.
    Z
        Attention logits.
    """

    Y: Float[Tensor, "runs tokens outputs"]
    Z: Float[Tensor, "runs queries tokens"]

    @classmethod
    def zeros(cls, classes: SequenceClasses, n_runs: int = 1, dtype: torch.dtype = torch.float64) -> Self:
        """Return the published start: everything 0."""
        return cls(
            torch.zeros(n_runs, classes.n_tokens, classes.n_outputs, dtype=dtype),
            torch.zeros(n_runs, classes.n_queries, classes.n_tokens, dtype=dtype),
        )

    def rows(self, part: slice) -> Parameters:
        """Return some of the runs."""
        return Parameters(self.Y[part], self.Z[part])


@dataclass(frozen=True)
class Examples:
    """Classes, or sampled sequences by their token counts, for one run or for each.

    Attributes
    ----------
    mass
        Probabilities or counts of tokens, not negative; rows need no norm.
    query, label
        Query and next token of each.
    weight
        Share of each in the mean.
    query_tokens
        Which token each query is, where the model has a residual connection.
    """

    mass: Float[Tensor, "runs_or_1 examples tokens"]
    query: Int[Tensor, "runs_or_1 examples"]
    label: Int[Tensor, "runs_or_1 examples"]
    weight: Float[Tensor, "runs_or_1 examples"]
    query_tokens: Int[Tensor, " queries"] | None = None

    @classmethod
    def of_classes(cls, classes: SequenceClasses, dtype: torch.dtype = torch.float64) -> Self:
        """Return the classes themselves: sequences without end."""
        return cls.of_arrays(
            classes.P, classes.query, classes.label, classes.weight, classes.query_tokens, dtype
        )

    @classmethod
    def of_arrays(
        cls,
        mass: NDArray,
        query: NDArray[np.int64],
        label: NDArray[np.int64],
        weight: NDArray[np.float64] | None = None,
        query_tokens: NDArray[np.int64] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Self:
        """Return examples from arrays with or without an axis of runs; equal weights by default."""
        if weight is None:
            weight = np.full(query.shape, 1 / query.shape[-1])
        lead = (slice(None),) if mass.ndim == 3 else (None,)
        return cls(
            torch.as_tensor(mass, dtype=dtype)[lead],
            torch.as_tensor(query)[lead],
            torch.as_tensor(label)[lead],
            torch.as_tensor(weight, dtype=dtype)[lead],
            None if query_tokens is None else torch.as_tensor(query_tokens),
        )

    def to(self, device: torch.device) -> Examples:
        """Return the examples on a device."""
        tokens = None if self.query_tokens is None else self.query_tokens.to(device)
        mass, query, label, weight = (
            part.to(device) for part in (self.mass, self.query, self.label, self.weight)
        )
        return Examples(mass, query, label, weight, tokens)

    def rows(self, part: slice) -> Examples:
        """Return what some of the runs see."""
        if len(self.mass) == 1:
            return self
        return Examples(
            self.mass[part], self.query[part], self.label[part], self.weight[part], self.query_tokens
        )


@dataclass(frozen=True)
class Forward:
    """What the model computes.

    Attributes
    ----------
    c
        Attention of each example to each token; rows sum to 1.
    f
        The same after the norm, what the decoder sees.
    scale
        Length by which ``f`` was divided.
    error
        One minus the probability at the label, minus the probability elsewhere: the direction v.
    log_probability
        Logarithm of the probability of the label.
    """

    c: Float[Tensor, "runs examples tokens"]
    f: Float[Tensor, "runs examples tokens"]
    scale: Float[Tensor, "runs examples 1"]
    error: Float[Tensor, "runs examples outputs"]
    log_probability: Float[Tensor, "runs examples"]


@dataclass(frozen=True)
class Gradients:
    """Slopes of the mean log-probability, and what the balance law needs.

    Attributes
    ----------
    Y, Z
        Slopes; a step goes along them.
    pull
        For each token the mean of ``f**2 s``, or of ``c s`` without a norm: the term of the balance law.
    """

    Y: Float[Tensor, "runs tokens outputs"]
    Z: Float[Tensor, "runs queries tokens"]
    pull: Float[Tensor, "runs tokens"]


def attention(
    Z: Float[Tensor, "runs queries tokens"], examples: Examples
) -> Float[Tensor, "runs examples tokens"]:
    """Return the attention that each example's query pays to each token, counts taken together."""
    if len(examples.query) == 1:
        logits = Z[:, examples.query[0]]
    else:
        logits = Z[torch.arange(len(Z), device=Z.device)[:, None], examples.query]
    # Tokens that do not occur must not set the level, or all that do might underflow.
    level = logits.masked_fill(examples.mass == 0, -torch.inf).amax(-1, keepdim=True)
    odds = torch.where(examples.mass > 0, examples.mass * (logits - level).clamp(max=0.0).exp(), 0.0)
    return odds / odds.sum(-1, keepdim=True)


def normalised(c: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Return the input of the decoder and the length it was divided by.

    Parameters
    ----------
    c
        Attention, the last axis over tokens.
    norm
        One of ``NORMS``.

    Raises
    ------
    ParameterError
        The norm is not known.
    """
    if norm == "none":
        return c, torch.ones_like(c[..., :1])
    if norm not in NORMS:
        raise ParameterError(
            f"norm={norm!r} is not known. Allowed: {', '.join(NORMS)}.{suggest(norm, NORMS)}"
        )
    centred = c if norm == "l2" else c - c.mean(-1, keepdim=True)
    length = centred.norm(dim=-1, keepdim=True)
    return centred / length, length


def forward(parameters: Parameters, examples: Examples, norm: str = "l2", residual: bool = False) -> Forward:
    """Return attention, decoder input and error of each example.

    Parameters
    ----------
    parameters
        Of all runs.
    examples
        One set for all runs, or one for each.
    norm
        One of ``NORMS``.
    residual
        Whether the query's own token is added before a second norm.

    Raises
    ------
    ParameterError
        The norm is not known, or a residual connection is asked for where queries are no tokens.
    """
    c = attention(parameters.Z, examples)
    f, scale = normalised(c, norm)
    if residual:
        f = _with_query(f, examples, norm)
    logits = f @ parameters.Y
    labels = examples.label[..., None].expand(*logits.shape[:-1], 1)
    log_probabilities = logits.log_softmax(-1)
    error = -log_probabilities.exp()
    # 1 - alpha as the sum of the others: by subtraction it would lose its digits late in training.
    error.scatter_(-1, labels, 0.0)
    error.scatter_(-1, labels, -error.sum(-1, keepdim=True))
    return Forward(c, f, scale, error, log_probabilities.gather(-1, labels)[..., 0])


def _with_query(f: Tensor, examples: Examples, norm: str) -> Tensor:
    if examples.query_tokens is None:
        raise ParameterError(
            "residual=True adds the query's token, but the classes have no query_tokens. Give them."
        )
    own = examples.query_tokens[examples.query][..., None].expand(*f.shape[:-1], 1)
    return normalised(f.scatter_add(-1, own, torch.ones_like(own, dtype=f.dtype)), norm)[0]


def gradients(
    parameters: Parameters, examples: Examples, norm: str = "l2", residual: bool = False
) -> tuple[Gradients, Forward]:
    r"""Return the slopes of the mean log-probability, and what the model computed.

    With :math:`g = Y v` and :math:`s = f \cdot g` the slope of the attention logits is the weighted sum over
    examples of :math:`f (g - s f)` (l2), :math:`c (g - c \cdot g)` (none), or :math:`c (r' - c \cdot r')` with the
    projected and centred :math:`r = (g - f s)/|d|` (layernorm).

    Parameters
    ----------
    parameters
        Of all runs.
    examples
        One set for all runs, or one for each.
    norm
        One of ``NORMS``.
    residual
        Whether the query's own token is added before a second norm; slopes then come from automatic differentiation.

    References
    ----------
    Tian, Wang, Chen, Du (2023), Scan and Snap, arXiv 2305.16380, lemma 1.
    """
    if residual:
        return _automatic(parameters, examples, norm)
    state = forward(parameters, examples, norm)
    weight = examples.weight[..., None]
    weighted = weight * state.error
    slope_y = state.f.mT @ weighted
    g = state.error @ parameters.Y.mT
    s = (state.f * g).sum(-1, keepdim=True)
    if norm == "l2":
        share = state.f.square() * s
        u = state.f * g - share
    elif norm == "none":
        share = state.c * s
        u = state.c * g - share
    else:
        share = state.f.square() * s
        r = (g - state.f * s) / state.scale
        r = r - r.mean(-1, keepdim=True)
        u = state.c * (r - (state.c * r).sum(-1, keepdim=True))
    slope_z = _by_query(weight * u, examples, parameters.Z)
    return Gradients(slope_y, slope_z, (weight * share).sum(1)), state


def _by_query(values: Tensor, examples: Examples, Z: Tensor) -> Tensor:
    """Sum over the examples of each query."""
    runs, queries, tokens = Z.shape
    start = torch.arange(runs, device=Z.device)[:, None] * queries
    rows = (start + examples.query).expand(runs, values.shape[1]).reshape(-1)
    summed = torch.zeros(runs * queries, tokens, dtype=values.dtype, device=values.device)
    return summed.index_add_(0, rows, values.reshape(-1, tokens)).view(runs, queries, tokens)


def _automatic(parameters: Parameters, examples: Examples, norm: str) -> tuple[Gradients, Forward]:
    leaves = Parameters(*(part.detach().clone().requires_grad_() for part in (parameters.Y, parameters.Z)))
    with torch.enable_grad():
        state = forward(leaves, examples, norm, residual=True)
        slopes = torch.autograd.grad((examples.weight * state.log_probability).sum(), (leaves.Y, leaves.Z))
    parts = (part.detach() for part in (state.c, state.f, state.scale, state.error, state.log_probability))
    pull = torch.full_like(leaves.Y[..., 0], torch.nan)
    return Gradients(slopes[0], slopes[1], pull), Forward(*parts)
