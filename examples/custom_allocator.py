"""An allocator of your own: one class that satisfies `gvm_ray.protocols.AllocatorStrategy`, named in the config.

This one gives prompts that have always been solved so far half of what the others get. On the quickstart's task:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-allocator \
        --set allocator.type=custom --set allocator.path=custom_allocator:FewerForSolved
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.allocators.counts import count_metrics
from gvm_ray.allocators.history import PromptHistory
from gvm_ray.functional.allocation import apportion
from gvm_ray.types import Allocation, Float64Array, GroupOutcome, Metrics, Prompt


class FewerForSolved:
    """n_i proportional to 1 for a prompt whose samples were all accepted, to 2 for any other."""

    def __init__(self, *, accept_threshold: float) -> None:
        self._history = PromptHistory(accept_threshold=accept_threshold)
        self._counts: dict[str, int] = {}

    def plan(self, prompts: Sequence[Prompt], *, budget: int, upcoming: Sequence[Prompt] = ()) -> Allocation:
        """The whole budget in one round."""
        ids = [prompt.prompt_id for prompt in prompts]
        weights = [1.0 if self._solved(prompt_id) else 2.0 for prompt_id in ids]
        counts = apportion(np.array(weights), budget=budget)
        self._counts = {prompt_id: int(count) for prompt_id, count in zip(ids, counts, strict=True)}
        return Allocation(counts=self._counts)

    def observe(self, outcomes: Sequence[GroupOutcome]) -> Allocation:
        """Remember what was accepted; no second round."""
        self._history.fold(outcomes)
        return Allocation.empty()

    def accept_rates(self, prompt_ids: Sequence[str]) -> dict[str, float]:
        return self._history.known_accept_rates(prompt_ids)

    def metrics(self) -> Metrics:
        return count_metrics(self._counts.values())

    def histograms(self) -> dict[str, Float64Array]:
        return {
            "samples_per_prompt": np.array(list(self._counts.values()), dtype=np.float64),
            "accept_rate": self._history.accept_rates(list(self._counts)),
        }

    def state_dict(self) -> dict[str, Any]:
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._history.load_state_dict(state)

    def _solved(self, prompt_id: str) -> bool:
        stats = self._history.all.get(prompt_id)
        return stats is not None and 0 < stats.trials == stats.successes
