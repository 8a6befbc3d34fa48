"""Pictures of a study hold what the trials say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from seqattn.errors import MissingDependencyError
from seqattn.plots import (
    _places,
    plot_bench,
    plot_front,
    plot_importance,
    plot_parallel,
    plot_patterns,
    plot_trials,
)


def trial(number: int, state: str, value: float, **more: Any) -> dict[str, Any]:
    return {"number": number, "state": state, "value": value, "name": None, "feasible": True, **more}


TRIALS = [
    trial(0, "complete", -0.5, rate=0.001, form="mark", parameters=10, extra=1),
    trial(1, "pruned", -1.0, rate=0.5, form="mark"),
    trial(2, "complete", 0.25, rate=0.1, form="hidden", parameters=30),
    trial(3, "complete", 0.5, rate=0.01, form="hidden", parameters=90, feasible=False),
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep the figures that are saved, to look at what is in them."""
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k)))
    return kept


def lines_of(figure: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_the_picture_of_a_study_shows_the_best_so_far(tmp_path, figures):
    plot_trials(TRIALS, tmp_path / "h.png", "score (nats)")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["complete (2)"].get_ydata().tolist() == [-0.5, 0.25]
    assert lines["over a limit (1)"].get_ydata().tolist() == [0.5]
    assert lines["pruned (1)"].get_xdata().tolist() == [1]
    assert lines["best so far"].get_ydata().tolist() == [-0.5, 0.25]
    assert axes.get_ylabel() == "score (nats)"


def legend_of(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_legend_counts_what_failed_and_leaves_out_what_there_is_none_of(tmp_path, figures):
    trials = [*TRIALS[:1], trial(1, "fail", None), trial(2, "fail", None)]
    plot_trials(trials, tmp_path / "h.png", "score (nats)")
    assert legend_of(figures[0]) == ["complete (1)", "best so far", "failed (2)"]


def test_long_names_are_shortened_and_none_lies_on_another(tmp_path, figures):
    long = "warm start of some data with a long name"
    trials = [trial(n, "complete", 0.5, name=long if n == 29 else f"start {n}") for n in range(30)]
    plot_trials(trials, tmp_path / "h.png", "score (nats)")
    check_labels(figures[0])
    plot_trials(trials[29:], tmp_path / "h.png", "score (nats)")
    (text,) = figures[1].axes[0].texts
    assert text.get_text() == "warm start of some..."


def check_labels(figure: Any) -> None:
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert boxes
    for place, box in enumerate(boxes):
        assert axes.bbox.x0 <= box.x0 <= box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])


def test_the_picture_of_importances_has_the_greatest_on_top(tmp_path, figures):
    plot_importance({"dropout": 0.1, "learning_rate": 0.9}, tmp_path / "i.png")
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dropout", "learning_rate"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.9]


def test_the_axis_of_a_number_is_that_of_the_search():
    values = [10.0**power for power in range(-4, 4)]
    spots, marks = _places(values, {"log": True})
    assert spots == pytest.approx([power / 7 for power in range(8)])
    assert list(marks) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (marks[0.0], marks[1.0]) == ("0.0001", "1,000")
    assert _places(values, {})[0] == pytest.approx([(value - 1e-4) / (1e3 - 1e-4) for value in values])
    narrow, marks = _places([2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 12.0], {})
    assert narrow == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0])
    assert marks[0.5] == "7"


def test_marks_have_the_digits_that_tell_them_apart():
    values = [-1.2 + 0.0001 * step for step in range(9)]
    assert list(_places(values, {})[1].values()) == ["-1.2", "-1.1998", "-1.1996", "-1.1994", "-1.1992"]
    assert list(_places([0.30001, 0.30002], {})[1].values()) == ["0.30001", "0.30002"]


def test_words_and_few_numbers_stand_at_equal_distances():
    assert _places([8, 1, 8, 2], {}) == ([5 / 6, 1 / 6, 5 / 6, 0.5], {1 / 6: "1", 0.5: "2", 5 / 6: "8"})
    assert _places(["b", "a"], {})[0] == [0.75, 0.25]
    assert _places([True, False], {})[1] == {0.25: "no", 0.75: "yes"}
    assert _places([[4, 4], [16], [4, 4]], {}) == ([0.75, 0.25, 0.75], {0.25: "[16]", 0.75: "[4, 4]"})
    assert _places([None, "a"], {})[1] == {0.25: "-", 0.75: "a"}


