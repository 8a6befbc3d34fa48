"""Forecasts beside the events they are for: on the user's clock, with ids and labels as the user gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from seqattn.data.batches import EventBatch
from seqattn.data.clock import Clock, moment, to_numbers
from seqattn.data.sequences import Sequences
from seqattn.data.table import column_of
from seqattn.errors import DataError, ParameterError
from seqattn.hawkes.forecast import NextEvent, next_event
from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.metrics import EventForecasts

# Numbers of rows, and what stands there by the names of the columns.
Part = tuple[NDArray[np.int64], dict[str, NDArray[Any]]]

_NAMES = {"seq_id": "seq", "t": "time", "k": "type"}


def reading_names(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return an estimator's column names as the reading options of :class:`seqattn.Sequences`."""
    for name in columns or {}:
        if name not in _NAMES:
            raise ParameterError(f"columns has the key {name!r}. Allowed keys: {sorted(_NAMES)}.")
    return {_NAMES[name]: column for name, column in (columns or {}).items()}


def check_begun(sequences: Sequences, at: NDArray[np.float64]) -> None:
    """Refuse times before the beginning of a sequence's window."""
    if len(sequences) and at.size and not at.min() >= sequences.start.max():
        row, show = int(sequences.start.argmax()), sequences.clock.show
        raise DataError(
            f"Time {show(at.min())} is before the window of sequence {sequences.ids[row]}, which begins at "
            f"{show(sequences.start[row])}. Ask for times from there on."
        )


def check_levels(levels: float | Sequence[float]) -> tuple[float, ...]:
    """Return quantile levels, checked to lie between 0 and 1 and to differ."""
    many = tuple(float(level) for level in np.atleast_1d(np.asarray(levels, dtype=float)))
    for level in many:
        if not 0 < level < 1:
            raise ParameterError(f"Quantile level {level!r} is not between 0 and 1.")
    if len(set(many)) < len(many):
        raise ParameterError(f"Quantile levels {many} repeat. Give each level once.")
    return many


def previous_times(sequences: Sequences) -> NDArray[np.float64]:
    """Return for each event the time of the one before it, or of the window's beginning."""
    previous = np.empty(sequences.n_events)
    previous[1:] = sequences.times[:-1]
    full = np.flatnonzero(sequences.lengths)
    previous[sequences.offsets[:-1][full]] = sequences.start[full]
    return previous


def last_times(sequences: Sequences) -> NDArray[np.float64]:
    """Return the time of each sequence's last event, or the beginning of its window."""
    last = np.array(sequences.start, dtype=np.float64)
    full = np.flatnonzero(sequences.lengths)
    last[full] = sequences.times[sequences.offsets[1:][full] - 1]
    return last


def present(sequences: Sequences, now: Any) -> NDArray[np.float64]:
    """Return the present of each sequence, checked not to lie before its last event."""
    if now is None:
        return np.asarray(sequences.end, dtype=np.float64)
    given = float_times(sequences.clock, now, "now")
    if len(given) not in (1, len(sequences)):
        raise DataError(
            f"now holds {len(given)} times for {len(sequences)} sequences. Give one, or one each."
        )
    at, last = np.broadcast_to(given, len(sequences)).astype(np.float64), last_times(sequences)
    if not np.isfinite(at).all():
        raise DataError("now is missing or infinite. Give a finite time.")
    if (at < last).any():
        row, show = int(np.flatnonzero(at < last)[0]), sequences.clock.show
        known = "last event" if sequences.lengths[row] else "beginning of the window"
        raise DataError(
            f"now={show(at[row])} is before the {known} of sequence {sequences.ids[row]} at {show(last[row])}. "
            "Give a later time, or cut the history."
        )
    return at


def float_times(clock: Clock, times: Any, what: str) -> NDArray[np.float64]:
    """Return one or many times as numbers on a clock."""
    if isinstance(times, np.datetime64):
        times = np.array([times])
    if isinstance(times, pl.Series) or np.ndim(times):
        return to_numbers(column_of(what, times), clock, what)
    return np.array([moment(times, clock, what)])


