from __future__ import annotations

from pathlib import Path

import pytest

from seqattn.errors import ParameterError
from seqattn.train.search import Plan, storage_place
from seqattn.train.space import Space

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
        ('[space]\na = { type = "float", low = 0, high = inf }', "finite numbers"),
        ('[space]\na = { type = "float", low = 1, high = 2, log = "no" }', "log, which is true or false"),
        (GOOD + "[start]\nsmall = 4", r"starting point 'small' in .* is 4\. Give a table .*\[start\.small\]"),
        (
            GOOD + '[pruning]\nstartup_trials = "many"',
            "'startup_trials' in .* is 'many'. Give a whole number",
        ),
        (GOOD + "[pruning]\nstartup_trials = -1", "'startup_trials' in .* is -1"),
        (GOOD + "[pruning]\nwarmup_epochs = 1.5", r"'warmup_epochs' in .* is 1\.5"),
        (GOOD + "[pruning]\nwarmup_epochs = true", "'warmup_epochs' in .* is True"),
        ("second = 3\n" + GOOD, "'second' in .* is 3. Give a name"),
        ("model = 3\n" + GOOD, "'model' in .* is 3. Give a name"),
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
        ParameterError, match=r"neither a URL nor a file that ends in \.journal, \.log.*; it ends in ''"
    ):
        storage_place("study", 1)
    with pytest.raises(ParameterError, match="workers=0"):
        storage_place("study.log", 0)
    with pytest.raises(ParameterError, match="SQLite cannot serve 3 workers"):
        storage_place("study.db", 3)
    with pytest.raises(ParameterError, match=r"a database of 'mysql'\. Allowed: postgresql://"):
        storage_place("mysql+pymysql://host/studies", 1)


@pytest.mark.parametrize(
    "storage",
    ["postgresql:/ada:secret@host/studies", "ada:secret@host", "x:y@host/a.secret", "postgresql:ada:secret"],
)
def test_a_storage_that_is_not_understood_is_not_told(storage):
    with pytest.raises(ParameterError, match="postgresql://USER@HOST/DATABASE") as caught:
        storage_place(storage, 1)
    assert "ada" not in str(caught.value)
    assert "x:y" not in str(caught.value)


@pytest.mark.parametrize(
    "storage",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite:///file:x?mode=memory&uri=true"],
)
def test_a_database_in_memory_is_refused(storage):
    with pytest.raises(ParameterError, match="SQLite database in memory"):
        storage_place(storage, 1)


@pytest.mark.parametrize("name", ["a" * 513, "ä" * 257, "a\0b", "a\udcff"])
def test_a_study_name_that_not_every_storage_holds_is_refused(tmp_path, name):
    with pytest.raises(ParameterError, match="The study name .* is not allowed"):
        Plan("hawkes", tmp_path, study=name)
    assert Plan("hawkes", tmp_path, study="ä" * 256).study == "ä" * 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeout": float("nan")}, "timeout=nan is not allowed"),
        ({"timeout": -1.0}, r"timeout=-1\.0 is not allowed"),
        ({"trials": 3, "choose": 3}, r"choose=3 is no trial of 3\. They are numbered 0 to 2\."),
        ({"trials": 3, "choose": -1}, "choose=-1 is no trial"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused(tmp_path, change, message):
    with pytest.raises(ParameterError, match=message):
        Plan("hawkes", tmp_path, **change)
