"""Settings of the allocators that decide from what a prompt's earlier samples, or those of the round before, said."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gvm_ray.config.allocator_base import AllocatorConfig, PromptStatesConfig, RunShape, SmallestGroup
from gvm_ray.config.base import Count, NonNegative, NonNegativeCount, Positive, Probability


class BoundedAllocatorConfig(AllocatorConfig):
    """Every prompt gets between min_samples and max_samples."""

    min_samples: Count
    max_samples: Count

    @property
    def knows_accept_rates(self) -> bool:
        """Those that it decides by, from earlier visits or other prompts."""
        return True

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The lower bound."""
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """The bounds admit the mean."""
        if not self.min_samples <= run.samples_per_prompt <= self.max_samples:
            raise ValueError(
                f"samples_per_prompt={run.samples_per_prompt} is outside allocator.min_samples={self.min_samples} to "
                f"max_samples={self.max_samples}, so the budget can't be spent; write other bounds, "
                f"e.g. min_samples={min(self.min_samples, max(1, run.samples_per_prompt // 2))}, "
                f"max_samples={max(self.max_samples, run.samples_per_prompt)}"
            )


class ReinforceAdaEstAllocatorConfig(BoundedAllocatorConfig):
    """Reinforce-Ada-Est (arXiv 2510.04996): n ~ 1 / sqrt(p + epsilon), p from the prompt's decayed counts.

    `rescale_advantages` takes (r - p) / sqrt(p + epsilon) for the advantage, with the same p. With
    weighting = "token_mean", under which a prompt counts in proportion to its samples, the two make the gradient of
    ln p, as published; under "prompt_mean" the weight of a prompt is 1 / sqrt(p) instead of 1 / p.

    A prompt's first visit has nothing but the prior to go by, so a first epoch is sampled evenly.
    """

    baseline_setting: ClassVar[str | None] = "rescale_advantages"

    type: Literal["reinforce_ada_est"] = "reinforce_ada_est"
    min_samples: Count = 4
    max_samples: Count = 32
    epsilon: Positive = 1e-6
    decay: Probability = 0.9  # factor on a prompt's earlier counts at each visit; 1 forgets nothing
    prior_successes: NonNegative = 1.0  # Beta prior of the accept rate, as in the released code
    prior_failures: NonNegative = 16.0
    rescale_advantages: bool = True

    @model_validator(mode="after")
    def _prior_tells(self) -> "ReinforceAdaEstAllocatorConfig":
        if self.prior_successes + self.prior_failures == 0:
            raise ValueError(
                "prior_successes=0 with prior_failures=0 leaves a prompt's first visit without an accept rate; write "
                "e.g. prior_successes=1, prior_failures=1"
            )
        return self


class ReinforceAdaSeqAllocatorConfig(AllocatorConfig):
    """Reinforce-Ada-Seq (arXiv 2510.04996): rounds of samples, in which a prompt goes on until it has seen enough.

    enough_negatives = 0 is the rule that the paper calls "positive", both above 0 "balance". Published, a prompt draws
    up to max_rounds * round_samples samples and a step costs whatever that comes to. Here a step costs its budget: the
    last round is cut to what is left of it, and what is left when the rounds are over or every prompt has stopped goes
    evenly to the prompts that have not stopped, or to all. The samples of a stopped prompt are thus spent on others,
    which round_samples below samples_per_prompt leaves room for (8 is published).
    """

    type: Literal["reinforce_ada_seq"] = "reinforce_ada_seq"
    round_samples: Count = 4
    max_rounds: Count = 4
    enough_positives: Count = 2
    enough_negatives: NonNegativeCount = 2
    kept_samples: Count | None = 4  # of a prompt, half of each class, are trained on; none = all
    pool_baseline: bool = True  # the advantage is r - mean reward of all the prompt's samples, kept or not

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """A prompt may stop after its first round, and what it is compared with is the pool or what is kept of it."""
        if self.pool_baseline or self.kept_samples is None or self.round_samples <= self.kept_samples:
            return SmallestGroup(setting="allocator.round_samples", value=self.round_samples)
        return SmallestGroup(setting="allocator.kept_samples", value=self.kept_samples)

    def check_fits(self, run: RunShape) -> None:
        """The first round leaves something to allocate."""
        if self.round_samples >= run.samples_per_prompt:
            raise ValueError(
                f"allocator.round_samples={self.round_samples} leaves nothing of "
                f"samples_per_prompt={run.samples_per_prompt} to allocate; write "
                f"round_samples={max(1, run.samples_per_prompt // 2)} or a larger samples_per_prompt"
            )


