"""A model with one attention pattern after the other: the table says what was fitted, and compares case by case."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner
from reproduce.small_grid import draw, write_known

from seqattn.cli import cli
from seqattn.errors import ParameterError
from seqattn.reproduce.patterns import pattern_grid

SMALL = [
    word
    for pair in ("epochs=1", "d_model=8", "n_heads=1", "n_layers=1", "n_decays=1")
    for word in ("--set", pair)
]


def compare(*arguments, code=0):
    result = CliRunner().invoke(cli, ["attention", "compare", *map(str, arguments)])
    assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.mark.slow
def test_a_window_longer_than_every_sequence_equals_dense_and_a_short_one_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", str(write_known(tmp_path / "data", "taxi")))
    asked = ["hawkes", "--data", "taxi", "--patterns", "dense,local,dilated", "--seeds", "1", *SMALL]
    asked += ["--output", tmp_path / "out", "--workers", "2"]
    rows = {row["pattern"]: row for row in json.loads(compare(*asked, "--json").stdout)["rows"]}
    assert [row["n_seeds"] for row in rows.values()] == [1, 1, 1]
    assert rows["dense"]["difference"] is None
    assert abs(rows["local"]["difference"]) < 1e-5 < abs(rows["dilated"]["difference"])
    for row in rows.values():
        if row["difference"] is not None:
            assert row["difference"] == pytest.approx(row["mean"] - rows["dense"]["mean"], abs=1e-9)
            assert row["low"] <= row["difference"] <= row["high"]
        assert row["seconds"] > 0
        assert row["memory_mb"] > 0
    again = compare(*asked)
    assert "3 complete, 0 failed before, 0 to run" in again.stderr
    with (tmp_path / "out" / "patterns.csv").open() as file:
        assert [row["pattern"] for row in csv.DictReader(file)] == list(rows)
    assert (tmp_path / "out" / "patterns.png").stat().st_size > 5_000


@pytest.mark.slow
def test_data_may_be_a_file(tmp_path):
    draw(0, 30).write_csv(tmp_path / "events.csv")
    asked = ["hawkes", "--data", tmp_path / "events.csv", "--patterns", "dense", "--seeds", "1", *SMALL]
    (row,) = json.loads(compare(*asked, "--output", tmp_path / "out", "--json").stdout)["rows"]
    assert row["dataset"] == str(tmp_path / "events.csv")


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["dense", "nope"], "no attention pattern 'nope'"),
        (["dense", "dense"], "given twice"),
        ([], "No pattern"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(patterns, words):
    with pytest.raises(ParameterError, match=words):
        pattern_grid("hawkes", ["taxi"], patterns)


def test_a_task_without_a_table_is_refused():
    with pytest.raises(ParameterError, match="no table for the task 'weather'"):
        pattern_grid("weather", ["taxi"], ["dense"])
