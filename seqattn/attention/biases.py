"""Biases say what is added to the scores of queries and keys.

Which kernel computes which of them is a matter of the kernels; see :mod:`seqattn.attention.terms` for the form in
which they get them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seqattn.errors import ParameterError

__all__ = ["Bias", "DenseBias", "KeyBias", "LogPrior", "Relative", "Separable", "Sum"]


class Sizes(NamedTuple):
    """The sizes of a call; ``tokens`` are those of queries and keys, ``None`` for padded input."""

    batch: int
    heads: int
    queries: int
    keys: int
    tokens: tuple[int, int] | None
    device: torch.device

    def per_key(self, *rest: int) -> list[list[int]]:
        """Return the shapes of something per key, for one head and for all."""
        return self._per_token(1, self.keys, rest)

    def per_query(self, *rest: int) -> list[list[int]]:
        """Return the shapes of something per query, for one head and for all."""
        return self._per_token(0, self.queries, rest)

    def per_pair(self) -> list[list[int]]:
        """Return the shapes of something per pair."""
        heads = dict.fromkeys((1, self.heads))
        return [[b, h, self.queries, self.keys] for b in dict.fromkeys((1, self.batch)) for h in heads]

    def _per_token(self, side: int, length: int, rest: tuple[int, ...]) -> list[list[int]]:
        heads = dict.fromkeys((1, self.heads))
        if self.tokens is not None:
            return [[self.tokens[side], h, *rest] for h in heads]
        return [[self.batch, h, length, *rest] for h in heads]


class Bias(ABC):
    """Something that is added to the scores; biases are added up with ``+``."""

    kind: ClassVar[str] = ""

    def __add__(self, other: Bias) -> Sum:
        """Return the sum of two biases."""
        if not isinstance(other, Bias):
            return NotImplemented
        return Sum((*self.parts(), *other.parts()))

    def parts(self) -> tuple[Bias, ...]:
        """Return the biases of which it is the sum."""
        return (self,)

    @abstractmethod
    def check(self, sizes: Sizes) -> None:
        """Raise a :class:`ParameterError` if the bias does not fit a call.

        Parameters
        ----------
        sizes
            The sizes of the call.
        """

    @abstractmethod
    def join(self, other: Any) -> Bias:
        """Return the sum with a bias of the same kind as one bias.

        Parameters
        ----------
        other
            The other one.
        """

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what it is made of."""

    @abstractmethod
    def of_heads(self, heads: slice) -> Bias:
        """Return the bias of some heads.

        Parameters
        ----------
        heads
            Which heads.
        """


@dataclass(frozen=True, eq=False)
class KeyBias(Bias):
    r"""Add a number per key, which may be learnt, to all scores of that key.

    .. math:: s_{ij} = q_i \cdot k_j \, \mathrm{scale} + c_j

    The fused kernel takes it as one further feature, so it needs no mask and has an exact gradient. A linear decay
    with age, :math:`-\lambda (t_i - t_j)` under ``causal``, is the key bias :math:`\lambda t_j`, because the part of
    :math:`t_i` is constant in a row. ``-inf`` hides the key.

    Parameters
    ----------
    values
        Float ``[batch, heads or 1, keys]`` for padded input, ``[key tokens, heads or 1]`` for packed input. Large
        values cost precision: measure time from the middle of each sequence.
    """

    values: Float[Tensor, "..."]

    kind: ClassVar[str] = "key"

    def check(self, sizes: Sizes) -> None:
        _check("values of KeyBias", self.values, sizes.per_key(), sizes)

    def join(self, other: KeyBias) -> KeyBias:
        return KeyBias(self.values + other.values)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def of_heads(self, heads: slice) -> KeyBias:
        return KeyBias(_heads(self.values, heads))


