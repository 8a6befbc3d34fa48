"""From a table, lists or records to checked events, grouped by sequence.

All checks of single events live here: missing or infinite times, missing types, times that decrease.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from seqattn.data.clock import Clock, clock_of, to_numbers
from seqattn.data.labels import first_repeat, series_of_labels
from seqattn.data.table import column_of, need_columns
from seqattn.errors import DataError

__all__ = [
    "Events",
    "checked_columns",
    "events_of_frame",
    "events_of_pairs",
    "events_of_records",
    "grouped_events",
    "head_rows",
    "id_array",
    "without_duplicates",
]


@dataclass(frozen=True)
class Events:
    """Checked events: times do not decrease within a sequence, nothing is missing.

    Attributes
    ----------
    times
        float64, on the clock.
    types
        The labels as the user gave them, one per event.
    offsets
        Events of sequence i are ``offsets[i]`` to ``offsets[i + 1]``.
    ids
        Ids of the sequences, in their order.
    clock
        What the times mean.
    rows
        Row of each event in the user's table; None where the input was lists.
    n_types
        Number of types that the input itself states, or None.
    """

    times: np.ndarray
    types: pl.Series
    offsets: np.ndarray
    ids: np.ndarray
    clock: Clock
    rows: np.ndarray | None
    n_types: int | None = None

    def place(self, event: int) -> str:
        """Say where an event stands, for messages."""
        number = int(np.searchsorted(self.offsets, event, side="right")) - 1
        name = f"sequence {id_text(self.ids[number])}"
        if self.rows is None:
            return f"{name} at position {event - self.offsets[number]}"
        return f"{name} at row {self.rows[event]}"


def id_text(key: Any) -> str:
    """Return an id as a text for messages, without the wrapping of numpy numbers."""
    return repr(key.item() if isinstance(key, np.generic) else key)


def events_of_frame(
    frame: pl.DataFrame, seq: str | None, time: str, kind: str, *, sort: bool, table: object = None
) -> Events:
    """Group a table of events by sequence; ``table`` is what the user gave, for messages.

    Sequences come in order of appearance, or of their ids with ``sort``; their rows need not stand together.
    """
    need_columns(frame, [time, kind], table)
    if isinstance(frame[time].dtype, (pl.List, pl.Array)):
        return _events_of_lists(frame, seq, time, kind, sort=sort)
    if seq is not None:
        need_columns(frame, [seq], table)
    if not frame.height:
        raise DataError("The table has no rows. At least one event is needed.")
    keys, given, types = checked_columns(frame, seq, time, kind)
    clock = clock_of(given)
    times = to_numbers(given, clock, f"Column {time!r}")
    codes, ids = _group(keys, sort)
    return grouped_events(codes, times, types, np.arange(frame.height), ids, clock, sort=sort)


def checked_columns(
    frame: pl.DataFrame, seq: str | None, time: str, kind: str, first_row: int = 0
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Return ids, times (days as moments) and types of a table, refusing what is missing or not finite.

    Parameters
    ----------
    frame
        The table, or a piece of one.
    seq, time, kind
        Names of its columns; without ``seq`` all rows have one id.
    first_row
        Row of the whole table at which the piece begins, for messages.
    """
    keys = pl.Series("seq", np.zeros(frame.height, np.int64)) if seq is None else frame[seq]
    _refuse_missing(keys, f"The id in column {seq!r}", first_row)
    _refuse_nested(keys, seq, "An id must be one value")
    given = _dates(frame[time])
    numbers = to_numbers(given, clock_of(given), f"Column {time!r}")
    _refuse_bad_times(numbers, frame[time], f"column {time!r}", first_row)
    return keys, given, _labels_of(frame[kind], kind, first_row)


def grouped_events(
    codes: np.ndarray,
    times: np.ndarray,
    types: pl.Series,
    rows: np.ndarray,
    ids: np.ndarray,
    clock: Clock,
    *,
    sort: bool,
) -> Events:
    """Bring the events of each sequence together, sorted by time if asked for, and refuse decreasing times.

    Parameters
    ----------
    codes
        Number of each event's sequence among ``ids``.
    times, types, rows
        Of each event: time on the clock, label, and row in the user's table.
    ids
        Ids of the sequences.
    clock
        What the times mean.
    sort
        Whether to sort each sequence by time.
    """
    order = _order(codes, times, sort)
    if order is not None:
        times, types, codes, rows = times[order], _take(types, order), codes[order], rows[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(ids)))]).astype(np.int64)
    events = Events(times, types, offsets, ids, clock, rows)
    _refuse_decreasing(events)
    return events


