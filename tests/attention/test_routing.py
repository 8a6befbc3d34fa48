"""Routers follow the tokens that chose them, once per step, and what they say of a token depends on it alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from seqattn import SAHP, Sequences, load
from seqattn.attention import HeadMix, Layout, Local, Router, Routing, Segments, attend
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


@pytest.mark.slow
def test_a_routed_model_is_fitted_saved_and_forecasts_from_the_past_alone(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (
            torch.rand(30, generator=generator).cumsum(0).numpy(),
            torch.randint(3, (30,), generator=generator).numpy(),
        )
        for _ in range(12)
    ]
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
