from __future__ import annotations

import tomllib
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqattn.errors import ParameterError
from seqattn.train.config import Run, check_names, parse_pairs, parse_value, read_toml, short_name, to_toml

RUN = Run(
    task="hawkes",
    model="sahp",
    data="taxi",
    seed=3,
    device="cpu",
    read={"window": [0, 10.5], "time": "when"},
    settings={"patience": None, "form": "mark", "dropout": 0.1, "learn_scale": True},
    digests={"train": "ab"},
)

plain = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.dates(),
)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=4))
def test_what_is_written_is_read_by_the_standard_library(table):
    assert tomllib.loads(to_toml({"head": 1, "table": table})) == {"head": 1, "table": table}
    assert tomllib.loads(to_toml({"inner": [table]})) == {"inner": [table]}


def test_a_value_that_toml_does_not_know_is_refused():
    with pytest.raises(ParameterError, match="cannot be written"):
        to_toml({"a": object()})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1.5", -1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e-3", 0.001),
        ("true", True),
        ("True", True),
        ("none", None),
        ("None", None),
        ("hidden", "hidden"),
        ("event time", "event time"),
        ('"none"', "none"),
        ("'a'", "a"),
        ("[0, 100]", [0, 100]),
        ('{a = [1, 2], b = "x"}', {"a": [1, 2], "b": "x"}),
        ("2024-02-29", date(2024, 2, 29)),
        ("2024-02-29T10:00:00Z", datetime(2024, 2, 29, 10, tzinfo=UTC)),
        ("1\nb = 2", "1\nb = 2"),
        ("", ""),
        ("0.1.2", "0.1.2"),
    ],
)
def test_a_value_is_read_as_toml_and_a_word_as_text(text, value):
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["[1", "{a}", '"open', "'open"])
def test_a_value_that_begins_like_toml_and_is_none_is_refused(text):
    with pytest.raises(ParameterError, match="--set a is .* which is not a TOML value"):
        parse_value(text, "--set a")


def test_pairs_keep_what_follows_the_first_equals_sign_and_the_last_of_equal_keys():
    assert parse_pairs(["a=b=c", "x = 1", "x=2"], "--read") == {"a": "b=c", "x": 2}


@pytest.mark.parametrize("pair", ["a", "=1", " =1", ""])
def test_a_pair_without_key_or_value_is_refused(pair):
    with pytest.raises(ParameterError, match="--set .* is not of the form key=value"):
        parse_pairs([pair], "--set")


def test_a_name_that_is_not_allowed_is_refused_with_the_nearest():
    with pytest.raises(
        ParameterError, match=r"'epoch' is not a setting\. Allowed: epochs, dropout\. Did you mean 'epochs'"
    ):
        check_names(["dropout", "epoch"], iter(["epochs", "dropout"]), "a setting")


def test_a_run_is_the_same_after_writing_and_reading(tmp_path):
    (tmp_path / "run.toml").write_text(RUN.to_toml({"torch": "2.13"}))
    assert Run.load(tmp_path / "run.toml") == RUN
    assert 'torch = "2.13"' in (tmp_path / "run.toml").read_text()
    (tmp_path / "empty.toml").write_text(Run().to_toml())
    assert Run.load(tmp_path / "empty.toml") == Run()


def test_runs_that_differ_tell_in_what(tmp_path):
    other = Run(**{**vars(RUN), "seed": 4, "device": "cuda", "settings": {**RUN.settings, "patience": 5}})
    assert RUN.differences(other) == ["seed is 3 and 4", "settings.patience is 'none' and 5"]
    assert RUN.differences(RUN) == []
    assert Run(task="a").differences(Run(task="a", data="x")) == ["data is None and 'x'"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeed = 1", r"'seeed' is not a key of .* Did you mean 'seed'"),
        ('seed = "1"', r"seed in .* is '1'\. Give a whole number"),
        ("seed = true", r"seed in .* is True\. Give a whole number"),
        ("read = 1", r"read in .* is 1\. Give a table"),
        ("task = 1", r"task in .* is 1\. Give a text"),
        ("a = ", "is not a TOML file"),
    ],
)
def test_a_file_with_something_unknown_is_refused(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ParameterError, match=message):
        Run.load(tmp_path / "run.toml")


@pytest.mark.parametrize("name", ["none.toml", "folder", "bytes.toml"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ParameterError, match=f"{name}' cannot be read"):
        read_toml(tmp_path / name)


def test_options_go_before_the_file_and_paths_are_written_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(RUN.to_toml())
    Path("events.csv").write_text("")
    run = Run.of_options("run.toml", "hawkes", ["dropout=0.5"], ["sort=true"], data="events.csv", seed=None)
    assert (run.data, run.seed, run.model) == (str(tmp_path / "events.csv"), 3, "sahp")
    assert run.settings == {**RUN.settings, "dropout": 0.5}
    assert run.read == {**RUN.read, "sort": True}
    with pytest.raises(ParameterError, match="belongs to the task 'hawkes', not to 'classify'"):
        Run.of_options("run.toml", "classify", [], [])


@pytest.mark.parametrize(
    ("data", "name"), [("taxi", "taxi"), ("mimic-ii/fold1", "mimic-ii-fold1"), ("/a/b.v2.csv", "b.v2")]
)
def test_data_have_a_short_name(data, name):
    assert short_name(data) == name


def test_a_preset_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run.of_options("paper", "hawkes", ["d_model=16"], [])
    assert run.settings["mu_eta_activation"] == "gelu"
    assert run.settings["n_decays"] == 1
    assert run.settings["d_model"] == 16
    (tmp_path / "paper").write_text("seed = 4")  # a file of the user's goes before
    assert Run.of_options("paper", "hawkes", [], []).seed == 4
    with pytest.raises(ParameterError, match=r"no preset 'papper'.*'paper'.*Did you mean 'paper'"):
        Run.of_options("papper", "hawkes", [], [])
