"""Allocators without pilots: what is expected of each prompt decides, in one round, from the first step on."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    Needs,
    OptionalPromptStates,
    PromptStatesConfig,
    Report,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
    check_bounds,
)
from gvm_ray.maths.allocation import (
    apportion,
    expected_samples,
    gradient_deviation,
    gvm_weights,
    inclusion_weights,
    neyman_weights,
    select_groups,
)
from gvm_ray.maths.statistics import brier_score
from gvm_ray.settings import Count, NonNegativeCount, Positive, Probability, Settings
from gvm_ray.types import Float64Array, Metrics, TrainedNorms

if TYPE_CHECKING:
    from gvm_ray.allocators.predictor import PromptEstimates

_ALPHA, _BETA = 1e-3, 2.0  # GVM's defaults
_CANDIDATES_PER_PROMPT = 16  # of prompts_per_step
_FREE_CANDIDATES = 1024  # which take a few milliseconds to predict


Score = Literal["gradient_deviation", "norm_neyman", "neyman", "log_neyman", "gvm"]


class PredictorConfig(Settings):
    """What an allocator expects of a prompt before it is sampled: learned on the way from the run's own samples."""

    forgetting: Annotated[float, Field(gt=0, le=1)] = 0.9  # factor on the weight of samples for each step they are old
    # Standard deviation, a priori, of what the features explain of a prompt's logit: the ridge penalty on the
    # coefficients of D standardised features is D / prior_deviation^2. Larger fits faster, and overfits more.
    prior_deviation: Positive = 2.0
    history_trials: Positive = 8.0  # the features' prediction counts as so many samples of the prompt itself
    token_features: NonNegativeCount = 0  # columns of the prompt's token counts, id modulo their number; not charged
    source_features: tuple[str, ...] = ()  # names in Prompt.features whose values are categories, e.g. level
    max_state_features: Count = 256  # wider hidden states are projected down at random
    window_rows: Count = 2048  # latest groups learned from


class _PredictiveConfig(AllocatorConfig):
    """What they share. The score of a prompt is what its share of the budget is proportional to.

    - `gradient_deviation`: root mean square of a sample's term of the policy gradient, from the predicted norms of
      accepted and rejected samples alike: sqrt(p (1 - p) ((1 - p) G+^2 + p G-^2)).
    - `norm_neyman`: G+ sqrt(p (1 - p)), the norms of the accepted samples alone.
    - `neyman`: sqrt(p (1 - p)); `log_neyman`: sqrt((1 - p) / p).
    - `gvm`: G+ / sqrt(p + alpha / p), arXiv 2505.02391, Proposition 1, with alpha = 1e-3 and beta = 2.
    """

    sharpness: Positive = 1.0  # exponent on the score
    uniform_share: Probability = 0.1  # of the budget, split evenly whatever the scores
    exploration: Literal["none", "thompson"] = "none"  # thompson: scores at an accept rate drawn from the belief in it
    states: OptionalPromptStates = PromptStatesConfig()
    predictor: PredictorConfig = PredictorConfig()
    training_gradient_norms: bool = True

    def needs(self, run: RunShape) -> Needs:
        """Hidden states to predict from, and norms out of training."""
        return Needs(
            candidates=self.num_candidates(run), states=self.states, training_norms=self.training_gradient_norms
        )

    def num_candidates(self, run: RunShape) -> int:
        """Prompts to choose from; those of the step, where it doesn't select."""
        return run.prompts_per_step

    @property
    def knows_accept_rates(self) -> bool:
        """Those predicted before the samples are drawn."""
        return True


class PredictiveAllocator(Allocator):
    """One round a step: predict, score, divide. Before the first samples every prompt is worth the same."""

    def __init__(
        self,
        settings: "GVMPoolAllocatorConfig | GVMOnlineAllocatorConfig | NeymanAllocatorConfig",
        *,
        accept_threshold: float,
        seed: int,
    ) -> None:
        # Late, for whoever reads settings imports this module: scipy takes longer than the rest of a command line.
        from gvm_ray.allocators.predictor import NormAgreement, RewardLevels, StatsPredictor

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

    def _scores(self, estimates: "PromptEstimates", rng: np.random.Generator) -> Float64Array:
        """[P] >= 0; ones before anything was learned."""
        if not estimates.learned:
            return np.ones(len(estimates.accept_rates))
        rates = estimates.accept_rates
        if self._settings.exploration == "thompson":
            rates = beta_draws(rates, estimates.deviations, rng)
        return score(self._settings.score, rates, estimates) ** self._settings.sharpness


