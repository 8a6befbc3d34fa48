r"""Simulation of point processes, exact and many paths at once: by inversion of the compensator or by thinning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor

from seqattn.data.clock import Clock, clock_of, moment
from seqattn.data.events import object_array
from seqattn.data.sequences import Sequences
from seqattn.data.table import column_of
from seqattn.errors import DataError, ParameterError, suggest
from seqattn.hawkes.forecast import reach
from seqattn.hawkes.histories import Histories
from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.reading import EventEstimator, check_whole
from seqattn.hawkes.tables import float_times, last_times, present

METHODS = ("thinning", "inverse")
# Paths simulated side by side: enough for wide operations, few enough for their keys and values to stay small.
_PATHS = 2000
# Lengths of the windows in which thinning proposes under one bound, in model units: that of the first, and the share
# to which one with more proposals than a few is cut, at most so often.
_FIRST_WINDOW = 1.0
_MANY_PROPOSALS = 8.0
_CUT = 0.25
_MOST_CUTS = 12
# What errors call the argument t_end, which the command line calls --until.
_END = "The end of the paths"
# Rows of finished paths are carried along until this share of all rows is left.
_COMPACT = 0.7
# By how much an intensity may exceed its bound before it is an error: rounding in float32.
_ROUNDING = 1e-4
# Most proposals for one path under one bound, and the latest time at which an intensity is asked for.
_MOST_TRIES = 32
_FAR_OFF = 1e30
_MOST_EVENTS = 100_000


@dataclass(frozen=True, eq=False, repr=False)
class Paths(Sequences):
    """Simulated sequences, with what was cut short.

    A :class:`seqattn.Sequences` whose ids are (id of the history, number of the path), or the number of the path
    where paths began from nothing. ``to_frame`` gives the one as the columns ``seq_id`` and ``path``, the other as
    ``seq_id``.

    Parameters
    ----------
    truncated
        Which paths reached ``max_events`` before their end; their windows end at their last event. Where ``max_events``
        is their only end, none is cut short.
    times, types, offsets, start, end, context, ids, labels, window, unit, zero, time_zone
        As in :class:`seqattn.Sequences`.
    """

    truncated: NDArray[np.bool_] | None = None

    _saved: ClassVar[tuple[str, ...]] = (*Sequences._saved, "truncated")

    def select(self, indices: Any) -> Self:
        """Return some of the paths, in the order asked for."""
        wanted = indices if isinstance(indices, slice) or np.size(indices) else np.zeros(0, dtype=np.int64)
        flags = np.asarray(self.truncated)[wanted if isinstance(wanted, slice) else np.asarray(wanted)]
        return replace(super().select(wanted), truncated=np.atleast_1d(flags))

    def id_columns(self, rows: Any = None, name: str = "seq_id") -> pl.DataFrame:
        """Return the number of the path as id, or the id of its history and then ``path``, as columns.

        Parameters
        ----------
        rows
            Numbers of the paths, each as often as wished; None for all in order.
        name
            Name of the id column.
        """
        keys = self.ids.tolist()
        if not (keys and all(isinstance(key, tuple) for key in keys)):
            return super().id_columns(rows, name)
        # Histories that were cut into chunks have ids of two parts themselves.
        histories = replace(self, ids=object_array([history for history, _ in keys]))
        paths = np.array([path for _, path in keys], dtype=np.int64)
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        frame = super(Paths, histories).id_columns(chosen, name)
        return frame.with_columns(pl.Series("path", paths[chosen]))


class Simulating(EventEstimator):
    """Paths that a point process draws."""

    def sample(
        self,
        n_paths: int = 1,
        t_end: Any = None,
        *,
        horizon: float | None = None,
        max_events: int | None = None,
        history: Any = None,
        now: Any = None,
        start: Any = None,
        method: str = "thinning",
        random_state: Any = None,
    ) -> Paths:
        r"""Draw paths from the process, from nothing or after given histories.

        Parameters
        ----------
        n_paths
            Number of paths; with histories, of each.
        t_end
            End of the window, a number or datetime, for all paths; ``None``: until ``horizon`` or ``max_events``.
        horizon
            Length of the window in place of its end, in the user's unit (seconds if times are dates): time after
            ``start``, or after the present of each history.
        max_events
            Most new events of a path; ``None`` stands for 100,000.
        history
            Sequences to go on from, as in :meth:`log_likelihood`.
        now
            Time up to which nothing more has happened: one for all histories or one each; by default the end of each
            window.
        start
            Beginning of the window of paths from nothing, a number (``None`` for 0) or datetime as in the training
            data.
        method
            ``"thinning"``: Ogata's, with a bound that holds for all later times; exact. ``"inverse"``: solve
            :math:`\Lambda(u) = e` with e drawn from Exp(1); exact to about 1e-6, no proposal is lost.
        random_state
            Seed or generator, as in scikit-learn. The same seed gives the same paths on one machine.

        Returns
        -------
        A :class:`Paths`: the new events in the order of histories, then paths; windows from ``start`` or ``now`` to
        ``t_end`` (or to the last event), and ``truncated``.

        Raises
        ------
        ParameterError
            None of ``t_end``, ``horizon`` and ``max_events`` is given, or the first two together, or a value is not
            allowed.
        DataError
            There is no history, ``t_end`` lies before a path begins, or an intensity exceeds its bound.

        Notes
        -----
        Processes that were fitted to windows that begin at their first event have no law for that event: their paths
        from nothing begin with an event at ``start`` whose type is drawn as often as it came first in the training
        data. It is history, and no likelihood scores it.

        References
        ----------
        Ogata (1981), On Lewis' simulation method for point processes, algorithm 2. Daley and Vere-Jones (2003), An
        introduction to the theory of point processes, section 7.4 (time change).
        """
        most = _checked(n_paths, t_end, horizon, max_events, method)
        if history is None and now is not None:
            raise ParameterError(
                f"now={now!r} belongs to a history. Give history, or start for paths from nothing."
            )
        if history is not None and start is not None:
            raise ParameterError(f"start={start!r} is for paths from nothing. Leave it out, or the history.")
        generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
        if history is None:
            if start is None and self.unit_ is not None:
                raise DataError(
                    "The model was fitted to dates: say with start= when paths from nothing begin."
                )
            begun = known = self._beginnings(n_paths, 0.0 if start is None else start, generator)
            at, origin = np.asarray(begun.end, dtype=np.float64), np.arange(n_paths)
        else:
            known = self._read_new(history)
            if not len(known):
                raise DataError(
                    "There is no history to go on from. Leave history out for paths from nothing."
                )
            origin = np.repeat(np.arange(len(known)), n_paths)
            begun, at = known.select(origin), present(known, now)[origin]
        until = _ends(begun.clock, at, t_end, horizon)
        draw = partial(_inverse if method == "inverse" else _thinned, generator=generator)
        parts = []
        for first in range(0, len(begun), _PATHS):
            rows = slice(first, first + _PATHS)
            # Each history is read once, however many paths go on from it.
            read, of_path = np.unique(origin[rows], return_inverse=True)
            histories = self._histories(known.select(read)).select(torch.from_numpy(of_path))
            waited = (at - last_times(begun))[rows]
            parts.append(_walk(histories, waited / self.scale_, (until - at)[rows] / self.scale_, most, draw))
        return self._paths(begun, at, until, n_paths if history is not None else None, parts)

    def _beginnings(self, n_paths: int, start: Any, generator: torch.Generator) -> Sequences:
        """Return empty windows, or windows with a first event where all windows of the training data had one."""
        clock = self._clock_at(start)
        at = np.full(n_paths, moment(start, clock, "start"))
        if not np.isfinite(at).all():
            raise DataError(f"start={start!r} is no time. Give a finite one.")
        held = self.first_share_ is not None
        share = torch.from_numpy(np.asarray(self.first_share_ if held else [1.0]))
        kinds = torch.multinomial(share, n_paths, replacement=True, generator=generator).numpy()
        return Sequences(
            times=at if held else np.zeros(0),
            types=kinds if held else np.zeros(0),
            offsets=np.arange(n_paths + 1) * int(held),
            start=at,
            end=at,
            context=np.full(n_paths, int(held)),
            ids=np.arange(n_paths),
            labels=self.labels_,
            unit=clock.unit,
            zero=clock.zero,
            time_zone=clock.time_zone,
        )

    def _clock_at(self, start: Any) -> Clock:
        """Return the clock of paths that begin at a moment of the caller's."""
        clock = clock_of(
            column_of("start", np.asarray([start]) if isinstance(start, np.generic) else [start])
        )
        if clock.unit != self.unit_:
            wanted = (
                "a date, as the training data had" if self.unit_ else "a number, as the training data had"
            )
            raise DataError(f"start={start!r} does not fit the model. Give {wanted}.")
        return clock

    def _paths(
        self,
        begun: Sequences,
        at: NDArray[np.float64],
        until: NDArray[np.float64],
        per_history: int | None,
        parts: list[_Drawn],
    ) -> Paths:
        """Return what was drawn on the user's clock, with the first events that belong to the paths."""
        n = len(begun)
        shift = np.arange(len(parts)) * _PATHS
        row = np.concatenate([part.row + by for part, by in zip(parts, shift, strict=True)])
        time = at[row] + np.concatenate([part.time for part in parts]) * self.scale_
        kind = np.concatenate([part.kind for part in parts])
        truncated = np.concatenate([part.truncated for part in parts])
        time = np.minimum(time, until[row])
        context = np.zeros(n, dtype=np.int64)
        if per_history is None and begun.n_events:
            row = np.concatenate([np.arange(n), row])
            time, kind = np.concatenate([begun.times, time]), np.concatenate([begun.types, kind])
            context += 1
        order = np.argsort(row, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))])
        last = at.copy()
        np.maximum.at(last, row, time)
        ids = begun.ids
        if per_history is not None:
            ids = object_array([(key, i % per_history) for i, key in enumerate(begun.ids.tolist())])
        return Paths(
            times=time[order],
            types=kind[order],
            offsets=offsets,
            start=at,
            end=np.where(truncated | np.isinf(until), last, until),
            context=context,
            ids=ids,
            labels=self.labels_,
            unit=begun.unit,
            zero=begun.zero,
            time_zone=begun.time_zone,
            truncated=truncated & np.isfinite(until),
        )


