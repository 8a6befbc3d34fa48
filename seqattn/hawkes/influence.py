"""Which events make which others more or less likely: what a model believes, and where it attends."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from seqattn.attention.kernel import MAX_WEIGHTS
from seqattn.attention.router import USAGE, router_usage
from seqattn.data.batches import pack
from seqattn.data.labels import label_list
from seqattn.data.sequences import Sequences
from seqattn.data.table import like
from seqattn.errors import DataError, ParameterError, suggest
from seqattn.hawkes.attended import attention_by_type, count_heads, plan_of_weights
from seqattn.hawkes.deletion import change_of_counts, change_of_rate, groups, rows_of, without_event
from seqattn.hawkes.effects import (
    AttentionInfluence,
    EffectMatrix,
    InfluenceKernel,
    Moments,
    compare_with_truth,
)
from seqattn.hawkes.likelihood import IntervalScores, score_intervals
from seqattn.hawkes.model import SelfAttentiveHawkes
from seqattn.hawkes.reading import EventEstimator, check_whole

__all__ = ["AttentionInfluence", "EffectMatrix", "Influence", "InfluenceKernel", "compare_with_truth"]

# Most entries of a matrix of types by types: 32 MB, of which a few exist at one time.
_MOST_ENTRIES = 4_000_000


class Influence(EventEstimator):
    """What a point process believes about the influence of events on later ones."""

    def effect_matrix(
        self,
        X: Any,
        horizon: float,
        *,
        types: Sequence[Any] | None = None,
        max_events: int = 200,
        random_state: Any = 0,
    ) -> EffectMatrix:
        r"""Return how many more events of each type the model expects because of one event of each type.

        .. math:: E_{kb} = \operatorname*{mean}_{j:\, k_j = b} \int_{t_j}^{t_j + h}
            \bigl(\lambda_k(t \mid H) - \lambda_k(t \mid H \setminus j)\bigr)\, dt

        Events of the data are taken out one at a time while all others stay, later ones too. For an exponential
        Hawkes process :math:`E_{kb} = A_{kb} (1 - e^{-\beta h})`.

        Parameters
        ----------
        X
            Held-out sequences, as in :meth:`log_likelihood`.
        horizon
            Time h after an event in which others are counted, in the user's unit; positive.
        types
            Labels of the types b whose events are taken out; all types if it is not given.
        max_events
            Most events of each type that are taken out, drawn at random.
        random_state
            Seed of the draw, as in scikit-learn.

        Returns
        -------
        A :class:`seqattn.hawkes.effects.EffectMatrix` of shape (types, types b): signed, in events per event.

        Raises
        ------
        DataError
            No event has its horizon inside its window.
        ParameterError
            A label is unknown, the horizon is not positive, or there are too many pairs of types.

        Notes
        -----
        Only events whose whole horizon lies inside their window are used, and events that the window conditions on
        are never taken out. This is an effect within the model; whether it is one in the world, data alone cannot
        tell. Each event costs one pass over its history. Standard errors take the events as independent.
        """
        sequences = self._read_new(X)
        codes = np.arange(self.n_types_) if types is None else self._codes(types, "types")
        _check_entries(self.n_types_, len(codes))
        _check_positive("horizon", horizon)
        places = _chosen_events(sequences, codes, horizon, max_events, random_state)
        column = np.zeros(self.n_types_, dtype=np.int64)
        column[codes] = np.arange(len(codes))
        moments = Moments((len(codes), self.n_types_))
        for _, part in groups(sequences, places, self.n_types_):
            change = change_of_counts(self._states, sequences, part, horizon, self.scale_)
            moments.add(column[sequences.types[part]], change)
        causes = tuple(self.labels_[code] for code in codes)
        values, error = moments.mean().T, moments.standard_error().T
        return EffectMatrix(values, error, moments.count, self.labels_, causes, float(horizon), self.unit_)

    def kernel(
        self, k: Any, b: Any, grid: Any, X: Any, *, max_events: int = 200, random_state: Any = 0
    ) -> InfluenceKernel:
        r"""Return by how much one event of type b raises the intensity of type k, as a curve over the time since.

        .. math:: \phi_{kb}(u) = \operatorname*{mean}_{j:\, k_j = b}
            \bigl(\lambda_k(t_j + u \mid H) - \lambda_k(t_j + u \mid H \setminus j)\bigr)

        For an exponential Hawkes process :math:`\phi_{kb}(u) = A_{kb}\, \beta e^{-\beta u}`. Its integral up to h is
        the entry of :meth:`effect_matrix`.

        Parameters
        ----------
        k, b
            Labels: the type whose intensity is looked at, and the type whose events are taken out.
        grid
            Times u since the event, in the user's unit: positive and increasing.
        X
            Held-out sequences, as in :meth:`log_likelihood`.
        max_events
            Most events that are taken out, drawn at random.
        random_state
            Seed of the draw, as in scikit-learn.

        Returns
        -------
        A :class:`seqattn.hawkes.effects.InfluenceKernel`, in events per time unit of the user.

        Raises
        ------
        DataError
            No event of type b has the whole grid inside its window.
        ParameterError
            A label is unknown, or the grid is not positive and increasing.

        Notes
        -----
        Events are chosen as in :meth:`effect_matrix`, the last lag being the horizon.
        """
        sequences = self._read_new(X)
        target, cause = (int(self._codes([label], name)[0]) for label, name in ((k, "k"), (b, "b")))
        lags = _lags(grid)
        places = _chosen_events(sequences, np.array([cause]), lags[-1], max_events, random_state)
        moments = Moments((1, len(lags)))
        for _, part in groups(sequences, places, len(lags)):
            change = change_of_rate(self._states, sequences, part, target, lags, self.scale_)
            moments.add(np.zeros(len(part), dtype=np.int64), change)
        names = (self.labels_[target], self.labels_[cause], self.unit_)
        return InfluenceKernel(lags, moments.mean()[0], moments.standard_error()[0], len(places), *names)

    def deletion_effects(self, X: Any, rows: Sequence[int] | None = None) -> Any:
        r"""Return for each event how much better the model explains the later ones because it happened.

        .. math:: \Delta_j = \sum_{i > j} \log\frac{\lambda_{k_i}(t_i \mid H)}{\lambda_{k_i}(t_i \mid H \setminus j)}
            - \int_{t_j}^{T_1} \bigl(\lambda(t \mid H) - \lambda(t \mid H \setminus j)\bigr)\, dt

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        rows
            Numbers of the sequences to go through, from 0; all if it is not given.

        Returns
        -------
        A table (pandas if ``X`` was pandas, else polars) with one row per event: ``seq_id``, ``position`` (from 0),
        ``t``, ``k``, ``effect`` (nats; above 0 where the later events are likelier with the event than without it),
        and its parts: ``log_intensity`` (the sum) and ``expected`` (the integral, in events), with
        ``effect = log_intensity - expected``.

        Raises
        ------
        DataError
            There is no such sequence, or no event in those chosen.

        Notes
        -----
        Later events that the window conditions on are not counted. The work grows with the square of the length.
        """
        sequences = self._read_new(X)
        sequences = sequences if rows is None else sequences.select(_checked_rows(rows, len(sequences)))
        if not sequences.n_events:
            raise DataError("There is no event to take out. Give sequences with events.")
        change = np.empty((sequences.n_events, 2))
        present = _later_scores(_all_scores(self, sequences), sequences.lengths)
        for chosen, places in groups(sequences, np.arange(sequences.n_events), 1):
            change[chosen] = _changes_of_later(self, sequences, places, present)
        row = rows_of(sequences, np.arange(sequences.n_events))
        position = np.arange(sequences.n_events) - sequences.offsets[row]
        columns = {
            "effect": change[:, 0] - change[:, 1],
            "log_intensity": change[:, 0],
            "expected": change[:, 1],
        }
        table = sequences.id_columns(row).with_columns(position=position)
        table = table.with_columns(
            sequences.time_series(sequences.times), sequences.label_series(sequences.types)
        )
        return like(table.with_columns(**columns), X)

    def attention_influence(
        self, X: Any, *, layer: int | None = None, head: int | None = None, rollout: bool = False
    ) -> AttentionInfluence:
        r"""Return how much events of one type attend to those of another, relative to evenly spread attention.

        .. math:: I_{ab} = \sum_{i:\, k_i = a} \sum_{j \le i:\, k_j = b} w_{ij} \Big/
            \sum_{i:\, k_i = a} \sum_{j \le i:\, k_j = b} \frac{1}{i + 1}

        The i-th event sees i events (itself included) and the start token, hence i + 1 tokens; with local attention
        fewer, and both sums then run over the events in reach. The division keeps frequent types from winning by
        their number alone.

        Parameters
        ----------
        X
            Sequences, as in :meth:`log_likelihood`.
        layer, head
            Which layer and head, from 0; the mean of all if not given.
        rollout
            Whether to follow the attention through all layers, residuals included (Abnar and Zuidema), in place of
            the mean of the layers.

        Returns
        -------
        An :class:`seqattn.hawkes.effects.AttentionInfluence` of shape (types that attend, types attended to).

        Raises
        ------
        DataError
            A sequence is too long for its dense weights.
        ParameterError
            The model has no attention, there is no such layer or head, or there are too many types.

        Notes
        -----
        This describes the model's inside. It is not causal, and as weights are not negative it cannot show
        inhibition; :meth:`effect_matrix` has a sign and a unit. Trust it as far as
        :func:`seqattn.hawkes.effects.compare_with_truth` allows on data whose truth is known.

        References
        ----------
        Zhang, Lipani, Kirnap, Yilmaz (2020), Self-attentive Hawkes process, section 5.
        Abnar, Zuidema (2020), Quantifying attention flow in transformers, ACL, arXiv 2005.00928.
        """
        sequences = self._read_new(X)
        module = getattr(self, "module_", None)
        if not isinstance(module, SelfAttentiveHawkes):
            raise ParameterError(
                f"{type(self).__name__} has no attention. Use effect_matrix, which any process has."
            )
        _check_entries(self.n_types_, self.n_types_)
        _check_part("layer", layer, module.encoder.n_layers, rollout)
        n_heads = count_heads(module.encoder)
        _check_part("head", head, n_heads, rollout)
        _check_weights(sequences, n_heads)
        sums = np.zeros((3, self.n_types_, self.n_types_))
        place = next(module.parameters())
        for rows in plan_of_weights(sequences.lengths + 1):
            batch = pack(sequences, rows, scale=self.scale_, dtype=place.dtype).to(place.device)
            sums += attention_by_type(module, batch, layer, head, rollout)
        values = np.divide(sums[0], sums[1], out=np.full_like(sums[0], np.nan), where=sums[2] > 0)
        return AttentionInfluence(
            values, sums[2].astype(np.int64), self.labels_, _words_of(layer, head, rollout)
        )

    def routing_usage(self) -> pl.DataFrame:
        """Return how evenly routing attention uses its clusters; no rows without such attention.

        Returns
        -------
        One row per routing of each layer: ``router`` (its place in the module), ``heads``, ``clusters``, ``entropy`` of
        the shares of the clusters over that of equal ones, ``largest`` share over the mean share, and ``dead``, the
        share of clusters with less than a hundredth of the mean. ``history_`` has the same after each epoch.

        Raises
        ------
        NotFittedError
            The model is not fitted.
        """
        check_is_fitted(self, "labels_")
        module = getattr(self, "module_", None)
        return pl.DataFrame([] if module is None else router_usage(module), schema=USAGE)

    def _codes(self, labels: Sequence[Any], name: str) -> NDArray[np.int64]:
        """Return the codes of labels, each once, in their order."""
        if isinstance(labels, str) or not np.iterable(labels):
            raise ParameterError(f"{name}={labels!r} is no list. Give a list of type labels.")
        code = {label: place for place, label in enumerate(self.labels_)}
        for label in labels:
            if not isinstance(label, Hashable) or label not in code:
                raise ParameterError(
                    f"{name}: there is no type {label!r}. Types: {label_list(self.labels_)}."
                    f"{suggest(label, self.labels_)}"
                )
        if not len(labels):
            raise ParameterError(f"{name} is empty. Give at least one type label.")
        return np.array(list(dict.fromkeys(code[label] for label in labels)), dtype=np.int64)


def _chosen_events(
    sequences: Sequences, codes: NDArray[np.int64], reach: float, most: int, random_state: Any
) -> NDArray[np.int64]:
    """Draw events of some types that are scored and have ``reach`` after them inside their window."""
    check_whole("max_events", most, 1)
    row = rows_of(sequences, np.arange(sequences.n_events))
    scored = np.arange(sequences.n_events) >= (sequences.offsets[:-1] + sequences.context)[row]
    inside = sequences.times + reach <= sequences.end[row]
    places = np.flatnonzero(scored & inside & np.isin(sequences.types, codes))
    if not len(places):
        raise DataError(
            f"No event of the types asked for has {reach:g} time units after it inside its window. Shorten the "
            "horizon, or give longer windows."
        )
    mixed = check_random_state(random_state).permutation(places)
    mixed = mixed[np.argsort(sequences.types[mixed], kind="stable")]
    kinds = sequences.types[mixed]
    rank = np.arange(len(kinds)) - np.searchsorted(kinds, kinds)
    return np.sort(mixed[rank < most])


def _lags(grid: Any) -> NDArray[np.float64]:
    lags = np.asarray(grid, dtype=np.float64)
    if (
        lags.ndim != 1
        or not lags.size
        or not np.isfinite(lags).all()
        or not (np.diff(lags, prepend=0) > 0).all()
    ):
        raise ParameterError(f"grid={grid!r} is not a list of positive, increasing times since an event.")
    return lags


def _all_scores(model: Influence, sequences: Sequences) -> IntervalScores:
    parts = [score_intervals(batch, state, model.scale_) for batch, state in model._states(sequences)]
    return IntervalScores.concatenate(parts)


def _later_scores(scores: IntervalScores, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return for each token the scored log-intensities and compensators from it to the end of its sequence."""
    parts = _scored_parts(scores)
    # A running sum over all sequences would carry an infinite log-intensity from one into the others.
    ends = np.cumsum(lengths + 1)[:-1]
    return np.concatenate([np.cumsum(own[::-1], axis=0)[::-1] for own in np.split(parts, ends)])


