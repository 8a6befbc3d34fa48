"""The file of results: only added to, mended after a cut, and never mixing what differs."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from seqattn.errors import DataError
from seqattn.reproduce.results import Identity, Results

CELL = Identity(
    dataset="taxi",
    model="SAHP",
    seed=0,
    kind="sahp",
    settings={"epochs": 2, "patience": None},
    evaluation={"convention": "from_first"},
    digests={"train": "a", "test": "b"},
    versions={"seqattn": "1", "torch": "2"},
)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "taobao"},
        {"model": "SAHP (paper's form)"},
        {"seed": 1},
        {"kind": "poisson"},
        {"settings": {"epochs": 3, "patience": None}},
        {"evaluation": {"convention": "full"}},
        {"digests": {"train": "a", "test": "c"}},
        {"versions": {"seqattn": "1", "torch": "3"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_on_figures_makes_another_cell(change):
    assert replace(CELL, **change).key() != CELL.key()


def test_the_order_of_settings_makes_no_difference():
    assert replace(CELL, settings={"patience": None, "epochs": 2}).key() == CELL.key()


def test_differences_are_named():
    now = replace(CELL, settings={"epochs": 4, "patience": None}, digests={"train": "a", "test": "z"})
    record = {**asdict(CELL), "versions": {**CELL.versions, "python": "3.11"}}
    assert now.differences(record) == ["settings.epochs: 2 there, 4 now", "other test data"]
    assert CELL.differences(record) == []


def test_results_are_added_and_read_again(tmp_path):
    path = tmp_path / "results.jsonl"
    results = Results(path)
    results.append({"key": "a", "status": "failed", "reason": "ü"})
    before = path.read_bytes()
    Results(path).append({"key": "a", "status": "complete", "value": float("nan")})
    assert path.read_bytes().startswith(before)
    again = Results(path)
    assert again.latest("a") == {"key": "a", "status": "complete", "value": None}
    assert again.latest("b") is None
    assert len(again.records) == 2


def test_a_last_line_that_was_half_written_is_removed(tmp_path):
    path = tmp_path / "results.jsonl"
    Results(path).append({"key": "a", "status": "complete"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "b", "sta')
    assert [record["key"] for record in Results(path).records] == ["a"]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["not json", "[1]", '{"key": "a"}', "3"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": "a", "status": "complete"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"Line 2 of .*results.jsonl"):
        Results(path)
