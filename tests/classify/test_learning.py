"""What the classifier learns: planted differences, real sets, few and rare cases, and fits that were interrupted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import with_level, with_order, with_pattern

from seqattn import load
from seqattn.classify import fitting
from seqattn.classify.cases import case_batch
from seqattn.classify.estimator import VSFormerClassifier
from seqattn.classify.readout import Readout
from seqattn.classify.tokens import Tokeniser
from seqattn.data.catalog import load_dataset
from seqattn.data.panels import Panel
from seqattn.errors import ArtifactError, ParameterError, SeqattnWarning
from seqattn.train.callbacks import JsonLog, Progress

SEEDED = {"random_state": 0, "device": "cpu"}
QUICK = {
    **SEEDED,
    "shape_tokens": 16,
    "value_tokens": 16,
    "readout_shapes": 64,
    "d_model": 8,
    "n_heads": 2,
    "n_layers": 1,
    "epochs": 4,
}
# The network of the paper, without what was added to it.
PAPER = {
    **SEEDED,
    "shapes": "motif",
    "readout_shapes": 0,
    "derivatives": False,
    "shape_tokens": 64,
    "d_model": 16,
    "n_heads": 2,
    "epochs": 60,
    "batch_size": 16,
}
REAL = pytest.mark.skipif(
    not Path(os.environ.get("SEQATTN_DATA", ""), "uea").is_dir(), reason="no UEA archive"
)


def blobs(seed: int, sizes: list[int], apart: float = 1.5, time: int = 12) -> Panel:
    """Noise on a level of each class in two channels; the classes lie on a grid."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    side = int(np.ceil(np.sqrt(len(sizes))))
    levels = np.stack([codes % side, codes // side], axis=1) * apart
    return Panel(levels[:, :, None] + rng.normal(size=(len(codes), 2, time)), codes)


def same_weights(one: VSFormerClassifier, other: VSFormerClassifier) -> bool:
    pairs = zip(one.modules_, other.modules_, strict=True)
    states = [(left.state_dict(), right.state_dict()) for left, right in pairs]
    return all(torch.equal(value, right[name]) for left, right in states for name, value in left.items())


# -- planted differences ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", ["paper", "defaults"])
def test_a_pattern_at_random_places_is_learnt(way):
    train, test = with_pattern(0, n_cases=60)[0], with_pattern(1, n_cases=100)[0]
    model = VSFormerClassifier(**PAPER if way == "paper" else {**SEEDED, "epochs": 20}).fit(train)
    assert model.score(test) >= 0.95
    if way == "paper":
        best = model.shapes_.sort("prior", descending=True).row(0, named=True)
        assert (best["class"], best["channel"]) == ("with", 2)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "kinds"), [("paper", "value"), ("paper", "both"), ("defaults", "both")])
def test_the_level_of_one_quarter_is_learnt_from_values(way, kinds):
    train, test = with_level(0, n_cases=60, height=1.5), with_level(1, n_cases=100, height=1.5)
    settings = {**PAPER, "epochs": 30} if way == "paper" else {**SEEDED, "epochs": 10}
    model = VSFormerClassifier(**settings, tokens=kinds).fit(train)
    rows = model.intervals_.filter(~model.intervals_["is_difference"])
    ((prior,),) = rows.filter(channel=1, start=0.25, end=0.5).select("prior").rows()
    assert prior == rows["prior"].max() > rows.filter(rows["channel"] != 1)["prior"].max() + 0.3
    assert model.score(test) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("way", ["paper", "defaults"])
def test_the_order_of_two_shapes_is_learnt_from_shapes(way):
    train, test = with_order(0, n_cases=80), with_order(1, n_cases=100)
    settings = {**PAPER, "window_fractions": (0.2,)} if way == "paper" else {**SEEDED, "epochs": 10}
    assert VSFormerClassifier(**settings, tokens="shape").fit(train).score(test) >= 0.95


# -- real sets -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_basic_motions():
    model = VSFormerClassifier(**SEEDED).fit(load_dataset("BasicMotions", "train"))
    assert model.score(load_dataset("BasicMotions", "test")) >= 0.95


@pytest.mark.slow
@REAL
def test_ering():
    model = VSFormerClassifier(**SEEDED).fit(load_dataset("ERing", "train"))
    assert model.score(load_dataset("ERing", "test")) >= 0.92


# -- few and rare cases ----------------------------------------------------------------------------------------


