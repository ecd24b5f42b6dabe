"""An engine that samples nothing and says which GPUs its process sees."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from gvm_ray.types import Completion, SampleRequest, SamplingParameters


class SeesGPUs:
    """Protocols `Engine` and `Sleeps`."""

    num_unfinished = 0

    def __init__(self, model_path: str, **_: Any) -> None:
        self.policy_version = -1
        self.asleep = False

    def gpus(self) -> list[str]:
        """As CUDA would see them."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")

    def sleep(self) -> None:
        self.asleep = True

    def load_weights(self, policy_version: int, tensors: Iterable[tuple[str, Any]]) -> None:
        self.policy_version, self.asleep = policy_version, False

    def add(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> None: ...

    def step(self) -> list[tuple[SampleRequest, tuple[Completion, ...]]]:
        return []

    def abort(self) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...
