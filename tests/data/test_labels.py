import datetime as dt
import json
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqattn.data.labels import (
    check_labels,
    code_labels,
    decode_label,
    encode_label,
    label_list,
    series_of_labels,
)
from seqattn.errors import DataError, ParameterError

YEARS = (dt.datetime.min + dt.timedelta(9), dt.datetime.max - dt.timedelta(9))  # noqa: DTZ901 - hypothesis asks so

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.dates(),
    st.times().map(lambda time: time.replace(fold=0)),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.builds(
        lambda moment, zone: moment.replace(fold=0).astimezone(ZoneInfo(zone)),
        st.datetimes(*YEARS, timezones=st.just(dt.UTC)),
        st.sampled_from(["Europe/Berlin", "UTC"]),
    ),
    st.datetimes(timezones=st.sampled_from([None, dt.UTC])).map(lambda moment: moment.replace(fold=0)),
)


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5))
def test_labels_survive_json_with_their_kind(label):
    back = decode_label(json.loads(json.dumps(encode_label(label))))
    assert back == label
    assert type(back) is type(label)
    assert repr(back) == repr(label)


def test_numpy_labels_are_written_as_python_ones():
    assert encode_label(np.int16(3)) == 3
    assert encode_label(np.str_("a")) == "a"


def test_a_label_that_cannot_be_written_is_refused():
    with pytest.raises(DataError, match=r"frozenset.*Use text, numbers, dates"):
        encode_label(frozenset({1}))
    with pytest.raises(DataError, match="^Id frozenset"):
        encode_label(frozenset({1}), "Id")
    with pytest.raises(DataError, match="no time zone 'Nowhere/None'"):
        decode_label({"datetime": ["2024-01-01T00:00:00+00:00", "Nowhere/None"]})
    with pytest.raises(DataError, match="is not a label"):
        decode_label({"what": 1})


@given(st.lists(st.sampled_from(["b", "a", "c", "ä"]), min_size=1))
def test_codes_point_to_their_labels_in_sorted_order(values):
    codes, labels = code_labels(pl.Series(values))
    assert [labels[code] for code in codes] == values
    assert list(labels) == sorted(set(values))


@pytest.mark.parametrize(
    "values", [[3, 1, 3], [0, 2, 1], [1.5, 0.5], [True, False], [dt.date(2024, 1, 2), dt.date(2024, 1, 1)]]
)
def test_codes_of_all_kinds_of_label(values):
    codes, labels = code_labels(series_of_labels(values))
    assert [labels[code] for code in codes] == values
    assert list(labels) == sorted(set(values))
    assert codes.dtype == np.int32


def test_labels_that_cannot_be_sorted_come_in_order_of_appearance():
    codes, labels = code_labels(series_of_labels(["b", 1, (2, 3), "b"]))
    assert labels == ("b", 1, (2, 3))
    assert codes.tolist() == [0, 1, 2, 0]


def nights_end():
    """Return four moments half an hour apart, of which Python's dates take the last two for the first two."""
    moments = pl.Series([1603584000 + 1800 * i for i in range(4)]) * 1000
    return moments.cast(pl.Datetime("ms", "Europe/Berlin"))


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([1_001, 1_002]).cast(pl.Datetime("ns")),
        pl.Series([1_001, 1_002]).cast(pl.Time),
        nights_end(),
    ],
    ids=["nanoseconds", "times of day", "the end of summer time"],
)
def test_types_that_python_cannot_tell_apart_are_refused(values):
    with pytest.raises(DataError, match="are the same label .* Cast the column to text"):
        code_labels(values)


def test_unhashable_labels_are_refused():
    with pytest.raises(DataError, match="must be hashable"):
        code_labels(pl.Series([{1}, {2}], dtype=pl.Object))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (0, "at least 1"),
        ("abc", "is not a list of labels"),
        (2.5, "is not a list of labels"),
        (True, "is not a list of labels"),
        (["a", "b", "a"], "'a' comes twice"),
        (["a", None], "missing value"),
        ([1.0, float("nan")], "missing value"),
        ([[1], [2]], "must be hashable"),
        ([], "is empty"),
    ],
)
def test_wrong_labels_arguments_are_explained(labels, message):
    with pytest.raises(ParameterError, match=message):
        check_labels(labels)


def test_labels_may_be_numpy_arrays_or_a_number():
    assert check_labels(np.array([2, 1])) == (2, 1)
    assert check_labels(np.int64(2)) == (0, 1)


def test_long_lists_of_labels_are_shortened():
    assert label_list(range(25)).endswith("19 and 5 more")