def study(trials: list[dict[str, Any]], **more: Any) -> SimpleNamespace:
    rules = {"rate": {"type": "float", "low": 1e-4, "high": 1.0, "log": True}, "form": {}, "extra": {}}
    return SimpleNamespace(
        **{"trials": trials, "rules": rules, "best_params": {}, "best_trial": None, "front": [], **more}
    )


def test_each_complete_trial_is_a_line_through_its_settings(tmp_path, figures):
    plot_parallel(study(TRIALS, best_trial=2), tmp_path / "p.png", "score (nats)")
    axes, bar = figures[0].axes
    # The setting that only one trial has is left out.
    assert [label.get_text() for label in axes.get_xticklabels()] == ["rate", "form", "objective"]
    assert lines_of(figures[0])["trial 2, refitted"].get_ydata().tolist() == [5 / 6, 0.25, 0.5]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--" and len(line.get_ydata())]
    assert [line.get_ydata().tolist() for line in dashed] == [[0.5, 0.25, 5 / 6]]
    assert bar.get_ylabel() == "score (nats)"
    assert axes.get_title() == "3 complete trials of 4"


def test_the_front_is_drawn_with_the_units_of_both_objectives(tmp_path, figures):
    outcome = study(TRIALS, second="parameters", front=[TRIALS[2], TRIALS[0]], best_trial=2)
    plot_front(outcome, tmp_path / "f.png", "score (nats)")
    (axes,) = figures[0].axes
    line = lines_of(figures[0])["beaten by none in both (2)"]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([30, 10], [0.25, -0.5])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("number of weights", "score (nats)")
    assert [text.get_text() for text in axes.texts] == ["2 (refitted)", "0"]


def test_the_numbers_of_a_crowded_front_lie_apart(tmp_path, figures):
    trials = [trial(n, "complete", 1 - 0.001 * n, parameters=1000 - n) for n in range(60)]
    outcome = study(trials, second="parameters", front=trials, best_trial=30)
    plot_front(outcome, tmp_path / "f.png", "score (nats)")
    check_labels(figures[0])
    assert "30 (refitted)" in {text.get_text() for text in figures[0].axes[0].texts}


def test_a_study_with_one_trial_or_no_best_is_drawn(tmp_path, figures):
    plot_parallel(study(TRIALS[:1]), tmp_path / "p.png", "score (nats)")
    (axes,) = figures[0].axes
    assert axes.get_title() == "1 complete trial of 1"
    assert legend_of(figures[0]) == []


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_trials(TRIALS, path, "score"),
        lambda path: plot_importance({"a": 1.0}, path),
        lambda path: plot_parallel(study(TRIALS), path, "score"),
    ],
    ids=["trials", "importance", "parallel"],
)
def test_without_matplotlib_the_extra_is_named(draw, tmp_path, monkeypatch):
    import sys

    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'seqattn\[plot\]'"):
        draw(tmp_path / "x.png")


def test_the_picture_of_a_bench_has_a_line_per_width_and_shows_calls_without_memory(tmp_path, figures):
    rows = [
        {"length": length, "width": width, "method": method, "ratio": ratio, "peak MB": ratio - 1.0}
        for width in (8, 64)
        for length in (64, 128)
        for method, ratio in (("fused dense", 1.0), ("local", 2.0))
    ]
    plot_bench(rows, tmp_path / "b.png")
    names = ["fused dense, width 8", "local, width 8", "fused dense, width 64", "local, width 64"]
    assert legend_of(figures[0]) == names
    for axes in figures[0].axes:
        assert [line.get_xdata().tolist() for line in axes.lines] == [[64, 128]] * 4
        assert not list(axes.get_xticks(minor=True))
    assert figures[0].axes[1].get_ylim()[0] == 0
    assert figures[0].axes[1].lines[0].get_ydata().tolist() == [0, 0]


def test_patterns_have_one_colour_on_all_data_sets(tmp_path, figures):
    rows = [
        {"dataset": dataset, "pattern": pattern, "seconds": 1.0, "mean": -1.0, "std": None}
        for dataset, patterns in (("a", ["dense", "local(2)"]), ("b", ["local(2)"]))
        for pattern in patterns
    ]
    plot_patterns(rows, "nats", tmp_path / "p.png")
    assert legend_of(figures[0]) == ["dense", "local(2)"]
    first, second = (axes.containers for axes in figures[0].axes)
    assert first[1][0].get_color() == second[0][0].get_color() != first[0][0].get_color()
