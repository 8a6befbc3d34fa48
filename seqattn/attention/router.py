"""Centroids that follow the tokens of a layer: they sort them into clusters, and are learnt beside the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqattn.errors import ParameterError

__all__ = ["USAGE", "Router", "commitment_loss", "router_usage", "update_routers"]

# A centroid is dead when it got less than this share of the mean number of tokens.
DEAD = 0.01
USAGE = {"router": str, "heads": int, "clusters": int, "entropy": float, "largest": float, "dead": float}
"""What :func:`router_usage` says of a router."""


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
    commitment
        Factor of :math:`|\hat q_i - \mu_{a_i}|^2`, mean of the heads, in the training loss of each token, which draws
        queries to their centroids; 0 or more. See :func:`commitment_loss`.

    Attributes
    ----------
    initialised
        Whether the centroids come from tokens: after :meth:`initialise` or the first update. Saved with them.

    Raises
    ------
    ParameterError
        ``decay`` or ``commitment`` is out of range.

    References
    ----------
    Roy et al. (2020), section 4.1; there without the norm after an update, which lets long centroids attract more.
    """

    centroids: Tensor
    sums: Tensor
    counts: Tensor
    initialised: Tensor
    salt: Tensor
    new_sums: Tensor
    new_counts: Tensor

    def __init__(
        self, n_heads: int, clusters: int, dim: int, decay: float = 0.999, commitment: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ParameterError(f"decay={decay!r} is not allowed. Give a share from 0 to below 1.")
        check_commitment(commitment)
        self.decay, self.commitment = decay, commitment
        start = nn.functional.normalize(torch.randn(n_heads, clusters, dim), dim=-1)
        self.register_buffer("centroids", start)
        self.register_buffer("sums", start.clone())
        self.register_buffer("counts", torch.ones(n_heads, clusters))
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("salt", torch.randint(2**62, ()))
        self.register_buffer("new_sums", torch.zeros_like(start), persistent=False)
        self.register_buffer("new_counts", torch.zeros(n_heads, clusters), persistent=False)
        self._latest: Tensor | None = None
        self._losses: list[Tensor] = []

    def forward(self, q: Float[Tensor, "*tokens heads dim"]) -> Int[Tensor, "*tokens heads"]:
        """Return the number of the cluster of each token in each head.

        Parameters
        ----------
        q
            Queries; only their direction counts.
        """
        return self._look(q)[1]

    def scores(self, q: Float[Tensor, "*tokens heads dim"]) -> Float[Tensor, "*tokens heads clusters"]:
        """Return how near each token is to each centroid: the cosine of their angle.

        Parameters
        ----------
        q
            Queries; only their direction counts.
        """
        return self._look(q)[0]

    def draw(self, places: Int[Tensor, "*tokens"]) -> Int[Tensor, "*tokens heads"]:
        """Return random clusters, as often as tokens chose them: what the true ones are to be compared with.

        A token's clusters depend on its place alone, so that they are the same in a longer sequence.

        Parameters
        ----------
        places
            Place of each token in its sequence, from 0.
        """
        heads = len(self.counts)
        edges = self.counts.double().cumsum(1)
        numbers = places.reshape(-1) * heads + torch.arange(heads, device=places.device)[:, None]
        thrown = _uniform(numbers, self.salt) * edges[:, -1:]
        labels = torch.searchsorted(edges, thrown, right=True).clamp_(max=edges.shape[1] - 1)
        return labels.T.reshape(*places.shape, heads)

    def _look(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and labels, and collect the tokens while training."""
        # In half precision near tokens would change clusters with the shape of the call.
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            points = nn.functional.normalize(q.detach().to(self.centroids.dtype), dim=-1)
            scores = torch.einsum("...hd,hcd->...hc", points, self.centroids)
            labels = scores.argmax(-1)
        # In a backward pass this is a recomputation of a call that was counted before.
        if self.training and torch._C._current_graph_task_id() == -1:
            self._collect(points, labels)
            if self.commitment and q.requires_grad and q.numel():
                self._losses.append(self._commitment(q, labels))
        return scores, labels

    @torch.no_grad()
    def _collect(self, points: Tensor, labels: Tensor) -> None:
        """Add tokens to those of the next update."""
        points, labels = points.flatten(0, -3), labels.flatten(0, -2)
        heads = torch.arange(len(self.counts), device=labels.device)
        place = (heads.expand_as(labels), labels)
        self.new_sums.index_put_(place, points, accumulate=True)
        self.new_counts.index_put_(place, torch.ones_like(points[..., 0]), accumulate=True)
        self._latest = points if len(points) else self._latest

    def _commitment(self, q: Tensor, labels: Tensor) -> Tensor:
        """Return the squared distance of queries from their centroids: sum of tokens, mean of heads."""
        heads = torch.arange(len(self.counts), device=labels.device)
        # A copy: the centroids move before the gradient of a second pass may be asked for.
        centres = self.centroids[heads.expand_as(labels), labels]
        points = nn.functional.normalize(q.to(self.centroids.dtype), dim=-1)
        return self.commitment * (points - centres).square().sum() / len(self.counts)

    def take_losses(self) -> list[Tensor]:
        """Return the commitment of all calls in training since the last time, and forget it."""
        taken, self._losses = self._losses, []
        return taken

    @torch.no_grad()
    def update(
        self, add: Callable[[list[Tensor]], list[Tensor]] | None = None, is_first: bool = True
    ) -> None:
        """Move the centroids to the tokens seen since the last update.

        A centroid that got less than a hundredth of the mean number of tokens becomes a random token.

        Parameters
        ----------
        add
            Sums tensors over processes that each saw some tokens.
        is_first
            Whether this process gives these random tokens; true in one of the processes.
        """
        sums, counts, spare = self.new_sums.clone(), self.new_counts.clone(), self._spare(is_first)
        self._forget()
        if add is not None:
            sums, counts, spare = add([sums, counts, spare])
        if not counts.any():
            return
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        mean = self.counts.mean(1, keepdim=True)
        dead = (self.counts < DEAD * mean) & spare.any(-1)
        self.sums[dead], self.counts[dead] = spare[dead], mean.expand_as(dead)[dead]
        self._settle()

    def _settle(self) -> None:
        """Put the centroids where the sums point to."""
        self.centroids.copy_(nn.functional.normalize(self.sums, dim=-1))
        self.initialised.fill_(True)

    def _forget(self) -> None:
        """Begin to collect anew."""
        self.new_sums.zero_()
        self.new_counts.zero_()
        self._latest = None
        self._losses.clear()

    def _spare(self, is_first: bool) -> Tensor:
        """Return random tokens in place of dead centroids; 0 where there are none."""
        if self._latest is None or not is_first:
            return torch.zeros_like(self.sums)
        heads, clusters = self.counts.shape
        chosen = torch.randint(len(self._latest), (heads, clusters), device=self._latest.device)
        return self._latest[chosen, torch.arange(heads, device=chosen.device)[:, None]]

    @torch.no_grad()
    def initialise(self, q: Float[Tensor, "*tokens heads dim"], steps: int = 10) -> None:
        """Place the centroids by Lloyd's algorithm, before training; only by this call.

        They start at random tokens. A centroid that no token chooses stays where it is.

        Parameters
        ----------
        q
            Queries of a sample of tokens, at least as many as clusters.
        steps
            How often all tokens are assigned and the centroids moved to the mean directions; 0 or more.

        Raises
        ------
        ParameterError
            There are fewer tokens than clusters.
        """
        points = nn.functional.normalize(q.detach().to(self.centroids.dtype), dim=-1).flatten(0, -3)
        heads, clusters = self.counts.shape
        if len(points) < clusters:
            raise ParameterError(
                f"initialise needs at least as many tokens as clusters, {clusters}, got {len(points)}."
            )
        chosen = torch.rand(heads, len(points), device=points.device).argsort(1)[:, :clusters]
        self.centroids.copy_(points[chosen, torch.arange(heads, device=points.device)[:, None]])
        self._forget()
        for step in range(steps + 1):
            self._collect(points, torch.einsum("...hd,hcd->...hc", points, self.centroids).argmax(-1))
            self.counts.copy_(self.new_counts)
            self.sums.copy_(torch.where(self.counts[..., None] > 0, self.new_sums, self.centroids))
            self._forget()
            if step < steps:
                self._settle()
        self.sums.copy_(self.centroids * self.sums.norm(dim=-1, keepdim=True))
        self.initialised.fill_(True)

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


def check_commitment(value: object) -> None:
    """Refuse a factor of the commitment that is no number of 0 or more."""
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ParameterError(f"commitment={value!r} is not allowed. Give a factor, 0 or more.")


def _uniform(numbers: Tensor, salt: Tensor) -> Tensor:
    """Return a number from 0 to below 1 for each whole number, by the mixing steps of SplitMix64."""
    x = numbers * -7046029254386353131 + salt
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ _shifted(x, shift)) * factor
    return _shifted(x, 11).double() / 2**53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Return signed whole numbers moved to the right as if they had no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def update_routers(
    module: nn.Module,
    add: Callable[[list[Tensor]], list[Tensor]] | None = None,
    is_first: bool = True,
) -> None:
    """Update all routers of a module; once after each step of the optimiser.

    Parameters
    ----------
    module
        The model.
    add, is_first
        As for :meth:`Router.update`.
    """
    for router in _routers(module).values():
        router.update(add, is_first)


def commitment_loss(module: nn.Module) -> Float[Tensor, ""] | float:
    """Return what routers add to the total loss of a module, for all calls in training since the last time.

    The fit loop adds it; it is 0 unless a :class:`seqattn.attention.Routing` has a ``commitment``. As all losses it is
    a sum, so that parts of a batch in several processes add up.

    Parameters
    ----------
    module
        The model.

    References
    ----------
    Roy et al. (2020); the factor of their program is 1e-4.
    """
    return sum((loss for router in _routers(module).values() for loss in router.take_losses()), start=0.0)


def router_usage(module: nn.Module) -> list[dict[str, str | int | float]]:
    """Return how the clusters of each router of a module are used.

    Parameters
    ----------
    module
        The model.

    Returns
    -------
    One record per router: its name in the module, its numbers of heads and clusters, and :meth:`Router.usage`.
    """
    return [
        {"router": name, "heads": len(router.counts), "clusters": router.counts.shape[1], **router.usage()}
        for name, router in _routers(module).items()
    ]


def _routers(module: nn.Module) -> dict[str, Router]:
    return {name: part for name, part in module.named_modules() if isinstance(part, Router)}
