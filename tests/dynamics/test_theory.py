"""Theory: the formulas against their own equations, and the exact ones against the model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from random_classes import draw_classes
from scipy.integrate import solve_ivp

from seqattn.dynamics import ScanAndSnapStudy, SequenceClasses, syn, theory
from seqattn.dynamics.paper import paper_dynamics
from seqattn.errors import ParameterError


def flow(classes, t, **settings):
    """Return a fitted gradient flow with records of every token at the given times."""
    times = np.atleast_1d(t)
    study = ScanAndSnapStudy(
        **{
            "trainer": "flow",
            "rtol": 1e-11,
            "n_steps": float(times[-1]),
            "record_at": times,
            "n_snapshots": 10_000,
            **settings,
        }
    )
    return study.fit(classes)


# -- the decoder of the paper ----------------------------------------------------------------------------------

OUTPUTS = (2, 34, 1000, 50_272, 1_000_000)


@pytest.mark.parametrize("V", OUTPUTS)
@pytest.mark.parametrize("lr_y", [0.5, 10.0])
def test_h_solves_its_equation_at_all_times(V, lr_y):
    s = np.geomspace(1e-6, 1e8, 200)
    u = V * theory.h(s, lr_y=lr_y, n_outputs=V)
    right = V * lr_y * s + 1
    assert np.isfinite(u).all()
    np.testing.assert_allclose((np.exp(u) + (V - 1) * u) / right, 1, rtol=0, atol=1e-12)
    # Near the start, where the equation above cannot tell u from 0: (e^u - 1) + (V - 1) u = V lr_y s.
    np.testing.assert_allclose(np.expm1(u) + (V - 1) * u, V * lr_y * s, rtol=1e-12)


@pytest.mark.parametrize("V", [2, 34, 1000, 50_272])
@pytest.mark.parametrize("lr_y", [0.5, 10.0])
def test_whole_steps_stay_within_the_papers_bound_above_h(V, lr_y):
    steps = theory.h_steps(400, lr_y=lr_y, n_outputs=V)
    gap = steps - theory.h(np.arange(401), lr_y=lr_y, n_outputs=V)
    assert gap.min() >= -1e-15
    assert gap.max() <= 2 * lr_y / V


def test_h_grows_with_time_at_first_and_with_its_logarithm_later():
    V, lr_y, K = 1000, 0.7, 5
    snap = theory.snap_times(lr_y=lr_y, n_outputs=V, n_classes=K)
    first = snap.first
    assert snap.last == 2 * first
    early, late = 0.1 * first, 1000 * first
    h = {t: float(theory.h(t, lr_y=lr_y, n_outputs=V, n_classes=K)) for t in (early, late)}
    assert V * h[early] == pytest.approx(lr_y * early / K, rel=2e-3)
    assert V * h[late] == pytest.approx(np.log(V * lr_y * late / K), rel=2e-3)


def test_gamma_is_the_slope_of_its_integral():
    settings = {"lr_y": 2.0, "n_outputs": 50, "n_classes": 4}
    t = np.geomspace(0.1, 1e4, 50)
    step = 1e-5 * t
    ahead, behind = (theory.Gamma(t + side * step, lr_z=0.3, **settings) for side in (1, -1))
    np.testing.assert_allclose((ahead - behind) / (2 * step), 0.3 * theory.gamma(t, **settings), rtol=1e-6)


def test_the_growth_exponent_solves_its_own_equation():
    settings = {"lr_y": 1.0, "n_outputs": 1000, "n_classes": 10}
    lr_z, C0 = 0.5, 0.07
    t = np.geomspace(1e-2, 1e5, 40)

    def velocity(time, z):
        return -lr_z * theory.gamma(time, **settings) * np.exp(4 * z) / C0

    done = solve_ivp(velocity, (0, t[-1]), [0.0], method="DOP853", t_eval=t, rtol=1e-12, atol=1e-14)
    closed = theory.B(t, lr_z=lr_z, C0=C0, units="paper", **settings)
    np.testing.assert_allclose(closed, -done.y[0], atol=1e-9, rtol=0)
    assert theory.B(0.0, lr_z=lr_z, C0=C0, **settings) == 0
    np.testing.assert_allclose(theory.B(t, lr_z=lr_z, C0=C0, **settings), closed / 10, rtol=1e-14)


# -- exact laws ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("V", [8, 50])
@pytest.mark.parametrize("seed", range(2))
def test_the_early_law_is_the_first_order_of_the_flow(seed, V):
    classes = draw_classes(seed, K=8, V=V)
    lr_y, lr_z = 1.0, 1.0
    errors = []
    for t in (0.4, 0.2, 0.1):
        z = flow(classes, t, lr_y=lr_y, lr_z=lr_z).result_.array("z")[0, -1]
        law = theory.early_law(t, classes, lr_y=lr_y, lr_z=lr_z)
        errors.append(np.abs(z - law).max() / np.abs(law).max())
    assert errors[0] < 0.03, errors
    assert all(1.8 < a / b < 2.2 for a, b in itertools.pairwise(errors)), errors


def symmetric(queries, V):
    """Return classes in both forms: tokens one by one, and in the reduced numbers."""
    distinct = np.linspace(0.1, 1, 4)
    classes = syn(queries=queries, next_per_query=2, n_common=3, n_distinct=4, common_weight=0.6, n_outputs=V)
    total = distinct.sum() + 3 * 0.6
    data = theory.Symmetric(
        2 * queries, classes.n_outputs, tuple(distinct / total), (0.6 / total,) * 3, next_per_query=2
    )
    return classes, data


@pytest.mark.parametrize(("queries", "V"), [(1, 2), (1, 20), (3, 6), (3, 40)])
def test_the_reduced_equations_are_the_model(queries, V):
    classes, data = symmetric(queries, V)
    t = [0.5, 3.0, 20.0, 150.0]
    study = flow(classes, t, lr_y=2.0, lr_z=0.9)
    path = theory.reduced_ode(np.r_[0.0, t], data, lr_y=2.0, lr_z=0.9, rtol=1e-11)
    z = study.result_.array("z")[0]
    for klass in range(len(classes)):
        own = classes.owner == klass
        np.testing.assert_allclose(z[:, classes.query[klass]][:, own], path.z_distinct, atol=1e-8, rtol=0)
        np.testing.assert_allclose(z[:, classes.query[klass], :3], path.z_common, atol=1e-8, rtol=0)
    for name in ("margin", "one_minus_alpha", "entropy_distinct", "common_mass"):
        np.testing.assert_allclose(
            study.result_.array(name)[0, :, 0], getattr(path, name), atol=1e-8, err_msg=name
        )
    np.testing.assert_allclose(study.result_.array("speed")[0], path.speed * np.sqrt(queries), atol=1e-8)


def test_common_tokens_of_unequal_weight_are_reduced_too():
    P = np.zeros((2, 5))
    P[:, 0], P[:, 1], P[0, 2], P[1, 3] = 0.5, 0.2, 0.3, 0.3
    classes = SequenceClasses(P, [0, 0], [0, 1], n_outputs=7)
    path = theory.reduced_ode(
        [40.0], theory.Symmetric(2, 7, (0.3,), (0.5, 0.2), 2), lr_y=3.0, lr_z=1.0, rtol=1e-11
    )
    z = flow(classes, 40.0, lr_y=3.0, lr_z=1.0).result_.array("z")[0, -1, 0]
    np.testing.assert_allclose(z[:2], path.z_common[0], atol=1e-8)
    np.testing.assert_allclose(z[2:4], path.z_distinct[0, 0], atol=1e-8)


@pytest.mark.parametrize("V", [5, 6, 100])
def test_the_decoder_with_frozen_attention_follows_two_equations(V):
    K, rho = 5, 0.4
    share = 1 / (
        1 + np.sqrt((1 - rho) / rho)
    )  # one common and one distinct token give the scalar product rho
    classes = syn(queries=1, next_per_query=K, n_common=1, n_distinct=1, common_share=share, n_outputs=V)
    assert classes.gram[0, 1] == pytest.approx(rho)
    t = np.array([1.0, 10.0, 60.0])
    path = theory.decoder_ode(t, n_classes=K, n_outputs=V, correlation=rho, lr_y=1.0, rtol=1e-11)
    study = flow(classes, t, lr_y=1.0, lr_z=0.0)
    Y, f = study.parameters_.Y[0].numpy(), classes.P[0] / np.linalg.norm(classes.P[0])
    logits = f @ Y
    assert logits[0] - logits[1] == pytest.approx(path.own_other[-1], abs=1e-8)
    if V > K:
        assert logits[0] - logits[-1] == pytest.approx(path.own_idle[-1], abs=1e-8)
        # The paper's remark, a slower decoder, is right without idle columns only.
        assert path.own_other[-1] == pytest.approx({6: 3.246, 100: 4.136}[V], abs=1e-3)


# -- the paper's dynamics --------------------------------------------------------------------------------------


def weak(K=10, V=1000, share=0.15, D=4, low=0.1):
    return syn(
        next_per_query=K,
        n_common=1,
        n_distinct=D,
        common_share=share,
        distinct=np.linspace(low, 1, D) if D > 1 else (1.0,),
        n_outputs=V,
    )


def test_the_paper_dynamics_obey_the_papers_laws():
    classes = weak()
    t = np.geomspace(0.5, 2000, 60)
    path = paper_dynamics(t, classes, lr_y=1.0, lr_z=0.5, rtol=1e-11)
    z = path.z[:, 0]
    start = np.square(classes.P / np.linalg.norm(classes.P, axis=1, keepdims=True))
    assert (np.diff(z[:, 0]) < 0).all(), "the common token must fall"
    assert (np.diff(z[:, 1:41], axis=0) > 0).all(), "distinct tokens must rise"
    for klass in (0, 7):
        own = np.flatnonzero(classes.owner == klass)
        chi = np.exp(2 * z[:, own])
        ratio = path.f2[:, klass, own[1:]] / path.f2[:, klass, own[:1]] - 1
        expected = start[klass, own[1:]] / start[klass, own[0]] - 1
        # With l as reference on both sides: r_{l/l0} changes by the growth of l.
        np.testing.assert_allclose(ratio, expected * chi[:, 1:], rtol=1e-6)
        top = own[np.argmax(start[klass, own])]
        low, high = theory.chi_bounds(path.growth[:, klass] / 10, start[klass, top])
        assert (np.exp(2 * z[:, top]) >= low * (1 - 1e-12)).all()
        assert (np.exp(2 * z[:, top]) <= high * (1 + 1e-12)).all()


CLOSED = [  # K, V, probability of the common token, distinct tokens, rates, simulated over closed form
    (10, 1000, 0.05, 1, 1.0, 0.5, 1.32),
    (10, 1000, 0.15, 1, 1.0, 0.5, 0.956),
    (10, 1000, 0.15, 4, 1.0, 0.5, 1.013),
    (10, 1000, 0.15, 4, 5.0, 0.5, 0.979),
    (10, 1000, 0.30, 4, 1.0, 0.5, 1.196),
    (2, 34, 0.30, 10, 1.0, 1.0, 1.83),
]


@pytest.mark.parametrize(("K", "V", "share", "D", "lr_y", "lr_z", "expected"), CLOSED)
def test_the_closed_form_is_as_close_to_the_paper_dynamics_as_the_correlation_allows(
    K, V, share, D, lr_y, lr_z, expected
):
    classes, rates = weak(K, V, share, D), {"lr_y": lr_y, "lr_z": lr_z}
    path = paper_dynamics([700.0], classes, **rates)
    C0 = theory.growth_constant(classes)
    closed = theory.B(700.0, n_outputs=V, n_classes=K, C0=C0, units="paper", **rates)
    assert path.growth[0, 0] / closed == pytest.approx(expected, abs=2e-3)


def test_what_the_paper_does_not_speak_of_is_refused():
    with pytest.raises(ParameterError, match="Labels repeat"):
        paper_dynamics([1.0], draw_classes(0), lr_y=1.0, lr_z=1.0)
    with pytest.raises(ParameterError, match="share no token"):
        theory.growth_constant(syn(n_common=0))
    with pytest.raises(ParameterError, match="units"):
        theory.B(1.0, lr_y=1, lr_z=1, n_outputs=3, n_classes=2, C0=1.0, units="other")
    with pytest.raises(ParameterError, match="times from 0"):
        theory.h([-1.0], lr_y=1.0, n_outputs=3)
