"""The multivariate Hawkes process with exponential kernels: exact likelihood, gradient and simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, sparse

from seqattn.data.batches import EventBatch
from seqattn.data.blocks import BLOCK
from seqattn.data.sequences import Sequences
from seqattn.errors import DataError
from seqattn.hawkes.baselines import SimpleProcess
from seqattn.hawkes.counting import UNSEEN, event_rates, manageable, scored_events, scored_exposure
from seqattn.hawkes.intensity import Intensity, LinearIntensity

# Most (event, type) pairs of a fit: at seven work arrays of them, 0.9 GB.
_CELLS = 16_000_000


class ExponentialHawkes(SimpleProcess):
    r"""Multivariate Hawkes process with exponential kernels and one decay.

    .. math:: \lambda_k(t) = \mu_k + \sum_{t_j < t} A_{k k_j}\,\beta e^{-\beta (t - t_j)}

    Fitted by maximum likelihood with the exact gradient in O(events x types) per evaluation. Of events at one time
    the earlier in the data counts as the past of the later; the decay is at most one per shortest positive gap. Of more
    than two million events, or 16 million pairs of event and type, a sample of whole sequences is used, drawn with a
    fixed seed.

    Parameters
    ----------
    max_iter
        Most L-BFGS iterations.
    types, columns, window, unknown
        As in :class:`PoissonProcess`.

    Attributes
    ----------
    mu_
        Base rates, events per time unit, of shape (types,).
    excitation_
        A, expected direct offspring of type k (row) per event of type b (column).
    decay_
        :math:`\beta`, per time unit.
    spectral_radius_
        Largest absolute eigenvalue of A; below 1 the process is stable.

    References
    ----------
    Hawkes (1971), Spectra of some self-exciting and mutually exciting point processes. Ozaki (1979), Maximum
    likelihood estimation of Hawkes' self-exciting point processes.
    """

    _fitted = ("mu_", "excitation_", "decay_")
    MAX_TYPES = 256

    def __init__(
        self,
        *,
        max_iter: int = 200,
        types: int | Sequence[Any] | None = None,
        columns: Mapping[str, str] | None = None,
        window: Any = "last_event",
        unknown: str = "error",
    ) -> None:
        self.max_iter = max_iter
        self.types = types
        self.columns = columns
        self.window = window
        self.unknown = unknown

    def fit(self, X: Any, y: Any = None) -> Self:
        """Maximise the log-likelihood over the logarithms of all parameters.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        y
            Ignored.

        Raises
        ------
        DataError
            There are more than ``MAX_TYPES`` types, whose squared number of parameters no data set here supports.
        """
        sequences = self._read_training(X)
        if self.n_types_ > self.MAX_TYPES:
            raise DataError(
                f"{self.n_types_} types need {self.n_types_**2} excitations; ExponentialHawkes takes at most "
                f"{self.MAX_TYPES} types. Merge rare types, or use PoissonProcess or EmpiricalMarkov."
            )
        sequences = manageable(sequences, min(BLOCK, _CELLS // self.n_types_))
        gaps = np.diff(sequences.times)
        unit = scored_exposure(sequences).sum() / max(1, sequences.n_scored)
        problem = HawkesLikelihood(sequences, unit)
        start = problem.start(event_rates(sequences) * unit)
        # Events at one time follow each other in the data's order; without a bound their decay would grow for ever.
        fastest = np.log(unit / gaps[gaps > 0].min()) if (gaps > 0).any() else np.inf
        found = optimize.minimize(
            problem.loss,
            np.minimum(start, [np.inf] * (len(start) - 1) + [fastest]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, None)] * (len(start) - 1) + [(None, fastest)],
            options={"maxiter": self.max_iter, "ftol": 1e-10},
        )
        mu, self.excitation_, decay = problem.unpack(found.x)
        self.mu_, self.decay_ = mu / unit, np.array([decay / unit])
        return self

    @property
    def spectral_radius_(self) -> float:
        """Largest absolute eigenvalue of the excitation matrix."""
        return float(np.abs(np.linalg.eigvals(self.excitation_)).max())

    def _memories(self, batch: EventBatch) -> torch.Tensor:
        ranks = _Ranks(batch.offsets.numpy())
        types, gaps = batch.types.numpy(), batch.gap.numpy()
        return torch.from_numpy(ranks.decayed_counts(types, gaps, float(self.decay_[0]), self.n_types_)[0])

    def _remember(self, memory: torch.Tensor, gap: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        faded = memory * torch.exp(-float(self.decay_[0]) * gap)[:, None]
        return faded.scatter_add(1, kind[:, None], torch.ones_like(faded[:, :1]))

    def _recall(self, memory: torch.Tensor) -> Intensity:
        decay = float(self.decay_[0])
        excitation = decay * memory @ torch.from_numpy(self.excitation_.T.copy())
        base = torch.from_numpy(self.mu_).expand_as(excitation)
        return LinearIntensity(base, excitation, base.new_full((len(base),), decay))


class _Ranks:
    """Tokens grouped by their place in the sequence, so that a recursion over time runs over all sequences at once."""

    def __init__(self, offsets: NDArray[Any]) -> None:
        lengths = np.diff(offsets)
        order = np.argsort(-lengths, kind="stable")
        starts, sizes = np.asarray(offsets[:-1])[order], lengths[order]
        longest = int(sizes[0]) if len(sizes) else 0
        active = np.searchsorted(-sizes, -np.arange(longest), side="left")
        self.steps = [starts[:n] + place for place, n in enumerate(active)]
        self.n_tokens = int(offsets[-1])

    def decayed_counts(
        self, types: NDArray[Any], gaps: NDArray[np.float64], decay: float, n_types: int, slope: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return, just after each token, past events per type discounted by exp(-decay age), and the derivative.

        Tokens of type ``n_types`` (the beginnings of windows) count for nothing.
        """
        memory = np.zeros((self.n_tokens, n_types))
        slopes = np.zeros((self.n_tokens, n_types) if slope else (0, 0))
        fade = np.exp(-decay * gaps)[:, None]
        state = np.zeros((len(self.steps[0]) if self.steps else 0, n_types))
        change = state.copy()
        for rows in self.steps:
            if slope:
                change = fade[rows] * (change[: len(rows)] - gaps[rows, None] * state[: len(rows)])
                slopes[rows] = change
            state = fade[rows] * state[: len(rows)]
            kind = types[rows]
            real = np.flatnonzero(kind < n_types)
            state[real, kind[real]] += 1
            memory[rows] = state
        return memory, slopes


