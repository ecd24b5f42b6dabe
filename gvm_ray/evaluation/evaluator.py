"""Evaluation of held-out accuracy, in the training loop or beside it on generators of its own."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.background import Background
from gvm_ray.protocols import Evaluator, RolloutPools
from gvm_ray.types import (
    Float64Array,
    GroupOutcome,
    Metrics,
    Prompt,
    SampleRequest,
    SamplingParameters,
    WeightsRef,
    sample_seed,
)

_EVALUATION_STEP = -1  # for seeds different from those of every training step


@dataclass(frozen=True, kw_only=True)
class HeldOutEvaluator:
    """avg@k over a fixed set of prompts."""

    prompts: Sequence[Prompt]
    pools: RolloutPools
    sampling: SamplingParameters
    num_samples: int  # k
    accept_threshold: float
    seed: int
    fresh_seeds: bool = False  # other seeds for each policy version
    progress: Callable[[int], Callable[[int], None]] | None = (
        None  # number of samples -> callback for the number just scored
    )

    async def sample(self, policy_version: int = 0) -> list[GroupOutcome]:
        """Sample and score `num_samples` completions of each prompt; return the outcomes in order."""
        indices = tuple(range(self.num_samples))
        step = _EVALUATION_STEP - (policy_version if self.fresh_seeds else 0)
        requests = [
            SampleRequest(
                prompt=prompt,
                sample_indices=indices,
                seeds=tuple(
                    sample_seed(self.seed, step=step, prompt_id=prompt.prompt_id, sample_index=index)
                    for index in indices
                ),
            )
            for prompt in self.prompts
        ]
        if self.progress is None:
            return await self.pools.sample_and_score(requests, self.sampling)
        on_scored = self.progress(len(requests) * self.num_samples)
        return await self.pools.sample_and_score(requests, self.sampling, on_scored=on_scored)

    async def evaluate(self, policy_version: int) -> Metrics:
        """The metrics under `eval/`. Accuracy is the mean over prompts of the share of accepted samples, without
        unscored ones."""
        if not self.prompts:
            return {}
        outcomes = await self.sample(policy_version)
        shares = [(o.rewards[o.scored] >= self.accept_threshold).mean() for o in outcomes if o.scored.any()]
        return {
            "eval/accuracy": float(np.mean(shares)) if shares else float("nan"),
            "eval/unscored": float(sum((~o.scored).sum() for o in outcomes)),
            "eval/truncated_fraction": float(np.mean(np.concatenate([o.truncated for o in outcomes]))),
            "eval/policy_version": float(max(o.policy_versions.max(initial=-1) for o in outcomes)),
            "eval/length_mean": float(np.mean(np.concatenate([o.num_tokens for o in outcomes]))),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class AcceptRates:
    """Accept rates of a policy on some training prompts."""

    rates: Float64Array  # [P] of the prompts with a scored sample
    num_samples: int  # scored ones, of all prompts

    @classmethod
    def of(cls, outcomes: Sequence[GroupOutcome], *, accept_threshold: float) -> "AcceptRates":
        """The rates among the scored samples."""
        rates = [(o.rewards[o.scored] >= accept_threshold).mean() for o in outcomes if o.scored.any()]
        return cls(rates=np.array(rates, dtype=np.float64), num_samples=sum(int(o.scored.sum()) for o in outcomes))

    def lines(self) -> list[str]:
        """Lines to print: a histogram, and a warning if no prompt or every prompt is solved each time."""
        if not self.rates.size:
            return []
        inner = self.rates[(self.rates > 0) & (self.rates < 1)]
        quarters = np.histogram(inner, bins=np.linspace(0, 1, 5))[0]
        counts = [(self.rates == 0).sum(), *quarters, (self.rates == 1).sum()]
        histogram = "  ".join(f"{name}: {count}" for name, count in zip(_BINS, counts, strict=True))
        lines = [
            f"base accept rates of {self.rates.size} training prompts, {self.num_samples} samples: mean "
            f"{self.rates.mean():.3f}  |  {histogram}"
        ]
        if self.rates.max() == 0:
            lines.append(
                "warning: the base solves none of these training prompts, so there is nothing to reinforce. Read some "
                "responses (samples.jsonl, after the first step): if they are right, mend the reward or raise "
                "sampling.max_tokens; else take easier prompts, a stronger model or a [warm_start]"
            )
        if self.rates.min() == 1:
            lines.append(
                "warning: the base solves all of these training prompts every time, so there is nothing to learn from "
                "them: take harder prompts, or a reward that tells responses apart"
            )
        return lines


def spread(prompts: Sequence[Prompt], number: int) -> Sequence[Prompt]:
    """At most this number of the prompts, evenly spread over their order."""
    kept = np.linspace(0, len(prompts), num=min(number, len(prompts)), endpoint=False).astype(int)
    return tuple(prompts[index] for index in kept)


_BINS = ("0", "below .25", "below .5", "below .75", "below 1", "1")

logger = logging.getLogger(__name__)


class EvaluationBeside:
    """Evaluates one policy after the other beside training, which waits if the previous evaluation is unfinished.

    Args:
        evaluator: samples with `pools`.
        pools: used for nothing else.
        log: called with the step that made a policy, and the policy's metrics.
    """

    def __init__(self, evaluator: Evaluator, pools: RolloutPools, *, log: Callable[[int, Metrics], None]) -> None:
        self._evaluator = evaluator
        self._pools = pools
        self._log = log
        self._under_way: asyncio.Task[None] | None = None

    async def begin(self, step: int, weights: WeightsRef, background: Background) -> None:
        """Evaluate the policy of a step in the background; returns when that has begun."""
        if self._under_way is not None:
            await self._under_way
        self._under_way = background.create_task(self._evaluate(step, weights))

    async def _evaluate(self, step: int, weights: WeightsRef) -> None:
        await self._pools.publish(weights)
        metrics = await self._evaluator.evaluate(weights.policy_version)
        if metrics.get("eval/policy_version", weights.policy_version) == weights.policy_version:
            self._log(step, metrics)
        else:  # the weights were lost with the learners, which have since published later ones
            logger.warning("step %d has no evaluation: its weights were lost in a failure", step)
