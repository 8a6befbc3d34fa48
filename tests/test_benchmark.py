"""The comparison of patterns measures what it says: the same numbers, checked, with memory of the call alone."""

from __future__ import annotations

import csv
import json
import re
from importlib.util import find_spec

import pytest
from click.testing import CliRunner

from seqattn.attention.costs import COSTS
from seqattn.benchmark import PEERS, Case, bench, methods, rows
from seqattn.cli import cli
from seqattn.errors import ParameterError


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, ["attention", *map(str, arguments)])
    assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.mark.slow
def test_a_window_takes_less_memory_and_both_are_exact():
    case = Case(2048, width=16, heads=2, batch=1)
    told: list[str] = []
    records = bench([case], methods(["dense", "local", "neighborhood"]), rounds=2, tell=told.append)
    found = {row["method"]: row for row in rows(records)}
    assert set(found) == {"fused dense", "dense", "local"}
    assert "no neighborhood, Pattern 'neighborhood' has no meaning with causal=True" in told[0]
    assert found["fused dense"]["ratio"] == 1
    assert 0 < found["local"]["error"] < 1e-5
    assert 0 < found["dense"]["error"] < 1e-5
    # Scores of 2 heads and 2048 tokens would be 32 MB.
    assert 0 < found["local"]["peak MB"] < 30
    assert {record["round"] for record in records} == {0, 1}


@pytest.mark.slow
def test_the_command_writes_table_rows_and_picture(tmp_path):
    told = run(
        *("bench", "--length", "40,70", "--width", 8, "--patterns", "local,routing", "--rounds", 1),
        *("--output", tmp_path / "out", "--json", "--quiet"),
    )
    answer = json.loads(told.stdout)
    assert [row["method"] for row in answer["rows"]] == ["fused dense", "local", "routing"] * 2
    with (tmp_path / "out" / "bench.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert (tmp_path / "out" / "bench.png").stat().st_size > 5000
    assert (tmp_path / "out" / "bench.md").read_text().count("\n") == 8


def test_explain_says_which_kernel_and_why():
    told = json.loads(run("explain", "--pattern", "local", "--length", 4000, "--json").stdout)
    assert told["kernel"] == "window"
    refusals = {one["kernel"]: one["refusals"] for one in told["candidates"]}
    assert "16000000 pairs are more than" in refusals["sdpa"][0]
    assert "kernel: sdpa" in run("explain").stdout
    assert "kernel: window" in run("explain", "--pattern", "2 * local + 2 * routing").stdout
    assert re.search(r"plain: about [\d.]+ s$", run("explain", "--length", 20000).stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "--pattern", "dilate"), "Did you mean 'dilated'?"),
        (("explain", "--pattern", "neighborhood"), "'neighborhood' has no meaning with causal=True"),
        (("bench", "--patterns", "locl"), "Did you mean 'local'?"),
        (("bench", "--length", "a"), "--length must be whole numbers above 0 such as 512,4096, got 'a'"),
        (("bench", "--length", "0"), "got '0'"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_names_are_those_of_patterns():
    assert methods(["local"]) == ["fused dense", "local"]
    with pytest.raises(ParameterError, match="no attention pattern 'no'"):
        methods(["no"])


@pytest.mark.slow
def test_patterns_are_texts_as_models_take_them():
    texts = [
        "local(4, right=1)",
        "routing(clusters=2, window=3, mode=random)",
        "1 * local(4) + 1 * routing(clusters=2)",
    ]
    told: list[str] = []
    found = bench([Case(40, width=8, heads=2, batch=1)], methods(texts), rounds=1, tell=told.append)
    assert [record["method"] for record in found] == ["fused dense", *texts]
    assert [record["error"] is None for record in found] == [True, False, True, True]
    assert told == ["1 x 2 x 40 x 8, causal, forward and backward: done"]


def test_peers_that_are_not_installed_are_named_and_left_out():
    assert methods(["local"], peers=True) == ["fused dense", "local", *PEERS]
    absent = {name for name, module in PEERS.items() if find_spec(module) is None}
    told: list[str] = []
    records = bench(
        [Case(40, width=8, heads=2, batch=1)], methods(["local"], peers=True), rounds=1, tell=told.append
    )
    assert {record["method"] for record in records} == {"fused dense", "local", *PEERS} - absent
    for name in absent:
        assert any(f"no {name}, {name.split(',')[0]} is not installed. pip install" in line for line in told)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local-attention", "x-transformers"])
def test_a_peer_computes_what_it_is_compared_with(name):
    pytest.importorskip(PEERS[name])
    records = bench([Case(300, width=8, heads=2, batch=1)], [*methods(["local"]), name], rounds=1)
    assert 0 < {record["method"]: record["error"] for record in records}[name] < 1e-5


@pytest.mark.slow
def test_constants_are_measured_kept_and_used(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQATTN_CACHE", str(tmp_path))
    try:
        told = json.loads(run("calibrate", "--rounds", 1, "--json", "--quiet").stdout)
        assert {row["kernel"] for row in told["rows"]} == {"sdpa", "plain", "window"}
        assert told["path"] == str(tmp_path / "attention.json")
        assert not told["is_loaded"]
        again = json.loads(run("calibrate", "--json", "--quiet").stdout)
        assert again["is_loaded"]
        assert again["rows"] == told["rows"]
        assert "costs: measured on this machine" in run("explain").stdout
    finally:
        COSTS.reset()
