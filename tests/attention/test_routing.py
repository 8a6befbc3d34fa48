"""Routers follow the tokens that chose them, once per step, and what they say of a token depends on it alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from seqattn import SAHP, Sequences, load
from seqattn.attention import (
    HeadMix,
    Layout,
    Local,
    Prefix,
    Router,
    Routing,
    Segments,
    SortedChunks,
    attend,
    explain,
)
from seqattn.attention.router import commitment_loss, router_usage, update_routers
from seqattn.attention.routing import bind, routings
from seqattn.errors import ParameterError
from seqattn.nn.blocks import Encoder


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def router(heads: int = 2, clusters: int = 3, dim: int = 4, decay: float = 0.9) -> Router:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Router(heads, clusters, dim, decay).double()


def by_loop(points, centroids, sums, counts, decay):
    """One update as the definition reads, token by token."""
    heads, clusters, _ = centroids.shape
    labels = torch.zeros(len(points), heads, dtype=torch.int64)
    new_sums, new_counts = torch.zeros_like(sums), torch.zeros_like(counts)
    for h in range(heads):
        for t in range(len(points)):
            unit = points[t, h] / math.sqrt(float((points[t, h] ** 2).sum()))
            scores = [float((centroids[h, c] * unit).sum()) for c in range(clusters)]
            best = scores.index(max(scores))
            labels[t, h] = best
            new_sums[h, best] += unit
            new_counts[h, best] += 1
    sums = decay * sums + (1 - decay) * new_sums
    counts = decay * counts + (1 - decay) * new_counts
    return labels, sums / sums.norm(dim=-1, keepdim=True), sums, counts


def test_labels_and_updates_are_those_of_a_loop_over_tokens():
    found = router()
    for step in range(3):
        points = draw(20, 2, 4, seed=step)
        labels, centroids, sums, counts = by_loop(
            points, found.centroids.clone(), found.sums.clone(), found.counts.clone(), 0.9
        )
        assert torch.equal(found(points), labels)
        found.update()
        for one, other in ((found.centroids, centroids), (found.sums, sums), (found.counts, counts)):
            assert (one - other).abs().max() < 1e-12
        assert (found.centroids.norm(dim=-1) - 1).abs().max() < 1e-12


def test_one_step_takes_in_all_its_calls_once():
    points = draw(30, 2, 4)
    whole, parts = router(), router()
    whole(points)
    parts(points[:11])
    parts(points[11:])
    for one in (whole, parts):
        one.update()
        one.update()  # nothing was seen since
    assert (whole.centroids - parts.centroids).abs().max() < 1e-12


def test_evaluation_and_recomputation_move_nothing():
    found = router()
    before = found.centroids.clone()
    found.eval()(draw(9, 2, 4))
    found.train().update()
    assert torch.equal(found.centroids, before)
    once, twice = router(), router()
    x = draw(9, 2, 4).requires_grad_()

    def work(x: torch.Tensor, of: Router) -> torch.Tensor:
        return (x * of(x)[..., None]).sum()

    work(x, once).backward()
    checkpoint(work, x, twice, use_reentrant=False).backward()
    once.update()
    twice.update()
    assert torch.equal(once.centroids, twice.centroids)


def test_a_centroid_that_nobody_chooses_becomes_a_token():
    found = router(heads=1, decay=0.5)
    far = torch.zeros(1, 3, 4, dtype=torch.float64)
    far[0, :, 0] = torch.tensor([1.0, -1.0, -1.0])
    found.centroids.copy_(far)
    found.sums.copy_(far)
    points = draw(40, 1, 4).abs()
    for _ in range(12):
        found(points)
        found.update()
    assert found.usage()["dead"] == 0
    assert len(found.eval()(points).unique()) > 1


def test_usage_says_how_even_the_clusters_are():
    found = router(clusters=4)
    found.counts.copy_(torch.tensor([[1.0, 1, 1, 1], [4, 0, 0, 0]]))
    usage = found.usage()
    assert usage == {
        "entropy": pytest.approx(0.5), "largest": pytest.approx(2.5), "dead": pytest.approx(0.375),
    }  # fmt: skip


def test_routing_is_segments_by_the_router_in_any_combination():
    q, k, v = (draw(40, 4, 4, seed=seed) for seed in range(3))
    layout, routers = Layout.of([25, 15]), [router(heads=4), router(heads=2)]
    pattern = Routing(3, window=5) | Local(1)
    bound = bind(pattern, q, iter(routers))
    assert torch.equal(bound.first.labels, routers[0].eval()(q))
    assert bound.first.window == 5
    mixed = HeadMix(((2, Local(3)), (2, Routing(3, window=5))))
    assert [(part.clusters, heads) for part, heads in routings(mixed, 4)] == [(3, 2)]
    found = attend(q, k, v, pattern=bind(mixed, q, iter(routers[1:])), causal=True, layout=layout).output
    labels = routers[1](q[:, 2:])
    wanted = attend(
        q[:, 2:], k[:, 2:], v[:, 2:], pattern=Segments(labels, 5), causal=True, layout=layout
    ).output
    assert (found[:, 2:] - wanted).abs().max() < 1e-12


def test_one_cluster_is_a_window():
    q, k, v = (draw(40, 2, 4, seed=seed) for seed in range(3))
    bound = bind(Routing(1, window=6), q, iter([router(clusters=1)]))
    way = {"layout": Layout.of([40]), "causal": True}
    found, wanted = attend(q, k, v, pattern=bound, **way), attend(q, k, v, pattern=Local(6), **way)
    assert (found.output - wanted.output).abs().max() < 1e-12


def test_a_routed_encoder_does_not_know_the_future_in_training_either():
    torch.manual_seed(0)
    encoder = Encoder(8, 2, 2, dropout=0.0, pattern=Routing(4, window=8)).double()
    x = draw(60, 8)
    for _ in range(3):
        whole = encoder(x, Layout.of([60]), causal=True)
        for cut in (1, 7, 31, 59):
            part = encoder(x[:cut], Layout.of([cut]), causal=True)
            assert (part - whole[:cut]).abs().max() < 1e-12
        for block in encoder.blocks:
            block.attention.routers[0].update()


def test_routing_without_a_router_says_what_to_do():
    x = torch.zeros(1, 1, 5, 4)
    with pytest.raises(ParameterError, match="Pass Segments\\(router\\(q\\), window\\)"):
        attend(x, x, x, pattern="routing")
    with pytest.raises(ParameterError, match="clusters of Routing must be a whole number, 1 or more, got 0"):
        Routing(0)
    with pytest.raises(ParameterError, match="decay=1 is not allowed"):
        Router(1, 2, 4, decay=1)


def test_every_mode_is_the_pattern_that_it_says():
    q, found = draw(12, 2, 4), router().eval()
    assert torch.equal(Routing(3, 5).bind(found, q).labels, found(q))
    chunks = Routing(3, 5, mode="sorted").bind(found, q)
    assert isinstance(chunks, SortedChunks)
    assert (chunks.size, torch.equal(chunks.labels, found(q))) == (5, True)
    experts = Routing(3, 5, mode="expert").bind(found, q)
    assert torch.equal(experts.scores.argmax(-1), found(q))
    assert (experts.size, experts.causal) == (5, False)
    random = Routing(3, 5, mode="random").bind(found, q, torch.arange(12))
    assert torch.equal(random.labels, found.draw(torch.arange(12)))
    assert not torch.equal(random.labels, found(q))


@pytest.mark.parametrize("mode", ["token", "random", "sorted", "expert"])
@pytest.mark.parametrize("mixed", [False, True])
def test_routing_without_labels_is_explained_as_the_call_with_labels_runs(mode, mixed):
    routing = Routing(4, window=3, mode=mode)
    pattern = HeadMix(((1, Local(2)), (1, routing))) if mixed else routing
    q = draw(40, 2, 8)
    routers = iter([routing.router(1 if mixed else 2, 8).double()])
    ran = attend(q, q, q, pattern=bind(pattern, q, routers, torch.arange(40)), layout=Layout.of([40]))
    assert explain(q, q, q, pattern=pattern, layout=Layout.of([40])).kernel == ran.stats["kernel"]


@pytest.mark.parametrize("mode", ["sorted", "expert"])
def test_modes_in_which_later_tokens_count_are_refused_in_causal_models(mode):
    encoder = Encoder(8, 2, 1, dropout=0.0, pattern=Routing(4, window=8, mode=mode)).double()
    x = draw(20, 8)
    with pytest.raises(ParameterError, match=r"has no meaning with causal=True.*use mode='token' of Routing"):
        encoder(x, Layout.of([20]), causal=True)
    assert encoder(x, Layout.of([20])).isfinite().all()


@pytest.mark.parametrize("mode", ["token", "sorted", "expert"])
def test_tokens_in_another_order_have_the_same_outputs_when_all_of_a_cluster_are_seen(mode):
    q, k, v = (draw(30, 2, 4, seed=seed) for seed in range(3))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    # Chunks of all tokens, and clusters of all tokens of a label.
    routing, layout, found = Routing(3, window=30, mode=mode), Layout.of([30]), router().eval()

    def output(q, k, v):
        return attend(q, k, v, pattern=routing.bind(found, q), layout=layout).output

    assert (output(q, k, v)[order] - output(q[order], k[order], v[order])).abs().max() < 1e-12


def test_every_token_sees_itself_once_in_every_call_of_token_mode():
    place = torch.arange(50)
    for window in (0, 3):
        shown = Routing(3, window).bind(router().eval(), draw(50, 2, 4)).visible(place[:, None], place)
        assert shown.diagonal(dim1=1, dim2=2).all()
        assert (shown.sum(-1) <= 2 * window + 1).all()


def test_random_clusters_have_the_shares_of_the_true_ones_and_know_places_only():
    found = router(heads=2, clusters=3)
    found.counts.copy_(torch.tensor([[6.0, 3, 1], [1, 0, 1]]))
    n = 20_000
    labels = found.draw(torch.arange(n))
    for head, shares in enumerate(([0.6, 0.3, 0.1], [0.5, 0.0, 0.5])):
        for cluster, share in enumerate(shares):
            # Five standard deviations of a share.
            spread = 5 * math.sqrt(share * (1 - share) / n)
            assert (labels[:, head] == cluster).double().mean().item() == pytest.approx(share, abs=spread)
    assert torch.equal(found.draw(torch.arange(700).view(7, 100)), labels[:700].view(7, 100, 2))
    # Neighbours, heads and routers have nothing to do with each other.
    high = (labels == 0).double() - (labels == 0).double().mean(0)
    other = router(heads=2, clusters=3)
    other.counts.copy_(found.counts)
    other.salt.add_(1)
    for one, two in ((high[1:, 0], high[:-1, 0]), (high[:, 0], high[:, 1])):
        assert abs((one * two).mean() / (one.std() * two.std())) < 5 / math.sqrt(n)
    assert not torch.equal(other.draw(torch.arange(n)), labels)


@pytest.mark.parametrize(
    "pattern",
    [
        Routing(3, window=4, mode="random"),
        HeadMix(((1, Local(3)), (2, Routing(3, window=4)), (3, Routing(4, window=2)))),
        HeadMix(((1, Routing(3, window=4, mode="random") | Local(1)), (1, Routing(2, window=9) | Prefix(1)))),
    ],
    ids=str,
)
def test_a_routed_encoder_streams_what_the_whole_sequence_gives(pattern):
    torch.manual_seed(0)
    heads = sum(count for count, _ in pattern.parts) if isinstance(pattern, HeadMix) else 2
    encoder = Encoder(4 * heads, heads, 2, dropout=0.0, pattern=pattern).double()
    x = draw(2, 30, 4 * heads)
    encoder(x.flatten(0, 1), Layout.of([30, 30]), causal=True)
    update_routers(encoder)
    encoder.eval()
    with torch.no_grad():
        whole = encoder(x.flatten(0, 1), Layout.of([30, 30]), causal=True).view(x.shape)
        assert (encoder(x[1, :17], Layout.of([17]), causal=True) - whole[1, :17]).abs().max() < 1e-12
        states, start = encoder.start(), 0
        for size in (1, 7, 1, 1, 15, 5):
            part = encoder.step(x[:, start : start + size], states)
            assert (part - whole[:, start : start + size]).abs().max() < 1e-12
            start += size


def test_random_clusters_without_places_are_refused():
    with pytest.raises(ParameterError, match="mode='random' of Routing needs the places"):
        Routing(3, 4, mode="random").bind(router(), draw(5, 2, 4))


def test_commitment_is_the_squared_distance_from_the_centroids_and_moves_the_queries_only():
    found = router()
    found.commitment = 0.5
    q = draw(11, 2, 4).requires_grad_()
    labels = found(q)
    wanted = sum(
        0.5 * ((q[t, h] / q[t, h].norm() - found.centroids[h, labels[t, h]]) ** 2).sum() / 2
        for t in range(11)
        for h in range(2)
    )
    loss = commitment_loss(found)
    assert abs(loss - wanted) < 1e-12
    (one,), (other,) = torch.autograd.grad(loss, q), torch.autograd.grad(wanted, q)
    assert (one - other).abs().max() < 1e-12
    assert commitment_loss(found) == 0  # each call counts once
    found.eval()(q)
    assert commitment_loss(found) == 0
    assert commitment_loss(router()) == 0


def test_lower_precision_around_a_router_does_not_move_labels():
    found, q = router(clusters=3).float().eval(), draw(2000, 2, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = found(q)
    assert torch.equal(lower, found(q))


def test_lloyd_finds_clusters_that_lie_apart_and_its_state_is_saved():
    torch.manual_seed(0)
    centres = torch.eye(4).double()[:, None].expand(4, 2, 4)
    points = (centres.repeat(25, 1, 1) + 0.1 * draw(100, 2, 4)) * (1 + draw(100, 2, 1).abs())
    found = router(clusters=4)
    assert not found.initialised
    spread = []
    for steps in (0, 1, 10):
        torch.manual_seed(1)
        found.initialise(points, steps)
        unit = points / points.norm(dim=-1, keepdim=True)
        spread.append(float((unit[:, :, None] * found.centroids).sum(-1).amax(-1).mean()))
        assert (found.centroids.norm(dim=-1) - 1).abs().max() < 1e-12
    assert spread[0] < spread[1] <= spread[2]
    # No centroid moves any more: each is the mean direction of its tokens.
    labels = found.eval()(points)
    for h in range(2):
        for c in labels[:, h].unique():
            mean = unit[labels[:, h] == c, h].sum(0)
            assert (found.centroids[h, c] - mean / mean.norm()).abs().max() < 1e-12
            assert found.counts[h, c] == (labels[:, h] == c).sum()
    again = router(clusters=4)
    again.load_state_dict(found.state_dict())
    assert again.initialised
    assert torch.equal(again(points), labels)
    with pytest.raises(ParameterError, match="at least as many tokens as clusters, 4, got 3"):
        found.initialise(points[:3])


def test_a_saved_router_takes_the_same_next_step():
    first, second = router(), router()
    first(draw(20, 2, 4))
    first.update()
    second.load_state_dict(first.state_dict())
    for one in (first, second):
        torch.manual_seed(3)
        one(draw(20, 2, 4, seed=1))
        one.update()
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())


def test_two_halves_that_add_their_sums_are_one_whole():
    points, whole, halves = draw(30, 2, 4), router(), [router(), router()]
    whole(points)
    whole.update()
    for one, part in zip(halves, points.split([7, 23]), strict=True):
        one(part)
    parts = [[one.new_sums.clone(), one.new_counts.clone()] for one in halves]
    for place, one in enumerate(halves):
        other = parts[1 - place]
        one.update(lambda own, other=other: [own[0] + other[0], own[1] + other[1], own[2]], place == 0)
        assert (one.centroids - whole.centroids).abs().max() < 1e-12


def test_padding_moves_no_centroid():
    """Encoders are packed: a batch of two sequences gives the centroids what the two alone give."""
    torch.manual_seed(0)
    one = Encoder(8, 2, 1, dropout=0.0, pattern=Routing(4, window=8)).double()
    two = Encoder(8, 2, 1, dropout=0.0, pattern=Routing(4, window=8)).double()
    two.load_state_dict(one.state_dict())
    x = draw(25, 8)
    one(x, Layout.of([20, 5]))
    two(x[:20], Layout.of([20]))
    two(x[20:], Layout.of([5]))
    update_routers(one)
    update_routers(two)
    for name, value in one.state_dict().items():
        assert (two.state_dict()[name].double() - value.double()).abs().max() < 1e-12
    assert [record["clusters"] for record in router_usage(one)] == [4]


def small(seed=0):
    """Return a few sequences of events."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.rand(30, generator=generator).cumsum(0).numpy(),
            torch.randint(3, (30,), generator=generator).numpy(),
        )
        for _ in range(12)
    ]


