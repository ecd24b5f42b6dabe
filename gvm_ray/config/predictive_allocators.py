"""Settings of the allocators that predict a prompt's statistics before they sample it, without pilots."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from gvm_ray.config.allocator_base import (
    AllocatorConfig,
    OptionalPromptStates,
    PredictorConfig,
    PromptStatesConfig,
    RunShape,
    SmallestGroup,
)
from gvm_ray.config.base import Count, NonNegativeCount, Positive, Probability

_CANDIDATES_PER_PROMPT = 16  # of prompts_per_step
_FREE_CANDIDATES = 1024  # which take a few milliseconds to predict

Score = Literal["gradient_deviation", "norm_neyman", "neyman", "log_neyman", "gvm"]


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

    @property
    def knows_accept_rates(self) -> bool:
        """Those predicted before the samples are drawn."""
        return True


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

    def num_candidates_of(self, run: RunShape) -> int:
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


class GVMOnlineAllocatorConfig(_PredictiveConfig):
    """Divides the budget inside the step's prompts by predictions; every prompt keeps `min_samples`."""

    type: Literal["gvm_online"] = "gvm_online"
    score: Score = "gvm"
    min_samples: NonNegativeCount = 0
    max_samples: Count | None = None

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The lower bound."""
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """The bounds admit the mean."""
        check_bounds(self.min_samples, self.max_samples, run)


class NeymanAllocatorConfig(_PredictiveConfig):
    """The optimal split for a linear objective, n ~ sqrt(p (1 - p)), or for the log pass rate, n ~ sqrt((1 - p) / p)
    (arXiv 2510.04996, appendix B), inside the step's prompts; p is predicted.
    """

    type: Literal["neyman"] = "neyman"
    score: Literal["neyman", "log_neyman"] = "neyman"
    training_gradient_norms: bool = False
    min_samples: NonNegativeCount = 2  # a group of one has no baseline
    max_samples: Count | None = None

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The lower bound."""
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """The bounds admit the mean."""
        check_bounds(self.min_samples, self.max_samples, run)


def check_bounds(min_samples: int, max_samples: int | None, run: RunShape) -> None:
    """Refuse bounds on n whose sums don't admit the step's budget.

    Raises:
        ValueError: which one, and what to write instead.
    """
    n = run.samples_per_prompt
    if min_samples > n:
        raise ValueError(f"allocator.min_samples={min_samples} is above samples_per_prompt={n}; write {n} or less")
    if max_samples is not None and max_samples < n:
        raise ValueError(
            f"allocator.max_samples={max_samples} is below samples_per_prompt={n}, so the budget can't be spent; "
            f"write max_samples={n} or more"
        )
