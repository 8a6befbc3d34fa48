"""How the networks that rank items learn, whatever their parameters are called."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.utils import check_random_state

from seqattn.data.interactions import Interactions
from seqattn.errors import BackendError, ParameterError, SeqattnWarning
from seqattn.recommend.batches import TrainingHistories, UserBatches, held_out_batches, latest
from seqattn.recommend.checking import check_settings
from seqattn.recommend.followed import WithTransitions
from seqattn.recommend.metrics import user_metrics
from seqattn.recommend.model import Members, MultiQueryNetwork
from seqattn.recommend.objective import SELECTION, Objective, network_scorer
from seqattn.recommend.optimisers import LazyAdam, RowAdagrad, UncorrectedAdam
from seqattn.recommend.ranking import DotProducts, Scorer, target_ranks
from seqattn.recommend.recommender import Recommender
from seqattn.recommend.sampled import Proposal, is_sampled
from seqattn.recommend.storing import Stored
from seqattn.recommend.transitions import Teacher, Transitions, mass_of, temperature_of
from seqattn.train.callbacks import Progress
from seqattn.train.checkpoint import Part
from seqattn.train.distributed import processes
from seqattn.train.history import History
from seqattn.train.loop import Observer, fit_module
from seqattn.train.settings import FitSettings, resolve_device

__all__ = ["NetworkRecommender"]

# Half of the time of an exact step is distillation. A quarter of the positions, each step others, does as well.
_KD_SHARE = 0.25
# What the weight of transitions beside the network's scores is chosen from.
_TRANSITION_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
# With an average of the weights the rate may be higher. Held-out NDCG at 20 on amazon-beauty, the average and the
# weights themselves: after 26 epochs 0.0877 and 0.0794 at a rate of 0.004, 0.0875 and 0.0818 at 0.002; without an
# average 0.0869 after 52 epochs at 0.001, the best of 72.
_AVERAGE, _RATE, _PLAIN_RATE = 0.998, 0.003, 0.001


class NetworkRecommender(Recommender):
    """The part of the recommenders with a network that learns; subclasses have the parameters."""

    module_: MultiQueryNetwork | Members
    transitions_: Transitions
    fit_history_: History
    best_epoch_: int
    best_score_: float
    teacher_mass_: float | None
    transition_weight_: float
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
    n_members: int = 1
    transition_weight: float | str = 0.0
    average: float | str | None = "auto"
    learning_rate: float | str = "auto"

    @property
    def validation_curve_(self) -> np.ndarray:
        """NDCG at 20 by epoch, of the first network alone."""
        found = [record.get("valid_parts", {}).get(SELECTION, np.nan) for record in self.fit_history_.records]
        return np.asarray(found, dtype=np.float64)

    @property
    def _is_paper(self) -> bool:
        return bool(self.mode == "paper")

    def _check(self) -> None:
        super()._check()
        check_settings(self)

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
        self.fit_history_, self.best_epoch_, self.best_score_ = History(), 0, np.nan
        self.transition_weight_ = 0.0
        held_out = None
        if validation is not None:
            held_out = held_out_batches(train, validation, self.eval_users, seed)
        identity, networks, histories = self._identity(train, validation, seed), [], []
        for member in range(self.n_members):
            own = seed if member == 0 else int(np.random.default_rng((seed, member)).integers(2**31 - 1))
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(own)
                self.module_ = self._network(train.n_items)
            place = checkpoint if checkpoint is None or self.n_members == 1 else Part(checkpoint, str(member))
            about = {"member": member} if self.n_members > 1 else {}
            self._train(train, held_out, own, self.epochs, observers, place, {**identity, **about}, about)
            networks.append(self.module_)
            histories.append(self.fit_history_)
        self.module_, self.fit_history_ = _joined(networks), histories[0]
        self.best_epoch_ = self.fit_history_.best_epoch or len(self.fit_history_.records)
        self._weigh(train, validation, held_out, seed)

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
            cast(MultiQueryNetwork, self.module_),
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
        average: Any = self.average
        rate: Any = self.learning_rate
        patience: Any = self.patience
        if average == "auto":  # sampled steps touch few rows of the table, and the average would touch all
            average = None if self._is_paper or self.loss_ == "sampled" else _AVERAGE
        if rate == "auto":
            rate = _PLAIN_RATE if average is None else _RATE
        if patience == "auto":
            patience = None if self._is_paper else 20 if average is None else 10
        return FitSettings(
            epochs=epochs,
            learning_rate=rate,
            average=average,
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
        checkpoint: Path | Part | None = None,
        identity: dict[str, Any] | None = None,
        about: dict[str, Any] | None = None,
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
                about=about or None,
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

    def _weigh(self, train: Interactions, validation: Interactions | None, held_out: Any, seed: int) -> None:
        """Choose the weight of transitions by the rows that chose the epoch, and score the whole on all of them."""
        chosen: Any = self.transition_weight
        if chosen == "auto":
            tries = not self._is_paper and held_out is not None
            scores = self._scores(held_out, _TRANSITION_WEIGHTS) if tries else {0.0: 0.0}
            chosen = max(scores, key=lambda weight: scores[weight])
        self.transition_weight_ = float(chosen)
        if validation is not None:
            users = held_out_batches(train, validation, None, seed)
            self.best_score_ = self._scores(users, [self.transition_weight_])[self.transition_weight_]

    def _scores(self, batches: Any, weights: Sequence[float]) -> dict[float, float]:
        """Return NDCG at 20 of users held out, by weight of the transitions."""
        scorers = {weight: self._weighed(weight) for weight in weights}
        found, count = dict.fromkeys(weights, 0.0), 0
        for batch in batches:
            for weight, scorer in scorers.items():
                ranks = target_ranks(scorer, batch.histories, batch.targets)
                found[weight] += float(user_metrics(ranks, (20,))[SELECTION].sum())
            count += ranks.n_users
        return {weight: total / count for weight, total in found.items()}

    def _weighed(self, weight: float) -> Scorer:
        scorer = network_scorer(self.module_)
        return WithTransitions(scorer, self.transitions_, weight) if weight else scorer

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
            n_items = len(self.module_.table)
            asked = _joined([self._network(n_items) for _ in range(self.n_members)]).state_dict()
        there = self.module_.state_dict()
        if {name: value.shape for name, value in asked.items()} != {k: v.shape for k, v in there.items()}:
            raise ParameterError(
                "Settings of the network are not those of the fit any more, and its weights do not fit them. Set "
                "d_model, n_heads, n_layers, max_len, alpha, attention and n_members as they were, or fit again."
            )

    def _learn_more(self, new: Interactions) -> None:
        """Append rows for new items, and pass once over the users with new rows.

        The weights go on from where they are, with a fresh state of the optimiser. Users need no weights.
        """
        train = self._cut() if self._is_paper else self.training_
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._prepare(train)
        users = np.flatnonzero((new.lengths > 0) & (train.lengths >= 2))
        before, networks = self.fit_history_, []
        for member, network in enumerate(_apart(self.module_)):
            self.module_ = self._grown(network, train.n_items, seed + member)
            if len(users):  # single rows have no next one to learn from
                self._train(train.select(users), None, seed + member, 1)
            networks.append(self.module_)
        self.module_, self.fit_history_ = _joined(networks), before

    def _grown(self, network: MultiQueryNetwork, n_items: int, seed: int) -> MultiQueryNetwork:
        """Return a network with the same weights and fresh rows for further items."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + len(network.table))
            grown = self._network(n_items)
        with torch.no_grad():
            weights = dict(network.state_dict())
            known = weights.pop("table")
            grown.load_state_dict(weights, strict=False)
            grown.table[: len(known)] = known
        return grown.to(known.device, known.dtype).eval()

    def _scorer(self) -> Scorer:
        return self._weighed(self.transition_weight_)

    def _item_scorer(self) -> DotProducts:
        """Return the student of the distillation: what follows an item, from the table alone."""
        table, networks = self.module_.table.detach(), _apart(self.module_)
        factor = networks[0].table.shape[1] ** 0.5 / self.tau_student / len(networks)

        def encode(histories: Interactions) -> torch.Tensor:
            return table[torch.from_numpy(histories.items.astype(np.int64)).to(table.device)] * factor

        return DotProducts(table, encode)

    def _fitted_state(self) -> Stored:
        facts = {
            "fit_history": self.fit_history_.to_json(),
            "best_epoch": self.best_epoch_,
            "best_score": self.best_score_,
            "teacher_mass": self.teacher_mass_,
            "transition_weight": self.transition_weight_,
            "loss": self.loss_,
        }
        return Stored(dict(self.module_.state_dict()), facts)

    def _restore(self, state: Stored) -> None:
        train, weights = self.training_, state.arrays
        self.transitions_ = self._transitions(train)
        with torch.random.fork_rng(devices=[]):
            module = _joined([self._network(train.n_items) for _ in range(self.n_members)])
        module.to(next(iter(weights.values())).dtype).load_state_dict(weights)
        self.module_ = module.to(_device_here(self.device)).eval()
        facts = state.facts
        self.fit_history_ = History.from_json(facts["fit_history"])
        self.best_epoch_, self.best_score_ = int(facts["best_epoch"]), float(facts["best_score"])
        self.teacher_mass_, self.loss_ = facts["teacher_mass"], facts["loss"]
        self.transition_weight_ = float(facts["transition_weight"])


def _joined(networks: list[MultiQueryNetwork]) -> MultiQueryNetwork | Members:
    return networks[0] if len(networks) == 1 else Members(networks)


def _apart(module: MultiQueryNetwork | Members) -> list[MultiQueryNetwork]:
    return [module] if isinstance(module, MultiQueryNetwork) else list(module.networks)  # type: ignore[arg-type]


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
