"""Code that all algorithms share: a step's scored samples as arrays, given baselines, and the sample weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.config.strategy import AdvantageSettings, Weighting
from gvm_ray.exceptions import ConfigError
from gvm_ray.maths.advantages import batch_normalized
from gvm_ray.types import (
    BoolArray,
    EstimatorTerms,
    Float64Array,
    GroupOutcome,
    IndexArray,
    IntArray,
    Metrics,
    TrainBatch,
    TrainGroup,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSamples:
    """All samples of a step that have a reward: N samples of P prompts."""

    outcomes: tuple[GroupOutcome, ...]
    prompt_ids: tuple[str, ...]  # P
    outcome_index: IndexArray  # [N] into outcomes
    sample_index: IntArray  # [N] into the outcome's samples
    prompt_index: IndexArray  # [N] into prompt_ids: the statistical group, over all rounds
    rewards: Float64Array  # [N]
    num_tokens: IndexArray  # [N]
    accepted: BoolArray  # [N]
    terms: EstimatorTerms  # the allocator's part of the estimator

    @property
    def group_sizes(self) -> IndexArray:
        """The number of scored samples of each prompt, [P]."""
        return self.count(np.ones(len(self.rewards), dtype=np.bool_))

    @property
    def is_pilot(self) -> BoolArray:
        """[N] True for pilots: the samples from which their prompt's accept rate was estimated."""
        chosen = [_indices_in(outcome, self.terms.pilots) for outcome in self.outcomes]
        stops = np.cumsum([0, *(len(outcome.rewards) for outcome in self.outcomes)])
        return _concatenate(chosen, np.bool_)[stops[self.outcome_index] + self.sample_index]

    def count(self, mask: BoolArray) -> IndexArray:
        """The number of each prompt's samples where `mask` [N] is True, [P]."""
        return np.bincount(self.prompt_index[mask], minlength=len(self.prompt_ids))


def scored_samples(
    outcomes: Sequence[GroupOutcome], *, accept_threshold: float, terms: EstimatorTerms
) -> ScoredSamples:
    """Flatten outcomes. Outcomes with the same prompt_id form one statistical group. Unscored samples are left out, and
    so are samples that the allocator doesn't keep."""
    prompt_ids = tuple(dict.fromkeys(outcome.prompt_id for outcome in outcomes))
    position = {prompt_id: index for index, prompt_id in enumerate(prompt_ids)}
    kept = [np.flatnonzero(outcome.scored & _kept(outcome, terms)) for outcome in outcomes]
    sizes = [len(indices) for indices in kept]
    rewards = _concatenate([o.rewards[i] for o, i in zip(outcomes, kept, strict=True)], np.float64)
    return ScoredSamples(
        outcomes=tuple(outcomes),
        prompt_ids=prompt_ids,
        outcome_index=np.repeat(np.arange(len(outcomes)), sizes),
        sample_index=_concatenate(kept, np.int32),
        prompt_index=np.repeat(np.array([position[o.prompt_id] for o in outcomes], dtype=np.int64), sizes),
        rewards=rewards,
        num_tokens=_concatenate([o.num_tokens[i] for o, i in zip(outcomes, kept, strict=True)], np.int64),
        accepted=rewards >= accept_threshold,
        terms=terms,
    )


def _kept(outcome: GroupOutcome, terms: EstimatorTerms) -> BoolArray:
    """[n] True for the samples that the allocator keeps."""
    if outcome.prompt_id not in terms.kept:
        return np.ones(len(outcome.rewards), dtype=np.bool_)
    return _indices_in(outcome, terms.kept)


def _indices_in(outcome: GroupOutcome, chosen: Mapping[str, tuple[int, ...]]) -> BoolArray:
    """[n] True for the samples that `chosen` names, prompt_id -> sample indices."""
    return np.isin(outcome.sample_indices, chosen.get(outcome.prompt_id, ()))


def train_batch(
    samples: ScoredSamples,
    *,
    step: int,
    advantages: Float64Array,
    weights: Float64Array,
    keep: BoolArray,
) -> TrainBatch:
    """Build a batch: one TrainGroup for each outcome that has kept samples, and the rollouts' metrics.

    Args:
        samples: N scored samples.
        step: the training step.
        advantages: [N].
        weights: [N].
        keep: [N] True where the learners need the sample.
    """
    kept = np.flatnonzero(keep)  # samples are in the order of their outcomes
    rows_by_outcome = np.split(kept, np.flatnonzero(np.diff(samples.outcome_index[kept])) + 1)
    groups = [
        TrainGroup(
            prompt_id=samples.outcomes[samples.outcome_index[rows[0]]].prompt_id,
            ref=samples.outcomes[samples.outcome_index[rows[0]]].ref,
            sample_indices=samples.sample_index[rows],
            advantages=advantages[rows],
            weights=weights[rows],
            num_tokens=samples.num_tokens[rows].astype(np.int32),
        )
        for rows in rows_by_outcome
        if rows.size
    ]
    metrics = _metrics(samples, advantages=advantages, keep=keep)
    return TrainBatch(step=step, groups=tuple(groups), metrics=metrics)


