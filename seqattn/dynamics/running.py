"""Train and record all runs of a study in chunks that fit the memory, and go on where it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.pairwise import Parameters
from seqattn.dynamics.recorder import Recorder, Schedule
from seqattn.dynamics.result import ROW_BYTES
from seqattn.dynamics.standard import StandardTrainer
from seqattn.dynamics.trainers import Descent, Flow, Plan, Runs, Trainer
from seqattn.errors import ArtifactError, ParameterError
from seqattn.train.artifact import decode_metadata, encode_metadata, load_artifact, save_artifact

__all__ = ["Budget", "Progress", "budget", "run_all"]

_KIND = "checkpoint of a study"
# Least seconds between two states of a study on disk.
INTERVAL = 5.0
# Working arrays of a chunk beyond this fall out of the processor's caches: 640 runs of the medium setting took
# 1.5 times as long in one chunk.
CACHE = 32_000_000


@dataclass(frozen=True)
class Budget:
    """What a study needs, known before it runs.

    Attributes
    ----------
    rows
        Rows of the long table at most.
    records
        Bytes of all records.
    table
        Bytes of the long table in memory; a file takes about a tenth.
    parameters
        Bytes of what is learnt, with the optimiser's memory.
    work
        Bytes of working arrays while a chunk of runs trains.
    runs_at_once
        Runs in a chunk.
    """

    rows: int
    records: int
    table: int
    parameters: int
    work: int
    runs_at_once: int

    @property
    def peak(self) -> int:
        """Bytes at the most, records and table together."""
        return self.records + self.table + self.parameters + self.work

    def __str__(self) -> str:
        return (
            f"at most {self.peak / 1e6:.0f} MB in memory ({self.rows:,} rows of records, {self.runs_at_once} runs at "
            "once)"
        )


def budget(classes: SequenceClasses, n_runs: int, plan: Plan, schedule: Schedule, max_bytes: float) -> Budget:
    """Return what a study needs, and refuse one that needs more than is allowed.

    Parameters
    ----------
    classes, n_runs, plan, schedule
        The study.
    max_bytes
        Most bytes in memory.

    Raises
    ------
    ParameterError
        More is needed; what takes the most is said.
    """
    K, M, V, Q = len(classes), classes.n_tokens, classes.n_outputs, classes.n_queries
    item = torch.empty((), dtype=plan.dtype).element_size()
    examples = max(K, plan.batch_size if plan.trainer == "sgd" else K)
    # Seven arrays over tokens and five over outputs are alive at once in a gradient.
    each = item * (examples * (7 * M + 5 * V) + 6 * (M * V + Q * M))
    rows = sum(
        int(np.prod(schedule.shape(name, classes, n_runs), dtype=np.int64)) for name in schedule.quantities
    )
    at_once = int(max(1, min(n_runs, CACHE // each)))
    buffers = 2 if plan.optimizer == "adam" else int(plan.momentum > 0)
    kept = n_runs * item * (M * V + Q * M) * (1 + buffers)
    found = Budget(rows, 8 * rows, ROW_BYTES * rows, kept, each * at_once, at_once)
    if found.peak > max_bytes:
        parts = {
            "the table of records": found.table + found.records,
            "the parameters": kept,
            "a step": found.work,
        }
        most = max(parts, key=lambda name: parts[name])
        raise ParameterError(
            f"This study needs {found.peak / 1e9:.2f} GB, more than max_bytes={max_bytes:g}; most of it is {most} "
            f"({parts[most] / 1e9:.2f} GB). Record fewer times or quantities, run fewer rates or seeds, or raise it."
        )
    return found


@dataclass(frozen=True)
class Progress:
    """Told to observers after each record.

    Attributes
    ----------
    runs
        Which runs are training.
    time
        Steps so far.
    n_steps
        Steps in all.
    trainer
        The runs in training.
    """

    runs: slice
    time: float
    n_steps: float
    trainer: Trainer


def run_all(
    classes: SequenceClasses,
    runs: Runs,
    plan: Plan,
    schedule: Schedule,
    *,
    runs_at_once: int,
    observers: tuple[Callable[[Progress], None], ...] = (),
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> tuple[dict[str, NDArray[np.float64]], Parameters]:
    """Train all runs and return their records and final parameters.

    Parameters
    ----------
    classes, runs, plan, schedule
        The study.
    runs_at_once
        Runs in a chunk; results depend on it by rounding at most.
    observers
        Called after each record.
    checkpoint
        File for the state; training goes on from it if it is there, and it is removed at the end.
    identity
        Values that tell which study the file belongs to.

    Raises
    ------
    ArtifactError
        The file belongs to another study.
    """
    job = _Job(classes, runs, plan, schedule, runs_at_once, checkpoint, dict(identity or {}))
    return job.run(observers)


class _Job:
    """A study while it runs."""

    def __init__(
        self,
        classes: SequenceClasses,
        runs: Runs,
        plan: Plan,
        schedule: Schedule,
        runs_at_once: int,
        checkpoint: Path | None,
        identity: dict[str, Any],
    ) -> None:
        self.classes, self.runs, self.plan, self.schedule = classes, runs, plan, schedule
        self.at_once, self.path = runs_at_once, checkpoint
        self.identity = identity | {"runs_at_once": runs_at_once}
        self.done: list[dict[str, Tensor]] = []

    def run(self, observers: tuple[Callable[[Progress], None], ...]) -> tuple[dict[str, NDArray], Parameters]:
        saved = self._opened()
        while len(self.done) * self.at_once < len(self.runs):
            first = len(self.done) * self.at_once
            part = slice(first, min(first + self.at_once, len(self.runs)))
            trainer = _trainer(self.classes, self.runs.rows(part), self.plan)
            recorder = Recorder(self.classes, self.runs.rows(part), self.schedule)
            if saved is not None:
                self._restore(trainer, recorder, *saved)
                saved = None
            self._train(trainer, recorder, part, observers)
            ends = {"Y": trainer.parameters.Y.cpu(), "Z": trainer.parameters.Z.cpu()}
            self.done.append({name: torch.from_numpy(a) for name, a in recorder.arrays.items()} | ends)
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        joined = {name: torch.cat([part[name] for part in self.done]) for name in self.done[0]}
        end = Parameters(joined.pop("Y"), joined.pop("Z"))
        return {name: values.numpy() for name, values in joined.items()}, end

    def _train(self, trainer: Trainer, recorder: Recorder, part: slice, observers: tuple[Any, ...]) -> None:
        written = time.monotonic()
        for moment in self.schedule.times[recorder.n_done :]:
            trainer.advance(float(moment))
            recorder.record(trainer)
            if self.path is not None and time.monotonic() - written >= INTERVAL:
                self._write(trainer, recorder)
                written = time.monotonic()
            for observer in observers:
                observer(Progress(part, float(moment), float(self.schedule.times[-1]), trainer))

    def _write(self, trainer: Trainer, recorder: Recorder) -> None:
        (state, numbers), (records, counts) = trainer.export(), recorder.export()
        tensors = {f"trainer/{name}": values for name, values in state.items()}
        tensors |= {f"recorder/{name}": values for name, values in records.items()}
        for number, part in enumerate(self.done):
            tensors |= {f"done/{number}/{name}": values for name, values in part.items()}
        metadata = {
            "identity": self.identity,
            "trainer": numbers,
            "recorder": counts,
            "n_done": len(self.done),
        }
        save_artifact(self.path or "", _KIND, tensors, metadata)

    def _opened(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self.path is None or not self.path.exists():
            return None
        artifact = load_artifact(self.path)
        here = decode_metadata(encode_metadata(self.identity))
        there = artifact.metadata.get("identity", {}) if artifact.kind == _KIND else {}
        if repr(there) != repr(here):
            changed = sorted(
                key for key in there.keys() | here.keys() if repr(there.get(key)) != repr(here.get(key))
            )
            raise ArtifactError(
                f"{str(self.path)!r} belongs to another study: {', '.join(changed)} differ. "
                "Delete it or choose another file to train anew."
            )
        for number in range(artifact.metadata["n_done"]):
            self.done.append(_below(artifact.tensors, f"done/{number}/"))
        return artifact.tensors, artifact.metadata

    def _restore(
        self, trainer: Trainer, recorder: Recorder, tensors: dict[str, Tensor], metadata: dict[str, Any]
    ) -> None:
        trainer.restore(_below(tensors, "trainer/"), metadata["trainer"])
        recorder.restore(_below(tensors, "recorder/"), metadata["recorder"], self.plan.device)


def _trainer(classes: SequenceClasses, runs: Runs, plan: Plan) -> Trainer:
    if plan.model == "standard":
        return StandardTrainer(classes, runs, plan)
    return (Flow if plan.trainer == "flow" else Descent)(classes, runs, plan)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}
