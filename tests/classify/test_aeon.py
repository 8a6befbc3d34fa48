"""The face for aeon: its complete check suite, and that it is the plain classifier behind it."""

from __future__ import annotations

import json

import pytest

SUITE = """
import json
from aeon.testing.estimator_checking import check_estimator
from seqattn.classify.aeon import VSFormerClassifier
results = check_estimator(VSFormerClassifier, raise_exceptions=False, verbose=False)
print(json.dumps({name: str(result) for name, result in results.items()}))
"""

SAME = """
import json
import numpy as np
from sklearn.base import clone
from seqattn.classify.estimator import VSFormerClassifier as Plain
from seqattn.classify.aeon import VSFormerClassifier
rng = np.random.default_rng(0)
settings = dict(epochs=2, d_model=8, n_heads=2, n_layers=1, shape_tokens=8, value_tokens=8, random_state=3)
settings["readout_shapes"] = 16
series = [rng.normal(size=(2, n)) for n in (20, 24, 31, 22, 25, 28, 30, 21)]
series[2][0, 4:7] = np.nan
y = np.array(["a", "b"] * 4)
face = clone(VSFormerClassifier(**settings)).fit(series, y)
plain = Plain(**settings)
assert face.get_params() == plain.get_params()
equal = np.array_equal(face.predict_proba(series), plain.fit(series, y).predict_proba(series))
print(json.dumps([bool(equal), face.predict(series).tolist() == plain.predict(series).tolist()]))
"""


@pytest.mark.slow
def test_aeon_passes_its_complete_suite(run_python):
    done = run_python(SUITE)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert {name: result for name, result in results.items() if result != "PASSED"} == {}
    assert len(results) >= 38


@pytest.mark.slow
def test_face_is_the_plain_classifier(run_python):
    done = run_python(SAME)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [True, True]


def test_without_aeon_the_extra_is_named(run_python):
    done = run_python("import sys; sys.modules['aeon'] = None; import seqattn.classify.aeon")
    assert done.returncode == 1
    assert "needs aeon. Install it with pip install 'seqattn[aeon]'." in done.stderr