TINY = {"d_model": 8, "n_heads": 2, "n_layers": 1, "epochs": 2, "baselines": False, "random_state": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "attention",
    [
        HeadMix(((1, Local(4)), (1, Routing(3, window=6)))),
        "1 * local(4) + 1 * routing(3, window=6, mode=random)",
        "routing(3, window=6, commitment=0.01) | prefix(1)",
        "routing(3, window=6, mode=expert, allow_leak=true)",
    ],
    ids=str,
)
def test_models_with_routed_heads_are_saved_and_predict_the_same(attention, tmp_path):
    data = Sequences.from_lists(small())
    model = SAHP(attention=attention, **TINY).fit(data)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.attention == attention
    assert again.predict(data).equals(model.predict(data))
    usage = again.routing_usage()
    assert usage["router"].to_list() == ["encoder.blocks.0.attention.routers.0"]
    assert usage["clusters"].to_list() == [3]
    assert usage.row(0, named=True) == model.history_.records[-1]["routers"][0] | {
        "entropy": usage["entropy"][0], "largest": usage["largest"][0], "dead": usage["dead"][0],
    }  # fmt: skip
    assert model.module_.encoder.blocks[0].attention.routers[0].initialised


@pytest.mark.slow
def test_a_resumed_fit_has_the_bits_of_one_that_was_not_stopped(tmp_path):
    data, way = Sequences.from_lists(small()), {**TINY, "attention": "routing(3, window=6)", "epochs": 3}
    whole = SAHP(**way).fit(data)

    class Stop:
        def begin(self, settings): ...
        def epoch(self, record):
            if record["epoch"] == 2:
                raise KeyboardInterrupt

        def end(self, history): ...

    with pytest.raises(KeyboardInterrupt):
        SAHP(**way).fit(data, checkpoint=tmp_path / "fit", observers=[Stop()])
    resumed = SAHP(**way).fit(data, checkpoint=tmp_path / "fit")
    state = whole.module_.state_dict()
    assert all(torch.equal(resumed.module_.state_dict()[name], value) for name, value in state.items())


