from __future__ import annotations

import datetime as dt
import enum
import json
import math
import os
import pickle
import struct
import zoneinfo
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import seqattn
from seqattn.errors import ArtifactError
from seqattn.train.artifact import (
    FORMAT,
    decode_label,
    decode_metadata,
    encode_label,
    encode_metadata,
    load_artifact,
    save_artifact,
)

TENSORS = {
    "float32": torch.linspace(-1, 1, 7).reshape(7, 1),
    "float64": torch.tensor(math.pi, dtype=torch.float64),
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "int64": torch.tensor([[2**62, -1]]),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "not a number": torch.tensor([math.nan, math.inf, -0.0]),
}
METADATA = {"labels": ["a", "b"], "scale": 0.1, "bound": math.inf, "nested": {"none": None, "flag": True}}


@pytest.fixture
def path(tmp_path):
    return save_artifact(tmp_path / "model.safetensors", "SAHP", TENSORS, METADATA)


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).tolist()


def header_of(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])


def rewrite(path, **changes):
    """Write the file again with another header of ours."""
    ours = json.loads(header_of(path)["__metadata__"]["seqattn"]) | changes
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"seqattn": json.dumps(ours)})


def test_everything_comes_back_bit_for_bit(path):
    found = load_artifact(path)
    assert (found.kind, found.version, found.metadata) == ("SAHP", seqattn.__version__, METADATA)
    assert {name: bits(tensor) for name, tensor in found.tensors.items()} == {
        name: bits(tensor) for name, tensor in TENSORS.items()
    }


def test_other_programs_can_read_the_file(path):
    found = safetensors.torch.load_file(path)
    assert torch.equal(found["float32"], TENSORS["float32"])
    assert json.loads(header_of(path)["__metadata__"]["seqattn"])["format"] == FORMAT


def test_numpy_arrays_are_saved_with_their_type(tmp_path):
    arrays = {
        "counts": np.arange(6, dtype=np.int32).reshape(2, 3),
        "column": np.arange(6.0).reshape(2, 3)[:, 1],
        "flags": np.array([True, False]),
        "one": np.array(2.5),
        "reversed": np.arange(3)[::-1],
        "read only": np.broadcast_to(1.0, (2, 2)),
    }
    found = load_artifact(save_artifact(tmp_path / "m", "PoissonProcess", arrays, {})).tensors
    assert {name: (value.numpy().dtype, value.tolist()) for name, value in found.items()} == {
        name: (value.dtype, value.tolist()) for name, value in arrays.items()
    }


def test_arrays_of_foreign_byte_order_are_saved_by_value(tmp_path):
    array = np.arange(3, dtype=">f8")
    found = load_artifact(save_artifact(tmp_path / "m", "PoissonProcess", {"a": array}, {})).tensors["a"]
    assert found.dtype == torch.float64
    assert found.tolist() == array.tolist()


def test_views_and_shared_memory_are_saved_by_value(tmp_path):
    weight = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    found = load_artifact(
        save_artifact(tmp_path / "m", "SAHP", {"a": weight, "tied": weight, "t": weight.T}, {})
    )
    assert found.tensors["tied"].tolist() == weight.tolist()
    assert found.tensors["t"].tolist() == weight.T.tolist()


def test_equal_contents_give_equal_bytes(tmp_path):
    shuffled = dict(reversed(TENSORS.items()))
    first = save_artifact(tmp_path / "a", "SAHP", TENSORS, METADATA)
    second = save_artifact(tmp_path / "b", "SAHP", shuffled, METADATA)
    assert first.read_bytes() == second.read_bytes()


def test_a_folder_stands_for_the_model_inside(tmp_path):
    path = save_artifact(tmp_path, "SAHP", {}, {"x": 1})
    assert path == tmp_path / "model.safetensors"
    assert load_artifact(str(tmp_path)).metadata == {"x": 1}


