"""Simple classifiers that every evaluation is printed beside, and what classifiers of whole panels share."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.validation import check_is_fitted

from seqattn.classify.series import Scaling
from seqattn.data.panels import Panel
from seqattn.errors import ArtifactError, DataError
from seqattn.train.artifact import Artifact, decode_label, encode_label, save_artifact
from seqattn.train.parameters import decode_parameter, encode_parameters

__all__ = ["MajorityClass", "NearestNeighbour", "PanelClassifier"]


class PanelClassifier(ClassifierMixin, BaseEstimator):
    """Base of the classifiers that keep their training cases: whoever opens a saved one learns from them again."""

    classes_: NDArray[Any]
    training_: Panel

    @abstractmethod
    def _learn(self, panel: Panel, codes: NDArray[np.intp]) -> None:
        """Learn from training cases and the positions of their classes."""

    @abstractmethod
    def _probabilities(self, panel: Panel) -> NDArray[np.float64]:
        """Return the probabilities ``(cases, classes)`` of cases."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from training cases.

        Parameters
        ----------
        X
            Series of any form that :meth:`seqattn.data.panels.Panel.of` takes.
        y
            One label per case; None takes those of a panel or a file.

        Raises
        ------
        DataError
            The series or labels cannot be used.
        """
        panel = Panel.of(X, y)
        if panel.labels is None:
            raise DataError("There are no labels to learn from. Give y, one label per case.")
        self.classes_, codes = np.unique(panel.labels, return_inverse=True)
        self.training_ = panel
        self._learn(panel, codes)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class, ``(cases, classes)`` in the order of ``classes_``.

        Parameters
        ----------
        X
            As in :meth:`fit`.

        Raises
        ------
        DataError
            The cases have another number of channels than those of the fit.
        """
        check_is_fitted(self, "classes_")
        panel = Panel.of(X)
        if panel.n_channels != self.training_.n_channels:
            raise DataError(
                f"The cases have {panel.n_channels} channel(s), but the classifier was fitted with "
                f"{self.training_.n_channels}. Give the same channels in the same order."
            )
        return self._probabilities(panel)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each case.

        Parameters
        ----------
        X
            As in :meth:`fit`.
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        sample_weight
            Weights of the cases; None weighs all alike.
        """
        labels = Panel.of(X, y).labels
        if labels is None:
            raise DataError("There are no labels to compare with. Give y, one label per case.")
        return float(np.average(self.predict(X) == labels, weights=sample_weight))

    def save(self, path: str | Path) -> Path:
        """Write settings, classes and training cases to one file; open it with :func:`seqattn.load`.

        The file holds no parts of the fitted classifier and nothing that can run code. Opening it fits the classifier
        again, which takes as long as the fit did and gives the same predictions with the same versions of packages.

        Parameters
        ----------
        path
            File to write, or an existing folder, in which it becomes ``model.safetensors``.

        Returns
        -------
        The path of the file.
        """
        check_is_fitted(self, "classes_")
        panel = self.training_
        tensors = {
            "values": np.concatenate([case.reshape(-1) for case in panel.series]),
            "lengths": np.asarray(panel.lengths, dtype=np.int64),
            "codes": np.searchsorted(self.classes_, np.asarray(panel.labels)),
        }
        metadata = {
            "params": encode_parameters(self.get_params(deep=False)),
            "classes": [encode_label(label) for label in self.classes_.tolist()],
            "labels": self.classes_.dtype.str,
            "n_channels": panel.n_channels,
            "seed": self._seed(),
        }
        return save_artifact(path, type(self).__name__, tensors, metadata)

    def _seed(self) -> int | None:
        """Return the seed that was used, for classifiers that draw."""
        return None

    @classmethod
    def _from_artifact(cls, artifact: Artifact) -> Self:
        try:
            return cls._again(artifact)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The file holds a {cls.__name__} whose parts do not fit together ({type(error).__name__}). "
                "Save the classifier again just after fit, with its parameters unchanged."
            ) from error

    @classmethod
    def _again(cls, artifact: Artifact) -> Self:
        about = artifact.metadata
        tensors = {name: tensor.numpy() for name, tensor in artifact.tensors.items()}
        sizes = tensors["lengths"] * about["n_channels"]
        cases = np.split(tensors["values"], np.cumsum(sizes)[:-1])
        classes = np.array([decode_label(label) for label in about["classes"]], dtype=about["labels"])
        panel = Panel([case.reshape(about["n_channels"], -1) for case in cases], classes[tensors["codes"]])
        given = {name: decode_parameter(value) for name, value in about["params"].items()}
        model = cls(**given)
        if about["seed"] is not None:
            model.set_params(random_state=about["seed"])
        return model.fit(panel).set_params(**given)


class MajorityClass(PanelClassifier):
    """The shares of the classes in training for every case, so that the largest class is predicted.

    Examples
    --------
    >>> model = MajorityClass().fit(np.zeros((4, 1, 5)), ["a", "b", "b", "b"])
    >>> model.predict_proba(np.ones((1, 1, 5))).tolist(), model.predict(np.ones((1, 1, 5))).tolist()
    ([[0.25, 0.75]], ['b'])
    """

    def _learn(self, panel: Panel, codes: NDArray[np.intp]) -> None:
        self.share_ = np.bincount(codes) / len(codes)

    def _probabilities(self, panel: Panel) -> NDArray[np.float64]:
        return np.tile(self.share_, (len(panel), 1))


class NearestNeighbour(PanelClassifier):
    """The class of the nearest training case by Euclidean distance over all channels and times.

    Channels are scaled by mean and standard deviation of the training data. Gaps are filled by straight lines, series
    are cut at the longest training length, and shorter ones continue with the mean. Of equally near cases the first
    decides; probabilities are 0 and 1.

    Examples
    --------
    >>> model = NearestNeighbour().fit([[[0.0, 0.0]], [[1.0, 2.0]]], ["low", "high"])
    >>> model.predict([[[0.9, 1.0, 1.0]]]).tolist()
    ['high']
    """

    def _learn(self, panel: Panel, codes: NDArray[np.intp]) -> None:
        self.scaling_ = Scaling.of(panel, max_length=int(panel.lengths.max()))
        self.neighbours_ = KNeighborsClassifier(n_neighbors=1, algorithm="brute")
        self.neighbours_.fit(self._rows(panel), codes)

    def _probabilities(self, panel: Panel) -> NDArray[np.float64]:
        return np.eye(len(self.classes_))[self.neighbours_.predict(self._rows(panel))]

    def _rows(self, panel: Panel) -> NDArray[np.float64]:
        values = self.scaling_.apply(panel).values[..., : self.scaling_.length]
        return np.pad(values, ((0, 0), (0, 0), (0, self.scaling_.length - values.shape[-1]))).reshape(
            len(panel), -1
        )
