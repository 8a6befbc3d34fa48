"""The one door: what it refuses and how it says so, which kernel it takes, and what that costs in memory."""

from __future__ import annotations

import inspect

import pytest
import torch
from attention.calls import LAYOUTS, WAYS, call, inputs
from attention.oracle import Ragged
from torch.profiler import profile

from seqattn.attention import Dense, KeyBias, Layout, attend, backends, explain
from seqattn.attention.kernel import MAX_WEIGHTS
from seqattn.errors import BackendError, ParameterError

SHAPE = (2, 4, 100, 16)


def tensors(*shapes):
    return [torch.zeros(shape) for shape in shapes]


# What is wrong with a call of q, k, v of these shapes and arguments, and a part of the message that must name it.
MISTAKES = {
    "two axes": ([(3, 4)] * 3, {}, r"got q \[3, 4\]"),
    "mixed layouts": ([(2, 1, 3, 4), (6, 1, 4), (6, 1, 4)], {}, r"q \[2, 1, 3, 4\], k \[6, 1, 4\]"),
    "no width": ([(2, 1, 3, 0)] * 3, {}, r"got q \[2, 1, 3, 0\]"),
    "widths of q and k": ([(2, 1, 3, 4), (2, 1, 3, 5), (2, 1, 3, 4)], {}, r"k \[2, 1, 3, 5\]"),
    "lengths of k and v": ([(2, 1, 3, 4), (2, 1, 3, 4), (2, 1, 2, 4)], {}, r"v \[2, 1, 2, 4\]"),
    "heads": ([(2, 4, 3, 4), (2, 3, 3, 4), (2, 3, 3, 4)], {}, "must divide"),
    "batch": ([(2, 1, 3, 4), (3, 1, 3, 4), (3, 1, 3, 4)], {}, "q has 2 sequences and k has 3"),
    "packed without layout": ([(6, 1, 4)] * 3, {}, "need layout="),
    "tokens of the layout": ([(6, 1, 4)] * 3, {"layout": Layout.of([3, 2])}, r"5 tokens .* got shape \[6, 1, 4\]"),
    "padded with layout": ([(2, 1, 3, 4)] * 3, {"layout": Layout.of([2])}, r"packed \[tokens, heads, dim\]"),
    "lengths with layout": (
        [(5, 1, 4)] * 3,
        {"layout": Layout.of([3, 2]), "lengths": torch.tensor([3, 2])},
        "belong to padded input",
    ),
    "sequences of the layouts": (
        [(5, 1, 4)] * 3,
        {"layout": Layout.of([3, 2]), "key_layout": Layout.of([5])},
        "layout has 2 sequences and key_layout 1",
    ),
    "key layout alone": ([(2, 1, 3, 4)] * 3, {"key_layout": Layout.of([3, 3])}, "need layout="),
    "lengths of cross attention": (
        [(2, 1, 3, 4), (2, 1, 5, 4), (2, 1, 5, 4)],
        {"lengths": torch.tensor([3, 2])},
        "Give key_lengths",
    ),
    "too long": ([(2, 1, 3, 4)] * 3, {"lengths": torch.tensor([4, 2])}, "between 0 and 3, got 2 to 4"),
    "negative length": ([(2, 1, 3, 4)] * 3, {"lengths": torch.tensor([-1, 2])}, "between 0 and 3"),
    "number of lengths": ([(2, 1, 3, 4)] * 3, {"lengths": torch.tensor([3])}, r"shape \[2\], got .* shape \[1\]"),
    "type of the mask": ([(2, 1, 3, 4)] * 3, {"key_mask": torch.ones(2, 4) > 0}, r"\[2, 3\].* shape \[2, 4\]"),
    "shape of the bias": ([(2, 4, 3, 4)] * 3, {"bias": KeyBias(torch.zeros(2, 2, 3))}, r"\[2, 1, 3\] or \[2, 4, 3\]"),
    "scale": ([SHAPE] * 3, {"scale": 0.0}, "scale must be above 0 and finite, got 0.0"),
    "dropout": ([SHAPE] * 3, {"dropout": 1.0}, "from 0 to below 1, got 1.0"),
    "need": ([SHAPE] * 3, {"need": "weigths"}, "Did you mean 'weights'?"),
    "kernel": ([SHAPE] * 3, {"kernel": "spda"}, "Kernels: 'auto', .*Did you mean 'sdpa'?"),
    "pattern": ([SHAPE] * 3, {"pattern": "dens"}, "'routing'. Did you mean 'dense'?"),
}  # fmt: skip


