"""The one door through which every model attends: check the call, choose a kernel, run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seqattn.attention.arrivals import NewTokens
from seqattn.attention.biases import Bias
from seqattn.attention.check import centre_bias, check_call, stream_refusals
from seqattn.attention.costs import COSTS
from seqattn.attention.experts import ExpertChoice
from seqattn.attention.flex import Flex
from seqattn.attention.groups import Groups
from seqattn.attention.isolate import isolate
from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.layout import Layout
from seqattn.attention.mixed import Mixed
from seqattn.attention.named import as_pattern
from seqattn.attention.pattern import HeadMix, Pattern
from seqattn.attention.patterns import Dense
from seqattn.attention.plain import Plain
from seqattn.attention.reducers import Reducer, WeightBlock
from seqattn.attention.reference import Reference
from seqattn.attention.routing import supposed
from seqattn.attention.sdpa import Fused
from seqattn.attention.state import KeyValueState
from seqattn.attention.varlen import Varlen
from seqattn.attention.weighing import weighed
from seqattn.attention.window import Window
from seqattn.errors import BackendError, ParameterError, suggest

Reduce = Reducer | Callable[[WeightBlock], Tensor]
"""What ``reduce=`` accepts, or a list of it."""

# Of kernels that cost the same the first one is taken.
KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        *(Fused(), Plain(), Mixed(), Window(), Groups()),
        *(Varlen(), Flex(), ExpertChoice(), Reference()),
    )
}


def attend(
    q: Float[Tensor, "..."],
    k: Float[Tensor, "..."],
    v: Float[Tensor, "..."],
    *,
    pattern: str | Pattern = Dense(),  # noqa: B008 - frozen
    causal: bool = False,
    bias: Bias | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
    layout: Layout | None = None,
    key_lengths: Int[Tensor, " batch"] | None = None,
    key_layout: Layout | None = None,
    key_mask: Bool[Tensor, "batch keys"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    need: str = "output",
    rows: Int[Tensor, "..."] | None = None,
    reduce: Reduce | Sequence[Reduce] | None = None,
    state: KeyValueState | None = None,
    kernel: str = "auto",
) -> Attention:
    r"""Return softmax attention of queries to the keys that they may see.

    .. math:: o_i = \sum_j \mathrm{softmax}_j (q_i \cdot k_j \, \mathrm{scale} + b_{ij}) \, v_j
       \quad \text{over the visible } j

    Two layouts: padded ``[batch, heads, length, dim]``, and packed ``[tokens, heads, dim]`` with ``layout``, which
    is faster for sequences of unequal length. Keys may be other sequences than the queries, of other lengths; the
    number of key heads may divide the number of query heads; values may have another width.

    Parameters
    ----------
    q, k, v
        Queries, keys and values in float16, bfloat16, float32 or float64, all of one type and layout.
    pattern
        Which keys a query may see: a pattern object such as ``Dense()`` or ``Local(100) | Prefix(1)``, or its text
        such as ``"local(100) | prefix(1)"``.
    causal
        Whether the last query of a sequence sees all its keys, the one before all but the last, and so on. With as
        many keys as queries: no query sees a later key. Counted per sequence.
    bias
        What is added to the scores: ``KeyBias``, ``Separable``, ``Relative``, ``DenseBias`` or ``LogPrior``, or a
        sum of them such as ``KeyBias(values) + Relative(table)``.
    lengths, key_lengths
        Padded input: number of tokens of each sequence, which lie at the left. Without ``key_lengths`` the keys
        have the lengths of the queries.
    layout, key_layout
        Packed input: where the sequences lie. Without ``key_layout`` the keys lie where the queries do.
    key_mask
        Padded input: ``[batch, keys]``, true for keys that exist, with holes at any place.
    scale
        Factor of the scores, above 0; ``None`` means ``1 / sqrt(dim)``.
    dropout
        Share of weights that are dropped, from 0 to below 1; pass 0 outside training. Leaves the fused kernel.
    need
        What is returned besides the output, which changes by rounding at most: ``"output"`` for nothing, ``"lse"``
        for log-sums, ``"weights"`` for all weights, or ``"band"`` for the weights of the keys that each query sees,
        side by side, which for a window is linear in the length.
    rows
        Also the weights of these queries: packed ``[rows]`` with numbers of tokens, padded ``[rows]`` or
        ``[batch, rows]`` with places in the sequences.
    reduce
        Also what a reducer makes of all weights, which it gets block by block, so that they never exist together:
        :class:`TypeInfluence`, :class:`LagHistogram`, :class:`MeanLag`, :class:`Entropy`, :class:`ReceivedMass`, one of
        your own, a function from :class:`WeightBlock` to a tensor that is summed over the blocks, or a list of these,
        which take one pass together.
    state
        Padded causal self-attention without gradients: q, k and v are the new tokens of sequences whose earlier ones
        the state holds. The queries see those too, and the state takes the new ones up.
    kernel
        ``"auto"`` for the cheapest kernel that can do the call, or a name from :func:`backends`.

    Returns
    -------
    Output and, on request, ``lse``, ``weights``, ``band`` or ``reduced``; see :class:`Attention`. Rows without a
    visible key, and padded rows, are 0 and pass no gradient. With ``state`` the outputs of the new tokens, equal to
    the last rows of a call with the whole sequences.

    Raises
    ------
    ParameterError
        Shapes or arguments do not fit together.
    BackendError
        The kernel that was asked for cannot do the call; lists every reason.

    Notes
    -----
    What lies in padding, NaN included, reaches no output and no gradient. On the CPU a row that sees NaN is NaN, and
    rows that do not see it are as if it were 0. Gradients of ``lse`` need
    ``kernel="plain"`` or ``"reference"``; ``"auto"`` takes care of it. These two have second derivatives; a kernel
    without refuses when one is taken.

    ``need="band"``, ``rows`` and ``reduce`` run the kernel of the output and then form the weights anew, as
    exp(score - lse). They refuse dropout, and have no gradient; ``need="weights"`` of dense attention has one.

    Dropout on the weights is 2 to 12 times slower forward and 1.4 to 6 times forward and backward (CPU, 50 tokens
    or more), and its memory grows with the square of the length.

    References
    ----------
    Vaswani et al. (2017), Attention is all you need, equation 1.

    Examples
    --------
    >>> import torch
    >>> tokens = torch.ones(5, 2, 4)
    >>> seen = attend(tokens, tokens, tokens, layout=Layout.of([3, 2]), causal=True)
    >>> seen.output.shape
    torch.Size([5, 2, 4])
    """
    problem = check_call(
        q,
        k,
        v,
        pattern,
        causal,
        bias,
        lengths,
        layout,
        key_lengths,
        key_layout,
        key_mask,
        scale,
        dropout,
        need,
        rows,
        reduce,
    )
    if state is not None:
        return _stream(problem, state, kernel)
    result = _solve(problem, kernel)
    return result if problem.look is None else weighed(problem, result)


def backends() -> dict[str, Capability]:
    """Return the names of the attention kernels and what each of them can compute.

    Examples
    --------
    >>> sorted(backends())
    ['experts', 'flex', 'groups', 'mixed', 'plain', 'reference', 'sdpa', 'varlen', 'window']
    """
    return {name: kernel.capability for name, kernel in KERNELS.items()}


@dataclass(frozen=True)
class Candidate:
    """A kernel with its expected time in microseconds, or the reasons why it cannot do the call."""

    kernel: str
    cost: float | None
    refusals: tuple[str, ...]

    def __str__(self) -> str:
        if self.refusals:
            return f"{self.kernel}: no, " + "; ".join(self.refusals)
        return f"{self.kernel}: {'yes' if self.cost is None else f'about {_span(self.cost)}'}"


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; print it.

    Parameters
    ----------
    kernel
        The kernel that would run, ``None`` if none can.
    call
        The call in words.
    candidates
        Every kernel, the cheapest first, those that refuse last.
    costs
        Where the costs come from: built in, or measured on this machine by :func:`seqattn.attention.calibrate`.
    """

    kernel: str | None
    call: str
    candidates: tuple[Candidate, ...]
    costs: str = field(default_factory=COSTS.words)

    def __str__(self) -> str:
        lines = [f"{self.call}", f"kernel: {self.kernel or 'none can do this call'}"]
        lines += [f"  {candidate}" for candidate in self.candidates]
        return "\n".join([*lines, f"costs: {self.costs}"])


