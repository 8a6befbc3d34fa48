"""The network: shape tokens and value tokens, attention weighted by priors, and a linear decision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.attention import KeyBias, Layout
from seqattn.attention.pattern import Pattern
from seqattn.nn.blocks import Encoder
from seqattn.train.loop import Loss

__all__ = ["CaseBatch", "TokenFacts", "VSFormer"]

# A head with more weights than this goes through a narrow layer.
_LARGEST_HEAD = 200_000
_NARROW = 64
# Tables of more channels than this are a product of two narrow ones.
_MANY_CHANNELS = 512
_CHANNEL_WIDTH = 16


@dataclass(frozen=True)
class CaseBatch:
    """Tokens of some cases, and what is to be said of them.

    Attributes
    ----------
    shape, shape_span
        Content of the shape tokens ``(cases, shapes, features)``, and their spans ``(cases, shapes, 2)``.
    value
        Content of the value tokens, ``(cases, intervals, 3)``.
    observed
        Which tokens are there, shapes first, ``(cases, tokens)``.
    labels, weights
        Class and weight of each case; empty where they are not known.
    """

    shape: Float[Tensor, "cases shapes features"]
    shape_span: Float[Tensor, "cases shapes 2"]
    value: Float[Tensor, "cases intervals 3"]
    observed: Bool[Tensor, "cases tokens"]
    labels: Int[Tensor, " labelled"]
    weights: Float[Tensor, " labelled"]

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.shape)

    def to(self, device: torch.device) -> CaseBatch:
        """Return the batch on a device.

        Parameters
        ----------
        device
            Which one.
        """
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})

    def select(self, rows: Tensor) -> CaseBatch:
        """Return some cases.

        Parameters
        ----------
        rows
            Their numbers.
        """
        return replace(self, **{name: value[rows] for name, value in vars(self).items() if len(value)})


@dataclass(frozen=True)
class TokenFacts:
    """What is the same in all cases: where tokens come from and how much they tell.

    Attributes
    ----------
    channel, label
        Channel of each token, shapes first; class whose shape it is, the number of classes for intervals.
    prior
        In [0, 1], of each token.
    interval_span
        Spans of the intervals, ``(intervals, 2)``.
    n_channels, n_classes, shape_features
        Sizes.
    """

    channel: Tensor
    label: Tensor
    prior: Tensor
    interval_span: Tensor
    n_channels: int
    n_classes: int
    shape_features: int

    @property
    def n_intervals(self) -> int:
        """Number of value tokens."""
        return len(self.interval_span)

    @property
    def n_shapes(self) -> int:
        """Number of shape tokens."""
        return len(self.channel) - self.n_intervals


class VSFormer(nn.Module):
    r"""Classify cases by their shape tokens and value tokens.

    .. math::
        x_j &= W_{kind} \, content_j + W_t (start_j, end_j, p_j) + E_{channel} + E_{kind} + E_{class} \\
        h &= \mathrm{encoder}(x), \qquad
        s_{ij} = q_i \cdot k_j / \sqrt{d} + \gamma \log \max(p_j, \mathrm{floor}) \\
        logit_c &= b_c + \sum_j W_{cj} \cdot h_j

    Parameters
    ----------
    facts
        What is the same in all cases.
    d_model, n_heads, n_layers, dropout
        Sizes of the encoders, and share of units dropped while training.
    fusion
        ``"late"``: one encoder per kind of token. ``"joint"``: one for all.
    prior
        Form of the prior in attention: ``"key"`` as above, ``"logit"`` for scores times :math:`p_i p_j`, ``"none"``.
    prior_strength, prior_floor
        :math:`\gamma`, and the least prior in the logarithm.
    learn_prior_strength
        Whether each head has a :math:`\gamma` of its own, which is learnt.
    prior_encoding
        Whether :math:`p_j` is part of the encoding.
    head
        ``"flatten"`` as above, ``"mean"`` for the mean over tokens before the linear map.
    label_smoothing
        Share of the target that is spread over all classes.
    attention
        Pattern of who sees whom.

    Notes
    -----
    Weights after the softmax times a matrix of priors with rows normed again are the same as the key form: for priors
    :math:`P_{ij} = p_i p_j` the factor :math:`p_i` cancels. The paper does not say in which place the product stands.

    References
    ----------
    Xi, Zuo, Alvarez, Zhang, Choi, Lin (2024), VSFormer: value and shape-aware transformer with prior-enhanced
    self-attention for multivariate time series classification, arXiv 2412.16515.
    """

    log_prior: Tensor
    prior: Tensor
    told: Tensor
    interval_span: Tensor
    channel: Tensor
    label: Tensor
    kind: nn.Parameter

    def __init__(
        self,
        facts: TokenFacts,
        *,
        d_model: int,
        n_heads: int,
        n_layers: int,
        dropout: float,
        fusion: str,
        prior: str,
        prior_strength: float,
        prior_floor: float,
        learn_prior_strength: bool,
        prior_encoding: bool,
        head: str,
        label_smoothing: float,
        attention: str | Pattern,
    ) -> None:
        super().__init__()
        self.n_shapes, self.n_tokens = facts.n_shapes, len(facts.channel)
        # Without strength there is no bias at all: scores of 0 would still be added in another order.
        is_idle = prior == "key" and not prior_strength and not learn_prior_strength
        self.form, self.head_form = "none" if is_idle else prior, head
        self.label_smoothing = label_smoothing
        self.shape_content = nn.Linear(facts.shape_features, d_model)
        self.value_content = nn.Linear(3, d_model)
        self.where = nn.Linear(3, d_model)
        self.kind = nn.Parameter(torch.randn(2, d_model) * 0.02)
        self.channels = _table(facts.n_channels, d_model)
        self.classes = nn.Embedding(facts.n_classes + 1, d_model)
        for name in ("channel", "label", "interval_span"):
            self.register_buffer(name, getattr(facts, name), persistent=False)
        told = facts.prior if prior_encoding else torch.zeros_like(facts.prior)
        self.register_buffer("told", told, persistent=False)
        self.register_buffer("prior", facts.prior, persistent=False)
        self.register_buffer("log_prior", facts.prior.clamp(min=prior_floor).log(), persistent=False)
        strength = torch.full((n_heads,), float(prior_strength))
        self.strength = nn.Parameter(strength, requires_grad=learn_prior_strength)
        groups = 2 if fusion == "late" and 0 < self.n_shapes < self.n_tokens else 1
        self.encoders = nn.ModuleList(
            Encoder(d_model, n_heads, n_layers, dropout, attention, expansion=2) for _ in range(groups)
        )
        self.dropout = nn.Dropout(dropout)
        width = d_model if head == "mean" else d_model * self.n_tokens
        is_narrow = width * facts.n_classes > _LARGEST_HEAD
        self.narrow = nn.Linear(width, _NARROW, bias=False) if is_narrow else None
        self.decision = nn.Linear(_NARROW if is_narrow else width, facts.n_classes)
        nn.init.zeros_(self.decision.weight)
        nn.init.zeros_(self.decision.bias)

    def forward(self, batch: CaseBatch) -> Float[Tensor, "cases classes"]:
        """Return the logits of cases."""
        outputs = self.encode(batch)
        pooled = outputs.flatten(1) if self.head_form == "flatten" else self._mean(outputs, batch.observed)
        if self.narrow is not None:
            pooled = self.narrow(pooled)
        logits: Tensor = self.decision(pooled)
        return logits

    def loss(self, batch: CaseBatch) -> Loss:
        """Return the weighted cross-entropy of the labels."""
        terms = F.cross_entropy(
            self(batch), batch.labels, reduction="none", label_smoothing=self.label_smoothing
        )
        return Loss((terms * batch.weights).sum(), float(batch.weights.sum()))

    def encode(self, batch: CaseBatch) -> Float[Tensor, "cases tokens dim"]:
        """Return the encoded tokens; 0 for those that are not there."""
        x, first, parts = self.embed(batch), 0, []
        sizes = self._sizes()
        for encoder, size in zip(self.encoders, sizes, strict=True):
            some = slice(first, first + size)
            parts.append(self._attended(cast(Encoder, encoder), x[:, some], batch.observed[:, some], some))
            first += size
        outputs = self.dropout(torch.cat(parts, dim=1))
        return outputs * batch.observed[..., None]

    def _sizes(self) -> list[int]:
        """Return how many tokens each encoder takes."""
        n_values = self.n_tokens - self.n_shapes
        return [self.n_tokens] if len(self.encoders) == 1 else [self.n_shapes, n_values]

    def embed(self, batch: CaseBatch) -> Float[Tensor, "cases tokens dim"]:
        """Return the tokens before attention."""
        cases = len(batch)
        content = [self.shape_content(batch.shape)] if self.n_shapes else []
        content += [self.value_content(batch.value)] if self.n_shapes < self.n_tokens else []
        span = torch.cat([batch.shape_span, self.interval_span.expand(cases, -1, -1)], dim=1)
        told = self.told[:, None].expand(cases, -1, 1)
        is_value = (torch.arange(self.n_tokens, device=span.device) >= self.n_shapes).long()
        kind = cast(Tensor, self.kind)[is_value]
        fixed = self.channels(self.channel) + kind + self.classes(self.label)
        return torch.cat(content, dim=1) + self.where(torch.cat([span, told], dim=-1)) + fixed

    def _attended(
        self, encoder: Encoder, x: Tensor, observed: Tensor, some: slice
    ) -> Float[Tensor, "cases tokens dim"]:
        """Return tokens of one encoder; those that are not there are seen by none."""
        cases, size, dim = x.shape
        layout = Layout.of([size] * cases, x.device)
        bias, gain = self._weighing(x, observed, some)
        return encoder(x.reshape(-1, dim), layout, bias=bias, gain=gain).view(cases, size, dim)

    def _weighing(self, x: Tensor, observed: Tensor, some: slice) -> tuple[KeyBias | None, Tensor | None]:
        """Return what priors and absence add to the scores, and by what priors multiply them."""
        cases, bias, gain = len(x), None, None
        if self.form == "key":
            scores = self.log_prior[some, None] * self.strength
            bias = scores.expand(cases, -1, -1).flatten(0, 1).to(x.dtype)
        elif self.form == "logit":
            gain = self.prior[some].expand(cases, -1).flatten().to(x.dtype)
        if not bool(observed.all()):
            absent = torch.zeros_like(observed, dtype=x.dtype).masked_fill(~observed, -torch.inf)
            absent[~observed.any(dim=1)] = 0.0
            bias = absent.flatten()[:, None] + (0.0 if bias is None else bias)
        return None if bias is None else KeyBias(bias), gain

    def received(self, batch: CaseBatch) -> Float[Tensor, "cases tokens"]:
        """Return the mean attention that each token gets in the first layer, over heads and queries."""
        x, first, parts = self.embed(batch), 0, []
        sizes = self._sizes()
        for encoder, size in zip(self.encoders, sizes, strict=True):
            some = slice(first, first + size)
            tokens, first = x[:, some], first + size
            bias, gain = self._weighing(tokens, batch.observed[:, some], some)
            layout = Layout.of([size] * len(batch), x.device)
            mass = cast(Encoder, encoder).received(tokens.flatten(0, 1), layout, bias, gain)
            parts.append(mass.view(len(batch), size, -1).mean(dim=2) / size)
        return torch.cat(parts, dim=1)

    def _mean(self, outputs: Tensor, observed: Tensor) -> Tensor:
        return outputs.sum(dim=1) / observed.sum(dim=1, keepdim=True).clamp(min=1)

    def contributions(self, batch: CaseBatch) -> Float[Tensor, "cases tokens classes"]:
        r"""Return what each token adds to each logit.

        Their sum and the bias of the decision are the logit exactly: the decision is linear in the outputs of the
        tokens.
        """
        outputs = self.encode(batch)
        if self.head_form == "mean":
            outputs = outputs / batch.observed.sum(dim=1).clamp(min=1)[:, None, None]
        weight = self.decision.weight if self.narrow is None else self.decision.weight @ self.narrow.weight
        if self.head_form == "mean":
            return outputs @ weight.T
        by_token = weight.view(weight.shape[0], self.n_tokens, -1)
        return torch.einsum("btd,ctd->btc", outputs, by_token)


def _table(n_channels: int, d_model: int) -> nn.Module:
    if n_channels <= _MANY_CHANNELS:
        return nn.Embedding(n_channels, d_model)
    return nn.Sequential(
        nn.Embedding(n_channels, _CHANNEL_WIDTH), nn.Linear(_CHANNEL_WIDTH, d_model, bias=False)
    )
