"""Token by token, attention is what it is over the whole sequence, and the state holds no more than it needs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqattn.attention import (
    Blocked,
    Dense,
    Dilated,
    Experts,
    HeadMix,
    KeyBias,
    KeyValueState,
    Local,
    Prefix,
    Segments,
    attend,
    explain,
)
from seqattn.errors import BackendError, ParameterError

ROWS, HEADS, LENGTH = 4, 4, 30
PLAIN = (
    *(Dense(), Local(4), Local(0), Local(4) | Prefix(2), Local(3) | Prefix(6), Prefix(1) | Local(100)),
    *(Dilated(3, dilation=2), Dilated(2, dilation=4) | Prefix(1), Blocked(4, 3), Blocked(5, 0) | Local(2)),
    *(Prefix(2), Local(9) & Dilated(20, dilation=3), HeadMix(((1, Local(3)), (3, Dilated(2, dilation=3))))),
)
# Made of labels per token, and per token and head.
LABELLED = {
    "segments": lambda one, each: Segments(one),
    "near in segments": lambda one, each: Segments(one, window=2),
    "segments per head": lambda one, each: Segments(each, window=1),
    "segments or local": lambda one, each: Segments(each, window=1) | Local(2),
    "heads with labels": lambda one, each: HeadMix(
        ((1, Local(3)), (2, Segments(each[..., 1:3], window=2)), (1, Segments(one) | Prefix(1)))
    ),
    "near in segments, in a ring": lambda one, each: Segments(one, window=1) & Local(8),
    "near in segments per head, in a ring with holes": lambda one, each: (
        (Local(7) & Segments(each, window=2)) | Dilated(2, dilation=3) | Prefix(2)
    ),
    "segments of two kinds": lambda one, each: Segments(one) & (Segments(each, window=3) | Prefix(2)),
}
PATTERNS = {**{repr(pattern): lambda one, each, pattern=pattern: pattern for pattern in PLAIN}, **LABELLED}


def labels(index):
    """Return labels of the tokens at some places of all rows, and labels that differ between heads."""
    rows = torch.arange(ROWS)[:, None]
    one = (5 * index + index // 4 + rows) % 3
    return one, (index[..., None] // (2 + torch.arange(HEADS)) + rows[..., None]) % 3


def sequences(seed, dtype, bias_heads):
    """Return q, k, v and bias of rows of different lengths, and these."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    q, k, v = normal(ROWS, HEADS, LENGTH, 6), normal(ROWS, 2, LENGTH, 6), normal(ROWS, 2, LENGTH, 5)
    bias = 3 * normal(ROWS, bias_heads, LENGTH) if bias_heads else None
    return q, k, v, bias, torch.randint(0, LENGTH + 1, (ROWS,), generator=draw)


