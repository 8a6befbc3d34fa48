"""Positional encodings of tokens that carry times."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu


class TimeShiftedEncoding(nn.Module):
    r"""Return a sinusoidal encoding whose phases a clock shifts.

    .. math:: p_i = [\sin\phi_i, \cos\phi_i],\qquad \phi_{i,m} = 10000^{-2m/d}\, i + w_m s_i

    The position i gives the ordinary encoding, the clock s (a gap or a time) moves its phases with learned
    frequencies w. Phases are computed on the fly, so that there is no longest sequence.

    Parameters
    ----------
    d_model
        Width d of the encoding, even.

    References
    ----------
    Zhang, Lipani, Kirnap, Yilmaz (2020), Self-attentive Hawkes process, equations 8 and 9.
    """

    frequency: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        half = torch.arange(d_model // 2, dtype=torch.float64)
        self.register_buffer("frequency", (10000.0 ** (-2 * half / d_model)).float(), persistent=False)
        self.shift = nn.Parameter(torch.empty(d_model // 2).uniform_(-1, 1))

    def forward(
        self, position: Int[Tensor, " tokens"], clock: Float[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        """Return the encoding of tokens at integer positions with clock readings in model units."""
        phase = position[:, None] * self.frequency.to(clock.dtype) + clock[:, None] * self.shift
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class TimeFeatures(nn.Module):
    r"""Return what a small network makes of the gap before a token and of its age.

    .. math:: W_2\,\mathrm{GELU}\bigl(W_1 [\log(g + 10^{-3}), \log(1 + g), \log(1 + t - t_1)] + b_1\bigr) + b_2

    Logarithms of the gap g and of the time since the first event tell short times apart that phases cannot.

    Parameters
    ----------
    d_model
        Width of the tokens.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.inner = nn.Linear(3, d_model)
        self.outer = nn.Linear(d_model, d_model)

    def forward(
        self, gap: Float[Tensor, " tokens"], age: Float[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        """Return the features of tokens; gap and age in model units."""
        features = torch.stack([torch.log(gap + 1e-3), torch.log1p(gap), torch.log1p(age)], 1)
        return self.outer(gelu(self.inner(features)))
