"""Columns that may be larger than memory: work block by block, and results that lie in files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

__all__ = ["BLOCK", "block_rows", "block_slices", "scratch", "take_sequences"]

# Events per block: 16 MB of times, so that a dozen work arrays beside them stay small. Data sets with fewer events are
# one block, and what is computed from them does not depend on this number.
BLOCK = 1 << 21
# Results below this size are not worth a file.
_SMALL = 1 << 25


def block_slices(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Yield slices that cover 0 to ``n`` in steps of ``size``.

    Examples
    --------
    >>> list(block_slices(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def block_rows(offsets: np.ndarray, size: int = BLOCK) -> Iterator[slice]:
    """Yield runs of whole sequences with at most ``size`` events; a longer sequence is a run of its own.

    Examples
    --------
    >>> list(block_rows(np.array([0, 2, 4, 9]), 4))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    begin, n = 0, len(offsets) - 1
    while begin < n:
        end = int(np.searchsorted(offsets, offsets[begin] + size, side="right")) - 1
        end = min(max(end, begin + 1), n)
        yield slice(begin, end)
        begin = end


def scratch(n: int, kind: Any, like: np.ndarray) -> np.ndarray:
    """Return an array to be filled: in memory, or in a nameless file where ``like`` is a long array in a file.

    The file lies beside that of ``like``, or in the folder for temporary files, and is gone with the array.

    Parameters
    ----------
    n
        Number of values.
    kind
        Their dtype.
    like
        Where the values come from.

    Raises
    ------
    OSError
        There is no room in either folder.
    """
    size = n * np.dtype(kind).itemsize
    if not isinstance(like, np.memmap) or size < _SMALL:
        return np.empty(n, dtype=kind)
    with _nameless(like, size) as file:
        return np.memmap(file, dtype=kind, mode="r+", shape=(n,))


def _nameless(like: np.memmap, size: int) -> BinaryIO:
    """Return a file of this size, where there is room for it."""
    usual = Path(tempfile.gettempdir())
    places = [usual] if like.filename is None else [Path(like.filename).parent, usual]
    for place in places:
        try:
            return _reserved(place, size)
        except OSError as error:  # the data may lie where nothing can be written
            reason = error
    raise OSError(
        reason.errno,
        f"There is no room for {size:,} bytes in {' or '.join(repr(str(place)) for place in places)} "
        f"({reason.strerror}). Free some, or name a folder with room in the variable TMPDIR",
    )


def _reserved(place: Path, size: int) -> BinaryIO:
    """Take the room at once: where a disk is found full at the first use of a page, the process dies of SIGBUS."""
    with contextlib.ExitStack() as stack:
        file = cast("BinaryIO", stack.enter_context(tempfile.TemporaryFile(dir=place)))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        stack.pop_all()
    return file


def take_sequences(values: np.ndarray, begin: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the values of some sequences one after another.

    Parameters
    ----------
    values
        A value per event.
    begin
        Where each sequence wanted begins among the values.
    offsets
        Bounds of the sequences in the result.
    """
    answer = scratch(int(offsets[-1]), values.dtype, values)
    for rows in block_rows(offsets):
        first, last = offsets[rows.start], offsets[rows.stop]
        shift = begin[rows] - offsets[rows]
        lengths = np.diff(offsets[rows.start : rows.stop + 1])
        answer[first:last] = values[np.repeat(shift, lengths) + np.arange(first, last)]
    return answer
