"""A small regression with dropout: what the tests of the fit loop train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqattn.train.loop import Loss


@dataclass
class Rows:
    """A batch of rows with targets."""

    x: Tensor
    y: Tensor

    def to(self, device):
        return Rows(self.x.to(device), self.y.to(device))


class Regression(nn.Module):
    """Two layers with dropout between them; the loss is the sum of squared errors."""

    def __init__(self, dropout=0.0, width=8, seed=0):
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(3, width), nn.Dropout(dropout), nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def forward(self, x):
        return self.second(self.drop(torch.tanh(self.first(x))))

    def loss(self, batch):
        error = self(batch.x.to(self.first.weight.dtype)).float() - batch.y
        return Loss(error.square().sum(), len(batch.x))


def rows(n, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return Rows(x.to(dtype), (x.sum(1, keepdim=True) + noise / 10).to(dtype))


def cut(data, *sizes):
    """Cut rows into batches of the sizes given."""
    return [Rows(x, y) for x, y in zip(data.x.split(sizes), data.y.split(sizes), strict=True)]


def shuffled(data, size):
    """Return a function that gives each epoch's batches in an order of its own."""

    def batches(epoch):
        order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(epoch))
        return [Rows(data.x[part], data.y[part]) for part in order.split(size)]

    return batches


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def equal(first, second):
    """Whether two state dicts have the same names and bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
