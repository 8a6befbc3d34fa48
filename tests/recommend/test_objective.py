"""Whole steps of training against formulas written out densely: losses, penalty, optimiser and what is learned from."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from recommend.tables import random_table
from recommend.test_model import padded_states

from seqattn import MQSATEDRecommender
from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.recommend.model import MultiQueryNetwork

T, RATE, L2, WEIGHT, TAU_TEACHER, TAU_STUDENT = 6, 0.01, 0.05, 0.4, 0.3, 0.2
SETTINGS = {"d_model": 4, "n_heads": 2, "max_len": T, "window": 3, "alpha": 0.3}
LOG = random_table(2, n_users=25, n_items=20, longest=14)


def dense_loss(network, histories, inputs, n_items, has_zero):
    """The three parts of the loss, with a dense teacher and all scores at once."""
    counts = torch.zeros(n_items, n_items, dtype=torch.float64)
    for items in histories:
        for first, second in itertools.pairwise(items):
            counts[first, second] += 1
    teacher = (counts / counts.amax(1, keepdim=True).clamp(min=1) / TAU_TEACHER).softmax(1)
    table = network.table
    states = padded_states(network, [items[:-1] for items in inputs], T)
    scores = states @ table.T
    if has_zero:
        scores = torch.cat([scores, torch.zeros(len(scores), 1, dtype=torch.float64)], 1)
    targets = torch.from_numpy(np.concatenate([items[1:] for items in inputs]).astype(np.int64))
    shown = torch.from_numpy(np.concatenate([items[:-1] for items in inputs]).astype(np.int64))
    rec = torch.nn.functional.cross_entropy(scores, targets)
    student = (math.sqrt(table.shape[1]) * table[shown] @ table.T / TAU_STUDENT).log_softmax(1)
    kd = -(teacher[shown] * student).sum(1).mean()
    penalty = sum((value**2).sum() / 2 for value in network.parameters())
    return rec, kd, rec + WEIGHT * kd + L2 * penalty


@pytest.mark.parametrize("mode", ["default", "paper"])
def test_three_steps_are_those_of_the_formulas_written_out(mode):
    """All users in one batch, no dropout: nothing is left to chance but the first weights."""
    is_paper, data = mode == "paper", Interactions.of(LOG)
    whole = [data.items_of(user) for user in range(data.n_users)]
    histories = [items[-T:] for items in whole] if is_paper else whole
    inputs = [items[-(T + 1) :] for items in histories]
    assert max(map(len, whole)) > T + 1
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.RandomState(0).randint(2**31 - 1)))
        network = MultiQueryNetwork(
            data.n_items, **SETTINGS, dropout=0.0, eps=1e-24 if is_paper else 1e-6
        ).double()
    names, weights = zip(*network.named_parameters(), strict=True)
    means, squares = ([torch.zeros_like(value) for value in weights] for _ in range(2))
    wanted = []
    for step in (1, 2, 3):
        rec, kd, total = dense_loss(network, histories, inputs, data.n_items, is_paper)
        wanted.append((rec.item(), kd.item()))
        for value, mean, square, grad in zip(
            weights, means, squares, torch.autograd.grad(total, weights), strict=True
        ):
            mean.mul_(0.9).add_(0.1 * grad)
            square.mul_(0.999).add_(0.001 * grad**2)
            short, long = 1 - 0.9**step, 1 - 0.999**step
            root = (
                square.sqrt() / math.sqrt(long) + 1e-8 / math.sqrt(long)
                if is_paper
                else (square / long).sqrt() + 1e-8
            )
            value.data -= RATE * mean / short / root
    options = {
        "kd_weight": WEIGHT,
        "kd_share": 1.0,
        "tau_teacher": TAU_TEACHER,
        "tau_student": TAU_STUDENT,
        "l2": L2,
        "average": None,
    }
    model = MQSATEDRecommender(
        **SETTINGS, **options, learning_rate=RATE, dropout=0.0, batch_size=1000, epochs=3, mode=mode,
        precision="float64", random_state=0, device="cpu",
    ).fit(LOG, validation=None)  # fmt: skip
    found = [
        (record["train_parts"]["rec"], record["train_parts"]["kd"]) for record in model.fit_history_.records
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    learned = dict(model.module_.named_parameters())
    for name, value in zip(names, weights, strict=True):
        assert (learned[name] - value).abs().max() < 1e-6, name  # the teacher is in float32


@pytest.mark.slow
def test_an_epoch_of_the_papers_form_has_the_losses_of_the_authors_program():
    """The authors' run on amazon-beauty had 9.058 and 9.322 after one epoch, an independent one 9.062 and 9.293."""
    path = Path(os.environ.get("SEQATTN_DATA", ""), "rec", "amazon-beauty", "amazon-beauty.inter")
    if not path.is_file():
        pytest.skip("amazon-beauty is not there")
    train = leave_one_out(Interactions.read(path)).train
    model = MQSATEDRecommender(mode="paper", epochs=1, random_state=0, device="cpu").fit(
        train, validation=None
    )
    parts = model.fit_history_.records[0]["train_parts"]
    assert parts == pytest.approx({"rec": 9.06, "kd": 9.30}, rel=0.005)
