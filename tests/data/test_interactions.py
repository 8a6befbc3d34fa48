"""Interactions: reading tables of every kind, order and ties, ids, splits, and what is refused."""

from __future__ import annotations

import datetime as dt
import os
import uuid
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from seqattn.data.interactions import Interactions, leave_one_out, temporal
from seqattn.errors import DataError, ParameterError, SeqattnWarning

REAL = os.environ.get("SEQATTN_DATA")
LOG = {"user_id": ["u", "v", "u", "u"], "item_id": [30, 10, 20, 10], "timestamp": [5.0, 1.0, 2.0, 9.0]}


def rows(data: Interactions) -> list[tuple]:
    return data.to_table().rows()


def random_log(seed: int, n: int = 300) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "user_id": rng.integers(0, 20, n) * 7,
        "item_id": rng.integers(-9, 9, n),
        "timestamp": rng.integers(0, 40, n),
    }


def sorted_by_hand(log: dict) -> list[tuple]:
    keyed = zip(log["user_id"], log["timestamp"], range(len(log["item_id"])), log["item_id"], strict=True)
    return [(user, item, time) for user, time, _, item in sorted(keyed)]


# -- what is read ----------------------------------------------------------------------------------------------


def test_rows_are_sorted_by_user_then_time_and_codes_by_id():
    data = Interactions.of(LOG)
    assert rows(data) == [("u", 20, 2.0), ("u", 30, 5.0), ("u", 10, 9.0), ("v", 10, 1.0)]
    assert data.offsets.tolist() == [0, 3, 4]
    assert data.items.tolist() == [1, 2, 0, 0]
    assert (data.items.dtype, data.offsets.dtype, data.times.dtype) == (np.int32, np.int64, np.float64)
    assert (data.n_users, data.n_items, data.n_rows, data.lengths.tolist()) == (2, 3, 4, [3, 1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("arrange", ["as it is", "by user", "by time"])
def test_ties_keep_the_order_of_the_table_however_it_is_arranged(seed, arrange):
    log = random_log(seed)
    if arrange != "as it is":
        order = np.argsort(log["user_id" if arrange == "by user" else "timestamp"], kind="stable")
        log = {name: column[order] for name, column in log.items()}
    assert rows(Interactions.read(log)) == sorted_by_hand(log)


def test_shuffled_rows_give_the_same_interactions_where_times_differ():
    log = random_log(0)
    log["timestamp"] = np.random.default_rng(1).permutation(300)
    order = np.random.default_rng(2).permutation(300)
    shuffled = {name: column[order] for name, column in log.items()}
    assert Interactions.of(log).digest() == Interactions.of(shuffled).digest()


@pytest.mark.parametrize(
    "make",
    [
        pl.DataFrame,
        lambda log: pl.DataFrame(log).lazy(),
        pd.DataFrame,
        lambda log: pl.DataFrame(log).to_arrow(),
        lambda log: {"more": [None] * 4, **log},
    ],
    ids=["polars", "lazy", "pandas", "arrow", "mapping"],
)
def test_every_kind_of_table_gives_the_same(make):
    assert Interactions.of(make(LOG)).digest() == Interactions.of(LOG).digest()


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "inter"])
def test_every_kind_of_file_gives_the_same(ending, tmp_path):
    path, frame = tmp_path / f"log.{ending}", pl.DataFrame(LOG)
    {
        "parquet": lambda: frame.write_parquet(path),
        "csv": lambda: frame.write_csv(path),
        "tsv": lambda: frame.write_csv(path, separator="\t"),
        "jsonl": lambda: frame.write_ndjson(path),
        "inter": lambda: Interactions.of(LOG).to_inter(path),
    }[ending]()
    for given in (path, str(path)):
        assert Interactions.of(given).digest() == Interactions.of(LOG).digest()


def test_a_parquet_file_is_read_alike_in_pieces_of_any_size(tmp_path, monkeypatch):
    log = random_log(3) | {"item_id": np.array([f"item-{i % 17}" for i in range(300)])}
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet", row_group_size=37)
    whole = Interactions.read(tmp_path / "log.parquet")
    for size in (70, 299):
        monkeypatch.setattr("seqattn.data.logs._PIECE", size)
        assert Interactions.read(tmp_path / "log.parquet").digest() == whole.digest()
    assert rows(whole) == sorted_by_hand(log)


