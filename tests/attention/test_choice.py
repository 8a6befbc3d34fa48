"""Which way short and mixed batches take: the right numbers each way, and the cheaper way by the table of constants."""

from __future__ import annotations

import json

import pytest
import torch
from attention.calls import LAYOUTS, PATTERNS, Way, call, gradients, largest_error, sequences
from attention.oracle import VISIBLE, Ragged
from torch.profiler import profile

from seqattn.attention import KeyBias, Layout, Local, Segments, attend, calibrate, explain
from seqattn.attention.call import KERNELS
from seqattn.attention.costs import COSTS, TABLE, Costs, Key, Rates, Work, load, save
from seqattn.attention.masks import MAX_MASK
from seqattn.errors import BackendError, ParameterError

TOLERANCE = 1e-10
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture
def costs():
    """Give the constants back as they were."""
    yield COSTS
    COSTS.reset()


# Ranks of sorted chunks are no rule for pairs of tokens, and labels of keys have a kernel of their own.
AS_MASKS = [name for name in VISIBLE if not name.startswith(("sorted", "common"))]


@pytest.mark.parametrize("name", AS_MASKS)
@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
def test_every_pattern_can_be_a_mask(name, kernel):
    """In rectangles with padding, with heads that share keys, and for keys of other sequences."""
    way = Way(kernel, name)
    kind = PATTERNS[name]([1], 1)
    for causal, keys in ((kind.causal, None), (False, [4, 2, 6] if kind.cross else None)):
        batch = Ragged([9, 0, 5], keys, heads=2, key_heads=1, dim=3, value_dim=2, bias_heads=2)
        wanted = [output for output, _ in batch.expected(causal, name)]
        for layout in LAYOUTS:
            found = sequences(batch, layout, call(batch, layout, causal=causal, way=way).output)
            assert largest_error(found, wanted) < TOLERANCE
            assert largest_error(gradients(batch, found), gradients(batch, wanted)) < 10 * TOLERANCE


def prices(fused, plain):
    """Return constants with which a pair costs so many nanoseconds, and a rectangle a microsecond."""
    found = {}
    for training in (False, True):
        found[Key("cpu", "sdpa", training)] = Rates(0, 20, 0, fused, 0, 0, 0, 0)
        found[Key("cpu", "plain", training)] = Rates(0, 1, 0, plain, 0, 0, 0, 0)
    return found


@pytest.mark.parametrize("name", ["dense", "local", "segments per head"])
def test_short_rectangles_are_unfused_and_long_ones_fused_in_one_call(name, costs):
    # 19 microseconds less per rectangle, 10 nanoseconds more per pair: the border is at 1900 pairs.
    costs.use(prices(1, 11))
    batch = Ragged([3, 3, 60, 2, 0, 60, 59], heads=2, key_heads=2, dim=4, value_dim=4, bias_heads=2)
    batch = batch if name == "dense" else Ragged([3, 3, 60, 2, 0, 60, 59], heads=2, dim=4, value_dim=4)
    way = Way("mixed", name)
    with profile() as events:
        result = call(batch, "packed", causal=True, way=way)
    names = [event.name for event in events.events()]
    assert names.count(FUSED) >= 1
    assert names.count("aten::bmm") >= 1
    found = sequences(batch, "packed", result.output)
    wanted = [output for output, _ in batch.expected(True, name)]
    assert result.stats["kernel"] == "mixed"
    assert largest_error(found, wanted) < TOLERANCE
    assert largest_error(gradients(batch, found), gradients(batch, wanted)) < 10 * TOLERANCE
    if name == "dense":
        assert call(batch, "packed", causal=True).stats["kernel"] == "mixed"


def test_a_batch_of_one_kind_takes_the_kernel_of_that_kind(costs):
    costs.use(prices(1, 11))
    for lengths, kernel in (([5, 5, 4], "plain"), ([200, 190], "sdpa"), ([5, 5, 300], "mixed")):
        q = torch.zeros(sum(lengths), 1, 4)
        assert explain(q, q, q, layout=Layout.of(lengths)).kernel == kernel
        assert attend(q, q, q, layout=Layout.of(lengths)).stats["kernel"] == kernel


def test_a_batch_without_sequences_does_not_make_the_definition_free():
    shape = (0, 2, 5, 4)
    assert explain(shape, shape, shape).kernel != "reference"
    assert explain(shape, shape, shape, training=True).kernel != "reference"


def test_long_sequences_are_never_computed_with_a_mask():
    length = int(MAX_MASK**0.5) + 1
    q = torch.zeros(1, 1, length, 1)
    with pytest.raises(BackendError, match=f"{length * length} pairs are more than {MAX_MASK}"):
        attend(q, q, q, pattern=Local(3), kernel="sdpa")
    shape = (8, 8, 300, 4)
    labels = torch.zeros(8, 300, 8, dtype=torch.int64)
    found = {
        one.kernel: one.refusals for one in explain(shape, shape, shape, pattern=Segments(labels)).candidates
    }
    assert "a mask" in found["plain"][0]
    assert found["window"] == ()
    assert explain(shape, shape, shape, pattern=Segments(labels[:, :, :1].squeeze(-1))).kernel in KERNELS