def _scored_parts(scores: IntervalScores) -> NDArray[np.float64]:
    parts = np.stack([scores.log_total + scores.log_type, scores.compensator], 1)
    return np.where(scores.scored[:, None], parts, 0.0)


def _changes_of_later(
    model: Influence, sequences: Sequences, places: NDArray[np.int64], present: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return for each event the change of the later log-intensities and of the later compensator; (places, 2)."""
    row = rows_of(sequences, places)
    before = places + row  # the token before the event: each sequence has one more token than events
    scores = _all_scores(model, without_event(sequences, places))
    later = scores.position >= (places - sequences.offsets[row])[scores.row]
    parts = _scored_parts(scores)[later]
    absent = [np.bincount(scores.row[later], part, len(places)) for part in parts.T]
    with np.errstate(invalid="ignore"):  # infinite on both sides: an event that is impossible either way
        # The interval that the event ends is the same in both up to the event, and cancels.
        return np.stack([present[before + 1, 0] - absent[0], present[before, 1] - absent[1]], 1)


def _checked_rows(rows: Sequence[int], n: int) -> NDArray[np.int64]:
    chosen = np.atleast_1d(np.asarray(rows))
    if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or not ((chosen >= 0) & (chosen < n)).all():
        raise DataError(f"rows={rows!r} are not numbers of sequences: the data hold {n}, counted from 0.")
    return chosen.astype(np.int64)


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < np.inf:
        raise ParameterError(f"{name}={value!r} is no positive time span. Give a number above 0.")


def _check_entries(n_types: int, n_causes: int) -> None:
    if n_types * n_causes > _MOST_ENTRIES:
        raise ParameterError(
            f"{n_types:,} types by {n_causes:,} are more than {_MOST_ENTRIES:,} entries. Name at most "
            f"{max(1, _MOST_ENTRIES // n_types):,} types (effect_matrix(types=...)), or merge rare ones."
        )


def _check_part(name: str, value: Any, count: int, rollout: bool) -> None:
    if value is None:
        return
    if rollout:
        raise ParameterError(
            f"{name}={value!r} does not go with rollout=True, which takes all layers and heads."
        )
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < count:
        raise ParameterError(f"There is no {name} {value!r}: the model has {count}, counted from 0.")


def _check_weights(sequences: Sequences, n_heads: int) -> None:
    longest = int(sequences.lengths.max(initial=0)) + 1
    if n_heads * longest**2 > MAX_WEIGHTS:
        row = int(sequences.lengths.argmax())
        raise DataError(
            f"Sequence {sequences.ids[row]} has {longest - 1:,} events, and its attention {n_heads * longest**2:,} "
            f"weights; at most {MAX_WEIGHTS:,} are kept. Cut it with chunk=."
        )


def _words_of(layer: int | None, head: int | None, rollout: bool) -> str:
    if rollout:
        return "rollout through all layers"
    one = "mean of layers" if layer is None else f"layer {layer}"
    return f"{one}, {'mean of heads' if head is None else f'head {head}'}"
