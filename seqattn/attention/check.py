"""Turn the arguments of a call into a problem, or say what does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seqattn.attention.biases import Bias, KeyBias, Sizes
from seqattn.attention.kernel import MAX_WEIGHTS, NEEDS, Look, Problem
from seqattn.attention.layout import Layout
from seqattn.attention.named import as_pattern
from seqattn.attention.pattern import HeadMix, Pair, Pattern
from seqattn.attention.patterns import Segments
from seqattn.attention.reducers import Reducer, Summed, WeightBlock
from seqattn.attention.terms import Terms
from seqattn.errors import ParameterError, suggest


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: str | Pattern,
    causal: bool,
    bias: Bias | None,
    lengths: Tensor | None,
    layout: Layout | None,
    key_lengths: Tensor | None,
    key_layout: Layout | None,
    key_mask: Tensor | None,
    scale: float | None,
    dropout: float,
    need: str,
    rows: Tensor | None = None,
    reduce: Any = None,
) -> Problem:
    """Return the checked call; the arguments are those of :func:`seqattn.attention.attend`.

    Raises
    ------
    ParameterError
        Shapes or arguments do not fit together.
    """
    pattern = as_pattern(pattern)
    _check_tensors(q, k, v)
    if layout is None:
        _check_padded(q, k, lengths, key_lengths, key_mask, key_layout)
        aligned = q.shape[2] == k.shape[2] and key_lengths is None
        cross = q.shape[2] != k.shape[2] or key_lengths is not None
        key_lengths = lengths if key_lengths is None else key_lengths
    else:
        cross = key_layout is not None and key_layout is not layout
        key_layout = layout if key_layout is None else key_layout
        _check_packed(q, k, layout, key_layout, (lengths, key_lengths, key_mask))
        aligned = not cross
    if bias is not None:
        _check_bias(bias, q, k, layout, key_layout)
    pattern = pattern.fit([q.shape[0], q.shape[2]] if layout is None else [q.shape[0]], q.shape[1])
    cross = cross or pattern.is_keyed
    _check_key_labels(pattern, k, q.shape[1])
    scale = _check_numbers(scale, dropout, need, q.shape[-1])
    check_promises(pattern, causal, cross)
    tensors = (q, k, v) if bias is None else (q, k, v, *bias.tensors())
    training = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    problem = Problem(
        q,
        k,
        v,
        pattern,
        bool(causal),
        Terms.of(bias),
        layout,
        key_layout,
        lengths,
        key_lengths,
        key_mask,
        scale,
        float(dropout),
        "output" if need == "band" else need,
        aligned,
        cross,
        training,
    )
    problem.look = _look(problem, need, rows, reduce)
    return problem


def check_promises(pattern: Pattern, causal: bool, cross: bool) -> None:
    """Refuse a pattern that has no causal form, or none for other keys than the queries, where that is wanted.

    Parameters
    ----------
    pattern
        The pattern.
    causal, cross
        What is wanted.

    Raises
    ------
    ParameterError
        It has no such form.
    """
    for promise, name, is_wanted in (("causal", "causal=True", causal), ("cross", "other keys", cross)):
        if is_wanted and not getattr(pattern, promise):
            one = _unable(pattern, promise)
            raise ParameterError(f"Pattern {one.name!r} has no meaning with {name}. {one.advice}")


def _unable(pattern: Pattern, promise: str) -> Pattern:
    """Return the part of a pattern that cannot promise it."""
    parts: tuple[Pattern, ...] = ()
    if isinstance(pattern, Pair):
        parts = (pattern.first, pattern.second)
    elif isinstance(pattern, HeadMix):
        parts = tuple(part for _, part in pattern.parts)
    return next((_unable(part, promise) for part in parts if not getattr(part, promise)), pattern)


def _look(
    problem: Problem,
    need: str,
    rows: Tensor | None,
    reduce: Reducer | Callable[[WeightBlock], Tensor] | Sequence[Any] | None,
) -> Look | None:
    """Return what a second look at the weights is to give, or ``None`` for nothing."""
    if need != "band" and rows is None and reduce is None:
        return None
    if problem.dropout > 0:
        raise ParameterError(
            f"need='band', rows= and reduce= do not go with dropout={problem.dropout}: the weights are not those that "
            "mix the values then. Pass dropout=0."
        )
    if rows is not None:
        _check_rows(problem, rows)
    given = tuple(reduce) if isinstance(reduce, Sequence) else () if reduce is None else (reduce,)
    for one in given:
        if not callable(one) and not isinstance(one, Reducer):
            raise TypeError(f"reduce must be a Reducer, a function, or a list of such, got {one!r}.")
    reducers = tuple(one if isinstance(one, Reducer) else Summed(one) for one in given)
    return Look(need == "band", rows, reducers, isinstance(reduce, Sequence))


def _check_rows(problem: Problem, rows: Tensor) -> None:
    if problem.need == "weights":
        raise ParameterError("rows= does not go with need='weights', which gives the weights of all queries.")
    packed = problem.layout is not None
    shapes = ["[rows]"] if packed else ["[rows]", f"[{problem.batch}, rows]"]
    size = problem.q.shape[0] if packed else problem.queries
    fits = rows.dim() == 1 or (not packed and rows.dim() == 2 and rows.shape[0] == problem.batch)
    if not fits or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ParameterError(
            f"rows must be whole numbers of shape {' or '.join(shapes)}, got {rows.dtype} of shape {list(rows.shape)}."
        )
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < size:
        raise ParameterError(
            f"rows must lie between 0 and {size - 1}, got {int(rows.min())} to {int(rows.max())}."
        )
    count = rows.shape[-1] * (1 if packed else problem.batch) * problem.heads * problem.keys
    if count > MAX_WEIGHTS:
        raise ParameterError(
            f"rows asks for {count} weights, more than {MAX_WEIGHTS}. Ask for fewer rows at a time, or for reduce=."
        )


def stream_refusals(problem: Problem, kernel: str) -> list[str]:
    """Return why a call cannot go on from a state; empty if it can."""
    pattern = problem.pattern
    known = {
        "packed input is not supported, rows are [rows, heads, new tokens, dim]": problem.layout is not None,
        "causal=True is needed": not problem.causal,
        "keys of other sequences are not supported": problem.cross,
        "key_mask is not supported": problem.key_mask is not None,
        f"pattern {pattern.name!r} is not supported, it is no mask": not pattern.is_mask,
        "bias kind 'dense' is not supported, its rows and columns are those of one call": problem.bias
        is not None
        and problem.bias.dense is not None,
        f"{problem.q.dtype} is not supported": problem.q.dtype not in (torch.float32, torch.float64),
        f"need={problem.need!r} is not supported": problem.need != "output",
        "need='band', rows= and reduce= are not supported": problem.look is not None,
        "dropout > 0 is not supported": problem.dropout > 0,
        f"kernel={kernel!r} cannot be chosen, states have their own computation": kernel != "auto",
        "there are no gradients through a state, use torch.no_grad()": problem.training,
    }
    return [reason for reason, holds in known.items() if holds]


def centre_bias(problem: Problem) -> Problem:
    """Return the padded call with the largest bias of each row at 0, so that large ones keep their digits."""
    if problem.bias is None or problem.bias.key is None:
        return problem
    values = problem.bias.key.values.to(torch.float64)
    live = values
    if problem.lengths is not None:
        outside = torch.arange(problem.keys, device=values.device) >= problem.lengths[:, None]
        live = values.masked_fill(outside[:, None], -torch.inf)
    top = live.amax(-1, keepdim=True)
    centred = KeyBias(values - top.masked_fill(~top.isfinite(), 0))
    return replace(problem, bias=replace(problem.bias, key=centred))


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check what holds for both layouts."""
    if not q.is_floating_point():
        raise TypeError(f"q, k and v must hold floating point numbers, got {q.dtype}.")
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ParameterError(
            f"q, k and v must be of one type on one device, got {q.dtype} on {q.device}, {k.dtype} on {k.device}, "
            f"{v.dtype} on {v.device}."
        )
    if not (q.dim() == k.dim() == v.dim() and q.dim() in (3, 4)) or 0 in (q.shape[-1], v.shape[-1]):
        raise ParameterError(
            "q, k and v must be [batch, heads, length, dim], or packed [tokens, heads, dim] with a layout, "
            f"{_shapes(q, k, v)}."
        )
    if k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1]:
        raise ParameterError(
            f"k and v must agree in all but the last size, and q and k in the last one, {_shapes(q, k, v)}."
        )
    heads, key_heads = q.shape[1], k.shape[1]
    if heads == 0 or key_heads == 0 or heads % key_heads:
        raise ParameterError(
            f"The number of key heads must divide the number of query heads, {_shapes(q, k, v)}."
        )


