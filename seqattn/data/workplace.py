"""Hidden folders for unfinished work, which go when it ends, and when the process that made them is dead."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["is_work", "work_folder"]

_PREFIX = ".seqattn-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_work(path: Path) -> bool:
    """Tell whether a path has the name of a folder for unfinished work.

    Parameters
    ----------
    path
        What is asked about.
    """
    return path.name.startswith(_PREFIX)


@contextlib.contextmanager
def work_folder(place: Path) -> Iterator[Path]:
    """Make a hidden folder that is gone at the end; those that killed processes left in the place go too.

    A live process holds a lock on its folder, which the system takes from it when it ends in whatever way.

    Parameters
    ----------
    place
        Where the folder is made.

    Raises
    ------
    OSError
        Nothing can be written there. A full disk is told with the name of the place.
    """
    _clear(place)
    with contextlib.ExitStack() as stack:
        try:
            folder, lock = _made(place)
            stack.callback(_unlock, lock)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            yield folder
        except OSError as error:
            if error.errno in _FULL and error.filename is None:
                error.filename = str(place)
            raise


def _made(place: Path) -> tuple[Path, int | None]:
    """Return a new folder and its lock; another process may have taken it for a dead one's before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        lock = _locked(folder, wait=True)
        if folder.exists():
            return folder, lock
        _unlock(lock)


def _locked(folder: Path, *, wait: bool) -> int | None:
    """Return a lock on a folder; None where another process has it, or the system has no locks on folders."""
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _clear(place: Path) -> None:
    """Remove folders whose processes are dead."""
    for folder in place.glob(f"{_PREFIX}*"):
        lock = _locked(folder, wait=False) if folder.is_dir() else None
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)
