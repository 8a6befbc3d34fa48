"""Expert choice is what a loop over clusters says; later tokens move earlier outputs, so causal models refuse it."""

from __future__ import annotations

import pytest
import torch
from attention.calls import LAYOUTS, gradients, inputs, largest_error, sequences
from attention.oracle import Ragged, one_row

from seqattn.attention import (
    Dense,
    Experts,
    HeadMix,
    KeyBias,
    KeyValueState,
    Layout,
    Local,
    Router,
    Routing,
    attend,
    explain,
)
from seqattn.errors import BackendError, ParameterError

CLUSTERS, SIZE = 3, 4


def scores(batch, layout="packed", fill=torch.nan):
    """Return the scores of all tokens of a batch: each sequence has the same ones as far as it goes."""
    draw = torch.Generator().manual_seed(1)
    each = torch.randn(max([1, *batch.queries]), batch.heads, CLUSTERS, generator=draw, dtype=torch.float64)
    if layout == "packed":
        return torch.cat([each[:0], *(each[:n] for n in batch.queries)])
    size = max(batch.queries, default=0)
    wide = torch.full((len(batch.queries), size, batch.heads, CLUSTERS), fill, dtype=torch.float64)
    for row, n in zip(wide, batch.queries, strict=True):
        row[:n] = each[:n]
    return wide


def taken(one):
    """Return the tokens of each cluster ``[head][cluster]``, from the scores of a sequence."""
    return [
        [sorted(sorted(range(len(one)), key=lambda t: -float(one[t, h, c]))[:SIZE]) for c in range(CLUSTERS)]
        for h in range(one.shape[1])
    ]


def by_loop(batch, causal=False):
    """Return the outputs of each sequence, cluster by cluster and token by token."""
    outputs = []
    for b, one in enumerate(scores(batch).split(batch.queries) if batch.queries else []):
        q, k, v = (batch.leaves[name][b] for name in "qkv")
        bias = batch.leaves["bias"][b][..., 0] if batch.bias_heads else k.new_zeros(1, k.shape[1])
        output, count = q.new_zeros(*q.shape[:2], v.shape[-1]), torch.zeros(q.shape[:2], dtype=q.dtype)
        for h, clusters in enumerate(taken(one)):
            of = h * k.shape[0] // batch.heads
            for members in clusters:
                for i in members:
                    seen = [j for j in members if j <= i or not causal]
                    row, _ = one_row(q[h, i], k[of], v[of], bias[h % len(bias)], seen, batch.dim**-0.5)
                    place = torch.zeros_like(count)
                    place[h, i] = 1
                    output, count = output + place[..., None] * row, count + place
        outputs.append(output / count.clamp(min=1)[..., None])
    return outputs


def call(batch, layout, allow_leak=True, fill=torch.nan, **arguments):
    pattern = Experts(scores(batch, layout), SIZE, allow_leak)
    return attend(**inputs(batch, layout, fill), pattern=pattern, **arguments)


