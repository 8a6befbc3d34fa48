"""Downloading known data sets: resumable, checked, and nothing left behind where the content is wrong."""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np
import polars as pl

from seqattn.data.catalog import Location, cache_folder, entry, how_to_get
from seqattn.data.known import Entry, Progress
from seqattn.data.table import read_frame
from seqattn.data.tpp import EventPart
from seqattn.errors import DataError

__all__ = ["download", "fetch", "fetch_split", "types_sha256"]

_BLOCK = 1 << 16
_ATTEMPTS = 3
_TIMEOUT = 30.0
_SCHEMES = ("https", "http", "file")


def fetch(
    known: str | Entry, *, family: str | None = None, progress: Progress | None = None, again: bool = False
) -> Location:
    """Download a known data set into the cache folder, and check it.

    What an earlier call has brought is kept. The data set appears in the cache only when all its splits are there and
    are what the catalogue says.

    Parameters
    ----------
    known
        Name of the data set, or its entry.
    family
        Family of the data; None looks in all.
    progress
        Called with the name of the file, the bytes that are there and the bytes in all (None where not known).
    again
        Download once more what is already in the cache.

    Returns
    -------
    Where the data set now lies.

    Raises
    ------
    DataError
        There is no known location, the network failed (call again to go on), or the content is not what the
        catalogue says (it is then removed).
    """
    what = known if isinstance(known, Entry) else entry(known, family)
    if not what.is_downloadable:
        raise DataError(f"No location to download {what.name!r} from is known. {how_to_get(what)}")
    target = cache_folder() / what.family / what.name
    if target.is_dir() and not again:
        return Location(target, "cache")
    parts = target.with_name(target.name + ".part")
    parts.mkdir(parents=True, exist_ok=True)
    try:
        what.bring(parts, progress)
    finally:
        _remove_if_empty(parts)
    if target.is_dir():
        shutil.rmtree(target)
    parts.replace(target)
    return Location(target, "cache")


def fetch_split(what: Entry, split: str, part: EventPart, folder: Path, progress: Progress | None) -> None:
    """Bring one split of event sequences into the folder as Parquet.

    It is downloaded to a ``.part`` file, which a later call continues, then converted and compared with the counts and
    the digest of the catalogue.

    Parameters
    ----------
    what, split, part
        The data set, the name of the split, and what is known of it.
    folder
        An existing folder.
    progress
        As in :func:`fetch`.

    Raises
    ------
    DataError
        The network failed, or the content is wrong and was removed.
    """
    done = folder / f"{split}.parquet"
    if done.is_file():
        return
    raw = folder / f"{split}.json"
    if not raw.is_file():
        download(str(part.url), raw, progress)
    try:
        frame = _converted(raw)
        _check(frame, part)
    except DataError as error:
        raw.unlink(missing_ok=True)
        raise DataError(
            f"What {part.url} holds is not {split!r} of {what.name!r}: {error} It was removed."
        ) from error
    frame.write_parquet(done.with_suffix(".writing"), compression="zstd")
    done.with_suffix(".writing").replace(done)
    raw.unlink()


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def download(url: str, target: Path, progress: Progress | None) -> None:
    """Download one file, going on where an earlier attempt stopped.

    Parameters
    ----------
    url
        Its location.
    target
        Where it goes; until it is complete it has ``.part`` behind its name.
    progress
        As in :func:`fetch`.

    Raises
    ------
    DataError
        The location is no location, or the network failed.
    """
    if urlsplit(url).scheme not in _SCHEMES:
        raise DataError(f"Cannot download {url!r}. Locations begin with {', '.join(_SCHEMES)}.")
    part = target.with_name(target.name + ".part")
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            if _continue(url, part, progress):
                part.replace(target)
                return
            reason = "the connection was closed early"
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            error.close()
            if error.code == 416:  # the part is longer than the file: begin anew
                part.unlink(missing_ok=True)
            elif error.code < 500:
                break
        except (urllib.error.URLError, OSError) as error:
            reason = str(getattr(error, "reason", error))
    size = part.stat().st_size if part.exists() else 0
    if not size:
        part.unlink(missing_ok=True)
    went = f"stopped after {size:,} bytes" if size else "failed"
    raise DataError(
        f"The download of {url} {went}: {reason}. Check the network and call again to go on from there."
    )


def _continue(url: str, part: Path, progress: Progress | None) -> bool:
    """Append what is missing to the part; tell whether the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "seqattn", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        resumed = getattr(answer, "status", None) == 206
        length = answer.headers.get("Content-Length")
        have = have if resumed else 0
        total = have + int(length) if length is not None else None
        with part.open("ab" if resumed else "wb") as file:
            _copy(answer, file, part.name.removesuffix(".part"), have, total, progress)
    return total is None or part.stat().st_size == total


def _copy(
    source: Any, target: BinaryIO, name: str, have: int, total: int | None, progress: Progress | None
) -> None:
    while block := source.read(_BLOCK):
        target.write(block)
        have += len(block)
        if progress is not None:
            progress(name, have, total)


def _converted(raw: Path) -> pl.DataFrame:
    """Turn records of lists into one row per event, in the order of the file."""
    records = read_frame(raw)
    columns = {"t": "time_since_start", "dt": "time_since_last_event", "k": "type_event"}
    lacking = [name for name in columns.values() if name not in records.columns]
    if lacking:
        raise DataError(f"{raw.name!r} has no {lacking[0]!r}; it is not in the form of the EasyTPP release.")
    lists = records.select([pl.col(old).alias(new) for new, old in columns.items()]).with_row_index("seq_id")
    try:
        kinds = {"seq_id": pl.Int32, "t": pl.Float64, "dt": pl.Float64, "k": pl.Int16}
        return lists.explode("t", "dt", "k").cast(kinds)  # type: ignore[arg-type]
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{raw.name!r} is not in the form of the EasyTPP release: {error}") from error


def types_sha256(types: pl.Series) -> str:
    """Return the digest of event types that the catalogue holds."""
    return hashlib.sha256(types.to_numpy().astype("<i2").tobytes()).hexdigest()


def _check(frame: pl.DataFrame, part: EventPart) -> None:
    """Compare a split with the catalogue."""
    found = {
        "sequences": frame["seq_id"].n_unique(),
        "events": frame.height,
        "types_sha256": types_sha256(frame["k"]),
    }
    for name, value in found.items():
        wanted = getattr(part, name)
        if wanted is not None and value != wanted:
            raise DataError(f"{name} is {value!r}, not {wanted!r}; it may have changed at its source.")
    if not np.isfinite(frame["t"].to_numpy()).all():
        raise DataError("A time is missing or infinite.")
