"""Own sequences: windows counted once more by hand, graded tokens, and what is refused."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest

import seqattn
from seqattn.dynamics import ScanAndSnapStudy, bias_report, classes_from_sequences
from seqattn.dynamics.own import OTHER, words
from seqattn.errors import DataError, ParameterError


def draw_words(seed=0, n=12, length=60):
    rng = np.random.default_rng(seed)
    return [
        [str(w) for w in rng.choice(list("abcde"), p=[0.4, 0.3, 0.1, 0.1, 0.1], size=length)]
        for _ in range(n)
    ]


def by_hand(sequences, context, min_context, min_count):
    """Count pairs and contexts window by window."""
    seen, contexts, windows = Counter(), defaultdict(Counter), 0
    for row in sequences:
        for i in range(min_context, len(row) - 1):
            windows += 1
            seen[row[i], row[i + 1]] += 1
            contexts[row[i], row[i + 1]].update(row[max(0, i - context) : i])
    kept = {pair: n for pair, n in seen.items() if n >= min_count}
    return windows, kept, contexts


def test_windows_are_counted_as_by_hand():
    sequences = draw_words()
    windows, kept, contexts = by_hand(sequences, 7, 3, 12)
    data = classes_from_sequences(sequences, context=7, min_context=3, min_count=12)
    classes = data.classes
    assert data.windows == windows
    assert data.coverage == pytest.approx(sum(kept.values()) / windows)
    names = classes.token_names
    found = {}
    for k in range(len(classes)):
        query = names[classes.query_tokens[classes.query[k]]]
        following = names[classes.label_tokens[classes.label[k]]]
        found[query, following] = k
    assert set(found) == set(kept)
    for pair, k in found.items():
        total = sum(contexts[pair].values())
        expected = [contexts[pair][name] / total for name in names]
        np.testing.assert_allclose(classes.P[k], expected, atol=1e-14)
        assert classes.weight[k] == pytest.approx(kept[pair] / sum(kept.values()))


def test_every_kind_of_input_gives_the_same_classes():
    sequences = draw_words(n=6)
    settings = {"context": 5, "min_context": 2, "min_count": 5}
    expected = classes_from_sequences(sequences, **settings).classes.digest()
    codes = [[ord(w) for w in row] for row in sequences]
    padded = np.full((6, 70), -1)
    for row, own in zip(padded, codes, strict=True):
        row[: len(own)] = own
    table = pl.DataFrame(
        [(i, t, w) for i, row in enumerate(sequences) for t, w in enumerate(row)],
        schema=["seq_id", "t", "k"],
        orient="row",
    )
    given = {
        "numbers": codes,
        "table": table.sample(fraction=1.0, shuffle=True, seed=1),
        "pandas": table.to_pandas(use_pyarrow_extension_array=False),
        "Sequences": seqattn.Sequences.from_table(table, window=(0.0, 100.0)),
    }
    for name, X in given.items():
        assert classes_from_sequences(X, **settings).classes.digest() == expected, name
    found = classes_from_sequences(padded, lengths=[60] * 6, **settings).classes
    assert found.digest() == expected


def test_rare_words_become_one_token_whose_share_is_told():
    sequences = draw_words()
    data = classes_from_sequences(sequences, context=5, min_context=2, min_count=5, max_vocab=2)
    assert data.classes.token_names == ("a", "b", OTHER)
    flat = [w for row in sequences for w in row]
    assert data.other_mass == pytest.approx(sum(w not in "ab" for w in flat) / len(flat))
    assert "other" in str(data)


def test_outputs_are_the_next_tokens_seen_or_the_whole_vocabulary():
    sequences = [list("abcabd" * 20), ["z", "y"]]
    seen = classes_from_sequences(sequences, context=4, min_context=2, min_count=10)
    whole = classes_from_sequences(sequences, context=4, min_context=2, min_count=10, label_space="all")
    assert seen.classes.n_outputs == 4
    assert whole.classes.n_outputs == 6
    assert [whole.classes.token_names[n] for n in whole.classes.label] == [
        seen.classes.token_names[seen.classes.label_tokens[n]] for n in seen.classes.label
    ]


def test_grades_tell_tokens_that_decide_from_tokens_that_do_not():
    # After the query "q" comes x where the context holds "u", and y where it holds "v"; "s" is everywhere.
    sequences = [list("susq" + "x"), list("svsq" + "y")] * 40
    data = classes_from_sequences(sequences, context=3, min_context=3, min_count=20)
    table = data.grades()
    rows = {row["name"]: row for row in table.iter_rows(named=True)}
    assert rows["u"]["kind"] == rows["v"]["kind"] == "distinct"
    assert rows["u"]["D"] > 0.9
    assert rows["s"]["kind"] == "common"
    assert rows["s"]["D"] == pytest.approx(0, abs=1e-3)
    assert rows["s"]["p"] == pytest.approx(2 / 3)
    rare = classes_from_sequences(
        [*sequences, list("swsqx")], context=3, min_context=3, min_count=20
    ).grades()
    assert rare.filter(pl.col("name") == "w")["kind"].to_list() == ["unknown"]


def test_a_study_takes_sequences_and_reports_whom_attention_favours():
    sequences = [list("susq" + "x"), list("svsq" + "y")] * 40
    study = ScanAndSnapStudy(trainer="batch", n_steps=60, lr_y=2.0, context=3, min_context=3, n_records=5)
    study.fit(sequences)
    assert study.own_.windows == 80
    table = bias_report(study.own_, study.parameters_.Z[0].numpy())
    by_name = {row["against"]: row for row in table.iter_rows(named=True)}
    assert by_name["D"]["correlation"] > 0.8
    assert by_name["D"]["early_law"] > 0.8
    assert by_name["frequency"]["correlation"] < 0


def test_texts_are_cut_into_lower_case_words():
    assert words(" The Cat \n\n = sat ") == [["the", "cat", "<eos>"], ["=", "sat", "<eos>"]]


@pytest.mark.parametrize(
    ("X", "settings", "error", "said"),
    [
        ([], {}, DataError, "no sequence"),
        ([["a"], []], {}, DataError, "two tokens"),
        ([list("abc")] * 3, {"min_context": 4}, DataError, "longest sequence has 3"),
        ([list("abcdefgh")] * 3, {"min_count": 50}, DataError, "seen 3 times"),
        ([[1.0, 2.0, 3.0]], {}, TypeError, "float"),
        ([[1, "a", 3]], {}, TypeError, "int, str"),
        ([["a", None, "b", "c", "d", "e"]], {}, DataError, "1 items are missing"),
        ("abc", {}, TypeError, "str"),
        (3, {}, TypeError, "int"),
        (pl.DataFrame({"seq": [1], "t": [0.0], "k": ["a"]}), {}, DataError, "Did you mean 'seq'"),
        ([list("abcdef")], {"label_space": "none"}, ParameterError, "label_space"),
        ([list("abcdef")], {"context": 0}, ParameterError, "context"),
        (np.zeros((2, 5), dtype=int), {"lengths": [3, 9]}, DataError, "lengths"),
    ],
)
def test_what_cannot_be_counted_is_refused(X, settings, error, said):
    with pytest.raises(error, match=said):
        classes_from_sequences(X, **settings)


def test_a_missing_item_may_be_a_token():
    sequences = [["a", None, "b", "a", "b", None] * 10]
    data = classes_from_sequences(sequences, context=3, min_context=2, min_count=5, allow_missing=True)
    assert "<missing>" in data.classes.token_names


def test_short_sequences_are_skipped_and_counted():
    data = classes_from_sequences([list("abcabd" * 20), ["a"], []], context=4, min_context=2, min_count=10)
    assert data.skipped == 2
