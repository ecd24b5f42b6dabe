"""Settings of the allocators that choose: among candidate prompts, or among the samples that are trained on."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gvm_ray.config.allocator_base import AllocatorConfig, RunShape, SmallestGroup
from gvm_ray.config.base import Count, Positive, Probability

GroupSize = Annotated[int, Field(ge=2)]  # one sample alone has no reward variance


class CandidateAllocatorConfig(AllocatorConfig):
    """Some of the candidates get a group of samples each, as many as the budget has groups.

    The other candidates get none, and come again in the next epoch.
    """

    candidates_per_step: Count | None = None
    group_size: GroupSize = 8  # n of a selected prompt; the budget's left-over samples go one each to the first

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """All are alike."""
        return SmallestGroup(setting="allocator.group_size", value=self.group_size)

    def check_fits(self, run: RunShape) -> None:
        """There is a group to sample, and a candidate to leave out."""
        budget = run.prompts_per_step * run.samples_per_prompt
        groups, candidates = budget // self.group_size, self.num_candidates(run.prompts_per_step)
        if groups == 0:
            raise ValueError(
                f"allocator.group_size={self.group_size} is above the step's budget of {budget} samples; "
                f"write group_size={max(2, run.samples_per_prompt)}"
            )
        if candidates <= groups:
            raise ValueError(
                f"{candidates} candidates leave the allocator nothing to select: the budget of {budget} samples makes "
                f"{groups} groups of allocator.group_size={self.group_size}; write candidates_per_step={4 * groups}"
            )


class DAPOAllocatorConfig(AllocatorConfig):
    """DAPO's dynamic sampling (arXiv 2503.14476, Section 3.2): groups of equal rewards are dropped and replaced.

    The candidates are prompts_per_step * max_batches, each sampled samples_per_prompt times. A step costs more than its
    budget where groups are replaced, up to max_batches times as much, and everything is charged; max_batches = 1 drops
    and doesn't replace, within the budget. A refill samples as many groups as are missing; the authors' recipe samples
    whole batches and throws the surplus away. Groups count as equal by their reward, whatever its scale. The rest of
    DAPO is in the algorithm: `token_mean`, its own upper clip, no KL term.
    """

    type: Literal["dapo"] = "dapo"
    max_batches: Count = 3

    @property
    def max_budget_factor(self) -> int:
        """One budget for each batch of candidates."""
        return self.max_batches

    def num_candidates(self, prompts_per_step: int) -> int:
        """As many batches as may be drawn."""
        return prompts_per_step * self.max_batches

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """All are alike."""
        return SmallestGroup(setting="samples_per_prompt", value=run.samples_per_prompt)

    def check_fits(self, run: RunShape) -> None:
        """A group can have reward variance."""
        if run.samples_per_prompt < 2:
            raise ValueError(
                "allocator.type='dapo' drops groups of equal rewards, and with samples_per_prompt=1 that is all of "
                "them; write samples_per_prompt=2 or more"
            )


class SPEEDAllocatorConfig(AllocatorConfig):
    """SPEED (arXiv 2506.09016): every candidate is screened with N_init samples, those of 0 < p-hat < 1 continued.

    Here a step costs its budget: the candidates' screening, and the rest in equal shares for the prompts that pass, so
    that N_cont = rest / passed. Published, N_cont is fixed and the prompts that pass wait in a buffer for their batch.
    The published schedule, which samples the continuation together with the next batch's screening, is a matter of
    throughput, and generators that batch continuously have it from overlapping steps (max_staleness > 0).
    """

    type: Literal["speed"] = "speed"
    candidates_per_step: Count | None = None  # prompts that are screened; none = prompts_per_step
    screening_samples: GroupSize = 4  # N_init; trained on where the prompt passes
    train_on_screened_out: bool = False  # true: also the screening samples of the prompts that don't pass

    @property
    def knows_accept_rates(self) -> bool:
        """From the screening, which is then no part of the sum."""
        return True

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """A prompt's screening is part of its group."""
        return SmallestGroup(setting="allocator.screening_samples", value=self.screening_samples)

    def check_fits(self, run: RunShape) -> None:
        """The screening leaves something to continue with."""
        budget = run.prompts_per_step * run.samples_per_prompt
        candidates = self.num_candidates(run.prompts_per_step)
        if candidates * self.screening_samples >= budget:
            raise ValueError(
                f"screening {candidates} candidates with allocator.screening_samples={self.screening_samples} each "
                f"leaves nothing of the step's budget of {budget} samples; write candidates_per_step="
                f"{max(run.prompts_per_step, budget // (2 * self.screening_samples))}, fewer screening_samples or a "
                "larger samples_per_prompt"
            )


