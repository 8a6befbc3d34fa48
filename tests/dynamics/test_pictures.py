"""Pictures show what was recorded, and say which theory they draw."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from seqattn.dynamics import ScanAndSnapStudy, bias_report, plot_bias, sweep, syn_medium
from seqattn.dynamics.writing import draw_study, write_study
from seqattn.errors import ParameterError, SeqattnWarning

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def study():
    fitted = ScanAndSnapStudy(n_steps=12, lr_y=[1.0, 5.0], n_seeds=2, n_records=8, n_snapshots=4).fit(
        syn_medium(1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeqattnWarning)
        assert len(fitted.result_.theory)
    return fitted


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_course_draws_the_mean_over_seeds_and_names_its_theory(study):
    axes = study.plot_course("one_minus_alpha")
    expected = study.result_.array("one_minus_alpha").mean(-1)[:2].mean(0)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected)
    assert axes.get_xlabel() == "time (steps)"
    assert "probability" in axes.get_ylabel()
    assert "paper, assumptions fail" in texts(axes)
    assert "exact flow, another training rule" in texts(axes)
    assert not any("paper" in text for text in texts(study.plot_course("one_minus_alpha", theory=False)))


def test_attention_lies_with_common_tokens_below_and_frequent_ones_above(study):
    axes = study.plot_attention(klass=1, run=2)
    cells = axes.collections[0].get_array().reshape(20, -1)
    c = study.result_.array("c")[2, :, 1]
    own = np.flatnonzero(syn_medium(1).owner == 1)
    np.testing.assert_allclose(cells[:10].sum(0), c[:, :10].sum(1))
    np.testing.assert_allclose(cells[10:], c[:, own].T)


def test_growth_draws_the_token_with_the_largest_probability_between_bounds(study):
    axes = study.plot_growth(klass=0, run=0)
    strongest = np.flatnonzero(syn_medium(1).owner == 0)[-1]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), study.result_.array("chi")[0, :, 0, strongest])
    assert len(axes.lines) == 3
    assert "assumptions fail" in texts(axes)[1]


def test_logits_are_drawn_for_each_token_of_the_class(study):
    axes = study.plot_logits(klass=0)
    drawn = [line for line in axes.lines if len(line.get_ydata())]
    assert len(drawn) == 20
    assert sum(line.get_linestyle() == "--" for line in drawn) == 10


def test_maps_and_plateaus_show_every_cell_of_a_sweep():
    base = ScanAndSnapStudy(n_steps=6, record_at=[3, 6])
    whole = ScanAndSnapStudy()
    whole.result_ = sweep(base, {"lr_y": [0.5, 1.0, 4.0], "lr_z": [1.0, 2.0]}, 2, syn_medium(1))
    values = whole.result_.array("common_mass").mean(-1)
    cells = whole.plot_map("common_mass", time=3).collections[0].get_array()
    expected = values[:, 1].reshape(3, 2, 2).mean(-1).T
    np.testing.assert_allclose(np.asarray(cells).reshape(2, 3), expected)
    axes = whole.plot_plateau("common_mass")
    assert axes.get_title() == "After 6 steps"
    line = axes.lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata(), dtype=float), [0.5, 1.0, 4.0])
    ends = values[:, -1].reshape(3, 2, 2).mean(-1)[:, 0]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), ends)


def test_drawing_goes_into_axes_that_are_given(study):
    axes = study.plot_course("loss", theory=False)
    assert study.plot_balance(ax=axes) is axes


def test_what_cannot_be_drawn_is_refused(study):
    with pytest.raises(ParameterError, match="quantity of tokens"):
        study.plot_course("z", theory=False)
    with pytest.raises(ParameterError, match="two values of each rate"):
        study.plot_map()


def test_a_study_of_own_sequences_becomes_a_folder(tmp_path):
    sequences = [list("susq" + "x"), list("svsq" + "y")] * 40
    own = ScanAndSnapStudy(trainer="batch", n_steps=20, lr_y=2.0, context=3, min_context=3, n_records=6).fit(
        sequences
    )
    names = {path.name for path in write_study(own, tmp_path)}
    assert names >= {
        "study.safetensors",
        "records.parquet",
        "detectors.csv",
        "theory.csv",
        "bias.csv",
        "tokens.csv",
    }
    drawn = {path.name for path in draw_study(own, tmp_path, endings=("svg",))}
    assert {"bias.svg", "attention.svg", "logits.svg", "entropy.svg"} <= drawn
    table = bias_report(own.own_, own.parameters_.Z[0].numpy())
    axes = plot_bias(table)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), table["correlation"])