@pytest.mark.parametrize("lengths", [[1], [9, 4, 0, 1, 13], [3, 3], [0, 0], []], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_are_those_of_a_loop_over_clusters(layout, causal, lengths):
    for bias_heads in (0, 1, 4):
        batch = Ragged(lengths, heads=4, key_heads=2, value_dim=5, bias_heads=bias_heads)
        result = call(batch, layout, causal=causal)
        wanted, found = by_loop(batch, causal), sequences(batch, layout, result.output)
        assert largest_error(found, wanted) < 1e-10
        assert largest_error(gradients(batch, found), gradients(batch, wanted)) < 1e-9
        assert result.stats["kernel"] == "experts"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_lies_in_padding_takes_no_part(layout):
    batch = Ragged([9, 4, 2], bias_heads=1)
    found = [call(batch, "padded", fill=fill).output for fill in (torch.nan, 1e4, 0.0)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    first = Ragged([9], bias_heads=1)
    first.leaves = {name: leaves[:1] for name, leaves in batch.leaves.items()}
    alone = sequences(first, layout, call(first, layout).output)
    assert largest_error([sequences(batch, "padded", found[0])[0]], alone) < 1e-12


def test_how_many_tokens_were_taken_is_told():
    batch = Ragged([9, 4, 13], heads=2)
    times = [
        sum(token in members for members in clusters)
        for one in scores(batch).split(batch.queries)
        for clusters in taken(one)
        for token in range(len(one))
    ]
    covered = [count for count in times if count]
    assert 0 < len(covered) < len(times)
    for layout in LAYOUTS:
        stats = call(batch, layout).stats
        assert stats["coverage"] == pytest.approx(len(covered) / len(times))
        assert stats["multiplicity"] == pytest.approx(sum(covered) / len(covered))


def test_a_key_moves_exactly_the_rows_that_are_said_to_see_it():
    batch = Ragged([13], heads=2)
    pattern, layout = Experts(scores(batch), SIZE), Layout.of([13])
    place = torch.arange(13)
    shown = pattern.visible(place[:, None], place)
    q, k, v = (batch.packed(name).detach() for name in "qkv")
    before = attend(q, k, v, pattern=pattern, layout=layout).output
    for j in range(13):
        changed = v.clone()
        changed[j] += 1
        moved = attend(q, k, changed, pattern=pattern, layout=layout).output != before
        assert torch.equal(moved.any(-1).T, shown[:, :, j])


def test_a_later_token_moves_earlier_outputs_which_token_choice_does_not():
    """Why causal models refuse expert choice. Do not remove the guard."""
    torch.manual_seed(0)
    router = Router(2, CLUSTERS, 7).double().eval()
    batch = Ragged([40], heads=2)
    q, k, v = (batch.packed(name).detach() for name in "qkv")
    changed = q.clone()
    changed[-1] = router.centroids[:, 0]  # now the best of cluster 0, so that it pushes one of the others out

    def earlier(routing, q):
        way = {"causal": True, "layout": Layout.of([40])}
        return attend(q, k, v, pattern=routing.bind(router, q, torch.arange(40)), **way).output[:-1]

    expert = Routing(CLUSTERS, SIZE, mode="expert", allow_leak=True)
    assert (earlier(expert, changed) - earlier(expert, q)).abs().max() > 0.1
    for mode in ("token", "random"):
        routing = Routing(CLUSTERS, SIZE, mode=mode)
        assert torch.equal(earlier(routing, changed), earlier(routing, q))
    with pytest.raises(
        ParameterError, match=r"no meaning with causal=True.*push.*mode='token'.*allow_leak=True"
    ):
        earlier(Routing(CLUSTERS, SIZE, mode="expert"), q)


def test_no_other_kernel_takes_it_and_it_takes_nothing_else():
    batch = Ragged([9, 4])
    for kernel in ("reference", "plain", "sdpa", "window"):
        with pytest.raises(BackendError, match="pattern 'experts' is not"):
            call(batch, "packed", kernel=kernel)
    for pattern in (Dense(), Local(2)):
        with pytest.raises(BackendError, match="is not supported"):
            attend(**inputs(batch, "packed"), pattern=pattern, kernel="experts")
    explained = explain(**inputs(batch, "packed"), pattern=Experts(scores(batch), SIZE))
    assert explained.kernel == "experts"
    with pytest.raises(BackendError, match="it is no mask"), torch.no_grad():
        attend(**inputs(Ragged([9, 9]), "padded"), pattern=Experts(scores(Ragged([9, 9]), "padded"), SIZE, True),
               causal=True, state=KeyValueState())  # fmt: skip


def test_it_has_heads_of_its_own_and_is_not_joined_otherwise():
    batch = Ragged([9, 4], heads=2)
    experts = Experts(scores(batch)[:, :1], SIZE)
    mixed = attend(**inputs(batch, "packed"), pattern=HeadMix(((1, experts), (1, Local(2)))))
    assert mixed.stats["parts"][0]["kernel"] == "experts"
    assert 0 < mixed.stats["parts"][0]["coverage"] <= 1
    for other in (Routing(3, 2, mode="expert"), Routing(3, 2, mode="sorted"), experts):
        with pytest.raises(ParameterError, match="cannot be joined by | or &. Give it heads of its own"):
            other | Local(2)


def test_mistakes_are_named():
    with pytest.raises(ParameterError, match="size of Experts must be a whole number, 1 or more, got 0"):
        Experts(torch.zeros(3, 2, 4), 0)
    with pytest.raises(ParameterError, match=r"\[13, 2, 'clusters'\], got \[13, 3, 3\]"):
        attend(**inputs(Ragged([9, 4]), "packed"), pattern=Experts(torch.zeros(13, 3, 3), 2))


def test_a_bias_that_hides_all_keys_of_a_cluster_leaves_zero():
    batch = Ragged([4], heads=1, key_heads=1)
    values = inputs(batch, "packed") | {"bias": KeyBias(torch.full((4, 1), -torch.inf, dtype=torch.float64))}
    output = attend(**values, pattern=Experts(scores(batch), SIZE)).output
    assert (output == 0).all()
    assert all((grad == 0).all() for grad in gradients(batch, [output]))
