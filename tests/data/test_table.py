import datetime as dt
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import polars as pl
import pytest

from seqattn.data.table import (
    as_frame,
    column_of,
    is_pandas,
    is_table,
    like,
    need_columns,
    read_frame,
    write_frames,
)
from seqattn.errors import DataError, ParameterError

FRAME = pl.DataFrame(
    {
        "seq_id": [1, 1, 2],
        "t": [0.5, 2.0, 1.0],
        "k": ["a", "b", "a"],
        "when": [dt.datetime.fromisoformat(f"2024-01-0{d}") for d in (1, 2, 3)],
    }
)


def write(frame: pl.DataFrame, path) -> None:
    writers = {
        ".parquet": frame.write_parquet,
        ".csv": frame.write_csv,
        ".jsonl": frame.write_ndjson,
        ".ndjson": frame.write_ndjson,
        ".json": frame.write_json,
        ".tsv": lambda p: frame.write_csv(p, separator="\t"),
    }
    writers[path.suffix](path)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json"])
def test_every_ending_gives_the_same_numbers_and_texts(tmp_path, ending):
    path = tmp_path / f"events{ending}"
    write(FRAME.drop("when"), path)
    assert read_frame(path).equals(FRAME.drop("when"))


def test_csv_reads_iso_dates(tmp_path):
    FRAME.write_csv(tmp_path / "x.csv")
    assert read_frame(tmp_path / "x.csv")["when"].to_list() == FRAME["when"].to_list()


def test_inter_file_drops_the_kinds_of_its_header(tmp_path):
    path = tmp_path / "x.inter"
    path.write_text("user_id:token\titem_id:token\ttimestamp:float\nu1\t7\t1.5\n")
    frame = read_frame(path)
    assert frame.columns == ["user_id", "item_id", "timestamp"]
    assert frame.row(0) == ("u1", 7, 1.5)


