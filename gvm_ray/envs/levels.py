"""What every procedural source does with its problems: splits and halves that never meet, and levels by weight."""

import hashlib
import heapq
from collections.abc import Sequence
from typing import Literal

from gvm_ray.exceptions import DataError

TEST_SHARE = 5  # one in so many problems is a test problem


def split_of(content: str) -> Literal["train", "test"]:
    """The split that a problem belongs to, by a hash of its content: the same in every run and configuration."""
    return "test" if _digest(content) % TEST_SHARE == 0 else "train"


def half_of(content: str) -> Literal["first", "second"]:
    """The half of its split that a problem belongs to, by the same hash."""
    return "first" if _digest(content) // TEST_SHARE % 2 == 0 else "second"


def is_in(content: str, *, split: Literal["all", "train", "test"], half: Literal["both", "first", "second"]) -> bool:
    """True where a problem of this content belongs to the split, and to the half of it."""
    return split in ("all", split_of(content)) and half in ("both", half_of(content))


def shares(size: int, *, weights: Sequence[float], capacities: Sequence[int], source: str) -> list[int]:
    """Counts that sum to `size`, as proportional to the weights as the capacities let them (Sainte-Laguë's method).

    Args:
        size: Problems in all.
        weights: Of the levels.
        capacities: The most that each level can give.
        source: Named in the message.

    Raises:
        DataError: the levels together have fewer than `size` problems.
    """
    if size > sum(capacities):
        raise DataError(
            f"{source} source asks for size={size} distinct problems, but its levels have {sum(capacities)} to give "
            f"in this split; write size={sum(capacities)}, or levels with more problems"
        )
    counts = [0] * len(weights)
    queue = [(0.5 / weight, i) for i, weight in enumerate(weights) if capacities[i]]
    heapq.heapify(queue)
    for _ in range(size):
        _, i = heapq.heappop(queue)
        counts[i] += 1
        if counts[i] < capacities[i]:
            heapq.heappush(queue, ((counts[i] + 0.5) / weights[i], i))
    return counts


def _digest(content: str) -> int:
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")
