"""Models of RecBole and hopwise as recommenders: our histories, their trainer, our ranking."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor

from seqattn.data.ids import codes_among
from seqattn.data.interactions import Interactions
from seqattn.errors import ArtifactError, ParameterError
from seqattn.recommend.peer_training import KS, TAKEN, EngineFit, EngineRun
from seqattn.recommend.ranking import Scorer
from seqattn.recommend.recbole_compat import ENGINES, engine_of
from seqattn.recommend.recommender import Recommender
from seqattn.recommend.shared_random import apart
from seqattn.recommend.storing import Stored
from seqattn.train.callbacks import Progress
from seqattn.train.history import History
from seqattn.train.loop import Observer

__all__ = ["PeerRecommender", "peer_of"]


# What the engine calls its figures, and how they are called here, beside ours.
_FIGURES = {"hit": "hr", "ndcg": "ndcg", "mrr": "mrr"}


def peer_of(name: str) -> dict[str, str] | None:
    """Return the engine and the model that a name such as ``recbole:SASRec`` stands for, None of another name.

    Parameters
    ----------
    name
        Name of a model of the task.

    Examples
    --------
    >>> peer_of("recbole:SASRec"), peer_of("markov")
    ({'engine': 'recbole', 'model': 'SASRec'}, None)
    """
    engine, colon, model = name.partition(":")
    return {"engine": engine, "model": model} if colon and engine in ENGINES else None


class PeerRecommender(Recommender):
    """Recommend with a model of RecBole, trained by RecBole's trainer.

    Its own defaults stand for whatever is no parameter here. The epoch with the best NDCG at 20 on the rows for
    validation is kept, by the engine's own evaluation, which leaves seen items in the ranking of sequential models.

    Parameters
    ----------
    model
        Name of a general or sequential model, such as "SASRec", "GRU4Rec", "BERT4Rec", "FPMC" or "Pop".
    engine
        ``"recbole"`` or ``"hopwise"``.
    max_len
        How many of the last items of a history a sequential model sees.
    learning_rate, batch_size
        Rate, and rows per step; sequential models have one row for each prefix of a history.
    epochs, patience
        Most passes over the rows, and epochs without a better NDCG at 20 after which training stops; None goes on.
    options
        Further settings of the engine by name, such as ``{"hidden_size": 128}``.
    unknown_items, cold_items, duplicates
        As in :class:`seqattn.PopularityRecommender`.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    random_state
        Seed.
    verbose
        1 tells of progress on the standard error stream.

    Attributes
    ----------
    fit_history_
        What happened in each epoch.
    network_
        The engine's model.

    Raises
    ------
    MissingDependencyError
        At construction of the fit: the engine is not installed; says what to install.

    References
    ----------
    Zhao et al. (2021), RecBole: towards a unified, comprehensive and efficient framework for recommendation
    algorithms, CIKM.
    """

    fit_history_: History

    def __init__(
        self,
        *,
        model: str = "SASRec",
        engine: str = "recbole",
        max_len: int = 50,
        learning_rate: float = 1e-3,
        batch_size: int = 2048,
        epochs: int = 200,
        patience: int | None = 20,
        options: Mapping[str, Any] | None = None,
        unknown_items: str = "drop",
        cold_items: str = "exclude",
        duplicates: str = "keep",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.engine = engine
        self.max_len = max_len
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.options = options
        self.unknown_items = unknown_items
        self.cold_items = cold_items
        self.duplicates = duplicates
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @property
    def network_(self) -> Any:
        """The engine's model."""
        return self._run.network

    def _check(self) -> None:
        super()._check()
        engine_of(self.engine).model(self.model)
        for name in ("max_len", "batch_size", "epochs", "patience"):
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not is_whole and not (name == "patience" and value is None):
                raise ParameterError(f"{name}={value!r} is not allowed. Give a whole number of at least 1.")
        for name in self.options or {}:
            if name in TAKEN:
                raise ParameterError(f"The option {name!r} follows from parameters or data. Leave it out.")

    def _learn(
        self,
        train: Interactions,
        validation: Interactions | None,
        *,
        checkpoint: Path | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        watching = [*observers, *([Progress()] if self.verbose else [])]
        with apart(seed) as folder:
            run = EngineRun.of(self, folder, seed)
            self.fit_history_ = EngineFit(self, run, checkpoint, watching).go(seed)
        self._run = run

    def _scorer(self) -> Scorer:
        return _EngineScores(self._run)

    def engine_figures(self, X: Any) -> dict[str, float]:
        """Return the figures that the engine's own evaluation gives for the same targets.

        Of sequential models it ranks all items, seen ones included; of general models all but those seen. Equal scores
        stand in the order in which ``torch.topk`` leaves them.

        Parameters
        ----------
        X
            As in :meth:`evaluate`.

        Returns
        -------
        ``engine_hr@K``, ``engine_ndcg@K`` and ``engine_mrr@K`` for K of 5, 10 and 20, and ``engine_seconds``, the time
        that its evaluation took.
        """
        targets = self._targets(X)
        with apart(0):
            began = time.perf_counter()
            found = self._run.evaluate(self.history_, targets)
            seconds = time.perf_counter() - began
        return {
            **{
                f"engine_{ours}@{k}": float(found[f"{theirs}@{k}"])
                for theirs, ours in _FIGURES.items()
                for k in KS
            },
            "engine_seconds": seconds,
        }

    def _fitted_state(self) -> Stored:
        others = self.network_.other_parameter()
        strange = [name for name, value in others.items() if not isinstance(value, Tensor)]
        if strange:
            raise ArtifactError(
                f"{self.model} keeps {strange[0]!r} beside its weights, which a file cannot hold. Keep the recommender "
                "in memory."
            )
        arrays = {f"weights.{name}": value for name, value in self.network_.state_dict().items()}
        arrays |= {f"other.{name}": value for name, value in others.items()}
        return Stored(arrays, {"fit_history": self.fit_history_.to_json()})

    def _restore(self, state: Stored) -> None:
        with apart(0) as folder:
            self._run = EngineRun.of(self, folder, 0)
        weights = {k.removeprefix("weights."): v for k, v in state.arrays.items() if k.startswith("weights.")}
        self.network_.load_state_dict(weights)
        others = {k.removeprefix("other."): v for k, v in state.arrays.items() if k.startswith("other.")}
        self.network_.load_other_parameter(others)
        self.network_.eval()
        self.fit_history_ = History.from_json(state.facts["fit_history"])


class _EngineScores:
    """Scores of all items, computed when the states are."""

    def __init__(self, run: EngineRun) -> None:
        self.run, self.n_items = run, len(run.items)
        self.items = torch.from_numpy(run.items)

    def states(self, histories: Interactions) -> Float[Tensor, "users items"]:
        run = self.run
        columns = {"user_id": torch.from_numpy(self._users(histories))}
        if run.is_sequential:
            columns |= run.rows_of(histories)
        interaction = run.engine.module("data.interaction").Interaction(columns).to(run.config["device"])
        run.network.eval()
        with torch.no_grad():
            found = run.network.full_sort_predict(interaction).view(histories.n_users, -1).cpu().float()
        return found.index_select(1, self.items)

    def _users(self, histories: Interactions) -> NDArray[np.int64]:
        """Return the engine's ids of users; where the model has weights of users, strangers are refused."""
        known = codes_among(histories.user_ids, self.run.history.user_ids).astype(np.int64)
        if hasattr(self.run.network, "n_users") and not self._are_own(histories, known):
            raise ParameterError(
                f"{self.run.config['model']} has weights for each user and knows nothing of other histories. Ask for "
                "users of the fit, or use a sequential model without weights of users, such as SASRec."
            )
        return np.where(known < 0, 0, self.run.users[known])

    def _are_own(self, histories: Interactions, known: NDArray[np.int64]) -> bool:
        """Tell whether each history is how one of a user of the fit begins; users of lists are called 0, 1, ..."""
        if (known < 0).any():
            return False
        whole = self.run.history.select(known)
        places = np.arange(whole.n_rows) - np.repeat(whole.offsets[:-1], whole.lengths)
        begun = whole.keep(places < np.repeat(histories.lengths, whole.lengths))
        return np.array_equal(begun.offsets, histories.offsets) and np.array_equal(
            begun.items, histories.items
        )

    def scores(self, states: Any, first: int, last: int) -> Float[Tensor, "users items"]:
        found: Tensor = states[:, first:last]
        return found
