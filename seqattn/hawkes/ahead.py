"""Forecasts of everything within a horizon: paths that go on from held-out histories, beside what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from seqattn.data.sequences import Sequences
from seqattn.errors import DataError
from seqattn.hawkes.horizon import (
    average_precisions,
    check_costs,
    check_tolerances,
    optimal_transport_distance,
)
from seqattn.hawkes.reading import check_whole
from seqattn.hawkes.simulating import Paths, Simulating, check_horizon

# Distances in time at which events match, as shares of the horizon.
_TOLERANCES = (0.05, 0.1, 0.2)


class LongHorizon(Simulating):
    """How well a point process forecasts all events of a span of time."""

    def evaluate_horizon(
        self,
        X: Any,
        horizon: float,
        *,
        n_paths: int = 20,
        cuts: int = 1,
        cost: float | tuple[float, float] | None = None,
        tolerances: float | Sequence[float] | None = None,
        max_events: int | None = None,
        method: str = "thinning",
        baselines: bool = True,
        random_state: Any = None,
    ) -> dict[str, Any]:
        """Return how well sampled paths forecast all events within a horizon, beside the baselines.

        Held-out sequences are cut into a history and the horizon after it; paths that go on from the history are
        compared with what happened.

        Parameters
        ----------
        X
            Held-out sequences, as in :meth:`log_likelihood`.
        horizon
            Length of what is forecast, in the user's unit (seconds if times are dates).
        n_paths
            Paths drawn after each history.
        cuts
            Cuts per sequence, evenly spread so that each horizon lies inside the window; the same for all models.
        cost
            Cost of a missing and of a superfluous event in time units, one number or (insert, delete); ``None`` for
            half the horizon each: no move inside it then costs more than deleting and inserting.
        tolerances
            Largest distances in time at which events match; ``None`` for 5 %, 10 % and 20 % of the horizon.
        max_events
            Most events of a path; ``None`` stands for 100,000.
        method
            As in :meth:`sample`.
        baselines
            Whether to score the baselines that ``fit`` trained too, and the forecast that nothing happens.
        random_state
            Seed or generator of the paths; every model draws with the same seed.

        Returns
        -------
        Dictionary with ``horizon``, ``unit`` (``"s"`` if times are dates, else None), ``n_windows``, ``n_left_out``
        (sequences shorter than the horizon), ``n_paths``, ``cuts``, ``cost`` (insert, delete), ``tolerances``,
        ``n_events`` and ``events_true`` (of all windows, and per window); ``otd`` (mean over paths and windows, in
        time units, lower is better), ``t_map`` (in [0, 1], higher is better), ``events_forecast`` (per path) and
        ``n_truncated`` (paths that reached ``max_events``), see :func:`score_paths`; and
        ``baselines``: name to the last four, with ``no_events`` for the forecast that nothing happens.

        Raises
        ------
        DataError
            No window is as long as the horizon, or the data cannot be read.
        ParameterError
            A value is not allowed.

        Notes
        -----
        The distance rewards caution: where a cost is small beside the errors in time, forecasting nothing can have the
        least distance. Look at it beside ``no_events``, and at both scores. With a window that ends at its last event
        sequences that fell silent are too short to be cut, which favours models that forecast many events.

        Examples
        --------
        >>> from seqattn import PoissonProcess
        >>> rows = [([1.0, 2.0, 7.0], ["a", "b", "a"]), ([4.0], ["a"])]
        >>> found = PoissonProcess(window=(0.0, 10.0)).fit(rows).evaluate_horizon(rows, 5.0, random_state=0)
        >>> found["n_windows"], found["events_true"], found["baselines"]["no_events"]["otd"]
        (2, 1.0, 2.5)
        """
        check_whole("cuts", cuts, 1)
        sequences = self._read_new(X)
        windows = cut_windows(sequences, horizon, cuts)
        costs = check_costs(horizon / 2 if cost is None else cost)
        usual = [share * horizon for share in _TOLERANCES]
        many = check_tolerances(usual if tolerances is None else tolerances)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        options: dict[str, Any] = {"max_events": max_events, "method": method, "random_state": seed}

        def scores(model: LongHorizon) -> dict[str, Any]:
            drawn = model.sample(n_paths, horizon=horizon, history=windows.histories, **options)
            found = score_paths(windows.true, _by_window(drawn, n_paths), costs, many)
            return {**found, "n_truncated": int(np.asarray(drawn.truncated).sum())}

        n_windows, n_events = len(windows.true), sum(len(times) for times, _ in windows.true)
        result: dict[str, Any] = {
            "horizon": windows.horizon,
            "unit": sequences.unit,
            "n_windows": n_windows,
            "n_left_out": windows.n_left_out,
            "n_paths": n_paths,
            "cuts": cuts,
            "cost": list(costs),
            "tolerances": many,
            "n_events": n_events,
            "events_true": n_events / n_windows,
            **scores(self),
        }
        if baselines:
            nothing = score_paths(windows.true, [[([], [])]] * n_windows, costs, many)
            others = {name: scores(model) for name, model in getattr(self, "baselines_", {}).items()}
            result["baselines"] = {**others, "no_events": {**nothing, "n_truncated": 0}}
        return result


def _by_window(paths: Paths, n_paths: int) -> list[list[tuple[NDArray[np.float64], NDArray[Any]]]]:
    """Return the events of the paths after each history, with times since its end."""
    since = [
        (times - start, kinds)
        for start, (times, kinds) in zip(paths.start, map(paths.sequence, range(len(paths))), strict=True)
    ]
    return [since[first : first + n_paths] for first in range(0, len(since), n_paths)]


@dataclass(frozen=True)
class HeldOutWindows:
    """Histories, each with what happened within a horizon after its end.

    Parameters
    ----------
    histories
        Beginnings of sequences; the window of each ends at its cut.
    true
        Times since the cut and types of the events after it, for each history.
    horizon
        Length of all windows, in the user's unit.
    n_left_out
        Number of sequences with windows shorter than the horizon.
    """

    histories: Sequences
    true: list[tuple[NDArray[np.float64], NDArray[np.int64]]]
    horizon: float
    n_left_out: int


def cut_windows(sequences: Sequences, horizon: float, cuts: int) -> HeldOutWindows:
    """Cut sequences into histories and the horizon after each, so that all of it lies inside the window.

    Parameters
    ----------
    sequences
        Held-out data.
    horizon
        Length of what is forecast, in the user's unit.
    cuts
        Cuts per sequence, evenly spread over the places that leave room for the horizon: one cut stands in the middle
        of them. They depend on the windows only, so all models meet the same ones. Horizons of neighbouring cuts
        may overlap.

    Raises
    ------
    DataError
        No window is as long as the horizon.
    ParameterError
        The horizon is not positive.
    """
    check_horizon(horizon)
    room = np.asarray(sequences.end - sequences.start - horizon)
    fits = np.flatnonzero(room >= 0)
    if not len(fits):
        longest = float((sequences.end - sequences.start).max()) if len(sequences) else 0.0
        raise DataError(
            f"No window is as long as horizon={horizon!r}; the longest has {longest!r}. Give a shorter horizon."
        )
    row = np.repeat(fits, cuts)
    share = np.tile((np.arange(cuts) + 0.5) / cuts, len(fits))
    whole, at = sequences.select(row), sequences.start[row] + share * room[row]
    owner = np.repeat(np.arange(len(row)), whole.lengths)
    known = whole.times <= at[owner]
    coming = ~known & (whole.times <= (at + horizon)[owner])
    bounds = np.cumsum(np.bincount(owner[coming], minlength=len(row)))[:-1]
    since = np.split((whole.times - at[owner])[coming], bounds)
    kinds = np.split(whole.types[coming].astype(np.int64), bounds)
    histories = replace(
        whole,
        times=whole.times[known],
        types=whole.types[known],
        offsets=np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(row)))]),
        end=at,
        ids=np.arange(len(row)),
        window="given",
    )
    return HeldOutWindows(
        histories, list(zip(since, kinds, strict=True)), float(horizon), len(sequences) - len(fits)
    )


def score_paths(
    true: Sequence[tuple[Any, Any]],
    paths: Sequence[Sequence[tuple[Any, Any]]],
    cost: float | tuple[float, float],
    tolerances: Sequence[float],
) -> dict[str, float | None]:
    """Return how well samples of paths forecast what happened.

    Parameters
    ----------
    true
        For each window the times and types of its events.
    paths
        For each window its sampled paths, of the same form; as many for all windows.
    cost
        As in :func:`optimal_transport_distance`.
    tolerances
        As in :func:`temporal_map`.

    Returns
    -------
    Dictionary with ``otd``: the mean of :func:`optimal_transport_distance` over windows and paths, in the user's unit.
    ``t_map``: the temporal mean average precision, macro average over the types that happened, mean over the
    tolerances; candidates and scores are those of :func:`consensus_events`, for each type by itself. None if nothing
    happened in any window. ``events_forecast``: mean number of events per path.

    Examples
    --------
    >>> score_paths([([1.0], [0])], [[([1.0], [0]), ([], [])]], cost=0.5, tolerances=[0.1])
    {'otd': 0.25, 't_map': 1.0, 'events_forecast': 0.5}
    """
    pairs = [(window, path) for window, sample in zip(true, paths, strict=True) for path in sample]
    return {
        "otd": float(np.mean([optimal_transport_distance(*pair, cost) for pair in pairs])),
        "t_map": _map_of_paths(true, paths, tolerances),
        "events_forecast": float(np.mean([len(path[0]) for _, path in pairs])),
    }


def _map_of_paths(
    true: Sequence[tuple[Any, Any]], paths: Sequence[Sequence[tuple[Any, Any]]], tolerances: Sequence[float]
) -> float | None:
    events = [_arrays(window) for window in true]
    pools = [_pooled(sample) for sample in paths]
    happened = np.unique(np.concatenate([kinds for _, kinds in events]))
    values = [
        _precision_of_type(kind, events, pools, len(paths[0]), tolerance)
        for tolerance in tolerances
        for kind in happened.tolist()
    ]
    return float(np.mean(values)) if values else None


def _pooled(sample: Sequence[tuple[Any, Any]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return times, types and numbers of the paths of all events of a sample."""
    events = [_arrays(path) for path in sample]
    owner = np.repeat(np.arange(len(events)), [len(times) for times, _ in events])
    return np.concatenate([times for times, _ in events]), np.concatenate([k for _, k in events]), owner


