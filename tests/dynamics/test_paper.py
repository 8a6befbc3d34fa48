"""The paper's layer: its curves beside a study, its bounds, and what it assumes, from its own equations."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from random_classes import draw_classes
from scipy.optimize import brentq

from seqattn.dynamics import SequenceClasses, syn, theory
from seqattn.dynamics.overlays import overlays
from seqattn.dynamics.paper import paper_dynamics

# -- curves beside a study -------------------------------------------------------------------------------------

PLAIN = {"norm": "l2", "optimizer": "sgd", "momentum": 0.0, "init": "zero", "seq_len": np.inf, "n_steps": 500}
TIMES = np.array([0.0, 0.3, 4.0, 60.0, 500.0])


def growing(K, V, lr_y, times):
    """Return u = V h, the root of exp(u) + (V - 1) u = V lr_y t / K + 1."""
    return np.array(
        [
            brentq(lambda u, s=t / K: np.expm1(u) + (V - 1) * u - V * lr_y * s, 0, 50, xtol=1e-14)
            for t in times
        ]
    )


def drawn(classes, lr_y, lr_z, **changes):
    """Return the paper's curves by quantity and class."""
    table = overlays(classes, [(lr_y, lr_z)], TIMES, PLAIN | changes).filter(pl.col("layer") == "paper")
    parts = table.sort("time").partition_by("quantity", "klass", as_dict=True)
    return {key: part["value"].to_numpy() for key, part in parts.items()}


