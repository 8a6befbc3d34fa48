"""Windows inside segments for GPUs: the arguments of the call are right, whoever computes it.

The step on the device is replaced by a loop over the segments that reads the arguments as torch documents them.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from attention.calls import (
    LAYOUTS,
    PATTERNS,
    VARLEN_PATTERNS,
    checked,
    gradients,
    largest_error,
    sequences,
)
from attention.oracle import VISIBLE, Ragged

from seqattn.attention import Layout, Local, Segments, attend, backends, explain, varlen
from seqattn.attention.packing import run_packed
from seqattn.attention.patterns import by_label, by_label_there
from seqattn.errors import BackendError

TOLERANCE = 1e-10
LENGTHS = (([7, 1, 0, 44], None), ([3], None), ([1, 1], None))


def by_loop(rows):
    """Return what variable-length attention is defined to return: segments one by one, aligned at the last key."""
    outputs, sums = [], []
    left, right = rows.window
    groups = rows.q.shape[1] // rows.k.shape[1]
    for s in range(len(rows.query_offsets) - 1):
        q = rows.q[rows.query_offsets[s] : rows.query_offsets[s + 1]]
        k, v = (
            x[rows.key_offsets[s] : rows.key_offsets[s + 1]].repeat_interleave(groups, 1)
            for x in (rows.k, rows.v)
        )
        assert len(q) <= rows.longest[0]
        assert len(k) <= rows.longest[1]
        i, j = torch.arange(len(q))[:, None] + len(k) - len(q), torch.arange(len(k))
        hidden = ((i - j > left) & (left >= 0)) | ((j - i > right) & (right >= 0))
        scores = (torch.einsum("ihd,jhd->hij", q, k) * rows.scale).masked_fill(hidden, -torch.inf)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v))
        sums.append(scores.logsumexp(-1).T)
    return torch.cat(outputs), torch.cat(sums)


def solved(problem):
    """Return the call with the loop in place of the device."""
    if problem.layout is None:
        return run_packed(problem, solved)
    rows = varlen.prepare(problem)
    found = [by_loop(part) for part in varlen.parted(rows)]
    return varlen.restored(problem, rows, *(torch.cat(part) for part in zip(*found, strict=True)), "varlen")


def agrees(batch, layout, pattern, causal):
    problem = checked(batch, layout, pattern, causal=causal)
    assert varlen.form_refusals(problem) == varlen.size_refusals(problem) == []
    result, expected = solved(problem), batch.expected(causal, pattern)
    found, wanted = sequences(batch, layout, result.output), [output for output, _ in expected]
    assert largest_error(found, wanted) < TOLERANCE
    assert largest_error(gradients(batch, found), gradients(batch, wanted)) < 10 * TOLERANCE
    assert largest_error(sequences(batch, layout, result.lse), [lse for _, lse in expected]) < TOLERANCE


@pytest.mark.parametrize("pattern", VARLEN_PATTERNS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_segments_and_windows_are_those_of_the_definition(layout, causal, pattern):
    for lengths in LENGTHS:
        agrees(Ragged(*lengths, heads=4, key_heads=2, dim=7, value_dim=5), layout, pattern, causal)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_dense_queries_may_see_other_sequences(causal):
    agrees(Ragged([3, 5, 0, 1], [4, 5, 2, 3], heads=2, key_heads=1), "packed", "dense", causal)


@pytest.mark.parametrize("pattern", VISIBLE)
def test_only_plain_windows_are_taken(pattern):
    if pattern == "half and half":
        return
    problem = checked(Ragged([9, 4]), "packed", pattern)
    refused = varlen.form_refusals(problem)
    assert (not refused) == (pattern in VARLEN_PATTERNS)
    assert (problem.pattern.name in backends()["varlen"].patterns) or refused


@pytest.mark.parametrize(
    ("batch", "arguments", "reason"),
    [
        (Ragged([3], [2]), {"causal": True}, "a query sees no key"),
        (Ragged([3, 2], [2, 0]), {}, "a query sees no key"),
        (Ragged([3], [4]), {"pattern": Local(2)}, "windows over keys of another sequence"),
        (Ragged([3], dim=7, value_dim=260), {}, "heads of width 264 are wider than 256"),
    ],
    ids=["more queries", "no keys", "window", "width"],
)
def test_what_the_kernel_does_not_promise_is_refused(batch, arguments, reason):
    problem = checked(batch, "packed", "dense", **arguments)
    (found,) = [*varlen.form_refusals(problem), *varlen.size_refusals(problem)]
    assert reason in found


def test_large_calls_are_cut_between_segments(monkeypatch):
    batch = Ragged([7, 1, 31, 0, 60], dim=7)
    problem = checked(batch, "packed", "dense", causal=True)
    whole = varlen.prepare(problem)
    assert varlen.parted(whole) == [whole]
    monkeypatch.setattr("seqattn.attention.gpu.LAUNCH", 2)
    assert [len(part.query_offsets) - 1 for part in varlen.parted(whole)] == [2, 2, 1]
    agrees(batch, "packed", "segments per head", causal=True)


def test_padding_that_is_not_a_number_reaches_nothing():
    batch = Ragged([5, 3, 1])
    problem = checked(batch, "padded", "local", causal=True)
    wanted = solved(problem).output
    holes = torch.arange(5) >= torch.tensor(batch.queries)[:, None]
    poisoned = replace(
        problem,
        **{
            name: getattr(problem, name).masked_fill(holes[:, None, :, None], torch.nan)
            for name in ("q", "k", "v")
        },
    )
    assert torch.equal(solved(poisoned).output, wanted)


def test_one_order_of_labels_serves_all_layers_of_a_batch():
    layout, labels = Layout.of([6]), torch.tensor([1, 0, 1, 1, 0, 0])
    q = torch.ones(6, 1, 8, dtype=torch.float64)
    pattern = Segments(labels)
    given = {"layout": layout, "q": q, "k": q, "v": q}
    batch = Ragged([6], heads=1, key_heads=1, dim=8)
    first, second = (
        varlen.prepare(checked(batch, "packed", "dense", **given, pattern=pattern)) for _ in range(2)
    )
    assert first.side is second.side
    other = varlen.prepare(checked(batch, "packed", "dense", **given, pattern=Segments(1 - labels)))
    assert other.side is not first.side
    # Routing has other labels in every layer: those of the last one are kept, not all.
    assert len(layout._kept) == 1
    assert torch.equal(other.side.token_of_slot, torch.tensor([0, 2, 3, 1, 4, 5]))


def test_labels_are_sorted_alike_on_every_device():
    draw = torch.Generator().manual_seed(0)
    for size in ((0,), (1,), (300,), (300, 3)):
        layout = Layout.of([size[0] // 3, 0, size[0] - size[0] // 3])
        for labels in (
            torch.randint(-5, 5, size, generator=draw) * 2**40,
            torch.ones(size, dtype=torch.int32),
        ):
            pairs = zip(by_label(layout, labels.numpy()), by_label_there(layout, labels), strict=True)
            assert all(np.array_equal(one, other) for one, other in pairs)


def test_torch_takes_the_arguments_by_these_names():
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    assert {"return_aux", "scale", "window_size", "enable_gqa"} <= set(known)
    assert varlen._missing((9, 0)) == []
    assert varlen._missing((7, 5)) == ["compute capability (7, 5) is below (8, 0)"]


def test_on_the_cpu_the_kernel_is_refused():
    q = torch.zeros(2, 1, 8, dtype=torch.bfloat16)
    with pytest.raises(BackendError, match=r"device 'cpu' is not among \('cuda',\)"):
        attend(q, q, q, layout=Layout.of([2]), kernel="varlen")
    refused = {one.kernel: one.refusals for one in explain(q, q, q, layout=Layout.of([2])).candidates}
    assert refused["varlen"] == refused["flex"] == ("device 'cpu' is not among ('cuda',)",)


def test_patterns_of_the_kernel_are_all_tried():
    named = {PATTERNS[name]([1], 1).name for name in VARLEN_PATTERNS}
    assert named | {"union"} == set(backends()["varlen"].patterns)
