"""How a module is trained: rates and limits, the device, and the precision."""

from __future__ import annotations

import contextlib
import math
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from seqattn.errors import BackendError, ParameterError, suggest

__all__ = ["PRECISIONS", "FitSettings", "autocast", "one_cycle", "resolve_device", "resolve_precision"]

PRECISIONS = ("float32", "float64", "bf16")


@dataclass(frozen=True)
class FitSettings:
    """How a module is trained.

    Parameters
    ----------
    epochs
        Largest number of passes over the training batches, at least 1.
    learning_rate
        Peak of the one-cycle rate, positive.
    patience
        Epochs without a better validation loss after which training stops; None never stops early.
    clip
        Largest gradient norm, positive; longer gradients are shortened to it. None leaves them.
    weight_decay
        Factor of the weights that Adam adds to the gradient, 0 or more.
    is_decoupled
        Whether the weights shrink by the decay times the rate at each step instead, as in AdamW.
    betas
        Adam's decay rates of the two moments, each in [0, 1).
    average
        Decay of a moving average of the weights, in [0, 1): what is validated and kept is the average, as
        :class:`seqattn.train.average.WeightAverage` has it. None keeps the weights themselves.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; see `resolve_device`.
    precision
        One of `PRECISIONS`; see `resolve_precision`.
    seed
        Whole number, 0 or more, from which dropout and other random draws follow.

    Raises
    ------
    ParameterError
        A value is outside its range.
    """

    epochs: int
    learning_rate: int | float
    patience: int | None = None
    clip: int | float | None = 5.0
    weight_decay: int | float = 0.0
    is_decoupled: bool = False
    betas: tuple[int | float, int | float] = (0.9, 0.999)
    average: float | None = None
    device: str | torch.device = "auto"
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        _require("epochs", self.epochs, _whole(self.epochs, 1), "a whole number, at least 1")
        _require("learning_rate", self.learning_rate, _positive(self.learning_rate), "a positive number")
        patient = self.patience is None or _whole(self.patience, 1)
        _require("patience", self.patience, patient, "a whole number, at least 1, or None")
        _require("clip", self.clip, self.clip is None or _positive(self.clip), "a positive number or None")
        decay = self.weight_decay == 0 or _positive(self.weight_decay)
        _require("weight_decay", self.weight_decay, decay, "0 or a positive number")
        betas = len(list(self.betas)) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require("betas", self.betas, betas, "two numbers in [0, 1)")
        average = self.average is None or self.average == 0 or (_positive(self.average) and self.average < 1)
        _require("average", self.average, average, "a number in [0, 1) or None")
        _require("seed", self.seed, _whole(self.seed, 0), "a whole number, at least 0")
        resolve_precision(self.precision)


def _require(name: str, value: object, fulfilled: bool, allowed: str) -> None:
    if not fulfilled:
        raise ParameterError(f"{name}={value!r} is not allowed. Give {allowed}.")


def _whole(value: object, least: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def _positive(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and 0 < float(value) < math.inf


def one_cycle(progress: float, peak: float) -> float:
    r"""Return the learning rate at a point of training.

    .. math:: r(p) = \begin{cases}
        a + (P - a) \frac{1 - \cos(\pi p / 0.3)}{2} & p < 0.3 \\
        b + (P - b) \frac{1 + \cos(\pi (p - 0.3) / 0.7)}{2} & p \ge 0.3 \end{cases}
        \qquad a = P / 25, \quad b = a / 10^4

    Parameters
    ----------
    progress
        Share :math:`p` of the planned training that is done, in [0, 1].
    peak
        Largest rate :math:`P`.

    Returns
    -------
    The rate of the next step.

    Notes
    -----
    The constants are those of ``torch.optim.lr_scheduler.OneCycleLR``. A function of the progress needs no state,
    so a resumed fit goes on exactly.

    References
    ----------
    Smith, Topin (2018), Super-convergence: very fast training of neural networks using large learning rates.

    Examples
    --------
    >>> one_cycle(0.0, 1.0), one_cycle(0.3, 1.0)
    (0.04, 1.0)
    """
    first, last, turn = peak / 25, peak / 25e4, 0.3
    if progress < turn:
        return first + (peak - first) * (1 - math.cos(math.pi * progress / turn)) / 2
    return last + (peak - last) * (1 + math.cos(math.pi * (progress - turn) / (1 - turn))) / 2


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device that a name stands for.

    Parameters
    ----------
    device
        ``"auto"`` (the current CUDA device if one is visible, else the CPU), ``"cpu"``, ``"cuda"`` (the current
        CUDA device), or ``"cuda:1"`` and so on.

    Returns
    -------
    The device, with its index if it is a CUDA device.

    Raises
    ------
    BackendError
        A CUDA device was asked for and is not visible.
    ParameterError
        The name is not one of those above.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    name = str(device)
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not re.fullmatch(r"auto|cuda(:\d+)?", name):
        hint = suggest(name, ("auto", "cpu", "cuda"))
        raise ParameterError(
            f"device={name!r} is not known. Allowed: 'auto', 'cpu', 'cuda', 'cuda:0', ...{hint}"
        )
    if not torch.cuda.is_available():
        raise BackendError(
            f'device="{name}" was asked for, but no CUDA device is visible. '
            'Use device="auto" to fall back to the CPU.'
        )
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= torch.cuda.device_count():
        raise BackendError(
            f'device="{name}" was asked for, but the visible CUDA devices are 0 to {torch.cuda.device_count() - 1}. '
            'Use one of these, or device="auto".'
        )
    return torch.device("cuda", index)


def resolve_precision(precision: str = "float32", device: str | torch.device = "cpu") -> torch.dtype:
    """Return the dtype of weights and batches for a precision.

    Parameters
    ----------
    precision
        ``"float32"``, ``"float64"``, or ``"bf16"``: weights, batches and loss in float32, matrix products of the
        forward pass in bfloat16.
    device
        Where the computation runs.

    Returns
    -------
    ``torch.float64`` for ``"float64"``, else ``torch.float32``.

    Raises
    ------
    BackendError
        The device has no bfloat16.
    ParameterError
        The name is not one of those above.

    Examples
    --------
    >>> resolve_precision("bf16")
    torch.float32
    """
    if precision not in PRECISIONS:
        raise _unknown_precision(precision)
    if precision == "bf16" and torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported():
        raise BackendError(
            'precision="bf16" was asked for, but this GPU has no bfloat16. Use precision="float32".'
        )
    return torch.float64 if precision == "float64" else torch.float32


def _unknown_precision(precision: object) -> ParameterError:
    allowed = ", ".join(map(repr, PRECISIONS))
    hint = suggest(precision, PRECISIONS)
    return ParameterError(f"precision={precision!r} is not known. Allowed: {allowed}.{hint}")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass runs at a precision.

    Parameters
    ----------
    precision
        One of `PRECISIONS`.
    device
        Where the computation runs.

    Returns
    -------
    ``torch.autocast`` to bfloat16 for ``"bf16"``; otherwise a context that changes nothing.
    """
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
