"""Allocation without pilots: one round a step, divided by predictions for each prompt."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    Needs,
    OptionalPromptStates,
    Report,
    Rounds,
    RunShape,
    Step,
)
from gvm_ray.maths.allocation import gradient_deviation, gvm_weights, neyman_weights
from gvm_ray.settings import Count, NonNegativeCount, Positive, Probability, Settings
from gvm_ray.types import Float64Array, IndexArray, Metrics, TrainedNorms

if TYPE_CHECKING:
    from gvm_ray.allocators.predictor import PromptEstimates

_ALPHA, _BETA = 1e-3, 2.0  # GVM's defaults

Score = Literal["gradient_deviation", "norm_neyman", "neyman", "log_neyman", "gvm"]
PoolScore = Literal["pcl", Score]  # "pcl" chooses among candidates, and has no share of a fixed batch to give
_SCORES_BY_NORMS = ("gradient_deviation", "norm_neyman", "gvm")
RateSource = Literal["both", "features", "history"]


class PredictorConfig(Settings):
    """Predictions for a prompt before it is sampled, learned during the run from the run's own samples."""

    forgetting: Annotated[float, Field(gt=0, le=1)] = 0.9  # the weight of samples is multiplied by this at every step
    # A priori standard deviation of the part of a prompt's logit that the features explain: the ridge penalty on the
    # coefficients of D standardised features is D / prior_deviation^2. A larger value fits faster, and overfits more.
    prior_deviation: Positive = 2.0
    # The prediction from features counts as this many samples of the prompt itself. "fitted" = as many as the run's
    # samples say at each step: few if prompts that look alike turn out different.
    history_trials: Positive | Literal["fitted"] = "fitted"
    token_features: NonNegativeCount = 0  # number of columns for the prompt's token counts (id modulo it); not charged
    source_features: tuple[str, ...] = ()  # names in Prompt.features whose values are categories, e.g. level
    max_state_features: Count = 256  # wider hidden states are projected to this width at random
    # Number of latest groups to learn from. None = 2048, or those of the latest 8 steps if they are more.
    window_rows: Count | None = None


class PredictiveConfig(AllocatorConfig):
    """Settings that predictive allocators share. A prompt's share of the budget is proportional to its score."""

    score: Any  # a PoolScore, of which each allocator takes its own part
    sharpness: Positive = 1.0  # exponent on the score
    uniform_share: Probability = 0.1  # share of the budget that is split evenly, whatever the scores
    exploration: Literal["none", "thompson"] = "none"  # thompson: accept rates are drawn from their posterior
    states: OptionalPromptStates = "embedding"
    predictor: PredictorConfig = PredictorConfig()
    # Measure gradient norms while training, if the score has G. False = G is 1 for all, and training is faster.
    training_gradient_norms: bool = True
    # A measured sample needs its own copy of its prompt. Where the learner lets responses share prompts, so many of a
    # prompt's accepted samples, and of its rejected ones, are measured; "all" measures all and shares no prompt.
    norm_samples: Count | Literal["all"] = 1

    def needs(self, run: RunShape) -> Needs:
        """Candidates, embeddings or hidden states to predict from, and gradient norms from training."""
        return Needs(
            candidates=self.num_candidates(run),
            states=self.states,
            training_norms=self.learns_norms,
            norm_samples=None if self.norm_samples == "all" else self.norm_samples,
        )

    def num_candidates(self, run: RunShape) -> int:
        """The number of prompts to choose from; prompts_per_step for an allocator that doesn't select."""
        return run.prompts_per_step

    @property
    def learns_norms(self) -> bool:
        """True if training measures gradient norms: for a score that has them, unless it is told not to."""
        return self.training_gradient_norms and self.score in _SCORES_BY_NORMS

    @property
    def knows_accept_rates(self) -> bool:
        """True: accept rates are predicted before the samples are drawn."""
        return True


