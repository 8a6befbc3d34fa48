"""Every kernel on a GPU computes the definition, whose values and gradients come from the CPU in float64."""

from __future__ import annotations

import gc

import pytest
import torch
from attention.calls import (
    GPU_WAYS,
    LAYOUTS,
    PATTERNS,
    WAYS,
    Way,
    gradients,
    largest_error,
    sequences,
)
from attention.oracle import VISIBLE, Ragged
from gpu.moved import call, cannot
from torch.profiler import ProfilerActivity, profile

from seqattn.attention import KeyBias, Layout, Local, Prefix, Segments, attend
from seqattn.errors import BackendError

# Relative to the largest number of the reference.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
EVERY_WAY = (*WAYS, *GPU_WAYS, *(Way("auto", pattern) for pattern in VISIBLE))


def close(found, wanted, dtype):
    largest = max((part.abs().max().item() for part in wanted if part.numel()), default=0.0)
    assert largest_error([part.cpu() for part in found], wanted) <= TOLERANCES[dtype] * max(largest, 1.0)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("way", EVERY_WAY, ids=str)
def test_values_and_gradients_are_those_of_the_definition(way, causal, dtype, device):
    batch = Ragged([7, 1, 0, 33], heads=4, key_heads=2, dim=16, value_dim=8)
    if causal and not PATTERNS[way.pattern]([1], 1).causal:
        return
    for layout in LAYOUTS:
        arguments = {"causal": causal, "kernel": way.kernel}
        if way.kernel != "auto" and cannot(way.kernel, device, dtype):
            with pytest.raises(BackendError, match=r"is not among|is not supported"):
                call(batch, layout, way.pattern, device, dtype, **arguments)
            continue
        expected = [output for output, _ in batch.expected(causal, way.pattern)]
        result = call(batch, layout, way.pattern, device, dtype, **arguments)
        assert result.output.device.type == device.type
        assert result.output.dtype == dtype
        found = [part.cpu() for part in sequences(batch, layout, result.output)]
        close(found, expected, dtype)
        close(gradients(batch, found), gradients(batch, expected), dtype)


@pytest.mark.parametrize("kernel", ["sdpa", "plain", "flex", "reference", "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bias_and_its_gradient_are_those_of_the_definition(layout, kernel, device):
    batch = Ragged([7, 1, 33], heads=2, dim=16, value_dim=16, bias_heads=2)
    with torch.no_grad():
        batch.leaves["bias"][1][:] = -torch.inf
    if kernel != "auto" and cannot(kernel, device, torch.float32):
        with pytest.raises(BackendError, match="is not among"):
            call(batch, layout, "dense", device, torch.float32, kernel=kernel)
        return
    result = call(batch, layout, "dense", device, torch.float32, causal=True, kernel=kernel)
    found = [part.cpu() for part in sequences(batch, layout, result.output)]
    close(found, [output for output, _ in batch.expected(True)], torch.float32)
    assert (found[1] == 0).all()
    for leaf, grad in zip(batch.all_leaves(), gradients(batch, found), strict=True):
        assert torch.isfinite(grad).all(), leaf.shape


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda labels: Local(128),
        lambda labels: Local(100) | Prefix(4),
        lambda labels: Segments(labels, window=64),
        lambda labels: Local(300) & Segments(labels),
    ],
    ids=["local", "local and prefix", "routing", "local in segments"],
)
def test_long_batches_agree_with_the_reference_on_the_cpu(make, dtype, device):
    draw = torch.Generator().manual_seed(0)
    lengths, heads = [700, 1, 260], 2
    total = sum(lengths)
    q, k, v, direction = (torch.randn(total, heads, 32, generator=draw) for _ in range(4))
    labels = torch.randint(0, 5, (total, heads), generator=draw)
    results = {}
    places = {"cpu": (torch.device("cpu"), torch.float64, "reference"), "there": (device, dtype, "auto")}
    for name, (place, kind, kernel) in places.items():
        leaves = [x.to(dtype).to(place, kind).requires_grad_() for x in (q, k, v)]
        layout, pattern = Layout.of(lengths, place), make(labels.to(place))
        output = attend(*leaves, pattern=pattern, causal=True, layout=layout, kernel=kernel).output
        grads = torch.autograd.grad(output, leaves, direction.to(place, kind))
        results[name] = [x.detach().cpu().double() for x in (output, *grads)]
    close(results["there"], results["cpu"], dtype)