@pytest.mark.parametrize(("K", "V"), [(2, 2), (3, 40), (5, 1000)])
def test_the_decoder_of_the_paper_is_drawn_from_its_growth(K, V):
    classes = syn(next_per_query=K, n_common=1, n_distinct=3, common_share=0.3, n_outputs=V)
    curves, u = drawn(classes, 2.0, 0.5), growing(K, V, 2.0, TIMES)
    np.testing.assert_allclose(curves["margin", None], u, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(curves["one_minus_alpha", None], (V - 1) / (V - 1 + np.exp(u)), rtol=1e-10)
    # Before training the right token has its share of the outputs, 1 - 1/V of them are wrong.
    assert curves["one_minus_alpha", None][0] == pytest.approx(1 - 1 / V)


def test_bounds_are_drawn_for_the_square_of_each_classs_largest_share():
    K, V, lr_y, lr_z = 3, 40, 2.0, 0.5
    P = np.zeros((K, 8))
    P[:, 0] = 0.3, 0.5, 0.2
    P[0, 1:3], P[1, 3:5], P[2, 5:8] = (0.1, 0.6), (0.3, 0.2), (0.5, 0.1, 0.2)
    classes = SequenceClasses(P, [0, 0, 0], [0, 1, 2], n_outputs=V)
    curves = drawn(classes, lr_y, lr_z)
    f = P / np.sqrt((P**2).sum(1, keepdims=True))
    G0 = np.mean([f[i] @ f[j] for i in range(K) for j in range(K) if i != j])
    h = growing(K, V, lr_y, TIMES) / V
    Gamma = lr_z / lr_y * K * (V - 1) ** 2 * h**2 / 2
    B = np.log(1 + 4 * Gamma * (K - 1) * G0**2) / 4 / K
    np.testing.assert_allclose(curves["B", None], B, rtol=1e-9, atol=1e-12)
    for klass, top in enumerate((2, 3, 5)):
        np.testing.assert_allclose(curves["chi_low", klass], np.exp(2 * f[klass, top] ** 2 * B), rtol=1e-9)
        np.testing.assert_allclose(curves["chi_high", klass], np.exp(2 * B), rtol=1e-9)


# -- bounds ----------------------------------------------------------------------------------------------------


def test_bounds_are_powers_of_the_growth():
    growth, share = np.array([0.0, 0.2, 1.5]), 0.3
    low, high = theory.chi_bounds(growth, share)
    np.testing.assert_allclose(low, np.exp(growth) ** 0.6, rtol=1e-14)
    np.testing.assert_allclose(high, np.exp(growth) ** 2, rtol=1e-14)


def test_the_dominant_token_leaves_its_lower_bound_for_the_slope_of_the_upper_one():
    """d ln chi = 2 f^2 dB: at first f is that of the start, and f nears 1 where the token takes all attention."""
    classes = syn(
        next_per_query=4, n_common=1, n_distinct=2, common_share=0.6, distinct=(0.5, 1.0), n_outputs=9
    )
    t = np.array([1e-3, 2e-3, 1e3, 1e5])
    path = paper_dynamics(t, classes, lr_y=1.0, lr_z=20.0, rtol=1e-11)
    token = 2  # the strongest of the first class
    share = classes.P[0, token] ** 2 / np.square(classes.P[0]).sum()
    chi = np.exp(2 * path.z[:, 0, token])
    low, high = (np.log(bound) for bound in theory.chi_bounds(path.growth[:, 0] / 4, share))
    np.testing.assert_allclose(np.log(chi[:2]) / low[:2], 1, rtol=1e-5)
    # Over a late span the odds grow as the upper bound does, apart from what f lacks of 1.
    before, after = path.f2[2:, 0, token]
    late = np.diff(np.log(chi[2:]))[0] / np.diff(high[2:])[0]
    assert 0.9 < before < late < after
    assert (np.log(chi) >= low).all()
    assert (np.log(chi) <= high).all()


# -- the paper's gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "V"), [(2, 2), (4, 30)])
def test_the_paper_dynamics_have_the_papers_velocity(K, V):
    """Between two near times z moves along sum w_n f_n * (g_n - (f_n . g_n) f_n), with g from the inverse of F^T F."""
    classes = draw_classes(1, K=K, V=V, unique=True, queries=2)
    lr_y, lr_z, t, step = 1.5, 0.7, 3.0, 1e-3
    path = paper_dynamics([t - step, t, t + step], classes, lr_y=lr_y, lr_z=lr_z, rtol=1e-12)
    odds = classes.P * np.exp(path.z[1][classes.query])
    F = (odds / np.linalg.norm(odds, axis=1, keepdims=True)).T
    u = growing(K, V, lr_y, [t])[0]
    gamma = (V - 1) ** 2 * (u / V) / (V - 1 + np.exp(u))
    expected, growth = np.zeros_like(path.z[1]), np.zeros(K)
    for n in range(K):
        q = np.full(K, -V / (V - 1) ** 2)
        q[n] = 1 + 1 / (V - 1)
        mixed = gamma * np.linalg.inv(F.T @ F) @ q
        f, g = F[:, n], F @ mixed
        expected[classes.query[n]] += lr_z * classes.weight[n] * f * (g - (f @ g) * f)
        # xi is minus the projection on f of the others' part of g.
        growth[n] = lr_z * -(f @ (g - mixed[n] * f))
    np.testing.assert_allclose((path.z[2] - path.z[0]) / (2 * step), expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose((path.growth[2] - path.growth[0]) / (2 * step), growth, rtol=1e-5, atol=1e-9)


# -- what the paper assumes ------------------------------------------------------------------------------------


def pair(product, M, V=None):
    """Return two classes of one scalar product, and M tokens."""
    rest = np.sqrt((1 - product) / product)
    P = np.zeros((2, M))
    P[:, 0], P[0, 1], P[1, 2] = 1, rest, rest
    return SequenceClasses(P / (1 + rest), [0, 0], [0, 1], n_outputs=V)


@pytest.mark.parametrize(("product", "holds"), [(0.059, False), (0.061, True)])
def test_correlation_must_exceed_six_over_the_root_of_the_number_of_tokens(product, holds):
    classes = pair(product, 10_000)  # 6 / 100
    assert classes.lam_min == pytest.approx(product)
    assert ("correlation at all" in classes.assumption_report().failed) is not holds


@pytest.mark.parametrize(("product", "holds"), [(0.49, True), (0.51, False)])
def test_correlation_must_stay_below_one_over_the_number_of_classes(product, holds):
    assert ("weak correlation" in pair(product, 10_000).assumption_report().failed) is not holds


def test_the_smallest_eigenvalue_counts_and_not_the_largest():
    # Two classes are alike and the third has nothing in common with them: eigenvalues G, -G and 0.
    P = np.zeros((3, 40_000))
    P[0, :2], P[1, [0, 2]], P[2, 3] = 0.5, 0.5, 1
    classes = SequenceClasses(P, [0, 0, 0], [0, 1, 2])
    assert classes.lam_max == pytest.approx(0.5)
    assert "correlation at all" in classes.assumption_report().failed


@pytest.mark.parametrize(("times", "holds"), [(1, False), (3, False), (30, True), (1000, True)])
def test_late_times_are_many_times_the_square_of_the_number_of_classes(times, holds):
    classes = syn(next_per_query=10, n_common=1, n_distinct=1)
    report = classes.assumption_report(n_steps=100 * times)
    assert ("late times" in report.failed) is not holds


@pytest.mark.parametrize(
    ("lr_y", "holds"),
    [(0.5, True), (0.99, True), (1.0, False), (2.0, False), (2e-4, False), ([0.5, 2.0], False)],
)
def test_the_rate_of_the_decoder_lies_far_above_its_least_and_below_one(lr_y, holds):
    report = pair(0.1, 10_000).assumption_report(lr_y=lr_y)  # M^-0.99 is 1.1e-4
    assert ("small decoder rate" in report.failed) is not holds


@pytest.mark.parametrize(("lr_z", "holds"), [(0.001, True), (0.5, False), ([0.001, 0.5], False)])
def test_the_decoder_is_far_faster_than_attention(lr_z, holds):
    report = pair(0.1, 10_000).assumption_report(lr_y=0.5, lr_z=lr_z)
    assert ("fast decoder" in report.failed) is not holds


@pytest.mark.parametrize("V", [7, 300])
def test_the_strength_of_correlation_is_the_mean_product_times_the_outputs(V):
    classes = draw_classes(2, K=5, V=V)
    f = classes.P / np.sqrt((classes.P**2).sum(1, keepdims=True))
    products = [f[i] @ f[j] for i in range(5) for j in range(i)]
    report = classes.assumption_report()
    assert report.correlation == pytest.approx(np.mean(products) * V, rel=1e-12)
    assert f"G0 V = {np.mean(products) * V:.3g}" in str(report)
    assert pair(0.2, 50, V).assumption_report().correlation == pytest.approx(0.2 * V)


# -- the early law with labels of their own --------------------------------------------------------------------


def test_with_labels_of_their_own_only_competition_moves_attention_first():
    """The pull of a class on itself cancels: sum p f * ((f . fbar) f - fbar) / V is left."""
    classes = draw_classes(5, K=6, V=11, unique=True, queries=3)
    f = classes.P / np.sqrt((classes.P**2).sum(1, keepdims=True))
    mean = classes.weight @ f
    expected = np.zeros((3, classes.n_tokens))
    for k in range(6):
        expected[classes.query[k]] += classes.weight[k] * f[k] * ((f[k] @ mean) * f[k] - mean) / 11
    np.testing.assert_allclose(theory.attention_drift(classes), expected, rtol=1e-12, atol=1e-16)
    distinct = classes.kinds() == "distinct"
    assert theory.attention_drift(classes)[:, distinct].min(initial=0) >= 0
