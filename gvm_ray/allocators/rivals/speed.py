"""SPEED (arXiv 2506.09016): a few samples screen every prompt, the rest goes to those neither solved nor hopeless."""

import numpy as np

from gvm_ray.allocators.base import Allocator, Report, Rounds, Step
from gvm_ray.allocators.selection import even_counts, sample_indices
from gvm_ray.config.selecting_allocators import SPEEDAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.functional.statistics import divisible_rates


class SPEEDAllocator(Allocator):
    """Screening, then the continuation of the prompts with 0 < p-hat < 1, in equal shares; of all where none has."""

    def __init__(self, settings: SPEEDAllocatorConfig) -> None:
        self._settings = settings

    def rounds(self, step: Step) -> Rounds:
        """Two rounds, the budget in all.

        Raises:
            ConfigError: the budget is too small for the screening.
        """
        ids, settings = step.ids, self._settings
        screening = dict.fromkeys(ids, settings.screening_samples)
        left = step.budget - sum(screening.values())
        if left < 0:
            raise ConfigError(
                f"a budget of {step.budget} samples is below the {step.budget - left} that screen {len(ids)} prompts "
                f"with allocator.screening_samples={settings.screening_samples} each; write fewer of them, or a larger "
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
