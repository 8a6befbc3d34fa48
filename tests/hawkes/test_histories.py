from __future__ import annotations

import numpy as np
import pytest
import torch
from hawkes.random_models import ADDITIONS, LOCAL, random_histories, random_model
from hawkes.reference import HAWKES, hawkes_process

from seqattn import EmpiricalMarkov
from seqattn.data.batches import pack
from seqattn.hawkes.histories import Attended

FORMS = {
    "plain": {},
    "all": ADDITIONS,
    "local": LOCAL,
    "shared": {"share_layers": True, "own_kernels": 2, "clock": "time"},
}


@pytest.fixture(params=FORMS)
def model(request):
    return random_model(dtype=torch.float64, scale=0.7, **FORMS[request.param])


def read(model, data) -> Attended:
    return Attended.after(
        model.module_, pack(data, np.arange(len(data)), scale=model.scale_, dtype=torch.float64)
    )


def step_by_step(model, data, row: int) -> Attended:
    history = Attended(model.module_, 1)
    times, kinds = data.sequence(row)
    for gap, kind in zip(np.diff(times, prepend=0.0) / model.scale_, kinds, strict=True):
        history.add(torch.tensor([gap]), torch.tensor([int(kind)]))
    return history


def rates(history, u: float = 0.3):
    state = history.intensity
    return state.rates(torch.full((state.n_tokens, 1), u, dtype=torch.float64))[:, 0]


@pytest.mark.slow
def test_reading_at_once_equals_step_by_step(model):
    """Lengths on both sides of the encoder's pieces, and no event at all."""
    data = random_histories(0, (0, 1, 130, 64, 65, 0, 7))
    at_once = read(model, data)
    for row in range(len(data)):
        single = step_by_step(model, data, row)
        torch.testing.assert_close(rates(at_once)[row], rates(single)[0], rtol=1e-9, atol=1e-11)
        for name in ("elapsed", "first", "position", "latest"):
            torch.testing.assert_close(
                getattr(at_once, name)[row], getattr(single, name)[0], rtol=1e-12, atol=1e-12
            )


def test_both_ways_go_on_alike(model):
    data = random_histories(1, (5, 0, 70, 12))
    at_once, singles = read(model, data), [step_by_step(model, data, row) for row in range(4)]
    rng = np.random.default_rng(0)
    for _ in range(8):
        gap, kind = torch.from_numpy(rng.exponential(size=4)), torch.from_numpy(rng.integers(0, 3, 4))
        at_once.add(gap, kind)
        for row, single in enumerate(singles):
            single.add(gap[row : row + 1], kind[row : row + 1])
    torch.testing.assert_close(
        rates(at_once), torch.cat([rates(one) for one in singles]), rtol=1e-9, atol=1e-11
    )


def test_reading_equals_the_batch_pass(model):
    """The state after the last event is the one that the likelihood uses for the tail."""
    data = random_histories(2, (9, 0, 80, 2))
    found = rates(read(model, data))
    u = torch.full((1, 1), 0.3, dtype=torch.float64)
    for batch, intensity in model._states(data):
        last = intensity.select(batch.offsets[1:].long() - 1)
        expected = last.rates(u.expand(len(batch), 1))[:, 0]
        torch.testing.assert_close(found[batch.rows], expected, rtol=1e-9, atol=1e-11)


def test_company_does_not_matter(model):
    data = random_histories(3, (100, 3, 0, 20))
    together = rates(read(model, data))
    for row in range(4):
        alone = rates(read(model, data.select([row])))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-12)