def test_parent_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = save_artifact(tmp_path / "a" / "b" / "model", "SAHP", TENSORS, {})
    assert list(path.parent.iterdir()) == [path]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    path = save_artifact(tmp_path / "m", "SAHP", {}, {})
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_save_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=r"Metadata .*set.* cannot be saved"):
        save_artifact(path, "SAHP", {}, {"x": {1, 2}})
    with pytest.raises(ArtifactError, match="Array 'words' of type <U1 cannot be saved"):
        save_artifact(path, "SAHP", {"words": np.array(["a"])}, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_artifact(path, "SAHP", {}, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"There is no saved model at '.*nowhere'"):
        load_artifact(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"There is no saved model at '.*model.safetensors'"):
        load_artifact(tmp_path)


def test_a_file_that_cannot_be_read_is_named(path):
    with pytest.raises(ArtifactError, match="cannot be read: Not a directory"):
        load_artifact(path / "inside")


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"weights": [1.0] * 100}),
        np.random.default_rng(0).bytes(5000),
        b"PK\x03\x04" + bytes(200),
        b"seq_id,t,k\na,1.0,x\n",
        b'{"a": 1, "b": [1, 2, 3]}',
        safetensors.torch.save({"a": torch.ones(3)}),
        safetensors.torch.save({"a": torch.ones(3)}, {"format": "pt"}),
        safetensors.torch.save({"a": torch.ones(3)}, {"seqattn": "1"}),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
    ],
    ids=["pickle", "noise", "zip", "csv", "json", "weights", "torch", "other", "no metadata", "list"],
)
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"'.*m' was not written by seqattn"):
        load_artifact(tmp_path / "m")


def test_a_newer_format_is_refused_with_both_versions(path):
    rewrite(path, format=FORMAT + 1, version="99.0")
    with pytest.raises(
        ArtifactError, match=rf"format 2, written by seqattn 99.0; .*{seqattn.__version__}.* newer"
    ):
        load_artifact(path)