def _checked(n_paths: int, t_end: Any, horizon: float | None, max_events: int | None, method: str) -> int:
    """Return the most events of a path, after a look at the arguments."""
    check_whole("n_paths", n_paths, 1)
    if t_end is not None and horizon is not None:
        raise ParameterError(f"t_end={t_end!r} and horizon={horizon!r} both say where paths end. Give one.")
    if horizon is not None:
        check_horizon(horizon)
    if method not in METHODS:
        raise ParameterError(f"method={method!r} is unknown. Use one of {METHODS}.{suggest(method, METHODS)}")
    if t_end is None and horizon is None and max_events is None:
        raise ParameterError("Paths need an end: give t_end or horizon, or max_events.")
    if max_events is None:
        return _MOST_EVENTS
    check_whole("max_events", max_events, 1)
    return max_events


def check_horizon(horizon: object) -> None:
    """Refuse a horizon that is no positive span of time."""
    if isinstance(horizon, bool) or not isinstance(horizon, Real) or not 0 < float(horizon) < np.inf:
        raise ParameterError(
            f"horizon={horizon!r} is no time span. Give a positive number, in the unit of the data."
        )


def _ends(clock: Clock, at: NDArray[np.float64], t_end: Any, horizon: float | None) -> NDArray[np.float64]:
    """Return where the window of each path ends, infinite where nothing says so."""
    if horizon is not None:
        return at + horizon
    ends = np.array([np.inf]) if t_end is None else float_times(clock, t_end, _END)
    if len(ends) != 1 or (t_end is not None and np.isposinf(ends[0])):
        raise ParameterError(
            f"{_END}, {t_end!r}, is not one finite time. Give one for all paths, or a number of events."
        )
    until = np.full(len(at), ends[0])
    if not (until >= at).all():
        row = int(np.flatnonzero(~(until >= at))[0])
        raise DataError(
            f"{_END}, {clock.show(until[row])}, is before the path begins, at {clock.show(at[row])}. "
            "Give a later time."
        )
    return until


