"""What is done to tokens before they become queries."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seqattn.attention import Layout
from seqattn.errors import ParameterError


def recent_mean(
    x: Float[Tensor, "..."],
    window: int,
    layout: Layout | None = None,
    mask: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "..."]:
    r"""Return the mean of each token and the tokens before it in its sequence, of up to a number in all.

    .. math:: h_t = \frac{1}{n_t} \sum_{s = t - n_t + 1}^{t} x_s, \qquad n_t = \min(t, L), \quad t = 1, 2, \dots

    Tokens are counted, not places: with holes the mean goes over the last :math:`L` tokens that exist. It knows no
    later token and no other sequence.

    Parameters
    ----------
    x
        Packed ``[tokens, dim]`` with ``layout``, or padded ``[batch, length, dim]``.
    window
        Number :math:`L` of tokens, this one included; 1 or more.
    layout
        Packed input: where the sequences lie.
    mask
        Padded input: true for tokens that exist, at any places; ``None`` for all.

    Returns
    -------
    The means in the shape of ``x``; 0 where no token is.

    Raises
    ------
    ParameterError
        ``window`` is below 1, or the shapes do not fit together.

    Notes
    -----
    Sums of 1, 2, 4 and so on tokens are put together, in as many steps as the window has binary digits. Sums stay
    short: unlike a difference of running sums this neither loses digits in long sequences nor carries what is not
    finite past its window.

    References
    ----------
    Zhu et al. (2024), Collaboration and transition: distilling item transitions into multi-query self-attention for
    sequential recommendation: queries of a long and of a short window beside each other.

    Examples
    --------
    >>> items = torch.tensor([[2.0], [4.0], [6.0], [10.0], [0.0]])
    >>> recent_mean(items, 2, layout=Layout.of([3, 2])).flatten().tolist()
    [2.0, 3.0, 5.0, 10.0, 5.0]
    """
    if isinstance(window, bool) or window != int(window) or window < 1:
        raise ParameterError(f"window must be a whole number of tokens, 1 or more, got {window!r}.")
    if layout is not None:
        if x.dim() != 2 or mask is not None or len(x) != layout.n_tokens:
            raise ParameterError(
                f"With a layout x must be [{layout.n_tokens}, dim] and there is no mask, got x {list(x.shape)}."
            )
        lengths = layout.lengths
        place = np.arange(layout.n_tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return _mean(x, torch.from_numpy(place).to(x.device), window)
    if x.dim() != 3 or (mask is not None and mask.shape != x.shape[:2]):
        raise ParameterError(
            f"Without a layout x must be [batch, length, dim] and a mask [batch, length], got x {list(x.shape)} and "
            f"mask {None if mask is None else list(mask.shape)}."
        )
    live = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    index = live.flatten().nonzero()[:, 0]
    place = (live.cumsum(1) - 1).flatten()[index]
    means = _mean(x.flatten(0, 1).index_select(0, index), place, window)
    return x.new_zeros(x.shape).flatten(0, 1).index_copy(0, index, means).view(x.shape)


def _mean(x: Tensor, place: Tensor, window: int) -> Tensor:
    """Return the means of packed tokens that stand at these places of their sequences."""
    total, taken = torch.zeros_like(x), 0
    power, size = x, 1
    while size <= window:
        if window & size:
            total = total + _before(power, place, taken)
            taken += size
        if 2 * size <= window:
            power = power + _before(power, place, size)
        size *= 2
    return total / (place + 1).clamp(max=window)[:, None]


def _before(x: Tensor, place: Tensor, steps: int) -> Tensor:
    """Return the rows so many tokens earlier in their sequences, and 0 where there is none."""
    if steps == 0:
        return x
    if steps >= len(x):
        return torch.zeros_like(x)
    moved = torch.cat([x.new_zeros(steps, x.shape[1]), x[:-steps]])
    return moved.masked_fill((place < steps)[:, None], 0)
