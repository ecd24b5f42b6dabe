"""SPEED (arXiv 2506.09016): a few samples screen every prompt; prompts neither solved nor hopeless get the rest."""

from typing import Literal

import numpy as np

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    GroupSize,
    Needs,
    Report,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
)
from gvm_ray.allocators.selection import even_counts, sample_indices
from gvm_ray.exceptions import ConfigError
from gvm_ray.maths.statistics import divisible_rates
from gvm_ray.settings import Count


class SPEEDAllocatorConfig(AllocatorConfig):
    """SPEED (arXiv 2506.09016): screens every candidate with N_init samples, and continues those with 0 < p-hat < 1.

    The paper was withdrawn by its author (arXiv v3, March 2026). The rule is kept to compare with.
    Here a step costs its budget: after the screening, the prompts that pass share the rest equally, so that
    N_cont = rest / passed. In the paper, N_cont is fixed, and prompts that pass wait in a buffer for their batch.
    The paper samples the continuation together with the next batch's screening. That only matters for throughput, and
    generators with continuous batching get the same from overlapping steps (max_staleness > 0).
    """

    type: Literal["speed"] = "speed"
    candidates_per_step: Count | None = None  # prompts to screen; none = prompts_per_step
    screening_samples: GroupSize = 4  # N_init; trained on if the prompt passes
    train_on_screened_out: bool = False  # true: train on the screening samples of prompts that don't pass, too

    @property
    def knows_accept_rates(self) -> bool:
        """True: the screening estimates them, and is left out of the `inverse` sum."""
        return True

    def needs(self, run: RunShape) -> Needs:
        """Candidates to screen."""
        return Needs(candidates=self.candidates_per_step or run.prompts_per_step)

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The screening, which is part of a prompt's group."""
        return SmallestGroup(setting="allocator.screening_samples", value=self.screening_samples)

    def check_fits(self, run: RunShape) -> None:
        """Check that the screening leaves samples to continue with."""
        budget = run.prompts_per_step * run.samples_per_prompt
        candidates = self.needs(run).candidates
        if candidates * self.screening_samples >= budget:
            raise ValueError(
                f"screening {candidates} candidates with allocator.screening_samples={self.screening_samples} each "
                f"leaves nothing of the step's budget of {budget} samples; write candidates_per_step="
                f"{max(run.prompts_per_step, budget // (2 * self.screening_samples))}, fewer screening_samples or a "
                "larger samples_per_prompt"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "SPEEDAllocator":
        """Create the strategy."""
        return SPEEDAllocator(self)


class SPEEDAllocator(Allocator):
    """Screen, then continue the prompts with 0 < p-hat < 1 in equal shares; if there are none, continue all."""

    def __init__(self, settings: SPEEDAllocatorConfig) -> None:
        self._settings = settings

    def rounds(self, step: Step) -> Rounds:
        """Spend the budget in two rounds.

        Raises:
            ConfigError: the budget is too small for the screening.
        """
        ids, settings = step.ids, self._settings
        screening = dict.fromkeys(ids, settings.screening_samples)
        left = step.budget - sum(screening.values())
        if left < 0:
            raise ConfigError(
                f"a budget of {step.budget} samples is below the {step.budget - left} that screen {len(ids)} prompts "
                f"with allocator.screening_samples={settings.screening_samples} each; lower it, or write a larger "
                "samples_per_prompt"
            )
        outcomes = yield screening
        (_, trials), rates = step.samples.counts(ids), step.samples.accept_rates(ids)
        divisors = divisible_rates(np.nan_to_num(rates, nan=0.0), trials)
        passed = [id_ for id_, p in zip(ids, rates, strict=True) if 0 < p < 1]
        continuation = even_counts(passed or ids, left)
        yield continuation
        trained = screening if settings.train_on_screened_out else continuation
        return Report(
            kept={prompt_id: () for prompt_id in ids if prompt_id not in trained},
            accept_rates=dict(zip(ids, divisors.tolist(), strict=True)),
            pilots=sample_indices(outcomes),
            metrics={"allocation/passed": float(len(passed))},
        )