def test_columns_may_be_called_otherwise_and_others_are_counted():
    log = {"who": [1, 1], "what": ["b", "a"], "when": [1, 2], "rating": [3, 4]}
    data = Interactions.of(log, user="who", item="what", time="when")
    assert rows(data) == [(1, "b", 1.0), (1, "a", 2.0)]
    assert data.n_ignored == 1
    assert data.to_table("a", "b", "c").columns == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"Column 'user_id' is not in the table\. Columns: 'who'"):
        Interactions.of(log)
    with pytest.raises(ParameterError, match="Two of the columns"):
        Interactions.of(log, user="who", item="who", time="when")


def test_without_times_the_order_of_the_rows_is_the_order():
    log = {"user_id": [2, 1, 2], "item_id": [5, 6, 4]}
    data = Interactions.of(log, time=None)
    assert rows(data) == [(1, 6), (2, 5), (2, 4)]
    assert data.times is None
    with pytest.raises(DataError, match=r"Column 'timestamp' is not in the table.*Pass time=None"):
        Interactions.of(log)


# -- ids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "a", "b"],
        [2, 1, 2],
        [2**64 - 1, 0, 2**64 - 1],
        [-(2**40), 2**40, 5],
        [1.5, 0.5, 1.5],
        [True, False, True],
        [dt.date(2024, 1, 2), dt.date(2024, 1, 1), dt.date(2024, 1, 2)],
        [b"b", b"a", b"b"],
        [("b", 1), ("a", 2), ("b", 1)],
        ["a", 1, ("x",)],
        [uuid.UUID(int=5), uuid.UUID(int=3), uuid.UUID(int=5)],
    ],
    ids=repr,
)
def test_ids_of_any_hashable_kind_come_back_as_they_were(ids):
    log = {"user_id": ids, "item_id": ids, "timestamp": [0, 0, 1]}
    data = Interactions.read(log)
    expected = sorted(set(ids)) if len({type(key) for key in ids}) == 1 else list(dict.fromkeys(ids))
    assert data.user_ids.to_list() == data.item_ids.to_list() == expected
    assert [type(key) for key in data.item_ids.to_list()] == [type(key) for key in expected]
    assert data.user_codes(ids).tolist() == [expected.index(key) for key in ids]
    assert sorted(map(str, data.to_table()["item_id"].to_list())) == sorted(map(str, ids))
    assert len(data.digest()) == 64


@pytest.mark.parametrize(
    "kind", [pl.Int16, pl.UInt32, pl.Float32, pl.String, pl.Categorical, pl.Enum(["0", "2", "1", "3"])]
)
def test_the_kind_of_a_column_is_kept(kind):
    ids = pl.Series(["2", "1", "2"]) if kind in (pl.String, pl.Categorical, pl.Enum) else pl.Series([2, 1, 2])
    frame = pl.DataFrame({"user_id": ids.cast(kind), "item_id": ids.cast(kind), "timestamp": [1, 2, 3]})
    data = Interactions.of(frame)
    assert (
        data.user_ids.dtype == data.to_table()["item_id"].dtype == data.select([1, 0]).user_ids.dtype == kind
    )
    assert Interactions.of(frame.to_pandas()).digest() == data.digest()


def test_categories_of_pandas_stay_categories():
    frame = pd.DataFrame(LOG).astype({"user_id": "category"})
    assert Interactions.of(frame).user_ids.dtype == pl.Categorical


def test_known_ids_keep_their_codes_and_new_ones_are_appended():
    data = Interactions.of(LOG, items=[99, 20, 30], users=["v"])
    assert data.item_ids.to_list() == [99, 20, 30, 10]
    assert data.user_ids.to_list() == ["v", "u"]
    assert sorted(rows(data)) == sorted(rows(Interactions.of(LOG)))
    again = Interactions.of(Interactions.of(LOG), items=[99, 20, 30], users=["v"])
    assert again.digest() == data.digest()
    assert Interactions.of(data) is data
    with pytest.raises(
        DataError, match=r"Items have ids of kind Int64 \(such as 10\), but those known are of kind Str"
    ):
        Interactions.of(LOG, items=["99"])


def test_codes_of_unknown_ids_are_negative():
    data = Interactions.of(LOG)
    assert data.item_codes([10, 7, 30]).tolist() == [0, -1, 2]
    assert data.item_codes(np.array([10.0, 10.5])).tolist() == [0, -1]
    assert data.item_codes(pd.Series([20])).tolist() == [1]
    assert data.item_codes(["10"]).tolist() == data.user_codes([1]).tolist() == [-1]
    assert data.item_codes([2**63, -(2**63)]).tolist() == [-1, -1]
    with pytest.raises(TypeError, match=r"users='u' is a single value. Pass a list, such as \['u'\]"):
        data.user_codes("u")


