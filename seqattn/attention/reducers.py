"""What can be said of attention weights without keeping them: they come block by block, and each is added up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from seqattn.errors import ParameterError

__all__ = [
    "Entropy",
    "Extent",
    "LagHistogram",
    "MeanLag",
    "ReceivedMass",
    "Reducer",
    "Summed",
    "TypeInfluence",
    "WeightBlock",
]


@dataclass(frozen=True, eq=False)
class WeightBlock:
    """Some weights of a call: those between a few queries and the keys that one of them sees.

    All blocks of a call together hold every visible pair once; the keys of one query may come in several blocks. A
    token has the number of its place in the packed tensor; in padded input it is ``sequence * length + place``. Where
    a row of the block has fewer queries or keys than others, the last one is repeated, with weight 0.

    Parameters
    ----------
    weights
        In float32 or float64; 0 where the query does not see the key.
    visible
        Whether pattern, causality and ``key_mask`` show the key to the query.
    query, key
        Numbers of the tokens.
    head
        Numbers of the heads.
    query_place, key_place
        Places of the tokens in their sequences, from 0.
    """

    weights: Float[Tensor, "rows heads queries keys"]
    visible: Bool[Tensor, "rows heads_or_1 queries keys"]
    query: Int[Tensor, "rows queries"]
    key: Int[Tensor, "rows keys"]
    head: Int[Tensor, "rows_or_1 heads"]
    query_place: Int[Tensor, "rows queries"]
    key_place: Int[Tensor, "rows keys"]


@dataclass(frozen=True)
class Extent:
    """The sizes of a call.

    Parameters
    ----------
    queries, keys
        ``(tokens,)`` of packed and ``(batch, length)`` of padded input.
    heads
        Number of query heads.
    device
        Where the weights are.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int
    device: torch.device

    def zeros(self, size: tuple[int, ...]) -> Float[Tensor, "tokens heads"]:
        """Return a number per token and head, for adding up.

        Parameters
        ----------
        size
            ``queries`` or ``keys``.
        """
        tokens = torch.Size(size).numel()
        return torch.zeros(tokens, self.heads, dtype=torch.float64, device=self.device)

    def shaped(self, values: Float[Tensor, "tokens heads"], size: tuple[int, ...]) -> Float[Tensor, "..."]:
        """Return numbers per token and head in the form of ``lse``.

        Parameters
        ----------
        values
            As :meth:`zeros` gives them.
        size
            ``queries`` or ``keys``.
        """
        return values if len(size) == 1 else values.view(*size, values.shape[1]).transpose(1, 2)

    def flat(
        self, name: str, values: Shaped[Tensor, "..."], size: tuple[int, ...]
    ) -> Shaped[Tensor, " tokens"]:
        """Return what is given per token, one token after the other.

        Parameters
        ----------
        name
            How the values are called in the message.
        values
            ``[tokens]`` of packed and ``[batch, length]`` of padded input.
        size
            ``queries`` or ``keys``.

        Raises
        ------
        ParameterError
            The values have another shape.
        """
        if tuple(values.shape) != size:
            raise ParameterError(
                f"{name} must have one value per token, shape {list(size)}, got {list(values.shape)}."
            )
        return values.flatten().to(self.device)


class Reducer(ABC):
    """Turns the weights of a call into something small.

    A reducer itself never changes: what is being added up is made by :meth:`start` and handed to :meth:`add`.

    Examples
    --------
    >>> import torch
    >>> from seqattn.attention import Layout, attend
    >>> class Largest(Reducer):
    ...     def start(self, extent):
    ...         return torch.zeros(extent.heads, dtype=torch.float64)
    ...
    ...     def add(self, total, block):
    ...         torch.maximum(total, block.weights.amax((0, 2, 3)), out=total)
    ...
    ...     def result(self, total, extent):
    ...         return total
    >>> q = torch.zeros(3, 2, 4)
    >>> attend(q, q, q, layout=Layout.of([3]), reduce=Largest()).reduced.round(decimals=5).tolist()
    [0.33333, 0.33333]
    """

    @abstractmethod
    def start(self, extent: Extent) -> Any:
        """Return what blocks are added to, after a look whether the call fits.

        Parameters
        ----------
        extent
            The sizes of the call.
        """

    @abstractmethod
    def add(self, total: Any, block: WeightBlock) -> None:
        """Add a block.

        Parameters
        ----------
        total
            What :meth:`start` returned, to be changed in place.
        block
            Some of the weights.
        """

    @abstractmethod
    def result(self, total: Any, extent: Extent) -> Any:
        """Return what the user gets.

        Parameters
        ----------
        total
            What :meth:`start` returned, with all blocks added.
        extent
            The sizes of the call.
        """


