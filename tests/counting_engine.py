"""An engine of which a test decides when it steps, and what callers get of it."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gvm_ray.engines.server import EngineServer
from gvm_ray.types import Completion, SampleRequest, SamplingParameters
from tests.builders import sample_request

SAMPLING = SamplingParameters(temperature=1.0, max_tokens=100)


class CountingEngine:
    """A token of every sample at each step; a sample's seed is its length. Steps wait for a permit of the test."""

    def __init__(self) -> None:
        self.policy_version = -1
        self.permits = threading.Semaphore(0)
        self.largest_batch = 0
        self.threads: set[int] = set()
        self.fail_step = False
        self.adding = threading.Event()
        self.adding.set()
        self._running: deque[tuple[SampleRequest, list[list[int]]]] = deque()

    @property
    def num_unfinished(self) -> int:
        return len(self._running)

    def add(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> None:
        self.threads.add(threading.get_ident())
        assert self.adding.wait(timeout=10)
        if any(request.prompt.prompt_id == "bad" for request in requests):
            raise ValueError("bad prompt")
        self._running.extend((request, [[] for _ in request.seeds]) for request in requests)

    def step(self) -> list[tuple[SampleRequest, tuple[Completion, ...]]]:
        self.threads.add(threading.get_ident())
        assert self.permits.acquire(timeout=10)
        if self.fail_step:
            raise RuntimeError("out of memory")
        self.largest_batch = max(self.largest_batch, len(self._running))
        for request, samples in self._running:
            for seed, versions in zip(request.seeds, samples, strict=True):
                if len(versions) < seed:
                    versions.append(self.policy_version)
        done = [item for item in self._running if all(len(v) == s for s, v in zip(item[0].seeds, item[1], strict=True))]
        for item in done:
            self._running.remove(item)
        return [(request, tuple(map(self._completion, samples))) for request, samples in done]

    def _completion(self, versions: list[int]) -> Completion:
        return Completion(
            token_ids=np.zeros(len(versions), dtype=np.int32),
            logprobs=np.zeros(len(versions), dtype=np.float32),
            policy_versions=np.array(versions, dtype=np.int32),
            finish_reason="stop",
            text="",
        )

    def abort(self) -> None:
        self._running.clear()

    def reset(self) -> None:
        self.threads.add(threading.get_ident())
        self._running.clear()
        self.policy_version = -1

    def load_weights(self, policy_version: int, tensors: Iterable[tuple[str, Any]]) -> None:
        self.threads.add(threading.get_ident())
        if dict(tensors) != {"w": policy_version}:
            raise ValueError("wrong weights")
        self.policy_version = policy_version

    def close(self) -> None: ...


def request(prompt_id: str, *lengths: int) -> SampleRequest:
    """Its seeds are the lengths."""
    return sample_request(prompt_id, seeds=lengths)


def weights(version: int) -> Callable[[], Iterable[tuple[str, Any]]]:
    return lambda: [("w", version)]


async def collect(server: EngineServer, *requests: SampleRequest) -> list[tuple[str, list[list[int]]]]:
    """(prompt_id, versions by sample and token) in the order of the answers."""
    return [
        (answered.prompt.prompt_id, [completion.policy_versions.tolist() for completion in completions])
        async for answered, completions in server.sample(requests, SAMPLING)
    ]