def test_a_short_window_is_a_mask_and_a_long_one_tiles():
    for length, kernels in ((64, {"plain", "sdpa"}), (4000, {"window"})):
        shape = (2, 4, length, 32)
        assert explain(shape, shape, shape, pattern=Local(100), causal=True, training=True).kernel in kernels


def test_a_mask_is_kept_for_its_own_pattern_only():
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(12, 1, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    layout = Layout.of([7, 5])
    labels = [torch.tensor([0, 1] * 6), torch.tensor([0, 0, 1] * 4)]
    for _ in range(2):
        for pattern in (Local(1), Local(2), *map(Segments, labels)):
            for causal in (False, True):
                way = {"layout": layout, "pattern": pattern, "causal": causal}
                found, wanted = (attend(q, k, v, kernel=name, **way).output for name in ("sdpa", "reference"))
                assert largest_error([found], [wanted]) < TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_unfused_backward_pass_has_a_derivative_of_its_own(layout):
    draw = torch.Generator().manual_seed(0)
    where = {"layout": Layout.of([3, 2])} if layout == "packed" else {"lengths": torch.tensor([3, 2])}
    size, places = ((5, 1, 2), (5, 1)) if layout == "packed" else ((2, 1, 3, 2), (2, 1, 3))
    tensors = [torch.randn(size, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3)]
    bias = torch.randn(places, generator=draw, dtype=torch.float64).requires_grad_()

    def output(q, k, v, values):
        return attend(q, k, v, bias=KeyBias(values), causal=True, kernel="plain", **where).output

    assert torch.autograd.gradgradcheck(output, [*tensors, bias])
    tensors[1].requires_grad_(False)
    assert torch.autograd.gradgradcheck(output, [*tensors, bias])


def test_a_call_costs_the_sum_of_its_terms():
    rates = Rates(call=1, step=2, matrix=13, pair=3, single=17, feature=5, byte=7, decision=11)
    work = Work(steps=10, matrices=1000, pairs=1000, single=500, width=4, moved=2000, decided=3000)
    assert rates.time(work) == 1 + 20 + 13 + 3 + 8.5 + 20 + 14 + 33
    assert rates.time(work, itemsize=8) == 1 + 20 + 13 + 6 + 8.5 + 40 + 14 + 33
    each = (
        rates.call,
        rates.step,
        rates.matrix,
        rates.pair,
        rates.single,
        rates.feature,
        rates.byte,
        rates.decision,
    )
    assert sum(rate * term for rate, term in zip(each, work.terms(), strict=True)) == rates.time(work)
    fresh = Costs(TABLE)
    assert fresh.rates("cuda", "sdpa", training=True) == TABLE[Key("cpu", "sdpa", True)]
    assert not fresh.is_measured


def test_measured_constants_are_kept_for_this_machine(tmp_path, costs):
    path = tmp_path / "new" / "attention.json"
    table = prices(1, 2)
    assert load(path) is None
    save(path, table)
    assert load(path) == table
    shape = (1, 1, 50, 4)
    assert explain(shape, shape, shape).costs == "built in, calibrate() measures them"
    found = calibrate(path=path)
    assert found.is_loaded
    assert found.rates == table
    assert explain(shape, shape, shape).costs == "measured on this machine"
    assert explain(shape, shape, shape).candidates[0].cost == pytest.approx(1 + 2500 * 2 / 1000)
    other = json.loads(path.read_text())
    other["machine"]["torch"] = "1.0"
    path.write_text(json.dumps(other))
    assert load(path) is None
    path.write_text('{"machine": 3}')
    assert load(path) is None
    path.write_text("no")
    with pytest.raises(ParameterError, match="Remove it and calibrate again"):
        load(path)
    with pytest.raises(ParameterError, match="rounds must be 1 or more, got 0"):
        calibrate(rounds=0)


@pytest.mark.slow
def test_calibration_finds_what_long_calls_cost_and_touches_no_random_state(tmp_path, costs):
    state = torch.random.get_rng_state()
    path = tmp_path / "attention.json"
    found = calibrate(path=path, rounds=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not found.is_loaded
    assert load(path) == dict(found.rates)
    assert len(str(found).splitlines()) == 1 + len(found.rates) == 7
    for (_, kernel, training), rates in found.rates.items():
        assert min(vars(rates).values()) >= 0
        # A pair of width 64 takes from 0.3 to 300 nanoseconds on any machine.
        more = rates.time(Work(0, 0, 2e6, 0, 64, 0)) - rates.time(Work(0, 0, 1e6, 0, 64, 0))
        if kernel != "window":
            assert 3e2 < more < 3e5, (kernel, training)
