"""The bias of a call in the form in which kernels take it: one term of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import cast

import torch
from torch import Tensor

from seqattn.attention.biases import Bias, DenseBias, KeyBias, Relative, Separable


@dataclass(frozen=True, eq=False)
class Terms:
    """A sum of biases with at most one of each kind; log-priors have become what they are."""

    key: KeyBias | None = None
    separable: Separable | None = None
    relative: Relative | None = None
    dense: DenseBias | None = None

    @classmethod
    def of(cls, bias: Bias | None) -> Terms | None:
        """Return the terms of a checked bias."""
        if bias is None:
            return None
        found: dict[str, Bias] = {}
        for part in bias.parts():
            found[part.kind] = found[part.kind].join(part) if part.kind in found else part
        return cls(**found)  # type: ignore[arg-type]  # each kind is under its own name

    def all(self) -> list[Bias]:
        """Return the terms that there are."""
        each = [cast("Bias | None", getattr(self, field.name)) for field in fields(self)]
        return [term for term in each if term is not None]

    @property
    def kinds(self) -> list[str]:
        """The kinds of the terms."""
        return [term.kind for term in self.all()]

    @property
    def learnt(self) -> list[str]:
        """The kinds of the terms that want a gradient."""
        return [term.kind for term in self.all() if any(x.requires_grad for x in term.tensors())]

    @property
    def has_pairs(self) -> bool:
        """Whether something depends on pairs in a way that no feature can express."""
        return self.relative is not None or self.dense is not None

    def pairs_only(self) -> Terms | None:
        """Return what no feature can express, ``None`` if that is nothing."""
        return Terms(relative=self.relative, dense=self.dense) if self.has_pairs else None

    def of_heads(self, heads: slice) -> Terms:
        """Return the terms of some heads."""
        return Terms(**{term.kind: term.of_heads(heads) for term in self.all()})  # type: ignore[arg-type]

    def per_token(self, change: Callable[[Tensor], Tensor]) -> Terms:
        """Return the terms with all that belongs to tokens changed, for queries and keys that are the same tokens."""
        key = None if self.key is None else KeyBias(change(self.key.values))
        separable = self.separable
        if separable is not None:
            separable = Separable(change(separable.query), change(separable.key))
        return replace(self, key=key, separable=separable)

    def filled(self) -> Terms:
        """Return the terms with 0 in place of what is not finite, except for what hides."""
        return self._each(lambda x: x.masked_fill(odd(x), 0))

    def hiding(self) -> Terms:
        """Return what hides keys and pairs, and nothing else."""
        return replace(
            self._each(lambda x: torch.zeros_like(x).masked_fill(x.isneginf(), -torch.inf)), separable=None
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Terms:
        key, separable, relative, dense = self.key, self.separable, self.relative, self.dense
        return Terms(
            None if key is None else KeyBias(change(key.values)),
            None if separable is None else Separable(change(separable.query), change(separable.key)),
            None if relative is None else replace(relative, table=change(relative.table)),
            None if dense is None else DenseBias(change(dense.values)),
        )

    def spoils(self) -> list[Terms]:
        """Return, for each term of pairs with numbers that are not finite, terms that show those pairs only."""
        found = []
        for kind in ("relative", "dense"):
            term = cast("Relative | DenseBias | None", getattr(self, kind))
            if term is None or not odd(term.tensors()[0]).any():
                continue
            shown = self.hiding()
            part = getattr(self._each(_only_odd), kind)
            found.append(replace(shown, **{kind: part}))
        return found


def odd(x: Tensor) -> Tensor:
    """Return which numbers are neither finite nor ``-inf``, which hides."""
    return ~(x.isfinite() | x.isneginf())


def _only_odd(x: Tensor) -> Tensor:
    return torch.zeros_like(x).masked_fill(~odd(x), -torch.inf)


def pair_scores(
    terms: Terms | None,
    queries: int,
    keys: int,
    rows: Tensor | None = None,
    live: Tensor | None = None,
    used: Tensor | None = None,
) -> Tensor | None:
    """Return what relative and dense terms add to the scores, ``[rows or 1, heads or 1, queries, keys]``.

    Parameters
    ----------
    terms
        The bias of a call.
    queries, keys
        Size of the rectangle.
    rows
        Which sequences stand in the rectangle; ``None`` for all.
    live, used
        Queries ``[rows, 1, queries]`` and keys ``[rows, 1, keys]`` that are no padding; ``None`` for all.
    """
    if terms is None:
        return None
    found = None if terms.relative is None else terms.relative.toeplitz(queries, keys)[None]
    if terms.dense is None:
        return found
    dense = terms.dense.values[..., :queries, :keys]
    if len(dense) > 1 and rows is not None:
        dense = dense.index_select(0, rows)
    for inside, axis in ((live, -1), (used, -2)):
        if inside is not None:
            # Shared by all rows, only what is padding in each of them is.
            inside = inside.any(0, keepdim=True) if len(dense) == 1 else inside
            dense = dense.masked_fill(~inside.unsqueeze(axis), 0)
    return dense if found is None else found + dense
