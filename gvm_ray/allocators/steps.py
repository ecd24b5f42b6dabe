"""Drives an allocator's generators: one call for each round of a step, from a caller whose steps may overlap."""

from collections.abc import Sequence

from gvm_ray.exceptions import ConfigError
from gvm_ray.protocols import AllocatorStrategy, ObservesTraining, Rounds
from gvm_ray.types import Allocation, AllocationReport, FloatArray, GroupOutcome, Prompt, TrainedNorms


class AllocatorSteps:
    """The steps under way of one strategy. A step that fails is forgotten, and can be planned anew."""

    def __init__(self, strategy: AllocatorStrategy) -> None:
        self._strategy = strategy
        self._rounds: dict[int, Rounds] = {}  # step -> its generator, which waits for a round's outcomes
        self._reports: dict[int, AllocationReport] = {}  # of finished steps, until they are asked for

    def plan(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Allocation:
        """The first round with anything to sample; empty where the step needs none.

        Raises:
            ConfigError: the strategy can't spend this budget on these prompts, or is no allocator.
        """
        assert step not in self._rounds, f"step {step} is under way and can't be planned a second time"
        assert step not in self._reports, (
            f"step {step} is finished and its report was not asked for; it can't be planned"
        )
        rounds = self._strategy.rounds(prompts, step=step, budget=budget, upcoming=upcoming, states=states)
        return self._advance(step, rounds, None)

    def observe(self, outcomes: Sequence[GroupOutcome], *, step: int) -> Allocation:
        """The next round, given the outcomes of the last one; empty when the step is done."""
        assert step in self._rounds, f"step {step} waits for no outcomes; the steps under way are {list(self._rounds)}"
        return self._advance(step, self._rounds.pop(step), outcomes)

    def report(self, *, step: int) -> AllocationReport:
        """What the strategy says of a finished step; once."""
        assert step in self._reports, f"step {step} has no report; the finished steps are {list(self._reports)}"
        return self._reports.pop(step)

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Passed on to a strategy that learns from them."""
        if isinstance(self._strategy, ObservesTraining):
            self._strategy.observe_training(norms)

    def _advance(self, step: int, rounds: Rounds, outcomes: Sequence[GroupOutcome] | None) -> Allocation:
        try:
            allocation = next(rounds) if outcomes is None else rounds.send(outcomes)
            while not allocation.total:  # nothing to sample: go on with no outcomes
                allocation = rounds.send([])
        except StopIteration as done:
            if not isinstance(done.value, AllocationReport):
                raise ConfigError(
                    f"{type(self._strategy).__name__}.rounds returned {done.value!r}; end it with "
                    "`return AllocationReport(...)`"
                ) from None
            self._reports[step] = done.value
            return Allocation.empty()
        self._rounds[step] = rounds
        return allocation
