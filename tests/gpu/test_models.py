"""A model that is fitted on a GPU forecasts the same on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from small_events import TINY, draw

from seqattn import SAHP, load
from seqattn.attention import Local, Routing


@pytest.mark.parametrize("pattern", ["dense", Local(4), Routing(clusters=2, window=4)], ids=str)
def test_a_model_fitted_there_forecasts_the_same_on_the_cpu(pattern, device, tmp_path):
    held_out = draw(1, 4)
    model = SAHP(**TINY, attention=pattern, device=device.type, baselines=False, random_state=0)
    model.fit(draw(0, 12), validation=held_out)
    assert next(model.module_.parameters()).device.type == device.type
    forecasts = model.predict(held_out)
    path = tmp_path / "model.safetensors"
    model.save(path)
    here = load(path, device="cpu")
    assert next(here.module_.parameters()).device.type == "cpu"
    assert abs(model.score(held_out) - here.score(held_out)) < 1e-4
    numbers = ["t_mean", "t_median", "p"]
    wanted = here.predict(held_out)
    assert np.abs(np.asarray(forecasts[numbers]) - np.asarray(wanted[numbers])).max() < 1e-4
    assert list(forecasts["k"]) == list(wanted["k"])
