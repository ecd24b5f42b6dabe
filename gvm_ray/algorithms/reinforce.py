"""REINFORCE++ (arXiv 2501.03262): rewards normalised over the whole batch instead of the prompt's group."""

from collections.abc import Sequence

from gvm_ray.algorithms.base import batch_with_advantages, scored_samples
from gvm_ray.config.strategy import ReinforcePlusPlusConfig
from gvm_ray.maths.advantages import batch_normalized
from gvm_ray.types import EstimatorTerms, GroupOutcome, TrainBatch


class ReinforcePlusPlus:
    """Advantage (r - mean) / (std + epsilon) over all scored samples of the step."""

    def __init__(self, config: ReinforcePlusPlusConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._accept_threshold = accept_threshold

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """All scored samples that have a gradient; see `Algorithm.build_batch`."""
        samples = scored_samples(outcomes, accept_threshold=self._accept_threshold, terms=terms)
        advantages = batch_normalized(samples.rewards, epsilon=self._config.epsilon)
        return batch_with_advantages(samples, advantages, config=self._config, step=step)
