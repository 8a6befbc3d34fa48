import pickle
import re

import pytest

from seqattn import errors
from seqattn.errors import (
    ArtifactError,
    BackendError,
    DataError,
    FitError,
    MissingDependencyError,
    ParameterError,
    SeqattnError,
    SeqattnWarning,
    StudyError,
    suggest,
)

EXIT_CODES = {
    SeqattnError: 1,
    DataError: 3,
    ParameterError: 2,
    BackendError: 1,
    FitError: 1,
    ArtifactError: 3,
    StudyError: 1,
    MissingDependencyError: 4,
}


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (DataError, ValueError),
        (ParameterError, ValueError),
        (BackendError, RuntimeError),
        (FitError, RuntimeError),
        (ArtifactError, RuntimeError),
        (StudyError, RuntimeError),
        (MissingDependencyError, ImportError),
    ],
)
def test_each_error_is_caught_as_the_packages_own_and_as_the_builtin_one(error, builtin):
    assert error.__bases__ == (SeqattnError, builtin)


@pytest.mark.parametrize("error", EXIT_CODES)
def test_each_error_carries_its_exit_code(error):
    assert error("text").exit_code == EXIT_CODES[error]


def test_the_tree_in_the_docstring_is_the_tree_of_the_code():
    drawn = {
        name: (builtin, int(code))
        for name, builtin, code in re.findall(r"── (\w+)\((\w+)\)\s+(\d)", errors.__doc__)
    }
    defined = {
        error.__name__: (error.__bases__[1].__name__, error.exit_code)
        for error in SeqattnError.__subclasses__()
    }
    assert drawn == defined


def test_the_warning_is_not_an_error_and_can_be_filtered_by_its_class():
    assert issubclass(SeqattnWarning, UserWarning)
    assert not issubclass(SeqattnWarning, SeqattnError)


@pytest.mark.parametrize("error", EXIT_CODES)
def test_errors_cross_process_borders_whole(error):
    copy = pickle.loads(pickle.dumps(error("what is wrong")))
    assert type(copy) is error
    assert str(copy) == "what is wrong"


@pytest.mark.parametrize(
    ("name", "allowed", "text"),
    [
        ("learning_rat", ["epochs", "learning_rate"], " Did you mean 'learning_rate'?"),
        ("item", ("time", "item_id"), " Did you mean 'item_id'?"),
        ("qqq", ["epochs"], ""),
        ("epochs", [], ""),
        (3, [30, 4], " Did you mean '30'?"),
    ],
)
def test_suggest_names_the_nearest_word_or_nothing(name, allowed, text):
    assert suggest(name, allowed) == text


def test_suggest_reads_any_iterable():
    assert suggest("taxy", iter({"taxi": 1})) == " Did you mean 'taxi'?"
