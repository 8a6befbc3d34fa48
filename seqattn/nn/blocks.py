"""Transformer encoder on packed tokens; the one place where heads meet ``attend``."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from seqattn.attention import Layout, attend
from seqattn.attention.patterns import Pattern


class SelfAttention(nn.Module):
    """Return multi-head attention of each sequence to itself.

    Parameters
    ----------
    d_model
        Width of the tokens; a multiple of ``n_heads``.
    n_heads
        Number of heads.
    pattern
        Who may see whom: a name such as ``"dense"`` or a pattern object of :mod:`seqattn.attention`.
    """

    def __init__(self, d_model: int, n_heads: int, pattern: str | Pattern = "dense") -> None:
        super().__init__()
        self.n_heads = n_heads
        self.pattern = pattern
        self.inputs = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(
        self, x: Float[Tensor, "tokens dim"], layout: Layout, causal: bool = False
    ) -> Float[Tensor, "tokens dim"]:
        """Return the attended tokens, ``x`` being the sequences that ``layout`` delimits end to end."""
        q, k, v = self.inputs(x).view(x.shape[0], 3, self.n_heads, -1).unbind(1)
        seen = attend(q, k, v, pattern=self.pattern, causal=causal, layout=layout)
        return self.output(seen.output.reshape(x.shape))


class EncoderBlock(nn.Module):
    """Return tokens after attention and a feed-forward map, each with a residual and a norm before it.

    Parameters
    ----------
    d_model, n_heads, pattern
        As in :class:`SelfAttention`.
    dropout
        Share of units that are dropped on both residual branches while training.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float, pattern: str | Pattern = "dense") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = SelfAttention(d_model, n_heads, pattern)
        self.norm2 = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "tokens dim"], layout: Layout, causal: bool = False
    ) -> Float[Tensor, "tokens dim"]:
        """Return the tokens after this block."""
        x = x + self.dropout(self.attention(self.norm1(x), layout, causal))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class Encoder(nn.Module):
    """Return tokens after a stack of blocks and a final norm.

    Parameters
    ----------
    n_layers
        Number of blocks.
    share_layers
        Whether all layers use one set of weights.
    d_model, n_heads, dropout, pattern
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
    ) -> None:
        super().__init__()
        self.n_layers = n_layers
        distinct = min(n_layers, 1) if share_layers else n_layers
        self.blocks = nn.ModuleList(EncoderBlock(d_model, n_heads, dropout, pattern) for _ in range(distinct))
        self.norm = nn.LayerNorm(d_model)

    def forward(
        self, x: Float[Tensor, "tokens dim"], layout: Layout, causal: bool = False
    ) -> Float[Tensor, "tokens dim"]:
        """Return the encoded tokens."""
        for layer in range(self.n_layers):
            x = self.blocks[layer % len(self.blocks)](x, layout, causal)
        return self.norm(x)
