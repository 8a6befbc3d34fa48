"""Transformer encoder on packed tokens; the one place where heads meet ``attend``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqattn.attention import Attention, KeyBias, KeyValueState, Layout, ReceivedMass, Reducer, attend
from seqattn.attention.biases import Bias
from seqattn.attention.named import as_pattern
from seqattn.attention.pattern import Pattern
from seqattn.attention.patterns import places
from seqattn.attention.router import Router
from seqattn.attention.routing import bind, routings
from seqattn.errors import ParameterError


class SelfAttention(nn.Module):
    r"""Return multi-head attention of each sequence to itself.

    Parameters
    ----------
    d_model
        Width of the tokens; a multiple of ``n_heads``.
    n_heads
        Number of heads.
    pattern
        Who may see whom: a name such as ``"dense"`` or a pattern object of :mod:`seqattn.attention`.
    time_decay
        Whether each head learns how fast the past fades, :math:`\exp(\mathrm{log\_decay}_h)` per model unit of
        time; see :meth:`decay`.
    """

    log_decay: nn.Parameter | None

    def __init__(
        self, d_model: int, n_heads: int, pattern: str | Pattern = "dense", time_decay: bool = False
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.pattern = pattern
        self.inputs = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)
        self.log_decay = nn.Parameter(torch.linspace(-3, 0, n_heads)) if time_decay else None
        width = d_model // n_heads
        self.routers = nn.ModuleList(
            routing.router(heads, width) for routing, heads in routings(as_pattern(pattern), n_heads)
        )

    def forward(
        self,
        x: Float[Tensor, "tokens dim"],
        layout: Layout,
        causal: bool = False,
        bias: Bias | None = None,
        gain: Float[Tensor, " tokens"] | None = None,
    ) -> Float[Tensor, "tokens dim"]:
        """Return the attended tokens, ``x`` being the sequences that ``layout`` delimits end to end.

        With ``gain`` the score of a query and a key is multiplied by those of both.
        """
        q, k, v = self._projected(x, gain)
        seen = attend(q, k, v, pattern=self.bound(q, layout), causal=causal, layout=layout, bias=bias)
        return self.output(seen.output.reshape(x.shape))

    def received(
        self,
        x: Float[Tensor, "tokens dim"],
        layout: Layout,
        bias: Bias | None = None,
        gain: Float[Tensor, " tokens"] | None = None,
    ) -> Float[Tensor, "tokens heads"]:
        """Return how much attention each token gets from all tokens of its sequence, by head.

        Parameters
        ----------
        x, layout, bias, gain
            As in :meth:`forward`.
        """
        q, k, v = self._projected(x, gain)
        seen = attend(q, k, v, pattern=self.bound(q, layout), layout=layout, bias=bias, reduce=ReceivedMass())
        mass: Tensor = seen.reduced
        return mass

    def look(
        self,
        x: Float[Tensor, "tokens dim"],
        layout: Layout,
        causal: bool = False,
        bias: Bias | None = None,
        gain: Float[Tensor, " tokens"] | None = None,
        *,
        reduce: Reducer,
    ) -> Attention:
        """Return what the heads see, before they are mixed, and what a reducer makes of the weights.

        Parameters
        ----------
        x, layout, causal, bias, gain
            As in :meth:`forward`.
        reduce
            The reducer.
        """
        q, k, v = self._projected(x, gain)
        pattern = self.bound(q, layout)
        return attend(q, k, v, pattern=pattern, causal=causal, layout=layout, bias=bias, reduce=reduce)

    def _projected(self, x: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, the first two times the gain of their token."""
        q, k, v = self.inputs(x).view(x.shape[0], 3, self.n_heads, -1).unbind(1)
        if gain is not None:
            q, k = q * gain[:, None, None], k * gain[:, None, None]
        return q, k, v

    def bound(
        self, q: Float[Tensor, "*tokens heads dim"], where: Layout | Int[Tensor, "*tokens"]
    ) -> str | Pattern:
        """Return the pattern, with the labels that the routers give these queries.

        Parameters
        ----------
        q
            Queries.
        where
            Layout of packed ones, or the place of each token in its sequence.
        """
        if not len(self.routers):
            return self.pattern
        numbers = _places(where) if isinstance(where, Layout) else where
        return bind(as_pattern(self.pattern), q, iter(cast(Iterable[Router], self.routers)), numbers)

    def step(
        self,
        x: Float[Tensor, "rows new dim"],
        state: KeyValueState,
        bias: Bias | None = None,
        counts: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows new dim"]:
        """Return the attended new tokens of growing sequences, as :meth:`forward` with ``causal`` gives them.

        Parameters
        ----------
        x
            The new tokens of each sequence.
        state
            What the layer knows of the earlier tokens; takes the new ones up.
        bias
            Added to the scores of the new keys, ``[rows, heads or 1, new]``.
        counts
            How many of the new tokens exist in each row; ``None`` for all.
        """
        rows, new, dim = x.shape
        q, k, v = self.inputs(x).view(rows, new, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        before = state.count if len(state.count) else torch.zeros(rows, dtype=torch.int64, device=x.device)
        pattern = self.bound(q.transpose(1, 2), before[:, None] + torch.arange(new, device=x.device))
        seen = attend(q, k, v, pattern=pattern, causal=True, bias=bias, lengths=counts, state=state)
        return self.output(seen.output.transpose(1, 2).reshape(rows, new, dim))

    def decay(self, times: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens heads"] | None:
        r"""Return the bias of keys by which scores fall with the age of the key; ``None`` without ``time_decay``.

        .. math:: -e^{\ell_h} (t_i - t_j) = e^{\ell_h} t_j + \text{a constant of the row}

        Parameters
        ----------
        times
            Time of each token in model units, from any origin.
        """
        return None if self.log_decay is None else times[..., None] * self.log_decay.exp()


def _places(layout: Layout) -> Tensor:
    """Return the place of each token in its sequence."""
    found: Tensor = layout.keep("places", lambda: torch.from_numpy(places(layout)).to(layout.offsets.device))
    return found


class EncoderBlock(nn.Module):
    """Return tokens after attention and a feed-forward map, each with a residual and a norm before it.

    Parameters
    ----------
    d_model, n_heads, pattern, time_decay
        As in :class:`SelfAttention`.
    dropout
        Share of units that are dropped on both residual branches while training.
    expansion
        Width of the feed-forward map in units of ``d_model``.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float,
        pattern: str | Pattern = "dense",
        time_decay: bool = False,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = SelfAttention(d_model, n_heads, pattern, time_decay)
        self.norm2 = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, expansion * d_model), nn.GELU(), nn.Linear(expansion * d_model, d_model)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "tokens dim"],
        layout: Layout,
        causal: bool = False,
        bias: Bias | None = None,
        gain: Float[Tensor, " tokens"] | None = None,
    ) -> Float[Tensor, "tokens dim"]:
        """Return the tokens after this block; the arguments are those of :class:`SelfAttention`."""
        x = x + self.dropout(self.attention(self.norm1(x), layout, causal, bias, gain))
        return x + self.dropout(self.feed_forward(self.norm2(x)))

    def step(
        self,
        x: Float[Tensor, "rows new dim"],
        state: KeyValueState,
        bias: Bias | None = None,
        counts: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows new dim"]:
        """Return new tokens after this block; the arguments are those of :meth:`SelfAttention.step`."""
        x = x + self.dropout(self.attention.step(self.norm1(x), state, bias, counts))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class Encoder(nn.Module):
    r"""Return tokens after a stack of blocks and a final norm.

    Parameters
    ----------
    n_layers
        Number of blocks.
    share_layers
        Whether all layers use one set of weights.
    time_decay
        Whether each head of each layer learns a rate with which its scores fall with the age of a key,
        :math:`-e^{\ell_h} (t_i - t_j)`; :meth:`forward` is then causal and takes the times of the tokens. The
        logarithms of the rates start evenly spaced from -3 to 0 over the heads.
    d_model, n_heads, dropout, pattern, expansion
        As in :class:`EncoderBlock`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_layers: int,
        dropout: float,
        pattern: str | Pattern = "dense",
        share_layers: bool = False,
        time_decay: bool = False,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.time_decay = time_decay
        distinct = min(n_layers, 1) if share_layers else n_layers
        self.blocks = nn.ModuleList(
            EncoderBlock(d_model, n_heads, dropout, pattern, time_decay, expansion) for _ in range(distinct)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(
        self,
        x: Float[Tensor, "tokens dim"],
        layout: Layout,
        causal: bool = False,
        times: Float[Tensor, " tokens"] | None = None,
        bias: Bias | None = None,
        gain: Float[Tensor, " tokens"] | None = None,
    ) -> Float[Tensor, "tokens dim"]:
        """Return the encoded tokens.

        Parameters
        ----------
        x
            The sequences that ``layout`` delimits, end to end.
        layout
            Where they lie.
        causal
            Whether no token sees a later one.
        times
            Only with ``time_decay``: time of each token in model units since the start of its sequence. Not since
            its mean or end, or later tokens would move the last bits of earlier ones.
        bias
            Added to the scores in every layer.
        gain
            Factor of each token in its scores, as a query and as a key, in every layer.

        Raises
        ------
        ParameterError
            Times are missing or not wanted, or a decay with age is to look into the future.
        """
        self._check_times(times)
        if self.time_decay and not causal:
            raise ParameterError("time_decay=True needs causal=True: later tokens have no age.")
        for layer in range(self.n_layers):
            block = self._layer(layer)
            decay = None if times is None else block.attention.decay(times)
            fading = None if decay is None else KeyBias(decay.to(x.dtype))
            added = fading if bias is None else bias if fading is None else bias + fading
            x = block(x, layout, causal, added, gain)
        return self.norm(x)

    def received(
        self,
        x: Float[Tensor, "tokens dim"],
        layout: Layout,
        bias: Bias | None = None,
        gain: Float[Tensor, " tokens"] | None = None,
    ) -> Float[Tensor, "tokens heads"]:
        """Return how much attention each token gets from all tokens of its sequence in the first layer, by head.

        Parameters
        ----------
        x, layout, bias, gain
            As in :meth:`forward`.
        """
        block = self._layer(0)
        return block.attention.received(block.norm1(x), layout, bias, gain)

    def start(self) -> list[KeyValueState]:
        """Return the empty states of all layers for :meth:`step`, one per layer even where weights are shared."""
        return [KeyValueState() for _ in range(self.n_layers)]

    def step(
        self,
        x: Float[Tensor, "rows *new dim"],
        states: Sequence[KeyValueState],
        times: Float[Tensor, "rows *new"] | None = None,
        counts: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows *new dim"]:
        """Return the encoded new tokens of growing sequences, as the causal :meth:`forward` pass gives them.

        Without gradients, so under ``torch.no_grad()``, and in evaluation mode.

        Parameters
        ----------
        x
            One new token per row ``[rows, dim]``, or several ``[rows, new, dim]``.
        states
            From :meth:`start`; they take the new tokens up. All layers need the same ``select`` or ``copy``.
        times
            Only with ``time_decay``: times of the new tokens in model units, of the origin that their rows had before;
            best in float64.
        counts
            How many of the new tokens exist in each row, the first ones; ``None`` for all.

        Returns
        -------
        The encoded tokens in the shape of ``x``; 0 for those that do not exist.

        Raises
        ------
        ParameterError
            Times are missing or not wanted, or there are not as many states as layers.
        BackendError
            Gradients are wanted.
        """
        self._check_times(times)
        if len(states) != self.n_layers:
            raise ParameterError(f"There must be {self.n_layers} states, one per layer, got {len(states)}.")
        wide = x if x.dim() == 3 else x[:, None]
        if times is not None:
            times = times.to(torch.float64).view(wide.shape[:2])
        for layer, state in enumerate(states):
            block = self._layer(layer)
            decay = None if times is None else block.attention.decay(times)
            bias = None if decay is None else KeyBias(decay.transpose(1, 2))
            wide = block.step(wide, state, bias, counts)
        wide = self.norm(wide)
        if counts is not None:
            absent = torch.arange(wide.shape[1], device=x.device) >= counts[:, None]
            wide = wide.masked_fill(absent[..., None], 0)
        return wide.view(x.shape)

    def _layer(self, number: int) -> EncoderBlock:
        return cast(EncoderBlock, self.blocks[number % len(self.blocks)])

    def _check_times(self, times: Tensor | None) -> None:
        if (times is not None) != self.time_decay:
            raise ParameterError(
                f"times must be given if and only if time_decay=True, got time_decay={self.time_decay} and "
                f"times {'given' if times is not None else 'None'}."
            )
