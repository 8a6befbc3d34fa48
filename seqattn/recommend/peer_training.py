"""An engine that learns: the rows of a fit as its data set, its trainer, and a record and checkpoint of each epoch.

The rows for testing never reach the engine while it trains: it is given the rows of the fit, those for validation
among them, and divides them exactly as the fit does.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqattn.data.clock import Clock
from seqattn.data.interactions import Interactions
from seqattn.errors import ParameterError, suggest
from seqattn.recommend.batches import latest
from seqattn.recommend.recbole_compat import Engine, engine_of
from seqattn.recommend.shared_random import set_shared_state, shared_state
from seqattn.train.history import History
from seqattn.train.loop import Observer
from seqattn.train.settings import FitSettings, resolve_device

__all__ = ["KS", "TAKEN", "EngineFit", "EngineRun"]

KS = (5, 10, 20)
_SELECTION = "ndcg@20"
_NAME = "log"
_FIELDS = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
# Settings that follow from parameters or from the data; the others may be given as options.
TAKEN = (
    *(
        "data_path",
        "checkpoint_dir",
        "load_col",
        "eval_args",
        "metrics",
        "topk",
        "metric_decimal_place",
        "seed",
    ),
    *(
        "epochs",
        "stopping_step",
        "learning_rate",
        "train_batch_size",
        "MAX_ITEM_LIST_LENGTH",
        "use_gpu",
        "gpu_id",
    ),
    *("valid_metric", *_FIELDS),
)


@dataclass
class EngineRun:
    """A model of an engine with what it needs to learn and to score.

    Attributes
    ----------
    engine, config, network, trainer
        The engine, and its objects.
    loaders
        Its batches for training and validation, None once it has learned.
    shell
        Its data set without rows.
    users, items
        The engine's ids by our codes; 0 is its padding.
    history
        The rows of the fit.
    max_len
        How many of the last items of a history are shown.
    """

    engine: Engine
    config: Any
    network: Any
    trainer: Any
    loaders: tuple[Any, Any]
    shell: Any
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    history: Interactions
    max_len: int

    @classmethod
    def of(cls, peer: Any, folder: Path, seed: int) -> Self:
        """Return a model that has learned nothing yet, with its data.

        Parameters
        ----------
        peer
            The recommender, which knows its rows.
        folder
            Where the engine may write.
        seed
            What first weights and the order of rows follow from.
        """
        engine, history = engine_of(peer.engine), peer.history_
        kind = engine.model(peer.model)
        _write(history, folder)
        config = _configured(engine, kind, peer, folder, seed)
        data = engine.module("data")
        dataset = data.create_dataset(config)
        users = _complete(dataset, "user_id", history.n_users)
        items = _complete(dataset, "item_id", history.n_items)
        n_held = np.zeros(dataset.user_num, dtype=np.int64)
        n_held[users] = np.bincount(history.users[peer.held_out_], minlength=history.n_users)
        dataset._split_index_by_leave_one_out = _split_of(dataset, n_held)
        train, valid, _ = data.data_preparation(config, dataset)
        engine.module("utils").init_seed(seed, True)
        network = kind(config, train.dataset).to(config["device"])
        trainer = engine.trainer(config, network)
        shell = train.dataset.copy(None)
        return cls(
            engine, config, network, trainer, (train, valid), shell, users, items, history, peer.max_len
        )

    @property
    def is_sequential(self) -> bool:
        """Whether the model reads histories."""
        return str(self.config["MODEL_TYPE"]).endswith("SEQUENTIAL")

    def rows_of(self, histories: Interactions) -> dict[str, Tensor]:
        """Return the columns that sequential models read: histories padded on the right, places as times.

        Parameters
        ----------
        histories
            Rows of users.
        """
        last = latest(histories, self.max_len)
        lengths = last.lengths
        places = np.arange(last.n_rows) - np.repeat(last.offsets[:-1], lengths)
        items = torch.zeros(last.n_users, self.max_len, dtype=torch.long)
        times = torch.zeros(last.n_users, self.max_len)
        rows = torch.from_numpy(last.users.astype(np.int64)), torch.from_numpy(places)
        items[rows] = torch.from_numpy(self.items[last.items])
        first = np.repeat(histories.lengths - lengths, lengths)
        times[rows] = torch.from_numpy((places + first).astype(np.float32))
        suffix = self.config["LIST_SUFFIX"]
        return {
            f"item_id{suffix}": items,
            f"timestamp{suffix}": times,
            self.config["ITEM_LIST_LENGTH_FIELD"]: torch.from_numpy(np.maximum(lengths, 1)),
            "timestamp": torch.from_numpy(histories.lengths.astype(np.float32)),
        }

    def evaluate(self, history: Interactions, targets: Interactions) -> Mapping[str, float]:
        """Return the engine's own figures.

        Parameters
        ----------
        history, targets
            What is known of users, and what came next.
        """
        asked = targets.users
        columns = {
            "user_id": torch.from_numpy(self.users[asked]),
            "item_id": torch.from_numpy(self.items[targets.items]),
        }
        if self.is_sequential:
            columns |= self.rows_of(history.select(asked))
        interaction = self.engine.module("data.interaction").Interaction(columns)
        data = self.shell.copy(interaction)
        make = self.engine.module("data.utils").get_dataloader(self.config, "test")
        loader = make(self.config, data, _Seen(self, history, targets), shuffle=False)
        found: Mapping[str, float] = self.trainer.evaluate(loader, load_best_model=False)
        return found


class _Seen:
    """What general models are not to recommend again, in the form in which the engine's samplers tell it."""

    def __init__(self, run: EngineRun, history: Interactions, targets: Interactions) -> None:
        used: list[set[int]] = [set() for _ in range(run.shell.user_num)]
        for data in (history, targets):
            for user, item in zip(
                run.users[data.users].tolist(), run.items[data.items].tolist(), strict=True
            ):
                used[user].add(item)
        self.used_ids = np.array(used, dtype=object)  # asked for the entry None too


