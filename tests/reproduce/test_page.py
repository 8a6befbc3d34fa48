"""What is told of a grid: rows, comparisons and ranks from made-up records, and the files that show them."""

from __future__ import annotations

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reproduce.small_grid import write_grid

from seqattn.reproduce.grid import Grid
from seqattn.reproduce.page import html, lines, markdown, write
from seqattn.reproduce.run import Plan, Reproduction
from seqattn.reproduce.summary import COLUMNS, Summary

VOID = {"meta", "br", "link", "img"}


def record(
    dataset: str, model: str, seed: int, value: float, totals: list[float], **more: Any
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "model": model,
        "seed": seed,
        "status": "complete",
        "metrics": {"loglik_per_event": value, "rmse": 1.5, "integral_error": 0.0},
        "cases": {"totals": totals, "counts": [2, 3, 5]},
        "seconds": 1.25,
        "epochs": 3,
        "best_epoch": 2,
        "versions": {"seqattn": "0", "torch": "2"},
        "command": f"seqattn reproduce tpp --models '{model}'",
        "ended": "2026-01-01T00:00:00+00:00",
        **more,
    }


def result(folder: Path, **changes: Any) -> Reproduction:
    failed = record("taxi", "broken", 0, 0.0, [], status="failed", reason="It <broke> & ended.")
    given: dict[str, Any] = {
        "plan": Plan("tpp", folder),
        "grid": Grid.load(write_grid(folder / "grid.toml")),
        "complete": [
            record("taxi", "SAHP", 0, 0.5, [1.0, 2.0, 2.0]),
            record("taxi", "SAHP", 1, 0.7, [3.0, 2.0, 2.0]),
            record("taxi", "PoissonProcess", 0, 0.1, [0.0, 1.0, 0.0]),
            record("hawkes2d", "SAHP", 0, -1.0, [-4.0, -3.0, -3.0]),
            record("hawkes2d", "PoissonProcess", 0, -0.5, [-2.0, -2.0, -1.0]),
        ],
        "failed": [failed],
        "skipped": {},
        "protocols": {"taxi": "from_first", "hawkes2d": "from_first; trained on less"},
        "embedded": frozenset({"taxi"}),
        "partial": frozenset(),
    }
    return Reproduction(**{**given, **changes})


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    return Summary(result(tmp_path))


def row(summary: Summary, dataset: str, model: str, metric: str = "loglik_per_event") -> dict[str, Any]:
    chosen = (dataset, model, metric)
    return next(each for each in summary.rows() if (each["dataset"], each["model"], each["metric"]) == chosen)


def test_a_row_holds_ours_beside_the_published_figure(summary):
    assert row(summary, "taxi", "SAHP") == {
        "dataset": "taxi",
        "model": "SAHP",
        "metric": "loglik_per_event",
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.02**0.5),
        "n_seeds": 2,
        "published": 0.298,
        "source": "a paper",
        "protocol": "from_first",
    }
    assert row(summary, "hawkes2d", "SAHP")["protocol"] == "from_first; trained on less"
    assert row(summary, "taxi", "SAHP", "rmse")["published"] is None


def test_published_models_that_we_do_not_run_have_rows_without_a_mean(summary):
    found = row(summary, "taxi", "THP")
    assert (found["mean"], found["std"], found["n_seeds"], found["published"]) == (None, None, 0, 0.372)
    assert not [each for each in summary.rows() if (each["dataset"], each["model"]) == ("hawkes2d", "THP")]


def test_other_data_than_the_published_have_no_published_figure_beside_them(tmp_path):
    summary = Summary(result(tmp_path, partial=frozenset({"taxi"})))
    assert {each["published"] for each in summary.rows()} == {None}
    assert "0.298" not in html(summary) + markdown(summary)
    assert "a part" in markdown(summary)


def test_seeds_are_averaged_before_cases_are_compared(summary):
    first, second = summary.comparisons
    assert (first.dataset, first.second) == ("taxi", "PoissonProcess")
    # Means over seeds 2, 2, 2 against 0, 1, 0: five nats over ten events.
    assert first.paired.difference == pytest.approx(0.5)
    assert second.paired.difference == pytest.approx(-0.5)
    assert first.pvalue == pytest.approx(min(1.0, 2 * min(first.paired.pvalue, second.paired.pvalue)))


def test_only_the_same_cases_are_compared(tmp_path):
    complete = result(tmp_path).complete
    complete[2]["cases"]["counts"] = [2, 3, 6]
    assert [each.dataset for each in Summary(result(tmp_path, complete=complete)).comparisons] == ["hawkes2d"]
    complete[2]["cases"] = None
    assert [each.dataset for each in Summary(result(tmp_path, complete=complete)).comparisons] == ["hawkes2d"]


