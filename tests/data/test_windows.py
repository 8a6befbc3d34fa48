import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest

from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, ParameterError, SeqattnWarning

PAIRS = [([1.0, 4.0], ["a", "b"]), ([2.0, 6.0], ["b", "b"])]


def bounds(data: Sequences) -> list[tuple[float, float, int]]:
    return list(zip(data.start.tolist(), data.end.tolist(), data.context.tolist(), strict=True))


@pytest.mark.parametrize(
    ("window", "expected", "kind"),
    [
        ("last_event", [(1, 4, 1), (2, 6, 1)], "last_event"),
        ("max", [(1, 6, 1), (2, 6, 1)], "max"),
        ((0, "last_event"), [(0, 4, 0), (0, 6, 0)], "last_event"),
        ((0, "max"), [(0, 6, 0), (0, 6, 0)], "max"),
        ((None, "max"), [(1, 6, 1), (2, 6, 1)], "max"),
        ((None, 10), [(1, 10, 1), (2, 10, 1)], "given"),
        ((0, 10), [(0, 10, 0), (0, 10, 0)], "given"),
        ((1, 6), [(1, 6, 0), (2 - 1, 6, 0)], "given"),
        ({0: (0, 5), 1: (None, 7)}, [(0, 5, 0), (2, 7, 1)], "given"),
    ],
)
def test_each_form_of_window(window, expected, kind):
    data = Sequences.of(PAIRS, window=window)
    assert bounds(data) == expected
    assert data.window == kind


@pytest.mark.parametrize("kind", [pl.DataFrame, pd.DataFrame, dict], ids=["polars", "pandas", "mapping"])
def test_a_table_of_windows_keeps_sequences_without_events(kind):
    table = {"user": ["a", "a", "b"], "t": [1.0, 2.0, 5.0], "k": [0, 1, 0]}
    windows = kind({"user": ["c", "b", "a", "d"], "t0": [0.0, None, 0.5, 3.0], "t1": [1.0, 6.0, 2.0, 9.0]})
    data = Sequences.of(kind(table), seq="user", window=windows)
    assert data.ids.tolist() == ["a", "b", "c", "d"]
    assert data.lengths.tolist() == [2, 1, 0, 0]
    assert bounds(data) == [(0.5, 2, 0), (5, 6, 1), (0, 1, 0), (3, 9, 0)]


def test_columns_t0_and_t1_of_the_event_table_mean_nothing():
    table = {"seq_id": [1, 1], "t": [1.0, 2.0], "k": [0, 0], "t0": [0.0, 0.0], "t1": [9.0, 9.0]}
    assert bounds(Sequences.of(table)) == [(1, 2, 1)]


def test_empty_sequences_are_kept_where_their_window_is_known():
    data = Sequences.from_lists([*PAIRS, ([], [])], window=(0, 8))
    assert data.lengths.tolist() == [2, 2, 0]
    assert bounds(data)[2] == (0, 8, 0)
    assert bounds(Sequences.from_lists([*PAIRS, ([], [])], window=(0, "max")))[2] == (0, 6, 0)


@pytest.mark.parametrize("window", ["last_event", "max", (0, "last_event"), (None, 9)])
def test_empty_sequences_are_dropped_with_a_warning_where_it_is_not(window):
    with pytest.warns(SeqattnWarning, match="1 empty sequence was dropped") as caught:
        data = Sequences.from_lists([PAIRS[0], ([], []), PAIRS[1]], window=window)
    assert len(caught) == 1
    assert data.ids.tolist() == [0, 2]
    assert data.lengths.tolist() == [2, 2]