def test_chosen_histories_are_copies(model):
    data = random_histories(4, (4, 9, 0))
    history = read(model, data)
    chosen = history.select(torch.tensor([1, 0, 1, 1]))
    before = rates(history)
    torch.testing.assert_close(rates(chosen), before[[1, 0, 1, 1]], rtol=1e-12, atol=0)
    chosen.add(torch.tensor([0.1, 0.2, 0.3, 0.1], dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    assert rates(history).equal(before)
    after = rates(chosen)
    torch.testing.assert_close(after[0], after[3], rtol=1e-12, atol=0)
    assert not torch.allclose(after[0], after[2])
    one = read(model, data.select([1]))
    one.add(torch.tensor([0.3], dtype=torch.float64), torch.tensor([2]))
    torch.testing.assert_close(rates(one)[0], after[2], rtol=1e-10, atol=1e-12)


def test_no_row_may_be_chosen(model):
    none = read(model, random_histories(5, (3, 4))).select(torch.zeros(0, dtype=torch.long))
    assert none.token.shape == (0, 16)


def test_restored_histories_have_the_same_bits(model):
    history = read(model, random_histories(6, (11, 0, 40)))
    held = {name: value.clone() for name, value in history.tensors().items()}
    other = read(model, random_histories(7, (1, 1, 1)))
    other.restore(held)
    for _ in range(3):
        for one in (history, other):
            one.add(torch.full((3,), 0.4, dtype=torch.float64), torch.tensor([2, 0, 1]))
        assert rates(other).equal(rates(history))
    # What was taken out earlier does not change with the history, nor does the history with it.
    third = read(model, random_histories(7, (1, 1, 1)))
    third.restore(held)
    assert third.position.tolist() == [11, 0, 40]


@pytest.mark.parametrize("form", ["mark", "hidden"])
def test_no_gradient_hangs_on_histories(form):
    history = read(random_model(form=form, **ADDITIONS), random_histories(8, (5,)))
    state = history.intensity
    zero = torch.zeros(1)
    assert not state.rates(zero[:, None]).requires_grad
    assert not state.log_rate(zero, torch.tensor([0])).requires_grad
    assert not state.compensator(zero + 1).requires_grad


def test_far_from_the_beginning_single_precision_loses_no_gap():
    model = random_model(own_kernels=2, gap_kernels=2, time_decay=True)
    exact = random_model(own_kernels=2, gap_kernels=2, time_decay=True, dtype=torch.float64)
    exact.module_.load_state_dict({n: v.double() for n, v in model.module_.state_dict().items()})
    histories = [Attended(one.module_, 1) for one in (model, exact)]
    gaps = [1e6, *np.random.default_rng(0).exponential(size=20)]
    for place, gap in enumerate(gaps):
        for history in histories:
            history.add(torch.tensor([gap], dtype=torch.float64), torch.tensor([place % 3]))
    assert histories[0].token.dtype == torch.float32
    since = [(one.elapsed[:, None] - one.latest)[0].tolist() for one in histories]
    assert since[0] == since[1]
    found = histories[0].intensity.rates(torch.zeros(1, 1)).double()[0, 0]
    expected = histories[1].intensity.rates(torch.zeros(1, 1, dtype=torch.float64))[0, 0]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["hawkes", "markov"])
def test_simple_processes_remember_alike_in_both_ways(kind):
    model = hawkes_process(HAWKES)
    if kind == "markov":
        model = EmpiricalMarkov(window=(0.0, 21.0)).fit(random_histories(0, (30, 40), n_types=2))
    data = random_histories(9, (6, 0, 30), n_types=2)
    at_once = model._histories(data)
    singles = [model._histories(data.select([1])) for _ in range(3)]
    for row, single in enumerate(singles):
        times, kinds = data.sequence(row)
        for gap, code in zip(np.diff(times, prepend=0.0), kinds, strict=True):
            single.add(torch.tensor([gap]), torch.tensor([int(code)]))
    torch.testing.assert_close(rates(at_once), torch.cat([rates(one) for one in singles]), rtol=1e-10, atol=0)
    twice = at_once.select(torch.tensor([2, 2]))
    twice.add(torch.tensor([0.1, 0.5], dtype=torch.float64), torch.tensor([0, 1]))
    torch.testing.assert_close(rates(at_once)[2], rates(singles[2])[0], rtol=1e-10, atol=0)
    assert twice.memory.shape[0] == 2
