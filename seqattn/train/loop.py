"""The fit loop: one function that trains any module whose ``loss(batch)`` returns a `Loss`.

::

    batches -> module.loss(batch) -> Loss(total, count) -> gradient of total / count -> Adam, one-cycle rate
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from seqattn.attention.router import commitment_loss, router_usage, update_routers
from seqattn.errors import ArtifactError, DataError, FitError
from seqattn.train.average import WeightAverage
from seqattn.train.checkpoint import Checkpoint, Part, read_checkpoint, write_checkpoint
from seqattn.train.distributed import processes
from seqattn.train.history import History
from seqattn.train.settings import (
    PRECISIONS,
    FitSettings,
    autocast,
    one_cycle,
    resolve_device,
    resolve_precision,
)
from seqattn.train.sums import Loss, Sums

__all__ = [
    "PRECISIONS",
    "FitSettings",
    "History",
    "Loss",
    "Observer",
    "autocast",
    "fit_module",
    "one_cycle",
    "resolve_device",
    "resolve_precision",
]


@runtime_checkable
class Observer(Protocol):
    """What the fit loop calls while it trains.

    An observer may have a further method ``begin_epoch(number)``, called before each epoch, ``attach(module)``, called
    with what is trained before all else, and ``batch(batch)``, called before each loss. One that keeps something
    in the checkpoint has ``state()``, which returns tensors by name after each epoch, and ``restore(tensors)``, called
    with them before ``begin`` where a fit goes on; names are shared by all observers. What an observer raises ends the
    fit and reaches the caller unchanged; the epoch it was shown is then not in the checkpoint.
    """

    def begin(self, settings: FitSettings) -> None:
        """Take notice that training begins or goes on.

        Parameters
        ----------
        settings
            The settings of the fit.
        """

    def epoch(self, record: dict[str, Any]) -> bool | None:
        """Take notice of a finished epoch.

        Parameters
        ----------
        record
            The epoch's record as in `History.records`; the observer may keep it.

        Returns
        -------
        True to stop training after this epoch.
        """

    def end(self, history: History) -> None:
        """Take notice that training ended without an error.

        Parameters
        ----------
        history
            All epochs, those before a resume included.
        """


def fit_module(
    module: torch.nn.Module,
    train_batches: Callable[[int], Any],
    valid_batches: Callable[[], Iterable[Any] | None] | None,
    settings: FitSettings,
    *,
    observers: Sequence[Observer] = (),
    checkpoint: str | Path | Part | None = None,
    identity: Mapping[str, Any] | None = None,
    optimiser: Callable[[list[Any], FitSettings], torch.optim.Optimizer] | None = None,
    rate: Callable[[float, float], float] = one_cycle,
    about: Mapping[str, Any] | None = None,
) -> History:
    """Train a module in place, and return what happened.

    Each step follows the gradient of ``total / count``, with Adam and a one-cycle rate unless others are given. An
    epoch's mean loss is the sum of the totals over the sum of the counts, in float64. Validation runs in evaluation
    mode, without gradients. With validation the module ends with the weights of the best epoch, otherwise with the
    last ones; where the settings ask for an average of the weights, with their average at that point. The module stays
    on the device and in the precision of the fit; its training mode is as it was before.

    Parameters
    ----------
    module
        Has a method ``loss(batch)`` that returns a `Loss`; its state dict holds tensors only.
    train_batches
        Returns the batches of an epoch (counted from 0), an iterable with a length. It must depend on nothing but
        this number, otherwise a resumed fit differs. Batches have a method ``to(device)``. With several processes
        the iterable also has a method ``share(rank, size)``, which returns as many batches with the part of each
        that one process computes; a part of length 0 is skipped.
    valid_batches
        Returns the batches to validate on, or None for no validation in this epoch. None: train without validation.
    settings
        How to train.
    observers
        Told of each epoch; any of them can stop the training.
    checkpoint
        A file, or a part of one, that keeps the state after each epoch. If it exists, training goes on from there and
        ends with the same bits as without the interruption; if it is finished, the module gets its weights at once.
    identity
        JSON values that tell what is trained (data, model). A checkpoint with another identity or other
        settings is refused.
    optimiser
        Returns what follows the gradients of these parameters; None takes Adam. Its state holds tensors only.
    rate
        Returns the learning rate from the share of training that is done and the peak, as :func:`one_cycle` does.
    about
        Further JSON values of each record, such as ``{"member": 2}`` of a fit that trains several modules in turn.

    Returns
    -------
    The history of all epochs, those before a resume included.

    Raises
    ------
    ArtifactError
        The checkpoint belongs to another run, is damaged, or is not one.
    BackendError
        The device or precision asked for is not there, or two processes would share a GPU.
    DataError
        There are no batches, nothing in them counts, or the processes were not given the same data and settings.
    FitError
        A loss or gradient is not finite. The module has the best weights so far, if validation chose some.

    Notes
    -----
    Random draws come from a stream of their own per epoch, seeded by ``settings.seed`` and the epoch. The global
    generators of torch are left as they were, validation and observers cannot disturb training, and a resumed
    fit needs no stored generator. Equal seeds give equal bits on the CPU; on a GPU some kernels may differ in the
    last bits.

    Several processes (see `seqattn.train.distributed.processes`) share each batch; the sums of their gradients over
    the count of the whole batch make the step of a single process, up to rounding. A module that draws at random
    (dropout) draws in each process for itself: the result then depends on their number, not only on the seed.
    Observers and the checkpoint belong to the first process. An error in one process is raised in all of them.
    """
    run = _Run(module, settings, optimiser, rate)
    place = Path(checkpoint) if isinstance(checkpoint, str) else checkpoint
    marks = {**_settings_identity(run), **(identity or {})}
    was_training = module.training
    run.processes.require_same(marks)
    run.watchers = [each for each in observers if hasattr(each, "batch")] if run.processes.rank == 0 else []
    _tell(run, (each for each in observers if hasattr(each, "attach")), "attach", module)
    try:
        run.processes.copy_weights(module)
        if place is not None:
            _resume(run, place, marks, observers)
        _tell(run, observers, "begin", settings)
        while not run.finished:
            _run_epoch(run, train_batches, valid_batches, observers, about or {})
            if place is not None:
                _save(run, place, marks, observers)
    except FitError:
        run.take_best()
        raise
    finally:
        module.train(was_training)
    _tell(run, observers, "end", run.history)
    return run.history


class _Run:
    """The state of a fit between two epochs."""

    def __init__(
        self,
        module: torch.nn.Module,
        settings: FitSettings,
        optimiser: Callable[[list[Any], FitSettings], torch.optim.Optimizer] | None,
        rate: Callable[[float, float], float],
    ) -> None:
        self.module = module
        self.rate = rate
        self.settings = settings
        # torch's type for modules does not know the method.
        self.loss: Callable[[Any], Loss] = cast(Any, module).loss
        self.processes = processes()  # joined first: it chooses the GPU
        self.device = resolve_device(settings.device)
        self.processes.require_devices(self.device)
        module.to(device=self.device, dtype=resolve_precision(settings.precision, self.device))
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimiser = (optimiser or _adam)(self.parameters, settings)
        decay = settings.average
        self.average = None if decay is None else WeightAverage(self.parameters, decay)
        self.history = History()
        self.watchers: list[Any] = []
        self.finished = False
        self.best: dict[str, Tensor] | None = None

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Give the module the averages of its weights inside, if they are kept."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights that an epoch ends with."""
        with self.averaged():
            return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def add(self, record: dict[str, Any]) -> None:
        """Take in an epoch, and note the weights if they are the best so far."""
        if self.history.add(record):
            self.best = self.weights()

    def is_out_of_patience(self) -> bool:
        patience, best = self.settings.patience, self.history.best_epoch
        return patience is not None and best is not None and len(self.history.records) - best >= patience

    def close(self, stop: bool) -> None:
        """End the fit if it is time to, and put the best weights back."""
        is_last = len(self.history.records) >= self.settings.epochs
        self.finished = is_last or stop
        self.history.stopped_early = stop and not is_last
        if self.finished and self.best is None and self.average is not None:
            self.module.load_state_dict(self.weights())
        elif self.finished:
            self.take_best()

    def take_best(self) -> None:
        """Put the best weights back, if validation chose some."""
        if self.best is not None:
            self.module.load_state_dict(self.best)

    def state(self, kept: dict[str, Tensor]) -> Checkpoint:
        """What a checkpoint keeps; a finished fit needs no optimiser and no second weights."""
        is_best = self.average is None and self.history.best_epoch == len(self.history.records)
        return Checkpoint(
            weights=self.module.state_dict(),
            best={} if self.finished or is_best or self.best is None else self.best,
            average={} if self.finished or self.average is None else self.average.state(),
            optimiser={} if self.finished else self.optimiser.state_dict()["state"],
            history=self.history,
            finished=self.finished,
            kept=kept,
        )

    def restore(self, saved: Checkpoint) -> None:
        """Become the fit from which `state` was taken."""
        self.module.load_state_dict(saved.weights)
        self.history = saved.history
        self.finished = saved.finished
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": saved.optimiser, "param_groups": groups})
        if self.average is not None and not saved.finished:
            self.average.restore(saved.average)
        if self.history.best_epoch is not None:
            self.best = {name: value.to(self.device) for name, value in (saved.best or saved.weights).items()}


