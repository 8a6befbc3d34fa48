"""The network: two branches of attention over a history, one asked by an item and one by the mean of the last few.

Everything runs on packed sequences: the histories of a batch stand end to end, nothing is padded. Positions are
counted from the end of the history, so that a short one uses the last rows of the table of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqattn.attention import Attention, Layout, Reducer, attend
from seqattn.attention.named import as_pattern
from seqattn.attention.pattern import Pattern
from seqattn.attention.patterns import Dense, places
from seqattn.attention.router import Router
from seqattn.attention.routing import bind, routings

__all__ = ["HistoryBatch", "Members", "MultiQueryNetwork", "window_mean"]


@dataclass(frozen=True)
class HistoryBatch:
    """Histories side by side, without padding.

    Attributes
    ----------
    items
        Codes of items in the order of time.
    layout
        Where each history lies. None is longer than the network's table of positions.
    targets
        The item that follows each one; None where nothing is to be learnt.
    """

    items: Int[Tensor, " tokens"]
    layout: Layout
    targets: Int[Tensor, " tokens"] | None = None

    @classmethod
    def of(cls, histories: list[np.ndarray]) -> HistoryBatch:
        """Return a batch of histories, without targets.

        Parameters
        ----------
        histories
            Codes of items of each.
        """
        lengths = [len(history) for history in histories]
        items = np.concatenate([np.zeros(0, np.int64), *histories]).astype(np.int64)
        return cls(torch.from_numpy(items), Layout.of(lengths))

    def __len__(self) -> int:
        return len(self.layout)

    def to(self, device: torch.device | str) -> HistoryBatch:
        """Return the batch on a device.

        Parameters
        ----------
        device
            Where to put the tensors.
        """
        if torch.device(device) == self.items.device:
            return self
        targets = None if self.targets is None else self.targets.to(device)
        return HistoryBatch(self.items.to(device), Layout.of(self.layout.lengths, device), targets)


def window_mean(x: Float[Tensor, "tokens dim"], layout: Layout, window: int) -> Float[Tensor, "tokens dim"]:
    r"""Return the mean of each token and those just before it in its sequence.

    .. math:: h_t = \frac{1}{\min(L, t + 1)} \sum_{l = 0}^{\min(L, t + 1) - 1} x_{t - l}

    Parameters
    ----------
    x
        The sequences, end to end.
    layout
        Where they lie.
    window
        :math:`L`; 1 returns ``x``. The time taken does not depend on it.

    Examples
    --------
    >>> x = torch.tensor([[2.0], [4.0], [9.0], [1.0]])
    >>> window_mean(x, Layout.of([3, 1]), 2).flatten().tolist()
    [2.0, 3.0, 6.5, 1.0]
    """
    if window == 1:
        return x
    width = (_places(layout) + 1).clamp(max=window)
    last = torch.arange(len(x), device=x.device)
    # In float64, so that what stands before a sequence moves no digit of its means.
    total = torch.cat([x.new_zeros(1, x.shape[1], dtype=torch.float64), x.double().cumsum(0)])
    sums = total[1:] - total.index_select(0, last + 1 - width)
    return (sums / width[:, None]).to(x.dtype)


def _places(layout: Layout) -> Tensor:
    """Return the place of each token in its sequence."""
    found: Tensor = layout.keep("places", lambda: torch.from_numpy(places(layout)).to(layout.offsets.device))
    return found


class QueryBlock(nn.Module):
    r"""Return tokens after attention whose queries come from window means, and after a feed-forward map.

    .. math:: q = \mathrm{LN}(h), \qquad
        o = \mathrm{LN}\bigl(\mathrm{attention}(q W_q + b_q, x W_k + b_k, x W_v + b_v) + q\bigr), \qquad
        y = o + W_2\, \mathrm{relu}(W_1 o)

    Only the query side is normed, and what is added to the attention is the normed source of the query, not x.

    Parameters
    ----------
    d_model
        Width; a multiple of ``n_heads``.
    n_heads
        Number of heads. There is no map after them.
    window
        How many items a query is the mean of; 1 for the item itself.
    dropout
        Share of weights and units dropped while training.
    eps
        What the norms add to the variance.
    attention
        Who may see whom, besides that none sees a later one.
    """

    def __init__(
        self, d_model: int, n_heads: int, window: int, dropout: float, eps: float, attention: str | Pattern
    ) -> None:
        super().__init__()
        self.n_heads, self.window, self.pattern = n_heads, window, attention
        self.norm_query = nn.LayerNorm(d_model, eps)
        self.query, self.key, self.value = (_linear(d_model) for _ in range(3))
        self.norm_output = nn.LayerNorm(d_model, eps)
        self.inner, self.outer = _linear(d_model), _linear(d_model)
        self.dropout = nn.Dropout(dropout)
        self.routers = nn.ModuleList(
            routing.router(heads, d_model // n_heads)
            for routing, heads in routings(as_pattern(attention), n_heads)
        )

    def forward(self, x: Float[Tensor, "tokens dim"], layout: Layout) -> Float[Tensor, "tokens dim"]:
        """Return the tokens after this block; no token depends on a later one."""
        source, q, k, v = self._projected(x, layout)
        dropped = self.dropout.p if self.training else 0.0
        seen = attend(q, k, v, pattern=self._pattern(q, layout), causal=True, layout=layout, dropout=dropped)
        return self._finished(seen.output.reshape(x.shape) + source)

    @property
    def can_ask_once(self) -> bool:
        """Whether the last query can be asked alone: not where the others decide who sees whom."""
        return not len(self.routers) and isinstance(as_pattern(self.pattern), Dense)

    def last(
        self, x: Float[Tensor, "tokens dim"], layout: Layout, ends: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """Return what :meth:`forward` has for the last token of each sequence, at the cost of one query each.

        Parameters
        ----------
        x, layout
            As in :meth:`forward`; no sequence is empty.
        ends
            The last tokens.
        """
        source = self.norm_query(window_mean(x, layout, self.window).index_select(0, ends))
        q, k, v = (
            each.view(len(each), self.n_heads, -1)
            for each in (self.query(source), self.key(x), self.value(x))
        )
        single = layout.keep("single", lambda: Layout.of([1] * len(layout), x.device))
        dropped = self.dropout.p if self.training else 0.0
        seen = attend(
            q,
            k,
            v,
            pattern=self.pattern,
            causal=True,
            layout=single,
            key_layout=layout,
            dropout=dropped,
        )
        return self._finished(seen.output.reshape(source.shape) + source)

    def _finished(self, summed: Tensor) -> Tensor:
        o = self.norm_output(summed)
        return o + self.dropout(self.outer(self.dropout(self.inner(o).relu())))

    def look(self, x: Float[Tensor, "tokens dim"], layout: Layout, *, reduce: Reducer) -> Attention:
        """Return what the heads see, without dropout, and what a reducer makes of the weights.

        Parameters
        ----------
        x, layout
            As in :meth:`forward`.
        reduce
            The reducer.
        """
        _, q, k, v = self._projected(x, layout)
        return attend(q, k, v, pattern=self._pattern(q, layout), causal=True, layout=layout, reduce=reduce)

    def _projected(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the source of the queries, queries, keys and values."""
        source = self.norm_query(window_mean(x, layout, self.window))
        q, k, v = (
            each.view(len(x), self.n_heads, -1) for each in (self.query(source), self.key(x), self.value(x))
        )
        return source, q, k, v

    def _pattern(self, q: Tensor, layout: Layout) -> str | Pattern:
        """Return the pattern, with the labels that the routers give these queries."""
        if not len(self.routers):
            return self.pattern
        routers = iter(cast(Iterable[Router], self.routers))
        return bind(as_pattern(self.pattern), q, routers, _places(layout))


