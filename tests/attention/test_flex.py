"""FlexAttention for GPUs: blocks, rule and scores are right, whoever computes the call.

The step on the device is replaced by dense scores of the pairs that lie in listed blocks and that the rule shows.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from attention.calls import (
    FLEX_PATTERNS,
    PATTERNS,
    checked,
    gradients,
    largest_error,
    pattern_for,
    sequences,
)
from attention.oracle import Ragged

from seqattn.attention import Layout, Local, Prefix, attend, backends, flex
from seqattn.attention.packing import run_packed
from seqattn.errors import BackendError

TOLERANCE = 1e-10
BATCH = Ragged([7, 1, 0, 140], heads=4, key_heads=2, dim=7, value_dim=5)
# Their blocks are known from places alone, so that none is listed in vain.
EXACT = (
    *("dense", "self", "local", "both sides", "wide", "prefix", "local and prefix", "wide and prefix"),
    *("neighborhood", "wide neighborhood", "blocked", "two prefixes"),
)


def pairs(long, heads):
    """Return the numbers of batch, head, query and key of all pairs, as they are handed to rule and scores."""
    size = long.q.shape[2]
    place = torch.arange(size)
    return torch.tensor(0), torch.arange(heads)[:, None, None], place[:, None], place[None, :]


def listed(long):
    """Return the pairs that lie in listed blocks: ``[heads or 1, length, length]``."""
    return long.mask.to_dense()[0].bool().repeat_interleave(128, 1).repeat_interleave(128, 2)


def densely(long):
    """Return what FlexAttention is defined to return."""
    heads = long.q.shape[1]
    groups = heads // long.k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (long.k, long.v))
    where = pairs(long, heads)
    shown = (long.mask.mask_mod(*where) & listed(long))[None]
    scores = long.q @ k.transpose(2, 3) * long.scale
    if long.score_mod is not None:
        scores = long.score_mod(scores, *where)
    sees = shown.any(-1, keepdim=True)
    scores = scores.masked_fill(~shown & sees, -torch.inf)
    lse = scores.logsumexp(-1).masked_fill(~sees[..., 0], -torch.inf)
    return (scores.softmax(-1) @ v).masked_fill(~sees, 0), lse


def solved(problem):
    """Return the call with dense scores in place of the device."""
    if problem.layout is None:
        return run_packed(problem, solved)
    return flex.restored(problem, *densely(flex.prepare(problem)), "flex")


@pytest.mark.parametrize("pattern", FLEX_PATTERNS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_blocks_rule_and_scores_are_those_of_the_definition(causal, pattern):
    if causal and not PATTERNS[pattern]([1], 1).causal:
        return
    for layout, bias_heads in (("packed", 0), ("padded", 0), ("packed", 4), ("padded", 1)):
        batch = Ragged([7, 1, 0, 30], heads=4, key_heads=2, dim=7, value_dim=5, bias_heads=bias_heads)
        if bias_heads:
            with torch.no_grad():
                batch.leaves["bias"][0][:, 2] = -torch.inf
                batch.leaves["bias"][1][:] = -torch.inf
        problem = checked(batch, layout, pattern, causal=causal)
        assert flex.size_refusals(problem) == []
        result, expected = solved(problem), batch.expected(causal, pattern)
        found, wanted = sequences(batch, layout, result.output), [output for output, _ in expected]
        assert largest_error(found, wanted) < TOLERANCE
        sums = [torch.nan_to_num(x, neginf=-1e3) for x in sequences(batch, layout, result.lse)]
        assert largest_error(sums, [torch.nan_to_num(x, neginf=-1e3) for _, x in expected]) < TOLERANCE
        if not bias_heads:
            assert largest_error(gradients(batch, found), gradients(batch, wanted)) < 10 * TOLERANCE


def test_a_bias_gets_its_gradient():
    batch = Ragged([7, 1, 30], bias_heads=2)
    found = sequences(
        batch, "packed", solved(checked(batch, "packed", "wide and prefix", causal=True)).output
    )
    wanted = [output for output, _ in batch.expected(True, "wide and prefix")]
    assert largest_error(gradients(batch, found), gradients(batch, wanted)) < 10 * TOLERANCE


def shown(pattern, lengths, causal):
    """Return the visible pairs of a packed batch by the pattern's definition: ``[heads, tokens, tokens]``."""
    total, first = sum(lengths), 0
    seen = torch.zeros(2, total, total, dtype=torch.bool)
    for n in lengths:
        place = torch.arange(n)
        part = pattern.of(slice(first, first + n)).visible(place[:, None], place, n)
        part = part & (place <= place[:, None]) if causal else part
        seen[:, first : first + n, first : first + n] = part
        first += n
    return seen


