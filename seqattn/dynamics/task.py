"""What the command line and the tuner know about studies of training: a search for rates, and no predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

import seqattn
from seqattn.data.catalog import SPLITS as SPLITS
from seqattn.data.catalog import entries, is_on_disk, load_split
from seqattn.dynamics.generators import syn_medium, syn_small
from seqattn.dynamics.writing import draw_study, summary
from seqattn.errors import DataError, ParameterError
from seqattn.train.building import build_estimator, known_model, own_settings

FAMILY = "tpp"
DEFAULT_DATA = "small"
MODELS = {"study": "ScanAndSnapStudy"}
OBJECTIVE = "-|attention entropy - wanted| (nats)"
LOSS_UNIT = "nats"
# Kinds of sequences that a study takes from data, and the family in which they are looked for.
TASKS = {"hawkes": "tpp", "recommend": "rec"}
# Seeds of the last look, none of which the search has seen.
_FRESH = 1_000_003
_MEDIUM = ("medium-1", "medium-3", "medium-5", "medium-10")


def build(
    settings: Mapping[str, Any],
    model: str | None = None,
    *,
    seed: int | None = None,
    device: str | None = None,
    read: Mapping[str, Any] | None = None,
) -> Any:
    """Return a study that is ready to be fitted.

    Parameters
    ----------
    settings
        Constructor arguments.
    model
        Name in ``MODELS``; None is the first.
    seed
        First seed of the study.
    device
        Where it runs.
    read
        Reading options, which a study does not remember.

    Raises
    ------
    ParameterError
        A name is unknown (the nearest one is suggested), or a value is of the wrong kind.
    """
    name = known_model(model, MODELS)
    given = {"random_state": seed, "device": device}
    return build_estimator(getattr(seqattn, MODELS[name]), name, settings, given)


def settings(model: Any) -> dict[str, Any]:
    """Return the constructor arguments that :func:`build` takes as ``settings``.

    Parameters
    ----------
    model
        A study.
    """
    return own_settings(model)


def splits(
    data: str | Path, roles: Sequence[str] = SPLITS, *, seed: int = 0, share: float = 0.1, **read: Any
) -> dict[str, Any]:
    """Return the classes or sequences to study, the same for every role: what differs are the seeds.

    Parameters
    ----------
    data
        ``"small"``, ``"medium-1"``, ``"medium-3"``, ``"medium-5"`` or ``"medium-10"`` (published settings), or
        sequences of one's own: a known name, a folder, or a file.
    roles
        Wanted roles.
    seed, share
        Of no meaning here.
    read
        Reading options of sequences.
    """
    if str(data) == DEFAULT_DATA:
        X: Any = syn_small()
    elif str(data) in _MEDIUM:
        X = syn_medium(int(str(data).partition("-")[2]))
    else:
        X = load_own(data, "train", **read)
    return dict.fromkeys(roles, X)


def load_own(data: str | Path, split: str = "train", task: str | None = None, **read: Any) -> Any:
    """Load sequences of one's own.

    Parameters
    ----------
    data
        A known name, a folder, or a file.
    split
        Part of a known data set or folder.
    task
        ``"hawkes"`` for types of events, ``"recommend"`` for items of users. By default files ``.inter`` and data sets
        that only recommenders know hold items, and all else events.
    read
        Reading options of the task.
    """
    if task is None:
        names = {
            family: {name for known in entries(family) for name in (known.name, *known.aliases)}
            for family in TASKS.values()
        }
        is_named = not is_on_disk(data) and str(data) in names["rec"] - names["tpp"]
        task = "recommend" if is_named or Path(data).suffix == ".inter" else "hawkes"
    return load_split(data, split, family=TASKS[task], **read)


def fit(
    model: Any,
    train: Any,
    valid: Any = None,
    *,
    checkpoint: Path | None = None,
    observers: Sequence[Any] = (),
) -> Any:
    """Fit a study; it has no epochs, so nobody is told of them.

    Parameters
    ----------
    model
        The study.
    train
        What it learns.
    valid
        Of no meaning here.
    checkpoint
        File from which an interrupted fit goes on.
    observers
        Of epochs; never called.
    """
    _check(model)
    return model.fit(train, checkpoint=checkpoint)


def _check(model: Any) -> None:
    wanted = model.wanted_entropy
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 <= wanted < np.inf:
        raise ParameterError(
            f"wanted_entropy={wanted!r} is no entropy that a search can aim at. Give nats, at least 0, for example "
            "--set wanted_entropy=1.9."
        )


def reached(model: Any) -> float:
    """Return the attention entropy at the end of a study, the mean over seeds and classes, in nats.

    It is that over distinct tokens, or over all tokens where a class has none that are distinct.

    Parameters
    ----------
    model
        A fitted study.

    Raises
    ------
    DataError
        A run diverged.
    """
    result = model.result_
    if result.is_diverged.any():
        raise DataError("A run diverged, so that it has no entropy. Search smaller rates.")
    ends = result.array("entropy_distinct")[:, -1].mean()
    # A class without distinct tokens has shares of nothing.
    return float(ends if np.isfinite(ends) else result.array("entropy")[:, -1].mean())


def objective(model: Any, X: Any) -> float:
    """Return what tuning maximises: minus the distance between the entropy at the end and the wanted one.

    Parameters
    ----------
    model
        A fitted study with ``wanted_entropy``.
    X
        Of no meaning here.
    """
    return -abs(reached(model) - model.wanted_entropy)


def evaluate(model: Any, X: Any, **options: Any) -> dict[str, Any]:
    """Return what the rates of a study reach with fresh seeds.

    Parameters
    ----------
    model
        A fitted study.
    X
        The classes or sequences.
    options
        None are known.

    Returns
    -------
    ``entropy`` with fresh seeds, ``wanted_entropy``, ``gap`` (the first minus the second), ``n_seeds``, ``n_steps``,
    ``rates`` (detected times and ends of the study itself) and ``assumptions``.
    """
    if options:
        raise ParameterError(f"evaluate has no option {next(iter(options))!r} for dynamics.")
    fresh = clone(model).set_params(random_state=int(model.random_state or 0) + _FRESH).fit(X)
    entropy, told = reached(fresh), summary(model)
    return {
        "entropy": entropy,
        "wanted_entropy": model.wanted_entropy,
        "gap": entropy - model.wanted_entropy,
        "n_seeds": model.n_seeds,
        "n_steps": model.n_iter_,
        "rates": told["rates"],
        "assumptions": told["assumptions"],
    }


def beside(data: str | Path, split: str, /, **read: Any) -> dict[str, Any]:
    """Return options of :func:`evaluate` that come from the other parts of the data: none.

    Parameters
    ----------
    data, split, read
        As in the modules of other tasks.
    """
    return {}


def summary_rows(evaluation: Mapping[str, Any], name: str) -> tuple[list[str], list[list[Any]]]:
    """Return headers and rows of the table on the screen.

    Parameters
    ----------
    evaluation
        What :func:`evaluate` returned.
    name
        How the study is called in the table.
    """
    keys = ("entropy", "wanted_entropy", "gap", "n_steps", "n_seeds")
    return ["study", *(key.replace("_", " ") for key in keys)], [[name, *(evaluation[key] for key in keys)]]


def caption(evaluation: Mapping[str, Any]) -> str:
    """Return the line above the table: what the figures mean.

    Parameters
    ----------
    evaluation
        What :func:`evaluate` returned.
    """
    return "Attention entropy in nats at the last step, with seeds that the search has not seen."


def plots(model: Any, X: Any, folder: Path) -> list[Path]:
    """Draw a study and return the files.

    Parameters
    ----------
    model
        A fitted study.
    X
        Of no meaning here.
    folder
        Where the pictures go.
    """
    return draw_study(model, folder, ("png",))
