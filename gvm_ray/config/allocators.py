"""Who gets how many samples: the settings of every allocator."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gvm_ray.config.allocator_base import AllocatorConfig, OptionalPromptStates, RunShape, SmallestGroup
from gvm_ray.config.base import Count, NonNegative, NonNegativeCount, Positive
from gvm_ray.config.history_allocators import (
    CurESAllocatorConfig,
    KnapsackAllocatorConfig,
    ReinforceAdaEstAllocatorConfig,
    ReinforceAdaSeqAllocatorConfig,
    VIPAllocatorConfig,
)
from gvm_ray.config.predictive_allocators import (
    GVMOnlineAllocatorConfig,
    GVMPoolAllocatorConfig,
    NeymanAllocatorConfig,
)
from gvm_ray.config.selecting_allocators import (
    DAPOAllocatorConfig,
    GRESOAllocatorConfig,
    MoPPSAllocatorConfig,
    OfflineFilterAllocatorConfig,
    PODSAllocatorConfig,
    SPEEDAllocatorConfig,
)


class UniformAllocatorConfig(AllocatorConfig):
    """Every prompt gets samples_per_prompt samples."""

    type: Literal["uniform"] = "uniform"

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """All are alike."""
        return SmallestGroup(setting="samples_per_prompt", value=run.samples_per_prompt)


class GVMAllocatorConfig(AllocatorConfig):
    """Gradient variance minimization (arXiv 2505.02391): pilots, then n ~ G / sqrt(p + alpha / p^(beta - 1)).

    Under weighting = "inverse" the pilots tell p and are no part of the sum, so that a prompt whose n_i are all pilots
    adds nothing: min_samples above pilot_samples (or above 0 with reuse_pilots = false) gives every prompt a sample.
    """

    type: Literal["gvm"] = "gvm"
    pilot_samples: Count = 4  # N', drawn from every prompt first; part of the budget
    alpha: Positive = 1e-3
    beta: Annotated[float, Field(ge=2)] = 2.0
    block_steps: Count = 1  # k steps share one pilot round
    reuse_pilots: bool = True  # train on the pilots too; false = as published
    gradient_parameters: Literal["embed_tokens", "lm_head"] = "embed_tokens"  # with tied embeddings either means both
    prior_successes: NonNegative = 0.5  # Beta prior of the accept rate; 0 and 0 = as published (p=0 gives n=0)
    prior_failures: NonNegative = 0.5
    min_samples: NonNegativeCount = 0
    max_samples: Count | None = None
    filter_threshold: Annotated[float, Field(gt=0, le=1)] | None = None  # a prompt with a higher accept rate gets none
    min_expected_accepted: NonNegative = 0.0  # a prompt expected to yield fewer accepted samples gets none

    @model_validator(mode="after")
    def _bounds(self) -> "GVMAllocatorConfig":
        if self.max_samples is not None and self.max_samples < self.min_samples:
            raise ValueError(
                f"max_samples={self.max_samples} is below min_samples={self.min_samples}; "
                f"write max_samples={self.min_samples} or more"
            )
        return self

    @property
    def knows_accept_rates(self) -> bool:
        """From the pilots."""
        return True

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """Reused pilots are part of every group."""
        if self.reuse_pilots and self.pilot_samples >= self.min_samples:
            return SmallestGroup(setting="allocator.pilot_samples", value=self.pilot_samples)
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """Pilots leave something to allocate, the bounds admit the mean, and reused pilots are fresh enough."""
        n = run.samples_per_prompt
        if self.pilot_samples >= n:
            raise ValueError(
                f"allocator.pilot_samples={self.pilot_samples} leaves nothing of samples_per_prompt={n} to allocate; "
                f"write pilot_samples={max(1, n // 2)} or a larger samples_per_prompt"
            )
        if self.max_samples is not None and self.max_samples < n:
            raise ValueError(
                f"allocator.max_samples={self.max_samples} is below samples_per_prompt={n}, so the budget can't be "
                f"spent; write max_samples={n} or more"
            )
        if self.min_samples > n:
            raise ValueError(
                f"allocator.min_samples={self.min_samples} is above samples_per_prompt={n}; write {n} or less"
            )
        if self.reuse_pilots and self.block_steps - 1 > run.max_staleness:
            raise ValueError(
                f"allocator.block_steps={self.block_steps} with reuse_pilots trains on pilots up to "
                f"{self.block_steps - 1} updates old, but max_staleness={run.max_staleness}; "
                f"write max_staleness={self.block_steps - 1}, or reuse_pilots=false"
            )
        if run.checkpoint_every_steps % self.block_steps:
            raise ValueError(
                f"checkpoint.every_steps={run.checkpoint_every_steps} is not a multiple of "
                f"allocator.block_steps={self.block_steps}; write e.g. {self.block_steps * 10}"
            )


class CustomAllocatorConfig(AllocatorConfig):
    """Any importable `module:Class` that satisfies `protocols.AllocatorStrategy`."""

    type: Literal["custom"] = "custom"
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    parameters: dict[str, Any] = Field(default_factory=dict)  # keyword arguments besides accept_threshold
    candidates_per_step: Count | None = None  # prompts it is shown in a step; none = prompts_per_step
    states: OptionalPromptStates = None
    training_gradient_norms: bool = False

    @property
    def knows_accept_rates(self) -> bool:
        """As its reports say, which is checked when they come."""
        return True

    def smallest_group(self, run: RunShape) -> None:
        """Its own code decides; `groups/alone` counts what comes of it."""
        return


AllocatorSettings = Annotated[
    UniformAllocatorConfig
    | GVMAllocatorConfig
    | GVMPoolAllocatorConfig
    | GVMOnlineAllocatorConfig
    | NeymanAllocatorConfig
    | ReinforceAdaEstAllocatorConfig
    | ReinforceAdaSeqAllocatorConfig
    | VIPAllocatorConfig
    | KnapsackAllocatorConfig
    | CurESAllocatorConfig
    | DAPOAllocatorConfig
    | SPEEDAllocatorConfig
    | GRESOAllocatorConfig
    | MoPPSAllocatorConfig
    | PODSAllocatorConfig
    | OfflineFilterAllocatorConfig
    | CustomAllocatorConfig,
    Field(discriminator="type"),
]
