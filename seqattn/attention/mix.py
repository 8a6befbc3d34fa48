"""Attention to content and to positions, mixed by a gate per head."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqattn.attention.biases import KeyBias, Separable
from seqattn.attention.call import attend
from seqattn.attention.kernel import Attention
from seqattn.errors import ParameterError

__all__ = ["Mix"]


class Mix(nn.Module):
    r"""Return a mix of attention to content and attention to positions, with a learned gate per head.

    .. math:: A_h = (1 - g_h) \, \mathrm{softmax}_j(q_i \cdot k_j \, \mathrm{scale}) +
       g_h \, \mathrm{softmax}_j(p_h(t_i - t_j)), \qquad p_h(\delta) = -\alpha_h (\delta - \Delta_h)^2

    The second part looks back by a soft lag :math:`\Delta_h`, sharply where :math:`\alpha_h` is large. Both parts see
    the same keys and share the values; rows add up to 1, as those of softmax do.

    Parameters
    ----------
    n_heads
        Number of heads :math:`h`.

    Attributes
    ----------
    gate
        :math:`g_h = \sigma(\mathrm{gate}_h)`; begins at 1, so that positions count more.
    log_strength
        :math:`\log \alpha_h`; begins at 0.
    lag
        :math:`\Delta_h`, in the unit of the positions; begins at 0, 1, 2 and so on, a lag for each head.

    Notes
    -----
    The positional scores are one product of a number per query and one per key and a bias per key; what is constant in
    a row is left out. They are computed in float64, because the square of a position loses the digits of a lag.

    References
    ----------
    d'Ascoli et al. (2021), ConViT: improving vision transformers with soft convolutional inductive biases, equations 5
    to 8, in one dimension. There :math:`\alpha` may become negative.

    Examples
    --------
    >>> mix = Mix(2)
    >>> tokens = torch.randn(1, 2, 5, 4)
    >>> mix(tokens, tokens, tokens, torch.arange(5.0)[None], causal=True).output.shape
    torch.Size([1, 2, 5, 4])
    """

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(n_heads))
        self.log_strength = nn.Parameter(torch.zeros(n_heads))
        self.lag = nn.Parameter(torch.arange(n_heads, dtype=torch.get_default_dtype()))

    def forward(
        self,
        q: Float[Tensor, "..."],
        k: Float[Tensor, "..."],
        v: Float[Tensor, "..."],
        positions: Float[Tensor, "..."],
        key_positions: Float[Tensor, "..."] | None = None,
        need: str = "output",
        **call: Any,
    ) -> Attention:
        """Return the mixed output, and with ``need="weights"`` the mixed weights.

        Parameters
        ----------
        q, k, v
            As for :func:`seqattn.attention.attend`.
        positions
            Times or places of the tokens, ``[batch, length]`` or packed ``[tokens]``, best from the start of their
            sequence.
        key_positions
            Those of the keys if these are other tokens.
        need
            ``"output"`` or ``"weights"``.
        call
            Pattern, ``causal``, layout or lengths, and whatever else :func:`seqattn.attention.attend` takes; ``bias``
            is added to the scores of contents, ``kernel`` computes both parts.

        Raises
        ------
        ParameterError
            Shapes do not fit together, or ``state`` or ``need="lse"`` is wanted: a mix has no log-sum.
        """
        if need not in ("output", "weights") or call.get("state") is not None:
            raise ParameterError(f"Mix has no state and no need={need!r}. Ask for 'output' or 'weights'.")
        content = attend(q, k, v, need=need, **call)
        call["bias"] = self.bias(positions, key_positions)
        flat, wide = q.new_zeros(*q.shape[:-1], 1, dtype=torch.float64), v.to(torch.float64)
        place = attend(flat, wide[..., :1] * 0, wide, need=need, **call)
        return Attention(
            self._mixed(content.output, place.output, 1 if q.dim() == 3 else 2),
            None
            if content.weights is None or place.weights is None
            else self._mixed(content.weights, place.weights, 2),
            stats={
                "kernel": f"{content.stats['kernel']} and {place.stats['kernel']}",
                "finite": content.stats["finite"],
            },
        )

    def bias(self, positions: Float[Tensor, "..."], key_positions: Float[Tensor, "..."] | None = None) -> Any:
        """Return the scores of positions as a bias, up to a constant per row.

        Parameters
        ----------
        positions, key_positions
            As for :meth:`forward`.
        """
        t = positions.to(torch.float64)[..., None]
        u = t if key_positions is None else key_positions.to(torch.float64)[..., None]
        strength, lag = self.log_strength.to(torch.float64).exp(), self.lag.to(torch.float64)
        query, key = 2 * strength * t, -strength * (u + lag) ** 2
        if positions.dim() == 2:
            query, key, u = (x.transpose(1, 2) for x in (query, key, u))
        return Separable(query[..., None], u[..., None]) + KeyBias(key)

    def _mixed(self, content: Tensor, place: Tensor, after: int) -> Tensor:
        """Return the mix of two tensors, with ``after`` axes behind that of the heads."""
        share = self.gate.sigmoid().to(torch.float64).view(-1, *[1] * after)
        return content.lerp(place.to(content.dtype), share.to(content.dtype))