class GRESOAllocatorConfig(CandidateAllocatorConfig):
    """GRESO (arXiv 2506.02177): a prompt is skipped with probability 1 - p^z, z its zero-variance visits in a row.

    p is `easy_probability` where those visits were all solved and `hard_probability` where they all failed; after each
    step either moves by `probability_step`, down where the share of such groups reached its target and up where not.
    Defaults are the released code's: a zero-variance target of 25 %, a third of it easy, two thirds hard.

    Left out: the refill until the batch is full of informative groups, and the batch size that adapts to it. A step
    costs its budget, and skipped candidates fill up where too few are left.
    """

    type: Literal["greso"] = "greso"
    easy_probability: Positive = 0.5  # where it begins
    hard_probability: Positive = 0.5
    target_easy_fraction: Probability = 0.25 / 3  # of a step's groups
    target_hard_fraction: Probability = 0.5 / 3
    probability_step: Probability = 0.01
    min_probability: Positive = 0.05
    max_probability: Probability = 0.95
    min_sampling_probability: Probability = 0.01  # of a prompt, however long its run
    drop_zero_variance: bool = True  # groups of equal rewards leave the batch, as published; false trains on them too

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> "GRESOAllocatorConfig":
        for name in ("easy_probability", "hard_probability"):
            value = getattr(self, name)
            if not self.min_probability <= value <= self.max_probability:
                raise ValueError(
                    f"{name}={value} is outside min_probability={self.min_probability} to "
                    f"max_probability={self.max_probability}; write a number between them"
                )
        return self


class MoPPSAllocatorConfig(CandidateAllocatorConfig):
    """MoPPS (arXiv 2507.04632): the candidates whose accept rate, drawn from a Beta posterior, is nearest the target.

    At each visit a prompt's earlier counts are multiplied by `decay` (the paper's lambda), which draws the posterior
    back toward the prior, and the accepted and rejected samples of the visit are added.
    """

    type: Literal["mopps"] = "mopps"
    target_accept_rate: Probability = 0.5
    decay: Probability = 0.5  # 1 forgets nothing
    prior_successes: Positive = 1.0
    prior_failures: Positive = 1.0

    @property
    def knows_accept_rates(self) -> bool:
        """The posterior's means, from earlier visits."""
        return True


class PODSAllocatorConfig(AllocatorConfig):
    """PODS (arXiv 2504.13818): equal groups, trained on the subset of each whose rewards have the largest variance.

    All samples are charged. Samples that aren't kept are no part of the group: its advantages are those of the subset.
    """

    type: Literal["pods"] = "pods"
    kept_samples: GroupSize = 4  # m

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """What is left of a group."""
        return SmallestGroup(setting="allocator.kept_samples", value=self.kept_samples)

    def check_fits(self, run: RunShape) -> None:
        """There is something to leave out."""
        if self.kept_samples >= run.samples_per_prompt:
            raise ValueError(
                f"allocator.kept_samples={self.kept_samples} keeps all of samples_per_prompt={run.samples_per_prompt}; "
                f"write fewer, or samples_per_prompt={4 * self.kept_samples}"
            )


class OfflineFilterAllocatorConfig(CandidateAllocatorConfig):
    """Only prompts whose accept rate was within bounds when it was measured, once; those outside are left out for good.

    A prompt is measured at its first visit, within the step's budget; so it is charged, and spread over the first
    epoch. Where a file gives the rates of a measurement before training, the cost of that one is not in the run's
    costs. A step without any prompt inside the bounds takes the ones nearest to them.
    """

    type: Literal["offline_filter"] = "offline_filter"
    min_accept_rate: Probability = 0.0  # a prompt is kept if min < rate < max
    max_accept_rate: Probability = 1.0
    measurement_samples: GroupSize = 8
    train_on_measurements: bool = True  # they then count toward the prompt's group
    accept_rates_path: str | None = None  # JSON object prompt_id -> accept rate

    @property
    def knows_accept_rates(self) -> bool:
        """Those measured; samples that measure are then no part of the sum."""
        return True

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """A prompt outside the bounds has no more than its measurement."""
        if self.train_on_measurements:
            return SmallestGroup(setting="allocator.measurement_samples", value=self.measurement_samples)
        return super().smallest_group(run)

    @property
    def first_visit_samples(self) -> int:
        """What a prompt that isn't measured yet takes of the budget."""
        return self.group_size if self.train_on_measurements else self.group_size + self.measurement_samples

    @model_validator(mode="after")
    def _consistent(self) -> "OfflineFilterAllocatorConfig":
        if self.min_accept_rate >= self.max_accept_rate:
            raise ValueError(
                f"min_accept_rate={self.min_accept_rate} is not below max_accept_rate={self.max_accept_rate}, so no "
                "prompt would be kept; write e.g. min_accept_rate=0, max_accept_rate=1"
            )
        if self.train_on_measurements and self.measurement_samples > self.group_size:
            raise ValueError(
                f"measurement_samples={self.measurement_samples} is above group_size={self.group_size}, of which they "
                f"are a part; write {self.group_size} or less, or train_on_measurements=false"
            )
        return self

    def check_fits(self, run: RunShape) -> None:
        """Likewise, and a prompt can be measured and sampled in one step."""
        super().check_fits(run)
        budget = run.prompts_per_step * run.samples_per_prompt
        if self.first_visit_samples > budget:
            raise ValueError(
                f"allocator.measurement_samples={self.measurement_samples} + group_size={self.group_size} is above the "
                f"step's budget of {budget} samples; write fewer of them"
            )
