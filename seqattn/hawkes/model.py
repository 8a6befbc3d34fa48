"""The self-attentive Hawkes process as a torch module: tokens in, intensities after each token out."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, softplus

from seqattn.attention import Dense, Layout, Local, Prefix
from seqattn.attention.named import as_pattern
from seqattn.attention.pattern import Pattern
from seqattn.data.batches import EventBatch
from seqattn.errors import ParameterError, suggest
from seqattn.hawkes.decays import HiddenIntensity, MarkIntensity
from seqattn.hawkes.intensity import Intensity, SumIntensity
from seqattn.hawkes.kernels import KernelBank
from seqattn.hawkes.quadrature import INTEGRALS
from seqattn.hawkes.reading import check_whole
from seqattn.nn.blocks import Encoder
from seqattn.nn.embed import TimeFeatures, TimeShiftedEncoding
from seqattn.train.loop import Loss

FORMS = ("mark", "hidden")
CLOCKS = ("gap", "time", "log_gap")
TYPE_SCALES = ("one", "sqrt_d")
ACTIVATIONS = ("linear", "gelu")

# Least values of the whole numbers among the arguments.
_LEAST = {
    "d_model": 2,
    "n_heads": 1,
    "n_layers": 1,
    "n_decays": 1,
    "own_kernels": 0,
    "gap_kernels": 0,
    "nodes": 2,
}
# Smallest decay rate: keeps exp(-rate * t) a decay and the far part of the integral finite.
_SLOWEST = 1e-6
# Several decays start with rates of softplus of values spread over this range, from slow to fast.
_RATE_RANGE = (-3.0, 4.0)


class SelfAttentiveHawkes(nn.Module):
    r"""Map each token's past to the intensities until the next event.

    A sequence is a start token at T0 followed by its events. Token i sees tokens 0..i and nothing else, and its
    state drives the intensity on the interval that ends with event i + 1 (or with the window).

    Parameters
    ----------
    rates
        Events per model time unit of each type in the training data; the untrained model without kernels is the
        Poisson process with these rates.
    form
        ``"mark"``: each type decays on its own (the paper); ``"hidden"``: hidden units decay and are then mixed
        (the authors' program).
    n_decays
        Decays per type or hidden unit; 1 is the paper.
    own_kernels, gap_kernels
        Gaussian kernels per type on the time since its own last event and since the last event of any type, see
        :class:`seqattn.hawkes.kernels.KernelIntensity`; 0 for none.
    clock
        What shifts the phases of the positional encoding: the ``"gap"`` before the event, ``"log_gap"``
        (log1p of it, for heavy tails) or the ``"time"`` since the window began.
    time_features
        Whether a small network of the gap and of the time since the first event is added to each token.
    time_decay
        Whether attention to older tokens decays with their age, at a rate learned per head and layer.
    max_context
        Number of events that a token sees besides the start token; ``None`` for all. Exact local attention.
    type_scale
        ``"one"`` or ``"sqrt_d"``: factor on the type embeddings.
    mu_eta_activation
        ``"linear"``, or ``"gelu"`` as printed in the paper. With GELU and ``learn_scale=False`` no intensity of
        form ``"mark"`` can fall below ln(1 + exp(-0.17)) = 0.612 events per model time unit and type.
    learn_scale
        Whether each type has a learned softplus sharpness (form ``"mark"``).
    integral, nodes
        Rule and number of nodes of the compensator, see :class:`seqattn.hawkes.decays.MarkIntensity`.
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
        n_decays: int,
        own_kernels: int,
        gap_kernels: int,
        clock: str,
        time_features: bool,
        time_decay: bool,
        max_context: int | None,
        type_scale: str,
        share_layers: bool,
        mu_eta_activation: str,
        learn_scale: bool,
        integral: str,
        nodes: int,
        attention: str | Pattern,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("form", form, FORMS),
            ("clock", clock, CLOCKS),
            ("type_scale", type_scale, TYPE_SCALES),
            ("mu_eta_activation", mu_eta_activation, ACTIVATIONS),
            ("integral", integral, INTEGRALS),
        ):
            _check_choice(name, value, allowed)
        numbers = (d_model, n_heads, n_layers, n_decays, own_kernels, gap_kernels, nodes)
        for (name, least), number in zip(_LEAST.items(), numbers, strict=True):
            check_whole(name, number, least)
        if not 0 <= dropout < 1:
            raise ParameterError(f"dropout={dropout!r} is not allowed. Give a share from 0 to below 1.")
        _check_width(d_model, n_heads)
        _check_activation(mu_eta_activation, n_decays)
        self.n_types, self.n_decays = len(rates), n_decays
        self.form, self.clock, self.integral, self.nodes = form, clock, integral, nodes
        self.uses_gelu = mu_eta_activation == "gelu"
        self.type_factor = d_model**0.5 if type_scale == "sqrt_d" else 1.0
        self.type_embedding = nn.Embedding(self.n_types + 1, d_model)
        self.time_encoding = TimeShiftedEncoding(d_model)
        self.time_features = TimeFeatures(d_model) if time_features else None
        pattern = _pattern(attention, max_context)
        self.encoder = Encoder(d_model, n_heads, n_layers, dropout, pattern, share_layers, time_decay)
        self.dropout = nn.Dropout(dropout)
        width = self.n_types if form == "mark" else d_model
        self.mu = nn.Linear(d_model, width)
        self.eta = nn.Linear(d_model, n_decays * width)
        self.gamma = nn.Linear(d_model, n_decays * width)
        if form == "hidden":
            self.mix = nn.Linear(d_model, self.n_types)
        else:
            self.log_scale = nn.Parameter(torch.zeros(self.n_types), requires_grad=learn_scale)
        self.own = KernelBank(d_model, own_kernels, self.n_types) if own_kernels else None
        self.gap = KernelBank(d_model, gap_kernels, self.n_types) if gap_kernels else None
        self._start_at(rates)

    @torch.no_grad()
    def _start_at(self, rates: Tensor) -> None:
        """Make the untrained decays the Poisson process with these rates, whatever the time unit."""
        nn.init.normal_(self.type_embedding.weight, std=self.type_embedding.embedding_dim**-0.5)
        if self.n_decays > 1:
            spread = torch.linspace(*_RATE_RANGE, self.n_decays)
            self.gamma.bias.copy_(spread.repeat_interleave(self.mu.out_features))
        argument = rates + torch.log(-torch.expm1(-rates))  # inverse of the softplus
        if self.form == "hidden":
            self.mix.weight.mul_(0.1)
            self.mix.bias.copy_(argument)
            return
        start = _inverse_gelu(argument) if self.uses_gelu else argument
        self.mu.weight.zero_()
        self.mu.bias.copy_(start)
        self.eta.weight.zero_()
        self.eta.bias.copy_(start if self.n_decays == 1 else torch.zeros_like(self.eta.bias))

    @property
    def needs_recency(self) -> bool:
        """Whether batches must hold the time since the last event of each type."""
        return self.own is not None

    def embed(self, batch: EventBatch) -> Float[Tensor, "tokens dim"]:
        """Return each token before it has seen any other."""
        clock = {"gap": batch.gap, "time": batch.elapsed}.get(self.clock)
        clock = torch.log1p(batch.gap) if clock is None else clock
        x = self.type_embedding(batch.types) * self.type_factor
        x = x + self.time_encoding(batch.position, clock)
        if self.time_features is not None:
            x = x + self.time_features(batch.gap, batch.age)
        return self.dropout(x)

    def encode(self, batch: EventBatch) -> Float[Tensor, "tokens dim"]:
        """Return the state of each token, which depends on that token and those before it only."""
        layout = Layout(batch.offsets, batch.max_len)
        return self.encoder(self.embed(batch), layout, causal=True, times=self.clock_of_keys(batch.elapsed))

    def clock_of_keys(self, elapsed: Tensor) -> Tensor | None:
        """Return the times by whose age attention fades, or None where it does not."""
        return elapsed if self.encoder.time_decay else None

    def forward(self, batch: EventBatch) -> Intensity:
        """Return the intensities after each token of a packed batch, in model time units."""
        return self.intensity(self.encode(batch), batch.since)

    def intensity(
        self, state: Float[Tensor, "tokens dim"], since: Float[Tensor, "tokens types"] | None
    ) -> Intensity:
        """Return the intensities that follow from states of the encoder.

        Parameters
        ----------
        state
            States of tokens.
        since
            Time since the last event of each type at the tokens, in model units; needed with own kernels only.
        """
        # The likelihood stays in the parameters' precision: bfloat16 serves the encoder only.
        state = state.to(self.mu.weight.dtype)
        with torch.autocast(state.device.type, enabled=False):
            parts = [self._decays(state)]
            if self.own is not None and since is not None:
                parts.append(self.own(state, since))
            if self.gap is not None:
                parts.append(self.gap(state, state.new_zeros(len(state), 1)))
        return parts[0] if len(parts) == 1 else SumIntensity(tuple(parts))

    def _decays(self, state: Tensor) -> Intensity:
        scale = self.log_scale.exp() if self.form == "mark" else None
        mu, eta = (self._argument(layer, state, scale) for layer in (self.mu, self.eta))
        amplitude = eta - mu if self.n_decays == 1 else eta
        shape = (len(state), self.n_decays, self.mu.out_features)
        rate = (softplus(self.gamma(state)) + _SLOWEST).view(shape)
        # Random draws would make scores random.
        rule = "graded" if self.integral == "monte_carlo" and not self.training else self.integral
        if scale is None:
            mix = (self.mix.weight, self.mix.bias)
            return HiddenIntensity(mu, amplitude.view(shape), rate, *mix, rule, self.nodes)
        return MarkIntensity(mu, amplitude.view(shape), rate, scale, rule, self.nodes)

    def _argument(self, layer: nn.Linear, state: Tensor, scale: Tensor | None) -> Tensor:
        """Return a linear map of the states, divided by the types' scales; the weights are fewer than the states."""
        if self.uses_gelu:
            value = gelu(layer(state))
            return value if scale is None else value / scale
        if scale is None:
            return layer(state)
        each = scale.repeat(layer.out_features // len(scale))
        return linear(state, layer.weight / each[:, None], layer.bias / each)

    def loss(self, batch: EventBatch) -> Loss:
        """Return the negative log-likelihood of the scored events, in model time units, and their number."""
        intensity = self(batch)
        with torch.autocast(batch.gap.device.type, enabled=False):
            ends = (batch.scored & (batch.target >= 0)).nonzero()[:, 0]
            gain = intensity.log_rate(batch.until[ends], batch.target[ends], ends).sum()
            expected = (intensity.compensator(batch.until) * batch.scored).sum()
        return Loss(expected - gain, len(ends))


def _pattern(attention: str | Pattern, max_context: int | None) -> str | Pattern:
    """Return the attention pattern, cut to the last events and the start token if a context is given."""
    if max_context is None:
        return attention
    check_whole("max_context", max_context, 1)
    if as_pattern(attention) != Dense():
        raise ParameterError(
            f"max_context={max_context!r} is local attention of its own and needs attention='dense', "
            f"not {attention!r}. Give one of them."
        )
    return Local(left=max_context, right=0) | Prefix(1)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ParameterError(f"{name}={value!r} is unknown. Use one of {allowed}.{suggest(value, allowed)}")


def _check_width(d_model: int, n_heads: int) -> None:
    if d_model % 2 or d_model % n_heads:
        raise ParameterError(
            f"d_model={d_model!r} must be even and a multiple of n_heads={n_heads!r}. "
            f"Try d_model={2 * n_heads * max(1, round(d_model / (2 * n_heads)))}."
        )


def _check_activation(mu_eta_activation: str, n_decays: int) -> None:
    if mu_eta_activation == "gelu" and n_decays > 1:
        raise ParameterError(
            f"mu_eta_activation='gelu' is the paper's form, which has one decay, not n_decays={n_decays}. "
            "Use 'linear', or n_decays=1."
        )


def _inverse_gelu(value: Tensor) -> Tensor:
    """Solve gelu(x) = value on its increasing branch; values below its minimum give the minimum."""
    low, high = torch.full_like(value, -0.75), value.clamp(min=0) + 1
    for _ in range(60):
        middle = (low + high) / 2
        above = gelu(middle) > value
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2
