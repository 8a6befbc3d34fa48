"""Biases of growing sequences, token by token, are those of the whole sequence."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from attention.biased import BIASES, bias_of
from attention.calls import inputs, largest_error
from attention.oracle import Biased

from seqattn.attention import Dense, DenseBias, KeyBias, KeyValueState, Local, Prefix, Separable, attend
from seqattn.errors import BackendError, ParameterError


@pytest.mark.parametrize("pattern", [Dense(), Local(4), Local(3) | Prefix(2)], ids=str)
@pytest.mark.parametrize("sizes", [(1,) * 13, (4, 1, 1, 5, 2), (13,), (6, 7)], ids=str)
@pytest.mark.parametrize("bias", ["separable", "relative", "all but dense"])
def test_streams_equal_the_whole_sequence(bias, sizes, pattern):
    batch = Biased([13, 13, 13], key_heads=1, kinds=BIASES[bias], learnt=False)
    with torch.no_grad():
        for leaf in batch.all_leaves():
            leaf.requires_grad_(False)
    values, added = inputs(batch, "padded"), bias_of(batch, "padded")
    call = {"pattern": pattern, "causal": True}
    wanted = attend(**values, bias=added, kernel="reference", **call).output
    state, found = KeyValueState(), []
    for start, end in pairwise([0, *torch.tensor(sizes).cumsum(0).tolist()]):
        here = [values[name][:, :, start:end] for name in "qkv"]
        parts = [
            part if part.kind == "relative" else type(part)(*(x[:, :, start:end] for x in part.tensors()))
            for part in added.parts()
        ]
        new = parts[0]
        for part in parts[1:]:
            new = new + part
        found.append(attend(*here, bias=new, state=state, **call).output)
        state = KeyValueState.from_tensors(state.to_tensors()).select(torch.arange(3))
    assert largest_error([torch.cat(found, 2)], [wanted]) < 1e-12


def test_streams_of_rows_of_different_lengths_ignore_what_is_no_token():
    batch = Biased([6, 6], kinds=BIASES["all but dense"], learnt=False)
    values, added = inputs(batch, "padded"), bias_of(batch, "padded")
    values.pop("lengths")
    counts, state = torch.tensor([2, 4]), KeyValueState()
    with torch.no_grad():
        wanted = attend(**values, bias=added, causal=True, kernel="reference").output
        done = torch.zeros(2, dtype=torch.int64)
        for new in (counts, torch.tensor([3, 0]), torch.tensor([1, 2])):
            place = (done[:, None] + torch.arange(int(new.max()))).clamp(max=5)
            absent = torch.arange(int(new.max())) >= new[:, None]

            def take(x, place=place, absent=absent):
                index = (
                    place[:, None]
                    .view(2, 1, -1, *[1] * (x.dim() - 3))
                    .expand(-1, x.shape[1], -1, *x.shape[3:])
                )
                hole = absent[:, None].view(2, 1, -1, *[1] * (x.dim() - 3))
                return x.gather(2, index).masked_fill(hole, torch.nan)

            key, separable, relative = added.parts()
            bias = (
                KeyBias(take(key.values)) + Separable(take(separable.query), take(separable.key)) + relative
            )
            tokens = [take(values[name]) for name in "qkv"]
            output = attend(*tokens, bias=bias, lengths=new, causal=True, state=state).output
            for row in range(2):
                n, start = int(new[row]), int(done[row])
                assert largest_error([output[row, :, :n]], [wanted[row, :, start : start + n]]) < 1e-12
            done += new


def test_a_state_refuses_what_it_cannot_go_on_with():
    token, state = torch.zeros(2, 2, 1, 4), KeyValueState()
    with pytest.raises(BackendError, match="bias kind 'dense' is not supported, its rows and columns"):
        attend(token, token, token, bias=DenseBias(torch.zeros(1, 1, 1, 1)), causal=True, state=state)
    one = torch.zeros(2, 1, 1, 1)
    attend(token, token, token, bias=Separable(one, one), causal=True, state=state)
    two = torch.zeros(2, 1, 1, 2)
    with pytest.raises(ParameterError, match="begun with heads and rank of the separable bias"):
        attend(token, token, token, bias=Separable(two, two), causal=True, state=state)
