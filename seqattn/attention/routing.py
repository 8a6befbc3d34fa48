"""Routing k-means: tokens of one cluster see each other, and the clusters are learnt beside the model.

A :class:`seqattn.attention.Router` holds the centroids of one layer and turns its queries into labels or scores; what
is computed then is a pattern made of them, which :meth:`Routing.bind` gives. Unless said otherwise nothing of a later
token takes part, so the pattern is causal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqattn.attention.experts import Experts
from seqattn.attention.layout import Layout
from seqattn.attention.pattern import HeadMix, Pair, Pattern, check_whole
from seqattn.attention.patterns import Segments
from seqattn.attention.router import Router, check_commitment
from seqattn.attention.sorted import SortedChunks
from seqattn.attention.tiles import Run
from seqattn.errors import ParameterError, suggest

__all__ = ["MODES", "Routing", "bind", "routings"]

MODES = ("token", "random", "sorted", "expert")


@dataclass(frozen=True)
class Routing(Pattern):
    r"""Every query sees the nearest keys of its own cluster.

    Tokens are clustered per head by the direction of their queries, :math:`a_i = \arg\max_c \mu_c \cdot q_i / |q_i|`.
    Which clusters there are is learnt, so a call takes what :meth:`bind` makes of it; models make and update the
    :class:`seqattn.attention.Router` of each layer themselves.

    ======== ===================================================== ====== =============================================
    mode     who sees whom                                         causal computed as
    ======== ===================================================== ====== =============================================
    token    tokens of one cluster, ``window`` before and after    yes    ``Segments(router(q), window)``
    random   the same with random clusters of the same shares      yes    ``Segments(router.draw(places), window)``
    sorted   tokens sorted by cluster, chunks of ``window``, own   no     ``SortedChunks(router(q), window)``
             chunk and next
    expert   the ``window`` tokens nearest to a centroid, averaged leaks  ``Experts(router.scores(q), window)``
             over the centroids of a token
    ======== ===================================================== ====== =============================================

    Whoever finds that routing helps should train the same model with ``mode="random"``: what remains then is due to
    sparse attention as such, not to the clusters.

    Parameters
    ----------
    clusters
        Number of clusters per head; 1 or more.
    window
        Of the tokens of its cluster a query sees so many before it, and without ``causal`` after it; 0 or more. With
        ``"sorted"`` the tokens of a chunk, with ``"expert"`` those of a centroid, 1 or more.
    mode
        ``"token"``, ``"random"``, ``"sorted"`` or ``"expert"``.
    commitment
        Factor of the squared distance of queries from their centroids in the training loss, 0 or more; 1e-4 in the
        published program. See :class:`seqattn.attention.Router`.
    allow_leak
        Whether ``"expert"`` may be used in causal models, where later tokens then change earlier outputs.

    Raises
    ------
    ParameterError
        A number is too small, there is no such mode, or a leak is allowed where there is none.

    Notes
    -----
    The published form is ``"expert"``: each centroid takes its highest scoring tokens, so that a later token can push
    an earlier one out of its cluster, which no causal model may do. With ``"token"`` every token chooses, each sees at
    least itself, and the window bounds the work.

    Deviations of ``"expert"`` from the published program: directions of queries in place of a layer norm (which also
    takes the mean off); the model's own keys, where the program puts queries in place of keys in causal models;
    the usual factor of the scores, with which a query does not see itself alone; centroids of length 1; outputs
    divided by the exact number of clusters and not by 0.01 more; causality by place. ``x = layer_norm(q)``,
    ``attend(x, x, v, pattern=Routing(c, w, mode="expert", allow_leak=True).bind(router, x), causal=True, scale=1)``
    comes nearest to it.

    ``"token"`` works without the commitment. On tokens of 16 topics (``benchmarks/routing_clusters.py``, three seeds)
    no cluster died and their use stayed as even (entropy 0.90 to 0.99) with factors of 0, 1e-4 and 1e-2; the loss after
    400 steps was 0.45 to 0.50, 0.43 to 0.47 and 0.40 to 0.44 nats. So 1e-2 is worth a try, and 0 is the default.

    The fit loop of the package moves the centroids and adds the commitment. A loop of one's own calls
    ``seqattn.attention.router.update_routers(model)`` after each step of the optimiser, and adds
    ``commitment_loss(model)`` of that module to the sum of its losses before the gradient.

    References
    ----------
    Roy et al. (2020), Efficient content-based sparse attention with routing transformers, section 4.

    Examples
    --------
    >>> import torch
    >>> from seqattn.attention import Layout, Router, attend
    >>> routing, q = Routing(4, window=8), torch.ones(10, 2, 16)
    >>> router = routing.router(n_heads=2, dim=16)
    >>> attend(q, q, q, pattern=routing.bind(router, q), causal=True, layout=Layout.of([10])).output.shape
    torch.Size([10, 2, 16])
    """

    clusters: int = 16
    window: int = 128
    mode: str = "token"
    commitment: float = 0.0
    allow_leak: bool = False

    name = "routing"
    cross = False
    has_labels = True
    by_head = True
    is_tiled = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ParameterError(
                f"mode={self.mode!r} of Routing is unknown. Use one of {MODES}.{suggest(str(self.mode), MODES)}"
            )
        if self.allow_leak and self.mode != "expert":
            raise ParameterError(
                f"allow_leak=True has no meaning with mode={self.mode!r}, which does not leak."
            )
        least = 1 if self.mode in ("sorted", "expert") else 0
        check_whole("Routing", "clusters", self.clusters, 1)
        check_whole("Routing", "window", self.window, least)
        check_commitment(self.commitment)
        object.__setattr__(self, "causal", self.mode in ("token", "random") or self.allow_leak)
        object.__setattr__(self, "is_alone", self.mode in ("sorted", "expert"))
        advice = {"sorted": SortedChunks.advice, "expert": Experts.advice}.get(self.mode, Pattern.advice)
        object.__setattr__(self, "advice", advice)

    def visible(self, i: Any, j: Any, n: Any = 0) -> Any:
        raise ParameterError(_UNBOUND)

    def runs(self, layout: Layout, heads: int) -> tuple[Run, ...]:
        raise ParameterError(_UNBOUND)

    def router(self, n_heads: int, dim: int) -> Router:
        """Return a new router of the right size.

        Parameters
        ----------
        n_heads
            Number of heads.
        dim
            Width of a head.
        """
        return Router(n_heads, self.clusters, dim, commitment=self.commitment)

    def bind(
        self,
        router: Router,
        q: Float[Tensor, "*tokens heads dim"],
        places: Int[Tensor, "*tokens"] | None = None,
    ) -> Pattern:
        """Return the pattern for the queries of a call.

        Parameters
        ----------
        router
            Centroids of the layer; it collects the queries while training.
        q
            Queries.
        places
            Place of each token in its sequence, from 0; only for ``mode="random"``.

        Raises
        ------
        ParameterError
            ``mode="random"`` and no places.
        """
        if self.mode == "expert":
            return Experts(router.scores(q), self.window, self.allow_leak)
        labels = router(q)
        if self.mode == "random":
            if places is None:
                raise ParameterError("mode='random' of Routing needs the places of the tokens, got none.")
            labels = router.draw(places)
        return SortedChunks(labels, self.window) if self.mode == "sorted" else Segments(labels, self.window)


def supposed(pattern: Pattern, size: Sequence[int], heads: int, device: torch.device) -> Pattern:
    """Return the pattern with random labels or scores in place of those of a router, to tell what it costs.

    Parameters
    ----------
    pattern
        Any pattern.
    size
        ``[tokens]`` of packed or ``[batch, length]`` of padded queries.
    heads
        Number of heads that have it.
    device
        Where the queries are.
    """
    if isinstance(pattern, Routing):
        draw = torch.Generator().manual_seed(0)
        if pattern.mode == "expert":
            scores = torch.rand(*size, heads, pattern.clusters, generator=draw).to(device)
            return Experts(scores, pattern.window, pattern.allow_leak)
        labels = torch.randint(pattern.clusters, (*size, heads), generator=draw).to(device)
        kind = SortedChunks if pattern.mode == "sorted" else Segments
        return kind(labels, pattern.window)
    if isinstance(pattern, Pair):
        first, second = (supposed(part, size, heads, device) for part in (pattern.first, pattern.second))
        return replace(pattern, first=first, second=second)
    if isinstance(pattern, HeadMix):
        parts = tuple((count, supposed(part, size, count, device)) for count, part in pattern.parts)
        return replace(pattern, parts=parts)
    return pattern


_UNBOUND = (
    "Routing has no labels yet. Pass Segments(router(q), window) with a Router of the layer, or "
    "Routing(...).bind(router, q) for any mode."
)


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


def bind(
    pattern: Pattern,
    q: Float[Tensor, "*tokens heads dim"],
    routers: Iterator[Router],
    places: Int[Tensor, "*tokens"] | None = None,
) -> Pattern:
    """Return the pattern with every routing replaced by what its router makes of the queries.

    Parameters
    ----------
    pattern
        Any pattern.
    q
        Queries of the heads that have it.
    routers
        One per routing, in the order of :func:`routings`.
    places
        Place of each token in its sequence, from 0; only for random clusters.
    """
    if isinstance(pattern, Routing):
        return pattern.bind(next(routers), q, places)
    if isinstance(pattern, Pair):
        first = bind(pattern.first, q, routers, places)
        return replace(pattern, first=first, second=bind(pattern.second, q, routers, places))
    if isinstance(pattern, HeadMix):
        bound = [bind(part, q[..., heads, :], routers, places) for heads, part in pattern.slices()]
        counts = [count for count, _ in pattern.parts]
        return replace(pattern, parts=tuple(zip(counts, bound, strict=True)))
    return pattern
