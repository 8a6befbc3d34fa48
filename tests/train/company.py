"""Processes that stand ready for tests of joint training, and the jobs that they are given.

The jobs live here because the processes are started afresh and must be able to import them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from train.small import Regression, Rows, weights

from seqattn import SAHP
from seqattn.data.batches import Batches, plan_batches
from seqattn.train.distributed import processes, together
from seqattn.train.loop import FitSettings, Loss, fit_module


class Company:
    """Processes joined by gloo; each job runs in all of them."""

    def __init__(self, size, folder):
        # One process imports everything, and the members branch off from it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["train.company"])
        self.pipes, self.members = [], []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # Python 3.11 forgets it there
            for rank in range(size):
                here, there = context.Pipe()
                member = context.Process(target=_serve, args=(there, rank, size, str(folder)), daemon=True)
                member.start()
                self.pipes.append(here)
                self.members.append(member)

    def run(self, job, *args, **options):
        """Return what the job gives in each process."""
        for pipe in self.pipes:
            pipe.send((job, args, options))
        answers = [pipe.recv() for pipe in self.pipes]
        broken = [text for kind, text in answers if kind == "broken"]
        assert not broken, broken[0]
        return [value for _, value in answers]

    def close(self):
        for pipe in self.pipes:
            pipe.send(None)
        for member in self.members:
            member.join(20)
            member.kill()


def _serve(pipe, rank, size, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # given by the tests of the same fit in one process
    init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    while (task := pipe.recv()) is not None:
        job, args, options = task
        try:
            pipe.send(("done", job(*args, **options)))
        except Exception:  # noqa: BLE001 - the test fails with its traceback
            pipe.send(("broken", traceback.format_exc()))
    destroy_process_group()


def error_of(work):
    """Return the class and text of what the work raises, None if it raises nothing."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - that is what is tested
        return type(error).__name__, str(error)
    return None


class Parts(list):
    """Batches of rows, of which every process takes a very different share; the last one may have none."""

    def share(self, rank, size):
        return Parts(_part(batch, rank, size) for batch in self)


class Counted(Rows):
    def __len__(self):
        return len(self.x)

    def to(self, device):
        return self


