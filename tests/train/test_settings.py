from __future__ import annotations

import math

import pytest
import torch

from seqattn.errors import BackendError, ParameterError
from seqattn.train.settings import PRECISIONS, FitSettings, autocast, resolve_device, resolve_precision

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epochs", value) for value in (0, -1, True)],
        *[("learning_rate", value) for value in (0, -0.1, math.nan, math.inf, True)],
        *[("patience", value) for value in (0, -3, False)],
        *[("clip", value) for value in (0, -1.0, math.nan)],
        *[("weight_decay", value) for value in (-0.1, math.nan, math.inf)],
        *[("average", value) for value in (1.0, -0.1, math.nan)],
        *[("betas", value) for value in ((1.0, 0.9), (0.9, -0.1), (0.9, math.nan))],
        *[("seed", value) for value in (-1, True)],
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ParameterError) as caught:
        FitSettings(**{"epochs": 1, "learning_rate": 0.1, name: value})
    assert str(caught.value).startswith(f"{name}={value!r} is not allowed. Give ")


def test_values_at_the_edge_are_accepted():
    settings = FitSettings(1, 5, patience=1, clip=None, weight_decay=0, betas=(0, 0.0), seed=0)
    assert (settings.learning_rate, settings.betas) == (5, (0, 0.0))


def test_an_unknown_precision_is_refused_with_the_nearest():
    for refuse in (resolve_precision, lambda name: FitSettings(1, 0.1, precision=name)):
        with pytest.raises(
            ParameterError, match=r"^precision='float3' is not known\. Allowed: .*'float32'\?$"
        ):
            refuse("float3")


def test_precisions_have_a_dtype():
    assert [resolve_precision(name) for name in PRECISIONS] == [torch.float32, torch.float64, torch.float32]


def test_autocast_is_on_for_bf16_only():
    for name in PRECISIONS:
        with autocast(name, torch.device("cpu")):
            dtype = torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype
        assert dtype == (torch.bfloat16 if name == "bf16" else torch.float32)


def test_the_cpu_is_always_there():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")


@needs_no_gpu
def test_auto_falls_back_to_the_cpu():
    assert resolve_device() == torch.device("cpu")


@needs_no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_absent_is_never_replaced(name):
    with pytest.raises(BackendError) as caught:
        resolve_device(name)
    assert str(caught.value) == (
        f'device="{name}" was asked for, but no CUDA device is visible. '
        'Use device="auto" to fall back to the CPU.'
    )


@needs_gpu
def test_auto_takes_the_gpu_and_names_its_index():
    assert (
        resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", torch.cuda.current_device())
    )
    with pytest.raises(BackendError, match="visible CUDA devices are 0 to"):
        resolve_device("cuda:99")


@pytest.mark.parametrize("name", ["cud", "gpu", "cuda:", "cuda:x", "CPU", "mps", "cpu:1", ""])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(
        ParameterError, match=rf"^device='{name}' is not known\. Allowed: 'auto', 'cpu', 'cuda'"
    ):
        resolve_device(name)
