"""VSFormer as a classifier of aeon; needs the extra ``aeon``."""

from __future__ import annotations

from typing import Any, ClassVar

from seqattn.classify.faces import TEST_PARAMETERS, Face, with_parameters
from seqattn.errors import MissingDependencyError

try:
    from aeon.classification.base import BaseClassifier
except ImportError as error:
    raise MissingDependencyError(
        "seqattn.classify.aeon needs aeon. Install it with pip install 'seqattn[aeon]'."
    ) from error

__all__ = ["VSFormerClassifier"]


@with_parameters
class VSFormerClassifier(Face, BaseClassifier):
    """VSFormer as a classifier of aeon: unequal lengths, missing values, one or more channels.

    Parameters, defaults and results are those of :class:`seqattn.VSFormerClassifier`, which ``fit`` trains. ``X`` and
    ``y`` are whatever aeon takes.

    Attributes
    ----------
    classifier_
        The fitted :class:`seqattn.VSFormerClassifier`, for everything that only it can do: ``explain``, ``tokenise``,
        ``save``.
    classes_
        Labels in the order of the columns of ``predict_proba``.

    Examples
    --------
    >>> import numpy as np
    >>> from seqattn.classify.aeon import VSFormerClassifier
    >>> levels = np.repeat([0.0, 3.0], 10)
    >>> X = np.random.default_rng(0).normal(size=(20, 1, 12)) + levels[:, None, None]
    >>> y = np.repeat(["low", "high"], 10)
    >>> classifier = VSFormerClassifier(epochs=1, shape_tokens=8, readout_shapes=64, random_state=0)
    >>> classifier.fit(X, y).predict(X[[0, 19]])
    array(['low', 'high'], dtype='<U4')
    """

    _tags: ClassVar[dict[str, Any]] = {
        "X_inner_type": ["np-list", "numpy3D"],
        "algorithm_type": "hybrid",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "capability:missing_values": True,
        "capability:multithreading": True,
        "python_dependencies": ["torch"],
    }

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        return [dict(parameters) for parameters in TEST_PARAMETERS]