class Summed(Reducer):
    """Return the sum of a function over all blocks; plain functions given as ``reduce`` become this.

    Parameters
    ----------
    function
        Takes a :class:`WeightBlock` and returns a tensor, of one shape for all blocks.
    """

    def __init__(self, function: Callable[[WeightBlock], Tensor]) -> None:
        self.function = function

    def start(self, extent: Extent) -> list[Tensor]:
        return []

    def add(self, total: list[Tensor], block: WeightBlock) -> None:
        part = self.function(block).to(torch.float64)
        total[:] = [total[0] + part if total else part]

    def result(self, total: list[Tensor], extent: Extent) -> Tensor | None:
        return total[0] if total else None


class TypeInfluence(Reducer):
    r"""Return how much queries of one type attend to keys of another, per head.

    .. math:: I_{hab} = \sum_{i:\, a_i = a} \sum_{j:\, a_j = b} w_{hij}

    The result is ``[heads, types, types]`` in float64. Divided by the number of queries of each type it is the share
    of its attention that a query of type a pays to keys of type b.

    Parameters
    ----------
    types
        Type of each token, ``[tokens]`` for packed and ``[batch, length]`` for padded input, from 0; tokens with
        numbers below 0 are left out.
    key_types
        The same for the keys, where they are other sequences.
    n_types
        Number of types; ``None`` for the largest one and 1.

    Raises
    ------
    ParameterError
        A type is ``n_types`` or more.

    References
    ----------
    Zhang, Lipani, Kirnap, Yilmaz (2020), Self-attentive Hawkes process, section 5.
    """

    def __init__(
        self,
        types: Int[Tensor, "..."],
        key_types: Int[Tensor, "..."] | None = None,
        n_types: int | None = None,
    ) -> None:
        self.types = types
        self.key_types = types if key_types is None else key_types
        largest = max((int(x.max()) for x in (self.types, self.key_types) if x.numel()), default=-1)
        self.n_types = largest + 1 if n_types is None else n_types
        if largest >= self.n_types:
            raise ParameterError(f"n_types={self.n_types} is too small: there is a type {largest}.")

    def start(self, extent: Extent) -> tuple[Tensor, Tensor, Tensor]:
        # One type more, for what is left out.
        sums = torch.zeros(extent.heads * (self.n_types + 1) ** 2, dtype=torch.float64, device=extent.device)
        types = extent.flat("types", self.types, extent.queries)
        key_types = extent.flat("key_types", self.key_types, extent.keys)
        left_out = self.n_types
        return sums, types.masked_fill(types < 0, left_out), key_types.masked_fill(key_types < 0, left_out)

    def add(self, total: tuple[Tensor, Tensor, Tensor], block: WeightBlock) -> None:
        sums, types, key_types = total
        size = self.n_types + 1
        row = block.head[:, :, None] * size + types[block.query][:, None]
        code = row[..., None] * size + key_types[block.key][:, None, None]
        sums.index_add_(0, code.flatten(), block.weights.double().flatten())

    def result(self, total: tuple[Tensor, Tensor, Tensor], extent: Extent) -> Tensor:
        size = self.n_types + 1
        return total[0].view(extent.heads, size, size)[:, :-1, :-1]


class LagHistogram(Reducer):
    r"""Return how much attention goes to keys so far back, per head and bin of lags.

    .. math:: m_{hb} = \sum_{i,\, j:\; e_b \le t_i - t_j < e_{b+1}} w_{hij}

    The result is ``[heads, edges - 1]`` in float64. Lags outside of all bins are left out; those of later keys are
    negative.

    Parameters
    ----------
    edges
        Ends of the bins, increasing.
    times
        Time of each token, ``[tokens]`` for packed and ``[batch, length]`` for padded input; ``None`` for places in the
        sequence.
    key_times
        The same for the keys, where they are other sequences.

    Raises
    ------
    ParameterError
        The edges do not increase, or are fewer than two.
    """

    def __init__(
        self,
        edges: Shaped[Tensor, " edges"],
        times: Float[Tensor, "..."] | None = None,
        key_times: Float[Tensor, "..."] | None = None,
    ) -> None:
        if len(edges) < 2 or not bool((edges[1:] > edges[:-1]).all()):
            raise ParameterError(f"edges must be two or more increasing numbers, got {edges.tolist()}.")
        self.edges, self.clock = edges, _Clock(times, key_times)

    def start(self, extent: Extent) -> tuple[Tensor, _Clock]:
        sums = torch.zeros(extent.heads * (len(self.edges) + 1), dtype=torch.float64, device=extent.device)
        return sums, self.clock.flat(extent)

    def add(self, total: tuple[Tensor, _Clock], block: WeightBlock) -> None:
        sums, clock = total
        lag = clock.lags(block)
        bins = torch.bucketize(lag, self.edges.to(lag), right=True)
        code = block.head[:, :, None, None] * (len(self.edges) + 1) + bins[:, None]
        sums.index_add_(0, code.flatten(), block.weights.double().flatten())

    def result(self, total: tuple[Tensor, _Clock], extent: Extent) -> Tensor:
        return total[0].view(extent.heads, -1)[:, 1:-1]