@pytest.mark.parametrize(
    ("layout", "pattern", "dtype"),
    [
        ("padded", "dense", torch.float32),
        ("packed", "dense", torch.float32),
        ("padded", "dense", torch.bfloat16),
        ("packed", "dense", torch.bfloat16),
        ("packed", "wide", torch.bfloat16),
        ("packed", "segments per head", torch.bfloat16),
    ],
    ids=str,
)
def test_the_fused_path_is_taken_and_the_unfused_is_not(layout, pattern, dtype, device):
    batch = Ragged([64, 64], dim=32, value_dim=32, dtype=torch.float32)
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    call(batch, layout, pattern, device, dtype, causal=True)
    with profile(activities=activities) as seen:
        call(batch, layout, pattern, device, dtype, causal=True)
    names = {event.key for event in seen.key_averages()}
    assert not any("attention_math" in name for name in names)
    if device.type == "cpu" and (dtype, pattern) != (torch.float32, "dense") and pattern != "dense":
        return  # Windows in half precision have no fused kernel on the CPU.
    assert any(
        kind in name
        for name in names
        for kind in ("flash_attention", "efficient_attention", "cudnn_attention")
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("pattern", [Local(128), Local(128) | Prefix(4)], ids=["local", "local and prefix"])
def test_memory_is_linear(pattern, dtype, device):
    if device.type != "cuda":
        pytest.skip("memory is counted on CUDA devices only")
    total = 65_536
    leaves = [torch.randn(total, 1, 16, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    layout = Layout.of([total], device)
    attend(*leaves, pattern=pattern, causal=True, layout=layout).output.sum().backward()
    for leaf in leaves:
        leaf.grad = None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(*leaves, pattern=pattern, causal=True, layout=layout).output.sum().backward()
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    # A dense mask alone would be 4 GiB. Workspaces of the kernels are in float32 and at least 32 wide.
    assert torch.cuda.max_memory_allocated() - before < 12 * size * 4 // leaves[0].element_size()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_sequences_than_a_launch_grid_holds(layout, dtype, device):
    count = 65_537
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 2, 8, generator=draw).to(device, dtype)
    given = {}
    if layout == "packed":
        x, given = x.transpose(1, 2).reshape(-1, 1, 8), {"layout": Layout.of([2] * count, device)}
    found = attend(x, x, x, causal=True, **given).output.view(count, 2, 8)
    rows = x.view(count, 2, 8).double()
    scores = torch.einsum("bid,bjd->bij", rows, rows) * 8**-0.5
    later = torch.tensor([[False, True], [False, False]], device=device)
    wanted = scores.masked_fill(later, -torch.inf).softmax(-1) @ rows
    close([found], [wanted.cpu()], dtype)


def test_labels_are_waited_for_at_most_once_per_batch(device):
    if device.type != "cuda":
        pytest.skip("there is nothing to wait for on the CPU")
    q = torch.randn(200, 2, 16, device=device, dtype=torch.bfloat16)
    layout = Layout.of([120, 80], device)
    pattern = Segments(torch.arange(200, device=device) % 3, window=8)
    # What follows from lengths and labels is made, and copied, once.
    for one in (pattern, Local(8)):
        attend(q, q, q, pattern=one, causal=True, layout=layout)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            attend(q, q, q, pattern=pattern, causal=True, layout=layout)
        attend(q, q, q, pattern=Local(8), causal=True, layout=layout)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_key_bias_in_half_precision_keeps_its_digits(device):
    """Times as large as 1,000 differ by 0.1, which bfloat16 cannot tell apart."""
    times = torch.linspace(1000.0, 1004.0, 41, device=device)[:, None]
    q = torch.zeros(41, 1, 16, device=device, dtype=torch.bfloat16)
    v = torch.eye(41, device=device, dtype=torch.bfloat16)[:, None, :]
    layout = Layout.of([41], device)
    found = attend(q, q, v, bias=KeyBias(times), layout=layout).output[0, 0].double().cpu()
    assert largest_error([found], [times[:, 0].double().softmax(0).cpu()]) < 2e-3
