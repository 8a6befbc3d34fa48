"""Biases of every kind are what their formulas say, in every kernel that claims them; others say why not."""

from __future__ import annotations

import pytest
import torch
from attention.biased import BIASES, bias_of
from attention.calls import (
    LAYOUTS,
    Way,
    gradients,
    inputs,
    largest_error,
    pattern_for,
    sequences,
)
from attention.oracle import FIRST, VISIBLE, Biased
from torch.profiler import profile

from seqattn.attention import (
    Dense,
    DenseBias,
    HeadMix,
    KeyBias,
    Layout,
    Local,
    LogPrior,
    Prefix,
    Relative,
    Separable,
    attend,
    backends,
    explain,
)
from seqattn.attention.tiles import SMALL_BLOCK
from seqattn.errors import BackendError, ParameterError

TOLERANCE = 1e-10

KIND = {"prior per key": "key", "prior per pair": "dense"}
# Every kernel is named here; the window with every pattern for one sum of all kinds that it takes.
WAYS = (
    Way("plain", "dense"),
    Way("sdpa", "dense"),
    *(Way("reference", pattern) for pattern in ("dense", "local and prefix", "segments per head")),
    *(Way("window", pattern) for pattern in ("local", "local and prefix", "dilated", "segments per head")),
)
# Labels of the keys are for the kernel that takes keys of other sequences.
KEYED = ("common labels", "common labels per head")
EACH = [(way, bias) for way in WAYS for bias in BIASES]
EACH += [
    (Way("window", pattern), "all but dense")
    for pattern in VISIBLE
    if pattern
    not in ("dense", "half and half", *KEYED, *(way.pattern for way in WAYS if way.kernel == "window"))
]


def kernel_kinds(bias):
    return {KIND.get(kind, kind) for kind in BIASES[bias]}


def is_learnt(way, bias):
    """Whether the kernel has the gradient of all kinds."""
    return kernel_kinds(bias) <= set(backends()[way.kernel].bias_gradients)


def biased(batch, layout, way, fill=0.0, **arguments):
    """Return the result of a call with the biases of a batch."""
    named = {"pattern": pattern_for(batch, way.pattern, layout), "kernel": way.kernel}
    return attend(**inputs(batch, layout, fill), bias=bias_of(batch, layout, fill), **named, **arguments)


def claims(way, bias):
    return kernel_kinds(bias) <= set(backends()[way.kernel].biases)


# Sums of many kinds stand for each of them.
SUMS = [(way, bias) for way, bias in EACH if claims(way, bias) and bias in ("all", "all but dense")]


def test_every_kernel_claims_some_kind_and_every_kind_has_its_kernels():
    # Kernels of one pattern, and those for GPUs, take a bias per key only and have tests of their own.
    others = {name for name, can in backends().items() if can.biases in ((), ("key",))}
    assert {way.kernel for way in WAYS} == set(backends()) - others
    for kind in ("key", "separable", "relative", "dense"):
        assert {"plain", "sdpa", "reference"} <= {
            name for name, can in backends().items() if kind in can.biases
        }


