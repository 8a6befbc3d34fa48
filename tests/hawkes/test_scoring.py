from __future__ import annotations

import numpy as np
import pytest
from hawkes.reference import HAWKES, hawkes_data, hawkes_process

from seqattn import EmpiricalMarkov, ExponentialHawkes, PoissonProcess, RenewalProcess, Sequences
from seqattn.errors import ParameterError


@pytest.fixture(scope="module")
def named() -> tuple[Sequences, Sequences]:
    """Training and held-out data with labels that are text."""
    sets = []
    for seed in (1, 2):
        data = hawkes_data(HAWKES, 30, seed)
        pairs = [data.sequence(row) for row in range(len(data))]
        rows = [(times, np.array(["buy", "sell"])[kinds].tolist()) for times, kinds in pairs]
        sets.append(Sequences.from_lists(rows, window=(0.0, 100.0)))
    return sets[0], sets[1]


@pytest.mark.parametrize("kind", [PoissonProcess, RenewalProcess, EmpiricalMarkov, ExponentialHawkes])
def test_goodness_of_fit_agrees_with_evaluation_for_every_process(kind, named):
    model = kind().fit(named[0])
    fit, values = model.goodness_of_fit(named[1]), model.evaluate(named[1], baselines=False)
    for name, key in (
        ("ks_statistic", "ks_statistic"),
        ("ks_pvalue", "ks_pvalue"),
        ("mean", "residual_mean"),
        ("variance", "residual_variance"),
        ("n_events", "n_events"),
        ("convention", "convention"),
        ("window", "window"),
    ):
        assert getattr(fit, name) == values[key], name
    assert fit.by_type["k"].to_list() == ["buy", "sell"]
    assert fit.model == kind.__name__
    assert fit.by_type["expected"].sum() == pytest.approx(fit.expected, rel=1e-9)


def test_tables_are_read_as_everywhere(named):
    model = PoissonProcess(window=(0.0, 100.0)).fit(named[0].to_frame())
    table, read = model.goodness_of_fit(named[1].to_frame()), model.goodness_of_fit(named[1])
    np.testing.assert_allclose(table.gaps, read.gaps)


def test_only_the_true_process_passes_among_the_baselines(named):
    passed = {
        kind.__name__: kind().fit(named[0]).goodness_of_fit(named[1], by_type=False)
        for kind in (PoissonProcess, RenewalProcess, EmpiricalMarkov, ExponentialHawkes)
    }
    right = [name for name, fit in passed.items() if fit.ks_pvalue > 0.001 and fit.ljung_box_pvalue > 0.001]
    assert right == ["ExponentialHawkes"]


def test_types_may_be_left_out(named):
    model = PoissonProcess().fit(named[0])
    short, long = (model.goodness_of_fit(named[1], by_type=by_type) for by_type in (False, True))
    assert short.by_type is None
    assert short.ks_pvalue == long.ks_pvalue
    assert "types with KS" in str(long)
    assert "types with KS" not in str(short)


def test_unknown_convention_is_refused():
    with pytest.raises(ParameterError, match="'from_frist'.*Did you mean 'from_first'"):
        hawkes_process(HAWKES).goodness_of_fit(hawkes_data(HAWKES, 1, seed=0), convention="from_frist")