def empty_columns(n: int, levels: tuple[float, ...]) -> dict[str, NDArray[Any]]:
    """Return the columns of a forecast table, to be filled from the parts of the batches."""
    names = ["t_mean", "t_median", *(f"t_q{level!r}" for level in levels)]
    columns: dict[str, NDArray[Any]] = {name: np.empty(n) for name in names}
    return columns | {"k": np.empty(n, dtype=np.int64), "p": np.empty(n), "scored": np.zeros(n, dtype=bool)}


def forecast_columns(
    answer: NextEvent, origin: NDArray[np.float64], scale: float, levels: tuple[float, ...]
) -> dict[str, NDArray[Any]]:
    """Return forecasts as columns of a table, times counted from ``origin`` in the user's unit."""
    columns = {
        "t_mean": origin + answer.mean.cpu().numpy() * scale,
        "t_median": origin + answer.median.cpu().numpy() * scale,
    }
    for place, level in enumerate(levels):
        columns[f"t_q{level!r}"] = origin + answer.quantiles[:, place].cpu().numpy() * scale
    best = answer.type_probability.max(1)
    return columns | {"k": best.indices.cpu().numpy(), "p": best.values.cpu().numpy()}


def fill(columns: dict[str, NDArray[Any]], parts: list[Part]) -> None:
    """Write parts, each with the numbers of its rows, into the columns."""
    for rows, values in parts:
        for name, column in values.items():
            columns[name][rows] = column


def forecast_frame(
    sequences: Sequences, rows: NDArray[np.int64], columns: dict[str, NDArray[Any]]
) -> pl.DataFrame:
    """Return forecasts as a table, ids, labels and dates as the user gave them."""
    series = []
    for name, values in columns.items():
        if name.startswith("t_"):
            series.append(sequences.time_series(values, name))
        elif name == "k":
            series.append(sequences.label_series(values))
        else:
            series.append(pl.Series(name, values))
    return sequences.id_columns(rows).with_columns(series)


def forecast_events(
    batch: EventBatch, intensity: Intensity, tokens: torch.Tensor, scale: float
) -> EventForecasts:
    """Forecast the events that end the intervals after ``tokens``, and compare."""
    state, until, kind = intensity.select(tokens), batch.until[tokens], batch.target[tokens]
    answer = next_event(state, observed=until)
    probability = answer.type_probability
    best = probability.max(1)
    own = probability.gather(1, kind[:, None])
    return EventForecasts(
        gap=until.double().cpu().numpy() * scale,
        mean=answer.mean.cpu().numpy() * scale,
        median=answer.median.cpu().numpy() * scale,
        crps=answer.crps.cpu().numpy() * scale,
        kind=kind.cpu().numpy(),
        guess=best.indices.cpu().numpy(),
        p_guess=best.values.cpu().numpy(),
        p_kind=own[:, 0].cpu().numpy(),
        squares=(probability**2).sum(1).cpu().numpy(),
        rank=1 + (probability > own).sum(1).cpu().numpy(),
        guess_at_time=state.log_rates(until).argmax(1).cpu().numpy(),
    )


def event_tokens(batch: EventBatch, sequences: Sequences) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return the tokens that are followed by an event, and those events' places in the flat columns."""
    tokens = (batch.target >= 0).nonzero()[:, 0]
    counts = (batch.offsets[1:] - batch.offsets[:-1]).long()
    rows = torch.repeat_interleave(batch.rows, counts)[tokens].cpu().numpy()
    return tokens, np.asarray(sequences.offsets[:-1])[rows] + batch.position[tokens].cpu().numpy()


def window_of_fit(window: Any, sequences: Sequences) -> Any:
    """Return the window that later data are read with: ``"max"`` stands for the largest time seen in fit."""
    start, end = window if isinstance(window, tuple | list) else (None, window)
    if not (isinstance(end, str) and end == "max") or not len(sequences):
        return window
    return start, sequences.time_series([float(sequences.end.max())])[0]