@pytest.mark.parametrize(("way", "bias"), EACH, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_values_and_gradients_are_those_of_the_definition(causal, bias, way):
    lengths = [([6, 0, 3, 3, 1], None), ([3, 5, 0, 2], [4, 2, 2, 0])]
    if way.kernel == "window":
        lengths = [([6, 0, 7], None)]
    for queries, keys in lengths:
        for part_heads in (1, 2):
            batch = Biased(
                queries, keys, key_heads=1, value_dim=5, kinds=BIASES[bias], learnt=is_learnt(way, bias),
                part_heads=part_heads,
            )  # fmt: skip
            for layout in LAYOUTS:
                if not claims(way, bias):
                    with pytest.raises(BackendError, match=r"bias kind '\w+' is not supported"):
                        biased(batch, layout, way)
                    continue
                if way.refuses(batch, layout, causal=causal):
                    continue
                expected = batch.expected(causal, way.pattern)
                wanted = [output for output, _ in expected]
                found = sequences(batch, layout, biased(batch, layout, way, causal=causal).output)
                assert largest_error(found, wanted) < TOLERANCE
                assert largest_error(gradients(batch, found), gradients(batch, wanted)) < 10 * TOLERANCE
                with torch.no_grad():
                    lse = biased(batch, layout, way, causal=causal, need="lse").lse
                sums = [torch.nan_to_num(x, neginf=-1e3) for x in sequences(batch, layout, lse)]
                assert (
                    largest_error(sums, [torch.nan_to_num(x, neginf=-1e3) for _, x in expected]) < TOLERANCE
                )


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("length", [2 * SMALL_BLOCK + 1, 101])
def test_a_table_goes_through_tiles_without_a_seam(length, causal):
    layout, draw = Layout.of([length, 3]), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(length + 3, 2, 3, generator=draw, dtype=torch.float64) for _ in range(3))
    table = torch.randn(2, 9, generator=draw, dtype=torch.float64, requires_grad=True)
    for pattern in (Local(7, 7), Local(4) | Prefix(2)):
        found, wanted = (
            attend(
                q,
                k,
                v,
                layout=layout,
                pattern=pattern,
                causal=causal,
                bias=Relative(table, -4),
                kernel=kernel,
            ).output
            for kernel in ("window", "reference")
        )
        assert largest_error([found], [wanted]) < TOLERANCE
        grads = [torch.autograd.grad((x * v).sum(), table)[0] for x in (found, wanted)]
        assert largest_error(grads[:1], grads[1:]) < 10 * TOLERANCE


@pytest.mark.parametrize(("way", "bias"), SUMS, ids=str)
def test_minus_infinity_hides_and_rows_without_keys_are_zero(way, bias):
    batch = Biased([5, 3], kinds=BIASES[bias], learnt=is_learnt(way, bias))
    if not {"relative", "dense"} & set(batch.kinds) or way.refuses(batch, "packed"):
        return
    with torch.no_grad():
        if "dense" in batch.kinds:
            batch.leaves["dense"][0][0, 1] = -torch.inf  # a row
            batch.leaves["dense"][1][1, :, 2] = -torch.inf  # a key
        if "relative" in batch.kinds:
            batch.leaves["table"][0][0, 1:] = -torch.inf  # a query then sees later keys only
    wanted = [output for output, _ in batch.expected(False, way.pattern)]
    for layout in LAYOUTS:
        found = sequences(batch, layout, biased(batch, layout, way).output)
        assert largest_error(found, wanted) < TOLERANCE
        assert all(torch.isfinite(grad).all() for grad in gradients(batch, found))
        hidden = wanted[0] == 0
        assert hidden.any()
        assert (found[0][hidden] == 0).all()


@pytest.mark.parametrize(("way", "bias"), SUMS, ids=str)
@pytest.mark.parametrize("damage", [torch.nan, torch.inf], ids=str)
def test_rows_that_see_what_is_not_finite_are_nan_and_no_others(damage, way, bias):
    batch = Biased([5, 4], kinds=BIASES[bias], learnt=is_learnt(way, bias))
    if way.refuses(batch, "packed"):
        return
    clean = {layout: sequences(batch, layout, biased(batch, layout, way).output) for layout in LAYOUTS}

    def seen(pairs, h=1):
        return [
            i for i in range(4) if any(VISIBLE[way.pattern](i, j, 4, h) and pairs(i, j) for j in range(4))
        ]

    rows = {
        "key": lambda i, j: j == 2, "c": lambda i, j: j == 2, "key prior": lambda i, j: j == 2,
        "a": lambda i, j: i == 2, "table": lambda i, j: i - j - FIRST == 2,
        "dense": lambda i, j: (i, j) == (2, 1), "pair prior": lambda i, j: (i, j) == (2, 1),
    }  # fmt: skip
    for name in (name for name in rows if name in batch.leaves):
        leaf = batch.leaves[name][0 if name == "table" else 1]
        kept, place = leaf.detach().clone(), (1, 2, 1) if name in ("dense", "pair prior") else (1, 2)
        with torch.no_grad():
            leaf[place] = damage
        for layout in LAYOUTS:
            found = sequences(batch, layout, biased(batch, layout, way).output)
            nan = found[1].isnan().any(-1)
            assert nan.nonzero().tolist() == [[1, i] for i in seen(rows[name])]
            assert largest_error([found[1][~nan]], [clean[layout][1][~nan]]) < 1e-12
            if name != "table":
                assert largest_error(found[:1], clean[layout][:1]) < 1e-12
        with torch.no_grad():
            leaf.copy_(kept)