@pytest.mark.parametrize("pattern", FLEX_PATTERNS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_every_visible_pair_lies_in_a_listed_block_and_few_blocks_are_listed_in_vain(causal, pattern):
    """The definition is compared with the oracle, pair by pair, in test_kernels.py."""
    if causal and not PATTERNS[pattern]([1], 1).causal:
        return
    batch = Ragged([300, 5, 0, 400, 70], dim=1, value_dim=1)
    total = sum(batch.queries)
    problem = checked(batch, "packed", pattern, causal=causal)
    long = flex.prepare(problem)
    seen = shown(pattern_for(batch, pattern), batch.queries, causal)
    rule = long.mask.mask_mod(*pairs(long, 2)).expand(2, -1, -1)
    assert torch.equal(rule[:, :total, :total], seen)
    assert not rule[:, total:, :total].any()
    assert not rule[:, :total, total:].any()
    blocks = long.mask.to_dense()[0].bool()
    wide = torch.zeros(2, *long.q.shape[2:3] * 2, dtype=torch.bool)
    wide[:, :total, :total] = seen
    needed = wide.unflatten(1, (-1, 128)).unflatten(3, (-1, 128)).any(4).any(2)
    assert not (needed & ~blocks).any()
    if pattern in EXACT:
        assert not (blocks & ~needed).any()


def test_the_table_of_blocks_of_a_local_pattern_is_a_band():
    layout = Layout.of([65_536])
    found = flex.blocks(Local(128) | Prefix(1), layout, True, 1, 512)[0]
    assert found.sum() == 512 + 511 + 510
    assert found.diagonal().all()
    assert found[:, 0].all()


def test_lengths_are_rounded_to_whole_blocks_and_few_sizes():
    sizes = [flex.rounded(tokens) for tokens in range(1, 40_000)]
    for tokens, size in enumerate(sizes, 1):
        assert size % 128 == 0
        assert tokens <= size <= max(tokens + 127, 1.125 * tokens + 1)
    assert len(set(sizes)) < 60
    # As wide as the compiled kernel takes them: powers of two from 16.
    for width in (1, 16, 17, 256):
        q = torch.zeros(3, 1, width, dtype=torch.float64)
        long = flex.prepare(checked(BATCH, "packed", "dense", q=q, k=q, v=q, layout=Layout.of([3])))
        assert long.q.shape == (1, 1, 128, {1: 16, 16: 16, 17: 32, 256: 256}[width])


def test_what_is_too_large_is_refused():
    wide = torch.zeros(3, 1, 257)
    problem = checked(BATCH, "packed", "dense", q=wide, k=wide, v=wide, layout=Layout.of([3]))
    assert flex.size_refusals(problem) == ["heads of width 257 are wider than 256"]
    long = torch.zeros(1, 1, 8).expand(2**21, 64, 8)
    problem = checked(BATCH, "packed", "dense", q=long, k=long, v=long, layout=Layout.of([2**21]))
    assert [reason.split("; ")[-1] for reason in flex.size_refusals(problem)] == [
        "split the batch",
        "split it",
    ]


@pytest.mark.parametrize("pattern", ["wide and prefix", "segments or prefix", "dilated"])
def test_torch_reads_the_arguments_as_they_are_meant(pattern, monkeypatch):
    """Torch's own dense form of FlexAttention, in float64; it has no backward pass on the CPU."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    batch = Ragged([7, 1, 30], heads=4, key_heads=2, dim=7, value_dim=5, bias_heads=4)
    with torch.no_grad():
        problem = checked(batch, "packed", pattern, causal=True)
        long = flex.prepare(problem)
        found = flex._called(long.q, long.k, long.v, long.score_mod, long.mask, long.scale, False)
    output = sequences(batch, "packed", flex.restored(problem, *found, "flex").output)
    wanted = [output for output, _ in batch.expected(True, pattern)]
    assert largest_error(output, wanted) < TOLERANCE


def test_a_call_that_is_not_compiled_is_an_error_and_not_slow():
    """As after a compilation that failed, when torch runs the function itself."""
    problem = checked(Ragged([3]), "packed", "local")
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        with pytest.raises(BackendError, match="was not compiled"):
            flex._attended(problem, flex.prepare(problem))


def test_on_the_cpu_the_kernel_is_refused():
    q = torch.zeros(2, 1, 8)
    with pytest.raises(BackendError, match=r"device 'cpu' is not among \('cuda',\)"):
        attend(q, q, q, layout=Layout.of([2]), pattern=Local(1), kernel="flex")


def test_patterns_of_the_kernel_are_all_tried():
    assert {PATTERNS[name]([1], 1).name for name in FLEX_PATTERNS} == set(backends()["flex"].patterns)


COMPILED = """
import torch
from torch._dynamo.utils import counters
from seqattn.attention import KeyBias, Layout, Local, Prefix, attend, flex
from seqattn.attention.check import check_call

errors = []
for lengths in ([100, 50], [90, 0, 70], [200]):
    layout = Layout.of(lengths)
    q, k, v = torch.randn(3, layout.n_tokens, 2, 8).unbind()
    given = dict(pattern=Local(20) | Prefix(2), causal=True, layout=layout)
    problem = check_call(q, k, v, given["pattern"], True, None, None, layout, None, None, None, None, 0.0, "output")
    with torch.no_grad():
        found = flex.restored(problem, *flex._attended(problem, flex.prepare(problem)), "flex").output
    errors.append((found - attend(q, k, v, **given, kernel="reference").output).abs().max().item())
assert max(errors) < 1e-5, errors
assert counters["stats"]["unique_graphs"] == 1, counters["stats"]
"""


@pytest.mark.slow
def test_lengths_of_one_size_share_one_compilation(run_python):
    """Without the checks of types, which cannot be compiled. Forward only, as everything compiled on the CPU."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        pytest.skip("no C++ compiler")
    done = run_python(COMPILED)
    assert done.returncode == 0, done.stderr
