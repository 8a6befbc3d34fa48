"""The face for sktime: its complete check suite, and that it is the plain classifier behind it."""

from __future__ import annotations

import json

import pytest

SUITE = """
import json
from sktime.utils.estimator_checks import check_estimator
from seqattn.classify.sktime import VSFormerClassifier
results = check_estimator(VSFormerClassifier, raise_exceptions=False, verbose=False)
print(json.dumps({name: str(result) for name, result in results.items()}))
"""

SAME = """
import json
import numpy as np
import pandas as pd
from sklearn.base import clone
from seqattn.classify.estimator import VSFormerClassifier as Plain
from seqattn.classify.sktime import VSFormerClassifier
rng = np.random.default_rng(0)
settings = dict(epochs=2, d_model=8, n_heads=2, n_layers=1, shape_tokens=8, value_tokens=8, random_state=3)
settings["readout_shapes"] = 16
series = [rng.normal(size=(2, n)) for n in (20, 24, 31, 22, 25, 28, 30, 21)]
series[2][0, 4:7] = np.nan
y = np.array(["a", "b"] * 4)
frames = [pd.DataFrame(case.T) for case in series]
face = clone(VSFormerClassifier(**settings)).fit(frames, y)
plain = Plain(**settings)
assert face.get_params() == plain.get_params()
equal = np.array_equal(face.predict_proba(frames), plain.fit(series, y).predict_proba(series))
try:
    VSFormerClassifier(epoch=3)
except TypeError as error:
    refusal = str(error)
print(json.dumps([bool(equal), face.predict(frames).tolist() == plain.predict(series).tolist(), refusal]))
"""


@pytest.mark.slow
def test_sktime_passes_its_complete_suite(run_python):
    done = run_python(SUITE)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert {name: result for name, result in results.items() if result != "PASSED"} == {}
    assert len(results) >= 250


@pytest.mark.slow
def test_face_is_the_plain_classifier(run_python):
    done = run_python(SAME)
    assert done.returncode == 0, done.stderr[-3000:]
    same_shares, same_labels, refusal = json.loads(done.stdout.splitlines()[-1])
    assert same_shares
    assert same_labels
    assert "'epoch'" in refusal


def test_without_sktime_the_extra_is_named(run_python):
    done = run_python("import sys; sys.modules['sktime'] = None; import seqattn.classify.sktime")
    assert done.returncode == 1
    assert "needs sktime. Install it with pip install 'seqattn[sktime]'." in done.stderr
