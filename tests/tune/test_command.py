"""``seqattn tune`` as it is typed: limits, a second objective, the choice between trials, and a warm start."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from reproduce.small_grid import draw

from seqattn.cli import cli

SPACE = """
[fixed]
n_heads = 1
n_layers = 1
n_decays = 1
own_kernels = 0
gap_kernels = 0
baselines = false
[trial]
epochs = 1
[refit]
epochs = 2
[space]
d_model = { type = "choice", choices = [4, 8, 16] }
learning_rate = { type = "float", low = 1e-3, high = 1e-2, log = true }
[start.large]
d_model = 16
[start.small]
d_model = 4
"""

pytestmark = pytest.mark.slow


def tune(*arguments: Any, code: int = 0) -> Result:
    given = ["tune", "hawkes", "--data", "data", "--config", "space.toml", *map(str, arguments)]
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for seed, (split, size) in enumerate({"train": 12, "dev": 4, "test": 4}.items()):
        draw(seed, size).write_csv(tmp_path / "data" / f"{split}.csv")
    (tmp_path / "space.toml").write_text(SPACE)
    return tmp_path


def test_limits_costs_choices_and_warm_starts_on_the_command_line(here):
    told = json.loads(tune("--trials", 4, "--limit", "parameters=1500", "--output", "first", "--json").stdout)
    trials = rows(here / "first")
    assert [int(trial["d_model"]) for trial in trials[:2]] == [16, 4]
    assert [trial["feasible"] for trial in trials[:2]] == ["False", "True"]
    assert float(trials[0]["parameters"]) > 1500 > float(trials[1]["parameters"])
    assert told["n_trials"] == 4
    assert told["n_infeasible"] >= 1
    assert trials[told["best_trial"]]["feasible"] == "True"
    assert (here / "first" / "parallel.png").stat().st_size > 5000

    # Done already: the same call with a choice only refits that trial.
    chosen = tune("--trials", 4, "--limit", "parameters=1500", "--output", "first", "--choose", 0, "--json")
    assert json.loads(chosen.stdout)["best_params"]["d_model"] == 16
    assert "4 of 4 trials done" in chosen.stderr
    assert "d_model = 16" in (here / "first" / "best.toml").read_text()

    second = tune("--trials", 5, "--second", "parameters", "--warm-start", "first", "--output", "second")
    assert "Beaten by none in both objectives" in second.stdout
    assert (here / "second" / "front.png").stat().st_size > 5000
    first = rows(here / "second")[0]
    assert (first["name"], first["d_model"]) == ("warm start data", "16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--limit", "parameters=few"), "The limit parameters='few' is not allowed"),
        (("--limit", "parameter=3"), "Did you mean 'parameters'"),
        (("--limit", "parameters"), "'parameters'"),
        (("--second", "seconds"), "Did you mean 'seconds_per_1000'"),
        (("--warm-start", "nowhere"), "The file 'nowhere' cannot be read"),
        (("--trials", 1, "--choose", 7), "choose=7 is no trial of 1"),
        (("--timeout", "nan"), "timeout=nan is not allowed"),
        (("--study", "x" * 600), "The study name 'xxx"),
        (
            ("--storage", "mysql://host/name"),
            "a database of 'mysql'. Allowed: postgresql://USER@HOST/DATABASE",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(here, arguments, message):
    result = tune(*arguments, "--output", "out", code=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (here / "out").exists()


def test_a_study_without_a_best_leaves_its_table_and_pictures(here):
    result = tune("--trials", 2, "--limit", "parameters=5", "--output", "out", code=1)
    assert "None of the 2 complete trials keeps the limits" in result.stderr
    assert [trial["feasible"] for trial in rows(here / "out")] == ["False", "False"]
    for name in ("history", "parallel"):
        assert (here / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (here / "out" / "best").exists()
