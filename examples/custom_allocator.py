"""An allocator of your own: one class that satisfies `gvm_ray.protocols.AllocatorStrategy`, named in the config.

This one gives prompts that were solved last time half of what the others get. Run it with the quickstart's task:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-allocator \
        --set allocator.type=custom --set allocator.path=custom_allocator:FewerForSolved
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.functional.allocation import apportion
from gvm_ray.types import Allocation, Float64Array, GroupOutcome, Metrics, Prompt


class FewerForSolved:
    """n_i proportional to 1 for a prompt whose last samples were all accepted, to 2 for any other."""

    def __init__(self, *, accept_threshold: float) -> None:
        self._accept_threshold = accept_threshold
        self._rates: dict[str, float] = {}  # of each prompt's last samples
        self._counts: dict[str, int] = {}

    def plan(self, prompts: Sequence[Prompt], *, budget: int, upcoming: Sequence[Prompt] = ()) -> Allocation:
        """The whole budget in one round."""
        ids = [prompt.prompt_id for prompt in prompts]
        weights = np.array([1.0 if self._rates.get(prompt_id) == 1.0 else 2.0 for prompt_id in ids])
        self._counts = dict(zip(ids, apportion(weights, budget=budget, minimum=1).tolist(), strict=True))
        return Allocation(counts=self._counts)

    def observe(self, outcomes: Sequence[GroupOutcome]) -> Allocation:
        """Remember the accept rates; no second round."""
        for outcome in outcomes:
            if outcome.scored.any():
                accepted = outcome.rewards[outcome.scored] >= self._accept_threshold
                self._rates[outcome.prompt_id] = float(accepted.mean())
        return Allocation.empty()

    def accept_rates(self, prompt_ids: Sequence[str]) -> dict[str, float]:
        return {prompt_id: self._rates[prompt_id] for prompt_id in prompt_ids if self._rates.get(prompt_id, 0) > 0}

    def metrics(self) -> Metrics:
        counts = list(self._counts.values())
        return {
            "allocation/total": float(sum(counts)),
            "allocation/min": float(min(counts)),
            "allocation/max": float(max(counts)),
            "allocation/zero": float(counts.count(0)),
        }

    def histograms(self) -> dict[str, Float64Array]:
        return {
            "samples_per_prompt": np.array(list(self._counts.values()), dtype=np.float64),
            "accept_rate": np.array([self._rates.get(prompt_id, np.nan) for prompt_id in self._counts]),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"rates": self._rates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rates = dict(state["rates"])
