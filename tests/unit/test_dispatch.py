"""Requests to generators: by predicted tokens, longest first, large ones split."""

import numpy as np
import pytest

from gvm_ray.actors.generator_pool import LengthHistory, Pieces, assign
from gvm_ray.types import GroupOutcome, GroupRef, Prompt, SampleRequest


def request(prompt_id: str, num_samples: int) -> SampleRequest:
    prompt = Prompt(prompt_id=prompt_id, text="", token_ids=np.zeros(1, dtype=np.int32), answer="")
    return SampleRequest(
        prompt=prompt, sample_indices=tuple(range(num_samples)), seeds=tuple(range(100, 100 + num_samples))
    )


def outcome(prompt_id: str, *num_tokens: int) -> GroupOutcome:
    n = len(num_tokens)
    return GroupOutcome(
        prompt_id=prompt_id,
        sample_indices=tuple(range(n)),
        rewards=np.zeros(n),
        num_tokens=np.array(num_tokens, dtype=np.int32),
        policy_versions=np.zeros(n, dtype=np.int32),
        truncated=np.zeros(n, dtype=np.bool_),
        ref=GroupRef(ref=None, index=0),
    )


def sizes(shares: list[Pieces]) -> list[list[tuple[int, int]]]:
    """(position, samples) of each piece."""
    return [[(position, len(piece.seeds)) for position, piece in share] for share in shares]


def test_unknown_prompts_are_balanced_by_samples() -> None:
    requests = [request(str(i), n) for i, n in enumerate([1, 7, 3, 0, 5, 2])]
    shares = assign(requests, loads=[0, 0], lengths=LengthHistory(max_tokens=10))
    assert sizes(shares) == [[(1, 7), (5, 2), (3, 0)], [(4, 5), (2, 3), (0, 1)]]


def test_a_known_prompt_weighs_as_much_as_its_samples_were_long() -> None:
    lengths = LengthHistory(max_tokens=100)
    lengths.observe(outcome("long", 90, 90))
    lengths.observe(outcome("short", 10, 10))
    assert lengths.predict(request("long", 2)) == 180
    assert lengths.predict(request("short", 3)) == 30
    assert lengths.predict(request("unknown", 1)) == 50  # the mean of what was seen
    requests = [request("short", 3), request("short", 3), request("long", 1), request("short", 3)]
    assert sizes(assign(requests, loads=[0, 0], lengths=lengths)) == [[(2, 1)], [(0, 3), (1, 3), (3, 3)]]


def test_lengths_follow_the_newest_samples() -> None:
    lengths = LengthHistory(max_tokens=100)
    for num_tokens in (40, 80, 80):
        lengths.observe(outcome("a", num_tokens))
    assert lengths.predict(request("a", 1)) == pytest.approx(70)  # 40, 60, 70
    lengths.observe(outcome("a"))
    assert lengths.predict(request("a", 1)) == pytest.approx(70)


def test_a_generator_with_work_before_it_gets_less() -> None:
    requests = [request(str(i), 1) for i in range(4)]
    lengths = LengthHistory(max_tokens=10)
    assert sizes(assign(requests, loads=[30, 0], lengths=lengths)) == [[(3, 1)], [(0, 1), (1, 1), (2, 1)]]
    assert sizes(assign(requests, loads=[100, 0], lengths=lengths))[0] == []


def test_a_request_above_an_even_share_is_split_without_losing_a_sample() -> None:
    shares = assign([request("a", 10), request("b", 2)], loads=[0, 0, 0], lengths=LengthHistory(max_tokens=10))
    pieces = sorted((p.sample_indices, p.seeds) for share in shares for at, p in share if at == 0)
    assert [len(indices) for indices, _ in pieces] == [3, 4, 3]
    assert [index for indices, _ in pieces for index in indices] == list(range(10))
    assert [seed for _, seeds in pieces for seed in seeds] == list(range(100, 110))
    assert max(sum(len(p.seeds) for _, p in share) for share in shares) <= 5


@pytest.mark.parametrize("num_generators", [1, 3, 64])
def test_every_sample_has_exactly_one_generator(num_generators: int) -> None:
    rng = np.random.default_rng(0)
    lengths = LengthHistory(max_tokens=1000)
    for i in range(0, 40, 2):
        lengths.observe(outcome(str(i), *rng.integers(1, 1000, size=3)))
    requests = [request(str(i), int(n)) for i, n in enumerate(rng.integers(0, 30, size=40))]
    shares = assign(requests, loads=[0.0] * num_generators, lengths=lengths)
    samples = [(at, index) for share in shares for at, piece in share for index in piece.sample_indices]
    assert sorted(samples) == [(at, index) for at, r in enumerate(requests) for index in r.sample_indices]
    loads = [sum(lengths.predict(piece) for _, piece in share) for share in shares]
    largest = max(lengths.predict(piece) for share in shares for _, piece in share)
    assert max(loads) - min(loads) <= largest  # of greedy assignment, longest first


def test_nothing_to_sample() -> None:
    assert assign([], loads=[0, 0], lengths=LengthHistory(max_tokens=5)) == [[], []]
