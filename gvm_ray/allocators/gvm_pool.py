"""Allocators without pilots: one round a step, divided by predictions for each prompt, from the first step on."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

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
    largest,
    neyman_weights,
    select_groups,
)
from gvm_ray.settings import Count, NonNegativeCount, Positive, Probability, Settings
from gvm_ray.types import Float64Array, IndexArray, Metrics, TrainedNorms

if TYPE_CHECKING:
    from gvm_ray.allocators.predictor import PromptEstimates

_ALPHA, _BETA = 1e-3, 2.0  # GVM's defaults
_CANDIDATES_PER_PROMPT = 16  # candidates for each prompt of prompts_per_step
_FREE_CANDIDATES = 1024  # takes a few milliseconds to predict


Score = Literal["gradient_deviation", "norm_neyman", "neyman", "log_neyman", "gvm"]
PoolScore = Literal[Score, "pcl"]  # "pcl" chooses among candidates, and has no share of a fixed batch to give
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
    window_rows: Count = 2048  # number of latest groups to learn from


class _PredictiveConfig(AllocatorConfig):
    """Settings that predictive allocators share. A prompt's share of the budget is proportional to its score.

    - `gradient_deviation`: root mean square of a sample's term of the policy gradient, from the predicted norms of both
      accepted and rejected samples: sqrt(p (1 - p) ((1 - p) G+^2 + p G-^2)).
    - `norm_neyman`: G+ sqrt(p (1 - p)), from the norms of accepted samples only.
    - `neyman`: sqrt(p (1 - p)); `log_neyman`: sqrt((1 - p) / p).
    - `gvm`: G+ / sqrt(p + alpha / p), arXiv 2505.02391, Proposition 1, with alpha = 1e-3 and beta = 2.
    """

    sharpness: Positive = 1.0  # exponent on the score
    uniform_share: Probability = 0.1  # share of the budget that is split evenly, whatever the scores
    exploration: Literal["none", "thompson"] = "none"  # thompson: accept rates are drawn from their posterior
    states: OptionalPromptStates = "embedding"
    predictor: PredictorConfig = PredictorConfig()
    training_gradient_norms: bool = True
    # A measured sample needs its own copy of its prompt. Where the learner lets responses share prompts, so many of a
    # prompt's accepted samples, and of its rejected ones, are measured; "all" measures all and shares no prompt.
    norm_samples: Count | Literal["all"] = 1

    def needs(self, run: RunShape) -> Needs:
        """Candidates, embeddings or hidden states to predict from, and gradient norms from training."""
        return Needs(
            candidates=self.num_candidates(run),
            states=self.states,
            training_norms=self.training_gradient_norms,
            norm_samples=None if self.norm_samples == "all" else self.norm_samples,
        )

    def num_candidates(self, run: RunShape) -> int:
        """The number of prompts to choose from; prompts_per_step for an allocator that doesn't select."""
        return run.prompts_per_step

    @property
    def knows_accept_rates(self) -> bool:
        """True: accept rates are predicted before the samples are drawn."""
        return True


