"""What the algorithms with a baseline share: all scored samples are averaged over, those without gradient dropped."""

import numpy as np

from gvm_ray.algorithms.samples import ScoredSamples, train_batch
from gvm_ray.algorithms.weighting import sample_weights
from gvm_ray.config.strategy import AlgorithmSettings
from gvm_ray.types import Float64Array, TrainBatch


def batch_with_advantages(
    samples: ScoredSamples,
    advantages: Float64Array,
    *,
    config: AlgorithmSettings,
    step: int,
    num_prompts: int,
) -> TrainBatch:
    """The batch of samples with these advantages [N]. A sample of advantage 0 is kept only for a KL or entropy term."""
    everything = np.ones(len(advantages), dtype=np.bool_)
    weights = sample_weights(samples, weighting=config.weighting, averaged=everything, num_prompts=num_prompts)
    has_other_terms = config.kl.coefficient > 0 or config.entropy_coefficient > 0
    return train_batch(
        samples,
        step=step,
        num_prompts=num_prompts,
        advantages=advantages,
        weights=weights,
        keep=everything if has_other_terms else advantages != 0,
    )
