"""The border between padded input and kernels that only know packed rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from seqattn.attention.kernel import Attention, Problem
from seqattn.attention.layout import Layout

__all__ = ["run_packed"]


def run_packed(problem: Problem, run: Callable[[Problem], Attention]) -> Attention:
    """Pack the sequences, so that nothing in the padding can pass, and spread the result.

    Parameters
    ----------
    problem
        A padded call, keys and queries of the same sequences. Its lengths are read, once.
    run
        Computes the packed call.
    """
    batch, size, device = problem.batch, problem.queries, problem.q.device
    lengths = [size] * batch if problem.lengths is None else problem.lengths.tolist()
    layout = Layout.of(lengths, device)
    live = torch.arange(size) < torch.from_numpy(layout.lengths)[:, None]
    places = live.flatten().nonzero()[:, 0].to(device)

    def packed(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1).index_select(0, places)

    def spread(x: Tensor, fill: float) -> Tensor:
        wide = x.new_full((batch * size, *x.shape[1:]), fill).index_copy(0, places, x)
        return wide.view(batch, size, *x.shape[1:]).transpose(1, 2)

    bias = None if problem.bias is None else problem.bias.per_token(packed)
    result = run(
        replace(
            problem, q=packed(problem.q), k=packed(problem.k), v=packed(problem.v), bias=bias,
            pattern=problem.pattern.of(places),
            layout=layout, key_layout=layout, lengths=None, key_lengths=None,
        )
    )  # fmt: skip
    lse = None if result.lse is None else spread(result.lse, -torch.inf)
    return Attention(spread(result.output, 0.0), None, lse, result.stats)
