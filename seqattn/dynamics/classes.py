"""Sequence classes: which query and tokens lead to which next token, the data of a scan-and-snap study."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import eigsh

from seqattn.dynamics.assumptions import AssumptionReport, report
from seqattn.errors import DataError, SeqattnWarning

__all__ = ["SequenceClasses"]

_SUM_TOLERANCE = 1e-8
# With more classes only the largest eigenvalue is sought: all of them take 20 s at 5000.
_ALL_EIGENVALUES = 1000


class SequenceClasses:
    r"""Classes of sequences, each a query, a next token and a distribution of context tokens.

    A sequence of class :math:`k` holds context tokens drawn from :math:`P_k`, ends with the query :math:`\psi(k)`,
    and is followed by the token :math:`y(k)`. A token is *distinct* if one class has it, *common* if several have.

    Parameters
    ----------
    P
        Probability of each token in each class, of shape (classes, tokens), dense or a scipy sparse array. Rows sum
        to 1.
    query
        Query of each class, whole numbers from 0.
    label
        Next token of each class as a column of the decoder, whole numbers from 0. Labels may repeat.
    weight
        Share of each class; equal shares by default. Sums to 1.
    token_names
        Names of the tokens; their numbers by default.
    n_outputs
        Columns V of the decoder; as many as the labels need by default.
    n_queries
        Rows Q of the attention logits; as many as the queries need by default.
    query_tokens
        Which token each query is; needed by ``residual=True`` only.
    label_tokens
        Which token each column of the decoder is; needed by the standard model only.
    normalize
        Whether rows of ``P`` and the weights are divided by their sums.

    Raises
    ------
    DataError
        A row is no distribution, a class has no token, or a label or query is out of range; the class is named.
    TypeError
        Queries or labels are no whole numbers.

    Examples
    --------
    >>> classes = SequenceClasses([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]], query=[0, 0], label=[0, 1])
    >>> classes.kinds().tolist()
    ['common', 'distinct', 'distinct']
    >>> round(classes.lam_max, 12)
    0.5
    """

    def __init__(
        self,
        P: Any,
        query: Any,
        label: Any,
        weight: Any = None,
        token_names: Sequence[Any] | None = None,
        n_outputs: int | None = None,
        *,
        n_queries: int | None = None,
        query_tokens: Any = None,
        label_tokens: Any = None,
        normalize: bool = False,
    ) -> None:
        matrix = _matrix(P)
        self.query = _whole(query, "query", matrix.shape[0])
        self.label = _whole(label, "label", matrix.shape[0])
        shares = np.full(matrix.shape[0], 1 / matrix.shape[0]) if weight is None else _weights(weight, matrix)
        self.matrix = _checked_rows(matrix, normalize)
        self.weight = _checked_weights(shares, normalize)
        self.n_queries = _range("query", self.query, n_queries, "n_queries")
        self.n_outputs = _range("label", self.label, n_outputs, "n_outputs")
        self.token_names = _names(token_names, matrix.shape[1])
        self.query_tokens = _tokens(query_tokens, "query_tokens", self.n_queries, matrix.shape[1])
        self.label_tokens = _tokens(label_tokens, "label_tokens", self.n_outputs, matrix.shape[1])
        self._warn_where_attention_is_idle()

    def __repr__(self) -> str:
        return (
            f"SequenceClasses({len(self)} classes, {self.n_tokens} tokens, {self.n_queries} queries, "
            f"{self.n_outputs} outputs)"
        )

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def n_tokens(self) -> int:
        """Number of tokens, M."""
        return int(self.matrix.shape[1])

    @cached_property
    def P(self) -> NDArray[np.float64]:  # noqa: N802 - the equations' letter
        """Probabilities as a dense array of shape (classes, tokens)."""
        return np.asarray(self.matrix.todense())

    @cached_property
    def gram(self) -> Float[np.ndarray, "classes classes"]:
        """Scalar products of the classes' distributions, each scaled to length 1, before training."""
        lengths = np.sqrt(np.asarray(self.matrix.power(2).sum(axis=1)).ravel())
        product = (self.matrix @ self.matrix.T).todense() / np.outer(lengths, lengths)
        return np.asarray(product)

    @cached_property
    def _deviations(self) -> NDArray[np.float64]:
        return np.abs(np.linalg.eigvalsh(self.gram - np.eye(len(self))))

    @cached_property
    def lam_max(self) -> float:
        """Largest absolute eigenvalue of ``gram`` minus the identity; the paper needs less than 1/K."""
        if len(self) <= _ALL_EIGENVALUES:
            return float(self._deviations.max())
        start = np.ones(len(self))  # else drawn from numpy's global generator
        values = eigsh(self.gram - np.eye(len(self)), k=1, v0=start, return_eigenvectors=False)
        return float(np.abs(values[0]))

    @property
    def lam_min(self) -> float:
        """Smallest absolute eigenvalue of ``gram`` minus the identity; the paper needs more than 6/sqrt(M).

        nan for more than 1000 classes.
        """
        return float(self._deviations.min()) if len(self) <= _ALL_EIGENVALUES else float("nan")

    @cached_property
    def owner(self) -> Int[np.ndarray, " tokens"]:
        """Class of each distinct token, -1 for other tokens."""
        columns = self.matrix.tocsc()
        counts = np.diff(columns.indptr)
        owners = np.full(self.n_tokens, -1)
        alone = np.flatnonzero(counts == 1)
        owners[alone] = columns.indices[columns.indptr[alone]]
        return owners

    def kinds(self, local: bool = False) -> NDArray[Any]:
        """Tell which tokens are common, distinct and absent.

        Parameters
        ----------
        local
            Whether classes are compared within one query only, which is what counts beside a residual connection.

        Returns
        -------
        ``"common"``, ``"distinct"`` or ``"absent"``, of shape (tokens,), or (queries, tokens) if ``local``.
        """
        present = (self.matrix > 0).astype(np.int64)
        if local:
            shape = (self.n_queries, len(self))
            rows = sparse.csr_array((np.ones(len(self)), (self.query, np.arange(len(self)))), shape=shape)
            counts = np.asarray((rows @ present).todense())
        else:
            counts = np.asarray(present.sum(axis=0)).ravel()
        return np.select([counts == 0, counts == 1], ["absent", "distinct"], "common")

    def assumption_report(self, **settings: Any) -> AssumptionReport:
        """Check what the paper's theorems assume.

        Parameters
        ----------
        **settings
            What is known of the training: any of ``lr_y``, ``lr_z``, ``n_steps``, ``norm``, ``optimizer``,
            ``momentum``, ``init`` and ``seq_len``. What is not given is not checked.

        Returns
        -------
        One row per assumption with what is needed, what was found, and whether it holds.
        """
        return report(self, **settings)

    def sample(self, n: int, length: int, rng: np.random.Generator, *, counts: bool = False) -> Any:
        """Draw sequences.

        Parameters
        ----------
        n
            Number of sequences.
        length
            Context tokens of each, the query not counted; at least 1.
        rng
            Source of the draws.
        counts
            Whether only the number of each token is drawn, which says the same to a model without positions.

        Returns
        -------
        Three arrays: tokens of shape (n, length), or counts of shape (n, tokens); queries; labels.
        """
        rows = self.sample_classes(n, rng)
        drawn = self.sample_counts(rows, length, rng)
        if counts:
            return drawn, self.query[rows], self.label[rows]
        ordered = np.repeat(np.tile(np.arange(self.n_tokens), n), drawn.ravel()).reshape(n, length)
        return rng.permuted(ordered, axis=1), self.query[rows], self.label[rows]

    def sample_classes(self, n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Draw classes by their weight.

        Parameters
        ----------
        n
            How many.
        rng
            Source of the draws.
        """
        places = np.searchsorted(self._cumulative, rng.random(n), side="right")
        return np.minimum(places, len(self) - 1)

    def sample_counts(
        self, rows: Int[np.ndarray, " n"], length: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "n tokens"]:
        """Draw how often each token occurs in a context.

        Parameters
        ----------
        rows
            The class of each sequence.
        length
            Context tokens of each.
        rng
            Source of the draws.
        """
        tokens, chances = self._supports
        drawn = np.zeros((len(rows), self.n_tokens), dtype=np.int64)
        # Padding repeats the first token with chance 0, and so adds nothing to it.
        np.add.at(
            drawn, (np.arange(len(rows))[:, None], tokens[rows]), rng.multinomial(length, chances[rows])
        )
        return drawn

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        return np.cumsum(self.weight)

    @cached_property
    def _supports(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens of each class and their chances, padded at the front to equal length."""
        sizes = np.diff(self.matrix.indptr)
        tokens = np.repeat(self.matrix.indices[self.matrix.indptr[:-1], None], sizes.max(), axis=1)
        chances = np.zeros(tokens.shape)
        for row, size in enumerate(sizes):
            part = slice(self.matrix.indptr[row], self.matrix.indptr[row + 1])
            # At the end: the last chance is never read, what is left falls to the last token.
            tokens[row, -size:] = self.matrix.indices[part]
            chances[row, -size:] = self.matrix.data[part]
        return tokens.astype(np.int64), chances

    def digest(self) -> str:
        """Return a SHA-256 of all that training depends on."""
        digest = hashlib.sha256(repr((self.matrix.shape, self.n_queries, self.n_outputs)).encode())
        for part in (self.matrix.indptr, self.matrix.indices):
            digest.update(part.astype("<i8").tobytes())
        for part in (self.matrix.data, self.weight):
            digest.update(part.astype("<f8").tobytes())
        for part in (self.query, self.label, self.query_tokens, self.label_tokens):
            digest.update(b"-" if part is None else part.astype("<i8").tobytes())
        return digest.hexdigest()

    def with_outputs(self, n_outputs: int) -> Self:
        """Return the same classes for a decoder of another size.

        Parameters
        ----------
        n_outputs
            Columns of the decoder.

        Raises
        ------
        DataError
            A label has no column there.
        """
        return type(self)(
            self.matrix,
            self.query,
            self.label,
            self.weight,
            self.token_names,
            n_outputs,
            n_queries=self.n_queries,
            query_tokens=self.query_tokens,
        )

    def _warn_where_attention_is_idle(self) -> None:
        pairs = {(q, y) for q, y in zip(self.query.tolist(), self.label.tolist(), strict=True)}
        if len(pairs) == len({q for q, _ in pairs}):
            warnings.warn(
                "No query has two next tokens: the query alone decides, and attention is not needed. "
                "Give at least two classes with one query and different labels.",
                SeqattnWarning,
                stacklevel=3,
            )


def _matrix(P: Any) -> sparse.csr_array:
    try:
        matrix = sparse.csr_array(
            P if sparse.issparse(P) else np.asarray(P, dtype=np.float64), dtype=np.float64
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"P is no table of numbers of shape (classes, tokens): {error}") from None
    if matrix.ndim != 2 or not all(matrix.shape):
        raise DataError(f"P has shape {matrix.shape}. Give (classes, tokens), at least one of each.")
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _checked_rows(matrix: sparse.csr_array, normalize: bool) -> sparse.csr_array:
    for k in range(matrix.shape[0]):
        row = matrix.data[matrix.indptr[k] : matrix.indptr[k + 1]]
        if not np.isfinite(row).all() or (row < 0).any():
            bad = row[~(np.isfinite(row) & (row >= 0))][0]
            raise DataError(f"P of class {k} holds {float(bad)!r}. Give probabilities, 0 or more.")
        if not len(row):
            raise DataError(f"Class {k} has no token. Give P a positive entry there, or leave the class out.")
        if not normalize and abs(row.sum() - 1) > _SUM_TOLERANCE:
            raise DataError(
                f"P of class {k} sums to {float(row.sum())!r}, not 1. Pass normalize=True to rescale it."
            )
    if normalize:
        matrix = sparse.csr_array(sparse.diags_array(1 / matrix.sum(axis=1)) @ matrix)
    return matrix


def _weights(weight: Any, matrix: sparse.csr_array) -> NDArray[np.float64]:
    shares = np.asarray(weight, dtype=np.float64)
    if shares.shape != matrix.shape[:1]:
        raise DataError(
            f"weight has shape {shares.shape}. Give one share for each of {matrix.shape[0]} classes."
        )
    return shares


def _checked_weights(shares: NDArray[np.float64], normalize: bool) -> NDArray[np.float64]:
    wrong = np.flatnonzero(~(np.isfinite(shares) & (shares > 0)))
    if len(wrong):
        raise DataError(f"weight of class {wrong[0]} is {float(shares[wrong[0]])!r}. Give a positive share.")
    if not normalize and abs(shares.sum() - 1) > _SUM_TOLERANCE:
        raise DataError(
            f"The weights sum to {float(shares.sum())!r}, not 1. Pass normalize=True to rescale them."
        )
    return shares / shares.sum() if normalize else shares


def _whole(values: Any, name: str, n: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} holds {array.dtype}. Give whole numbers from 0.")
    if array.shape != (n,):
        raise DataError(f"{name} has shape {array.shape}. Give one number for each of {n} classes.")
    return array.astype(np.int64)


def _range(name: str, values: NDArray[np.int64], n: int | None, argument: str) -> int:
    size = int(values.max()) + 1 if n is None else int(n)
    distinct = len(np.unique(values))
    if size < distinct and values.min() >= 0:
        raise DataError(
            f"{argument}={size}, but there are {distinct} different {name}s. Give at least as many."
        )
    wrong = np.flatnonzero((values < 0) | (values >= size))
    if len(wrong):
        raise DataError(
            f"The {name} of class {wrong[0]} is {values[wrong[0]]}. Allowed: 0 to {size - 1} ({argument})."
        )
    return size


def _names(names: Sequence[Any] | None, n: int) -> tuple[Any, ...]:
    found = tuple(range(n)) if names is None else tuple(names)
    if len(found) != n:
        raise DataError(f"token_names has {len(found)} entries, P {n} tokens. Give one name for each.")
    return found


def _tokens(tokens: Any, name: str, n: int, n_tokens: int) -> NDArray[np.int64] | None:
    if tokens is None:
        return None
    array = np.asarray(tokens)
    if array.shape != (n,) or array.dtype.kind not in "iu" or (array < 0).any() or (array >= n_tokens).any():
        raise DataError(
            f"{name} must be {n} whole numbers from 0 to {n_tokens - 1}; got shape {array.shape}, {array.dtype}."
        )
    return array.astype(np.int64)
