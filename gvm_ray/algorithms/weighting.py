"""Estimator weighting: how much each sample counts in the batch loss, apart from how many samples were allocated.

The batch loss is sum_i weights_i * sum_t token_loss_it. Once prompts get different sample sizes the three weightings
optimise different objectives (arXiv 2505.02391), so a comparison of allocators has to hold the weighting fixed.
"""

from collections.abc import Mapping

import numpy as np

from gvm_ray.algorithms.samples import ScoredSamples
from gvm_ray.config.strategy import Weighting
from gvm_ray.types import BoolArray, Float64Array


def sample_weights(
    samples: ScoredSamples,
    *,
    weighting: Weighting,
    averaged: BoolArray,
    num_prompts: int,
    accept_rates: Mapping[str, float] | None = None,
) -> Float64Array:
    """Weights [N]; 0 outside `averaged`. With m prompts, and for the prompt g of a sample:

    - `prompt_mean`: 1 / (m k_g), k_g its samples in `averaged`: every prompt counts equally (Algorithm 1).
    - `inverse`: 1 / (m n_g p_g), n_g its scored samples: unbiased for samples accepted with probability p_g (Lemma 1).
      Without `accept_rates` nothing was rejected: p_g = 1.
    - `token_mean`: 1 / (tokens of all samples in `averaged`).

    Args:
        samples: N scored samples.
        weighting: which one.
        averaged: [N] the samples that the estimator averages over: the accepted ones for RAFT, else all.
        num_prompts: m, the prompts of the step, sampled or not.
        accept_rates: p by prompt_id; for a prompt that isn't in it, the rate among its own samples.
    """
    weights = np.zeros(len(samples.rewards), dtype=np.float64)
    prompts = samples.prompt_index[averaged]
    match weighting:
        case "prompt_mean":
            weights[averaged] = 1 / (num_prompts * samples.count(averaged)[prompts])
        case "inverse":
            weights[averaged] = 1 / (num_prompts * _expected_accepted(samples, accept_rates)[prompts])
        case "token_mean":
            weights[averaged] = 1 / max(int(samples.num_tokens[averaged].sum()), 1)
    return weights


def _expected_accepted(samples: ScoredSamples, accept_rates: Mapping[str, float] | None) -> Float64Array:
    """n_g p_g [P]."""
    sizes = samples.group_sizes.astype(np.float64)
    if accept_rates is None:
        return sizes
    own = samples.count(samples.accepted) / np.maximum(sizes, 1)
    rates = [accept_rates.get(prompt_id, own[index]) for index, prompt_id in enumerate(samples.prompt_ids)]
    return sizes * np.array(rates, dtype=np.float64)