def test_twelve_cases_are_enough_for_classes_that_lie_apart():
    model = VSFormerClassifier(**{**QUICK, "epochs": 10}).fit(blobs(0, [4, 4, 4], apart=3))
    assert model.score(blobs(1, [20, 20, 20], apart=3)) >= 0.95


def test_twenty_six_classes_are_told_apart():
    levels = np.random.default_rng(0).normal(size=(26, 8)) * 2

    def cases(seed: int, size: int) -> Panel:
        codes = np.repeat(np.arange(26), size)
        noise = np.random.default_rng(seed).normal(size=(len(codes), 8, 12))
        return Panel(levels[codes][:, :, None] + noise, codes)

    model = VSFormerClassifier(**QUICK).fit(cases(1, 6))
    # Chance is 0.04.
    assert model.score(cases(2, 10)) >= 0.8
    assert model.predict_proba(cases(2, 1)).shape == (26, 26)


def test_a_class_of_one_case_is_told_of_and_learnt():
    with pytest.warns(SeqattnWarning, match="1 of 3 classes have one training case, for example 2"):
        model = VSFormerClassifier(**QUICK).fit(blobs(0, [8, 8, 1], apart=5))
    assert np.isfinite(model.predict_proba(blobs(1, [5, 5, 5], apart=5))).all()
    assert (model.shapes_.filter(model.shapes_["class"] == 2)["prior"] == 0).all()


@pytest.mark.parametrize("part", ["readout", "network"])
def test_class_weights_help_a_rare_class(part):
    setting = (
        {"network_weight": 0} if part == "readout" else {"readout_shapes": 0, "epochs": 12, "batch_size": 25}
    )
    train, test = blobs(0, [90, 10], apart=0.4), blobs(1, [100, 100], apart=0.4)
    found = {}
    for weight in (None, "balanced", {0: 1.0, 1: 9.0}):
        model = VSFormerClassifier(**{**QUICK, **setting}, class_weight=weight).fit(train)
        found[str(weight)] = model.predict_proba(test)[100:, 1].mean()
    plain, balanced, given = found.values()
    assert balanced > plain + 0.1
    assert given == pytest.approx(balanced, abs=1e-6)


@pytest.mark.parametrize("weight", [{0: 0.0, 1: 1.0}, {0: -1.0}, {0: np.nan}])
def test_weights_of_classes_are_positive(weight):
    with pytest.raises(ParameterError, match="class_weight gives class 0 the weight"):
        VSFormerClassifier(**QUICK, class_weight=weight).fit(blobs(0, [5, 5]))


@pytest.mark.parametrize("change", [{"prior_floor": 0.0}, {"prior_floor": 1.5}, {"prior_strength": -1.0}])
def test_priors_are_kept_within_bounds(change):
    ((name, value),) = change.items()
    with pytest.raises(ParameterError, match=f"{name}={value} is not allowed"):
        VSFormerClassifier(**QUICK, **change).fit(blobs(0, [5, 5]))


# -- epochs and probabilities ----------------------------------------------------------------------------------


def test_a_share_of_the_cases_chooses_the_number_of_epochs_for_all():
    train = blobs(0, [20, 20], apart=0.3)
    settings = {**QUICK, "epochs": 15, "readout_shapes": 0, "learning_rate": 0.05, "dropout": 0.0}
    model = VSFormerClassifier(**settings, validation=0.25).fit(train)
    chosen = model.fit_report_["validation"]
    assert chosen["cases"] == 10
    assert len(model.history_.records) == chosen["best_epoch"] < 15
    plain = VSFormerClassifier(**{**settings, "epochs": chosen["best_epoch"]}).fit(train)
    assert same_weights(model, plain)


def test_held_out_cases_bring_the_best_epoch_back():
    train, test = blobs(0, [20, 20], apart=0.3), blobs(1, [50, 50], apart=0.3)
    settings = {**QUICK, "readout_shapes": 0, "learning_rate": 0.05, "dropout": 0.0, "label_smoothing": 0.0}
    settings |= {"epochs": 15, "n_members": 1}
    model = VSFormerClassifier(**settings).fit(train, validation=test)
    losses = [record["valid_loss"] for record in model.history_.records]
    assert model.history_.best_epoch == 1 + int(np.argmin(losses)) < 15
    own = -np.log(model.predict_proba(test)[np.arange(100), test.labels]).mean()
    assert own == pytest.approx(min(losses), rel=1e-5)
    early = VSFormerClassifier(**settings, patience=2).fit(train, validation=test)
    assert early.history_.stopped_early
    assert len(early.history_.records) < 15


