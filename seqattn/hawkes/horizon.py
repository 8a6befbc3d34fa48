r"""Scores of forecasts of many events: what happened in a window beside what was forecast for it.

A window is a pair (times, types) of the events that happened in it; both sides are cut to the same horizon. Times are
in the user's unit, types are codes from 0.

References
----------
Karpukhin, Shipilov, Savchenko (2024), HoTPP benchmark: are we good at the long horizon events forecasting?, arXiv
2406.14341. Mei, Qin, Eisner (2019), Imputing missing events in continuous-time event streams, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from seqattn.errors import DataError, ParameterError, suggest

AVERAGES = ("macro", "weighted")


def optimal_transport_distance(
    true: tuple[Any, Any], forecast: tuple[Any, Any], cost: float | tuple[float, float]
) -> float:
    r"""Return what it costs at least to turn a forecast into the events that happened.

    .. math:: \min_M \sum_{(i, j) \in M} |t_i - \hat t_j| + c_{\mathrm{ins}} (n - |M|)
        + c_{\mathrm{del}} (\hat n - |M|)

    over all sets M of pairs of events of the same type in which no event stands twice. A forecast event can be moved
    to a true one, deleted, and a missing one inserted; moving never costs more than deleting and inserting.

    Parameters
    ----------
    true, forecast
        Times (user's unit, in any order) and types of the events of one window.
    cost
        Cost of a missing and of a superfluous event, in time units: one number for both, or (insert, delete).

    Returns
    -------
    The distance, in the user's time unit; 0 if the forecast is exact. Average it over windows for the figure of a data
    set, with the same ``cost`` for all models.

    Raises
    ------
    DataError
        Times and types do not fit together, or a time is not finite.
    ParameterError
        A cost is negative or not finite.

    Notes
    -----
    For each type this is an edit distance along the time axis: crossing pairs can be uncrossed without a loss, since
    \|a - d\| + \|b - c\| >= \|a - c\| + \|b - d\| for a <= b, c <= d. It is therefore exact in O(n m) steps. HoTPP
    compares the next k events on both sides, so that n = m = k there; windows in time give any n and m.

    Examples
    --------
    >>> optimal_transport_distance(([1.0, 5.0], [0, 1]), ([1.5, 9.0], [0, 0]), cost=2.0)
    4.5
    """
    insert, delete = check_costs(cost)
    (times, kinds), (moved, guesses) = _events(true, "true"), _events(forecast, "forecast")
    distance = 0.0
    for kind in np.union1d(kinds, guesses):
        own, other = np.sort(times[kinds == kind]), np.sort(moved[guesses == kind])
        distance += _edit_distance(own, other, insert, delete)
    return distance


def check_costs(cost: float | tuple[float, float]) -> tuple[float, float]:
    """Return the costs of an insertion and of a deletion."""
    pair = cost if isinstance(cost, tuple) else (cost, cost)
    if not all(np.isfinite(value) and value >= 0 for value in pair):
        raise ParameterError(
            f"cost={cost!r} must be a time of 0 or more, or a pair of them (insert, delete)."
        )
    return float(pair[0]), float(pair[1])


def _edit_distance(
    true: NDArray[np.float64], forecast: NDArray[np.float64], insert: float, delete: float
) -> float:
    """Return the cost of the best order-preserving matching of two sorted series."""
    inserted = insert * np.arange(len(true) + 1)
    best = inserted
    for time in forecast:
        kept = best + delete
        kept[1:] = np.minimum(kept[1:], best[:-1] + np.abs(true - time))
        # A row may still insert: best[j] = min over i <= j of kept[i] + (j - i) insert.
        best = inserted + np.minimum.accumulate(kept - inserted)
    return float(best[-1])


def temporal_map(
    true: Sequence[tuple[Any, Any]],
    forecast: Sequence[tuple[Any, Any]],
    tolerances: float | Sequence[float],
    average: str = "macro",
) -> float:
    r"""Return the temporal mean average precision (T-mAP) of forecasts with scores for every type.

    For one type and tolerance, events of all windows are called in the order of their scores. At a score s,

    .. math:: \mathrm{precision}(s) = \frac{m(s)}{\#\{\text{scores} \ge s\}}, \qquad
        \mathrm{recall}(s) = \frac{m(s)}{\text{true events of the type}},

    m(s) being the size of the largest matching, within each window, of forecast events with scores of at least s to
    true events of the type that are no further away than the tolerance. The average precision is the sum of
    precision(s) times the gain in recall over the distinct scores; unmatched true events keep the recall below 1.

    Parameters
    ----------
    true
        For each window the times and types of its events.
    forecast
        For each window the times of the forecast events and their scores, of shape (events, types), higher for more
        probable types: every forecast event is a candidate for every type. For forecasts with one type per event, give
        1 to that type and 0 (or less than any other score) to the rest.
    tolerances
        Largest distance in time at which events match, in the user's unit; the average is over all of them.
    average
        ``"macro"``: plain mean over the types that happened. ``"weighted"``: by how often they happened.

    Returns
    -------
    A number in [0, 1].

    Raises
    ------
    DataError
        The windows do not fit together, no event happened in any, or a value is not finite.
    ParameterError
        A tolerance is negative, or the average unknown.

    Notes
    -----
    Matching and averaging are those of HoTPP, whose T-mAP is the macro average. Three things differ: equal scores
    count at once, so that no order decides; types that never happened are left out instead of counting as 0; a type
    all of whose candidates are matched keeps its precision of 1, where HoTPP's program sets it to 0.

    Examples
    --------
    >>> true = [([1.0, 5.0], [0, 1])]
    >>> forecast = [([1.2, 5.5, 8.0], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.6]])]
    >>> temporal_map(true, forecast, tolerances=[0.1, 1.0])
    0.5
    """
    if average not in AVERAGES:
        raise ParameterError(
            f"average={average!r} is unknown. Use one of {AVERAGES}.{suggest(average, AVERAGES)}"
        )
    many = check_tolerances(tolerances)
    precisions = np.array([average_precisions(true, forecast, tolerance) for tolerance in many])
    counts = np.bincount(np.concatenate([np.asarray(kinds, dtype=np.int64) for _, kinds in true]))
    happened = np.flatnonzero(counts)
    weights = counts[happened] if average == "weighted" else None
    return float(np.average(precisions[:, happened], axis=1, weights=weights).mean())


def check_tolerances(tolerances: float | Sequence[float]) -> list[float]:
    """Return one or many tolerances as a list."""
    many = np.atleast_1d(np.asarray(tolerances, dtype=float))
    if not many.size or not (np.isfinite(many) & (many >= 0)).all():
        raise ParameterError(f"tolerances={tolerances!r} must be times of 0 or more, at least one.")
    return [float(tolerance) for tolerance in many]


def average_precisions(
    true: Sequence[tuple[Any, Any]], forecast: Sequence[tuple[Any, Any]], tolerance: float
) -> NDArray[np.float64]:
    """Return the average precision of each type at one tolerance, as :func:`temporal_map` defines it.

    Parameters
    ----------
    true, forecast
        As in :func:`temporal_map`.
    tolerance
        Largest distance in time at which events match, in the user's unit.

    Returns
    -------
    Shape (types,); nan for types that never happened.

    Raises
    ------
    DataError
        As in :func:`temporal_map`.

    Examples
    --------
    >>> average_precisions([([1.0], [0])], [([1.0, 2.0], [[0.9, 0.5], [0.1, 0.4]])], 0.5).tolist()
    [1.0, nan]
    """
    windows = _scored_windows(true, forecast)
    matched = np.concatenate([_matched(*window, tolerance) for window in windows])
    scores = np.concatenate([window[3] for window in windows])
    counts = np.bincount(np.concatenate([window[1] for window in windows]), minlength=scores.shape[1])
    return np.array(
        [
            _average_precision(scores[:, k], matched[:, k], n) if n else np.nan
            for k, n in enumerate(counts.tolist())
        ]
    )


def _average_precision(scores: NDArray[np.float64], matched: NDArray[np.bool_], n: int) -> float:
    """Return the area under the precision-recall steps, one step per distinct score."""
    if not len(scores):
        return 0.0
    order = np.argsort(-scores, kind="stable")
    last = np.concatenate([np.diff(scores[order]) != 0, [True]])
    hits = np.cumsum(matched[order])[last]
    called = (np.flatnonzero(last) + 1).astype(float)
    return float((np.diff(hits, prepend=0) * hits / called).sum() / n)


def _matched(
    times: NDArray[np.float64],
    kinds: NDArray[np.int64],
    called: NDArray[np.float64],
    scores: NDArray[np.float64],
    tolerance: float,
) -> NDArray[np.bool_]:
    """Return which forecast events of a window are matched, for each type.

    Sets of forecast events that can be matched at once form a matroid, so that the matching of the largest total of
    any increasing positive function of the scores has the most members above every score: ranks serve.
    """
    answer = np.zeros(scores.shape, dtype=bool)
    near = np.abs(called[:, None] - times) <= tolerance
    for kind in np.unique(kinds):
        rank = 1 + np.unique(scores[:, kind], return_inverse=True)[1].reshape(-1)
        value = rank[:, None] * near[:, kinds == kind]
        row, column = linear_sum_assignment(value, maximize=True)
        answer[row[value[row, column] > 0], kind] = True
    return answer


def _scored_windows(
    true: Sequence[tuple[Any, Any]], forecast: Sequence[tuple[Any, Any]]
) -> list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]:
    """Return times, types, forecast times and scores of each window, checked to fit together."""
    if len(true) != len(forecast):
        raise DataError(f"There are {len(true)} true windows and {len(forecast)} forecasts. Give one each.")
    events = [_events(window, f"true window {place}") for place, window in enumerate(true)]
    scored = [_forecast_events(window, place) for place, window in enumerate(forecast)]
    if not sum(len(times) for times, _ in events):
        raise DataError("No event happened in any window, so there is nothing to find. Give longer windows.")
    widths = {scores.shape[1] for _, scores in scored}
    most = 1 + max(int(kinds.max(initial=-1)) for _, kinds in events)
    if len(widths) > 1 or most > min(widths):
        raise DataError(
            f"Scores have {sorted(widths)} columns, but types up to {most - 1} happened. Give one column per type."
        )
    return [(*event, *score) for event, score in zip(events, scored, strict=True)]


def _events(window: tuple[Any, Any], what: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    times, kinds = np.asarray(window[0], dtype=float), np.asarray(window[1])
    if times.ndim != 1 or times.shape != kinds.shape:
        raise DataError(
            f"Times and types of {what} have shapes {times.shape} and {kinds.shape}. Give one type per time."
        )
    if not np.isfinite(times).all():
        raise DataError(f"A time of {what} is missing or infinite. Leave the event out.")
    wrong = [kind for kind in kinds.tolist() if not isinstance(kind, int) or kind < 0]
    if wrong:
        raise DataError(
            f"Types of {what} are not codes from 0, but for example {wrong[0]!r}. Code the labels."
        )
    return times, kinds.astype(np.int64)


def _forecast_events(window: tuple[Any, Any], place: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    times, scores = np.asarray(window[0], dtype=float), np.asarray(window[1], dtype=float)
    if times.ndim != 1 or scores.ndim != 2 or len(times) != len(scores):
        raise DataError(
            f"Times and scores of forecast {place} have shapes {times.shape} and {scores.shape}. Scores need the "
            "shape (events, types), also where there is no event."
        )
    if not (np.isfinite(times).all() and np.isfinite(scores).all()):
        raise DataError(f"A time or score of forecast {place} is missing or infinite. Leave the event out.")
    return times, scores
