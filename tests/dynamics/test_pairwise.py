"""Gradients written out, against automatic differentiation, finite differences and explicit sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_classes import draw_classes, draw_parameters

from seqattn.dynamics.pairwise import NORMS, Examples, Parameters, gradients
from seqattn.errors import ParameterError


def objective(Y, Z, classes, norm):
    """Return the mean log-probability of the labels of one run, class by class from its definition."""
    total = torch.zeros((), dtype=torch.float64)
    for k in range(len(classes)):
        P = torch.as_tensor(classes.P[k])
        odds = P * Z[classes.query[k]].exp()
        c = odds / odds.sum()
        f = {"l2": c / c.pow(2).sum().sqrt(), "none": c}.get(norm)
        if f is None:
            f = (c - c.mean()) / (c - c.mean()).pow(2).sum().sqrt()
        logits = (Y * f[:, None]).sum(0)
        total = total + classes.weight[k] * (logits[classes.label[k]] - logits.exp().sum().log())
    return total


def sequence_objective(Y, Z, tokens, query, label, norm):
    """The same for token sequences, with attention over positions."""
    total = torch.zeros((), dtype=torch.float64)
    for words, m, n in zip(tokens, query, label, strict=True):
        weights = torch.softmax(Z[m, torch.as_tensor(words)], 0)
        c = torch.zeros(Y.shape[0], dtype=torch.float64).index_add(0, torch.as_tensor(words), weights)
        f = {"l2": c / c.norm(), "none": c}.get(norm)
        if f is None:
            f = (c - c.mean()) / (c - c.mean()).norm()
        total = total + torch.log_softmax(f @ Y, 0)[n] / len(tokens)
    return total


def slopes(function, Y, Z):
    Y, Z = Y.clone().requires_grad_(), Z.clone().requires_grad_()
    return torch.autograd.grad(function(Y, Z), (Y, Z))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_classes_are_those_of_the_definition(norm, seed):
    classes = draw_classes(seed, V=7)
    at = draw_parameters(classes, seed)
    found, _ = gradients(at, Examples.of_classes(classes), norm)
    for run in range(3):
        expected = slopes(lambda Y, Z: objective(Y, Z, classes, norm), at.Y[run], at.Z[run])
        torch.testing.assert_close(found.Y[run], expected[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.Z[run], expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_counts_say_all_that_sequences_say(norm):
    classes = draw_classes(4, V=6)
    at = draw_parameters(classes, 4, n_runs=1)
    tokens, query, label = classes.sample(20, 15, np.random.default_rng(1))
    counts = np.stack([np.bincount(words, minlength=classes.n_tokens) for words in tokens])
    found, _ = gradients(at, Examples.of_arrays(counts, query, label), norm)
    expected = slopes(lambda Y, Z: sequence_objective(Y, Z, tokens, query, label, norm), at.Y[0], at.Z[0])
    torch.testing.assert_close(found.Y[0], expected[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.Z[0], expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_the_slopes_of_finite_differences(norm):
    classes = draw_classes(2, V=6)
    at = draw_parameters(classes, 2, n_runs=1)
    found, _ = gradients(at, Examples.of_classes(classes), norm)
    towards = draw_parameters(classes, 9, n_runs=1)

    def value(step):
        return float(objective(at.Y[0] + step * towards.Y[0], at.Z[0] + step * towards.Z[0], classes, norm))

    expected = float((found.Y * towards.Y).sum() + (found.Z * towards.Z).sum())
    assert (value(1e-5) - value(-1e-5)) / 2e-5 == pytest.approx(expected, rel=1e-7)


def test_a_residual_connection_is_differentiated_automatically():
    classes = draw_classes(3, V=6, query_tokens=np.array([8, 7]))
    at = draw_parameters(classes, 3)
    found, state = gradients(at, Examples.of_classes(classes), "layernorm", residual=True)
    step = 1e-6
    index = (1, 0, 2)
    for sign, part in (("Y", at.Y), ("Z", at.Z)):
        values = []
        for side in (step, -step):
            moved = part.clone()
            moved[index] += side
            there = Parameters(moved, at.Z) if sign == "Y" else Parameters(at.Y, moved)
            log_p = gradients(there, Examples.of_classes(classes), "layernorm", residual=True)[
                1
            ].log_probability
            values.append(float((torch.as_tensor(classes.weight) * log_p[1]).sum()))
        expected = float(getattr(found, sign)[index])
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert not state.f.requires_grad


def test_runs_do_not_see_each_other():
    classes = draw_classes(5, V=6)
    at = draw_parameters(classes, 5)
    examples = Examples.of_classes(classes)
    together, _ = gradients(at, examples)
    for run in range(3):
        alone, _ = gradients(at.rows(slice(run, run + 1)), examples)
        torch.testing.assert_close(alone.Z[0], together.Z[run], rtol=1e-13, atol=1e-15)


def test_absent_tokens_and_unseen_queries_have_no_slope_at_all():
    classes = draw_classes(6, queries=4)
    found, _ = gradients(draw_parameters(classes, 6), Examples.of_classes(classes))
    absent = classes.kinds() == "absent"
    unseen = np.setdiff1d(np.arange(4), classes.query)
    assert absent.any()
    assert len(unseen)
    assert found.Y[:, absent].abs().max() == 0
    assert found.Z[:, :, absent].abs().max() == 0
    assert found.Z[:, unseen].abs().max() == 0


def test_extreme_logits_stay_finite_and_exact():
    classes = draw_classes(7, V=6)
    at = draw_parameters(classes, 7, scale=400.0)
    # A token that never occurs may have any logit.
    at.Z[:, :, -1] = 1e6
    found, state = gradients(at, Examples.of_classes(classes))
    assert all(part.isfinite().all() for part in (found.Y, found.Z, state.log_probability))
    torch.testing.assert_close(state.c.sum(-1), torch.ones(3, len(classes), dtype=torch.float64))
    torch.testing.assert_close(state.error.sum(-1), torch.zeros(3, len(classes), dtype=torch.float64))


def test_an_unknown_norm_and_a_residual_without_tokens_are_refused():
    classes = draw_classes(1)
    at, examples = draw_parameters(classes, 1), Examples.of_classes(classes)
    with pytest.raises(ParameterError, match="layernorm"):
        gradients(at, examples, "layer")
    with pytest.raises(ParameterError, match="query_tokens"):
        gradients(at, examples, "l2", residual=True)