@dataclass(frozen=True)
class _Drawn:
    """Events drawn for some paths: path, time since its beginning in model units, and type of each."""

    row: NDArray[np.int64]
    time: NDArray[np.float64]
    kind: NDArray[np.int64]
    truncated: NDArray[np.bool_]


@torch.no_grad()
def _walk(
    histories: Histories,
    waited: NDArray[np.float64],
    span: NDArray[np.float64],
    most: int,
    draw: Callable[..., tuple[Tensor, Tensor]],
) -> _Drawn:
    """Draw one event for every path that still goes on, until none does."""
    place = histories.intensity.floor().device
    left = torch.from_numpy(span).to(place)
    passed, alive = torch.zeros_like(left), torch.ones_like(left, dtype=torch.bool)
    wait = torch.from_numpy(waited).to(place)  # since the last event; not zero before the first draw only
    rows = torch.arange(len(span), device=place)  # which path each row of the histories belongs to
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(most):
        live = alive.nonzero()[:, 0]
        if len(live) < _COMPACT * len(rows):
            histories, rows, wait, alive = histories.select(live), rows[live], wait[live], alive[live]
            live = torch.arange(len(rows), device=place)
        if not len(live):
            break
        state = histories.intensity.select(live)
        path = rows[live]
        gap, kind = draw(state.shift(wait[live].to(state.floor().dtype)), within=left[path] - passed[path])
        happened = torch.isfinite(gap)
        alive[live[~happened]] = False
        passed[path[happened]] += gap[happened]
        found.append((path[happened], passed[path[happened]], kind[happened]))
        step, kinds = torch.zeros_like(wait), torch.zeros_like(rows)
        step[live], kinds[live] = torch.where(happened, gap + wait[live], 0.0), kind
        histories.add(step, kinds)
        wait = torch.zeros_like(wait)
    truncated = torch.zeros_like(left, dtype=torch.bool)
    truncated[rows[alive]] = True
    columns = [torch.cat(column).cpu().numpy() for column in zip(*found, strict=True)]
    return _Drawn(columns[0], columns[1], columns[2], truncated.cpu().numpy())


