import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqattn.data.batches import batches, pack, plan_batches
from seqattn.data.sequences import Sequences
from seqattn.errors import ParameterError

lists_of_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=200)


def example(window=(0.0, 60.0), seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    sizes = [0, 3, 1, 0, 7, 12]
    pairs = [(np.sort(rng.random(n)) * 50, rng.integers(0, 3, n)) for n in sizes]
    return Sequences.from_lists(pairs, window=window, labels=3)


@given(lists_of_lengths, st.integers(1, 60), st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 3))
def test_every_sequence_stands_in_one_batch_within_the_budget(lengths, budget, seed, epoch):
    sizes = np.array(lengths)
    plan = plan_batches(sizes, budget, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(plan)) == list(range(len(sizes)))
    assert all(sizes[batch].sum() <= budget or len(batch) == 1 for batch in plan)


@given(lists_of_lengths, st.integers(1, 60))
def test_without_seed_lengths_are_sorted(lengths, budget):
    sizes = np.array(lengths)
    order = np.concatenate(plan_batches(sizes, budget))
    assert np.all(np.diff(sizes[order]) >= 0)


def test_seed_and_epoch_decide_the_plan():
    lengths = np.random.default_rng(0).integers(1, 50, 500)

    def plan(seed, epoch):
        return [batch.tolist() for batch in plan_batches(lengths, 200, seed=seed, epoch=epoch)]

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3)
    assert plan(1, 2) != plan(2, 2)


def test_batches_are_well_filled_and_of_similar_length():
    lengths = np.random.default_rng(0).geometric(0.02, 20_000)
    plan = plan_batches(lengths, 2000, seed=0)
    assert len(plan) < 1.1 * lengths.sum() / 2000
    padded = sum(len(batch) * lengths[batch].max() for batch in plan)
    assert padded < 1.2 * lengths.sum(), "sequences of a batch differ too much in length"


def test_mixing_really_mixes():
    plan = plan_batches(np.full(1000, 10), 100, seed=0)
    neighbours = np.mean([np.mean(np.abs(np.diff(np.sort(batch))) == 1) for batch in plan])
    assert neighbours < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"budget": 0}, "at least 1 token"), ({"budget": 5, "seed": -1}, "must not be negative")],
)
def test_wrong_plans_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        plan_batches(np.array([1]), **options)


def expected_tokens(data: Sequences, row: int) -> list[dict]:
    """Build the tokens of a sequence by the definition, one after another."""
    times, types = data.sequence(row)
    clock = [data.start[row], *times, data.end[row]]
    return [
        {
            "types": data.n_types if i == 0 else int(types[i - 1]),
            "gap": 0.0 if i == 0 else clock[i] - clock[i - 1],
            "elapsed": clock[i] - clock[0],
            "until": clock[i + 1] - clock[i],
            "target": int(types[i]) if i < len(times) else -1,
            "scored": i >= data.context[row],
            "position": i,
        }
        for i in range(len(times) + 1)
    ]


@pytest.mark.parametrize("window", [(0.0, 60.0), (0.0, "max")])
def test_packed_tokens_equal_their_definition(window):
    data = example(window)
    rows = np.array([4, 0, 5, 1, 0, 3])
    batch = pack(data, rows, dtype=torch.float64)
    expected = [token for row in rows for token in expected_tokens(data, row)]
    for name in expected[0]:
        assert getattr(batch, name).tolist() == [token[name] for token in expected], name
    assert batch.offsets.tolist() == [0, *np.cumsum(data.lengths[rows] + 1)]
    assert batch.offsets.dtype == torch.int32
    assert batch.max_len == 13
    assert batch.rows.tolist() == rows.tolist()
    assert (len(batch), batch.n_tokens) == (6, len(expected))


def test_history_is_not_scored():
    data = Sequences.from_lists([(np.arange(9.0), np.zeros(9, int)), ([1.0, 2.0], [0, 0])], chunk=4)
    batch = pack(data, np.arange(len(data)))
    for i in range(len(data)):
        scored = batch.scored[batch.offsets[i] : batch.offsets[i + 1]].tolist()
        assert scored == [place >= data.context[i] for place in range(len(scored))]
    assert int((batch.scored & (batch.target >= 0)).sum()) == data.n_scored


