"""Recorded trajectories as arrays, as a long table and as a Parquet file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqattn.dynamics.assumptions import AssumptionReport
from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.overlays import overlays
from seqattn.dynamics.recorder import OF_CLASSES, OF_RUNS, Schedule
from seqattn.dynamics.trainers import Runs
from seqattn.errors import ParameterError, SeqattnWarning, suggest
from seqattn.train.artifact import encode_metadata

__all__ = ["StudyResult"]

COLUMNS = ("run", "seed", "lr_y", "lr_z", "step", "time", "query", "klass", "token", "quantity", "value")
# One row of the long table in memory: four whole numbers of 4 bytes, five of 8, and the name of the quantity.
ROW_BYTES = 4 * 4 + 5 * 8 + 4


@dataclass(frozen=True)
class StudyResult:
    """Trajectories of all runs.

    Attributes
    ----------
    classes
        The data.
    runs
        Rates and seed of each run.
    schedule
        What was recorded when.
    arrays
        Records by quantity: of shape (runs, times), (runs, times, classes) or (runs, snapshots, classes or queries,
        tokens).
    metadata
        Versions, parameters, seeds and digest of the data.
    """

    classes: SequenceClasses
    runs: Runs
    schedule: Schedule
    arrays: Mapping[str, NDArray[np.float64]]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def times(self) -> NDArray[np.float64]:
        """Times of the records, in steps."""
        return self.schedule.times

    @property
    def snapshot_times(self) -> NDArray[np.float64]:
        """Times of the records of tokens, in steps."""
        return self.schedule.times[self.schedule.snapshots]

    def array(self, quantity: str) -> NDArray[np.float64]:
        """Return the records of one quantity.

        Parameters
        ----------
        quantity
            Its name, see section "Recorded quantities" of :class:`seqattn.dynamics.ScanAndSnapStudy`.

        Returns
        -------
        An array with runs first, then times; nan where a run had diverged.

        Raises
        ------
        ParameterError
            It was not recorded.
        """
        if quantity not in self.arrays:
            known = ", ".join(self.arrays)
            raise ParameterError(
                f"{quantity!r} was not recorded. Recorded: {known}.{suggest(quantity, self.arrays)}"
            )
        return self.arrays[quantity]

    @property
    def is_diverged(self) -> NDArray[np.bool_]:
        """Which runs ended with values that are no numbers."""
        kept = [self.arrays[name] for name in ("loss", "entropy", "one_minus_alpha") if name in self.arrays]
        if not kept:
            return np.zeros(len(self.runs), dtype=bool)
        ends = kept[0][:, -1].reshape(len(self.runs), -1)
        return np.asarray(~np.isfinite(ends).all(1))

    @cached_property
    def table(self) -> pl.DataFrame:
        """All records as a long table, one row per value."""
        parts = [pl.DataFrame(part) for part in self._parts()]
        return pl.concat(parts) if parts else pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.Float64))

    @property
    def assumption_report(self) -> AssumptionReport:
        """What the paper assumes, checked for the data and all rates."""
        rates = {"lr_y": self.runs.lr_y, "lr_z": self.runs.lr_z}
        return self.classes.assumption_report(**rates, **self.metadata["theory"])

    @cached_property
    def theory(self) -> pl.DataFrame:
        """Theory on the times of the records, see :func:`seqattn.dynamics.overlays.overlays`.

        Where the paper's assumptions fail its curves are given all the same, marked ``is_valid = false``, with one
        warning.
        """
        report = self.assumption_report
        if not report.holds:
            warnings.warn(
                f"The paper's theory is asked outside its assumptions ({', '.join(report.failed)}); its curves are not "
                f"predictions here. G0 V = {report.correlation:.3g}. See assumption_report.",
                SeqattnWarning,
                stacklevel=2,
            )
        rates = list(dict.fromkeys(zip(self.runs.lr_y.tolist(), self.runs.lr_z.tolist(), strict=True)))
        return overlays(self.classes, rates, self.times, self.metadata["theory"])

    @property
    def final(self) -> pl.DataFrame:
        """The records of the last time, one row per run and class, a column per quantity of runs and classes."""
        n, K = len(self.runs), len(self.classes)
        columns: dict[str, Any] = {
            "run": np.repeat(np.arange(n), K),
            "seed": np.repeat(self.runs.seed, K),
            "lr_y": np.repeat(self.runs.lr_y, K),
            "lr_z": np.repeat(self.runs.lr_z, K),
            "klass": np.tile(np.arange(K), n),
        }
        for name, values in self.arrays.items():
            if name in OF_RUNS:
                columns[name] = np.repeat(values[:, -1], K)
            elif name in OF_CLASSES:
                columns[name] = values[:, -1].ravel()
        return pl.DataFrame(columns)

    def _parts(self) -> Iterator[dict[str, Any]]:
        kinds = pl.Enum(list(self.arrays))
        for name, values in self.arrays.items():
            axes = np.indices(values.shape, dtype=np.int32).reshape(values.ndim, -1)
            flat = values.ravel()
            if name in self._of_tokens:
                keep = self._present(name)[axes[2], axes[3]]
                axes, flat = axes[:, keep], flat[keep]
            yield self._columns(name, axes, flat, kinds)

    @property
    def _of_tokens(self) -> set[str]:
        return set(self.arrays) - set(OF_RUNS) - set(OF_CLASSES)

    def _present(self, name: str) -> NDArray[np.bool_]:
        """Which tokens a class or query has at all."""
        has = self.classes.P[:, self.schedule.tokens] > 0
        if name == "ratio":
            return self.classes.owner[self.schedule.tokens] == np.arange(len(self.classes))[:, None]
        if name != "z":
            return has
        seen = np.zeros((self.classes.n_queries, has.shape[1]), dtype=bool)
        np.logical_or.at(seen, self.classes.query, has)
        return seen

    def _columns(self, name: str, axes: NDArray, values: NDArray, kinds: Any) -> dict[str, Any]:
        n = len(values)
        times = self.snapshot_times if name in self._of_tokens else self.times
        run, time = axes[0], times[axes[1]]
        none = (
            pl.Series([None] * n, dtype=pl.Int32) if n < 1 else pl.repeat(None, n, dtype=pl.Int32, eager=True)
        )
        klass = axes[2] if axes.shape[0] > 2 and name != "z" else None
        query = (
            axes[2]
            if name == "z"
            else (self.classes.query[klass].astype(np.int32) if klass is not None else None)
        )
        token = self.schedule.tokens[axes[3]].astype(np.int32) if axes.shape[0] > 3 else None
        return {
            "run": run,
            "seed": self.runs.seed[run],
            "lr_y": self.runs.lr_y[run],
            "lr_z": self.runs.lr_z[run],
            "step": np.round(time).astype(np.int64),
            "time": time,
            "query": none if query is None else query,
            "klass": none if klass is None else klass,
            "token": none if token is None else token,
            "quantity": pl.repeat(name, n, dtype=kinds, eager=True),
            "value": values,
        }

    def to_parquet(self, path: str | Path) -> Path:
        """Write the long table to one file, grouped by quantity, with what is needed to repeat it.

        Parameters
        ----------
        path
            File to write.

        Returns
        -------
        The path. Versions, seeds, parameters and the digest of the data stand in the file's metadata under
        ``seqattn``, as JSON.
        """
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.part")
        self.table.write_parquet(
            partial, compression="zstd", metadata={"seqattn": json.dumps(encode_metadata(self.metadata))}
        )
        partial.replace(place)
        return place
