"""Labelled series of several channels, as read-only arrays: the one form that classification works on."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from seqattn.data.frames import case_of_frame, is_frame, names_of_channels, series_of_frame, table_width
from seqattn.data.tsfile import read_ts
from seqattn.data.values import is_missing, values_of
from seqattn.errors import DataError, SeqattnWarning

__all__ = ["Panel", "channel_names", "row_length"]

_FLAT = (
    "Expected series, got a 1D array of values. Reshape your data: X.reshape(1, -1) for one series, X.reshape(-1, 1) "
    "for many of one point."
)
_SPARSE = "Sparse data were given, and dense data are needed. Use X.toarray() (or X.to_dense())."
# Above this many channels, more channels than time points look like swapped axes.
_MANY_CHANNELS = 64


@dataclass(frozen=True, eq=False)
class Panel:
    """Series of several channels, one per case, of equal or unequal length, with or without labels.

    Parameters
    ----------
    series
        For each case an array (channels, time), in the order of the cases. NaN is a missing value. Arrays that could
        be written to are copied.
    labels
        One label per case, or None.

    Raises
    ------
    DataError
        There is no case, a case has no channel or another number of channels than the first one, a value is infinite,
        or labels are missing or not one per case.
    TypeError
        An array is sparse, or holds something that is no number.

    Examples
    --------
    >>> panel = Panel([[[0.0, 1.0, 2.0]], [[1.0, 0.0]]], ["up", "down"])
    >>> len(panel), panel.n_channels, panel.lengths.tolist()
    (2, 1, [3, 2])
    """

    series: tuple[np.ndarray, ...]
    labels: np.ndarray | None = None

    def __init__(self, series: Iterable[Any], labels: Any = None) -> None:
        own = tuple(_own(values, f"Case {case}") for case, values in enumerate(series))
        object.__setattr__(self, "series", own)
        object.__setattr__(self, "labels", None if labels is None else _own_labels(labels, len(own)))
        self._check()

    def _check(self) -> None:
        if not self.series:
            raise DataError("There are no cases: 0 sample(s) were given while a minimum of 1 is required.")
        for case, values in enumerate(self.series):
            if values.ndim != 2 or not len(values):
                raise DataError(f"Case {case} has the shape {values.shape}. Give (channels, time).")
            if len(values) != self.n_channels:
                raise DataError(
                    f"Case {case} has {len(values)} channel(s), and case 0 has {self.n_channels}. Every case needs "
                    "the same channels; give a missing one as NaN."
                )
            if np.isinf(values).any():
                channel, time = np.argwhere(np.isinf(values))[0].tolist()
                raise DataError(
                    f"Case {case} holds an infinite value (inf) in channel {channel} at time point {time}. Values are "
                    "finite, or NaN where they are missing."
                )

    def __len__(self) -> int:
        return len(self.series)

    def __reduce__(self) -> tuple[type[Panel], tuple[Any, ...]]:
        # By way of the constructor: numpy forgets that an array is read-only.
        return Panel, (self.series, self.labels)

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return len(self.series[0])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of time points of each case, shape (cases,)."""
        lengths = np.array([values.shape[1] for values in self.series])
        lengths.flags.writeable = False
        return lengths

    @classmethod
    def of(cls, X: Any, y: Any = None) -> Panel:
        """Return series of any accepted form as a panel; what was given is never written to.

        Parameters
        ----------
        X
            A panel; an array or tensor (cases, channels, time), or (cases, time) for one channel; a list of arrays
            (channels, time) or (time,), of unequal length where they are; a list of frames with a row per time point
            and a column per channel; a frame of pandas or polars, see :func:`seqattn.data.frames.series_of_frame`;
            or the path of a ``.ts`` file.
        y
            Labels, one per case; None keeps those of a panel or a file.

        Raises
        ------
        DataError
            The values cannot be used as series; says which case, and what to do.
        TypeError
            The object is none of these, is sparse, or holds something that is no number.

        Examples
        --------
        >>> Panel.of(np.zeros((5, 2, 9))).lengths.tolist()
        [9, 9, 9, 9, 9]
        """
        if isinstance(X, str | Path):
            X = cls.read(X)
        if isinstance(X, cls):
            return X if y is None else cls(X.series, y)
        panel = cls(_series_of(X), y)
        _warn_of_swapped(X, panel)
        return panel

    @classmethod
    def read(cls, path: str | Path) -> Panel:
        """Read a ``.ts`` file, or one inside a ZIP archive, such as ``LSST.zip/LSST_TRAIN.ts``.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        DataError
            The file is absent or damaged; says in which line.
        """
        return cls(*read_ts(path))

    def select(self, rows: Any) -> Panel:
        """Return the panel of some cases; their values are shared, not copied.

        Parameters
        ----------
        rows
            Positions or a mask of cases.

        Raises
        ------
        DataError
            No case is left.
        """
        chosen = np.arange(len(self))[np.asarray(rows, dtype=None if len(rows) else int)]
        labels = None if self.labels is None else self.labels[chosen]
        return Panel([self.series[case] for case in chosen], labels)

    def trimmed(self) -> Panel:
        """Return the panel without final time points at which every channel is missing: padding is no data.

        A case without any value keeps its length.
        """
        return Panel([_trimmed(values) for values in self.series], self.labels)

    def to_array(self) -> np.ndarray:
        """Return one array (cases, channels, time); shorter series end with NaN."""
        whole = np.full((len(self), self.n_channels, int(self.lengths.max())), np.nan)
        for case, values in enumerate(self.series):
            whole[case, :, : values.shape[1]] = values
        return whole

    def check_lengths(self, least: int) -> None:
        """Refuse series that are too short.

        Parameters
        ----------
        least
            The fewest time points that will do.

        Raises
        ------
        DataError
            A series is shorter; names the case.
        """
        if (self.lengths < least).any():
            case = int(np.argmax(self.lengths < least))
            points = int(self.lengths[case])
            raise DataError(
                f"Case {case} has {points} time point(s) (n_features = {points} for rows of a table), and at least "
                f"{least} are needed. Leave out the case, or give longer series."
            )

    def digest(self) -> str:
        """Return the SHA-256 of values, lengths and labels, whatever they came from."""
        labels = None if self.labels is None else [str(label) for label in self.labels.tolist()]
        about = {"channels": self.n_channels, "lengths": self.lengths.tolist(), "labels": labels}
        digest = hashlib.sha256(json.dumps(about).encode())
        for values in self.series:
            digest.update(values.astype("<f8", copy=False).tobytes())
        return digest.hexdigest()


