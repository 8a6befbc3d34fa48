"""Results about influence: matrices and curves that print and draw themselves, and how near the truth they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse, stats

from seqattn.data.labels import series_of_labels
from seqattn.errors import ParameterError
from seqattn.hawkes.pictures import draw_curve, draw_matrix

# A matrix with more entries than this is printed as its largest ones.
_MOST_PRINTED = 100
_LARGEST = 20


@dataclass(frozen=True, eq=False)
class EffectMatrix:
    """How many more events of each type a model expects because of one event; print it or plot it.

    Parameters
    ----------
    values
        Entry (k, b): extra expected events of type k within the horizon per event of type b. Negative where b
        inhibits k, nan where no event of type b could be used.
    standard_error
        Of the means, taking the events as independent; nan below two events.
    n_events
        Number of events that each column averages.
    labels, causes
        Types of the rows (what is expected) and of the columns (what happened).
    horizon
        Time after an event in which others are counted.
    unit
        Time unit, ``"s"`` for dates, else None.
    """

    values: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    n_events: NDArray[np.int64]
    labels: tuple[Any, ...]
    causes: tuple[Any, ...]
    horizon: float
    unit: str | None

    def to_frame(self) -> pl.DataFrame:
        """Return a table with one row per pair: cause, target, effect, standard_error and n_events."""
        counts = np.broadcast_to(self.n_events, self.values.shape)
        columns = {"effect": self.values, "standard_error": self.standard_error, "n_events": counts}
        return _long({"target": self.labels, "cause": self.causes}, columns)

    def __str__(self) -> str:
        title = f"Extra events expected within {self.horizon:g} {self.unit or 'time units'} per event"
        return _text(title, self.values, ("target", self.labels), ("cause", self.causes))

    def plot(self, path: str | Path) -> Path:
        """Draw the matrix with colours on both sides of zero, and save it as PNG.

        Parameters
        ----------
        path
            File to write.

        Raises
        ------
        MissingDependencyError
            matplotlib is not installed.
        """
        return draw_matrix(
            self.values,
            path,
            title=f"Effect of one event within {self.horizon:g} {self.unit or 'time units'}",
            rows=("expected type", self.labels),
            columns=("type of the event", self.causes),
            scale="extra expected events per event",
            is_signed=True,
        )


@dataclass(frozen=True, eq=False)
class InfluenceKernel:
    """By how much one event raises an intensity, as a curve over the time since then; plot it.

    Parameters
    ----------
    lag
        Time since the event.
    value
        Mean change of the intensity, events per time unit; negative for inhibition.
    standard_error
        Of the means, taking the events as independent; nan for one event.
    n_events
        Number of events that were averaged.
    target, cause
        Type whose intensity changes, and type of the event.
    unit
        Time unit, ``"s"`` for dates, else None.
    """

    lag: NDArray[np.float64]
    value: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    n_events: int
    target: Any
    cause: Any
    unit: str | None

    def to_frame(self) -> pl.DataFrame:
        """Return a table with one row per lag: lag, value and standard_error."""
        return pl.DataFrame({name: getattr(self, name) for name in ("lag", "value", "standard_error")})

    def plot(self, path: str | Path) -> Path:
        """Draw the curve with a band of two standard errors, and save it as PNG.

        Parameters
        ----------
        path
            File to write.

        Raises
        ------
        MissingDependencyError
            matplotlib is not installed.
        """
        unit = self.unit or "time unit"
        return draw_curve(
            self.lag,
            self.value,
            self.standard_error,
            path,
            title=f"Effect of type {self.cause} on type {self.target} (mean of {self.n_events:,} events)",
            across=f"time since the event ({self.unit or 'time units'})",
            up=f"change of the intensity (events per {unit})",
        )


@dataclass(frozen=True, eq=False)
class AttentionInfluence:
    """How much attention tokens of one type pay to those of another; print it or plot it.

    Parameters
    ----------
    values
        Entry (a, b): attention of events of type a to events of type b before them or themselves, divided by what
        evenly spread attention would pay. 1 says nothing, 2 is twice as much; nan where b was never in reach of a.
    n_pairs
        Number of pairs of events that each entry rests on.
    labels
        Types of rows and columns.
    weights
        Which weights were used, in words.
    """

    values: NDArray[np.float64]
    n_pairs: NDArray[np.int64]
    labels: tuple[Any, ...]
    weights: str

    def to_frame(self) -> pl.DataFrame:
        """Return a table with one row per pair: query, key, attention and n_pairs."""
        columns = {"attention": self.values, "n_pairs": self.n_pairs}
        return _long({"query": self.labels, "key": self.labels}, columns)

    def __str__(self) -> str:
        title = f"Attention ({self.weights}); 1 is an even spread"
        return _text(title, self.values, ("query", self.labels), ("key", self.labels))

    def plot(self, path: str | Path) -> Path:
        """Draw the matrix, and save it as PNG.

        Parameters
        ----------
        path
            File to write.

        Raises
        ------
        MissingDependencyError
            matplotlib is not installed.
        """
        return draw_matrix(
            self.values,
            path,
            title=f"Attention between types ({self.weights})",
            rows=("type that attends", self.labels),
            columns=("type attended to", self.labels),
            scale="attention / even spread",
            is_signed=False,
        )


def compare_with_truth(
    effect: EffectMatrix,
    truth: NDArray[np.float64],
    attention: AttentionInfluence | None = None,
) -> dict[str, float]:
    r"""Return how near the matrices of a model are to those of the Hawkes process behind the data.

    Pairs whose cause never happened are left out.

    Parameters
    ----------
    effect
        What the model believes.
    truth
        Direct offspring of type k within the horizon h per event of type b, :math:`\int_0^h \phi_{kb}(y)\, dy`, in the
        order of the labels; :math:`A_{kb} (1 - e^{-\beta h})` for an exponential process.
    attention
        Attention of the same model, if it has any.

    Returns
    -------
    Dictionary with ``relative_error`` (Frobenius norm of the difference by that of the truth), ``spearman`` (rank
    correlation of the entries), ``n_entries``, and ``attention_spearman`` where attention is given. A correlation
    with a constant is nan, and so is the error relative to a truth of zeros.

    Raises
    ------
    ParameterError
        The matrix has another shape than the effects.
    """
    columns = [effect.labels.index(cause) for cause in effect.causes]
    size = len(effect.labels)
    if np.shape(truth) != (size, size):
        raise ParameterError(
            f"The truth has shape {np.shape(truth)} for {size} types. Give one row and one column per type."
        )
    truth = np.asarray(truth, dtype=float)[:, columns]
    known = np.isfinite(effect.values)
    size_of_truth = np.linalg.norm(truth[known])
    error = np.linalg.norm((effect.values - truth)[known]) / size_of_truth if size_of_truth else np.nan
    result = {
        "relative_error": float(error),
        "spearman": _rank_correlation(effect.values, truth),
        "n_entries": int(known.sum()),
    }
    if attention is not None:
        result["attention_spearman"] = _rank_correlation(attention.values[:, columns], truth)
    return result


def _rank_correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    known = np.isfinite(left) & np.isfinite(right)
    one, other = left[known], right[known]
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(stats.spearmanr(one, other).statistic)


class Moments:
    """Running means of vectors in groups, with their standard errors (Chan, Golub, LeVeque 1979).

    Parameters
    ----------
    shape
        Number of groups and width of the vectors.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.count = np.zeros(shape[0], dtype=np.int64)
        self._mean, self._squares = np.zeros(shape), np.zeros(shape)

    def add(self, group: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Take in vectors, each with the number of its group."""
        present, place = np.unique(group, return_inverse=True)
        new = np.bincount(place)
        member = sparse.csr_matrix((np.ones(len(place)), (place, np.arange(len(place)))))
        mean = member @ values / new[:, None]
        squares = member @ (values - mean[place]) ** 2
        old = self.count[present]
        share = (new / (old + new))[:, None]
        gap = mean - self._mean[present]
        self._mean[present] += gap * share
        self._squares[present] += squares + gap**2 * share * old[:, None]
        self.count[present] += new

    def mean(self) -> NDArray[np.float64]:
        """Return the mean of each group, nan where nothing was taken in."""
        return np.where(self.count[:, None] > 0, self._mean, np.nan)

    def standard_error(self) -> NDArray[np.float64]:
        """Return the standard error of each mean, nan below two vectors."""
        count = self.count[:, None]
        variance = self._squares / np.maximum(count - 1, 1)
        return np.where(count > 1, np.sqrt(variance / np.maximum(count, 1)), np.nan)


def _long(axes: Mapping[str, Sequence[Any]], columns: Mapping[str, NDArray[Any]]) -> pl.DataFrame:
    """Return matrices as a table with one row per entry, rows of the matrix first."""
    (row_name, rows), (column_name, names) = axes.items()
    row, column = np.divmod(np.arange(len(rows) * len(names)), max(1, len(names)))
    series = [
        series_of_labels(rows).gather(row).alias(row_name),
        series_of_labels(names).gather(column).alias(column_name),
        *(pl.Series(name, values.ravel()) for name, values in columns.items()),
    ]
    return pl.DataFrame(series)


def _text(
    title: str,
    values: NDArray[np.float64],
    rows: tuple[str, Sequence[Any]],
    columns: tuple[str, Sequence[Any]],
) -> str:
    """Print a matrix, or its largest entries where it is large."""
    if values.size <= _MOST_PRINTED:
        cells = [[f"{rows[0]} \\ {columns[0]}", *map(str, columns[1])]]
        cells += [
            [str(name), *(f"{value:.4f}" for value in line)]
            for name, line in zip(rows[1], values, strict=True)
        ]
    else:
        order = np.argsort(-np.abs(np.nan_to_num(values)), axis=None, kind="stable")[:_LARGEST]
        title += f"; the {_LARGEST} largest of {values.size:,} entries"
        cells = [[columns[0], rows[0], ""]]
        for row, column in zip(*np.unravel_index(order, values.shape), strict=True):
            cells.append([str(columns[1][column]), str(rows[1][row]), f"{values[row, column]:.4f}"])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([f"{title}:", *lines])
