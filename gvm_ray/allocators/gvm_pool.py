"""Allocators without pilots: what is expected of each prompt decides, in one round, from the first step on."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.base import Allocator, Report, Rounds, Step
from gvm_ray.allocators.predictor import NormAgreement, PromptEstimates, RewardLevels, StatsPredictor
from gvm_ray.config.predictive_allocators import (
    GVMOnlineAllocatorConfig,
    GVMPoolAllocatorConfig,
    NeymanAllocatorConfig,
    Score,
)
from gvm_ray.functional.allocation import apportion, gradient_deviation, gvm_weights, neyman_weights
from gvm_ray.functional.calibration import brier_score
from gvm_ray.functional.selection import expected_samples, inclusion_weights, select_groups
from gvm_ray.types import Float64Array, Metrics, TrainedNorms

_ALPHA, _BETA = 1e-3, 2.0  # GVM's defaults


class PredictiveAllocator(Allocator):
    """One round a step: predict, score, divide. Before the first samples every prompt is worth the same."""

    def __init__(
        self,
        settings: GVMPoolAllocatorConfig | GVMOnlineAllocatorConfig | NeymanAllocatorConfig,
        *,
        accept_threshold: float,
        seed: int,
    ) -> None:
        self._settings = settings
        self._predictor = StatsPredictor(settings.predictor, accept_threshold=accept_threshold, seed=seed)
        self._norms = NormAgreement()
        self._levels = RewardLevels(accept_threshold=accept_threshold, forgetting=settings.predictor.forgetting)

    def rounds(self, step: Step) -> Rounds:
        """The whole budget at once, by prediction."""
        rows = self._predictor.rows(step.prompts, step.states)
        estimates = self._predictor.predict(step.prompts, rows, step=step.number)
        scores = self._scores(estimates, step.rng)
        sizes, weights = self._divide(scores, budget=step.budget, rng=step.rng)
        self._norms.expect(step.ids, estimates)
        outcomes = yield step.counts(sizes)
        self._predictor.observe(step.prompts, rows, outcomes, step=step.number)
        chosen = np.flatnonzero(sizes)
        sampled = [step.ids[row] for row in chosen.tolist()]
        baselines, scales = self._baselines(sampled, estimates.accept_rates[chosen])
        self._levels.observe(outcomes)  # after the baselines: none knows of the samples it is for
        successes, trials = step.samples.counts(sampled)
        scored = trials > 0
        predicted, observed = estimates.accept_rates[chosen][scored], successes[scored] / trials[scored]
        return Report(
            accept_rates=dict(zip(sampled, estimates.accept_rates[chosen].tolist(), strict=True)),
            baselines=baselines,
            scales=scales,
            prompt_weights={} if weights is None else dict(zip(sampled, weights[chosen].tolist(), strict=True)),
            metrics={
                "allocation/prompts": float(len(chosen)),
                "allocation/p_hat_mean": float(estimates.accept_rates.mean()),
                "allocation/gradient_norm_mean": float(estimates.accepted_norms.mean()),
                **({"allocation/brier": brier_score(predicted, observed)} if scored.any() else {}),
                **self._norms.metrics(),
                **({} if weights is None else _weight_metrics(weights[chosen])),
            },
            histograms={
                "accept_rate": estimates.accept_rates,
                "predicted_accept_rate": predicted,
                "observed_accept_rate": observed,
            },
        )

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Learn the gradient norms that training measured."""
        self._norms.observe(norms)
        self._predictor.observe_training(norms)

    def state_dict(self) -> dict[str, Any]:
        """The predictor's memory, and what samples are rewarded with."""
        return {"predictor": self._predictor.state_dict(), "rewards": self._levels.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._predictor.load_state_dict(state["predictor"])
        self._levels.load_state_dict(state["rewards"])

    @abstractmethod
    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        """n [P], which sum to the budget, and the weights [P] that undo a selection, where that is asked for."""

    def _baselines(
        self, prompt_ids: Sequence[str], accept_rates: Float64Array
    ) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Predicted means and deviations of the reward by prompt_id; none where the group's own serve."""
        return {}, {}

    def _scores(self, estimates: PromptEstimates, rng: np.random.Generator) -> Float64Array:
        """[P] >= 0; ones before anything was learned."""
        if not estimates.learned:
            return np.ones(len(estimates.accept_rates))
        rates = estimates.accept_rates
        if self._settings.exploration == "thompson":
            rates = _beta_draws(rates, estimates.deviations, rng)
        return score(self._settings.score, rates, estimates) ** self._settings.sharpness


class GVMPoolAllocator(PredictiveAllocator):
    """n_i in proportion to the score, and a group of `group_size` with probability n_i / group_size where that is less.

    The samples go where the predicted gradient is, so the objective changes with them: an implicit curriculum toward
    prompts that are neither solved nor out of reach. `undo_selection` weights it back (clipped).
    """

    _settings: GVMPoolAllocatorConfig

    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        settings = self._settings
        expected = expected_samples(scores, budget=budget, uniform_share=settings.uniform_share)
        counts = select_groups(
            expected, budget=budget, group_size=settings.group_size, rng=rng, maximum=settings.max_samples
        )
        if not settings.undo_selection:
            return counts, None
        weights = inclusion_weights(
            expected, budget=budget, group_size=settings.group_size, cap=settings.undo_selection_cap
        )
        return counts, weights

    def _baselines(
        self, prompt_ids: Sequence[str], accept_rates: Float64Array
    ) -> tuple[Mapping[str, float], Mapping[str, float]]:
        if not self._settings.predicted_baseline:
            return {}, {}
        means, deviations = self._levels.expected(accept_rates.clip(0.02, 0.98))
        return (
            dict(zip(prompt_ids, means.tolist(), strict=True)),
            dict(zip(prompt_ids, deviations.tolist(), strict=True)),
        )


class GVMOnlineAllocator(PredictiveAllocator):
    """n_i in proportion to the score within the bounds, inside the batch."""

    _settings: GVMOnlineAllocatorConfig | NeymanAllocatorConfig

    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        settings = self._settings
        expected = expected_samples(scores, budget=budget, uniform_share=settings.uniform_share)
        return apportion(expected, budget=budget, minimum=settings.min_samples, maximum=settings.max_samples), None


def _weight_metrics(weights: Float64Array) -> Metrics:
    """How unequal the weights are that undo a selection."""
    return {
        "allocation/undo_weight_mean": float(weights.mean()),
        "allocation/undo_weight_max": float(weights.max()),
        "allocation/undo_effective_prompts": float(weights.sum() ** 2 / (weights**2).sum()),
    }


def score(name: Score, accept_rates: Float64Array, estimates: PromptEstimates) -> Float64Array:
    """[P] by the name of the rule; see `config.predictive_allocators`."""
    match name:
        case "gradient_deviation":
            return gradient_deviation(accept_rates, estimates.accepted_norms, estimates.rejected_norms)
        case "norm_neyman":
            return estimates.accepted_norms * neyman_weights(accept_rates)
        case "neyman":
            return neyman_weights(accept_rates)
        case "log_neyman":
            return neyman_weights(accept_rates, objective="log")
        case "gvm":
            return gvm_weights(accept_rates, estimates.accepted_norms, alpha=_ALPHA, beta=_BETA)


def _beta_draws(means: Float64Array, deviations: Float64Array, rng: np.random.Generator) -> Float64Array:
    """[P] one draw of each belief in p, a Beta distribution of that mean and deviation; kept off 0 and 1, where a score
    could take the whole budget."""
    strength = means * (1 - means) / deviations**2 - 1
    return rng.beta(means * strength, (1 - means) * strength).clip(1e-3, 1 - 1e-3)