@pytest.mark.parametrize("spread", [3, 10**9])
def test_codes_of_numbers_are_found_by_table_and_by_bisection(spread):
    ids = np.random.default_rng(0).permutation(np.arange(-50, 50)) * spread
    data = Interactions.of({"user_id": ids, "item_id": ids}, time=None, items=ids)
    sought = np.concatenate([ids, ids + 1])
    assert data.item_codes(sought).tolist() == [*range(100), *[-1] * 100]


def test_renaming_items_renames_them_and_changes_nothing_else():
    log = random_log(5)
    names = {item: f"{item + 200}" for item in range(-9, 9)}
    renamed = log | {"item_id": np.array([names[item] for item in log["item_id"].tolist()])}
    one, two = Interactions.read(log), Interactions.read(renamed)
    assert one.items.tolist() == two.items.tolist()
    assert two.item_ids.to_list() == [names[item] for item in one.item_ids.to_list()]


# -- times -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_dates_become_seconds_since_1970_and_come_back(unit):
    days = list(map(dt.datetime.fromisoformat, ("2024-03-01T12:00", "1969-12-31T23:00", "2024-03-01")))
    frame = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": days})
    data = Interactions.of(frame.with_columns(pl.col("timestamp").dt.cast_time_unit(unit)))
    assert data.times.tolist() == [-3600.0, 1709251200.0, 1709294400.0]
    assert data.to_table()["timestamp"].to_list() == sorted(days)
    assert data.to_table()["timestamp"].dtype == pl.Datetime(unit)


def test_days_and_spans_of_time_are_seconds():
    log = {"user_id": [1, 1], "item_id": [1, 2], "timestamp": [dt.date(1970, 1, 3), dt.date(1970, 1, 2)]}
    assert Interactions.of(log).times.tolist() == [86400.0, 172800.0]
    log["timestamp"] = [dt.timedelta(hours=2), dt.timedelta(seconds=1.5)]
    assert Interactions.of(log).times.tolist() == [1.5, 7200.0]


def test_moments_are_told_apart_to_the_last_digit():
    log = {"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": [2**60 + 1, 2**60 + 2, 2**60]}
    assert Interactions.of(log).items.tolist() == [2, 0, 1]


# -- what is counted -------------------------------------------------------------------------------------------

TIED = {"user_id": [1, 1, 1, 1, 2], "item_id": [5, 6, 5, 5, 5], "timestamp": [0, 0, 0, 3, 0]}


def test_tied_and_repeated_rows_are_counted_in_a_warning_each():
    with pytest.warns(SeqattnWarning) as told:
        data = Interactions.of(TIED)
    texts = [str(one.message) for one in told]
    assert texts == list(data.notes)
    assert texts[0].startswith("2 rows have the time of the user's row before")
    assert "1 of 2 users (50.0%)" in texts[0]
    assert texts[1].startswith("1 row that repeats user, item and time of an earlier one: kept")
    assert data.n_rows == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Interactions.of(data) is data
        assert Interactions.read(TIED).notes == data.notes


def test_repeated_rows_can_be_dropped():
    assert rows(Interactions.read(TIED, duplicates="drop")) == [
        (1, 5, 0.0),
        (1, 6, 0.0),
        (1, 5, 3.0),
        (2, 5, 0.0),
    ]
    for rule in ("drop", "drop_consecutive"):
        again = Interactions.read(Interactions.read(TIED), duplicates=rule)
        assert again.digest() == Interactions.read(TIED, duplicates=rule).digest()
    kept = Interactions.read(TIED, duplicates="drop_consecutive")
    assert rows(kept) == [(1, 5, 0.0), (1, 6, 0.0), (1, 5, 0.0), (2, 5, 0.0)]
    assert kept.notes[-1] == "1 row that repeats the item of the user's row before: dropped."
    with pytest.raises(
        ParameterError, match="duplicates='no' is not one of 'keep', 'drop', 'drop_consecutive'"
    ):
        Interactions.of(TIED, duplicates="no")


