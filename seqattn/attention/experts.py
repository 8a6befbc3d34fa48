"""The published form of routing: each centroid takes its nearest tokens, and outputs are averaged over centroids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqattn.attention.kernel import Attention, Capability, Kernel, Problem
from seqattn.attention.pattern import Pattern, check_whole
from seqattn.attention.rectangles import all_finite, empty_attention, statistic_dtype
from seqattn.errors import ParameterError

__all__ = ["ExpertChoice", "Experts"]

# Microseconds per call and nanoseconds per (query, key, head) pair and per score, one thread, float32.
CALL_US = 400.0
PAIR_NS = 3.0
SCORE_NS = 20.0
BACKWARD = 3.0


@dataclass(frozen=True, eq=False)
class Experts(Pattern):
    r"""Each cluster takes its highest scoring tokens; a token's output is the mean over the clusters that took it.

    .. math:: o_i = \frac{1}{|C_i|} \sum_{c \in C_i} \sum_{j \in T_c} \mathrm{softmax}_{j \in T_c}(q_i \cdot k_j) v_j

    with :math:`T_c` the ``size`` tokens of the sequence with the highest scores (all of a shorter one) and
    :math:`C_i` the clusters that took token i. A token that none took has output 0. This is no softmax over the
    visible keys, so it has a kernel of its own. A later token can push an earlier one out: the form is not causal.

    Parameters
    ----------
    scores
        ``[tokens, heads, clusters]`` for packed and ``[batch, length, heads, clusters]`` for padded input, such as
        :meth:`seqattn.attention.Router.scores` returns. Padding takes no part.
    size
        Number of tokens that a cluster takes; 1 or more.
    allow_leak
        Whether ``causal=True`` is allowed all the same: keys after the query are then hidden, and later tokens still
        change earlier outputs. For the reproduction of published figures only.

    Raises
    ------
    ParameterError
        The size is below 1.

    References
    ----------
    Roy et al. (2020), Efficient content-based sparse attention with routing transformers, section 4.1.
    """

    scores: Float[Tensor, "..."]
    size: int
    allow_leak: bool = False

    name = "experts"
    cross = False
    has_labels = True
    by_head = True
    is_mask = False
    is_alone = True
    advice = (
        "There a later token can push an earlier one out of its cluster: use mode='token' of Routing, or "
        "allow_leak=True to reproduce published figures."
    )

    def __post_init__(self) -> None:
        check_whole("Experts", "size", self.size, least=1)
        object.__setattr__(self, "causal", self.allow_leak)

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        scores = self.scores.permute(1, 2, 0)
        best = scores.topk(min(self.size, scores.shape[-1])).indices
        taken = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
        i, j = torch.broadcast_tensors(torch.as_tensor(i), torch.as_tensor(j))
        return (taken[..., i] & taken[..., j]).any(1)

    def fit(self, size: Sequence[int], heads: int) -> Experts:
        shape = tuple(self.scores.shape)
        if shape[:-1] != (*size, heads) or not shape[-1]:
            raise ParameterError(
                f"The scores of Experts must be of shape {[*size, heads, 'clusters']}, got {list(shape)}."
            )
        return replace(self, scores=self.scores.flatten(0, len(size) - 1))

    def of(self, tokens: Tensor | slice) -> Experts:
        return replace(self, scores=self.scores[tokens])

    def reach(self, n: int) -> float:
        return min(n, self.size * self.scores.shape[-1])


class ExpertChoice(Kernel):
    """Attention inside the tokens of each cluster, added up and divided; for the pattern ``Experts`` only."""

    name = "experts"
    capability = Capability(
        dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        patterns=("experts",),
        biases=("key",),
        cross=False,
        key_mask=False,
        exact=False,
    )

    def cost(self, problem: Problem) -> float:
        """Return the time of the choice and of the pairs inside the clusters."""
        pattern = _experts(problem)
        clusters = problem.batch * problem.heads * pattern.scores.shape[-1]
        size = min(pattern.size, problem.queries)
        work = clusters * (size * size * PAIR_NS + problem.queries * SCORE_NS) / 1000
        return CALL_US + work * (BACKWARD if problem.training else 1.0)

    def run(self, problem: Problem) -> Attention:
        """Choose the tokens of all clusters, attend among them, and average."""
        if 0 in problem.q.shape or not problem.queries:
            return empty_attention(problem, self.name)
        chosen = _Chosen(problem)
        heads, kind = problem.heads, statistic_dtype(problem.q)
        k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (problem.k, problem.v))
        q, k, v = (chosen.take(x.to(kind)) for x in (problem.q, k, v))
        bias = problem.key_bias
        if bias is not None:
            every = bias.to(kind).expand(bias.shape[0], heads, *bias.shape[2:])
            bias = chosen.take(every[..., None])[..., 0]
        inside = _attention(q * problem.scale, k, v, bias, chosen.live, problem.causal)
        total, counts = chosen.put(inside, problem.q.shape[:-1].numel())
        output = (total / counts.clamp(min=1)[:, None]).view(*problem.q.shape[:-1], -1).to(problem.q.dtype)
        finite = all_finite(problem.q, problem.k, problem.v, problem.key_bias)
        taken = int((counts > 0).sum())
        stats = {
            "kernel": self.name,
            "finite": finite,
            "coverage": taken / max(int(chosen.lengths.sum()) * heads, 1),
            "multiplicity": float(counts.sum()) / max(taken, 1),
        }
        return Attention(output, stats=stats)


class _Chosen:
    """The tokens of each cluster in the order of their places: ``[clusters of all heads and sequences, size]``.

    ``rows`` numbers them among the pairs of token and head as they lie in memory; those that are not ``live`` stand
    for nothing, in sequences with fewer tokens.
    """

    def __init__(self, problem: Problem) -> None:
        pattern, device = _experts(problem), problem.q.device
        batch, heads, longest = problem.batch, problem.heads, problem.queries
        if problem.layout is not None:
            lengths = torch.from_numpy(problem.layout.lengths).to(device)
            first = problem.layout.offsets[:-1].long()
        else:
            full = torch.full((batch,), longest, device=device)
            lengths = full if problem.lengths is None else problem.lengths.long()
            first = torch.arange(batch, device=device) * longest
        self.lengths = lengths
        place = torch.arange(longest, device=device)
        outside = place >= lengths[:, None]
        token = (first[:, None] + place).masked_fill(outside, 0)
        # Padding must lose against every score, so it takes no part in the choice.
        wide = pattern.scores.detach()[token].masked_fill(outside[..., None, None], -torch.inf)
        best = wide.permute(0, 2, 3, 1).topk(min(pattern.size, longest)).indices.sort(-1).values
        self.live = (best < lengths[:, None, None, None]).flatten(0, 2)
        head = torch.arange(heads, device=device)[:, None, None]
        if problem.layout is None:
            rows = (torch.arange(batch, device=device)[:, None, None, None] * heads + head) * longest + best
        else:
            rows = (first[:, None, None, None] + best) * heads + head
        self.rows = rows.flatten(0, 2).masked_fill(~self.live, 0)

    def take(self, x: Tensor) -> Tensor:
        """Return rows ``[clusters, size, dim]`` of ``[batch, heads, length, dim]`` or ``[tokens, heads, dim]``."""
        found = x.reshape(-1, x.shape[-1]).index_select(0, self.rows.flatten())
        return found.view(*self.rows.shape, -1).masked_fill(~self.live[..., None], 0)

    def put(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the sums of rows over the clusters, and over how many each."""
        rows = self.rows.flatten()
        clear = x.masked_fill(~self.live[..., None], 0).flatten(0, 1)
        total = x.new_zeros(count, x.shape[-1]).index_add(0, rows, clear)
        counts = x.new_zeros(count).index_add(0, rows, self.live.flatten().to(x.dtype))
        return total, counts


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, live: Tensor, causal: bool) -> Tensor:
    """Return softmax attention inside each cluster; rows that see no key are 0."""
    scores = q @ k.transpose(1, 2)
    visible = live[:, None]
    if bias is not None:
        silent = bias.isneginf()
        scores = scores + bias.masked_fill(silent, 0)[:, None]
        visible = visible & ~silent[:, None]
    if causal:
        # The tokens of a cluster stand in the order of their places.
        visible = visible & torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril()
    sees = visible.any(-1, keepdim=True)
    weights = scores.masked_fill(~visible & sees, -torch.inf).softmax(-1)
    return weights.masked_fill(~sees, 0) @ v


def _experts(problem: Problem) -> Experts:
    if not isinstance(problem.pattern, Experts):
        raise TypeError(f"This kernel computes Experts, not {problem.pattern.name!r}.")
    return problem.pattern