def watch_training(monkeypatch) -> list[tuple[int, bool]]:
    """Note the epochs of each training that follows, and whether cases were held out."""
    seen, real = [], fitting.fit_module

    def spy(module, batches, valid, settings, **rest):
        seen.append((settings.epochs, valid is not None))
        return real(module, batches, valid, settings, **rest)

    monkeypatch.setattr(fitting, "fit_module", spy)
    return seen


def test_one_network_without_a_readout_chooses_the_number_of_epochs(monkeypatch):
    seen, readouts, real = watch_training(monkeypatch), [], Readout.fit.__func__

    def spy(*arguments):
        readouts.append(len(arguments[2]))
        return real(*arguments)

    monkeypatch.setattr(Readout, "fit", classmethod(spy))
    model = VSFormerClassifier(**QUICK, n_members=3, validation=0.25).fit(blobs(0, [20, 20]))
    best = model.fit_report_["validation"]["best_epoch"]
    assert seen == [(4, True), *[(best, False)] * 3]
    assert readouts == [40]


def test_the_readout_alone_needs_no_choice_of_epochs(monkeypatch):
    seen = watch_training(monkeypatch)
    model = VSFormerClassifier(**QUICK, network_weight=0, validation=0.25).fit(blobs(0, [20, 20]))
    assert seen == []
    assert "validation" not in model.fit_report_


def test_what_is_calibrated_has_the_epochs_of_what_is_used(monkeypatch):
    seen, train = watch_training(monkeypatch), blobs(0, [20, 20], apart=0.3)
    settings = {**QUICK, "n_members": 1, "epochs": 15, "learning_rate": 0.05, "dropout": 0.0}
    model = VSFormerClassifier(**settings, validation=0.25, calibration=0.25).fit(train)
    best = model.fit_report_["validation"]["best_epoch"]
    assert best < 15
    assert seen == [(15, True), (best, False), (best, False)]
    seen.clear()
    VSFormerClassifier(**settings, calibration=0.25).fit(train, validation=blobs(1, [9, 9]))
    assert seen == [(15, True), (15, True)]


@pytest.mark.slow
def test_calibration_makes_probabilities_of_a_certain_network_truer():
    train, test = blobs(0, [50, 50], apart=0.25), blobs(1, [200, 200], apart=0.25)
    settings = {**QUICK, "readout_shapes": 0, "epochs": 30, "label_smoothing": 0.0, "dropout": 0.0}
    settings |= {"learning_rate": 0.03, "weight_decay": 0.0}
    plain = VSFormerClassifier(**settings).fit(train)
    calibrated = VSFormerClassifier(**settings, calibration=0.3).fit(train)
    assert same_weights(plain, calibrated)
    assert np.array_equal(plain.predict(test), calibrated.predict(test))
    assert calibrated.temperature_ > 1

    def loss(model):
        return -np.log(model.predict_proba(test)[np.arange(400), test.labels] + 1e-12).mean()

    assert loss(calibrated) < loss(plain) - 0.05


# -- members, checkpoints, patterns ----------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", ["dilated", "motif"])
def test_logits_of_members_are_averaged(shapes):
    train, test = with_level(0), with_level(1)
    model = VSFormerClassifier(**{**QUICK, "readout_shapes": 0}, n_members=3, shapes=shapes).fit(train)
    assert len(model.modules_) == 3
    whole, members = model._logits(model.tokenise(test)), model.modules_
    own = [model.tokeniser_.own(member) for member in range(3)]
    assert np.array_equal(np.sort(np.concatenate(own)), np.arange(model.tokenise(test).share.shape[1]))
    tokens = model.tokenise(test)
    with torch.inference_mode():
        parts = [
            module(case_batch(tokens, part)).double().numpy()
            for module, part in zip(members, own, strict=True)
        ]
    np.testing.assert_allclose(whole, np.mean(parts, axis=0), atol=1e-6)
    assert not np.allclose(parts[0], parts[1])


