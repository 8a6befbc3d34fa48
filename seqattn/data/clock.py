"""How times in a user's table become seconds or plain numbers, and back."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from seqattn.data.table import column_of
from seqattn.errors import DataError

__all__ = ["Clock", "clock_of", "moment", "to_numbers"]

_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Clock:
    """Says what a number of the time axis means.

    Attributes
    ----------
    unit
        "s" where the times were dates or durations, None where they were plain numbers.
    zero
        The moment of time 0 where the times were dates (``numpy.datetime64``; in UTC where there is a time
        zone), else None.
    time_zone
        Name of the time zone of the dates, or None.
    """

    unit: str | None = None
    zero: np.datetime64 | None = None
    time_zone: str | None = None

    @property
    def resolution(self) -> str:
        """The unit that dates are counted in: "ms", "us" or "ns"."""
        return str(np.datetime_data(self.zero)[0]) if self.zero is not None else "ns"

    def series(self, times: Any, name: str = "t") -> pl.Series:
        """Return numbers of the time axis as dates, or as they are where there were no dates.

        Examples
        --------
        >>> Clock("s", np.datetime64("2024-01-01", "us")).series([1.5]).to_list()
        [datetime.datetime(2024, 1, 1, 0, 0, 1, 500000)]
        """
        values = np.asarray(times, dtype=np.float64)
        if self.zero is None:
            return pl.Series(name, values)
        ticks = np.round(values * _PER_SECOND[self.resolution]).astype(np.int64) + self.zero.astype(np.int64)
        dates = pl.Series(name, ticks).cast(pl.Datetime(self.resolution))  # type: ignore[arg-type]
        if self.time_zone is None:
            return dates
        return dates.dt.replace_time_zone("UTC").dt.convert_time_zone(self.time_zone)

    def show(self, time: float | int) -> str:
        """Return one time as a text for messages."""
        return repr(float(time)) if self.zero is None else str(self.series([time])[0])


def clock_of(times: pl.Series) -> Clock:
    """Return the clock that a column of times implies; its zero is the earliest moment."""
    if isinstance(times.dtype, pl.Duration):
        return Clock("s")
    if not isinstance(times.dtype, pl.Datetime):
        return Clock()
    resolution, zone = times.dtype.time_unit, times.dtype.time_zone
    earliest: Any = times.to_physical().min()
    zero: Any = np.array(earliest or 0, dtype=f"datetime64[{resolution}]")[()]
    return Clock("s", zero, zone)


def to_numbers(times: pl.Series, clock: Clock, what: str) -> np.ndarray:
    """Return a column of times as float64 numbers on a clock.

    Parameters
    ----------
    times
        Numbers, dates or durations.
    clock
        The clock of the set.
    what
        The place, to begin messages with, such as ``"Column 't'"``.

    Raises
    ------
    DataError
        The column holds text or truth values, or numbers where the clock has dates or the reverse.
    """
    times = _as_times(times, what)
    if times.dtype.is_numeric():
        if clock.zero is not None:
            raise DataError(f"{what} holds numbers, but the event times are dates. Pass dates.")
        return times.cast(pl.Float64).to_numpy()
    if isinstance(times.dtype, pl.Duration):
        return times.to_physical().cast(pl.Float64).to_numpy() / _PER_SECOND[times.dtype.time_unit]
    return _dates_to_numbers(times, clock, what)


def _as_times(times: pl.Series, what: str) -> pl.Series:
    """Return the column if it can be one of times, with days as moments."""
    kind = times.dtype
    if kind == pl.Date:
        return times.cast(pl.Datetime("us"))
    if kind.is_numeric() or isinstance(kind, (pl.Datetime, pl.Duration)):
        return times
    if kind == pl.Null:
        return times.cast(pl.Float64)
    found = {pl.String: "text", pl.Boolean: "truth values"}.get(kind.base_type(), f"values of type {kind}")
    example = (
        f", such as {next(v for v in times if v is not None)!r}" if times.null_count() < len(times) else ""
    )
    raise DataError(
        f"{what} holds {found}{example}, not times. Give numbers or dates "
        "(text becomes dates with polars' str.to_datetime or pandas.to_datetime)."
    )


def _dates_to_numbers(times: pl.Series, clock: Clock, what: str) -> np.ndarray:
    """Subtract the clock's zero in whole ticks, so that no digit is lost, then convert to seconds."""
    if clock.zero is None:
        raise DataError(f"{what} holds dates, but the event times are numbers. Pass numbers.")
    zone = times.dtype.time_zone  # type: ignore[attr-defined]
    if (zone is None) != (clock.time_zone is None):
        have, lack = ("has", "have none") if zone else ("has no", "have one")
        raise DataError(f"{what} {have} time zone, but the event times {lack}. Give both alike.")
    unit = max(times.dtype.time_unit, clock.resolution, key=_PER_SECOND.__getitem__)  # type: ignore[attr-defined]
    ticks = times.dt.cast_time_unit(unit).to_physical().fill_null(0).to_numpy()
    zero = clock.zero.astype(f"datetime64[{unit}]").astype(np.int64)
    whole, part = np.divmod(ticks - zero, _PER_SECOND[unit])
    return np.where(times.is_null().to_numpy(), np.nan, whole + part / _PER_SECOND[unit])


def moment(value: Any, clock: Clock, what: str) -> float:
    """Return one number or date of the caller on a clock."""
    if isinstance(value, str) and clock.zero is not None:
        value = dt.datetime.fromisoformat(value)
    column = column_of("", np.asarray([value]) if isinstance(value, np.generic) else [value])
    return float(to_numbers(column, clock, what)[0])
