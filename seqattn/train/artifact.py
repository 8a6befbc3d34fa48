"""Files of fitted models: one safetensors file with a JSON header, and nothing that can run code.

A file holds named tensors and, in the header's metadata under ``"seqattn"``, a JSON text with the format
number, the kind of model, the version that wrote it, the model's own metadata, and a checksum of all this.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import seqattn
from seqattn.errors import ArtifactError

__all__ = [
    "FORMAT",
    "Artifact",
    "decode_label",
    "decode_metadata",
    "encode_label",
    "encode_metadata",
    "load_artifact",
    "save_artifact",
]

FORMAT = 1
# The ending of files being written; one may stay behind when the process is killed.
PARTIAL = ".partial"
_FILE = "model.safetensors"
_KEY = "seqattn"
# The limit that the safetensors library sets; a larger number means that the file is something else.
_HEADER_LIMIT = 100_000_000
# What parsing provokes in a file that was changed by accident.
_MALFORMED = (
    safetensors.SafetensorError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class Artifact:
    """What a file of a fitted model holds.

    Attributes
    ----------
    kind
        What was saved, normally the name of the estimator's class.
    version
        The version of seqattn that wrote the file.
    metadata
        JSON values; floats that are not finite come back as they were.
    tensors
        Tensors by name, on the CPU, in the precision in which they were saved.
    """

    kind: str
    version: str
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def save_artifact(
    path: str | Path,
    kind: str,
    tensors: Mapping[str, Tensor | np.ndarray],
    metadata: Mapping[str, Any],
) -> Path:
    """Write tensors and metadata to one file, and return its path.

    The file appears complete or not at all: it is written beside its place, flushed to disk, then renamed. Equal
    contents give equal bytes.

    Parameters
    ----------
    path
        The file to write, replaced if it exists. For an existing folder it is ``model.safetensors`` inside.
        Missing parent folders are made.
    kind
        What is saved, normally the name of the estimator's class.
    tensors
        Tensors or numeric arrays by name; any device, dtype and layout in memory.
    metadata
        JSON values: mappings with text keys, lists, tuples (they come back as lists), texts, whole numbers,
        floats (not finite ones too), Booleans and None. Labels of other types go through `encode_label`.

    Returns
    -------
    The path of the file written.

    Raises
    ------
    ArtifactError
        The metadata holds a value, or the arrays a type, that cannot be saved.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_artifact(folder, "Mean", {"mean": torch.ones(2)}, {"unit": "s"})
    ...     artifact = load_artifact(folder)
    >>> path.name, artifact.kind, artifact.metadata, artifact.tensors["mean"].tolist()
    ('model.safetensors', 'Mean', {'unit': 's'}, [1.0, 1.0])
    """
    place = Path(path)
    if place.is_dir():
        place = place / _FILE
    owned = {name: _owned(name, value) for name, value in sorted(tensors.items())}
    header = {
        "format": FORMAT,
        "kind": kind,
        "version": seqattn.__version__,
        "metadata": encode_metadata(dict(metadata)),
    }
    header["checksum"] = _checksum(owned, header)
    # One metadata entry only: the library writes several in an order that changes from run to run.
    content = safetensors.torch.save(owned, metadata={_KEY: json.dumps(header, allow_nan=False)})
    _write(place, content)
    return place


def load_artifact(path: str | Path) -> Artifact:
    """Read a file that `save_artifact` wrote.

    Parameters
    ----------
    path
        The file, or a folder that holds ``model.safetensors``.

    Returns
    -------
    The contents, all in memory; the file may be changed or removed afterwards.

    Raises
    ------
    ArtifactError
        The file is missing or cannot be read, was not written by seqattn, is cut short or damaged, or was
        written in a newer format.
    """
    place = Path(path)
    if place.is_dir():
        place = place / _FILE
    content = _read(place)
    with _refusing(place):
        header, ours = _open_header(content, place)
        _check_length(header, content, place)
        tensors = safetensors.torch.load(content)
        if ours.pop("checksum") != _checksum(tensors, ours):
            raise ArtifactError(
                f"{str(place)!r} is damaged: its contents do not match their checksum. Save or copy it again."
            )
        metadata = decode_metadata(ours["metadata"])
        return Artifact(
            str(ours["kind"]), str(ours["version"]), dict(metadata), dict(sorted(tensors.items()))
        )


def _owned(name: str, value: Tensor | np.ndarray) -> Tensor:
    """A copy on the CPU with its own contiguous memory; the file format knows no shared memory."""
    try:
        if isinstance(value, np.ndarray):
            # torch knows neither reversed axes nor a foreign byte order, and warns of read-only memory.
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise ArtifactError(
            f"Array {name!r} of type {value.dtype} cannot be saved. "
            "Only numbers and Booleans can; put other values into the metadata."
        ) from error
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> int:
    """CRC-32 over everything that counts: it finds damage by accident (1 GB/s), not forgery."""
    value = zlib.crc32(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        # reshape(-1) first: a tensor without axes cannot be viewed as bytes.
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"There is no saved model at {str(path)!r}. Give the file that save() wrote, or a folder with {_FILE}."
        ) from None
    except OSError as error:
        raise ArtifactError(f"{str(path)!r} cannot be read: {error.strerror}.") from error


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn whatever a malformed file provokes into an `ArtifactError`."""
    try:
        yield
    except ArtifactError:
        raise
    except _MALFORMED as error:
        raise ArtifactError(f"{str(path)!r} is damaged and cannot be opened ({error}).") from error