@dataclass(frozen=True, eq=False)
class Separable(Bias):
    r"""Add a sum of products of a number per query and a number per key, both of which may be learnt.

    .. math:: s_{ij} = q_i \cdot k_j \, \mathrm{scale} + \sum_r a_{ir} c_{jr}

    The fused kernels take the numbers as further features, so there is no mask, and all gradients are exact.

    Parameters
    ----------
    query
        Numbers :math:`a`: ``[batch, heads or 1, queries, r]`` for padded input, ``[tokens, heads or 1, r]`` for packed
        input.
    key
        Numbers :math:`c`: ``[batch, heads or 1, keys, r]`` or ``[key tokens, heads or 1, r]``.

    Notes
    -----
    Products of large numbers lose the digits of their differences: measure times from a point of each sequence, best
    its start, so that later tokens do not move it.

    Examples
    --------
    A decay with age whose rate each query chooses, :math:`-\lambda_i (t_i - t_j)`; the part of :math:`t_i` is constant
    in a row:

    >>> import torch
    >>> times, rate = torch.tensor([0.0, 0.5, 2.0]), torch.rand(3, 4)
    >>> decay = Separable(rate[..., None], times[:, None, None])

    See :meth:`wave` for waves.
    """

    query: Float[Tensor, "..."]
    key: Float[Tensor, "..."]

    kind: ClassVar[str] = "separable"

    @classmethod
    def wave(
        cls,
        times: Float[Tensor, "..."],
        frequency: Float[Tensor, " heads_or_1"],
        key_times: Float[Tensor, "..."] | None = None,
    ) -> Separable:
        r"""Return the bias :math:`\cos(\omega_h (t_i - t_j))`, for example a daily rhythm.

        Parameters
        ----------
        times
            Times of the queries, ``[batch, queries]`` or packed ``[tokens]``. Phases are computed in float64; the
            gradient of a frequency needs times from a point of their sequence.
        frequency
            Angular frequency :math:`\omega` of each head, or one for all, in radians per unit of time; may be learnt.
        key_times
            Times of the keys if these are other tokens.

        Returns
        -------
        A bias of rank 2 in the type of ``frequency``.

        Examples
        --------
        >>> import torch
        >>> daily = Separable.wave(torch.tensor([0.0, 4.0, 12.0]), torch.tensor([2 * torch.pi / 24]))
        >>> (daily.query @ daily.key[0, 0])[:, 0].round(decimals=3).tolist()
        [1.0, 0.5, -1.0]
        """
        query = _circle(times, frequency)
        return cls(query, query if key_times is None else _circle(key_times, frequency))

    def check(self, sizes: Sizes) -> None:
        rank = self.query.shape[-1] if self.query.dim() else 0
        if rank < 1:
            raise ParameterError(
                f"Separable needs one number per token or more, got query {list(self.query.shape)}."
            )
        _check("query of Separable", self.query, sizes.per_query(rank), sizes)
        _check("key of Separable", self.key, sizes.per_key(rank), sizes)

    def join(self, other: Separable) -> Separable:
        return Separable(_side_by_side(self.query, other.query), _side_by_side(self.key, other.key))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.query, self.key)

    def of_heads(self, heads: slice) -> Separable:
        return Separable(_heads(self.query, heads), _heads(self.key, heads))


