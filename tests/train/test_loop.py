from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from train.small import Regression, Rows, cut, equal, rows, shuffled, weights

from seqattn.errors import DataError, SeqattnError
from seqattn.train.loop import FitSettings, Loss, fit_module, one_cycle
from seqattn.train.sums import Sums

SETTINGS = FitSettings(epochs=6, learning_rate=0.02)


class Recorder:
    """An observer that keeps what it is told, and asks to stop after a given epoch."""

    def __init__(self, stop_after=None):
        self.calls = []
        self.stop_after = stop_after

    def begin(self, settings):
        self.calls.append(("begin", settings))

    def epoch(self, record):
        self.calls.append(("epoch", record["epoch"]))
        return record["epoch"] == self.stop_after

    def end(self, history):
        self.calls.append(("end", len(history.records)))


class Unstable(Regression):
    """Its loss becomes a given value from a given call on."""

    def __init__(self, value, call, where="train"):
        super().__init__()
        self.value, self.call, self.where, self.calls = value, call, where, 0

    def loss(self, batch):
        loss = super().loss(batch)
        self.calls += self.training == (self.where == "train")
        return Loss(loss.total * self.value, loss.count) if self.calls >= self.call else loss


def train_by_hand(module, batches, epochs, peak, clip, decay, betas):
    """The same training with torch's plain parts, every gradient and mean written out."""
    optimiser = torch.optim.Adam(
        module.parameters(), betas=betas, weight_decay=decay, foreach=False, fused=False
    )
    means = []
    for epoch in range(epochs):
        totals, counts = [], []
        for index, batch in enumerate(batches(epoch)):
            optimiser.param_groups[0]["lr"] = one_cycle((epoch + index / len(batches(epoch))) / epochs, peak)
            optimiser.zero_grad()
            error = module(batch.x) - batch.y
            error.square().mean().backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters()))
            for parameter in module.parameters():
                parameter.grad.mul_(min(1.0, clip / (norm + 1e-6)))  # the 1e-6 is torch's
            optimiser.step()
            totals.append(error.square().sum().item())
            counts.append(len(batch.x))
        means.append(sum(totals) / sum(counts))
    return means


class Double(Regression):
    def loss(self, batch):
        return Loss((self(batch.x) - batch.y).square().sum(), len(batch.x))


@pytest.mark.parametrize("clip", [0.5, 1e9], ids=["clipped", "free"])
def test_the_weights_are_those_of_plain_adam(clip):
    data = rows(50, dtype=torch.float64)
    ours, theirs = Double(), Double().double()
    options = {"weight_decay": 0.01, "betas": (0.8, 0.95), "clip": clip}
    settings = FitSettings(5, 0.05, precision="float64", **options)
    history = fit_module(ours, shuffled(data, 7), None, settings)
    means = train_by_hand(theirs, shuffled(data, 7), 5, 0.05, clip, 0.01, (0.8, 0.95))
    for name, expected in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], expected, rtol=1e-9, atol=1e-12)
    assert [record["train_loss"] for record in history.records] == pytest.approx(means, rel=1e-12)


def test_without_clip_gradients_are_as_long_as_they_are():
    data, modules = rows(40), [Regression(), Regression()]
    for module, clip in zip(modules, (None, 1e9), strict=True):
        fit_module(module, shuffled(data, 7), None, FitSettings(3, 0.05, clip=clip))
    assert equal(*map(weights, modules))


def test_the_mean_loss_counts_every_row_once():
    data = rows(41)
    even, uneven = (cut(data, *sizes) for sizes in ([41], [1, 30, 2, 8]))
    module = Regression()
    error = (module(data.x).double() - data.y.double()).square().mean()
    for batches in (even, uneven):
        history = fit_module(
            copy.deepcopy(module), lambda epoch: even, lambda b=batches: b, FitSettings(1, 1e-30)
        )
        assert history.records[0]["valid_loss"] == pytest.approx(error.item(), rel=1e-6)
        assert history.records[0]["train_loss"] == pytest.approx(error.item(), rel=1e-6)


