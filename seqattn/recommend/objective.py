"""What is minimised: the loss of ranking and the loss of distillation, exact or from a sample of the catalogue."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from seqattn.data.interactions import Interactions
from seqattn.recommend.batches import HeldOut, latest_batch
from seqattn.recommend.losses import distillation_loss, ranking_loss
from seqattn.recommend.metrics import user_metrics
from seqattn.recommend.model import HistoryBatch, Members, MultiQueryNetwork
from seqattn.recommend.ranking import DotProducts, target_ranks
from seqattn.recommend.sampled import Proposal, sampled_distillation_loss, sampled_ranking_loss
from seqattn.recommend.transitions import Teacher
from seqattn.train.sums import Loss

__all__ = ["SELECTION", "Objective", "network_scorer"]

# What chooses the epoch.
SELECTION = "ndcg@20"


class Objective(nn.Module):
    r"""The loss of a network on a batch, as the fit loop wants it.

    .. math:: \frac{1}{N} \sum_t \bigl(\mathrm{rec}_t + \lambda \, \mathrm{kd}_t\bigr)

    over the N items with a next one. The penalty of weights belongs to the optimiser.

    Parameters
    ----------
    network
        What is trained.
    teacher
        Transitions to distil; None for none.
    proposal
        Draws negatives; None for the exact losses.
    kd_weight
        :math:`\lambda`.
    kd_share
        Share of the positions of a batch that are distilled, drawn at random; they stand for the rest.
    tau_student
        Temperature of the student.
    zero_class
        As in :func:`seqattn.recommend.losses.ranking_loss`.
    memory_mb
        Most MiB of scores at a time.
    is_half
        Whether scores are computed in bfloat16.
    """

    def __init__(
        self,
        network: MultiQueryNetwork,
        teacher: Teacher | None,
        proposal: Proposal | None,
        *,
        kd_weight: float,
        kd_share: float,
        tau_student: float,
        zero_class: bool,
        memory_mb: float,
        is_half: bool,
    ) -> None:
        super().__init__()
        self.network, self.teacher, self.proposal = network, teacher, proposal
        self.kd_weight, self.kd_share = kd_weight, kd_share
        self.tau_student, self.zero_class = tau_student, zero_class
        self.memory_mb, self.is_half = memory_mb, is_half

    def loss(self, batch: HistoryBatch | HeldOut) -> Loss:
        """Return the loss of a batch, or minus the sum of NDCG at 20 of one for validation.

        Parameters
        ----------
        batch
            Histories with targets, or users to rank items for.
        """
        if isinstance(batch, HeldOut):
            return self._ranked(batch)
        parts = self._exact(batch) if self.proposal is None else self._sampled(batch, self.proposal)
        total = parts["rec"] + self.kd_weight * parts["kd"] if "kd" in parts else parts["rec"]
        return Loss(total, len(batch.items), {name: part.detach() for name, part in parts.items()})

    def _ranked(self, batch: HeldOut) -> Loss:
        ranks = target_ranks(network_scorer(self.network), batch.histories, batch.targets)
        found = torch.tensor(user_metrics(ranks, (20,))[SELECTION].sum())
        return Loss(-found, ranks.n_users, {SELECTION: found})

    def _exact(self, batch: HistoryBatch) -> dict[str, Tensor]:
        network, table = self.network, self.network.table
        embedded = table.index_select(0, batch.items)
        states = network.states(embedded, batch.layout).to(table.dtype)
        options: dict[str, Any] = {"memory_mb": self.memory_mb, "is_half": self.is_half}
        rec = ranking_loss(states, _targets(batch), table, zero_class=self.zero_class, **options)
        found = {"rec": rec}
        if self.teacher is not None:
            at, weight = self._distilled(batch)
            heads = self._heads(embedded[at])
            found["kd"] = weight * distillation_loss(heads, batch.items[at], table, self.teacher, **options)
        return found

    def _distilled(self, batch: HistoryBatch) -> tuple[Tensor | slice, float]:
        """Return the positions whose transitions are distilled in this step, and how many each stands for."""
        n = len(batch.items)
        wanted = max(1, round(self.kd_share * n))
        if wanted == n:
            return slice(None), 1.0
        # Drawn on the CPU on every device.
        return torch.randperm(n)[:wanted].to(batch.items.device), n / wanted

    def _sampled(self, batch: HistoryBatch, proposal: Proposal) -> dict[str, Tensor]:
        """Return the losses from the rows of the table that the step touches, which alone get a gradient."""
        targets = _targets(batch)
        drawn = proposal(targets)
        wanted = [batch.items, targets, drawn.items]
        at, weight = self._distilled(batch)
        if self.teacher is not None:
            wanted.append(self.teacher.rows(batch.items[at].unique())[1])
        touched, place = torch.cat(wanted).unique(return_inverse=True)
        rows = embedding(touched, self.network.table, sparse=True)
        embedded, right, wrong, *successors = (
            rows.index_select(0, at) for at in place.split([len(part) for part in wanted])
        )
        states = self.network.states(embedded, batch.layout).to(rows.dtype)
        with torch.autocast(rows.device.type, enabled=False):
            rank = partial(sampled_ranking_loss, zero_class=self.zero_class, memory_mb=self.memory_mb)
            found = {"rec": rank(states, targets, right, wrong, drawn)}
            if self.teacher is not None:
                distil = partial(sampled_distillation_loss, memory_mb=self.memory_mb)
                heads = self._heads(embedded[at])
                kd = distil(heads, batch.items[at], wrong, successors[0], self.teacher, drawn)
                found["kd"] = weight * kd
        return found

    def _heads(self, embedded: Tensor) -> Tensor:
        """Return what stands for items in the student."""
        return self.network.dropout(embedded * embedded.shape[1] ** 0.5) / self.tau_student


def _targets(batch: HistoryBatch) -> Tensor:
    if batch.targets is None:
        raise ValueError("A batch to train on has targets.")
    return batch.targets


def network_scorer(network: MultiQueryNetwork | Members) -> DotProducts:
    """Return the scorer of a network, or of several, in evaluation mode.

    Parameters
    ----------
    network
        What is asked; it is left in the mode in which it is.
    """
    table = network.table

    def encode(histories: Interactions) -> Tensor:
        batch = latest_batch(histories, network.max_len).to(table.device)
        return network.last_states(batch)

    return DotProducts(table, encode)