def _adam(parameters: list[Any], settings: FitSettings) -> torch.optim.Optimizer:
    # 80 tensors of 64 x 64 and 64 numbers, CPU, one thread: fused 0.40 ms, foreach 1.26 ms, neither 2.0 ms.
    kind = torch.optim.AdamW if settings.is_decoupled else torch.optim.Adam
    decay = float(settings.weight_decay)
    return kind(
        parameters, lr=float(settings.learning_rate), betas=settings.betas, weight_decay=decay, fused=True
    )


def _settings_identity(run: _Run) -> dict[str, Any]:
    """The settings as JSON values; of the device only its kind, since all of a kind compute alike."""
    return {**asdict(run.settings), "betas": list(run.settings.betas), "device": run.device.type}


def _resume(
    run: _Run, place: Path | Part, identity: Mapping[str, Any], observers: Sequence[Observer]
) -> None:
    saved = run.processes.first(lambda: read_checkpoint(place, identity))
    if saved is None:
        return
    try:
        run.restore(saved)
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        path = place.path if isinstance(place, Part) else place
        raise ArtifactError(
            f"Checkpoint {str(path)!r} does not fit this module ({error}). Delete it, or choose another folder."
        ) from error
    _tell(run, (each for each in observers if hasattr(each, "restore")), "restore", saved.kept)


