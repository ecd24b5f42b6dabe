"""Estimator weighting: how much each sample counts in the batch loss, apart from how many samples were allocated.

The batch loss is sum_i weights_i * sum_t token_loss_it. Once prompts get different sample sizes the three weightings
optimise different objectives (arXiv 2505.02391), so a comparison of allocators has to hold the weighting fixed.
"""

from collections.abc import Mapping

import numpy as np

from gvm_ray.algorithms.samples import ScoredSamples
from gvm_ray.config.strategy import Weighting
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import BoolArray, Float64Array


def sample_weights(
    samples: ScoredSamples,
    *,
    weighting: Weighting,
    averaged: BoolArray,
    accept_rates: Mapping[str, float] | None = None,
) -> Float64Array:
    """Weights [N]; 0 outside `averaged`. With m prompts, the allocator's `num_prompts`, and for a sample's prompt g:

    - `prompt_mean`: 1 / (m k_g), k_g its samples in `averaged`: every prompt that has any counts equally (Algorithm 1).
      A prompt is left out with probability (1 - p_g)^n_g, so that in expectation hard prompts count less.
    - `inverse`: 1 / (m n_g p_g), n_g its scored samples, pilots left out of n_g and of the sum (Lemma 1).
      Without `accept_rates` nothing was rejected, p_g = 1, and it is `prompt_mean`.
    - `token_mean`: 1 / (tokens of all samples in `averaged`).

    `inverse` is unbiased for (1 / m) sum_g E[gradient | accepted], over the prompts with n_g > 0, if p_g is the true
    accept rate and neither n_g nor what is kept depends on the rewards of the samples in the sum. With an estimate q_g
    in its place, prompt g counts p_g / q_g times. The estimate must not come from these samples: dividing by their own
    rate, n_g q_g = k_g, is `prompt_mean`.

    Where the allocator gives prompt weights, as those that undo a selection, they multiply these.

    Args:
        samples: N scored samples.
        weighting: which one.
        averaged: [N] the samples that the estimator averages over: the accepted ones for RAFT, else all.
        accept_rates: p by prompt_id, as in `EstimatorTerms`, where samples were rejected.

    Raises:
        ConfigError: `inverse` has no accept rate in (0, 1] of a prompt in the sum.
    """
    weights = np.zeros(len(samples.rewards), dtype=np.float64)
    prompts = samples.prompt_index[averaged]
    num_prompts = max(samples.terms.num_prompts, 1)
    match weighting:
        case "inverse" if accept_rates is not None:
            weights = _inverse(samples, averaged=averaged, accept_rates=accept_rates) / num_prompts
        case "prompt_mean" | "inverse":
            weights[averaged] = 1 / (num_prompts * samples.count(averaged)[prompts])
        case "token_mean":
            weights[averaged] = 1 / max(int(samples.num_tokens[averaged].sum()), 1)
    given = samples.terms.prompt_weights
    if given:
        factors = np.array([given.get(prompt_id, 1.0) for prompt_id in samples.prompt_ids])
        weights *= factors[samples.prompt_index]
    return weights


def _inverse(samples: ScoredSamples, *, averaged: BoolArray, accept_rates: Mapping[str, float]) -> Float64Array:
    """1 / (n_g p_g) [N]; 0 for pilots and outside `averaged`."""
    drawn = ~samples.is_pilot
    sizes = samples.count(drawn)
    rates = np.array([accept_rates.get(prompt_id, np.nan) for prompt_id in samples.prompt_ids], dtype=np.float64)
    unknown = np.flatnonzero((sizes > 0) & ~((rates > 0) & (rates <= 1)))
    if unknown.size:
        first = samples.prompt_ids[unknown[0]]
        raise ConfigError(
            f"algorithm.weighting='inverse' divides by a prompt's accept rate, and the allocator reports "
            f"{accept_rates.get(first)} for {first!r}; give every sampled prompt one in (0, 1] in "
            "EstimatorTerms.accept_rates, from before its samples were drawn or from pilots, or write "
            "algorithm.weighting='prompt_mean'"
        )
    used = averaged & drawn
    weights = np.zeros(len(samples.rewards), dtype=np.float64)
    weights[used] = 1 / (sizes * rates)[samples.prompt_index[used]]
    return weights
