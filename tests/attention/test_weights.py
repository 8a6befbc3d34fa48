"""Weights in every form that can be asked for are those of the definition, and asking changes nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from attention.calls import LAYOUTS, PATTERNS, inputs, largest_error, pattern_for, sequences
from attention.oracle import VISIBLE, Ragged

from seqattn.attention import (
    Dense,
    Entropy,
    HeadMix,
    KeyBias,
    KeyValueState,
    LagHistogram,
    Layout,
    Local,
    MeanLag,
    Prefix,
    ReceivedMass,
    TypeInfluence,
    attend,
    explain,
    sights,
    weighing,
)
from seqattn.attention.kernel import MAX_WEIGHTS
from seqattn.errors import BackendError, ParameterError

TOLERANCE = 1e-10
# Blocks of 64 queries have seams in the second; the third asks for other keys, which not every pattern can have.
BATCHES = {
    "short": ([7, 1, 0, 31], None),
    "long": ([150, 3, 66], None),
    "cross": ([3, 5, 0, 5, 70], [4, 1, 2, 0, 90]),
}


def made(lengths, name, layout, causal, bias_heads=2):
    """Return a batch and the arguments for it, or ``None`` where the pattern has no such call."""
    batch = Ragged(*lengths, heads=2, key_heads=1, dim=3, value_dim=4, bias_heads=bias_heads)
    kind = PATTERNS[name]([1], 1)
    if (causal and not kind.causal) or (batch.keys is not None and not kind.cross):
        return None
    return batch, {
        **inputs(batch, layout),
        "pattern": pattern_for(batch, name, layout),
        "causal": causal,
    }


def defined(batch, name, causal, holes=None):
    """Return the weights of every sequence by the definition, ``[heads, queries, keys]``, and what is visible."""
    found = []
    for b, (n, m) in enumerate(zip(batch.queries, batch.key_lengths, strict=True)):
        q, k = (batch.leaves[one][b].detach() for one in "qk")
        bias = batch.leaves["bias"][b].detach()[..., 0] if batch.bias_heads else q.new_zeros(1, m)
        i, j = torch.arange(n)[:, None], torch.arange(m)
        # Of the definition itself test_kernels.py makes sure.
        keys = ([m],) if name.startswith("common") else ()
        seen = PATTERNS[name]([n], batch.heads, *keys).visible(i, j, m).expand(batch.heads, n, m)
        if causal:
            seen = seen & (j <= i + m - n)
        if holes is not None:
            seen = seen & holes[b, :m]
        scores = (q @ k.mT) * batch.dim**-0.5 + bias[:, None]
        weights = torch.where(seen, scores, -torch.inf).softmax(-1)
        found.append((torch.where(seen, weights, 0), seen))
    return found


def by_sequence(batch, layout, dense):
    """Return dense weights without their padding."""
    return [
        dense[b, :, :n, :m] for b, (n, m) in enumerate(zip(batch.queries, batch.key_lengths, strict=True))
    ]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", VISIBLE)
def test_the_band_is_what_the_definition_shows(name, lengths, layout, causal):
    case = made(lengths, name, layout, causal)
    if case is None:
        return
    batch, arguments = case
    expected = defined(batch, name, causal)
    result = attend(**arguments, need="band")
    band = result.band
    assert (result.output - attend(**arguments).output).abs().sum() < TOLERANCE
    assert largest_error(by_sequence(batch, layout, band.dense()), [w for w, _ in expected]) < TOLERANCE
    # No column is wasted, keys are in their order, and every visible key is there once.
    assert band.values.shape[-1] == max(
        (int(seen.sum(-1).max()) for _, seen in expected if seen.numel()), default=0
    )
    first = [0] * len(batch.queries)
    if layout == "packed":
        first = Layout.of(batch.key_lengths).offsets[:-1].tolist()
    for b, keys in enumerate(sequences(batch, layout, band.keys)):
        for h in range(2):
            for i, row in enumerate(keys[min(h, len(keys) - 1)].tolist()):
                wanted = [j + first[b] for j in expected[b][1][h, i].nonzero()[:, 0].tolist()]
                assert row == wanted + [-1] * (len(row) - len(wanted))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", VISIBLE)
def test_rows_are_those_of_the_definition(name, lengths, layout, causal):
    case = made(lengths, name, layout, causal)
    if case is None:
        return
    batch, arguments = case
    expected = [w for w, _ in defined(batch, name, causal)]
    if layout == "packed":
        size = max(batch.key_lengths)
        every = torch.cat([torch.nn.functional.pad(w, (0, size - w.shape[-1])) for w in expected], 1)
        rows = torch.tensor([0, len(batch.packed("q")) - 1, 5, 5, 2])
        found, wanted = attend(**arguments, rows=rows), every[:, rows].transpose(0, 1)
        assert largest_error([found.weights], [wanted]) < TOLERANCE
    else:
        rows = torch.tensor([4, 0, 4, max(batch.queries) - 1])
        found = attend(**arguments, rows=rows)
        for b, w in enumerate(expected):
            for place, i in enumerate(rows.tolist()):
                row = found.weights[b, :, place, : w.shape[-1]]
                wanted = w[:, i] if i < w.shape[1] else torch.zeros_like(row)
                assert largest_error([row], [wanted]) < TOLERANCE
        own = torch.stack([rows.roll(b) for b in range(len(batch.queries))])
        each = attend(**arguments, rows=own).weights
        for b in range(len(batch.queries)):
            assert torch.equal(each[b], found.weights[b].roll(b, 1))
    assert (found.output - attend(**arguments).output).abs().sum() < TOLERANCE


def reducers(batch, layout, n_types=3):
    """Return reducers with labels and times for a batch, and what they must give for weights of one sequence."""
    draw = torch.Generator().manual_seed(2)
    queries, keys = batch.queries, batch.key_lengths

    def drawn(lengths, make):
        return [make(n) for n in lengths]

    def joined(parts, lengths):
        if layout == "packed":
            return torch.cat([*parts, parts[0][:0]])
        wide = parts[0].new_zeros(len(lengths), max(lengths))
        for b, part in enumerate(parts):
            wide[b, : len(part)] = part
        return wide

    def types_of(n):
        return torch.randint(-1, n_types, (n,), generator=draw)

    def times_of(n):
        return torch.rand(n, generator=draw, dtype=torch.float64).cumsum(0)

    types, times = drawn(queries, types_of), drawn(queries, times_of)
    same = batch.keys is None
    key_types, key_times = (types, times) if same else (drawn(keys, types_of), drawn(keys, times_of))
    q_types, k_types = joined(types, queries), joined(key_types, keys)
    q_times, k_times = joined(times, queries), joined(key_times, keys)
    edges = torch.tensor([-3.0, 0.0, 1.0, 2.5, 6.0], dtype=torch.float64)
    steps = torch.tensor([-2, 0, 1, 2, 30])

    def influence(b, w):
        hot = torch.nn.functional.one_hot
        rows, columns = (hot(x[b] + 1, n_types + 1)[:, 1:].double() for x in (types, key_types))
        return torch.einsum("hij,ia,jb->hab", w, rows, columns)

    def lag(b):
        return times[b][:, None] - key_times[b]

    def places(b):
        return torch.arange(len(times[b]))[:, None] - torch.arange(len(key_times[b]))

    def histogram(w, lag, ends):
        return torch.stack(
            [(w * ((low <= lag) & (lag < high))).sum((1, 2)) for low, high in pairwise(ends)], -1
        )

    own = (None, None) if same else (k_types, k_times)
    return {
        "types": (TypeInfluence(q_types, own[0], n_types), influence, "total"),
        "lags in time": (LagHistogram(edges, q_times, own[1]), lambda b, w: histogram(w, lag(b), edges), "total"),
        "lags in places": (LagHistogram(steps), lambda b, w: histogram(w, places(b), steps), "total"),
        "mean lag": (MeanLag(q_times, own[1]), lambda b, w: (w * lag(b).abs()).sum(-1), "queries"),
        "mean distance": (MeanLag(), lambda b, w: (w * places(b).abs()).sum(-1), "queries"),
        "entropy": (Entropy(), lambda b, w: torch.where(w > 0, -w * w.log(), 0).sum(-1), "queries"),
        "received": (ReceivedMass(), lambda b, w: w.sum(1), "keys"),
        "own function": (
            lambda block: (block.weights**2).sum((0, 2, 3)).sum(),
            lambda b, w: (w**2).sum(),
            "total",
        ),
    }  # fmt: skip


def agree(batch, layout, found, cases, expected):
    """Compare what reducers gave with the same of dense weights."""
    for result, (_, function, kind) in zip(found, cases.values(), strict=True):
        parts = [function(b, w) for b, w in enumerate(expected)]
        if kind == "total":
            assert largest_error([result], [sum(parts)]) < TOLERANCE
            continue
        lengths = batch.queries if kind == "queries" else batch.key_lengths
        if layout == "packed":
            rows = [part.transpose(0, 1) for part in result.split(lengths)]
        else:
            rows = [result[b, :, :n] for b, n in enumerate(lengths)]
            outside = sum(float(result[b, :, n:].abs().sum()) for b, n in enumerate(lengths))
            assert outside == 0
        assert largest_error(rows, parts) < TOLERANCE


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", VISIBLE)
def test_every_reducer_is_the_reduction_of_the_dense_weights(name, lengths, layout, causal):
    case = made(lengths, name, layout, causal)
    if case is None:
        return
    batch, arguments = case
    cases = reducers(batch, layout)
    result = attend(**arguments, reduce=[reducer for reducer, _, _ in cases.values()])
    agree(batch, layout, result.reduced, cases, [w for w, _ in defined(batch, name, causal)])
    assert (result.output - attend(**arguments).output).abs().sum() < TOLERANCE
    assert result.weights is None
    assert not result.lse.requires_grad


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", [([6, 6, 6], None), ([6, 3, 2], None), ([4, 4, 4], [6, 6, 2])], ids=str)
def test_holes_have_no_weight_in_any_form(lengths, causal):
    batch, arguments = made(lengths, "dense", "padded", causal)
    holes = torch.tensor([[0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0]], dtype=torch.bool)
    hidden = ~holes[:, None, :, None]
    for name in ("k", "v"):
        arguments[name] = arguments[name].masked_fill(hidden, torch.nan)
    expected = [w for w, _ in defined(batch, "dense", causal, holes)]
    cases = reducers(batch, "padded")
    result = attend(
        **arguments,
        key_mask=holes,
        need="band",
        rows=torch.arange(max(batch.queries)),
        reduce=[reducer for reducer, _, _ in cases.values()],
    )
    agree(batch, "padded", result.reduced, cases, expected)
    assert largest_error(by_sequence(batch, "padded", result.band.dense()), expected) < TOLERANCE
    assert largest_error(by_sequence(batch, "padded", result.weights), expected) < TOLERANCE
    assert result.band.values.shape[-1] <= 3


@pytest.mark.parametrize(("rows", "queries", "keys"), [(0, 4, 4), (0, 0, 0), (2, 0, 0), (2, 0, 3), (2, 3, 0)])
def test_reducers_of_calls_without_queries_or_keys_have_the_shapes_of_others(rows, queries, keys):
    q, k = torch.zeros(rows, 3, queries, 2), torch.zeros(rows, 3, keys, 2)
    entropy, mass = attend(q, k, k, reduce=[Entropy(), ReceivedMass()]).reduced
    assert entropy.shape == (rows, 3, queries)
    assert mass.shape == (rows, 3, keys)
    assert not mass.any()


@pytest.mark.parametrize("name", ["dense", "local and prefix", "segments per head", "half and half"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_sum_to_one_mix_the_values_and_are_nothing_where_nothing_is_seen(layout, name):
    batch, arguments = made(([9, 70], None), name, layout, True)
    bias = arguments["bias"].values.detach().clone()
    # The first two keys are hidden from the second head: its first query sees nothing.
    (bias[:2, 1] if layout == "packed" else bias[0, 1, :2]).fill_(-torch.inf)
    result = attend(**arguments | {"bias": KeyBias(bias)}, need="band", reduce=[Entropy(), ReceivedMass()])
    lse = sequences(batch, layout, result.lse)
    for b, output in enumerate(sequences(batch, layout, result.output)):
        n = batch.queries[b]
        weights = result.band.dense()[b, :, :n, :n]
        assert largest_error([weights @ batch.leaves["v"][b]], [output]) < TOLERANCE
        assert largest_error([weights.sum(-1)], [(~lse[b].isneginf()).double()]) < TOLERANCE
    empty = result.lse.isneginf()
    assert empty.any()
    assert (result.reduced[0][empty] == 0).all()
    assert result.reduced[1].sum().item() == pytest.approx((~empty).sum().item())


@pytest.mark.parametrize("name", VISIBLE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_forms_agree_with_the_dense_weights_and_their_log_sums(layout, name):
    _, arguments = made(([9, 1, 40], None), name, layout, False)
    dense = attend(**arguments, need="weights", kernel="plain" if name == "dense" else "auto")
    result = attend(**arguments, need="band")
    assert largest_error([result.output], [dense.output]) < 1e-12
    assert largest_error([result.band.dense()], [dense.weights]) < TOLERANCE
    with torch.no_grad():
        log_sums = attend(**arguments, need="lse")
    finite = dense.lse.isfinite()
    assert torch.equal(finite, log_sums.lse.isfinite())
    for lse in (log_sums.lse, result.lse):
        assert largest_error([lse[finite]], [dense.lse[finite]]) < TOLERANCE


@pytest.mark.parametrize("kernel", ["sdpa", "plain", "window", "reference"])
def test_every_kernel_can_be_looked_at_again(kernel):
    name = "local" if kernel == "window" else "dense"
    batch, arguments = made(([9, 70], None), name, "packed", True)
    result = attend(**arguments, need="band", kernel=kernel)
    assert result.stats["kernel"] == kernel
    assert (result.output - attend(**arguments, kernel=kernel).output).abs().max() < TOLERANCE
    expected = [w for w, _ in defined(batch, name, True)]
    assert largest_error(by_sequence(batch, "packed", result.band.dense()), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)], ids=str
)
def test_lower_precision_stays_near_the_definition(dtype, tolerance):
    batch = Ragged([9, 70], dim=8, value_dim=8, dtype=dtype, bias_heads=2)
    exact = Ragged([9, 70], dim=8, value_dim=8, bias_heads=2)
    for one, other in zip(batch.all_leaves(), exact.all_leaves(), strict=True):
        other.data = one.detach().double()
    expected = [w for w, _ in defined(exact, "dense", True)]
    result = attend(**inputs(batch, "packed"), causal=True, need="band", reduce=Entropy())
    assert result.band.values.dtype == dtype
    assert result.reduced.dtype == torch.float64
    assert largest_error(by_sequence(batch, "packed", result.band.dense()), expected) < tolerance
    entropy = torch.cat([torch.special.entr(w).sum(-1) for w in expected], 1).T
    assert largest_error([result.reduced], [entropy]) < 10 * tolerance


def test_rows_that_see_nan_have_nan_and_no_others():
    _, arguments = made(([9, 70], None), "local and prefix", "packed", True)
    arguments["k"] = arguments["k"].detach().clone()
    arguments["k"][20] = torch.nan
    dense = attend(**arguments, need="band").band.dense()
    spoilt = dense.isnan().any(-1)
    wanted = torch.zeros_like(spoilt)
    wanted[1, :, 11:14] = True
    assert torch.equal(spoilt, wanted)


def test_small_blocks_give_what_large_ones_do(monkeypatch):
    """Blocks of a few weights: what a call of millions of tokens does."""
    monkeypatch.setattr(sights, "BLOCK_WEIGHTS", 90)
    for name in ("dense", "local and prefix", "segments per head", "half and half", "neighborhood"):
        for lengths in (BATCHES["short"], BATCHES["cross"]):
            case = made(lengths, name, "packed", False)
            if case is None:
                continue
            batch, arguments = case
            sizes = []
            found = attend(
                **arguments,
                need="band",
                rows=torch.arange(len(arguments["q"])),
                reduce=lambda block, sizes=sizes: sizes.append(block.weights.numel()) or block.weights.sum(),
            )
            expected = [w for w, _ in defined(batch, name, False)]
            assert largest_error(by_sequence(batch, "packed", found.band.dense()), expected) < TOLERANCE
            assert found.reduced.item() == pytest.approx(sum(w.sum().item() for w in expected))
            # One query of all heads, with all its keys, is the least there can be.
            assert max(sizes) <= max(90, 2 * max(batch.key_lengths))


def test_gradients_of_the_output_stay_and_weights_have_none():
    batch, arguments = made(([9, 5], None), "local", "packed", True)
    plain = torch.autograd.grad(attend(**arguments).output.sum(), batch.leaves["q"])
    result = attend(**arguments, need="band", rows=torch.tensor([3]), reduce=Entropy())
    looked = torch.autograd.grad(result.output.sum(), batch.leaves["q"])
    assert all(torch.equal(one, other) for one, other in zip(plain, looked, strict=True))
    for x in (result.band.values, result.weights, result.reduced, result.lse):
        assert not x.requires_grad


def test_what_does_not_fit_is_refused_and_named():
    q, packed = torch.zeros(2, 1, 5, 4), torch.zeros(5, 1, 4)
    layout = Layout.of([3, 2])
    wrong = [
        ({"need": "band", "dropout": 0.1}, "do not go with dropout=0.1"),
        ({"reduce": Entropy(), "dropout": 0.1}, "do not go with dropout=0.1"),
        ({"need": "weights", "rows": torch.tensor([1])}, "rows= does not go with need='weights'"),
        ({"rows": torch.tensor([5])}, "between 0 and 4, got 5 to 5"),
        ({"rows": torch.tensor([-1])}, "between 0 and 4, got -1"),
        ({"rows": torch.zeros(3, 1, dtype=torch.int64)}, r"\[rows\] or \[2, rows\], got torch.int64 of .* \[3, 1\]"),
        ({"reduce": TypeInfluence(torch.zeros(2, 4, dtype=torch.int64))}, r"types must have .* \[2, 5\], got \[2, 4\]"),
        ({"reduce": MeanLag(torch.zeros(5))}, r"times must have one value per token, shape \[2, 5\], got \[5\]"),
    ]  # fmt: skip
    for arguments, text in wrong:
        with pytest.raises(ParameterError, match=text):
            attend(q, q, q, **arguments)
    with pytest.raises(ParameterError, match=r"shape \[rows\], got"):
        attend(packed, packed, packed, layout=layout, rows=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(TypeError, match="reduce"):
        attend(q, q, q, reduce=3)
    with pytest.raises(ParameterError, match="n_types=2 is too small: there is a type 2"):
        TypeInfluence(torch.tensor([0, 2]), n_types=2)
    with pytest.raises(ParameterError, match="two or more increasing numbers"):
        LagHistogram(torch.tensor([1, 1, 2]))
    with pytest.raises(BackendError, match="need='band', rows= and reduce= are not supported"):
        attend(q, q, q, causal=True, need="band", state=KeyValueState())


def test_too_many_weights_are_refused_with_what_to_ask_for_instead(monkeypatch):
    length = int(MAX_WEIGHTS**0.5) + 1
    q = torch.empty(1).expand(1, 1, length, 1)
    for pattern in (Dense(), Local(3), HeadMix(((1, Local(3)),))):
        with pytest.raises(BackendError, match="need='band' .* rows= .* or reduce="):
            attend(q, q, q, pattern=pattern, need="weights")
    with pytest.raises(ParameterError, match="Ask for fewer rows at a time, or for reduce="):
        attend(q, q, q, rows=torch.arange(length))
    monkeypatch.setattr(weighing, "MAX_WEIGHTS", 99)
    short = torch.zeros(1, 1, 10, 1)
    with pytest.raises(
        BackendError, match="up to 10 keys, and 100 weights are more than 99.* rows= .* reduce="
    ):
        attend(short, short, short, need="band")
    assert attend(short, short, short, pattern=Local(8), need="band").band.values.shape[-1] == 9


def test_explain_says_what_is_asked_for():
    shape = (1, 2, 3000, 4)
    arguments = {
        "pattern": Local(3) | Prefix(1),
        "causal": True,
        "need": "band",
        "rows": torch.tensor([1, 2]),
    }
    explained = explain(shape, shape, shape, **arguments, reduce=[Entropy(), MeanLag()])
    assert explained.kernel == "window"
    assert explained.call.endswith("need 'band', weights of 2 rows, reduce Entropy, reduce MeanLag")
    assert explain(shape, shape, shape, need="lse", reduce=Entropy()).call.endswith(
        "need 'lse', reduce Entropy"
    )


def test_a_list_of_reducers_gives_a_tuple_and_one_gives_its_result():
    _, arguments = made(([5, 2], None), "dense", "packed", False)
    alone = attend(**arguments, reduce=Entropy()).reduced
    together = attend(**arguments, reduce=[Entropy()]).reduced
    assert isinstance(together, tuple)
    assert torch.equal(together[0], alone)


def test_influence_of_even_attention_counts_pairs():
    """Queries of zeros see every key alike: each row gives each type its share of the keys."""
    q, types = torch.zeros(6, 1, 2, dtype=torch.float64), torch.tensor([0, 1, 0, 0, 1, -1])
    found = attend(q, q, q, layout=Layout.of([4, 2]), reduce=TypeInfluence(types)).reduced
    assert largest_error([found], [torch.tensor([[[9 / 4, 3 / 4], [3 / 4, 1 / 4 + 1 / 2]]])]) < 1e-12


MEMORY = """
import resource, torch
from seqattn.attention import Entropy, KeyBias, LagHistogram, Layout, Local, TypeInfluence, attend

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(length, pattern, **asked):
    q = torch.randn(length, 1, 8)
    attend(q, q, q, layout=Layout.of([length]), causal=True, pattern=pattern, **asked)

def asked(length):
    types = torch.arange(length) % 5
    return [Entropy(), TypeInfluence(types), LagHistogram(torch.tensor([0, 1, 10, 100]))]

run(300, "dense", reduce=asked(300))
run(300, Local(64), need="band", reduce=asked(300))
before = peak()
run(20_000, "dense", reduce=asked(20_000), rows=torch.arange(9))
dense = peak() - before
before = peak()
run(65_536, Local(64), need="band", reduce=Entropy())
print(dense / 20_000**2, (peak() - before) / (65_536 * 65))
"""


@pytest.mark.slow
def test_memory_is_that_of_a_block_and_of_a_band(run_python):
    """Bytes per pair of tokens, 4 for one matrix of weights, and per weight of the band: 4, and 8 for its key."""
    done = run_python(MEMORY)
    assert done.returncode == 0, done.stderr
    dense, band = map(float, done.stdout.split())
    assert dense < 0.25
    assert band < 40