@pytest.mark.parametrize("seed", range(3))
def test_repeated_rows_are_counted_as_by_a_set(seed):
    log = random_log(seed)
    seen = set(zip(*(column.tolist() for column in log.values()), strict=True))
    assert Interactions.read(log, duplicates="drop").n_rows == len(seen)
    assert (
        Interactions.read(log).notes[1].startswith(f"{300 - len(seen)} rows that repeat user, item and time")
    )


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "values", "text"),
    [
        (
            "user_id",
            ["u", None, None, "v"],
            r"The id in column 'user_id' is missing in 2 rows, first in row 1\.",
        ),
        ("user_id", [("u",), None, ("v",), None], r"is missing in 2 rows, first in row 1\."),
        ("item_id", [1.0, 2.0, float("nan"), 3.0], r"'item_id' is missing in 1 row, first in row 2\."),
        ("item_id", [[1], [2], [3], [4]], "An id must be one value"),
        ("item_id", [{1}, {2}, {3}, {4}], "must be hashable"),
        ("timestamp", [1.0, None, 2.0, None], r"'timestamp' is missing in 2 rows, first in row 1\."),
        ("timestamp", [1.0, 2.0, float("nan"), 2.0], r"'timestamp' is missing in 1 row, first in row 2\."),
        ("timestamp", [1.0, float("inf"), 2.0, -float("inf")], r"is infinite in 2 rows, first in row 1\."),
        ("timestamp", ["1", "2", "3", "4"], "holds text, such as '1', not times"),
        ("timestamp", [1, "b", 3, 4], "not times"),
        ("timestamp", [True, False, True, True], "holds truth values"),
        ("timestamp", [dt.time(1), dt.time(2), dt.time(3), dt.time(4)], "not times"),
    ],
)
@pytest.mark.parametrize("make", [dict, pd.DataFrame])
def test_bad_values_are_refused_with_their_number_and_the_first_row(column, values, text, make):
    with pytest.raises(DataError, match=text):
        Interactions.of(make(LOG | {column: values}))


def test_missing_values_are_counted_over_all_pieces(tmp_path, monkeypatch):
    frame = pl.DataFrame({"user_id": ["a"] * 9, "item_id": [1, 2, 3, None] * 2 + [1], "timestamp": range(9)})
    frame.write_parquet(tmp_path / "log.parquet")
    monkeypatch.setattr("seqattn.data.logs._PIECE", 2)
    with pytest.raises(DataError, match=r"'item_id' is missing in 2 rows, first in row 3\."):
        Interactions.of(tmp_path / "log.parquet")


def test_what_is_no_table_or_empty_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Interactions cannot be read from int"):
        Interactions.of(7)
    with pytest.raises(DataError, match="no rows"):
        Interactions.of({"user_id": [], "item_id": [], "timestamp": []})
    with pytest.raises(DataError, match="no rows"):
        Interactions.of(pl.DataFrame(LOG).clear())
    with pytest.raises(DataError, match="There is no file"):
        Interactions.of(tmp_path / "absent.parquet")


def test_a_log_with_nothing_to_learn_is_refused():
    with pytest.raises(DataError, match="one item only"):
        Interactions.of({"user_id": [1, 1], "item_id": [4, 4]}, time=None).check_learnable()
    with pytest.raises(DataError, match="None of the 2 users has two rows"):
        Interactions.of({"user_id": [1, 2], "item_id": [4, 5]}, time=None).check_learnable()
    Interactions.of(LOG).check_learnable()


# -- parts -----------------------------------------------------------------------------------------------------


def test_select_takes_whole_users_in_the_order_asked_for():
    data = Interactions.read(random_log(1))
    chosen = data.select([3, 0])
    assert chosen.user_ids.to_list() == [data.user_ids[3], data.user_ids[0]]
    assert chosen.items_of(0).tolist() == data.items_of(3).tolist()
    assert chosen.items_of(1).tolist() == data.items_of(0).tolist()
    assert data.select(data.lengths > 12).lengths.tolist() == [n for n in data.lengths if n > 12]
    assert data.select([]).n_rows == 0


def test_without_last_takes_rows_of_users_with_enough():
    data = Interactions.of({"user_id": [1] * 4 + [2] * 2 + [3] * 3, "item_id": list("abcdabcda")}, time=None)
    rest, following = data.without_last()
    assert rest.lengths.tolist() == [3, 2, 2]
    assert [data.item_ids[code] if code >= 0 else None for code in following.tolist()] == ["d", None, "a"]
    rest, following = data.without_last(2)
    assert rest.lengths.tolist() == [2, 2, 3]
    assert following.tolist() == [2, -1, -1]


def test_leave_one_out_is_that_of_a_loop_over_users():
    data = Interactions.read(random_log(2, 60))
    split = leave_one_out(data)
    short = 0
    for user in range(data.n_users):
        items = data.items_of(user).tolist()
        short += len(items) < 3
        cut = len(items) if len(items) < 3 else len(items) - 2
        parts = [part.items_of(user).tolist() for part in (split.train, split.validation, split.test)]
        assert parts == [items[:cut], items[cut : cut + 1], items[cut + 1 :]]
    assert short > 0
    assert split.notes == (f"{short} users have fewer than 3 rows and no target.",)
    assert split.test.item_ids is data.item_ids


