"""The ordinary layer, against the pairwise model that it contains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_classes import draw_classes, draw_parameters

from seqattn.attention import attend
from seqattn.dynamics import ScanAndSnapStudy, syn_small
from seqattn.dynamics.pairwise import NORMS, Examples, gradients
from seqattn.dynamics.standard import StandardLayer
from seqattn.errors import DataError


def contained(seed, norm):
    """Return classes whose queries and outputs are tokens, free parameters, and the layer that equals them."""
    M = 9
    classes = draw_classes(seed, M=M, V=M, query_tokens=np.array([7, 3]), label_tokens=np.arange(M))
    at = draw_parameters(classes, seed, n_runs=1)
    layer = StandardLayer(M, M, norm=norm)
    Z = torch.zeros(M, M, dtype=torch.float64)
    Z[classes.query_tokens] = at.Z[0]
    with torch.no_grad():
        layer.embedding.copy_(torch.eye(M))
        layer.to_key.copy_(torch.eye(M))
        layer.to_query.copy_(math.sqrt(M) * Z)
        layer.to_value.copy_(at.Y[0].T)
    return classes, at, layer


@pytest.mark.parametrize("norm", NORMS)
def test_with_unit_embeddings_the_layer_is_the_pairwise_model(norm):
    classes, at, layer = contained(1, norm)
    queries = torch.as_tensor(classes.query_tokens)
    examples = Examples.of_classes(classes)
    found, state = gradients(at, examples, norm)
    logits, c = layer(queries[examples.query[0]], examples.mass[0].log())
    chosen = logits.log_softmax(-1).gather(-1, examples.label[0][:, None])[:, 0]
    torch.testing.assert_close(c, state.c[0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(chosen, state.log_probability[0], rtol=1e-12, atol=1e-14)
    (examples.weight[0] * chosen).sum().backward()
    torch.testing.assert_close(layer.to_value.grad.T, found.Y[0], rtol=1e-12, atol=1e-14)
    slope = layer.to_query.grad[queries] * math.sqrt(classes.n_tokens)
    torch.testing.assert_close(slope, found.Z[0], rtol=1e-12, atol=1e-14)
    Y, Z = layer.effective(queries)
    torch.testing.assert_close(Y, at.Y[0], rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(Z, at.Z[0], rtol=1e-13, atol=1e-15)


def test_the_vocabulary_with_counts_is_the_sequence_token_by_token():
    layer = StandardLayer(12, 5, norm="none", rng=np.random.default_rng(0))
    words, query = torch.tensor([4, 4, 2, 9, 4, 0]), torch.tensor([7])
    U = layer.embedding
    seen = attend(
        (U[query] @ layer.to_query)[None, None],
        (U[words] @ layer.to_key)[None, None],
        U[words][None, None],
        need="weights",
    )
    counts = torch.bincount(words, minlength=12).double()
    logits, c = layer(query, counts.log()[None])
    expected = torch.zeros(12, dtype=torch.float64).index_add(0, words, seen.weights[0, 0, 0])
    torch.testing.assert_close(c[0], expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(
        logits[0], seen.output[0, 0, 0] @ layer.to_value.T @ U.T, rtol=1e-12, atol=1e-14
    )


def test_records_of_a_standard_study_are_those_of_its_layers():
    settings = {
        "model": "standard",
        "trainer": "batch",
        "n_steps": 6,
        "n_records": 4,
        "gain": 4.0,
        "d_model": 8,
    }
    study = ScanAndSnapStudy(lr_y=[0.1, 0.3], n_seeds=2, **settings).fit(syn_small())
    result = study.result_
    expected = torch.softmax(torch.as_tensor(syn_small().P).log() + study.parameters_.Z, -1)
    np.testing.assert_allclose(result.array("c")[:, -1], expected, rtol=1e-10, atol=1e-14)
    assert (result.array("loss")[:, -1] < result.array("loss")[:, 0]).all()
    assert np.isnan(result.array("balance_residual")).all()
    alone = ScanAndSnapStudy(lr_y=0.3, random_state=1, **settings).fit(syn_small())
    torch.testing.assert_close(study.parameters_.Z[3], alone.parameters_.Z[0], rtol=1e-12, atol=1e-14)


def test_a_frozen_embedding_keeps_its_place():
    settings = {"model": "standard", "trainer": "batch", "n_steps": 3, "lr_z": 0.0}
    frozen = ScanAndSnapStudy(lr_u=0.0, **settings).fit(syn_small()).result_.array("z")[0]
    moving = ScanAndSnapStudy(**settings).fit(syn_small()).result_.array("z")[0]
    np.testing.assert_array_equal(frozen[0], frozen[-1])
    assert np.abs(moving[0] - moving[-1]).max() > 0


def test_queries_that_are_no_tokens_are_refused():
    with pytest.raises(DataError, match="pairwise"):
        ScanAndSnapStudy(model="standard", n_steps=1).fit(draw_classes(0))


@pytest.mark.slow
def test_the_effect_needs_a_fast_attention_layer():
    """With one small rate the embedding learns the task alone."""
    settings = {"model": "standard", "trainer": "batch", "n_steps": 4000, "record_at": [4000], "gain": 4.0}
    slow = ScanAndSnapStudy(lr_y=0.1, lr_z=0.1, **settings).fit(syn_small())
    fast = ScanAndSnapStudy(lr_y=0.1, lr_z=1.0, lr_u=0.0, **settings).fit(syn_small())
    assert slow.result_.array("common_mass")[0, -1].mean() > 0.63
    assert fast.result_.array("common_mass")[0, -1].mean() < 0.58
