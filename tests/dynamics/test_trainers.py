"""Training: the exact laws that every run must obey, and ways in which runs may not depend on each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from random_classes import draw_classes

from seqattn.dynamics import ScanAndSnapStudy, SequenceClasses, syn, syn_small
from seqattn.errors import ArtifactError

EVERY = {"record_at": "linear", "n_records": 10_000, "n_snapshots": 10_000}


def drifts(classes, **settings):
    result = ScanAndSnapStudy(**settings).fit(classes).result_
    return result.array("row_sum_drift")[:, -1]


# -- rows keep their sums --------------------------------------------------------------------------------------


def test_rows_keep_their_sums_under_momentum_and_not_under_adam():
    classes, steps = draw_classes(0, V=7), {"n_steps": 300, "n_records": 3, "lr_y": 0.5}
    assert drifts(classes, momentum=0.9, init="uniform", **steps).max() < 1e-12
    # A hidden re-centring of the parameters would keep Adam's rows too.
    assert drifts(classes, optimizer="adam", **steps).min() > 1e-3


def test_the_flow_keeps_the_sums_of_rows_and_absent_tokens():
    classes = draw_classes(1, V=7, queries=4)
    study = ScanAndSnapStudy(trainer="flow", n_steps=200, n_records=3, init="uniform").fit(classes)
    assert study.result_.array("row_sum_drift").max() < 1e-12
    start = ScanAndSnapStudy(trainer="flow", n_steps=1e-9, init="uniform").fit(classes).parameters_
    absent = classes.kinds() == "absent"
    unseen = np.setdiff1d(np.arange(4), classes.query)
    end = study.parameters_
    torch.testing.assert_close(end.Y[:, absent], start.Y[:, absent], rtol=0, atol=0)
    torch.testing.assert_close(end.Z[:, :, absent], start.Z[:, :, absent], rtol=0, atol=0)
    torch.testing.assert_close(end.Z[:, unseen], start.Z[:, unseen], rtol=0, atol=0)


# -- the balance law -------------------------------------------------------------------------------------------


def trajectory(classes, **settings):
    """Return the study, and the parameters after every step as arrays."""
    saved = []

    def keep(progress):
        parameters = progress.trainer.parameters
        saved.append((parameters.Y[0].numpy().copy(), parameters.Z[0].numpy().copy()))

    study = ScanAndSnapStudy(**EVERY, **settings).fit(classes, observers=[keep])
    return study, saved


def seen(Y, Z, mass, query, label, norm):
    """Return decoder input and s of each example, written down once more from their definition."""
    odds = mass * np.exp(Z[query])
    c = odds / odds.sum(1, keepdims=True)
    f = c / np.linalg.norm(c, axis=1, keepdims=True) if norm == "l2" else c
    logits = f @ Y
    alpha = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = np.eye(Y.shape[1])[label] - alpha
    return c, f, (f * (error @ Y.T)).sum(1, keepdims=True)


def balance(saved, batches, lr_y, lr_z, norm, corrected=True):
    """Return how far the law's sum moves from its start, for each token, with the scale of its terms."""
    total = np.zeros(saved[0][0].shape[0])
    for (Y, Z), (after, _), (mass, query, label, weight) in zip(saved, saved[1:], batches, strict=False):
        c, f, s = seen(Y, Z, mass, query, label, norm)
        total += (weight[:, None] * (f**2 if norm == "l2" else c) * s).sum(0)
        if corrected:
            total += lr_y / 2 * np.square((after - Y) / lr_y).sum(1)
    (Y0, Z0), (Y, Z) = saved[0], saved[-1]
    grown = np.square(Y).sum(1) - np.square(Y0).sum(1)
    return np.abs((Z - Z0).sum(0) / lr_z - grown / (2 * lr_y) + total).max(), grown.max() / (2 * lr_y)