def _write(history: Interactions, folder: Path) -> None:
    """Write the rows for the engine: codes as ids, and places in the history as times.

    The engine keeps times in float32, in which seconds since 1970 are right to a minute: it would order the rows of a
    minute by chance.
    """
    path = folder / _NAME / f"{_NAME}.inter"
    path.parent.mkdir()
    places = np.arange(history.n_rows) - np.repeat(history.offsets[:-1], history.lengths)
    users, items = (pl.Series(range(n)) for n in (history.n_users, history.n_items))
    plain = replace(history, times=places.astype(np.float64), clock=Clock(), user_ids=users, item_ids=items)
    plain.to_inter(path)


def _configured(engine: Engine, kind: Any, peer: Any, folder: Path, seed: int) -> Any:
    """Return the engine's configuration; negatives are drawn where the model learns from pairs of items only."""
    device = resolve_device(peer.device)
    settings = {
        **_FIELDS,
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": list(_FIELDS.values())},
        "eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "group_by": "user", "mode": "full"},
        "metrics": ["Hit", "NDCG", "MRR"],
        "topk": list(KS),
        "valid_metric": _SELECTION.upper(),
        "metric_decimal_place": 12,
        "MAX_ITEM_LIST_LENGTH": peer.max_len,
        "learning_rate": float(peer.learning_rate),
        "train_batch_size": peer.batch_size,
        "epochs": peer.epochs,
        "stopping_step": peer.epochs if peer.patience is None else peer.patience - 1,
        "seed": seed,
        "show_progress": False,
        "use_gpu": device.type == "cuda",
        "gpu_id": "0" if device.type == "cuda" else "",
        "train_neg_sample_args": None,
    }
    usual = engine.config(kind, _NAME, settings)
    known = {*usual.final_config_dict, *(name for names in usual.parameters.values() for name in names)}
    for name in peer.options or {}:
        if name not in known:
            raise ParameterError(f"{name!r} is no option of {peer.model}.{suggest(name, known)}")
    settings |= dict(peer.options or {})
    if "train_neg_sample_args" not in (peer.options or {}):
        given = engine.config(kind, _NAME, settings)
        settings["train_neg_sample_args"] = _negatives(given)
    config = engine.config(kind, _NAME, settings)
    config["device"] = device
    return config


def _negatives(config: Any) -> dict[str, Any] | None:
    """Return the engine's usual negatives for models that compare items, None for those with a softmax or a count."""
    kind, learns = (str(config[name]).rpartition(".")[2] for name in ("MODEL_TYPE", "MODEL_INPUT_TYPE"))
    if learns == "PAIRWISE" or (learns == "POINTWISE" and kind == "GENERAL"):
        return {
            "distribution": "uniform",
            "sample_num": 1,
            "alpha": 1.0,
            "dynamic": False,
            "candidate_num": 0,
        }
    return None


def _complete(dataset: Any, field: str, n: int) -> NDArray[np.int64]:
    """Give ids without a row a number of the engine too, and return the numbers by code."""
    numbers = dataset.field2token_id[field]
    missing = [str(code) for code in range(n) if str(code) not in numbers]
    numbers.update({token: len(numbers) + place for place, token in enumerate(missing)})
    dataset.field2id_token[field] = np.append(dataset.field2id_token[field], missing)
    return np.array([numbers[str(code)] for code in range(n)], dtype=np.int64)


