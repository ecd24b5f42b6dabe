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
) -> TrainBatch:
    """The batch of samples with these advantages [N], or those of the allocator's baselines where it gives any.

    A sample of advantage 0 is kept only for a KL or entropy term.
    """
    everything = np.ones(len(advantages), dtype=np.bool_)
    advantages = _with_given_baselines(samples, advantages)
    weights = sample_weights(samples, weighting=config.weighting, averaged=everything)
    has_other_terms = config.kl.coefficient > 0 or config.entropy_coefficient > 0
    return train_batch(
        samples,
        step=step,
        advantages=advantages,
        weights=weights,
        keep=everything if has_other_terms else advantages != 0,
    )


def _with_given_baselines(samples: ScoredSamples, advantages: Float64Array) -> Float64Array:
    """[N] advantages, (r - b) / s for the prompts that the allocator gives a baseline b (and scale s) for."""
    terms = samples.terms
    if not terms.baselines:
        return advantages
    baselines = np.array([terms.baselines.get(prompt_id, np.nan) for prompt_id in samples.prompt_ids])
    scales = np.array([terms.scales.get(prompt_id, 1.0) for prompt_id in samples.prompt_ids])
    given = (samples.rewards - baselines[samples.prompt_index]) / scales[samples.prompt_index]
    return np.where(np.isnan(given), advantages, given)