def explain(
    q: Float[Tensor, "..."] | Sequence[int],
    k: Float[Tensor, "..."] | Sequence[int],
    v: Float[Tensor, "..."] | Sequence[int],
    *,
    pattern: str | Pattern = Dense(),  # noqa: B008 - frozen
    causal: bool = False,
    bias: Bias | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
    layout: Layout | None = None,
    key_lengths: Int[Tensor, " batch"] | None = None,
    key_layout: Layout | None = None,
    key_mask: Bool[Tensor, "batch keys"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    need: str = "output",
    rows: Int[Tensor, "..."] | None = None,
    reduce: Reduce | Sequence[Reduce] | None = None,
    state: KeyValueState | None = None,
    kernel: str = "auto",
    training: bool | None = None,
) -> Explanation:
    """Return which kernel would run a call, and the cost or the reason of refusal of every other one.

    Parameters
    ----------
    q, k, v
        As for :func:`attend`, or their shapes; float32 on the CPU is then assumed.
    pattern, causal, bias, lengths, layout, key_lengths, key_layout, key_mask, scale, dropout
        As for :func:`attend`. ``Routing`` is explained with random labels, as those of its router are not known.
    need, rows, reduce, state, kernel
        As for :func:`attend`.
    training
        Whether gradients are wanted; ``None`` looks at the tensors.

    Returns
    -------
    A printable object. Its costs are estimates for one core, good for comparison only; see :func:`calibrate`.

    Raises
    ------
    ParameterError
        Shapes or arguments do not fit together.

    Examples
    --------
    >>> explain((2, 4, 100, 16), (2, 4, 100, 16), (2, 4, 100, 16), dropout=0.1).kernel
    'plain'
    """
    q, k, v = (x if isinstance(x, Tensor) else torch.empty(1).expand(*x) for x in (q, k, v))
    if q.dim() in (3, 4):
        size = [q.shape[0], *q.shape[2:-1]]
        pattern = supposed(as_pattern(pattern), size, q.shape[1], q.device)
    problem = check_call(
        q,
        k,
        v,
        pattern,
        causal,
        bias,
        lengths,
        layout,
        key_lengths,
        key_layout,
        key_mask,
        scale,
        dropout,
        need,
        rows,
        reduce,
    )
    if training is not None:
        problem = replace(problem, training=training)
    if state is not None:
        reasons = stream_refusals(problem, kernel)
        return Explanation(
            None if reasons else "stream", problem.words(), (Candidate("stream", None, tuple(reasons)),)
        )
    if isinstance(problem.pattern, HeadMix):
        found = [_explained(part, kernel) for part in _by_heads(problem, problem.pattern)]
        names = [one.kernel for one in found]
        joined = None if None in names else " and ".join(dict.fromkeys(map(str, names)))
        text = "\n".join([problem.words(), *(one.call for one in found)])
        return Explanation(joined, text, tuple(candidate for one in found for candidate in one.candidates))
    return _explained(problem, kernel)


def _span(microseconds: float) -> str:
    """Return a time in words, with as many digits as an estimate deserves."""
    sizes = {"s": 1e6, "ms": 1e3, "µs": 1.0}
    unit = next((unit for unit, size in sizes.items() if microseconds >= size), "µs")
    return f"{microseconds / sizes[unit]:,.3g} {unit}"


def _explained(problem: Problem, kernel: str) -> Explanation:
    candidates = [_candidate(one, problem) for one in KERNELS.values()]
    candidates.sort(key=lambda one: math.inf if one.cost is None else one.cost)
    wanted = KERNELS if kernel == "auto" else {_named(kernel).name}
    able = [one.kernel for one in candidates if one.cost is not None and one.kernel in wanted]
    return Explanation(able[0] if able else None, problem.words(), tuple(candidates))


def _by_heads(problem: Problem, pattern: HeadMix) -> list[Problem]:
    """Return one call per part of the heads."""
    groups = problem.q.shape[1] // problem.k.shape[1]
    k, v = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (problem.k, problem.v))
    parts = []
    for heads, part in pattern.slices():
        bias = None if problem.bias is None else problem.bias.of_heads(heads)
        parts.append(
            replace(problem, q=problem.q[:, heads], k=k[:, heads], v=v[:, heads], bias=bias, pattern=part)
        )
    return parts