class VIPAllocatorConfig(BoundedAllocatorConfig):
    """VIP (arXiv 2602.01601): the n that minimise the variance of the gradient, p predicted by a Gaussian process.

    The variance of a prompt is 4 p (1 - p) (n - 1) / n^2 with the group's mean as baseline ("grpo"), or
    4 p (1 - p) / (n - 1) with the mean of the others ("rloo"). Published, the real-valued optimum is found by bisection
    and rounded greedily; both being convex in n, taking the largest marginal gains finds the optimal integers instead.

    The process sees the policy's hidden states of the prompts, where the paper takes a sentence encoder's embeddings,
    and empirical logits with their noise, where it takes clipped ones with none. It is refitted to a window of
    observations at each step, and its covariance isn't carried over from step to step.
    """

    type: Literal["vip"] = "vip"
    baseline: Literal["grpo", "rloo"] = "grpo"
    min_samples: Annotated[int, Field(ge=2)] = 4
    max_samples: Count = 32
    states: PromptStatesConfig = PromptStatesConfig()
    window: Count = 512  # latest observations, one for each visit of a prompt; fitting takes its third power
    prior_accept_rate: Annotated[float, Field(gt=0, lt=1)] = 0.5  # far from all observations
    prior_std: Positive = 2.0  # of the logit of the accept rate; 2 = most are within 2 % and 98 %
    length_scale: Positive = 0.5  # of the kernel, in units of the median distance between observations

    @model_validator(mode="after")
    def _convex(self) -> "VIPAllocatorConfig":
        if self.baseline == "grpo" and self.min_samples < 3:
            raise ValueError(
                f"min_samples={self.min_samples} with baseline='grpo': its variance is convex from 3 samples on; write "
                "min_samples=3 or more, or baseline='rloo'"
            )
        return self


class KnapsackAllocatorConfig(BoundedAllocatorConfig):
    """Knapsack RL (arXiv 2509.25849): the n that maximise the sum of (1 - p^n - (1 - p)^n) p (1 - p)^2.

    p is the accept rate of the prompt's last visit. Published, dynamic programming solves it; the value is concave in
    n, so taking the largest marginal gains is exact. A prompt of p = 0 or 1 has no value: it gets min_samples, and what
    the others leave when they are at max_samples goes to those of p = 0.
    """

    type: Literal["knapsack"] = "knapsack"
    min_samples: Count = 2
    max_samples: Count = 128
    decay: Probability = 0.0  # factor on a prompt's earlier counts at each visit; 0 keeps none, as published
    unseen_accept_rate: Probability = 0.5  # before the first visit


class CurESAllocatorConfig(AllocatorConfig):
    """CurES (arXiv 2510.01037): draws prompts with probability ~ exp(sqrt(p (1 - p)) / temperature), then n ~ sigma.

    sigma is the standard deviation of a sample's policy gradient, from the gradient norms of the prompt's correct and
    wrong samples when it was last trained on; a class that has none gets the mean over the step's prompts.
    Published, every prompt's p and norms come from samples drawn before training, which aren't trained on; here both
    come from training itself, and a prompt begins with the prior. The temperature is the default of the released
    sampler, which divides by 100 (1 + successes) instead, that is draws almost uniformly.
    """

    type: Literal["cures"] = "cures"
    group_size: Count = 8  # mean n: budget // group_size prompts are drawn
    candidates_per_step: Count | None = None  # prompts to draw from; none = prompts_per_step
    min_samples: NonNegativeCount = 2  # of a drawn prompt
    temperature: Positive = 0.1
    decay: Probability = 1.0  # factor on a prompt's earlier counts at each visit; 1 forgets nothing, as published
    prior_successes: Positive = 1.0
    prior_failures: Positive = 1.0
    training_gradient_norms: bool = True  # false: all norms count as equal, n ~ sqrt(p (1 - p))

    @property
    def knows_accept_rates(self) -> bool:
        """From earlier visits."""
        return True

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The lower bound."""
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """There are as many candidates as groups, and a group holds its minimum."""
        budget = run.prompts_per_step * run.samples_per_prompt
        candidates = self.candidates_per_step or run.prompts_per_step
        if not 1 <= budget // self.group_size <= candidates:
            raise ValueError(
                f"allocator.group_size={self.group_size} makes {budget // self.group_size} groups of a budget of "
                f"{budget}, of {candidates} candidates; write group_size={run.samples_per_prompt}, or more "
                "candidates_per_step"
            )
        if self.min_samples > self.group_size:
            raise ValueError(
                f"allocator.min_samples={self.min_samples} is above group_size={self.group_size}; "
                f"write {self.group_size} or less"
            )