def test_losses_are_added_in_float64():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def loss(self, batch):
            return Loss(self.weight * 0 + float(batch.x), 1)

    batches = [Rows(torch.tensor(value), torch.tensor(0.0)) for value in [2.0**25, *[1.0] * 15]]
    history = fit_module(Constant(), lambda epoch: batches, None, FitSettings(1, 0.1))
    assert history.records[0]["train_loss"] == (2.0**25 + 15) / 16  # float32 would lose the ones


def test_a_batch_that_counts_nothing_follows_its_total():
    class Uncounted(Regression):
        def loss(self, batch):
            loss = super().loss(batch)
            return Loss(loss.total, 0 if len(batch.x) == 1 else loss.count)

    data = rows(21)
    ours, theirs = Uncounted(), Regression()
    history = fit_module(ours, lambda epoch: cut(data, 20, 1), None, FitSettings(2, 0.01))
    expected = fit_module(theirs, lambda epoch: cut(data, 20, 1), None, FitSettings(2, 0.01))
    assert equal(weights(ours), weights(theirs))
    ratio = history.records[0]["train_loss"] / expected.records[0]["train_loss"]
    assert ratio == pytest.approx(21 / 20)


def test_records_have_the_promised_entries():
    batches = shuffled(rows(20), 5)
    history = fit_module(Regression(), batches, None, SETTINGS)
    assert [record["epoch"] for record in history.records] == [1, 2, 3, 4, 5, 6]
    assert set(history.records[0]) == {
        *("epoch", "train_loss", "valid_loss", "learning_rate", "seconds", "items_per_second"),
    }
    last_steps = [one_cycle((epoch + 3 / 4) / 6, 0.02) for epoch in range(6)]
    assert [record["learning_rate"] for record in history.records] == last_steps
    for record in history.records:
        assert record["valid_loss"] is None
        assert record["items_per_second"] * record["seconds"] >= 20
    assert (history.best_epoch, history.stopped_early) == (None, False)


def test_epochs_are_asked_for_from_zero():
    asked = []

    def batches(epoch):
        asked.append(epoch)
        return cut(rows(4), 4)

    fit_module(Regression(), batches, None, FitSettings(3, 0.01))
    assert asked == [0, 1, 2]


def test_the_rate_passes_through_the_corners_of_one_cycle():
    corners = {0.0: 0.04, 0.15: 0.52, 0.3: 1.0, 0.65: 0.5 + 2e-6, 1.0: 4e-6}
    for progress, share in corners.items():
        assert one_cycle(progress, 0.5) == pytest.approx(0.5 * share, rel=1e-12)


def test_the_rate_is_that_of_torch_in_the_limit_of_many_steps():
    steps = 20_000
    optimiser = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.3, steps, cycle_momentum=False)
    theirs = []
    for _ in range(steps):
        theirs.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    ours = [one_cycle(step / steps, 0.3) for step in range(steps)]
    # Their turn is one step early and their last step is the end: at most two steps' change.
    np.testing.assert_allclose(ours, theirs, atol=2 * 0.3 * math.pi / 2 / 0.3 / steps)


def test_the_best_weights_are_put_back():
    seen = {}
    module = Regression()

    class Keep(Recorder):
        def epoch(self, record):
            seen[record["epoch"]] = (record["valid_loss"], weights(module))

    train, valid = rows(8, seed=1), rows(30, seed=2)
    history = fit_module(
        module, shuffled(train, 8), lambda: cut(valid, 30), FitSettings(60, 0.1), observers=[Keep()]
    )
    best = min(seen, key=lambda epoch: seen[epoch][0])
    assert 1 < best < 60, "the setting does not overfit, so the test shows nothing"
    assert history.best_epoch == best
    assert not history.stopped_early
    assert equal(weights(module), seen[best][1])
    assert not equal(seen[best][1], seen[60][1])


