"""The keys and values that new tokens of growing sequences attend to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqattn.attention.arrivals import NewTokens
from seqattn.attention.pattern import HeadMix, Pattern
from seqattn.attention.ranks import Labels, ranks
from seqattn.attention.tiles import Band, Pairs
from seqattn.errors import ParameterError

# Numbers of scores in one piece of a call with several new tokens per row.
PIECE_SIZE = 2**24


class KeyValueState:
    """Return an empty state: the first call of ``attend`` with it gives it its size.

    It holds what :func:`seqattn.attention.attend` needs of the past when a call brings only the new tokens of each
    sequence. Under a dense pattern, and under labels, it grows with the sequence, its room doubling; under a window it
    is a ring: ``n + left + 1`` keys for ``Local(left) | Prefix(n)``, ``left * dilation + 1`` for ``Dilated``. Rows may
    have different numbers of tokens.

    Notes
    -----
    Key biases and the keys' part of separable ones are kept in float64, and the largest bias that a query sees is taken
    off before they are rounded. So they may grow with time without end: softmax does not change when a whole row is
    shifted. A table of distances is not kept: give it with every call.

    Examples
    --------
    >>> import torch
    >>> from seqattn.attention import attend
    >>> state, token = KeyValueState(), torch.ones(3, 2, 1, 4)
    >>> seen = attend(token, token, token, causal=True, state=state)
    >>> seen.state is state, state.count.tolist()
    (True, [1, 1, 1])
    """

    __slots__ = ("_band", "_bias", "_features", "_keys", "_marks", "_pattern", "_values", "count")

    count: Int[Tensor, " rows"]

    def __init__(self) -> None:
        self.count = torch.zeros(0, dtype=torch.int64)
        self._band: Band | None = None
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._bias: Tensor | None = None
        self._features: Tensor | None = None
        self._marks: Tensor | None = None
        self._pattern: Pattern | None = None

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
        for name, kept in (("bias", self._bias), ("marks", self._marks), ("features", self._features)):
            if kept is not None:
                found[name] = kept[:, :, :used].clone(memory_format=torch.contiguous_format)
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
        state._marks = tensors["marks"].clone() if "marks" in tensors else None
        state._features = tensors["features"].clone() if "features" in tensors else None
        return state

    def prepare(self, new: NewTokens, pattern: Pattern) -> None:
        """Take the sizes of the first call, or check that a further one agrees with it.

        Parameters
        ----------
        new
            The new tokens.
        pattern
            The pattern of the call; what it shows after a query has no meaning here.

        Raises
        ------
        ParameterError
            The state was begun with other sizes, another pattern, or with or without a bias.
        """
        band, k, v = pattern.memory(), new.k, new.v
        if self._keys is None or self._values is None:
            self._band, self.count = band, torch.zeros(len(k), dtype=torch.int64, device=k.device)
            self._keys, self._values = (x.new_zeros(*x.shape[:2], 0, x.shape[3]) for x in (k, v))
            self._bias = _empty(new.bias, torch.float64)
            self._marks = _empty(new.marks, torch.int64)
            self._features = _empty(new.c, torch.float64)
        kept = _kind(self._keys, self._values, self._bias, self._marks, self._features, self._band)
        given = _kind(k, v, new.bias, new.marks, new.c, band)
        if self._pattern is not None and not (pattern.has_labels or self._pattern.has_labels):
            kept["pattern"], given["pattern"] = self._pattern, pattern
        for name, value in given.items():
            if kept[name] != value:
                raise ParameterError(f"The state was begun with {name} {kept[name]}, got {value}.")
        self._pattern = pattern

    def append(self, new: NewTokens) -> None:
        """Keep new tokens, of each row the first ``lengths`` ones; :meth:`prepare` must have been called.

        Parameters
        ----------
        new
            The new tokens.
        """
        size, lengths = new.k.shape[2], new.lengths
        old = self.count
        self.count = old + (size if lengths is None else lengths.to(old.dtype))
        self._reserve(_ends(self.count)[1])
        low, high = _ends(old)
        kept_all = (self._keys, self._values, self._bias, self._marks, self._features)
        both = zip(kept_all, new.channels(), strict=True)
        pairs = [(kept, given) for kept, given in both if kept is not None and given is not None]
        if size == 1 and lengths is None and low == high:
            slot = int(self._slots(old[:1])[0]) if len(old) else 0
            for kept, given in pairs:
                kept[:, :, slot] = given[:, :, 0]
            return
        place = old[:, None] + torch.arange(size, device=old.device)
        stays = place < self.count[:, None]
        if self._band is not None and self._band.left is not None:
            last = self.count[:, None] - self._band.left - 1
            stays = stays & ((place < self._band.prefix) | (place >= last))
        row, token = stays.nonzero(as_tuple=True)
        slots = self._slots(place[row, token])
        for kept, given in pairs:
            kept[row, :, slots] = given[row, :, token].to(kept.dtype)

    def attend(
        self, q: Float[Tensor, "rows heads new dim"], new: NewTokens, scale: float
    ) -> Float[Tensor, "rows heads new value_dim"]:
        """Keep the new tokens and return what each of them attends to; :meth:`prepare` must have been called.

        Parameters
        ----------
        q
            Their queries.
        new
            The new tokens.
        scale
            Factor of the scores.

        Returns
        -------
        Their outputs; 0 where there is no token.
        """
        live = None
        if new.lengths is not None:
            live = torch.arange(q.shape[2], device=q.device) < new.lengths[:, None]
            q, new = q.masked_fill(~live[:, None, :, None], 0), new.live(live)
        piece = self._piece(q, new)
        parts = [
            self._attend_piece(q[:, :, start : start + piece], new.piece(start, piece), scale)
            for start in range(0, max(1, q.shape[2]), piece)
        ]
        output = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
        return output if live is None else output.masked_fill(~live[:, None, :, None], 0)

    def _piece(self, q: Tensor, new: NewTokens) -> int:
        """Return how many tokens are computed at once.

        What is not finite reaches those tokens of a piece that do not see it; so then it is one.
        """
        given = [q, *(x for x in (new.k, new.v, new.a, new.c) if x is not None)]
        given += [] if new.bias is None else [new.bias.clamp(min=-6e4)]
        if q.shape[2] > 1 and not all(bool(x.isfinite().all()) for x in given):
            return 1
        room = max(1, PIECE_SIZE // max(1, q.shape[0] * q.shape[1]))
        # So that a piece times the keys it sees, itself included, fills the room.
        past = self._used()
        return max(1, min(q.shape[2], int(((past * past + 4 * room) ** 0.5 - past) / 2)))

    def _attend_piece(self, q: Tensor, new: NewTokens, scale: float) -> Tensor:
        old, before = self.count, self._used()
        if q.shape[2] == 1 and self._is_band() and new.relative is None:
            self.append(new)
            # All slots, empty ones too: in one run through the memory they take a third of the time of a part of them.
            keys, values, bias, features = self._first(self._room())
            return _attention(q, keys, values, _bias(bias, new.a, features), self._filled(), scale)
        keys, values, *rest = self._first(before)
        bias, features = (
            x if x is None or more is None else torch.cat([x, more.to(torch.float64)], 2)
            for x, more in zip(rest, (new.bias, new.c), strict=True)
        )
        keys, values = torch.cat([keys, new.k], 2), torch.cat([values, new.v], 2)
        visible, distance = self._visible(old, before, new)
        table = None if new.relative is None else new.relative.at(distance).transpose(0, 1)
        self.append(new)
        return _attention(q, keys, values, _bias(bias, new.a, features, table), visible, scale)

    def _is_band(self) -> bool:
        """Return whether all that is kept is visible to the next token."""
        band = None if self._pattern is None else self._pattern.band()
        return band is not None and band.left != -1

    def _filled(self) -> Tensor | None:
        """Return which slots hold a token, for all rows at once where they are alike; ``None`` if all do."""
        low, high = _ends(self.count)
        if low >= self._room():
            return None
        count = self.count[:1] if low == high else self.count
        return (torch.arange(self._room(), device=count.device) < count[:, None])[:, None]

    def _visible(self, count: Tensor, used: int, given: NewTokens) -> tuple[Tensor, Tensor]:
        """Return which slots, and which new tokens after them, each new token sees, and how far they are.

        ``[rows, (heads,) new, keys]``, and ``[rows, new, keys]`` for the distances.
        """
        new, lengths = given.k.shape[2], given.lengths
        if lengths is None and _ends(count)[0] == _ends(count)[1] and self._marks is None:
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
        fresh = torch.full_like(count, new) if lengths is None else lengths
        exists = torch.cat([slots < count[:, None], added < fresh[:, None]], 1)
        j = torch.cat([places, own], 1)[:, None]
        i = own[:, :, None]
        seen = exists[:, None] & (j <= i)
        if band is not None and band.left is not None:
            seen = seen & ((i - j <= band.left) | (j < band.prefix))
        if self._is_band() or self._pattern is None:
            return seen, i - j
        shown = self._shown(self._pattern, i[:, None], j[:, None], exists, given.marks)
        return seen[:, None] & shown, i - j

    def _shown(self, pattern: Pattern, i: Tensor, j: Tensor, exists: Tensor, marks: Tensor | None) -> Tensor:
        """Return what the pattern shows, ``[rows or 1, heads or 1, new, keys]``."""
        if self._marks is None or marks is None:
            shown: Tensor = pattern.visible(i, j)
            return shown[:, :, 0].transpose(0, 1) if isinstance(pattern, HeadMix) else shown
        rows, _, new, _ = i.shape
        size = j.shape[-1]
        # What is in no slot has a label that nobody has.
        labels = torch.cat([self._marks[:, :, : size - new], marks.to(torch.int64)], 2)
        labels = labels.masked_fill(~exists[:, None], torch.iinfo(torch.int64).min)
        each = [x.shape[1] for x in pattern.marks()]
        found = [
            Labels(*(x.transpose(1, 2).flatten(0, 1) for x in (part, _ranks(part, j[:, 0]))))
            for part in labels.split(each, 1)
        ]
        first = (torch.arange(rows, device=i.device) * size)[:, None, None, None]
        query = first + size - new + torch.arange(new, device=i.device)[:, None]
        key = first + torch.arange(size, device=i.device)
        head = torch.arange(max(each), device=i.device)[:, None, None]
        allowed: Tensor = pattern.rule(iter(found)).shows(Pairs(i, j, 0, query, key, head))
        return allowed

    def _with(self, change: Callable[[Tensor], Tensor]) -> KeyValueState:
        state = KeyValueState()
        state._band, state.count = self._band, change(self.count)
        state._keys = None if self._keys is None else change(self._keys)
        state._values = None if self._values is None else change(self._values)
        state._bias = None if self._bias is None else change(self._bias)
        state._marks = None if self._marks is None else change(self._marks)
        state._features = None if self._features is None else change(self._features)
        state._pattern = self._pattern
        return state

    def _first(self, used: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return keys, values, biases and features of the first slots."""
        if self._keys is None or self._values is None:
            raise TypeError("A state must be prepared before it is used.")
        bias = None if self._bias is None else self._bias[:, :, :used]
        features = None if self._features is None else self._features[:, :, :used]
        return self._keys[:, :, :used], self._values[:, :, :used], bias, features

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
        self._marks = None if self._marks is None else _grown(self._marks, grown)
        self._features = None if self._features is None else _grown(self._features, grown)