def test_temporal_cuts_at_moments():
    data = Interactions.read(random_log(4))
    split = temporal(data, 20, 30.0)
    times = [part.times for part in (split.train, split.validation, split.test)]
    assert sum(map(len, times)) == data.n_rows
    assert times[0].max() < 20 <= times[1].min() <= times[1].max() < 30 <= times[2].min()
    with pytest.raises(ParameterError, match="t_valid=9 is later than t_test=8"):
        temporal(data, 9, 8)
    with pytest.raises(DataError, match="no times to be cut at"):
        temporal(Interactions.of({"user_id": [1], "item_id": [1]}, time=None), 1, 2)


def test_temporal_takes_dates_where_times_are_dates():
    days = [dt.datetime.fromisoformat(f"2024-01-0{day}") for day in (1, 2, 3)]
    data = Interactions.of({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "timestamp": days})
    split = temporal(data, "2024-01-02", days[2])
    assert [part.n_rows for part in (split.train, split.validation, split.test)] == [1, 1, 1]
    assert split.notes == ("1 user has no row before the first cut.",)
    with pytest.raises(DataError, match="numbers"):
        temporal(data, 5, 6)


def test_parts_joined_again_are_the_whole():
    data = Interactions.read(random_log(6))
    split = leave_one_out(data)
    again = split.train.joined(split.validation).joined(split.test)
    assert rows(again) == rows(data)
    assert again.digest() == data.digest()


def test_joining_appends_new_ids_and_sorts_by_time():
    more = Interactions.of(
        {"user_id": ["w", "u", "u"], "item_id": [40, 10, 10], "timestamp": [0.0, 3.0, 5.0]}
    )
    both = Interactions.of(LOG).joined(more)
    assert both.user_ids.to_list() == ["u", "v", "w"]
    assert both.item_ids.to_list() == [10, 20, 30, 40]
    assert rows(both.select([0])) == [("u", 20, 2), ("u", 10, 3), ("u", 30, 5), ("u", 10, 5), ("u", 10, 9)]
    with pytest.raises(DataError, match="both have no times"):
        both.joined(Interactions.of({"user_id": ["u"], "item_id": [10]}, time=None))


# -- real data -------------------------------------------------------------------------------------------------

FACTS = {
    "amazon-beauty": (22_363, 12_101, 198_502, 5, 204),
    "amazon-sports": (35_598, 18_357, 296_337, 5, 296),
    "amazon-toys": (19_412, 11_924, 167_597, 5, 550),
    "yelp": (30_431, 20_033, 316_354, 5, 350),
    "lastfm": (1_090, 3_646, 52_551, 5, 899),
    "ml-100k": (943, 1_682, 100_000, 20, 737),
    "ml-1m": (6_040, 3_706, 1_000_209, 20, 2314),
}
# Of the four sets of the authors: distinct transitions, items without a successor, items absent from training, test
# targets among these, test targets in the whole history, training targets of an epoch; training cut at 50 rows.
OF_AUTHORS = {
    "amazon-beauty": (112_191, 105, 35, 141, 0, 127_895),
    "amazon-sports": (179_048, 228, 76, 324, 0, 187_866),
    "amazon-toys": (99_664, 159, 48, 279, 0, 106_484),
    "yelp": (212_269, 58, 19, 82, 2_027, 217_423),
}


@pytest.mark.skipif(REAL is None, reason="SEQATTN_DATA is not set")
@pytest.mark.parametrize("name", FACTS)
def test_the_known_sets_have_the_published_sizes(name):
    data = Interactions.read(Path(REAL or "", "rec", name, f"{name}.inter"))
    lengths = data.lengths
    assert (data.n_users, data.n_items, data.n_rows, lengths.min(), lengths.max()) == FACTS[name]
    if name in OF_AUTHORS:
        assert facts_of_authors(data) == OF_AUTHORS[name]


def facts_of_authors(data: Interactions) -> tuple[int, ...]:
    split = leave_one_out(data)
    train = [split.train.items_of(user)[-50:].tolist() for user in range(data.n_users)]
    pairs = {pair for items in train for pair in pairwise(items)}
    known = {item for items in train for item in items}
    absent = set(range(data.n_items)) - known
    targets = split.test.items.tolist()
    again = sum(target in data.items_of(user)[:-1] for user, target in enumerate(targets))
    return (
        len(pairs),
        data.n_items - len({first for first, _ in pairs}),
        len(absent),
        sum(target in absent for target in targets),
        again,
        sum(len(items) - 1 for items in train),
    )
