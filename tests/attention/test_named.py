"""What a text says of a pattern is what the object would say, and nothing in it is run."""

from __future__ import annotations

import json

import pytest

from seqattn.attention import Blocked, Dense, Dilated, HeadMix, Local, Prefix, Routing
from seqattn.attention.named import PATTERNS, as_pattern
from seqattn.errors import ParameterError
from seqattn.train.config import Run, parse_pairs
from seqattn.train.parameters import decode_parameter, encode_parameter

TEXTS = {
    "local(32)": Local(32),
    " local ( 32 , right = 4 ) ": Local(32, 4),
    "dilated(left=8, dilation=2)": Dilated(8, dilation=2),
    "local(3) | prefix(1)": Local(3) | Prefix(1),
    "local(9) & dilated(20, dilation=3) | prefix": (Local(9) & Dilated(20, dilation=3)) | Prefix(),
    "local(9) & (dilated | prefix(2))": Local(9) & (Dilated() | Prefix(2)),
    "blocked(size=8, halo=0)": Blocked(8, 0),
    "2 * local(4) + 2 * (dense & prefix(3))": HeadMix(((2, Local(4)), (2, Dense() & Prefix(3)))),
    "1 * local + 1 * dense + 2 * routing(8)": HeadMix(((1, Local()), (1, Dense()), (2, Routing(8)))),
    "routing(clusters=8, window=32)": Routing(8, 32),
    "routing(8, 32, mode=random)": Routing(8, 32, mode="random"),
    "routing(mode=expert, allow_leak=true, commitment=1e-4)": Routing(
        mode="expert", allow_leak=True, commitment=1e-4
    ),
    "routing(mode='sorted', commitment=1)": Routing(mode="sorted", commitment=1.0),
}


@pytest.mark.parametrize(("text", "pattern"), TEXTS.items())
def test_a_text_is_the_pattern_that_it_describes(text, pattern):
    assert as_pattern(text) == pattern
    assert as_pattern(pattern) is pattern


def test_a_name_alone_has_the_defaults_of_its_class():
    for name, kind in PATTERNS.items():
        assert as_pattern(name) == as_pattern(f"{name}()") == kind()


@pytest.mark.parametrize("text", TEXTS)
def test_texts_pass_the_command_line_its_file_and_the_file_of_a_model(text, tmp_path):
    run = Run("hawkes", settings=parse_pairs([f"attention={text}"], "--set"))
    (tmp_path / "run.toml").write_text(run.to_toml())
    again = Run.load(tmp_path / "run.toml").settings["attention"]
    assert as_pattern(again) == TEXTS[text]
    for value in (again, TEXTS[text]):
        assert decode_parameter(json.loads(json.dumps(encode_parameter(value)))) == value


MISTAKES = {
    "lokal(3)": "There is no attention pattern 'lokal'. Patterns: .*Did you mean 'local'?",
    "local(lft=3)": "There is no parameter 'lft'. Parameters of 'local': left, right. Did you mean 'left'?",
    "local(1, 2, 3)": "3 values are too many. Parameters of 'local': left, right.",
    "local(1, left=2)": "'left' is given twice",
    "local(left=1, left=2)": "'left' is given twice",
    f"local({10**23})": f"left of Local must be 2147483647 at most, got 1{'0' * 23}",
    f"routing({2**31})": "clusters of Routing must be 2147483647 at most, got 2147483648",
    "local(-1)": "left of Local must be a whole number of keys, 0 or more, got -1",
    "local(2.5)": "left of 'local' must be a whole number, got 2.5",
    "local(many)": "got 'many'",
    "local(true)": "got True",
    "routing(commitment=high)": "commitment of 'routing' must be a number, got 'high'",
    "routing(allow_leak=1)": "allow_leak of 'routing' must be true or false, got 1",
    "routing(mode=tokn)": "mode='tokn' of Routing is unknown. .*Did you mean 'token'?",
    "local(**{'left': 3})": "There is no parameter '\\*\\*'",
    "local(__import__('os').getpid())": 'must be a whole number, got "__import__',
    "routing(clusters=0)": "clusters of Routing must be a whole number, 1 or more, got 0",
    "dense(3)": "Parameters of 'dense': none",
    "": "'' is no attention pattern. Examples: 'local\\(32\\)",
    "local(3": "is no attention pattern",
    "local - dense": "'local - dense' is no attention pattern",
    "local + 2 * dense": "'local' is no attention pattern",
    "2 * local | prefix(1)": "Numbers of heads cannot stand beside | or &.*Put parentheses",
    "0 * local + 2 * dense": "a number of heads, 1 or more",
    "local.left": "'local.left' is no attention pattern",
    "(" * 5000: "is no attention pattern",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=[text[:30] for text in MISTAKES])
def test_mistakes_in_a_text_are_named(text, message):
    with pytest.raises(ParameterError, match=message):
        as_pattern(text)
