"""What a call must keep to on a GPU: sizes of launches and indices, alignment, and a first guess of its time."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LAUNCH", "aligned_mask", "index_size", "microseconds", "row_chunks", "segment_chunks", "up_to"]

# Sequences, and heads, are one dimension each of a launch grid.
LAUNCH = 65535
# Numbers in the float32 workspace of the fused backward; beyond, its 32-bit indices overflow into illegal addresses.
INDEX = 2**31
# Queries that one thread block takes.
BLOCK = 128
# Elements to which rows of a mask are aligned; unaligned masks are copied in full size.
MASK_ALIGNMENT = 16

# Nominal figures of a data-centre GPU, none of them measured: microseconds per launch, floating point operations per
# microsecond that a fused kernel reaches, bytes moved per microsecond.
LAUNCH_US = (20.0, 60.0)
FLOPS_PER_US = {2: 2e8, 4: 2e7, 8: 1e6}
BYTES_PER_US = 1e6


def up_to(size: int, multiple: int) -> int:
    """Return the next multiple that is not below the size.

    Parameters
    ----------
    size
        Any count.
    multiple
        What the result is a multiple of.

    Examples
    --------
    >>> up_to(65, 8), up_to(64, 8)
    (72, 64)
    """
    return -(-size // multiple) * multiple


def index_size(sequences: int, heads: int, length: int, width: int) -> int:
    """Return how many numbers the workspace of a fused backward pass holds.

    Parameters
    ----------
    sequences, heads, length, width
        Shape of the queries.
    """
    return sequences * heads * up_to(length, BLOCK) * max(up_to(width, 32), 32)


def row_chunks(rows: int, heads: int, length: int, width: int) -> list[slice]:
    """Return the rows of a batch in parts that fit one launch each.

    Parameters
    ----------
    rows, heads, length, width
        Shape of the queries; a single row must fit.

    Examples
    --------
    >>> row_chunks(100_000, 1, 1, 8)
    [slice(0, 65535, None), slice(65535, 100000, None)]
    """
    most = max(1, min(LAUNCH, (INDEX - 1) // max(index_size(1, heads, length, width), 1)))
    return [slice(first, min(first + most, rows)) for first in range(0, rows, most)]


def segment_chunks(lengths: np.ndarray, heads: int, width: int) -> list[slice]:
    """Return segments of packed rows in parts that fit one launch each.

    Parameters
    ----------
    lengths
        Rows of each segment; a single one must fit.
    heads, width
        The other sizes of the rows.

    Examples
    --------
    >>> import numpy as np
    >>> segment_chunks(np.full(3, 2**23), heads=2, width=64)
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    # The workspace holds every segment with up to a block of padding.
    ends = np.cumsum((lengths + BLOCK) * heads * max(up_to(width, 32), 32))
    found, first, used = [], 0, 0
    while first < len(lengths):
        last = int(np.searchsorted(ends, used + INDEX))
        last = min(max(last, first + 1), first + LAUNCH)
        found.append(slice(first, last))
        first, used = last, int(ends[last - 1])
    return found


def aligned_mask(mask: Tensor) -> Tensor:
    """Return the mask with rows that begin at aligned places, so that it can be broadcast without a copy.

    Parameters
    ----------
    mask
        What is added to the scores, ``[rows or 1, heads or 1, queries or 1, keys]``.
    """
    keys = mask.shape[-1]
    return F.pad(mask, (0, up_to(keys, MASK_ALIGNMENT) - keys))[..., :keys]


def microseconds(launches: int, pairs: float, width: int, size: int, moved: float, training: bool) -> float:
    """Return a guess of the time of a fused kernel, from nominal figures.

    Parameters
    ----------
    launches
        Number of calls.
    pairs
        (query, key, head) pairs in them.
    width
        Features per head.
    size
        Bytes per number.
    moved
        Numbers that are gathered before and after.
    training
        Whether a backward pass follows.
    """
    work = 4 * pairs * width / FLOPS_PER_US[size] + moved * size / BYTES_PER_US
    return launches * LAUNCH_US[training] + work * (3.5 if training else 1.0)