def stream(q, k, v, bias, lengths, pattern, seed, state=None, change=lambda state: state):
    """Return what chunks of random sizes give, each row moving on by a number of tokens of its own."""
    draw = torch.Generator().manual_seed(seed)
    state, done = KeyValueState() if state is None else state, torch.zeros(ROWS, dtype=torch.int64)
    output = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    while (done < lengths).any():
        size = int(torch.randint(1, 6, (1,), generator=draw))
        new = torch.minimum(torch.randint(0, size + 1, (ROWS,), generator=draw), lengths - done)
        index = (done[:, None] + torch.arange(size)).clamp(max=LENGTH - 1)
        absent = (torch.arange(size) >= new[:, None])[:, None, :, None]

        def take(x, index=index, absent=absent):
            wide = index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            return x.gather(2, wide).masked_fill(absent, torch.nan)

        added = None if bias is None else KeyBias(take(bias[..., None])[..., 0])
        here = pattern(*labels(index)) if callable(pattern) else pattern
        seen = attend(
            take(q), take(k), take(v), bias=added, lengths=new, causal=True, pattern=here, state=state
        )
        assert seen.state is state
        for row in range(ROWS):
            output[row, :, done[row] : done[row] + new[row]] = seen.output[row, :, : new[row]]
            assert (seen.output[row, :, new[row] :] == 0).all()
        done += new
        assert torch.equal(state.count, done)
        state = change(state)
    return output


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("bias_heads", [0, 1, HEADS])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=2)
def test_chunks_of_any_size_equal_the_whole_sequence(pattern, seed, bias_heads, dtype, tolerance):
    q, k, v, bias, lengths = sequences(seed, dtype, bias_heads)
    whole = attend(
        q, k, v, bias=None if bias is None else KeyBias(bias), lengths=lengths, causal=True,
        pattern=pattern(*labels(torch.arange(LENGTH).expand(ROWS, -1))), kernel="reference",
    ).output  # fmt: skip
    assert (stream(q, k, v, bias, lengths, pattern, seed) - whole).abs().max() < tolerance


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_single_tokens_of_equal_rows_equal_the_whole_sequence(pattern):
    q, k, v, bias, _ = sequences(0, torch.float64, HEADS)
    place = torch.arange(LENGTH).expand(ROWS, -1)
    way = {"bias": KeyBias(bias), "causal": True, "kernel": "reference"}
    whole = attend(q, k, v, pattern=pattern(*labels(place)), **way).output
    state = KeyValueState()
    for t in range(LENGTH):
        here = slice(t, t + 1)
        found = attend(
            q[:, :, here], k[:, :, here], v[:, :, here], bias=KeyBias(bias[:, :, here]), causal=True,
            pattern=pattern(*labels(place[:, here])), state=state,
        ).output  # fmt: skip
        assert (found - whole[:, :, here]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        (Local(4) | Prefix(2), 7),
        (Dilated(3, dilation=2), 7),
        (Blocked(4, 3), 7),
        (Dilated(2, dilation=4) | Local(5), 9),
        (Local(9) & Dilated(20, dilation=3), 10),
        (Prefix(2), 3),
    ],
    ids=str,
)
def test_a_ring_holds_what_later_tokens_may_see(pattern, kept):
    q, k, v, _, _ = sequences(3, torch.float64, 0)
    state = KeyValueState()
    for start in range(0, LENGTH, 3):
        here = slice(start, start + 3)
        attend(q[:, :, here], k[:, :, here], v[:, :, here], causal=True, pattern=pattern, state=state)
    assert state.to_tensors()["keys"].shape[2] == kept


@pytest.mark.parametrize(
    "pattern", [Dense(), Local(4) | Prefix(2), LABELLED["segments or local"]], ids=["dense", "ring", "labels"]
)
def test_a_state_survives_copies_and_files(pattern):
    q, k, v, bias, lengths = sequences(1, torch.float64, 1)
    plain = stream(q, k, v, bias, lengths, pattern, 5)
    restored = stream(
        q, k, v, bias, lengths, pattern, 5, change=lambda x: KeyValueState.from_tensors(x.to_tensors())
    )
    copied = stream(q, k, v, bias, lengths, pattern, 5, change=lambda x: x.copy())
    assert torch.equal(plain, restored)
    assert torch.equal(plain, copied)
    assert KeyValueState.from_tensors(KeyValueState().to_tensors()).to_tensors() == {}