def test_a_file_cut_anywhere_is_refused(path):
    content = path.read_bytes()
    cuts = sorted({0, 1, 7, 8, 9, len(content) - 1, *range(0, len(content), max(1, len(content) // 200))})
    assert len(cuts) >= 200
    for cut in cuts:
        path.write_bytes(content[:cut])
        with pytest.raises(ArtifactError, match="cut short") as caught:
            load_artifact(path)
        assert f"{cut} bytes" in str(caught.value)


def test_a_file_with_more_at_its_end_is_refused(path):
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="damaged"):
        load_artifact(path)


def test_any_changed_bit_is_noticed(path):
    content = path.read_bytes()
    generator = np.random.default_rng(1)
    for place in [*range(60), *generator.integers(60, len(content), 300)]:
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(changed))
        with pytest.raises(ArtifactError):
            load_artifact(path)


class Intruder:
    """Writes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_loading_runs_no_code(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "model").write_bytes(pickle.dumps(Intruder(trace)))
    with pytest.raises(ArtifactError):
        load_artifact(tmp_path / "model")
    assert not trace.exists()
    pickle.loads((tmp_path / "model").read_bytes())
    assert trace.exists(), "the file would not have done anything"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["$float", "$dict"]), inner),
    max_leaves=20,
)


@given(values)
def test_metadata_survives_standard_json(value):
    text = json.dumps(encode_metadata(value), allow_nan=False)
    assert repr(decode_metadata(json.loads(text))) == repr(value)


def test_metadata_may_hold_encoded_labels(tmp_path):
    labels = [encode_label(label) for label in (("a", 1), math.nan, b"x", "plain")]
    found = load_artifact(save_artifact(tmp_path / "m", "SAHP", {}, {"labels": labels})).metadata["labels"]
    assert [repr(decode_label(label)) for label in found] == ["('a', 1)", "nan", "b'x'", "'plain'"]


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
LABELS = [
    *("", "taxi", "\ud800", "ß", '{"tuple": []}'),
    *(0, -1, 2**100, True, False, None),
    *(0.1, -0.0, math.nan, math.inf, -math.inf, 5e-324),
    *(b"", b"\x00\xff"),
    *((), ("a", 1, (2.0, None)), (math.nan,)),
    dt.date(2024, 2, 29),
    dt.datetime(2024, 2, 29, 12, 30, 1, 5),  # noqa: DTZ001 - many tables have such times
    dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
    dt.datetime(2024, 2, 29, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30))),
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
    *(np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.float16(0.1), np.float32(0.1), np.float64(0.1)),
    *(
        np.float64("nan"),
        np.longdouble("0.1"),
        np.complex64(1 + 2j),
        np.str_("ü"),
        np.str_(""),
        np.bytes_(b"ab"),
    ),
    *(np.datetime64("2024-02-29T01", "h"), np.datetime64("NaT"), np.timedelta64(5, "ms")),
]


@pytest.mark.parametrize("label", LABELS, ids=lambda label: ascii(label)[:120])
def test_a_label_comes_back_with_value_and_type(label):
    found = decode_label(json.loads(json.dumps(encode_label(label), allow_nan=False)))
    assert type(found) is type(label)
    assert repr(found) == repr(label)
    assert getattr(found, "dtype", None) == getattr(label, "dtype", None)


class Colour(enum.Enum):
    RED = 1


class Name(str):
    __slots__ = ()


class Zone(dt.tzinfo):
    pass


@pytest.mark.parametrize(
    "label",
    [Colour.RED, Name("x"), frozenset({1}), 1j, object(), ("a", object()), np.void(b"ab"), dt.time(1)],
    ids=lambda label: type(label).__name__,
)
def test_a_label_that_would_change_is_refused(label):
    with pytest.raises(ArtifactError, match=r"Label .* cannot be saved.* before fitting"):
        encode_label(label)


def test_a_label_in_an_unknown_kind_of_zone_is_refused():
    with pytest.raises(ArtifactError, match=r"time zone is a Zone\. Use datetime\.timezone"):
        encode_label(dt.datetime(2024, 1, 1, tzinfo=Zone()))


@pytest.mark.parametrize(
    "value", [[], {}, {"set": [1]}, {"bytes": 1}, {"numpy": ["O", ""]}, {"tuple": 3}, {"a": 1, "b": 2}]
)
def test_a_value_that_is_no_label_is_refused(value):
    with pytest.raises(ArtifactError, match="is not an encoded label"):
        decode_label(value)


def test_patterns_within_patterns_come_back():
    from seqattn.attention import Local, Prefix
    from seqattn.train.parameters import decode_parameter, encode_parameter

    pattern = Local(left=5) | Prefix(1)
    assert decode_parameter(json.loads(json.dumps(encode_parameter(pattern)))) == pattern


@pytest.mark.parametrize(
    "value",
    [{0: 2.0, 1: 1.0}, {"a": [1, (2, None)]}, {True: {"b": 1}, ("x", 1): "y"}, {}, {"mapping": {"pairs": 1}}],
)
def test_mappings_come_back_with_keys_of_their_types(value):
    from seqattn.train.parameters import decode_parameter, encode_parameter

    found = decode_parameter(json.loads(json.dumps(encode_parameter(value))))
    assert repr(found) == repr(value)


def test_mappings_of_older_files_are_still_read():
    from seqattn.train.parameters import decode_parameter

    old = {"mapping": {"a": {"label": 1}, "b": {"list": [{"label": 2}]}}}
    assert decode_parameter(old) == {"a": 1, "b": [2]}


@pytest.mark.parametrize("value", [[1, 2], [0.5, np.inf], [[True, False]], ["a", "bc"]])
def test_arrays_come_back_as_lists(value):
    from seqattn.train.parameters import decode_parameter, encode_parameter

    text = json.dumps(encode_parameter(np.array(value)), allow_nan=False)
    assert repr(decode_parameter(json.loads(text))) == repr(value)


def test_a_parameter_that_no_file_can_hold_is_named_with_what_to_do():
    from seqattn.train.parameters import encode_parameters

    with pytest.raises(
        ArtifactError, match=r"parameter reach is a object.* Wait, or replace it: .*\(reach="
    ) as one:
        encode_parameters({"reach": object()}, "Wait")
    assert "Sequences" not in str(one.value)
