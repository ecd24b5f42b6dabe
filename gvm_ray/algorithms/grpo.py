"""GRPO, Dr. GRPO, RLOO and REINFORCE++: every scored sample trains, and they differ in its advantage alone.

Length normalisation isn't theirs to choose here: it is the weighting of the estimator, a setting of its own.
"""

from collections.abc import Sequence

from gvm_ray.algorithms.base import batch_with_advantages, scored_samples
from gvm_ray.config.strategy import DrGRPOConfig, GRPOConfig, ReinforcePlusPlusConfig, RLOOConfig
from gvm_ray.maths.advantages import group_normalized, leave_one_out, shrunk_leave_one_out
from gvm_ray.types import EstimatorTerms, GroupOutcome, TrainBatch


class GRPO:
    """Advantage (r - mean) / (std + epsilon) within the prompt's group (arXiv 2402.03300).

    For Dr. GRPO (arXiv 2503.20783) it is r - mean.
    """

    def __init__(self, config: GRPOConfig | DrGRPOConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._accept_threshold = accept_threshold

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """All scored samples that have a gradient; see `Algorithm.build_batch`."""
        samples = scored_samples(outcomes, accept_threshold=self._accept_threshold, terms=terms)
        config = self._config
        if isinstance(config, GRPOConfig):
            advantages = group_normalized(
                samples.rewards, samples.prompt_index, epsilon=config.epsilon, tolerance=config.tolerance
            )
        else:
            advantages = group_normalized(
                samples.rewards, samples.prompt_index, normalize_std=False, tolerance=config.tolerance
            )
        return batch_with_advantages(samples, advantages, config=self._config, step=step)


class RLOO:
    """Advantage r - mean of the prompt's others (arXiv 2402.14740); a prompt with a single sample has none.

    With shrinkage that mean is shrunk to the mean of the other prompts, and a single sample has the latter.
    """

    def __init__(self, config: RLOOConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._accept_threshold = accept_threshold

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """All scored samples that have a gradient; see `Algorithm.build_batch`."""
        samples = scored_samples(outcomes, accept_threshold=self._accept_threshold, terms=terms)
        if self._config.shrinkage:
            advantages = shrunk_leave_one_out(samples.rewards, samples.prompt_index)
        else:
            advantages = leave_one_out(samples.rewards, samples.prompt_index, tolerance=self._config.tolerance)
        return batch_with_advantages(samples, advantages, config=self._config, step=step)


class ReinforcePlusPlus:
    """Advantage (r - mean) / (std + epsilon) over all scored samples of the step (arXiv 2501.03262), of r - b with
    baselines from the allocator."""

    def __init__(self, config: ReinforcePlusPlusConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._accept_threshold = accept_threshold

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """All scored samples that have a gradient; see `Algorithm.build_batch`."""
        samples = scored_samples(outcomes, accept_threshold=self._accept_threshold, terms=terms)
        return batch_with_advantages(samples, samples.rewards, config=self._config, step=step)
