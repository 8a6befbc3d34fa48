"""Several processes that do one job together: the only module that knows ``torch.distributed``.

Each process holds the whole model and all data, and computes its share of every batch::

    batch -> parts of equal length -> gradient of each total -> sum / count of the whole batch -> the same step

Under ``torchrun`` the processes find each other by themselves; a process group that is already there is used as it is.
In a single process nothing here does anything.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from seqattn.errors import BackendError, DataError, SeqattnError

__all__ = ["Processes", "alone", "processes", "scoring_processes", "tell_once", "together"]

# A process that ends is noticed at once. Only one that stands still is waited for: the first one may be busy with
# callbacks, or with pictures and files.
_PATIENCE = timedelta(minutes=30)
# The store of torchrun answers within milliseconds, or not at all.
_ANSWER = timedelta(seconds=10)

_IS_ALONE: ContextVar[bool] = ContextVar("is_alone", default=False)
_IS_TOGETHER: ContextVar[bool] = ContextVar("is_together", default=False)

T = TypeVar("T")


@runtime_checkable
class _Items(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Any: ...


@dataclass(frozen=True)
class Processes:
    """The processes that do one job together, seen from one of them.

    All of them call the same methods in the same order. With a single process the methods do the plain thing.

    Parameters
    ----------
    rank
        Number of this process, from 0.
    size
        Number of processes, at least 1.
    """

    rank: int = 0
    size: int = 1

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process do something, and return its result in every process.

        Parameters
        ----------
        work
            What is done; only the first process calls it, and it is then alone as in :func:`alone`.

        Returns
        -------
        The result, a copy in the other processes. What ``work`` raises is raised in all processes.
        """
        if self.size == 1:
            return work()
        with alone():
            own = _Outcome.of(work) if self.rank == 0 else None
        sent: list[Any] = [own and own.portable()]
        with _connected():
            dist.broadcast_object_list(sent, src=0)
        result: T = (own or sent[0]).result()
        return result

    def map(self, work: Callable[[Any], T], items: _Items) -> list[T]:
        """Return what a function gives for each item, each computed by one of the processes.

        Parameters
        ----------
        work
            The function. Within it a process is alone, as in :func:`alone`.
        items
            What it is called with, the same in all processes; they are dealt in turn.

        Returns
        -------
        The results in the order of the items, in every process. What ``work`` raises in one process is raised in all.
        """
        if self.size == 1:
            return [work(items[i]) for i in range(len(items))]
        with alone():
            own = _Outcome.of(lambda: [work(items[i]) for i in range(self.rank, len(items), self.size)])
        results: list[Any] = [None] * len(items)
        for rank, part in enumerate(self._gather(own.portable())):
            results[rank :: self.size] = (own if rank == self.rank else part).result()
        return results

    def attempt(self, work: Callable[[], T], otherwise: T) -> tuple[T, Exception | None]:
        """Do the own part of a job, and return its result and the error that came in between.

        Parameters
        ----------
        work
            What is done.
        otherwise
            Result if there is an error.

        Returns
        -------
        The result, and the error or None. The error is to be handed to :meth:`sum`, so that no process waits for one
        that has stopped. A single process has nobody to tell: there the error is raised at once.
        """
        if self.size == 1:
            return work(), None
        outcome = _Outcome.of(work)
        return (otherwise if outcome.error else outcome.value), outcome.error

    def sum(self, values: Sequence[float | int], error: Exception | None = None) -> list[float]:
        """Return the sums of numbers over the processes, added in float64.

        Parameters
        ----------
        values
            Numbers of this process.
        error
            What kept this process from its part of the job; it is then raised in all processes.
        """
        if self.size == 1:
            return [float(value) for value in values]
        vector = torch.tensor([*values, error is not None], dtype=torch.float64, device=_small_things())
        with _connected():
            dist.all_reduce(vector)
        *sums, failed = vector.tolist()
        if failed:
            for rank, outcome in enumerate(self._gather(_Outcome(error=error).portable())):
                (_Outcome(error=error) if rank == self.rank else outcome).result()
        return sums

    def add(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of tensors over the processes.

        Parameters
        ----------
        tensors
            Floating point tensors of one type; of equal shapes in all processes.
        """
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _connected():
            dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def reduce_gradients(
        self, parameters: Sequence[torch.nn.Parameter], total: Float[Tensor, ""], count: float | int
    ) -> Float[Tensor, ""]:
        """Replace gradients of the own totals by the gradient of the joint mean, in all processes.

        Parameters
        ----------
        parameters
            What is trained. Where no process has a gradient there is none afterwards either.
        total
            Sum of the own terms.
        count
            Number of terms of all processes; 0 leaves the gradient that of the sum.

        Returns
        -------
        Sum of the terms of all processes.
        """
        # One message for all: 38,000 weights in 49 tensors take 1 ms between two processes of a machine.
        used = torch.tensor([parameter.grad is not None for parameter in parameters], device=total.device)
        pieces = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).reshape(-1)
            for parameter in parameters
        ]
        flat = torch.cat([*pieces, total.detach().reshape(1).to(pieces[0].dtype), used.to(pieces[0].dtype)])
        with _connected():
            dist.all_reduce(flat)
        sizes = [parameter.numel() for parameter in parameters]
        gradient, joint, users = flat.split([sum(sizes), 1, len(sizes)])
        for parameter, piece, users_of_it in zip(parameters, gradient.split(sizes), users, strict=True):
            # On a GPU the comparison waits for the device; it is made only where this process has no gradient.
            if parameter.grad is not None or bool(users_of_it > 0):
                parameter.grad = (piece / count if count else piece).view_as(parameter)
        return joint[0]

    def copy_weights(self, module: torch.nn.Module) -> None:
        """Give all processes the first one's weights and buffers.

        Parameters
        ----------
        module
            The same module in all processes.
        """
        if self.size > 1:
            with _connected(), torch.no_grad():
                for value in module.state_dict().values():
                    dist.broadcast(value, src=0)

    def require_same(self, values: Mapping[str, Any]) -> None:
        """Refuse a job that is not the same in all processes.

        Parameters
        ----------
        values
            What must agree, by name; compared as text.

        Raises
        ------
        DataError
            A value differs from that of the first process.
        """
        if self.size == 1:
            return
        everywhere = self._gather({name: repr(value) for name, value in values.items()})
        for rank, there in enumerate(everywhere):
            names = [
                name
                for name in everywhere[0] | there
                if everywhere[0].get(name, "nothing") != there.get(name, "nothing")
            ]
            if names:
                text = "; ".join(
                    f"{name} is {everywhere[0].get(name, 'nothing')} and {there.get(name, 'nothing')}"
                    for name in names
                )
                raise DataError(
                    f"Processes 0 and {rank} do not train the same: {text}. Give all the same data and settings."
                )

    def require_devices(self, device: torch.device) -> None:
        """Refuse a GPU that two processes would share.

        Parameters
        ----------
        device
            Where this process computes.

        Raises
        ------
        BackendError
            Another process computes there too.
        """
        if self.size > 1 and device.type == "cuda" and dist.get_backend() != "gloo":
            _refuse_shared(self._gather((socket.gethostname(), str(device))))

    def _gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        values: list[Any] = [None] * self.size
        with _connected():
            dist.all_gather_object(values, value)
        return values


@dataclass(frozen=True)
class _Outcome:
    """What came of a piece of work: a value or an error."""

    value: Any = None
    error: Exception | None = None

    @classmethod
    def of(cls, work: Callable[[], Any]) -> _Outcome:
        try:
            return cls(value=work())
        except Exception as error:  # noqa: BLE001 - it is raised again, in all processes
            return cls(error=error)

    def portable(self) -> _Outcome:
        """Return the outcome with an error that can be sent to another process."""
        if self.error is None:
            return self
        try:
            pickle.loads(pickle.dumps(self.error))
        except Exception:  # noqa: BLE001 - errors of other libraries may refuse in any way
            return _Outcome(error=SeqattnError(f"{type(self.error).__name__}: {self.error}"))
        return self

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


def _refuse_shared(places: Sequence[tuple[str, str]]) -> None:
    for rank, place in enumerate(places):
        other = places.index(place)
        if other < rank:
            raise BackendError(
                f"Processes {other} and {rank} both compute on {place[1]} of {place[0]}. "
                'Start one process per GPU (--nproc-per-node), or pass device="cpu".'
            )


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Say in plain words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise SeqattnError(
            f"Another process of this job has ended or stands still ({reason}). What it said itself tells why; "
            "with a checkpoint the same command goes on."
        ) from None


def _small_things() -> torch.device:
    """Where numbers live that the processes tell each other."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def processes() -> Processes:
    """Return the processes that train together, and join them if that has not happened yet.

    Returns
    -------
    Those of ``torchrun``, or of the process group that the caller has made; otherwise a single one.

    Notes
    -----
    Under ``torchrun`` the group speaks through gloo, between GPUs through nccl, and the process computes on the GPU
    with its local rank.

    Examples
    --------
    >>> processes()
    Processes(rank=0, size=1)
    """
    if _IS_ALONE.get() or not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
            return Processes()
        _join()
    return Processes(dist.get_rank(), dist.get_world_size())


def scoring_processes() -> Processes:
    """Return the processes that score and forecast together: those of a :func:`together` block, or a single one."""
    return processes() if _IS_TOGETHER.get() else Processes()


def _join() -> None:
    local = int(os.environ["LOCAL_RANK"])
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _connected():
        dist.init_process_group(backend, timeout=_PATIENCE)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process work without the others inside the block."""
    token = _IS_ALONE.set(True)
    try:
        yield
    finally:
        _IS_ALONE.reset(token)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Let the processes share scores and forecasts too inside the block, not only training.

    All processes must then make the same calls in the same order; each gets the whole result. Without the block every
    process computes what it is asked for, so that the first one alone may score or predict.

    Examples
    --------
    >>> from seqattn import PoissonProcess
    >>> rows = [([1.0, 2.0, 7.0], ["a", "b", "a"])]
    >>> model = PoissonProcess(window=(0.0, 10.0)).fit(rows)
    >>> with together():
    ...     likelihood = model.log_likelihood(rows)
    >>> likelihood.n_events
    3
    """
    token = _IS_TOGETHER.set(True)
    try:
        yield
    finally:
        _IS_TOGETHER.reset(token)


def tell_once(tell: Callable[[], None]) -> None:
    """Call a function in the process that asks first; in the others wait until that is done.

    Parameters
    ----------
    tell
        What is called, for example to print a message. It may be called in any state, also when processes are gone.

    Notes
    -----
    torchrun ends the other processes as soon as one has ended, so one that ended without waiting could cut the
    message short.
    """
    store = _store_of_torchrun()
    if store is None:
        if os.environ.get("RANK", "0") == "0":
            tell()
        return
    run = f"seqattn/{os.environ['TORCHELASTIC_RUN_ID']}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        is_first = store.add(f"{run}/asked", 1) == 1
    except RuntimeError:
        is_first = True
    if is_first:
        tell()
    with contextlib.suppress(RuntimeError):
        if is_first:
            store.set(f"{run}/told", "")
        else:
            store.wait([f"{run}/told"], _ANSWER)


def _store_of_torchrun() -> Any:
    """Return the store that outlives every process of the job, None if there is none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_ANSWER)  # type: ignore[attr-defined]
    except RuntimeError:
        return None