@pytest.mark.parametrize("norm", ["l2", "none"])
def test_every_run_of_plain_sgd_obeys_the_discrete_balance_law(norm):
    classes = draw_classes(2, V=7)
    settings = {"lr_y": 0.9, "lr_z": 0.6, "n_steps": 300, "batch_size": 16, "seq_len": 20, "random_state": 5}
    study, saved = trajectory(classes, norm=norm, init="uniform", **settings)
    rng = np.random.default_rng([5, 1])
    batches = [(*classes.sample(16, 19, rng, counts=True), np.full(16, 1 / 16)) for _ in range(300)]
    residual, scale = balance(saved, batches, 0.9, 0.6, norm)
    assert scale > 3
    assert residual < 1e-10 * scale
    # What the study itself says of the run.
    assert study.result_.array("balance_residual").max() < 1e-10


@pytest.mark.parametrize("norm", ["l2", "none"])
def test_without_its_correction_the_law_drifts_in_proportion_to_the_step(norm):
    classes = draw_classes(2, V=7)
    whole = (classes.P, classes.query, classes.label, classes.weight)
    drift = []
    for lr in (0.4, 0.2, 0.1):
        steps = round(40 / lr)
        _, saved = trajectory(classes, trainer="batch", norm=norm, lr_y=lr, lr_z=lr, n_steps=steps)
        drift.append(lr * balance(saved, [whole] * steps, lr, lr, norm, corrected=False)[0])
    assert all(1.8 < a / b < 2.3 for a, b in itertools.pairwise(drift)), drift


@pytest.mark.parametrize("norm", ["l2", "none"])
def test_the_flow_obeys_the_balance_law_to_fourth_order(norm):
    classes = draw_classes(3, V=7)
    errors = []
    for dt in (0.5, 0.25):
        study = ScanAndSnapStudy(
            trainer="flow", dt=dt, norm=norm, lr_y=1.5, lr_z=0.8, n_steps=20, record_at=[20]
        )
        errors.append(study.fit(classes).result_.array("balance_residual")[0, -1])
    assert 14 < errors[0] / errors[1] < 18, errors
    fine = ScanAndSnapStudy(trainer="flow", norm=norm, lr_y=1.5, lr_z=0.8, n_steps=20, rtol=1e-11)
    assert fine.fit(classes).result_.array("balance_residual").max() < 1e-8


def test_only_runs_with_a_balance_law_have_its_residual():
    for settings in ({"momentum": 0.5}, {"optimizer": "adam"}, {"norm": "layernorm"}):
        result = ScanAndSnapStudy(n_steps=3, **settings).fit(draw_classes(0)).result_
        assert np.isnan(result.array("balance_residual")).all()


# -- other laws of the flow ------------------------------------------------------------------------------------


def test_in_the_flow_larger_rates_are_longer_training():
    classes = draw_classes(4, V=7)
    ends = [
        ScanAndSnapStudy(
            trainer="flow", dt=0.1 / a, lr_y=0.8 * a, lr_z=0.5 * a, n_steps=12 / a, record_at=[12 / a]
        )
        .fit(classes)
        .parameters_
        for a in (1.0, 3.0)
    ]
    torch.testing.assert_close(ends[0].Y, ends[1].Y, atol=1e-10, rtol=0)
    torch.testing.assert_close(ends[0].Z, ends[1].Z, atol=1e-10, rtol=0)


SAME = np.tile([[0.2, 0.3, 0.5, 0.0]], (4, 1))
ALONE = np.eye(4)
APART = np.array([[0.3, 0.7, 0, 0, 0, 0, 0, 0], [0, 0, 0.4, 0.6, 0, 0, 0, 0]])
APART = np.vstack([APART, np.roll(APART, 4, axis=1)])


@pytest.mark.parametrize("P", [SAME, ALONE, APART], ids=["identical", "one token each", "nothing shared"])
@pytest.mark.parametrize("label", [[0, 1, 2, 3], [0, 1, 0, 1]], ids=["unique", "repeated"])
def test_attention_stays_where_there_is_nothing_to_tell_apart(P, label):
    classes = SequenceClasses(P, [0, 0, 0, 0], label, weight=[0.1, 0.2, 0.3, 0.4], n_outputs=6)
    study = ScanAndSnapStudy(trainer="flow", lr_y=3.0, lr_z=2.0, n_steps=50, n_records=3).fit(classes)
    assert study.parameters_.Z.abs().max() < 1e-12
    assert study.parameters_.Y.abs().max() > 1


