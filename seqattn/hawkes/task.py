"""What the command line and the tuner know about point processes; every task has a module with these names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqattn import hawkes
from seqattn.data import catalog
from seqattn.data.sequences import Sequences
from seqattn.errors import ParameterError
from seqattn.hawkes.ahead import horizon_caption, horizon_columns
from seqattn.hawkes.comparing import cases as cases
from seqattn.hawkes.comparing import deviations as deviations
from seqattn.hawkes.diagnose import plot_intensity
from seqattn.hawkes.estimator import SAHP
from seqattn.hawkes.likelihood import CONVENTIONS
from seqattn.hawkes.loading import load_new as load_new
from seqattn.hawkes.loading import load_split as load_split
from seqattn.hawkes.loading import reading as reading
from seqattn.hawkes.loading import reading_options, remembered
from seqattn.hawkes.loading import splits as splits
from seqattn.hawkes.metrics import table_rows
from seqattn.hawkes.process import PointProcess
from seqattn.hawkes.simulating import Paths
from seqattn.train.building import ELSEWHERE, build_estimator, known_model, own_settings
from seqattn.train.config import check_names
from seqattn.train.loop import Observer

FAMILY = "tpp"
DEFAULT_DATA = "taxi"
MODELS = {
    "sahp": "SAHP",
    "poisson": "PoissonProcess",
    "renewal": "RenewalProcess",
    "markov": "EmpiricalMarkov",
    "exponential_hawkes": "ExponentialHawkes",
}
OBJECTIVE = "held-out log-likelihood per event (nats)"
LOSS_UNIT = "nats per event, in model time"
AFTERWARDS = "fitting the baselines and computing held-out figures"
SPLITS = catalog.SPLITS
# Options of evaluate, with their values where there are only some.
EVALUATION: dict[str, tuple[str, ...] | None] = {"convention": CONVENTIONS, "horizon": None, "seed": None}
SIMULATION = ("n_paths", "until", "horizon", "max_events", "start", "method", "seed")

# Constructor arguments that a run states elsewhere than among its settings.
_ELSEWHERE = {
    **ELSEWHERE,
    "types": "--read labels=...",
    "columns": "--read time=...",
    "window": "--read window=...",
    "unknown": "--read unknown=...",
}
# Options of simulate that the method of the estimator calls otherwise.
_ARGUMENTS = {"until": "t_end", "seed": "random_state"}
_HEADERS = [
    "model",
    "log-likelihood",
    "of times",
    "of types",
    "RMSE",
    "MAE",
    "CRPS",
    "accuracy",
    "macro F1",
    "KS p",
]


def describe(X: Sequences) -> str:
    """Return the size of a data set in words.

    Parameters
    ----------
    X
        The data.
    """
    return f"{len(X):,} sequences, {X.n_events:,} events, {X.n_types:,} types"


def build(
    settings: Mapping[str, Any],
    model: str | None = None,
    *,
    seed: int | None = None,
    device: str | None = None,
    read: Mapping[str, Any] | None = None,
) -> PointProcess:
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
        Reading options; the estimator remembers columns and window for later tables.

    Raises
    ------
    ParameterError
        A name is unknown (the nearest one is suggested), a value is of the wrong kind, or the model has no device.
    """
    model = known_model(model, MODELS)
    check_names(read or {}, reading_options(), "a reading option")
    given = {"random_state": seed, "device": device, **remembered(read or {})}
    estimator: PointProcess = build_estimator(
        getattr(hawkes, MODELS[model]), model, settings, given, _ELSEWHERE
    )
    return estimator


def settings(model: PointProcess) -> dict[str, Any]:
    """Return the constructor arguments that :func:`build` takes as ``settings``.

    Parameters
    ----------
    model
        An estimator.
    """
    return own_settings(model, _ELSEWHERE)


def fit(
    model: PointProcess,
    train: Sequences,
    valid: Sequences | None = None,
    *,
    checkpoint: Path | None = None,
    observers: Sequence[Observer] = (),
) -> PointProcess:
    """Fit an estimator, whether it learns in epochs or at once.

    Parameters
    ----------
    model
        The estimator.
    train
        What it learns from.
    valid
        What chooses the epoch, unless the model's ``validation`` is None.
    checkpoint
        File from which an interrupted fit goes on.
    observers
        Told of each epoch.
    """
    if not isinstance(model, SAHP):
        return model.fit(train)
    held_out = None if model.validation is None else valid
    return model.fit(train, validation=held_out, checkpoint=checkpoint, observers=observers)


def held_out(model: PointProcess, dev: Sequences | None) -> dict[str, Any] | None:
    """Return the figures of a fit that are printed with it: those on development data, None without any.

    Parameters
    ----------
    model
        A fitted point process.
    dev
        Development data, or None.
    """
    return None if dev is None else evaluate(model, dev)


def beside(data: str | Path, split: str, /, **read: Any) -> dict[str, Any]:
    """Return options of :func:`evaluate` that come from the other parts of the same data: none.

    Parameters
    ----------
    data, split, read
        As in :func:`load_split`.
    """
    return {}


