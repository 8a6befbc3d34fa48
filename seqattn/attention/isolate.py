"""Keep values that are not finite away from the rows that do not see them.

Weight 0 times NaN is NaN, which passes from keys that a row does not see. And torch's fused kernel gives 0, not NaN, to
a row whose scores are NaN when there are few keys (2.13, CPU). So calls with such inputs take this way.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from seqattn.attention.kernel import Attention, Kernel, Problem
from seqattn.attention.terms import Terms, odd


def isolate(problem: Problem, kernel: Kernel, result: Attention) -> Attention:
    """Run the call with 0 in place of what is not finite, and give NaN to the rows that see such a thing.

    Which rows these are is attention too: to a value that is 1 at those keys and 0 at all others. Where a bias of pairs
    is not finite, it is attention to those pairs only.

    Parameters
    ----------
    problem
        The call.
    kernel
        Runs it, and finds the rows.
    result
        What the kernel made of the call as it is; returned if all inputs are finite after all.
    """
    heads = problem.heads // problem.k.shape[1]
    k, v = (x.repeat_interleave(heads, 1) for x in (problem.k, problem.v))
    bad_queries = ~_finite(problem.q)
    bad_keys = ~(_finite(k) & _finite(v))
    bias, spoils = problem.bias, list[Terms]()
    if bias is not None:
        bad_queries, bad_keys, spoils = *_marked(bias, bad_queries, bad_keys), bias.spoils()
    if not (spoils or bad_queries.any() or bad_keys.any()):
        return replace(result, stats={**result.stats, "finite": True})
    clean = replace(
        problem,
        q=problem.q.masked_fill(bad_queries[..., None], 0),
        k=k.masked_fill(bad_keys[..., None], 0),
        v=v.masked_fill(bad_keys[..., None], 0),
        bias=None if bias is None else bias.filled(),
    )
    with torch.no_grad():
        marks = torch.stack([bad_keys, torch.ones_like(bad_keys)], -1).to(k.dtype)
        flat = problem.q.new_zeros(*problem.q.shape[:-1], 2)
        look = replace(
            clean, q=flat, k=marks * 0, v=marks, dropout=0.0, need="output", training=False,
            bias=None if bias is None else bias.hiding(),
        )  # fmt: skip
        sees_bad, sees_any = (kernel.run(look).output > 0).unbind(-1)
        for spoil in spoils:
            sees_bad = sees_bad | (kernel.run(replace(look, bias=spoil)).output[..., 1] > 0)
    return _spoil(problem, kernel.run(clean), sees_bad | (bad_queries & sees_any))


def _marked(bias: Terms, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the marks of queries and keys together with those of what is added per query and per key."""
    if bias.separable is not None:
        queries = queries | ~_finite(bias.separable.query)
        keys = keys | ~_finite(bias.separable.key)
    return queries, keys if bias.key is None else keys | odd(bias.key.values.detach())


def _finite(x: Tensor) -> Tensor:
    return x.detach().isfinite().all(-1)


def _spoil(problem: Problem, result: Attention, rows: Tensor) -> Attention:
    """Return the result with NaN in these rows of everything."""
    weights = result.weights
    if weights is not None:
        wide = rows
        if problem.layout is not None:
            parts = [part.transpose(0, 1) for part in rows.split(problem.layout.lengths.tolist())]
            wide = torch.stack([F.pad(part, (0, problem.queries - part.shape[1])) for part in parts])
        weights = weights.masked_fill(wide[..., None], torch.nan)
    return Attention(
        result.output.masked_fill(rows[..., None], torch.nan),
        weights,
        None if result.lse is None else result.lse.masked_fill(rows, torch.nan),
        {**result.stats, "finite": False},
    )