def row_length(X: Any) -> int | None:
    """Return the number of columns of a table with a row per case; None for series in any other form.

    Parameters
    ----------
    X
        What :meth:`Panel.of` takes. Tables are arrays of two axes, frames with a column per time point, and lists of
        lists of numbers, all as long as the first.

    Examples
    --------
    >>> row_length([[1, 2, 3], [4, 5, 6]]), row_length(np.zeros((2, 1, 3)))
    (3, None)
    """
    if is_frame(X):
        return table_width(X)
    if isinstance(X, list | tuple):
        is_rows = all(isinstance(row, list | tuple) and not any(map(np.ndim, row)) for row in X)
        lengths = {len(row) for row in X} if is_rows else set()
        return lengths.pop() if len(lengths) == 1 else None
    if not hasattr(X, "ndim") and hasattr(X, "__array__"):
        X = np.asarray(X)
    if getattr(X, "ndim", 0) != 2 or _holds_series(X):
        return None
    return int(X.shape[1])


def channel_names(X: Any) -> tuple[str, ...] | None:
    """Return the names of the channels; None where series come without.

    Parameters
    ----------
    X
        What :meth:`Panel.of` takes. A frame has names, and so has a list of frames, which must agree.

    Raises
    ------
    DataError
        A frame of a list has the same names in another order than the first one.

    Examples
    --------
    >>> import polars as pl
    >>> channel_names([pl.DataFrame({"x": [0.0, 1.0], "y": [2.0, 3.0]})])
    ('x', 'y')
    """
    if is_frame(X):
        return names_of_channels(X)
    if not isinstance(X, list | tuple) or not len(X) or not all(map(is_frame, X)):
        return None
    first, *others = (tuple(map(str, frame.columns)) for frame in X)
    for case, names in enumerate(others, 1):
        if names != first and sorted(names) == sorted(first):
            raise DataError(
                f"Case {case} has the channels {', '.join(names[:10])}, and case 0 {', '.join(first[:10])}. Give every "
                "case its channels in one order."
            )
    return first


def _warn_of_swapped(X: Any, panel: Panel) -> None:
    """Warn of arrays with more channels than points; in frames it is plain which is which."""
    longest = int(panel.lengths.max())
    is_framed = is_frame(X) or (isinstance(X, list | tuple) and any(map(is_frame, X)))
    if is_framed or panel.n_channels <= max(longest, _MANY_CHANNELS):
        return
    order, turned = "(cases, channels, time)", "X.transpose(0, 2, 1)"
    if isinstance(X, list | tuple):
        order, turned = "a list of (channels, time)", "[case.T for case in X]"
    warnings.warn(
        f"The series have {panel.n_channels} channels and {longest} time points: their axes look swapped. They are "
        f"{order}; use {turned} if yours are the other way round.",
        SeqattnWarning,
        stacklevel=3,
    )


