import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest

from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, ParameterError

FRAME = pl.DataFrame(
    {
        "user": ["u", "u", "v"],
        "when": [dt.datetime.fromisoformat(f"2024-01-0{d}T12:00:00.500") for d in (1, 2, 3)],
        "what": ["view", "buy", "view"],
    }
)
COLUMNS = {"seq": "user", "time": "when", "type": "what"}


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_files_with_dates_equal_their_tables(tmp_path, ending):
    path = tmp_path / f"events.{ending}"
    getattr(FRAME, f"write_{ending}")(path)
    for name in (path, str(path)):
        assert Sequences.of(name, **COLUMNS).digest() == Sequences.of(FRAME, **COLUMNS).digest()


def test_a_separator_can_be_given(tmp_path):
    (tmp_path / "x.csv").write_text("seq_id;t;k\n1;0.5;a\n1;2;b\n")
    data = Sequences.read(tmp_path / "x.csv", separator=";")
    assert data.to_frame().rows() == [(1, 0.5, "a"), (1, 2.0, "b")]


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_files_with_one_sequence_per_row_are_understood(tmp_path, ending):
    records = [
        {
            "seq_idx": i,
            "time_since_start": [0.0, 1.0 + i],
            "time_since_last_event": [0.0, 1.0 + i],
            "type_event": [1, 0],
        }
        for i in range(3)
    ]
    path = tmp_path / f"x.{ending}"
    frame = pl.DataFrame(records)
    {"json": frame.write_json, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[ending](path)
    assert Sequences.of(path).digest() == Sequences.of(records).digest()


def test_a_table_in_long_form_may_use_the_names_of_the_records():
    table = {"seq_idx": [0, 0, 1], "time_since_start": [0.0, 1.0, 0.0], "type_event": [1, 0, 1]}
    assert Sequences.of(pl.DataFrame(table)).to_frame().rows() == [(0, 0.0, 1), (0, 1.0, 0), (1, 0.0, 1)]


def test_a_folder_that_is_not_saved_is_explained(tmp_path):
    with pytest.raises(DataError, match="is a folder without saved sequences"):
        Sequences.of(tmp_path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"There is no file '.*none\.csv'"):
        Sequences.of(str(tmp_path / "none.csv"))


def test_options_of_files_are_checked(tmp_path):
    FRAME.write_csv(tmp_path / "x.csv")
    with pytest.raises(ParameterError, match=r"no option 'sep' here.*Did you mean 'seq'\?"):
        Sequences.of(tmp_path / "x.csv", sep=";")


def test_pandas_series_and_arrays_can_be_columns_and_lists():
    table = {
        "seq_id": pd.Series([1, 1], dtype="Int64"),
        "t": np.array([0.0, 1.0]),
        "k": pd.Series(["a", "b"]),
    }
    data = Sequences.of(table)
    assert data.to_frame().rows() == [(1, 0.0, "a"), (1, 1.0, "b")]
    pairs = [(table["t"], table["k"]), (pl.Series([3.0]), pl.Series(["a"]))]
    assert Sequences.of(pairs).to_frame().rows() == [(0, 0.0, "a"), (0, 1.0, "b"), (1, 3.0, "a")]
