"""The samples in flight, counted while a step is under way."""

import asyncio
from typing import Any

import numpy as np
import pytest

from gvm_ray.actors.pools import SamplingPools
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import GroupOutcome, Metrics, SampleRequest, SamplingParameters
from tests.builders import outcome, sample_request

SAMPLING = SamplingParameters(temperature=1.0, max_tokens=4)


class Gauges:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[Metrics] = []

    def set(self, metrics: Metrics) -> None:
        self.seen.append(metrics)


class Rewards:
    """Scores a chunk, which here is its request."""

    def __init__(self) -> None:
        self.metrics = {"rewards/unscored_timeout": 1.0}

    async def score(self, chunk: Any) -> list[GroupOutcome]:
        return [outcome_of(chunk)]


class Generators:
    """Samples request after request, and fails after so many."""

    def __init__(self, num_good: int) -> None:
        self._num_good = num_good

    async def sample(
        self, requests: Any, sampling: SamplingParameters, *, score: Any, episodes: None
    ) -> list[GroupOutcome]:
        outcomes = [outcome for request in requests[: self._num_good] for outcome in await score(request)]
        if len(requests) > self._num_good:
            raise RuntimeError("no generator is left")
        return outcomes


def outcome_of(asked: SampleRequest) -> GroupOutcome:
    return outcome(asked.prompt.prompt_id, np.zeros(len(asked.seeds)))


def pools(gauges: Gauges | None, *, num_good: int = 10) -> SamplingPools:
    parts: Any = {"generators": Generators(num_good), "rewards": Rewards(), "gauges": gauges}
    return SamplingPools(**parts, clock=PhaseClock())


def in_flight(gauges: Gauges) -> list[float]:
    return [metrics["queue/samples_in_flight"] for metrics in gauges.seen]


def test_samples_are_in_flight_until_they_have_a_reward() -> None:
    gauges = Gauges()
    scored: list[int] = []
    sampling = pools(gauges).sample_and_score(
        [sample_request("a", num_samples=3), sample_request("b", num_samples=2)], SAMPLING, on_scored=scored.append
    )
    outcomes = asyncio.run(sampling)
    assert sum(scored) == 5
    assert [outcome.prompt_id for outcome in outcomes] == ["a", "b"]
    assert in_flight(gauges) == [5, 2, 0, 0]
    assert gauges.seen[-1]["rewards/unscored_timeout"] == 1


def test_none_is_left_in_flight_by_a_failure() -> None:
    gauges = Gauges()
    failing = pools(gauges, num_good=1)
    with pytest.raises(RuntimeError, match="no generator"):
        asyncio.run(
            failing.sample_and_score([sample_request("a", num_samples=3), sample_request("b", num_samples=2)], SAMPLING)
        )
    assert in_flight(gauges) == [5, 2, 0]
    assert failing.num_in_flight == 0


def test_without_gauges_they_are_counted_all_the_same() -> None:
    quiet = pools(None)
    asyncio.run(quiet.sample_and_score([sample_request("a", num_samples=3)], SAMPLING))
    assert quiet.num_in_flight == 0
