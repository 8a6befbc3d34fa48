"""What a row does not see cannot reach it: other sequences, padding, later tokens, values that are not finite."""

from __future__ import annotations

import pytest
import torch
from attention.calls import CAUSAL_WAYS, LAYOUTS, WAYS, call, gradients, inputs, largest_error, sequences
from attention.oracle import VISIBLE, Ragged

from seqattn.attention import KeyBias, Layout, attend


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", [([7, 4, 9], None), ([3, 9, 4], [7, 5, 9])], ids=["self", "cross"])
def test_the_rows_that_feel_a_changed_key_are_exactly_those_that_see_it(lengths, causal, way):
    batch = Ragged(*lengths, seed=3)
    if way.refuses(batch, "packed", causal=causal):
        return
    draw = torch.Generator().manual_seed(1)
    for layout in LAYOUTS:
        before = sequences(batch, layout, call(batch, layout, causal=causal, way=way).output)
        for b, (n, m) in enumerate(zip(batch.queries, batch.key_lengths, strict=True)):
            j = int(torch.randint(m, (1,), generator=draw))
            changed = Ragged(*lengths, seed=3)
            with torch.no_grad():
                changed.leaves["k"][b][:, j] += 1
                changed.leaves["v"][b][:, j] -= 1
            after = sequences(changed, layout, call(changed, layout, causal=causal, way=way).output)
            felt = [(x != y).any(-1)[0].tolist() for x, y in zip(before, after, strict=True)]
            wanted = [[False] * length for length in batch.queries]
            wanted[b] = [
                VISIBLE[way.pattern](i, j, m, 0) and (not causal or j <= m - n + i) for i in range(n)
            ]
            assert felt == wanted


