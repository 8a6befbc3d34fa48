"""Every kernel computes the definition: values and gradients, in every layout. A kernel is tested by being named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from attention.calls import (
    CAUSAL_WAYS,
    GPU_WAYS,
    LAYOUTS,
    PATTERNS,
    WAYS,
    call,
    gradients,
    inputs,
    largest_error,
    sequences,
)
from attention.oracle import VISIBLE, Ragged

from seqattn.attention import Dense, Dilated, KeyBias, Layout, Local, Segments, attend, backends
from seqattn.attention.named import PATTERNS as NAMED
from seqattn.attention.pattern import Pattern
from seqattn.errors import BackendError, ParameterError

# Sums of up to a few hundred terms of size one, in float64.
TOLERANCE = 1e-10

LENGTHS = {
    "one": ([1], None),
    "two": ([2], None),
    "ragged": ([7, 1, 31], None),
    "equal": ([16, 16], None),
    "falling": ([5, 5, 3, 3, 1], None),
    "empty inside": ([3, 0, 5, 5, 2], None),
    "all empty": ([0, 0], None),
    "no sequence": ([], None),
    "cross": ([3, 5, 0, 5, 2], [4, 1, 2, 0, 2]),
    "one query": ([1, 1, 1], [6, 3, 6]),
    "more queries": ([5, 4], [2, 2]),
    "same size": ([6, 6], [6, 6]),
    "no keys": ([3, 2], [0, 0]),
}
SIZES = [(1, 1, 1, 1), (2, 2, 7, 7), (4, 2, 7, 5), (2, 1, 24, 31), (1, 1, 64, 64)]


def agrees(batch, layout, way, causal=False, tolerance=TOLERANCE, **arguments):
    """Compare output, log-sums and gradients with the definition."""
    if way.refuses(batch, layout, causal=causal):
        return
    expected = batch.expected(causal, way.pattern)
    result = call(batch, layout, causal=causal, way=way, **arguments)
    found = sequences(batch, layout, result.output)
    wanted = [output for output, _ in expected]
    assert largest_error(found, wanted) < tolerance
    assert largest_error(gradients(batch, found), gradients(batch, wanted)) < 10 * tolerance
    with torch.no_grad():
        lse = call(batch, layout, causal=causal, way=way, need="lse", **arguments).lse
    clear = [torch.nan_to_num(x, neginf=-1e3) for x in sequences(batch, layout, lse)]
    assert largest_error(clear, [torch.nan_to_num(x, neginf=-1e3) for _, x in expected]) < tolerance
    assert result.output.dtype == batch.dtype


def kinds(kind):
    """Return all patterns that can be made."""
    below = [one for child in kind.__subclasses__() for one in kinds(child)]
    return below if kind.__abstractmethods__ else [kind, *below]


def test_every_kernel_and_pattern_is_named_here():
    # What is no softmax over visible keys has definitions of its own, see test_experts.py.
    masks = [kind for kind in kinds(Pattern) if kind.is_mask and kind.__module__.startswith("seqattn.")]
    exact = {name for name, can in backends().items() if can.exact}
    assert {way.kernel for way in (*WAYS, *GPU_WAYS)} == exact
    assert {way.kernel for way in GPU_WAYS} == {n for n in exact if backends()[n].devices == ("cuda",)}
    assert {PATTERNS[way.pattern]([1], 1).name for way in WAYS} == {kind.name for kind in masks} - {"routing"}
    # Routing becomes one of the others, see test_routing.py.
    assert set(VISIBLE) == set(PATTERNS) >= set(NAMED) - {"routing"}


@pytest.mark.parametrize("name", VISIBLE)
def test_patterns_show_what_their_definition_shows(name):
    place = torch.arange(60)
    shown = PATTERNS[name]([60], 2).visible(place[:, None], place, 60).expand(2, 60, 60)
    for h in (0, 1):
        wanted = torch.tensor([[VISIBLE[name](i, j, 60, h) for j in range(60)] for i in range(60)])
        assert torch.equal(shown[h], wanted)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_values_and_gradients_are_those_of_the_definition(lengths, causal, way):
    for bias_heads in (0, 1, 4):
        batch = Ragged(*lengths, heads=4, key_heads=2, dim=7, value_dim=5, bias_heads=bias_heads)
        for layout in LAYOUTS:
            agrees(batch, layout, way, causal)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_number_of_heads_and_any_width_is_right(sizes, layout, way):
    heads, key_heads, dim, value_dim = sizes
    for causal, bias_heads in ((False, 0), (True, 0), (True, heads)):
        batch = Ragged([9, 4, 1], None, heads, key_heads, dim, value_dim, bias_heads)
        agrees(batch, layout, way, causal)


@pytest.mark.parametrize("way", CAUSAL_WAYS, ids=str)
@pytest.mark.parametrize("lengths", [([257, 3], None), ([257, 64], [251, 66])], ids=["self", "cross"])
def test_long_prime_lengths_are_right(lengths, way):
    batch = Ragged(*lengths, heads=1, key_heads=1, dim=3, value_dim=3)
    for layout in LAYOUTS:
        agrees(batch, layout, way, causal=True)


@pytest.mark.parametrize("way", CAUSAL_WAYS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str
)
def test_lower_precision_stays_near_the_definition(dtype, tolerance, way):
    # Outputs are of size one: a few units in the last place. Gradients add up more terms.
    if way.can.dtypes is not None and dtype not in way.can.dtypes:
        with pytest.raises(BackendError, match=f"{dtype} is not supported"):
            call(Ragged([3], dtype=dtype), "packed", way=way)
        return
    for bias_heads in (0, 2):
        batch = Ragged([9, 4, 1], dim=8, value_dim=8, dtype=dtype, bias_heads=bias_heads)
        for layout in LAYOUTS:
            agrees(batch, layout, way, causal=True, tolerance=tolerance)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("lengths", [([6, 3, 5], None), ([6, 3, 5], [4, 4, 7])], ids=["self", "cross"])
def test_one_layout_serves_calls_of_every_kind(lengths, way):
    """What a layout keeps for one call must not be taken for another one."""
    layouts = [Layout.of(one or lengths[0]) for one in lengths]
    for dtype, tolerance in ((torch.float64, TOLERANCE), (torch.float32, 1e-5)):
        for heads in (2, 4):
            batch = Ragged(*lengths, heads=heads, dtype=dtype)
            if way.refuses(batch, "packed"):
                continue
            q, k, v = (batch.packed(name) for name in "qkv")
            places = (
                {"layout": layouts[0]}
                if lengths[1] is None
                else dict(zip(("layout", "key_layout"), layouts, strict=True))
            )
            for causal in (False, way in CAUSAL_WAYS, False):
                found = sequences(
                    batch,
                    "packed",
                    attend(q, k, v, **places, causal=causal, **way.arguments(batch, "packed")).output,
                )
                assert (
                    largest_error(found, [output for output, _ in batch.expected(causal, way.pattern)])
                    < tolerance
                )


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_scale_multiplies_the_scores_and_not_the_bias(scale, way):
    batch = Ragged([5, 3], bias_heads=2)
    wanted = [output for output, _ in batch.expected(pattern=way.pattern, scale=scale)]
    for layout in LAYOUTS:
        found = sequences(batch, layout, call(batch, layout, way=way, scale=scale).output)
        assert largest_error(found, wanted) < TOLERANCE


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("bias_heads", [0, 2])
@pytest.mark.parametrize("lengths", [([6, 6, 6], None), ([6, 3, 2], None), ([4, 4, 4], [6, 6, 2])], ids=str)
def test_holes_hide_their_keys_and_rows_without_keys_are_zero(lengths, bias_heads, causal, way):
    batch = Ragged(*lengths, bias_heads=bias_heads)
    holes = torch.tensor([[0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0]], dtype=torch.bool)
    if way.refuses(batch, "padded", causal=causal):
        return
    if not way.can.key_mask:
        with pytest.raises(BackendError, match="key_mask is not supported"):
            attend(**inputs(batch, "padded"), key_mask=holes, **way.arguments(batch, "padded"))
        return
    expected = [output for output, _ in batch.expected(causal, way.pattern, holes=holes)]
    arguments = inputs(batch, "padded", fill=torch.nan)
    hidden = ~holes[:, None, :, None]
    for name in ("k", "v"):
        arguments[name] = arguments[name].masked_fill(hidden, torch.nan)
    found = sequences(
        batch,
        "padded",
        attend(**arguments, key_mask=holes, causal=causal, **way.arguments(batch, "padded")).output,
    )
    assert largest_error(found, expected) < TOLERANCE
    assert largest_error(gradients(batch, found), gradients(batch, expected)) < 10 * TOLERANCE
    assert (found[1] == 0).all()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bias_of_minus_infinity_hides_the_key(layout, causal, way):
    batch = Ragged([5, 3, 1], bias_heads=2)
    if way.refuses(batch, layout, causal=causal):
        return
    with torch.no_grad():
        batch.leaves["bias"][0][
            1, :3
        ] = -torch.inf  # the second head only: its first rows see nothing if causal
        batch.leaves["bias"][1][:] = -torch.inf
    found = sequences(batch, layout, call(batch, layout, causal=causal, way=way).output)
    wanted = [output for output, _ in batch.expected(causal, way.pattern)]
    assert largest_error(found, wanted) < TOLERANCE
    assert (found[1] == 0).all()
    # The oracle's own gradient at -inf is 0 times infinity: rows that see nothing are left out there.
    grads = gradients(batch, found)
    assert all(torch.isfinite(grad).all() for grad in grads)
    for leaves in batch.leaves.values():
        place = next(i for i, leaf in enumerate(batch.all_leaves()) if leaf is leaves[1])
        assert (grads[place] == 0).all()


@pytest.mark.parametrize("way", CAUSAL_WAYS, ids=str)
def test_a_linear_decay_with_age_is_a_key_bias(way):
    """The part of the query's time is constant in a row, so it cancels, in values and in the gradient of the rate."""
    batch = Ragged([6], heads=1, key_heads=1)
    times = torch.tensor([0.0, 0.4, 1.1, 1.2, 3.0, 3.5], dtype=torch.float64)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    q, k, v = (batch.leaves[name][0][0] for name in "qkv")
    scores = q @ k.T * 7**-0.5 - rate * (times[:, None] - times)
    hidden = torch.tensor(
        [[j > i or not VISIBLE[way.pattern](i, j, 6, 0) for j in range(6)] for i in range(6)]
    )
    wanted = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    found = attend(
        q[:, None], k[:, None], v[:, None],
        layout=Layout.of([6]), causal=True, bias=KeyBias((rate * times)[:, None]), **way.arguments(batch, "packed"),
    ).output[:, 0]  # fmt: skip
    assert largest_error([found], [wanted]) < TOLERANCE
    (grad,) = torch.autograd.grad((found * v.detach()).sum(), rate)
    (expected,) = torch.autograd.grad((wanted * v.detach()).sum(), rate)
    assert abs(grad - expected) < TOLERANCE


