"""What happens to single events that are wrong, in tables, lists and records."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest

from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, SeqattnWarning

TABLE = {"seq_id": ["u", "u", "v"], "t": [1.0, 2.0, 5.0], "k": ["a", "b", "a"]}
KINDS = [
    pytest.param(pl.DataFrame, id="polars"),
    pytest.param(pd.DataFrame, id="pandas"),
    pytest.param(dict, id="mapping"),
]


def with_column(**columns):
    return {**TABLE, **columns}


def refusal(data, **options) -> str:
    with pytest.raises(DataError) as caught:
        Sequences.of(data, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_decreasing_times_name_sequence_row_and_values(kind):
    table = kind({"seq_id": ["a", "u17", "a", "u17"], "t": [9.0, 13.5, 10.0, 12.0], "k": [0, 0, 0, 0]})
    assert refusal(table) == (
        "Times decrease in sequence 'u17' at row 3 (12.0 after 13.5). Sort the table, or pass sort=True."
    )


def test_decreasing_dates_are_shown_as_dates():
    days = [dt.date(2024, 1, 2), dt.date(2024, 1, 1)]
    message = refusal({"seq_id": [7, 7], "t": days, "k": [0, 0]})
    assert "sequence 7 at row 1 (2024-01-01 00:00:00 after 2024-01-02 00:00:00)" in message


def test_decreasing_times_in_lists_name_the_position():
    message = refusal([([1.0], [0]), ([2.0, 3.0, 1.0], [0, 1, 0])])
    assert (
        message == "Times decrease in sequence 1 at position 2 (1.0 after 3.0). Sort them, or pass sort=True."
    )


def test_a_new_sequence_may_begin_earlier_than_the_last_one_ended():
    assert Sequences.of({"seq_id": [1, 2], "t": [5.0, 1.0], "k": [0, 0]}).n_events == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_times_that_are_not_finite_name_the_row(kind, value):
    message = refusal(kind(with_column(t=[1.0, value, 5.0])))
    assert message.startswith("The time in column 't' is ")
    assert "in row 1" in message


@pytest.mark.parametrize("kind", KINDS)
def test_missing_times_name_the_row(kind):
    when = [dt.date(2024, 1, 1), None, dt.date(2024, 1, 2)]
    for column in ([1.0, None, 5.0], when):
        assert "column 't' is" in refusal(kind(with_column(t=column)))
        assert "in row 1" in refusal(kind(with_column(t=column)))
    assert "missing in row 0" in refusal(kind(with_column(t=[None, None, None])))


def test_bad_times_in_lists_name_sequence_and_position():
    assert "nan, not finite, in sequence 1 at position 1" in refusal([([1.0], [0]), ([1.0, np.nan], [0, 0])])
    assert "missing in sequence 0 at position 1" in refusal([([1.0, None], [0, 0])])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_types_name_the_row(kind):
    assert refusal(kind(with_column(k=["a", None, "b"]))) == (
        "The type in column 'k' is missing in row 1. Fill it in, or drop the row."
    )
    assert "missing in row 2" in refusal(kind(with_column(k=[1.0, 2.0, float("nan")])))


def test_missing_types_in_lists_name_sequence_and_position():
    assert "missing in sequence 1 at position 0" in refusal([([1.0], ["a"]), ([1.0], [None])])
    assert "missing in sequence 0 at position 1" in refusal([([1.0, 2.0], ["a", float("nan")])])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_ids_name_the_row(kind):
    assert "The id in column 'seq_id' is missing in row 2" in refusal(
        kind(with_column(seq_id=["u", "v", None]))
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("times", "found"), [(["1", "2", "3"], "text, such as '1'"), ([True, False, True], "truth values")]
)
def test_times_of_another_kind_are_refused(kind, times, found):
    message = refusal(kind(with_column(t=times)))
    assert f"Column 't' holds {found}" in message
    assert "Give numbers or dates" in message


def test_times_in_lists_of_another_kind_are_refused():
    assert "truth values" in refusal([([True, False], [0, 1])])
    assert "text" in refusal([(["1", "2"], [0, 1])])
    assert "more than one axis" in refusal([(np.zeros((2, 2)), [0, 1])])
    assert "differ in kind" in refusal([([1.0], [0]), ([dt.date(2024, 1, 1)], [0])])


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_rows_is_refused(kind):
    assert "no rows" in refusal(kind({"seq_id": [], "t": [], "k": []}))


@pytest.mark.parametrize(
    ("data", "message"), [([], "no sequences"), ([([], []), ([], [])], "All sequences are empty")]
)
def test_lists_without_events_are_refused(data, message):
    assert message in refusal(data, window=(0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_is_named_with_the_nearest(kind):
    table = kind({"seq": [1], "time": [1.0], "k": [0]})
    assert "Column 't' is not in the table. Columns: 'seq', 'time', 'k'." in refusal(table)
    assert "Column 'seq_id' is not in the table" in refusal(table, time="time")
    assert refusal(table, time="tim").endswith("Did you mean 'time'?")


def test_list_and_struct_columns_are_no_types():
    table = pl.DataFrame({"seq_id": [1], "t": [1.0], "k": [[1, 2]]})
    assert "A type must be one label" in refusal(table)


def test_lists_of_unequal_length_name_the_sequence():
    assert "Sequence 1 has 2 times, but 1 types" in refusal([([1.0], [0]), ([1.0, 2.0], [0])])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (([1.0, 2.0], [0, 1]), "not a pair"),
        ([[1.0, 2.0, 3.0]], "not a pair"),
        ([(1.0, 2)], r"One sequence alone is given as \[\(times, types\)\]"),
        ([([1.0], "a")], "holds a text"),
        (np.zeros((3, 2)), "cannot be read from ndarray"),
        (5, "cannot be read from int"),
        ([5], "cannot be read from list"),
        ([[{"time_since_start": 1.0, "type_event": 0}], 5], "neither a mapping nor a list"),
    ],
)
def test_something_that_holds_no_events_is_a_type_error(data, message):
    with pytest.raises(TypeError, match=message):
        Sequences.of(data)


def test_ids_of_lists_must_fit_and_differ():
    pairs = [([1.0], [0]), ([2.0], [0])]
    assert Sequences.from_lists(pairs, ids=["x", ("y", 1)]).ids.tolist() == ["x", ("y", 1)]
    with pytest.raises(DataError, match="1 ids were given for 2 sequences"):
        Sequences.from_lists(pairs, ids=["x"])
    with pytest.raises(DataError, match="'x' comes twice"):
        Sequences.from_lists(pairs, ids=["x", "x"])


def test_sorting_is_stable_and_by_sequence():
    table = {
        "seq_id": ["v", "u", "v", "u", "v"],
        "t": [2.0, 5.0, 1.0, 5.0, 2.0],
        "k": ["a", "b", "c", "d", "e"],
    }
    with pytest.warns(SeqattnWarning, match="2 of 3 gaps"):
        data = Sequences.of(table, sort=True)
    assert data.to_frame().rows() == [
        ("u", 5.0, "b"),
        ("u", 5.0, "d"),
        ("v", 1.0, "c"),
        ("v", 2.0, "a"),
        ("v", 2.0, "e"),
    ]


def test_lists_are_sorted_within_each_sequence():
    data = Sequences.from_lists([([2.0, 1.0], ["a", "b"]), ([1.0, 3.0, 0.5], ["c", "a", "b"])], sort=True)
    assert data.to_frame()["t"].to_list() == [1.0, 2.0, 0.5, 1.0, 3.0]
    assert data.to_frame()["k"].to_list() == ["b", "a", "b", "c", "a"]


def test_rows_of_a_sequence_need_not_stand_together():
    data = Sequences.of({"seq_id": ["v", "u", "v", "u"], "t": [1.0, 2.0, 3.0, 4.0], "k": [0, 1, 2, 3]})
    assert data.to_frame().rows() == [("v", 1.0, 0), ("v", 3.0, 2), ("u", 2.0, 1), ("u", 4.0, 3)]


TIED = {"seq_id": [1, 1, 1, 1, 2], "t": [1.0, 1.0, 1.0, 4.0, 4.0], "k": ["a", "b", "a", "a", "a"]}


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_are_dropped_where_asked(kind):
    with pytest.warns(SeqattnWarning, match="1 of 2 gaps between events are zero"):
        data = Sequences.of(kind(TIED), drop_duplicates=True)
    assert data.to_frame().rows() == [(1, 1.0, "a"), (1, 1.0, "b"), (1, 4.0, "a"), (2, 4.0, "a")]


def test_duplicates_of_mixed_labels_are_dropped_too():
    data = Sequences.from_lists([([1.0, 1.0, 2.0], [("x",), ("x",), 3])], drop_duplicates=True)
    assert data.to_frame()["t"].to_list() == [1.0, 2.0]


def test_without_duplicates_nothing_changes():
    assert Sequences.of(TABLE, drop_duplicates=True).digest() == Sequences.of(TABLE).digest()


def test_ties_are_counted_and_warned_of_once():
    with pytest.warns(SeqattnWarning) as caught:
        data = Sequences.of(TIED)
    (warning,) = caught
    assert str(warning.message) == (
        "2 of 3 gaps between events are zero (equal times in a sequence). They are kept; ties='jitter' spreads them "
        "inside the cell of the time grid."
    )
    assert data.times.tolist() == TIED["t"]


def test_equal_times_of_different_sequences_are_no_ties():
    Sequences.of({"seq_id": [1, 2], "t": [1.0, 1.0], "k": [0, 0]})


def test_ties_are_refused_where_asked():
    assert "2 of 3 gaps between events are zero" in refusal(TIED, ties="error")


def test_ties_are_spread_where_asked():
    data = Sequences.of(TIED, ties="jitter")
    first = data.sequence(0)[0]
    assert first[0] == 1.0
    assert first[3] == 4.0
    assert np.all(np.diff(first) > 0)
    assert data.label_array(data.types).tolist() == TIED["k"]
    assert np.array_equal(data.times, Sequences.of(TIED, ties="jitter").times)


def test_spread_ties_at_the_end_carry_the_window_along():
    data = Sequences.from_lists([([0.0, 2.0, 2.0], [0, 1, 0])], ties="jitter")
    assert data.times[2] > 2.0
    assert data.end[0] == data.times[2]
    fixed = Sequences.from_lists([([0.0, 2.0, 2.0], [0, 1, 0])], ties="jitter", window=(0, 2.5))
    assert 2.0 < fixed.times[2] <= 2.5 == fixed.end[0]


RECORD = {
    "time_since_start": [0.0, 0.5, 2.0],
    "time_since_last_event": [0.0, 0.5, 1.5],
    "type_event": [1, 0, 1],
}


def test_records_of_lists_and_lists_of_records_agree():
    events = [dict(zip(RECORD, values, strict=True)) for values in zip(*RECORD.values(), strict=True)]
    assert Sequences.of([RECORD]).digest() == Sequences.of([events]).digest() == Sequences.of(RECORD).digest()
    assert Sequences.of([RECORD]).to_frame().rows() == [(0, 0.0, 1), (0, 0.5, 0), (0, 2.0, 1)]


def test_gaps_that_contradict_the_times_are_refused():
    wrong = {**RECORD, "time_since_last_event": [0.0, 0.5, 1.4]}
    assert refusal([RECORD, wrong]) == (
        "time_since_last_event is 1.4 in sequence 1 at position 2, but the times are 1.5 apart. "
        "Mend the record, or leave time_since_last_event out."
    )
    assert "3 times, but 1 values of time_since_last_event" in refusal(
        [{**RECORD, "time_since_last_event": [0.0]}]
    )


def test_gaps_of_float32_agree_with_their_times():
    times = np.cumsum(np.random.default_rng(0).exponential(1.0, 500)).astype(np.float32)
    gaps = np.diff(times.astype(np.float64), prepend=0.0).astype(np.float32)
    record = {"time_since_start": times, "time_since_last_event": gaps, "type_event": np.zeros(500, int)}
    assert Sequences.of([record]).n_events == 500


def test_the_stated_number_of_types_is_kept_and_checked():
    assert Sequences.of([{**RECORD, "dim_process": 4}]).labels == (0, 1, 2, 3)
    assert "state 1 types (dim_process), 0 to 0, but hold type 1" in refusal([{**RECORD, "dim_process": 1}])
    assert "different numbers of types" in refusal(
        [{**RECORD, "dim_process": 4}, {**RECORD, "dim_process": 3}]
    )


def test_a_record_without_an_entry_is_refused():
    message = refusal(
        [{"time_since_start": [0.0], "type_events": [0]}],
    )
    assert "'type_event' is not in the table" in message
    assert "Did you mean 'type_events'?" in message


def test_tables_with_one_sequence_per_row_equal_records():
    records = [{"seq_idx": i, **RECORD} for i in range(3)]
    assert Sequences.of(pl.DataFrame(records)).digest() == Sequences.of(records).digest()
    assert Sequences.of(pd.DataFrame(records)).digest() == Sequences.of(records).digest()
