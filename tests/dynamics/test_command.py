"""The command ``seqattn study dynamics``."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from seqattn.cli import cli
from seqattn.dynamics import ScanAndSnapStudy, syn_small


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["study", "dynamics", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


SHORT = ("--set", "n_steps=6", "--set", "n_seeds=2")


def test_without_data_it_runs_the_published_small_setting(tmp_path):
    found = json.loads(run(*SHORT, "--output", tmp_path / "run", "--json").stdout)
    expected = ScanAndSnapStudy(lr_y=[1.0, 10.0], momentum=0.9, n_steps=6, n_seeds=2).fit(syn_small()).result_
    entropy = expected.array("entropy_distinct")[:, -1].mean(-1).reshape(2, 2).mean(1)
    assert [row["lr_y"] for row in found["rates"]] == [1.0, 10.0]
    assert [row["entropy_distinct"] for row in found["rates"]] == pytest.approx(entropy.tolist())
    assert not found["assumptions"]["hold"]
    assert "weak correlation" in found["assumptions"]["failed"]
    import seqattn

    opened = seqattn.load(tmp_path / "run" / "study.safetensors")
    assert opened.result_.table.equals(pl.read_parquet(tmp_path / "run" / "records.parquet"))
    assert not (tmp_path / "run" / "study.part").exists()


def test_a_text_becomes_words_and_its_assumptions_are_told(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["s u s q x", "s v s q y"] * 40))
    settings = ("context=3", "min_context=3", "n_steps=4", "seq_len=4")
    sets = [part for setting in settings for part in ("--set", setting)]
    result = run("--text", text, *sets, "--output", tmp_path / "run")
    assert "classes of" in result.stdout
    assert "FAILS" in result.stdout
    assert "Needs at most" in result.stderr
    assert (tmp_path / "run" / "tokens.csv").exists()


def test_a_study_is_not_replaced_unasked(tmp_path):
    run(*SHORT, "--output", tmp_path, "--quiet")
    assert "--overwrite" in run(*SHORT, "--output", tmp_path, code=2).stderr
    run(*SHORT, "--output", tmp_path, "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--set", "n_step=3"), 2, "n_steps"),
        (("--text", "a", "--data", "b"), 2, "Give one of them"),
        (("--text", "no-such-file"), 3, "no-such-file"),
        (("--set", "ratio=2.0", "--set", "lr_y=1.0"), 2, "Both lr_y and ratio"),
        (("--data", "no-such-data"), 3, "no-such-data"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, code, said, tmp_path):
    assert said in run(*arguments, "--output", tmp_path / "run", code=code).stderr