@pytest.mark.parametrize("way", CAUSAL_WAYS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", [([4, 6, 1], None), ([4, 6, 1], [5, 0, 3]), ([0, 3], [2, 2])], ids=str)
def test_what_is_asked_for_besides_does_not_change_the_output(lengths, layout, way):
    batch = Ragged(*lengths, key_heads=1, bias_heads=2)
    if way.refuses(batch, layout):
        return
    output = call(batch, layout, causal=True, way=way).output
    for need in way.can.needs:
        with torch.no_grad():
            result = call(batch, layout, causal=True, way=way, need=need)
        assert largest_error([result.output], [output]) < 1e-12
        assert (result.weights is not None) == (need == "weights")
        assert (result.lse is None) == (need == "output")


@pytest.mark.parametrize("way", [way for way in WAYS if "weights" in way.can.needs], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", [([4, 6, 1], None), ([4, 6, 1], [5, 0, 3])], ids=["self", "cross"])
def test_weights_are_shares_that_mix_the_values_to_the_output(lengths, layout, way):
    batch = Ragged(*lengths, bias_heads=2)
    if way.refuses(batch, layout, causal=True):
        return
    result = call(batch, layout, causal=True, way=way, need="weights")
    assert result.weights.shape == (3, 2, 6, max(batch.key_lengths))
    lse = sequences(batch, layout, result.lse)
    for b, output in enumerate(sequences(batch, layout, result.output)):
        n, m = batch.queries[b], batch.key_lengths[b]
        weights = result.weights[b, :, :n, :m]
        assert largest_error([weights @ batch.leaves["v"][b]], [output]) < TOLERANCE
        empty = lse[b].isneginf()
        assert largest_error([weights.sum(-1)], [(~empty).double()]) < TOLERANCE
        assert result.weights[b].sum().item() == pytest.approx(weights.sum().item(), abs=1e-12)


def test_log_sums_have_the_gradient_of_the_definition():
    batch = Ragged([4, 3], bias_heads=2)
    wanted = gradients(batch, [lse for _, lse in batch.expected(causal=True)])
    for kernel in ("plain", "reference", "auto"):
        for layout in LAYOUTS:
            found = sequences(batch, layout, call(batch, layout, causal=True, need="lse", kernel=kernel).lse)
            assert largest_error(gradients(batch, found), wanted) < TOLERANCE


@pytest.mark.parametrize("way", [way for way in WAYS if way.can.dropout], ids=str)
def test_dropout_drops_weights_and_raises_the_others(way):
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 40, 8, generator=draw) for _ in range(2))
    v = torch.eye(40).expand(1, 2, 40, 40)  # the output is then the dropped weights
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = attend(q, k, v, dropout=0.25, need="weights", **way.arguments(Ragged([40]), "padded"))
    seen = result.weights > 0
    ratio = result.output[seen] / result.weights[seen]
    kept = ratio > 0.5
    assert torch.allclose(ratio[kept], torch.tensor(1 / 0.75), rtol=1e-4)
    assert (ratio[~kept] == 0).all()
    # Four standard deviations of the share.
    assert kept.double().mean().item() == pytest.approx(0.75, abs=4 * (0.1875 / len(kept)) ** 0.5)


