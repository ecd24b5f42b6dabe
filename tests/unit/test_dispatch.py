"""Requests to generators: by predicted tokens, longest first, large ones split."""

import numpy as np
import pytest

from gvm_ray.actors.generator_pool import LengthHistory, Pieces, assign
from tests.builders import outcome, sample_request


def sizes(shares: list[Pieces]) -> list[list[tuple[int, int]]]:
    """(position, samples) of each piece."""
    return [[(position, len(piece.seeds)) for position, piece in share] for share in shares]


def test_unknown_prompts_are_balanced_by_samples() -> None:
    requests = [sample_request(str(i), num_samples=n) for i, n in enumerate([1, 7, 3, 0, 5, 2])]
    shares = assign(requests, loads=[0, 0], lengths=LengthHistory(max_tokens=10))
    assert sizes(shares) == [[(1, 7), (5, 2), (3, 0)], [(4, 5), (2, 3), (0, 1)]]


def test_a_known_prompt_weighs_as_much_as_its_samples_were_long() -> None:
    lengths = LengthHistory(max_tokens=100)
    lengths.observe(outcome("long", [0, 0], num_tokens=[90, 90]))
    lengths.observe(outcome("short", [0, 0], num_tokens=[10, 10]))
    assert lengths.predict(sample_request("long", num_samples=2)) == 180
    assert lengths.predict(sample_request("short", num_samples=3)) == 30
    assert lengths.predict(sample_request("unknown", num_samples=1)) == 50  # the mean of what was seen
    requests = [
        sample_request("short", num_samples=3),
        sample_request("short", num_samples=3),
        sample_request("long", num_samples=1),
        sample_request("short", num_samples=3),
    ]
    assert sizes(assign(requests, loads=[0, 0], lengths=lengths)) == [[(2, 1)], [(0, 3), (1, 3), (3, 3)]]


def test_lengths_follow_the_newest_samples() -> None:
    lengths = LengthHistory(max_tokens=100)
    for num_tokens in (40, 80, 80):
        lengths.observe(outcome("a", [0], num_tokens=num_tokens))
    assert lengths.predict(sample_request("a", num_samples=1)) == pytest.approx(70)  # 40, 60, 70
    lengths.observe(outcome("a", []))
    assert lengths.predict(sample_request("a", num_samples=1)) == pytest.approx(70)


def test_a_generator_with_work_before_it_gets_less() -> None:
    requests = [sample_request(str(i), num_samples=1) for i in range(4)]
    lengths = LengthHistory(max_tokens=10)
    assert sizes(assign(requests, loads=[30, 0], lengths=lengths)) == [[(3, 1)], [(0, 1), (1, 1), (2, 1)]]
    assert sizes(assign(requests, loads=[100, 0], lengths=lengths))[0] == []


def test_a_request_above_an_even_share_is_split_without_losing_a_sample() -> None:
    shares = assign(
        [sample_request("a", num_samples=10, first_seed=100), sample_request("b", num_samples=2)],
        loads=[0, 0, 0],
        lengths=LengthHistory(max_tokens=10),
    )
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
        lengths.observe(outcome(i, [0] * 3, num_tokens=rng.integers(1, 1000, size=3).tolist()))
    requests = [sample_request(str(i), num_samples=int(n)) for i, n in enumerate(rng.integers(0, 30, size=40))]
    shares = assign(requests, loads=[0.0] * num_generators, lengths=lengths)
    samples = [(at, index) for share in shares for at, piece in share for index in piece.sample_indices]
    assert sorted(samples) == [(at, index) for at, r in enumerate(requests) for index in r.sample_indices]
    loads = [sum(lengths.predict(piece) for _, piece in share) for share in shares]
    largest = max(lengths.predict(piece) for share in shares for _, piece in share)
    assert max(loads) - min(loads) <= largest  # of greedy assignment, longest first


def test_nothing_to_sample() -> None:
    assert assign([], loads=[0, 0], lengths=LengthHistory(max_tokens=5)) == [[], []]