def _metrics(samples: ScoredSamples, *, advantages: Float64Array, keep: BoolArray) -> Metrics:
    """Metrics of all the step's samples. The mean of no samples is NaN."""
    lengths = _concatenate([outcome.num_tokens for outcome in samples.outcomes], np.int64)
    truncated = _concatenate([outcome.truncated for outcome in samples.outcomes], np.bool_)
    num_scored = sum(int(outcome.scored.sum()) for outcome in samples.outcomes)
    with_signal = int((samples.count(keep & (advantages != 0)) > 0).sum())
    return {
        "reward/mean": _mean(samples.rewards),
        "reward/std": float(samples.rewards.std()) if samples.rewards.size else float("nan"),
        "reward/accept_rate": _mean(samples.accepted),
        "groups/with_signal": float(with_signal),
        "groups/no_signal": float(samples.terms.num_prompts - with_signal),
        "groups/alone": float((samples.group_sizes == 1).sum()),
        "samples/kept": float(keep.sum()),
        "samples/unscored": float(len(lengths) - num_scored),
        "samples/not_kept": float(num_scored - len(samples.rewards)),
        "samples/truncated_fraction": _mean(truncated),
        "length/mean": _mean(lengths),
        "length/max": float(lengths.max(initial=0)),
        "advantage/mean_abs": _mean(np.abs(advantages)),
    }


def _concatenate(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    """Concatenate arrays; without any, return an empty array."""
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays]).astype(dtype)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def sample_weights(
    samples: ScoredSamples,
    *,
    weighting: Weighting,
    averaged: BoolArray,
    accept_rates: Mapping[str, float] | None = None,
) -> Float64Array:
    """Compute sample weights [N]; 0 outside `averaged`. m is the allocator's `num_prompts`, g a sample's prompt.

    - `prompt_mean`: 1 / (m k_g), k_g the prompt's samples in `averaged`. Every prompt with k_g > 0 counts equally
      (Algorithm 1). A prompt has k_g = 0 with probability (1 - p_g)^n_g, so hard prompts count less in expectation.
    - `inverse`: 1 / (m n_g p_g), n_g the prompt's scored samples. Pilots are left out of n_g and of the sum (Lemma 1).
      Without `accept_rates` no sample was rejected: p_g = 1, and the result equals `prompt_mean`.
    - `token_mean`: 1 / (tokens of all samples in `averaged`).

    `inverse` is unbiased for (1 / m) sum_g E[gradient | accepted], over the prompts with n_g > 0, on two conditions:
    p_g is the true accept rate, and neither n_g nor the choice of kept samples depends on the rewards in the sum. With
    an estimate q_g in place of p_g, prompt g counts p_g / q_g times. The estimate must not come from the same samples:
    their own rate gives n_g q_g = k_g, which is `prompt_mean`.

    Prompt weights from the allocator, such as weights that undo a selection, multiply the result.

    Args:
        samples: N scored samples.
        weighting: the kind of weighting.
        averaged: [N] True for the samples that the estimator averages over: accepted samples for RAFT, else all.
        accept_rates: p by prompt_id, as in `EstimatorTerms`; None if no samples were rejected.

    Raises:
        ConfigError: with `inverse`, a prompt in the sum has no accept rate in (0, 1].
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
            f"algorithm.weighting='inverse' divides by a prompt's accept rate, but the allocator reports "
            f"{accept_rates.get(first)} for {first!r}; give every sampled prompt a rate in (0, 1] in "
            "EstimatorTerms.accept_rates, estimated before its samples were drawn or from pilots, or write "
            "algorithm.weighting='prompt_mean'"
        )
    used = averaged & drawn
    weights = np.zeros(len(samples.rewards), dtype=np.float64)
    weights[used] = 1 / (sizes * rates)[samples.prompt_index[used]]
    return weights


def batch_with_advantages(
    samples: ScoredSamples,
    advantages: Float64Array,
    *,
    config: AdvantageSettings,
    step: int,
) -> TrainBatch:
    """Build the batch with these advantages [N]. Baselines from the allocator take precedence for their prompts, and
    `advantage_normalization` comes last.

    A sample with advantage 0 is kept only if the loss has a KL or entropy term.
    """
    everything = np.ones(len(advantages), dtype=np.bool_)
    advantages = _with_given_baselines(samples, advantages, divides_by_deviation=config.divides_by_deviation)
    if config.advantage_normalization != "none":
        num_tokens = samples.num_tokens if config.advantage_normalization == "tokens" else None
        advantages = batch_normalized(advantages, epsilon=config.normalization_epsilon, num_tokens=num_tokens)
    weights = sample_weights(samples, weighting=config.weighting, averaged=everything)
    has_other_terms = config.kl.coefficient > 0 or config.entropy_coefficient > 0
    return train_batch(
        samples,
        step=step,
        advantages=advantages,
        weights=weights,
        keep=everything if has_other_terms else advantages != 0,
    )


def _with_given_baselines(
    samples: ScoredSamples, advantages: Float64Array, *, divides_by_deviation: bool
) -> Float64Array:
    """Advantages [N]: (r - b) / s for samples with a baseline b (and scale or deviation s) from the allocator, else as
    given."""
    terms = samples.terms
    if not terms.baselines and not terms.sample_baselines:
        return advantages
    of_prompts = np.array([terms.baselines.get(prompt_id, np.nan) for prompt_id in samples.prompt_ids])
    by_prompt = {**(terms.deviations if divides_by_deviation else {}), **terms.scales}
    scales = np.array([by_prompt.get(prompt_id, 1.0) for prompt_id in samples.prompt_ids])
    own = _own_baselines(samples)
    baselines = np.where(np.isnan(own), of_prompts[samples.prompt_index], own)
    given = (samples.rewards - baselines) / scales[samples.prompt_index]
    return np.where(np.isnan(given), advantages, given)


def _own_baselines(samples: ScoredSamples) -> Float64Array:
    """Baselines [N] of single samples; NaN for a sample without one."""
    by_prompt = samples.terms.sample_baselines
    rows = zip(samples.outcome_index.tolist(), samples.sample_index.tolist(), strict=True)
    keys = ((samples.outcomes[row].prompt_id, samples.outcomes[row].sample_indices[index]) for row, index in rows)
    return np.array([by_prompt.get(prompt_id, {}).get(index, np.nan) for prompt_id, index in keys], dtype=np.float64)
