from __future__ import annotations

import sys

import numpy as np
import pytest
from hawkes.reference import HAWKES, hawkes_data, hawkes_process, poisson_data
from scipy import stats

from seqattn import PoissonProcess, Sequences
from seqattn.errors import DataError, MissingDependencyError
from seqattn.hawkes import diagnose
from seqattn.hawkes.diagnose import plot_goodness_of_fit, plot_intensity


@pytest.fixture(scope="module")
def fit():
    return hawkes_process(HAWKES).goodness_of_fit(hawkes_data(HAWKES, 5, seed=1))


def test_goodness_of_fit_is_drawn_as_png(fit, tmp_path):
    path = fit.plot(tmp_path / "fit.png")
    assert path == tmp_path / "fit.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def panels(draw, *arguments):
    axes = diagnose._new_figure(5, 5).subplots()
    draw(axes, *arguments)
    assert axes.get_title()
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    return axes


def test_the_band_of_the_quantiles_is_that_of_order_statistics(fit):
    axes = panels(diagnose._draw_quantiles, fit)
    band = axes.collections[0].get_paths()[0].vertices
    points = axes.lines[-1].get_xydata()
    np.testing.assert_allclose(points, fit.qq_points(1000))
    n = fit.n_events
    for rank in (1, n // 2, n):
        theory = -np.log1p(-(rank - 0.5) / n)
        inside = band[np.isclose(band[:, 0], theory)][:, 1]
        exact = -np.log1p(-stats.beta.ppf([0.025, 0.975], rank, n + 1 - rank))
        np.testing.assert_allclose([inside.min(), inside.max()], exact, rtol=1e-9)


@pytest.mark.parametrize("factor", [0.7, 1.4], ids=["gaps too long", "gaps too short"])
def test_the_largest_step_of_the_distribution_is_the_statistic(factor):
    model = PoissonProcess(window=(0.0, 1.0)).fit([([0.5], [0])])
    model.rate_ = np.array([factor])
    fit = model.goodness_of_fit(poisson_data(2, 0, 1, 1.0, t_end=10.0))
    axes = panels(diagnose._draw_distribution, fit)
    drawn = np.abs(axes.lines[-1].get_ydata()).max()
    assert drawn == pytest.approx(fit.ks_statistic, rel=1e-9)
    bands = sorted({abs(line.get_ydata()[0]) for line in axes.lines[:4]})
    levels = [1 - stats.kstwo.sf(band, fit.n_events) for band in bands]
    np.testing.assert_allclose(levels, [0.95, 0.99])


def test_the_bars_of_the_autocorrelation_are_its_values(fit):
    axes = panels(diagnose._draw_autocorrelation, fit)
    assert axes.lines[-1].get_xydata().tolist() == [
        [lag, value] for lag, value in enumerate(fit.autocorrelation, 1)
    ]


def test_the_points_of_the_reliability_are_those_of_the_bins(fit):
    axes = panels(diagnose._draw_reliability, fit.marks)
    line = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(line.get_xydata(), np.column_stack([fit.marks.stated, fit.marks.observed]))


def test_few_events_and_one_type_are_drawn_too(tmp_path):
    model = PoissonProcess(window=(0.0, 4.0)).fit([([1.0], ["a"])])
    alone = model.goodness_of_fit([([2.0], ["a"])])
    assert plot_goodness_of_fit(alone, tmp_path / "one.png").stat().st_size > 10_000


def test_many_events_take_no_more_points(fit, tmp_path):
    data = poisson_data(300, 0)
    many = PoissonProcess().fit(data).goodness_of_fit(data, by_type=False)
    assert many.n_events > 25_000
    axes = panels(diagnose._draw_distribution, many)
    assert len(axes.lines[-1].get_xdata()) <= 2000
    assert len(panels(diagnose._draw_quantiles, many).lines[-1].get_xdata()) <= 1000


def test_drawing_leaves_the_state_of_matplotlib_alone(fit, tmp_path):
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    fit.plot(tmp_path / "fit.png")
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_without_matplotlib_the_error_names_the_extra(fit, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    data = hawkes_data(HAWKES, 1, seed=1)
    for draw in (
        lambda: fit.plot(tmp_path / "fit.png"),
        lambda: plot_intensity(hawkes_process(HAWKES), data, 0, tmp_path / "intensity.png"),
    ):
        with pytest.raises(MissingDependencyError, match=r"seqattn\[plot\]"):
            draw()


def test_intensities_are_drawn_for_sequences_that_are_there(tmp_path):
    model, data = hawkes_process(HAWKES), hawkes_data(HAWKES, 2, seed=1)
    path = plot_intensity(model, data, 1, tmp_path / "intensity.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="no sequence 2: the data hold 2"):
        plot_intensity(model, data, 2, path)
    point = Sequences.from_lists([([1.0], [0])], labels=2)
    with pytest.raises(DataError, match="no length"):
        plot_intensity(model, point, 0, path)
