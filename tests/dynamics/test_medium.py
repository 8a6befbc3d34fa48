"""The published medium setting with five queries, beside its published cells."""

from __future__ import annotations

import numpy as np
import pytest

from seqattn.dynamics import ScanAndSnapStudy, sweep, syn_medium

# Rows: rates of attention 0.5, 1, 2, 3. Columns: rate of the decoder over it 1, 2, 5, 10.
PUBLISHED = """
2.026 1.994 2.020 2.055
1.995 1.931 1.971 2.014
1.906 1.816 1.884 1.926
1.817 1.718 1.802 1.831
"""


@pytest.mark.slow
def test_the_medium_setting_with_five_queries_reaches_the_published_cells():
    study = ScanAndSnapStudy(
        momentum=0.9, init="uniform", n_steps=100, record_at=[100], record=("loss", "entropy_distinct")
    )
    grid = {"lr_z": [0.5, 1.0, 2.0, 3.0], "ratio": [1.0, 2.0, 5.0, 10.0]}
    ends = sweep(study, grid, 4, syn_medium(5)).array("entropy_distinct")[:, -1].mean(-1).reshape(4, 4, 4)
    found = ends.mean(-1)
    gaps = np.abs(found - np.array(PUBLISHED.split(), dtype=float).reshape(4, 4))
    assert (gaps < 0.05).sum() >= 15, gaps
    assert gaps.mean() < 0.02
    # A U shape in the ratio, and sparser attention with a larger rate at every ratio.
    assert (found[:, 1] < found[:, 0]).all()
    assert (found[:, 1] < found[:, 3]).all()
    assert (np.diff(found, axis=0) < 0).all()
