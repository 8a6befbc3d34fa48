"""What is written down while runs train: per class at every record, per token at snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.pairwise import Forward, Gradients
from seqattn.dynamics.trainers import Runs, Trainer
from seqattn.errors import ParameterError, suggest

__all__ = ["OF_CLASSES", "OF_RUNS", "OF_TOKENS", "QUANTITIES", "Recorder", "Schedule", "record_times"]

OF_RUNS = ("loss", "speed", "grad_norm_y", "grad_norm_z", "balance_residual", "row_sum_drift")
OF_CLASSES = ("one_minus_alpha", "margin", "common_mass", "entropy", "entropy_distinct", "top_token")
OF_TOKENS = ("z", "c", "f2", "chi", "ratio")
QUANTITIES = (*OF_RUNS, *OF_CLASSES, *OF_TOKENS)

# Speeds of noisy runs are taken over a tenth of a decade: step by step they would show the noise.
_WINDOW = 10**0.1


@dataclass(frozen=True)
class Schedule:
    """What is recorded and when.

    Attributes
    ----------
    times
        Increasing, the first is 0.
    snapshots
        Which of the times have a record of every token.
    quantities
        Some of ``QUANTITIES``.
    tokens
        Which tokens are recorded.
    """

    times: NDArray[np.float64]
    snapshots: NDArray[np.int64]
    quantities: tuple[str, ...]
    tokens: NDArray[np.int64]

    def shape(self, quantity: str, classes: SequenceClasses, n_runs: int) -> tuple[int, ...]:
        """Return the shape of the records of a quantity."""
        if quantity in OF_RUNS:
            return (n_runs, len(self.times))
        if quantity in OF_CLASSES:
            return (n_runs, len(self.times), len(classes))
        owners = classes.n_queries if quantity == "z" else len(classes)
        return (n_runs, len(self.snapshots), owners, len(self.tokens))


def record_times(record_at: Any, n_steps: float, n_records: int, whole: bool) -> NDArray[np.float64]:
    """Return the times of records, from 0 to the end.

    Parameters
    ----------
    record_at
        ``"log"``, ``"linear"``, or the times themselves.
    n_steps
        Last time.
    n_records
        Most times of ``"log"`` and ``"linear"``.
    whole
        Whether times are whole numbers of steps.

    Raises
    ------
    ParameterError
        A time lies outside the run, or the name is not known.

    Examples
    --------
    >>> record_times("log", 100, 5, whole=True).tolist()
    [0.0, 1.0, 5.0, 22.0, 100.0]
    """
    if isinstance(record_at, str):
        if record_at not in ("log", "linear"):
            raise ParameterError(f"record_at={record_at!r} is not known. Allowed: 'log', 'linear', or times.")
        first = min(1.0, n_steps / 1000) if not whole else 1.0
        space = np.geomspace(first, n_steps, max(2, n_records - 1)) if record_at == "log" else None
        times = np.linspace(0, n_steps, n_records) if space is None else np.r_[0.0, space]
        times[-1] = n_steps  # the root of a power may miss it by a digit
    else:
        times = np.r_[0.0, np.asarray(record_at, dtype=np.float64).ravel(), n_steps]
        if not ((times >= 0) & (times <= n_steps)).all():
            raise ParameterError(f"record_at holds times outside 0 to n_steps={n_steps:g}.")
    return np.unique(np.round(times) if whole else times)


def known_quantities(names: Sequence[str]) -> tuple[str, ...]:
    """Return the quantities in one order.

    Raises
    ------
    ParameterError
        A name is not known.
    """
    for name in names:
        if name not in QUANTITIES:
            raise ParameterError(
                f"record holds {name!r}. Allowed: {', '.join(QUANTITIES)}.{suggest(name, QUANTITIES)}"
            )
    return tuple(name for name in QUANTITIES if name in names)


class Recorder:
    """Records of several runs as arrays.

    Parameters
    ----------
    classes
        The data.
    runs
        The runs.
    schedule
        What to record and when.
    """

    def __init__(self, classes: SequenceClasses, runs: Runs, schedule: Schedule) -> None:
        self.classes, self.runs, self.schedule = classes, runs, schedule
        self.arrays = {
            name: np.full(schedule.shape(name, classes, len(runs)), np.nan) for name in schedule.quantities
        }
        self.n_done = 0
        self._past: list[tuple[float, Tensor]] = []
        self._start: dict[str, Tensor] = {}
        kinds = classes.kinds()
        self._own = torch.as_tensor(classes.owner == np.arange(len(classes))[:, None])
        self._common = torch.as_tensor((kinds == "common") & (classes.P > 0))
        self._reference = _weakest(classes)

    @torch.no_grad()
    def record(self, trainer: Trainer) -> None:
        """Write down where the runs stand, as the next record."""
        index, place = self.n_done, trainer.plan.device
        if not self._start:
            self._remember_start(trainer)
        if self._own.device != place:
            self._own, self._common = self._own.to(place), self._common.to(place)
        slopes, state = trainer.slopes()
        found = self._of_runs(trainer, slopes, state) | self._of_classes(state)
        for name, values in found.items():
            if name in self.arrays:
                self.arrays[name][:, index] = values.to("cpu", torch.float64).numpy()
        snapshot = np.flatnonzero(self.schedule.snapshots == index)
        if len(snapshot):
            for name, values in self._of_tokens(trainer, state).items():
                self.arrays[name][:, snapshot[0]] = values.to("cpu", torch.float64).numpy()
        self.n_done += 1

    def _remember_start(self, trainer: Trainer) -> None:
        parameters = trainer.parameters
        self._start = {
            "z": parameters.Z.clone(),
            "rows_y": parameters.Y.sum(-1),
            "rows_z": parameters.Z.sum(-1),
            "balance": _balance(trainer),
        }

    def _of_runs(self, trainer: Trainer, slopes: Gradients, state: Forward) -> dict[str, Tensor]:
        weight = torch.as_tensor(self.classes.weight, dtype=state.c.dtype, device=state.c.device)
        rows_y = (trainer.parameters.Y.sum(-1) - self._start["rows_y"]).abs().amax(-1)
        rows_z = (trainer.parameters.Z.sum(-1) - self._start["rows_z"]).abs().amax(-1)
        moved = (_balance(trainer) - self._start["balance"]).abs().amax(-1)
        scale = trainer.parameters.Y.square().sum(-1).amax(-1) / (2 * trainer._rates[0][:, 0, 0])
        residual = moved / scale.clamp(min=1.0)
        return {
            "loss": -(weight * state.log_probability).sum(-1),
            "grad_norm_y": slopes.Y.flatten(1).norm(dim=-1),
            "grad_norm_z": slopes.Z.flatten(1).norm(dim=-1),
            "speed": self._speed(trainer, slopes),
            "balance_residual": residual if trainer.plan.keeps_balance else residual * torch.nan,
            "row_sum_drift": torch.maximum(rows_y, rows_z),
        }

    def _speed(self, trainer: Trainer, slopes: Gradients) -> Tensor:
        """Length of the velocity of attention logits: from the slope, or over a window where there is noise."""
        plan = trainer.plan
        if plan.trainer != "sgd" and plan.optimizer == "sgd":
            return trainer._rates[1][:, 0, 0] * slopes.Z.flatten(1).norm(dim=-1) / (1 - plan.momentum)
        now, Z = trainer.time, trainer.parameters.Z.clone()
        while len(self._past) > 1 and self._past[1][0] <= now / _WINDOW:
            self._past.pop(0)
        self._past.append((now, Z))
        before, there = self._past[0]
        return (Z - there).flatten(1).norm(dim=-1) / (now - before if now > before else torch.nan)

    def _of_classes(self, state: Forward) -> dict[str, Tensor]:
        c = state.c
        own = torch.where(self._own, c, 0.0)
        shares = own / own.sum(-1, keepdim=True)
        missed = -state.error.clamp(max=0.0).sum(-1)
        rival = (-state.error).amax(-1)
        return {
            "one_minus_alpha": missed,
            "margin": state.log_probability - rival.log(),
            "common_mass": torch.where(self._common, c, 0.0).sum(-1),
            "entropy": torch.special.entr(c).sum(-1),
            "entropy_distinct": torch.special.entr(shares).sum(-1),
            "top_token": c.argmax(-1),
        }

    def _of_tokens(self, trainer: Trainer, state: Forward) -> dict[str, Tensor]:
        asked = [name for name in OF_TOKENS if name in self.arrays]
        if not asked:
            return {}
        tokens = torch.as_tensor(self.schedule.tokens, device=state.c.device)
        Z, f2 = trainer.parameters.Z, state.f.square()
        grown = (2 * (Z - self._start["z"])).exp()[:, torch.as_tensor(self.classes.query, device=Z.device)]
        reference = torch.as_tensor(self._reference, device=Z.device).expand(len(Z), -1)[..., None]
        ratio = torch.where(self._own, f2 / f2.gather(-1, reference) - 1, torch.nan)
        found = {"z": Z, "c": state.c, "f2": f2, "chi": grown, "ratio": ratio}
        return {name: found[name][..., tokens] for name in asked}

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that recording needs to go on: tensors, and JSON values."""
        tensors = {f"array/{name}": torch.from_numpy(values) for name, values in self.arrays.items()}
        tensors |= {f"start/{name}": values for name, values in self._start.items()}
        tensors |= {f"past/{number}": values for number, (_, values) in enumerate(self._past)}
        return tensors, {"n_done": self.n_done, "past": [time for time, _ in self._past]}

    def restore(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], device: torch.device
    ) -> None:
        """Go back to where :meth:`export` was called."""
        self.n_done = metadata["n_done"]
        self.arrays = {name: tensors[f"array/{name}"].numpy().copy() for name in self.arrays}
        named = [(name.partition("/"), values) for name, values in tensors.items()]
        self._start = {rest: values.to(device) for (group, _, rest), values in named if group == "start"}
        self._past = [
            (time, tensors[f"past/{number}"].to(device)) for number, time in enumerate(metadata["past"])
        ]


def _balance(trainer: Trainer) -> Tensor:
    """What the balance law keeps constant, for each run and token."""
    rate_y, rate_z = (rate[..., 0] for rate in trainer._rates)
    Y, Z = trainer.parameters.Y, trainer.parameters.Z
    return Z.sum(1) / rate_z - Y.square().sum(-1) / (2 * rate_y) + trainer.pull


def _weakest(classes: SequenceClasses) -> NDArray[np.int64]:
    """Return the least probable distinct token of each class; its first token where it has none."""
    chance = np.where(classes.owner == np.arange(len(classes))[:, None], classes.P, np.inf)
    return chance.argmin(1)