def test_separator_can_be_chosen(tmp_path):
    (tmp_path / "x.csv").write_text("a;b\n1;2\n")
    assert read_frame(tmp_path / "x.csv", separator=";").row(0) == (1, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", None, "There is no file '.*x.csv'"),
        ("x.csv", "", "'.*x.csv' is empty"),
        ("x.xlsx", "a", r"The ending of '.*x.xlsx' is not known. Files may end in \.parquet, \.csv"),
        ("x.parquet", "not parquet", "'.*x.parquet' cannot be read as parquet"),
        ("x.jsonl", '{"a": 1}\n{"a": ', "'.*x.jsonl' cannot be read as jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_frame(tmp_path / name)


def test_an_absent_file_suggests_its_neighbour(tmp_path):
    (tmp_path / "events.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"Did you mean 'events\.csv'\?"):
        read_frame(tmp_path / "event.csv")
    with pytest.raises(DataError, match=r"The folder '.*nowhere' does not exist either"):
        read_frame(tmp_path / "nowhere" / "x.csv")
    with pytest.raises(DataError, match="is a folder, not a file"):
        read_frame(tmp_path)


PANDAS_COLUMNS = {
    "int64": (pd.Series([1, 2, 3]), [1, 2, 3]),
    "int8": (pd.Series([1, 2, 3], dtype="int8"), [1, 2, 3]),
    "float16": (pd.Series([0.5, 1.0, 2.0], dtype="float16"), [0.5, 1.0, 2.0]),
    "float with nan": (pd.Series([0.5, np.nan, 2.0]).fillna(7.0), [0.5, 7.0, 2.0]),
    "bool": (pd.Series([True, False, True]), [True, False, True]),
    "nullable Int64": (pd.Series([1, None, 3], dtype="Int64"), [1, None, 3]),
    "nullable Float64": (pd.Series([1.5, None, 3], dtype="Float64"), [1.5, None, 3.0]),
    "nullable boolean": (pd.Series([True, None, False], dtype="boolean"), [True, None, False]),
    "str": (pd.Series(["a", None, "b"]), ["a", None, "b"]),
    "string": (pd.Series(["a", None, "b"], dtype="string"), ["a", None, "b"]),
    "object": (pd.Series(["a", None, "b"], dtype=object), ["a", None, "b"]),
    "category of text": (pd.Series(["b", None, "a"], dtype="category"), ["b", None, "a"]),
    "category of numbers": (pd.Series([3, 1, 3], dtype="category"), [3, 1, 3]),
    "arrow text": (
        pd.Series(["a", None, "b"], dtype=pd.ArrowDtype(__import__("pyarrow").string())),
        ["a", None, "b"],
    ),
    "arrow int": (pd.Series([1, None, 3], dtype="int64[pyarrow]"), [1, None, 3]),
    "mixed": (pd.Series(["a", 1, (2, 3)], dtype=object), ["a", 1, (2, 3)]),
    "timedelta": (
        pd.Series(pd.to_timedelta([1, 2, 3], unit="s")),
        [dt.timedelta(seconds=s) for s in (1, 2, 3)],
    ),
}


@pytest.mark.parametrize("kind", PANDAS_COLUMNS)
def test_every_kind_of_pandas_column_keeps_its_values(kind):
    column, expected = PANDAS_COLUMNS[kind]
    assert as_frame(pd.DataFrame({"x": column}))["x"].to_list() == expected


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "America/New_York"])
def test_pandas_dates_keep_moment_and_zone_in_every_unit(unit, zone):
    moments = pd.Series(pd.to_datetime(["2024-03-31 00:30", "2024-03-31 05:00"])).astype(
        f"datetime64[{unit}]"
    )
    if zone is not None:
        moments = moments.dt.tz_localize("UTC").dt.tz_convert(zone)
    column = as_frame(pd.DataFrame({"x": moments}))["x"]
    assert column.dtype.time_zone == zone
    assert [int(v.timestamp()) if zone else v for v in column.to_list()] == [
        int(v.timestamp()) if zone else v.to_pydatetime() for v in moments
    ]


def test_a_fixed_offset_keeps_its_moments():
    moments = pd.Series(pd.to_datetime(["2024-03-31 00:30+02:00", "2024-03-31 05:00+02:00"]))
    column = as_frame(pd.DataFrame({"x": moments}))["x"]
    assert [v.timestamp() for v in column.to_list()] == [v.timestamp() for v in moments]


def test_missing_dates_become_null():
    frame = as_frame(pd.DataFrame({"x": pd.to_datetime(["2024-01-01", None])}))
    assert frame["x"].is_null().to_list() == [False, True]


def test_all_kinds_of_table_give_one_frame():
    plain = FRAME.with_columns(pl.col("k").cast(pl.Categorical))
    mapping = {name: FRAME[name].to_list() for name in FRAME.columns}
    arrays = {name: FRAME[name].to_numpy() for name in FRAME.columns}
    for table in (
        plain,
        plain.lazy(),
        FRAME.to_arrow(),
        mapping,
        arrays,
        FRAME.to_pandas(),
        dict(FRAME.to_pandas()),
    ):
        assert is_table(table)
        assert as_frame(table).equals(FRAME), type(table)


def test_any_object_with_the_arrow_protocol_is_a_table():
    class Foreign:
        def __arrow_c_stream__(self, requested_schema=None):
            return FRAME.__arrow_c_stream__(requested_schema)

    assert as_frame(Foreign()).equals(FRAME)


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(DataError, match="two columns 't'"):
        as_frame(pd.DataFrame([[1, 2]], columns=["t", "t"]))


def test_columns_of_different_length_are_refused_with_their_lengths():
    with pytest.raises(DataError, match="'t': 2, 'k': 1"):
        as_frame({"t": [1, 2], "k": [1]})


def test_something_that_is_no_table_is_a_type_error():
    assert not is_table([1, 2])
    with pytest.raises(TypeError, match="not list"):
        as_frame([1, 2])


def test_numbers_of_both_kinds_become_floats():
    assert column_of("t", [0, 1.5, None]).to_list() == [0.0, 1.5, None]


def test_output_is_pandas_exactly_where_the_input_was():
    zoned = FRAME.with_columns(
        pl.col("when").dt.replace_time_zone("Europe/Berlin"), ok=pl.Series([True, False, True])
    )
    back = like(zoned, FRAME.to_pandas())
    assert is_pandas(back)
    assert as_frame(back).equals(zoned)
    assert like(zoned, FRAME) is zoned


def test_a_missing_column_is_named_with_the_columns_and_the_nearest():
    with pytest.raises(DataError) as caught:
        need_columns(pl.DataFrame({"item_id": [1], "time": [2]}), ["item"])
    assert str(caught.value) == (
        "Column 'item' is not in the table. Columns: 'item_id', 'time'. Did you mean 'item_id'?"
    )


def test_a_column_that_is_the_index_is_explained():
    table = FRAME.to_pandas().set_index("seq_id")
    with pytest.raises(DataError, match=r"'seq_id' is the index of the table.*reset_index"):
        need_columns(as_frame(table), ["seq_id"], table)


def test_pandas_works_without_pyarrow():
    """In a process of its own, in which importing pyarrow fails."""
    program = """
        import importlib.machinery
        import sys

        class Blind(importlib.machinery.PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return None if name.partition(".")[0] == "pyarrow" else super().find_spec(name, path, target)

        sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Blind
        import pandas as pd
        from seqattn.data.sequences import Sequences
        from seqattn.data.table import like

        table = pd.DataFrame({
            "seq_id": pd.Series(["u", "v", "u"], dtype="category"),
            "t": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03"]).tz_localize("Europe/Berlin"),
            "k": pd.Series(["a", "b", "c"]),
            "n": pd.Series([1, None, 2], dtype="Int64"),
        })
        data = Sequences.of(table)
        back = like(data.to_frame(), table)
        assert list(back["seq_id"]) == ["u", "u", "v"], back
        assert str(back["t"].dt.tz) == "Europe/Berlin", back.dtypes
        assert back["t"].iloc[0] == table["t"].iloc[0]
        assert "pyarrow" not in sys.modules and "torch" not in sys.modules
        print(data.digest())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    from seqattn.data.sequences import Sequences

    table = pl.DataFrame({"seq_id": ["u", "v", "u"], "k": ["a", "b", "c"]}).with_columns(
        t=pl.Series([dt.datetime.fromisoformat(f"2024-01-0{d}") for d in (1, 2, 3)]).dt.replace_time_zone(
            "Europe/Berlin"
        )
    )
    assert done.stdout.strip() == Sequences.of(table).digest()


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_tables_written_one_below_the_other_read_as_one(tmp_path, ending, size):
    path = tmp_path / f"x{ending}"
    rows = write_frames(path, (FRAME[start : start + size] for start in range(0, 3, size)))
    assert rows == 3
    kinds = FRAME.schema
    back = read_frame(path).with_columns(
        pl.col(name).str.to_datetime(time_unit="us") for name in ("when",) if ending == ".jsonl"
    )
    assert back.cast(dict(kinds)).equals(FRAME)
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_a_write_that_breaks_off_leaves_the_file_before_it(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    write_frames(path, [FRAME])
    before = path.read_bytes()

    def broken():
        yield FRAME
        yield FRAME
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        write_frames(path, broken())
    assert path.read_bytes() == before
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


def test_an_unknown_ending_is_refused_before_a_table_is_made(tmp_path):
    with pytest.raises(ParameterError, match="ends in '.xlsx'"):
        write_frames(tmp_path / "x.xlsx", iter(()))


def test_parquet_is_readable_by_others(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_frames(tmp_path / "x.parquet", (FRAME for _ in range(4)))
    file = parquet.ParquetFile(tmp_path / "x.parquet")
    assert file.metadata.num_rows == 12


WRITE = """
import resource, sys
import polars as pl
from seqattn.data.table import write_frames
sys.dont_write_bytecode = True  # it would be cut at the limit, and spoil every later import
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
frame = pl.DataFrame({"n": range(5000)})
for ending in ("csv", "parquet", "jsonl"):
    for frames in ([frame], [frame[:1], frame]):
        try:
            write_frames(f"x.{ending}", frames)
        except OSError as error:
            print(error.strerror)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")
def test_a_table_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path, run_python):
    done = run_python(WRITE)
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stderr
    assert all(line.startswith("The table cannot be written: ") for line in lines), lines
    assert all("File too large" in line for line in lines), lines
    assert list(tmp_path.iterdir()) == []
