from pathlib import Path

import joblib
import numpy as np
import pytest

import seqattn
from seqattn import VSFormerClassifier
from seqattn.classify.tokens import Tokeniser
from seqattn.errors import ParameterError

LABELS = np.repeat(["low", "high"], 10)
CASES = np.random.default_rng(0).normal(size=(20, 2, 14)) + (LABELS == "high")[:, None, None]


def model(memory, **other):
    few = {"shape_tokens": 8, "readout_shapes": 16, "d_model": 8, "epochs": 1, "n_members": 1}
    return VSFormerClassifier(**{**few, "random_state": 0, "memory": memory, **other})


@pytest.fixture
def learnt(monkeypatch):
    """How often tokens were learnt."""
    calls, learn = [], Tokeniser.learn
    monkeypatch.setattr(Tokeniser, "learn", lambda *args: (calls.append(1), learn(*args))[1])
    return calls


@pytest.mark.parametrize("kind", [str, Path, lambda folder: joblib.Memory(folder, verbose=0)])
def test_tokens_are_learnt_once_for_equal_content_and_predictions_keep_their_bits(kind, learnt, tmp_path):
    alone = model(None).fit(CASES, LABELS).predict_proba(CASES)
    first = model(kind(tmp_path)).fit(CASES, LABELS).predict_proba(CASES)
    assert len(learnt) == 2
    again = model(kind(tmp_path), n_jobs=2).fit(list(CASES.copy()), list(LABELS)).predict_proba(CASES)
    wider = model(kind(tmp_path), d_model=16, prior="none").fit(CASES, LABELS)
    assert len(learnt) == 2
    assert np.array_equal(alone, first)
    assert np.array_equal(alone, again)
    assert not np.array_equal(alone, wider.predict_proba(CASES))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: model(folder).fit(np.where(CASES.max() == CASES, 9.0, CASES), LABELS),
        lambda folder: model(folder).fit(CASES, np.roll(LABELS, 1)),
        lambda folder: model(folder).fit(CASES[:-1], LABELS[:-1]),
        lambda folder: model(folder, random_state=1).fit(CASES, LABELS),
        lambda folder: model(folder, shape_tokens=9).fit(CASES, LABELS),
        lambda folder: model(folder, derivatives=False).fit(CASES, LABELS),
    ],
    ids=["values", "labels", "cases", "seed", "tokens", "channels"],
)
def test_tokens_are_learnt_again_where_anything_differs_that_decides_them(change, learnt, tmp_path):
    model(tmp_path).fit(CASES, LABELS)
    change(tmp_path)
    assert len(learnt) == 2


def test_tokens_of_another_version_are_not_taken(learnt, tmp_path, monkeypatch):
    model(tmp_path).fit(CASES, LABELS)
    monkeypatch.setattr(seqattn, "__version__", "0.0.0")
    model(tmp_path).fit(CASES, LABELS)
    assert len(learnt) == 2


def test_a_saved_model_knows_no_folder_of_this_machine(tmp_path):
    path = model(joblib.Memory(tmp_path / "kept", verbose=0)).fit(CASES, LABELS).save(tmp_path / "m")
    assert seqattn.load(path).memory is None


def test_something_else_is_refused():
    with pytest.raises(ParameterError, match="memory=3 is not allowed. Give a folder"):
        model(3).fit(CASES, LABELS)