def _take(types: pl.Series, order: np.ndarray) -> pl.Series:
    if types.dtype != pl.Object:
        return types.gather(order)
    values = types.to_list()
    return pl.Series(types.name, [values[i] for i in order], dtype=pl.Object)


def _dates(times: pl.Series) -> pl.Series:
    return times.cast(pl.Datetime("us")) if times.dtype == pl.Date else times


def _group(keys: pl.Series, sort: bool) -> tuple[np.ndarray, np.ndarray]:
    """Number the sequences; rows that already stand together need no hashing."""
    if keys.dtype == pl.Object:
        return _group_objects(keys.to_list())
    run, heads = head_rows(keys)
    distinct = heads.unique(maintain_order=True)
    if sort:
        distinct = distinct.sort()
    if len(distinct) == len(heads) and not (sort and not distinct.equals(heads)):
        return run, id_array(distinct)
    numbers = pl.Series(np.arange(len(distinct)))
    return heads.replace_strict(distinct, numbers).to_numpy()[run], id_array(distinct)


def head_rows(keys: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Return the number of the run of equal values that each row is in, and the value of each run."""
    run = keys.rle_id().to_numpy().astype(np.int64)
    return run, keys.gather(np.flatnonzero(np.diff(run, prepend=-1)))


def _group_objects(keys: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    places: dict[Any, int] = {}
    try:
        codes = np.fromiter((places.setdefault(key, len(places)) for key in keys), np.int64, len(keys))
    except TypeError as error:
        raise DataError(f"Sequence ids must be hashable (text, numbers): {error}.") from None
    return codes, object_array(list(places))


def id_array(ids: pl.Series) -> np.ndarray:
    """Return ids as an array: of int64 where they are whole numbers that fit, else of Python objects."""
    whole = ids.cast(pl.Int64, strict=False) if ids.dtype.is_integer() else None
    return object_array(ids.to_list()) if whole is None or whole.null_count() else whole.to_numpy()


def object_array(values: Sequence[Any]) -> np.ndarray:
    """Return Python objects as a one-dimensional array, tuples included."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _order(codes: np.ndarray, times: np.ndarray, sort: bool) -> np.ndarray | None:
    """Return the stable order that brings sequences together, or None where they already are."""
    grouped = bool(np.all(codes[1:] >= codes[:-1]))
    if not sort:
        return None if grouped else stable_order(codes)
    if grouped and not np.any((times[1:] < times[:-1]) & (codes[1:] == codes[:-1])):
        return None
    return stable_order(codes, times)


def stable_order(*keys: np.ndarray) -> np.ndarray:
    """Return the order that sorts by the keys, first key first; equal rows keep their order.

    One pass per key, last key first: 4 s for ten million rows and two keys, against 8 s of numpy's lexsort.
    """
    order = np.arange(len(keys[0]))
    for key in reversed(keys):
        order = order[
            pl.Series(key[order]).to_frame("x").select(pl.arg_sort_by("x", maintain_order=True))["x"]
        ]
    return order


def _labels_of(types: pl.Series, name: str, first_row: int) -> pl.Series:
    _refuse_missing(types, f"The type in column {name!r}", first_row)
    _refuse_nested(types, name, "A type must be one label")
    return types


def _refuse_nested(values: pl.Series, name: str | None, rule: str) -> None:
    if isinstance(values.dtype, (pl.List, pl.Array, pl.Struct)):
        raise DataError(f"Column {name!r} holds {values.dtype}. {rule}: text, a number, a date.")


def _refuse_missing(values: pl.Series, what: str, first_row: int) -> None:
    missing = _missing(values)
    if missing is not None:
        raise DataError(f"{what} is missing in row {first_row + missing}. Fill it in, or drop the row.")


def _missing(values: pl.Series) -> int | None:
    """Return the first position without a value (null or NaN), or None."""
    if values.dtype == pl.Object:
        gone = (i for i, value in enumerate(values.to_list()) if value is None or value != value)
        return next(gone, None)
    absent = values.is_null() | values.is_nan() if values.dtype.is_float() else values.is_null()
    return absent.fill_null(True).arg_max() if absent.any() else None


def _refuse_bad_times(times: np.ndarray, given: pl.Series, where: str, first_row: int) -> None:
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        value = given[int(bad[0])]
        state = "missing" if value is None else f"{value!r}, not finite,"
        raise DataError(f"The time in {where} is {state} in row {first_row + bad[0]}. Mend or drop the row.")


def _refuse_decreasing(events: Events) -> None:
    inner = np.ones(len(events.times), dtype=bool)
    starts = events.offsets[:-1]
    inner[starts[starts < len(inner)]] = False
    falls = np.flatnonzero((np.diff(events.times, prepend=-np.inf) < 0) & inner)
    if len(falls):
        i = int(falls[0])
        late, early = events.clock.show(events.times[i]), events.clock.show(events.times[i - 1])
        where = events.place(i)
        cure = (
            "Sort the table, or pass sort=True."
            if events.rows is not None
            else "Sort them, or pass sort=True."
        )
        raise DataError(f"Times decrease in {where} ({late} after {early}). {cure}")


def events_of_pairs(pairs: Iterable[Any], ids: Sequence[Any] | None, *, sort: bool) -> Events:
    """Join a list of pairs (times, types), one pair per sequence; empty ones are kept."""
    pairs = list(pairs)
    columns = [_pair(pair, number) for number, pair in enumerate(pairs)]
    if not columns:
        raise DataError("The list holds no sequences. At least one event is needed.")
    lengths = np.array([len(times) for times, _ in columns], dtype=np.int64)
    for number, (times, types) in enumerate(columns):
        if len(times) != len(types):
            raise DataError(f"Sequence {number} has {len(times)} times, but {len(types)} types.")
    if not lengths.sum():
        raise DataError("All sequences are empty. At least one event is needed.")
    keys = _given_ids(ids, len(columns))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return _joined(_join_times(columns), _join_types(columns), offsets, keys, sort)


def _pair(pair: Any, number: int) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or any(not hasattr(p, "__len__") for p in pair):
        raise TypeError(
            f"Sequence {number} is {_short(pair)}, not a pair (times, types) of two lists. "
            "One sequence alone is given as [(times, types)]."
        )
    if any(isinstance(part, (str, bytes)) for part in pair):
        raise TypeError(f"Sequence {number} holds a text where a list of times or types was expected.")
    return pair[0], pair[1]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _given_ids(ids: Sequence[Any] | None, n: int) -> np.ndarray:
    if ids is None:
        return np.arange(n, dtype=np.int64)
    keys = list(ids)
    if len(keys) != n:
        raise DataError(f"{len(keys)} ids were given for {n} sequences.")
    if len(set(keys)) < n:
        raise DataError(f"Id {first_repeat(keys)!r} comes twice. Each sequence needs an id of its own.")
    whole = all(isinstance(key, (int, np.integer)) and not isinstance(key, bool) for key in keys)
    return np.array(keys, dtype=np.int64) if whole else object_array(keys)


def _join_times(columns: list[tuple[Any, Any]]) -> pl.Series:
    """Join the times; lists of dates go through polars, all else through numpy."""
    parts = [_time_part(times, number) for number, (times, _) in enumerate(columns) if len(times)]
    units = {part.dtype.time_unit for part in parts if isinstance(part.dtype, pl.Datetime)}
    if len(units) > 1:  # the finest unit in use holds all of them exactly
        finest = max(units, key=("ms", "us", "ns").index)
        parts = [
            part.dt.cast_time_unit(finest) if isinstance(part.dtype, pl.Datetime) else part for part in parts
        ]
    try:
        return pl.concat(parts)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"The times of the sequences differ in kind: {error}.") from None