def _save(run: _Run, place: Path | Part, identity: Mapping[str, Any], observers: Sequence[Observer]) -> None:
    def write() -> None:
        kept = [cast(Any, each).state() for each in observers if hasattr(each, "state")]
        write_checkpoint(
            place, run.state({name: value for one in kept for name, value in one.items()}), identity
        )

    run.processes.first(write)


def _tell(run: _Run, observers: Iterable[Observer], name: str, *what: Any) -> None:
    """Call a method of each observer, in the first process only."""
    run.processes.first(lambda: [getattr(observer, name)(*what) for observer in observers] and None)


def _run_epoch(
    run: _Run,
    train_batches: Callable[[int], Any],
    valid_batches: Callable[[], Iterable[Any] | None] | None,
    observers: Sequence[Observer],
    about: Mapping[str, Any],
) -> None:
    number = len(run.history.records) + 1
    _tell(run, (each for each in observers if hasattr(each, "begin_epoch")), "begin_epoch", number)
    started = time.perf_counter()
    trained, rate = _train(run, _shared(run, train_batches(number - 1)), number)
    seconds = time.perf_counter() - started
    given = None if valid_batches is None else valid_batches()
    with run.averaged():
        held_out = None if given is None else _validate(run, _shared(run, given), number)
    record: dict[str, Any] = {
        **about,
        "epoch": number,
        "train_loss": trained.mean(),
        "valid_loss": None if held_out is None else held_out.mean(),
        "learning_rate": rate,
        "seconds": time.perf_counter() - started,
        "items_per_second": trained.count / seconds,
    }
    for name, sums in (("train_parts", trained), ("valid_parts", held_out)):
        if sums is not None and sums.parts:
            record[name] = sums.part_means()
    if routers := router_usage(run.module):
        record["routers"] = routers
    # One record and one decision for all processes: their clocks differ, and only the first has observers.
    run.add(run.processes.first(lambda: record))
    record = run.history.records[-1]
    wishes = run.processes.first(lambda: [bool(observer.epoch(dict(record))) for observer in observers])
    run.close(any(wishes) or run.is_out_of_patience())


