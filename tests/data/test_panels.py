"""Panels: every accepted form gives the same bits, nothing is written to, and what is no series is refused."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse

from seqattn.data.panels import Panel, channel_names, row_length
from seqattn.errors import DataError, SeqattnWarning

LABELS = ["up", "down", "up", "flat"]


def values(seed: int = 0, shape: tuple[int, ...] = (4, 3, 7)) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=shape)
    found[1, 0, 2] = np.nan
    return found


def ragged() -> list[np.ndarray]:
    return [case[:, : 7 - number] for number, case in enumerate(values())]


def nested(cases: list[np.ndarray]) -> pd.DataFrame:
    return pd.DataFrame(
        {f"c{channel}": [pd.Series(case[channel]) for case in cases] for channel in range(len(cases[0]))}
    )


def rows(cases: list[np.ndarray]) -> pd.DataFrame:
    frames = [pd.DataFrame(case.T, columns=[f"c{i}" for i in range(len(case))]) for case in cases]
    return pd.concat(frames, keys=range(10, 10 + len(cases)), names=["case", "time"])


def long(cases: list[np.ndarray]) -> pd.DataFrame:
    return (
        rows(cases).reset_index().melt(id_vars=["case", "time"], var_name="variable")
    )  # channel by channel, as sktime writes it


def polars_rows(cases: list[np.ndarray]) -> pl.DataFrame:
    table = rows(cases).reset_index()
    return pl.DataFrame({f"__index__{n}" if n in ("case", "time") else n: table[n].to_numpy() for n in table})


FORMS = {
    "list": lambda cases: cases,
    "tuple of lists": lambda cases: tuple(case.tolist() for case in cases),
    "array of arrays": lambda cases: np.array([*cases, None], dtype=object)[:-1],
    "tensors": lambda cases: [torch.tensor(case) for case in cases],
    "df-list": lambda cases: [pd.DataFrame(case.T) for case in cases],
    "polars frames": lambda cases: [pl.DataFrame(case.T) for case in cases],
    "nested_univ": nested,
    "pd-multiindex": rows,
    "interleaved rows": lambda cases: rows(cases).sort_index(
        level="time", kind="stable", sort_remaining=False
    ),
    "pd-long": long,
    "columns case and time": lambda cases: rows(cases).reset_index(),
    "polars rows": polars_rows,
    "lazy rows": lambda cases: polars_rows(cases).lazy(),
    "polars cells": lambda cases: pl.DataFrame(
        {f"c{i}": [case[i].tolist() for case in cases] for i in range(len(cases[0]))}
    ),
}
ARRAYS = {
    "fortran": np.asfortranarray,
    "object": lambda X: X.astype(object),
    "strided": lambda X: np.repeat(X, 2, axis=2)[:, :, ::2],
    "tensor": torch.tensor,
    "tensor with gradient": lambda X: torch.tensor(X, requires_grad=True),
    "big endian": lambda X: X.astype(">f8"),
    "other bits of missing values": lambda X: np.where(np.isnan(X), -np.float64(np.nan), X),
}


def assert_same(found: Panel, wanted: Panel) -> None:
    assert len(found) == len(wanted)
    for case, (one, other) in enumerate(zip(found.series, wanted.series, strict=True)):
        assert one.dtype == np.float64
        assert one.shape == other.shape, case
        assert one.tobytes() == other.tobytes(), case
    assert found.digest() == wanted.digest()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cases", [list(values()), ragged()], ids=["equal", "unequal"])
def test_every_form_gives_the_same_bits(form, cases):
    assert_same(Panel.of(FORMS[form](cases), LABELS), Panel(cases, LABELS))


@pytest.mark.parametrize("form", ARRAYS)
def test_every_kind_of_array_gives_the_same_bits(form):
    assert_same(Panel.of(ARRAYS[form](values())), Panel(list(values())))


@pytest.mark.parametrize("kind", [np.int8, np.uint64, np.float16, np.float32, bool, object, torch.bfloat16])
def test_numbers_of_every_type_are_taken(kind):
    X = np.arange(24).reshape(2, 3, 4) % 2
    given = torch.tensor(X).to(kind) if isinstance(kind, torch.dtype) else X.astype(kind)
    assert_same(Panel.of(given), Panel(list(X.astype(float))))


def test_cells_of_polars_may_be_arrays():
    cases = list(values())
    frame = pl.DataFrame(
        {f"c{i}": pl.Series([case[i] for case in cases], dtype=pl.Array(pl.Float64, 7)) for i in range(3)}
    )
    assert row_length(frame) is row_length(frame.lazy()) is None
    assert_same(Panel.of(frame), Panel(cases))


@pytest.mark.parametrize("hole", [None, np.nan, pd.NA])
@pytest.mark.parametrize("case", [0, 2])
def test_an_empty_cell_is_a_channel_that_is_missing_in_its_case(case, hole):
    frame, wanted = nested(ragged()).astype(object), ragged()
    frame.at[case, "c1"] = hole
    wanted[case][1] = np.nan
    assert row_length(frame) is None
    assert_same(Panel.of(frame), Panel(wanted))
    for name in frame:
        frame.at[case, name] = hole
    wanted[case] = np.full(
        (3, max(one.shape[1] for place, one in enumerate(wanted) if place != case)), np.nan
    )
    assert_same(Panel.of(frame), Panel(wanted))


NAMED = {"nested_univ", "pd-multiindex", "interleaved rows", "pd-long", "columns case and time"}
NAMED |= {"polars rows", "lazy rows", "polars cells"}


@pytest.mark.parametrize("form", FORMS)
def test_channels_have_the_names_that_a_frame_gives_them(form):
    names = channel_names(FORMS[form](list(values())))
    assert names == (("c0", "c1", "c2") if form in NAMED else names)
    assert (names is None) == (form not in {*NAMED, "df-list", "polars frames"})


def test_a_table_has_no_channel_names_and_frames_of_a_list_must_agree():
    assert channel_names(pd.DataFrame(np.zeros((4, 7)))) is None
    frames = [pd.DataFrame(case.T, columns=list("xyz")) for case in values()]
    assert channel_names(frames) == ("x", "y", "z")
    with pytest.raises(
        DataError, match="Case 1 has the channels z, y, x, and case 0 x, y, z. Give every case"
    ):
        channel_names([frames[0], frames[1][["z", "y", "x"]]])


def test_one_channel_may_come_as_rows_of_anything():
    X = values(shape=(4, 7, 3))[:, :, 0]
    wanted = Panel(X[:, None])
    for given in (X, X.tolist(), list(X), pd.DataFrame(X), pl.DataFrame(X), [pd.Series(row) for row in X]):
        assert_same(Panel.of(given), wanted)
    assert wanted.n_channels == 1


@pytest.mark.parametrize("form", FORMS)
def test_series_are_no_table_whatever_their_form(form):
    assert row_length(FORMS[form](list(values()))) is None


def test_a_table_has_a_row_length_whatever_its_form():
    X = values(shape=(4, 7, 3))[:, :, 0]
    tables = (X, X.tolist(), X.astype(object), torch.tensor(X), pd.DataFrame(X), pl.DataFrame(X))
    assert [row_length(table) for table in (*tables, pl.LazyFrame(X))] == [7] * 7
    assert row_length(list(X)) is None
    assert row_length([[1.0, 2.0], [3.0]]) is None


@pytest.mark.slow
def test_sktime_s_own_conversions_give_the_same_bits():
    sktime = pytest.importorskip("sktime.datatypes")
    X = values()
    for form in ("nested_univ", "pd-multiindex", "pd-long", "df-list", "polars_panel", "numpy3D"):
        through = sktime.convert(X, "numpy3D", "pd-multiindex") if form == "pd-long" else X
        start = "pd-multiindex" if form == "pd-long" else "numpy3D"
        assert_same(Panel.of(sktime.convert(through, start, form)), Panel(X))


def test_nothing_that_is_given_is_written_to_or_shared(tmp_path):
    X = values()
    before = X.tobytes()
    panel = Panel.of(X, np.array(LABELS))
    assert X.tobytes() == before
    X[:] = 0
    assert_same(panel, Panel(values(), LABELS))
    for array in (*panel.series, panel.labels, panel.lengths):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        panel.labels = None
    np.save(tmp_path / "X.npy", values())
    assert_same(Panel.of(np.load(tmp_path / "X.npy", mmap_mode="r")), Panel(values()))
    locked = values()
    locked.flags.writeable = False
    assert_same(Panel.of(locked), Panel(values()))


def test_a_view_of_memory_that_can_be_written_to_is_copied():
    X = values()
    view = X[0]
    view.flags.writeable = False
    panel = Panel([view])
    X[:] = 0
    assert_same(panel, Panel([values()[0]]))


def test_pieces_share_memory_and_keep_labels():
    panel = Panel(ragged(), LABELS)
    for rows_ in ([2, 0], np.array([2, 0]), np.array([-2, 0])):
        part = panel.select(rows_)
        assert part.labels.tolist() == ["up", "up"]
        assert all(one is panel.series[row] for one, row in zip(part.series, (2, 0), strict=True))
    assert len(panel.select(np.array([True, False, True, True]))) == 3
    with pytest.raises(DataError, match="no cases"):
        panel.select([])


def test_a_panel_survives_pickling_read_only():
    panel = pickle.loads(pickle.dumps(Panel(ragged(), LABELS)))
    assert_same(panel, Panel(ragged(), LABELS))
    assert not panel.series[0].flags.writeable


def test_the_digest_tells_values_lengths_labels_and_order():
    panel = Panel(ragged(), LABELS)
    changed = ragged()
    changed[2][1, 1] = np.nextafter(changed[2][1, 1], 9)
    others = [
        Panel(changed, LABELS),
        Panel(ragged(), LABELS[::-1]),
        Panel(ragged()),
        panel.select([1, 0, 2, 3]),
        panel.select([0, 1, 2]),
        Panel([np.concatenate([case, case[:, :1] * np.nan], axis=1) for case in ragged()], LABELS),
    ]
    assert len({panel.digest(), *(other.digest() for other in others)}) == 7
    assert Panel(ragged(), np.array(LABELS, dtype=object)).digest() == panel.digest()


def test_padding_is_trimmed_and_made():
    panel = Panel(ragged(), LABELS)
    assert_same(Panel(panel.to_array(), LABELS).trimmed(), panel)
    assert Panel([np.full((2, 5), np.nan)]).trimmed().lengths.tolist() == [5]
    inside = np.array([[np.nan, 1.0, np.nan, np.nan], [np.nan, np.nan, 2.0, np.nan]])
    assert Panel([inside]).trimmed().lengths.tolist() == [3]


def test_labels_of_every_kind_are_kept_with_their_type():
    X = values()
    for labels, kind in (
        (LABELS, "U"),
        ([1, 2, 1, 2], "i"),
        ([True, False] * 2, "b"),
        (pd.Series(LABELS), "OT"),
    ):
        assert Panel.of(X, labels).labels.dtype.kind in kind
    assert Panel.of(X, pl.Series(LABELS)).labels.tolist() == LABELS
    given = Panel(X, LABELS)
    assert Panel.of(given) is given
    assert Panel.of(given, [1, 2, 3, 4]).labels.tolist() == [1, 2, 3, 4]


REFUSED = {
    "no case": (np.empty((0, 3)), DataError, r"0 sample\(s\)"),
    "no case in a list": ([], DataError, "There are no cases"),
    "no point": (np.empty((12, 0)), DataError, r"0 feature\(s\) \(shape=\(12, 0\)\) while a minimum of 1 is"),
    "no channel": (np.empty((3, 0, 5)), DataError, r"Case 0 has the shape \(0, 5\)"),
    "flat array": (np.arange(9.0), DataError, "Reshape your data"),
    "flat list": ([1.0, 2.0], DataError, "Reshape your data"),
    "four axes": (np.zeros((2, 2, 2, 2)), DataError, r"4 axes, shape \(2, 2, 2, 2\)"),
    "infinite": (
        np.where(np.arange(24).reshape(2, 3, 4) == 17, np.inf, 1.0),
        DataError,
        "Case 1 .*channel 1 at time point 1",
    ),
    "minus infinite in a list": (
        [np.zeros((1, 3)), np.array([[0, -np.inf, 0]])],
        DataError,
        "Case 1 .*infinite",
    ),
    "channels differ": ([np.zeros((2, 3)), np.zeros((3, 3))], DataError, "Case 1 has 3 .*case 0 has 2"),
    "complex": (np.ones((4, 3)) * 1j, DataError, "Complex data not supported"),
    "complex tensor": (torch.ones(4, 3, dtype=torch.complex64), DataError, "Complex data not supported"),
    "text": (np.array([["a", "b"]]), DataError, "no numbers"),
    "text among objects": (np.array([["a", 1.0]], dtype=object), DataError, "could not convert string"),
    "a dictionary among objects": (
        np.array([[{}, 1.0]], dtype=object),
        TypeError,
        "argument must be .* string.* number",
    ),
    "dates": (np.zeros((2, 3), "M8[s]"), DataError, "datetime64"),
    "sparse": (sparse.csr_array(np.eye(3)), TypeError, "(?i)sparse.*dense"),
    "sparse tensor": (torch.eye(3).to_sparse(), TypeError, "(?i)sparse.*dense"),
    "a number": (3.0, TypeError, "Series cannot be taken from 'float'"),
    "channels of unequal length": ([[[0.0, 1.0], [1.0]]], DataError, "Case 0 has channels of unequal length"),
    "cells of unequal length": (
        pd.DataFrame({"a": [pd.Series([0.0, 1.0])], "b": [pd.Series([0.0])]}),
        DataError,
        r"Case 0 has channels of unequal length: \[2, 1\]",
    ),
    "rows out of order": (
        rows(list(values())).iloc[[1, 0, 2]],
        DataError,
        r"Times of case 10 .* \(0 after 1\)",
    ),
    "a row twice": (polars_rows(list(values()))[[0, 0, 1]], DataError, r"Times of case 10 .* \(0 after 0\)"),
    "a value twice": (
        pd.concat([long(list(values()))] * 2),
        DataError,
        "Case 10 has two values of one channel",
    ),
    "three levels": (
        pd.concat({0: rows(list(values()))}),
        DataError,
        "has 3 levels",
    ),
    "an empty frame": (pd.DataFrame(index=range(3)), DataError, r"0 feature\(s\)"),
    "a frame without rows": (rows(list(values())).iloc[:0], DataError, "There are no cases"),
    "no such file": ("nowhere.ts", DataError, "There is no file 'nowhere.ts'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_series_is_refused(what):
    given, kind, text = REFUSED[what]
    with pytest.raises(kind, match=text):
        Panel.of(given)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (["a", "b"], r"shape \(2,\), and there are 4 cases"),
        (np.zeros((4, 1)), r"y has the shape \(4, 1\)"),
        (["a", None, "b", "c"], "y is missing .* for case 1"),
        ([0.0, 1.0, 1.0, np.nan], "y is missing .* for case 3"),
        (pd.Series(["a", "b", pd.NA, "b"], dtype="string"), "y is missing .* for case 2"),
        (pd.Series([1, 2, 1, None], dtype="Int64"), "y is missing .* for case 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, text):
    with pytest.raises(DataError, match=text):
        Panel.of(values(), labels)


def test_axes_that_look_swapped_are_warned_of():
    with pytest.warns(SeqattnWarning, match=r"65 channels and 64 time points.*transpose\(0, 2, 1\)"):
        Panel.of(np.zeros((2, 65, 64)))
    with pytest.warns(SeqattnWarning, match=r"65 channels and 64 time points.*\[case\.T for case in X\]"):
        Panel.of([np.zeros((65, 64)), np.zeros((65, 3))])
    Panel.of([pd.DataFrame(np.zeros((64, 65)))])
    Panel.of(np.zeros((2, 65, 65)))
    Panel.of(np.zeros((2, 64, 3)))


def test_short_series_are_named():
    panel = Panel([np.zeros((1, 3)), np.zeros((1, 2))])
    panel.check_lengths(2)
    with pytest.raises(DataError, match=r"Case 1 has 2 time point\(s\) .* at least 3"):
        panel.check_lengths(3)


# -- .ts files -------------------------------------------------------------------------------------------------

HEADER = """# A comment: with signs @data
@problemName Toy
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true up down 1.0
@data
"""


def write(folder: Path, data: str, header: str = HEADER) -> Path:
    path = folder / "Toy_TRAIN.ts"
    path.write_text(header + data, encoding="utf-8")
    return path


def test_a_file_gives_values_gaps_lengths_and_labels(tmp_path):
    path = write(tmp_path, "1,-2.5e-3,?:NaN,4,5:up\n\n# between\n 1 , 2:3,?:1.0\n")
    nan = np.nan
    wanted = Panel([[[1, -0.0025, nan], [nan, 4, 5]], [[1, 2], [3, nan]]], ["up", "1.0"])
    assert_same(Panel.of(path), wanted)
    assert_same(Panel.of(str(path)), wanted)
    assert Panel.read(path).labels.tolist() == ["up", "1.0"]


def test_line_ends_marks_and_capitals_do_not_matter(tmp_path):
    text = (HEADER.upper() + "1,2:3,4:UP\n").replace("\n", "\r\n")
    path = tmp_path / "a.ts"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert_same(Panel.read(path), Panel([[[1, 2], [3, 4]]], ["UP"]))


def test_a_file_without_labels_and_one_with_targets(tmp_path):
    without = HEADER.replace("@classLabel true up down 1.0", "@classLabel false")
    assert Panel.read(write(tmp_path, "1,2:3,4\n", without)).labels is None
    targets = HEADER.replace("@classLabel true up down 1.0", "@targetlabel true")
    assert Panel.read(write(tmp_path, "1,2:3,4:0.5\n", targets)).labels.tolist() == [0.5]


def test_a_file_inside_an_archive_is_read_in_place(tmp_path):
    path = write(tmp_path, "1,2:3,4:up\n")
    with zipfile.ZipFile(tmp_path / "Toy.zip", "w") as archive:
        archive.write(path, path.name)
    before = sorted(tmp_path.iterdir())
    assert_same(Panel.read(tmp_path / "Toy.zip" / path.name), Panel.read(path))
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(DataError, match=r"no item named 'Toy_TEST\.ts'"):
        Panel.read(tmp_path / "Toy.zip" / "Toy_TEST.ts")


EQUAL = HEADER.replace("@equalLength false", "@equalLength true\n@seriesLength 2")
WHOLE = HEADER.replace("@missing true", "@missing false")
SINGLE = HEADER.replace("@univariate false", "@univariate true")
DAMAGES = {
    "a number with a line below": (HEADER, "1_000,2:3,4:up\n", "Line 10 of .* holds '1_000', which is no"),
    "a word behind a gap": (HEADER, "?,2:NaN,4e:up\n", "Line 10 of .* holds '4e'"),
    "lengths that the header calls equal": (
        HEADER.replace("@equalLength false", "@equalLength true"),
        "1,2,3:4,5,6:up\n1,2:3,4:up\n",
        "Line 11 of .* of 2 values, and 3 each",
    ),
    "channels that the header excludes": (
        SINGLE.replace("@dimensions 2\n", ""),
        "1,2:3,4:up\n",
        r"Line 9 of .* has 2 channel\(s\), and 1",
    ),
    "a header against itself": (SINGLE, "1,2:up\n", "says '@univariate true' and '@dimensions 2'"),
    "gaps that the header excludes": (
        WHOLE,
        "1,2:3,4:up\n1,?:3,4:up\n",
        "Line 11 of .* a missing value, and the header says '@missing false'",
    ),
    "a word": (HEADER, "1,2:3,4:up\n1,x2:3,4:up\n", "Line 11 of .* holds 'x2', which is no number"),
    "an empty value": (HEADER, "1,,2:3,4,5:up\n", "Line 10 of .* holds '', which is no number"),
    "two numbers in one": (HEADER, "1 2,3:4,5:up\n", "Line 10 of .* holds '1 2'"),
    "an infinite value": (HEADER, "1,inf:4,5:up\n", "Case 0 holds an infinite value"),
    "cut within the values": (HEADER, "1,2:3,4:up\n1,2:3,", "Line 11 of .* label '3,'.*cut short"),
    "cut within the label": (HEADER, "1,2:3,4:dow", r"'dow'.*Did you mean 'down'\?"),
    "a channel too few": (HEADER, "1,2:up\n", r"Line 10 of .* has 1 channel\(s\), and 2"),
    "unequal channels": (HEADER, "1,2:3:up\n", "channels of 1 to 2 values"),
    "a length that the header excludes": (EQUAL, "1,2,3:4,5,6:up\n", "of 3 values, and 2 each"),
    "times": (HEADER.replace("Stamps false", "Stamps true"), "(0,1):(0,2):up\n", "timeStamps true"),
    "no data": (HEADER, "", "holds no case after '@data'"),
    "no header": ("", "1,2:3,4:up\n", "Line 1 of .* comes before '@data'"),
    "no mark": (HEADER.replace("@data\n", ""), "", "has no line '@data'"),
    "no classes": (HEADER.replace("true up down 1.0", "true"), "1,2:3,4:up\n", "names no class"),
    "a number in words": (HEADER.replace("dimensions 2", "dimensions two"), "1:2:up", "@dimensions .* 'two'"),
    "a target in words": (
        HEADER.replace("@classLabel true", "@targetlabel true"),
        "1:2:up",
        "'up', which is no number",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_its_line(damage, tmp_path):
    header, data, text = DAMAGES[damage]
    with pytest.raises(DataError, match=text):
        Panel.read(write(tmp_path, data, header))


def test_bytes_that_are_no_text_and_archives_that_are_none_are_refused(tmp_path):
    path = write(tmp_path, "")
    path.write_bytes(HEADER.encode() + b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8 text: byte"):
        Panel.read(path)
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="not a zip file"):
        Panel.read(tmp_path / "a.zip" / "a_TRAIN.ts")
    with pytest.raises(DataError, match=r"Did you mean 'Toy_TRAIN\.ts'"):
        Panel.read(tmp_path / "Toy_TRAI.ts")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BasicMotions", "JapaneseVowels"])
def test_the_files_that_aeon_brings_are_read_as_aeon_reads_them(name):
    datasets = pytest.importorskip("aeon.datasets")
    folder = Path(datasets.__file__).parent / "data" / name
    path = folder / f"{name}_TEST.ts"
    X, y = datasets.load_from_ts_file(str(path))
    panel = Panel.read(path)
    assert_same(panel, Panel(list(X), panel.labels))
    assert [label.lower() for label in panel.labels.tolist()] == [str(label).lower() for label in y]
