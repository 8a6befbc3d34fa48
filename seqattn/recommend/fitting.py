"""How the networks that rank items learn, whatever their parameters are called."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from seqattn.attention.check import check_promises
from seqattn.attention.named import as_pattern
from seqattn.data.interactions import Interactions
from seqattn.errors import BackendError, ParameterError, SeqattnWarning, suggest
from seqattn.recommend.batches import TrainingHistories, UserBatches, held_out_batches, latest
from seqattn.recommend.model import MultiQueryNetwork
from seqattn.recommend.objective import SELECTION, Objective, network_scorer
from seqattn.recommend.optimisers import LazyAdam, RowAdagrad, UncorrectedAdam
from seqattn.recommend.ranking import DotProducts
from seqattn.recommend.recommender import Recommender
from seqattn.recommend.sampled import NEGATIVES, Proposal, is_sampled
from seqattn.recommend.storing import Stored
from seqattn.recommend.transitions import Teacher, Transitions, mass_of, temperature_of
from seqattn.train.callbacks import Progress
from seqattn.train.distributed import processes
from seqattn.train.history import History
from seqattn.train.loop import Observer, fit_module
from seqattn.train.settings import FitSettings, resolve_device

__all__ = ["NetworkRecommender"]

# Half of the time of an exact step is distillation. A quarter of the positions, each step others, does as well.
_KD_SHARE = 0.25

_CHOICES = {
    "loss": ("auto", "full", "sampled"),
    "negatives": NEGATIVES,
    "optimizer": ("auto", "adam", "lazy_adam", "row_adagrad"),
    "mode": ("default", "paper"),
}


class NetworkRecommender(Recommender):
    """The part of the recommenders with a network that learns; subclasses have the parameters."""

    module_: MultiQueryNetwork
    transitions_: Transitions
    fit_history_: History
    best_epoch_: int
    best_score_: float
    teacher_mass_: float | None
    loss_: str

    # Settings that a subclass may make parameters of.
    alpha: float = 1.0
    window: int = 1
    kd_weight: float = 0.0
    kd_share: float | str = "auto"
    teacher_mass: float = 0.65
    tau_teacher: float | None = None
    tau_student: float = 0.1
    span: int = 1
    max_successors: int | None = None

    @property
    def validation_curve_(self) -> np.ndarray:
        """NDCG at 20 by epoch."""
        found = [record.get("valid_parts", {}).get(SELECTION, np.nan) for record in self.fit_history_.records]
        return np.asarray(found, dtype=np.float64)

    @property
    def _is_paper(self) -> bool:
        return bool(self.mode == "paper")

    def _check(self) -> None:
        super()._check()
        for name, allowed in _CHOICES.items():
            _check_choice(name, getattr(self, name), allowed)
        for name in ("d_model", "max_len", "n_layers", "n_heads", "window", "span", "n_negatives"):
            _check_whole(name, getattr(self, name))
        for name in ("batch_size", "eval_every"):
            _check_whole(name, getattr(self, name))
        for name in ("max_successors", "eval_users"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name))
        if self.patience is not None and self.patience != "auto":
            words = "a whole number of at least 1, None or 'auto'"
            _require("patience", self.patience, _is_whole(self.patience), words)
        self._check_ranges()
        self._check_together()
        check_promises(as_pattern(self.attention), causal=True, cross=False)

    def _check_ranges(self) -> None:
        _check_number("alpha", self.alpha, lambda x: 0 <= x <= 1, "a number from 0 to 1")
        _check_number("dropout", self.dropout, lambda x: 0 <= x < 1, "a number from 0 to below 1")
        if self.kd_share != "auto":
            _check_number(
                "kd_share", self.kd_share, lambda x: 0 < x <= 1, "a number above 0, up to 1, or 'auto'"
            )
        _check_number("teacher_mass", self.teacher_mass, lambda x: 0 < x < 1, "a number between 0 and 1")
        for name in ("kd_weight", "l2"):
            _check_number(name, getattr(self, name), lambda x: 0 <= x < np.inf, "0 or a positive number")
        for name in ("tau_student", "loss_memory_mb"):
            _check_number(name, getattr(self, name), lambda x: 0 < x < np.inf, "a positive number")
        if self.tau_teacher is not None:
            allowed = "a positive number or None"
            _check_number("tau_teacher", self.tau_teacher, lambda x: 0 < x < np.inf, allowed)

    def _check_together(self) -> None:
        if self.window > self.max_len:
            raise ParameterError(
                f"window={self.window!r} is longer than the histories, max_len={self.max_len!r}. Give a smaller one."
            )
        if self.d_model % self.n_heads:
            raise ParameterError(
                f"d_model={self.d_model!r} is not a multiple of n_heads={self.n_heads!r}. "
                f"Try d_model={self.n_heads * max(1, round(self.d_model / self.n_heads))}."
            )
        if self._is_paper and self.max_len < 2:
            raise ParameterError("mode='paper' trains on max_len - 1 items; give max_len=2 or more.")
        if self._is_paper and self.precision == "bf16":
            raise ParameterError("mode='paper' has norms that bfloat16 breaks. Use precision='float32'.")
        if self.loss == "sampled" and self.optimizer == "adam":
            raise ParameterError(
                "optimizer='adam' moves every row of the table, but loss='sampled' has gradients for few. Use "
                "'lazy_adam', 'row_adagrad' or 'auto'."
            )

    def _learn(
        self,
        train: Interactions,
        validation: Interactions | None,
        *,
        checkpoint: Path | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        if self._is_paper:
            train = self._cut()
        seed = processes().first(lambda: int(check_random_state(self.random_state).randint(2**31 - 1)))
        self._prepare(train)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.module_ = self._network(train.n_items)
        self.fit_history_, self.best_epoch_, self.best_score_ = History(), 0, np.nan
        held_out = None
        if validation is not None:
            held_out = held_out_batches(train, validation, self.eval_users, seed)
        identity = self._identity(train, validation, seed)
        self._train(train, held_out, seed, self.epochs, observers, checkpoint, identity)
        self.best_epoch_ = self.fit_history_.best_epoch or len(self.fit_history_.records)
        if validation is not None:
            self.best_score_ = self._final_score(train, validation, seed)

    def _cut(self) -> Interactions:
        """Forget all but the last rows of each user, as the authors do before anything else."""
        rows = latest(self.training_, self.max_len)
        bounds = np.repeat(self.history_.offsets[1:], self.history_.lengths)
        place = np.arange(self.history_.n_rows)
        later = np.bincount(self.history_.users, weights=self.held_out_, minlength=self.history_.n_users)
        recent = place >= bounds - np.repeat(later, self.history_.lengths) - self.max_len
        self._take(self.history_.keep(recent | self.held_out_), self.held_out_[recent | self.held_out_])
        return rows

    def _prepare(self, train: Interactions) -> None:
        """Count transitions, and choose the loss and the temperature of the teacher."""
        self.transitions_ = self._transitions(train)
        tokens = float(np.minimum(np.maximum(train.lengths - 1, 0), self.max_len).mean()) * self.batch_size
        on_gpu = resolve_device(self.device).type == "cuda"
        samples = is_sampled(tokens, train.n_items, self.d_model, self.loss_memory_mb, on_gpu)
        self.loss_ = self.loss if self.loss != "auto" else "sampled" if samples else "full"
        if self.loss_ == "sampled" and self.optimizer == "adam":
            raise ParameterError(
                f"A catalogue of {train.n_items:,} items is trained with the sampled loss, which optimizer='adam' "
                "cannot follow. Use optimizer='auto', or loss='full'."
            )
        self.teacher_mass_ = (
            mass_of(self._temperature(train.n_items), train.n_items) if self.kd_weight else None
        )
        if self.verbose and self.teacher_mass_ is not None:
            tau = self._temperature(train.n_items)
            sys.stderr.write(
                f"teacher: {self.teacher_mass_:.2f} on an only successor (temperature {tau:.4f})\n"
            )

    def _transitions(self, train: Interactions) -> Transitions:
        return Transitions.of(
            train.offsets, train.items, train.n_items, span=self.span, max_successors=self.max_successors
        )

    def _temperature(self, n_items: int) -> float:
        if self.tau_teacher is not None:
            return float(self.tau_teacher)
        return float(self.tau_student) if self._is_paper else temperature_of(self.teacher_mass, n_items)

    def _network(self, n_items: int) -> MultiQueryNetwork:
        return MultiQueryNetwork(
            n_items,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            max_len=self.max_len,
            window=self.window,
            alpha=self.alpha,
            dropout=self.dropout,
            eps=1e-24 if self._is_paper else 1e-6,
            attention=self.attention,
        )

    @property
    def _distilled_share(self) -> float:
        if self.kd_share == "auto":
            return 1.0 if self._is_paper else _KD_SHARE
        return float(self.kd_share)

    def _objective(self, popularity: np.ndarray) -> Objective:
        n_items = len(popularity)
        sampled, distils = self.loss_ == "sampled", self.kd_weight > 0
        return Objective(
            self.module_,
            Teacher(self.transitions_, self._temperature(n_items)) if distils else None,
            Proposal(self.negatives, self.n_negatives, popularity) if sampled else None,
            kd_weight=self.kd_weight,
            kd_share=self._distilled_share,
            tau_student=self.tau_student,
            zero_class=self._is_paper,
            memory_mb=self.loss_memory_mb,
            is_half=self.precision == "bf16",
        )

    def _settings(self, seed: int, epochs: int, *, validates: bool) -> FitSettings:
        patience = (None if self._is_paper else 20) if self.patience == "auto" else self.patience
        return FitSettings(
            epochs=epochs,
            learning_rate=self.learning_rate,
            patience=patience if validates else None,
            clip=None,
            weight_decay=self.l2,
            device=self.device,
            precision=self.precision,
            seed=seed,
        )

    def _train(
        self,
        train: Interactions,
        held_out: Any,
        seed: int,
        epochs: int,
        observers: Sequence[Observer] = (),
        checkpoint: Path | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        histories = TrainingHistories(train, self.max_len - self._is_paper)
        objective = self._objective(histories.popularity(train.n_items))
        begun = [0]

        def batches(epoch: int) -> UserBatches:
            begun[0] = epoch + 1
            return UserBatches(histories, self.batch_size, seed, epoch)

        def validated() -> Any:
            due = begun[0] % self.eval_every == 0 or begun[0] == epochs
            return held_out if due else None

        try:
            self.fit_history_ = fit_module(
                objective,
                batches,
                validated if held_out else None,
                self._settings(seed, epochs, validates=bool(held_out)),
                observers=[*observers, *([Progress()] if self.verbose else [])],
                checkpoint=checkpoint,
                identity=identity,
                optimiser=self._optimiser,
                rate=_constant,
            )
        finally:
            self.module_.eval()

    def _optimiser(self, parameters: list[Any], settings: FitSettings) -> torch.optim.Optimizer:
        rate, decay = float(settings.learning_rate), float(settings.weight_decay)
        chosen = self.optimizer
        if chosen == "auto":
            chosen = "lazy_adam" if self.loss_ == "sampled" else "adam"
        if chosen == "adam" and self._is_paper:
            return UncorrectedAdam(parameters, rate, weight_decay=decay)
        if chosen == "adam":
            return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
        kind = LazyAdam if chosen == "lazy_adam" else RowAdagrad
        return kind(parameters, rate, weight_decay=decay)

    def _final_score(self, train: Interactions, validation: Interactions, seed: int) -> float:
        """Return the NDCG of the best epoch on all users for validation."""
        best = self.fit_history_.best_epoch
        if self.eval_users is None and best is not None:
            return float(self.validation_curve_[best - 1])
        objective, total, count = self._objective(self.popularity_), 0.0, 0.0
        for batch in held_out_batches(train, validation, None, seed):
            loss = objective.loss(batch)
            total, count = total - float(loss.total), count + loss.count
        return total / count

    def _identity(self, train: Interactions, validation: Interactions | None, seed: int) -> dict[str, Any]:
        """Return what must agree for a checkpoint to be this fit's."""
        params = {name: repr(value) for name, value in self.get_params(deep=False).items()}
        for name in ("verbose", "device", "random_state"):  # the seed follows from the last
            params.pop(name)
        held = None if validation is None else validation.digest()
        about = {"model": type(self).__name__, "seed": seed, "train": train.digest(), "validation": held}
        return {**about, **params}

    def _check_more(self) -> None:
        super()._check_more()
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            asked = self._network(len(self.module_.table)).state_dict()
        there = self.module_.state_dict()
        if {name: value.shape for name, value in asked.items()} != {k: v.shape for k, v in there.items()}:
            raise ParameterError(
                "Settings of the network are not those of the fit any more, and its weights do not fit them. Set "
                "d_model, n_heads, n_layers, max_len, alpha and attention as they were, or fit again."
            )

    def _learn_more(self, new: Interactions) -> None:
        """Append rows for new items, and pass once over the users with new rows.

        The weights go on from where they are, with a fresh state of the optimiser. Users need no weights.
        """
        train = self._cut() if self._is_paper else self.training_
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._prepare(train)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + self.module_.table.shape[0])
            grown = self._network(train.n_items)
        with torch.no_grad():
            weights = dict(self.module_.state_dict())
            known = weights.pop("table")
            grown.load_state_dict(weights, strict=False)
            grown.table[: len(known)] = known
        self.module_ = grown.to(known.device, known.dtype)
        self.module_.eval()
        users = np.flatnonzero((new.lengths > 0) & (train.lengths >= 2))
        if not len(users):
            return  # single rows have no next one to learn from
        before = self.fit_history_
        self._train(train.select(users), None, seed, 1)
        self.fit_history_ = before

    def _scorer(self) -> DotProducts:
        return network_scorer(self.module_)

    def _item_scorer(self) -> DotProducts:
        """Return the student of the distillation: what follows an item, from the table alone."""
        table = self.module_.table.detach()
        factor = table.shape[1] ** 0.5 / self.tau_student

        def encode(histories: Interactions) -> torch.Tensor:
            return table[torch.from_numpy(histories.items.astype(np.int64)).to(table.device)] * factor

        return DotProducts(table, encode)

    def _fitted_state(self) -> Stored:
        facts = {
            "fit_history": self.fit_history_.to_json(),
            "best_epoch": self.best_epoch_,
            "best_score": self.best_score_,
            "teacher_mass": self.teacher_mass_,
            "loss": self.loss_,
        }
        return Stored(dict(self.module_.state_dict()), facts)

    def _restore(self, state: Stored) -> None:
        train, weights = self.training_, state.arrays
        self.transitions_ = self._transitions(train)
        with torch.random.fork_rng(devices=[]):
            module = self._network(train.n_items)
        module.to(weights["table"].dtype).load_state_dict(weights)
        self.module_ = module.to(_device_here(self.device)).eval()
        facts = state.facts
        self.fit_history_ = History.from_json(facts["fit_history"])
        self.best_epoch_, self.best_score_ = int(facts["best_epoch"]), float(facts["best_score"])
        self.teacher_mass_, self.loss_ = facts["teacher_mass"], facts["loss"]


def _constant(progress: float, peak: float) -> float:
    """Return the same rate at every point of training."""
    return peak


def _device_here(device: str) -> torch.device:
    """Return the device a model was fitted with, or the CPU with a warning where there is none such."""
    try:
        return resolve_device(device)
    except BackendError:
        text = f"The model was fitted with device={device!r}, which is not there. It is opened on the CPU."
        warnings.warn(text, SeqattnWarning, stacklevel=2)
        return torch.device("cpu")


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        words = ", ".join(map(repr, allowed))
        raise ParameterError(f"{name}={value!r} is not known. Use one of {words}.{suggest(value, allowed)}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _check_whole(name: str, value: Any) -> None:
    _require(name, value, _is_whole(value), "a whole number of at least 1")


def _check_number(name: str, value: Any, holds: Callable[[Any], bool], allowed: str) -> None:
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    _require(name, value, is_number and holds(value), allowed)


def _require(name: str, value: Any, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ParameterError(f"{name}={value!r} is not allowed. Give {allowed}.")
