"""Sets of the UCR and UEA archives by download, through sktime's loader where sktime is installed."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from seqattn.errors import DataError, MissingDependencyError

__all__ = ["fetch_ts"]


def fetch_ts(name: str, folder: Path) -> dict[str, Path]:
    """Download a set of the archive, and return its two ``.ts`` files, which are put into the folder.

    Parameters
    ----------
    name
        Its name in the archive.
    folder
        An existing folder.

    Raises
    ------
    MissingDependencyError
        sktime is not installed.
    DataError
        The download failed.
    """
    try:
        from sktime.datasets import load_UCR_UEA_dataset
    except ImportError as error:
        raise MissingDependencyError(
            f"{name!r} is downloaded through sktime: pip install sktime. Or put its files where they are looked for; "
            f"seqattn datasets show {name} says where."
        ) from error
    files = {split: folder / f"{name}_{split.upper()}.ts" for split in ("train", "test")}
    if all(path.is_file() for path in files.values()):
        return files
    brought = [folder / name / path.name for path in files.values()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of each server that it tries in vain
            load_UCR_UEA_dataset(name, split="test", extract_path=str(folder))
    except Exception as error:
        # Its reader refuses more files than ours.
        if not all(path.is_file() for path in brought):
            shutil.rmtree(folder / name, ignore_errors=True)
            raise DataError(
                f"sktime could not download {name!r}: {error}. Check the network and call again."
            ) from error
    for path in brought:
        path.replace(folder / path.name)
    shutil.rmtree(folder / name)
    return files
