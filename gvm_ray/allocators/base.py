"""An allocator: decides, round by round, how many samples each prompt of a step gets.

A strategy is arithmetic on what it is shown: no Ray, no torch. `AllocationDriver` runs it and keeps the books.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gvm_ray.allocators.memory import PromptMemory
from gvm_ray.types import Allocation, Float64Array, FloatArray, GroupOutcome, Metrics, Prompt, TrainedNorms


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
