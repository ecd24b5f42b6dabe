"""The central allocator: one named actor that holds a strategy and its memory of every prompt."""

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from gvm_ray.actors.outcome_columns import OutcomeColumns
from gvm_ray.actors.replay import Replayed
from gvm_ray.actors.waiting import wait_for
from gvm_ray.allocators import AllocationDriver, AllocatorSettings
from gvm_ray.failure_log import FailureLog
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import Allocation, AllocationReport, FloatArray, GroupOutcome, Prompt, TrainedNorms

ALLOCATOR_NAME = "allocator"


@ray.remote(num_cpus=0)
class AllocatorActor:
    """Serves one strategy; calls arrive in the order in which the driver makes them."""

    def __init__(self, config: AllocatorSettings, *, accept_threshold: float, seed: int) -> None:
        self._driver = AllocationDriver.of(config, accept_threshold=accept_threshold, seed=seed)

    def plan(self, prompts: Sequence[Prompt], **step: Any) -> Allocation:
        return self._driver.plan(prompts, **step)

    def observe(self, outcomes: OutcomeColumns, *, step: int) -> Allocation:
        return self._driver.observe(outcomes.outcomes(), step=step)

    def report(self, *, step: int) -> AllocationReport:
        return self._driver.report(step=step)

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        self._driver.observe_training(norms)

    def state_dict(self) -> dict[str, Any]:
        return self._driver.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._driver.load_state_dict(state)


class AllocatorClient:
    """The loop's side of the allocator actor (protocol `Allocator`); every call has a deadline.

    An actor that died is replaced by one that is given the memory of the last `state_dict`, and every call since then
    again: so it goes on as if nothing had happened. Where sampling runs ahead, that memory holds samples of steps that
    were under way, which the calls of these steps then give it once more.
    """

    def __init__(
        self,
        config: AllocatorSettings,
        *,
        accept_threshold: float,
        seed: int,
        timeout_s: float,
        failures: FailureLog,
        clock: PhaseClock | None = None,
        name: str = ALLOCATOR_NAME,
    ) -> None:
        self._make = functools.partial(_start, config, name=name, accept_threshold=accept_threshold, seed=seed)
        self._timeout_s = timeout_s
        self._clock = clock or PhaseClock()
        self._open_steps: set[int] = set()  # planned, not reported yet
        self._actor: Replayed[Any] = Replayed(  # Ray's types don't know the methods of an actor handle
            self._make(), name=name, replace=self._replacement, start=_ready, failures=failures
        )

    async def plan(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Allocation:
        self._open_steps.add(step)
        return await self._ask(
            lambda actor: actor.plan.remote(prompts, step=step, budget=budget, upcoming=upcoming, states=states),
            f"its plan of step {step}",
            step=step,
        )

    async def observe(self, outcomes: Sequence[GroupOutcome], *, step: int) -> Allocation:
        columns = OutcomeColumns.of(outcomes)
        return await self._ask(
            lambda actor: actor.observe.remote(columns, step=step), f"its next round of step {step}", step=step
        )

    async def report(self, *, step: int) -> AllocationReport:
        report = await self._ask(lambda actor: actor.report.remote(step=step), f"its report of step {step}", step=step)
        self._open_steps.discard(step)
        return report

    async def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        await self._ask(lambda actor: actor.observe_training.remote(norms), "gradient norms of training")

    async def state_dict(self) -> dict[str, Any]:
        state = await self._ask(lambda actor: actor.state_dict.remote(), "its state", changes_state=False)
        self._restart_journal(state)
        return state

    async def load_state_dict(self, state: Mapping[str, Any]) -> None:
        await self._ask(lambda actor: actor.load_state_dict.remote(state), "its state to load", changes_state=False)
        self._restart_journal(state)

    def close(self) -> None:
        ray.kill(self._actor.part)

    def _restart_journal(self, state: Mapping[str, Any]) -> None:
        """A replacement begins with this memory."""
        self._actor.restart_journal(
            lambda actor: self._wait(actor.load_state_dict.remote(state), "its state to load"),
            open_steps=self._open_steps,
        )

    async def _ask(
        self, call: Callable[[Any], Any], what: str, *, changes_state: bool = True, step: int | None = None
    ) -> Any:
        return await self._actor.do(lambda actor: self._wait(call(actor), what), changes_state=changes_state, step=step)

    async def _wait(self, reply: Any, what: str) -> Any:
        with self._clock.phase("planning"):
            return await wait_for(
                reply, timeout_s=self._timeout_s, what=f"the allocator ({what})", setting="deadlines.sample_s"
            )

    async def _replacement(self, old: Any) -> Any:
        """Not Ray's own restart: a call that came between would meet an actor without memory, and not know it."""
        ray.kill(old)
        return await wait_for(
            self._start_when_free(), timeout_s=self._timeout_s, what="a new allocator", setting="deadlines.sample_s"
        )

    async def _start_when_free(self) -> Any:
        while True:
            try:
                return self._make()
            except ValueError:  # the old one still has the name
                await asyncio.sleep(0.1)


def _start(config: AllocatorSettings, *, name: str, accept_threshold: float, seed: int) -> Any:
    actor_class: Any = AllocatorActor  # Ray's types don't know the methods of an actor handle
    return actor_class.options(name=name).remote(config, accept_threshold=accept_threshold, seed=seed)


async def _ready(actor: Any) -> None:
    """Nothing to wait for: the first call does."""