@pytest.mark.parametrize(("way", "bias"), SUMS, ids=str)
def test_nan_in_padding_changes_no_bit(way, bias):
    batch = Biased([5, 0, 3], kinds=BIASES[bias], learnt=is_learnt(way, bias))
    if way.refuses(batch, "padded"):
        return
    calls = [biased(batch, "padded", way, fill) for fill in (0.0, torch.nan)]
    # The reference looks at all numbers, and then takes the way around those that are not finite.
    assert way.kernel == "reference" or all(call.stats["finite"] for call in calls)
    results = [call.output for call in calls]
    assert torch.equal(*results)
    grads = [gradients(batch, sequences(batch, "padded", result)) for result in results]
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.parametrize(("way", "bias"), SUMS, ids=str)
def test_a_sequence_alone_and_its_prefix_are_what_they_are_in_the_batch(way, bias):
    batch = Biased([7, 2, 9], kinds=BIASES[bias], learnt=False)
    if way.refuses(batch, "packed", causal=True):
        return
    for layout in LAYOUTS:
        together = sequences(batch, layout, biased(batch, layout, way, causal=True).output)
        for b, n in enumerate(batch.queries):
            for length in (n, n // 2):
                single = Biased([length], kinds=BIASES[bias], learnt=False)
                for name, leaves in batch.leaves.items():
                    one = leaves[0] if name == "table" else leaves[b]
                    if name in ("dense", "pair prior"):
                        one = one[:, :length, :length]
                    elif name != "table":
                        one = one[:, :length]
                    single.leaves[name] = [one]
                alone = sequences(single, layout, biased(single, layout, way, causal=True).output)
                assert largest_error(alone, [together[b][:, :length]]) < 1e-12


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float16, 1e-2), (torch.bfloat16, 8e-2)], ids=str
)
@pytest.mark.parametrize("bias", BIASES)
def test_lower_precision_stays_near_the_definition(bias, dtype, tolerance):
    for way in WAYS:
        can = backends()[way.kernel]
        if not claims(way, bias) or (can.dtypes is not None and dtype not in can.dtypes):
            continue
        batch = Biased(
            [9, 4], dtype=dtype, dim=8, value_dim=8, kinds=BIASES[bias], learnt=is_learnt(way, bias)
        )
        found = biased(batch, "packed", way, causal=True).output
        assert found.dtype == dtype
        wanted = [output for output, _ in batch.expected(True, way.pattern)]
        assert largest_error(sequences(batch, "packed", found), wanted) < tolerance


def test_biases_of_one_kind_add_up_whatever_their_heads_and_distances():
    layout, draw = Layout.of([6, 4]), torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    q, k, v = (normal(10, 2, 4) for _ in range(3))
    pairs = [
        (KeyBias(normal(10, 1)), KeyBias(normal(10, 2))),
        (Separable(normal(10, 1, 2), normal(10, 2, 2)), Separable(normal(10, 2, 1), normal(10, 1, 1))),
        (Relative(normal(1, 3), -1), Relative(normal(2, 4), 2)),
        (DenseBias(normal(1, 2, 6, 6)), DenseBias(normal(2, 1, 6, 6))),
    ]
    for first, second in pairs:
        scores = [
            attend(q, k, v, layout=layout, bias=bias, need="weights", kernel="reference")
            for bias in (first, second, first + second)
        ]
        product = scores[0].weights * scores[1].weights
        flat = attend(q, k, v, layout=layout, need="weights", kernel="reference").weights
        product = torch.where(flat > 0, product / flat.clamp(min=1e-300), 0.0)
        product = product / product.sum(-1, keepdim=True).clamp(min=1e-300)
        assert largest_error([scores[2].weights], [product]) < 1e-12
        assert (second + first + first).parts()[1:] == (first, first)