def _time_part(times: Any, number: int) -> pl.Series:
    try:
        part = column_of("t", times)
    except (TypeError, ValueError, pl.exceptions.PolarsError):
        raise DataError(
            f"The times of sequence {number} are neither numbers nor dates: {_short(times)}."
        ) from None
    if isinstance(part.dtype, (pl.List, pl.Array)):
        raise DataError(f"The times of sequence {number} have more than one axis. Give a flat list.")
    return part.cast(pl.Float64) if part.dtype.is_numeric() or part.dtype == pl.Null else _dates(part)


def _join_types(columns: list[tuple[Any, Any]]) -> pl.Series:
    parts = [types for _, types in columns if len(types)]
    if all(hasattr(part, "dtype") for part in parts):
        arrays = [np.asarray(part) for part in parts]
        if len({array.dtype.kind for array in arrays}) == 1 and arrays[0].dtype.kind in "iufb":
            return pl.Series("k", np.concatenate(arrays))
    values = [value for part in parts for value in (part.tolist() if hasattr(part, "tolist") else part)]
    return series_of_labels(values).alias("k")


def _joined(given: pl.Series, types: pl.Series, offsets: np.ndarray, ids: np.ndarray, sort: bool) -> Events:
    """Check and, if asked, sort events that came as lists."""
    clock = clock_of(_dates(given))
    times = to_numbers(given, clock, "The list of times")
    blank = Events(times, types, offsets, ids, clock, None)
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        value = given[int(bad[0])]
        state = "missing" if value is None else f"{value!r}, not finite,"
        raise DataError(f"The time is {state} in {blank.place(int(bad[0]))}. Mend or drop the event.")
    missing = _missing(types)
    if missing is not None:
        raise DataError(f"The type is missing in {blank.place(missing)}. Fill it in, or drop the event.")
    if sort:
        order = np.lexsort((times, np.repeat(np.arange(len(ids)), np.diff(offsets))))
        blank = replace(blank, times=times[order], types=_take(types, order))
    _refuse_decreasing(blank)
    return blank


