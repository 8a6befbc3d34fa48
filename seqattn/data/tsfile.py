"""Files of the UCR and UEA archives (``.ts``): a header, then a line per case with channels apart by colons."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqattn.errors import DataError, suggest

__all__ = ["read_ts"]

_COMMENTS = ("#", "%")
_LABELS = "@classlabel"
_TARGETS = "@targetlabel"


@dataclass(frozen=True)
class _Header:
    """What the lines before ``@data`` say; None where they say nothing."""

    where: str
    values: dict[str, list[str]]
    n_lines: int

    def is_true(self, name: str) -> bool:
        found = self.values.get(name, [])
        return bool(found) and found[0].lower() == "true"

    def is_false(self, name: str) -> bool:
        found = self.values.get(name, [])
        return bool(found) and found[0].lower() == "false"

    def count(self, name: str) -> int | None:
        found = self.values.get(name, [])
        if found and not found[0].isdecimal():
            raise DataError(f"{name} in {self.where} is {found[0]!r}. Give a whole number.")
        return int(found[0]) if found else None

    @property
    def n_channels(self) -> int | None:
        return 1 if self.is_true("@univariate") else self.count("@dimensions")

    @property
    def labels(self) -> list[str] | None:
        return self.values[_LABELS][1:] if self.is_true(_LABELS) else None

    @property
    def has_labels(self) -> bool:
        return self.is_true(_LABELS) or self.is_true(_TARGETS)


def read_ts(path: str | Path) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Read a ``.ts`` file; ``?`` and ``NaN`` are missing values.

    Parameters
    ----------
    path
        The file, or a file inside a ZIP archive, written like one in a folder: ``LSST.zip/LSST_TRAIN.ts``. Nothing is
        unpacked to disk.

    Returns
    -------
    One array (channels, time) per case, and the labels as the file spells them; None where it has none. Targets of a
    regression are numbers.

    Raises
    ------
    DataError
        The file is absent, is no such file, or is damaged; says in which line. Nothing is read in part.
    """
    place = Path(path)
    where = repr(str(path))
    lines = _text(place, where).splitlines()
    header = _header(lines, where)
    _check_header(header)
    series: list[np.ndarray] = []
    labels: list[str] = []
    with warnings.catch_warnings():
        # numpy tells of text that is no number by a warning only.
        warnings.simplefilter("error", DeprecationWarning)
        for number, line in enumerate(lines[header.n_lines :], header.n_lines + 1):
            if not line.strip() or line.startswith(_COMMENTS):
                continue
            shape = series[0].shape if series else (header.n_channels, header.count("@serieslength"))
            values, label = _case(line, header, number, *shape)
            series.append(values)
            labels.append(label)
    if not series:
        raise DataError(f"{where} holds no case after '@data'.")
    return series, _labels(labels, header)


def _text(path: Path, where: str) -> str:
    try:
        return _content(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"There is no file {where}.{_near(path)}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: byte {error.start} cannot be read.") from None
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{where} cannot be read: {error}.") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}.") from None


def _content(path: Path) -> bytes:
    if path.parent.suffix.lower() == ".zip" and path.parent.is_file():
        with zipfile.ZipFile(path.parent) as archive:
            return archive.read(path.name)
    return path.read_bytes()


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return suggest(path.name, [other.name for other in path.parent.iterdir()])


def _header(lines: list[str], where: str) -> _Header:
    values: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or line.startswith(_COMMENTS):
            continue
        name = words[0].lower()
        if name == "@data":
            return _Header(where, values, number)
        if not name.startswith("@"):
            raise DataError(
                f"Line {number} of {where} comes before '@data' and does not begin with '@' or '#'."
            )
        values[name] = words[1:]
    raise DataError(f"{where} has no line '@data', so it is no .ts file, or was cut short.")


def _check_header(header: _Header) -> None:
    if header.is_true("@timestamps"):
        raise DataError(
            f"{header.where} gives a time with each value (@timeStamps true), which is not read. Write the values "
            "alone, at equal distances in time, and @timeStamps false."
        )
    if header.is_true("@univariate") and (header.count("@dimensions") or 1) > 1:
        raise DataError(
            f"{header.where} says '@univariate true' and '@dimensions {header.count('@dimensions')}'. Correct one."
        )
    if header.labels == []:
        raise DataError(f"{header.where} says '@classLabel true' and names no class. Write them behind it.")


def _case(
    line: str, header: _Header, number: int, n_channels: int | None, length: int | None
) -> tuple[np.ndarray, str]:
    """Return the values and the label of one line; the length is that of the first one, if the header wants it so."""
    where = f"Line {number} of {header.where}"
    channels = line.split(":")
    label = channels.pop().strip() if header.has_labels else ""
    if header.labels is not None and label not in header.labels:
        raise DataError(
            f"{where} ends with the label {label!r}, which '@classLabel' does not name."
            f"{suggest(label, header.labels)} Perhaps the line was cut short."
        )
    if len(channels) != (n_channels or len(channels)):
        raise DataError(f"{where} has {len(channels)} channel(s), and {n_channels} are expected.")
    lengths = [channel.count(",") + 1 for channel in channels]
    length = length if header.is_true("@equallength") else None
    if min(lengths) < max(lengths) or lengths[0] != (length or lengths[0]):
        expected = f"{length} each are" if length else "equal numbers are"
        raise DataError(f"{where} has channels of {_range(lengths)} values, and {expected} expected.")
    values = _values(",".join(channels), where)
    if np.isnan(values).any() and header.is_false("@missing"):
        raise DataError(
            f"{where} has a missing value, and the header says '@missing false'. Correct one of them."
        )
    return values.reshape(len(channels), lengths[0]), label


def _range(lengths: list[int]) -> str:
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low} to {high}"


def _values(text: str, where: str) -> np.ndarray:
    if "?" in text:
        text = text.replace("?", "nan")
    values = _numbers(text)
    if len(values) != text.count(",") + 1:
        raise DataError(
            f"{where} holds {_culprit(text)!r}, which is no number. Missing values are '?' or 'NaN'."
        )
    return values


def _culprit(text: str) -> str:
    """Return the first of some comma-separated words that is no number."""
    words = (word.strip() for word in text.split(","))
    return next((word for word in words if not word or len(_numbers(word)) != 1), "")


def _numbers(text: str) -> np.ndarray:
    """Return comma-separated numbers; none if there is something else among them."""
    try:
        return np.fromstring(text, sep=",")
    except (DeprecationWarning, ValueError):
        return np.empty(0)


def _labels(labels: list[str], header: _Header) -> np.ndarray | None:
    if not header.has_labels:
        return None
    if header.labels is not None:
        return np.array(labels)
    found: Any = np.empty(len(labels))
    for case, label in enumerate(labels):
        try:
            found[case] = float(label)
        except ValueError:
            raise DataError(
                f"Case {case} of {header.where} ends with {label!r}, which is no number."
            ) from None
    return found
