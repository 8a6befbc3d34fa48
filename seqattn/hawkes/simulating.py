r"""Simulation of point processes, exact and many paths at once: by inversion of the compensator or by thinning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

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
# Rows of finished paths are carried along until this share of all rows is left.
_COMPACT = 0.7
# By how much an intensity may exceed its bound before it is an error: rounding in float32.
_ROUNDING = 1e-5
_MOST_EVENTS = 100_000


@dataclass(frozen=True, eq=False, repr=False)
class Paths(Sequences):
    """Simulated sequences, with what was cut short.

    A :class:`seqattn.Sequences` whose ids are (id of the history, number of the path), or the number of the path
    where paths began from nothing.

    Parameters
    ----------
    truncated
        Which paths reached ``max_events`` before their end; their windows end at their last event.
    times, types, offsets, start, end, context, ids, labels, window, unit, zero, time_zone
        As in :class:`seqattn.Sequences`.
    """

    truncated: NDArray[np.bool_] | None = None

    def select(self, indices: Any) -> Self:
        """Return some of the paths, in the order asked for."""
        chosen = super().select(indices)
        flags = np.atleast_1d(np.asarray(self.truncated)[np.asarray(indices)])
        object.__setattr__(chosen, "truncated", flags)
        return chosen

    def id_columns(self, rows: Any = None, name: str = "seq_id") -> pl.DataFrame:
        """Return the id of the history, where there is one, and the number of the path, as columns.

        Parameters
        ----------
        rows
            Numbers of the paths, each as often as wished; None for all in order.
        name
            Name of the column of histories.
        """
        frame = super().id_columns(rows, name)
        return frame.rename({"chunk": "path"} if "chunk" in frame.columns else {name: "path"})


class Simulating(EventEstimator):
    """Paths that a point process draws."""

    def sample(
        self,
        n_paths: int = 1,
        t_end: Any = None,
        *,
        max_events: int | None = None,
        history: Any = None,
        now: Any = None,
        start: Any = 0.0,
        method: str = "thinning",
        random_state: Any = None,
    ) -> Paths:
        r"""Draw paths from the process, from nothing or after given histories.

        Parameters
        ----------
        n_paths
            Number of paths; with histories, of each.
        t_end
            End of the window, a number or datetime, for all paths; ``None``: until ``max_events``.
        max_events
            Most new events of a path; by default 100,000.
        history
            Sequences to go on from, as in :meth:`log_likelihood`.
        now
            Time up to which nothing more has happened: one for all histories or one each; by default the end of each
            window.
        start
            Beginning of the window of paths from nothing, in the user's unit.
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
            Neither ``t_end`` nor ``max_events`` is given, or a value is not allowed.
        DataError
            ``t_end`` lies before a path begins, or an intensity exceeds its bound.

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
        most = _checked(n_paths, t_end, max_events, method)
        generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
        if history is None:
            begun = self._beginnings(n_paths, start, generator)
            at = np.asarray(begun.end, dtype=np.float64)
        else:
            known = self._read_new(history)
            rows = np.repeat(np.arange(len(known)), n_paths)
            begun, at = known.select(rows), present(known, now)[rows]
        until = np.full(len(begun), np.inf if t_end is None else float_times(begun.clock, t_end, "t_end")[0])
        if (until < at).any():
            row, show = int(np.flatnonzero(until < at)[0]), begun.clock.show
            raise DataError(
                f"t_end={show(until[row])} is before the path begins, at {show(at[row])}. Give a later time."
            )
        draw = partial(_inverse if method == "inverse" else _thinned, generator=generator)
        parts = []
        for first in range(0, len(begun), _PATHS):
            rows = np.arange(first, min(first + _PATHS, len(begun)))
            histories, waited = self._histories(begun.select(rows)), at[rows] - last_times(begun.select(rows))
            parts.append(_walk(histories, waited / self.scale_, (until - at)[rows] / self.scale_, most, draw))
        return self._paths(begun, at, until, n_paths if history is not None else None, parts)

    def _beginnings(self, n_paths: int, start: Any, generator: torch.Generator) -> Sequences:
        """Return empty windows, or windows with a first event where all windows of the training data had one."""
        clock = self._clock_at(start)
        at = np.full(n_paths, moment(start, clock, "start"))
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


