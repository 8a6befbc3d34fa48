"""The fit loop: one function that trains any module whose ``loss(batch)`` returns a `Loss`.

::

    batches -> module.loss(batch) -> Loss(total, count) -> gradient of total / count -> Adam, one-cycle rate
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from seqattn.errors import ArtifactError, DataError, SeqattnError
from seqattn.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from seqattn.train.history import History
from seqattn.train.settings import PRECISIONS, FitSettings, autocast, resolve_device, resolve_precision

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

# Losses on a GPU are read in groups, since each reading waits for the device. On the CPU reading is free.
_READ_EVERY = 32


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and the number of terms in it, never a mean.

    Only then are batches of different sizes, accumulation and several processes exact.

    Attributes
    ----------
    total
        Sum over the batch's terms, in the module's precision (float32 or float64 also under autocast).
    count
        Number of terms, for example scored events. May be 0; the gradient is then that of ``total`` itself.
    """

    total: Float[Tensor, ""]
    count: int | float


@runtime_checkable
class Observer(Protocol):
    """What the fit loop calls while it trains.

    An observer may have a further method ``begin_epoch(number)``, called before each epoch. What an observer
    raises ends the fit and reaches the caller unchanged; the epoch it was shown is then not in the checkpoint.
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


def one_cycle(progress: float, peak: float) -> float:
    r"""Return the learning rate at a point of training.

    .. math:: r(p) = \begin{cases}
        a + (P - a) \frac{1 - \cos(\pi p / 0.3)}{2} & p < 0.3 \\
        b + (P - b) \frac{1 + \cos(\pi (p - 0.3) / 0.7)}{2} & p \ge 0.3 \end{cases}
        \qquad a = P / 25, \quad b = a / 10^4

    Parameters
    ----------
    progress
        Share :math:`p` of the planned training that is done, in [0, 1].
    peak
        Largest rate :math:`P`.

    Returns
    -------
    The rate of the next step.

    Notes
    -----
    The constants are those of ``torch.optim.lr_scheduler.OneCycleLR``. A function of the progress needs no state,
    so a resumed fit goes on exactly.

    References
    ----------
    Smith, Topin (2018), Super-convergence: very fast training of neural networks using large learning rates.

    Examples
    --------
    >>> one_cycle(0.0, 1.0), one_cycle(0.3, 1.0)
    (0.04, 1.0)
    """
    first, last, turn = peak / 25, peak / 25e4, 0.3
    if progress < turn:
        return first + (peak - first) * (1 - math.cos(math.pi * progress / turn)) / 2
    return last + (peak - last) * (1 + math.cos(math.pi * (progress - turn) / (1 - turn))) / 2


def fit_module(
    module: torch.nn.Module,
    train_batches: Callable[[int], Any],
    valid_batches: Callable[[], Iterable[Any]] | None,
    settings: FitSettings,
    *,
    observers: Sequence[Observer] = (),
    checkpoint: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> History:
    """Train a module in place, and return what happened.

    Each step follows the gradient of ``total / count`` with Adam and a one-cycle rate. An epoch's mean loss is the
    sum of the totals over the sum of the counts, in float64. Validation runs in evaluation mode, without
    gradients. With validation the module ends with the weights of the best epoch, otherwise with the last ones.
    The module stays on the device and in the precision of the fit; its training mode is as it was before.

    Parameters
    ----------
    module
        Has a method ``loss(batch)`` that returns a `Loss`; its state dict holds tensors only.
    train_batches
        Returns the batches of an epoch (counted from 0), an iterable with a length. It must depend on nothing but
        this number, otherwise a resumed fit differs. Batches have a method ``to(device)``.
    valid_batches
        Returns the batches to validate on, or None to train without validation.
    settings
        How to train.
    observers
        Told of each epoch; any of them can stop the training.
    checkpoint
        A file that keeps the state after each epoch. If it exists, training goes on from there and ends with the
        same bits as without the interruption; if it is finished, the module gets its weights at once.
    identity
        JSON values that tell what is trained (data, model). A checkpoint with another identity or other
        settings is refused.

    Returns
    -------
    The history of all epochs, those before a resume included.

    Raises
    ------
    ArtifactError
        The checkpoint belongs to another run, is damaged, or is not one.
    BackendError
        The device or precision asked for is not there.
    DataError
        There are no batches, or nothing in them counts.
    SeqattnError
        A loss or gradient is not finite.

    Notes
    -----
    Random draws come from a stream of their own per epoch, seeded by ``settings.seed`` and the epoch. The global
    generators of torch are left as they were, validation and observers cannot disturb training, and a resumed
    fit needs no stored generator. Equal seeds give equal bits on the CPU; on a GPU some kernels may differ in the
    last bits.
    """
    run = _Run(module, settings)
    place = None if checkpoint is None else Path(checkpoint)
    marks = {**_settings_identity(run), **(identity or {})}
    was_training = module.training
    try:
        if place is not None:
            _resume(run, place, marks)
        for observer in observers:
            observer.begin(settings)
        while not run.finished:
            _run_epoch(run, train_batches, valid_batches, observers)
            if place is not None:
                write_checkpoint(place, run.state(), marks)
    finally:
        module.train(was_training)
    for observer in observers:
        observer.end(run.history)
    return run.history


class _Run:
    """The state of a fit between two epochs."""

    def __init__(self, module: torch.nn.Module, settings: FitSettings) -> None:
        self.module = module
        self.settings = settings
        # torch's type for modules does not know the method.
        self.loss: Callable[[Any], Loss] = cast(Any, module).loss
        self.device = resolve_device(settings.device)
        module.to(device=self.device, dtype=resolve_precision(settings.precision, self.device))
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # 80 tensors of 64 x 64 and 64 numbers, CPU, one thread: fused 0.40 ms, foreach 1.26 ms, neither 2.0 ms.
        self.optimiser = torch.optim.Adam(
            self.parameters,
            lr=float(settings.learning_rate),
            betas=settings.betas,
            weight_decay=float(settings.weight_decay),
            fused=True,
        )
        self.history = History()
        self.finished = False
        self.best: dict[str, Tensor] | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Take in an epoch, and note the weights if they are the best so far."""
        if self.history.add(record):
            self.best = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def is_out_of_patience(self) -> bool:
        patience, best = self.settings.patience, self.history.best_epoch
        return patience is not None and best is not None and len(self.history.records) - best >= patience

    def close(self, stop: bool) -> None:
        """End the fit if it is time to, and put the best weights back."""
        is_last = len(self.history.records) >= self.settings.epochs
        self.finished = is_last or stop
        self.history.stopped_early = stop and not is_last
        if self.finished and self.best is not None:
            self.module.load_state_dict(self.best)

    def state(self) -> Checkpoint:
        """What a checkpoint keeps; a finished fit needs its weights only."""
        is_best = self.history.best_epoch == len(self.history.records)
        return Checkpoint(
            weights=self.module.state_dict(),
            best={} if self.finished or is_best or self.best is None else self.best,
            optimiser={} if self.finished else self.optimiser.state_dict()["state"],
            history=self.history,
            finished=self.finished,
        )

    def restore(self, saved: Checkpoint) -> None:
        """Become the fit from which `state` was taken."""
        self.module.load_state_dict(saved.weights)
        self.history = saved.history
        self.finished = saved.finished
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": saved.optimiser, "param_groups": groups})
        if self.history.best_epoch is not None:
            self.best = {name: value.to(self.device) for name, value in (saved.best or saved.weights).items()}