@pytest.mark.slow
def test_a_commitment_is_part_of_the_training_loss_alone():
    data = Sequences.from_lists(small())
    way = {**TINY, "epochs": 1, "learning_rate": 1e-12}
    loss, committed = (
        SAHP(attention=f"routing(3, window=6, commitment={factor})", **way).fit(data).history_.records[0]
        for factor in (0.0, 1.0)
    )
    # A squared distance of directions lies between 0 and 4, per token of which there is one more than events.
    assert 0.1 < committed["train_loss"] - loss["train_loss"] < 4.4
    assert committed["valid_loss"] == pytest.approx(loss["valid_loss"], abs=1e-6)


@pytest.mark.slow
def test_a_routed_model_is_fitted_saved_and_forecasts_from_the_past_alone(tmp_path):
    pairs = small()
    data = Sequences.from_lists(pairs)
    model = SAHP(
        attention=Routing(3, window=6) | Local(2), d_model=8, n_heads=2, n_layers=1, epochs=2, baselines=False,
        random_state=0,
    ).fit(data)  # fmt: skip
    routed = model.module_.encoder.blocks[0].attention.routers[0]
    start = Router(2, 3, 4)
    assert (routed.counts - start.counts).abs().max() > 0
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    short = Sequences.from_lists([(times[:11], types[:11]) for times, types in pairs], labels=data.labels)
    whole, part = model.predict(data), model.predict(short)
    joined = whole.filter(whole["position"] < 11)
    assert (joined["t_mean"] - part["t_mean"]).abs().max() < 1e-5
    assert again.predict(short).equals(part)
