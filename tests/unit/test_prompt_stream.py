"""The prompt stream: whole epochs, no prompt twice in a window, a cursor that resumes to the letter."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_ray.exceptions import CheckpointError, DataError
from gvm_ray.protocols import PromptStream
from gvm_ray.tasks.prompt_stream import ShuffledPrompts
from tests.builders import prompts


def stream(num, *, unique_within=1, seed=0, shuffle=True) -> PromptStream:
    return ShuffledPrompts(prompts(num), seed=seed, shuffle=shuffle, unique_within=unique_within)


def ids(given_out):
    return [int(prompt.prompt_id) for prompt in given_out]


def test_every_epoch_has_every_prompt_once_in_an_order_of_its_own():
    it = stream(20, unique_within=10)
    first, second = ids(it.next(20)), ids(it.next(20))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != list(range(20))
    assert first != second


def test_without_shuffling_the_order_is_the_sets():
    assert ids(stream(3, unique_within=3, shuffle=False).next(7)) == [0, 1, 2, 0, 1, 2, 0]


def test_a_window_over_a_seam_passes_over_its_own_prompts_and_gives_them_next():
    # 5 prompts in order, windows of 3: [0 1 2] [3 4 | 0] [1 2 3] [4 | 0 1] ...
    assert ids(stream(5, unique_within=3, shuffle=False).next(12)) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    # windows of 4: [0 1 2 3] [4 | 0 1 2] [3 4 | 0 1]; then 2 3 with 4 left over: [2 3 4 | 0]
    assert ids(stream(5, unique_within=4, shuffle=False).next(16)) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 12), data=st.data(), seed=st.integers(0, 5))
def test_windows_are_unique_epochs_are_whole_and_calls_do_not_matter(num, data, seed):
    unique_within = data.draw(st.integers(1, num))
    sizes = data.draw(st.lists(st.integers(0, 7), max_size=12))
    total = max(sum(sizes), 5 * num)
    whole = ids(stream(num, unique_within=unique_within, seed=seed).next(total))
    for start in range(0, total - unique_within + 1, unique_within):
        window = whole[start : start + unique_within]
        assert len(set(window)) == unique_within
    for start in range(0, total - num + 1, num):
        assert sorted(whole[start : start + num]) == list(range(num))

    piecewise = stream(num, unique_within=unique_within, seed=seed)
    pieces = []
    for size in sizes:
        pieces += ids(piecewise.next(size))
    assert pieces == whole[: len(pieces)]


def test_a_resumed_stream_goes_on_where_the_state_was_taken():
    for taken in range(30):
        original = stream(7, unique_within=5, seed=3)
        original.next(taken)
        state = json.loads(json.dumps(original.state_dict()))
        resumed = stream(7, unique_within=5, seed=3)
        resumed.next(2)  # what a state replaces
        resumed.load_state_dict(state)
        assert ids(resumed.next(25)) == ids(original.next(25))


def test_a_resume_with_another_window_keeps_epochs_whole():
    original = stream(7, unique_within=5, seed=3)
    before = ids(original.next(9))
    resumed = stream(7, unique_within=7, seed=3)
    resumed.load_state_dict(original.state_dict())
    after = ids(resumed.next(7))
    assert len(set(after)) == 7
    assert sorted((before + after)[7:14]) == list(range(7))


@pytest.mark.parametrize(
    "other",
    [
        stream(8, seed=3),
        stream(7, seed=4),
        stream(7, seed=3, shuffle=False),
        ShuffledPrompts(prompts(8)[1:], seed=3, shuffle=True, unique_within=1),
    ],
    ids=["more prompts", "another seed", "unshuffled", "other prompts"],
)
def test_a_state_of_other_prompts_is_refused(other):
    with pytest.raises(CheckpointError, match="resume with the prompts settings"):
        stream(7, seed=3).load_state_dict(other.state_dict())


@pytest.mark.parametrize(("num", "unique_within"), [(0, 1), (3, 4)])
def test_a_set_smaller_than_a_window_is_refused(num, unique_within):
    with pytest.raises(DataError, match=f"{num} training prompts, but .* need {unique_within} different ones"):
        stream(num, unique_within=unique_within)
