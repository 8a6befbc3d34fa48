"""What all point processes of this head share before any score: reading data, yielding states, saving."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from seqattn.data.batches import Batches, EventBatch, batches
from seqattn.data.sequences import Sequences
from seqattn.errors import ArtifactError, DataError, ParameterError
from seqattn.hawkes.histories import Histories
from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.tables import reading_names, window_of_fit
from seqattn.train.artifact import Artifact, decode_label, encode_label, save_artifact
from seqattn.train.distributed import scoring_processes
from seqattn.train.parameters import decode_parameter, encode_parameter, encode_parameters

# Tokens per batch where no gradient is kept.
_SCORING_BATCH = 8192
# Most (token, type) pairs per batch, so that thousands of types fit in memory. With 4 million a block in float64 has
# 32 MB, just below the limit from which glibc gives memory back at once, and the heap fragments.
_SCORING_CELLS = 6_000_000

T = TypeVar("T")


class EventEstimator(BaseEstimator):
    """Reading, states and files of the estimators for event sequences in continuous time.

    A subclass fits itself, packs sequences for scoring (:meth:`_packed`) and computes the intensities after each
    token of a batch (:meth:`_state`). What can be asked of it then stands in the chapters that
    :class:`seqattn.hawkes.process.PointProcess` joins.
    """

    _fitted: ClassVar[tuple[str, ...]] = ()

    types: int | Sequence[Any] | None
    columns: Mapping[str, str] | None
    window: Any
    unknown: str
    labels_: tuple[Any, ...]
    n_types_: int
    unit_: str | None
    first_share_: NDArray[np.float64] | None = None
    scale_ = 1.0

    @abstractmethod
    def _histories(self, sequences: Sequences) -> Histories:
        """Return the states just after the last events, in model units, to which events can be added."""

    @abstractmethod
    def _packed(self, sequences: Sequences) -> Batches:
        """Return batches for scoring, in model units."""

    @abstractmethod
    def _state(self, batch: EventBatch) -> tuple[EventBatch, Intensity]:
        """Return a batch where the model computes, and the intensities after each of its tokens, in model units."""

    def _states(self, sequences: Sequences) -> Iterator[tuple[EventBatch, Intensity]]:
        """Yield packed batches with the intensities after each of their tokens."""
        return (self._state(batch) for batch in self._packed(sequences))

    def _each(self, sequences: Sequences, work: Callable[[EventBatch, Intensity], T]) -> list[T]:
        """Return what a function gives for each batch and its intensities; processes together share the batches."""
        return scoring_processes().map(lambda batch: work(*self._state(batch)), self._packed(sequences))

    def _read(self, X: Any, **options: Any) -> Sequences:
        """Return the input as sequences; tables are read with the estimator's columns and window."""
        if isinstance(X, Sequences):
            return Sequences.of(X, **options)
        reading = reading_names(self.columns)
        return Sequences.of(X, window=getattr(self, "window_", self.window), **reading, **options)

    def _read_training(self, X: Any) -> Sequences:
        """Read the data of ``fit`` and remember what later data are read with."""
        if self.unknown not in ("error", "ignore"):
            raise ParameterError(f"unknown={self.unknown!r} is not known. Use 'error' or 'ignore'.")
        self.__dict__.pop("window_", None)  # what an earlier fit remembered
        sequences = self._read(X, **({} if self.types is None else {"labels": self.types}))
        if sequences.n_events == 0:
            raise DataError("There is no event in the training data. Check the table and its columns.")
        self.labels_ = sequences.labels
        self.n_types_ = len(sequences.labels)
        self.unit_ = sequences.unit
        self.window_ = window_of_fit(self.window, sequences)
        self.first_share_ = _first_share(sequences)
        return sequences

    def _read_new(self, X: Any) -> Sequences:
        check_is_fitted(self, "labels_")
        sequences = self._read(X, labels=self.labels_, unknown=self.unknown)
        if sequences.unit != self.unit_:
            kinds = ["dates" if unit else "numbers" for unit in (sequences.unit, self.unit_)]
            raise DataError(f"The times are {kinds[0]}, but the model was fitted to {kinds[1]}. Give those.")
        return sequences

    def _buckets(self, sequences: Sequences, dtype: torch.dtype, recency: bool = False) -> Batches:
        """Return batches bucketed by length, never shuffled, smaller where there are many types."""
        budget = max(256, min(_SCORING_BATCH, _SCORING_CELLS // self.n_types_))
        return batches(sequences, budget, scale=self.scale_, dtype=dtype, recency=recency)

    def save(self, path: str | Path) -> Path:
        """Write the fitted estimator to one safetensors file; open it with :func:`seqattn.load`.

        Parameters
        ----------
        path
            File to write, or an existing folder, in which it becomes ``model.safetensors``.

        Returns
        -------
        The path of the file.

        Raises
        ------
        ArtifactError
            A parameter or label cannot be written as JSON.
        """
        check_is_fitted(self, "labels_")
        return save_artifact(path, type(self).__name__, *self._export())

    @classmethod
    def _from_artifact(cls, artifact: Artifact) -> Self:
        try:
            return cls._restored(artifact.tensors, artifact.metadata)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The file holds a {cls.__name__} whose parts do not fit together ({type(error).__name__}). "
                "Save the model again just after fit, with its parameters unchanged."
            ) from error

    def _export(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a file holds: tensors by name, and JSON values."""
        values = {name: getattr(self, name) for name in self._fitted}
        tensors = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        metadata = {
            "params": encode_parameters(self.get_params(deep=False), "Pass it with the data (Sequences)"),
            "labels": [encode_label(label) for label in self.labels_],
            "unit": self.unit_,
            "window": encode_parameter(self.window_),
            "first_share": None if self.first_share_ is None else self.first_share_.tolist(),
            "fitted": {name: value for name, value in values.items() if name not in tensors},
        }
        return tensors, metadata

    @classmethod
    def _restored(cls, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> Self:
        model = cls(**{name: decode_parameter(value) for name, value in metadata["params"].items()})
        model.labels_ = tuple(decode_label(label) for label in metadata["labels"])
        model.n_types_ = len(model.labels_)
        model.unit_ = metadata["unit"]
        model.window_ = decode_parameter(metadata["window"])
        share = metadata["first_share"]
        model.first_share_ = None if share is None else np.array(share)
        for name, value in metadata["fitted"].items():
            setattr(model, name, value)
        for name in set(cls._fitted) - set(metadata["fitted"]):
            setattr(model, name, tensors[name].numpy())
        return model


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse a parameter that is not a whole number of a least size."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ParameterError(f"{name}={value!r} is not allowed. Give a whole number, at least {least}.")


def _first_share(sequences: Sequences) -> NDArray[np.float64] | None:
    """Return how often each type comes first if all windows are told to begin at an event, else None."""
    full = sequences.lengths > 0
    if not full.any() or not (np.asarray(sequences.context)[full] > 0).all():
        return None
    counts = np.bincount(sequences.types[sequences.offsets[:-1][full]], minlength=sequences.n_types)
    share: NDArray[np.float64] = counts / counts.sum()
    return share
