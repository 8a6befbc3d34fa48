"""What the command line and the tuner know about recommendation; every task has a module with these names."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import seqattn
from seqattn.data import catalog
from seqattn.data.interactions import Interactions
from seqattn.recommend.evaluation import Evaluation
from seqattn.recommend.loading import deviations as deviations
from seqattn.recommend.loading import load_new as load_new
from seqattn.recommend.loading import load_split as load_split
from seqattn.recommend.loading import reading as reading
from seqattn.recommend.loading import splits as splits
from seqattn.recommend.peers import PeerRecommender, peer_of
from seqattn.recommend.pictures import draw_slices
from seqattn.recommend.recbole_compat import engine_of
from seqattn.train.building import build_estimator, known_model, own_settings
from seqattn.train.config import check_names
from seqattn.train.loop import Observer

FAMILY = "rec"
DEFAULT_DATA = "ml-100k"
MODELS = {
    "mqsa_ted": "MQSATEDRecommender",
    "sasrec": "SASRecRecommender",
    "markov": "MarkovRecommender",
    "popularity": "PopularityRecommender",
    "recbole": "PeerRecommender",
}
OBJECTIVE = "NDCG@20 of the validation items"
LOSS_UNIT = "training: nats per item; held out: -NDCG@20"
AFTERWARDS = "computing held-out figures"
SPLITS = catalog.SPLITS
# Options of evaluate, with their values where there are only some.
EVALUATION: dict[str, tuple[str, ...] | None] = {
    "exclude_seen": None,
    "ties": ("average", "pessimistic", "optimistic"),
    "baselines": None,
    "beside": None,
}

_K = 10
_USERS = 4096
_COLUMNS = ("hr@5", "ndcg@5", "hr@10", "ndcg@10", "hr@20", "ndcg@20", "mrr", "coverage@10")
_DETAILS = ("n_targets", "share", "hr@10", "ndcg@10", "mrr")


def describe(X: Interactions) -> str:
    """Return the size of a data set in words.

    Parameters
    ----------
    X
        The data.
    """
    users = int(np.count_nonzero(X.lengths))
    return f"{users:,} users, {X.n_items:,} items, {X.n_rows:,} interactions"


def build(
    settings: Mapping[str, Any],
    model: str | None = None,
    *,
    seed: int | None = None,
    device: str | None = None,
    read: Mapping[str, Any] | None = None,
) -> Any:
    """Return an estimator that is ready to be fitted.

    Parameters
    ----------
    settings
        Constructor arguments.
    model
        Name in ``MODELS``, or of a model of another package, such as "recbole:SASRec"; None is the first.
    seed
        Seed, for models that draw.
    device
        Where it runs, for models that can choose.
    read
        Reading options; what they name is settled when the data are loaded.

    Raises
    ------
    ParameterError
        A name is unknown (the nearest one is suggested), a value is of the wrong kind, or the model has no device.
    """
    given = {"random_state": seed, "device": device}
    peer = peer_of(model or "")
    if peer is not None:
        return _built_peer(str(model), {**settings, **peer}, given)
    model = known_model(model, MODELS)
    return build_estimator(getattr(seqattn, MODELS[model]), model, settings, given)


def _built_peer(name: str, settings: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Return a model of another package; refuse what that does not have, before anything is read."""
    engine_of(str(settings["engine"])).model(str(settings["model"]))
    return build_estimator(PeerRecommender, name, settings, given)


def settings(model: Any) -> dict[str, Any]:
    """Return the constructor arguments that :func:`build` takes as ``settings``.

    Parameters
    ----------
    model
        An estimator.
    """
    return own_settings(model)