@pytest.mark.parametrize("ratio", [1.0, 10.0])
def test_with_labels_of_their_own_no_distinct_token_falls(ratio):
    for seed in range(20):
        classes = draw_classes(seed, K=4, M=10, V=(4, 9)[seed % 2], unique=True, queries=1)
        study = ScanAndSnapStudy(
            trainer="flow", ratio=ratio, lr_z=1.0, n_steps=60, n_records=12, n_snapshots=12
        )
        z = study.fit(classes).result_.array("z")[0, :, 0]
        distinct = classes.kinds() == "distinct"
        assert np.diff(z[:, distinct], axis=0).min(initial=0) > -1e-10, seed


@pytest.mark.parametrize(("V", "l2", "none"), [(2, -0.55, -0.87), (34, -0.40, -0.19), (1000, -0.29, 1.01)])
def test_the_norm_decides_whether_common_tokens_fall(V, l2, none):
    classes = syn(n_outputs=V)
    ends = {}
    for norm in ("l2", "none"):
        study = ScanAndSnapStudy(
            trainer="flow", norm=norm, lr_y=2.0, n_steps=300, n_records=30, n_snapshots=30, rtol=1e-7
        )
        z = study.fit(classes).result_.array("z")[0, :, 0]
        ends[norm] = z[-1, 0]
        if norm == "l2":
            assert (np.diff(z[:, 0]) < 0).all()
            assert (np.diff(z[:, 10:30], axis=0) > 0).all()
        elif V == 1000:
            assert (np.diff(z[:, 0]) > 0).any()
    assert ends["l2"] == pytest.approx(l2, abs=0.006)
    assert ends["none"] == pytest.approx(none, abs=0.006)


# -- what may not matter ---------------------------------------------------------------------------------------

SHORT = {"trainer": "batch", "momentum": 0.5, "lr_y": 0.7, "lr_z": 0.4, "n_steps": 30, "n_records": 3}


def end(classes, **settings):
    return ScanAndSnapStudy(**{**SHORT, **settings}).fit(classes).parameters_


