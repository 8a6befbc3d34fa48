"""Model, steps and records against their equations, each written down once more in plain NumPy or torch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from random_classes import draw_classes, draw_parameters

from seqattn.dynamics import ScanAndSnapStudy, classes_from_sequences, syn, syn_small
from seqattn.dynamics.pairwise import Examples, forward, gradients
from seqattn.dynamics.standard import StandardLayer
from seqattn.dynamics.trainers import Plan, Runs, start

# -- the model -------------------------------------------------------------------------------------------------


def scaled(values, norm):
    """Return values over their length, under layernorm after the mean is taken off."""
    values = values - values.mean() if norm == "layernorm" else values
    return values if norm == "none" else values / values.pow(2).sum().sqrt()


def decoder_input(Z, classes, k, norm, residual):
    """Return attention of a class, and what the decoder sees of it: f, or norm(f + e of the query's token)."""
    odds = torch.as_tensor(classes.P[k]) * Z[classes.query[k]].exp()
    f = scaled(odds / odds.sum(), norm)
    if not residual:
        return f
    token = np.zeros(classes.n_tokens)
    token[classes.query_tokens[classes.query[k]]] = 1.0
    return scaled(f + torch.as_tensor(token), norm)


def right(Y, Z, classes, norm="l2", residual=False):
    """Return the log-probability of each class's label."""
    logits = torch.stack([decoder_input(Z, classes, k, norm, residual) @ Y for k in range(len(classes))])
    return torch.log_softmax(logits, 1)[torch.arange(len(classes)), torch.as_tensor(classes.label)]


def slopes(Y, Z, classes, **settings):
    """Return the slopes of the mean log-probability."""
    leaves = [part.detach().clone().requires_grad_() for part in (Y, Z)]
    value = torch.as_tensor(classes.weight) @ right(*leaves, classes, **settings)
    return torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("norm", ["l2", "layernorm", "none"])
def test_a_residual_connection_adds_the_query_and_scales_again(norm):
    # One query's token occurs in contexts too, the other's nowhere else.
    classes = draw_classes(3, V=6, query_tokens=np.array([8, 1]))
    at = draw_parameters(classes, 3, n_runs=2)
    state = forward(at, Examples.of_classes(classes), norm, residual=True)
    found, _ = gradients(at, Examples.of_classes(classes), norm, residual=True)
    for run in range(2):
        Y, Z = at.Y[run], at.Z[run]
        f = torch.stack([decoder_input(Z, classes, k, norm, True) for k in range(len(classes))])
        torch.testing.assert_close(state.f[run], f, rtol=1e-12, atol=1e-14)
        expected = right(Y, Z, classes, norm, residual=True)
        torch.testing.assert_close(state.log_probability[run], expected, rtol=1e-12, atol=1e-14)
        slope_y, slope_z = slopes(Y, Z, classes, norm=norm, residual=True)
        torch.testing.assert_close(found.Y[run], slope_y, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.Z[run], slope_z, rtol=1e-12, atol=1e-14)


def test_the_decoder_grows_by_twice_the_mean_of_s():
    """d|Y|^2/dt = 2 lr_y sum p s, which the slope of Y must say of itself: sum Y dJ/dY = sum p s."""
    classes = draw_classes(4, V=7)
    at = draw_parameters(classes, 4)
    for norm in ("l2", "none", "layernorm"):
        found, state = gradients(at, Examples.of_classes(classes), norm)
        alpha = torch.softmax(state.f @ at.Y, -1)
        v = torch.nn.functional.one_hot(torch.as_tensor(classes.label), 7) - alpha
        s = (state.f * (v @ at.Y.mT)).sum(-1)
        growth = (found.Y * at.Y).sum((1, 2))
        torch.testing.assert_close(growth, s @ torch.as_tensor(classes.weight), rtol=1e-12, atol=1e-14)


# -- the start and the steps -----------------------------------------------------------------------------------


def test_the_uniform_start_fills_one_over_the_root_of_the_number_of_tokens():
    classes = syn(queries=7, n_outputs=50)  # 171 tokens
    runs = Runs(np.ones(2), np.ones(2), np.array([0, 1]))
    found = start(classes, runs, Plan(init="uniform"))
    bound = 1 / math.sqrt(classes.n_tokens)
    for values in (found.Y.numpy(), found.Z.numpy()):
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.99 * bound
        # Evenly: each quarter of the range holds its share.
        shares = np.histogram(values, bins=4, range=(-bound, bound))[0] / values.size
        np.testing.assert_allclose(shares, 0.25, atol=4 * np.sqrt(3 / 16 / values.size))
        assert (values[0] != values[1]).all()


def adam(parts, steps, rates, slope):
    """Ascend by Adam's rule, in the order of its publication: moments, their correction, the step."""
    first, second = ([torch.zeros_like(part) for part in parts] for _ in range(2))
    for t in range(1, steps + 1):
        now = slope(*parts)
        first = [0.9 * m + 0.1 * g for m, g in zip(first, now, strict=True)]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, now, strict=True)]
        parts = [
            part + rate * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            for part, rate, m, v in zip(parts, rates, first, second, strict=True)
        ]
    return parts