class HawkesLikelihood:
    """Negative log-likelihood per event of the exponential Hawkes process, with its exact gradient.

    Parameters
    ----------
    sequences
        Training data.
    unit
        Time unit of the parameters, in the data's units.
    """

    def __init__(self, sequences: Sequences, unit: float = 1.0) -> None:
        lengths = sequences.lengths
        self.n_types = len(sequences.labels)
        rows = np.repeat(np.arange(len(sequences)), lengths)
        previous = np.concatenate([[0.0], sequences.times[:-1]])
        previous[sequences.offsets[:-1][lengths > 0]] = sequences.start[lengths > 0]
        self.gaps = (sequences.times - previous) / unit
        self.types = np.asarray(sequences.types)
        self.ranks = _Ranks(np.asarray(sequences.offsets))
        self.scored = np.flatnonzero(scored_events(sequences))
        self.exposure = scored_exposure(sequences).sum() / unit
        begin = sequences.end - scored_exposure(sequences)
        self.age_at_end = (np.asarray(sequences.end)[rows] - sequences.times).clip(min=0) / unit
        self.age_at_begin = (begin[rows] - sequences.times).clip(min=0) / unit
        self.by_type = sparse.csr_matrix(
            (np.ones(len(self.scored)), (self.types[self.scored], np.arange(len(self.scored)))),
            shape=(self.n_types, len(self.scored)),
        )

    def start(self, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a starting point: half of each rate from the base, one decay per mean gap."""
        mean_gap = self.gaps[self.scored].mean() if len(self.scored) else 1.0
        decay = 1 / max(mean_gap, 1e-300)
        matrix = np.full((self.n_types, self.n_types), 0.5 / self.n_types)
        return np.concatenate([np.log(rates / 2), np.log(matrix).ravel(), [np.log(decay)]])

    def unpack(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Return base rates, excitations and decay from the vector of logarithms."""
        k = self.n_types
        return np.exp(x[:k]), np.exp(x[k:-1]).reshape(k, k), float(np.exp(x[-1]))

    def loss(self, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the loss per event and its gradient by the logarithms of the parameters.

        Half an event per type is added to the base rates (see the Poisson process), so that none falls to zero.
        """
        mu, matrix, decay = self.unpack(x)
        value, by_mu, by_matrix, by_decay = self.value_and_slopes(mu, matrix, decay)
        value += UNSEEN * np.log(mu).sum()
        by_mu = by_mu * mu + UNSEEN
        slope = np.concatenate([by_mu, (by_matrix * matrix).ravel(), [by_decay * decay]])
        n = max(1, len(self.scored))
        return -value / n, -slope / n

    def value_and_slopes(
        self, mu: NDArray[np.float64], matrix: NDArray[np.float64], decay: float
    ) -> tuple[float, NDArray[np.float64], NDArray[np.float64], float]:
        """Return the log-likelihood and its derivatives by base rates, excitations and decay."""
        after, slopes_after = self.ranks.decayed_counts(
            self.types, self.gaps, decay, self.n_types, slope=True
        )
        rows = self.scored
        own = (self.types[rows], np.arange(len(rows)))
        # Just before event i: the memory after it without the event itself.
        memory, slopes = after[rows], slopes_after[rows]
        memory[own[1], own[0]] -= 1
        pull = matrix[self.types[rows]]
        felt = (pull * memory).sum(1)
        rate = mu[self.types[rows]] + decay * felt
        inverse = 1 / rate
        weight = np.exp(-decay * self.age_at_begin) - np.exp(-decay * self.age_at_end)
        weight_slope = self.age_at_end * np.exp(-decay * self.age_at_end)
        weight_slope -= self.age_at_begin * np.exp(-decay * self.age_at_begin)
        mass = np.bincount(self.types, weight, self.n_types)
        mass_slope = np.bincount(self.types, weight_slope, self.n_types)
        offspring = matrix.sum(0)
        value = np.log(rate).sum() - mu.sum() * self.exposure - offspring @ mass
        by_mu = self.by_type @ inverse - self.exposure
        by_matrix = decay * (self.by_type @ (memory * inverse[:, None])) - mass
        moved = felt + decay * (pull * slopes).sum(1)
        return float(value), by_mu, by_matrix, float((moved * inverse).sum() - offspring @ mass_slope)