def _joined(parts: list[Attention]) -> Attention:
    """Return the results of parts of the heads as one."""
    finite = [part.stats["finite"] for part in parts]
    stats = {
        "kernel": " and ".join(dict.fromkeys(part.stats["kernel"] for part in parts)),
        "finite": None if None in finite else all(finite),
        "parts": tuple(part.stats for part in parts),
    }
    lse, weights = ([getattr(part, name) for part in parts] for name in ("lse", "weights"))
    return Attention(
        torch.cat([part.output for part in parts], 1),
        None if weights[0] is None else torch.cat(weights, 1),
        None if lse[0] is None else torch.cat(lse, 1),
        stats,
    )


def _solve(problem: Problem, kernel: str) -> Attention:
    """Return the result of the named or the cheapest kernel, or of one per part of the heads."""
    if isinstance(problem.pattern, HeadMix):
        return _joined([_run(part, _choose(part, kernel)) for part in _by_heads(problem, problem.pattern)])
    return _run(problem, _choose(problem, kernel))


def _run(problem: Problem, kernel: Kernel) -> Attention:
    """Return the result of a kernel, with what is not finite kept to the rows that see it."""
    if problem.look is not None and problem.need == "output":
        problem = replace(problem, need="lse")
    result = kernel.run(problem)
    return isolate(problem, kernel, result) if result.stats["finite"] is False else result