def test_contests_leave_out_models_that_never_completed_and_sets_that_are_not_full(tmp_path, summary):
    (found,) = summary.contests
    assert (found.models, found.ranks, found.datasets) == (
        ["SAHP", "PoissonProcess"],
        [1.5, 1.5],
        ["taxi", "hawkes2d"],
    )
    (fewer,) = Summary(result(tmp_path, complete=summary.result.complete[:4])).contests
    assert (fewer.datasets, fewer.ranks) == (["taxi"], [1.0, 2.0])


def test_the_screen_shows_the_first_metric_and_counts_failures(summary):
    heads, rows = lines(summary)
    assert heads == ["data", "model", "log-likelihood per event", "std", "seeds", "published", "failed"]
    assert ["taxi", "broken", None, None, 0, None, 1] in rows
    assert len(rows) == 7


def test_the_csv_has_all_digits_and_the_columns_of_the_table(tmp_path, summary):
    paths = write(summary, tmp_path)
    assert [path.name for path in paths] == ["table.csv", "table.md", "table.html"]
    with paths[0].open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [float(each["mean"]) if each["mean"] else None for each in rows] == [
        each["mean"] for each in summary.rows()
    ]


def test_the_json_is_json_and_tells_failures(summary):
    told = json.loads(json.dumps(summary.to_json()))
    assert [each["reason"] for each in told["failed"]] == ["It <broke> & ended."]
    assert "cases" not in told["failed"][0]
    assert told["ranks"][0]["models"] == ["SAHP", "PoissonProcess"]


def test_the_markdown_marks_the_best_and_names_what_failed(summary):
    text = markdown(summary)
    assert "| SAHP | **0.6000 ± 0.1414** | -1.0000 |" in text
    assert "| PoissonProcess | 0.1000 | **-0.5000** |" in text
    assert "| broken | failed |  |" in text
    assert "| *THP* (published) | 0.372 |  |" in text
    assert "- taxi, broken, seed 0: It <broke> & ended." in text


ARCHIVE = """
title = "Archive"
task = "classify"
reference = "ours"
protocol = "default split, last epoch"
protocol_text = "As given."
training_text = "Trained on the training cases."
evaluation = {}
ranked_decimals = 3
is_averaged = true
[[metrics]]
name = "accuracy"
title = "accuracy"
unit = "share"
[[metrics]]
name = "accuracy_best_epoch"
title = "accuracy at the best epoch"
unit = "share"
best_of = "watched_accuracy"
protocol = "epoch chosen on test"
[[models]]
name = "ours"
model = "vsformer"
[[models]]
name = "peer"
model = "minirocket"
"""


def archive(folder: Path, n_sets: int = 12, **changes: Any) -> Summary:
    """Sets with two published columns: one lacks the last two sets, the other has its epoch chosen on test."""
    names = [f"set{number}" for number in range(n_sets)]
    grid = ARCHIVE + "".join(f'[[datasets]]\nname = "{name}"\n' for name in names)
    grid += '[[published]]\nsource = "a paper"\nprotocol = "epoch chosen on test"\nmetric = "accuracy"\n'
    grid += 'also = ["accuracy_best_epoch"]\n'
    grid += "".join(f"[published.figures.{name}]\n'star*' = 0.8\n" for name in names)
    grid += '[[published]]\nsource = "another"\nprotocol = "default split (published)"\nmetric = "accuracy"\n'
    grid += "".join(f"[published.figures.{name}]\nother = 0.4\n" for name in names[:-2])
    (folder / "archive.toml").write_text(grid)
    complete = []
    for place, name in enumerate(names):
        mine, theirs = 0.8 + 1e-4 * (place % 3), 0.6 + 0.01 * place
        for model, value in (("ours", mine), ("peer", theirs)):
            metrics = {"accuracy": value} | ({"accuracy_best_epoch": 0.9} if model == "ours" else {})
            complete.append(record(name, model, 0, 0.0, [1.0], metrics=metrics, cases=None))
    given = {
        "plan": Plan("uea", folder),
        "grid": Grid.load(folder / "archive.toml"),
        "complete": complete,
        "failed": [],
        "skipped": {},
        "protocols": dict.fromkeys(names, "default split, last epoch"),
        "embedded": frozenset(),
        "partial": frozenset(),
    }
    return Summary(Reproduction(**{**given, **changes}))


def test_published_columns_are_ranked_rounded_and_on_sets_of_their_own_where_figures_lack(tmp_path):
    every, fewer = archive(tmp_path).contests
    # 0.8000 to 0.8002 against 0.8: equal to three decimals.
    assert dict(zip(every.models, every.ranks, strict=True)) == {"ours": 1.5, "star*": 1.5, "peer": 3.0}
    assert (len(every.datasets), len(fewer.datasets)) == (12, 10)
    assert dict(zip(fewer.models, fewer.ranks, strict=True)) == {
        "ours": 1.5,
        "star*": 1.5,
        "peer": 3.0,
        "other": 4.0,
    }
    assert every.pair("ours", "star*").ties == 12
    assert every.pair("ours", "peer").wins == 12
    assert sorted(map(sorted, every.cliques)) == [["ours", "star*"]]


