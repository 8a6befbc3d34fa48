"""The self-attentive Hawkes process as a torch module: tokens in, intensities after each token out."""

from __future__ import annotations

from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from seqattn.attention import Layout
from seqattn.attention.patterns import Pattern
from seqattn.data.batches import EventBatch
from seqattn.errors import ParameterError, suggest
from seqattn.hawkes.intensity import HiddenIntensity, Intensity, MarkIntensity
from seqattn.hawkes.quadrature import INTEGRALS
from seqattn.nn.blocks import Encoder
from seqattn.nn.embed import TimeShiftedEncoding
from seqattn.train.loop import Loss

FORMS = ("mark", "hidden")
CLOCKS = ("gap", "time", "log_gap")
TYPE_SCALES = ("one", "sqrt_d")
ACTIVATIONS = ("linear", "gelu")

# Smallest decay rate: keeps exp(-rate * t) a decay and the far part of the integral finite.
_SLOWEST = 1e-6


class SelfAttentiveHawkes(nn.Module):
    r"""Map each token's past to the intensities until the next event.

    A sequence is a start token at T0 followed by its events. Token i sees tokens 0..i and nothing else, and its
    state drives the intensity on the interval that ends with event i + 1 (or with the window).

    Parameters
    ----------
    rates
        Events per model time unit of each type in the training data; the untrained model is the Poisson process
        with these rates.
    form
        ``"mark"``: each type decays on its own (the paper); ``"hidden"``: hidden units decay and are then mixed
        (the authors' program).
    clock
        What shifts the phases of the positional encoding: the ``"gap"`` before the event, ``"log_gap"``
        (log1p of it, for heavy tails) or the ``"time"`` since the window began.
    type_scale
        ``"one"`` or ``"sqrt_d"``: factor on the type embeddings.
    mu_eta_activation
        ``"linear"``, or ``"gelu"`` as printed in the paper. With GELU and ``learn_scale=False`` no intensity of
        form ``"mark"`` can fall below ln(1 + exp(-0.17)) = 0.612 events per model time unit and type.
    learn_scale
        Whether each type has a learned softplus sharpness (form ``"mark"``).
    integral, nodes
        Rule and number of nodes of the compensator, see :class:`seqattn.hawkes.intensity.MarkIntensity`.
    d_model, n_heads, n_layers, dropout, attention, share_layers
        The encoder, see :class:`seqattn.nn.blocks.Encoder`.

    References
    ----------
    Zhang, Lipani, Kirnap, Yilmaz (2020), Self-attentive Hawkes process, section 3.
    """

    def __init__(
        self,
        rates: Float[Tensor, " types"],
        *,
        form: str,
        d_model: int,
        n_heads: int,
        n_layers: int,
        dropout: float,
        clock: str,
        type_scale: str,
        share_layers: bool,
        mu_eta_activation: str,
        learn_scale: bool,
        integral: str,
        nodes: int,
        attention: str | Pattern,
    ) -> None:
        super().__init__()
        _check_choice("form", form, FORMS)
        _check_choice("clock", clock, CLOCKS)
        _check_choice("type_scale", type_scale, TYPE_SCALES)
        _check_choice("mu_eta_activation", mu_eta_activation, ACTIVATIONS)
        _check_choice("integral", integral, INTEGRALS)
        for name, value, least in (
            ("d_model", d_model, 2),
            ("n_heads", n_heads, 1),
            ("n_layers", n_layers, 1),
            ("nodes", nodes, 2),
        ):
            check_whole(name, value, least)
        if not 0 <= dropout < 1:
            raise ParameterError(f"dropout={dropout!r} is not allowed. Give a share from 0 to below 1.")
        _check_width(d_model, n_heads)
        self.n_types = len(rates)
        self.form, self.clock, self.integral, self.nodes = form, clock, integral, nodes
        self.uses_gelu = mu_eta_activation == "gelu"
        self.type_factor = d_model**0.5 if type_scale == "sqrt_d" else 1.0
        self.type_embedding = nn.Embedding(self.n_types + 1, d_model)
        self.time_encoding = TimeShiftedEncoding(d_model)
        self.encoder = Encoder(d_model, n_heads, n_layers, dropout, attention, share_layers)
        self.dropout = nn.Dropout(dropout)
        width = self.n_types if form == "mark" else d_model
        self.mu = nn.Linear(d_model, width)
        self.eta = nn.Linear(d_model, width)
        self.gamma = nn.Linear(d_model, width)
        if form == "hidden":
            self.mix = nn.Linear(d_model, self.n_types)
        else:
            self.log_scale = nn.Parameter(torch.zeros(self.n_types), requires_grad=learn_scale)
        self._start_at(rates)

    @torch.no_grad()
    def _start_at(self, rates: Tensor) -> None:
        """Make the untrained model the Poisson process with these rates, whatever the time unit."""
        nn.init.normal_(self.type_embedding.weight, std=self.type_embedding.embedding_dim**-0.5)
        argument = rates + torch.log(-torch.expm1(-rates))  # inverse of the softplus
        if self.form == "hidden":
            self.mix.weight.mul_(0.1)
            self.mix.bias.copy_(argument)
            return
        start = _inverse_gelu(argument) if self.uses_gelu else argument
        for linear in (self.mu, self.eta):
            linear.weight.zero_()
            linear.bias.copy_(start)

    def encode(self, batch: EventBatch) -> Float[Tensor, "tokens dim"]:
        """Return the state of each token, which depends on that token and those before it only."""
        clock = {"gap": batch.gap, "time": batch.elapsed}.get(self.clock)
        clock = torch.log1p(batch.gap) if clock is None else clock
        x = self.type_embedding(batch.types) * self.type_factor
        x = self.dropout(x + self.time_encoding(batch.position, clock))
        return self.encoder(x, Layout(batch.offsets, batch.max_len), causal=True)

    def forward(self, batch: EventBatch) -> Intensity:
        """Return the intensities after each token of a packed batch, in model time units."""
        # The likelihood stays in the parameters' precision: bfloat16 serves the encoder only.
        state = self.encode(batch).to(self.mu.weight.dtype)
        with torch.autocast(state.device.type, enabled=False):
            return self._intensity(state)

    def _intensity(self, state: Tensor) -> Intensity:
        mu, eta = self.mu(state), self.eta(state)
        if self.uses_gelu:
            mu, eta = gelu(mu), gelu(eta)
        rate = softplus(self.gamma(state)) + _SLOWEST
        if self.form == "hidden":
            mix = (self.mix.weight, self.mix.bias)
            return HiddenIntensity(mu, eta - mu, rate, *mix, self.integral, self.nodes)
        scale = self.log_scale.exp()
        return MarkIntensity(mu / scale, (eta - mu) / scale, rate, scale, self.integral, self.nodes)

    def loss(self, batch: EventBatch) -> Loss:
        """Return the negative log-likelihood of the scored events, in model time units, and their number."""
        intensity = self(batch)
        with torch.autocast(batch.gap.device.type, enabled=False):
            ends = (batch.scored & (batch.target >= 0)).nonzero()[:, 0]
            until = batch.until
            gain = intensity.select(ends).log_rate(until[ends], batch.target[ends]).sum()
            expected = (intensity.compensator(until) * batch.scored).sum()
        return Loss(expected - gain, len(ends))


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ParameterError(f"{name}={value!r} is unknown. Use one of {allowed}.{suggest(value, allowed)}")


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse a parameter that is not a whole number of a least size."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ParameterError(f"{name}={value!r} is not allowed. Give a whole number, at least {least}.")


def _check_width(d_model: int, n_heads: int) -> None:
    if d_model % 2 or d_model % n_heads:
        raise ParameterError(
            f"d_model={d_model!r} must be even and a multiple of n_heads={n_heads!r}. "
            f"Try d_model={2 * n_heads * max(1, round(d_model / (2 * n_heads)))}."
        )


def _inverse_gelu(value: Tensor) -> Tensor:
    """Solve gelu(x) = value on its increasing branch; values below its minimum give the minimum."""
    low, high = torch.full_like(value, -0.75), value.clamp(min=0) + 1
    for _ in range(60):
        middle = (low + high) / 2
        above = gelu(middle) > value
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2