def events_of_records(
    records: Iterable[Any], time: str, kind: str, ids: Sequence[Any] | None, *, sort: bool
) -> Events:
    """Join records in the "gatech" form: one mapping of lists per sequence, or one list of mappings."""
    records = list(records)
    columns = [_record(record, number, time, kind) for number, record in enumerate(records)]
    events = events_of_pairs([(times, types) for times, types, _, _ in columns], ids, sort=sort)
    if (
        events.clock.zero is None and not sort
    ):  # the unit of gaps between dates, or of unsorted ones, is not known
        for number, (times, _, gaps, _) in enumerate(columns):
            _check_gaps(times, gaps, number)
    stated = {size for *_, size in columns if size is not None}
    if len(stated) > 1:
        raise DataError(f"The records state different numbers of types (dim_process): {sorted(stated)}.")
    return replace(events, n_types=stated.pop() if stated else None)


def _record(record: Any, number: int, time: str, kind: str) -> tuple[Any, Any, Any, int | None]:
    """Return times, types, gaps (or None) and the stated number of types (or None) of a record."""
    if isinstance(record, Mapping):
        need_columns(pl.DataFrame(schema=[str(key) for key in record]), [time, kind])
        return record[time], record[kind], record.get("time_since_last_event"), record.get("dim_process")
    if not isinstance(record, (list, tuple)) or not all(isinstance(event, Mapping) for event in record):
        raise TypeError(f"Record {number} is {_short(record)}, neither a mapping nor a list of mappings.")
    for event in record:
        need_columns(pl.DataFrame(schema=[str(key) for key in event]), [time, kind])
    gaps = [event.get("time_since_last_event") for event in record]
    whole = None if any(gap is None for gap in gaps) else gaps
    return [event[time] for event in record], [event[kind] for event in record], whole, None


def _check_gaps(times: Any, gaps: Any, number: int) -> None:
    """Refuse gaps that contradict the times: one of the two must be wrong."""
    if gaps is None:
        return
    if len(gaps) != len(times):
        raise DataError(
            f"Sequence {number} has {len(times)} times, but {len(gaps)} values of time_since_last_event."
        )
    clock = np.asarray(times, dtype=np.float64)
    real = np.diff(clock)
    stated = np.asarray(gaps, dtype=np.float64)[1:]
    # Files made from float32 hold seven digits of a time, hence a tolerance that grows with it.
    wrong = np.flatnonzero(~(np.abs(real - stated) <= 1e-9 + 1e-6 * np.abs(clock[1:])))
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"time_since_last_event is {float(stated[i])!r} in sequence {number} at position {i + 1}, "
            f"but the times are {float(real[i])!r} apart. Mend the record, or leave time_since_last_event out."
        )


def _events_of_lists(frame: pl.DataFrame, seq: str | None, time: str, kind: str, *, sort: bool) -> Events:
    """Read a table with one row per sequence and lists in its cells."""
    ids = None if seq is None or seq not in frame.columns else frame[seq].to_list()
    return events_of_records(frame.to_dicts(), time, kind, ids, sort=sort)


def without_duplicates(events: Events) -> Events:
    """Drop events that repeat an earlier one's sequence, time and type."""
    codes = np.repeat(np.arange(len(events.ids)), np.diff(events.offsets))
    types = events.types
    if types.dtype == pl.Object:
        numbers: dict[Any, int] = {}
        types = pl.Series([numbers.setdefault(label, len(numbers)) for label in types.to_list()])
    table = pl.DataFrame({"s": codes, "t": events.times, "k": types})
    keep = np.flatnonzero(table.select(pl.struct("s", "t", "k").is_first_distinct()).to_series().to_numpy())
    if len(keep) == len(codes):
        return events
    offsets = np.searchsorted(keep, events.offsets).astype(np.int64)
    rows = None if events.rows is None else events.rows[keep]
    return replace(
        events, times=events.times[keep], types=_take(events.types, keep), offsets=offsets, rows=rows
    )
