"""Windows are exact wherever their tiles end, and need no more memory than the tokens do."""

from __future__ import annotations

import pytest
import torch
from attention.calls import LAYOUTS, PATTERNS, Way, call, gradients, largest_error, sequences
from attention.oracle import VISIBLE, Ragged

from seqattn.attention import (
    Blocked,
    Dense,
    Dilated,
    HeadMix,
    KeyBias,
    Layout,
    Local,
    Neighborhood,
    Prefix,
    Segments,
    attend,
    explain,
)
from seqattn.attention.pattern import Union
from seqattn.attention.tiles import BLOCK, SMALL_BLOCK
from seqattn.errors import BackendError, ParameterError

TOLERANCE = 1e-10
# Windows of up to as many keys as the smaller tile has queries, and wider ones; each beside the ends of its tiles.
TILED = {
    "local": (2, 3, 4, SMALL_BLOCK - 1, SMALL_BLOCK, SMALL_BLOCK + 1, 2 * SMALL_BLOCK, 2 * SMALL_BLOCK + 1, 101),
    "local and prefix": (1, 2, 3, 65, 3 * SMALL_BLOCK, 3 * SMALL_BLOCK + 1, 0, 67),
    "three parts": (66, 97, 130, 5, 0, 96),
    "wide": (39, 40, 41, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 139),
    "wide and prefix": (2 * BLOCK + 1, 3 * BLOCK, 3 * BLOCK - 1, 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", TILED)
def test_tiles_join_without_a_seam(name, causal):
    for bias_heads in (0, 1):
        batch = Ragged(list(TILED[name]), heads=1, key_heads=1, dim=3, value_dim=2, bias_heads=bias_heads)
        wanted = [output for output, _ in batch.expected(causal, name)]
        grads = gradients(batch, wanted)
        for layout in LAYOUTS:
            result = call(batch, layout, causal=causal, way=Way("window", name))
            found = sequences(batch, layout, result.output)
            assert largest_error(found, wanted) < TOLERANCE
            assert largest_error(gradients(batch, found), grads) < 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", ["local", "wide", "wide and prefix"])
def test_long_prime_lengths_are_right(name, causal):
    batch = Ragged([257, 31, 251], heads=2, key_heads=1, dim=5, value_dim=5, bias_heads=2)
    expected = batch.expected(causal, name)
    result = call(batch, "packed", causal=causal, way=Way("window", name))
    found = sequences(batch, "packed", result.output)
    wanted = [output for output, _ in expected]
    assert largest_error(found, wanted) < TOLERANCE
    assert largest_error(gradients(batch, found), gradients(batch, wanted)) < 10 * TOLERANCE
    with torch.no_grad():
        lse = call(batch, "packed", causal=causal, way=Way("window", name), need="lse").lse
    assert largest_error(sequences(batch, "packed", lse), [one for _, one in expected]) < TOLERANCE


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", ["local", "wide", "wide and prefix", "three parts"])
def test_the_rows_of_a_long_sequence_that_feel_a_key_are_those_that_see_it(name, causal):
    layout = Layout.of([140, 7, 200])
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(347, 1, 4, generator=draw) for _ in range(3))
    way = {
        "layout": layout,
        "pattern": PATTERNS[name]([140, 7, 200], 1),
        "causal": causal,
        "kernel": "window",
    }
    before = attend(q, k, v, **way).output
    for j in (0, 1, 4, 31, 32, 63, 64, 65, 128, 139):
        changed_k, changed_v = k.clone(), v.clone()
        changed_k[j] += 1
        changed_v[j] -= 1
        felt = (attend(q, changed_k, changed_v, **way).output != before).any(-1)[:, 0].tolist()
        assert felt == [
            i < 140 and VISIBLE[name](i, j, 140, 0) and (not causal or j <= i) for i in range(347)
        ]


@pytest.mark.parametrize("poison", [1e4, torch.nan])
@pytest.mark.parametrize("name", ["local", "wide and prefix"])
def test_a_long_prefix_does_not_know_how_the_sequence_goes_on(name, poison):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(260, 2, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(260, 2, generator=draw, dtype=torch.float64)
    way = {"pattern": PATTERNS[name]([260], 2), "causal": True, "kernel": "window"}
    whole = attend(q, k, v, layout=Layout.of([260]), bias=KeyBias(bias), **way).output
    for cut in (1, 32, 63, 64, 65, 97, 129, 200):
        alone = attend(
            q[:cut], k[:cut], v[:cut], layout=Layout.of([cut]), bias=KeyBias(bias[:cut]), **way
        ).output
        assert largest_error([alone], [whole[:cut]]) < 1e-12
        spoilt = [x.index_fill(0, torch.arange(cut, 260), poison) for x in (q, k, v)]
        found = attend(*spoilt, layout=Layout.of([260]), bias=KeyBias(bias), **way).output
        assert largest_error([found[:cut]], [whole[:cut]]) < 1e-12


def test_a_long_sequence_alone_is_what_it_is_in_any_batch():
    lengths = [150, 3, 64, 0, 97, 65, 300]
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 3, 2, 4, generator=draw, dtype=torch.float64) for n in lengths]
    way = {"pattern": Local(20) | Prefix(1), "causal": True, "kernel": "window"}
    together = attend(*torch.cat(parts).unbind(1), layout=Layout.of(lengths), **way).output.split(lengths)
    for part, found in zip(parts, together, strict=True):
        alone = attend(*part.unbind(1), layout=Layout.of([len(part)]), **way).output
        assert largest_error([alone], [found]) < 1e-12


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("length", [1, 50, 150])
def test_a_window_as_long_as_the_sequence_is_dense(length, causal):
    batch = Ragged([length, 3], dim=4, value_dim=4, bias_heads=2)
    dense = call(batch, "packed", causal=causal)
    for pattern in (Local(length + 2, length + 2), Local(length + 1, length + 1) | Prefix(1)):
        found = call(batch, "packed", causal=causal, pattern=pattern, kernel="window")
        assert largest_error([found.output], [dense.output]) < 1e-12