def _linear(width: int) -> nn.Linear:
    """Return a map with Glorot's uniform weights and no bias yet."""
    layer = nn.Linear(width, width)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Branch(nn.Module):
    """Return tokens after blocks whose queries are means of the same number of items, and after a norm.

    Parameters
    ----------
    n_layers
        Number of blocks.
    d_model, n_heads, window, dropout, eps, attention
        As in :class:`QueryBlock`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_layers: int,
        window: int,
        dropout: float,
        eps: float,
        attention: str | Pattern,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            QueryBlock(d_model, n_heads, window, dropout, eps, attention) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model, eps)

    def forward(self, x: Float[Tensor, "tokens dim"], layout: Layout) -> Float[Tensor, "tokens dim"]:
        """Return the tokens after this branch."""
        for block in self.blocks:
            x = block(x, layout)
        return self.norm(x)

    def last(
        self, x: Float[Tensor, "tokens dim"], layout: Layout, ends: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the last token of each sequence after this branch.

        Parameters
        ----------
        x, layout, ends
            As in :meth:`QueryBlock.last`.
        """
        *before, final = cast(Iterable[QueryBlock], self.blocks)
        for block in before:
            x = block(x, layout)
        found = final.last(x, layout, ends) if final.can_ask_once else final(x, layout).index_select(0, ends)
        return self.norm(found)