def objective(model: PointProcess, X: Sequences) -> float:
    """Return what tuning maximises: the log-likelihood per event over the whole windows.

    Parameters
    ----------
    model
        A fitted point process.
    X
        Held-out data.
    """
    return model.score(X)


def epoch_objective(model: PointProcess, record: Mapping[str, Any]) -> float:
    """Return the objective as it stood after an epoch, in the user's time unit.

    Parameters
    ----------
    model
        The estimator being fitted.
    record
        The epoch's record, see :class:`seqattn.train.history.History`.
    """
    return -float(record["valid_loss"]) - float(np.log(model.scale_))


def evaluate(model: PointProcess, X: Sequences, **options: Any) -> dict[str, Any]:
    """Return every metric, with those of the baselines that were fitted beside the model.

    Parameters
    ----------
    model
        A fitted point process.
    X
        Held-out data.
    options
        Any of ``EVALUATION``: ``convention``, as in :meth:`seqattn.SAHP.evaluate`; ``horizon``, a span of time in the
        unit of the data, adds forecasts of all events within it under the key ``horizon``, as
        :meth:`seqattn.SAHP.evaluate_horizon` gives them; ``seed`` is that of their paths.

    Raises
    ------
    ParameterError
        There is no such option, or not with this value.
    """
    check_names(options, EVALUATION, "an option of evaluate")
    horizon, seed = options.pop("horizon", None), options.pop("seed", 0)
    if horizon is None:
        return model.evaluate(X, **options)
    # First what may be refused at once.
    ahead = model.evaluate_horizon(X, horizon, random_state=seed)
    return {**model.evaluate(X, **options), "horizon": ahead}


def predict(model: PointProcess, X: Sequences) -> Iterator[pl.DataFrame]:
    """Return tables with one row per event, each forecast from the events before it.

    Parameters
    ----------
    model, X
        A fitted point process, and the data.
    """
    return model.predict_blocks(X)


def simulate(model: PointProcess, X: Sequences | None = None, **options: Any) -> Paths:
    """Return paths drawn from a point process.

    Parameters
    ----------
    model
        A fitted point process.
    X
        Histories to go on from; None for paths from nothing.
    options
        Any of ``SIMULATION``: ``until`` is the argument ``t_end`` of :meth:`seqattn.SAHP.sample`, ``seed`` its
        ``random_state``, the rest as there.

    Raises
    ------
    ParameterError
        There is no such option, or not with this value.
    DataError
        A time does not fit the data.
    """
    check_names(options, SIMULATION, "an option of simulate")
    given = {_ARGUMENTS.get(name, name): _as_moment(value) for name, value in options.items()}
    if X is None:
        if model.unit_ and "start" not in given:
            raise ParameterError(
                "The model was fitted to dates, so paths from nothing need a start. Give a date."
            )
        return model.sample(**given)
    if "start" in given:
        raise ParameterError("A start is for paths from nothing; after histories, paths begin at their ends.")
    return model.sample(history=X, **given)


def _as_moment(value: Any) -> Any:
    is_day = isinstance(value, date) and not isinstance(value, datetime)
    return datetime.combine(value, time()) if is_day else value


def summary_rows(evaluation: Mapping[str, Any], name: str) -> tuple[list[str], list[list[Any]]]:
    """Return headers and rows of the table on the screen: the model, then its baselines.

    Parameters
    ----------
    evaluation
        What :func:`evaluate` returned.
    name
        How the model is called in the table.
    """
    headers, rows = list(_HEADERS), table_rows(evaluation, name)
    ahead = evaluation.get("horizon")
    if ahead is None:
        return headers, rows
    return horizon_columns(headers, rows, ahead)


def caption(evaluation: Mapping[str, Any]) -> str:
    """Return the line above the table: what the figures mean.

    Parameters
    ----------
    evaluation
        What :func:`evaluate` returned.
    """
    text = (
        f"Nats per event, convention {evaluation['convention']!r}, window {evaluation['window']!r}, "
        f"{evaluation['n_events']:,} events; errors of the next gap in the time unit of the data."
    )
    ahead = evaluation.get("horizon")
    if ahead is None:
        return text
    return f"{text}\n{horizon_caption(ahead)}"


def plots(model: PointProcess, X: Sequences, folder: Path) -> list[Path]:
    """Draw the intensities over one sequence and the goodness of fit on all of them, and return the files.

    Parameters
    ----------
    model
        A fitted point process.
    X
        Data to show it on.
    folder
        Where the pictures go.

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    """
    rows = np.flatnonzero((np.asarray(X.end) > X.start) & (X.lengths > 0))
    if not len(rows):
        return []
    middle = rows[np.abs(X.lengths[rows] - np.median(X.lengths[rows])).argmin()]
    pictures = [plot_intensity(model, X, int(middle), folder / "intensity.png")]
    if X.n_scored:
        pictures.append(model.goodness_of_fit(X, by_type=False).plot(folder / "goodness_of_fit.png"))
    return pictures
