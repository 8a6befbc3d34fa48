"""From checked events to the columns of Sequences: windows, chunks, length limit, ties."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from seqattn.data.blocks import block_slices, scratch
from seqattn.data.clock import Clock
from seqattn.data.events import Events, id_text, object_array, without_duplicates
from seqattn.data.grid import spread_ties
from seqattn.data.labels import check_labels, code_labels
from seqattn.data.windows import Windows, bounds_of
from seqattn.errors import DataError, ParameterError, SeqattnWarning

if TYPE_CHECKING:
    from seqattn.data.sequences import Sequences

__all__ = [
    "DEFAULTS",
    "Settings",
    "chunked",
    "columns_of",
    "cut",
    "extended",
    "judge_ties",
    "recoded_events",
    "spread_apart",
    "tie_spacing",
    "warn_of_dropped",
    "warn_of_origin",
    "windowed",
    "zero_gaps",
]

_TIES = ("allow", "jitter", "error")
_UNKNOWN = ("error", "ignore")


@dataclass(frozen=True)
class Settings:
    """The options that are common to all ways of reading, checked."""

    window: Any = "last_event"
    labels: Any = None
    unknown: str = "error"
    ties: str = "allow"
    drop_duplicates: bool = False
    chunk: int | None = None
    left_context: int | None = None
    seq: str = "seq_id"

    def __post_init__(self) -> None:
        if self.ties not in _TIES:
            raise ParameterError(f"ties={self.ties!r} is not one of {', '.join(map(repr, _TIES))}.")
        if self.unknown not in _UNKNOWN:
            raise ParameterError(f"unknown={self.unknown!r} is not one of {', '.join(map(repr, _UNKNOWN))}.")
        for name, least in (("chunk", 1), ("left_context", 0)):
            value = getattr(self, name)
            is_whole = hasattr(value, "__index__") and not isinstance(value, bool)
            if value is not None and (not is_whole or value < least):
                raise ParameterError(f"{name}={value!r} must be a whole number of at least {least}, or None.")
        if not isinstance(self.drop_duplicates, (bool, np.bool_)):
            raise ParameterError(f"drop_duplicates={self.drop_duplicates!r} is neither True nor False.")
        if self.left_context is not None and self.chunk is None:
            raise ParameterError("left_context= only applies together with chunk=.")


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Settings) if field.name != "seq"}


def columns_of(events: Events, settings: Settings) -> dict[str, Any]:
    """Return the columns of Sequences, with the labels found in the data (or stated by it)."""
    if settings.drop_duplicates:
        events = without_duplicates(events)
    windows = bounds_of(settings.window, events.ids.tolist(), settings.seq, events.clock)
    columns = windowed(events, *code_labels(events.types), windows)
    if len(events.times):
        warn_of_origin(windows, float(events.times.min()))
    return _with_stated_types(columns, events.n_types if settings.labels is None else None)


def windowed(events: Events, codes: np.ndarray, labels: tuple[Any, ...], windows: Windows) -> dict[str, Any]:
    """Return the columns of Sequences from events, the codes of their types, and windows that hold them."""
    offsets = np.concatenate([events.offsets, np.full(len(windows.extra), len(events.times))]).astype(
        np.int64
    )
    ids = extended(events.ids, windows.extra)
    start, end, context = _bounds(
        events.times, offsets, windows.start.copy(), windows.end.copy(), windows.kind
    )
    columns = {
        "times": events.times,
        "types": codes,
        "offsets": offsets,
        "start": start,
        "end": end,
        "context": context,
        "ids": ids,
        "labels": labels,
        "window": windows.kind,
        "unit": events.clock.unit,
        "zero": events.clock.zero,
        "time_zone": events.clock.time_zone,
    }
    columns = _without_unknown_windows(columns)
    _check_inside(columns, events)
    return columns


def extended(ids: np.ndarray, extra: tuple[Any, ...]) -> np.ndarray:
    """Return ids followed by those of sequences that have a window and no events."""
    if not extra:
        return ids
    whole = ids.dtype != object and all(isinstance(key, int) and abs(key) < 1 << 63 for key in extra)
    keys = [*ids.tolist(), *extra]
    return np.array(keys, dtype=np.int64) if whole else object_array(keys)


def _bounds(
    times: np.ndarray, offsets: np.ndarray, start: np.ndarray, end: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill in what the windows leave open; it stays open (NaN) for a sequence without events."""
    filled = np.diff(offsets) > 0
    first, last = offsets[:-1][filled], offsets[1:][filled] - 1
    context = np.zeros(len(start), dtype=np.int64)
    from_first = np.zeros(len(start), dtype=bool)
    from_first[filled] = np.isnan(start[filled])
    opening = np.full(len(start), np.nan)
    opening[filled] = times[first]
    start[from_first] = opening[from_first]
    context[from_first] = 1
    if kind == "last_event":
        end[filled] = times[last]
    if kind == "max" and len(times):
        end[np.isnan(end)] = times.max()
    return start, end, context


