"""Where the tests of this folder run: on a CUDA device, or, to try the tests themselves, on SEQATTN_TEST_DEVICE=cpu."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the device under test; without one the test is skipped."""
    name = os.environ.get("SEQATTN_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(name)
