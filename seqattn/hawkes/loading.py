"""How data come to a point process: splits of known data, files cut into parts, and new data for a fitted model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqattn.data import catalog
from seqattn.data.prepare import is_table_of_events
from seqattn.data.sequences import Sequences
from seqattn.data.splits import split_sequences
from seqattn.data.store import is_saved
from seqattn.data.tpp import EventSet
from seqattn.hawkes.process import PointProcess
from seqattn.train.config import check_names

__all__ = ["load_new", "load_split", "reading", "reading_options", "remembered", "splits"]

_COLUMNS = {"seq": "seq_id", "time": "t", "type": "k"}


def load_split(data: str | Path, split: str, /, **read: Any) -> Sequences:
    """Load one split of a known data set or folder, or a whole file.

    Parameters
    ----------
    data
        Known name, folder with ``train``/``dev``/``test`` files, or file.
    split
        ``"train"``, ``"dev"`` or ``"test"``; a file has no splits and is read whole.
    read
        Reading options, as in :meth:`seqattn.Sequences.from_table`.

    Raises
    ------
    DataError
        The data cannot be found or used.
    ParameterError
        There is no such reading option.
    """
    check_names(read, reading_options(), "a reading option")
    return catalog.load_split(data, split, **read)


def reading_options() -> list[str]:
    """Return the names of the reading options: those of :meth:`seqattn.Sequences.from_table` and of ``read``."""
    table, file = inspect.signature(Sequences.from_table), inspect.signature(Sequences.read)
    return [
        name
        for name, parameter in {**table.parameters, **file.parameters}.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]


def splits(
    data: str | Path,
    roles: Sequence[str] = ("train", "dev"),
    /,
    *,
    share: float | None = 0.1,
    seed: int = 0,
    **read: Any,
) -> dict[str, Sequences]:
    """Load the parts that training needs; a single file is cut at random into them.

    Parameters
    ----------
    data, read
        As in :func:`load_split`.
    roles
        Which parts: ``"train"``, ``"dev"``, ``"test"``.
    share
        Share of a single file's sequences for each part but ``"train"``; None keeps the file whole for training.
    seed
        Seed of the cut.

    Returns
    -------
    Sequences by role. With ``share=None`` a single file gives ``"train"`` only.

    Raises
    ------
    DataError
        The data cannot be found or used, or hold too few sequences to be cut.
    """
    if not _is_one_table(data):
        return {role: load_split(data, role, **read) for role in roles}
    rest, parts = load_split(data, "train", **read), {}
    for number, role in enumerate(role for role in roles if role != "train" and share is not None):
        kept, cut = split_sequences(len(rest), float(share or 0.0), np.random.default_rng([seed, number]))
        parts[role], rest = rest.select(cut), rest.select(kept)
    return {"train": rest, **parts}


def _is_one_table(data: str | Path) -> bool:
    """Tell a file or a saved folder from a folder of splits and from a known name."""
    return Path(data).is_file() or is_saved(data)


def remembered(read: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments by which an estimator remembers reading options.

    Parameters
    ----------
    read
        Reading options.
    """
    columns = {_COLUMNS[key]: value for key, value in read.items() if key in _COLUMNS}
    window = read.get("window")
    return {"columns": columns or None, "window": tuple(window) if isinstance(window, list) else window}


def reading(model: PointProcess) -> dict[str, Any]:
    """Return the reading options that a fitted model remembers.

    Parameters
    ----------
    model
        A fitted point process.
    """
    names = {column: key for key, column in _COLUMNS.items()}
    options = {names[column]: name for column, name in (model.columns or {}).items()}
    usual = inspect.signature(type(model).__init__).parameters["window"].default
    return (
        options
        if isinstance(model.window, str) and model.window == usual
        else {**options, "window": model.window}
    )


def load_new(
    model: PointProcess,
    data: str | Path,
    split: str,
    into: Path | None = None,
    usual: Mapping[str, Any] | None = None,
    /,
    **read: Any,
) -> Sequences:
    """Load data for a fitted model, with its types.

    Parameters
    ----------
    model
        A fitted point process.
    data, split, read
        As in :func:`load_split`. For a file or folder the reading options replace those that the model remembers.
    into
        Folder where the events of a Parquet file are put, so that they need not fit in memory; None reads them into it.
    usual
        Reading options that stand unless others are given, as those of the model's run. Like those that the model
        remembers they are for tables: a folder of saved sequences takes but types from them.

    Raises
    ------
    DataError
        The data cannot be used, or hold types that the model does not know.
    ParameterError
        There is no such reading option.
    """
    check_names(read, reading_options(), "a reading option")
    known = {"labels": model.labels_, "unknown": model.unknown}
    options = {**known, **(reading(model) if catalog.is_on_disk(data) else {}), **(usual or {})}
    if _is_prepared(data, split):
        options = {name: options[name] for name in known}
    options |= read
    if into is not None and is_table_of_events(data, options.get("time", "t")):
        return Sequences.prepare(data, into, **options)
    return load_split(data, split, **options)


def _is_prepared(data: str | Path, split: str) -> bool:
    """Tell whether a split is read from saved sequences, whose windows and times are settled."""
    path = Path(data)
    if path.is_dir() and catalog.is_on_disk(path) and not is_saved(path):
        return any(is_saved(found) for found in EventSet.split_files(path, split))
    return is_saved(path)
