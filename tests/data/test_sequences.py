import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, ParameterError, SeqattnWarning


def example(seed: int = 0, n: int = 12, window=(0, 200)) -> Sequences:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(n):
        size = int(rng.integers(0, 30))
        pairs.append((np.sort(rng.random(size)) * 100, rng.integers(0, 4, size)))
    return Sequences.from_lists(pairs, window=window, labels=4)


def table(seed: int = 0, n: int = 300) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {"seq_id": rng.integers(0, 20, n), "t": rng.random(n) * 100, "k": rng.integers(0, 5, n)}
    ).sort("seq_id", "t")


def arrays(data: Sequences) -> list[list]:
    names = ("times", "types", "offsets", "start", "end", "context", "ids")
    return [getattr(data, name).tolist() for name in names]


def test_arrays_have_the_stated_kinds():
    data = example()
    kinds = {"times": "f8", "types": "i4", "offsets": "i8", "start": "f8", "end": "f8", "context": "i8"}
    assert {name: getattr(data, name).dtype.str[1:] for name in kinds} == kinds
    assert data.ids.dtype == np.int64


@pytest.mark.parametrize("keys", ["int", "text"])
@pytest.mark.parametrize("types", ["int", "text", "category", "float"])
@pytest.mark.parametrize("times", ["float", "int", "date", "us", "ns", "zoned"])
def test_pandas_and_polars_give_identical_sequences(keys, types, times):
    frame = table()
    moment = pl.from_epoch((pl.col("t") * 1e3).round().cast(pl.Int64) + 1_700_000_000_000, time_unit="ms")
    columns = {
        "int": pl.col("t").round().cast(pl.Int32),
        "float": pl.col("t"),
        "date": pl.from_epoch(pl.col("t").cast(pl.Int32), time_unit="d"),
        "us": moment.cast(pl.Datetime("us")),
        "ns": moment.cast(pl.Datetime("ns")),
        "zoned": moment.cast(pl.Datetime("us"))
        .dt.replace_time_zone("UTC")
        .dt.convert_time_zone("Asia/Tokyo"),
    }
    labels = {
        "int": pl.col("k"),
        "text": pl.format("type {}", "k"),
        "category": pl.format("type {}", "k").cast(pl.Categorical),
        "float": pl.col("k") / 4,
    }
    frame = frame.with_columns(columns[times].alias("t"), labels[types].alias("k"))
    if keys == "text":
        frame = frame.with_columns(pl.format("user {}", "seq_id").alias("seq_id"))
    options = {"ties": "jitter"}
    digests = {Sequences.of(kind, **options).digest() for kind in (frame, frame.lazy(), frame.to_arrow())}
    foreign = frame.to_pandas()
    if times == "date":
        foreign["t"] = pd.to_datetime(foreign["t"]).astype("datetime64[us]")
    digests |= {Sequences.of(foreign, **options).digest()}
    assert len(digests) == 1


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_shuffled_rows_give_the_same_sequences_when_sorted(seed):
    frame = table().with_columns(pl.format("user {}", pl.col("seq_id") + 10).alias("seq_id"))
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=seed)
    assert Sequences.of(shuffled, sort=True).digest() == Sequences.of(frame).digest()
    assert Sequences.of(shuffled.to_pandas(), sort=True).digest() == Sequences.of(frame).digest()


def test_tables_lists_and_records_of_the_same_events_agree():
    frame = table()
    data = Sequences.of(frame)
    pairs = [data.sequence(i) for i in range(len(data))]
    assert Sequences.of(pairs).digest() == data.digest()
    assert Sequences.of([(list(t), list(k)) for t, k in pairs]).digest() == data.digest()
    records = [{"time_since_start": t, "type_event": k} for t, k in pairs]
    assert Sequences.of(records).digest() == data.digest()
    assert Sequences.of(record for record in records).digest() == data.digest()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_dates_become_seconds_and_come_back(unit, zone):
    moments = np.array(
        ["2024-03-31T00:30:00.000", "2024-03-31T01:30:00.250", "2024-03-31T03:00:00"], "datetime64[ms]"
    )
    column = pd.Series(moments.astype(f"datetime64[{unit}]"))
    whole = unit == "s"
    if zone is not None:
        column = column.dt.tz_localize("UTC").dt.tz_convert(zone)
    data = Sequences.of(pd.DataFrame({"seq_id": [1, 1, 1], "t": column, "k": [0, 1, 0]}))
    assert data.times.tolist() == [0.0, 3600.0 if whole else 3600.25, 9000.0]
    assert (data.unit, data.time_zone) == ("s", zone)
    back = data.to_frame()["t"]
    assert back.dtype.time_zone == zone
    assert [v.isoformat() for v in back.to_list()] == [v.to_pydatetime().isoformat() for v in column]