def _ends(counts: Tensor) -> tuple[int, int]:
    """Return the smallest and the largest count."""
    if not len(counts):
        return 0, 0
    low, high = counts.aminmax()
    return int(low), int(high)


def _ranks(labels: Tensor, places: Tensor) -> Tensor:
    """Return how many earlier tokens have the label, for slots ``[rows, labels, slots]`` at places in any order."""
    order = places.argsort(-1).expand_as(labels)
    found = ranks(labels.gather(-1, order))
    return torch.zeros_like(found).scatter(-1, order, found)


def _empty(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.new_zeros(*x.shape[:2], 0, *x.shape[3:], dtype=dtype)


def _kind(
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    marks: Tensor | None,
    features: Tensor | None,
    band: Band | None,
) -> dict[str, object]:
    """Return what all calls with one state must have in common."""
    return {
        "rows": len(k),
        "key heads": k.shape[1],
        "widths": (k.shape[3], v.shape[3]),
        "type": k.dtype,
        "device": k.device,
        "heads of the bias": None if bias is None else bias.shape[1],
        "heads and rank of the separable bias": None if features is None else features.shape[1::2],
        "labels of a token": None if marks is None else marks.shape[1],
        "window": band,
    }


def _grown(x: Tensor, size: int) -> Tensor:
    """Return the tensor with this many slots, the new ones 0."""
    wide = x.new_zeros(*x.shape[:2], size, *x.shape[3:])
    wide[:, :, : x.shape[2]] = x
    return wide


def _bias(
    key: Tensor | None, a: Tensor | None, c: Tensor | None, table: Tensor | None = None
) -> Tensor | None:
    """Return all biases together, ``[rows or 1, heads or 1, new or 1, keys]`` in float64."""
    terms = [] if key is None else [key[:, :, None]]
    if a is not None and c is not None:
        terms.append(torch.matmul(a.to(torch.float64), c.transpose(-1, -2)))
    terms += [] if table is None else [table.to(torch.float64)]
    if not terms:
        return None
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _attention(
    q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float
) -> Tensor:
    """Return attention to these keys; ``visible [rows or 1, (heads,) queries, keys]``, ``None`` for all."""
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
    if visible is not None and visible.dim() == 3:
        visible = visible[:, None]
    if bias is None:
        if visible is None:
            return None, None
        zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return zeros.masked_fill_(~visible, -torch.inf), visible.any(-1)[..., None]
    wide = bias
    if visible is not None:
        wide = wide.masked_fill(~visible, -torch.inf)
    top = wide.amax(-1, keepdim=True)
    sees = ~top.isneginf()
    return (wide - top.masked_fill(~sees, 0)).to(dtype), sees
