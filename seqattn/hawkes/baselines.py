"""Simple point processes that every evaluation is printed beside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse, stats

from seqattn.data.batches import Batches, EventBatch, pack
from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, ParameterError
from seqattn.hawkes.counting import (
    event_rates,
    grouped_median,
    manageable,
    scored_counts,
    scored_exposure,
    scored_gaps,
    tails,
    transitions,
)
from seqattn.hawkes.histories import Histories, Remembered
from seqattn.hawkes.intensity import Intensity, LinearIntensity
from seqattn.hawkes.process import PointProcess
from seqattn.hawkes.renewal import GAP_LAWS, MarkovIntensity, RenewalIntensity, fit_gap_law


class SimpleProcess(PointProcess):
    """Base of the processes whose intensities follow from a few numbers of each history."""

    @abstractmethod
    def _recall(self, memory: torch.Tensor) -> Intensity:
        """Return the intensities that follow from memories, of shape (tokens, numbers)."""

    def _memories(self, batch: EventBatch) -> torch.Tensor:
        """Return what is remembered after each token; nothing, unless a subclass says otherwise."""
        return torch.zeros(batch.n_tokens, 0, dtype=torch.float64)

    def _remember(self, memory: torch.Tensor, gap: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        """Return what is remembered after one more event in each history."""
        return memory

    def _packed(self, sequences: Sequences) -> Batches:
        return self._buckets(sequences, torch.float64)

    def _state(self, batch: EventBatch) -> tuple[EventBatch, Intensity]:
        return batch, self._recall(self._memories(batch))

    def _histories(self, sequences: Sequences) -> Histories:
        batch = pack(sequences, np.arange(len(sequences)), dtype=torch.float64)
        memory = self._memories(batch)[batch.offsets[1:].long() - 1]
        return Remembered(memory, self._recall, self._remember)


class PoissonProcess(SimpleProcess):
    r"""Constant rates: :math:`\lambda_k = n_k / \text{total window}`, independent of the past.

    Parameters
    ----------
    types
        All type labels, or their number K for the labels 0..K-1; by default those found in the training data.
    columns
        Column names of tables if they are not ``seq_id``, ``t``, ``k``: for example ``{"seq_id": "user"}``.
    window
        ``"last_event"``, ``"max"`` or (T0, T1), see :meth:`seqattn.Sequences.from_table`.
    unknown
        ``"error"`` or ``"ignore"``: what to do with types that were not in the training data.

    Examples
    --------
    >>> model = PoissonProcess(window=(0.0, 10.0)).fit([([1.0, 2.0, 7.0], ["a", "b", "a"])])
    >>> model.rate_.tolist()
    [0.2, 0.1]
    """

    _fitted = ("rate_", "exposure_", "counts_")

    def __init__(
        self,
        *,
        types: int | Sequence[Any] | None = None,
        columns: Mapping[str, str] | None = None,
        window: Any = "last_event",
        unknown: str = "error",
    ) -> None:
        self.types = types
        self.columns = columns
        self.window = window
        self.unknown = unknown

    def fit(self, X: Any, y: Any = None) -> Self:
        """Count events and divide by the total length of the windows.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        y
            Ignored.
        """
        sequences = self._read_training(X)
        self.rate_ = event_rates(sequences)
        self.exposure_ = np.array([scored_exposure(sequences).sum()])
        self.counts_ = scored_counts(sequences)
        return self

    def interval(self, level: float = 0.95) -> NDArray[np.float64]:
        """Return the conjugate (Gamma, Jeffreys prior) interval of each rate, of shape (types, 2).

        Parameters
        ----------
        level
            Posterior probability inside the interval, in (0, 1).

        Raises
        ------
        ParameterError
            The level is not in (0, 1).
        """
        if not 0 < level < 1:
            raise ParameterError(f"level={level!r} is not between 0 and 1.")
        tails = [(1 - level) / 2, (1 + level) / 2]
        return stats.gamma.ppf(np.array(tails), self.counts_[:, None] + 0.5, scale=1 / self.exposure_[0])

    def _recall(self, memory: torch.Tensor) -> Intensity:
        base = torch.from_numpy(self.rate_).expand(len(memory), -1)
        return LinearIntensity(base, torch.zeros_like(base), torch.ones_like(base[:, 0]))


class RenewalProcess(SimpleProcess):
    r"""Independent gaps of one law, independent types: :math:`\lambda_k(u) = p_k\, h(u)` with hazard h.

    Parameters
    ----------
    gaps
        ``"gamma"``, ``"lognormal"``, or ``"auto"``: the one with the higher likelihood on the training data (both
        have two parameters).
    types, columns, window, unknown
        As in :class:`PoissonProcess`.

    Notes
    -----
    Neither law has a usable density at a gap of zero; gaps shorter than the shortest positive one of the training
    data are scored as if they were that long. Of more than two million events a sample of whole sequences is used,
    drawn with a fixed seed.
    """

    _fitted = ("share_", "shape_", "shortest_", "law_")

    def __init__(
        self,
        *,
        gaps: str = "auto",
        types: int | Sequence[Any] | None = None,
        columns: Mapping[str, str] | None = None,
        window: Any = "last_event",
        unknown: str = "error",
    ) -> None:
        self.gaps = gaps
        self.types = types
        self.columns = columns
        self.window = window
        self.unknown = unknown

    def fit(self, X: Any, y: Any = None) -> Self:
        """Maximise the likelihood of the gaps, the censored last ones included.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        y
            Ignored.

        Raises
        ------
        ParameterError
            ``gaps`` is not a known law.
        DataError
            There is no positive gap.
        """
        if self.gaps not in ("auto", *GAP_LAWS):
            raise ParameterError(
                f"gaps={self.gaps!r} is unknown. Use 'auto', {', '.join(map(repr, GAP_LAWS))}."
            )
        sequences = manageable(self._read_training(X))
        seen, censored = scored_gaps(sequences)
        if not (seen > 0).any():
            raise DataError("No gap between events is longer than zero. Check the times.")
        self.shortest_ = np.array([seen[seen > 0].min()])
        self.share_ = event_rates(sequences) / event_rates(sequences).sum()
        laws = GAP_LAWS if self.gaps == "auto" else (self.gaps,)
        fits = {law: fit_gap_law(law, np.maximum(seen, self.shortest_), censored) for law in laws}
        self.law_ = max(fits, key=lambda law: fits[law][1])
        self.shape_ = fits[self.law_][0]
        return self

    def _recall(self, memory: torch.Tensor) -> Intensity:
        age = torch.zeros(len(memory), dtype=torch.float64)
        share, shape = torch.from_numpy(self.share_), tuple(self.shape_.tolist())
        return RenewalIntensity(age, share, self.law_, shape, float(self.shortest_[0]))


class EmpiricalMarkov(SimpleProcess):
    r"""Type from the last type, exponential gaps whose mean depends on the last type.

    .. math:: \lambda_k(u) = P(k \mid \text{last})\, r(\text{last})

    The median forecast is the empirical median of the gaps after the last type.

    Parameters
    ----------
    types, columns, window, unknown
        As in :class:`PoissonProcess`.

    Notes
    -----
    Transition probabilities carry one pseudo-event with the overall shares, rates one with the overall rate. The
    beginning of a window is a "last type" of its own. Of more than two million events a sample of whole sequences is
    used, drawn with a fixed seed.
    """

    _fitted = ("share_", "rate_", "median_", "counts_", "origin_", "next_")

    def __init__(
        self,
        *,
        types: int | Sequence[Any] | None = None,
        columns: Mapping[str, str] | None = None,
        window: Any = "last_event",
        unknown: str = "error",
    ) -> None:
        self.types = types
        self.columns = columns
        self.window = window
        self.unknown = unknown

    def fit(self, X: Any, y: Any = None) -> Self:
        """Count transitions and measure the gaps after each type.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        y
            Ignored.
        """
        sequences = manageable(self._read_training(X))
        rates = event_rates(sequences)
        self.share_ = rates / rates.sum()
        size = self.n_types_ + 1
        last, kind, gap = transitions(sequences)
        tail_last, tail = tails(sequences)
        exposure = np.bincount(last, gap, size) + np.bincount(tail_last, tail, size)
        events = np.bincount(last, minlength=size)
        self.rate_ = (events + 1) / (exposure + 1 / rates.sum())
        self.median_ = grouped_median(last, gap, size, float(np.median(gap)))
        pairs, self.counts_ = np.unique(last * size + kind, return_counts=True)
        self.origin_, self.next_ = pairs // size, pairs % size
        return self

    def _memories(self, batch: EventBatch) -> torch.Tensor:
        return batch.types[:, None].double()

    def _remember(self, memory: torch.Tensor, gap: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        return kind[:, None].double()

    def _recall(self, memory: torch.Tensor) -> Intensity:
        shape = (self.n_types_ + 1, self.n_types_)
        counts = sparse.csr_matrix((self.counts_.astype(float), (self.origin_, self.next_)), shape=shape)
        leaving = np.asarray(counts.sum(1))[:, 0] + 1
        last = memory[:, 0].long().numpy()
        share = (counts[last].toarray() + self.share_) / leaving[last][:, None]
        base = torch.from_numpy(share * self.rate_[last][:, None])
        middle = torch.from_numpy(self.median_[last])
        return MarkovIntensity(base, torch.zeros_like(base), torch.ones_like(middle), middle)