def _part(batch, rank, size):
    bounds = [0, *(len(batch.x) * 3 // 4 + i for i in range(size - 1)), len(batch.x)]
    bounds = np.minimum(bounds, len(batch.x))
    own = slice(bounds[rank], bounds[rank + 1])
    return Counted(batch.x[own], batch.y[own])


class Branched(Regression):
    """In float64, with a branch that only rows with a large first value take, and a layer that is never used."""

    def __init__(self, dropout=0.0):
        super().__init__(dropout)
        self.branch, self.idle = nn.Linear(3, 1), nn.Linear(2, 2)
        with torch.no_grad():
            for parameter in (*self.branch.parameters(), *self.idle.parameters()):
                parameter.fill_(0.3)

    def loss(self, batch):
        out, large = self(batch.x), batch.x[:, 0] > 1.0
        if large.any():
            out = out + large[:, None] * self.branch(batch.x)
        return Loss((out - batch.y).square().sum(), int(batch.y.abs().gt(0.2).sum()))


class Recorder:
    """An observer that notes its calls, and stops or fails after an epoch."""

    def __init__(self, stop_after=None, error=None):
        self.calls, self.stop_after, self.error = [], stop_after, error

    def begin(self, settings):
        self.calls.append("begin")

    def begin_epoch(self, number):
        self.calls.append(-number)

    def epoch(self, record):
        self.calls.append(record["epoch"])
        if record["epoch"] == self.stop_after and self.error is not None:
            raise self.error
        return record["epoch"] == self.stop_after

    def end(self, history):
        self.calls.append("end")


def losses(history):
    return [
        (record["train_loss"], record["valid_loss"], record["learning_rate"]) for record in history.records
    ]


def fit_branched(batches, valid, checkpoint=None, stop_after=None, error=None, dropout=0.0, **settings):
    """Fit the small module; returns weights, losses, observer's calls, and the error if there was one."""
    module, recorder = Branched(dropout), Recorder(stop_after, error and error[0](*error[1:]))
    if processes().rank == 1:  # all begin with the weights of the first process
        with torch.no_grad():
            module.first.weight.fill_(9.0)
    settings = FitSettings(**{"epochs": 5, "learning_rate": 0.05, "precision": "float64", **settings})
    answer = {"calls": recorder.calls}

    def fit():
        answer["history"] = fit_module(
            module,
            lambda epoch: Parts(batches[epoch % 2 :] + batches[: epoch % 2]),
            None if valid is None else lambda: Parts(valid),
            settings,
            observers=[recorder],
            checkpoint=checkpoint,
        )
        answer["losses"] = losses(answer["history"])

    return answer | {"error": error_of(fit), "weights": weights(module)}


class Failing(Branched):
    """In one of the processes its loss raises, or becomes infinite, from a given call on."""

    def __init__(self, rank, call, how):
        super().__init__()
        self.fails, self.call, self.how, self.calls = processes().rank == rank, call, how, 0

    def loss(self, batch):
        self.calls += 1
        loss = super().loss(batch)
        if not self.fails or self.calls < self.call:
            return loss
        if self.how == "raises":
            raise MemoryError(f"no memory in process {processes().rank}")
        if self.how == "refuses to travel":
            raise Stubborn("a", "b")
        return Loss(loss.total * float("inf"), loss.count)


class Stubborn(RuntimeError):
    """An error that cannot be sent to another process."""

    def __init__(self, first, second):
        super().__init__(first)


def fit_failing(batches, rank, call, how):
    module = Failing(rank, call, how)
    settings = FitSettings(epochs=3, learning_rate=0.05, precision="float64")
    return error_of(
        lambda: fit_module(module, lambda epoch: Parts(batches), lambda: Parts(batches), settings)
    )


def fit_unlike(batches):
    """Fit with another learning rate in each process."""
    settings = FitSettings(epochs=1, learning_rate=0.01 * (1 + processes().rank))
    return error_of(lambda: fit_module(Branched(), lambda epoch: Parts(batches), None, settings))


def fit_sahp(train, dev, checkpoint=None, stop_after=None, **options):
    """Fit SAHP; returns weights, losses, and what the observer was told."""
    recorder = Recorder(stop_after)
    np.random.seed(processes().rank)  # noqa: NPY002 - what a seed of None is drawn from
    model = SAHP(**options).fit(train, validation=dev, checkpoint=checkpoint, observers=[recorder])
    return {
        "weights": weights(model.module_),
        "losses": losses(model.history_),
        "calls": recorder.calls,
        "baselines": {name: baseline._export()[0] for name, baseline in model.baselines_.items()},
    }


class Watched(SAHP):
    """SAHP that scores small batches, and counts those it computes itself."""

    n_batches = 0

    def _packed(self, sequences):
        plan = plan_batches(sequences.lengths + 1, 200)
        return Batches(sequences, plan, self.scale_, torch.float32, self.module_.needs_recency)

    def _state(self, batch):
        self.n_batches += 1
        return super()._state(batch)


def scores(path, data, is_shared):
    """Return everything that is computed from batches of sequences, and how many this process computed."""
    model = Watched._from_artifact(load_of(path))
    with together() if is_shared else warnings.catch_warnings():
        answers = {
            "log_likelihood": model.log_likelihood(data),
            "evaluate": model.evaluate(data),
            "predict": model.predict(data, quantiles=[0.1]).write_csv(),
            "predict_next": model.predict_next(data, horizon=1.0).write_csv(),
            "predict_proba": model.predict_proba(data).tobytes(),
        }
    return answers, model.n_batches, len(model._packed(data))


def load_of(path):
    from seqattn.train.artifact import load_artifact

    return load_artifact(path)


def score_in_the_first(path, data):
    """Score in the first process alone, outside and inside a block of work in common."""
    model = Watched._from_artifact(load_of(path))
    alone = model.score(data) if processes().rank == 0 else None
    with together():
        told = processes().first(lambda: model.score(data))
    return alone, told


def fail_to_score(path, data):
    model = Watched._from_artifact(load_of(path))
    if processes().rank == 1:
        model._state = _refuse
    with together():
        return error_of(lambda: model.score(data))


def _refuse(batch):
    raise MemoryError("no memory for this batch")