@pytest.mark.parametrize(("shapes", "arguments", "text"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_with_what_was_given(shapes, arguments, text):
    with pytest.raises(ParameterError, match=text):
        attend(*tensors(*shapes), **arguments)
    with pytest.raises(ParameterError, match=text):
        explain(*tensors(*shapes), **arguments)


def test_mixed_types_are_refused():
    q, k, v = tensors(SHAPE, SHAPE, SHAPE)
    with pytest.raises(
        ParameterError, match="one type on one device, got torch.float32 on cpu, torch.float64"
    ):
        attend(q, k.double(), v)
    with pytest.raises(TypeError):
        attend(q.long(), k.long(), v.long())
    with pytest.raises(TypeError):
        attend(q, k, v, bias=torch.zeros(2, 1, 100))


def test_the_name_of_a_pattern_means_its_default_object():
    batch = Ragged([4, 2])
    named = call(batch, "packed", pattern="dense").output
    assert torch.equal(named, call(batch, "packed", pattern=Dense()).output)
    assert torch.equal(named, call(batch, "packed").output)


def test_the_factor_of_the_scores_is_by_default_one_over_the_root_of_the_width():
    batch = Ragged([4, 2], dim=16, value_dim=16)
    assert torch.equal(call(batch, "packed").output, call(batch, "packed", scale=0.25).output)


# Calls that a kernel cannot do, and the reason that it must give.
REFUSALS = {
    "dropout in the fused kernel": ("sdpa", {"dropout": 0.1}, "leaves the fused path: 2-12 times slower"),
    "weights in the fused kernel": ("sdpa", {"need": "weights"}, "no weights are formed"),
}


@pytest.mark.parametrize(("kernel", "arguments", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_a_kernel_that_cannot_do_a_call_says_why_and_never_does_something_else(kernel, arguments, reason):
    q, k, v = tensors(SHAPE, SHAPE, SHAPE)
    with pytest.raises(BackendError, match=reason) as caught:
        attend(q, k, v, kernel=kernel, **arguments)
    assert "'plain'" in str(caught.value)
    text = str(explain(q, k, v, **arguments))
    assert reason in text
    assert attend(q, k, v, **arguments).stats["kernel"] == explain(q, k, v, **arguments).kernel == "plain"
    assert explain(q, k, v, kernel=kernel, **arguments).kernel is None


def test_all_reasons_are_listed_at_once():
    q, k, v = tensors(SHAPE, SHAPE, SHAPE)
    with pytest.raises(BackendError, match=r"no weights are formed.*; dropout > 0"):
        attend(q, k, v, kernel="sdpa", need="weights", dropout=0.5)


def test_a_gradient_of_the_log_sums_is_never_dropped():
    batch = Ragged([4, 2])
    with pytest.raises(BackendError, match="no gradient of what was asked for"):
        call(batch, "packed", kernel="sdpa", need="lse")
    assert call(batch, "packed", need="lse").lse.requires_grad
    with torch.no_grad():
        assert call(batch, "packed", need="lse").stats["kernel"] == "sdpa"


def test_too_many_weights_are_refused_with_advice():
    length = int(MAX_WEIGHTS**0.5) + 1
    shape = (1, 1, length, 1)
    explained = explain(shape, shape, shape, need="weights")
    reasons = {one.kernel: one.refusals for one in explained.candidates}
    assert "fewer sequences at a time" in reasons["plain"][0]


def test_explain_takes_shapes_and_prints_every_kernel():
    explained = explain(SHAPE, SHAPE, SHAPE, causal=True, training=True)
    lines = str(explained).splitlines()
    assert lines[0] == (
        "padded, 2 sequences of up to 100 tokens, 4 heads of width 16, float32, pattern 'dense', causal, "
        "with gradients, need 'output'"
    )
    assert lines[1] == "kernel: sdpa"
    assert {line.split(":")[0].strip() for line in lines[2:-1]} == set(backends())
    assert lines[-1] == "costs: built in, calibrate() measures them"
    costs = [torch.inf if one.cost is None else one.cost for one in explained.candidates]
    assert costs == sorted(costs)
    refusals = {one.kernel: one.refusals for one in explained.candidates if one.cost is None}
    assert refusals.pop("varlen") == ("device 'cpu' is not among ('cuda',)", "torch.float32 is not supported")
    assert refusals.pop("flex") == ("device 'cpu' is not among ('cuda',)",)
    assert {reasons[0] for reasons in refusals.values()} == {"pattern 'dense' is not supported"}


def test_explain_has_the_arguments_and_defaults_of_attend():
    call, explanation = inspect.signature(attend).parameters, inspect.signature(explain).parameters
    assert list(explanation) == [*call, "training"]
    for name in list(call)[3:]:
        assert call[name].default == explanation[name].default
        assert call[name].annotation == explanation[name].annotation


def test_explain_tells_what_attend_takes():
    cases = [
        ([20, 30], None, {}), ([20, 30], None, {"causal": True}), ([3], None, {"need": "weights"}),
        ([200, 3], [10, 7], {"causal": True}), ([50], None, {"dropout": 0.1}),
    ]  # fmt: skip
    for queries, keys, arguments in cases:
        for layout in LAYOUTS:
            batch = Ragged(queries, keys, bias_heads=1)
            values = inputs(batch, layout)
            with torch.random.fork_rng():
                taken = attend(**values, **arguments).stats["kernel"]
            assert taken == explain(**values, **arguments).kernel


def test_capabilities_are_true_for_the_kernels_that_declare_them():
    for way in WAYS:
        assert set(way.can.needs) >= {"output", "lse"}
        assert way.can.exact
        for need in way.can.needs:
            with torch.no_grad():
                result = call(Ragged([3]), "packed", way=way, need=need)
            assert result.stats["kernel"] == way.kernel


def fused_cases():
    for layout in LAYOUTS:
        for causal in (False, True):
            for bias_heads in (0, 2):
                for widths in ((8, 8), (8, 5), (1, 1)):
                    yield layout, causal, bias_heads, widths, False
    for causal in (False, True):
        yield "padded", causal, 0, (8, 8), True


@pytest.mark.parametrize(("layout", "causal", "bias_heads", "widths", "holes"), list(fused_cases()))
def test_the_fused_call_runs_and_no_unfused_step_does(layout, causal, bias_heads, widths, holes):
    batch = Ragged([40, 7, 33], None, 2, 2, *widths, bias_heads=bias_heads, dtype=torch.float32)
    values = inputs(batch, layout)
    if holes:
        values["key_mask"] = torch.arange(40)[None] % 3 != torch.arange(3)[:, None]
    with profile() as events:
        attend(**values, causal=causal, kernel="sdpa").output.sum().backward()
    names = {event.name for event in events.events()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names
    unfused = {"aten::_softmax", "aten::softmax", "aten::bmm", "aten::_scaled_dot_product_attention_math"}
    assert not names & unfused


MEMORY = """
import resource, sys, torch
from seqattn.attention import KeyBias, Layout, attend

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(length):
    layout = Layout.of([length])
    packed = [torch.randn(length, 1, 32, requires_grad=True) for _ in range(3)]
    padded = [torch.randn(1, 1, length, 32, requires_grad=True) for _ in range(3)]
    lengths, mask = torch.tensor([length - 1]), torch.ones(1, length).bool()
    bias = torch.randn(length, 1, requires_grad=True)
    for inputs, arguments in (
        (packed, dict(layout=layout)),
        (packed, dict(layout=layout, causal=True)),
        (packed, dict(layout=layout, causal=True, bias=KeyBias(bias))),
        (padded, dict(lengths=lengths)),
        (padded, dict(lengths=lengths, causal=True)),
        (padded, dict(key_mask=mask, causal=True)),
    ):
        attend(*inputs, **arguments).output.sum().backward()
        for x in inputs:
            x.grad = None

run(64)
before = peak()
run(8192)
print((peak() - before) / (3 * 8192 * 32 * 4))
"""


@pytest.mark.slow
def test_memory_grows_with_the_length_and_not_with_its_square(run_python):
    """A matrix of scores alone would be 85 times the inputs, which count here: twice, packed and padded."""
    done = run_python(MEMORY)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 8
