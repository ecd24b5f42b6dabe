"""An allocator: decides, round by round, how many samples each prompt of a step gets.

A strategy is arithmetic on what it is shown: no Ray, no torch. `AllocationDriver` runs it and keeps the books.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from gvm_ray.allocators.memory import PromptMemory
from gvm_ray.settings import Count, Settings
from gvm_ray.types import (
    Allocation,
    Float64Array,
    FloatArray,
    GradientParameters,
    GroupOutcome,
    Metrics,
    Prompt,
    TrainedNorms,
)

GroupSize = Annotated[int, Field(ge=2)]  # one sample alone has no reward variance


class PromptStatesConfig(Settings):
    """Hidden states of the candidates: one forward pass over a prompt, charged, and again when it is old.

    An allocator that predicts without them, with `states = "none"`, pays nothing for its candidates.
    """

    pooling: Literal["mean", "last", "both"] = "mean"  # over the prompt's tokens, of the last layer
    refresh_steps: Count = 20  # a prompt's states serve so many steps


# TOML has no null: "none" is written there.
OptionalPromptStates = Annotated[
    PromptStatesConfig | None, BeforeValidator(lambda value: None if value == "none" else value)
]


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What an allocator's settings have to agree with."""

    prompts_per_step: int
    samples_per_prompt: int
    max_staleness: int
    checkpoint_every_steps: int
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 3072
    prefill_price: float = 1.0  # generated tokens charged for a prefilled one


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run provides for an allocator."""

    candidates: int  # prompts it is shown in a step; one that doesn't select samples all of them
    states: PromptStatesConfig | None = None  # hidden states of the candidates
    training_norms: bool = False  # gradient norms of every sample, measured while it is trained on
    pilot_norms: GradientParameters | None = None  # the matrix in which a pilot's gradient is measured
    block_steps: int = 1  # steps that share one allocation


@dataclass(frozen=True, kw_only=True)
class SmallestGroup:
    """The fewest samples that a prompt which is trained on may get, and the setting that says so."""

    setting: str  # with its table, as "allocator.min_samples"
    value: int  # of the setting; one that is 0 allows groups of one


class AllocatorConfig(Settings, ABC):
    """The base of every allocator's settings."""

    # Name of a setting that, if true, gives every prompt a baseline before it is sampled.
    baseline_setting: ClassVar[str | None] = None

    @property
    def knows_accept_rates(self) -> bool:
        """Whether every sampled prompt has an accept rate that the samples averaged over had no part in."""
        return False

    @abstractmethod
    def build(self, *, accept_threshold: float, seed: int) -> "Allocator":
        """The strategy.

        Args:
            accept_threshold: a sample is accepted (a success) when its reward is at least this.
            seed: of what the strategy draws at random beside `Step.rng`.
        """

    @abstractmethod
    def smallest_group(self, run: RunShape) -> SmallestGroup | None:
        """What keeps groups from being small; None where the settings can't tell."""

    @property
    def max_budget_factor(self) -> int:
        """How many times its budget a step may cost at most; whatever it draws is charged."""
        return 1

    def needs(self, run: RunShape) -> Needs:
        """What the run has to provide; the step's prompts and no more, unless a strategy says otherwise."""
        return Needs(candidates=run.prompts_per_step)

    def check_fits(self, run: RunShape) -> None:
        """Refuse a run whose budget these settings can't spend.

        Raises:
            ValueError: what is wrong, and what to write instead.
        """


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One training step as a strategy sees it. Its P prompts are distinct."""

    number: int  # the training step, from 0
    prompts: Sequence[Prompt]  # of an allocator that selects, its candidates
    budget: int  # samples of the step, over all rounds
    rng: np.random.Generator  # seeded by the run and the step
    memory: PromptMemory  # of the run: every round that is complete, those of overlapping steps included
    samples: PromptMemory  # of this step's rounds so far
    # Prompts of the later steps of the same block, where steps share one allocation. A round may name them too; their
    # samples are kept for their step.
    upcoming: Sequence[Prompt] = ()
    states: FloatArray | None = None  # [P, F] the policy's hidden states, where the settings ask for them

    @cached_property
    def ids(self) -> list[str]:
        """P prompt ids."""
        return [prompt.prompt_id for prompt in self.prompts]

    def counts(self, sizes: Sequence[int] | np.ndarray) -> dict[str, int]:
        """prompt_id -> n_i, from n [P]."""
        return dict(zip(self.ids, np.asarray(sizes).tolist(), strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What a strategy adds to the driver's account of a finished step. Maps are by prompt_id, and need not be complete.

    What it leaves out the driver works out from the rounds.
    """

    counts: Mapping[str, int] | None = None  # n_i of the samples to train on; none = of the rounds
    num_prompts: int | None = None  # that the estimator averages over; none = those with samples that are kept
    # p in (0, 1], known without the samples that are averaged over: from before they were drawn, or from the prompt's
    # `pilots`, the indices of samples that told it. None at all where the strategy knows none.
    accept_rates: Mapping[str, float] = field(default_factory=dict)
    pilots: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)  # b of the advantage r - b
    scales: Mapping[str, float] = field(default_factory=dict)  # s > 0: the advantage is divided by it
    prompt_weights: Mapping[str, float] = field(default_factory=dict)  # factor on the weights of its samples
    kept: Mapping[str, tuple[int, ...]] | None = None  # sample indices to train on; none at all = a dropped group
    metrics: Metrics = field(default_factory=dict)
    histograms: Mapping[str, Float64Array] = field(default_factory=dict)


# Rounds of a step: yields the samples of each prompt (or an Allocation, where a round is more than that), is sent that
# round's outcomes, already part of `step.samples`, and returns what there is to add to the driver's account.
Rounds = Generator[Mapping[str, int] | Allocation, Sequence[GroupOutcome], Report | None]


class Allocator(ABC):
    """A strategy. Its one duty is `rounds`; an attribute is what it remembers from step to step.

    Steps overlap: the next one's rounds may begin before this one's last outcomes are in. What belongs to a step is a
    local variable of the generator.
    """

    memory_decay: float = 1.0  # factor on a prompt's counts in the run's memory at each new visit; 1 forgets nothing

    @abstractmethod
    def rounds(self, step: Step) -> Rounds:
        """Spend `step.budget` samples on the step's prompts, or on some of them, in one round or more.

        A round without samples is skipped: the generator is sent no outcomes and goes on.
        """

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Learn the gradient norms that training measured of one batch, where the settings ask for them."""
        return

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable memory beyond the driver's counts; a step under way isn't part of it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the memory that `state_dict` gave."""
        return
