"""Metrics of a step by prompt: what its groups came to, what of them trains, and the estimates against what came."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.maths.statistics import brier_score, calibration_error
from gvm_ray.types import (
    BoolArray,
    EstimatorTerms,
    Float64Array,
    GroupOutcome,
    Histograms,
    IndexArray,
    Metrics,
    TrainBatch,
)

_HARDEST = (10, 25, 50)  # percent of the prompts


@dataclass(frozen=True, kw_only=True, eq=False)
class StepGroups:
    """The samples of a step by prompt: P prompts, in the order of their first outcome."""

    prompt_ids: tuple[str, ...]
    draws: IndexArray  # [P] samples, with those without a reward
    scored: IndexArray  # [P]
    accepted: IndexArray  # [P]
    trains: BoolArray  # [P] whether a sample has a non-zero advantage
    # Of the samples that the prompt's estimate wasn't told by:
    fresh_scored: IndexArray  # [P]
    fresh_accepted: IndexArray  # [P]

    @classmethod
    def of(
        cls,
        outcomes: Sequence[GroupOutcome],
        *,
        batch: TrainBatch,
        pilots: Mapping[str, tuple[int, ...]],
        accept_threshold: float,
    ) -> "StepGroups":
        """Count. `pilots` are the indices of the samples that told a prompt's estimate."""
        prompt_ids = tuple(dict.fromkeys(outcome.prompt_id for outcome in outcomes))
        row = {prompt_id: index for index, prompt_id in enumerate(prompt_ids)}
        rows = np.repeat([row[o.prompt_id] for o in outcomes], [len(o.rewards) for o in outcomes]).astype(np.int64)
        rewards = np.concatenate([np.zeros(0), *(o.rewards for o in outcomes)])
        fresh = np.concatenate(
            [np.zeros(0, dtype=np.bool_), *(~np.isin(o.sample_indices, pilots.get(o.prompt_id, ())) for o in outcomes)]
        )
        scored, accepted = np.isfinite(rewards), rewards >= accept_threshold  # False for an unscored NaN
        trained = {group.prompt_id for group in batch.groups if (group.advantages != 0).any()}

        def count(mask: BoolArray) -> IndexArray:
            return np.bincount(rows[mask], minlength=len(prompt_ids))

        return cls(
            prompt_ids=prompt_ids,
            draws=np.bincount(rows, minlength=len(prompt_ids)),
            scored=count(scored),
            accepted=count(accepted),
            trains=np.array([prompt_id in trained for prompt_id in prompt_ids], dtype=np.bool_),
            fresh_scored=count(scored & fresh),
            fresh_accepted=count(accepted & fresh),
        )

    @property
    def metrics(self) -> Metrics:
        """Shares of prompts by what came, `groups/*_fraction`; prompts that train nothing, `groups/dropped_*`; and
        `samples/per_prompt`."""
        known = self.scored > 0
        solved, failed = known & (self.accepted == self.scored), known & (self.accepted == 0)
        kinds = {"solved": solved, "failed": failed, "mixed": known & ~solved & ~failed}
        total = max(int(known.sum()), 1)
        return {
            **{f"groups/{kind}_fraction": float(mask.sum()) / total for kind, mask in kinds.items()},
            **{
                f"groups/dropped_{reason}": float((mask & ~self.trains).sum())
                for reason, mask in {**kinds, "unscored": ~known}.items()
            },
            "samples/per_prompt": float(self.draws.mean()) if self.draws.size else 0.0,
        }

    def calibration(self, expected: Mapping[str, float]) -> tuple[Metrics, Histograms]:
        """Compare estimated accept rates with those of the samples that came after them.

        `allocation/brier`, `allocation/calibration_error`, and `reward/accept_rate_hardest_10|25|50`: the mean accept
        rate of that percentage of the prompts, those with the lowest estimates. Each prompt counts once. Empty if no
        prompt has both an estimate and a scored sample.
        """
        estimates = np.array([expected.get(prompt_id, np.nan) for prompt_id in self.prompt_ids], dtype=np.float64)
        known = np.isfinite(estimates) & (self.fresh_scored > 0)
        if not known.any():
            return {}, {}
        predicted: Float64Array = estimates[known]
        observed: Float64Array = self.fresh_accepted[known] / self.fresh_scored[known]
        by_difficulty = observed[np.argsort(predicted, kind="stable")]
        metrics = {
            "allocation/brier": brier_score(predicted, observed),
            "allocation/calibration_error": calibration_error(predicted, observed),
            **{
                f"reward/accept_rate_hardest_{percent}": float(
                    by_difficulty[: math.ceil(len(by_difficulty) * percent / 100)].mean()
                )
                for percent in _HARDEST
            },
        }
        return metrics, {"predicted_accept_rate": predicted, "observed_accept_rate": observed}


def step_metrics(
    outcomes: Sequence[GroupOutcome], *, batch: TrainBatch, terms: EstimatorTerms, accept_threshold: float
) -> tuple[Metrics, Histograms]:
    """Metrics of a step's prompts, and the pairs of estimate and outcome behind them.

    Args:
        outcomes: all that were drawn to train the step on.
        batch: what of them is trained on.
        terms: of the allocator: the estimated accept rates, and the samples that told them.
        accept_threshold: a sample is accepted when its reward is at least this.
    """
    groups = StepGroups.of(outcomes, batch=batch, pilots=terms.pilots, accept_threshold=accept_threshold)
    metrics, histograms = groups.calibration(terms.expected_rates)
    return {**useful_tokens(outcomes, batch), **groups.metrics, **metrics}, histograms


def useful_tokens(outcomes: Sequence[GroupOutcome], batch: TrainBatch) -> Metrics:
    """`tokens/useful`, those of samples with a non-zero advantage, and `tokens/useful_fraction` of all in the step."""
    useful = sum(int(group.num_tokens[group.advantages != 0].sum()) for group in batch.groups)
    total = sum(int(outcome.num_tokens.sum()) for outcome in outcomes)
    return {"tokens/useful": float(useful), "tokens/useful_fraction": useful / max(total, 1)}
