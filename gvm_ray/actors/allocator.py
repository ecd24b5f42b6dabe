"""The central allocator: one named actor that holds a strategy and its memory of every prompt."""

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.recovery import Replayed
from gvm_ray.actors.waiting import wait_for
from gvm_ray.allocators import AllocationDriver, AllocatorSettings
from gvm_ray.types import (
    Allocation,
    AllocationReport,
    BoolArray,
    Float64Array,
    FloatArray,
    GroupOutcome,
    GroupRef,
    IndexArray,
    IntArray,
    Prompt,
    TrainedNorms,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class OutcomeColumns:
    """The fields of G outcomes, concatenated: N samples in all. References to token-sized groups are left out.

    The cost of pickling grows with the number of arrays: 1,024 outcomes of 4 samples take about 100 ms of the driver's
    thread one by one, and 6 ms in columns.
    """

    prompt_ids: tuple[str, ...]  # [G]
    sample_indices: tuple[tuple[int, ...], ...]  # [G]
    rewards: Float64Array  # [N]
    num_tokens: IntArray  # [N]
    policy_versions: IntArray  # [N]
    truncated: BoolArray  # [N]
    gradient_norms: Float64Array  # [N], NaN where not computed
    measured: BoolArray  # [G] whether the outcome has gradient norms
    reward_terms: dict[str, Float64Array]  # name -> [N], NaN where the outcome has no such term
    entropies: Float64Array  # [N], NaN where unknown
    response_states: FloatArray | None  # [N, F]; None if an outcome has none

    @classmethod
    def of(cls, outcomes: Sequence[GroupOutcome]) -> "OutcomeColumns":
        """Columns of these outcomes."""
        unmeasured = [np.full(len(o.rewards), np.nan) for o in outcomes]
        names = dict.fromkeys(name for outcome in outcomes for name in outcome.reward_terms)
        pairs = list(zip(outcomes, unmeasured, strict=True))
        return cls(
            prompt_ids=tuple(outcome.prompt_id for outcome in outcomes),
            sample_indices=tuple(outcome.sample_indices for outcome in outcomes),
            rewards=_concatenate([o.rewards for o in outcomes], np.float64),
            num_tokens=_concatenate([o.num_tokens for o in outcomes], np.int32),
            policy_versions=_concatenate([o.policy_versions for o in outcomes], np.int32),
            truncated=_concatenate([o.truncated for o in outcomes], np.bool_),
            gradient_norms=_concatenate(
                [nan if o.gradient_norms is None else o.gradient_norms for o, nan in pairs], np.float64
            ),
            measured=np.array([outcome.gradient_norms is not None for outcome in outcomes], dtype=np.bool_),
            reward_terms={
                name: _concatenate([o.reward_terms.get(name, nan) for o, nan in pairs], np.float64) for name in names
            },
            entropies=_concatenate([nan if o.entropies is None else o.entropies for o, nan in pairs], np.float64),
            response_states=_all_states(outcomes),
        )

    def outcomes(self) -> list[GroupOutcome]:
        """The outcomes, rebuilt. Their arrays are views of the columns, and their refs are empty."""
        ends = np.cumsum([len(indices) for indices in self.sample_indices], dtype=np.int64).tolist()
        parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return [
            GroupOutcome(
                prompt_id=prompt_id,
                sample_indices=indices,
                rewards=self.rewards[part],
                num_tokens=self.num_tokens[part],
                policy_versions=self.policy_versions[part],
                truncated=self.truncated[part],
                ref=GroupRef(ref=None, index=0),
                gradient_norms=self.gradient_norms[part] if measured else None,
                reward_terms={name: values[part] for name, values in self.reward_terms.items()},
                entropies=self.entropies[part],
                response_states=None if self.response_states is None else self.response_states[part],
            )
            for prompt_id, indices, part, measured in zip(
                self.prompt_ids, self.sample_indices, parts, self.measured.tolist(), strict=True
            )
        ]


def _all_states(outcomes: Sequence[GroupOutcome]) -> FloatArray | None:
    known = [outcome.response_states for outcome in outcomes if outcome.response_states is not None]
    return np.concatenate(known) if known and len(known) == len(outcomes) else None


def _concatenate(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays])


ALLOCATOR_NAME = "allocator"


@ray.remote(num_cpus=0)
class AllocatorActor:
    """Serves one strategy. Calls arrive in the order in which the driver makes them."""

    def __init__(self, config: AllocatorSettings, *, accept_threshold: float, seed: int) -> None:
        self._driver = AllocationDriver.of(config, accept_threshold=accept_threshold, seed=seed)

    def shortlist(self, prompts: Sequence[Prompt], **step: Any) -> IndexArray:
        return self._driver.shortlist(prompts, **step)

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
    """The loop's side of the allocator actor (protocol `Allocator`). Every call has a deadline.

    A dead actor is replaced. The new one loads the memory of the last `state_dict` and repeats every call since, so it
    continues as if nothing had happened. When sampling runs ahead, that memory already holds samples of the steps then
    under way, and repeating the calls of these steps adds them a second time.
    """

    def __init__(
        self,
        config: AllocatorSettings,
        *,
        accept_threshold: float,
        seed: int,
        context: RunContext,
        name: str = ALLOCATOR_NAME,
    ) -> None:
        self._make = functools.partial(_start, config, name=name, accept_threshold=accept_threshold, seed=seed)
        self._context = context
        self._open_steps: set[int] = set()  # planned, not reported yet
        self._actor: Replayed[Any] = Replayed(  # Ray's types don't know the methods of an actor handle
            self._make(), name=name, replace=self._replacement, start=_ready, failures=context.failures
        )

    async def shortlist(self, prompts: Sequence[Prompt], *, step: int, budget: int) -> IndexArray:
        return await self._ask(
            lambda actor: actor.shortlist.remote(prompts, step=step, budget=budget),
            f"its shortlist of step {step}",
            changes_state=False,
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
        """Have a replacement begin with this memory."""
        self._actor.restart_journal(
            lambda actor: self._wait(actor.load_state_dict.remote(state), "its state to load"),
            open_steps=self._open_steps,
        )

    async def _ask(
        self, call: Callable[[Any], Any], what: str, *, changes_state: bool = True, step: int | None = None
    ) -> Any:
        return await self._actor.do(lambda actor: self._wait(call(actor), what), changes_state=changes_state, step=step)

    async def _wait(self, reply: Any, what: str) -> Any:
        with self._context.clock.phase("planning"):
            return await wait_for(
                reply,
                timeout_s=self._context.deadlines.sample_s,
                what=f"the allocator ({what})",
                setting="deadlines.sample_s",
            )

    async def _replacement(self, old: Any) -> Any:
        """Start a new actor. Ray's own restart isn't used: calls before the recovery would reach an empty memory."""
        ray.kill(old)
        return await wait_for(
            self._start_when_free(),
            timeout_s=self._context.deadlines.sample_s,
            what="a new allocator",
            setting="deadlines.sample_s",
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
    """Nothing to wait for here: the first call waits."""
