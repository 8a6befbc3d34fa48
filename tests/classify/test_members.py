"""A member network's tokens come from the cases it learns from, so that those left out can judge it."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from planted import noise, ragged
from scipy.special import log_softmax

from seqattn.classify import fitting, tokens
from seqattn.classify.estimator import VSFormerClassifier
from seqattn.classify.members import left_out_by
from seqattn.classify.order import content_order
from seqattn.classify.recipe import Recipe
from seqattn.classify.tokens import Tokeniser
from seqattn.data.panels import Panel
from seqattn.errors import SeqattnWarning

RECIPE = Recipe(
    shapes="dilated",
    window_fractions=(0.3,),
    motifs_per_cell=2,
    match="znorm",
    locality=0.15,
    profile_cap=4000,
    derivatives=True,
    granularities=(1, 2, 4),
    shape_tokens=10,
    value_tokens=6,
    tokens="both",
    readout_shapes=8,
    max_length=1024,
    n_jobs=None,
    n_members=3,
)
NOBODY = -1


def test_each_class_is_cut_into_equal_parts_and_single_cases_stay():
    labels = np.repeat([0, 1, 2], [9, 7, 1])
    away = left_out_by(labels, 3, np.random.default_rng(0))
    assert np.array_equal(np.bincount(away[labels == 0]), [3, 3, 3])
    assert sorted(np.bincount(away[labels == 1], minlength=3)) == [2, 2, 3]
    assert away[-1] == NOBODY
    assert (left_out_by(labels, 1, np.random.default_rng(0)) == NOBODY).all()


def own_part(tokeniser: Tokeniser, member: int) -> dict[str, np.ndarray]:
    """Everything that the tokens of a member are, apart from the scale of all series."""
    ends = np.cumsum(tokeniser.sizes, axis=0)
    shapes, chosen = (
        slice(*pair) for pair in zip(ends[member] - tokeniser.sizes[member], ends[member], strict=True)
    )
    found = {
        known.name: getattr(tokeniser.shapes, known.name)[shapes]
        for known in fields(tokeniser.shapes)
        if known.name not in ("measure", "locality")
    }
    rows, intervals = tokeniser.chosen[chosen], tokeniser.intervals
    where = np.stack([intervals.channel[rows], intervals.parts[rows], intervals.place[rows]])
    return found | {"where": where, "gain": tokeniser.chosen_prior[chosen]}


@pytest.mark.parametrize("shapes", ["dilated", "motif"])
@pytest.mark.parametrize("panel", [noise(0, n_cases=18), ragged(1, [30, 41, 22, 35, 18, 50, 29, 33, 37, 28])])
def test_labels_of_cases_left_out_do_not_reach_the_tokens_of_a_member(shapes, panel, monkeypatch):
    labels = np.arange(len(panel)) % 2
    away = left_out_by(labels, 3, np.random.default_rng(0))
    monkeypatch.setattr(tokens, "left_out_by", lambda *_: away)
    recipe = Recipe(**{**vars(RECIPE), "shapes": shapes})

    def learnt(labels: np.ndarray) -> Tokeniser:
        return Tokeniser.learn(Panel(panel.series, labels), labels, recipe, 0)[0]

    plain = learnt(labels)
    for member in range(3):
        other = learnt(np.where(away == member, 1 - labels, labels))
        for name, value in own_part(plain, member).items():
            found = own_part(other, member)[name]
            if isinstance(value, tuple):
                assert all(map(np.array_equal, value, found)), name
            else:
                assert np.array_equal(value, found, equal_nan=True), name
        # Those who learn from them do feel it.
        rest = next(number for number in range(3) if number != member)
        assert not np.array_equal(own_part(plain, rest)["gain"], own_part(other, rest)["gain"])
        assert not np.isin(own_part(plain, member)["source"], np.flatnonzero(away == member)).any()


def judged(monkeypatch: pytest.MonkeyPatch, is_leaky: bool) -> np.ndarray:
    """Return the members' accuracies on the cases they were trained without, of labels that mean nothing."""
    settings = {"tokens": "value", "derivatives": False, "value_tokens": 10, "d_model": 8, "n_heads": 2}
    settings |= {
        "epochs": 12,
        "batch_size": 30,
        "learning_rate": 0.02,
        "dropout": 0.0,
        "label_smoothing": 0.0,
    }
    found, blended = [], fitting.Fitting._blended

    def spy(self, left_out, codes, weights):
        found.append((left_out.argmax(axis=1) == codes).mean())
        return blended(self, left_out, codes, weights)

    monkeypatch.setattr(fitting.Fitting, "_blended", spy)
    if is_leaky:
        monkeypatch.setattr(tokens, "left_out_by", lambda labels, *_: np.full(len(labels), NOBODY))
    for seed in range(16):
        X = noise(seed, n_cases=36, n_channels=40, time=24, n_classes=2)
        VSFormerClassifier(**settings, random_state=0, device="cpu").fit(X.series, np.arange(36) % 2)
    return np.array(found)


@pytest.mark.slow
def test_members_that_learn_noise_are_at_chance_on_cases_left_out(monkeypatch):
    found = judged(monkeypatch, is_leaky=False)
    assert abs(found.mean() - 0.5) < 3 * found.std(ddof=1) / np.sqrt(len(found))
    # Tokens chosen with the labels of these cases are found out.
    leaky = judged(monkeypatch, is_leaky=True)
    assert leaky.mean() - 0.5 > 3 * leaky.std(ddof=1) / np.sqrt(len(leaky))


@pytest.mark.parametrize("readout_shapes", [0, 16])
def test_figures_of_a_fit_come_from_parts_that_have_not_seen_the_cases(readout_shapes, monkeypatch):
    """Each case is put through the network that did without it, and added to the readout without it, one by one."""
    X, y = noise(3, n_cases=13, n_classes=2), np.array(["a", "b"] * 6 + ["c"])
    settings = {"shape_tokens": 6, "value_tokens": 6, "d_model": 8, "n_heads": 2, "epochs": 3}
    seen = []
    monkeypatch.setattr(fitting, "left_out_by", lambda *args: (seen.append(left_out_by(*args)), seen[-1])[1])
    with pytest.warns(SeqattnWarning, match="one training case"):
        model = VSFormerClassifier(**settings, readout_shapes=readout_shapes, random_state=0).fit(X.series, y)
    order = content_order(X, np.searchsorted(model.classes_, y))
    panel, labels, losses = X.select(order), y[order], []
    for case, member in enumerate(seen[0]):
        if member == NOBODY:
            continue
        logits = model._member_logits(model.tokenise(panel.select([case])), int(member))[0] * model.blend_[1]
        if readout_shapes:
            logits = logits + model.blend_[0] * model.readout_.left_out[case]
        losses.append(-log_softmax(logits)[model.classes_.tolist().index(labels[case])])
    assert model.validation_["n_cases"] == len(losses) == 12
    assert model.validation_["log_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    alone = VSFormerClassifier(readout_shapes=16, network_weight=0, random_state=0).fit(X.series[:12], y[:12])
    assert "readout alone" in alone.validation_["protocol"]
