"""The baseline: every prompt gets the same number of samples, in one round."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.allocators.counts import report_counts, sum_by_prompt
from gvm_ray.allocators.history import PromptHistory
from gvm_ray.protocols import Rounds
from gvm_ray.types import EstimatorTerms, FloatArray, Prompt


class UniformAllocator:
    """n_i = budget / P, as even as integers allow."""

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
        """The whole budget at once."""
        assert prompts, "a step needs at least one prompt"
        samples_each = np.full(len(prompts), budget // len(prompts))
        samples_each[: budget % len(prompts)] += 1
        counts = sum_by_prompt([prompt.prompt_id for prompt in prompts], samples_each)
        samples = yield from self._history.sample_once(counts)
        return report_counts(
            counts, accept_rates=samples.accept_rates(), estimator=EstimatorTerms(num_prompts=len(counts))
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts of every prompt seen."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