def _inverse(state: Intensity, within: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the time to the next event, infinite where there is none within the time, and its type."""
    goal = torch.empty(state.n_tokens, dtype=torch.float64).exponential_(generator=generator)
    gap = reach(state, goal.to(within.device), within)
    return gap, _types(state, torch.where(torch.isfinite(gap), gap, 0.0), generator)


def _types(state: Intensity, gap: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the type of an event that happens after the given gap."""
    share = torch.softmax(state.log_rates(gap.to(state.floor().dtype)).double(), 1).cumsum(1)
    draw = torch.rand(len(share), 1, dtype=torch.float64, generator=generator).to(share.device)
    return (draw * share[:, -1:] > share).sum(1).clamp(max=state.n_types - 1)


def _thinned(state: Intensity, within: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As :func:`_inverse`, by proposals at the rate of a bound that holds for a while, in the paths' `_Windows`.

    Several proposals can be made under one bound at once and the first accepted one taken. The fewer paths are left,
    the more are made for each. Where none is accepted, a path goes on from its last one or from the window's end.
    """
    n, dtype = state.n_tokens, state.floor().dtype
    gap = torch.zeros_like(within)
    going, windows = torch.arange(n, device=within.device), _Windows.of(state, within)
    while len(going):
        tries = min(_MOST_TRIES, 1 + 2 * (n // len(going) - 1))
        until, bound = windows.next(gap[going])
        draws = torch.empty(2, len(going), tries, dtype=torch.float64)
        draws[0].exponential_(generator=generator)
        draws[1].uniform_(generator=generator)
        draws = draws.to(within.device)  # drawn on the CPU, so that a seed means the same on every device
        times = gap[going, None] + (draws[0] / bound[:, None]).cumsum(1)
        over = times > until[:, None]
        value = windows.state.rates(torch.minimum(times, until[:, None]).clamp(max=_FAR_OFF).to(dtype))
        value = value.sum(2).double()
        if (value > bound[:, None] * (1 + _ROUNDING)).any():
            raise DataError(
                f"An intensity of {float((value / bound[:, None]).max()):.6f} times its bound was met while thinning. "
                "Use method='inverse', and report this model."
            )
        accepted = ~over & (draws[1] * bound[:, None] < value)
        stop = over | accepted
        place = torch.where(stop.any(1), stop.int().argmax(1), tries - 1)[:, None]
        is_over, is_event = over.gather(1, place)[:, 0], accepted.gather(1, place)[:, 0]
        reached = torch.where(is_over, until, times.gather(1, place)[:, 0])
        is_done = is_over & (until >= within[going])
        gap[going] = torch.where(is_done, torch.inf, reached)
        kept = (~(is_event | is_done)).nonzero()[:, 0]
        going, windows = going[kept], windows.after(is_over, kept)
    return gap, _types(state, torch.where(torch.isfinite(gap), gap, 0.0), generator)


@dataclass
class _Windows:
    """How far ahead the paths that still go on look for a bound: not to a peak that is far away.

    A narrow peak lifts a bound that includes it a thousandfold. Any choice gives exact draws that does not look at the
    draws to come.
    """

    state: Intensity
    within: Tensor
    ahead: Tensor  # lengths of the next windows
    is_short: bool  # where there are no peaks, one window is enough

    @classmethod
    def of(cls, state: Intensity, within: Tensor) -> _Windows:
        is_short = state.has_peaks
        return cls(state, within, torch.full_like(within, _FIRST_WINDOW if is_short else torch.inf), is_short)

    def next(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return until when the next windows last, and the bounds in them."""
        until, bound = self._bounded(slice(None), at)
        for _ in range(_MOST_CUTS if self.is_short else 0):
            tall = (bound * self.ahead > _MANY_PROPOSALS).nonzero()[:, 0]
            if not len(tall):
                break
            self.ahead[tall] *= _CUT
            until[tall], bound[tall] = self._bounded(tall, at[tall])
        return until, bound

    def _bounded(self, rows: Tensor | slice, at: Tensor) -> tuple[Tensor, Tensor]:
        until, chosen = torch.minimum(at + self.ahead[rows], self.within[rows]), self.state.select(rows)
        dtype = chosen.floor().dtype
        if not self.is_short:
            return until, chosen.bound(at.to(dtype)).double()
        return until, chosen.bound(at.to(dtype), until.clamp(max=_FAR_OFF).to(dtype)).double()

    def after(self, is_over: Tensor, kept: Tensor) -> _Windows:
        """Return the windows of those that go on, longer ones where nothing was proposed to the end."""
        ahead = torch.where(is_over, self.ahead / _CUT, self.ahead)
        return _Windows(self.state.select(kept), self.within[kept], ahead[kept], self.is_short)