def test_a_prior_multiplies_the_weights():
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    plain = attend(q, k, v, need="weights").weights
    for prior in (
        torch.rand(2, 2, 5, generator=draw).double(),
        torch.rand(1, 2, 5, 5, generator=draw).double(),
    ):
        wide = prior[:, :, None] if prior.dim() == 3 else prior
        wanted = plain * wide
        found = attend(q, k, v, bias=LogPrior(prior), need="weights").weights
        assert largest_error([found], [wanted / wanted.sum(-1, keepdim=True)]) < 1e-12
    dead = attend(q, k, v, bias=LogPrior(torch.zeros(2, 1, 5).double()), need="weights").weights
    assert largest_error([dead], [plain]) < 1e-12  # all at the floor
    with pytest.raises(ParameterError, match="floor of LogPrior must be above 0, got 0"):
        LogPrior(torch.ones(2, 1, 5), floor=0)


def test_waves_and_decays_are_what_they_are_called():
    times = torch.tensor([0.0, 0.3, 1.0, 4.5])
    frequency = torch.tensor([1.0, 7.0], requires_grad=True)
    wave = Separable.wave(times, frequency)
    gap = times[:, None] - times
    for h in (0, 1):
        found = wave.query[:, h] @ wave.key[:, h].T
        assert largest_error([found], [torch.cos(frequency[h] * gap)]) < 1e-5
    padded = Separable.wave(times[None], frequency)
    assert torch.equal(padded.query[0].transpose(0, 1), wave.query)
    far = Separable.wave(times.double() + 1e9, frequency.detach().double())
    assert largest_error([far.query[:, 1] @ far.key[:, 1].T], [torch.cos(7 * gap)]) < 1e-5
    # A rate per query: what is constant in a row cancels.
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 1, 3, generator=draw) for _ in range(3))
    rate = torch.rand(4, 1, generator=draw)
    decay = Separable(rate[..., None], times[:, None, None])
    found = attend(q, k, v, layout=Layout.of([4]), causal=True, bias=decay).output
    full = DenseBias((-rate * gap)[None, None])
    wanted = attend(q, k, v, layout=Layout.of([4]), causal=True, bias=full, kernel="reference").output
    assert largest_error([found], [wanted]) < 1e-6


def test_parts_of_the_heads_get_their_part_of_every_bias():
    batch = Biased([6, 3], heads=3, key_heads=1, kinds=BIASES["all but dense"], part_heads=3)
    mixed = HeadMix(((1, Dense()), (2, Local(3))))
    for layout in LAYOUTS:
        bias = bias_of(batch, layout)
        values = inputs(batch, layout)
        found = attend(**values, bias=bias, pattern=mixed, causal=True).output
        for heads, pattern in mixed.slices():
            whole = attend(**values, bias=bias, pattern=pattern, causal=True, kernel="reference").output
            assert largest_error([found[:, heads]], [whole[:, heads]]) < TOLERANCE


WRONG = {
    "rank of the parts": (Separable(torch.zeros(2, 1, 5, 2), torch.zeros(2, 1, 5, 3)), r"key of Separable .*got .*3\]"),
    "queries of separable": (Separable(torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 5, 2)), "query of Separable"),
    "no rank": (Separable(torch.zeros(2, 1, 5, 0), torch.zeros(2, 1, 5, 0)), "one number per token or more"),
    "heads of the table": (Relative(torch.zeros(3, 4)), r"\[1, 4\] or \[2, 4\] on cpu, got .*\[3, 4\]"),
    "empty table": (Relative(torch.zeros(2, 0)), "one distance or more"),
    "first": (Relative(torch.zeros(2, 2), True), "first of Relative must be a whole number of tokens, got True"),
    "pairs": (DenseBias(torch.zeros(2, 2, 5, 4)), r"values of DenseBias .*\[1, 1, 5, 5\].*got .*\[2, 2, 5, 4\]"),
    "prior": (LogPrior(torch.ones(2, 5)), r"prior of LogPrior .*\[2, 1, 5\]"),
    "inside a sum": (KeyBias(torch.zeros(2, 1, 5)) + Relative(torch.zeros(3, 4)), "table of Relative"),
}  # fmt: skip


