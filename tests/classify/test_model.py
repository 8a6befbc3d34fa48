"""The network against plain loops: priors in attention, missing tokens, contributions, and what it costs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import profile

from seqattn.classify.model import CaseBatch, TokenFacts, VSFormer

CLASSES, CHANNELS, FEATURES = 3, 2, 6
SETTINGS = {
    "d_model": 8,
    "n_heads": 2,
    "n_layers": 1,
    "dropout": 0.0,
    "fusion": "late",
    "prior": "key",
    "prior_strength": 1.0,
    "prior_floor": 0.05,
    "learn_prior_strength": False,
    "prior_encoding": True,
    "head": "flatten",
    "label_smoothing": 0.0,
    "attention": "dense",
}


def make(
    n_shapes: int = 5, n_values: int = 4, seed: int = 0, n_classes: int = CLASSES, **changes
) -> VSFormer:
    """Return a network in double precision whose decision has learnt something."""
    n_tokens = n_shapes + n_values
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        facts = TokenFacts(
            channel=torch.arange(n_tokens) % CHANNELS,
            label=torch.cat([torch.arange(n_shapes) % n_classes, torch.full((n_values,), n_classes)]),
            prior=torch.rand(n_tokens, dtype=torch.float64).where(torch.arange(n_tokens) % 4 > 0, 0.0),
            interval_span=torch.rand(n_values, 2),
            n_channels=CHANNELS,
            n_classes=n_classes,
            shape_features=FEATURES,
        )
        model = VSFormer(facts, **{**SETTINGS, **changes}).double().eval()
        torch.nn.init.normal_(model.decision.weight)
        torch.nn.init.normal_(model.decision.bias)
    return model


def batch_of(
    n_shapes: int = 5, n_values: int = 4, cases: int = 3, seed: int = 1, missing: float = 0.0
) -> CaseBatch:
    """Return random tokens; a share of them is missing."""
    draws = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    return CaseBatch(
        shape=numbers(cases, n_shapes, FEATURES),
        shape_span=numbers(cases, n_shapes, 2),
        value=numbers(cases, n_values, 3),
        observed=torch.rand(cases, n_shapes + n_values, generator=draws) >= missing,
        labels=torch.arange(cases) % CLASSES,
        weights=torch.ones(cases, dtype=torch.float64),
    )


def embedded(model: VSFormer, batch: CaseBatch, case: int, token: int) -> torch.Tensor:
    """Return one token by the formula."""
    n_shapes = batch.shape.shape[1]
    is_shape = token < n_shapes
    if is_shape:
        content, span = model.shape_content(batch.shape[case, token]), batch.shape_span[case, token]
    else:
        content = model.value_content(batch.value[case, token - n_shapes])
        span = model.interval_span[token - n_shapes]
    where = model.where(torch.cat([span, model.told[token, None]]))
    fixed = model.channels.weight[model.channel[token]] + model.classes.weight[model.label[token]]
    return content + where + fixed + model.kind[0 if is_shape else 1]


def weights_by_hand(
    model: VSFormer, scores: torch.Tensor, prior: torch.Tensor, there: torch.Tensor
) -> torch.Tensor:
    """Return attention weights of one head, of ``scores`` (queries, keys)."""
    pairs = prior[:, None] * prior[None]
    if model.form == "logit":
        scores = scores * pairs
    weights = scores.exp()
    if model.form == "key":
        # Weights after the softmax times a matrix of priors, rows normed again.
        weights = weights / weights.sum(dim=1, keepdim=True) * pairs
    weights = weights * there if there.any() else weights
    return weights / weights.sum(dim=1, keepdim=True)


def encoded(model: VSFormer, batch: CaseBatch, floor: float = 0.05) -> torch.Tensor:
    """Return the outputs of a network of one layer, case by case and head by head."""
    n_shapes, n_tokens = batch.shape.shape[1], batch.observed.shape[1]
    late = len(model.encoders) == 2
    groups = [range(n_shapes), range(n_shapes, n_tokens)] if late else [range(n_tokens)]
    found = []
    for case in range(len(batch)):
        parts = []
        for encoder, group in zip(model.encoders, groups, strict=True):
            x = torch.stack([embedded(model, batch, case, token) for token in group])
            block = encoder.blocks[0]
            q, k, v = block.attention.inputs(block.norm1(x)).view(len(x), 3, 2, -1).unbind(1)
            prior = model.prior[list(group)]
            prior = prior.clamp(min=floor) if model.form == "key" else prior
            there = batch.observed[case, list(group)]
            heads = [
                weights_by_hand(model, q[:, head] @ k[:, head].T / q.shape[-1] ** 0.5, prior, there)
                @ v[:, head]
                for head in range(2)
            ]
            x = x + block.attention.output(torch.cat(heads, dim=1))
            parts.append(encoder.norm(x + block.feed_forward(block.norm2(x))))
        found.append(torch.cat(parts) * batch.observed[case][:, None])
    return torch.stack(found)


@pytest.mark.parametrize("fusion", ["late", "joint"])
@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("form", ["key", "logit", "none"])
def test_outputs_and_gradients_equal_a_loop(form, missing, fusion):
    """The key form is the paper's product of weights and priors, with rows normed again."""
    model, batch = make(prior=form, fusion=fusion), batch_of(missing=missing)
    if missing:
        batch.observed[0] = False
    expected = encoded(model, batch)
    found = model.encode(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameters = [*model.encoders.parameters(), model.shape_content.weight, model.where.weight]
    given = torch.autograd.grad((found * direction).sum(), parameters)
    wanted = torch.autograd.grad((expected * direction).sum(), parameters)
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_strength_0_equals_no_prior_bit_for_bit():
    batch = batch_of()
    for missing in (0.0, 0.4):
        batch = batch_of(missing=missing)
        none = make(prior="none")(batch)
        assert torch.equal(make(prior_strength=0.0)(batch), none)
        assert not torch.allclose(make()(batch), none)


def test_a_token_at_the_floor_is_not_seen_where_the_prior_is_strong():
    """Tokens 0, 4 and 8 have prior 0, so they lie at the floor."""
    batch = batch_of()
    model = make(prior_strength=60.0, fusion="joint")
    mass = model.received(batch)
    assert mass[:, [0, 4, 8]].max() < 1e-12
    torch.testing.assert_close(mass.sum(dim=1), torch.ones(3, dtype=torch.float64))
    changed = replace(batch, shape=batch.shape.clone())
    changed.shape[:, 0] += 5
    difference = (model.encode(changed) - model.encode(batch)).abs().amax(dim=(0, 2))
    assert difference[0] > 0.1
    assert difference[1:].max() < 1e-12


@pytest.mark.parametrize("form", ["key", "logit", "none"])
@pytest.mark.parametrize("fusion", ["late", "joint"])
@pytest.mark.parametrize("head", ["flatten", "mean"])
def test_missing_tokens_get_exactly_nothing_and_change_nothing(form, fusion, head):
    model, batch = make(prior=form, fusion=fusion, head=head), batch_of(missing=0.4)
    absent = ~batch.observed
    assert absent.any()
    n_shapes = batch.shape.shape[1]
    wild = replace(
        batch,
        shape=batch.shape.masked_fill(absent[:, :n_shapes, None], 1e3),
        shape_span=batch.shape_span.masked_fill(absent[:, :n_shapes, None], -7.0),
        value=batch.value.masked_fill(absent[:, n_shapes:, None], -1e3),
    )
    assert not model.received(batch)[absent].any()
    assert torch.equal(model(wild), model(batch))
    assert not model.encode(batch)[absent].any()
    assert not model.contributions(batch)[absent].any()


def test_a_case_does_not_depend_on_those_beside_it():
    model, batch = make(), batch_of(cases=6, missing=0.2)
    batch.observed[:2] = True
    together = model(batch)
    for case in range(6):
        alone = model(batch.select(torch.tensor([case])))
        torch.testing.assert_close(alone[0], together[case], rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", ["flatten", "mean", "narrow"])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_contributions_and_bias_are_the_logits(head, missing, monkeypatch):
    if head == "narrow":
        monkeypatch.setattr("seqattn.classify.model._LARGEST_HEAD", 10)
    model = make(head="mean" if head == "mean" else "flatten")
    assert (model.narrow is not None) == (head == "narrow")
    batch = batch_of(missing=missing)
    shares = model.contributions(batch)
    assert shares.shape == (3, 9, CLASSES)
    torch.testing.assert_close(shares.sum(dim=1) + model.decision.bias, model(batch), rtol=0, atol=1e-10)
    single = make(head="mean" if head == "mean" else "flatten").float()
    float_batch = CaseBatch(**{n: v.float() if v.is_floating_point() else v for n, v in vars(batch).items()})
    added = single.contributions(float_batch).sum(dim=1) + single.decision.bias
    torch.testing.assert_close(added, single(float_batch), rtol=0, atol=1e-5)


def test_a_large_head_becomes_narrow():
    """More than 200,000 weights: 300 tokens of 256 units and 3 classes."""
    assert make(n_shapes=150, n_values=150, d_model=256).narrow is not None
    assert make(n_shapes=150, n_values=110, d_model=256).narrow is None


def test_the_strength_of_the_prior_can_be_learnt():
    model, batch = make(learn_prior_strength=True), batch_of()
    model.loss(batch).total.backward()
    assert model.strength.shape == (2,)
    assert (model.strength.grad.abs() > 1e-6).all()
    step, at = 1e-5, torch.tensor([1.0, 1.0], dtype=torch.float64)
    for head in range(2):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                model.strength.copy_(at)
                model.strength[head] += sign * step
            losses.append(model.loss(batch).total.item())
        assert model.strength.grad[head].item() == pytest.approx(
            (losses[0] - losses[1]) / (2 * step), abs=1e-6
        )
    assert not make().strength.requires_grad


def test_without_prior_encoding_the_prior_is_in_attention_only():
    batch = batch_of()
    plain, blind = make(prior="none"), make(prior="none", prior_encoding=False)
    assert not torch.allclose(plain(batch), blind(batch))
    assert torch.equal(plain.encode(batch)[:, [0, 4]] * 0, blind.encode(batch)[:, [0, 4]] * 0)
    difference = (plain.embed(batch) - blind.embed(batch)).abs().amax(dim=(0, 2))
    assert torch.equal(difference == 0, plain.prior == 0)


def test_the_loss_is_a_sum_of_weighted_smoothed_cross_entropies():
    model, batch = make(label_smoothing=0.2), batch_of()
    batch = replace(batch, weights=torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64))
    logs = model(batch).log_softmax(dim=1)
    terms = [
        -weight * (0.8 * log[label] + 0.2 * log.mean())
        for log, label, weight in zip(logs, batch.labels, batch.weights, strict=True)
    ]
    found = model.loss(batch)
    torch.testing.assert_close(found.total, sum(terms))
    assert found.count == 3.5


def test_the_attention_received_sums_to_one_in_each_encoder():
    batch = batch_of(missing=0.3)
    batch.observed[:, 0] = batch.observed[:, 5] = True
    mass = make().received(batch)
    torch.testing.assert_close(mass[:, :5].sum(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(mass[:, 5:].sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(mass == 0, ~batch.observed)


# -- what it costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learnt"])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_priors_stay_within_the_fused_kernel(missing, learn):
    model, batch = make(learn_prior_strength=learn).float(), batch_of(missing=missing)
    batch = CaseBatch(**{n: v.float() if v.is_floating_point() else v for n, v in vars(batch).items()})
    with profile() as events:
        model.loss(batch).total.backward()
    names = {event.name for event in events.events()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names
    assert not names & {"aten::_softmax", "aten::softmax"}


MEMORY = """
import resource, torch
from classify.test_model import batch_of, make

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(n):
    for settings in ({}, {"learn_prior_strength": True}):
        model = make(n_shapes=n // 2, n_values=n // 2, fusion="joint", head="mean", n_heads=4, **settings).float()
        batch = batch_of(n // 2, n // 2, cases=8, missing=0.1)
        batch = type(batch)(**{k: v.float() if v.is_floating_point() else v for k, v in vars(batch).items()})
        model.loss(batch).total.backward()

run(64)
before = peak()
run(2048)
print((peak() - before) / (8 * 4 * 2048**2 * 4))
"""


@pytest.mark.slow
def test_scores_are_never_held_for_all_pairs(run_python):
    """Peak memory in units of one number per case, head, query and key."""
    folders = os.pathsep.join(str(Path(__file__).parents[up]) for up in (2, 1))
    done = run_python(MEMORY, PYTHONPATH=folders)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 0.3