def heavy_ball(parts, steps, rates, slope, momentum):
    """Ascend with momentum: the velocity is the sum of slopes that fade."""
    velocity = [torch.zeros_like(part) for part in parts]
    for _ in range(steps):
        velocity = [momentum * u + g for u, g in zip(velocity, slope(*parts), strict=True)]
        parts = [part + rate * u for part, rate, u in zip(parts, rates, velocity, strict=True)]
    return parts


@pytest.mark.parametrize("rule", ["adam", "momentum"])
def test_whole_batches_take_the_published_steps(rule):
    classes = draw_classes(6, V=7)
    begin = draw_parameters(classes, 6, n_runs=1, scale=0.3)
    parts, rates = [begin.Y[0], begin.Z[0]], (0.2, 0.05)
    changes = {"optimizer": "adam"} if rule == "adam" else {"momentum": 0.8}
    settings = {"trainer": "batch", "lr_y": rates[0], "lr_z": rates[1], "init": (begin.Y[0], begin.Z[0])}

    def slope(Y, Z):
        return slopes(Y, Z, classes)

    for steps in (1, 12):
        study = ScanAndSnapStudy(n_steps=steps, record_at=[steps], **settings, **changes).fit(classes)
        ends = adam(parts, steps, rates, slope) if rule == "adam" else None
        ends = ends or heavy_ball(parts, steps, rates, slope, 0.8)
        # Adam divides by slopes that may be 0 up to rounding, which its least divisor of 1e-8 magnifies.
        torch.testing.assert_close(study.parameters_.Y[0], ends[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(study.parameters_.Z[0], ends[1], rtol=1e-9, atol=1e-9)


def test_sixty_four_runs_at_once_are_sixty_four_runs(monkeypatch):
    classes, settings = syn_small(), {"momentum": 0.9, "n_steps": 4, "record_at": [4], "init": "uniform"}
    lr_y, lr_z = np.repeat([0.5, 1.0, 2.0, 10.0], 4).tolist(), [0.5, 1.0, 2.0, 3.0] * 4
    together = ScanAndSnapStudy(lr_y=lr_y, lr_z=lr_z, n_seeds=4, random_state=2, **settings).fit(classes)
    # The same in parts whose bounds are none between rates: 22 runs, where four seeds make a rate.
    monkeypatch.setattr("seqattn.dynamics.running.CACHE", 22 * together.budget_.work // 64)
    parts = ScanAndSnapStudy(lr_y=lr_y, lr_z=lr_z, n_seeds=4, random_state=2, **settings).fit(classes)
    assert together.budget_.runs_at_once == 64
    assert parts.budget_.runs_at_once == 22
    runs = together.result_.runs
    assert len(runs) == 64
    for run in range(64):
        rates = {"lr_y": float(runs.lr_y[run]), "lr_z": float(runs.lr_z[run])}
        alone = ScanAndSnapStudy(random_state=int(runs.seed[run]), **rates, **settings).fit(classes)
        for many in (together, parts):
            torch.testing.assert_close(many.parameters_.Y[run], alone.parameters_.Y[0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(many.parameters_.Z[run], alone.parameters_.Z[0], rtol=1e-9, atol=1e-9)
            for name, values in alone.result_.arrays.items():
                found = many.result_.array(name)[run]
                np.testing.assert_allclose(found, values[0], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.9}, {"optimizer": "adam"}], ids=["plain", "momentum", "adam"]
)
@pytest.mark.parametrize("trainer", ["batch", "sgd"])
def test_no_step_moves_what_never_occurs(changes, trainer):
    classes = draw_classes(9, V=7, queries=4)
    begin = draw_parameters(classes, 9, n_runs=1)
    settings = {"trainer": trainer, "n_steps": 15, "record_at": [15], "batch_size": 8, "seq_len": 9}
    study = ScanAndSnapStudy(init=(begin.Y[0], begin.Z[0]), **settings, **changes).fit(classes)
    absent, unseen = classes.kinds() == "absent", np.setdiff1d(np.arange(4), classes.query)
    assert absent.any()
    assert len(unseen)
    moved_y, moved_z = study.parameters_.Y[0] - begin.Y[0], study.parameters_.Z[0] - begin.Z[0]
    assert moved_y[absent].abs().max() == 0
    assert moved_z[:, absent].abs().max() == 0
    assert moved_z[unseen].abs().max() == 0
    assert min(moved_y[~absent].abs().max(), moved_z.abs().max()) > 1e-3


@pytest.mark.parametrize(("V", "expected"), [(2, -0.06), (34, -0.24), (1000, -0.54)])
def test_without_the_norm_the_rarest_distinct_token_falls(V, expected):
    classes, rates = syn(n_outputs=V), {"lr_y": 2.0, "lr_z": 1.0}
    ends = {
        norm: ScanAndSnapStudy(trainer="flow", norm=norm, n_steps=300, record_at=[300], rtol=1e-7, **rates)
        .fit(classes)
        .parameters_.Z[0, 0, [10, 20]]
        for norm in ("none", "l2")
    }
    assert ends["none"].tolist() == pytest.approx([expected] * 2, abs=0.006)
    assert ends["l2"].min() > 0


# -- records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_speed_is_the_way_of_one_step(momentum):
    """Long after the start of small steps each one goes 1 / (1 - momentum) times as far as its slope says."""
    classes = draw_classes(7, V=7)
    settings = {"trainer": "batch", "lr_y": 2e-3, "lr_z": 1e-3, "n_steps": 300}
    study = ScanAndSnapStudy(momentum=momentum, record_at=[299], n_snapshots=9, **settings).fit(classes)
    z = study.result_.array("z")[0]
    expected = np.linalg.norm(z[-1] - z[-2])
    assert expected > 0
    assert study.result_.array("speed")[0, -1] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("frozen", ["lr_y", "lr_z", None])
def test_the_drift_is_the_largest_of_the_row_sums_of_both_parts(frozen):
    """Adam does not keep row sums; the drift counts from the start, and over Y and Z alike."""
    classes = draw_classes(8, V=7)
    begin = draw_parameters(classes, 8, n_runs=1)
    settings = {"optimizer": "adam", "trainer": "batch", "n_steps": 20, "record_at": [20]}
    rates = {"lr_y": 0.1, "lr_z": 0.1} | ({frozen: 0.0} if frozen else {})
    study = ScanAndSnapStudy(init=(begin.Y[0], begin.Z[0]), **settings, **rates).fit(classes)
    moved = {
        "lr_y": (study.parameters_.Y[0] - begin.Y[0]).sum(-1).abs().max().item(),
        "lr_z": (study.parameters_.Z[0] - begin.Z[0]).sum(-1).abs().max().item(),
    }
    assert moved.pop(frozen, 0.0) == 0.0
    assert study.result_.array("row_sum_drift")[0].tolist() == pytest.approx([0.0, max(moved.values())])
    assert min(moved.values()) > 1e-3


# -- the ordinary layer ----------------------------------------------------------------------------------------


def test_effective_logits_are_those_of_the_layer_gain_included():
    layer = StandardLayer(11, 5, gain=2.5, norm="none", rng=np.random.default_rng(1))
    queries = torch.tensor([7, 2, 7])
    mass = torch.as_tensor(np.random.default_rng(2).dirichlet(np.ones(11), 3))
    logits, c = layer(queries, mass.log())
    Y, Z = layer.effective(queries)
    torch.testing.assert_close(torch.softmax(mass.log() + Z, -1), c, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(c @ Y, logits, rtol=1e-12, atol=1e-14)


def test_a_standard_study_records_the_logits_that_its_loss_comes_from():
    settings = {"model": "standard", "trainer": "batch", "norm": "none", "n_steps": 5, "record_at": [5]}
    study = ScanAndSnapStudy(lr_y=0.3, lr_z=2.0, gain=3.0, d_model=8, **settings).fit(syn_small())
    Y, Z = study.parameters_.Y[0], study.parameters_.Z[0]
    expected = -right(Y, Z, syn_small(), norm="none").mean()
    assert study.result_.array("loss")[0, -1] == pytest.approx(float(expected), rel=1e-11)
    assert abs(float(expected) - np.log(34)) > 1e-3


class Stopped(Exception):
    pass


@pytest.mark.parametrize("rule", [{"momentum": 0.9}, {"optimizer": "adam"}], ids=["momentum", "adam"])
def test_an_interrupted_study_of_ordinary_layers_goes_on_to_the_same_bits(rule, tmp_path, monkeypatch):
    monkeypatch.setattr("seqattn.dynamics.running.INTERVAL", 0.0)
    settings = {"model": "standard", "lr_y": [0.1, 0.3], "n_steps": 8, "n_records": 5, "d_model": 6, **rule}
    expected = ScanAndSnapStudy(**settings).fit(syn_small())
    calls = []

    def stop(progress):
        calls.append(progress.time)
        if len(calls) == 3:
            raise Stopped

    path = tmp_path / "study.state"
    with pytest.raises(Stopped):
        ScanAndSnapStudy(**settings).fit(syn_small(), checkpoint=path, observers=[stop])
    later = []
    resumed = ScanAndSnapStudy(**settings).fit(syn_small(), checkpoint=path, observers=[later.append])
    assert len(later) == len(expected.result_.times) - 3
    torch.testing.assert_close(resumed.parameters_.Z, expected.parameters_.Z, rtol=0, atol=0)
    torch.testing.assert_close(resumed.parameters_.Y, expected.parameters_.Y, rtol=0, atol=0)


# -- own sequences ---------------------------------------------------------------------------------------------


def test_grades_are_entropies_of_the_next_token_drawn_to_that_of_the_query():
    """D = 1 - H(next | l, m) / ln K_m, with one pseudo-count that is spread as the query's next tokens are."""
    rng = np.random.default_rng(3)
    sequences = [rng.choice(list("abcde"), p=[0.4, 0.3, 0.1, 0.1, 0.1], size=60).tolist() for _ in range(12)]
    data = classes_from_sequences(sequences, context=3, min_context=2, min_count=12)
    pairs, seen = Counter(), defaultdict(Counter)
    for row in sequences:
        for i in range(2, len(row) - 1):
            pairs[row[i], row[i + 1]] += 1
            seen[row[i], row[i + 1]].update(row[max(0, i - 3) : i])
    kept = {pair: n for pair, n in pairs.items() if n >= 12}
    table, names = data.grades(), data.classes.token_names
    assert len(table) > 10
    for row in table.iter_rows(named=True):
        query = names[data.classes.query_tokens[row["query"]]]
        following = [n for m, n in kept if m == query]
        counts = np.array([seen[query, n][row["name"]] for n in following], dtype=float)
        prior = np.array([kept[query, n] for n in following], dtype=float)
        chance = (counts + prior / prior.sum()) / (counts.sum() + 1)
        expected = 1 + (chance * np.log(chance)).sum() / np.log(len(following))
        assert row["count"] == counts.sum()
        assert row["D"] == pytest.approx(expected, rel=1e-10), row