@pytest.mark.parametrize("patience", [1, 4])
def test_training_stops_when_patience_runs_out(patience):
    train, valid = rows(8, seed=1), rows(30, seed=2)
    free, patient = Regression(), Regression()
    options = (shuffled(train, 8), lambda: cut(valid, 30))
    losses = [r["valid_loss"] for r in fit_module(free, *options, FitSettings(60, 0.1)).records]
    history = fit_module(patient, *options, FitSettings(60, 0.1, patience=patience))
    stop = next(n for n in range(1, 61) if n - (1 + int(np.argmin(losses[:n]))) >= patience)
    assert stop < 60
    assert [record["valid_loss"] for record in history.records] == losses[:stop]
    assert history.best_epoch == stop - patience
    assert history.stopped_early


class Traced(Regression):
    """Notes its weights after each step, and those that it is validated with."""

    def __init__(self):
        super().__init__()
        self.steps, self.validated = [], []

    def loss(self, batch):
        found = [value.clone() for value in weights(self).values()]
        (self.steps if self.training else self.validated).append(found)
        return super().loss(batch)


def averaged(steps, decay):
    """Return the averages after each step; the first of the steps is what there was before."""
    found = [steps[0]]
    for n, step in enumerate(steps[1:], 1):
        share = min(decay, (1 + n) / (10 + n))
        found.append([share * old + (1 - share) * new for old, new in zip(found[-1], step, strict=True)])
    return found


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_of_the_weights_is_validated_and_kept(decay):
    data, module, held_out = rows(20), Traced(), cut(rows(10, seed=1), 10)
    settings = FitSettings(6, 0.1, average=decay)
    history = fit_module(module, shuffled(data, 5), lambda: held_out, settings)
    trained = Traced()
    fit_module(trained, shuffled(data, 5), None, FitSettings(6, 0.1))
    # The weights themselves do not depend on the average; the last step of all is seen by the plain fit's end.
    found = averaged([*trained.steps, list(weights(trained).values())], decay)[4::4]
    for epoch, (seen, expected) in enumerate(zip(module.validated, found, strict=True), 1):
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-7)
        if epoch == history.best_epoch:
            torch.testing.assert_close(list(weights(module).values()), expected, rtol=1e-5, atol=1e-7)


def test_without_validation_the_last_average_stays():
    data, module, trained = rows(20), Regression(), Traced()
    fit_module(module, shuffled(data, 5), None, FitSettings(3, 0.1, average=0.8))
    fit_module(trained, shuffled(data, 5), None, FitSettings(3, 0.1))
    expected = averaged([*trained.steps, list(weights(trained).values())], 0.8)[-1]
    torch.testing.assert_close(list(weights(module).values()), expected, rtol=1e-5, atol=1e-7)


def test_an_average_that_forgets_all_is_none():
    plain, forgetting = Regression(), Regression()
    for module, average in ((plain, None), (forgetting, 0.0)):
        fit_module(
            module, shuffled(rows(20), 5), lambda: cut(rows(10), 10), FitSettings(4, 0.1, average=average)
        )
    assert equal(weights(plain), weights(forgetting))


def test_without_validation_the_last_weights_stay():
    data, module = rows(8), Regression()
    last = {}

    class Keep(Recorder):
        def epoch(self, record):
            last.update(weights(module))

    fit_module(module, shuffled(data, 8), None, FitSettings(10, 0.1, patience=1), observers=[Keep()])
    assert equal(weights(module), last)