@dataclass(frozen=True, eq=False)
class Relative(Bias):
    r"""Add a number per distance of query and key, counted in tokens, from a table that may be learnt.

    .. math:: s_{ij} = q_i \cdot k_j \, \mathrm{scale} + B_{h,\, i - j - \mathrm{first}}

    Pairs that are farther apart than the table goes get its nearest entry, so the last one stands for "long ago".
    ``-inf`` hides keys at that distance. Places are counted from the start of a sequence, as in patterns.

    Parameters
    ----------
    table
        Numbers :math:`B`, ``[heads or 1, distances]``.
    first
        Distance :math:`i - j` of the first entry. 0 suits causal calls; a table for both sides has, say, 9 entries
        from ``first=-4`` on.

    References
    ----------
    Shaw, Uszkoreit, Vaswani (2018), Self-attention with relative position representations, section 3.2: distances are
    clipped in the same way.

    Examples
    --------
    >>> import torch
    >>> bias = Relative(torch.tensor([[0.0, -1.0, -2.0]]))
    >>> bias.at(torch.tensor([[0, -1], [1, 0], [5, 4]])).tolist()
    [[[0.0, 0.0], [-1.0, 0.0], [-2.0, -2.0]]]
    """

    table: Float[Tensor, "heads_or_1 distances"]
    first: int = 0

    kind: ClassVar[str] = "relative"

    def check(self, sizes: Sizes) -> None:
        if self.table.dim() != 2 or self.table.shape[1] < 1:
            raise ParameterError(
                f"The table of Relative must be [heads or 1, distances] with one distance or more, got shape "
                f"{list(self.table.shape)}."
            )
        shapes = [[h, self.table.shape[1]] for h in dict.fromkeys((1, sizes.heads))]
        _check("table of Relative", self.table, shapes, sizes)
        if isinstance(self.first, bool) or not isinstance(self.first, int):
            raise ParameterError(f"first of Relative must be a whole number of tokens, got {self.first!r}.")

    def at(self, distance: Tensor) -> Tensor:
        """Return the entries for some distances, ``[heads or 1, *shape of distance]``.

        Parameters
        ----------
        distance
            Whole numbers :math:`i - j`.
        """
        return self.table[:, self.entry(distance)]

    def entry(self, distance: Tensor) -> Tensor:
        """Return the numbers of the entries for some distances.

        Parameters
        ----------
        distance
            Whole numbers :math:`i - j`.
        """
        return (distance - self.first).clamp(0, self.table.shape[1] - 1)

    def toeplitz(self, queries: int, keys: int) -> Tensor:
        """Return the entries of all pairs of a sequence, ``[heads or 1, queries, keys]``.

        Parameters
        ----------
        queries, keys
            How many there are of each.
        """
        if not (queries and keys):
            return self.table.new_zeros(len(self.table), queries, keys) + self.table[:, :1, None] * 0
        # Row i of windows over rising distances, read backwards; an index per pair has a slow gradient.
        line = self.at(torch.arange(1 - keys, queries, device=self.table.device))
        return line.unfold(1, keys, 1).flip(2)

    def join(self, other: Relative) -> Relative:
        first = min(self.first, other.first)
        end = max(one.first + one.table.shape[1] for one in (self, other))
        distance = torch.arange(first, end, device=self.table.device)
        return Relative(self.at(distance) + other.at(distance), first)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.table,)

    def of_heads(self, heads: slice) -> Relative:
        return self if len(self.table) == 1 else replace(self, table=self.table[heads])


@dataclass(frozen=True, eq=False)
class DenseBias(Bias):
    """Add a number per pair of query and key.

    A constant one goes through the fused kernel as a mask; one that is learnt leaves it, which :func:`explain` says.
    ``-inf`` hides the pair.

    Parameters
    ----------
    values
        Float ``[batch or 1, heads or 1, queries, keys]``, for packed input padded to the longest sequences.
    """

    values: Float[Tensor, "batch_or_1 heads_or_1 queries keys"]

    kind: ClassVar[str] = "dense"

    def check(self, sizes: Sizes) -> None:
        _check("values of DenseBias", self.values, sizes.per_pair(), sizes)

    def join(self, other: DenseBias) -> DenseBias:
        return DenseBias(self.values + other.values)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def of_heads(self, heads: slice) -> DenseBias:
        return DenseBias(_heads(self.values, heads))