def _arrays(window: tuple[Any, Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return np.asarray(window[0], dtype=np.float64), np.asarray(window[1], dtype=np.int64)


def _precision_of_type(
    kind: int,
    events: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    pools: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]],
    n_paths: int,
    tolerance: float,
) -> float:
    """Return the average precision of one type, as if there were no other."""
    true, forecast = [], []
    for (times, kinds), (drawn, types, owner) in zip(events, pools, strict=True):
        own, chosen = times[kinds == kind], types == kind
        if len(own) or chosen.any():
            called, scores = consensus_events(drawn[chosen], owner[chosen], n_paths, tolerance)
            true.append((own, np.zeros(len(own), dtype=np.int64)))
            forecast.append((called, scores[:, None]))
    return float(average_precisions(true, forecast, tolerance)[0])


def consensus_events(
    times: Any, paths: Any, n_paths: int, tolerance: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what a sample of paths agrees on for one type: times, and the share of paths with an event there.

    The event with events of the most paths within the tolerance (the earliest of such) becomes a centre. It takes from
    each path the nearest event within the tolerance, and all of them become one, at their median. This goes on with the
    events that are left until there are none.

    Parameters
    ----------
    times
        Times of the events of all paths, in any order.
    paths
        To which path each belongs.
    n_paths
        Number of paths, those without events included.
    tolerance
        Largest distance in time from a centre, in the user's unit.

    Returns
    -------
    Times and scores in (0, 1], scores falling. Every event counts once, with the weight ``1 / n_paths``: the scores add
    up to the mean number of events per path.

    Examples
    --------
    >>> times, scores = consensus_events([1.0, 5.0, 1.2, 1.1, 8.0], [0, 0, 1, 2, 2], n_paths=4, tolerance=0.5)
    >>> times.tolist(), scores.tolist()
    ([1.1, 5.0, 8.0], [0.75, 0.25, 0.25])
    """
    at, owner = np.asarray(times, dtype=float), np.asarray(paths)
    order = np.argsort(at, kind="stable")
    at, number = at[order], np.unique(owner[order], return_inverse=True)[1].reshape(-1)
    low = np.searchsorted(at, at - tolerance, side="left")
    high = np.searchsorted(at, at + tolerance, side="right")
    # How many events of each path are near each event; kept up to date as events are taken.
    before = np.zeros((len(at) + 1, 1 + int(number.max(initial=-1))), dtype=np.int64)
    before[np.arange(len(at)) + 1, number] = 1
    before = before.cumsum(axis=0)
    near = before[high] - before[low]
    left, merged, shares = np.ones(len(at), dtype=bool), [], []
    while left.any():
        centre = int(np.where(left, (near > 0).sum(1), 0).argmax())
        around = low[centre] + np.flatnonzero(left[low[centre] : high[centre]])
        around = around[np.argsort(np.abs(at[around] - at[centre]), kind="stable")]
        members = around[np.unique(number[around], return_index=True)[1]]
        for event in members:
            near[low[event] : high[event], number[event]] -= 1
        left[members] = False
        merged.append(float(np.median(at[members])))
        shares.append(len(members) / n_paths)
    return np.array(merged), np.array(shares)


def horizon_columns(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], ahead: Mapping[str, Any]
) -> tuple[list[str], list[list[Any]]]:
    """Return a table of models with columns for the horizon, and a row for the forecast that nothing happens.

    Parameters
    ----------
    headers, rows
        The table; each row begins with the name of a model, the first row is the evaluated one.
    ahead
        What :meth:`LongHorizon.evaluate_horizon` returned.
    """
    scores = [ahead, *ahead["baselines"].values()]
    more = [[name, *[None] * (len(headers) - 1)] for name in list(ahead["baselines"])[len(rows) - 1 :]]
    table = [[*row, score["otd"], score["t_map"]] for row, score in zip([*rows, *more], scores, strict=True)]
    return [*headers, "OTD", "T-mAP"], table


def horizon_caption(ahead: Mapping[str, Any]) -> str:
    """Return what the columns of the horizon mean.

    Parameters
    ----------
    ahead
        What :meth:`LongHorizon.evaluate_horizon` returned.
    """
    tolerances = ", ".join(f"{value:g}" for value in ahead["tolerances"])
    return (
        f"OTD and T-mAP: all events within a horizon of {ahead['horizon']:g}, {ahead['n_windows']:,} histories, "
        f"{ahead['n_paths']} paths each; costs {ahead['cost'][0]:g} and {ahead['cost'][1]:g}, tolerances {tolerances}."
    )
