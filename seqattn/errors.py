"""Errors and warnings that seqattn raises.

::

    SeqattnError                     exit code 1
    ├── DataError(ValueError)        3  the data given cannot be used
    │   └── UnknownIdError (also a KeyError)  a user or item that the fit has not seen
    ├── ParameterError(ValueError)   2  an argument is wrong
    ├── BackendError(RuntimeError)   1  a device or kernel cannot do what was asked
    ├── FitError(RuntimeError)       1  training cannot go on
    ├── ArtifactError(RuntimeError)  3  a saved file is foreign, damaged or too new
    ├── StudyError(RuntimeError)     1  a search for settings has none that can be taken
    └── MissingDependencyError(ImportError)  4  an optional package is absent
    SeqattnWarning(UserWarning)      the result may mislead, and the caller can act

The exit codes are those of the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "ArtifactError",
    "BackendError",
    "DataError",
    "FitError",
    "MissingDependencyError",
    "ParameterError",
    "SeqattnError",
    "SeqattnWarning",
    "StudyError",
    "UnknownIdError",
    "suggest",
]


class SeqattnError(Exception):
    """Base of every error that seqattn raises on purpose."""

    exit_code = 1


class DataError(SeqattnError, ValueError):
    """The data given cannot be used as it is."""

    exit_code = 3


class UnknownIdError(DataError, KeyError):
    """A user or an item was asked for that is not known from the fit."""

    __str__ = Exception.__str__  # a KeyError would show the text in quotes


class ParameterError(SeqattnError, ValueError):
    """An argument has a name or value that is not allowed."""

    exit_code = 2


class BackendError(SeqattnError, RuntimeError):
    """A device, precision or attention kernel cannot do what was asked."""


class FitError(SeqattnError, RuntimeError):
    """Training cannot go on: a loss or gradient is not finite."""


class ArtifactError(SeqattnError, RuntimeError):
    """A saved file is missing, foreign, damaged or from a newer version."""

    exit_code = 3


class StudyError(SeqattnError, RuntimeError):
    """A search for settings has no trial that can be taken.

    Parameters
    ----------
    message
        Why.
    outcome
        What was found all the same, a :class:`seqattn.train.search.Outcome`.
    """

    def __init__(self, message: str, outcome: Any = None) -> None:
        super().__init__(message)
        self.outcome = outcome


class MissingDependencyError(SeqattnError, ImportError):
    """An optional package that this call needs is not installed."""

    exit_code = 4


class SeqattnWarning(UserWarning):
    """The result may mislead, and the caller can do something about it."""


def suggest(name: object, allowed: Iterable[object]) -> str:
    """Return a sentence that names the nearest allowed word, whatever its case, or an empty string.

    Parameters
    ----------
    name
        The word that was given.
    allowed
        The words that are possible.

    Returns
    -------
    A text that begins with a space, fit to be appended to an error message.

    Examples
    --------
    >>> suggest("item", ["item_id", "time"])
    " Did you mean 'item_id'?"
    >>> suggest("sasrec", ["SASRecCPR", "SASRec"])
    " Did you mean 'SASRec'?"
    >>> suggest("zzz", ["item_id", "time"])
    ''
    """
    words = {str(word).casefold(): str(word) for word in allowed}
    near = difflib.get_close_matches(str(name).casefold(), words, n=1, cutoff=0.5)
    return f" Did you mean {words[near[0]]!r}?" if near else ""
