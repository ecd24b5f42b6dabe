"""SPEED (arXiv 2506.09016): a few samples screen every prompt, the rest goes to those neither solved nor hopeless."""

from collections.abc import Mapping, Sequence
from typing import Any

from gvm_ray.allocators.history import PromptHistory, sample_indices
from gvm_ray.allocators.selection import even_counts, report_selection, unique_ids
from gvm_ray.config.selecting_allocators import SPEEDAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.functional.statistics import divisible_rates
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, FloatArray, Prompt


class SPEEDAllocator:
    """Screening, then the continuation of the prompts with 0 < p-hat < 1, in equal shares; of all where none has."""

    def __init__(self, config: SPEEDAllocatorConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._history = PromptHistory(accept_threshold=accept_threshold)

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """Two rounds, the budget in all.

        Raises:
            ConfigError: the budget is too small for the screening.
        """
        ids = unique_ids(prompts)
        screening = dict.fromkeys(ids, self._config.screening_samples)
        left = budget - sum(screening.values())
        if left < 0:
            raise ConfigError(
                f"a budget of {budget} samples is below the {budget - left} that screen {len(ids)} prompts with "
                f"allocator.screening_samples={self._config.screening_samples} each; write fewer of them, or a larger "
                "samples_per_prompt"
            )
        samples = self._history.start_step(ids)
        outcomes = yield Allocation(counts=screening)
        samples.fold(outcomes)
        rates = samples.accept_rates()
        accept_rates = dict(zip(ids, divisible_rates(rates, samples.counts()[1]).tolist(), strict=True))
        passed = [id_ for id_, p in zip(ids, rates, strict=True) if 0 < p < 1]
        continuation = even_counts(passed or ids, left)
        samples.fold((yield Allocation(counts=continuation)))
        trained = screening if self._config.train_on_screened_out else continuation
        return report_selection(
            samples,
            ids,
            {prompt_id: count + continuation.get(prompt_id, 0) for prompt_id, count in screening.items()},
            kept={prompt_id: () for prompt_id in ids if prompt_id not in trained},
            accept_rates=accept_rates,
            pilots=sample_indices(outcomes),
            estimates={"allocation/passed": float(len(passed))},
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts of every prompt seen."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
