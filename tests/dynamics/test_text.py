"""Texts as numbers, and windows of them."""

from __future__ import annotations

import numpy as np
import pytest

from seqattn.dynamics.own import OTHER
from seqattn.dynamics.text import drawn_starts, even_starts, read_corpus, windows
from seqattn.errors import DataError, ParameterError


@pytest.fixture
def files(tmp_path):
    train, valid = tmp_path / "train.txt", tmp_path / "valid.txt"
    train.write_text("A b a\n\n c B a d\n")
    valid.write_text("b e a\n")
    return train, valid


def read(corpus, part):
    return [corpus.names[number] for number in getattr(corpus, part)]


def test_the_vocabulary_is_that_of_the_training_part(files):
    corpus = read_corpus(*files, max_vocab=3)
    # Three of "a", two of "b" and of the end mark; c and d are rarer, e is not in the training part at all.
    assert corpus.names == ["<eos>", "a", "b", OTHER]
    assert read(corpus, "train") == ["a", "b", "a", "<eos>", OTHER, "b", "a", OTHER, "<eos>"]
    assert read(corpus, "valid") == ["b", OTHER, "a", "<eos>"]
    assert corpus.other_mass == pytest.approx(2 / 9)
    assert corpus.counts().tolist() == [2, 3, 2, 2]


def test_equally_frequent_words_are_chosen_in_the_order_of_the_alphabet(files):
    assert read_corpus(*files, max_vocab=4).names == ["<eos>", "a", "b", "c", OTHER]


def test_windows_hold_each_word_with_the_one_that_follows():
    text = np.arange(100, dtype=np.int32)
    seen, following = windows(text, drawn_starts(100, 7, 500, np.random.default_rng(0)), 7)
    assert np.array_equal(following, seen + 1)
    assert (seen.min(), following.max()) == (0, 99)


def test_even_windows_reach_from_the_first_word_to_the_last():
    starts = even_starts(100, 7, 5)
    assert (starts[0], starts[-1] + 7, len(starts)) == (0, 99, 5)
    assert even_starts(9, 7, 5).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no words"),
        (b"  \n\n", "no words"),
        ("na\u00efve".encode("latin-1"), "0xef"),
        (b"\xff\xfea\0", "0xff"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_name(files, content, said):
    files[0].write_bytes(content)
    with pytest.raises(DataError, match=r"train\.txt") as told:
        read_corpus(*files, max_vocab=3)
    assert said in str(told.value)


def test_a_mark_of_byte_order_is_no_word(files):
    files[0].write_text("\ufeffa b a")
    assert read_corpus(*files, max_vocab=9).names == ["<eos>", "a", "b", OTHER]


def test_what_cannot_be_read_or_is_too_short_is_told(files, tmp_path):
    with pytest.raises(DataError, match="no such file|No such file"):
        read_corpus(tmp_path / "none.txt", files[1], 3)
    with pytest.raises(DataError, match="cannot be read"):
        read_corpus(tmp_path, files[1], 3)
    with pytest.raises(DataError, match="4 words, a window 4"):
        even_starts(4, 4, 1)
    with pytest.raises(ParameterError, match="max_vocab=1"):
        read_corpus(*files, max_vocab=1)