def test_validation_sees_no_dropout_and_leaves_no_gradients():
    seen = []

    class Watch(Regression):
        def loss(self, batch):
            if len(batch.x) == 3:
                seen.append((self.training, torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
            else:
                assert self.training
            return super().loss(batch)

    module = Watch(dropout=0.5)
    history = fit_module(module, lambda epoch: cut(rows(20), 10, 10), lambda: cut(rows(3), 3), SETTINGS)
    assert seen == [(False, True, False)] * 6
    module.eval()
    best = min(record["valid_loss"] for record in history.records)
    assert best == pytest.approx((module(rows(3).x) - rows(3).y).square().mean().item(), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_module_is_as_before(training):
    module = Regression().train(training)
    fit_module(module, shuffled(rows(8), 4), lambda: cut(rows(8), 8), SETTINGS)
    assert module.training is training
    with pytest.raises(DataError):
        fit_module(module, lambda epoch: [], None, SETTINGS)
    assert module.training is training


def test_observers_hear_everything_in_order():
    recorder = Recorder()
    fit_module(Regression(), shuffled(rows(8), 4), None, FitSettings(2, 0.1), observers=[recorder])
    assert recorder.calls == [("begin", FitSettings(2, 0.1)), ("epoch", 1), ("epoch", 2), ("end", 2)]


def test_any_observer_can_stop_and_all_are_told():
    first, second = Recorder(stop_after=2), Recorder(stop_after=4)
    history = fit_module(Regression(), shuffled(rows(8), 4), None, SETTINGS, observers=[first, second])
    assert len(history.records) == 2
    assert history.stopped_early
    assert second.calls[1:] == [("epoch", 1), ("epoch", 2), ("end", 2)]


def test_stopping_after_the_last_epoch_is_not_early():
    history = fit_module(
        Regression(), shuffled(rows(8), 4), None, SETTINGS, observers=[Recorder(stop_after=6)]
    )
    assert not history.stopped_early


def test_what_an_observer_raises_passes_through():
    problem = KeyError("pruned")

    class Raising(Recorder):
        def epoch(self, record):
            raise problem

    with pytest.raises(KeyError) as caught:
        fit_module(Regression(), shuffled(rows(8), 4), None, SETTINGS, observers=[Raising()])
    assert caught.value is problem
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_with_its_place(value):
    module = Unstable(value, call=7)
    with pytest.raises(SeqattnError) as caught:
        fit_module(module, lambda epoch: cut(rows(20), *[5] * 4), None, SETTINGS)
    text = str(caught.value)
    assert text.startswith(f"Training loss is not finite in epoch 2, batch 3 (loss {value}).")
    assert "smaller learning_rate than 0.02" in text
    assert "units" in text


def test_a_validation_loss_that_is_not_finite_is_an_error_with_its_place():
    module = Unstable(math.nan, call=5, where="valid")
    with pytest.raises(
        SeqattnError, match=r"^Validation loss is not finite in epoch 3, batch 1 \(loss nan\)"
    ):
        fit_module(module, lambda epoch: cut(rows(5), 5), lambda: cut(rows(4), 2, 2), SETTINGS)


def test_a_gradient_that_is_not_finite_is_an_error():
    class Steep(Regression):
        def loss(self, batch):
            loss = super().loss(batch)
            return Loss(loss.total + (self.first.weight * 0).sum().abs().sqrt(), loss.count)

    with pytest.raises(SeqattnError, match=r"epoch 1, batch 1 \(gradient norm nan\)"):
        fit_module(Steep(), lambda epoch: cut(rows(5), 5), None, SETTINGS)


def test_losses_that_are_read_in_groups_are_added_and_named_one_by_one():
    def added(values):  # what a GPU needs; the tensors themselves may be anywhere
        sums = Sums("Not finite", SETTINGS, torch.device("cuda"))
        for value in values:
            sums.add(Loss(torch.tensor(float(value)), 2), torch.tensor(1.0))
        sums.read()
        return sums.mean()

    assert added(range(100)) == sum(range(100)) / 200
    with pytest.raises(SeqattnError, match=r"^Not finite, batch 41 \(loss nan\)"):
        added([*[1.0] * 40, math.nan, *[1.0] * 50])


def test_data_without_batches_or_terms_are_refused():
    with pytest.raises(DataError, match="no batches to train on"):
        fit_module(Regression(), lambda epoch: [], None, SETTINGS)
    with pytest.raises(DataError, match="Nothing counts"):
        fit_module(Regression(), lambda epoch: cut(rows(5), 5), list, SETTINGS)


def test_global_random_states_are_left_alone():
    def states():  # Python's own generator is drawn from by the type checks of the tests
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002

    module = Regression(dropout=0.5)
    before = states()
    fit_module(module, shuffled(rows(20), 5), lambda: cut(rows(5), 5), SETTINGS)
    assert states() == before


def test_the_same_seed_gives_the_same_bits_whatever_else_draws():
    class Drawing(Recorder):
        def epoch(self, record):
            torch.rand(3)

    results = []
    for global_seed, observers, seed in [(0, [], 5), (1, [Drawing()], 5), (0, [], 6)]:
        torch.manual_seed(global_seed)
        module = Regression(dropout=0.5)
        fit_module(module, shuffled(rows(20), 5), None, FitSettings(4, 0.05, seed=seed), observers=observers)
        results.append(weights(module))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_dropout_differs_between_epochs_but_validation_draws_the_same():
    draws = {True: [], False: []}

    class Drawing(Regression):
        def loss(self, batch):
            draws[self.training].append(float(torch.rand(())))
            return super().loss(batch)

    fit_module(Drawing(), lambda epoch: cut(rows(5), 5), lambda: cut(rows(5), 5), SETTINGS)
    assert len(set(draws[True])) == 6
    assert len(set(draws[False])) == 1


def test_parts_that_are_frozen_stay():
    module = Regression()
    module.first.requires_grad_(False)
    before = weights(module)
    fit_module(module, shuffled(rows(20), 5), None, SETTINGS)
    after = weights(module)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["second.weight", "second.bias"]


def test_bf16_is_used_in_the_forward_pass_only():
    seen = set()

    class Watch(Regression):
        def forward(self, x):
            hidden = self.first(x)
            seen.add((hidden.dtype, self.training))
            return self.second(torch.tanh(hidden))

    ours, exact = Watch(), Watch()
    batches, valid = shuffled(rows(40), 10), lambda: cut(rows(10, seed=9), 10)
    history = fit_module(ours, batches, valid, FitSettings(20, 0.02, precision="bf16"))
    assert seen == {(torch.bfloat16, True), (torch.bfloat16, False)}
    assert {value.dtype for value in weights(ours).values()} == {torch.float32}
    expected = fit_module(exact, batches, valid, FitSettings(20, 0.02))
    losses = [[r["valid_loss"] for r in h.records] for h in (history, expected)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


def test_float64_converts_the_module():
    module = Double()
    history = fit_module(
        module, shuffled(rows(20, dtype=torch.float64), 5), None, FitSettings(2, 0.05, precision="float64")
    )
    assert {value.dtype for value in weights(module).values()} == {torch.float64}
    loss = history.records[0]["train_loss"]
    assert loss != float(np.float32(loss)), "the mean has float32 precision only"


def test_a_loss_in_float64_of_a_module_in_float32_is_kept_exactly():
    class Mixed(Regression):
        def loss(self, batch):
            loss = super().loss(batch)
            return Loss(loss.total.double() + 1e-12, loss.count)

    histories = [
        fit_module(m, shuffled(rows(8), 8), None, FitSettings(1, 0.1)) for m in (Mixed(), Regression())
    ]
    found, expected = (history.records[0]["train_loss"] * 8 for history in histories)
    assert found - expected == pytest.approx(1e-12, rel=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
def test_a_gpu_learns_the_same_and_its_generator_is_left_alone(precision):
    modules = [Regression(), Regression()]
    before = torch.cuda.get_rng_state().tolist()
    losses = []
    for module, device in zip(modules, ("cpu", "cuda"), strict=True):
        settings = FitSettings(8, 0.02, device=device, precision=precision)
        history = fit_module(module, shuffled(rows(200), 4), lambda: cut(rows(10, seed=9), 10), settings)
        losses.append([record["valid_loss"] for record in history.records])
    assert modules[1].first.weight.device.type == "cuda"
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05 if precision == "bf16" else 1e-3)
    fit_module(Regression(dropout=0.5), shuffled(rows(20), 4), None, FitSettings(2, 0.02, device="cuda"))
    assert torch.cuda.get_rng_state().tolist() == before
