"""Detectors: on curves whose answer is known, and the scaling of the snap with rate, classes and outputs."""

from __future__ import annotations

import numpy as np
import pytest

from seqattn.dynamics import ScanAndSnapStudy, detect, detect_snap, syn, theory
from seqattn.errors import ParameterError

T = np.r_[0.0, np.geomspace(0.01, 1000, 400)]


def test_each_detector_finds_what_was_put_in():
    speed = np.exp(-(np.log(np.maximum(T, 1e-9) / 7) ** 2))
    peak = detect.t_peak(T, speed[None])
    assert peak.estimate == pytest.approx(7, rel=1e-3)
    assert np.isnan(peak.low)
    freeze = detect.t_freeze(T, speed[None], q=0.1)
    assert freeze.estimate == pytest.approx(7 * np.exp(np.sqrt(np.log(10))), rel=1e-3)
    assert detect.t_half(T, np.exp(-T / 5)[None]).estimate == pytest.approx(5 * np.log(2), rel=1e-3)
    slope = detect.creep(T, (2 - 0.03 * np.log10(np.maximum(T, 1e-9)))[None])
    assert slope.estimate == pytest.approx(-0.03)


def test_intervals_hold_the_spread_over_seeds():
    halves = np.array([[3.0], [4.0], [5.0], [6.0]])
    found = detect.t_half(T, np.exp(-T * np.log(2) / halves))
    assert 3 < found.low < found.estimate < found.high < 6


def test_what_is_not_there_has_a_status_and_no_value():
    rising = T[None]
    assert np.isnan(detect.t_peak(T, rising).estimate)
    assert detect.t_peak(T, rising).status == "no_peak"
    assert detect.t_peak(T, -rising).status == "no_peak"
    assert detect.t_freeze(T, rising).status == "moving"
    assert detect.t_half(T, np.ones_like(rising)).status == "not_reached"
    assert detect.creep(T, np.full_like(rising, np.nan)).status == "no_distinct"
    ended = np.where(T > 50, np.nan, T)[None]
    assert detect.t_peak(T, ended).status == "diverged"
    with pytest.raises(ParameterError, match="q=2"):
        detect.t_freeze(T, rising, q=2)


def test_states_tell_logarithmic_creep_from_other_motion():
    late = np.maximum(T, 0.01)[None]
    falling, loss = 2 - 0.02 * np.log10(late), 1 / (1 + late)
    assert detect.state(T, falling, 1 / late, loss) == "creeping"
    assert detect.state(T, falling, late**-0.3, loss) == "moving"
    assert detect.state(T, 4 - falling, 1 / late, loss) == "moving"
    assert detect.state(T, 0 * falling + 2, 1 / late, loss) == "frozen"
    assert detect.state(T, falling, 1 / late, 1 + 0.2 * late / late[0, -1]) == "diverged"
    assert detect.state(T, falling, 1 / late, np.where(late > 50, np.nan, loss)) == "diverged"


def test_all_detectors_come_as_one_table():
    classes = syn(next_per_query=2, n_common=2, n_distinct=3)
    study = ScanAndSnapStudy(trainer="flow", lr_y=[1.0, 4.0], n_steps=500, n_records=200).fit(classes)
    table = detect_snap(study.result_)
    assert table["lr_y"].to_list() == [1.0, 4.0]
    half = table["t_half"].to_list()
    assert half[0] > half[1]
    assert table["t0"].to_list() == pytest.approx([2 * 2 * np.log(classes.n_outputs) / y for y in (1.0, 4.0)])
    assert not table["is_weak"].any()
    assert set(table["state"]) <= {"frozen", "creeping", "moving"}


# -- the snap against the paper's time -------------------------------------------------------------------------


def weak(K, V, share=0.15, D=4):
    distinct = np.linspace(0.1, 1, D)
    return theory.Symmetric(K, V, tuple((1 - share) * distinct / distinct.sum()), (share,), next_per_query=K)


def times_of(K, V, lr_y, lr_z=1e-4):
    t0 = theory.snap_times(lr_y=lr_y, n_outputs=V, n_classes=K).last
    t = np.r_[0.0, np.geomspace(0.05, 10, 250) * t0]
    path = theory.reduced_ode(t, weak(K, V), lr_y=lr_y, lr_z=lr_z)
    peak = detect.t_peak(t, path.speed[None]).estimate
    return peak, detect.t_half(t, path.one_minus_alpha[None]).estimate, t0


