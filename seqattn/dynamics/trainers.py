"""Ways to train many runs of the one-layer model at once: gradient flow, full batches, sampled batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import DOP853
from torch import Tensor

from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.pairwise import Examples, Gradients, Parameters, gradients
from seqattn.errors import ParameterError

__all__ = ["MODELS", "OPTIMIZERS", "TRAINERS", "Descent", "Flow", "Plan", "Runs", "Trainer", "start"]

MODELS = ("pairwise", "standard")
TRAINERS = ("sgd", "batch", "flow")
OPTIMIZERS = ("sgd", "adam")

# Adam's usual numbers.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Runs:
    """What differs between runs.

    Attributes
    ----------
    lr_y, lr_z
        Rates of decoder and attention.
    seed
        Seed of start and draws; runs with one seed see the same data.
    """

    lr_y: NDArray[np.float64]
    lr_z: NDArray[np.float64]
    seed: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.seed)

    def rows(self, part: slice) -> Runs:
        """Return some of the runs."""
        return Runs(self.lr_y[part], self.lr_z[part], self.seed[part])


@dataclass(frozen=True)
class Plan:
    """What all runs share.

    Attributes
    ----------
    trainer, optimizer, momentum
        As in :class:`seqattn.dynamics.ScanAndSnapStudy`.
    batch_size, seq_len
        Sequences per step, and length of each with its query; ``inf`` for class expectations.
    norm, residual
        Form of the model.
    init
        ``"zero"``, ``"uniform"``, or arrays Y and Z.
    dt, rtol
        Fixed step of the flow, or None and the relative error of the adaptive solver.
    model, d_model, gain, lr_u
        Kind of the model; of the standard one its width, the factor of its logits and the rate of its embedding.
    dtype, device
        Precision and place.
    """

    trainer: str = "sgd"
    optimizer: str = "sgd"
    momentum: float = 0.0
    batch_size: int = 128
    seq_len: float = 128
    norm: str = "l2"
    residual: bool = False
    init: Any = "zero"
    dt: float | None = None
    rtol: float = 1e-8
    model: str = "pairwise"
    d_model: int | None = None
    gain: float = 1.0
    lr_u: float | None = None
    dtype: torch.dtype = torch.float64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def keeps_balance(self) -> bool:
        """Whether the balance law holds, so that its residual tells the quality of a run."""
        plain = self.trainer == "flow" or (self.optimizer == "sgd" and self.momentum == 0)
        return plain and self.model == "pairwise" and self.norm in ("l2", "none") and not self.residual


def start(classes: SequenceClasses, runs: Runs, plan: Plan) -> Parameters:
    """Return the parameters before training.

    Raises
    ------
    ParameterError
        Arrays given as a start have another shape than the model.
    """
    zeros = Parameters.zeros(classes, len(runs), plan.dtype)
    if isinstance(plan.init, str) and plan.init == "zero":
        found = zeros
    elif isinstance(plan.init, str):
        # As the layers of the published program start: uniform within one over the root of the number of tokens.
        bound = 1 / math.sqrt(classes.n_tokens)
        drawn = {int(seed): np.random.default_rng([int(seed), 0]) for seed in np.unique(runs.seed)}
        starts = {
            seed: [rng.uniform(-bound, bound, part.shape[1:]) for part in (zeros.Y, zeros.Z)]
            for seed, rng in drawn.items()
        }
        found = Parameters(
            *(
                torch.as_tensor(np.stack([starts[int(seed)][part] for seed in runs.seed]), dtype=plan.dtype)
                for part in (0, 1)
            )
        )
    else:
        found = Parameters(
            *(_like(*pair) for pair in zip(("Y", "Z"), plan.init, (zeros.Y, zeros.Z), strict=True))
        )
    return Parameters(found.Y.to(plan.device), found.Z.to(plan.device))


def _like(name: str, given: Any, zeros: Tensor) -> Tensor:
    array = torch.as_tensor(given, dtype=zeros.dtype)
    if array.shape not in (zeros.shape, zeros.shape[1:]):
        raise ParameterError(
            f"The start of {name} has shape {tuple(array.shape)}. Give {tuple(zeros.shape[1:])}, or that for each run."
        )
    return array.expand_as(zeros).clone()


class Trainer(ABC):
    """Runs in training.

    Parameters
    ----------
    classes, runs, plan
        The study, or the part of its runs that trains at once.

    Attributes
    ----------
    time
        Steps so far; of a flow, its time.
    parameters
        Where the runs stand.
    pull
        What the balance law adds up for each run and token, in units of ``z / lr_z``.
    """

    def __init__(self, classes: SequenceClasses, runs: Runs, plan: Plan) -> None:
        self.classes, self.runs, self.plan = classes, runs, plan
        self.parameters = start(classes, runs, plan)
        self.time = 0.0
        self.pull = torch.zeros_like(self.parameters.Y[..., 0])
        self._of_classes = Examples.of_classes(classes, plan.dtype).to(plan.device)
        self._rates = [
            torch.as_tensor(rate, dtype=plan.dtype, device=plan.device)[:, None, None]
            for rate in (runs.lr_y, runs.lr_z)
        ]

    @abstractmethod
    def advance(self, time: float) -> None:
        """Train on up to a time."""

    def slopes(self) -> tuple[Gradients, Any]:
        """Return the gradients over the classes themselves where the runs stand, and the forward state."""
        return self._slopes(self.parameters, self._of_classes)

    def _slopes(self, parameters: Parameters, examples: Examples) -> tuple[Gradients, Any]:
        return gradients(parameters, examples, self.plan.norm, self.plan.residual)

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that training needs to go on: tensors, and JSON values."""
        tensors = {"Y": self.parameters.Y, "Z": self.parameters.Z, "pull": self.pull}
        return tensors, {"time": self.time}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Go back to where :meth:`export` was called."""
        device = self.plan.device
        self.parameters = Parameters(tensors["Y"].to(device), tensors["Z"].to(device))
        self.pull, self.time = tensors["pull"].to(device), metadata["time"]


class Descent(Trainer):
    """Steps of gradient descent on all classes or on sampled sequences, with momentum or Adam's rule."""

    def __init__(self, classes: SequenceClasses, runs: Runs, plan: Plan) -> None:
        super().__init__(classes, runs, plan)
        seeds = np.unique(runs.seed)
        self._rngs = {int(seed): np.random.default_rng([int(seed), 1]) for seed in seeds}
        self._which = np.searchsorted(seeds, runs.seed)
        n_buffers = 2 if plan.optimizer == "adam" else int(plan.momentum > 0)
        self._buffers = [
            [torch.zeros_like(part) for _ in range(n_buffers)]
            for part in (self.parameters.Y, self.parameters.Z)
        ]

    @torch.no_grad()
    def advance(self, time: float) -> None:
        """Take steps up to a number of them."""
        while self.time < time:
            slopes, _ = self._slopes(self.parameters, self._examples())
            if self.plan.keeps_balance:
                # |Y_l|^2 gains the square of the step beside the product that the law of the flow counts.
                self.pull += slopes.pull + self._rates[0][..., 0] / 2 * slopes.Y.square().sum(-1)
            self.time += 1
            parts = (self.parameters.Y, self.parameters.Z)
            for part, slope, rate, buffers in zip(
                parts, (slopes.Y, slopes.Z), self._rates, self._buffers, strict=True
            ):
                part += rate * self._direction(slope, buffers)

    def _direction(self, slope: Tensor, buffers: list[Tensor]) -> Tensor:
        if self.plan.optimizer == "adam":
            for buffer, beta, value in zip(buffers, _BETAS, (slope, slope.square()), strict=True):
                buffer.lerp_(value, 1 - beta)
            first, second = (
                buffer / (1 - beta**self.time) for buffer, beta in zip(buffers, _BETAS, strict=True)
            )
            return first / (second.sqrt() + _EPSILON)
        if buffers:
            return buffers[0].mul_(self.plan.momentum).add_(slope)
        return slope

    def _examples(self) -> Examples:
        if self.plan.trainer == "batch":
            return self._of_classes
        drawn = [self._drawn(rng) for rng in self._rngs.values()]
        mass, query, label = (np.stack(part) for part in zip(*drawn, strict=True))
        if len(drawn) > 1:
            mass, query, label = mass[self._which], query[self._which], label[self._which]
        tokens = self.classes.query_tokens
        examples = Examples.of_arrays(mass, query, label, query_tokens=tokens, dtype=self.plan.dtype)
        return examples.to(self.plan.device)

    def _drawn(self, rng: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
        """Sample a batch: token masses, queries and labels."""
        classes, plan = self.classes, self.plan
        if math.isfinite(plan.seq_len):
            return classes.sample(plan.batch_size, int(plan.seq_len) - 1, rng, counts=True)
        rows = classes.sample_classes(plan.batch_size, rng)
        return classes.P[rows], classes.query[rows], classes.label[rows]

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that training needs to go on: tensors, and JSON values."""
        tensors, metadata = super().export()
        for name, buffers in zip("YZ", self._buffers, strict=True):
            tensors |= {f"{name}{number}": buffer for number, buffer in enumerate(buffers)}
        return tensors, metadata | {"rngs": [rng.bit_generator.state for rng in self._rngs.values()]}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Go back to where :meth:`export` was called."""
        super().restore(tensors, metadata)
        for name, buffers in zip("YZ", self._buffers, strict=True):
            buffers[:] = [tensors[f"{name}{number}"].to(self.plan.device) for number in range(len(buffers))]
        for rng, state in zip(self._rngs.values(), metadata["rngs"], strict=True):
            rng.bit_generator.state = state


class Flow(Trainer):
    """Gradient flow: the limit of small steps, solved with a fixed or with adaptive steps."""

    def __init__(self, classes: SequenceClasses, runs: Runs, plan: Plan) -> None:
        super().__init__(classes, runs, plan)
        self._last_steps = [0.0] * len(runs)

    @torch.no_grad()
    def advance(self, time: float) -> None:
        """Integrate up to a time."""
        if time > self.time:
            (self._fixed if self.plan.dt else self._adaptive)(time)
            self.time = float(time)

    def _velocity(self, state: list[Tensor], rates: list[Tensor]) -> list[Tensor]:
        slopes, _ = self._slopes(Parameters(*state[:2]), self._of_classes)
        # Without a balance law the integral is no number, which the control of steps must not see.
        pull = slopes.pull if self.plan.keeps_balance else torch.zeros_like(slopes.pull)
        return [rates[0] * slopes.Y, rates[1] * slopes.Z, pull]

    def _fixed(self, time: float) -> None:
        """Runge and Kutta's fourth-order rule, for all runs at once."""
        span = time - self.time
        n = math.ceil(span / self.plan.dt - 1e-9) if self.plan.dt else 1
        state = [self.parameters.Y, self.parameters.Z, self.pull]
        for _ in range(n):
            state = _runge_kutta(lambda at: self._velocity(at, self._rates), state, span / n)
        self.parameters, self.pull = Parameters(*state[:2]), state[2]

    def _adaptive(self, time: float) -> None:
        """An eighth-order rule with steps of its own for each run."""
        for run in range(len(self.runs)):
            self._solve_run(run, time)

    def _solve_run(self, run: int, time: float) -> None:
        parts = [self.parameters.Y[run], self.parameters.Z[run], self.pull[run]]
        if not all(part.isfinite().all() for part in parts):
            return
        shapes = [(1, *part.shape) for part in parts]
        sizes = [part.numel() for part in parts]
        rates = [rate[run : run + 1] for rate in self._rates]

        def velocity(_: float, flat: NDArray) -> NDArray:
            pieces = torch.as_tensor(flat, dtype=self.plan.dtype, device=self.plan.device).split(sizes)
            state = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
            moved = [part.reshape(-1) for part in self._velocity(state, rates)]
            return torch.cat(moved).to("cpu", torch.float64).numpy()

        flat = torch.cat([part.reshape(-1) for part in parts]).to("cpu", torch.float64).numpy()
        span = time - self.time
        first = min(self._last_steps[run], span) or None
        rtol = self.plan.rtol
        solver = DOP853(velocity, self.time, flat, time, first_step=first, rtol=rtol, atol=rtol * 1e-4)
        while solver.status == "running":
            solver.step()
        self._last_steps[run] = float(solver.h_abs)
        end = torch.as_tensor(solver.y if solver.status == "finished" else np.full_like(flat, np.nan))
        for part, piece in zip(parts, end.split(sizes), strict=True):
            part.copy_(piece.view(part.shape))

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that training needs to go on: tensors, and JSON values."""
        tensors, metadata = super().export()
        return tensors, metadata | {"last_steps": list(self._last_steps)}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Go back to where :meth:`export` was called."""
        super().restore(tensors, metadata)
        self._last_steps = list(metadata["last_steps"])


def _runge_kutta(
    velocity: Callable[[list[Tensor]], list[Tensor]], state: list[Tensor], dt: float
) -> list[Tensor]:
    def moved(by: list[Tensor], share: float) -> list[Tensor]:
        return [part + share * dt * slope for part, slope in zip(state, by, strict=True)]

    first = velocity(state)
    second = velocity(moved(first, 0.5))
    third = velocity(moved(second, 0.5))
    fourth = velocity(moved(third, 1.0))
    slopes = zip(first, second, third, fourth, strict=True)
    return moved([(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in slopes], 1.0)
