"""The baseline: every prompt gets the same number of samples, in one round."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.allocators.counts import count_metrics, sum_by_prompt
from gvm_ray.allocators.history import PromptHistory
from gvm_ray.functional.allocation import apportion
from gvm_ray.types import Allocation, Float64Array, GroupOutcome, Metrics, Prompt


class UniformAllocator:
    """n_i = budget / P, as even as integers allow."""

    def __init__(self, *, accept_threshold: float) -> None:
        self._history = PromptHistory(accept_threshold=accept_threshold)
        self._counts: dict[str, int] = {}

    def plan(self, prompts: Sequence[Prompt], *, budget: int, upcoming: Sequence[Prompt] = ()) -> Allocation:
        """The whole budget at once; `upcoming` changes nothing."""
        self._history.start_block()
        ids = [prompt.prompt_id for prompt in prompts]
        self._counts = sum_by_prompt(ids, apportion(np.ones(len(ids)), budget=budget))
        return Allocation(counts=self._counts)

    def observe(self, outcomes: Sequence[GroupOutcome]) -> Allocation:
        """Nothing more to sample."""
        self._history.fold(outcomes)
        return Allocation.empty()

    def accept_rates(self, prompt_ids: Sequence[str]) -> dict[str, float]:
        """The raw rates of the step's samples, where above 0."""
        return self._history.known_accept_rates(prompt_ids)

    def metrics(self) -> Metrics:
        """`allocation/min|max|zero|total` of the last step."""
        return count_metrics(self._counts.values())

    def histograms(self) -> dict[str, Float64Array]:
        """samples_per_prompt [P] and accept_rate [P] (raw, 0 where nothing was scored) of the last step."""
        return {
            "samples_per_prompt": np.array(list(self._counts.values()), dtype=np.float64),
            "accept_rate": self._history.accept_rates(list(self._counts)),
        }

    def state_dict(self) -> dict[str, Any]:
        """The counts of every prompt seen."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