def _stream(problem: Problem, state: KeyValueState, kernel: str) -> Attention:
    """Return attention of new tokens to those of the state and to themselves."""
    reasons = stream_refusals(problem, kernel)
    if reasons:
        raise BackendError(f"A call with state cannot be run: {'; '.join(reasons)}.")
    new = NewTokens.of(problem.k, problem.v, problem.bias, _marks(problem), problem.lengths)
    state.prepare(new, problem.pattern)
    if problem.queries > 1 and not state.count.any():
        result = _solve(centre_bias(problem), "auto")
        state.append(new)
        return replace(result, state=state)
    output = state.attend(problem.q, new, problem.scale)
    return Attention(output, stats={"kernel": "stream", "finite": None}, state=state)


def _marks(problem: Problem) -> Tensor | None:
    """Return the labels of new tokens, ``[rows, labels, new]``."""
    marks = problem.pattern.marks()
    return torch.cat(marks, 1).unflatten(0, (problem.batch, -1)).transpose(1, 2) if marks else None


def _choose(problem: Problem, name: str) -> Kernel:
    """Return the kernel asked for, or the cheapest one that can do the call."""
    if name != "auto":
        kernel = _named(name)
        reasons = kernel.refusals(problem)
        if reasons:
            able = [one.name for one in KERNELS.values() if not one.refusals(problem)]
            raise BackendError(
                f"kernel={name!r} cannot run this call: {'; '.join(reasons)}. "
                f'Use kernel="auto"{"".join(f" or {one!r}" for one in able)}.'
            )
        return kernel
    layout, bias, look = problem.layout, problem.bias, problem.look
    if layout is None or problem.cross or problem.pattern.has_labels:
        return _cheapest(problem)
    sizes = (problem.q.shape[1:], problem.k.shape[1:], problem.v.shape[1:], problem.q.dtype)
    asked = (problem.causal, problem.need, problem.dropout > 0, look is None, problem.training)
    added = () if bias is None else (*bias.kinds, "learnt", *bias.learnt)
    # Layers of one batch make the same call: looking again would take 50 microseconds of each.
    key = ("kernel", problem.pattern, sizes, asked, added, COSTS.is_measured)
    found: Kernel = layout.keep(key, lambda: _cheapest(problem))
    return found


def _cheapest(problem: Problem) -> Kernel:
    """Return the cheapest kernel that can do the call."""
    able = [kernel for kernel in KERNELS.values() if not kernel.refusals(problem)]
    if not able:
        lines = "; ".join(
            f"{kernel.name}: {', '.join(kernel.refusals(problem))}" for kernel in KERNELS.values()
        )
        raise BackendError(f"No attention kernel can run this call ({problem.words()}). {lines}.")
    return min(able, key=lambda kernel: kernel.cost(problem))


def _named(name: str) -> Kernel:
    if name not in KERNELS:
        known = ", ".join(repr(one) for one in ("auto", *KERNELS))
        raise ParameterError(
            f"There is no attention kernel {name!r}. Kernels: {known}.{suggest(name, KERNELS)}"
        )
    return KERNELS[name]


def _candidate(kernel: Kernel, problem: Problem) -> Candidate:
    reasons = tuple(kernel.refusals(problem))
    return Candidate(kernel.name, None if reasons else kernel.cost(problem), reasons)
