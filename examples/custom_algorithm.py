"""An algorithm of your own: one class that satisfies `gvm_ray.protocols.Algorithm`, named in the config.

This one divides GRPO's centred rewards by the group's mean instead of its standard deviation, which is the gradient of
the log pass rate (arXiv 2510.04996, appendix B):

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-algorithm \\
        --set algorithm.type=custom --set algorithm.path=custom_algorithm:MeanNormalised
"""

from collections.abc import Sequence

import numpy as np

from gvm_ray.algorithms.base import batch_with_advantages, scored_samples
from gvm_ray.config.strategy import CustomAlgorithmConfig
from gvm_ray.maths.advantages import group_normalized
from gvm_ray.types import EstimatorTerms, GroupOutcome, TrainBatch


class MeanNormalised:
    """Advantage (r - mean) / mean within the prompt's group; a group without any reward has none."""

    def __init__(self, config: CustomAlgorithmConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._accept_threshold = accept_threshold

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """All scored samples that have a gradient."""
        samples = scored_samples(outcomes, accept_threshold=self._accept_threshold, terms=terms)
        centred = group_normalized(samples.rewards, samples.prompt_index, normalize_std=False)
        means = samples.rewards - centred
        advantages = np.divide(centred, means, out=np.zeros_like(centred), where=means > 0)
        return batch_with_advantages(samples, advantages, config=self._config, step=step)