def fit(
    model: Any,
    train: Interactions,
    valid: Interactions | None = None,
    *,
    checkpoint: Path | None = None,
    observers: Sequence[Observer] = (),
) -> Any:
    """Fit an estimator, whether it learns in epochs or at once.

    Parameters
    ----------
    model
        The estimator.
    train
        What it learns from.
    valid
        What chooses the epoch and is known of the users afterwards, but not learned from; without it the last row of
        each user is.
    checkpoint
        File from which an interrupted fit goes on.
    observers
        Told of each epoch.
    """
    chosen = "leave_one_out" if valid is None else valid
    return model.fit(train, validation=chosen, checkpoint=checkpoint, observers=observers)


def held_out(model: Any, dev: Interactions | None) -> dict[str, Any] | None:
    """Return the figures of a fit that are printed with it: those of the rows that chose the epoch.

    Parameters
    ----------
    model
        A fitted recommender.
    dev
        Development data, or None.

    Returns
    -------
    As :func:`evaluate`; None if nothing was held out.
    """
    rows = model.history_.keep(model.held_out_) if dev is None else dev
    return evaluate(model, rows) if rows.n_rows else None


def objective(model: Any, X: Interactions) -> float:
    """Return what tuning maximises, NDCG at 20.

    Parameters
    ----------
    model
        A fitted recommender.
    X
        Targets.
    """
    return float(evaluate(model, X)["ndcg@20"])


def epoch_objective(model: Any, record: Mapping[str, Any]) -> float:
    """Return the NDCG at 20 of the validation items after an epoch, by which trials are pruned.

    Parameters
    ----------
    model
        The estimator being fitted.
    record
        The epoch's record, see :class:`seqattn.train.history.History`.
    """
    loss = record["valid_loss"]  # None of an epoch after which nothing was validated
    return -math.inf if loss is None else -float(loss)


def evaluate(model: Any, X: Interactions, **options: Any) -> dict[str, Any]:
    """Return every figure of the ranking protocol, and of a model of another package its own beside.

    The rows that chose the epoch of the model are ranked by what came before them: they are no part of the histories
    then.

    Parameters
    ----------
    model
        A fitted recommender.
    X
        Targets of known users.
    options
        Any of ``EVALUATION``: ``exclude_seen`` and ``ties`` as in :meth:`MQSATEDRecommender.evaluate`, and
        ``baselines``, whether to score popularity and transitions of the same training rows too (not by default);
        ``beside``, further recommenders by name that were fitted to the same rows.

    Returns
    -------
    Figures by name, with ``protocol`` in words, ``standard_errors`` by figure, ``slices`` (a list of rows), and where
    asked for ``baselines`` (figures by model).

    Raises
    ------
    ParameterError
        There is no such option.
    DataError
        No user of the targets is known.
    """
    check_names(options, EVALUATION, "an option of evaluate")
    found = _evaluated(model, X, **{"baselines": False, **options})
    errors = {name: estimate.standard_error for name, estimate in found.estimates.items()}
    theirs = model.engine_figures(X) if hasattr(model, "engine_figures") else {}
    return {**found, **theirs, "standard_errors": errors, "slices": found.slices.to_dicts()}


def _evaluated(model: Any, X: Interactions, **options: Any) -> Evaluation:
    if _chose_epoch(model, X):
        others = {name: _before_validation(other) for name, other in (options.get("beside") or {}).items()}
        model, options = _before_validation(model), {**options, "beside": others}
    found: Evaluation = model.evaluate(X, **options)
    return found


def _chose_epoch(model: Any, X: Interactions) -> bool:
    """Tell whether targets are the rows that chose the epoch."""
    own = model.history_.keep(model.held_out_)
    if not own.n_rows or own.n_rows != X.n_rows:
        return False
    same = X.recoded(model.user_ids_, model.item_ids_)
    n = own.n_users
    return bool(np.array_equal(same.offsets[: n + 1], own.offsets) and np.array_equal(same.items, own.items))


def _before_validation(model: Any) -> Any:
    """Return the model as it would be had the rows that chose its epoch not happened yet."""
    before = copy.copy(model)
    before.history_ = model.training_
    before.held_out_ = np.zeros(before.history_.n_rows, dtype=bool)
    return before


