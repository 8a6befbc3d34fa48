import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqattn.data.clock import clock_of, moment, to_numbers

EARLY, LATE = -2_000_000_000, 4_000_000_000  # seconds: 1906 to 2096


@given(st.lists(st.integers(EARLY * 10**6, LATE * 10**6), min_size=1), st.sampled_from([None, "Asia/Tokyo"]))
def test_microseconds_come_back_exactly(ticks, zone):
    dates = pl.Series("t", ticks, dtype=pl.Int64).cast(pl.Datetime("us"))
    if zone is not None:
        dates = dates.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    clock = clock_of(dates)
    numbers = to_numbers(dates, clock, "Column 't'")
    assert numbers.min() == 0.0
    assert numbers == pytest.approx((np.array(ticks) - min(ticks)) / 1e6, rel=1e-15)
    assert clock.series(numbers).equals(dates)


def test_dates_of_finer_units_fit_on_a_coarser_clock():
    coarse = pl.Series([1_000]).cast(pl.Datetime("ms"))
    fine = pl.Series([2_500_000_001]).cast(pl.Datetime("ns"))
    assert to_numbers(fine, clock_of(coarse), "x").tolist() == [1.500000001]


def test_numbers_have_a_clock_without_zero():
    clock = clock_of(pl.Series([3, 4]))
    assert (clock.unit, clock.zero, clock.time_zone) == (None, None, None)
    assert clock.show(2) == "2.0"
    assert moment(np.int8(3), clock, "x") == 3.0


def test_missing_dates_become_nan():
    dates = pl.Series([0, None]).cast(pl.Datetime("ns"))
    assert np.isnan(to_numbers(dates, clock_of(dates), "x")).tolist() == [False, True]