@pytest.mark.parametrize("pattern", [Dense(), Local(4) | Prefix(2)], ids=repr)
def test_chosen_and_repeated_rows_go_on_as_those_they_come_from(pattern):
    q, k, v, _, _ = sequences(2, torch.float64, 0)
    state = KeyValueState()
    first = torch.tensor([9, 3, 0, 11])
    attend(q[:, :, :11], k[:, :, :11], v[:, :, :11], lengths=first, causal=True, pattern=pattern, state=state)
    chosen = torch.tensor([3, 0, 0, 2, 3])
    fork = state.select(chosen)
    assert torch.equal(fork.count, first[chosen])
    before = {name: value.clone() for name, value in state.to_tensors().items()}
    new = [x[chosen, :, 20:22] for x in (q, k, v)]
    found = attend(*new, causal=True, pattern=pattern, state=fork).output
    for place, row in enumerate(chosen.tolist()):
        n = int(first[row])
        whole = [torch.cat([x[row : row + 1, :, :n], x[row : row + 1, :, 20:22]], 2) for x in (q, k, v)]
        wanted = attend(*whole, causal=True, pattern=pattern, kernel="reference").output[0, :, n:]
        assert (found[place] - wanted).abs().max() < 1e-12
    after = state.to_tensors()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_ring_does_not_grow_and_a_dense_state_doubles():
    token = torch.ones(3, 1, 1, 2)
    ring, dense = KeyValueState(), KeyValueState()
    sizes = []
    for _ in range(40):
        attend(token, token, token, causal=True, pattern=Local(5) | Prefix(2), state=ring)
        attend(token, token, token, causal=True, state=dense)
        sizes.append((ring._room(), dense._room()))
    assert max(room for room, _ in sizes) == 5 + 1 + 2
    assert ring.to_tensors()["keys"].shape == (3, 1, 8, 2)
    assert sorted({room for _, room in sizes}) == [16, 32, 64]
    assert dense.count.tolist() == [40, 40, 40]


def test_a_full_state_of_equal_rows_needs_no_mask_and_a_step_copies_no_keys():
    token = torch.ones(3, 1, 1, 2)
    state = KeyValueState()
    for _ in range(9):
        attend(token, token, token, causal=True, pattern=Local(5) | Prefix(2), state=state)
    assert state._filled() is None
    place = state._keys.data_ptr()
    attend(token, token, token, causal=True, pattern=Local(5) | Prefix(2), state=state)
    assert state._keys.data_ptr() == place


@pytest.mark.parametrize("pattern", [Dense(), Local(6) | Prefix(1)], ids=repr)
def test_a_bias_that_grows_with_time_keeps_its_digits(pattern):
    """After 10 million units of time a float32 bias could tell no two keys apart."""
    q, k, v, _, _ = sequences(3, torch.float32, 0)
    times = 1e7 + 0.1 * torch.arange(LENGTH, dtype=torch.float64)
    bias = times.expand(ROWS, 1, LENGTH)
    shifted = KeyBias(bias - 1e7)
    wanted = attend(
        q.double(), k.double(), v.double(), bias=shifted, causal=True, pattern=pattern, kernel="reference"
    )
    for chunks in ([1] * LENGTH, [10, 1, 5, 14]):
        state, found, start = KeyValueState(), [], 0
        for size in chunks:
            here = slice(start, start + size)
            new = (x[:, :, here] for x in (q, k, v))
            added = KeyBias(bias[:, :, here])
            found.append(attend(*new, bias=added, causal=True, pattern=pattern, state=state).output)
            start += size
        assert (torch.cat(found, 2) - wanted.output).abs().max() < 1e-5


def test_a_row_with_nan_spoils_no_other_row_and_nothing_before_it():
    q, k, v, _, _ = sequences(4, torch.float64, 0)
    wanted = attend(q, k, v, causal=True, kernel="reference").output
    k = k.clone()
    k[1, :, 12] = torch.nan
    for sizes in ([10, 5, 15], [1] * LENGTH, [LENGTH]):
        state, found = KeyValueState(), []
        for start, size in zip(torch.tensor([0, *sizes]).cumsum(0).tolist(), sizes, strict=False):
            new = (x[:, :, start : start + size] for x in (q, k, v))
            found.append(attend(*new, causal=True, state=state).output)
        output = torch.cat(found, 2)
        assert output[1, :, 12:].isnan().all()
        output[1, :, 12:] = wanted[1, :, 12:]
        assert (output - wanted).abs().max() < 1e-12


