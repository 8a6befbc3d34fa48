"""Sequences on disk: a folder of plain numpy arrays that open without being loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from seqattn.data.labels import decode_label, encode_label
from seqattn.data.workplace import is_work
from seqattn.errors import DataError

__all__ = ["FolderWriter", "check_target", "is_saved", "open_arrays", "publish", "save_arrays"]

_FORMAT = 1
_KIND = "seqattn.Sequences"


def is_saved(path: str | Path) -> bool:
    """Tell whether a folder holds saved sequences."""
    return (Path(path) / "meta.json").is_file()


def save_arrays(
    path: str | Path, arrays: Mapping[str, np.ndarray], ids: np.ndarray, meta: Mapping[str, Any]
) -> None:
    """Write arrays, ids and metadata into a folder; the metadata go last and mark the folder as complete."""
    folder = check_target(path)
    folder.mkdir(parents=True, exist_ok=True)
    written = _written(ids)
    (folder / "meta.json").unlink(missing_ok=True)
    for name, array in arrays.items():
        _write_array(folder / f"{name}.npy", array)
    _finish(folder, ids, written, {name: len(array) for name, array in arrays.items()}, meta)


def check_target(path: str | Path) -> Path:
    """Return a folder that sequences can be written to, links followed; refuse what is taken by something else.

    Parameters
    ----------
    path
        The folder, which need not exist.

    Raises
    ------
    DataError
        The path is a file, or a folder with other files.
    """
    folder = Path(path)
    if folder.is_file():
        raise DataError(f"{str(folder)!r} is a file. Sequences are saved in a folder; choose another name.")
    if folder.is_dir() and not is_saved(folder) and not all(is_work(other) for other in folder.iterdir()):
        raise DataError(f"The folder {str(folder)!r} holds other files. Choose an empty or a new folder.")
    return folder.resolve()


def _written(ids: np.ndarray) -> list[Any] | None:
    return [encode_label(key, "Id") for key in ids.tolist()] if ids.dtype == object else None


def _finish(
    folder: Path,
    ids: np.ndarray,
    written: list[Any] | None,
    lengths: Mapping[str, int],
    meta: Mapping[str, Any],
) -> None:
    """Write ids, then the metadata that mark the folder as complete."""
    if written is None:
        _write_array(folder / "ids.npy", ids)
    else:
        _write_text(folder / "ids.json", json.dumps(written))
    (folder / ("ids.json" if written is None else "ids.npy")).unlink(missing_ok=True)
    _write_text(
        folder / "meta.json", json.dumps({"kind": _KIND, "format": _FORMAT, "lengths": dict(lengths), **meta})
    )


class FolderWriter:
    """Writes the arrays of a saved folder piece by piece.

    Parameters
    ----------
    folder
        Made if absent.
    kinds
        The dtype of each array.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.lengths = dict.fromkeys(kinds, 0)
        self._kinds = {name: np.dtype(kind) for name, kind in kinds.items()}
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.npy").open("wb") for name in kinds}
        for name in kinds:
            self._write_header(name)

    def _write_header(self, name: str) -> None:
        """Write the header of a .npy file; numpy leaves room in it for the length to grow."""
        kind, file = self._kinds[name], self._files[name]
        file.seek(0)
        shape = (self.lengths[name],)
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

    def append(self, name: str, values: np.ndarray) -> None:
        """Write values behind those of an array that are there.

        Parameters
        ----------
        name
            Which array.
        values
            What is added.
        """
        self.lengths[name] += len(values)
        self._files[name].write(np.ascontiguousarray(values, dtype=self._kinds[name]).data)

    def close(self) -> None:
        """Close all files, complete or not."""
        for file in self._files.values():
            file.close()

    def finish(self, ids: np.ndarray, meta: Mapping[str, Any]) -> None:
        """Write the lengths, the ids and the metadata, which mark the folder as complete.

        Parameters
        ----------
        ids
            Ids of the sequences.
        meta
            As for :func:`save_arrays`.
        """
        for name in self._files:
            self._write_header(name)
        self.close()
        _finish(self.folder, ids, _written(ids), self.lengths, meta)


def publish(written: Path, folder: Path) -> None:
    """Give a complete folder its final name; saved sequences that have the name are replaced, file by file.

    Other files of the folder stay, and so does the folder itself, which may be a mount or somebody's current one.

    Parameters
    ----------
    written
        The folder, on the same file system.
    folder
        Its final name.

    Raises
    ------
    DataError
        The name was taken by something else meanwhile.
    """
    if not check_target(folder).exists():
        written.rename(folder)
        return
    names = {path.name for path in written.iterdir()}
    (folder / "meta.json").unlink(missing_ok=True)
    for name in names - {"meta.json"}:
        (written / name).replace(folder / name)
    (folder / ("ids.json" if "ids.npy" in names else "ids.npy")).unlink(missing_ok=True)
    (written / "meta.json").replace(folder / "meta.json")


def _write_array(path: Path, array: np.ndarray) -> None:
    """Write beside and rename, so that an array open elsewhere keeps its old file."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    part.replace(path)


def _write_text(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def open_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Map the arrays of a saved folder into memory, and read its ids and metadata.

    Raises
    ------
    DataError
        The folder is absent, incomplete, damaged, or from a newer version.
    """
    folder = Path(path)
    if not is_saved(folder):
        state = (
            "is not complete or was not written by Sequences.save" if folder.is_dir() else "does not exist"
        )
        raise DataError(f"The folder {str(folder)!r} {state}. Write it with Sequences.save.")
    meta = _read_meta(folder)
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["lengths"]}
        ids = _read_ids(folder)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"The folder {str(folder)!r} is damaged: {error}. Save the sequences again."
        ) from error
    for name, length in meta["lengths"].items():
        if len(arrays[name]) != length:
            raise DataError(
                f"{name}.npy in {str(folder)!r} holds {len(arrays[name])} values, not {length}. Save again."
            )
    return arrays, ids, meta


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"meta.json in {str(folder)!r} is damaged: {error}.") from error
    if not isinstance(meta, dict) or meta.get("kind") != _KIND:
        raise DataError(f"The folder {str(folder)!r} was not written by Sequences.save.")
    if meta["format"] > _FORMAT:
        raise DataError(
            f"The folder {str(folder)!r} was written by a newer version of seqattn. Install that version."
        )
    return meta


def _read_ids(folder: Path) -> np.ndarray:
    if (folder / "ids.npy").exists():
        return np.load(folder / "ids.npy", mmap_mode="r")
    written = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    ids = np.empty(len(written), dtype=object)
    ids[:] = [decode_label(key) for key in written]
    return ids
