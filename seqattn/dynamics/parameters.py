"""The parameters of a study and what they mean; what they are for is told by the study itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.pairwise import NORMS
from seqattn.dynamics.recorder import QUANTITIES, Schedule, known_quantities, record_times
from seqattn.dynamics.trainers import MODELS, OPTIMIZERS, TRAINERS, Plan, Runs
from seqattn.errors import ParameterError, suggest
from seqattn.train.settings import resolve_device, resolve_precision

__all__ = ["RECORDED", "StudyParameters"]

RECORDED = tuple(name for name in QUANTITIES if name not in ("f2", "ratio"))


class StudyParameters(BaseEstimator):
    """The part of a study that holds its parameters; :class:`seqattn.ScanAndSnapStudy` explains them."""

    def __init__(
        self,
        *,
        model: str = "pairwise",
        trainer: str = "sgd",
        optimizer: str = "sgd",
        lr_y: Any = None,
        lr_z: Any = 1.0,
        ratio: Any = None,
        n_steps: float = 100,
        momentum: float = 0.0,
        batch_size: int = 128,
        seq_len: float = 128,
        norm: str = "l2",
        residual: bool = False,
        init: Any = "zero",
        dt: float | None = None,
        rtol: float = 1e-8,
        n_seeds: int = 1,
        record: Sequence[str] = RECORDED,
        record_at: Any = "log",
        n_records: int = 400,
        n_snapshots: int = 32,
        top_tokens: int | None = None,
        d_model: int | None = None,
        gain: float = 1.0,
        lr_u: float | None = None,
        n_outputs: int | None = None,
        context: int = 32,
        min_context: int = 4,
        min_count: int = 20,
        max_vocab: int | None = None,
        label_space: str = "seen",
        columns: Sequence[str] = ("seq_id", "t", "k"),
        allow_missing: bool = False,
        wanted_entropy: float | None = None,
        max_bytes: float = 1e9,
        precision: str = "float64",
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.model = model
        self.trainer = trainer
        self.optimizer = optimizer
        self.lr_y = lr_y
        self.lr_z = lr_z
        self.ratio = ratio
        self.n_steps = n_steps
        self.momentum = momentum
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.norm = norm
        self.residual = residual
        self.init = init
        self.dt = dt
        self.rtol = rtol
        self.n_seeds = n_seeds
        self.record = record
        self.record_at = record_at
        self.n_records = n_records
        self.n_snapshots = n_snapshots
        self.top_tokens = top_tokens
        self.d_model = d_model
        self.gain = gain
        self.lr_u = lr_u
        self.n_outputs = n_outputs
        self.context = context
        self.min_context = min_context
        self.min_count = min_count
        self.max_vocab = max_vocab
        self.label_space = label_space
        self.columns = columns
        self.allow_missing = allow_missing
        self.wanted_entropy = wanted_entropy
        self.max_bytes = max_bytes
        self.precision = precision
        self.device = device
        self.random_state = random_state

    def _runs(self) -> Runs:
        if self.lr_y is not None and self.ratio is not None:
            raise ParameterError("Both lr_y and ratio are given. Give one of them; ratio is lr_y / lr_z.")
        rates = {"lr_z": _rates("lr_z", self.lr_z)}
        given = "ratio" if self.ratio is not None else "lr_y"
        rates[given] = _rates(
            given, 1.0 if self.lr_y is None and self.ratio is None else getattr(self, given)
        )
        lengths = {name: len(values) for name, values in rates.items()}
        n_rates = max(lengths.values())
        if not set(lengths.values()) <= {1, n_rates}:
            raise ParameterError(
                f"Rates have different lengths: {lengths}. Give arrays of one length, or single numbers."
            )
        lr_z, other = (np.broadcast_to(rates[name], n_rates) for name in ("lr_z", given))
        lr_y = other * lr_z if given == "ratio" else other
        n_seeds = _whole("n_seeds", self.n_seeds, 1)
        seeds = self._first_seed() + np.arange(n_seeds)
        return Runs(np.repeat(lr_y, n_seeds), np.repeat(lr_z, n_seeds), np.tile(seeds, n_rates))

    def _first_seed(self) -> int:
        if self.random_state is None:
            return int(np.random.default_rng().integers(2**31))
        if isinstance(self.random_state, np.random.RandomState):
            return int(self.random_state.randint(2**31 - 1))
        return _whole("random_state", self.random_state, 0)

    def _plan(self) -> Plan:
        for name, allowed in (
            ("model", MODELS),
            ("trainer", TRAINERS),
            ("optimizer", OPTIMIZERS),
            ("norm", NORMS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ParameterError(
                    f"{name}={value!r} is not known. Allowed: {', '.join(allowed)}.{suggest(value, allowed)}"
                )
        if isinstance(self.init, str) and self.init not in ("zero", "uniform"):
            raise ParameterError(
                f"init={self.init!r} is not known. Allowed: 'zero', 'uniform', or a pair of arrays."
            )
        if not 0 <= self.momentum < 1:
            raise ParameterError(
                f"momentum={self.momentum!r} is not allowed. Give a number from 0 to below 1."
            )
        if self.trainer == "flow" and (self.momentum or self.optimizer != "sgd"):
            raise ParameterError("A flow has no momentum and no optimizer. Use trainer='batch' or 'sgd'.")
        if self.model == "standard" and (
            self.trainer == "flow" or self.residual or not isinstance(self.init, str)
        ):
            raise ParameterError(
                "model='standard' takes trainer='sgd' or 'batch', no residual and no start of its own."
            )
        for name, value in (("dt", self.dt or 1.0), ("rtol", self.rtol)):
            if not 0 < value < np.inf:
                raise ParameterError(f"{name}={value!r} is not allowed. Give a positive number.")
        if np.isfinite(self.seq_len):
            _whole("seq_len", self.seq_len, 2)
        return Plan(
            trainer=self.trainer,
            optimizer=self.optimizer,
            momentum=self.momentum,
            batch_size=_whole("batch_size", self.batch_size, 1),
            seq_len=self.seq_len,
            norm=self.norm,
            residual=self.residual,
            init=self.init,
            dt=self.dt,
            rtol=self.rtol,
            model=self.model,
            d_model=None if self.d_model is None else _whole("d_model", self.d_model, 1),
            gain=self.gain,
            lr_u=self.lr_u,
            dtype=resolve_precision(self.precision),
            device=resolve_device(self.device) if self.device != "auto" else torch.device("cpu"),
        )

    def _schedule(self, classes: SequenceClasses) -> Schedule:
        if not 0 < self.n_steps < np.inf:
            raise ParameterError(f"n_steps={self.n_steps!r} is not allowed. Give a positive number.")
        whole = self.trainer != "flow"
        n_steps = _whole("n_steps", self.n_steps, 1) if whole else float(self.n_steps)
        times = record_times(self.record_at, n_steps, _whole("n_records", self.n_records, 2), whole)
        n_snapshots = min(len(times), _whole("n_snapshots", self.n_snapshots, 1))
        snapshots = np.unique(np.round(np.linspace(0, len(times) - 1, n_snapshots)).astype(np.int64))
        snapshots = np.unique(np.r_[snapshots, len(times) - 1])
        frequent = np.argsort(-(classes.weight @ classes.P), kind="stable")[: self.top_tokens]
        return Schedule(times, snapshots, known_quantities(self.record), np.sort(frequent))


def _rates(name: str, value: Any) -> NDArray[np.float64]:
    rates = np.atleast_1d(np.asarray(value, dtype=np.float64))
    wrong = rates[~(np.isfinite(rates) & (rates >= 0))] if rates.ndim == 1 else rates
    if wrong.size:
        raise ParameterError(
            f"{name} holds {float(wrong.flat[0])!r}. Give numbers of 0 or more, one or a list."
        )
    return rates


def _whole(name: str, value: Any, least: int) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer)
        or int(value) != value
        or value < least
    ):
        raise ParameterError(f"{name}={value!r} is not allowed. Give a whole number, at least {least}.")
    return int(value)
