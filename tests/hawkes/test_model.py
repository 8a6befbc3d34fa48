from __future__ import annotations

import numpy as np
import pytest
import torch

from seqattn import Sequences
from seqattn.data.batches import pack
from seqattn.errors import ParameterError
from seqattn.hawkes.intensity import SumIntensity
from seqattn.hawkes.model import SelfAttentiveHawkes

DEFAULTS = {
    "form": "mark",
    "d_model": 16,
    "n_heads": 2,
    "n_layers": 2,
    "dropout": 0.0,
    "clock": "gap",
    "type_scale": "one",
    "share_layers": False,
    "mu_eta_activation": "linear",
    "learn_scale": True,
    "integral": "graded",
    "nodes": 12,
    "attention": "dense",
    "n_decays": 1,
    "own_kernels": 0,
    "gap_kernels": 0,
    "time_features": False,
    "time_decay": False,
    "max_context": None,
}
ADDITIONS = {"n_decays": 3, "own_kernels": 2, "gap_kernels": 2, "time_features": True, "time_decay": True}


def random_module(seed: int = 0, n_types: int = 3, **options) -> SelfAttentiveHawkes:
    """A module with weights far from their start, so that every path matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = SelfAttentiveHawkes(torch.full((n_types,), 0.4), **{**DEFAULTS, **options})
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def random_sequences(seed: int, lengths, n_types: int = 3) -> Sequences:
    rng = np.random.default_rng(seed)
    pairs = [(np.sort(rng.uniform(0, 20, n)), rng.integers(0, n_types, n)) for n in lengths]
    return Sequences.from_lists(pairs, window=(0.0, 21.0), labels=n_types)


def states(module, sequences, rows=None, dtype=torch.float32):
    rows = np.arange(len(sequences)) if rows is None else np.array(rows)
    batch = pack(sequences, rows, dtype=dtype, recency=module.needs_recency)
    with torch.no_grad():
        return batch, module(batch).detach()


def decays_of(intensity):
    return intensity.parts[0] if isinstance(intensity, SumIntensity) else intensity


@pytest.mark.parametrize("form", ["mark", "hidden"])
@pytest.mark.parametrize("clock", ["gap", "time", "log_gap"])
@pytest.mark.parametrize(
    "extra", [{}, ADDITIONS, {**ADDITIONS, "max_context": 3}], ids=["plain", "all", "local"]
)
def test_no_state_sees_the_event_it_scores(form, clock, extra):
    """Change type and time of event j: states before it stay equal to the bit; the one after it changes."""
    module = random_module(form=form, clock=clock, **extra)
    u = torch.rand(13, 4)
    times, kinds = np.sort(np.random.default_rng(1).uniform(0, 20, 12)), np.arange(12) % 3
    for j in (0, 5, 11):
        moved, other = times.copy(), kinds.copy()
        moved[j] = (times[j] + (times[j + 1] if j < 11 else 21.0)) / 2
        other[j] = (kinds[j] + 1) % 3
        one = states(module, Sequences.from_lists([(times, kinds)], window=(0.0, 21.0), labels=3))[1]
        two = states(module, Sequences.from_lists([(moved, other)], window=(0.0, 21.0), labels=3))[1]
        before = slice(0, j + 1)  # tokens 0..j: the start and the events before event j
        assert torch.equal(one.rates(u)[before], two.rates(u)[before])
        for name in ("asymptote", "amplitude", "rate"):
            mine, other_ = (getattr(decays_of(x), name) for x in (one, two))
            assert torch.equal(mine[before], other_[before])
            assert not torch.equal(mine[j + 1], other_[j + 1])


@pytest.mark.parametrize("extra", [{}, ADDITIONS], ids=["plain", "all"])
def test_gradient_of_a_term_stops_at_its_past(extra):
    module = random_module(**extra)
    batch = pack(random_sequences(2, [10]), np.array([0]), recency=True)
    embedded = []
    handle = module.type_embedding.register_forward_hook(lambda _m, _i, out: embedded.append(out) or out)
    intensity = module(batch)
    handle.remove()
    embedded[0].retain_grad()
    for i in range(10):
        term = intensity.log_rate(batch.until, batch.target.clamp(min=0))[i]
        (gradient,) = torch.autograd.grad(term, embedded[0], retain_graph=True)
        reached = gradient.abs().sum(1) > 0
        assert reached[: i + 1].all()
        assert not reached[i + 1 :].any()


@pytest.mark.parametrize(
    "extra", [{}, ADDITIONS, {**ADDITIONS, "max_context": 4}], ids=["plain", "all", "local"]
)
def test_company_and_order_in_a_batch_do_not_matter(extra):
    module = random_module(**extra).double()
    sequences = random_sequences(3, [7, 0, 30, 1, 12])
    batch, together = states(module, sequences, dtype=torch.float64)
    value = together.compensator(batch.until)
    for row in range(5):
        own, alone = states(module, sequences, [row], dtype=torch.float64)
        piece = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        torch.testing.assert_close(value[piece], alone.compensator(own.until), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["linear", "gelu"])
def test_untrained_model_is_the_poisson_process(activation):
    rates = torch.tensor([0.7, 1.3, 2.2])
    with torch.random.fork_rng(devices=[]):
        module = SelfAttentiveHawkes(rates, **{**DEFAULTS, "mu_eta_activation": activation}).eval()
    sequences = random_sequences(4, [9, 3])
    batch, intensity = states(module, sequences)
    torch.testing.assert_close(intensity.rates(batch.until[:, None])[:, 0], rates.expand(batch.n_tokens, -1))
    kinds = np.asarray(sequences.types)
    exact = np.log(rates.numpy())[kinds].sum() - 2 * 21.0 * 4.2
    loss = module.loss(batch)
    assert loss.count == 12
    assert loss.total.item() == pytest.approx(-exact, rel=1e-6)


def test_printed_form_has_a_floor():
    """The paper's GELU without sharpness cannot go below ln(1 + exp(-0.17)) events per unit and type."""
    module = random_module(mu_eta_activation="gelu", learn_scale=False)
    with torch.no_grad():
        for linear in (module.mu, module.eta):
            linear.bias.fill_(-0.75)
            linear.weight.zero_()
    _, intensity = states(module, random_sequences(5, [4]))
    assert float(intensity.rates(torch.rand(5, 3)).min()) == pytest.approx(0.6118, abs=1e-3)


