"""Many histories side by side, to which events are added one at a time: what simulation and streams run on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqattn.attention import KeyValueState
from seqattn.data.batches import NEVER, EventBatch
from seqattn.hawkes.intensity import Intensity

if TYPE_CHECKING:
    from seqattn.hawkes.model import SelfAttentiveHawkes

# Tokens per row that the encoder takes at once when it reads given histories.
_PIECE = 64


class Histories(ABC):
    """The state of many histories just after their last events (or the beginnings of their windows)."""

    @property
    @abstractmethod
    def intensity(self) -> Intensity:
        """Intensities after the last event of each history, in model units."""

    @abstractmethod
    def add(self, gap: Float[Tensor, " rows"], kind: Int[Tensor, " rows"]) -> None:
        """Add one event to each history.

        Parameters
        ----------
        gap
            Time since the last event (or the beginning), in model units, float64.
        kind
            Code of its type.
        """

    @abstractmethod
    def select(self, rows: Int[Tensor, " chosen"]) -> Self:
        """Return copies of some histories, each as often as it is named."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the histories consist of."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave."""


class Remembered(Histories):
    """Histories of a process that needs a few numbers of each to know its intensities.

    Parameters
    ----------
    memory
        The numbers, of shape (rows, numbers).
    recall
        Gives the intensities that follow from memories.
    remember
        Gives the memories after one more event: ``remember(memory, gap, kind)``.
    """

    def __init__(
        self,
        memory: Float[Tensor, "rows numbers"],
        recall: Callable[[Tensor], Intensity],
        remember: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        self.memory = memory
        self.recall = recall
        self.remember = remember

    @property
    def intensity(self) -> Intensity:
        return self.recall(self.memory)

    def add(self, gap: Float[Tensor, " rows"], kind: Int[Tensor, " rows"]) -> None:
        self.memory = self.remember(self.memory, gap, kind)

    def select(self, rows: Int[Tensor, " chosen"]) -> Self:
        return type(self)(self.memory[rows], self.recall, self.remember)

    def tensors(self) -> dict[str, Tensor]:
        return {"memory": self.memory}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.memory = tensors["memory"]


class Attended(Histories):
    """Histories that a self-attentive process has read, with the keys and values of their tokens.

    Times are kept in float64 since the beginning of each window, so that long streams lose no digit of their gaps.

    Parameters
    ----------
    module
        The fitted module, in evaluation mode.
    rows
        Number of histories; each begins with its start token.
    """

    def __init__(self, module: SelfAttentiveHawkes, rows: int) -> None:
        self.module = module
        self.states = module.encoder.start()
        place = module.mu.weight
        zero = torch.zeros(rows, dtype=torch.float64, device=place.device)
        self.elapsed, self.first = zero.clone(), zero.clone()
        self.position = torch.full((rows,), -1, device=place.device)
        self.latest = (zero - math.inf)[:, None].repeat(1, module.n_types if module.needs_recency else 0)
        self.token = place.new_zeros(rows, module.mu.in_features)
        self._take(zero[:, None], torch.full((rows, 1), module.n_types, device=place.device))

    @classmethod
    def after(cls, module: SelfAttentiveHawkes, batch: EventBatch) -> Attended:
        """Return the histories after sequences: each ends with its last event.

        Parameters
        ----------
        module
            As above.
        batch
            The sequences, in model units and float64.
        """
        read = cls(module, len(batch))
        gap, kind = batch.padded(batch.gap.double()), batch.padded(batch.types, module.n_types)
        counts = batch.offsets.diff().long()
        for start in range(1, batch.max_len, _PIECE):
            piece = slice(start, start + _PIECE)
            read._take(gap[:, piece], kind[:, piece], (counts - start).clamp(0, gap[:, piece].shape[1]))
        return read

    @property
    def intensity(self) -> Intensity:
        dtype = self.token.dtype
        since = (
            (self.elapsed[:, None] - self.latest).clamp(max=NEVER).to(dtype) if self.latest.shape[1] else None
        )
        with torch.no_grad():
            return self.module.intensity(self.token, since).detach()

    def add(self, gap: Float[Tensor, " rows"], kind: Int[Tensor, " rows"]) -> None:
        self._take(gap[:, None], kind[:, None])

    @torch.no_grad()
    def _take(self, gap: Tensor, kind: Tensor, counts: Tensor | None = None) -> None:
        """Read tokens of each row: the first ``counts`` of them, or all."""
        rows, new = gap.shape
        exists = torch.ones_like(kind, dtype=torch.bool)
        if counts is not None:
            exists = torch.arange(new, device=gap.device) < counts[:, None]
        elapsed = self.elapsed[:, None] + torch.where(exists, gap, 0.0).cumsum(1)
        position = self.position[:, None] + exists.cumsum(1)
        first_here = exists & (position == 1)
        self.first = torch.where(first_here.any(1), (elapsed * first_here).sum(1), self.first)
        age = torch.where(position > 0, elapsed - self.first[:, None], 0.0)
        x = self.module.embed(self._batch(gap, kind, elapsed, position, age)).view(rows, new, -1)
        state = self.module.encoder.step(x, self.states, self.module.clock_of_keys(elapsed), counts)
        last = (exists.sum(1) - 1).clamp(min=0)
        newest = state[torch.arange(rows, device=gap.device), last].to(self.token.dtype)
        self.token = torch.where(exists.any(1)[:, None], newest, self.token)
        self.elapsed, self.position = elapsed[:, -1], position[:, -1]
        if self.latest.shape[1]:
            for place in range(new):
                real = (exists[:, place] & (kind[:, place] < self.module.n_types)).nonzero()[:, 0]
                self.latest[real, kind[real, place]] = elapsed[real, place]

    def _batch(self, gap: Tensor, kind: Tensor, elapsed: Tensor, position: Tensor, age: Tensor) -> EventBatch:
        """Return tokens in the form that the module embeds; each is a sequence of its own to nobody."""
        times = {"gap": gap, "elapsed": elapsed, "age": age, "until": torch.zeros_like(gap)}
        n, device = gap.numel(), gap.device
        return EventBatch(
            offsets=torch.arange(n + 1, dtype=torch.int32, device=device),
            max_len=1,
            types=kind.reshape(-1),
            target=torch.full((n,), -1, device=device),
            scored=torch.zeros(n, dtype=torch.bool, device=device),
            position=position.clamp(min=0).reshape(-1),
            rows=torch.arange(n, device=device),
            **{name: value.reshape(-1).to(self.token.dtype) for name, value in times.items()},
        )

    def select(self, rows: Int[Tensor, " chosen"]) -> Self:
        chosen = object.__new__(type(self))
        chosen.module = self.module
        chosen.states = [state.select(rows) for state in self.states]
        for name in _PLAIN:
            setattr(chosen, name, getattr(self, name)[rows])
        return chosen

    def tensors(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) for name in _PLAIN}
        for layer, state in enumerate(self.states):
            found |= {f"layer{layer}.{name}": value for name, value in state.to_tensors().items()}
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name in _PLAIN:
            setattr(self, name, tensors[name].clone())
        for layer in range(len(self.states)):
            start = f"layer{layer}."
            own = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
            self.states[layer] = KeyValueState.from_tensors(own)


_PLAIN = ("elapsed", "first", "position", "latest", "token")
