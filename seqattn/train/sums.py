"""What a module's loss is, and how the losses of an epoch are added up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from seqattn.errors import DataError, FitError
from seqattn.train.settings import FitSettings

__all__ = ["Loss", "Sums"]

# Losses on a GPU are read in groups, since each reading waits for the device. On the CPU reading is free.
_READ_EVERY = 32


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and the number of terms in it, never a mean.

    Only then are batches of different sizes, accumulation and several processes exact.

    Attributes
    ----------
    total
        Sum over the batch's terms, in the module's precision (float32 or float64 also under autocast).
    count
        Number of terms, for example scored events. May be 0; the gradient is then that of ``total`` itself.
    parts
        What the total is made of, by name, as sums without gradients; empty where it is of one kind. The history has
        their means, and an error about a loss that is not finite names them.
    """

    total: Float[Tensor, ""]
    count: int | float
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)


class Sums:
    """Totals and counts of an epoch in float64, with the check that every loss is finite.

    Parameters
    ----------
    complaint
        Beginning of the message about a loss that is not.
    settings
        How the module is trained.
    device
        Where it is trained.
    """

    def __init__(self, complaint: str, settings: FitSettings, device: torch.device) -> None:
        self.total = 0.0
        self.count = 0.0
        self.parts: dict[str, float] = {}
        self._complaint = complaint
        self._settings = settings
        self._every = 1 if device.type == "cpu" else _READ_EVERY
        self._pending: list[tuple[Loss, Tensor | None]] = []
        self._batch = 0

    def add(self, loss: Loss, norm: Tensor | None = None) -> None:
        """Take in a batch.

        Parameters
        ----------
        loss
            Its loss.
        norm
            Norm of its gradient, where that is limited.
        """
        self.count += float(loss.count)
        self._pending.append((Loss(loss.total.detach(), loss.count, loss.parts), norm))
        if len(self._pending) >= self._every:
            self.read()

    def read(self) -> None:
        """Fetch pending losses from the device; a loss or gradient that is not finite is an error."""
        found = [
            number
            for loss, norm in self._pending
            for number in (loss.total, loss.total if norm is None else norm, *loss.parts.values())
        ]
        values = iter(torch.stack([number.to(found[0].dtype) for number in found]).tolist() if found else [])
        for loss, _ in self._pending:
            self._batch += 1
            total, norm, parts = next(values), next(values), {name: next(values) for name in loss.parts}
            self.total += total
            for name, value in parts.items():
                self.parts[name] = self.parts.get(name, 0.0) + value
            if not (math.isfinite(total) and math.isfinite(norm)):
                self._refuse(total, norm, parts)
        self._pending.clear()

    def mean(self) -> float:
        """Return the mean over all terms.

        Raises
        ------
        DataError
            There was none.
        """
        if not self.count:
            raise DataError(
                "Nothing counts in the batches: their loss has no terms. Give data with scored events."
            )
        return self.total / self.count

    def part_means(self) -> dict[str, float]:
        """Return the mean of each part over all terms."""
        return {name: total / self.count for name, total in self.parts.items()}

    def _refuse(self, total: float, norm: float, parts: Mapping[str, float]) -> None:
        found = f"loss {total}" if not math.isfinite(total) else f"gradient norm {norm}"
        broken = [name for name, value in parts.items() if not math.isfinite(value)]
        where = f" in its part {' and '.join(map(repr, broken))}" if broken else ""
        raise FitError(
            f"{self._complaint}, batch {self._batch} ({found}{where}). Try a smaller learning_rate than "
            f"{self._settings.learning_rate}, and check the units of the data for very large or small values."
        )
