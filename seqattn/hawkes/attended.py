"""Who attends to whom: attention weights layer by layer, their rollout, and their sums over event types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from seqattn.attention import Layout, attend
from seqattn.attention.biases import Bias
from seqattn.attention.named import as_pattern
from seqattn.data.batches import EventBatch
from seqattn.hawkes.model import SelfAttentiveHawkes
from seqattn.nn.blocks import Encoder, EncoderBlock, SelfAttention

# Most (sequence, query, key) triples whose weights exist at one time, per head: 16 MB in float32.
_WEIGHTS = 4_000_000


def attention_weights(
    encoder: Encoder,
    x: Float[Tensor, "tokens dim"],
    layout: Layout,
    times: Float[Tensor, " tokens"] | None = None,
) -> Iterator[Float[Tensor, "batch heads queries keys"]]:
    """Yield the causal attention weights of each layer of an encoder, one layer at a time.

    The encoder runs as always and is watched, so that these are the weights that it uses.

    Parameters
    ----------
    encoder
        The encoder, in evaluation mode.
    x
        What enters its first layer.
    layout
        Where the sequences lie in ``x``.
    times
        Time of each token, where the encoder wants it.

    Yields
    ------
    Weights of one layer, sequences padded on the right to the longest; rows of tokens sum to 1.
    """
    given: list[tuple[SelfAttention, Tensor, Bias | None]] = []
    watches = [
        part.register_forward_pre_hook(lambda layer, call: given.append((layer, call[0], call[3])))
        for part in encoder.modules()
        if isinstance(part, SelfAttention)
    ]
    try:
        encoder(x, layout, causal=True, times=times)
    finally:
        for watch in watches:
            watch.remove()
    for layer, tokens, bias in given:
        q, k, v = layer.inputs(tokens).view(len(tokens), 3, layer.n_heads, -1).unbind(1)
        seen = attend(
            q, k, v, pattern=layer.bound(q, layout), causal=True, layout=layout, bias=bias, need="weights"
        )
        yield cast(Tensor, seen.weights)


def rolled_out(
    layers: Iterator[Float[Tensor, "batch heads queries keys"]],
) -> Float[Tensor, "batch queries keys"]:
    r"""Return how much of each first token reaches each last one, with half of every layer in the residual.

    .. math:: R = \hat A_L \cdots \hat A_1, \qquad \hat A_l = (A_l + I) / 2

    where :math:`A_l` is the mean of the heads of layer l. Rows of tokens sum to 1.

    Parameters
    ----------
    layers
        Weights of the layers, the first one first.

    References
    ----------
    Abnar, Zuidema (2020), Quantifying attention flow in transformers, equation 1.
    """
    flow: Tensor | None = None
    for weights in layers:
        mean = weights.mean(1)
        mixed = (mean + torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)) / 2
        flow = mixed if flow is None else mixed @ flow
    if flow is None:
        raise TypeError("There is no layer.")
    return flow


def plan_of_weights(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of sequences whose weights, padded to the longest of them, fit in memory together.

    Parameters
    ----------
    lengths
        Number of tokens of each sequence.
    """
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        longest = int(lengths[order[first]])
        last = first + max(1, _WEIGHTS // max(longest, 1) ** 2)
        yield order[first:last]
        first = last


def count_heads(encoder: Encoder) -> int:
    """Return the number of heads of each layer.

    Parameters
    ----------
    encoder
        The encoder.
    """
    return _first(encoder).n_heads


@torch.no_grad()
def attention_by_type(
    module: SelfAttentiveHawkes, batch: EventBatch, layer: int | None, head: int | None, rollout: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Sum the attention between events over their types.

    Parameters
    ----------
    module
        The fitted module.
    batch
        Sequences for it, few enough for their dense weights.
    layer, head
        Which layer and head, from 0; ``None`` for the mean of all.
    rollout
        Whether to follow the attention through all layers.

    Returns
    -------
    Three arrays (query types, key types): attention paid, attention that evenly spread weights would pay, and number
    of pairs. Start tokens are neither queries nor keys, but take part in the softmax and in the even spread.
    """
    layout = Layout(batch.offsets, batch.max_len)
    times = module.clock_of_keys(batch.elapsed)
    layers = attention_weights(module.encoder, module.embed(batch), layout, times)
    paid = rolled_out(layers) if rollout else _mean_of(layers, layer, head)
    reach = _reach(module.encoder, batch.max_len, paid.device)
    kinds = batch.padded(batch.types, module.n_types)
    bins = module.n_types + 1  # the last one takes start tokens and padding
    sums = torch.zeros(3, bins**2, dtype=torch.float64, device=paid.device)
    size = max(1, _WEIGHTS // paid[:, 0].numel())
    for first in range(0, batch.max_len, size):
        part = slice(first, first + size)
        seen = reach[part].double()
        code = (kinds[:, part, None] * bins + kinds[:, None]).flatten()
        for total, values in zip(
            sums, (paid[:, part] * seen, seen / seen.sum(1, keepdim=True), seen), strict=True
        ):
            total += torch.bincount(code, values.expand(len(batch), -1, -1).flatten(), bins**2)
    inner = sums.view(3, bins, bins)[:, :-1, :-1].cpu().numpy()
    return inner[0], inner[1], inner[2]


def _mean_of(
    layers: Iterator[Float[Tensor, "batch heads queries keys"]], layer: int | None, head: int | None
) -> Float[Tensor, "batch queries keys"]:
    """Average the weights of the chosen layers and heads."""
    total: Tensor | None = None
    used = 0
    for number, weights in enumerate(layers):
        if layer in (None, number):
            chosen = weights.mean(1) if head is None else weights[:, head]
            total = chosen if total is None else total + chosen
            used += 1
    if total is None:
        raise TypeError("There is no layer.")
    return total / used


def _reach(encoder: Encoder, length: int, device: torch.device) -> Bool[Tensor, "queries keys"]:
    """Return which keys a query may see; with clusters, which differ between layers and heads, all earlier ones."""
    place = torch.arange(length, device=device)
    pattern = as_pattern(_first(encoder).pattern)
    earlier = place[:, None] >= place
    if pattern.by_head:
        return earlier
    shown: Tensor = pattern.visible(place[:, None], place)
    return shown & earlier


def _first(encoder: Encoder) -> SelfAttention:
    return cast(EncoderBlock, encoder.blocks[0]).attention