class PredictiveAllocator(Allocator):
    """Allocate in one round a step: predict, score, divide. Before the first samples all prompts score the same."""

    def __init__(self, settings: PredictiveConfig, *, accept_threshold: float, seed: int) -> None:
        # Imported here, because reading settings imports this module, and scipy loads slower than the rest of the CLI.
        from gvm_ray.allocators.predictor import NormAgreement, RewardLevels, StatsPredictor

        self._settings = settings
        self._predictor = StatsPredictor(settings.predictor, accept_threshold=accept_threshold, seed=seed)
        self._norms = NormAgreement()
        self._levels = RewardLevels(accept_threshold=accept_threshold, forgetting=settings.predictor.forgetting)

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round, by prediction."""
        rows = self._predictor.rows(step.prompts, step.states)
        estimates = self._predictor.predict(step.prompts, rows, step=step.number)
        scores = self._scores(estimates, step.rng)
        sizes, weights = self._divide(scores, budget=step.budget, rng=step.rng)
        self._norms.expect(step.ids, estimates)
        outcomes = yield step.counts(sizes)
        self._predictor.observe(step.prompts, rows, outcomes, step=step.number)
        chosen = np.flatnonzero(sizes)
        sampled = [step.ids[row] for row in chosen.tolist()]
        baselines, deviations = self._baselines(sampled, estimates, rows=chosen)
        self._levels.observe(outcomes)  # after the baselines, which must not depend on the samples they are for
        return Report(
            accept_rates=dict(zip(sampled, estimates.accept_rates[chosen].tolist(), strict=True)),
            baselines=baselines,
            deviations=deviations,
            prompt_weights={} if weights is None else dict(zip(sampled, weights[chosen].tolist(), strict=True)),
            metrics={
                "allocation/prompts": float(len(chosen)),
                "allocation/p_hat_mean": float(estimates.accept_rates.mean()),
                "allocation/history_trials": estimates.history_trials,
                **self._norm_metrics(estimates),
                **({} if weights is None else _weight_metrics(weights[chosen])),
            },
            histograms={"accept_rate": estimates.accept_rates},
        )

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Learn the gradient norms that training measured."""
        self._norms.observe(norms)
        self._predictor.observe_training(norms)

    def state_dict(self) -> dict[str, Any]:
        """The memory of the predictor and of the reward levels."""
        return {"predictor": self._predictor.state_dict(), "rewards": self._levels.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._predictor.load_state_dict(state["predictor"])
        self._levels.load_state_dict(state["rewards"])

    def _norm_metrics(self, estimates: "PromptEstimates") -> Metrics:
        if not self._settings.learns_norms:
            return {}
        return {"allocation/gradient_norm_mean": float(estimates.accepted_norms.mean()), **self._norms.metrics()}

    @abstractmethod
    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        """Return n [P], which sum to the budget, and weights [P] that undo the selection, or None without them."""

    def _baselines(
        self, prompt_ids: Sequence[str], estimates: "PromptEstimates", *, rows: IndexArray
    ) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Predicted means and deviations of the reward by prompt_id, of prompts that are these rows of the estimates;
        empty if the group's own are used."""
        return {}, {}

    def _scores(self, estimates: "PromptEstimates", rng: np.random.Generator) -> Float64Array:
        """Scores [P] >= 0; ones before the predictor has learned from samples."""
        if not estimates.learned:
            return np.ones(len(estimates.accept_rates))
        rates = estimates.accept_rates
        if self._settings.exploration == "thompson":
            rates = beta_draws(rates, estimates.deviations, rng)
        return score(self._settings.score, rates, estimates) ** self._settings.sharpness


def _weight_metrics(weights: Float64Array) -> Metrics:
    """Metrics of the weights that undo a selection: mean, largest, and effective number of prompts."""
    return {
        "allocation/undo_weight_mean": float(weights.mean()),
        "allocation/undo_weight_max": float(weights.max()),
        "allocation/undo_effective_prompts": float(weights.sum() ** 2 / (weights**2).sum()),
    }


def score(name: PoolScore, accept_rates: Float64Array, estimates: "PromptEstimates") -> Float64Array:
    """Compute the scores [P] by the named rule; see `PredictiveConfig`."""
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
        case "pcl":
            return 0.5 - np.abs(accept_rates - 0.5)  # in the order of -|p - 1/2|, but not negative


def beta_draws(means: Float64Array, deviations: Float64Array, rng: np.random.Generator) -> Float64Array:
    """Draw p [P] from Beta distributions with these means and deviations. Draws stay off 0 and 1, where one score could
    take the whole budget."""
    strength = means * (1 - means) / deviations**2 - 1
    return rng.beta(means * strength, (1 - means) * strength).clip(1e-3, 1 - 1e-3)
