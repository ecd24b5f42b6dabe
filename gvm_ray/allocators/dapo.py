"""DAPO's dynamic sampling (arXiv 2503.14476, Section 3.2): groups that teach nothing are replaced by other prompts'."""

from collections.abc import Mapping, Sequence
from typing import Any

from gvm_ray.allocators.history import PromptHistory
from gvm_ray.allocators.selection import even_counts, report_selection, reward_ranges, unique_ids
from gvm_ray.config.selecting_allocators import DAPOAllocatorConfig
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, FloatArray, Prompt


class DAPOAllocator:
    """A batch's share of the candidates first; each group of equal rewards is dropped and the next candidate sampled.

    A round refills just the groups that are missing. The step ends when no group is missing or no candidate is left.
    """

    def __init__(self, config: DAPOAllocatorConfig, *, accept_threshold: float) -> None:
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
        """The whole budget on the first groups, and up to max_batches times as much with the refills."""
        ids = unique_ids(prompts)
        wanted = max(len(ids) // self._config.max_batches, 1)
        candidates = ids[: wanted * self._config.max_batches]
        samples = self._history.start_step(ids)
        counts: dict[str, int] = {}
        informative: set[str] = set()
        batch = even_counts(candidates[:wanted], budget)
        num_rounds = 0
        while batch:
            outcomes = yield Allocation(counts=batch)
            samples.fold(outcomes)
            informative.update(id_ for id_, (low, high) in reward_ranges(outcomes).items() if low < high)
            counts |= batch
            num_rounds += 1
            refill = candidates[len(counts) : len(counts) + wanted - len(informative)]
            batch = dict.fromkeys(refill, budget // wanted)
        return report_selection(
            samples,
            ids,
            counts,
            kept={prompt_id: () for prompt_id in counts if prompt_id not in informative},
            estimates={"allocation/rounds": float(num_rounds)},
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts of every prompt sampled."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