def test_shared_key_heads_and_another_value_width_are_right_in_tiles():
    batch = Ragged([100, 70], heads=4, key_heads=2, dim=5, value_dim=3, bias_heads=4)
    way = {"pattern": Local(6) | Prefix(1), "causal": True}
    found = call(batch, "packed", kernel="window", **way).output
    wanted = call(batch, "packed", kernel="reference", **way).output
    assert largest_error([found], [wanted]) < TOLERANCE
    assert largest_error(gradients(batch, [found]), gradients(batch, [wanted])) < 10 * TOLERANCE


def test_the_window_kernel_is_taken_and_says_what_it_cannot_do():
    shape = (2, 4, 2500, 16)
    pattern = Local(100) | Prefix(1)
    assert explain(shape, shape, shape, pattern=pattern, causal=True, training=True).kernel == "window"
    reasons = {one.kernel: one.refusals for one in explain(shape, shape, shape, pattern=pattern).candidates}
    assert "pattern 'union' is a mask here" in reasons["sdpa"][0]
    assert reasons["sdpa"] == reasons["plain"] == reasons["mixed"]
    q = torch.zeros(shape)
    with pytest.raises(BackendError, match="pattern 'dense' is not supported"):
        attend(q, q, q, kernel="window")
    with pytest.raises(BackendError, match="keys of another sequence are not supported"):
        attend(q[:, :, :9], q, q, pattern=Local(3), kernel="window")
    assert isinstance(pattern, Union)


