"""Working off a grid: isolated cells, failures that stay visible, interruptions that cost nothing, other pools."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from reproduce.small_grid import draw, write_grid, write_known

import seqattn
from seqattn.cli import cli
from seqattn.errors import MissingDependencyError, ParameterError, SeqattnWarning
from seqattn.reproduce.grid import Grid
from seqattn.reproduce.pool import Launcher, run_all
from seqattn.reproduce.run import Plan, _look

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "import sys; from seqattn.cli import main; sys.argv[0] = 'seqattn'; main()"
KEYS = ["dataset", "model", "metric", "mean", "std", "n_seeds", "published", "source", "protocol"]

pytestmark = pytest.mark.slow


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["reproduce", "tpp", *map(str, arguments)])
    assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("grid") / "grid.toml")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small data where the catalogue looks for taxi; hawkes2d is nowhere."""
    folder = write_known(tmp_path / "data", "taxi")
    monkeypatch.setenv("SEQATTN_DATA", str(folder))
    return folder


def test_failures_stay_visible_and_alone_and_results_are_only_added_to(data, grid, tmp_path):
    """One course of events, since each cell costs the start of a process."""
    asked = ["--config", grid, "--seeds", "2", "--workers", "2", "--output", tmp_path / "out"]
    first = run(*asked, "--json", code=1)
    told = json.loads(first.stdout)
    lines = (tmp_path / "out" / "results.jsonl").read_bytes()

    # The contract's table, other cells complete though one failed, data that are not here skipped.
    assert all(list(row) == KEYS for row in told["table"])
    by_model = {row["model"]: row for row in told["table"] if row["metric"] == "loglik_per_event"}
    assert {name: row["n_seeds"] for name, row in by_model.items()} == {
        "SAHP": 2,
        "PoissonProcess": 1,
        "broken": 0,
    }
    (failed,) = told["failed"]
    assert (failed["model"], failed["status"]) == ("broken", "failed")
    assert "d_model" in failed["reason"]
    assert "hawkes2d" in told["skipped"]
    assert "SEQATTN_DATA" in told["skipped"]["hawkes2d"]

    # Small data under a known name: never beside a published figure.
    assert by_model["SAHP"]["published"] is None
    assert "not the published data: train holds 12 of 1,400 sequences" in by_model["SAHP"]["protocol"]

    # Mean and spread are those of the lines; a line can be repeated from what it says.
    values = [
        each["metrics"]["loglik_per_event"] for each in records(tmp_path / "out") if each["model"] == "SAHP"
    ]
    assert by_model["SAHP"]["mean"] == pytest.approx(sum(values) / 2)
    assert by_model["SAHP"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    line = next(each for each in records(tmp_path / "out") if each["model"] == "SAHP")
    assert {"torch", "numpy", "python", "seqattn"} <= line["versions"].keys()
    assert set(line["digests"]) == {"train", "dev", "test"}
    assert line["settings"]["epochs"] == 1
    assert f"--datasets taxi --models SAHP --seed {line['seed']} --seeds 1" in line["command"]
    cases = json.loads((tmp_path / "out" / line["cases"]).read_text())
    assert sum(cases["totals"]) / sum(cases["counts"]) == pytest.approx(
        line["metrics"]["loglik_per_event"], rel=1e-12
    )

    # Again: nothing runs, nothing is written, the failure is still told.
    again = run(*asked, code=1)
    assert "4 cells: 3 complete, 1 failed before, 0 to run" in again.stderr
    assert "--retry-failed" in again.stderr
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == lines

    # Asked for by name it runs again, and only it.
    run(*asked, "--retry-failed", code=1)
    after = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert after.startswith(lines)
    assert [each["model"] for each in records(tmp_path / "out")[4:]] == ["broken"]

    # Other data are another cell: it runs anew, and the old line stays.
    draw(9, 6).write_csv(data / "tpp" / "taxi" / "test.csv")
    other = run(*asked, "--models", "PoissonProcess", "--json")
    assert "results under other conditions (other test data)" in other.stderr
    assert (tmp_path / "out" / "results.jsonl").read_bytes().startswith(after)
    changed = json.loads(other.stdout)["table"][0]
    assert (changed["model"], changed["n_seeds"]) == ("PoissonProcess", 1)
    assert changed["mean"] != by_model["PoissonProcess"]["mean"]


class Course:
    """The command in a process of its own, and what it says."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "reproduce", "tpp", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def cell(self) -> int:
        """Wait until a cell begins, and return the number of its process."""
        for line in self.process.stderr:
            if found := re.search(r"begins \(process (\d+)\)", line):
                return int(found.group(1))
        raise AssertionError(self.process.communicate())

    def wait_for(self, condition: Callable[[], bool], seconds: float = 200) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.01)


def epochs_of(folder: Path) -> list[int]:
    found = list(folder.glob("cells/taxi/sahp-*/history.jsonl"))
    return [json.loads(line)["epoch"] for line in found[0].read_text().splitlines()] if found else []


def is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_cell_that_was_cut_goes_on_and_ends_as_if_it_had_not_been(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", str(write_known(tmp_path / "data", "taxi", n_train=400)))
    asked = ["--config", grid, "--datasets", "taxi", "--models", "SAHP", "--seeds", "1", "--set", "epochs=12"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"

    # SIGKILL of the cell's process: shown as failed with its reason, and not run again by itself.
    course = Course(*asked, "--output", cut)
    cell = course.cell()
    course.wait_for(lambda: len(epochs_of(cut)) >= 2)
    os.kill(cell, signal.SIGKILL)
    shown, _ = course.process.communicate()
    assert course.process.returncode == 1
    assert "The process was killed (SIGKILL)" in shown
    assert [each["status"] for each in records(cut)] == ["failed"]
    before = len(epochs_of(cut))
    assert 2 <= before < 12
    assert run(*asked, "--output", cut, code=1).stderr.startswith(
        "1 cell: 0 complete, 1 failed before, 0 to run"
    )

    # Ctrl-C while it runs again: its process ends too, and nothing is recorded of it.
    course = Course(*asked, "--output", cut, "--retry-failed")
    cell = course.cell()
    course.wait_for(lambda: len(epochs_of(cut)) > before)
    course.process.send_signal(signal.SIGINT)
    _, said = course.process.communicate()
    assert course.process.returncode == 130
    assert "the same command goes on" in said
    assert is_gone(cell)
    assert len(records(cut)) == 1
    before = len(epochs_of(cut))
    assert before < 12

    # SIGKILL of the command: the cell notices and ends.
    course = Course(*asked, "--output", cut, "--retry-failed")
    cell = course.cell()
    course.wait_for(lambda: len(epochs_of(cut)) > before)
    course.process.kill()
    course.process.communicate()
    course.wait_for(lambda: is_gone(cell))
    assert len(epochs_of(cut)) < 12

    mended = json.loads(run(*asked, "--output", cut, "--retry-failed", "--json").stdout)
    assert mended["failed"] == []
    assert mended["table"] == json.loads(run(*asked, "--output", whole, "--json").stdout)["table"]
    assert epochs_of(cut) == list(range(1, 13))
    logs = [log.read_text() for log in cut.glob("cells/taxi/sahp-*/log.txt")]
    assert "".join(logs).count("epoch  1/12") == 1, "it began anew"


def test_two_calls_do_not_work_in_one_folder(data, grid, tmp_path):
    asked = [
        "--config",
        grid,
        "--datasets",
        "taxi",
        "--models",
        "SAHP",
        "--set",
        "epochs=500",
        "--output",
        tmp_path,
    ]
    course = Course(*asked)
    course.cell()
    assert "Another call is at work" in run(*asked, code=2).stderr
    course.process.send_signal(signal.SIGTERM)
    course.process.communicate()


def test_dask_workers_give_the_same_figures(data, grid, tmp_path):
    pytest.importorskip("distributed")
    asked = ["--config", grid, "--datasets", "taxi", "--models", "SAHP,PoissonProcess", "--seeds", "1"]
    asked += ["--workers", "2", "--json"]
    course = Course(*asked, "--output", tmp_path / "dask", "--backend", "dask")
    shown, said = course.process.communicate()
    assert course.process.returncode == 0, said
    local = json.loads(run(*asked, "--output", tmp_path / "local").stdout)
    there = json.loads(shown)
    assert there["n_complete"] == 2
    assert (there["table"], there["comparisons"]) == (local["table"], local["comparisons"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "taxi,hawks2d"], "Did you mean 'hawkes2d'"),
        (["--models", "Poisson"], "Did you mean 'PoissonProcess'"),
        (["--set", "epoch=1"], "'epoch' is a setting of none of these models.*Did you mean 'epochs'"),
        (["--backend", "dusk"], "Did you mean 'dask'"),
        (["--scheduler", "tcp://host:1"], "has no scheduler"),
        (["--set", "epochs=many"], "epochs='many' is of the wrong kind"),
        (["--config", "reproduse"], "no grid 'reproduse'. Grids of tpp: reproduce. Did you mean 'reproduce'"),
    ],
    ids=["data set", "model", "setting", "backend", "scheduler", "value", "grid"],
)
def test_wrong_usage_is_refused_before_anything_runs(data, grid, tmp_path, arguments, message):
    asked = ["--config", grid, "--output", tmp_path / "out", *arguments]
    assert re.search(message, run(*asked, code=2).stderr)
    assert not (tmp_path / "out" / "cells").exists()


def test_without_any_data_nothing_is_run(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", "")
    asked = ["--config", grid, "--datasets", "hawkes2d", "--output", tmp_path]
    assert "None of the data sets is on this machine" in run(*asked, code=3).stderr


def test_without_dask_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'seqattn\[dask\]'"):
        next(run_all([], Launcher(), backend="dask"))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ParameterError, match="'locl' is not a backend.*Did you mean 'local'"):
        next(run_all([], Launcher(), backend="locl"))


def test_a_process_that_cannot_start_is_a_failed_cell(tmp_path):
    order = {"key": "k", "title": "t", "threads": 1, "folder": str(tmp_path), "task": "hawkes"}
    outcome = Launcher()(order)
    assert (outcome["key"], outcome["status"]) == ("k", "failed")
    assert "KeyError" in outcome["reason"]


def test_a_warning_says_which_data_set_it_is_about(grid, tmp_path, monkeypatch):
    tied = "".join(f"{number},{time},0\n" for number in range(4) for time in (1, 1, 2))
    folder = tmp_path / "data" / "tpp" / "taxi"
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        (folder / f"{part}.csv").write_text(f"seq_id,t,k\n{tied}")
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "data"))
    with pytest.warns(SeqattnWarning, match="^taxi: 4 of 8 gaps between events are zero"):
        _look(seqattn.task("hawkes"), Grid.load(grid), Plan("tpp", tmp_path))