def test_at_weak_correlation_the_snap_comes_at_the_papers_time():
    rates = [0.5, 2.0, 8.0]
    peaks, halves, _ = zip(*(times_of(10, 1000, lr_y) for lr_y in rates), strict=True)
    for found in (peaks, halves):
        slope = np.polyfit(np.log(rates), np.log(found), 1)[0]
        assert slope == pytest.approx(-1, abs=0.02)
    for K, V in [(3, 1000), (10, 1000), (30, 1000), (10, 50), (10, 50_000)]:
        peak, half, t0 = times_of(K, V, 1.0)
        assert 0.43 < peak / t0 < 0.52, (K, V)
        assert 0.53 < half / t0 < 0.65, (K, V)


def dominant(K, V, share, D, lr_y, lr_z=0.5):
    """Return times, growth of the strongest distinct token, the paper's B, its share, and t0."""
    data = weak(K, V, share, D)
    t0 = theory.snap_times(lr_y=lr_y, n_outputs=V, n_classes=K).last
    t = np.geomspace(0.01, 20_000, 200)
    z = theory.reduced_ode(t, data, lr_y=lr_y, lr_z=lr_z).z_distinct[:, -1]
    length = np.square(data.distinct).sum() + share**2
    G0 = share**2 / length
    growth = theory.B(t, lr_y=lr_y, lr_z=lr_z, n_outputs=V, n_classes=K, C0=1 / ((K - 1) * G0**2))
    return t, z, growth, data.distinct[-1] ** 2 / length, t0, (K - 1) * G0


@pytest.mark.parametrize(("K", "share", "D"), [(5, 0.3, 4), (10, 0.15, 4), (10, 0.3, 4), (30, 0.15, 10)])
@pytest.mark.parametrize("lr_y", [1.0, 5.0])
def test_without_idle_columns_the_papers_bounds_hold_for_sgd(K, share, D, lr_y):
    t, z, growth, low, t0, strength = dominant(K, K, share, D, lr_y)
    assert 0.7 < strength < 10
    assert (z < growth).all()
    late = t > t0
    assert (z[late] > 0.9 * low * growth[late]).all()


def test_with_idle_columns_growth_is_far_below_the_papers_lower_bound():
    _, z, growth, low, _, strength = dominant(10, 1000, 0.15, 4, 1.0)
    assert strength == pytest.approx(0.75, abs=0.01)
    assert z[-1] == pytest.approx(0.0024, abs=2e-4)
    assert low * growth[-1] == pytest.approx(0.067, abs=2e-3)
    assert z[-1] < 0.1 * low * growth[-1]


def test_the_ratio_law_is_exact_for_an_infinitely_fast_decoder_only():
    distinct = np.linspace(0.1, 1, 10)
    data = theory.Symmetric(2, 34, tuple(distinct / 15.5), (1 / 15.5,) * 10, next_per_query=1)
    errors = {}
    for ratio in (1, 10, 100):
        t = np.geomspace(0.1, 400, 120)
        z = theory.reduced_ode(t, data, lr_y=float(ratio), lr_z=1.0).z_distinct
        start = np.square(distinct[1:] / distinct[0]) - 1
        now = np.square(distinct[1:] / distinct[0]) * np.exp(2 * (z[:, 1:] - z[:, :1])) - 1
        errors[ratio] = np.abs(now / (start * np.exp(2 * z[:, 1:])) - 1).max()
    assert errors[100] < 0.03
    assert errors[100] < errors[10] / 5
    assert errors[10] < errors[1]


def test_the_plateau_depends_on_the_horizon():
    """The ratio of rates does not fix the plateau: published times, and a U shape whose minimum moves."""
    rows = {
        0.5: [2.0840, 2.0779, 2.0795, 2.0812, 2.0826],
        1: [2.0769, 2.0663, 2.0665, 2.0681, 2.0696],
        2: [2.0770, 2.0588, 2.0554, 2.0557, 2.0568],
        5: [2.0895, 2.0631, 2.0505, 2.0455, 2.0439],
        10: [2.1040, 2.0785, 2.0602, 2.0489, 2.0426],
        50: [2.1319, 2.1202, 2.1079, 2.0957, 2.0841],
    }
    distinct = np.linspace(0.1, 1, 10)
    data = theory.Symmetric(2, 34, tuple(distinct / 15.5), (1 / 15.5,) * 10, next_per_query=1)
    for lr_y, expected in rows.items():
        path = theory.reduced_ode([1e2, 1e3, 1e4, 1e5, 1e6], data, lr_y=float(lr_y), lr_z=1.0)
        np.testing.assert_allclose(path.entropy_distinct, expected, atol=5e-4, err_msg=str(lr_y))
