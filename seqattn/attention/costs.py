"""What a call costs in a kernel: one small table of constants, which can be measured on this machine."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from seqattn.errors import ParameterError

# Numbers in a vector register of the widest kind, float32.
LANES = 16


class Work(NamedTuple):
    """What a kernel does in a call.

    ``steps`` is the number of rectangles, ``matrices`` that of the score matrices in them (one per head and sequence,
    or tile), ``pairs`` that of the pairs of query, key and head, and ``single`` that of pairs which do not fill a
    vector register and go through it one at a time. ``width`` counts the numbers in a row of one head, ``moved`` the
    bytes that are gathered, on the way there and back, ``decided`` the pairs of masks that are made and the rows that
    are put into order by labels.
    """

    steps: float
    matrices: float
    pairs: float
    single: float
    width: int
    moved: float
    decided: float = 0.0

    def terms(self) -> tuple[float, ...]:
        """Return the factors of the constants of :class:`Rates`, in their order."""
        fine = (self.matrices, self.pairs, self.single, self.pairs * self.width, self.moved, self.decided)
        return 1.0, self.steps, *(x / 1000 for x in fine)


@dataclass(frozen=True)
class Rates:
    """Constants of a kernel: what it takes per unit of :class:`Work`.

    Parameters
    ----------
    call, step
        Microseconds per call of ``attend``, and per rectangle.
    matrix
        Nanoseconds per matrix.
    pair, single, feature
        Nanoseconds per pair, more per pair that goes alone, and per pair and number in a row.
    byte
        Nanoseconds per byte moved, one over gigabytes per second.
    decision
        Nanoseconds per pair of a mask or row in order.
    """

    call: float
    step: float
    matrix: float
    pair: float
    single: float
    feature: float
    byte: float
    decision: float

    def time(self, work: Work, itemsize: int = 4) -> float:
        """Return the expected time in microseconds.

        Parameters
        ----------
        work
            What is done.
        itemsize
            Bytes of a number; the constants are those of float32.
        """
        wide = max(itemsize / 4, 1.0)
        pair = wide * (self.pair + work.width * self.feature)
        fine = (
            work.matrices * self.matrix
            + work.pairs * pair
            + work.single * self.single
            + work.moved * self.byte
            + work.decided * self.decision
        )
        return self.call + work.steps * self.step + fine / 1000


class Key(NamedTuple):
    """Kind of device, name of a kernel, and whether gradients follow."""

    device: str
    kernel: str
    training: bool


# torch 2.13, one thread of a server with AVX-512, float32; ``seqattn attention calibrate`` measures them anew.
TABLE = {
    Key("cpu", "sdpa", False): Rates(56, 76, 0, 0.5, 9.8, 0.046, 0.18, 9.4),
    Key("cpu", "sdpa", True): Rates(12, 268, 450, 1.2, 13.4, 0.169, 0.59, 13),
    Key("cpu", "plain", False): Rates(26, 81, 290, 1.3, 20, 0.05, 0.15, 8.3),
    Key("cpu", "plain", True): Rates(81, 173, 150, 2.7, 30, 0.145, 0.52, 7.5),
    Key("cpu", "window", False): Rates(0, 26, 530, 0.42, 6.9, 0.04, 0.17, 360),
    Key("cpu", "window", True): Rates(118, 0, 2140, 1.1, 20, 0.127, 0.71, 710),
    Key("cpu", "reference", False): Rates(0, 400, 0, 10, 0, 0, 0, 0),
    Key("cpu", "reference", True): Rates(0, 1200, 0, 30, 0, 0, 0, 0),
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