@pytest.mark.parametrize("way", CAUSAL_WAYS, ids=str)
@pytest.mark.parametrize("poison", [1e4, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bias_heads", [0, 2])
def test_a_prefix_does_not_know_how_the_sequence_goes_on(bias_heads, poison, way):
    lengths = [11, 6, 8]
    batch = Ragged(lengths, bias_heads=bias_heads)
    for layout in LAYOUTS:
        whole = sequences(batch, layout, call(batch, layout, causal=True, way=way).output)
        for cut in (1, 4, 5):
            short = Ragged([cut] * 3, bias_heads=bias_heads)
            poisoned = Ragged(lengths, bias_heads=bias_heads)
            with torch.no_grad():
                for name, leaves in batch.leaves.items():
                    for b, leaf in enumerate(leaves):
                        short.leaves[name][b] = leaf[:, :cut].detach().clone().requires_grad_()
                        if name != "bias":
                            poisoned.leaves[name][b][:, cut:] = poison
            alone = sequences(short, layout, call(short, layout, causal=True, way=way).output)
            spoilt = sequences(poisoned, layout, call(poisoned, layout, causal=True, way=way).output)
            assert largest_error(alone, [x[:, :cut] for x in whole]) < 1e-12
            assert largest_error([x[:, :cut] for x in spoilt], [x[:, :cut] for x in whole]) < 1e-12
            clean = gradients(batch, [x[:, :cut] for x in whole])
            kept = [grad[:, :cut] for grad in gradients(poisoned, [x[:, :cut] for x in spoilt])]
            assert largest_error(kept, [grad[:, :cut] for grad in clean]) < 1e-12


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_keys_of_width_one_that_are_not_finite_stay_with_the_rows_that_see_them(way):
    batch = Ragged([5, 4], dim=1, value_dim=3)
    with torch.no_grad():
        batch.leaves["k"][1][1, 2] = torch.nan
    for layout in LAYOUTS:
        found = sequences(batch, layout, call(batch, layout, way=way).output)
        felt = [i for i in range(4) if found[1][1, i].isnan().all()]
        assert felt == [i for i in range(4) if VISIBLE[way.pattern](i, 2, 4, 1)]
        assert found[0].isfinite().all()
        assert found[1][0].isfinite().all()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("where", ["q", "k", "v", "bias"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_rows_that_see_what_is_not_finite_are_nan_and_no_others(causal, where, way):
    batch = Ragged([5, 4], heads=4, key_heads=2, bias_heads=4)
    if way.refuses(batch, "packed", causal=causal):
        return
    truth = way._replace(kernel="reference")
    clean = {name: call(batch, name, causal=causal, way=truth) for name in LAYOUTS}
    with torch.no_grad():
        batch.leaves[where][1][1, 2] = torch.nan
    heads = {"q": [1], "bias": [1]}.get(where, [2, 3])  # key head 1 serves query heads 2 and 3
    rows = {
        h: [i for i in range(4) if VISIBLE[way.pattern](i, 2, 4, h) and (not causal or i >= 2)] for h in heads
    }
    rows = {h: [2] if where == "q" else rows[h] for h in heads}
    for layout in LAYOUTS:
        need = "weights" if "weights" in way.can.needs else "output"
        result = call(batch, layout, causal=causal, way=way, need=need)
        found = sequences(batch, layout, result.output)
        nan = [[h, i] for h in heads for i in rows[h]]
        assert found[1].isnan().any(-1).nonzero().tolist() == nan
        assert not found[0].isnan().any()
        wanted = sequences(batch, layout, clean[layout].output)
        finite = ~found[1].isnan()
        assert largest_error([found[0], found[1][finite]], [wanted[0], wanted[1][finite]]) < 1e-12
        if need == "weights":
            assert result.weights.isnan().any(-1).nonzero().tolist() == [[1, *place] for place in nan]
            assert sequences(batch, layout, result.lse)[1].isnan().nonzero().tolist() == nan


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", [([5, 0, 3], None), ([4, 2, 3], [6, 3, 0])], ids=["self", "cross"])
@pytest.mark.parametrize("bias_heads", [0, 1])
def test_nan_in_padding_changes_no_bit(bias_heads, lengths, causal, way):
    batch = Ragged(*lengths, bias_heads=bias_heads)
    if way.refuses(batch, "padded", causal=causal):
        return
    results, grads = [], []
    for fill in (0.0, torch.nan):
        arguments = inputs(batch, "padded", fill)
        leaves = [arguments[name].detach().requires_grad_() for name in "qkv"]
        arguments.update(zip("qkv", leaves, strict=True))
        if bias_heads:
            leaves.append(arguments["bias"].values.detach().requires_grad_())
            arguments["bias"] = KeyBias(leaves[-1])
        result = attend(**arguments, causal=causal, **way.arguments(batch, "padded"))
        results.append(result.output.detach())
        grads.append(torch.autograd.grad((result.output**2).sum(), leaves))
    assert torch.equal(results[0], results[1])
    assert (results[1][1, :, batch.queries[1] :] == 0).all()
    for clean, poisoned, lengths in zip(
        *grads, [batch.queries, *[batch.key_lengths] * (len(grads[0]) - 1)], strict=True
    ):
        assert torch.equal(clean, poisoned)
        for b, length in enumerate(lengths):
            assert (poisoned[b, :, length:] == 0).all()


@pytest.mark.parametrize("way", CAUSAL_WAYS, ids=str)
def test_a_sequence_alone_is_what_it_is_in_any_batch_and_order(way):
    batch = Ragged([9, 2, 14, 2, 5, 1, 0, 13], bias_heads=2)
    order = [3, 7, 0, 6, 2, 5, 1, 4]
    shuffled = Ragged([batch.queries[b] for b in order], bias_heads=2)
    for name, leaves in batch.leaves.items():
        shuffled.leaves[name] = [leaves[b] for b in order]
    for layout in LAYOUTS:
        together = sequences(batch, layout, call(batch, layout, causal=True, way=way).output)
        mixed = sequences(shuffled, layout, call(shuffled, layout, causal=True, way=way).output)
        assert largest_error(mixed, [together[b] for b in order]) < 1e-12
        for b in (0, 1, 5):
            single = Ragged([batch.queries[b]], bias_heads=2)
            for name, leaves in batch.leaves.items():
                single.leaves[name] = [leaves[b]]
            alone = sequences(single, layout, call(single, layout, causal=True, way=way).output)
            assert largest_error(alone, [together[b]]) < 1e-12


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_keys_that_no_query_sees_have_no_gradient_and_no_effect(way):
    batch = Ragged([2, 0, 3], [3, 4, 0])
    if way.refuses(batch, "packed"):
        return
    with torch.no_grad():
        batch.leaves["k"][1][:] = torch.nan
        batch.leaves["v"][1][:] = torch.nan
        batch.leaves["q"][2][:] = torch.nan
    for layout in LAYOUTS:
        found = sequences(batch, layout, call(batch, layout, way=way).output)
        assert torch.isfinite(found[0]).all()
        assert (found[2] == 0).all()
        grads = gradients(batch, found)
        assert all((grads[place] == 0).all() for place in (2, 4, 5, 7, 8))


def test_the_global_random_state_is_not_touched():
    state = torch.random.get_rng_state()
    batch = Ragged([5, 3])
    for way in WAYS:
        gradients(batch, sequences(batch, "packed", call(batch, "packed", way=way).output))
    assert torch.equal(state, torch.random.get_rng_state())


def test_inputs_are_not_written_to():
    batch = Ragged([5, 3], bias_heads=1)
    copies = [leaf.detach().clone() for leaf in batch.all_leaves()]
    for way in CAUSAL_WAYS:
        for layout in LAYOUTS:
            gradients(batch, sequences(batch, layout, call(batch, layout, causal=True, way=way).output))
    assert all(torch.equal(a, b) for a, b in zip(copies, batch.all_leaves(), strict=True))


def test_finite_values_are_not_mistaken_for_damage():
    """Sums that overflow and rows whose log-sum is 0 look like it."""
    layout = Layout.of([3])
    huge, flat = torch.full((3, 1, 2), 3e38), torch.zeros(3, 1, 2)
    result = attend(flat, flat, huge, layout=layout, causal=True)
    assert torch.equal(result.output[0], huge[0])
    assert result.stats["finite"]
    result = attend(flat, flat, flat + 1, layout=layout, causal=True, need="lse")
    assert torch.equal(result.output, flat + 1)
    assert result.stats["finite"]
    assert result.lse[0, 0] == 0


def test_stats_tell_whether_the_inputs_were_finite():
    for way in WAYS:
        for layout in LAYOUTS:
            batch = Ragged([4, 2])
            stats = call(batch, layout, way=way).stats
            assert (stats["kernel"], stats["finite"]) == (way.kernel, True)
            with torch.no_grad():
                batch.leaves["v"][0][0, 1] = torch.nan
            stats = call(batch, layout, way=way).stats
            assert (stats["kernel"], stats["finite"]) == (way.kernel, False)


@pytest.mark.parametrize("length", [1, 4, 15, 17, 40])
def test_a_sequence_of_nothing_but_nan_is_nan(length):
    """Torch's fused kernel makes 0 of it when it is short."""
    batch = Ragged([length, 3], dtype=torch.float32)
    for name in "qk":
        damaged = Ragged([length, 3], dtype=torch.float32)
        with torch.no_grad():
            damaged.leaves[name][0][:] = torch.nan
        for layout in LAYOUTS:
            found = sequences(damaged, layout, call(damaged, layout, causal=True, kernel="sdpa").output)
            clean = sequences(batch, layout, call(batch, layout, causal=True, kernel="sdpa").output)
            assert found[0].isnan().all()
            assert torch.equal(found[1], clean[1])


@pytest.mark.parametrize("way", CAUSAL_WAYS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_in_a_query_that_sees_no_key_goes_nowhere(layout, way):
    """With more queries than keys the first ones see nothing if causal; their scores must not reach the keys."""
    batch = Ragged([5, 2], [3, 2])
    if way.refuses(batch, layout):
        return
    clean = sequences(batch, layout, call(batch, layout, causal=True, way=way).output)
    wanted = gradients(batch, clean)
    with torch.no_grad():
        batch.leaves["q"][0][:, :2] = torch.nan
    found = sequences(batch, layout, call(batch, layout, causal=True, way=way).output)
    assert largest_error(found, clean) < 1e-12
    assert largest_error(gradients(batch, found), wanted) < 1e-12