def test_one_event_is_kept():
    data = Sequences.from_lists([([3.0], ["a"])])
    assert bounds(data) == [(3, 3, 1)]
    assert data.n_scored == 0
    assert Sequences.from_lists([([3.0], ["a"])], window=(0, 5)).n_scored == 1


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (
            (1.5, 9),
            "The first event of sequence 0 is at 1.0, before its window begins at T0 = 1.5. Give an earlier T0, or",
        ),
        (
            (0, 5),
            "The last event of sequence 1 is at 6.0, after its window ends at T1 = 5.0. Give a later T1, or",
        ),
        ({0: (0, 5), 1: (3, 7)}, "The first event of sequence 1 is at 2.0, before its window"),
        ({0: (0, 5)}, "Sequence 1 has events, but no window."),
        (
            {0: (0, 5), 1: (9, 7)},
            "The window of sequence 1 is [9.0, 7.0]. T1 must be finite and not before T0.",
        ),
        ((5, 1), "The window ends at 1.0, before it begins at 5.0."),
        ((0, float("inf")), "T1 of window= is inf, but must be finite."),
        ((float("nan"), 5), "T0 of window= is nan, but must be finite."),
        ((0, dt.date(2024, 1, 1)), "T1 of window= holds dates, but the event times are numbers."),
        (pl.DataFrame({"seq_id": [0, 0], "t0": [0, 0], "t1": [9, 9]}), "Sequence 0 has two windows."),
        (
            pl.DataFrame({"seq_id": [0, 1], "t0": [0, 0], "t1": [9, None]}),
            "The window of sequence 1 is [0.0, nan].",
        ),
        (pl.DataFrame({"seq": [0, 1], "t0": [0, 0], "t1": [9, 9]}), "Did you mean 'seq'?"),
    ],
)
def test_windows_that_do_not_fit_are_refused_with_the_place(window, message):
    with pytest.raises(DataError) as caught:
        Sequences.of(PAIRS, window=window)
    assert message in str(caught.value)


@pytest.mark.parametrize("window", ["first", 5, None, (1, 2, 3), ("max", 5), (0, "end"), (0, None), ([], 5)])
def test_windows_that_mean_nothing_are_parameter_errors(window):
    with pytest.raises(ParameterError, match=r"window="):
        Sequences.of(PAIRS, window=window)


def test_a_mapping_must_hold_pairs():
    with pytest.raises(ParameterError, match=r"window\[0\] is 5, not a pair"):
        Sequences.of(PAIRS, window={0: 5, 1: (0, 9)})


def test_negative_times_warn_once_where_the_first_event_gave_t0():
    with pytest.warns(SeqattnWarning, match="negative, and T0 was taken from the first event") as caught:
        data = Sequences.from_lists([([-3.0, 1.0], [0, 0]), ([-1.0, 1.0], [0, 0])])
    assert len(caught) == 1
    assert bounds(data) == [(-3, 1, 1), (-1, 1, 1)]


def test_negative_times_are_fine_where_t0_is_given():
    assert bounds(Sequences.from_lists([([-3.0, 1.0], [0, 0])], window=(-5, 2))) == [(-5, 2, 0)]


def test_windows_of_dates_count_in_seconds_from_the_earliest_event():
    days = [dt.date(2024, 1, day) for day in (2, 3)]
    data = Sequences.of(
        {"seq_id": [1, 1], "t": days, "k": [0, 0]}, window=(dt.date(2024, 1, 1), dt.date(2024, 1, 4))
    )
    assert bounds(data) == [(-86400, 2 * 86400, 0)]
    assert (
        Sequences.of({"seq_id": [1, 1], "t": days, "k": [0, 0]}, window=("2024-01-01", "max")).start[0]
        == -86400
    )


def test_windows_and_events_must_agree_on_zones_and_kind():
    zoned = pl.DataFrame({"seq_id": [1], "t": [dt.datetime(2024, 1, 1, tzinfo=dt.UTC)], "k": [0]})
    with pytest.raises(DataError, match=r"T1 of window= has no time zone, but the event times have one"):
        Sequences.of(zoned, window=(None, dt.date(2025, 1, 1)))
    with pytest.raises(DataError, match=r"T1 of window= holds numbers, but the event times are dates"):
        Sequences.of(zoned, window=(None, 5))
    data = Sequences.of(zoned, window=(None, dt.datetime(2024, 1, 1, 0, 1, tzinfo=dt.UTC)))
    assert data.end[0] == 60.0


def test_pandas_moments_can_bound_windows():
    data = Sequences.of(
        pd.DataFrame({"seq_id": [1], "t": pd.to_datetime(["2024-01-02"]), "k": [0]}),
        window=(pd.Timestamp("2024-01-01"), np.datetime64("2024-01-03", "s")),
    )
    assert bounds(data) == [(-86400, 86400, 0)]