def _settings_identity(run: _Run) -> dict[str, Any]:
    """The settings as JSON values; of the device only its kind, since all of a kind compute alike."""
    return {**asdict(run.settings), "betas": list(run.settings.betas), "device": run.device.type}


def _resume(run: _Run, path: Path, identity: Mapping[str, Any]) -> None:
    saved = read_checkpoint(path, identity)
    if saved is None:
        return
    try:
        run.restore(saved)
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            f"Checkpoint {str(path)!r} does not fit this module ({error}). Delete it, or choose another folder."
        ) from error


def _run_epoch(
    run: _Run,
    train_batches: Callable[[int], Any],
    valid_batches: Callable[[], Iterable[Any]] | None,
    observers: Sequence[Observer],
) -> None:
    number = len(run.history.records) + 1
    for observer in observers:
        getattr(observer, "begin_epoch", _ignore)(number)
    started = time.perf_counter()
    trained, rate = _train(run, train_batches(number - 1), number)
    seconds = time.perf_counter() - started
    valid_loss = None if valid_batches is None else _validate(run, valid_batches(), number).mean()
    record = {
        "epoch": number,
        "train_loss": trained.mean(),
        "valid_loss": valid_loss,
        "learning_rate": rate,
        "seconds": time.perf_counter() - started,
        "items_per_second": trained.count / seconds,
    }
    run.add(record)
    wishes = [observer.epoch(dict(record)) for observer in observers]
    run.close(any(wishes) or run.is_out_of_patience())