def test_empty_sequences_are_one_token_with_the_whole_window():
    batch = pack(example(), [0, 3])
    assert batch.until.tolist() == [60.0, 60.0]
    assert batch.target.tolist() == [-1, -1]
    assert batch.max_len == 1


def test_large_times_keep_their_gaps_in_float32():
    data = Sequences.from_lists([([1.7e9 + 0.25, 1.7e9 + 0.75], [0, 0])], window=(1.7e9, 1.7e9 + 1))
    batch = pack(data, [0])
    assert batch.gap.tolist() == [0.0, 0.25, 0.5]
    assert batch.until.tolist() == [0.25, 0.5, 0.25]
    assert batch.elapsed.tolist() == [0.0, 0.25, 0.75]


def test_times_are_divided_by_the_scale():
    one, other = (
        pack(example(), [4], dtype=torch.float64),
        pack(example(), [4], scale=2.0, dtype=torch.float64),
    )
    for name in ("gap", "elapsed", "until"):
        assert torch.equal(getattr(other, name) * 2, getattr(one, name))
    for name in ("gap", "elapsed", "until"):  # divided before the cast: one rounding, not two
        exact = (getattr(one, name) / 0.3).to(torch.float32)
        assert torch.equal(getattr(pack(example(), [4], scale=0.3), name), exact)
    with pytest.raises(ParameterError, match="must be positive"):
        pack(example(), [4], scale=0.0)


def test_padded_values_stand_in_their_rows():
    batch = pack(example(), [1, 0, 4])
    values = torch.arange(batch.n_tokens * 2.0).reshape(-1, 2)
    grid = batch.padded(values, fill=-1.0)
    assert grid.shape == (3, 8, 2)
    for row, (begin, end) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        assert torch.equal(grid[row, : end - begin], values[begin:end])
        assert torch.all(grid[row, end - begin :] == -1.0)
    assert batch.padded(batch.types, fill=9).dtype == torch.int64


def test_gradients_pass_through_padding():
    batch = pack(example(), [1, 4])
    values = torch.ones(batch.n_tokens, requires_grad=True)
    batch.padded(values).sum().backward()
    assert torch.equal(values.grad, torch.ones(batch.n_tokens))


def test_moving_changes_the_kind_of_times_only():
    batch = pack(example(), [1, 4])
    moved = batch.to("cpu", torch.float64)
    assert moved.gap.dtype == moved.until.dtype == moved.elapsed.dtype == torch.float64
    assert moved.types.dtype == torch.int64
    assert moved.offsets.dtype == torch.int32
    assert moved.max_len == batch.max_len
    assert batch.to("cpu").gap.dtype == torch.float32


def test_batches_know_their_number_and_are_packed_when_asked_for():
    data = example()
    lazy = batches(data, 9, seed=1)
    packed = list(lazy)
    assert len(packed) == len(lazy) == len(lazy.plan)
    assert sorted(row for batch in packed for row in batch.rows.tolist()) == list(range(6))
    assert all(batch.n_tokens <= 9 or len(batch) == 1 for batch in packed)
    assert lazy[0].types.tolist() == packed[0].types.tolist()


def test_a_sequence_is_packed_alike_whatever_its_neighbours():
    data = example()
    alone = pack(data, [4])
    among = pack(data, [5, 4, 1])
    part = slice(int(among.offsets[1]), int(among.offsets[2]))
    for name in ("types", "gap", "elapsed", "until", "target", "scored", "position"):
        assert torch.equal(getattr(among, name)[part], getattr(alone, name)), name


def test_saved_sequences_are_packed_without_being_loaded(tmp_path):
    data = example()
    data.save(tmp_path)
    opened = Sequences.open(tmp_path)
    for one, other in zip(batches(opened, 9), batches(data, 9), strict=True):
        assert torch.equal(one.gap, other.gap)
        assert torch.equal(one.types, other.types)


def test_planning_and_packing_leave_the_global_draws_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(batches(example(), 5, seed=3))
    assert torch.equal(torch.rand(3), expected)
