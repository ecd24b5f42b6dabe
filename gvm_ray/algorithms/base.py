"""What all algorithms share: the scored samples of a step as arrays, baselines, and the estimator weighting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.config.strategy import AlgorithmSettings, Weighting
from gvm_ray.exceptions import ConfigError
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
    """All samples of a step whose reward is known; N of them, from P prompts."""

    outcomes: tuple[GroupOutcome, ...]
    prompt_ids: tuple[str, ...]  # P
    outcome_index: IndexArray  # [N] into outcomes
    sample_index: IntArray  # [N] into the outcome's samples
    prompt_index: IndexArray  # [N] into prompt_ids: the statistical group, whatever the round
    rewards: Float64Array  # [N]
    num_tokens: IndexArray  # [N]
    accepted: BoolArray  # [N]
    terms: EstimatorTerms  # what the allocator says of the estimator

    @property
    def group_sizes(self) -> IndexArray:
        """[P] scored samples of each prompt."""
        return self.count(np.ones(len(self.rewards), dtype=np.bool_))

    @property
    def is_pilot(self) -> BoolArray:
        """[N] True for the samples that their prompt's accept rate was told by."""
        chosen = [_indices_in(outcome, self.terms.pilots) for outcome in self.outcomes]
        stops = np.cumsum([0, *(len(outcome.rewards) for outcome in self.outcomes)])
        return _concatenate(chosen, np.bool_)[stops[self.outcome_index] + self.sample_index]

    def count(self, mask: BoolArray) -> IndexArray:
        """[P] samples of each prompt where `mask` [N] is True."""
        return np.bincount(self.prompt_index[mask], minlength=len(self.prompt_ids))


def scored_samples(
    outcomes: Sequence[GroupOutcome], *, accept_threshold: float, terms: EstimatorTerms
) -> ScoredSamples:
    """Flatten outcomes. Those of one prompt_id share a statistical group; unscored samples are left out, and so are
    those that the allocator doesn't keep."""
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
    """The kept samples as one TrainGroup for each outcome that has any, with the rollouts' metrics.

    Args:
        samples: N scored samples.
        step: the training step.
        advantages: [N].
        weights: [N].
        keep: [N] True where the learners need the sample.
    """
    kept = np.flatnonzero(keep)  # samples stand in the order of their outcomes
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
    """Of all the step's samples; means over none of them are NaN."""
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
    """np.concatenate that also takes no arrays at all."""
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
