"""Classes from sequences of words, items or events, and what a study of them says about frequency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse, stats

from seqattn.data.interactions import Interactions
from seqattn.data.sequences import Sequences
from seqattn.data.table import as_frame, is_table
from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.theory import attention_drift
from seqattn.errors import DataError, ParameterError, suggest

__all__ = ["OTHER", "OwnData", "bias_report", "classes_from_sequences", "words"]

OTHER = "<other>"
MISSING = "<missing>"
# Draws of the intervals of rank correlations.
_DRAWS = 300
# Weight of a query's next tokens in the estimate of what a token says about them.
_PSEUDO = 1.0


@dataclass(frozen=True)
class OwnData:
    """Classes of own sequences, with what was left out.

    Attributes
    ----------
    classes
        One class for each pair of query and next token that was seen often enough.
    counts
        How often each token occurs in the contexts of each class, a sparse array.
    windows
        Number of pairs of query and next token with enough context.
    coverage
        Share of them that belong to a class.
    other_mass
        Share of the tokens that stand for words outside the vocabulary.
    skipped
        Sequences of fewer than two tokens.
    min_count
        Tokens seen less often with a query are neither common nor distinct, but unknown.
    """

    classes: SequenceClasses
    counts: Any
    windows: int
    coverage: float
    other_mass: float
    skipped: int
    min_count: int

    def __str__(self) -> str:
        return (
            f"{len(self.classes)} classes of {self.classes.n_tokens} tokens, {self.coverage:.1%} of {self.windows:,} "
            f"windows; {self.other_mass:.1%} of the tokens are {OTHER!r}; {self.skipped} sequences skipped"
        )

    def grades(self, threshold: float = 0.5) -> pl.DataFrame:
        r"""Return how much each token says about the next one, given the query.

        .. math:: D(l|m) = 1 - H(\text{next} | l, m) / \ln K_m

        Parameters
        ----------
        threshold
            Tokens with a D of at least this are called distinct, the others common.

        Returns
        -------
        One row per query and token: ``query``, ``token``, ``name``, ``count``, ``p`` (share in the query's contexts),
        ``lift`` (that share over the share in all), ``D`` and ``kind`` (``"common"``, ``"distinct"`` or
        ``"unknown"``, which is rarer than ``min_count``: rare tokens look distinct by chance). Queries with one
        class have no row.
        """
        total = np.asarray(self.counts.sum(axis=0)).ravel()
        frames = [self._grades_of(query, total / total.sum()) for query in range(self.classes.n_queries)]
        table = pl.concat([frame for frame in frames if frame is not None])
        rare = pl.col("count") < self.min_count
        kind = pl.when(rare).then(pl.lit("unknown")).when(pl.col("D") >= threshold).then(pl.lit("distinct"))
        return table.with_columns(kind.otherwise(pl.lit("common")).alias("kind"))

    def _grades_of(self, query: int, share: NDArray[np.float64]) -> pl.DataFrame | None:
        own = np.flatnonzero(self.classes.query == query)
        if len(own) < 2:
            return None
        counts = np.asarray(self.counts[own].todense())
        prior = self.classes.weight[own] / self.classes.weight[own].sum()
        tokens = np.flatnonzero(counts.sum(0))
        n = counts[:, tokens].sum(0)
        chance = (counts[:, tokens] + _PSEUDO * prior[:, None]) / (n + _PSEUDO)
        grade = 1 - stats.entropy(chance, axis=0) / np.log(len(own))
        p = n / n.sum()
        names = [str(self.classes.token_names[token]) for token in tokens]
        columns = {"token": tokens, "name": names, "count": n.astype(np.int64), "p": p}
        columns |= {"lift": p / share[tokens], "D": np.clip(grade, 0, 1)}
        return pl.DataFrame(columns).with_columns(pl.lit(query).alias("query"))


def words(text: str) -> list[list[str]]:
    r"""Return the lines of a text as lists of lower-case words, each with an end mark; empty lines are left out.

    Examples
    --------
    >>> words("The cat\n\nsat")
    [['the', 'cat', '<eos>'], ['sat', '<eos>']]
    """
    return [[*line, "<eos>"] for line in map(str.split, text.lower().splitlines()) if line]


def classes_from_sequences(
    X: Any,
    *,
    context: int = 32,
    min_context: int = 4,
    min_count: int = 20,
    max_vocab: int | None = None,
    label_space: str = "seen",
    lengths: Any = None,
    columns: tuple[str, str, str] = ("seq_id", "t", "k"),
    allow_missing: bool = False,
) -> OwnData:
    """Return the classes of own sequences: words, items or types of events, in their order.

    At each place the next token is the label, the token itself the query, and the ``context`` tokens before it the
    context. Repeats stay as they are.

    Parameters
    ----------
    X
        A list of sequences of whole numbers or texts, a padded array of whole numbers with ``lengths``,
        :class:`seqattn.Sequences`, interactions of users with items, or a table.
    context
        Most tokens of context.
    min_context
        Least; places with fewer are left out.
    min_count
        Least number of times that a pair of query and next token was seen.
    max_vocab
        Size of the vocabulary without the token for all others; None for everything.
    label_space
        ``"seen"``: outputs are the next tokens of the classes. ``"all"``: the whole vocabulary.
    lengths
        Tokens in each row of a padded array.
    columns
        Names of the columns for sequence, time and item in a table.
    allow_missing
        Whether a missing item is a token of its own; else it is refused.

    Raises
    ------
    DataError
        No sequence has enough context, no pair was seen often enough, or items are missing.
    TypeError
        Tokens are neither whole numbers nor texts.

    Examples
    --------
    >>> data = classes_from_sequences([list("abcabdabcabd") * 5], context=3, min_context=2, min_count=5)
    >>> len(data.classes), data.coverage > 0.9
    (5, True)
    """
    if label_space not in ("seen", "all"):
        raise ParameterError(f"label_space={label_space!r} is not known. Allowed: 'seen', 'all'.")
    for name, value in (("context", context), ("min_context", min_context), ("min_count", min_count)):
        if value < 1:
            raise ParameterError(f"{name}={value!r} is not allowed. Give a whole number, at least 1.")
    values, sizes = _flat(X, lengths, columns)
    codes, names, other_mass = _coded(_checked(values, allow_missing), max_vocab)
    if not (sizes >= 2).any():
        raise DataError("No sequence has two tokens, so there is no next one. Give longer sequences.")
    place = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    queries = np.flatnonzero((place >= min_context) & (place + 1 < np.repeat(sizes, sizes)))
    if not len(queries):
        raise DataError(
            f"No place has min_context={min_context} tokens before it and one after; the longest sequence has "
            f"{sizes.max()}. Give longer sequences, or lower min_context."
        )
    pairs, which, seen = np.unique(
        codes[queries] * len(names) + codes[queries + 1], return_inverse=True, return_counts=True
    )
    kept = np.flatnonzero(seen >= min_count)
    if not len(kept):
        raise DataError(
            f"No pair of query and next token was seen min_count={min_count} times; the most frequent was seen "
            f"{seen.max()} times. Lower min_count, or give more data."
        )
    number = np.full(len(pairs), -1)
    number[kept] = np.arange(len(kept))
    counts = _counts(codes, place, queries, number[which], context, (len(kept), len(names)))
    classes = _classes(counts, pairs[kept], seen[kept], names, label_space)
    skipped = int((sizes < 2).sum())
    return OwnData(
        classes, counts, len(queries), float(seen[kept].sum() / len(queries)), other_mass, skipped, min_count
    )


def _counts(
    codes: NDArray, place: NDArray, queries: NDArray, klass: NDArray, context: int, shape: tuple[int, int]
) -> sparse.csr_array:
    """Count the tokens before each query, by class."""
    counts = sparse.csr_array(shape, dtype=np.int64)
    for back in range(1, context + 1):
        rows = (klass >= 0) & (place[queries] >= back)
        where = (klass[rows], codes[queries[rows] - back])
        counts = (
            counts + sparse.coo_array((np.ones(int(rows.sum()), dtype=np.int64), where), shape=shape).tocsr()
        )
    return counts


def _classes(
    counts: sparse.csr_array, pairs: NDArray, seen: NDArray, names: list[Any], label_space: str
) -> SequenceClasses:
    M = len(names)
    tokens, query = np.unique(pairs // M, return_inverse=True)
    columns, label = np.unique(pairs % M, return_inverse=True)
    if label_space == "all":
        columns, label = np.arange(M), pairs % M
    return SequenceClasses(
        counts.astype(np.float64),
        query,
        label,
        seen / seen.sum(),
        token_names=names,
        n_outputs=len(columns),
        query_tokens=tokens,
        label_tokens=columns,
        normalize=True,
    )


def _flat(X: Any, lengths: Any, columns: tuple[str, str, str]) -> tuple[pl.Series, NDArray[np.int64]]:
    """All tokens one after the other, and the lengths of the sequences."""
    if isinstance(X, Sequences):
        return X.label_series(X.types), np.asarray(X.lengths, dtype=np.int64)
    if isinstance(X, Interactions):
        return X.item_ids.gather(X.items), np.asarray(X.lengths, dtype=np.int64)
    if is_table(X):
        return _from_table(as_frame(X), columns)
    if isinstance(X, np.ndarray) and X.ndim == 2:
        sizes = np.full(len(X), X.shape[1]) if lengths is None else np.asarray(lengths)
        if sizes.shape != (len(X),) or (sizes < 0).any() or (sizes > X.shape[1]).any():
            raise DataError(f"lengths must be {len(X)} numbers from 0 to {X.shape[1]}.")
        X = [row[:size] for row, size in zip(X, sizes, strict=True)]
    if isinstance(X, str) or not isinstance(X, Sequence):
        raise TypeError(f"A study takes sequences of tokens, a table or classes, not {type(X).__name__}.")
    rows = [list(row) for row in X]
    if not rows:
        raise DataError("There is no sequence. Give at least one.")
    flat = [token.item() if isinstance(token, np.generic) else token for token in chain.from_iterable(rows)]
    kinds = {type(token) for token in flat} - {type(None)}
    if not (kinds <= {int} or kinds <= {str}):
        raise TypeError(
            f"Tokens are {', '.join(sorted(k.__name__ for k in kinds))}. Give whole numbers, or texts."
        )
    return pl.Series("token", flat), np.array([len(row) for row in rows])


def _from_table(frame: pl.DataFrame, columns: tuple[str, str, str]) -> tuple[pl.Series, NDArray[np.int64]]:
    for name in columns:
        if name not in frame.columns:
            raise DataError(
                f"Column {name!r} is not in the table. Columns: {', '.join(map(repr, frame.columns))}."
                f"{suggest(name, frame.columns)}"
            )
    sequence, time, item = columns
    # Stable: events at one time stay in the order of the table.
    ordered = frame.select(columns).sort(sequence, time, maintain_order=True)
    sizes = ordered.group_by(sequence, maintain_order=True).len()["len"].to_numpy()
    return ordered[item], sizes.astype(np.int64)


def _checked(values: pl.Series, allow_missing: bool) -> pl.Series:
    if values.dtype.is_float() or not (values.dtype.is_integer() or values.dtype in (pl.String, pl.Null)):
        raise TypeError(f"Tokens are {values.dtype}. Give whole numbers, or texts.")
    if values.null_count():
        if not allow_missing:
            raise DataError(
                f"{values.null_count()} items are missing, the first at row {values.is_null().arg_max()}. "
                "Leave them out, or pass allow_missing=True to make them a token."
            )
        values = values.cast(pl.String).fill_null(MISSING)
    return values


def _coded(values: pl.Series, max_vocab: int | None) -> tuple[NDArray[np.int64], list[Any], float]:
    """Numbers of the tokens, their names in sorted order, and the share of tokens outside the vocabulary."""
    unique, codes, counts = np.unique(values.to_numpy(), return_inverse=True, return_counts=True)
    names, codes = unique.tolist(), codes.astype(np.int64)
    if max_vocab is None or len(names) <= max_vocab:
        return codes, names, 0.0
    kept = np.sort(np.argsort(-counts, kind="stable")[:max_vocab])
    number = np.full(len(names), max_vocab)
    number[kept] = np.arange(max_vocab)
    codes = number[codes]
    return codes, [*(names[i] for i in kept), OTHER], float((codes == max_vocab).mean())


def bias_report(data: OwnData, z: NDArray[np.float64], random_state: int = 0) -> pl.DataFrame:
    """Return which tokens gained attention: rank correlations of logits with frequency and meaning.

    Parameters
    ----------
    data
        The classes of own sequences.
    z
        Attention logits of shape (queries, tokens), for example the mean over runs of ``parameters_.Z``.
    random_state
        Seed of the intervals.

    Returns
    -------
    Three rows, ``"frequency"`` (logarithm of the share in the query's contexts), ``"D"`` and ``"lift"``: Spearman's
    correlation with ``low`` and ``high`` (95 %, pairs of query and token drawn again), and the same of the early law's
    prediction, which needs no training. Pairs seen less than ``min_count`` times are left out.
    """
    table = data.grades().filter(pl.col("count") >= data.min_count)
    if len(table) < 3:
        raise DataError(
            f"Only {len(table)} pairs of query and token were seen {data.min_count} times. Give more data."
        )
    where = (table["query"].to_numpy(), table["token"].to_numpy())
    learnt, early = np.asarray(z)[where], attention_drift(data.classes)[where]
    rng = np.random.default_rng(random_state)
    draws = rng.integers(len(table), size=(_DRAWS, len(table)))
    rows = []
    against = {
        "frequency": np.log(table["p"].to_numpy()),
        "D": table["D"].to_numpy(),
        "lift": table["lift"].to_numpy(),
    }
    for name, values in against.items():
        drawn = [_rank_correlation(learnt[chosen], values[chosen]) for chosen in draws]
        low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
        rows.append(
            {
                "against": name,
                "correlation": _rank_correlation(learnt, values),
                "low": float(low),
                "high": float(high),
                "early_law": _rank_correlation(early, values),
                "n_pairs": len(table),
            }
        )
    return pl.DataFrame(rows)


def _rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's correlation; nan where one side is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(stats.spearmanr(one, other)[0])
