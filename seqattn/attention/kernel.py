"""What a kernel is told, what it declares, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqattn.attention.band import WeightBand
from seqattn.attention.costs import COSTS, Work
from seqattn.attention.layout import Layout, Plan
from seqattn.attention.pattern import Pattern
from seqattn.attention.reducers import Reducer
from seqattn.attention.state import KeyValueState
from seqattn.attention.terms import Terms

NEEDS = ("output", "lse", "weights")
MAX_WEIGHTS = 2**28


@dataclass(frozen=True, eq=False)
class Attention:
    """What :func:`seqattn.attention.attend` returns.

    Parameters
    ----------
    output
        ``[batch, heads, queries, value_dim]``, or packed ``[tokens, heads, value_dim]``. Rows that see no key, and
        padded rows, are 0.
    weights
        With ``need="weights"``: ``[batch, heads, queries, keys]``, for packed input padded to the longest sequences.
        Each row sums to 1, or to 0 where the row sees no key. With ``rows=``: of these queries only,
        ``[batch, heads, rows, keys]`` or packed ``[rows, heads, keys]``, without a gradient.
    lse
        With ``need="lse"`` or ``"weights"``, and without a gradient with ``"band"``, ``rows=`` or ``reduce=``:
        logarithm of the sum of exponentials of the scores of each row, ``[batch, heads, queries]`` or packed
        ``[tokens, heads]``; ``-inf`` where the row sees no key.
    stats
        ``kernel``: name of the kernel that ran. ``finite``: whether all inputs were finite, padding aside; ``None``
        where nobody looked (on a GPU it would stall the queue). ``parts``: the same of each part of a ``HeadMix``.
        With ``Experts``: ``coverage``, the share of tokens and heads that some cluster took, and ``multiplicity``, by
        how many on average.
    state
        With ``state=``: that same object, which now holds the new tokens too.
    band
        With ``need="band"``: the weights of the keys that each query sees, without a gradient.
    reduced
        With ``reduce=``: what the reducer made of the weights; a tuple, if there were several.
    """

    output: Float[Tensor, "..."]
    weights: Float[Tensor, "..."] | None = None
    lse: Float[Tensor, "..."] | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)
    state: KeyValueState | None = None
    band: WeightBand | None = None
    reduced: Any = None


@dataclass(frozen=True, eq=False)
class Look:
    """What a second look at a call's weights is to give, besides what its kernel gives."""

    band: bool
    rows: Tensor | None
    reducers: tuple[Reducer, ...]
    several: bool

    def words(self) -> list[str]:
        """Return what is asked for in words."""
        parts = ["need 'band'"] * self.band
        parts += [] if self.rows is None else [f"weights of {self.rows.shape[-1]} rows"]
        return parts + [f"reduce {type(reducer).__name__}" for reducer in self.reducers]