def _shared(run: _Run, batches: Any) -> Any:
    """Return the batches, or this process's part of each."""
    return batches if run.processes.size == 1 else batches.share(run.processes.rank, run.processes.size)


def _train(run: _Run, batches: Any, number: int) -> tuple[Sums, float]:
    """One pass over the training batches; returns the sums and the last learning rate."""
    if len(batches) == 0:
        raise DataError("There are no batches to train on. Give data with at least one sequence.")
    sums = Sums(f"Training loss is not finite in epoch {number}", run.settings, run.device)
    gradient = _gradient if run.processes.size == 1 else _joint_gradient
    rate = 0.0
    run.module.train()
    with _draws(run, number):
        for index, batch in enumerate(batches):
            progress = (number - 1 + index / len(batches)) / run.settings.epochs
            rate = run.rate(progress, float(run.settings.learning_rate))
            run.optimiser.zero_grad(set_to_none=True)
            loss = gradient(run, batch)
            sums.add(loss, _step(run, rate))
            if run.average is not None:
                run.average.step()
            update_routers(run.module, run.processes.add, run.processes.rank == 0)
    sums.read()
    return sums, rate


def _gradient(run: _Run, batch: Any) -> Loss:
    """Compute the gradient of a batch's mean; returns its loss."""
    loss = _loss(run, batch)
    (loss.total / loss.count if loss.count else loss.total).backward()
    return loss


def _joint_gradient(run: _Run, part: Any) -> Loss:
    """Compute one process's part of a batch, and the gradient of the whole batch's mean from all parts."""
    nothing = Loss(torch.zeros((), device=run.device), 0)
    own, error = run.processes.attempt(lambda: _follow(_loss(run, part)) if len(part) else nothing, nothing)
    (count,) = run.processes.sum([own.count], error)
    return Loss(run.processes.reduce_gradients(run.parameters, own.total, count), count)


def _follow(loss: Loss) -> Loss:
    loss.total.backward()
    return loss


def _loss(run: _Run, batch: Any) -> Loss:
    batch = batch.to(run.device)
    for watcher in run.watchers:
        watcher.batch(batch)
    with autocast(run.settings.precision, run.device):
        loss = run.loss(batch)
    return Loss(loss.total + commitment_loss(run.module), loss.count, loss.parts)


def _step(run: _Run, rate: float) -> Tensor | None:
    """Follow the gradient; returns its norm if it is limited."""
    norm = None if run.settings.clip is None else _clip(run)
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    run.optimiser.step()
    return norm


def _clip(run: _Run) -> Tensor:
    clip = float(run.settings.clip or math.inf)
    norm = get_total_norm([parameter.grad for parameter in run.parameters if parameter.grad is not None])
    # On a GPU the comparison would wait for the device; there the factor, at most 1, is always applied.
    if run.device.type != "cpu" or not norm <= clip:
        clip_grads_with_norm_(run.parameters, clip, norm)
    return norm


def _validate(run: _Run, batches: Iterable[Any], number: int) -> Sums:
    sums = Sums(f"Validation loss is not finite in epoch {number}", run.settings, run.device)
    run.module.eval()
    _, error = run.processes.attempt(lambda: _add_losses(run, batches, sums), None)
    run.module.train()
    sums.total, sums.count = run.processes.sum([sums.total, sums.count], error)
    return sums


def _add_losses(run: _Run, batches: Iterable[Any], sums: Sums) -> None:
    # The same draws in every epoch, so that a loss estimated by sampling is compared on equal terms.
    with torch.inference_mode(), _draws(run, 0):
        for batch in batches:
            if run.processes.size == 1 or len(batch):
                sums.add(_loss(run, batch))
    sums.read()


@contextlib.contextmanager
def _draws(run: _Run, number: int) -> Iterator[None]:
    """Draw from generators of an epoch and process inside, and leave the global ones as they were."""
    key = [run.settings.seed, number, *([run.processes.rank] if run.processes.rank else [])]
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would also change the generators of devices that are not restored.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.default_generators[run.device.index].manual_seed(seed)
        yield