def _check_padded(
    q: Tensor,
    k: Tensor,
    lengths: Tensor | None,
    key_lengths: Tensor | None,
    key_mask: Tensor | None,
    key_layout: Layout | None,
) -> None:
    if q.dim() != 4 or key_layout is not None:
        raise ParameterError(
            f"Packed tensors need layout=Layout(offsets, max_len) for the queries, got q {list(q.shape)} and no "
            "layout."
        )
    batch, keys = k.shape[0], k.shape[2]
    if q.shape[0] != batch:
        raise ParameterError(f"q has {q.shape[0]} sequences and k has {batch}. They must be as many.")
    if lengths is not None and key_lengths is None and q.shape[2] != keys:
        raise ParameterError(
            f"lengths without key_lengths say that queries and keys are the same sequences, but there are "
            f"{q.shape[2]} query and {keys} key places. Give key_lengths."
        )
    for name, value, size in (("lengths", lengths, q.shape[2]), ("key_lengths", key_lengths, keys)):
        if value is not None:
            _check_lengths(name, value, batch, size)
    if key_mask is not None and (key_mask.shape != (batch, keys) or key_mask.dtype != torch.bool):
        raise ParameterError(
            f"key_mask must be Boolean of shape [{batch}, {keys}], true for keys that exist, got {key_mask.dtype} of "
            f"shape {list(key_mask.shape)}."
        )