class MultiQueryNetwork(nn.Module):
    r"""Return the state of each item of a history, whose product with an item's embedding is that item's score.

    .. math:: x_t = \mathrm{drop}(\sqrt{d}\, E_{i_t} + P_t), \qquad
        s_t = \alpha \, \mathrm{short}(x)_t + (1 - \alpha) \, \mathrm{long}(x)_t, \qquad
        \mathrm{score}_{tj} = s_t \cdot E_j

    The short branch asks with the item, the long one with the mean of the last ``window`` items.

    Parameters
    ----------
    n_items
        Size of the catalogue.
    d_model, n_heads, n_layers
        Width, heads and blocks of both branches.
    max_len
        Longest history.
    window
        How many items a query of the long branch is the mean of.
    alpha
        :math:`\alpha`. At 1 there is no long branch, at 0 no short one.
    dropout, eps, attention
        As in :class:`QueryBlock`.

    Notes
    -----
    A norm's small number of 1e-24, as the authors have it, needs float32 or more. The norms compute in float32 under
    autocast.

    References
    ----------
    Zhu et al. (2024), WSDM, arXiv 2311.01056.
    """

    def __init__(
        self,
        n_items: int,
        *,
        d_model: int = 64,
        n_heads: int = 1,
        n_layers: int = 1,
        max_len: int = 50,
        window: int = 3,
        alpha: float = 0.5,
        dropout: float = 0.5,
        eps: float = 1e-6,
        attention: str | Pattern = "dense",
    ) -> None:
        super().__init__()
        self.alpha, self.max_len = alpha, max_len
        self.table = nn.Parameter(torch.empty(n_items, d_model).normal_(0, 0.01))
        self.positions = nn.Parameter(torch.empty(max_len, d_model).normal_(0, 0.01))
        shape = (d_model, n_heads, n_layers)
        self.short = Branch(*shape, 1, dropout, eps, attention) if alpha > 0 else None
        self.long = Branch(*shape, window, dropout, eps, attention) if alpha < 1 else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: HistoryBatch) -> Float[Tensor, "tokens dim"]:
        """Return the state of every item of the histories, which depends on it and on earlier ones only.

        Parameters
        ----------
        batch
            The histories.
        """
        return self.states(self.table.index_select(0, batch.items), batch.layout)

    def states(self, embedded: Float[Tensor, "tokens dim"], layout: Layout) -> Float[Tensor, "tokens dim"]:
        """Return the states of items whose embeddings are at hand.

        Parameters
        ----------
        embedded
            Rows of the table, one per item of the histories.
        layout
            Where the histories lie.
        """
        x = self._placed(embedded, layout)
        return self._mixed(lambda branch: branch(x, layout))

    def _placed(self, embedded: Tensor, layout: Layout) -> Tensor:
        from_end = self.positions.index_select(0, self._positions(layout))
        x: Tensor = self.dropout(embedded * embedded.shape[1] ** 0.5 + from_end)
        return x

    def _mixed(self, states: Callable[[Branch], Tensor]) -> Tensor:
        """Return what a branch gives, or what both give, mixed."""
        if self.short is None or self.alpha == 0:
            return states(cast(Branch, self.long))
        if self.long is None or self.alpha == 1:
            return states(self.short)
        return torch.lerp(states(self.long), states(self.short), self.alpha)

    def last_states(self, batch: HistoryBatch) -> Float[Tensor, "batch dim"]:
        """Return the state after the whole of each history, 0 where it is empty.

        Parameters
        ----------
        batch
            The histories.
        """
        lengths = batch.layout.lengths
        full = lengths > 0
        layout = batch.layout if full.all() else Layout.of(lengths[full], batch.items.device)
        x = self._placed(self.table.index_select(0, batch.items), layout)
        ends = torch.from_numpy(np.cumsum(lengths[full]) - 1).to(x.device)
        found = x.new_zeros(len(batch), x.shape[1])
        if len(ends):
            states = self._mixed(lambda branch: branch.last(x, layout, ends))
            found[torch.from_numpy(full).to(x.device)] = states.to(found.dtype)
        return found

    def _positions(self, layout: Layout) -> Tensor:
        """Return the row of the table of positions of each token, counted from the end of its history."""

        def rows() -> Tensor:
            first = np.repeat(self.max_len - layout.lengths, layout.lengths)
            return torch.from_numpy(first + places(layout)).to(layout.offsets.device)

        found: Tensor = layout.keep(("positions", self.max_len), rows)
        return found


class Members(nn.Module):
    r"""Networks that differ in their first weights and draws, whose scores are averaged.

    .. math:: \frac{1}{M} \sum_m s^m \cdot E^m_j

    which is one product of their states, side by side, with their tables, side by side.

    Parameters
    ----------
    networks
        The networks, of one catalogue.
    """

    def __init__(self, networks: Iterable[MultiQueryNetwork]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.max_len = max(cast(MultiQueryNetwork, network).max_len for network in self.networks)

    @property
    def table(self) -> Float[Tensor, "items width"]:
        """The tables of the networks side by side."""
        return torch.cat([cast(MultiQueryNetwork, network).table for network in self.networks], 1)

    def last_states(self, batch: HistoryBatch) -> Float[Tensor, "batch width"]:
        """Return the states after the whole of each history side by side, over the number of networks.

        Parameters
        ----------
        batch
            The histories.
        """
        found = [cast(MultiQueryNetwork, network).last_states(batch) for network in self.networks]
        return torch.cat(found, 1) / len(found)
