"""What the command line and the tuner know about classification; every task has a module with these names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import seqattn
from seqattn.classify.confusion import draw_confusion
from seqattn.classify.folds import folds as divided
from seqattn.classify.loading import deviations as deviations
from seqattn.classify.loading import labels_of, training_part
from seqattn.classify.loading import load_new as load_new
from seqattn.classify.loading import load_split as load_split
from seqattn.classify.loading import reading as reading
from seqattn.classify.loading import splits as splits
from seqattn.classify.metrics import metrics
from seqattn.data import catalog
from seqattn.data.panels import Panel
from seqattn.train.building import build_estimator, known_model, own_settings
from seqattn.train.config import check_names
from seqattn.train.loop import Observer

FAMILY = "uea"
DEFAULT_DATA = "BasicMotions"
MODELS = {
    "vsformer": "VSFormerClassifier",
    "minirocket": "MiniRocket",
    "multirocket_hydra": "MultiRocketHydra",
}
OBJECTIVE = "accuracy - 0.1 log loss, cross-validated on training data"
LOSS_UNIT = "nats per case"
AFTERWARDS = "computing held-out figures"
SPLITS = catalog.SPLITS
# Options of evaluate, with their values where there are only some.
EVALUATION: dict[str, tuple[str, ...] | None] = {"train": None}

# Probabilities are taken to be at least this in the objective of tuning, so that one confident error costs 1.4 at most.
_LEAST = 1e-6
_WEIGHT_OF_LOSS = 0.1
_BLOCK = 4096
_COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "log_loss": "log loss",
    "brier": "Brier",
}


def describe(X: Panel) -> str:
    """Return the size of a data set in words.

    Parameters
    ----------
    X
        The data.
    """
    low, high = int(X.lengths.min()), int(X.lengths.max())
    points = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    classes = "" if X.labels is None else f", {len(np.unique(X.labels)):,} classes"
    return f"{len(X):,} cases, {X.n_channels:,} channels, {points} points{classes}"


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
        Name in ``MODELS``; None is the first.
    seed
        Seed, for models that draw.
    device
        Where it runs, for models that can choose.
    read
        Reading options; classifiers remember none.

    Raises
    ------
    ParameterError
        A name is unknown (the nearest one is suggested), a value is of the wrong kind, or the model has no device.
    """
    model = known_model(model, MODELS)
    given = {"random_state": seed, "device": device}
    return build_estimator(getattr(seqattn, MODELS[model]), model, settings, given)


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
    train: Panel,
    valid: Panel | None = None,
    *,
    checkpoint: Path | None = None,
    observers: Sequence[Observer] = (),
    watch: Panel | None = None,
) -> Any:
    """Fit an estimator, whether it learns in epochs or at once.

    Parameters
    ----------
    model
        The estimator.
    train
        What it learns from.
    valid
        What chooses the epoch, unless the model's ``validation`` is None; without it the model holds out cases itself.
    checkpoint
        File from which an interrupted fit goes on.
    observers
        Told of each epoch.
    watch
        Further cases whose accuracy after each epoch is written down and changes nothing; for models with epochs.
    """
    labels = labels_of(train)
    if "observers" not in inspect.signature(model.fit).parameters:
        return model.fit(train, labels)
    held_out = None if getattr(model, "validation", None) is None else valid
    return model.fit(
        train, labels, validation=held_out, checkpoint=checkpoint, observers=observers, watch=watch
    )


def held_out(model: Any, dev: Panel | None) -> dict[str, Any] | None:
    """Return the figures of a fit that are printed with it: on development data, or what the model found itself.

    Parameters
    ----------
    model
        A fitted classifier. Its attribute ``validation_``, where it has one, holds figures of cases that it held out.
    dev
        Development data, or None.

    Returns
    -------
    As :func:`evaluate`; None if nothing was held out.
    """
    return getattr(model, "validation_", None) if dev is None else evaluate(model, dev)


