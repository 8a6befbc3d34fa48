"""Values by sequence and the check against the catalogue."""

from __future__ import annotations

import numpy as np
import pytest

from seqattn import PoissonProcess, Sequences
from seqattn.hawkes.comparing import cases, deviations
from seqattn.hawkes.likelihood import CONVENTIONS

ROWS = [([0.5, 2.0, 3.5], [0, 1, 0]), ([], []), ([4.0], [1]), ([1.0, 9.0], [0, 0])]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_values_by_sequence_are_those_of_each_sequence_alone(convention):
    data = Sequences.from_lists(ROWS, window=(0.0, 10.0), labels=2)
    model = PoissonProcess(window=(0.0, 10.0)).fit(data)
    totals, counts = cases(model, data, convention)
    alone = [model.log_likelihood(data.select([row]), convention) for row in range(len(ROWS))]
    assert counts == [each.n_events for each in alone]
    np.testing.assert_allclose(totals, [each.total for each in alone], rtol=1e-12)
    assert sum(totals) / sum(counts) == pytest.approx(
        model.evaluate(data, convention)["loglik_per_event"], rel=1e-12
    )


def test_fewer_events_than_the_catalogue_knows_are_named():
    few = Sequences.from_lists([([1.0], [0])] * 200, labels=10)
    assert deviations("taxi", {"dev": few}) == [f"dev holds {few.n_events} of 7,404 events"]
