"""Routing k-means: tokens of one cluster see each other, and the clusters are learnt beside the model.

A :class:`Router` holds the centroids of one layer and turns its queries into labels; what is computed then is
:class:`seqattn.attention.Segments` with a window. Nothing of a later token takes part, so the pattern is causal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqattn.attention.layout import Layout
from seqattn.attention.pattern import HeadMix, Pair, Pattern
from seqattn.attention.patterns import Segments
from seqattn.attention.tiles import Run
from seqattn.errors import ParameterError

__all__ = ["Router", "Routing", "bind", "routings", "update_routers"]

# A centroid is dead when it got less than this share of the mean number of tokens.
DEAD = 0.01


@dataclass(frozen=True)
class Routing(Pattern):
    r"""Every query sees the nearest keys of its own cluster.

    Tokens are clustered per head by the direction of their queries, :math:`a_i = \arg\max_c \mu_c \cdot q_i / |q_i|`.
    Which clusters there are is learnt, so a call takes ``Segments(router(q), window)``; models make and update the
    :class:`Router` of each layer themselves.

    Parameters
    ----------
    clusters
        Number of clusters per head; 1 or more.
    window
        Of the tokens of its cluster a query sees so many before it, and without ``causal`` after it; 0 or more.

    Raises
    ------
    ParameterError
        A number is too small.

    Notes
    -----
    The published form gives each centroid its highest scoring tokens, so that a later token can push an earlier one out
    of its cluster, which no causal model may do. Here every token chooses, and the window bounds the work.

    References
    ----------
    Roy et al. (2020), Efficient content-based sparse attention with routing transformers, section 4.
    """

    clusters: int = 16
    window: int = 128

    name = "routing"
    cross = False
    has_labels = True
    by_head = True

    def __post_init__(self) -> None:
        for name, value, least in (("clusters", self.clusters, 1), ("window", self.window, 0)):
            if isinstance(value, bool) or value != int(value) or value < least:
                raise ParameterError(
                    f"{name} of Routing must be a whole number, {least} or more, got {value!r}."
                )

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        raise ParameterError(_UNBOUND)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        raise ParameterError(_UNBOUND)


_UNBOUND = "Routing has no labels yet. Pass Segments(router(q), window) with a Router of the layer."


class Router(nn.Module):
    r"""Return the cluster of each token and head, and follow the tokens by exponential means.

    .. math:: S_c \leftarrow \lambda S_c + (1 - \lambda) \sum_{a_i = c} \hat q_i, \qquad \mu_c = S_c / |S_c|

    Nothing is learnt by gradients. In training mode every call collects its tokens, and :meth:`update` takes them in:
    once per step of the optimiser, however many calls there were.

    Parameters
    ----------
    n_heads
        Number of heads, each with centroids of its own.
    clusters
        Number of centroids of a head.
    dim
        Width of a head.
    decay
        Weight :math:`\lambda` of the past in one update, from 0 to below 1.

    Raises
    ------
    ParameterError
        ``decay`` is out of range.

    References
    ----------
    Roy et al. (2020), section 4.1; there without the norm after an update, which lets long centroids attract more.
    """

    centroids: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, n_heads: int, clusters: int, dim: int, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ParameterError(f"decay={decay!r} is not allowed. Give a share from 0 to below 1.")
        self.decay = decay
        start = nn.functional.normalize(torch.randn(n_heads, clusters, dim), dim=-1)
        self.register_buffer("centroids", start)
        self.register_buffer("sums", start.clone())
        self.register_buffer("counts", torch.ones(n_heads, clusters))
        self._seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def forward(self, q: Float[Tensor, "*tokens heads dim"]) -> Int[Tensor, "*tokens heads"]:
        """Return the number of the cluster of each token in each head.

        Parameters
        ----------
        q
            Queries; only their direction counts.
        """
        points = nn.functional.normalize(q.detach().to(self.centroids.dtype), dim=-1)
        labels = torch.einsum("...hd,hcd->...hc", points, self.centroids).argmax(-1)
        # In a backward pass this is a recomputation of a call that was counted before.
        if self.training and torch._C._current_graph_task_id() == -1:
            heads, _, dim = self.centroids.shape
            self._seen.append((points.reshape(-1, heads, dim), labels.reshape(-1, heads)))
        return labels

    @torch.no_grad()
    def update(self, add: Callable[[list[Tensor]], list[Tensor]] | None = None) -> None:
        """Move the centroids to the tokens seen since the last update.

        Parameters
        ----------
        add
            Sums tensors over processes that each saw some tokens.
        """
        sums, counts = torch.zeros_like(self.sums), torch.zeros_like(self.counts)
        heads = torch.arange(self.counts.shape[0], device=self.counts.device)
        for points, labels in self._seen:
            place = (heads.expand_as(labels), labels)
            sums.index_put_(place, points, accumulate=True)
            counts.index_put_(place, torch.ones_like(points[..., 0]), accumulate=True)
        spare = self._spare()
        self._seen.clear()
        if add is not None:
            sums, counts, spare = add([sums, counts, spare])
        if not counts.any():
            return
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        dead = self.counts < DEAD * self.counts.mean(1, keepdim=True)
        self.sums[dead], self.counts[dead] = (
            spare[dead],
            self.counts.mean(1, keepdim=True).expand_as(dead)[dead],
        )
        self.centroids.copy_(nn.functional.normalize(self.sums, dim=-1))

    def _spare(self) -> Tensor:
        """Return random tokens in place of dead centroids."""
        if not self._seen or not sum(len(points) for points, _ in self._seen):
            return torch.zeros_like(self.sums)
        points = torch.cat([points for points, _ in self._seen])
        heads, clusters = self.counts.shape
        chosen = torch.randint(len(points), (heads, clusters), device=points.device)
        return points[chosen, torch.arange(heads, device=points.device)[:, None]]

    def usage(self) -> dict[str, float]:
        """Return how evenly the clusters are used, averaged over the heads.

        Returns
        -------
        ``entropy`` of the shares over that of equal ones, from 0 to 1; ``largest`` share over the mean share; ``dead``,
        the share of clusters below a hundredth of the mean.
        """
        shares = self.counts / self.counts.sum(1, keepdim=True)
        clusters = shares.shape[1]
        entropy = -(shares * shares.clamp(min=1e-30).log()).sum(1)
        even = torch.log(torch.tensor(float(clusters)))
        return {
            "entropy": float((entropy / even).mean()) if clusters > 1 else 1.0,
            "largest": float((shares.amax(1) * clusters).mean()),
            "dead": float((shares * clusters < DEAD).float().mean()),
        }


def routings(pattern: Pattern, heads: int) -> Iterator[tuple[Routing, int]]:
    """Return every routing in a pattern, in the order of :func:`bind`, with the number of its heads.

    Parameters
    ----------
    pattern
        Any pattern.
    heads
        Number of heads that have it.
    """
    if isinstance(pattern, Routing):
        yield pattern, heads
    elif isinstance(pattern, Pair):
        yield from routings(pattern.first, heads)
        yield from routings(pattern.second, heads)
    elif isinstance(pattern, HeadMix):
        for count, part in pattern.parts:
            yield from routings(part, count)


def bind(pattern: Pattern, q: Float[Tensor, "*tokens heads dim"], routers: Iterator[Router]) -> Pattern:
    """Return the pattern with every routing replaced by the segments that its router finds.

    Parameters
    ----------
    pattern
        Any pattern.
    q
        Queries of the heads that have it.
    routers
        One per routing, in the order of :func:`routings`.
    """
    if isinstance(pattern, Routing):
        return Segments(next(routers)(q), pattern.window)
    if isinstance(pattern, Pair):
        first = bind(pattern.first, q, routers)
        return replace(pattern, first=first, second=bind(pattern.second, q, routers))
    if isinstance(pattern, HeadMix):
        bound = [bind(part, q[..., heads, :], routers) for heads, part in pattern.slices()]
        counts = [count for count, _ in pattern.parts]
        return replace(pattern, parts=tuple(zip(counts, bound, strict=True)))
    return pattern


def update_routers(module: nn.Module, add: Callable[[list[Tensor]], list[Tensor]] | None = None) -> None:
    """Update all routers of a module; once after each step of the optimiser.

    Parameters
    ----------
    module
        The model.
    add
        As for :meth:`Router.update`.
    """
    for part in module.modules():
        if isinstance(part, Router):
            part.update(add)