def folds(X: Panel, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide training data for the trials of a search, see :func:`seqattn.classify.folds.folds`.

    Parameters
    ----------
    X
        Training data.
    seed
        Seed of the divisions.
    """
    return divided(labels_of(X), seed)


def tally(model: Any, X: Panel) -> dict[str, float]:
    """Return sums over cases from which :func:`objective_of` makes the objective.

    Parameters
    ----------
    model
        A fitted classifier.
    X
        Cases that it has not seen.

    Returns
    -------
    ``right``, the number of right answers; ``log_loss``, the sum of the log losses in nats, with probabilities of at
    least 1e-6; ``cases``, their number.
    """
    right, given = _answers(model, X)
    loss = -np.log(np.clip(given, _LEAST, 1.0))
    return {"right": float(right.sum()), "log_loss": float(loss.sum()), "cases": float(len(X))}


def objective_of(tallies: Sequence[Mapping[str, float]]) -> float:
    r"""Return what tuning maximises, over the cases of several tallies together.

    .. math:: \mathrm{accuracy} - 0.1\,\mathrm{log\ loss}

    Accuracy alone moves in steps of one case, so that many settings tie on a small set; the log loss orders them. Its
    weight lets it decide between settings that are a case or two apart on 100 cases, and not against more.

    Parameters
    ----------
    tallies
        What :func:`tally` returned.
    """
    right, loss, cases = (sum(one[name] for one in tallies) for name in ("right", "log_loss", "cases"))
    return right / cases - _WEIGHT_OF_LOSS * loss / cases


def objective(model: Any, X: Panel) -> float:
    """Return what tuning maximises, see :func:`objective_of`.

    Parameters
    ----------
    model
        A fitted classifier.
    X
        Held-out data.
    """
    return objective_of([tally(model, X)])


def epoch_objective(model: Any, record: Mapping[str, Any]) -> float:
    """Return the held-out log-likelihood per case after an epoch, by which a trial on development data is pruned.

    Parameters
    ----------
    model
        The estimator being fitted.
    record
        The epoch's record, see :class:`seqattn.train.history.History`.
    """
    return -float(record["valid_loss"])


def evaluate(model: Any, X: Panel, **options: Any) -> dict[str, Any]:
    """Return every metric, with those of simple baselines if training data are given.

    Parameters
    ----------
    model
        A fitted classifier.
    X
        Held-out data.
    options
        Any of ``EVALUATION``: ``train``, the training data, from which the baselines learn.

    Returns
    -------
    As :func:`seqattn.classify.metrics.metrics`, and ``baselines``, the same by name.

    Raises
    ------
    ParameterError
        There is no such option.
    DataError
        The data have no labels, or none that the model knows.
    """
    check_names(options, EVALUATION, "an option of evaluate")
    train = options.get("train")
    found = _figures(model, X)
    return found if train is None else {**found, "baselines": _baselines(train, X)}


def _figures(model: Any, X: Panel) -> dict[str, Any]:
    return metrics(labels_of(X), model.classes_, model.predict_proba(X))


def _baselines(train: Panel, X: Panel) -> dict[str, Any]:
    from seqattn.classify.baselines import MajorityClass, NearestNeighbour

    kinds = {"majority": MajorityClass, "nearest_neighbour": NearestNeighbour}
    return {name: _figures(kind().fit(train), X) for name, kind in kinds.items()}


def beside(data: str | Path, split: str, /, **read: Any) -> dict[str, Any]:
    """Return options of :func:`evaluate` that come from the other parts of the same data.

    Parameters
    ----------
    data, split, read
        As in :func:`load_split`.
    """
    train = training_part(data, split, **read)
    return {} if train is None else {"train": train}


def cases(model: Any, X: Panel, **options: Any) -> tuple[list[float], list[int]]:
    """Return for each case whether it was classified rightly, and a count of 1.

    Both summed, the one divided by the other is the accuracy.

    Parameters
    ----------
    model
        A fitted classifier.
    X
        Held-out data.
    options
        Options of :func:`evaluate`, which change nothing here.
    """
    right, _ = _answers(model, X)
    return right.astype(float).tolist(), [1] * len(X)


def _answers(model: Any, X: Panel) -> tuple[np.ndarray, np.ndarray]:
    """Return whether the most probable class is the true one, and the probability of the true one."""
    columns = {label: column for column, label in enumerate(model.classes_.tolist())}
    true = np.array([columns.get(label, -1) for label in labels_of(X).tolist()])
    probabilities = np.asarray(model.predict_proba(X))
    given = np.where(true < 0, 0.0, probabilities[np.arange(len(true)), true])
    return probabilities.argmax(axis=1) == true, given


def predict(model: Any, X: Panel) -> Iterator[pl.DataFrame]:
    """Return tables with one row per case: its number, the predicted label, and a column of probability per class.

    Parameters
    ----------
    model, X
        A fitted classifier, and the data.
    """
    for start in range(0, len(X), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(X)))
        probabilities = np.asarray(model.predict_proba(X.select(rows)))
        yield pl.DataFrame(
            {
                "case": np.array(rows),
                "predicted": [model.classes_.tolist()[code] for code in probabilities.argmax(axis=1)],
                **{
                    f"p_{label}": column
                    for label, column in zip(model.classes_, probabilities.T, strict=True)
                },
            }
        )


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
    return ["model", *_COLUMNS.values()], rows


def caption(evaluation: Mapping[str, Any]) -> str:
    """Return the line above the table: what the figures mean.

    Parameters
    ----------
    evaluation
        What :func:`evaluate` returned.
    """
    protocol = str(evaluation.get("protocol", ""))
    where = f" {protocol[0].upper()}{protocol[1:]}." if protocol else ""
    return (
        f"{evaluation['n_cases']:,} cases; log loss in nats per case, Brier score from 0 (best) to 2.{where}"
    )


def plots(model: Any, X: Panel, folder: Path) -> list[Path]:
    """Draw which classes are taken for which, and what decided on the first case, and return the files.

    Parameters
    ----------
    model
        A fitted classifier.
    X
        Data to show it on; without labels no classes are compared, and nothing decides where there is one class.
    folder
        Where the pictures go.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    found = []
    if X.labels is not None:
        found.append(draw_confusion(X.labels, model.predict(X), folder / "confusion.png"))
    full = [case for case, values in enumerate(X.series) if np.isfinite(values).any()]
    if hasattr(model, "plot_explanation") and len(model.classes_) > 1 and full:
        found.append(model.plot_explanation(X, full[0], folder / "explanation.png"))
    return found
