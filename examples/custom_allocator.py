"""An allocator of your own: one class that satisfies `gvm_ray.protocols.AllocatorStrategy`, named in the config.

This one gives prompts that have always been solved so far half of what the others get. On the quickstart's task:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-allocator \
        --set allocator.type=custom --set allocator.path=custom_allocator:FewerForSolved
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gvm_ray.allocators.counts import report_counts, sum_by_prompt
from gvm_ray.allocators.history import PromptHistory
from gvm_ray.functional.allocation import apportion
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, EstimatorTerms, FloatArray, Prompt


class FewerForSolved:
    """n_i proportional to 1 for a prompt whose samples were all accepted, to 2 for any other."""

    def __init__(self, *, accept_threshold: float) -> None:
        self._history = PromptHistory(accept_threshold=accept_threshold)

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """One round with the whole budget, whose outcomes are remembered."""
        ids = [prompt.prompt_id for prompt in prompts]
        weights = [1.0 if self._solved(prompt_id) else 2.0 for prompt_id in ids]
        counts = sum_by_prompt(ids, apportion(weights, budget=budget))
        # What algorithm.weighting = "inverse" divides by: of earlier visits, never of the samples that it weights.
        rates = self._history.accept_rates(ids, prior_successes=0.5, prior_failures=0.5)
        outcomes = yield Allocation(counts=counts)
        samples = self._history.start_step(list(counts))
        samples.fold(outcomes)
        terms = EstimatorTerms(num_prompts=len(counts), accept_rates=dict(zip(ids, rates.tolist(), strict=True)))
        return report_counts(counts, accept_rates=samples.accept_rates(), estimator=terms)

    def state_dict(self) -> dict[str, Any]:
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._history.load_state_dict(state)

    def _solved(self, prompt_id: str) -> bool:
        stats = self._history.all.get(prompt_id)
        return stats is not None and 0 < stats.trials == stats.successes
