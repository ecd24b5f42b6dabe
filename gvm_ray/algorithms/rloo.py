"""RLOO (arXiv 2402.14740): REINFORCE whose baseline is the mean reward of the other samples of the prompt."""

from collections.abc import Sequence

from gvm_ray.algorithms.base import batch_with_advantages, scored_samples
from gvm_ray.config.strategy import RLOOConfig
from gvm_ray.maths.advantages import leave_one_out
from gvm_ray.types import EstimatorTerms, GroupOutcome, TrainBatch


class RLOO:
    """Advantage r - mean of the others; a prompt with a single sample has none."""

    def __init__(self, config: RLOOConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._accept_threshold = accept_threshold

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """All scored samples that have a gradient; see `Algorithm.build_batch`."""
        samples = scored_samples(outcomes, accept_threshold=self._accept_threshold, terms=terms)
        advantages = leave_one_out(samples.rewards, samples.prompt_index)
        return batch_with_advantages(samples, advantages, config=self._config, step=step)
