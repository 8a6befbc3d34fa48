"""A second task, as small as one can be: a regression that learns in milliseconds. A module with a task's names."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

import seqattn
from seqattn.train.artifact import save_artifact
from seqattn.train.loop import FitSettings, Loss, fit_module

DEFAULT_DATA = "rows"
MODELS = {"line": "Line"}
OBJECTIVE = "minus the squared error"
LOSS_UNIT = "squared error"
SPLITS = ("train", "dev", "test")
SPACE = {
    "rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
    "width": {"type": "choice", "choices": [2, 4, 8]},
}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the task known, and return its name."""
    monkeypatch.setattr(seqattn, "TASKS", (*seqattn.TASKS, "toy"))
    monkeypatch.setitem(sys.modules, "seqattn.toy.task", sys.modules[__name__])
    return "toy"


@dataclass
class Rows:
    """Rows with targets."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def digest(self) -> str:
        return hashlib.sha256(self.x.numpy().tobytes()).hexdigest()

    def to(self, device: Any) -> Rows:
        return Rows(self.x.to(device), self.y.to(device))


class Net(nn.Module):
    """Two layers with dropout between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.dropout(torch.tanh(self.first(x)), 0.1, self.training))

    def loss(self, batch: Rows) -> Loss:
        return Loss((self(batch.x) - batch.y).square().sum(), len(batch))


class Line(BaseEstimator):
    """The estimator."""

    def __init__(
        self, *, width: int = 4, rate: float = 0.01, shift: float = 0.0, epochs: int = 3, seed: int = 0
    ):
        self.width, self.rate, self.shift, self.epochs, self.seed = width, rate, shift, epochs, seed

    def fit(self, train: Rows, dev: Rows, checkpoint: Any, observers: Any) -> Line:
        if self.width % 2:
            raise ValueError("width must be even")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.module_ = Net(self.width)
        self.history_ = fit_module(
            self.module_,
            lambda epoch: [train, train],
            lambda: [dev],
            FitSettings(epochs=self.epochs, learning_rate=self.rate, seed=self.seed, device="cpu"),
            observers=observers,
            checkpoint=checkpoint,
            identity=self.get_params() | {"data": train.digest()},
        )
        return self

    def predict(self, rows: Rows) -> Tensor:
        self.module_.eval()
        with torch.inference_mode():
            return self.module_(rows.x) + self.shift

    def save(self, path: Path) -> None:
        save_artifact(path, "Line", dict(self.module_.state_dict()), {})


def splits(data: str, roles: Any, *, seed: int, **read: Any) -> dict[str, Rows]:
    parts = {}
    for number, role in enumerate(roles):
        x = torch.randn(24, 3, generator=torch.Generator().manual_seed(number))
        parts[role] = Rows(x, x.sum(1, keepdim=True).tanh())
    return parts


def build(given: Any, model: Any = None, *, seed: int = 0, device: Any = None, read: Any = None) -> Line:
    return Line(seed=seed).set_params(**given)


def settings(model: Line) -> dict[str, Any]:
    return {name: value for name, value in model.get_params().items() if name != "seed"}


def fit(model: Line, train: Rows, valid: Rows, *, checkpoint: Any = None, observers: Any = ()) -> Line:
    return model.fit(train, valid, checkpoint, observers)


def predict(model: Line, rows: Rows) -> Iterator[Tensor]:
    return iter(model.predict(rows).split(10))


def beside(data: str, split: str) -> dict[str, Any]:
    return {}


def objective(model: Line, rows: Rows) -> float:
    return -float((model.predict(rows) - rows.y).square().mean())


def epoch_objective(model: Line, record: Any) -> float:
    return -float(record["valid_loss"])


def evaluate(model: Line, rows: Rows) -> dict[str, float]:
    return {"error": -objective(model, rows)}