class MeanLag(Reducer):
    r"""Return how far away the keys of each query lie on average, per head.

    .. math:: d_{hi} = \sum_j w_{hij} \, |t_i - t_j|

    The result is shaped like ``lse``, in float64; 0 for queries that see no key. Its mean over the queries is the
    attention distance of a head.

    Parameters
    ----------
    times, key_times
        As for :class:`LagHistogram`.

    References
    ----------
    Dosovitskiy et al. (2021), An image is worth 16x16 words, section 4.5: attention distance.
    """

    def __init__(
        self, times: Float[Tensor, "..."] | None = None, key_times: Float[Tensor, "..."] | None = None
    ) -> None:
        self.clock = _Clock(times, key_times)

    def start(self, extent: Extent) -> tuple[Tensor, _Clock]:
        return extent.zeros(extent.queries), self.clock.flat(extent)

    def add(self, total: tuple[Tensor, _Clock], block: WeightBlock) -> None:
        # What a hidden token holds may be no number at all.
        lag = total[1].lags(block).abs()[:, None].masked_fill(~block.visible, 0)
        _add_rows(total[0], block.query, block.head, (block.weights * lag).sum(-1, dtype=torch.float64))

    def result(self, total: tuple[Tensor, _Clock], extent: Extent) -> Tensor:
        return extent.shaped(total[0], extent.queries)


class Entropy(Reducer):
    r"""Return how widely each query spreads its attention, in nats, per head.

    .. math:: H_{hi} = -\sum_j w_{hij} \log w_{hij}

    The result is shaped like ``lse``, in float64: 0 for a single key, the logarithm of their number for keys that all
    get the same.
    """

    def start(self, extent: Extent) -> Tensor:
        return extent.zeros(extent.queries)

    def add(self, total: Tensor, block: WeightBlock) -> None:
        found = torch.special.entr(block.weights).sum(-1, dtype=torch.float64)
        _add_rows(total, block.query, block.head, found)

    def result(self, total: Tensor, extent: Extent) -> Tensor:
        return extent.shaped(total, extent.queries)


class ReceivedMass(Reducer):
    r"""Return how much attention each key gets from all queries together, per head.

    .. math:: r_{hj} = \sum_i w_{hij}

    The result is shaped like ``lse`` of the keys, in float64. A key that gets far more than others is a sink.
    """

    def start(self, extent: Extent) -> Tensor:
        return extent.zeros(extent.keys)

    def add(self, total: Tensor, block: WeightBlock) -> None:
        _add_rows(total, block.key, block.head, block.weights.sum(2, dtype=torch.float64))

    def result(self, total: Tensor, extent: Extent) -> Tensor:
        return extent.shaped(total, extent.keys)


@dataclass(frozen=True, eq=False)
class _Clock:
    """Times of queries and keys; ``None`` for their places."""

    times: Tensor | None
    key_times: Tensor | None

    def flat(self, extent: Extent) -> _Clock:
        """Return the times of all tokens, one after the other."""
        if self.times is None:
            return self
        keys = self.times if self.key_times is None else self.key_times
        times = extent.flat("times", self.times, extent.queries)
        return _Clock(times, extent.flat("key_times", keys, extent.keys))

    def lags(self, block: WeightBlock) -> Shaped[Tensor, "rows queries keys"]:
        """Return the time from each key to each query."""
        if self.times is None or self.key_times is None:
            return block.query_place[:, :, None] - block.key_place[:, None]
        return self.times[block.query][:, :, None] - self.key_times[block.key][:, None]


def _add_rows(total: Tensor, token: Tensor, head: Tensor, values: Tensor) -> None:
    """Add ``[rows, heads, tokens of a row]`` to a number per token and head."""
    code = token[:, None] * total.shape[1] + head[:, :, None]
    total.view(-1).index_add_(0, code.flatten(), values.flatten())
