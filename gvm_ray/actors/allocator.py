"""The central allocator: one named actor that holds a strategy and its memory of every prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from gvm_ray.actors.outcome_columns import OutcomeColumns
from gvm_ray.actors.waiting import wait_for
from gvm_ray.allocators import AllocatorSteps, create_allocator
from gvm_ray.config.allocators import AllocatorSettings
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import Allocation, AllocationReport, FloatArray, GroupOutcome, Prompt, TrainedNorms

ALLOCATOR_NAME = "allocator"


@ray.remote(num_cpus=0)
class AllocatorActor:
    """Serves one strategy; calls arrive in the order in which the driver makes them."""

    def __init__(self, config: AllocatorSettings, *, accept_threshold: float, seed: int) -> None:
        self._strategy = create_allocator(config, accept_threshold=accept_threshold, seed=seed)
        self._steps = AllocatorSteps(self._strategy)

    def plan(self, prompts: Sequence[Prompt], **step: Any) -> Allocation:
        return self._steps.plan(prompts, **step)

    def observe(self, outcomes: OutcomeColumns, *, step: int) -> Allocation:
        return self._steps.observe(outcomes.outcomes(), step=step)

    def report(self, *, step: int) -> AllocationReport:
        return self._steps.report(step=step)

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        self._steps.observe_training(norms)

    def state_dict(self) -> dict[str, Any]:
        return self._strategy.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._strategy.load_state_dict(state)


class AllocatorClient:
    """The loop's side of the allocator actor (protocol `Allocator`); every call has a deadline."""

    def __init__(
        self,
        config: AllocatorSettings,
        *,
        accept_threshold: float,
        seed: int,
        timeout_s: float,
        clock: PhaseClock | None = None,
        name: str = ALLOCATOR_NAME,
    ) -> None:
        self._timeout_s = timeout_s
        self._clock = clock or PhaseClock()
        actor_class: Any = AllocatorActor  # Ray's types don't know the methods of an actor handle
        self._actor = actor_class.options(name=name).remote(config, accept_threshold=accept_threshold, seed=seed)

    async def plan(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Allocation:
        reply = self._actor.plan.remote(prompts, step=step, budget=budget, upcoming=upcoming, states=states)
        return await self._wait(reply, f"its plan of step {step}")

    async def observe(self, outcomes: Sequence[GroupOutcome], *, step: int) -> Allocation:
        reply = self._actor.observe.remote(OutcomeColumns.of(outcomes), step=step)
        return await self._wait(reply, f"its next round of step {step}")

    async def report(self, *, step: int) -> AllocationReport:
        return await self._wait(self._actor.report.remote(step=step), f"its report of step {step}")

    async def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        await self._wait(self._actor.observe_training.remote(norms), "gradient norms of training")

    async def state_dict(self) -> dict[str, Any]:
        return await self._wait(self._actor.state_dict.remote(), "its state")

    async def load_state_dict(self, state: Mapping[str, Any]) -> None:
        await self._wait(self._actor.load_state_dict.remote(state), "its state to load")

    def close(self) -> None:
        ray.kill(self._actor)

    async def _wait(self, reply: Any, what: str) -> Any:
        with self._clock.phase("planning"):
            return await wait_for(
                reply, timeout_s=self._timeout_s, what=f"the allocator ({what})", setting="deadlines.sample_s"
            )