def _without_unknown_windows(columns: dict[str, Any]) -> dict[str, Any]:
    """Drop sequences that have neither events nor a known window, and say so."""
    known = np.isfinite(columns["start"]) & np.isfinite(columns["end"])
    if known.all():
        return columns
    warn_of_dropped(int((~known).sum()))
    keep = np.flatnonzero(known)
    offsets = columns["offsets"][np.append(keep, len(known))]  # dropped sequences have no events
    parts = {name: columns[name][keep] for name in ("start", "end", "context", "ids")}
    return {**columns, **parts, "offsets": offsets}


def warn_of_dropped(gone: int) -> None:
    """Say that empty sequences without a known window were dropped."""
    warnings.warn(
        f"{gone} empty sequence{'s were' if gone > 1 else ' was'} dropped, because nothing says over which window "
        "it was empty. Give window=(T0, T1), or one window per sequence.",
        SeqattnWarning,
        stacklevel=6,
    )


def _check_inside(columns: dict[str, Any], events: Events) -> None:
    """Refuse windows that do not hold their events."""
    times, offsets = columns["times"], columns["offsets"]
    clock = Clock(columns["unit"], columns["zero"], columns["time_zone"])
    filled = np.flatnonzero(np.diff(offsets) > 0)
    first, last = offsets[:-1][filled], offsets[1:][filled] - 1
    early = np.flatnonzero(times[first] < columns["start"][filled])
    late = np.flatnonzero(times[last] > columns["end"][filled])
    for bad, event, side in ((early, first, "start"), (late, last, "end")):
        if len(bad):
            i = int(bad[0])
            bound = columns[side][filled[i]]
            raise DataError(
                _outside(
                    side, _where(columns, int(filled[i])), clock.show(times[event[i]]), clock.show(bound)
                )
            )
    wrong = np.flatnonzero(columns["end"] < columns["start"])
    if len(wrong):
        end, start = columns["end"][wrong[0]], columns["start"][wrong[0]]
        raise DataError(
            f"The window of {_where(columns, int(wrong[0]))} ends at {clock.show(end)}, before it begins at "
            f"{clock.show(start)}."
        )


def _outside(side: str, where: str, time: str, bound: str) -> str:
    if side == "start":
        return (
            f"The first event of {where} is at {time}, before its window begins at T0 = {bound}. "
            "Give an earlier T0, or drop the event."
        )
    return (
        f"The last event of {where} is at {time}, after its window ends at T1 = {bound}. "
        "Give a later T1, or drop the event."
    )


def _where(columns: dict[str, Any], i: int) -> str:
    return f"sequence {id_text(columns['ids'][i])}"


def warn_of_origin(windows: Windows, earliest: float) -> None:
    """Negative times often count from a moment that the window does not show."""
    if np.isnan(windows.start).any() and earliest < 0:
        warnings.warn(
            "Some times are negative, and T0 was taken from the first event of each sequence. "
            "Pass window=(T0, ...) if the observation began at another time.",
            SeqattnWarning,
            stacklevel=4,
        )


def _with_stated_types(columns: dict[str, Any], n_types: int | None) -> dict[str, Any]:
    """Use the number of types that the records state, so that unseen types are not forgotten."""
    if n_types is None:
        return columns
    stated = check_labels(int(n_types))
    place = {label: code for code, label in enumerate(stated)}
    strange = [label for label in columns["labels"] if label not in place]
    if strange:
        raise DataError(
            f"The records state {n_types} types (dim_process), 0 to {n_types - 1}, but hold type {strange[0]!r}. "
            "Pass labels= to say which types there are."
        )
    codes = np.array([place[label] for label in columns["labels"]], dtype=np.int32)
    return {**columns, "types": codes[columns["types"]], "labels": stated}


def recoded_events(data: Sequences, codes: np.ndarray) -> dict[str, Any]:
    """Give events the code that stands at their present one, and drop those with -1; return the columns that change.

    Where the events lie in a saved folder only a block of them is in memory at a time.
    """
    if data.type_counts()[codes < 0].any():
        return _without_dropped(data, codes)
    types = scratch(data.n_events, np.int32, data.types)
    for part in block_slices(data.n_events):
        types[part] = codes[data.types[part]]
    return {"types": types}


def _without_dropped(data: Sequences, codes: np.ndarray) -> dict[str, Any]:
    lengths, context = [], []
    for block in data.blocks():
        before = np.concatenate([[0], np.cumsum(codes[block.types] >= 0)])
        first = before[block.offsets[:-1]]
        lengths.append(before[block.offsets[1:]] - first)
        context.append(before[block.offsets[:-1] + block.context] - first)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    times, types = (scratch(int(offsets[-1]), array.dtype, array) for array in (data.times, data.types))
    begin = 0
    for block in data.blocks():
        recoded = codes[block.types]
        kept = np.flatnonzero(recoded >= 0)
        end = begin + len(kept)
        times[begin:end], types[begin:end] = block.times[kept], recoded[kept]
        begin = end
    return {"times": times, "types": types, "offsets": offsets, "context": np.concatenate(context)}