@dataclass(slots=True, eq=False)
class Problem:
    """A checked call: every kernel sees the same description.

    Packed when ``layout`` is set: ``q [tokens, heads, dim]`` and so on, ``key_layout`` always set. Else padded:
    ``q [batch, heads, queries, dim]``, with ``key_lengths`` set whenever ``lengths`` is and keys are the same
    sequences. ``aligned`` says that every sequence has as many keys as queries.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Pattern
    causal: bool
    bias: Terms | None
    layout: Layout | None
    key_layout: Layout | None
    lengths: Tensor | None
    key_lengths: Tensor | None
    key_mask: Tensor | None
    scale: float
    dropout: float
    need: str
    aligned: bool
    cross: bool
    training: bool
    look: Look | None = None

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.q.shape[1]

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.q.shape[0] if self.layout is None else len(self.layout)

    @property
    def queries(self) -> int:
        """Length of the longest query sequence."""
        return self.q.shape[2] if self.layout is None else self.layout.max_len

    @property
    def keys(self) -> int:
        """Length of the longest key sequence."""
        return self.k.shape[2] if self.key_layout is None else self.key_layout.max_len

    @property
    def key_bias(self) -> Tensor | None:
        """The bias per key, ``[batch, heads or 1, keys]`` or packed ``[tokens, heads or 1]``."""
        return None if self.bias is None or self.bias.key is None else self.bias.key.values

    def words(self) -> str:
        """Return the call in words."""
        kind = "padded" if self.layout is None else "packed"
        ends = " or ".join(dict.fromkeys((str(self.queries), str(self.keys))))
        parts = [
            f"{kind}, {self.batch} sequences of up to {ends} tokens, {self.heads} heads of width {self.q.shape[-1]}",
            str(self.q.dtype).removeprefix("torch."),
            f"pattern {self.pattern.name!r}",
        ]
        parts += ["causal"] * self.causal + ["with gradients"] * self.training
        parts += [] if self.bias is None else [f"bias {' + '.join(map(repr, self.bias.kinds))}"]
        parts += [] if self.key_mask is None else ["key_mask"]
        parts += [f"dropout {self.dropout}"] * (self.dropout > 0)
        parts += [f"need {self.need!r}"] if self.look is None or self.need != "output" else []
        return ", ".join([*parts, *([] if self.look is None else self.look.words())])

    def unkept(self) -> list[str]:
        """Return why all weights of the call cannot be kept, if they are asked for."""
        count = self.batch * self.heads * self.queries * self.keys
        if self.need != "weights" or count <= MAX_WEIGHTS:
            return []
        advice = (
            "ask for fewer sequences at a time, need='band' if the pattern shows few keys, rows= for single queries, "
            "or reduce= for sums over all weights"
        )
        return [f"{count} weights are more than {MAX_WEIGHTS}; {advice}"]

    def plan(self) -> Plan:
        """Return the buckets of a packed call."""
        if self.layout is None or self.key_layout is None:
            raise TypeError("A padded call has no plan.")
        return self.layout.plan(self.key_layout, self.heads)

    @property
    def width(self) -> int:
        """Numbers in a row of one head."""
        return max(self.q.shape[-1], self.v.shape[-1])

    @property
    def tokens(self) -> int:
        """Number of queries of all sequences, padding included."""
        return self.batch * self.queries if self.layout is None else self.layout.n_tokens

    def rectangles(self) -> list[tuple[int, int, int]]:
        """Return how many sequences, queries and keys the rectangles of the call have."""
        if self.layout is None:
            return [(self.batch, self.queries, self.keys)]
        return [(bucket.rows, bucket.queries, bucket.keys) for bucket in self.plan().buckets]

    def time(self, kernel: str, work: Work) -> float:
        """Return the expected time of some work in microseconds, one CPU core.

        Parameters
        ----------
        kernel
            Name of the kernel.
        work
            What it does.
        """
        rates = COSTS.rates(self.q.device.type, kernel, self.training)
        return rates.time(work, self.q.element_size())


@dataclass(frozen=True)
class Capability:
    """What a kernel can compute. Anything that is not declared here is refused.

    Parameters
    ----------
    devices, dtypes, patterns, biases, needs
        Names that are allowed; ``None`` means all.
    causal, cross, key_mask, packed, dropout, grouped
        Whether the argument is honoured.
    bias_gradients
        Kinds of biases that get their gradients.
    lse_gradient
        Whether ``lse`` carries a gradient.
    backward
        Whether inputs get gradients.
    exact
        Whether the result is the softmax over the visible keys, up to rounding.
    """

    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    patterns: tuple[str, ...] | None = None
    biases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("output",)
    causal: bool = True
    cross: bool = True
    grouped: bool = True
    key_mask: bool = True
    packed: bool = True
    dropout: bool = False
    bias_gradients: tuple[str, ...] = ("key", "separable")
    lse_gradient: bool = True
    backward: bool = True
    exact: bool = True


class Kernel(ABC):
    """One way to compute attention: a name, a capability, a cost and :meth:`run`."""

    name = ""
    capability = Capability()
    dropout_refusal = "dropout > 0 is not supported"
    gradient_refusal = "has no gradient"

    def refusals(self, problem: Problem) -> list[str]:
        """Return why this kernel cannot compute the call; empty if it can."""
        can = self.capability
        reasons = [*_unlisted(can, problem), *self.limits(problem)]
        if problem.causal and not can.causal:
            reasons.append("causal=True is not supported")
        if problem.cross and not can.cross:
            reasons.append("keys of another sequence are not supported")
        if problem.k.shape[1] != problem.q.shape[1] and not can.grouped:
            reasons.append("fewer key heads than query heads are not supported")
        if problem.key_mask is not None and not can.key_mask:
            reasons.append("key_mask is not supported")
        if problem.layout is not None and not can.packed:
            reasons.append("packed input is not supported")
        if problem.dropout > 0 and not can.dropout:
            reasons.append(self.dropout_refusal)
        if problem.training and not _trains(can, problem):
            reasons.append("no gradient of what was asked for")
        if problem.training and problem.bias is not None:
            missing = [kind for kind in problem.bias.learnt if kind not in can.bias_gradients]
            reasons += [f"bias kind {kind!r} {self.gradient_refusal}" for kind in missing]
        return reasons

    def limits(self, problem: Problem) -> list[str]:
        """Return further reasons of this kernel alone."""
        return []

    @abstractmethod
    def cost(self, problem: Problem) -> float:
        """Return the expected time in microseconds, one CPU core."""

    @abstractmethod
    def run(self, problem: Problem) -> Attention:
        """Compute the call."""


def _unlisted(can: Capability, problem: Problem) -> list[str]:
    """Return the properties of the call that are not among the kernel's lists."""
    reasons = []
    if can.devices is not None and problem.q.device.type not in can.devices:
        reasons.append(f"device {problem.q.device.type!r} is not among {can.devices}")
    if can.dtypes is not None and problem.q.dtype not in can.dtypes:
        reasons.append(f"{problem.q.dtype} is not supported")
    if can.patterns is not None and problem.pattern.name not in can.patterns:
        reasons.append(f"pattern {problem.pattern.name!r} is not supported")
    elif can.exact and not problem.pattern.is_mask:
        reasons.append(f"pattern {problem.pattern.name!r} is not one softmax over visible keys")
    kinds = [] if problem.bias is None else problem.bias.kinds
    reasons += [f"bias kind {kind!r} is not supported" for kind in kinds if kind not in can.biases]
    if problem.need not in can.needs:
        reasons.append(f"need={problem.need!r} is not supported, because no weights are formed")
    if problem.look is not None and "lse" not in can.needs:
        reasons.append(f"{', '.join(problem.look.words())} needs log-sums, which are not given")
    return reasons


def _trains(can: Capability, problem: Problem) -> bool:
    """Return whether every gradient that the call asks for exists."""
    return can.backward and (can.lse_gradient or problem.need != "lse")
