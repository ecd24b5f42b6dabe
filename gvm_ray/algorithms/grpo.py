"""GRPO (arXiv 2402.03300) and Dr. GRPO (arXiv 2503.20783): advantages relative to the prompt's other samples.

Length normalisation isn't theirs to choose here: it is the weighting of the estimator, a setting of its own.
"""

from collections.abc import Sequence

from gvm_ray.algorithms.base import batch_with_advantages, scored_samples
from gvm_ray.config.strategy import DrGRPOConfig, GRPOConfig
from gvm_ray.maths.advantages import group_normalized
from gvm_ray.types import EstimatorTerms, GroupOutcome, TrainBatch


class GRPO:
    """Advantage (r - mean) / (std + epsilon) within the prompt's group; for Dr. GRPO r - mean."""

    def __init__(self, config: GRPOConfig | DrGRPOConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._accept_threshold = accept_threshold

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """All scored samples that have a gradient; see `Algorithm.build_batch`."""
        samples = scored_samples(outcomes, accept_threshold=self._accept_threshold, terms=terms)
        config = self._config
        if isinstance(config, GRPOConfig):
            advantages = group_normalized(samples.rewards, samples.prompt_index, epsilon=config.epsilon)
        else:
            advantages = group_normalized(samples.rewards, samples.prompt_index, normalize_std=False)
        return batch_with_advantages(samples, advantages, config=self._config, step=step)