def test_the_history_is_that_of_the_first_member():
    train = blobs(0, [12, 12])
    found = VSFormerClassifier(**QUICK, n_members=2).fit(train).history_
    told: list[float] = []

    class Listen(Progress):
        def begin(self, settings):
            pass

        def epoch(self, record):
            told.append(record["train_loss"])

        def end(self, history):
            pass

    VSFormerClassifier(**QUICK, n_members=2).fit(train, observers=[Listen()])
    assert len(told) == 8
    assert [record["train_loss"] for record in found.records] == told[:4] != told[4:]


@pytest.mark.parametrize(("precision", "most"), [("float64", 1e-4), ("bf16", 0.1)])
def test_every_precision_can_be_trained_saved_and_explained(precision, most, tmp_path):
    train, test = with_level(0), with_level(1)
    settings = {**QUICK, "n_members": 1, "readout_shapes": 0, "dropout": 0.0, "epochs": 2}
    plain = VSFormerClassifier(**settings).fit(train, validation=test)
    model = VSFormerClassifier(**settings, precision=precision).fit(train, validation=test)
    found = model.predict_proba(test)
    assert 0 < np.abs(found - plain.predict_proba(test)).max() < most
    assert {part.dtype for part in model.modules_[0].parameters()} == {
        torch.float64 if precision == "float64" else torch.float32
    }
    loaded = load(model.save(tmp_path / "model.safetensors"))
    assert np.array_equal(loaded.predict_proba(test), found)
    explanation = model.explain(test)
    np.testing.assert_allclose(explanation.map.sum(axis=(1, 2)), explanation.difference, atol=1e-5)


@pytest.mark.parametrize("members", [1, 2])
def test_a_fit_that_was_interrupted_goes_on_to_the_same_bits(members, tmp_path):
    train, test = with_level(0), with_level(1)
    settings = {**QUICK, "epochs": 5, "dropout": 0.3, "n_members": members}
    straight = VSFormerClassifier(**settings).fit(train)

    path = tmp_path / "fit.safetensors"
    with pytest.raises(Stop):
        VSFormerClassifier(**settings).fit(
            train, checkpoint=path, observers=[Interrupt(3 if members == 1 else 8)]
        )
    told = Interrupt()
    resumed = VSFormerClassifier(**settings).fit(train, checkpoint=path, observers=[told])
    # The epoch in which it was interrupted is trained again.
    assert [record["epoch"] for record in told.records] == [3, 4, 5]
    assert same_weights(resumed, straight)
    assert np.array_equal(resumed.predict_proba(test), straight.predict_proba(test))


@pytest.mark.parametrize("attention", ["local", "dilated"])
def test_other_patterns_of_attention_learn_too(attention, tmp_path):
    train, test = with_level(0, height=1.5), with_level(1, height=1.5)
    settings = {**QUICK, "readout_shapes": 0, "epochs": 30, "batch_size": 16}
    model = VSFormerClassifier(**settings, attention=attention).fit(train)
    assert model.score(test) >= 0.9
    again = load(model.save(tmp_path / "model.safetensors"))
    assert np.array_equal(again.predict_proba(test), model.predict_proba(test))


class Stop(Exception):
    pass


class Interrupt(Progress):
    """Raises when it is told of an epoch, counted over all members; notes the records before."""

    def __init__(self, at: int | None = None):
        self.at, self.records = at, []

    def begin(self, settings):
        pass

    def epoch(self, record):
        if len(self.records) + 1 == self.at:
            raise Stop
        self.records.append(record)

    def end(self, history):
        pass