def _checked(n_paths: int, t_end: Any, max_events: int | None, method: str) -> int:
    """Return the most events of a path, after a look at the arguments."""
    check_whole("n_paths", n_paths, 1)
    if method not in METHODS:
        raise ParameterError(f"method={method!r} is unknown. Use one of {METHODS}.{suggest(method, METHODS)}")
    if t_end is None and max_events is None:
        raise ParameterError("Paths need an end: give t_end, max_events, or both.")
    if max_events is None:
        return _MOST_EVENTS
    check_whole("max_events", max_events, 1)
    return max_events


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
    passed, left = torch.zeros(len(span), dtype=torch.float64), torch.from_numpy(span)
    wait = torch.from_numpy(waited)  # since the last event; only before the first draw is it not zero
    rows = torch.arange(len(span))  # which path each row of the histories belongs to
    alive = torch.ones(len(span), dtype=torch.bool)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(most):
        live = alive.nonzero()[:, 0]
        if len(live) < _COMPACT * len(rows):
            histories, rows, wait, alive = histories.select(live), rows[live], wait[live], alive[live]
            live = torch.arange(len(rows))
        if not len(live):
            break
        state = histories.intensity.select(live)
        path = rows[live]
        gap, kind = draw(state.shift(wait[live].to(state.floor().dtype)), within=left[path] - passed[path])
        happened = torch.isfinite(gap)
        alive[live[~happened]] = False
        passed[path[happened]] += gap[happened]
        found.append((path[happened], passed[path[happened]], kind[happened]))
        step, kinds = torch.zeros_like(wait), torch.zeros(len(rows), dtype=torch.long)
        step[live], kinds[live] = torch.where(happened, gap + wait[live], 0.0), kind
        histories.add(step, kinds)
        wait = torch.zeros_like(wait)
    truncated = torch.zeros(len(span), dtype=torch.bool)
    truncated[rows[alive]] = True
    columns = [torch.cat(column).numpy() for column in zip(*found, strict=True)]
    return _Drawn(columns[0], columns[1], columns[2], truncated.numpy())


def _inverse(state: Intensity, within: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the time to the next event, infinite where there is none within the time, and its type."""
    goal = torch.empty(state.n_tokens, dtype=torch.float64).exponential_(generator=generator)
    gap = reach(state, goal, within)
    return gap, _types(state, torch.where(torch.isfinite(gap), gap, 0.0), generator)


def _types(state: Intensity, gap: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the type of an event that happens after the given gap."""
    share = torch.softmax(state.log_rates(gap.to(state.floor().dtype)).double(), 1).cumsum(1)
    draw = torch.rand(len(share), 1, dtype=torch.float64, generator=generator)
    return (draw * share[:, -1:] > share).sum(1).clamp(max=state.n_types - 1)


def _thinned(state: Intensity, within: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As :func:`_inverse`, by proposals at the rate of a bound that holds from the present on."""
    n, dtype = state.n_tokens, state.floor().dtype
    gap = torch.zeros(n, dtype=torch.float64)
    going, current = torch.arange(n), state
    while len(going):
        bound = current.bound(gap[going].to(dtype)).double()
        draws = torch.empty(2, len(going), dtype=torch.float64)
        draws[0].exponential_(generator=generator)
        draws[1].uniform_(generator=generator)
        gap[going] += draws[0] / bound
        over = gap[going] > within[going]
        gap[going[over]] = torch.inf
        value = current.total(torch.where(over, 0.0, gap[going]).to(dtype)).double()
        if (value[~over] > bound[~over] * (1 + _ROUNDING)).any():
            raise DataError(
                f"An intensity of {float((value / bound)[~over].max()):.6f} times its bound was met while thinning. "
                "Use method='inverse', and report this model."
            )
        kept = (~over & (draws[1] * bound >= value)).nonzero()[:, 0]
        going, current = going[kept], current.select(kept)
    return gap, _types(state, torch.where(torch.isfinite(gap), gap, 0.0), generator)
