"""Tables, texts and pictures that people and programs read."""

from __future__ import annotations

import json
import math
import struct
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from seqattn.errors import DataError, MissingDependencyError
from seqattn.report import (
    dataset_facts,
    facts_text,
    number,
    plot_training,
    table,
    to_json,
    write_table,
)
from seqattn.train.history import History

HISTORY = History(
    [
        {"epoch": 1, "train_loss": 2.0, "valid_loss": 1.9},
        {"epoch": 2, "train_loss": 1.5, "valid_loss": 1.4},
        {"epoch": 3, "train_loss": 1.3, "valid_loss": 1.6},
    ],
    best_epoch=2,
)
TRIALS = [
    {"number": 0, "state": "complete", "value": -0.5, "name": "defaults"},
    {"number": 1, "state": "pruned", "value": -4.0, "name": None},
    {"number": 2, "state": "fail", "value": None, "name": None},
    {"number": 3, "state": "complete", "value": 0.25, "name": None},
]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.25, "-0.25"),
        (3e-4, "0.0003"),
        (3.14159, "3.142"),
        (12345.6, "12,346"),
        (5e-5, "5.000e-05"),
        (-2e12, "-2.000e+12"),
        (math.inf, "inf"),
        (math.nan, "-"),
        (None, "-"),
        (14820, "14,820"),
        (np.int64(3), "3"),
        (np.float32(0.5), "0.5"),
        (True, "yes"),
        ("gap", "gap"),
        (Path("a/b"), "a/b"),
    ],
)
def test_a_number_is_shown_in_a_few_digits(value, text):
    assert number(value) == text


def test_a_table_aligns_texts_to_the_left_and_numbers_to_the_right():
    text = table(["model", "value", "n"], [["SAHP", 0.25, 10], ["exponential", -12.5, None]])
    assert text.splitlines() == [
        "model          value   n",
        "-----------  -------  --",
        "SAHP           0.250  10",
        "exponential  -12.500   -",
    ]


def test_numbers_of_a_column_have_equal_decimals_unless_their_sizes_forbid_it():
    assert table(["a"], [[0.5], [1.25]]).splitlines()[2:] == ["0.5000", "1.2500"]
    assert table(["p"], [[0.5], [1e-80]]).splitlines()[2:] == ["      0.5", "1.000e-80"]


def test_a_table_without_rows_is_its_head():
    assert table(["a", "bc"], []) == "a  bc\n-  --"


def test_json_knows_no_number_that_is_not_finite():
    value = {
        "nan": math.nan,
        "inf": [np.float64(math.inf), -math.inf],
        1: (np.int32(2), np.bool_(True)),
        "array": np.array([[1.5, math.nan]]),
        "date": date(2024, 2, 29),
        "path": Path("x"),
        "text": "ü",
    }
    assert json.loads(to_json(value), parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None, None],
        "1": [2, True],
        "array": [[1.5, None]],
        "date": "2024-02-29",
        "path": "x",
        "text": "ü",
    }


def test_a_written_table_keeps_every_digit(tmp_path):
    text = write_table(tmp_path / "t.csv", ["name", "value"], [["a,b", 0.1 + 0.2], ["c", None]])
    assert text == 'name,value\n"a,b",0.30000000000000004\nc,\n'
    assert (tmp_path / "t.csv").read_text() == text


def test_facts_are_indented_by_depth():
    assert facts_text({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}) == "a:\n  b:\n    c: 1\n  d: 1, 2\ne: -"


def size_of(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    return struct.unpack(">II", content[16:24])


def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """Keep the figures that are saved, to look at what is in them."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    return figures


def test_the_training_picture_shows_both_losses_and_marks_the_best_epoch(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    path = plot_training(HISTORY, tmp_path / "t.png", "nats per event", "sahp on taxi")
    assert min(size_of(path)) > 300
    (axes,) = figures[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["training"].get_ydata().tolist() == [2.0, 1.5, 1.3]
    assert lines["held out"].get_xdata().tolist() == [1, 2, 3]
    (star,) = [line for label, line in lines.items() if label.startswith("best")]
    assert (star.get_xdata().tolist(), star.get_ydata().tolist()) == ([2], [1.4])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss (nats per event)")


def test_a_training_picture_without_held_out_data_shows_the_training_loss(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    plot_training(History([{"epoch": 1, "train_loss": 2.0, "valid_loss": None}]), tmp_path / "t.png")
    assert [line.get_label() for line in figures[0].axes[0].lines] == ["training"]


def test_drawing_leaves_the_state_of_pyplot_alone(tmp_path):
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before = (mpl.get_backend(), plt.get_fignums())
    plot_training(HISTORY, tmp_path / "t.png")
    assert (mpl.get_backend(), plt.get_fignums()) == before


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'seqattn\[plot\]'"):
        plot_training(HISTORY, tmp_path / "x.png")


def test_facts_on_a_data_set_say_how_to_get_what_is_not_here(monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", "")
    assert dataset_facts("taxi")["how_to_get"] is None
    assert "SEQATTN_DATA" in dataset_facts("hawkes2d")["how_to_get"]
    assert dataset_facts("mimic-ii")["name"] == "mimic-ii/fold1"
    with pytest.raises(DataError, match="Did you mean 'taxi'"):
        dataset_facts("taxxi")