class GVMPoolAllocatorConfig(_PredictiveConfig):
    """Selects and sizes groups out of a pool of candidates by their predicted share of the gradient's variance."""

    baseline_setting: ClassVar[str | None] = "predicted_baseline"

    type: Literal["gvm_pool"] = "gvm_pool"
    score: Score = "norm_neyman"
    # Prompts that it is shown in a step; the whole training set where that has fewer. None = 16 prompts_per_step, or
    # fewer, so that prefilling them is charged no more than the step's samples, where prompts and responses all have
    # max_tokens; but twice as many as it can make groups. Without states, which cost nothing, 1024 or more.
    candidates_per_step: Count | None = None
    group_size: Count = 4  # a prompt gets none, or at least so many samples
    max_samples: Count | None = None
    # Advantage (r - b) / s with the mean b and deviation s of the reward that are predicted, also in a group of one:
    # with rewards of 0 and 1, (r - p) / sqrt(p (1 - p)).
    predicted_baseline: bool = False
    undo_selection: bool = False  # weight prompts by the inverse of their chance to be chosen
    undo_selection_cap: Annotated[float, Field(ge=1)] = 5.0  # largest such weight

    def num_candidates(self, run: RunShape) -> int:
        """As `candidates_per_step` says."""
        if self.candidates_per_step is not None:
            return self.candidates_per_step
        budget = run.prompts_per_step * run.samples_per_prompt
        fewest = max(run.prompts_per_step, 2 * (budget // self.group_size))  # else there is nothing to select
        most = max(_CANDIDATES_PER_PROMPT * run.prompts_per_step, fewest)
        if self.states is None:
            return max(most, _FREE_CANDIDATES)
        if not run.prefill_price:
            return most
        paid = budget * run.max_response_tokens / (run.max_prompt_tokens * run.prefill_price)
        return min(max(int(paid), fewest), most)

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """A prompt gets none, or at least so many."""
        return SmallestGroup(setting="allocator.group_size", value=self.group_size)

    def check_fits(self, run: RunShape) -> None:
        """The budget makes at least one group."""
        budget = run.prompts_per_step * run.samples_per_prompt
        if self.group_size > budget:
            raise ValueError(
                f"allocator.group_size={self.group_size} is above the step's budget of {budget} samples; write "
                f"group_size={run.samples_per_prompt}"
            )
        if self.max_samples is not None and self.max_samples < self.group_size:
            raise ValueError(
                f"allocator.max_samples={self.max_samples} is below group_size={self.group_size}; write "
                f"max_samples={self.group_size} or more"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "GVMPoolAllocator":
        """The strategy."""
        return GVMPoolAllocator(self, accept_threshold=accept_threshold, seed=seed)


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


class _BoundedConfig(_PredictiveConfig):
    """Divides the budget inside the step's prompts, within bounds."""

    min_samples: NonNegativeCount = 0
    max_samples: Count | None = None

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The lower bound."""
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """The bounds admit the mean."""
        check_bounds(self.min_samples, self.max_samples, run)


class GVMOnlineAllocatorConfig(_BoundedConfig):
    """Divides the budget inside the step's prompts by predictions; every prompt keeps `min_samples`."""

    type: Literal["gvm_online"] = "gvm_online"
    score: Score = "gvm"

    def build(self, *, accept_threshold: float, seed: int) -> "GVMOnlineAllocator":
        """The strategy."""
        return GVMOnlineAllocator(self, accept_threshold=accept_threshold, seed=seed)


class NeymanAllocatorConfig(_BoundedConfig):
    """The optimal split for a linear objective, n ~ sqrt(p (1 - p)), or for the log pass rate, n ~ sqrt((1 - p) / p)
    (arXiv 2510.04996, appendix B), inside the step's prompts; p is predicted.
    """

    type: Literal["neyman"] = "neyman"
    score: Literal["neyman", "log_neyman"] = "neyman"
    training_gradient_norms: bool = False
    min_samples: NonNegativeCount = 2  # a group of one has no baseline

    def build(self, *, accept_threshold: float, seed: int) -> "GVMOnlineAllocator":
        """The strategy."""
        return GVMOnlineAllocator(self, accept_threshold=accept_threshold, seed=seed)


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


def score(name: Score, accept_rates: Float64Array, estimates: "PromptEstimates") -> Float64Array:
    """[P] by the name of the rule; see `GVMPoolAllocatorConfig`."""
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


def beta_draws(means: Float64Array, deviations: Float64Array, rng: np.random.Generator) -> Float64Array:
    """[P] one draw of each belief in p, a Beta distribution of that mean and deviation; kept off 0 and 1, where a score
    could take the whole budget."""
    strength = means * (1 - means) / deviations**2 - 1
    return rng.beta(means * strength, (1 - means) * strength).clip(1e-3, 1 - 1e-3)