def _check_lengths(name: str, lengths: Tensor, batch: int, size: int) -> None:
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ParameterError(
            f"{name} must be integers of shape [{batch}], got {lengths.dtype} of shape {list(lengths.shape)}."
        )
    # On a GPU the look would wait for it; there, too long means all.
    if batch and lengths.device.type == "cpu":
        low, high = (int(x) for x in lengths.aminmax())
        if low < 0 or high > size:
            raise ParameterError(f"{name} must lie between 0 and {size}, got {low} to {high}.")


def _check_packed(
    q: Tensor, k: Tensor, layout: Layout, key_layout: Layout, padded: tuple[Tensor | None, ...]
) -> None:
    if any(value is not None for value in padded):
        raise ParameterError(
            "lengths, key_lengths and key_mask belong to padded input; with a layout the lengths are known. "
            "Hide single keys with KeyBias(-inf)."
        )
    for name, x, places in (("q", q, layout), ("k", k, key_layout)):
        if x.dim() != 3 or x.shape[0] != places.n_tokens:
            raise ParameterError(
                f"{name} must be packed [tokens, heads, dim] with the {places.n_tokens} tokens of its layout, got "
                f"shape {list(x.shape)}."
            )
        if x.device != places.offsets.device:
            raise ParameterError(f"{name} is on {x.device} and its layout on {places.offsets.device}.")
    if len(layout) != len(key_layout):
        raise ParameterError(f"layout has {len(layout)} sequences and key_layout {len(key_layout)}.")


def _check_bias(bias: Bias, q: Tensor, k: Tensor, layout: Layout | None, key_layout: Layout | None) -> None:
    if not isinstance(bias, Bias):
        raise TypeError(f"bias must be a KeyBias or another bias, got {type(bias).__name__}.")
    if layout is None or key_layout is None:
        sizes = Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2], None, k.device)
    else:
        tokens = (q.shape[0], k.shape[0])
        sizes = Sizes(len(layout), q.shape[1], layout.max_len, key_layout.max_len, tokens, k.device)
    bias.check(sizes)


def _check_key_labels(pattern: Pattern, k: Tensor, heads: int) -> None:
    """Check that labels of keys, one after the other, are as many as the keys."""
    labels = pattern.key_labels if isinstance(pattern, Segments) else None
    tokens = k.shape[0] if k.dim() == 3 else k.shape[0] * k.shape[2]
    if labels is not None and tuple(labels.shape) not in ((tokens,), (tokens, heads)):
        raise ParameterError(
            f"The key_labels of Segments must be one per key, or per key and head, of {tokens} keys and {heads} heads, "
            f"got {list(labels.shape)} after joining batch and length."
        )


def _check_numbers(scale: float | None, dropout: float, need: str, dim: int) -> float:
    """Return the factor of the scores."""
    if scale is None:
        scale = 1 / math.sqrt(dim)
    if not (scale > 0 and math.isfinite(scale)):
        raise ParameterError(f"scale must be above 0 and finite, got {scale!r}.")
    if not 0 <= dropout < 1:
        raise ParameterError(f"dropout must be from 0 to below 1, got {dropout!r}.")
    needs = (*NEEDS, "band")
    if need not in needs:
        known = ", ".join(repr(one) for one in needs)
        raise ParameterError(f"need must be one of {known}, got {need!r}.{suggest(need, needs)}")
    return float(scale)