def test_the_finest_dates_keep_their_gaps():
    base = 1_700_000_000_000_000_000
    ticks = pl.Series("t", [base, base + 1, base + 1_000_000_007]).cast(pl.Datetime("ns"))
    data = Sequences.of(pl.DataFrame({"seq_id": [0, 0, 0], "t": ticks, "k": [0, 0, 0]}))
    assert data.times.tolist() == [0.0, 1e-9, 1.000000007]
    assert data.to_frame()["t"].equals(ticks)


def test_lists_of_dates_equal_the_table():
    days = [dt.date(2024, 1, 1), dt.date(2024, 1, 3)]
    data = Sequences.from_lists([(days, ["a", "b"]), (np.array(days, "datetime64[D]"), ["b", "a"])])
    assert data.times.tolist() == [0.0, 172800.0] * 2
    assert data.to_frame()["t"].dt.date().to_list() == days * 2


def test_durations_become_seconds():
    data = Sequences.of({"seq_id": [1, 1], "t": np.array([500, 2000], "timedelta64[ms]"), "k": [0, 0]})
    assert data.times.tolist() == [0.5, 2.0]
    assert data.unit == "s"
    assert data.zero is None


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "uint64"])
def test_times_of_every_numeric_kind_become_float64(kind):
    data = Sequences.of({"seq_id": [1, 1], "t": np.array([1, 3], kind), "k": [0, 0]})
    assert data.times.dtype == np.float64
    assert data.times.tolist() == [1.0, 3.0]


def test_large_epochs_keep_their_gaps():
    data = Sequences.of({"seq_id": [1, 1], "t": [1.7e9, 1.7e9 + 0.25], "k": [0, 0]})
    assert np.diff(data.times).tolist() == [0.25]


def test_labels_of_mixed_kind_survive():
    pairs = [([1.0, 2.0, 3.0], ["b", 1, (2, "x")])]
    data = Sequences.from_lists(pairs)
    assert data.labels == ("b", 1, (2, "x"))
    assert data.label_array(data.types).tolist() == pairs[0][1]
    assert data.to_frame()["k"].to_list() == pairs[0][1]


def test_labels_are_sorted_whatever_their_order_of_appearance():
    one = Sequences.from_lists([([1.0, 2.0], ["b", "a"])])
    assert one.labels == ("a", "b")
    assert one.types.tolist() == [1, 0]


def test_label_arrays_have_the_kind_of_the_labels():
    assert Sequences.from_lists([([1.0], [3])]).label_array([0]).dtype == np.int64
    assert Sequences.from_lists([([1.0], ["a"])]).label_array([0]).dtype == object


def test_a_number_of_labels_keeps_types_that_do_not_occur():
    data = Sequences.from_lists([([1.0, 2.0], [3, 0])], labels=5)
    assert data.labels == (0, 1, 2, 3, 4)
    assert data.types.tolist() == [3, 0]


def test_an_unknown_type_is_refused_with_the_labels():
    with pytest.raises(DataError) as caught:
        Sequences.from_lists([([1.0, 2.0, 3.0], ["a", "z", "z"])], labels=["a", "b"])
    assert str(caught.value) == (
        "Type 'z' is not among the labels (2 of 3 events). Labels: 'a', 'b'. "
        "Pass unknown='ignore' to leave these events out."
    )


def test_unknown_types_are_dropped_with_their_number_where_asked():
    pairs = [([1.0, 2.0, 3.0], ["z", "a", "b"]), ([1.0], ["z"])]
    with pytest.warns(
        SeqattnWarning, match=r"2 of 4 events have types that are not among the labels \('z'\)"
    ):
        data = Sequences.from_lists(pairs, labels=["b", "a"], unknown="ignore", window=(0, 5))
    assert data.to_frame().rows() == [(0, 2.0, "a"), (0, 3.0, "b")]
    assert data.lengths.tolist() == [2, 0]
    assert data.end.tolist() == [5, 5]


def test_a_dropped_origin_leaves_the_window_and_is_no_longer_history():
    data = Sequences.from_lists([([1.0, 2.0, 3.0], ["z", "a", "b"])])
    assert data.context.tolist() == [1]
    with pytest.warns(SeqattnWarning, match="1 of 3 events"):
        left = data.relabel(["a", "b"], unknown="ignore")
    assert (left.start.tolist(), left.end.tolist(), left.context.tolist()) == ([1.0], [3.0], [0])


