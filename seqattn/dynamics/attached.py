"""A recorder for the fits of other estimators: how widely each head attends, to what, and how much it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
import torch
from torch import Tensor

from seqattn.attention import Attention, Reducer, WeightBlock
from seqattn.attention.reducers import Extent
from seqattn.errors import ParameterError
from seqattn.train.history import History
from seqattn.train.settings import FitSettings

__all__ = ["QUANTITIES", "AttentionRecorder"]

QUANTITIES = ("entropy", "entropy_share", "common_mass", "distinct_mass", "head_importance")
"""What is recorded of each head."""

SCHEMA: dict[str, Any] = {
    "member": pl.Int32,
    "epoch": pl.Int32,
    "phase": pl.Enum(["train", "eval"]),
    "layer": pl.Int32,
    "head": pl.Int32,
    "quantity": pl.Enum(QUANTITIES),
    "value": pl.Float64,
}
_KEPT = "attention_recorder"


@runtime_checkable
class _Layer(Protocol):
    """A layer that tells what its heads see."""

    def look(self, *call: Any, reduce: Reducer, **named: Any) -> Attention: ...


class AttentionRecorder:
    r"""Follow the attention of each layer and head over the epochs of a fit; hand it over as one of ``observers``.

    The first batch of each epoch is looked at, in training and, where there is one, in validation. Weights go through a
    reducer block by block, so that they never exist together.

    Parameters
    ----------
    path
        Parquet file that is written after each epoch; None keeps the records in memory only.
    kinds
        Kind of each token by its number: ``"common"``, ``"distinct"`` or another word, such as
        :meth:`seqattn.dynamics.SequenceClasses.kinds` gives them. Without it no masses are recorded.
    tokens
        Returns the number of the token at each place of a packed batch; None takes the batch's ``types`` or ``items``.
        Numbers without a kind are neither common nor distinct. A batch that has not as many tokens as the layer is
        recorded without masses.
    min_keys
        Queries that see fewer keys are left out: the first ones of a sequence have a low entropy whatever the model.

    Notes
    -----
    Quantities, each a mean over queries: ``entropy`` in nats; ``entropy_share``, the entropy over the logarithm of the
    number of keys, 1 for even attention; ``common_mass`` and ``distinct_mass``, what all queries pay to keys of these
    kinds; ``head_importance``, the share of a head in the squared length of what all heads of the layer return.

    A record of training shows the weights before the epoch, and has the number of the epochs finished then, 0 at first.
    One of validation shows those after it. Members of a classifier are numbered in the order in which they are trained.
    Of layers that share weights the first is recorded.

    Examples
    --------
    >>> recorder = AttentionRecorder()
    >>> recorder.table.columns
    ['member', 'epoch', 'phase', 'layer', 'head', 'quantity', 'value']
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        kinds: Sequence[str] | None = None,
        tokens: Callable[[Any], Tensor] | None = None,
        min_keys: int = 4,
    ) -> None:
        if isinstance(min_keys, bool) or min_keys < 2:
            raise ParameterError(f"min_keys={min_keys!r} is not allowed. Give a whole number, at least 2.")
        self.path = None if path is None else Path(path)
        self.kinds = None if kinds is None else np.asarray(kinds).astype(str)
        self.tokens = tokens
        self.min_keys = min_keys
        self._rows: list[tuple[float, ...]] = []
        self._before: list[tuple[float, ...]] = []
        self._member = -1
        self._epoch = 0
        self._due: set[tuple[int, bool]] = set()
        self._numbers: Tensor | None = None
        self._layers: list[torch.nn.Module] = []
        self._hooks: list[Any] = []

    @property
    def table(self) -> pl.DataFrame:
        """All records, one row per value."""
        names = list(SCHEMA)
        frame = pl.DataFrame(
            [*self._before, *self._rows], schema=dict.fromkeys(names, pl.Float64), orient="row"
        )
        words = {"phase": ["train", "eval"], "quantity": list(QUANTITIES)}
        return frame.select(
            pl.col(name).cast(pl.Int32).replace_strict(dict(enumerate(words[name])), return_dtype=kind)
            if name in words
            else pl.col(name).cast(kind)
            for name, kind in SCHEMA.items()
        )

    def to_parquet(self, path: str | Path) -> Path:
        """Write all records to a file, and return its path.

        Parameters
        ----------
        path
            File to write.
        """
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.part")
        self.table.write_parquet(partial, compression="zstd")
        partial.replace(place)
        return place

    def attach(self, module: torch.nn.Module) -> None:
        """Take notice of what is trained next.

        Parameters
        ----------
        module
            The module.

        Raises
        ------
        ParameterError
            It has no layer of attention.
        """
        self._release()
        self._layers = [part for part in module.modules() if isinstance(part, _Layer)]
        if not self._layers:
            raise ParameterError(f"{type(module).__name__} has no layer of attention to record.")
        self._member += 1
        self._before, self._rows, self._epoch = [*self._before, *self._rows], [], 0
        for number, part in enumerate(self._layers):
            # A function, not a method: modules are copied with their hooks, and the recorder must not be.
            def hook(layer: Any, call: Any, named: Any, number: int = number) -> None:
                self._see(number, layer, call, named)

            self._hooks.append(part.register_forward_pre_hook(hook, with_kwargs=True))

    def begin(self, settings: FitSettings) -> None:
        """Do nothing.

        Parameters
        ----------
        settings
            The settings of the fit.
        """

    def begin_epoch(self, number: int) -> None:
        """Look at the next batches.

        Parameters
        ----------
        number
            Number of the epoch, from 1.
        """
        self._epoch = number
        self._due = {(layer, phase) for layer in range(len(self._layers)) for phase in (True, False)}

    def batch(self, batch: Any) -> None:
        """Take notice of the tokens of a batch.

        Parameters
        ----------
        batch
            What the module's loss is computed of.
        """
        if self.kinds is None or not self._due:
            return
        found = (getattr(batch, name, None) for name in ("types", "items"))
        self._numbers = (
            self.tokens(batch)
            if self.tokens is not None
            else next((each for each in found if isinstance(each, Tensor)), None)
        )

    def epoch(self, record: dict[str, Any]) -> None:
        """Look at no further batch, and write the file.

        Parameters
        ----------
        record
            The epoch's record.
        """
        self._due = set()
        if self.path is not None:
            self.to_parquet(self.path)

    def end(self, history: History) -> None:
        """Let the module go.

        Parameters
        ----------
        history
            All epochs.
        """
        self._release()

    def state(self) -> dict[str, Tensor]:
        """Return the records of this member."""
        rows = torch.tensor(self._rows, dtype=torch.float64).reshape(-1, len(SCHEMA))
        return {_KEPT: rows}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back the records of this member from before an interruption.

        Parameters
        ----------
        tensors
            What :meth:`state` returned then.
        """
        if _KEPT in tensors:
            self._rows = [(self._member, *row[1:]) for row in tensors[_KEPT].tolist()]

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._due = [], set()

    @torch.no_grad()
    def _see(self, number: int, layer: Any, call: Any, named: Any) -> None:
        if (number, layer.training) not in self._due:
            return
        self._due.remove((number, layer.training))
        seen = layer.look(*call, **named, reduce=_Spread())
        found = self._means(seen)
        phase = 0 if layer.training else 1
        epoch = self._epoch - (phase == 0)
        for name, values in found.items():
            for head, value in enumerate(values.tolist()):
                place = (self._member, epoch, phase, number, head)
                self._rows.append((*place, QUANTITIES.index(name), value))

    def _means(self, seen: Attention) -> dict[str, Tensor]:
        entropy, keys, received = seen.reduced
        counted = keys >= self.min_keys
        n = counted.sum(0).clamp(min=1)
        share = torch.where(counted, entropy / keys.clamp(min=2).log(), 0.0).sum(0) / n
        found = {"entropy": torch.where(counted, entropy, 0.0).sum(0) / n, "entropy_share": share}
        found = {name: torch.where(counted.any(0), mean, torch.nan) for name, mean in found.items()}
        square = seen.output.double().square().sum((0, 2))
        found["head_importance"] = square / square.sum()
        return found | self._masses(received)

    def _masses(self, received: Tensor) -> dict[str, Tensor]:
        numbers = self._numbers
        if self.kinds is None or numbers is None or numbers.numel() != len(received):
            return {}
        flat = numbers.flatten().cpu().numpy()
        known = (flat >= 0) & (flat < len(self.kinds))
        kinds = np.where(known, self.kinds[np.where(known, flat, 0)], "")
        every = received.sum(0)
        return {
            f"{kind}_mass": received[torch.from_numpy(kinds == kind).to(received.device)].sum(0) / every
            for kind in ("common", "distinct")
        }


class _Spread(Reducer):
    """Entropy and number of keys of each query, and attention that each key gets, all by head."""

    def start(self, extent: Extent) -> tuple[Tensor, Tensor, Tensor]:
        return extent.zeros(extent.queries), extent.zeros(extent.queries), extent.zeros(extent.keys)

    def add(self, total: tuple[Tensor, Tensor, Tensor], block: WeightBlock) -> None:
        real = block.weights
        parts = (
            (total[0], block.query, torch.special.entr(real).sum(-1, dtype=torch.float64)),
            (total[1], block.query, (real > 0).sum(-1, dtype=torch.float64)),
            (total[2], block.key, real.sum(2, dtype=torch.float64)),
        )
        for sums, token, values in parts:
            code = token[:, None] * sums.shape[1] + block.head[:, :, None]
            sums.view(-1).index_add_(0, code.flatten(), values.flatten())

    def result(self, total: tuple[Tensor, Tensor, Tensor], extent: Extent) -> tuple[Tensor, Tensor, Tensor]:
        return total