@pytest.mark.parametrize(("bias", "text"), WRONG.values(), ids=WRONG)
def test_biases_that_do_not_fit_are_named_with_what_was_given(bias, text):
    q = torch.zeros(2, 2, 5, 4)
    with pytest.raises(ParameterError, match=text):
        attend(q, q, q, bias=bias)
    with pytest.raises(TypeError):
        bias + 1


def test_a_learnt_bias_of_pairs_leaves_the_fused_kernel_and_the_explanation_says_so():
    shape = (2, 2, 5, 4)
    q = torch.zeros(shape)
    for bias in (DenseBias(torch.zeros(1, 1, 5, 5)), Relative(torch.zeros(2, 3))):
        constant = explain(q, q, q, bias=bias)
        assert "sdpa" in {one.kernel for one in constant.candidates if one.cost is not None}
        (numbers,) = bias.tensors()
        numbers.requires_grad_()
        learnt = explain(q, q, q, bias=bias)
        assert learnt.kernel == "plain"
        assert f"bias kind {bias.kind!r} that is learnt leaves the fused path: about" in str(learnt)
        with pytest.raises(BackendError, match="that is learnt leaves the fused path"):
            attend(q, q, q, bias=bias, kernel="sdpa")
        with torch.no_grad():
            attend(q, q, q, bias=bias, kernel="sdpa")


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("kernel", "bias"),
    [("sdpa", "all of tokens"), ("sdpa", "separable"), ("sdpa", "all"), ("window", "all but dense")],
)
def test_the_fused_call_runs_and_no_unfused_step_does(kernel, bias, causal):
    batch = Biased([40, 7], kinds=BIASES[bias], learnt=False, dtype=torch.float32)
    way = Way(kernel, "dense" if kernel == "sdpa" else "local")
    for layout in LAYOUTS:
        arguments = {"pattern": pattern_for(batch, way.pattern, layout), "kernel": kernel, "causal": causal}
        values, added = inputs(batch, layout), bias_of(batch, layout)
        with profile() as events:
            attend(**values, bias=added, **arguments).output.sum().backward()
        names = {event.name for event in events.events()}
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
        assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names
        assert not names & {"aten::_softmax", "aten::softmax", "aten::bmm", "aten::matmul"}


MEMORY = """
import resource, torch
from seqattn.attention import Layout, Local, Relative, Separable, attend

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(length):
    layout = Layout.of([length])
    q, k, v = (torch.randn(length, 1, 16, requires_grad=True) for _ in range(3))
    features = Separable(*(torch.randn(length, 1, 2, requires_grad=True) for _ in range(2)))
    table = torch.randn(1, 129, requires_grad=True)
    for bias in (Relative(table.detach()), Relative(table), features + Relative(table)):
        attend(q, k, v, layout=layout, pattern=Local(128), causal=True, bias=bias).output.sum().backward()
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
    assert float(done.stdout) < 14


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("bias", ["separable", "relative", "dense", "all", "all but dense"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_look_weighs_with_every_bias(layout, bias, causal):
    for part_heads in (1, 2):
        batch = Biased([6, 2, 3], None, kinds=BIASES[bias], part_heads=part_heads)
        dense = biased(batch, layout, Way("reference", "dense"), causal=causal, need="weights").weights
        queries = torch.arange(11 if layout == "packed" else 6)
        rows = biased(batch, layout, Way("plain", "dense"), causal=causal, rows=queries).weights
        if layout == "packed":
            rows = torch.stack(
                [
                    torch.nn.functional.pad(x.transpose(0, 1), (0, 0, 0, 6 - len(x)))
                    for x in rows.split([6, 2, 3])
                ]
            )
        assert (rows - dense).abs().amax() < TOLERANCE
