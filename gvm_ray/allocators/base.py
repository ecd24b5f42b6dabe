"""Allocators: decide, round by round, the number of samples of each prompt of a step.

A strategy is arithmetic on its `Step`, without Ray and torch. `AllocationDriver` runs it, and keeps counts and reports.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, WrapValidator

from gvm_ray.allocators.memory import PromptMemory
from gvm_ray.settings import Count, Settings
from gvm_ray.types import (
    Allocation,
    Counts,
    Float64Array,
    FloatArray,
    GradientParameters,
    GroupOutcome,
    IndexArray,
    Metrics,
    Pooling,
    Prompt,
    StatesKind,
    TrainedNorms,
)

GroupSize = Annotated[int, Field(ge=2)]  # a single sample has no reward variance


class PromptStatesConfig(Settings):
    """Hidden states of the candidates: one forward pass over each prompt, charged, and repeated once they are old.

    What all prompts of a pass begin with is read and charged once in a micro-batch, where the learner shares prompts.

    In place of this table, `states = "embedding"` takes the mean of the starting policy's input embeddings over the
    prompt's tokens (of wide ones the first 64 principal components): a look-up, made once for the run and not charged.
    With `states = "none"` an allocator predicts from neither. In both cases candidates cost nothing.
    """

    # Over the prompt's tokens, in the last layer; "entropy" is one number, the mean entropy of the next token there.
    pooling: Pooling = "mean"
    refresh_steps: Count = 20  # a prompt's states are reused for this many steps


PromptStates = PromptStatesConfig | Literal["embedding"]


def _states(value: Any, union: Any) -> PromptStates | None:
    """The setting's value, without the union's own validator, whose errors are about every member."""
    if value is None or value == "none":  # TOML has no null
        return None
    if value == "embedding" or isinstance(value, PromptStatesConfig):
        return value
    if isinstance(value, Mapping):
        return PromptStatesConfig.model_validate(value)
    raise ValueError('takes "embedding", "none", or a table of pooling and refresh_steps')


def _some_states(value: Any, union: Any) -> PromptStates:
    """The same for allocators that predict from nothing else."""
    states = _states(value, union)
    if states is None:
        raise ValueError('takes "embedding", or a table of pooling and refresh_steps: this allocator needs states')
    return states


OptionalPromptStates = Annotated[PromptStates | None, WrapValidator(_states)]
RequiredPromptStates = Annotated[PromptStates, WrapValidator(_some_states)]


def states_kind(states: PromptStates | None) -> StatesKind | None:
    """The kind of states that a setting asks for; None for none."""
    return states.pooling if isinstance(states, PromptStatesConfig) else states


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """Settings of the run that an allocator's settings have to agree with."""

    prompts_per_step: int
    samples_per_prompt: int
    max_staleness: int
    checkpoint_every_steps: int
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 3072
    prefill_price: float = 1.0  # generated tokens charged for each prefilled token


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Inputs that a run provides for an allocator."""

    candidates: int  # prompts in a step's `Step`; an allocator that doesn't select samples all of them
    states: PromptStates | None = None  # hidden states of the candidates, or their input embeddings
    # The most candidates that `Allocator.shortlist` leaves, before their states are computed; None = it isn't asked.
    shortlist: int | None = None
    response_states: bool = False  # hidden states of samples, in rounds that ask for them
    training_norms: bool = False  # gradient norms of samples, measured in training
    # Where responses share their prompts in training: the samples of each prompt that are measured, of those with a
    # positive advantage and of those with a negative one. None = all, for which no prompt is shared.
    norm_samples: int | None = None
    pilot_norms: GradientParameters | None = None  # parameters whose gradient norm is measured for each pilot
    block_steps: int = 1  # steps that share one allocation


@dataclass(frozen=True, kw_only=True)
class SmallestGroup:
    """The smallest group that may be trained on, and the setting that determines it."""

    setting: str  # with its table, as in "allocator.min_samples"
    value: int  # the setting's value; 0 allows groups of one


class AllocatorConfig(Settings, ABC):
    """Base class of every allocator's settings."""

    # Name of the setting that, if true, gives every prompt a baseline before it is sampled.
    baseline_setting: ClassVar[str | None] = None

    @property
    def gives_baselines(self) -> bool:
        """True if every prompt has a baseline before it is sampled."""
        return self.baseline_setting is not None and bool(getattr(self, self.baseline_setting))

    @property
    def knows_accept_rates(self) -> bool:
        """Whether every sampled prompt has an accept rate that doesn't depend on the samples averaged over."""
        return False

    @abstractmethod
    def build(self, *, accept_threshold: float, seed: int) -> "Allocator":
        """Create the strategy.

        Args:
            accept_threshold: a sample is accepted (a success) when its reward is at least this.
            seed: seed of random draws that the strategy makes without `Step.rng`.
        """

    @abstractmethod
    def smallest_group(self, run: RunShape) -> SmallestGroup | None:
        """The smallest group that these settings allow; None if they don't determine it."""

    @property
    def max_budget_factor(self) -> int:
        """The largest cost of a step, in multiples of its budget; every drawn sample is charged."""
        return 1

    def needs(self, run: RunShape) -> Needs:
        """Inputs that the run has to provide; by default only the step's prompts."""
        return Needs(candidates=run.prompts_per_step)

    def check_fits(self, run: RunShape) -> None:
        """Check that these settings can spend the run's budget.

        Raises:
            ValueError: they can't; the message says what to write instead.
        """


