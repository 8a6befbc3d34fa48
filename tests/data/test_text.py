"""Text files of interactions: typed headers, ids that stay what was written, and errors with their line."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from seqattn.data.interactions import Interactions
from seqattn.errors import DataError

HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"


def put(folder: Path, content: str, name: str = "log.inter") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def rows(data: Interactions) -> list[tuple]:
    return data.to_table().rows()


def test_fields_may_stand_in_any_order_beside_others(tmp_path):
    content = "rating:float\ttimestamp:float\titem_id:token\ttags:token_seq\tuser_id:token\n"
    content += "4.5\t20\tb\tx y\tu\n3\t10.5\ta\t\tu\n"
    data = Interactions.of(put(tmp_path, content))
    assert rows(data) == [("u", "a", 10.5), ("u", "b", 20.0)]
    assert data.n_ignored == 2


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        (["10", "9", "-3"], [-3, 9, 10]),
        (["10", "09", "9"], ["09", "10", "9"]),
        (["10", "+9", "9"], ["+9", "10", "9"]),
        (["10", "1.0", "1"], ["1", "1.0", "10"]),
        (["a", 'b"c', '"d"'], ['"d"', "a", 'b"c']),
        (["99999999999999999999", "1", "2"], ["1", "2", "99999999999999999999"]),
    ],
)
def test_ids_are_numbers_only_where_nothing_is_lost(tmp_path, users, expected):
    content = HEAD + "".join(f"{user}\tx\t{number}\n" for number, user in enumerate(users))
    assert Interactions.of(put(tmp_path, content)).user_ids.to_list() == expected


def test_ids_of_a_file_are_compared_with_known_ones_as_these_are(tmp_path):
    path = put(tmp_path, HEAD + "7\t1\t0\n8\t2\t1\n")
    assert Interactions.of(path, users=["007", "7"]).user_ids.to_list() == ["007", "7", "8"]
    mixed = put(tmp_path, HEAD + "7\t1\t0\nx\t2\t1\n", "mixed.inter")
    data = Interactions.of(mixed, users=[8, 7])
    assert data.user_ids.to_list() == [8, 7, "x"]
    assert data.lengths.tolist() == [0, 1, 1]


def test_text_separated_by_commas_keeps_ids_and_reads_dates(tmp_path):
    content = 'user_id,item_id,timestamp\n"a,b",007,2024-01-02\nc,7,2024-01-01\n'
    data = Interactions.of(put(tmp_path, content, "log.csv"))
    assert data.user_ids.to_list() == ["a,b", "c"]
    assert data.item_ids.to_list() == ["007", "7"]
    assert (data.times[0] - data.times[1]) == 86400
    content = "user_id,item_id,timestamp\n1,1,2024-01-02T10:00:00\n1,2,2024-01-01T09:00:00\n"
    assert Interactions.of(put(tmp_path, content, "log.csv")).items.tolist() == [1, 0]


def test_what_was_written_is_read_again(tmp_path):
    log = {"user_id": [("a"), "b", "a"], "item_id": [10, 9, 8], "timestamp": [3.25, 2.0, 1e9]}
    data = Interactions.of(log)
    data.to_inter(tmp_path / "out.inter")
    assert (tmp_path / "out.inter").read_text().splitlines()[0] == HEAD.strip()
    assert Interactions.of(tmp_path / "out.inter").digest() == data.digest()
    bare = Interactions.of({"user_id": [1], "item_id": [2]}, time=None)
    bare.to_inter(tmp_path / "bare.inter")
    assert (tmp_path / "bare.inter").read_text() == "user_id:token\titem_id:token\n1\t2\n"
    assert Interactions.of(tmp_path / "bare.inter", time=None).digest() == bare.digest()


def test_whole_times_are_written_without_a_point(tmp_path):
    Interactions.of({"user_id": [1], "item_id": [2], "timestamp": [881250949]}).to_inter(tmp_path / "a.inter")
    assert (tmp_path / "a.inter").read_text().splitlines()[1] == "1\t2\t881250949"


@pytest.mark.parametrize("key", ["a\tb", "a\nb"])
def test_ids_that_the_format_cannot_hold_are_refused(tmp_path, key):
    data = Interactions.of({"user_id": [key], "item_id": [2]}, time=None)
    with pytest.raises(DataError, match="has a tab or a line break in it"):
        data.to_inter(tmp_path / "a.inter")
    with pytest.raises(DataError, match=r"Give a name that ends in '\.inter'"):
        data.to_inter(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("user_id\titem_id\ttimestamp\n1\t2\t3\n", r"Line 1 of .* has the field 'user_id', not 'name:type'"),
        ("user_id:text\titem_id:token\ttimestamp:float\n", r"Line 1 .*'user_id:text'"),
        (
            "user_id:float\titem_id:token\ttimestamp:float\n1\t1\t1\n",
            r"'user_id:float', but 'user_id' must be 'token'",
        ),
        ("user_id:token\titem_id:token\ttimestamp:token\n1\t1\t1\n", r"'timestamp' must be 'float'"),
        ("user_id:token\titem_id:token\n1\t1\n", r"Column 'timestamp' is not in the table.*Pass time=None"),
        ("user:token\titem_id:token\ttimestamp:float\n1\t1\t1\n", r"Column 'user_id' .*Did you mean 'user'"),
        (HEAD + "1\t2\t3\n1\t2\t3\t4\n", r"Line 3 of .* has 4 fields instead of 3"),
        (HEAD + "1\t2\t3\n1\t2\n", r"Line 3 of .* has 2 fields instead of 3"),
        (HEAD + "1\t2\t3\n1\t2\tsoon\n", r"The time in line 3 of .* is 'soon'"),
        (HEAD + "1\t2\t3\n1\t2\t2024-01-01\n", r"The time in line 3 of .* is '2024-01-01'"),
        (HEAD + "1\t2\t3\n\t2\t3\n\t2\t3\n", r"'user_id' is missing in 2 rows, first in line 3"),
        (HEAD + "1\t2\t3\n1\t2\t\n", r"'timestamp' is missing in 1 row, first in line 3"),
        (HEAD + "1\t2\tinf\n", r"'timestamp' is infinite in 1 row, first in line 2"),
        (HEAD, "no rows"),
        ("", "is empty"),
        (HEAD.replace("\n", "\tuser_id:token\n") + "1\t2\t3\t4\n", "names 'user_id' twice"),
    ],
)
def test_errors_name_the_line(tmp_path, content, text):
    with pytest.raises(DataError, match=text):
        Interactions.of(put(tmp_path, content))


def test_a_long_column_of_text_keeps_its_kind_in_memory(tmp_path):
    frame = pl.DataFrame(
        {"user_id": [f"user-{i:030d}" for i in (3, 1, 3)], "item_id": [1, 2, 3], "timestamp": [1, 2, 3]}
    )
    frame.write_csv(tmp_path / "log.csv")
    assert (
        Interactions.of(tmp_path / "log.csv").user_ids.to_list() == frame["user_id"].unique().sort().to_list()
    )