@pytest.mark.parametrize(
    "extra", [{}, ADDITIONS, {**ADDITIONS, "form": "hidden"}], ids=["plain", "all", "hidden"]
)
def test_loss_equals_its_definition(extra):
    module = random_module(**extra).double()
    sequences = random_sequences(6, [5, 0, 8])
    batch, intensity = states(module, sequences, dtype=torch.float64)
    value = 0.0
    for token in range(batch.n_tokens):
        grid = torch.linspace(0, 1, 20_001, dtype=torch.float64) * batch.until[token]
        rates = intensity.select(torch.tensor([token])).rates(grid[None])[0].sum(1)
        value += float(torch.trapezoid(rates, grid))
        if batch.target[token] >= 0:
            at = intensity.select(torch.tensor([token])).rates(batch.until[token].view(1, 1))[0, 0]
            value -= float(at[batch.target[token]].log())
    loss = module.loss(batch)
    assert loss.count == 13
    assert loss.total.item() == pytest.approx(value, rel=1e-6)


def test_history_that_is_not_scored_adds_no_loss():
    module = random_module().double()
    times, kinds = np.array([1.0, 2.0, 4.0, 7.0]), [0, 1, 2, 0]
    batch = pack(Sequences.from_lists([(times, kinds)], labels=3), np.array([0]), dtype=torch.float64)
    assert batch.scored.tolist() == [False, True, True, True, True]
    with torch.no_grad():
        intensity = module(batch)
        terms = intensity.log_rate(batch.until, batch.target.clamp(min=0))[1:4].sum()
        loss = module.loss(batch)
    assert loss.count == 3
    assert loss.total.item() == pytest.approx((intensity.compensator(batch.until)[1:4].sum() - terms).item())


def test_layers_share_weights_only_when_asked():
    separate, shared = random_module(n_layers=3), random_module(n_layers=3, share_layers=True)
    assert len(separate.encoder.blocks) == 3
    assert len(shared.encoder.blocks) == 1


def test_huge_logits_do_not_overflow():
    """A softmax of exponentials, as in one published program, is inf once q.k exceeds 88."""
    module = random_module()
    with torch.no_grad():
        for block in module.encoder.blocks:
            block.attention.inputs.weight.mul_(100.0)
    batch, intensity = states(module, random_sequences(7, [40]))
    assert torch.isfinite(intensity.compensator(batch.until)).all()


def test_long_sequences_have_no_position_limit():
    module = random_module()
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 6000, 6000))
    data = Sequences.from_lists([(times, rng.integers(0, 3, 6000))], window=(0.0, 6001.0), labels=3)
    batch, intensity = states(module, data)
    assert batch.n_tokens == 6001
    assert torch.isfinite(intensity.compensator(batch.until)).all()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("form", "marc", "Did you mean 'mark'"),
        ("clock", "gaps", "Did you mean 'gap'"),
        ("integral", "simpson", "Use one of"),
        ("d_model", 15, "multiple of n_heads=2"),
        ("mu_eta_activation", "relu", "Use one of"),
    ],
)
def test_wrong_options_are_refused(option, value, message):
    with pytest.raises(ParameterError, match=message):
        random_module(**{option: value})


@pytest.mark.parametrize("form", ["mark", "hidden"])
def test_permuted_types_with_permuted_weights_give_the_same_loss(form):
    module, other = random_module(form=form).double(), random_module(form=form).double()
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        other.type_embedding.weight[:3] = module.type_embedding.weight[:3][order]
        heads = (other.mix,) if form == "hidden" else (other.mu, other.eta, other.gamma)
        for head in heads:
            head.weight.copy_(head.weight[order])
            head.bias.copy_(head.bias[order])
        if form == "mark":
            other.log_scale.copy_(other.log_scale[order])
    sequences = random_sequences(8, [6, 11])
    renamed = torch.argsort(order).numpy()
    pairs = [(times, renamed[kinds]) for times, kinds in map(sequences.sequence, range(2))]
    moved = Sequences.from_lists(pairs, window=(0.0, 21.0), labels=3)
    losses = [
        model.loss(pack(data, np.arange(2), dtype=torch.float64)).total
        for model, data in ((module, sequences), (other, moved))
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
