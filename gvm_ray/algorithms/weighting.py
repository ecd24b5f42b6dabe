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
    accept_rates: Mapping[str, float] | None = None,
) -> Float64Array:
    """Weights [N]; 0 outside `averaged`. With m prompts, the allocator's `num_prompts`, and for a sample's prompt g:

    - `prompt_mean`: 1 / (m k_g), k_g its samples in `averaged`: every prompt counts equally (Algorithm 1).
    - `inverse`: 1 / (m n_g p_g), n_g its scored samples: unbiased for samples accepted with probability p_g (Lemma 1).
      Without `accept_rates` nothing was rejected: p_g = 1.
    - `token_mean`: 1 / (tokens of all samples in `averaged`).

    Where the allocator gives prompt weights, as those that undo a selection, they multiply these.

    Args:
        samples: N scored samples.
        weighting: which one.
        averaged: [N] the samples that the estimator averages over: the accepted ones for RAFT, else all.
        accept_rates: p by prompt_id; for a prompt that isn't in it, the rate among its own samples.
    """
    weights = np.zeros(len(samples.rewards), dtype=np.float64)
    prompts = samples.prompt_index[averaged]
    num_prompts = max(samples.terms.num_prompts, 1)
    match weighting:
        case "prompt_mean":
            weights[averaged] = 1 / (num_prompts * samples.count(averaged)[prompts])
        case "inverse":
            weights[averaged] = 1 / (num_prompts * _expected_accepted(samples, accept_rates)[prompts])
        case "token_mean":
            weights[averaged] = 1 / max(int(samples.num_tokens[averaged].sum()), 1)
    given = samples.terms.prompt_weights
    if given:
        factors = np.array([given.get(prompt_id, 1.0) for prompt_id in samples.prompt_ids])
        weights *= factors[samples.prompt_index]
    return weights


def _expected_accepted(samples: ScoredSamples, accept_rates: Mapping[str, float] | None) -> Float64Array:
    """n_g p_g [P]."""
    sizes = samples.group_sizes.astype(np.float64)
    if accept_rates is None:
        return sizes
    own = samples.count(samples.accepted) / np.maximum(sizes, 1)
    rates = [accept_rates.get(prompt_id, own[index]) for index, prompt_id in enumerate(samples.prompt_ids)]
    return sizes * np.array(rates, dtype=np.float64)
