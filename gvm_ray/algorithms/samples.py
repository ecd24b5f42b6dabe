"""The scored samples of a step as flat arrays, and the way back to a TrainBatch of group refs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gvm_ray.types import (
    BoolArray,
    EstimatorTerms,
    Float64Array,
    GroupOutcome,
    IntArray,
    Metrics,
    TrainBatch,
    TrainGroup,
)

IndexArray = NDArray[np.int64]


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
