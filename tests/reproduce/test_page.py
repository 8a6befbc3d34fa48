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


def test_ranks_leave_out_models_that_never_completed_and_sets_that_are_not_full(tmp_path, summary):
    assert (summary.ranks.models, summary.ranks.average) == (["SAHP", "PoissonProcess"], [1.5, 1.5])
    fewer = Summary(result(tmp_path, complete=summary.result.complete[:4]))
    assert (fewer.ranks.datasets, fewer.ranks.average) == (["taxi"], [1.0, 2.0])


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
    assert told["ranks"]["models"] == ["SAHP", "PoissonProcess"]


def test_the_markdown_marks_the_best_and_names_what_failed(summary):
    text = markdown(summary)
    assert "| SAHP | **0.6000 ± 0.1414** | -1.0000 |" in text
    assert "| PoissonProcess | 0.1000 | **-0.5000** |" in text
    assert "| broken | failed |  |" in text
    assert "| *THP* (published) | 0.372 |  |" in text
    assert "- taxi, broken, seed 0: It <broke> & ended." in text


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
