"""DAPO's dynamic sampling (arXiv 2503.14476, Section 3.2): groups that teach nothing are replaced by other prompts'."""

from gvm_ray.allocators.base import Allocator, Report, Rounds, Step
from gvm_ray.allocators.selection import even_counts, reward_ranges
from gvm_ray.config.selecting_allocators import DAPOAllocatorConfig


class DAPOAllocator(Allocator):
    """A batch's share of the candidates first; each group of equal rewards is dropped and the next candidate sampled.

    A round refills just the groups that are missing. The step ends when no group is missing or no candidate is left.
    """

    def __init__(self, settings: DAPOAllocatorConfig) -> None:
        self._settings = settings

    def rounds(self, step: Step) -> Rounds:
        """The whole budget on the first groups, and up to max_batches times as much with the refills."""
        wanted = max(len(step.ids) // self._settings.max_batches, 1)
        candidates = step.ids[: wanted * self._settings.max_batches]
        sampled: list[str] = []
        informative: set[str] = set()
        batch = even_counts(candidates[:wanted], step.budget)
        num_rounds = 0
        while batch:
            outcomes = yield batch
            informative.update(id_ for id_, (low, high) in reward_ranges(outcomes).items() if low < high)
            sampled += batch
            num_rounds += 1
            refill = candidates[len(sampled) : len(sampled) + wanted - len(informative)]
            batch = dict.fromkeys(refill, step.budget // wanted)
        return Report(
            kept={prompt_id: () for prompt_id in sampled if prompt_id not in informative},
            metrics={"allocation/rounds": float(num_rounds)},
        )