def test_checkpoints_of_several_fits_lie_side_by_side(tmp_path):
    train = blobs(0, [6, 6])
    settings = {**QUICK, "epochs": 1, "n_members": 2}
    for seed, name in enumerate(["fold.0", "fold.1", "fold"]):
        VSFormerClassifier(**settings | {"random_state": seed}).fit(train, checkpoint=tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold", "fold.0", "fold.1"]


def test_a_checkpoint_is_for_the_same_held_out_and_watched_cases_only(tmp_path):
    train, test = blobs(0, [6, 6]), blobs(1, [6, 6])
    model = VSFormerClassifier(**{**QUICK, "epochs": 1, "n_members": 1})
    for name in ("validation", "watch"):
        path = tmp_path / name
        model.fit(train, checkpoint=path, **{name: test})
        for other in (test.select(range(5)), None):
            with pytest.raises(ArtifactError, match="held_out is" if name == "validation" else "watched is"):
                model.fit(train, checkpoint=path, **{name: other})


@pytest.mark.parametrize("at", [2, 5, 7])
def test_watched_epochs_outlive_an_interruption(at, tmp_path):
    train, test = blobs(0, [8, 8], apart=0.5), blobs(1, [20, 20], apart=0.5)
    settings = {**QUICK, "epochs": 4, "n_members": 2, "learning_rate": 0.05, "readout_shapes": 0}

    def accuracies(model):
        return [record["watched_accuracy"] for record in model.history_.records]

    straight = VSFormerClassifier(**settings).fit(train, watch=test)
    path = tmp_path / "fit"
    with pytest.raises(Stop):
        VSFormerClassifier(**settings).fit(train, checkpoint=path, watch=test, observers=[Interrupt(at)])
    resumed = VSFormerClassifier(**settings).fit(train, checkpoint=path, watch=test)
    assert accuracies(resumed) == accuracies(straight)
    assert accuracies(straight)[-1] == straight.score(test)
    assert len(set(accuracies(straight))) > 1


def test_the_log_holds_the_epochs_of_every_network(tmp_path):
    log, told = tmp_path / "log.jsonl", tmp_path / "fit"
    settings = {**QUICK, "epochs": 3, "n_members": 2}
    with pytest.raises(Stop):
        VSFormerClassifier(**settings).fit(
            blobs(0, [6, 6]), checkpoint=told, observers=[JsonLog(log), Interrupt(4)]
        )
    model = VSFormerClassifier(**settings).fit(blobs(0, [6, 6]), checkpoint=told, observers=[JsonLog(log)])
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(record["member"], record["epoch"]) for record in records] == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 1),
        (1, 2),
        (1, 3),
    ]
    assert records[:3] == model.history_.records
    model.set_params(n_members=1).fit(blobs(0, [6, 6]), observers=[JsonLog(log)])
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert records == model.history_.records
    assert "member" not in records[0]


def test_networks_of_next_to_no_weight_are_left_out(monkeypatch):
    train, test = blobs(0, [8, 8], apart=0.5), blobs(1, [20, 20], apart=0.5)
    settings = {**QUICK, "epochs": 2, "n_members": 2}
    monkeypatch.setattr(fitting, "_LEAST_BLEND", 0.0)
    whole = VSFormerClassifier(**settings).fit(train)
    readout, networks = whole.blend_
    assert networks > 0
    monkeypatch.setattr(fitting, "_LEAST_BLEND", networks)
    assert (VSFormerClassifier(**settings).fit(train).blend_ == whole.blend_).all()
    monkeypatch.setattr(fitting, "_LEAST_BLEND", networks * (1 + 1e-9))
    without = VSFormerClassifier(**settings).fit(train)
    assert without.blend_.tolist() == [readout, 0.0]
    monkeypatch.setattr(VSFormerClassifier, "_member_logits", None)
    logits = np.log(without.predict_proba(test))
    expected = readout * without.readout_.outputs(without.tokenise(test).families)
    np.testing.assert_allclose(
        logits - logits.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-9
    )


def test_watched_cases_become_tokens_once_and_the_time_of_it_is_told(monkeypatch):
    train, test = blobs(0, [6, 6]), blobs(1, [40, 40])
    tokenise, spent = Tokeniser.__call__, []

    def timed(tokeniser, panel, *more):
        began = time.perf_counter()
        found = tokenise(tokeniser, panel, *more)
        if len(panel) == len(test):
            spent.append(time.perf_counter() - began)
        return found

    monkeypatch.setattr(Tokeniser, "__call__", timed)
    model = VSFormerClassifier(**{**QUICK, "epochs": 1, "n_members": 2}).fit(train, watch=test)
    assert len(spent) == 1
    assert spent[0] < model.fit_report_["watched_seconds"] < model.fit_report_["seconds"]


def test_class_weights_and_arrays_among_the_parameters_are_saved(tmp_path):
    model = VSFormerClassifier(**{**QUICK, "epochs": 1, "n_members": 1}, class_weight={0: 2.0, 1: 1.0})
    # Not by the constructor, whose annotation the tests enforce and users do not.
    model.set_params(granularities=np.array([1, 2])).fit(blobs(0, [6, 6]))
    again = load(model.save(tmp_path / "model"))
    assert again.class_weight == {0: 2.0, 1: 1.0}
    assert again.granularities == [1, 2]
    again.fit(blobs(0, [6, 6]))
    assert same_weights(again, model)