def test_calls_without_tokens_and_states_without_rows_are_no_special_case():
    token, state = torch.ones(2, 2, 1, 4), KeyValueState()
    nobody = torch.tensor([0, 0])
    for bias in (None, KeyBias(torch.zeros(2, 1, 1))):
        state = KeyValueState()
        seen = attend(token, token, token, bias=bias, lengths=nobody, causal=True, state=state)
        assert (seen.output == 0).all()
        one = torch.tensor([0, 1])
        seen = attend(token, 2 * token, 3 * token, bias=bias, lengths=one, causal=True, state=state)
        assert seen.output.flatten(1).unique(dim=1).tolist() == [[0.0], [3.0]]
        assert state.count.tolist() == [0, 1]
    none = token[:, :, :0]
    state = KeyValueState()
    attend(token, token, token, causal=True, state=state)
    assert attend(none, none, none, causal=True, state=state).output.shape == (2, 2, 0, 4)
    empty = state.select(torch.zeros(0, dtype=torch.int64))
    gone = token[:0]
    assert attend(gone, gone, gone, causal=True, state=empty).output.shape == (0, 2, 1, 4)
    assert state.count.tolist() == [1, 1]


TOKEN = (2, 2, 1, 4)
REFUSALS = {
    "not causal": ({"causal": False}, "causal=True is needed"),
    "weights": ({"need": "weights"}, "need='weights' is not supported"),
    "dropout": ({"dropout": 0.1}, "dropout > 0"),
    "kernel": ({"kernel": "sdpa"}, "kernel='sdpa' cannot be chosen"),
    "mask": ({"key_mask": torch.ones(2, 1).bool()}, "key_mask is not supported"),
    "experts": ({"pattern": Experts(torch.zeros(2, 1, 2, 3), 1, allow_leak=True)}, "it is no mask"),
    "keys": ({"key_lengths": torch.tensor([1, 1])}, "keys of other sequences"),
}


@pytest.mark.parametrize(("arguments", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_what_a_state_cannot_do_is_refused(arguments, reason):
    token, state = torch.zeros(TOKEN), KeyValueState()
    arguments = {"causal": True, **arguments}
    with pytest.raises(BackendError, match=reason):
        attend(token, token, token, state=state, **arguments)
    explained = explain(token, token, token, state=state, **arguments)
    assert explained.kernel is None
    assert reason in str(explained)
    assert len(state.count) == 0


def test_gradients_through_a_state_are_refused():
    token = torch.zeros(TOKEN, requires_grad=True)
    with pytest.raises(BackendError, match="no gradients through a state"):
        attend(token, token, token, causal=True, state=KeyValueState())
    with torch.no_grad():
        attend(token, token, token, causal=True, state=KeyValueState())
    half = torch.zeros(TOKEN, dtype=torch.bfloat16)
    with pytest.raises(BackendError, match=r"torch\.bfloat16 is not supported"):
        attend(half, half, half, causal=True, state=KeyValueState())


def test_a_state_is_kept_to_what_it_was_begun_with():
    token, state = torch.zeros(TOKEN), KeyValueState()
    attend(token, token, token, causal=True, state=state)
    explained = explain(token, token, token, causal=True, state=state)
    assert explained.kernel == "stream"
    assert "stream: yes" in str(explained)
    wrong = [
        ((torch.zeros(3, 2, 1, 4),) * 3, {}, "begun with rows 2, got 3"),
        ((torch.zeros(2, 2, 1, 5),) * 3, {}, r"begun with widths \(4, 4\), got \(5, 5\)"),
        ((token.double(),) * 3, {}, "begun with type torch.float32, got torch.float64"),
        ((token,) * 3, {"pattern": Local(3)}, "begun with window"),
        ((token,) * 3, {"bias": KeyBias(torch.zeros(2, 1, 1))}, "begun with heads of the bias None, got 1"),
    ]
    for tensors, arguments, text in wrong:
        with pytest.raises(ParameterError, match=text):
            attend(*tensors, causal=True, state=state, **arguments)
    with pytest.raises(ParameterError, match="rows from 0 to 1, got 0 to 2"):
        state.select(torch.tensor([0, 2]))
    with pytest.raises(ParameterError, match=r"lack \['band', 'count', 'values'\]"):
        KeyValueState.from_tensors({"keys": token})
    assert state.count.tolist() == [1, 1]