class PredictiveAllocator(Allocator):
    """Allocate in one round a step: predict, score, divide. Before the first samples all prompts score the same."""

    def __init__(
        self,
        settings: "GVMPoolAllocatorConfig | GVMOnlineAllocatorConfig | NeymanAllocatorConfig",
        *,
        accept_threshold: float,
        seed: int,
    ) -> None:
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
        baselines, scales = self._baselines(sampled, estimates, rows=chosen)
        self._levels.observe(outcomes)  # after the baselines, which must not depend on the samples they are for
        return Report(
            accept_rates=dict(zip(sampled, estimates.accept_rates[chosen].tolist(), strict=True)),
            baselines=baselines,
            scales=scales,
            prompt_weights={} if weights is None else dict(zip(sampled, weights[chosen].tolist(), strict=True)),
            metrics={
                "allocation/prompts": float(len(chosen)),
                "allocation/p_hat_mean": float(estimates.accept_rates.mean()),
                "allocation/history_trials": estimates.history_trials,
                "allocation/gradient_norm_mean": float(estimates.accepted_norms.mean()),
                **self._norms.metrics(),
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


class GVMPoolAllocatorConfig(_PredictiveConfig):
    """Selects prompts from a pool of candidates, and sizes groups, by their predicted share of gradient variance.

    With `score = "pcl"` by the rule of Prompt Curriculum Learning (arXiv 2510.01135) instead: as many candidates as the
    budget makes groups, those with the largest -|p - 1/2|, share it equally. As published with `uniform_share = 0`; a
    larger one splits that share evenly over all candidates. The paper learns a value model beside the policy to predict
    p; here it is the prediction that the other scores have.
    """

    baseline_setting: ClassVar[str | None] = "predicted_baseline"

    type: Literal["gvm_pool"] = "gvm_pool"
    score: PoolScore = "norm_neyman"
    # Number of candidates in a step, or the whole training set if it is smaller. None = 16 prompts_per_step, or fewer,
    # so that prefilling them costs no more than the step's samples (if all prompts and responses have max_tokens), but
    # at least twice the number of groups. Without hidden states, as by default, candidates are free: 1024 or more.
    candidates_per_step: Count | None = None
    group_size: Count = 4  # a prompt gets no samples, or at least this many
    max_samples: Count | None = None
    # Advantage (r - b) / s with the predicted mean b and deviation s of the reward, so that a group of one works too:
    # with rewards of 0 and 1, (r - p) / sqrt(p (1 - p)).
    predicted_baseline: bool = False
    predicted_scale: bool = True  # false: the advantage is r - b
    # Prediction behind b and s: from the prompt's features, from its own earlier samples (decayed counts with a
    # Beta(1/2, 1/2) prior), or from both as everywhere else.
    baseline_source: RateSource = "both"
    undo_selection: bool = False  # weight prompts by the inverse of their selection probability
    undo_selection_cap: Annotated[float, Field(ge=1)] = 5.0  # largest such weight

    @model_validator(mode="after")
    def _undoes_chances(self) -> "GVMPoolAllocatorConfig":
        if self.undo_selection and self.score == "pcl" and not self.uniform_share:
            raise ValueError(
                'undo_selection=true divides by chances, but score="pcl" with uniform_share=0 leaves none to chance; '
                "write uniform_share=0.1 or more, or undo_selection=false"
            )
        return self

    @model_validator(mode="after")
    def _baseline_is_predicted(self) -> "GVMPoolAllocatorConfig":
        if not self.predicted_baseline and (not self.predicted_scale or self.baseline_source != "both"):
            raise ValueError(
                f"predicted_scale={str(self.predicted_scale).lower()} and baseline_source={self.baseline_source!r} are "
                "of the predicted baseline; write predicted_baseline=true, or leave them out"
            )
        return self

    def expected_samples(self, scores: Float64Array, *, budget: int) -> Float64Array:
        """E[n] [C] of candidates with these scores [C]."""
        if self.score == "pcl":
            scores = largest(scores, count=max(budget // self.group_size, 1))
        return expected_samples(scores, budget=budget, uniform_share=self.uniform_share)

    def num_candidates(self, run: RunShape) -> int:
        """The value of `candidates_per_step`, or its default for this run."""
        if self.candidates_per_step is not None:
            return self.candidates_per_step
        budget = run.prompts_per_step * run.samples_per_prompt
        fewest = max(run.prompts_per_step, 2 * (budget // self.group_size))  # with fewer there is nothing to select
        most = max(_CANDIDATES_PER_PROMPT * run.prompts_per_step, fewest)
        if not isinstance(self.states, PromptStatesConfig):
            return max(most, _FREE_CANDIDATES)
        if not run.prefill_price:
            return most
        paid = budget * run.max_response_tokens / (run.max_prompt_tokens * run.prefill_price)
        return min(max(int(paid), fewest), most)

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The group size: a prompt gets no samples, or at least this many."""
        return SmallestGroup(setting="allocator.group_size", value=self.group_size)

    def check_fits(self, run: RunShape) -> None:
        """Check that the budget makes at least one group."""
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
        """Create the strategy."""
        return GVMPoolAllocator(self, accept_threshold=accept_threshold, seed=seed)


class GVMPoolAllocator(PredictiveAllocator):
    """Give n_i in proportion to the score. If n_i is below `group_size`, give a group of that size with probability
    n_i / group_size. With PCL's rule n_i is the same for the candidates with the largest scores, and 0 for the others.

    Samples go where the predicted gradient is large, so the objective changes: an implicit curriculum toward prompts
    that are neither solved nor out of reach. `undo_selection` corrects this with (clipped) weights.
    """

    _settings: GVMPoolAllocatorConfig

    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        settings = self._settings
        expected = settings.expected_samples(scores, budget=budget)
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
        self, prompt_ids: Sequence[str], estimates: "PromptEstimates", *, rows: IndexArray
    ) -> tuple[Mapping[str, float], Mapping[str, float]]:
        settings = self._settings
        if not settings.predicted_baseline:
            return {}, {}
        rates = estimates.rates_from(settings.baseline_source)[rows]
        means, deviations = self._levels.expected(rates.clip(0.02, 0.98))
        scales = dict(zip(prompt_ids, deviations.tolist(), strict=True)) if settings.predicted_scale else {}
        return dict(zip(prompt_ids, means.tolist(), strict=True)), scales


class _BoundedConfig(_PredictiveConfig):
    """Settings of allocators that divide the budget among the step's prompts, within bounds."""

    min_samples: NonNegativeCount = 0
    max_samples: Count | None = None

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The lower bound `min_samples`."""
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """Check that samples_per_prompt lies within the bounds."""
        check_bounds(self.min_samples, self.max_samples, run)


class GVMOnlineAllocatorConfig(_BoundedConfig):
    """Divides the budget among the step's prompts by predictions; every prompt gets at least `min_samples`."""

    type: Literal["gvm_online"] = "gvm_online"
    score: Score = "gvm"

    def build(self, *, accept_threshold: float, seed: int) -> "GVMOnlineAllocator":
        """Create the strategy."""
        return GVMOnlineAllocator(self, accept_threshold=accept_threshold, seed=seed)


class NeymanAllocatorConfig(_BoundedConfig):
    """The optimal split among the step's prompts, with p predicted: n ~ sqrt(p (1 - p)) for a linear objective, or
    n ~ sqrt((1 - p) / p) for the log pass rate (arXiv 2510.04996, appendix B).
    """

    type: Literal["neyman"] = "neyman"
    score: Literal["neyman", "log_neyman"] = "neyman"
    training_gradient_norms: bool = False
    min_samples: NonNegativeCount = 2  # a group of one has no baseline

    def build(self, *, accept_threshold: float, seed: int) -> "GVMOnlineAllocator":
        """Create the strategy."""
        return GVMOnlineAllocator(self, accept_threshold=accept_threshold, seed=seed)


class GVMOnlineAllocator(PredictiveAllocator):
    """Give every prompt of the step n_i in proportion to its score, within the bounds."""

    _settings: GVMOnlineAllocatorConfig | NeymanAllocatorConfig

    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        settings = self._settings
        expected = expected_samples(scores, budget=budget, uniform_share=settings.uniform_share)
        return apportion(expected, budget=budget, minimum=settings.min_samples, maximum=settings.max_samples), None


def _weight_metrics(weights: Float64Array) -> Metrics:
    """Metrics of the weights that undo a selection: mean, largest, and effective number of prompts."""
    return {
        "allocation/undo_weight_mean": float(weights.mean()),
        "allocation/undo_weight_max": float(weights.max()),
        "allocation/undo_effective_prompts": float(weights.sum() ** 2 / (weights**2).sum()),
    }


def score(name: PoolScore, accept_rates: Float64Array, estimates: "PromptEstimates") -> Float64Array:
    """Compute the scores [P] by the named rule; see `_PredictiveConfig`."""
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