def _own(values: Any, what: str) -> np.ndarray:
    """Return values as a read-only array of floats that nobody else can write to."""
    is_own = isinstance(values, np.ndarray) and values.dtype == np.float64 and not values.flags.writeable
    if is_own and values.flags.c_contiguous and _is_locked(values):
        return values
    return _locked(np.array(values_of(values, what), dtype=np.float64, order="C"))


def _is_locked(values: np.ndarray) -> bool:
    """Tell whether no array on whose memory this one lies can be written to."""
    base = values.base
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return base is None


def _locked(values: np.ndarray) -> np.ndarray:
    """Give every missing value the same bits, and lock the array."""
    missing = np.isnan(values)
    if missing.any():
        values[missing] = np.nan
    values.flags.writeable = False
    return values


def _own_labels(labels: Any, n_cases: int) -> np.ndarray:
    found = np.array(labels)
    if found.ndim != 1 or len(found) != n_cases:
        raise DataError(
            f"y has the shape {found.shape}, and there are {n_cases} cases. Give one label per case."
        )
    missing = [case for case, label in enumerate(found.tolist()) if is_missing(label)]
    if missing:
        raise DataError(
            f"y is missing (None or NaN) for case {missing[0]}. Give every case a label, or leave it out."
        )
    found.flags.writeable = False
    return found


def _trimmed(values: np.ndarray) -> np.ndarray:
    there = np.flatnonzero(~np.isnan(values).all(axis=0))
    return values[:, : there[-1] + 1] if len(there) else values


def _series_of(X: Any) -> Iterable[Any]:
    """Return one array per case, from anything but a panel or a file."""
    if is_frame(X):
        return series_of_frame(X)
    X = _dense(X)
    if isinstance(X, list | tuple):
        return _of_list(X)
    if not hasattr(X, "__array__"):
        raise TypeError(
            f"Series cannot be taken from {type(X).__name__!r}. Give an array (cases, channels, time), a list of "
            "arrays (channels, time), a frame, or the path of a .ts file."
        )
    return _of_array(np.asarray(X))


def _dense(X: Any) -> Any:
    """Return a tensor as an array; refuse what is sparse."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(X, torch.Tensor):
        if _is_sparse(X):
            raise TypeError(_SPARSE)
        return X
    if X.layout != torch.strided:
        raise TypeError(_SPARSE)
    X = X.detach().cpu()
    return X.numpy() if X.dtype != torch.bfloat16 else X.double().numpy()


def _is_sparse(X: Any) -> bool:
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(X))


def _of_list(cases: Sequence[Any]) -> Iterable[Any]:
    if len(cases) and np.isscalar(cases[0]):
        raise DataError(_FLAT)
    return [_case(values, f"Case {number}") for number, values in enumerate(cases)]


def _case(values: Any, what: str) -> np.ndarray:
    """Return one case as (channels, time), from an array, a frame, or a list of channels."""
    if is_frame(values):
        return case_of_frame(values, what)
    values = _dense(values)
    if isinstance(values, list | tuple) and len({np.size(channel) for channel in values}) > 1:
        raise DataError(f"{what} has channels of unequal length. Fill the shorter ones up with NaN.")
    values = values_of(values, what)
    return values[None] if values.ndim == 1 else values


def _holds_series(X: Any) -> bool:
    """Tell whether the items of an array are arrays themselves."""
    return bool(X.dtype == object and X.size and np.ndim(X.flat[0]))


def _of_array(X: np.ndarray) -> Iterable[Any]:
    if X.ndim in (1, 2) and _holds_series(X):
        return _of_list([case if X.ndim == 1 else list(case) for case in X])
    if X.ndim < 2:
        raise DataError(_FLAT)
    if X.ndim > 3:
        raise DataError(f"The array has {X.ndim} axes, shape {X.shape}. Give (cases, channels, time).")
    if X.ndim == 2 and len(X) and not X.shape[1]:
        raise DataError(f"Found 0 feature(s) (shape={X.shape}) while a minimum of 1 is required.")
    values = _locked(np.array(values_of(X, "X"), dtype=np.float64, order="C"))
    return values[:, None] if X.ndim == 2 else values