def test_tokens_and_classes_may_be_numbered_in_any_way():
    classes, rng = draw_classes(5, V=7), np.random.default_rng(0)
    tokens, order = rng.permutation(classes.n_tokens), rng.permutation(len(classes))
    turned = SequenceClasses(
        classes.P[order][:, tokens],
        classes.query[order],
        classes.label[order],
        classes.weight[order],
        n_outputs=7,
        n_queries=2,
    )
    one, two = end(classes), end(turned)
    torch.testing.assert_close(one.Y[:, tokens], two.Y, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(one.Z[:, :, tokens], two.Z, rtol=1e-11, atol=1e-13)


def test_a_class_may_be_cut_in_two():
    classes = draw_classes(6, V=7)
    rows = np.r_[0, np.arange(len(classes))]
    weight = classes.weight[rows].copy()
    weight[:2] *= [0.3, 0.7]
    cut = SequenceClasses(
        classes.P[rows], classes.query[rows], classes.label[rows], weight, n_outputs=7, n_queries=2
    )
    torch.testing.assert_close(end(classes).Z, end(cut).Z, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("trainer", ["sgd", "flow"])
def test_a_run_among_others_is_the_run_alone(trainer):
    classes = syn(next_per_query=3, n_common=3, n_distinct=2)
    settings = {"trainer": trainer, "n_steps": 20, "n_records": 4, "init": "uniform", "batch_size": 9}
    many = ScanAndSnapStudy(lr_y=[0.5, 2.0], lr_z=[1.0, 0.3], n_seeds=3, random_state=7, **settings)
    together = many.fit(classes)
    alone = ScanAndSnapStudy(lr_y=2.0, lr_z=0.3, random_state=8, **settings).fit(classes)
    assert together.result_.runs.seed.tolist() == [7, 8, 9] * 2
    torch.testing.assert_close(together.parameters_.Y[4], alone.parameters_.Y[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(together.parameters_.Z[4], alone.parameters_.Z[0], rtol=1e-12, atol=1e-13)
    for name, values in alone.result_.arrays.items():
        np.testing.assert_allclose(
            together.result_.array(name)[4], values[0], rtol=1e-9, atol=1e-12, err_msg=name
        )


def test_runs_with_one_seed_see_one_set_of_sequences():
    still = ScanAndSnapStudy(lr_y=[0.5, 0.5], lr_z=0.2, n_seeds=2, n_steps=5).fit(draw_classes(0))
    Y = still.parameters_.Y
    torch.testing.assert_close(Y[0], Y[2], rtol=0, atol=0)
    assert (Y[0] - Y[1]).abs().max() > 1e-3


# -- going on --------------------------------------------------------------------------------------------------

KINDS = {
    "momentum": {"momentum": 0.9, "init": "uniform"},
    "adam": {"optimizer": "adam"},
    "plain": {},
    "flow": {"trainer": "flow"},
    "fixed": {"trainer": "flow", "dt": 0.1},
}


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_study_goes_on_to_the_same_bits(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("seqattn.dynamics.running.INTERVAL", 0.0)
    monkeypatch.setattr("seqattn.dynamics.running.CACHE", 1)  # a chunk for each run
    classes = draw_classes(0, V=6)
    settings = {"n_steps": 12, "lr_y": [0.5, 1.0], "n_records": 6, **KINDS[kind]}
    expected = ScanAndSnapStudy(**settings).fit(classes)
    calls = []

    def stop(progress):
        calls.append(progress.runs)
        if len(calls) == 9:  # in the second chunk
            raise Stopped

    path = tmp_path / "study.state"
    with pytest.raises(Stopped):
        ScanAndSnapStudy(**settings).fit(classes, checkpoint=path, observers=[stop])
    assert path.exists()
    later = []
    resumed = ScanAndSnapStudy(**settings).fit(classes, checkpoint=path, observers=[later.append])
    assert not path.exists()
    assert len(later) < len(expected.result_.times)
    torch.testing.assert_close(resumed.parameters_.Z, expected.parameters_.Z, rtol=0, atol=0)
    torch.testing.assert_close(resumed.parameters_.Y, expected.parameters_.Y, rtol=0, atol=0)
    for name, values in expected.result_.arrays.items():
        np.testing.assert_array_equal(resumed.result_.array(name), values, err_msg=name)


def test_a_state_of_another_study_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("seqattn.dynamics.running.INTERVAL", 0.0)

    def stop(progress):
        raise Stopped

    path = tmp_path / "study.state"
    with pytest.raises(Stopped):
        ScanAndSnapStudy(n_steps=5).fit(draw_classes(0), checkpoint=path, observers=[stop])
    with pytest.raises(ArtifactError, match="lr_z"):
        ScanAndSnapStudy(n_steps=5, lr_z=2.0).fit(draw_classes(0), checkpoint=path)
    with pytest.raises(ArtifactError, match="data"):
        ScanAndSnapStudy(n_steps=5).fit(draw_classes(1), checkpoint=path)


# -- sampling --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sampled_sequences_come_to_the_flow_as_they_grow_longer():
    classes = syn_small()
    flow = ScanAndSnapStudy(trainer="flow", lr_y=0.1, lr_z=0.1, n_steps=2000, record_at=[2000]).fit(classes)
    goal = flow.result_.array("entropy_distinct")[0, -1].mean()
    gaps = []
    for length in (128, 1024, 8192):
        study = ScanAndSnapStudy(
            lr_y=0.1, lr_z=0.1, n_steps=2000, record_at=[2000], seq_len=length, n_seeds=2
        )
        gaps.append(goal - study.fit(classes).result_.array("entropy_distinct")[:, -1].mean())
    assert gaps[2] < 0.002
    assert all(5 < a / b < 12 for a, b in itertools.pairwise(gaps)), gaps
