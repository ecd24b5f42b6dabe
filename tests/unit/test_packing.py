"""Layouts for the learners: bounds kept, nothing lost, loads near equal."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gvm_ray.maths.packing import micro_batches, shared_micro_batches, split_updates


def test_micro_batches_by_hand() -> None:
    ranks = micro_batches([5, 9, 4, 4, 30], max_tokens=10, num_ranks=1)
    # falling length 30, 9, 5, 4, 4: 30 exceeds the bound and stands alone; 9 x 1; 5 x 2 = 10; the last 4
    assert [batch.tolist() for batch in ranks[0]] == [[4], [1], [0, 2], [3]]


def test_packed_micro_batches_by_hand() -> None:
    ranks = micro_batches([5, 9, 4, 4, 30, 1], max_tokens=13, num_ranks=1, packed=True)
    # falling length 30, 9, 5, 4, 4, 1: 30 exceeds the bound; 9 and not 9 + 5; 5 + 4 + 4 = 13; the last 1
    assert [batch.tolist() for batch in ranks[0]] == [[4], [1], [0, 2, 3], [5]]
    assert [len(batch) for batch in micro_batches([3, 3], max_tokens=2**63 - 1, num_ranks=1, packed=True)[0]] == [2]


def test_ranks_get_the_same_number_of_micro_batches() -> None:
    ranks = micro_batches([10, 1, 1, 1], max_tokens=1, num_ranks=2)
    # 10 to the first rank, the three 1s to the second
    assert [[batch.tolist() for batch in rank] for rank in ranks] == [[[0], [], []], [[1], [2], [3]]]
    assert micro_batches(np.zeros(0, dtype=np.int32), max_tokens=8, num_ranks=3) == [[], [], []]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120), st.integers(1, 4), st.booleans())
def test_micro_batches_keep_their_promises(lengths: list[int], max_tokens: int, num_ranks: int, packed: bool) -> None:
    ranks = micro_batches(np.array(lengths, dtype=np.int32), max_tokens=max_tokens, num_ranks=num_ranks, packed=packed)
    assert len(ranks) == num_ranks
    assert len({len(rank) for rank in ranks}) == 1
    flat = [index for rank in ranks for batch in rank for index in batch.tolist()]
    assert sorted(flat) == list(range(len(lengths)))
    for batch in (batch for rank in ranks for batch in rank):
        if len(batch) > 1:
            tokens = [lengths[i] for i in batch]
            assert (sum(tokens) if packed else len(batch) * max(tokens)) <= max_tokens
    loads = [sum(lengths[i] for batch in rank for i in batch) for rank in ranks]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 8), st.integers(0, 5))
def test_updates_split_every_sample_once_with_near_equal_tokens(lengths: list[int], updates: int, seed: int) -> None:
    parts = split_updates(np.array(lengths, dtype=np.int32), num_updates=updates, rng=np.random.default_rng(seed))
    assert len(parts) == updates
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    assert sum(len(part) == 0 for part in parts) == max(updates - len(lengths), 0)
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_updates_are_random_and_reproducible() -> None:
    lengths = np.full(32, 4)
    split = [
        [part.tolist() for part in split_updates(lengths, num_updates=4, rng=np.random.default_rng(seed))]
        for seed in (0, 0, 1)
    ]
    assert split[0] == split[1]
    assert split[0] != split[2]


def _shared(
    prompts: list[int], prompt_tokens: list[int], responses: list[int], *, max_tokens: int, num_ranks: int = 1
) -> list[list[list[int]]]:
    ranks = shared_micro_batches(
        np.array(prompts, dtype=np.int64),
        prompt_tokens=np.array([prompt_tokens[prompt] for prompt in prompts], dtype=np.int64),
        response_tokens=np.array(responses, dtype=np.int64),
        max_tokens=max_tokens,
        num_ranks=num_ranks,
    )
    return [[batch.tolist() for batch in rank] for rank in ranks]


def test_shared_micro_batches_by_hand() -> None:
    prompts, lengths, responses = [0, 1, 0, 1, 0], [10, 4], [3, 5, 6, 2, 1]
    # prompt 0: 10 + 6 + 3 + 1 = 20; prompt 1: 4 + 5 + 2 = 11
    assert _shared(prompts, lengths, responses, max_tokens=31) == [[[2, 0, 4, 1, 3]]]
    assert _shared(prompts, lengths, responses, max_tokens=30) == [[[2, 0, 4], [1, 3]]]
    # prompt 0 is read twice: 10 + 6 + 3 = 19 and 10 + 1 = 11, as many as prompt 1's
    assert _shared(prompts, lengths, responses, max_tokens=19) == [[[2, 0], [4], [1, 3]]]
    assert _shared(prompts, lengths, responses, max_tokens=1) == [[[2], [0], [4], [1], [3]]]  # each exceeds the bound
    assert _shared([], [], [], max_tokens=5, num_ranks=2) == [[], []]


def test_a_prompt_is_read_on_two_ranks_where_that_evens_their_loads() -> None:
    alone = _shared([0] * 4, [2], [10] * 4, max_tokens=100, num_ranks=2)
    assert [sum(len(batch) for batch in rank) for rank in alone] == [2, 2]
    # two prompts for two ranks: each stays whole
    assert _shared([0, 1] * 4, [50, 50], [10] * 8, max_tokens=1000, num_ranks=2) == [[[0, 2, 4, 6]], [[1, 3, 5, 7]]]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=40),
    st.lists(st.integers(1, 40), min_size=6, max_size=6),
    st.integers(1, 150),
    st.integers(1, 4),
)
@example([(0, 0), (0, 0)], [2] * 6, 1, 1)
def test_shared_micro_batches_keep_their_promises(
    samples: list[tuple[int, int]], lengths: list[int], max_tokens: int, num_ranks: int
) -> None:
    prompts, responses = [prompt for prompt, _ in samples], [length for _, length in samples]
    ranks = _shared(prompts, lengths, responses, max_tokens=max_tokens, num_ranks=num_ranks)
    assert len(ranks) == num_ranks
    assert len({len(rank) for rank in ranks}) == 1
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(len(samples)))
    for batch in (batch for rank in ranks for batch in rank):
        held = sum(lengths[prompt] for prompt in {prompts[i] for i in batch}) + sum(responses[i] for i in batch)
        longest = max((lengths[prompts[i]] + responses[i] for i in batch), default=0)
        assert held <= max(max_tokens, longest)  # beside one that exceeds the bound only what adds no token


def test_refuses_impossible_layouts() -> None:
    with pytest.raises(ValueError, match="max_tokens=0"):
        micro_batches([1], max_tokens=0, num_ranks=1)
    with pytest.raises(ValueError, match="num_updates=0"):
        split_updates([1], num_updates=0, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="lengths must be"):
        micro_batches([-1], max_tokens=4, num_ranks=1)
    with pytest.raises(ValueError, match="num_ranks=0"):
        _shared([0], [1], [1], max_tokens=1, num_ranks=0)
