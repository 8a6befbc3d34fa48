"""The figures of the paper on training dynamics."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from seqattn.cli import cli
from seqattn.dynamics.figures import FIGURES, compute, parts_of
from seqattn.reproduce.figure_pages import figure_remarks
from seqattn.reproduce.figures import TITLES, FigurePlan, Figures, known_figures
from seqattn.reproduce.summary import COLUMNS

KNOWN = {figure.name: figure for figure in known_figures()}


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["reproduce", "dynamics", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def means(name: str, part: str = "all", seeds: tuple[int, ...] = (0,), **changed: object) -> dict:
    values = compute(name, part, KNOWN[name].settings | changed, list(seeds)).values
    found = values.group_by("row", "metric", maintain_order=True).agg(pl.col("value").mean())
    return {(row, metric): value for row, metric, value in found.iter_rows()}


def test_every_figure_that_is_told_of_can_be_made():
    assert set(KNOWN) == set(FIGURES)
    assert {"figure3", "figure4", "figure5", "figure6", "figure8", "figure9"} <= set(KNOWN)


def test_the_growth_by_theory_reaches_the_heights_of_its_constant():
    found = means("figure3")
    assert [round(found[f"rate {rate}", "chi"]) for rate in ("0.5", "1", "2", "5")] == [541, 415, 314, 215]


def test_the_exponent_at_the_snap_depends_on_the_ratio_alone():
    values = list(means("figure9").values())
    assert values == pytest.approx([values[0]] * 4, rel=1e-12)
    other = list(means("figure9", ratio=1.0).values())
    assert other[0] > values[0] + 0.01


def test_growth_in_steps_stays_within_its_bound():
    assert all(0 < share < 1 for share in means("figure8").values())


def test_each_published_cell_has_a_row_of_ours():
    settings = KNOWN["figure6"].settings | {"n_steps": 1, "batch_size": 2, "seq_len": 4}
    parts = parts_of("figure6", settings)
    assert parts == ["1 query", "3 queries", "5 queries", "10 queries"]
    rows = compute("figure6", "1 query", settings, [0]).values["row"].to_list()
    published = KNOWN["figure6"].published["entropy_distinct"]
    assert {row.replace("1 query", part) for row in rows for part in parts} == set(published)
    assert len(published) == 64


@pytest.mark.slow
def test_the_small_settings_keep_or_lose_the_order_of_frequency():
    descent, adam = means("figure4", seeds=(0,)), means("figure5", rates=[0.1, 1.0])
    assert descent["rates 1 / 1", "order"] == pytest.approx(1.0)
    assert adam["Adam, rate 1", "order"] > 0.95
    assert adam["Adam, rate 0.1", "order"] < 0.6
    for (row, metric), value in descent.items():
        if (published := KNOWN["figure4"].value(row, metric)) is not None:
            assert value == pytest.approx(published, abs=0.06), (row, metric)


def test_seeds_are_told_apart_and_repeat():
    one = compute("figure4", "all", KNOWN["figure4"].settings | {"n_steps": 3}, [4, 5])
    two = compute("figure4", "all", KNOWN["figure4"].settings | {"n_steps": 3}, [4, 5])
    assert one.values.equals(two.values)
    assert sorted(set(one.values["seed"].to_list())) == [4, 5]
    assert one.values.filter(pl.col("metric") == "common_mass")["value"].n_unique() == 4


def records(values: list[float], name: str = "figure4") -> dict:
    rows = [
        {"row": "rates 1 / 1", "metric": "common_mass", "seed": seed, "value": value}
        for seed, value in enumerate(values)
    ]
    return {"dataset": name, "model": "all", "status": "complete", "values": rows, "curves": "none"}


def test_rows_are_means_over_seeds_beside_published_values():
    found = Figures(FigurePlan(output="."), [KNOWN["figure4"]], [records([0.3, 0.5])], [], {})
    (row,) = found.rows()
    assert (row["mean"], row["n_seeds"], row["published"]) == (pytest.approx(0.4), 2, 0.388)
    assert row["std"] == pytest.approx(0.1 * 2**0.5)
    assert figure_remarks(found)["Against published values"] == [
        "1 values: mean distance 0.0120, largest 0.0120."
    ]


@pytest.mark.slow
def test_figures_are_written_kept_and_gone_on_with(tmp_path):
    about = ("--datasets", "figure4,figure8", "--set", "n_steps=6", "--seeds", "2", "--output", tmp_path)
    first = json.loads(run(*about, "--json", "--quiet", "--workers", "2").stdout)
    assert {row["dataset"] for row in first["table"]} == {"figure4", "figure8"}
    assert all(set(row) == set(COLUMNS) for row in first["table"])
    # Six steps are not the published hundred.
    assert all(row["published"] is None for row in first["table"])
    for name in ("figure4.png", "figure8.png", "table.csv", "table.md", "table.html"):
        assert (tmp_path / name).stat().st_size > 0, name
    with (tmp_path / "table.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == [row["model"] for row in first["table"]]
    page = (tmp_path / "table.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert TITLES["common_mass"] in page
    again = run(*about)
    assert "2 parts of figures: 2 complete, 0 failed before, 0 to run" in again.stderr
    shutil.rmtree(next((tmp_path / "cells").glob("figure8-*")))
    assert "1 to run" in run(*about).stderr


@pytest.mark.slow
def test_a_part_that_fails_is_told_and_left_until_asked_for(tmp_path):
    about = ("--datasets", "figure4", "--set", "n_steps=-1", "--output", tmp_path)
    found = json.loads(run(*about, "--json", code=1).stdout)
    assert "n_steps=-1" in found["failed"][0]["reason"]
    assert "1 failed before, 0 to run" in run(*about, code=1).stderr
    assert "1 failed before, 1 to run" in run(*about, "--retry-failed", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--datasets", "figure44"), "figure4"),
        (("--models", "SAHP"), "--models means nothing"),
        (("--set", "n_step=3"), "n_steps"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, said, tmp_path):
    assert said in run(*arguments, "--output", tmp_path / "run", code=2).stderr
