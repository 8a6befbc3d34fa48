"""RecBole both ways: our model inside its trainer, its models inside our tables, and files between the two.

Everything here works with RecBole 1.2.1 (the extra ``recbole``) and with its fork hopwise; ``frame_to_inter`` and
``dataset_to_frame`` need neither. Nothing of an engine is imported before it is asked for.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import seqattn
from seqattn.attention import Layout
from seqattn.data.atomic import dataset_to_frame
from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.errors import FitError, ParameterError
from seqattn.recommend.losses import distillation_loss, ranking_loss
from seqattn.recommend.model import HistoryBatch, MultiQueryNetwork
from seqattn.recommend.peers import PeerRecommender
from seqattn.recommend.recbole_compat import engine_of
from seqattn.recommend.transitions import Teacher, Transitions, temperature_of

__all__ = ["MQSATED", "dataset_to_frame", "frame_to_inter", "mqsa_ted_of", "run_baseline"]

MQSATED: Any

_CODE = "from seqattn.recommend.recbole import _answer; _answer()"


def __getattr__(name: str) -> Any:
    if name == "MQSATED":
        return mqsa_ted_of("recbole")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Bridge:
    """MQSA-TED as a sequential recommender of RecBole; the base class comes from the engine.

    Hand the class itself to ``Config(model=MQSATED, ...)``, with ``train_neg_sample_args`` of None: the loss is a
    softmax over all items. Every parameter has a default here, that of :class:`seqattn.MQSATEDRecommender`, and may be
    set in the configuration under the same name: ``d_model``, ``n_heads``, ``n_layers``, ``window``, ``alpha``,
    ``dropout``, ``kd_weight``, ``teacher_mass``, ``tau_teacher``, ``tau_student``, ``span``, ``max_successors``,
    ``l2``, ``attention``, ``loss_memory_mb``. The length of histories is RecBole's ``MAX_ITEM_LIST_LENGTH``; rate,
    batch and epochs are its trainer's.

    RecBole has one row for each prefix of a history, padded on the right. Of each row the last item alone is scored
    and distilled: over all items of all prefixes the first ones would count many times. Item j of the network is item
    j + 1 of RecBole, whose item 0, the padding, scores minus infinity. ``l2`` is part of the loss, and its gradient is
    that of RecBole's ``weight_decay``, which should stay 0 beside it.
    """

    settings: dict[str, Any] = {  # noqa: RUF012 - read only
        "d_model": 64,
        "n_heads": 1,
        "n_layers": 1,
        "window": 3,
        "alpha": 0.5,
        "dropout": 0.5,
        "kd_weight": 0.1,
        "teacher_mass": 0.65,
        "tau_teacher": None,
        "tau_student": 0.1,
        "span": 1,
        "max_successors": None,
        "l2": 1e-4,
        "attention": "dense",
        "loss_memory_mb": 256,
    }

    # What the engine's base class brings.
    ITEM_SEQ: str
    ITEM_SEQ_LEN: str
    POS_ITEM_ID: str
    ITEM_ID: str
    max_seq_length: int
    n_items: int

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)  # type: ignore[call-arg]
        if str(config["train_neg_sample_args"]["distribution"]) != "none":
            raise ParameterError(
                "MQSATED learns by a softmax over all items, but the configuration asks for negatives. Set "
                "train_neg_sample_args to None."
            )
        given = {name: config[name] for name in self.settings}
        self.given = {
            name: usual if given[name] is None else given[name] for name, usual in self.settings.items()
        }
        self._check_given()
        names = ("d_model", "n_heads", "n_layers", "window", "alpha", "dropout", "attention")
        self.network = MultiQueryNetwork(
            self.n_items - 1, max_len=self.max_seq_length, **{name: self.given[name] for name in names}
        )
        self.teacher = self._teacher(dataset) if self.given["kd_weight"] else None

    def _check_given(self) -> None:
        """Refuse what the recommender refuses, in its words."""
        shared = {name: value for name, value in self.given.items() if value is not None}
        seqattn.MQSATEDRecommender(max_len=self.max_seq_length, **shared)._check()

    def _teacher(self, dataset: Any) -> Teacher:
        """Count pairs of the training sequences: those of a prefix's last items with what follows it."""
        rows = dataset.inter_feat
        items, lengths = np.asarray(rows[self.ITEM_SEQ]) - 1, np.asarray(rows[self.ITEM_SEQ_LEN])
        following = np.asarray(rows[self.POS_ITEM_ID]) - 1
        pairs = []
        for step in range(1, min(int(self.given["span"]), self.max_seq_length) + 1):
            long = np.flatnonzero(lengths >= step)
            pairs.append(np.stack([items[long, lengths[long] - step], following[long]], axis=1))
        flat = np.concatenate(pairs)
        bounds = np.arange(len(flat) + 1) * 2
        n_items, most = self.n_items - 1, self.given["max_successors"]
        counted = Transitions.of(bounds, flat.ravel(), n_items, max_successors=most)
        tau = self.given["tau_teacher"] or temperature_of(self.given["teacher_mass"], n_items)
        return Teacher(counted, tau)

    def _states(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Return the state after each row's history, and the embeddings of its last item."""
        rows, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        places = torch.arange(rows.shape[1], device=rows.device)
        items = rows[places < lengths[:, None]] - 1
        layout = Layout.of(lengths.cpu().numpy(), rows.device)
        last = lengths.cumsum(0) - 1
        states = self.network(HistoryBatch(items, layout))
        return states.index_select(0, last), items.index_select(0, last)

    def calculate_loss(self, interaction: Any) -> Tensor:
        r"""Return the loss of a batch of prefixes.

        .. math:: \frac{1}{N} \sum_t (\mathrm{rec}_t + \lambda \, \mathrm{kd}_t) + \tfrac{l_2}{2} \lVert \theta \rVert^2

        Parameters
        ----------
        interaction
            The batch.
        """
        states, last = self._states(interaction)
        table, memory = self.network.table, self.given["loss_memory_mb"]
        loss = ranking_loss(states, interaction[self.POS_ITEM_ID] - 1, table, memory_mb=memory)
        if self.teacher is not None:
            embedded = table.index_select(0, last) * table.shape[1] ** 0.5
            heads = self.network.dropout(embedded) / self.given["tau_student"]
            distilled = distillation_loss(heads, last, table, self.teacher, memory_mb=memory)
            loss = loss + self.given["kd_weight"] * distilled
        penalty = torch.stack([weight.square().sum() for weight in self.network.parameters()]).sum()
        return loss / len(states) + self.given["l2"] / 2 * penalty

    def predict(self, interaction: Any) -> Tensor:
        """Return the score of the item of each row.

        Parameters
        ----------
        interaction
            The batch.
        """
        states, _ = self._states(interaction)
        return (states * self.network.table.index_select(0, interaction[self.ITEM_ID] - 1)).sum(dim=1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return the scores of all items for each row, minus infinity for the padding.

        Parameters
        ----------
        interaction
            The batch.
        """
        states, _ = self._states(interaction)
        scores = states @ self.network.table.T
        return torch.cat([scores.new_full((len(scores), 1), -torch.inf), scores], dim=1)


@cache
def mqsa_ted_of(engine: str = "recbole") -> Any:
    """Return MQSA-TED as a sequential recommender of an engine, a class for its ``Config``; RecBole's is ``MQSATED``.

    Parameters
    ----------
    engine
        ``"recbole"`` or ``"hopwise"``.

    Raises
    ------
    MissingDependencyError
        The engine is not installed; says what to install.
    """
    module = engine_of(engine).module
    base = module("model.abstract_recommender").SequentialRecommender
    kinds = module("utils").InputType
    name = "MQSATED" if engine == "recbole" else f"MQSATED_{engine}"
    content = {"__doc__": _Bridge.__doc__, "__module__": __name__, "input_type": kinds.POINTWISE}
    return type(name, (_Bridge, base), content)


def frame_to_inter(frame: Any, folder: str | Path, **columns: Any) -> Path:
    """Write interactions where RecBole looks for a data set, and return the file.

    Parameters
    ----------
    frame
        Interactions in any form that :class:`seqattn.MQSATEDRecommender` takes.
    folder
        The folder of the data set; its name is that of the data set, and the file ``NAME.inter`` in it. It is made
        where it is not there. RecBole finds it as ``Config(dataset=NAME, config_dict={"data_path": PARENT})``.
    columns
        Names of the columns, ``user``, ``item`` and ``time``, where they are not ``user_id``, ``item_id`` and
        ``timestamp``.

    Returns
    -------
    The path of the file: ``user_id:token``, ``item_id:token`` and, where there are times, ``timestamp:float``,
    separated by tabs, users in order and their rows in the order of time.

    Raises
    ------
    DataError
        Rows cannot be used, or an id has a tab or a line break in it.

    Examples
    --------
    >>> log = {"user_id": ["u", "u"], "item_id": [7, 5], "timestamp": [2, 1]}
    >>> with tempfile.TemporaryDirectory() as place:
    ...     frame_to_inter(log, f"{place}/small").read_text().split()
    ['user_id:token', 'item_id:token', 'timestamp:float', 'u', '5', '1', 'u', '7', '2']
    """
    data, place = Interactions.of(frame, **columns), Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{place.resolve().name}.inter"
    data.to_inter(path)
    return path


def run_baseline(
    name: str,
    interactions: Any,
    epochs: int = 200,
    *,
    engine: str = "recbole",
    seed: int = 0,
    is_apart: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Train a model of RecBole on our split by its own trainer, and return its figures by both evaluations.

    Parameters
    ----------
    name
        Name of the model, such as "SASRec".
    interactions
        The whole log, in any form that :class:`seqattn.MQSATEDRecommender` takes. The last row of each user is for
        testing, the one before chooses the epoch.
    epochs
        Most passes over the training rows.
    engine
        ``"recbole"`` or ``"hopwise"``.
    seed
        Seed.
    is_apart
        Whether it runs in a process of its own, which is over afterwards with all that the engine has brought.
    settings
        Further parameters of :class:`seqattn.recommend.peers.PeerRecommender`.

    Returns
    -------
    What :meth:`seqattn.MQSATEDRecommender.evaluate` gives, ``engine_hr@K``, ``engine_ndcg@K`` and ``engine_mrr@K`` of
    the engine's own evaluation, and ``fit_seconds``, ``best_epoch`` and ``n_epochs``.

    Raises
    ------
    FitError
        The process ended without an answer; says with which last words.
    MissingDependencyError
        The engine is not installed; says what to install.
    """
    engine_of(engine)
    data = Interactions.of(interactions)
    parameters = {**settings, "model": name, "engine": engine, "epochs": epochs, "random_state": seed}
    return _asked(data, parameters) if is_apart else _run(data, parameters)


def _run(data: Interactions, parameters: Mapping[str, Any]) -> dict[str, Any]:
    split = leave_one_out(data)
    peer = PeerRecommender(**parameters).fit(split.train, validation=split.validation)
    history = peer.fit_history_
    return {
        **peer.evaluate(split.test),
        **peer.engine_figures(split.test),
        "fit_seconds": sum(record["seconds"] for record in history.records),
        "best_epoch": history.best_epoch,
        "n_epochs": len(history.records),
    }


def _asked(data: Interactions, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Run in a process of its own; what goes to and fro are files that the two write themselves."""
    with tempfile.TemporaryDirectory(prefix="seqattn-") as folder:
        Path(folder, "question").write_bytes(pickle.dumps((data, dict(parameters))))
        given = filter(None, [str(Path(seqattn.__file__).parents[1]), os.environ.get("PYTHONPATH")])
        done = subprocess.run(
            [sys.executable, "-c", _CODE, folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(given)},
            stdout=subprocess.DEVNULL,
            stderr=None if parameters.get("verbose") else subprocess.PIPE,
            check=False,
        )
        answer = Path(folder, "answer")
        if done.returncode or not answer.is_file():
            lines = (done.stderr or b"").decode(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "without a word")
            raise FitError(f"{parameters['model']} ended with exit code {done.returncode}: {last}")
        found = pickle.loads(answer.read_bytes())
    if isinstance(found, Exception):
        raise found
    return dict(found)


def _answer() -> None:
    folder = Path(sys.argv[1])
    found: Any
    try:
        found = _run(*pickle.loads(Path(folder, "question").read_bytes()))
    except seqattn.errors.SeqattnError as error:
        found = error
    Path(folder, "answer").write_bytes(pickle.dumps(found))
