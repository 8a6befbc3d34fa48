"""Random division of whole sequences into a part to fit on and a part to watch."""

from __future__ import annotations

import numpy as np

from seqattn.errors import DataError, ParameterError

__all__ = ["split_sequences"]


def split_sequences(
    n: int, share: float | int, seed: int | np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Divide ``n`` sequences at random into two parts, each with at least one sequence.

    Parameters
    ----------
    n
        Number of sequences.
    share
        Share of the sequences for the second part, between 0 and 1.
    seed
        Seed of the division; the global random state is not touched.

    Returns
    -------
    Positions of the first and of the second part, each in increasing order.

    Raises
    ------
    DataError
        There are fewer than two sequences.
    ParameterError
        The share is not between 0 and 1.

    Examples
    --------
    >>> train, valid = split_sequences(10, 0.2, seed=0)
    >>> len(train), len(valid)
    (8, 2)
    """
    if not 0 < share < 1:
        raise ParameterError(f"The share for validation is {share!r}, but must lie between 0 and 1.")
    if n < 2:
        raise DataError(
            f"{n} sequence{'' if n == 1 else 's'} cannot be divided into a training and a validation part. "
            "Give more sequences, pass validation=None, or cut the sequence with chunk=."
        )
    order = np.random.default_rng(seed).permutation(n)
    count = min(max(round(n * share), 1), n - 1)
    return np.sort(order[count:]), np.sort(order[:count])