def beside(data: str | Path, split: str, /, **read: Any) -> dict[str, Any]:
    """Return options of :func:`evaluate` for the command line: with baselines, which learn from the model's rows.

    Parameters
    ----------
    data, split, read
        As in :func:`load_split`.
    """
    return {"baselines": True}


def cases(model: Any, X: Interactions, **options: Any) -> tuple[list[float], list[int]]:
    """Return for each user the NDCG at 10, and a count of 1.

    Both summed, the one divided by the other is the metric.

    Parameters
    ----------
    model
        A fitted recommender.
    X
        Targets.
    options
        Options of :func:`evaluate`.
    """
    check_names(options, EVALUATION, "an option of evaluate")
    values = _evaluated(model, X, **{**options, "baselines": False, "beside": None}).users["ndcg@10"]
    return values.tolist(), [1] * len(values)


def predict(model: Any, X: Interactions) -> Iterator[pl.DataFrame]:
    """Return tables of the ten items that each user of the data is most likely to choose next.

    Users of the fit get the list that follows all that the model knows of them; of other users the rows given are
    their history.

    Parameters
    ----------
    model
        A fitted recommender.
    X
        The users, with their rows.

    Returns
    -------
    Tables ``user_id``, ``item_id``, ``rank``, ``score``, known users first.
    """
    codes = model.history_.user_codes(X.user_ids)
    known, others = codes[codes >= 0], np.flatnonzero(codes < 0)
    for begin in range(0, len(known), _USERS):
        ids = model.history_.select(known[begin : begin + _USERS]).user_ids
        yield _plain(model.recommend(ids, k=_K))
    for begin in range(0, len(others), _USERS):
        yield _plain(model.recommend_for(X.select(others[begin : begin + _USERS]), k=_K))


def _plain(table: Any) -> pl.DataFrame:
    """Return a table whose columns are the same for every block, with ids that a file can hold."""
    frame = pl.DataFrame(table).select("user_id", "item_id", "rank", "score")
    odd = [name for name in ("user_id", "item_id") if frame.schema[name] == pl.Object]
    return frame.with_columns(pl.Series(name, [str(key) for key in frame[name].to_list()]) for name in odd)


def summary_rows(evaluation: Mapping[str, Any], name: str) -> tuple[list[str], list[list[Any]]]:
    """Return headers and rows of the table on the screen: the model, then its baselines.

    Parameters
    ----------
    evaluation
        What :func:`evaluate` returned.
    name
        How the model is called in the table.
    """
    every = {name: evaluation, **evaluation.get("baselines", {})}
    rows = [[title, *(figures.get(key) for key in _COLUMNS)] for title, figures in every.items()]
    headers = [column.upper() if "@" in column and "cov" not in column else column for column in _COLUMNS]
    return ["model", *headers], rows


def detail_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return headers and rows of the second table on the screen: the same figures by groups of targets.

    Parameters
    ----------
    evaluation
        What :func:`evaluate` returned.
    """
    rows = [
        [row["slice"], row["group"], *(row[key] for key in _DETAILS)] for row in evaluation.get("slices", [])
    ]
    return ["slice", "group", "targets", "share", "HR@10", "NDCG@10", "MRR"], rows


def caption(evaluation: Mapping[str, Any]) -> str:
    """Return the line above the table: what the figures mean.

    Parameters
    ----------
    evaluation
        What :func:`evaluate` returned.
    """
    error = evaluation.get("standard_errors", {}).get("ndcg@10")
    spread = "" if error is None else f" Standard error of NDCG@10: {error:.4f}."
    protocol = str(evaluation["protocol"])
    return f"{protocol[0].upper()}{protocol[1:]}.{spread}"


def plots(model: Any, X: Interactions, folder: Path) -> list[Path]:
    """Draw the figures by groups of targets, and return the files.

    Parameters
    ----------
    model
        A fitted recommender.
    X
        Targets to show it on.
    folder
        Where the pictures go.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    return [draw_slices(evaluate(model, X)["slices"], folder / "slices.png")]
