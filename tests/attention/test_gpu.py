"""Calls for GPUs keep to the sizes of launches and indices; all of it is arithmetic, and is checked as such."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attention.calls import checked
from attention.oracle import Ragged

from seqattn.attention import gpu, sdpa


def workspace(sequences, heads, length, width):
    """The bound as it was reported: B * H * ceil(N / 128) * 128 * max(D, 32)."""
    return sequences * heads * -(-length // 128) * 128 * max(width, 32)


@pytest.mark.parametrize("heads", [1, 16, 400])
@pytest.mark.parametrize("length", [1, 128, 129, 5000])
@pytest.mark.parametrize("width", [8, 64, 256])
def test_parts_of_a_batch_fit_a_launch_and_are_as_large_as_they_may_be(heads, length, width):
    rows = 70_000
    parts = gpu.row_chunks(rows, heads, length, width)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == rows
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= 65535
    if workspace(1, heads, length, width) < 2**31:
        assert workspace(max(sizes), heads, length, width) < 2**31
        assert max(sizes) == 65535 or workspace(max(sizes) + 1, heads, length, width) >= 2**31


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("heads", "width"), [(1, 8), (8, 64), (64, 256)])
def test_segments_are_cut_into_parts_that_fit_a_launch(heads, width, seed):
    lengths = np.random.default_rng(seed).integers(0, 400, 200_000)
    parts = gpu.segment_chunks(lengths, heads, width)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == len(lengths)
    for part in parts:
        count = part.stop - part.start
        assert count <= 65535
        assert (lengths[part].sum() + 128 * count) * heads * max(width, 32) <= 2**31


def test_no_segments_are_no_parts():
    assert gpu.segment_chunks(np.zeros(0, np.int64), 1, 8) == []
    assert gpu.row_chunks(0, 1, 1, 8) == []


@pytest.mark.parametrize("keys", [1, 15, 16, 33])
def test_rows_of_a_mask_begin_at_aligned_places(keys):
    mask = torch.randn(3, 1, 5, keys)
    found = gpu.aligned_mask(mask)
    assert torch.equal(found, mask)
    assert [stride % 16 for stride in found.stride()[:-1]] == [0, 0, 0]
    assert found.stride(-1) == 1


def test_widths_on_a_gpu_are_multiples_of_eight():
    for width in range(1, 40):
        assert sdpa.common_width(width, 3, "cpu") == max(width, 3)
        wide = sdpa.common_width(width, 3, "cuda")
        assert wide % 8 == 0
        assert 0 <= wide - max(width, 3) < 8


def test_what_no_fused_kernel_of_a_gpu_does_is_refused():
    plain = checked(Ragged([3], dtype=torch.float32), "padded", "dense")
    assert sdpa.gpu_refusals(plain) == []
    double = checked(Ragged([3]), "padded", "dense", need="lse")
    assert sdpa.gpu_refusals(double) == [
        "need='lse' is available on the CPU only",
        "no fused kernel for torch.float64 on a GPU",
    ]
    wide, long = (torch.zeros(1).expand(1, *size, 64) for size in ((70_000, 2), (16, 2**21)))
    for x, reason in ((wide, "more than 65535 heads"), (long, "too long for 32-bit indices")):
        problem = checked(Ragged([3]), "padded", "dense", q=x, k=x, v=x, lengths=None)
        assert [reason in found for found in sdpa.gpu_refusals(problem)] == [True]