def gaps_between(data: Sequences) -> np.ndarray:
    """Return the gaps between neighbouring events of one sequence, all sequences joined."""
    inner = np.ones(max(data.n_events - 1, 0), dtype=bool)
    bounds = data.offsets[1:-1]
    inner[bounds[(bounds > 0) & (bounds < data.n_events)] - 1] = False
    return np.diff(data.times)[inner]


def zero_gaps(data: Sequences) -> tuple[int, int]:
    """Return the number of gaps of length zero between events, and of all gaps."""
    gaps = gaps_between(data)
    return int((gaps == 0).sum()), len(gaps)


def settled_ties(data: Sequences, ties: str) -> dict[str, Any]:
    """Apply the rule for equal times in a sequence; return the columns that change."""
    count, total = zero_gaps(data)
    if not judge_ties(count, total, ties):
        return {}
    return spread_apart(data, tie_spacing(data), np.random.default_rng(0))


def judge_ties(count: int, total: int, ties: str) -> bool:
    """Refuse ties, or warn of them, as the rule says; return whether they are to be spread."""
    if count and ties == "error":
        raise DataError(
            f"{count} of {total} gaps between events are zero. Pass ties='allow' to keep them, ties='jitter' to "
            "spread them inside the cell of the time grid, or drop_duplicates=True."
        )
    if count and ties == "allow":
        warnings.warn(
            f"{count} of {total} gaps between events are zero (equal times in a sequence). They are kept; "
            "ties='jitter' spreads them inside the cell of the time grid.",
            SeqattnWarning,
            stacklevel=5,
        )
    return bool(count) and ties == "jitter"


def tie_spacing(data: Sequences) -> float:
    """Return the width of the cells that ties are spread in: the grid of the times, or the shortest gap."""
    grid = data.grid()
    if grid is not None:
        return grid.spacing
    shortest = (gaps[gaps > 0].min(initial=np.inf) for gaps in map(gaps_between, data.blocks()))
    spacing = float(min(shortest, default=np.inf))
    if not np.isfinite(spacing):
        raise DataError("All times of each sequence are equal, so there is no grid cell to spread them in.")
    return spacing


def spread_apart(data: Sequences, spacing: float, rng: np.random.Generator) -> dict[str, Any]:
    """Spread equal times over the cells after them; return the columns that change."""
    limits = np.full(len(data), np.inf) if data.window == "last_event" else data.end
    times = spread_ties(data.times, data.offsets, limits, spacing, rng)
    return {"times": times, **moved_windows(data, times)}


def moved_windows(data: Sequences, times: np.ndarray) -> dict[str, Any]:
    """Let windows that were taken from an event follow it to its new time."""
    filled = np.flatnonzero(data.lengths > 0)
    first, last = data.offsets[:-1][filled], data.offsets[1:][filled] - 1
    start, end = data.start.copy(), data.end.copy()
    bound = (data.context[filled] > 0) & (data.start[filled] == data.times[first])
    start[filled[bound]] = times[first[bound]]
    if data.window == "last_event":
        end[filled] = times[last]
    return {"start": start, "end": end}


def chunked(data: Sequences, size: int, left_context: int | None) -> dict[str, Any]:
    """Cut long sequences into chunks of ``size`` events, each with the events before it as history.

    A chunk that is not its sequence's last ends at its last event, and the next one scores the gap from there:
    together the chunks score every gap of the sequence once. Where no sequence is that long nothing changes.
    """
    return cut(data, size, left_context) if (data.lengths > size).any() else {}


def cut(data: Sequences, size: int, left_context: int | None) -> dict[str, Any]:
    """Cut sequences into chunks as :func:`chunked` does, whether or not any is long enough."""
    keep = size if left_context is None else left_context
    lengths = data.lengths
    pieces = np.maximum(-(-lengths // size), 1)
    parent = np.repeat(np.arange(len(data)), pieces)
    number = np.arange(len(parent)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = number * size
    stop = np.minimum(begin + size, lengths[parent])
    kept = np.maximum(begin - keep, 0)
    base = data.offsets[:-1][parent]
    span = stop - kept
    offsets = np.concatenate([[0], np.cumsum(span)]).astype(np.int64)
    events = np.repeat(base + kept - offsets[:-1], span) + np.arange(offsets[-1])
    later = number > 0
    start, end = data.start[parent].copy(), data.end[parent].copy()
    # Without history a chunk begins where the one before it ended: at that one's last event.
    opening = kept - (1 if keep == 0 else 0)
    start[later] = data.times[(base + opening)[later]]
    inner = number < pieces[parent] - 1
    end[inner] = data.times[(base + stop - 1)[inner]]
    context = np.where(later, begin - kept, data.context[parent])
    ids = object_array([(key, int(i)) for key, i in zip(data.ids[parent].tolist(), number, strict=True)])
    columns = {"start": start, "end": end, "context": context, "ids": ids}
    return {**columns, "times": data.times[events], "types": data.types[events], "offsets": offsets}
