"""Optimisers for a large table of embeddings of which a step touches few rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["LazyAdam", "RowAdagrad", "UncorrectedAdam"]


class _BySteps(torch.optim.Optimizer):
    """Update dense gradients by Adam, and rows of sparse gradients by a rule of their own.

    Parameters
    ----------
    parameters
        What to train.
    lr, betas, eps
        As in Adam.
    weight_decay
        Factor l of a penalty of half the squared norm. A row that a step touches takes the penalty of all steps since
        it was touched last: :math:`l` times that number times the row. A row that is never touched again keeps its
        last value.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Follow the gradients once.

        Parameters
        ----------
        closure
            Not used.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    # A float counts exactly to 2^24, and is kept as it is by load_state_dict.
                    state["step"] = torch.zeros((), dtype=torch.float32)
                state["step"] += 1
                if parameter.grad.is_sparse:
                    self._sparse(parameter, parameter.grad.coalesce(), state, group)
                else:
                    _adam(parameter, parameter.grad, state, group)

    def _sparse(self, table: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        rows = grad.indices()[0]
        if "touched" not in state:
            state["touched"] = table.new_zeros(len(table))
        values = table[rows]
        slope = grad.values()
        if group["weight_decay"]:
            waited = state["step"].to(table) - state["touched"][rows]
            slope = torch.addcmul(slope, values, waited[:, None].to(slope.dtype), value=group["weight_decay"])
        state["touched"][rows] = state["step"].to(table)
        table.index_copy_(0, rows, values - self._move(table, rows, slope, state, group))

    @abstractmethod
    def _move(
        self, table: Tensor, rows: Tensor, slope: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Tensor:
        """Return by how much rows move, and take their slopes into the state."""


def _adam(parameter: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    (first, second), step = group["betas"], float(state["step"])
    grad = grad.add(parameter, alpha=group["weight_decay"]) if group["weight_decay"] else grad
    mean = state["exp_avg"].lerp_(grad, 1 - first)
    square = state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
    root = (square / (1 - second**step)).sqrt_().add_(group["eps"])
    parameter.addcdiv_(mean, root, value=-group["lr"] / (1 - first**step))


class LazyAdam(_BySteps):
    r"""Adam that moves only the rows a step touches, each corrected by its own number of steps.

    .. math:: m_r \leftarrow \beta_1 m_r + (1 - \beta_1) g_r, \quad v_r \leftarrow \beta_2 v_r + (1 - \beta_2) g_r^2,
        \quad E_r \leftarrow E_r - \eta \, \frac{m_r / (1 - \beta_1^{c_r})}{\sqrt{v_r / (1 - \beta_2^{c_r})} + \epsilon}

    :math:`c_r` is how often row r was touched. If every step touches all rows, this is Adam. Dense gradients follow
    Adam. The state takes twice the table.

    Notes
    -----
    The penalty ``weight_decay`` reaches touched rows only, times the number of steps since they were touched last.
    """

    def _move(
        self, table: Tensor, rows: Tensor, slope: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Tensor:
        if "count" not in state:
            state["count"] = table.new_zeros(len(table))
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        first, second = group["betas"]
        count = state["count"][rows] + 1
        state["count"][rows] = count
        count = count[:, None].to(slope.dtype)
        mean = state["exp_avg"][rows].lerp_(slope, 1 - first)
        square = state["exp_avg_sq"][rows].mul_(second).addcmul_(slope, slope, value=1 - second)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        root = (square / (1 - second**count)).sqrt_().add_(group["eps"])
        return group["lr"] * mean / (1 - first**count) / root


class RowAdagrad(_BySteps):
    r"""Adagrad with one number of state per row, for touched rows only.

    .. math:: a_r \leftarrow a_r + \tfrac{1}{d} \lVert g_r \rVert^2, \qquad
        E_r \leftarrow E_r - \eta \, g_r / (\sqrt{a_r} + \epsilon)

    Dense gradients follow Adam. The state takes one number per row beside the steps: 4 MB per million items.

    Notes
    -----
    The penalty ``weight_decay`` reaches touched rows only, times the number of steps since they were touched last.

    References
    ----------
    Duchi, Hazan, Singer (2011), Adaptive subgradient methods for online learning and stochastic optimization.
    """

    def _move(
        self, table: Tensor, rows: Tensor, slope: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Tensor:
        if "sum" not in state:
            state["sum"] = table.new_zeros(len(table))
        total = state["sum"][rows] + slope.square().mean(1)
        state["sum"][rows] = total
        return group["lr"] * slope / (total.sqrt() + group["eps"])[:, None]


class UncorrectedAdam(torch.optim.Adam):
    r"""Adam whose :math:`\epsilon` is added to the root before the correction of its bias.

    .. math:: \theta \leftarrow \theta - \eta \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
        \, \frac{m}{\sqrt{v} + \epsilon}

    Parameters
    ----------
    parameters
        What to train.
    lr, eps, weight_decay
        As in Adam.

    References
    ----------
    Kingma, Ba (2015), Adam: a method for stochastic optimization, end of section 2.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr=lr, eps=eps, weight_decay=weight_decay, fused=True)
        self._eps = eps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Follow the gradients once.

        Parameters
        ----------
        closure
            Not used.
        """
        done = max((float(state["step"]) for state in self.state.values() if state), default=0.0)
        for group in self.param_groups:
            group["eps"] = self._eps / (1 - group["betas"][1] ** (done + 1)) ** 0.5
        super().step(closure)