def _open_header(content: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header of the file, and our part of its metadata."""
    size = int.from_bytes(content[:8], "little")
    begins_well = size <= _HEADER_LIMIT and content[8:9] in (b"{", b"")
    if len(content) < 8 or (begins_well and len(content) < 8 + size):
        raise ArtifactError(
            f"{str(path)!r} is cut short: it ends after {len(content)} bytes, within its header. "
            "Save or copy it again, or give a file that an estimator's save() wrote."
        )
    try:
        if not begins_well:
            raise ValueError("no safetensors header")
        header = json.loads(content[8 : 8 + size])
        ours = json.loads(header["__metadata__"][_KEY])
        written = int(ours["format"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ArtifactError(
            f"{str(path)!r} was not written by seqattn. Give a file that an estimator's save() wrote."
        ) from None
    if written > FORMAT:
        raise ArtifactError(
            f"{str(path)!r} has format {written}, written by seqattn {ours.get('version')}; this version "
            f"({seqattn.__version__}) reads formats up to {FORMAT}. Install a newer seqattn."
        )
    return header, ours


def _check_length(header: dict[str, Any], content: bytes, path: Path) -> None:
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + int.from_bytes(content[:8], "little") + max(ends, default=0)
    if len(content) < expected:
        raise ArtifactError(
            f"{str(path)!r} is cut short: {len(content)} bytes of {expected}. Save or copy it again."
        )


def encode_metadata(value: Any) -> Any:
    """Return a value as JSON that the standard allows, floats that are not finite included.

    Parameters
    ----------
    value
        Mappings with text keys, lists, tuples, texts, whole numbers, floats, Booleans and None, nested freely.
        NumPy's numbers become Python's.

    Returns
    -------
    Nested dicts and lists for ``json.dumps(..., allow_nan=False)``; `decode_metadata` inverts it.

    Raises
    ------
    ArtifactError
        A value of another type, or a key that is not a text.

    Examples
    --------
    >>> encode_metadata({"best": float("-inf"), "losses": [2.0, float("nan")]})
    {'best': {'$float': '-inf'}, 'losses': [2.0, {'$float': 'nan'}]}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(float(value))}
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [encode_metadata(entry) for entry in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        encoded = {key: encode_metadata(entry) for key, entry in value.items()}
        # A dict that looks like one of our marks is wrapped, so that decoding leaves it alone.
        return {"$dict": encoded} if "$float" in encoded or "$dict" in encoded else encoded
    raise ArtifactError(
        f"Metadata {value!r} of type {type(value).__name__} cannot be saved. Allowed: dicts with text keys, lists, "
        "texts, numbers, Booleans and None; labels go through encode_label."
    )


def decode_metadata(value: Any) -> Any:
    """Return what `encode_metadata` was given, tuples as lists.

    Parameters
    ----------
    value
        JSON values as `encode_metadata` returned them.

    Returns
    -------
    The values before encoding.

    Examples
    --------
    >>> decode_metadata({"best": {"$float": "-inf"}, "losses": [2.0, {"$float": "nan"}]})
    {'best': -inf, 'losses': [2.0, nan]}
    """
    if isinstance(value, list):
        return [decode_metadata(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    return {key: decode_metadata(entry) for key, entry in value.get("$dict", value).items()}


def encode_label(label: Any) -> Any:
    """Return a label as a JSON value from which `decode_label` restores value and type.

    Parameters
    ----------
    label
        A str, int, float, bool, None, bytes, date, datetime (naive, in a fixed offset or a named zone), a NumPy
        scalar, or a tuple of these.

    Returns
    -------
    The label itself where JSON knows its type, else a dict ``{type name: content}``.

    Raises
    ------
    ArtifactError
        The label has another type.

    Examples
    --------
    >>> encode_label("taxi"), encode_label(("a", 1)), encode_label(b"x")
    ('taxi', {'tuple': ['a', 1]}, {'bytes': 'eA=='})
    """
    # Exact types, since a subclass (an Enum, a pandas Timestamp) would come back as something else.
    if label is None or type(label) in (str, int, bool) or (type(label) is float and math.isfinite(label)):
        return label
    name = "numpy" if isinstance(label, np.generic) else type(label).__name__
    if name == "numpy" or type(label) in _LABEL_TYPES:
        return {name: _CODECS[name][0](label)}
    raise ArtifactError(
        f"Label {label!r} of type {type(label).__name__} cannot be saved. Allowed: str, int, float, bool, None, "
        "bytes, date, datetime, NumPy scalars and tuples of these. Convert the labels before fitting."
    )


def decode_label(value: Any) -> Any:
    """Return the label that `encode_label` was given.

    Parameters
    ----------
    value
        A JSON value that `encode_label` returned.

    Returns
    -------
    The label, equal in value and type.

    Raises
    ------
    ArtifactError
        The value is not one that `encode_label` returns.

    Examples
    --------
    >>> decode_label({"tuple": ["a", 1]})
    ('a', 1)
    """
    if not isinstance(value, (dict, list)):
        return value
    try:
        ((name, content),) = value.items()  # type: ignore[union-attr]
        return _CODECS[name][1](content)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{value!r} is not an encoded label ({error}).") from error


def _encode_datetime(value: datetime) -> list[Any]:
    """Wall-clock time, zone and fold; an ISO text alone would turn a named zone into an offset."""
    return [value.replace(tzinfo=None, fold=0).isoformat(), _encode_zone(value), value.fold]


def _encode_zone(value: datetime) -> str | float | None:
    zone = value.tzinfo
    if isinstance(zone, ZoneInfo) and zone.key is not None:
        return zone.key
    if type(zone) is timezone:
        return zone.utcoffset(None).total_seconds()
    if zone is None:
        return None
    raise ArtifactError(
        f"Label {value!r} cannot be saved: its time zone is a {type(zone).__name__}. "
        "Use datetime.timezone or zoneinfo.ZoneInfo."
    )


def _decode_datetime(content: list[Any]) -> datetime:
    text, zone, fold = content
    return datetime.fromisoformat(text).replace(tzinfo=_decode_zone(zone), fold=fold)


def _decode_zone(zone: str | float | None) -> timezone | ZoneInfo | None:
    if zone is None:
        return None
    if not isinstance(zone, str):
        return timezone(timedelta(seconds=zone))
    try:
        return ZoneInfo(zone)
    except ZoneInfoNotFoundError as error:
        raise ArtifactError(
            f"This computer does not know the time zone {zone!r} of a saved label. Install the package tzdata."
        ) from error


def _encode_scalar(value: np.generic) -> list[str]:
    """Type and bytes of a NumPy scalar, exact for every precision and unit of time."""
    if value.dtype.kind not in "biufcSUmM":
        raise ArtifactError(
            f"Label {value!r} cannot be saved: NumPy type {value.dtype}. Convert it before fitting."
        )
    return [value.dtype.str, base64.b64encode(value.tobytes()).decode()]


def _decode_scalar(content: list[str]) -> np.generic:
    dtype, data = np.dtype(content[0]), base64.b64decode(content[1])
    # The type of an empty text has no size, which frombuffer refuses.
    return np.frombuffer(data, dtype)[0] if dtype.itemsize else dtype.type()


_LABEL_TYPES = (float, bytes, tuple, date, datetime)
_CODECS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "float": (repr, float),
    "bytes": (lambda value: base64.b64encode(value).decode(), base64.b64decode),
    "tuple": (
        lambda value: [encode_label(entry) for entry in value],
        lambda value: tuple(decode_label(entry) for entry in value),
    ),
    "date": (date.isoformat, date.fromisoformat),
    "datetime": (_encode_datetime, _decode_datetime),
    "numpy": (_encode_scalar, _decode_scalar),
}