@dataclass(frozen=True, eq=False)
class LogPrior(Bias):
    r"""Multiply the weights by a prior, before they are made to add up to 1.

    .. math:: A_{ij} = \frac{P_{ij} \exp(s_{ij})}{\sum_l P_{il} \exp(s_{il})}, \qquad
       \text{that is, add } \log \max(P_{ij}, \mathrm{floor}) \text{ to the scores}

    A product :math:`P_{ij} = p_i p_j` is the prior :math:`p_j` per key: the first factor cancels in the row.

    Parameters
    ----------
    prior
        Numbers not below 0, per key as in :class:`KeyBias` or per pair as in :class:`DenseBias`, computed at the same
        cost as these.
    floor
        Least prior, above 0; smaller ones count as this, and pass no gradient.

    Raises
    ------
    ParameterError
        ``floor`` is not above 0.

    Examples
    --------
    >>> import torch
    >>> from seqattn.attention import Layout, attend
    >>> flat = torch.zeros(2, 1, 4)
    >>> prior = LogPrior(torch.tensor([[3.0], [1.0]]))
    >>> seen = attend(flat, flat, flat, layout=Layout.of([2]), bias=prior, need="weights")
    >>> [round(share, 3) for share in seen.weights[0, 0, 0].tolist()]
    [0.75, 0.25]
    """

    prior: Float[Tensor, "..."]
    floor: float = 1e-9

    kind: ClassVar[str] = "prior"

    def __post_init__(self) -> None:
        if not self.floor > 0:
            raise ParameterError(f"floor of LogPrior must be above 0, got {self.floor!r}.")

    def parts(self) -> tuple[Bias, ...]:
        """Return the bias per key or per pair that it is."""
        values = self.prior.clamp(min=self.floor).log()
        return (DenseBias(values),) if self._is_per_pair() else (KeyBias(values),)

    def _is_per_pair(self) -> bool:
        return self.prior.dim() == 4

    def check(self, sizes: Sizes) -> None:
        shapes = sizes.per_pair() if self._is_per_pair() else [*sizes.per_key(), *sizes.per_pair()]
        _check("prior of LogPrior", self.prior, shapes, sizes)

    def join(self, other: Any) -> Bias:
        raise TypeError("A prior is added up as the bias that it is.")

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.prior,)

    def of_heads(self, heads: slice) -> LogPrior:
        return replace(self, prior=_heads(self.prior, heads))


@dataclass(frozen=True, eq=False)
class Sum(Bias):
    """Add several biases; written ``first + second``.

    Parameters
    ----------
    terms
        The biases, of any kinds.

    Examples
    --------
    >>> import torch
    >>> both = KeyBias(torch.zeros(3, 1)) + Relative(torch.zeros(1, 5))
    >>> [term.kind for term in both.terms]
    ['key', 'relative']
    """

    terms: tuple[Bias, ...]

    kind: ClassVar[str] = "sum"

    def parts(self) -> tuple[Bias, ...]:
        """Return its terms, with those of sums among them."""
        return tuple(part for term in self.terms for part in term.parts())

    def check(self, sizes: Sizes) -> None:
        for term in self.terms:
            term.check(sizes)

    def join(self, other: Any) -> Bias:
        raise TypeError("Sums are added up term by term.")

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for term in self.terms for tensor in term.tensors())

    def of_heads(self, heads: slice) -> Sum:
        return Sum(tuple(term.of_heads(heads) for term in self.terms))


def _check(name: str, x: Tensor, shapes: list[list[int]], sizes: Sizes) -> None:
    if list(x.shape) not in shapes or not x.is_floating_point() or x.device != sizes.device:
        allowed = " or ".join(dict.fromkeys(str(shape) for shape in shapes))
        raise ParameterError(
            f"The {name} must be floating point of shape {allowed} on {sizes.device}, got {x.dtype} of shape "
            f"{list(x.shape)} on {x.device}."
        )


def _heads(x: Tensor, heads: slice) -> Tensor:
    return x if x.shape[1] == 1 else x[:, heads]


def _side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """Return features as one tensor, those of one head repeated for all if the others have more."""
    heads = max(first.shape[1], second.shape[1])
    return torch.cat([x.expand(-1, heads, *x.shape[2:]) for x in (first, second)], -1)


def _circle(times: Tensor, frequency: Tensor) -> Tensor:
    """Return cosine and sine of the phases, ``[tokens, heads, 2]`` or ``[batch, heads, length, 2]``."""
    phase = times.to(torch.float64)[..., None] * frequency.to(torch.float64)
    phase = phase.transpose(1, 2) if times.dim() == 2 else phase
    return torch.stack([phase.cos(), phase.sin()], -1).to(frequency.dtype)