def test_without_the_wish_published_columns_are_not_ranked(tmp_path):
    grid = Grid.load(write_archive_without_ranks(tmp_path))
    (found,) = archive(tmp_path, grid=grid).contests
    assert sorted(found.models) == ["ours", "peer"]


def write_archive_without_ranks(folder: Path) -> Path:
    archive(folder)
    text = (folder / "archive.toml").read_text().replace("ranked_decimals = 3\n", "")
    (folder / "plain.toml").write_text(text)
    return folder / "plain.toml"


def test_the_best_epoch_stands_beside_published_figures_of_its_kind_only(tmp_path):
    summary = archive(tmp_path)
    mine, star = (row(summary, "set0", name, "accuracy_best_epoch") for name in ("ours", "star*"))
    assert (mine["mean"], mine["protocol"]) == (0.9, "epoch chosen on test")
    assert (star["published"], star["protocol"]) == (0.8, "epoch chosen on test")
    assert row(summary, "set0", "peer", "accuracy_best_epoch")["mean"] is None
    assert not [
        each for each in summary.rows() if (each["model"], each["metric"]) == ("other", "accuracy_best_epoch")
    ]
    assert row(summary, "set0", "ours", "accuracy")["protocol"] == "default split, last epoch"
    assert row(summary, "set0", "other", "accuracy")["protocol"] == "default split (published)"
    (found,) = summary.contests_by(summary.grid.metrics[1])
    assert found.models == ["ours", "star*"]


def test_many_data_sets_go_down_the_page_with_their_means_below(tmp_path):
    summary = archive(tmp_path)
    text = markdown(summary)
    assert r"| accuracy | ours | peer | *star\** (published) |" in text
    assert "| set11 | **0.8002** | 0.7100 | 0.800 |  |" in text
    assert "| mean (data sets) | 0.8001 (12) | 0.6550 (12) | 0.8000 (12) | 0.4000 (10) |" in text
    assert "Trained on the training cases." in text
    assert "| ours | 1.50 | 0.8000 |" in text
    assert "12, 0, 0 | +0.1450 |" in text
    assert "Neighbours in the order of ranks of which no two differ (p < 0.05): ours, star*." in text


def test_the_page_draws_each_contest(tmp_path):
    page, reader = html(archive(tmp_path)), Reader()
    reader.feed(page)
    assert reader.open == []
    # Figures by set, two contests of the first metric, one of the second.
    assert len(re.findall(r"<svg.*?</svg>", page, re.S)) == 4
    assert "star* (1.50)" in reader.text
    assert "Protocol: epoch chosen on test." in reader.text
    few = html(archive(tmp_path, n_sets=5))
    assert len(re.findall(r"<svg.*?</svg>", few, re.S)) == 1
    assert "need at least six" in few


class Reader(HTMLParser):
    """Checks that elements are closed in their order, and notes addresses and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.addresses += [value or ""] if name in ("src", "href", "xlink:href", "srcset", "data") else []
            self.ids += [value or ""] if name == "id" else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_but_itself(summary):
    page, reader = html(summary), Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.addresses
    assert all(address.startswith("#") for address in reader.addresses), reader.addresses
    assert {address.removeprefix("#") for address in reader.addresses} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    assert "script" not in reader.tags


def test_the_page_shows_figures_failures_commands_and_versions_as_text(summary):
    reader = Reader()
    reader.feed(html(summary))
    for text in (
        "0.6000 ± 0.1414",
        "It <broke> & ended.",
        "seqattn reproduce tpp --models 'SAHP'",
        "torch 2",
        "trained on less",
        "log-likelihood per event (nats)",  # the axis of the plots
    ):
        assert text in reader.text, text


def test_the_plots_take_on_the_colours_of_the_page(summary):
    drawings = re.findall(r"<svg.*?</svg>", html(summary), re.S)
    assert len(drawings) == 2
    for drawing in drawings:
        assert "currentColor" in drawing
        assert set(re.findall(r": (#[0-9a-f]{3,6})", drawing)) <= {"#2f7ed8", "#d9772b"}


def test_the_same_records_give_the_same_page(tmp_path, summary):
    assert html(summary) == html(Summary(result(tmp_path)))


def test_a_grid_without_a_complete_cell_has_a_page(tmp_path):
    summary = Summary(result(tmp_path, complete=[]))
    assert "No cell is complete" in html(summary)
    assert summary.comparisons == []
    assert markdown(summary)


def test_without_matplotlib_the_page_says_what_is_missing(summary, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_svg"):
        monkeypatch.setitem(sys.modules, name, None)
    page = html(summary)
    assert "<svg" not in page
    assert "pip install 'seqattn[plot]'" in page.replace("&#x27;", "'")
