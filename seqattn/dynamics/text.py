"""Texts as numbers: a vocabulary from the training part, and windows of words with the words that follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from seqattn.dynamics.own import OTHER, words
from seqattn.errors import DataError, ParameterError

__all__ = ["Corpus", "drawn_starts", "even_starts", "lines_of", "read_corpus", "windows"]


@dataclass(frozen=True)
class Corpus:
    """A text in two parts.

    Attributes
    ----------
    train, valid
        Numbers of the words, one after the other, with end marks of the lines.
    names
        The words; the last one, ``"<other>"``, stands for all outside the vocabulary.
    other_mass
        Share of the training part that it stands for.
    """

    train: NDArray[np.int32]
    valid: NDArray[np.int32]
    names: list[str]
    other_mass: float

    def counts(self) -> NDArray[np.int64]:
        """Return how often each word occurs in the training part."""
        return np.bincount(self.train, minlength=len(self.names))


def lines_of(path: str | Path) -> Iterator[list[str]]:
    """Read the lines of a text file as lists of lower-case words, each with an end mark.

    Parameters
    ----------
    path
        A file in UTF-8; a mark of the order of bytes at its start is left out.

    Raises
    ------
    DataError
        The file is not in UTF-8, or is no file that can be read; says where.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for line in file:
                yield from words(line)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is no text in UTF-8: byte {error.object[error.start]:#04x} cannot be read. "
            "Save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(
            f"{str(path)!r} cannot be read: {error.strerror or error}. Name a text file."
        ) from error


def read_corpus(train: str | Path, valid: str | Path, max_vocab: int) -> Corpus:
    """Read a text whose vocabulary is that of its training part.

    The files are read line by line and twice, so that no more than the numbers and the vocabulary is in memory.

    Parameters
    ----------
    train, valid
        Text files.
    max_vocab
        Words with a number of their own, the most frequent ones; words that are equally frequent in the order of the
        alphabet.

    Raises
    ------
    DataError
        A file cannot be read, or has no words.
    """
    if max_vocab < 2:
        raise ParameterError(f"max_vocab={max_vocab!r} is not allowed. Give a whole number, at least 2.")
    counts = Counter(chain.from_iterable(lines_of(train)))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:max_vocab]
    names = [*sorted(frequent), OTHER]
    numbers = {name: number for number, name in enumerate(names)}
    other = len(names) - 1
    parts = []
    for path in (train, valid):
        read = (numbers.get(word, other) for line in lines_of(path) for word in line)
        parts.append(np.fromiter(read, dtype=np.int32))
        if not len(parts[-1]):
            raise DataError(f"{str(path)!r} has no words. Give a text.")
    return Corpus(parts[0], parts[1], names, float((parts[0] == other).mean()))


def drawn_starts(n_words: int, window: int, n: int, rng: np.random.Generator) -> Int[np.ndarray, " windows"]:
    """Return places where windows begin, drawn at random; each leaves room for the word that follows.

    Parameters
    ----------
    n_words
        Length of the text.
    window
        Words in a window.
    n
        Number of windows.
    rng
        Source of the draws.
    """
    return rng.integers(_room(n_words, window), size=n)


def even_starts(n_words: int, window: int, n: int) -> Int[np.ndarray, " windows"]:
    """Return places where windows begin, as far from each other as possible; fewer where the text is short.

    Parameters
    ----------
    n_words, window, n
        As in :func:`drawn_starts`.
    """
    return np.unique(np.linspace(0, _room(n_words, window) - 1, n).astype(np.int64))


def _room(n_words: int, window: int) -> int:
    if n_words <= window:
        raise DataError(
            f"The text has {n_words} words, a window {window} and one to predict. Give a longer text, or a shorter "
            "window."
        )
    return n_words - window


def windows(
    text: NDArray[np.int32], starts: Int[np.ndarray, " windows"], window: int
) -> tuple[Int[np.ndarray, "windows window"], Int[np.ndarray, "windows window"]]:
    """Return windows of words, and for each place the word that follows.

    Parameters
    ----------
    text
        Numbers of the words.
    starts
        Where the windows begin.
    window
        Words in each.

    Examples
    --------
    >>> seen, following = windows(np.arange(9, dtype=np.int32), np.array([0, 4]), 3)
    >>> seen.tolist(), following.tolist()
    ([[0, 1, 2], [4, 5, 6]], [[1, 2, 3], [5, 6, 7]])
    """
    places = starts[:, None] + np.arange(window + 1)
    found = text[places].astype(np.int64)
    return found[:, :-1], found[:, 1:]
