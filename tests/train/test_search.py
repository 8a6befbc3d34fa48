from __future__ import annotations

from pathlib import Path

import pytest

from seqattn.errors import ParameterError
from seqattn.train.search import Plan, Space, storage_place

GOOD = '[space]\nrate = { type = "float", low = 0.1, high = 1.0 }\n'


def load(tmp_path: Path, text: str) -> Space:
    (tmp_path / "space.toml").write_text(text)
    return Space.load(tmp_path / "space.toml")


def test_a_space_is_read_with_all_its_parts(tmp_path):
    more = (
        'model = "m"\n[fixed]\na = 1\n[trial]\nepochs = 2\n[refit]\nepochs = 9\n[start.one]\nrate = 0.5\n'
        "[pruning]\nwarmup_epochs = 3\n"
    )
    space = load(tmp_path, more + GOOD)
    assert space.rules == {"rate": {"type": "float", "low": 0.1, "high": 1.0}}
    assert (space.model, space.fixed, space.trial, space.refit) == (
        "m",
        {"a": 1},
        {"epochs": 2},
        {"epochs": 9},
    )
    assert (space.starts, space.startup_trials, space.warmup_epochs) == ({"one": {"rate": 0.5}}, 5, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no table 'space'"),
        (GOOD + "[trials]\na = 1", r"'trials' is not a key of .* Did you mean 'trial'"),
        (GOOD + "[pruning]\nwarmup = 1", "'warmup' is not a key of 'pruning'"),
        ("fixed = 1\n" + GOOD, r"'fixed' in .* is 1\. Give a table"),
        ('[space]\na = { type = "flaot", low = 0, high = 1 }', "Did you mean 'float'"),
        ("[space]\na = 1", "is not a type for the searched setting 'a'"),
        ('[space]\na = { type = "float", low = 0 }', "'a' has no 'high'"),
        ('[space]\na = { type = "int", low = 2, high = 1 }', "low <= high"),
        ('[space]\na = { type = "int", low = 1.5, high = 2 }', "'a' is"),
        ('[space]\na = { type = "float", low = 0, high = 1, log = true }', "0 < low if log"),
        ('[space]\na = { type = "choice", choices = [] }', "list of choices"),
        (
            '[space]\na = { type = "choice", choices = [1], low = 1 }',
            "'low' is not a key of the searched setting 'a'",
        ),
    ],
)
def test_a_space_with_something_unknown_is_refused(tmp_path, text, message):
    with pytest.raises(ParameterError, match=message):
        load(tmp_path, text)


def test_settings_replace_what_is_searched_and_the_budgets():
    space = Space(rules={"a": {}, "b": {}}, fixed={"c": 1}, trial={"epochs": 2}, refit={"epochs": 9, "d": 1})
    given = space.with_settings({"a": 5, "epochs": 1})
    assert (given.rules, given.fixed) == ({"b": {}}, {"c": 1, "a": 5, "epochs": 1})
    assert (given.trial, given.refit) == ({"epochs": 1}, {"epochs": 1, "d": 1})


def test_a_plan_wants_at_least_one_trial(tmp_path):
    with pytest.raises(ParameterError, match="trials=0"):
        Plan("hawkes", tmp_path, trials=0)


def test_a_quiet_plan_says_nothing(tmp_path, capsys):
    Plan("hawkes", tmp_path, quiet=True).say("a")
    Plan("hawkes", tmp_path).say("b")
    assert capsys.readouterr() == ("", "b\n")


@pytest.mark.parametrize(
    ("storage", "place"),
    [
        ("a.journal", "{here}/a.journal"),
        ("sub/b.log", "{here}/sub/b.log"),
        ("c.db", "sqlite:///{here}/c.db"),
        ("postgresql://host/name", "postgresql://host/name"),
    ],
)
def test_a_storage_is_a_file_in_full_or_a_url(tmp_path, monkeypatch, storage, place):
    monkeypatch.chdir(tmp_path)
    assert storage_place(storage, 1) == place.format(here=tmp_path)


def test_a_storage_that_is_neither_is_refused():
    with pytest.raises(
        ParameterError, match=r"'study' is neither a URL nor a file that ends in \.journal, \.log"
    ):
        storage_place("study", 1)
    with pytest.raises(ParameterError, match="workers=0"):
        storage_place("study.log", 0)
    with pytest.raises(ParameterError, match="SQLite cannot serve 3 workers"):
        storage_place("study.db", 3)
    with pytest.raises(ParameterError, match=r"a database of 'mysql'\. Allowed: postgresql://"):
        storage_place("mysql+pymysql://host/studies", 1)