def test_what_a_pattern_cannot_promise_is_refused():
    q = torch.zeros(1, 1, 9, 4)
    with pytest.raises(ParameterError, match="'neighborhood' has no meaning with causal=True"):
        attend(q, q, q, pattern=Neighborhood(3), causal=True)
    # Of several patterns the one that cannot is named.
    for mixed in (Local(2) | (Dense() & Neighborhood(3)), HeadMix(((1, Neighborhood(3)),))):
        with pytest.raises(
            ParameterError, match=r"'neighborhood' has no meaning with causal=True.*use Local"
        ):
            attend(q, q, q, pattern=mixed, causal=True)
    with pytest.raises(ParameterError, match="'dilated' has no meaning with other keys"):
        attend(q[:, :, :3], q, q, pattern="dilated")
    with pytest.raises(
        ParameterError, match=r"labels of Segments must be of shape \[1, 9\] or \[1, 9, 1\], got \[9\]"
    ):
        attend(q, q, q, pattern=Segments(torch.zeros(9, dtype=torch.int64)))
    with pytest.raises(
        ParameterError, match=r"must be whole numbers, one per token, got torch.float32 of shape \[9\]"
    ):
        Segments(torch.zeros(9))
    with pytest.raises(ParameterError, match="parts of HeadMix have 3 heads, and the call has 1"):
        attend(q, q, q, pattern=HeadMix(((1, Dense()), (2, Local(1)))))
    with pytest.raises(ParameterError, match="a number of heads, 1 or more"):
        HeadMix(((0, Dense()),))
    with pytest.raises(ParameterError, match="size of Neighborhood must be odd, got 4. Try 5"):
        Neighborhood(4)


def test_equal_patterns_give_equal_results():
    """What must not matter does not: one label for all, dilation 1, a union with itself, an intersection with dense."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(150, 2, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    layout = Layout.of([90, 60])
    one = torch.zeros(150, 2, dtype=torch.int64)
    same = [
        (Segments(one), Dense()),
        (Segments(one, window=7), Local(7, 7)),
        (Dilated(9, 4, dilation=1), Local(9, 4)),
        (Local(5, 3) | Local(5, 3), Local(5, 3)),
        (Segments(one, window=7) | Dilated(7, 7, dilation=1), Local(7, 7)),
        (Dense() & Dilated(3, dilation=5), Dilated(3, dilation=5)),
        (Dense() | Dilated(3, dilation=5), Dense()),
        (Blocked(200, 0), Dense()),
        (Neighborhood(201), Dense()),
        (Prefix(100), Dense()),
        (Segments(torch.arange(150)), Local(0)),
        (HeadMix(((1, Local(5)), (1, Local(5)))), Local(5)),
    ]
    for first, second in same:
        for causal in {False, first.causal and second.causal}:
            found, wanted = (
                attend(q, k, v, layout=layout, pattern=one, causal=causal).output for one in (first, second)
            )
            assert largest_error([found], [wanted]) < 1e-12, (first, causal)


def test_bidirectional_segments_do_not_know_the_order_of_their_tokens():
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(80, 2, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    labels, mixed = torch.randint(0, 5, (80,), generator=draw), torch.randperm(80, generator=draw)
    way = {"layout": Layout.of([80])}
    found = attend(q, k, v, pattern=Segments(labels), **way).output[mixed]
    moved = attend(q[mixed], k[mixed], v[mixed], pattern=Segments(labels[mixed]), **way).output
    assert largest_error([found], [moved]) < 1e-12


def test_numbers_of_keys_are_checked():
    with pytest.raises(TypeError):
        Local(3) | "dense"
    for wrong in (-1, True):
        with pytest.raises(ParameterError, match=f"whole number of keys, 0 or more, got {wrong}"):
            Local(wrong)
        with pytest.raises(ParameterError, match="right of Local"):
            Local(3, wrong)
        with pytest.raises(ParameterError, match="n of Prefix"):
            Prefix(wrong)


MEMORY = """
import resource, torch
from seqattn.attention import KeyBias, Layout, Local, Prefix, attend

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(length):
    layout = Layout.of([length])
    q, k, v = (torch.randn(length, 1, 16, requires_grad=True) for _ in range(3))
    bias = KeyBias(torch.randn(length, 1, requires_grad=True))
    for arguments in (dict(causal=True), dict(), dict(causal=True, bias=bias)):
        for pattern in (Local(128), Local(128) | Prefix(1)):
            attend(q, k, v, layout=layout, pattern=pattern, **arguments).output.sum().backward()
            q.grad = k.grad = v.grad = None

run(512)
before = peak()
run(65536)
print((peak() - before) / (3 * 65536 * 16 * 4))
"""


@pytest.mark.slow
def test_memory_grows_with_the_tokens_only(run_python):
    """The inputs count here. One row of scores per token alone would be 1365 times the inputs."""
    done = run_python(MEMORY)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 12
