"""What a call costs in a kernel: one small table of constants, which can be measured on this machine."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from seqattn.errors import ParameterError


class Work(NamedTuple):
    """What a kernel does in a call.

    Parameters
    ----------
    steps
        Number of rectangles.
    matrices
        Number of score matrices in them: one per head and sequence, or tile.
    pairs
        Pairs of query, key and head in them.
    width
        Numbers in a row of one head.
    moved
        Bytes that are gathered, at the way there and back.
    decided
        Pairs of masks that are made, and rows that are put into order by labels.
    """

    steps: float
    matrices: float
    pairs: float
    width: int
    moved: float
    decided: float = 0.0

    def terms(self) -> tuple[float, ...]:
        """Return the factors of the constants of :class:`Rates`, in their order."""
        pairs = self.pairs / 1000
        matrices, moved, decided = self.matrices / 1000, self.moved / 1000, self.decided / 1000
        return 1.0, self.steps, matrices, pairs, pairs * self.width, moved, decided


@dataclass(frozen=True)
class Rates:
    """Constants of a kernel: what it takes per unit of :class:`Work`.

    Parameters
    ----------
    call, step
        Microseconds per call of ``attend``, and per rectangle.
    matrix
        Nanoseconds per matrix.
    pair, feature
        Nanoseconds per pair, and per pair and number in a row.
    byte
        Nanoseconds per byte moved, one over gigabytes per second.
    decision
        Nanoseconds per pair of a mask or row in order.
    """

    call: float
    step: float
    matrix: float
    pair: float
    feature: float
    byte: float
    decision: float

    def time(self, work: Work) -> float:
        """Return the expected time in microseconds.

        Parameters
        ----------
        work
            What is done.
        """
        return sum(rate * term for rate, term in zip(astuple(self), work.terms(), strict=True))


class Key(NamedTuple):
    """Kind of device, name of a kernel, and whether gradients follow."""

    device: str
    kernel: str
    training: bool


# torch 2.13, one thread of a server with AVX-512, float32; ``seqattn attention calibrate`` measures them anew.
TABLE = {
    Key("cpu", "sdpa", False): Rates(0, 130, 420, 0.69, 0.042, 0.19, 14),
    Key("cpu", "sdpa", True): Rates(0, 300, 740, 2.3, 0.128, 0.8, 12),
    Key("cpu", "plain", False): Rates(0, 125, 0, 1.5, 0.052, 0.27, 9),
    Key("cpu", "plain", True): Rates(0, 300, 540, 4.4, 0.128, 0.77, 10),
    Key("cpu", "window", False): Rates(100, 0, 1290, 0.32, 0, 0.56, 390),
    Key("cpu", "window", True): Rates(420, 0, 2650, 0.24, 0, 1.8, 500),
    Key("cpu", "reference", False): Rates(0, 400, 0, 10, 0, 0, 0),
    Key("cpu", "reference", True): Rates(0, 1200, 0, 30, 0, 0, 0),
}


class Costs:
    """Return the constants that this process goes by; :meth:`use` gives it others.

    Parameters
    ----------
    table
        The constants of each kernel.
    """

    __slots__ = ("is_measured", "table")

    def __init__(self, table: Mapping[Key, Rates]) -> None:
        self.table = dict(table)
        self.is_measured = False

    def rates(self, device: str, kernel: str, training: bool) -> Rates:
        """Return the constants of a kernel; those of the CPU where a device has none.

        Parameters
        ----------
        device
            Kind of device.
        kernel
            Name of the kernel.
        training
            Whether gradients follow.
        """
        key = Key(device, kernel, training)
        return self.table[key if key in self.table else key._replace(device="cpu")]

    def words(self) -> str:
        """Return where the constants come from."""
        return "measured on this machine" if self.is_measured else "built in, calibrate() measures them"

    def use(self, measured: Mapping[Key, Rates]) -> None:
        """Go by measured constants from now on.

        Parameters
        ----------
        measured
            Constants of some kernels.
        """
        self.table |= measured
        self.is_measured = True

    def reset(self) -> None:
        """Go by the built-in constants again."""
        self.table, self.is_measured = dict(TABLE), False


COSTS = Costs(TABLE)
"""The constants of this process."""


def machine() -> dict[str, str | int]:
    """Return what measured constants depend on."""
    return {
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def save(path: Path, table: Mapping[Key, Rates]) -> None:
    """Write constants to a file, with the machine that they hold for.

    Parameters
    ----------
    path
        The file; its folder is made.
    table
        The constants.
    """
    rows = [{**key._asdict(), **asdict(rates)} for key, rates in table.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rates": rows}, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> dict[Key, Rates] | None:
    """Return the constants in a file; ``None`` if there is none for this machine.

    Parameters
    ----------
    path
        What :func:`save` wrote.

    Raises
    ------
    ParameterError
        The file holds something else.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["machine"] != machine():
            return None
        return {Key(*(row.pop(name) for name in Key._fields)): Rates(**row) for row in found["rates"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParameterError(
            f"{path} holds no constants of attention kernels ({error!r}). Remove it and calibrate again."
        ) from error


def scaled(rates: Rates, itemsize: int) -> Rates:
    """Return the constants for numbers of another size than float32's.

    Parameters
    ----------
    rates
        Those for float32.
    itemsize
        Bytes of a number.
    """
    factor = max(itemsize / 4, 1.0)
    return replace(rates, pair=rates.pair * factor, feature=rates.feature * factor)