def _split_of(dataset: Any, n_held: NDArray[np.int64]) -> Any:
    """Return what divides the rows of each user: the last are for validation, as many as the fit holds out."""

    def divide(groups: Any, leave_one_num: int) -> list[list[int]]:
        users = dataset.inter_feat["user_id"].numpy()
        train: list[int] = []
        held: list[int] = []
        for group in groups:
            rows = list(group)
            cut = max(len(rows) - int(n_held[users[rows[0]]]), 0)
            train += rows[:cut]
            held += rows[cut:]
        return [train, held]

    return divide


class EngineFit:
    """Training by the engine, with a record and a checkpoint after each epoch that was validated.

    Parameters
    ----------
    peer
        The recommender.
    run
        Its model and data.
    checkpoint
        File from which an interrupted fit goes on, or None.
    observers
        Told of each epoch.
    """

    def __init__(
        self, peer: Any, run: EngineRun, checkpoint: Path | None, observers: Sequence[Observer]
    ) -> None:
        self.peer, self.run, self.checkpoint, self.observers = peer, run, checkpoint, observers
        self.history, self.best = History(), copy.deepcopy(run.network.state_dict())
        self.began = time.perf_counter()

    def go(self, seed: int) -> History:
        """Train, take the weights of the best epoch, and let go of the training data.

        Parameters
        ----------
        seed
            The seed of the fit.
        """
        run, (train, valid) = self.run, self.run.loaders
        self._resume()
        settings = FitSettings(
            epochs=run.trainer.epochs,
            learning_rate=self.peer.learning_rate,
            patience=self.peer.patience,
            clip=None,
            device=self.peer.device,
            seed=seed,
        )
        for observer in self.observers:
            observer.begin(settings)
        n_valid = len(valid.dataset)
        if not n_valid:
            self._follow()
        self.began = time.perf_counter()
        run.trainer.fit(
            train,
            valid if n_valid else None,
            verbose=False,
            saved=False,
            show_progress=False,
            callback_fn=self._epoch,
        )
        if n_valid:
            run.network.load_state_dict(self.best)
        run.network.eval()
        run.loaders = (None, None)
        self.history.stopped_early = bool(n_valid) and len(self.history.records) < run.trainer.epochs
        for observer in self.observers:
            observer.end(self.history)
        return self.history

    def _follow(self) -> None:
        """Tell of epochs without validation too, of which the engine's trainer does not."""
        trainer = self.run.trainer
        plain = trainer._train_epoch

        def train_epoch(data: Any, number: int, *arguments: Any, **options: Any) -> Any:
            loss = plain(data, number, *arguments, **options)
            trainer.train_loss_dict[number] = sum(loss) if isinstance(loss, tuple) else loss
            self._epoch(number, None)
            return loss

        trainer._train_epoch = train_epoch

    def _epoch(self, number: int, score: float | None) -> None:
        trainer, seconds = self.run.trainer, time.perf_counter() - self.began
        rows = len(self.run.loaders[0].dataset)
        record = {
            "epoch": number + 1,
            "train_loss": float(trainer.train_loss_dict[number]) / max(len(self.run.loaders[0]), 1),
            "valid_loss": None if score is None else -float(score),
            "valid_parts": {} if score is None else {_SELECTION: float(score)},
            "learning_rate": float(self.peer.learning_rate),
            "seconds": seconds,
            "items_per_second": rows / seconds,
        }
        self.history.records.append(record)
        if trainer.cur_step == 0:  # the engine takes the later of two equally good epochs
            self.history.best_epoch = number + 1
            self.best = copy.deepcopy(self.run.network.state_dict())
        for observer in self.observers:
            observer.epoch(dict(record))
        self._keep()
        self.began = time.perf_counter()

    def _keep(self) -> None:
        """Write everything from which the next epoch follows."""
        if self.checkpoint is None:
            return
        trainer, part = self.run.trainer, self.checkpoint.with_suffix(".part")
        state = {
            "history": self.history.to_json(),
            "best": self.best,
            "now": self.run.network.state_dict(),
            "optimiser": trainer.optimizer.state_dict(),
            "steps": trainer.cur_step,
            "score": float(trainer.best_valid_score),
            "order": self.run.loaders[0].generator.get_state(),
            "shared": shared_state(),
        }
        torch.save(state, part)
        part.replace(self.checkpoint)

    def _resume(self) -> None:
        """Go on from a checkpoint, where there is one; it holds tensors and plain values only."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return
        state, trainer = torch.load(self.checkpoint, weights_only=True), self.run.trainer
        self.history, self.best = History.from_json(state["history"]), state["best"]
        self.run.network.load_state_dict(state["now"])
        trainer.optimizer.load_state_dict(state["optimiser"])
        trainer.cur_step, trainer.best_valid_score = state["steps"], state["score"]
        has_stopped = trainer.cur_step > trainer.stopping_step
        trainer.start_epoch = trainer.epochs if has_stopped else len(self.history.records)
        self.run.loaders[0].generator.set_state(state["order"])
        set_shared_state(state["shared"])
