"""A moving average of weights over the steps of training, which often predicts better than the last weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["WeightAverage"]


class WeightAverage:
    r"""Exponential moving average of parameters, which forgets faster in the beginning.

    .. math:: \bar w_n = d_n \bar w_{n-1} + (1 - d_n) w_n, \qquad d_n = \min\Bigl(d, \frac{1 + n}{10 + n}\Bigr)

    after the n-th step, with the weights before the first one as :math:`\bar w_0`.

    Parameters
    ----------
    parameters
        What is averaged.
    decay
        :math:`d`, in [0, 1).

    References
    ----------
    .. [1] Polyak and Juditsky, *Acceleration of stochastic approximation by averaging*, SIAM Journal on Control and
       Optimization 30, 1992; the form of the decay is that of TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.steps = list(parameters), decay, 0
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    def step(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        # The function changes its first argument in place, all tensors in one call.
        get_ema_multi_avg_fn(decay)(self.values, [each.detach() for each in self.parameters], self.steps)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the parameters their averages inside, and what they had before afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for place, parameter in enumerate(self.parameters):
            parameter.data, self.values[place] = self.values[place], parameter.data

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` needs, by name."""
        found = {str(place): value for place, value in enumerate(self.values)}
        return {**found, "steps": torch.tensor(self.steps)}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Become the average whose `state` this is.

        Parameters
        ----------
        saved
            Tensors by name.
        """
        self.steps = int(saved["steps"])
        for place, value in enumerate(self.values):
            value.copy_(saved[str(place)])