def test_the_plain_kernel_has_a_second_derivative():
    batch = Ragged([3, 2], dim=2, value_dim=2, bias_heads=1)
    tensors = [batch.packed(name).detach().requires_grad_() for name in ("q", "k", "v", "bias")]
    layout = Layout.of([3, 2])

    def output(q, k, v, bias):
        return attend(q, k, v, bias=KeyBias(bias[..., 0]), layout=layout, causal=True, kernel="plain").output

    assert torch.autograd.gradgradcheck(output, tensors)


def test_labels_of_keys_that_do_not_fit_are_refused():
    q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
    one = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ParameterError, match=r"one per key, or per key and head, of 5 keys .*got \[3\]"):
        attend(q, k, k, pattern=Segments(one, key_labels=one))
    with pytest.raises(ParameterError, match="'segments' has no meaning with other keys"):
        attend(q, k, k, pattern=Segments(one))
    with pytest.raises(ParameterError, match="Segments with key_labels has no window"):
        Segments(one, window=2, key_labels=one)
    with pytest.raises(ParameterError, match="'segments' has no meaning with causal=True"):
        attend(q, q, q, pattern=Segments(one, key_labels=one), causal=True)
    each = torch.zeros(1, 3, 2, dtype=torch.int64)
    found = attend(q, k, k, pattern=Segments(one, key_labels=torch.ones(1, 5, dtype=torch.int64)))
    assert (found.output == 0).all()  # no label in common
    with pytest.raises(ParameterError, match="as many axes of both labels"):
        Segments(each, key_labels=one)