def _ignore(number: int) -> None:
    pass


def _train(run: _Run, batches: Any, number: int) -> tuple[_Sums, float]:
    """One pass over the training batches; returns the sums and the last learning rate."""
    if len(batches) == 0:
        raise DataError("There are no batches to train on. Give data with at least one sequence.")
    sums = _Sums(f"Training loss is not finite in epoch {number}", run.settings, run.device)
    rate = 0.0
    run.module.train()
    with _draws(run.device, run.settings.seed, number):
        for index, batch in enumerate(batches):
            progress = (number - 1 + index / len(batches)) / run.settings.epochs
            rate = one_cycle(progress, float(run.settings.learning_rate))
            loss, norm = _step(run, batch.to(run.device), rate)
            sums.add(loss, norm)
    sums.read()
    return sums, rate


def _step(run: _Run, batch: Any, rate: float) -> tuple[Loss, Tensor | None]:
    """Follow one gradient; returns the loss, and the gradient's norm if it is limited."""
    run.optimiser.zero_grad(set_to_none=True)
    with autocast(run.settings.precision, run.device):
        loss = run.loss(batch)
    (loss.total / loss.count if loss.count else loss.total).backward()
    norm = None if run.settings.clip is None else _clip(run)
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    run.optimiser.step()
    return loss, norm


def _clip(run: _Run) -> Tensor:
    clip = float(run.settings.clip or math.inf)
    norm = get_total_norm([parameter.grad for parameter in run.parameters if parameter.grad is not None])
    # On a GPU the comparison would wait for the device; there the factor, at most 1, is always applied.
    if run.device.type != "cpu" or not norm <= clip:
        clip_grads_with_norm_(run.parameters, clip, norm)
    return norm


def _validate(run: _Run, batches: Iterable[Any], number: int) -> _Sums:
    sums = _Sums(f"Validation loss is not finite in epoch {number}", run.settings, run.device)
    run.module.eval()
    # The same draws in every epoch, so that a loss estimated by sampling is compared on equal terms.
    with torch.inference_mode(), _draws(run.device, run.settings.seed, 0):
        for batch in batches:
            with autocast(run.settings.precision, run.device):
                sums.add(run.loss(batch.to(run.device)))
    run.module.train()
    sums.read()
    return sums


class _Sums:
    """Totals and counts of an epoch in float64, with the check that every loss is finite."""

    def __init__(self, complaint: str, settings: FitSettings, device: torch.device) -> None:
        self.total = 0.0
        self.count = 0.0
        self._complaint = complaint
        self._settings = settings
        self._every = 1 if device.type == "cpu" else _READ_EVERY
        self._pending: list[tuple[Tensor, Tensor | None]] = []
        self._batch = 0

    def add(self, loss: Loss, norm: Tensor | None = None) -> None:
        self.count += float(loss.count)
        self._pending.append((loss.total.detach(), norm))
        if len(self._pending) >= self._every:
            self.read()

    def read(self) -> None:
        """Fetch pending losses from the device; a loss or gradient that is not finite is an error."""
        totals = [total for total, _ in self._pending]
        norms = [total if norm is None else norm for total, norm in self._pending]
        values = torch.stack(totals + norms).tolist() if totals else []
        for total, norm in zip(values[: len(totals)], values[len(totals) :], strict=True):
            self._batch += 1
            self.total += total
            if not (math.isfinite(total) and math.isfinite(norm)):
                self._refuse(total, norm)
        self._pending.clear()

    def mean(self) -> float:
        if not self.count:
            raise DataError(
                "Nothing counts in the batches: their loss has no terms. Give data with scored events."
            )
        return self.total / self.count

    def _refuse(self, total: float, norm: float) -> None:
        found = f"loss {total}" if not math.isfinite(total) else f"gradient norm {norm}"
        raise SeqattnError(
            f"{self._complaint}, batch {self._batch} ({found}). Try a smaller learning_rate than "
            f"{self._settings.learning_rate}, and check the units of the data for very large or small values."
        )


@contextlib.contextmanager
def _draws(device: torch.device, *key: int) -> Iterator[None]:
    """Draw from generators seeded by ``key`` inside, and leave the global ones as they were."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would also change the generators of devices that are not restored.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield
