"""What the faces of :class:`VSFormerClassifier` for other libraries share; it needs none of them."""

from __future__ import annotations

import abc
import inspect
import re
from typing import Any, Self, TypeVar

import numpy as np

from seqattn.classify.estimator import VSFormerClassifier

__all__ = ["TEST_PARAMETERS", "Face", "with_parameters"]

_Class = TypeVar("_Class")

_TINY: dict[str, Any] = {
    "epochs": 2,
    "d_model": 8,
    "n_heads": 2,
    "n_layers": 1,
    "shape_tokens": 8,
    "value_tokens": 8,
    "readout_shapes": 16,
    "random_state": 0,
}
# Settings with which a fit takes a fraction of a second, as the check suites of other libraries ask for.
TEST_PARAMETERS = ({**_TINY, "shapes": "dilated"}, {**_TINY, "shapes": "motif", "window_fractions": (0.5,)})


def with_parameters(face: type[_Class]) -> type[_Class]:
    """Return the class with the parameters of :class:`seqattn.VSFormerClassifier`, which are declared there only.

    Parameters
    ----------
    face
        Class whose base takes no arguments. Its docstring gets the text of the parameters before its attributes.

    Returns
    -------
    The same class. Its constructor stores each argument under its name, as given, and then calls that of the base.
    Whoever looks at its signature sees that of the plain classifier.
    """
    signature = inspect.signature(VSFormerClassifier.__init__)

    def construct(self: Any, **parameters: Any) -> None:
        bound = signature.bind(self, **parameters)
        bound.apply_defaults()
        for name, value in list(bound.arguments.items())[1:]:
            setattr(self, name, value)
        super(face, self).__init__()

    construct.__name__ = "__init__"
    vars(construct)["__signature__"] = signature
    face.__init__ = construct  # type: ignore[method-assign]
    abc.update_abstractmethods(face)
    text = re.search(
        r"^Parameters\n-+\n.*?(?=\n\n\w+\n-+\n|\Z)", inspect.getdoc(VSFormerClassifier) or "", re.M | re.S
    )
    if text and face.__doc__:
        face.__doc__ = inspect.cleandoc(face.__doc__).replace(
            "Attributes\n---", f"{text[0]}\n\nAttributes\n---", 1
        )
    return face


class Face:
    """Methods that a base classifier of another library calls with data it has checked and converted.

    The fitted plain classifier is kept as ``classifier_``.
    """

    classifier_: VSFormerClassifier

    def _fit(self, X: Any, y: np.ndarray) -> Self:
        parameters = self.get_params(deep=False)  # type: ignore[attr-defined]
        self.classifier_ = VSFormerClassifier(**parameters).fit(X, y)
        return self

    def _predict(self, X: Any) -> np.ndarray:
        return self.classifier_.predict(X)

    def _predict_proba(self, X: Any) -> np.ndarray:
        return self.classifier_.predict_proba(X)
