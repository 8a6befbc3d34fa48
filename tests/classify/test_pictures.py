"""What the pictures show: shapes where they lie, and what spoke for a class where it spoke, by size and sign."""

from __future__ import annotations

import sys

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from seqattn import VSFormerClassifier
from seqattn.classify import pictures, task
from seqattn.classify.order import content_order
from seqattn.data.panels import Panel
from seqattn.errors import DataError, MissingDependencyError, ParameterError

SMALL = {"epochs": 1, "d_model": 8, "shape_tokens": 16, "value_tokens": 8, "random_state": 0}


def waves(n_channels: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cases of two classes, in units far from those of the tokens: slow waves and quick ones, 20 of them in all."""
    rng = np.random.default_rng(seed)
    y = np.repeat(["quick", "slow"], 10)
    speed = np.where(y == "quick", 2.0, 1.0)[:, None, None]
    times = np.arange(40) + 20 * rng.random((20, n_channels, 1))
    return 50 + 7 * np.sin(speed * times / 4) + rng.normal(0, 0.3, (20, n_channels, 40)), y


@pytest.fixture
def figures(monkeypatch):
    """Collect the figures that are drawn, so that what they hold can be looked at."""
    kept, save = [], Figure.savefig

    def keep(figure, *arguments, **options):
        kept.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


@pytest.fixture(scope="module", params=["dilated", "motif", "raw motif"])
def fitted(request):
    X, y = waves()
    match = "raw" if request.param == "raw motif" else "znorm"
    shapes = request.param.split()[-1]
    return VSFormerClassifier(shapes=shapes, match=match, readout_shapes=16, **SMALL).fit(X, y)


@pytest.fixture(scope="module")
def decided():
    X, y = waves()
    return VSFormerClassifier(readout_shapes=32, **SMALL).fit(X, y)


def panels(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def test_on_the_training_cases_shapes_lie_on_the_series_they_come_from(fitted, figures, tmp_path):
    X, labels = waves()
    order = content_order(Panel.of(X), np.unique(labels, return_inverse=True)[1])
    cases = [X[case] for case in order]
    for name in fitted.classes_.tolist():
        path = fitted.plot_shapes(name, tmp_path / "shapes.png", cases)
        assert path.read_bytes().startswith(b"\x89PNG")
        for axes in panels(figures.pop()):
            under, shape = axes.lines
            number, case = (
                int(word.split(",")[0]) for word in axes.get_title().replace("\n", " ").split()[1:5:3]
            )
            row = fitted.shapes_.row(number, named=True)
            assert (row["class"], row["source"]) == (name, case)
            series = cases[case][row["channel"]]
            series = np.diff(series, prepend=series[:1]) if row["is_difference"] else series
            np.testing.assert_allclose(under.get_ydata(), series, atol=1e-9)
            times = shape.get_xdata()
            assert (times[0], times[-1]) == (row["start"], row["end"] - 1)
            np.testing.assert_allclose(shape.get_ydata(), series[times.astype(int)], atol=1e-9)


def test_shapes_are_drawn_on_the_nearest_case_in_its_own_level(decided, figures, tmp_path):
    X, _ = waves(seed=1)
    decided.plot_shapes("slow", tmp_path / "shapes.png", X, k=4)
    decided.plot_shapes("slow", tmp_path / "shapes.png", 1000 + X[:, :, :30], k=4)
    assert decided.tokeniser_.shapes.is_normed.any()
    for axes in panels(figures[1]):
        under, shape = axes.lines
        places = np.minimum(shape.get_xdata().astype(int), 29)  # a longer shape goes on with the last value
        assert len(under.get_ydata()) == 30
        if decided.tokeniser_.shapes.is_normed[int(axes.get_title().split()[1].rstrip(","))]:
            found = under.get_ydata()[places]
            assert shape.get_ydata().mean() == pytest.approx(found.mean())
            assert shape.get_ydata().std() == pytest.approx(found.std())


def test_shapes_alone_stand_where_they_were_found_those_that_weigh_most_first(decided, figures, tmp_path):
    decided.plot_shapes("quick", tmp_path / "shapes.png", k=5)
    table = decided.shapes_.filter(pl.col("class") == "quick").sort("weight", descending=True).head(5)
    found = panels(figures[0])
    assert [axes.get_title().split()[1] for axes in found] == [str(number) for number in table["id"]]
    for axes, row in zip(found, table.iter_rows(named=True), strict=True):
        (shape,) = axes.lines
        assert (shape.get_xdata()[0], shape.get_xdata()[-1]) == (row["start"], row["end"] - 1)
        assert f"{row['weight']:.3f}" in axes.get_title()
        name = (
            f"difference of channel {row['channel']}" if row["is_difference"] else f"channel {row['channel']}"
        )
        assert axes.get_ylabel().split("\n")[0] == name
    assert figures[0].get_supxlabel() == "time (points)"


def test_points_are_shaded_by_what_they_contribute_and_its_sign(decided, figures, tmp_path):
    X, _ = waves(seed=2)
    for target in ("quick", "slow"):
        decided.plot_explanation(X, 3, tmp_path / "why.png", target)
        shares = decided.explain(X[[3]], target).map[0]
        shares = shares / np.abs(shares).max()
        for channel, axes in enumerate(figures.pop().axes[:2]):
            (curve,) = [line for line in axes.lines if len(line.get_xdata()) == 40]
            np.testing.assert_array_equal(curve.get_ydata(), X[3, channel])
            for sign, color in ((1, pictures._FOR), (-1, pictures._AGAINST)):
                alpha = np.zeros(40)
                for patch in axes.patches:
                    if patch.get_fill() and patch.get_facecolor()[:3] == to_rgb(color):
                        first = round(patch.get_x() + 0.5)
                        alpha[first : first + round(patch.get_width())] += patch.get_alpha()
                wanted = np.where(sign * shares[channel] >= pictures._FAINT, sign * shares[channel], 0)
                np.testing.assert_allclose(alpha, np.where(wanted > 0, 0.15 + 0.6 * wanted, 0))
            hatched = sum(patch.get_width() for patch in axes.patches if patch.get_hatch())
            assert round(hatched) == (shares[channel] <= -pictures._FAINT).sum()


def test_the_ten_largest_parts_are_bars_and_their_spans_lie_above_their_channels(decided, figures, tmp_path):
    X, _ = waves(seed=2)
    decided.plot_explanation(X, 5, tmp_path / "why.png")
    top = decided.explain(X[[5]]).top(10)
    *left, right = figures[0].axes
    assert [bar.get_width() for bar in right.patches] == top["contribution"].to_list()
    assert [bool(bar.get_hatch()) for bar in right.patches] == (top["contribution"] < 0).to_list()
    names = [label.get_text() for label in right.get_yticklabels()]
    assert [name.split("\n")[0] for name in names] == [
        f"{rank}. {row['kind']}, no. {row['number']}" for rank, row in enumerate(top.iter_rows(named=True), 1)
    ]
    for channel, axes in enumerate(left):
        wanted = {
            (str(rank), row["start"] - 0.5, row["end"] - 0.5, "-" if row["contribution"] > 0 else ":")
            for rank, row in enumerate(top.iter_rows(named=True), 1)
            if channel in row["channels"]
        }
        bars = [line for line in axes.lines if len(line.get_xdata()) == 2]
        found = {
            (text.get_text(), *map(float, bar.get_xdata()), bar.get_linestyle())
            for bar, text in zip(bars, axes.texts, strict=True)
        }
        assert found == wanted
        heights = [(bar.get_ydata()[0], *bar.get_xdata()) for bar in bars]
        for one in heights:
            over = [
                other for other in heights if other[0] == one[0] and other[1] < one[2] and one[1] < other[2]
            ]
            assert over == [one]


def test_of_many_channels_those_that_decide_are_drawn(figures, tmp_path):
    X, y = waves(n_channels=11)
    model = VSFormerClassifier(readout_shapes=0, **SMALL).fit(X, y)
    model.plot_explanation(X, 0, tmp_path / "why.png")
    *left, _ = figures[0].axes
    shown = {int(axes.get_ylabel().split()[1]) for axes in left}
    assert len(shown) == 8
    top = model.explain(X[[0]]).top(10)
    assert {channels[0] for channels in top["channels"].to_list()} <= shown or top["channels"].n_unique() > 8
    assert "8 of 11 channels" in figures[0].get_suptitle()


def test_what_cannot_be_drawn_is_refused(decided, tmp_path):
    X, y = waves()
    with pytest.raises(DataError, match="class_='fast' is no class"):
        decided.plot_shapes("fast", tmp_path / "x.png")
    with pytest.raises(DataError, match="There is no case 20: X has 20, counted from 0"):
        decided.plot_explanation(X, 20, tmp_path / "x.png")
    with pytest.raises(DataError, match="target='fast' is no class"):
        decided.plot_explanation(X, 0, tmp_path / "x.png", "fast")
    values = VSFormerClassifier(tokens="value", readout_shapes=0, **SMALL).fit(X, y)
    with pytest.raises(DataError, match="No shape token was taken from the class 'slow'"):
        values.plot_shapes("slow", tmp_path / "x.png")
    for k in (0, -1):
        with pytest.raises(ParameterError, match=f"k={k} is not allowed. Give a whole number, at least 1"):
            decided.plot_shapes("slow", tmp_path / "x.png", k=k)
    with pytest.raises(DataError, match="Case 0 has no value at all, so nothing spoke for a class"):
        decided.plot_explanation(X * np.nan, 0, tmp_path / "x.png")
    with pytest.raises(DataError, match=r"none.x\.png' cannot be written: No such file or directory"):
        decided.plot_shapes("slow", tmp_path / "none" / "x.png")
    with pytest.raises(DataError, match=r"x\.txt' ends like no picture. Endings: .*png"):
        decided.plot_explanation(X, 0, tmp_path / "x.txt")
    assert list(tmp_path.iterdir()) == []


def test_the_ending_of_the_path_names_the_form(decided, tmp_path):
    beginnings = {"png": b"\x89PNG", "PDF": b"%PDF", "jpg": b"\xff\xd8"}
    for ending, beginning in beginnings.items():
        path = decided.plot_shapes("slow", tmp_path / f"x.{ending}", k=1)
        assert path.read_bytes().startswith(beginning)


def test_without_matplotlib_the_package_to_install_is_named(decided, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"seqattn\[plot\]"):
        decided.plot_shapes("slow", tmp_path / "x.png")


def test_the_task_draws_the_confusion_and_one_explanation(decided, tmp_path):
    X, y = waves(seed=3)
    found = task.plots(decided, Panel(list(X), y), tmp_path)
    assert [path.name for path in found] == ["confusion.png", "explanation.png"]
    assert [path.name for path in task.plots(decided, Panel(list(X)), tmp_path)] == ["explanation.png"]
    assert task.plots(decided, Panel([X[0] * np.nan]), tmp_path) == []
    with pytest.warns(UserWarning, match="every prediction will be that class"):
        lonely = VSFormerClassifier(**SMALL).fit(X[:5], y[:5])
    assert [path.name for path in task.plots(lonely, Panel(list(X), y), tmp_path)] == ["confusion.png"]
