"""Allocators without pilots: what is expected of each prompt decides, in one round, from the first step on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.counts import report_counts
from gvm_ray.allocators.history import PromptHistory
from gvm_ray.allocators.norm_agreement import NormAgreement
from gvm_ray.allocators.predictor import PromptEstimates, StatsPredictor
from gvm_ray.allocators.reward_levels import RewardLevels
from gvm_ray.config.predictive_allocators import (
    GVMOnlineAllocatorConfig,
    GVMPoolAllocatorConfig,
    NeymanAllocatorConfig,
    Score,
)
from gvm_ray.functional.allocation import gradient_deviation, gvm_weights, neyman_weights
from gvm_ray.functional.calibration import brier_score
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, EstimatorTerms, Float64Array, FloatArray, Metrics, Prompt, TrainedNorms

_ALPHA, _BETA = 1e-3, 2.0  # GVM's defaults


class PredictiveAllocator(ABC):
    """One round a step: predict, score, divide. Before the first samples every prompt is worth the same."""

    def __init__(
        self,
        config: GVMPoolAllocatorConfig | GVMOnlineAllocatorConfig | NeymanAllocatorConfig,
        *,
        accept_threshold: float,
        seed: int,
    ) -> None:
        self._settings = config
        self._seed = seed
        self._history = PromptHistory(accept_threshold=accept_threshold)
        self._predictor = StatsPredictor(config.predictor, accept_threshold=accept_threshold, seed=seed)
        self._norms = NormAgreement()
        self._levels = RewardLevels(accept_threshold=accept_threshold, forgetting=config.predictor.forgetting)

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """The whole budget at once, by prediction."""
        assert prompts, "a step needs at least one prompt"
        prompts, states = _distinct(prompts, states)
        ids = [prompt.prompt_id for prompt in prompts]
        rng = np.random.default_rng((self._seed, step))
        rows = self._predictor.rows(prompts, states)
        estimates = self._predictor.predict(prompts, rows, step=step)
        scores = self._scores(estimates, rng)
        sizes, weights = self._divide(scores, budget=budget, rng=rng)
        counts = dict(zip(ids, sizes.tolist(), strict=True))
        self._norms.expect(ids, estimates)
        outcomes = yield Allocation(counts=counts)
        chosen = np.flatnonzero(sizes)
        sampled = [ids[row] for row in chosen.tolist()]
        samples = self._history.start_step(sampled)
        samples.fold(outcomes)
        self._predictor.observe(prompts, rows, outcomes, step=step)
        terms = self._terms(prompts, sizes, estimates, weights)
        self._levels.observe(outcomes)  # after the baselines: none knows of the samples it is for
        successes, trials = samples.counts()
        scored = trials > 0
        predicted, observed = estimates.accept_rates[chosen][scored], successes[scored] / trials[scored]
        return report_counts(
            counts,
            accept_rates=estimates.accept_rates,
            estimator=terms,
            estimates={
                "allocation/prompts": float(len(chosen)),
                "allocation/p_hat_mean": float(estimates.accept_rates.mean()),
                "allocation/gradient_norm_mean": float(estimates.accepted_norms.mean()),
                **({"allocation/brier": brier_score(predicted, observed)} if scored.any() else {}),
                **self._norms.metrics(),
                **({} if weights is None else _weight_metrics(weights[chosen])),
            },
            histograms={"predicted_accept_rate": predicted, "observed_accept_rate": observed},
        )

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Learn the gradient norms that training measured."""
        self._norms.observe(norms)
        self._predictor.observe_training(norms)

    def state_dict(self) -> dict[str, Any]:
        """The counts of every prompt seen, the predictor's memory, and what samples are rewarded with."""
        return {
            **self._history.state_dict(),
            "predictor": self._predictor.state_dict(),
            "rewards": self._levels.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
        self._predictor.load_state_dict(state["predictor"])
        self._levels.load_state_dict(state["rewards"])

    @abstractmethod
    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        """n [P], which sum to the budget, and the weights [P] that undo a selection, where that is asked for."""

    def _scores(self, estimates: PromptEstimates, rng: np.random.Generator) -> Float64Array:
        """[P] >= 0; ones before anything was learned."""
        if not estimates.learned:
            return np.ones(len(estimates.accept_rates))
        rates = estimates.accept_rates
        if self._settings.exploration == "thompson":
            rates = _beta_draws(rates, estimates.deviations, rng)
        return score(self._settings.score, rates, estimates) ** self._settings.sharpness

    def _terms(
        self,
        prompts: Sequence[Prompt],
        sizes: NDArray[np.int64],
        estimates: PromptEstimates,
        weights: Float64Array | None,
    ) -> EstimatorTerms:
        """The estimator averages over the prompts that were sampled."""
        chosen = np.flatnonzero(sizes)
        ids = [prompts[index].prompt_id for index in chosen.tolist()]
        baselines, scales = {}, {}
        if isinstance(self._settings, GVMPoolAllocatorConfig) and self._settings.predicted_baseline:
            means, deviations = self._levels.expected(estimates.accept_rates[chosen].clip(0.02, 0.98))
            baselines = dict(zip(ids, means.tolist(), strict=True))
            scales = dict(zip(ids, deviations.tolist(), strict=True))
        return EstimatorTerms(
            num_prompts=len(chosen),
            accept_rates=dict(zip(ids, estimates.accept_rates[chosen].tolist(), strict=True)),
            baselines=baselines,
            scales=scales,
            prompt_weights={} if weights is None else dict(zip(ids, weights[chosen].tolist(), strict=True)),
        )


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


def _distinct(prompts: Sequence[Prompt], states: FloatArray | None) -> tuple[Sequence[Prompt], FloatArray | None]:
    """Each prompt once, also where one stands twice in a step."""
    rows = list({prompt.prompt_id: row for row, prompt in enumerate(prompts)}.values())
    return [prompts[row] for row in rows], None if states is None else states[rows]
