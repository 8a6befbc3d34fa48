"""Patterns as masks: what short sequences take instead of tiles, because one call with a mask is cheaper there."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor, arange

from seqattn.attention.kernel import Problem
from seqattn.attention.layout import Bucket, Layout
from seqattn.attention.pattern import ranked
from seqattn.attention.patterns import Dense
from seqattn.attention.tiles import Pairs

MASKED = (
    *("dense", "local", "neighborhood", "blocked", "dilated", "prefix", "segments"),
    *("union", "intersection"),
)
"""The patterns that a kernel for rectangles can compute with a mask."""

# Pairs in one mask: 16 MiB in float32, 2048 tokens where all sequences and heads share it.
MAX_MASK = 2**22


def is_masked(problem: Problem) -> bool:
    """Return whether the pattern hides something."""
    return not isinstance(problem.pattern, Dense)


def mask_limits(problem: Problem) -> list[str]:
    """Return why the pattern of a call cannot be a mask; empty if it can.

    Parameters
    ----------
    problem
        The call.
    """
    name = problem.pattern.name
    if not is_masked(problem) or name not in MASKED:
        return []
    if problem.pattern.is_keyed:
        return [f"labels of the keys of {name!r} are not supported in a mask"]
    if problem.q.device.type != "cpu":
        return [f"pattern {name!r} is a mask here, on the CPU only"]
    size = mask_pairs(problem)
    if size <= MAX_MASK:
        return []
    return [f"pattern {name!r} is a mask here, and {size} pairs are more than {MAX_MASK}"]


def mask_pairs(problem: Problem) -> int:
    """Return how many pairs the masks of a call hold; sequences and heads share one unless labels tell them apart."""
    pattern = problem.pattern
    if not pattern.has_labels:
        return problem.queries * problem.keys
    pairs = problem.batch * problem.queries * problem.keys if problem.layout is None else problem.plan().pairs
    return pairs * (problem.heads if pattern.by_head else 1)


def shown(
    problem: Problem, bucket: Bucket | None, key_lengths: Tensor | None
) -> Bool[Tensor, "rows_or_1 heads_or_1 queries keys"]:
    """Return what the pattern shows in one rectangle.

    Parameters
    ----------
    problem
        The call.
    bucket
        The sequences of the rectangle; ``None`` for all of a padded call.
    key_lengths
        Numbers of their keys; ``None`` if they fill the rectangle.
    """
    pattern, device = problem.pattern, problem.q.device
    queries, keys = (problem.queries, problem.keys) if bucket is None else (bucket.queries, bucket.keys)
    i, j = arange(queries, device=device)[:, None], arange(keys, device=device)
    n = keys if key_lengths is None else key_lengths[:, None, None, None]
    if not pattern.has_labels:
        visible: Tensor = pattern.visible(i, j, n)
        return visible if visible.dim() == 4 else visible[None, None]
    # Labels are for queries and keys that are the same tokens.
    layout = problem.layout or Layout.of([queries] * problem.batch)
    first = layout.offsets.long() if bucket is None else layout.offsets[bucket.sequences].long()
    tokens = first[: problem.batch if bucket is None else None, None, None, None] + j
    tokens = tokens.clamp(max=layout.n_tokens - 1)
    head = arange(problem.heads, device=device)[:, None, None]
    pairs = Pairs(i, j, n, tokens.transpose(2, 3), tokens, head)
    found: Tensor = pattern.rule(ranked(pattern, layout)).shows(pairs)
    return found if found.dim() == 4 else found[None, None]