def test_reading_with_labels_equals_relabelling_afterwards():
    frame = table()
    with pytest.warns(SeqattnWarning, match="dropped from history"):
        read = Sequences.of(frame, labels=[4, 0, 2], unknown="ignore")
    with pytest.warns(SeqattnWarning, match="dropped from history"):
        assert Sequences.of(frame).relabel([4, 0, 2], "ignore").digest() == read.digest()
    with pytest.warns(SeqattnWarning, match="dropped from history"):
        assert Sequences.of(Sequences.of(frame), labels=[4, 0, 2], unknown="ignore").digest() == read.digest()


def test_relabelling_with_permuted_labels_changes_codes_only():
    data = Sequences.of(table())
    other = data.relabel(data.labels[::-1])
    assert np.array_equal(other.types, data.n_types - 1 - data.types)
    assert other.to_frame().equals(data.to_frame())
    assert other.relabel(data.labels).digest() == data.digest()


def test_no_known_type_at_all_is_refused():
    with pytest.raises(DataError, match=r"None of the 1 events .* Found: 'z'\. Labels: 'a'\."):
        Sequences.from_lists([([1.0], ["z"])], labels=["a"], unknown="ignore")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown": "drop"}, "unknown='drop' is not one of 'error', 'ignore'"),
        ({"ties": "drop"}, "ties='drop' is not one of 'allow', 'jitter', 'error'"),
        ({"chunk": 0}, "chunk=0 must be a whole number of at least 1"),
        ({"chunk": 3, "left_context": -1}, "left_context=-1 must be a whole number of at least 0"),
        ({"left_context": 3}, "only applies together with chunk="),
        ({"windows": (0, 1)}, r"no option 'windows' here.*Did you mean 'window'\?"),
    ],
)
def test_wrong_options_are_parameter_errors(options, message):
    for data in ({"seq_id": [1], "t": [1.0], "k": [0]}, [([1.0], [0])]):
        with pytest.raises(ParameterError, match=message):
            Sequences.of(data, **options)


def test_sequences_pass_through_and_take_only_labels():
    data = example()
    assert Sequences.of(data) is data
    with pytest.raises(ParameterError, match="'window' does not apply to Sequences"):
        Sequences.of(data, window=(0, 1))
    with pytest.raises(ParameterError, match="unknown='drop'"):
        data.relabel(4, unknown="drop")


def test_the_column_arrays_must_fit_together():
    with pytest.raises(DataError, match="offsets must run from 0"):
        Sequences(*(np.zeros(n) for n in (3, 3, 2, 1, 1, 1, 1)), labels=(0,))
    with pytest.raises(DataError, match="context has 2 values for 1 sequences"):
        Sequences(
            np.zeros(1), np.zeros(1), np.array([0, 1]), *(np.zeros(n) for n in (1, 1, 2, 1)), labels=(0,)
        )


@pytest.mark.parametrize("indices", [[3, 1, 1], slice(2, 9, 3), np.arange(12) % 2 == 0, [], np.array([-1])])
def test_select_equals_choosing_one_by_one(indices):
    data = example()
    rows = np.arange(len(data))[
        indices if isinstance(indices, slice) else np.asarray(indices, dtype=None if len(indices) else int)
    ]
    chosen = data.select(indices)
    assert len(chosen) == len(rows)
    for place, row in enumerate(rows):
        for one, other in zip(chosen.sequence(place), data.sequence(row), strict=True):
            assert np.array_equal(one, other)
        assert (chosen.start[place], chosen.end[place], chosen.ids[place]) == (
            data.start[row],
            data.end[row],
            data.ids[row],
        )


def test_sequence_numbers_must_exist():
    data = example(n=3)
    assert np.array_equal(data.sequence(-1)[0], data.sequence(2)[0])
    with pytest.raises(IndexError, match="no sequence 3; there are 3"):
        data.sequence(3)


def test_the_table_that_comes_out_reads_back_the_same():
    frame = table().with_columns(pl.format("user {}", "seq_id").alias("seq_id"))
    data = Sequences.of(frame)
    assert data.to_frame().equals(frame)
    assert Sequences.of(data.to_frame()).digest() == data.digest()