class BoundedAllocatorConfig(AllocatorConfig):
    """Settings of allocators that give every prompt between min_samples and max_samples."""

    min_samples: Count
    max_samples: Count

    @property
    def knows_accept_rates(self) -> bool:
        """True: the allocator decides by rates from earlier visits or other prompts."""
        return True

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The lower bound `min_samples`."""
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """Check that samples_per_prompt lies within the bounds."""
        if not self.min_samples <= run.samples_per_prompt <= self.max_samples:
            raise ValueError(
                f"samples_per_prompt={run.samples_per_prompt} is outside allocator.min_samples={self.min_samples} to "
                f"max_samples={self.max_samples}, so the budget can't be spent; write other bounds, "
                f"e.g. min_samples={min(self.min_samples, max(1, run.samples_per_prompt // 2))}, "
                f"max_samples={max(self.max_samples, run.samples_per_prompt)}"
            )


def check_bounds(min_samples: int, max_samples: int | None, run: RunShape) -> None:
    """Check that the bounds on n admit the step's budget.

    Raises:
        ValueError: a bound doesn't; the message says what to write instead.
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
    prompts: Sequence[Prompt]  # the candidates, for an allocator that selects
    budget: int  # number of samples of the step, over all rounds
    rng: np.random.Generator  # seeded by the run and the step
    memory: PromptMemory  # of the run: all complete rounds, including rounds of overlapping steps
    samples: PromptMemory  # of this step's rounds so far
    # Prompts of the later steps of the same block, if steps share one allocation. A round may sample them too; these
    # samples are kept for their step.
    upcoming: Sequence[Prompt] = ()
    states: FloatArray | None = None  # [P, F] hidden states, or mean input embeddings, if the settings ask for them

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the P prompts."""
        return [prompt.prompt_id for prompt in self.prompts]

    def counts(self, sizes: ArrayLike) -> Counts:
        """prompt_id -> n_i, from n [P]."""
        return Counts(self.ids, sizes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """A strategy's part of the report of a finished step. Maps are by prompt_id, and need not be complete.

    The driver fills in missing fields from the rounds.
    """

    counts: Mapping[str, int] | None = None  # n_i of the samples to train on; None = as in the rounds
    num_prompts: int | None = None  # prompts that the estimator averages over; None = prompts with kept samples
    # p in (0, 1], independent of the samples that are averaged over: estimated before they were drawn, or from the
    # prompt's pilots. Empty if the strategy knows none.
    accept_rates: Mapping[str, float] = field(default_factory=dict)
    pilots: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # indices of the samples that estimated p
    baselines: Mapping[str, float] = field(default_factory=dict)  # b of the advantage r - b
    # b by sample index, of that sample alone; its own reward must have no part in it
    sample_baselines: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)  # s > 0: the advantage is divided by it
    # s > 0, the reward's standard deviation: divides the advantage where the algorithm divides by one, as GRPO does
    deviations: Mapping[str, float] = field(default_factory=dict)
    prompt_weights: Mapping[str, float] = field(default_factory=dict)  # factors on the weights of a prompt's samples
    kept: Mapping[str, tuple[int, ...]] | None = None  # indices of samples to train on; () drops the group
    metrics: Metrics = field(default_factory=dict)
    histograms: Mapping[str, Float64Array] = field(default_factory=dict)


# The rounds of a step. The generator yields the number of samples of each prompt (or an Allocation, for a round that
# needs more), is sent the round's outcomes, which `step.samples` then includes, and returns its part of the report.
Rounds = Generator[Mapping[str, int] | Allocation, Sequence[GroupOutcome], Report | None]


class Allocator(ABC):
    """A strategy. It has to define `rounds`; its attributes are what it remembers from step to step.

    Steps overlap: the next step's rounds may begin before this step's last outcomes arrive. Keep the state of a step in
    local variables of the generator.
    """

    memory_decay: float = 1.0  # factor on a prompt's counts in the run's memory at each new visit; 1 forgets nothing

    @abstractmethod
    def rounds(self, step: Step) -> Rounds:
        """Spend `step.budget` samples on some or all of the step's prompts, in one or more rounds.

        A round without samples is skipped: the generator is sent an empty list.
        """

    def shortlist(self, step: Step) -> IndexArray:
        """Choose rows of the step's prompts, before their states are computed: `rounds` then sees these alone.

        Called if the settings' `needs` have a shortlist; it must leave the memory as it is.
        """
        return np.arange(len(step.prompts))

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Learn the gradient norms that training measured on one batch, if the settings ask for them."""
        return

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable memory beyond the driver's counts, without steps under way."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        return
