"""The keys and values that new tokens of growing sequences attend to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqattn.attention.tiles import Band
from seqattn.errors import ParameterError

# Numbers of scores in one piece of a call with several new tokens per row.
PIECE_SIZE = 2**24


class KeyValueState:
    """Return an empty state: the first call of ``attend`` with it gives it its size.

    It holds what :func:`seqattn.attention.attend` needs of the past when a call brings only the new tokens of each
    sequence. Under a dense pattern it grows with the sequence, its room doubling; under ``Local(left)`` or
    ``Local(left) | Prefix(n)`` it is a ring of ``n + left + 1`` keys. Rows may have different numbers of tokens.

    Notes
    -----
    Key biases are kept in float64, and the largest one that a query sees is taken off before they are rounded. So
    they may grow with time without end: softmax does not change when a whole row is shifted.

    Examples
    --------
    >>> import torch
    >>> from seqattn.attention import attend
    >>> state, token = KeyValueState(), torch.ones(3, 2, 1, 4)
    >>> seen = attend(token, token, token, causal=True, state=state)
    >>> seen.state is state, state.count.tolist()
    (True, [1, 1, 1])
    """

    __slots__ = ("_band", "_bias", "_keys", "_values", "count")

    count: Int[Tensor, " rows"]

    def __init__(self) -> None:
        self.count = torch.zeros(0, dtype=torch.int64)
        self._band: Band | None = None
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._bias: Tensor | None = None

    def __repr__(self) -> str:
        low, high = _ends(self.count)
        return f"KeyValueState({len(self.count)} rows of {low} to {high} tokens)"

    def select(self, index: Int[Tensor, " chosen"]) -> KeyValueState:
        """Return a state of its own with these rows, in this order; a row may be chosen several times.

        Parameters
        ----------
        index
            Numbers of rows, counted from 0.

        Returns
        -------
        A state with as many rows as ``index`` has entries.

        Raises
        ------
        ParameterError
            There is no such row.
        """
        low, high = _ends(index)
        if len(index) and (low < 0 or high >= len(self.count)):
            raise ParameterError(
                f"index must hold rows from 0 to {len(self.count) - 1}, got {low} to {high}."
            )
        return self._with(lambda x: x.index_select(0, index))

    def copy(self) -> KeyValueState:
        """Return a state of its own with the same content."""
        return self._with(torch.clone)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the content as plain tensors, to be saved; empty before the first call."""
        if self._band is None or self._keys is None or self._values is None:
            return {}
        used = self._used()
        left = -1 if self._band.left is None else self._band.left
        found = {
            "band": torch.tensor([left, self._band.prefix]),
            "count": self.count.clone(),
            "keys": self._keys[:, :, :used].clone(memory_format=torch.contiguous_format),
            "values": self._values[:, :, :used].clone(memory_format=torch.contiguous_format),
        }
        if self._bias is not None:
            found["bias"] = self._bias[:, :, :used].clone(memory_format=torch.contiguous_format)
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> KeyValueState:
        """Return the state that :meth:`to_tensors` wrote.

        Parameters
        ----------
        tensors
            What :meth:`to_tensors` returned.

        Raises
        ------
        ParameterError
            A tensor is missing.
        """
        state = cls()
        if not tensors:
            return state
        missing = {"band", "count", "keys", "values"} - set(tensors)
        if missing:
            raise ParameterError(f"The tensors of a state lack {sorted(missing)}, got {sorted(tensors)}.")
        left, prefix = tensors["band"].tolist()
        state._band = Band(None if left < 0 else left, 0, prefix)
        state.count, state._keys, state._values = (
            tensors[name].clone() for name in ("count", "keys", "values")
        )
        state._bias = tensors["bias"].clone() if "bias" in tensors else None
        return state

    def prepare(self, k: Tensor, v: Tensor, bias: Tensor | None, band: Band) -> None:
        """Take the sizes of the first call, or check that a further one agrees with it.

        Parameters
        ----------
        k, v
            New keys and values ``[rows, heads, tokens, dim]``.
        bias
            Their biases ``[rows, heads or 1, tokens]``.
        band
            The pattern; its right side has no meaning here.

        Raises
        ------
        ParameterError
            The state was begun with other sizes, another pattern, or with or without a bias.
        """
        band = Band(band.left, 0, 0 if band.left is None else band.prefix)
        if self._keys is None or self._values is None:
            self._band, self.count = band, torch.zeros(len(k), dtype=torch.int64, device=k.device)
            self._keys, self._values = (x.new_zeros(*x.shape[:2], 0, x.shape[3]) for x in (k, v))
            self._bias = None if bias is None else bias.new_zeros(*bias.shape[:2], 0, dtype=torch.float64)
        kept = _kind(self._keys, self._values, self._bias, self._band)
        given = _kind(k, v, bias, band)
        for name, value in given.items():
            if kept[name] != value:
                raise ParameterError(f"The state was begun with {name} {kept[name]}, got {value}.")

    def append(self, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Tensor | None) -> None:
        """Keep new tokens, of each row the first ``lengths`` ones; :meth:`prepare` must have been called.

        Parameters
        ----------
        k, v, bias
            As for :meth:`prepare`.
        lengths
            Number of new tokens per row; ``None`` for all.
        """
        size = k.shape[2]
        old = self.count
        self.count = old + (size if lengths is None else lengths.to(old.dtype))
        self._reserve(_ends(self.count)[1])
        low, high = _ends(old)
        pairs = [(self._keys, k), (self._values, v), (self._bias, bias)]
        if size == 1 and lengths is None and low == high:
            slot = int(self._slots(old[:1])[0]) if len(old) else 0
            for kept, new in pairs:
                if kept is not None and new is not None:
                    kept[:, :, slot] = new[:, :, 0]
            return
        place = old[:, None] + torch.arange(size, device=old.device)
        stays = place < self.count[:, None]
        if self._band is not None and self._band.left is not None:
            last = self.count[:, None] - self._band.left - 1
            stays = stays & ((place < self._band.prefix) | (place >= last))
        row, token = stays.nonzero(as_tuple=True)
        slots = self._slots(place[row, token])
        for kept, new in pairs:
            if kept is not None and new is not None:
                kept[row, :, slots] = new[row, :, token].to(kept.dtype)

    def attend(
        self,
        q: Float[Tensor, "rows heads new dim"],
        k: Float[Tensor, "rows key_heads new dim"],
        v: Float[Tensor, "rows key_heads new value_dim"],
        bias: Float[Tensor, "rows heads_or_1 new"] | None,
        lengths: Int[Tensor, " rows"] | None,
        scale: float,
    ) -> Float[Tensor, "rows heads new value_dim"]:
        """Keep the new tokens and return what each of them attends to; :meth:`prepare` must have been called.

        Parameters
        ----------
        q, k, v, bias
            The new tokens.
        lengths
            Number of new tokens per row; ``None`` for all.
        scale
            Factor of the scores.

        Returns
        -------
        Their outputs; 0 where there is no token.
        """
        live = None
        if lengths is not None:
            live = torch.arange(q.shape[2], device=q.device) < lengths[:, None]
            q, k, v = (x.masked_fill(~live[:, None, :, None], 0) for x in (q, k, v))
            bias = None if bias is None else bias.masked_fill(~live[:, None], 0)
        parts = []
        piece = self._piece(q, k, v, bias)
        for start in range(0, max(1, q.shape[2]), piece):
            here = slice(start, start + piece)
            new = (k[:, :, here], v[:, :, here], None if bias is None else bias[:, :, here])
            count = None if lengths is None else (lengths - start).clamp(0, new[0].shape[2])
            parts.append(self._attend_piece(q[:, :, here], *new, count, scale))
        output = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
        return output if live is None else output.masked_fill(~live[:, None, :, None], 0)

    def _piece(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> int:
        """Return how many tokens are computed at once.

        What is not finite reaches those tokens of a piece that do not see it; so then it is one.
        """
        given = [q, k, v] if bias is None else [q, k, v, bias.clamp(min=-6e4)]
        if q.shape[2] > 1 and not all(bool(x.isfinite().all()) for x in given):
            return 1
        room = max(1, PIECE_SIZE // max(1, q.shape[0] * q.shape[1]))
        # So that a piece times the keys it sees, itself included, fills the room.
        past = self._used()
        return max(1, min(q.shape[2], int(((past * past + 4 * room) ** 0.5 - past) / 2)))

    def _attend_piece(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Tensor | None, scale: float
    ) -> Tensor:
        old, before = self.count, self._used()
        if q.shape[2] == 1:
            self.append(k, v, bias, lengths)
            # All slots, empty ones too: in one run through the memory they take a third of the time of a part of them.
            return _attention(q, *self._first(self._room()), self._filled(), scale)
        keys, values, biases = self._first(before)
        if biases is not None and bias is not None:
            biases = torch.cat([biases, bias.to(torch.float64)], 2)
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        visible = self._visible(old, before, q.shape[2], lengths)
        self.append(k, v, bias, lengths)
        return _attention(q, keys, values, biases, visible, scale)

    def _filled(self) -> Tensor | None:
        """Return which slots hold a token, for all rows at once where they are alike; ``None`` if all do."""
        low, high = _ends(self.count)
        if low >= self._room():
            return None
        count = self.count[:1] if low == high else self.count
        return (torch.arange(self._room(), device=count.device) < count[:, None])[:, None]

    def _visible(self, count: Tensor, used: int, new: int, lengths: Tensor | None) -> Tensor:
        """Return which slots, and which new tokens after them, each new token sees."""
        if lengths is None and _ends(count)[0] == _ends(count)[1]:
            count = count[:1]
        slots = torch.arange(used, device=count.device)
        places = slots.expand(len(count), used)
        band = self._band
        if band is not None and band.left is not None:
            # The latest place up to the last one that falls into the slot.
            last = count[:, None] - 1
            turned = last - (last - slots) % (band.left + 1)
            places = torch.where(slots < band.prefix, slots, turned)
        added = torch.arange(new, device=count.device)
        own = count[:, None] + added
        given = torch.full_like(count, new) if lengths is None else lengths
        exists = torch.cat([slots < count[:, None], added < given[:, None]], 1)
        j = torch.cat([places, own], 1)[:, None]
        i = own[:, :, None]
        seen = exists[:, None] & (j <= i)
        if band is not None and band.left is not None:
            seen = seen & ((i - j <= band.left) | (j < band.prefix))
        return seen

    def _with(self, change: Callable[[Tensor], Tensor]) -> KeyValueState:
        state = KeyValueState()
        state._band, state.count = self._band, change(self.count)
        state._keys = None if self._keys is None else change(self._keys)
        state._values = None if self._values is None else change(self._values)
        state._bias = None if self._bias is None else change(self._bias)
        return state

    def _first(self, used: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys, values and biases of the first slots."""
        if self._keys is None or self._values is None:
            raise TypeError("A state must be prepared before it is used.")
        bias = None if self._bias is None else self._bias[:, :, :used]
        return self._keys[:, :, :used], self._values[:, :, :used], bias

    def _slots(self, places: Tensor) -> Tensor:
        """Return where the tokens at these places of their sequences are kept."""
        band = self._band
        if band is None or band.left is None:
            return places
        turned = band.prefix + (places - band.prefix) % (band.left + 1)
        return torch.where(places < band.prefix, places, turned)

    def _limit(self, count: int) -> int:
        """Return how many slots rows of up to ``count`` tokens fill."""
        band = self._band
        return count if band is None or band.left is None else min(count, band.prefix + band.left + 1)

    def _room(self) -> int:
        return 0 if self._keys is None else self._keys.shape[2]

    def _used(self) -> int:
        return self._limit(_ends(self.count)[1])

    def _reserve(self, count: int) -> None:
        """Make room for rows of ``count`` tokens; when it does not suffice it doubles, up to what is ever needed."""
        if self._keys is None or self._values is None:
            return
        room, needed = self._room(), self._limit(count)
        if needed <= room:
            return
        grown = max(needed, self._limit(max(2 * room, 16)))
        self._keys = _grown(self._keys, grown)
        self._values = _grown(self._values, grown)
        self._bias = None if self._bias is None else _grown(self._bias, grown)


def _ends(counts: Tensor) -> tuple[int, int]:
    """Return the smallest and the largest count."""
    if not len(counts):
        return 0, 0
    low, high = counts.aminmax()
    return int(low), int(high)


def _kind(k: Tensor, v: Tensor, bias: Tensor | None, band: Band | None) -> dict[str, object]:
    """Return what all calls with one state must have in common."""
    return {
        "rows": len(k),
        "key heads": k.shape[1],
        "widths": (k.shape[3], v.shape[3]),
        "type": k.dtype,
        "device": k.device,
        "heads of the bias": None if bias is None else bias.shape[1],
        "window": band,
    }


def _grown(x: Tensor, size: int) -> Tensor:
    """Return the tensor with this many slots, the new ones 0."""
    wide = x.new_zeros(*x.shape[:2], size, *x.shape[3:])
    wide[:, :, : x.shape[2]] = x
    return wide


def _attention(
    q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float
) -> Tensor:
    """Return attention to these keys; ``visible [rows or 1, queries, keys]``, ``None`` for all."""
    if 0 in q.shape or 0 in keys.shape:
        return q.new_zeros(*q.shape[:3], values.shape[3])
    add, sees = _added(bias, visible, q.dtype)
    size = (q.shape[0], keys.shape[1], -1)
    # Query heads that share a key head are further rows of it.
    scores = torch.matmul(q.reshape(*size, q.shape[-1]) * scale, keys.transpose(-1, -2))
    scores = scores.view(*q.shape[:3], -1)
    weights = (scores if add is None else scores.add_(add)).softmax(-1)
    output = torch.matmul(weights.view(*size, weights.shape[-1]), values).view(*q.shape[:3], -1)
    return output if sees is None else output.masked_fill(~sees, 0)


def _added(
    bias: Tensor | None, visible: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Return what to add to the scores, and which queries see a key at all; ``None`` for nothing and for all."""
    if bias is None:
        if visible is None:
            return None, None
        zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return zeros.masked_fill_(~visible, -torch.inf)[:, None], visible.any(-1)[:, None, :, None]
    wide = bias[:, :, None]
    if visible is not None:
        wide = wide.masked_fill(~visible[:, None], -torch.inf)
    top = wide.amax(-1, keepdim=True)
    sees = ~top.isneginf()
    return (wide - top.masked_fill(~sees, 0)).to(dtype), sees