def test_common_labels_are_taken_by_their_kernel_and_joined_ones_by_the_reference():
    q, k = torch.zeros(8, 2, 60, 4), torch.zeros(8, 2, 50, 4)
    pattern = Segments(
        torch.zeros(8, 60, dtype=torch.int64), key_labels=torch.zeros(8, 50, dtype=torch.int64)
    )
    assert attend(q, k, k, pattern=pattern).stats["kernel"] == "groups"
    assert attend(q, k, k, pattern=pattern & Local(2, 2)).stats["kernel"] == "reference"


@dataclass(frozen=True)
class Parity(Pattern):
    """Queries see keys whose places are as even or odd as theirs."""

    name = "parity"
    cross = False

    def visible(self, i, j, n=0):
        return (i - j) % 2 == 0

    def runs(self, layout, heads):
        return Dilated(layout.max_len, layout.max_len, dilation=2).runs(layout, heads)


def test_a_pattern_from_outside_is_computed_by_its_runs_and_joined_with_others():
    layout, place = Layout.of([700, 500]), torch.arange(700)
    q, k, v = torch.randn(3, 1200, 2, 4, dtype=torch.float64)
    for pattern in (Parity(), Parity() & Local(9), Dense() & Parity(), Parity() | Local(3)):
        result = attend(q, k, v, pattern=pattern, layout=layout, causal=True)
        assert result.stats["kernel"] != "reference"
        exact = attend(q, k, v, pattern=pattern, layout=layout, causal=True, kernel="reference")
        assert (result.output - exact.output).abs().max() < 1e-12
        assert pattern.visible(place[:, None], place)[5, 3]
    # Without runs there is the definition, and no kernel that would not know what to do.
    free = attend(q, k, v, pattern=Dense() | Local(3), layout=layout, causal=True)
    assert (free.output - attend(q, k, v, layout=layout, causal=True).output).abs().max() < 1e-12