def test_the_digest_sees_every_part_of_the_content():
    data = example()
    changed = [
        data.select(np.arange(len(data))[::-1]),
        data.relabel([3, 2, 1, 0]),
        data.relabel(5),
        Sequences.from_lists([data.sequence(i) for i in range(12)], window=(0, 201), labels=4),
        Sequences.from_lists(
            [data.sequence(i) for i in range(12)], window=(0, 200), labels=4, ids=range(1, 13)
        ),
        Sequences.from_lists(
            [(data.sequence(i)[0] + 1, data.sequence(i)[1]) for i in range(12)], window=(0, 200), labels=4
        ),
    ]
    digests = {data.digest(), *(other.digest() for other in changed)}
    assert len(digests) == 1 + len(changed)


def intervals(data: Sequences) -> list[tuple]:
    """Return every scored interval of every sequence: where it begins, ends, and the type it ends with."""
    found = []
    for i in range(len(data)):
        times, types = data.sequence(i)
        key = data.ids[i][0] if isinstance(data.ids[i], tuple) else int(data.ids[i])
        edges = [data.start[i], *times]
        scored = range(int(data.context[i]), len(times))
        found.extend((key, edges[place], edges[place + 1], int(types[place])) for place in scored)
        if edges[-1] < data.end[i]:
            found.append((key, edges[-1], data.end[i], -1))
    return sorted(found)


@pytest.mark.parametrize("left_context", [None, 0, 1, 3, 100])
@pytest.mark.parametrize("size", [1, 2, 5, 7])
@pytest.mark.parametrize("window", [(0, 200), "last_event", "max"])
def test_chunks_score_every_interval_once(size, left_context, window):
    rng = np.random.default_rng(0)
    pairs = [(np.sort(rng.random(n)) * 100, rng.integers(0, 3, n)) for n in (1, 5, 10, 14, 15)]
    whole = Sequences.from_lists(pairs, window=window)
    cut = Sequences.from_lists(pairs, window=window, chunk=size, left_context=left_context)
    assert intervals(cut) == intervals(whole)
    assert cut.n_scored == whole.n_scored
    keep = size if left_context is None else left_context
    assert cut.lengths.max() <= size + keep
    assert np.all(cut.start <= cut.end)


def test_chunks_keep_the_events_before_them_as_history():
    data = Sequences.from_lists(
        [(np.arange(1.0, 8.0), np.zeros(7, int))], ids=["u"], window=(0, 9), chunk=3, left_context=2
    )
    assert [data.sequence(i)[0].tolist() for i in range(3)] == [[1, 2, 3], [2, 3, 4, 5, 6], [5, 6, 7]]
    assert data.context.tolist() == [0, 2, 2]
    assert data.start.tolist() == [0, 2, 5]
    assert data.end.tolist() == [3, 6, 9]
    assert data.ids.tolist() == [("u", 0), ("u", 1), ("u", 2)]
    assert data.id_columns([2, 0]).rows() == [("u", 2), ("u", 0)]
    assert data.to_frame().columns == ["seq_id", "chunk", "t", "k"]


def test_short_sequences_are_left_alone_by_chunk():
    assert Sequences.of(table(), chunk=1000).digest() == Sequences.of(table()).digest()


def test_a_table_without_ids_is_one_sequence():
    data = Sequences.of({"t": [1.0, 2.0, 3.0], "k": [0, 1, 0]}, seq=None, chunk=2)
    assert data.ids.tolist() == [(0, 0), (0, 1)]
    assert data.n_scored == 2


def test_counts():
    data = Sequences.from_lists([([0.0, 1.0], ["a", "b"]), ([3.0], ["a"])])
    assert (len(data), data.n_events, data.n_types, data.n_scored) == (2, 3, 2, 1)
    assert repr(data) == "Sequences(2 sequences, 3 events, 2 types, window='last_event')"


@pytest.mark.slow
def test_a_million_events_take_seconds():
    """The whole path without a Python loop over events; a loop would take minutes."""
    import time

    n = 1_000_000
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"seq_id": rng.integers(0, 10_000, n), "t": rng.random(n), "k": rng.integers(0, 20, n)}
    ).with_columns(pl.format("u{}", "seq_id").alias("seq_id"), pl.format("k{}", "k").alias("k"))
    begin = time.process_time()
    data = Sequences.of(frame, sort=True, drop_duplicates=True, labels=[f"k{i}" for i in range(20)])
    data.grid()
    data.digest()
    assert time.process_time() - begin < 30
    assert data.n_events == n
    assert np.all(np.diff(data.times)[np.diff(np.repeat(np.arange(len(data)), data.lengths)) == 0] >= 0)
