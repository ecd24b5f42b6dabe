"""Generators and reward actors together: requests in, outcomes out. Token-sized data passes between them by ref."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import ray

from gvm_ray.actors.generator_pool import GeneratorPool, Outcome
from gvm_ray.actors.metrics import RayGaugeSink
from gvm_ray.actors.reward import RewardPool
from gvm_ray.actors.waiting import wait_for
from gvm_ray.exceptions import ObjectsLost
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import (
    GroupOutcome,
    OpenOutcome,
    RolloutGroup,
    SampleKey,
    SampleRequest,
    SamplingParameters,
    WeightsRef,
)


@dataclass(kw_only=True, eq=False)
class SamplingPools:
    """Protocol `RolloutPools` over a generator pool and a reward pool. Updates the gauges while a step is under way."""

    generators: GeneratorPool
    rewards: RewardPool
    clock: PhaseClock
    gauges: RayGaugeSink | None = None
    num_in_flight: int = field(default=0, init=False)  # requested samples without a reward yet

    async def sample_and_score(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        *,
        on_scored: Callable[[int], None] = lambda number: None,
    ) -> list[GroupOutcome]:
        """Sample and score the requests. Groups go to the reward actors as they are finished, bypassing the driver.

        With a multi-turn environment, all samples of these requests take their turns together, so that the composition
        of an engine's batches doesn't depend on timing.
        """
        outcomes, episodes = _separate(await self._sample(requests, sampling, on_scored=on_scored))
        if not episodes:
            return outcomes
        position = {
            (request.prompt.prompt_id, index): at
            for at, request in enumerate(requests)
            for index in request.sample_indices
        }
        while episodes:
            try:
                refs = _refs_by_sample(episodes)
                turns = self._sample(_restrict(requests, refs), sampling, refs, on_scored=on_scored)
                more, episodes = _separate(await turns)
            except ObjectsLost:  # sample the episodes from the start: the same seeds give the same turns
                lost = {(episode.prompt_id, index) for episode in episodes for index in episode.sample_indices}
                again = self._sample(_restrict(requests, lost), sampling, on_scored=on_scored)
                more, episodes = _separate(await again)
            outcomes += more
        return sorted(outcomes, key=lambda o: (position[o.prompt_id, o.sample_indices[0]], o.sample_indices))

    async def _sample(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        episodes: Mapping[SampleKey, ray.ObjectRef] | None = None,
        *,
        on_scored: Callable[[int], None],
    ) -> list[Outcome]:
        """Sample and score one turn of all requested samples."""
        waiting = sum(len(request.seeds) for request in requests)
        self._count(waiting)

        async def score(chunk: ray.ObjectRef) -> list[Outcome]:
            nonlocal waiting
            outcomes = await self._score(chunk)
            done = sum(len(outcome.sample_indices) for outcome in outcomes)
            waiting -= done
            self._count(-done)
            on_scored(sum(len(outcome.sample_indices) for outcome in _separate(outcomes)[0]))
            return outcomes

        try:
            return await self.generators.sample(requests, sampling, score=score, episodes=episodes)
        finally:
            self._count(-waiting)  # 0 unless an error left samples unscored

    def _count(self, change: int) -> None:
        self.num_in_flight += change
        if self.gauges is not None:
            self.gauges.set({"queue/samples_in_flight": float(self.num_in_flight), **self.rewards.metrics})

    async def _score(self, chunk: ray.ObjectRef) -> list[Outcome]:
        with self.clock.phase("reward"):
            return await self.rewards.score(chunk)

    async def publish(self, weights: WeightsRef) -> None:
        """Load new weights into every generator."""
        with self.clock.phase("sync"):
            await self.generators.publish(weights)

    async def wait_for_version(self, policy_version: int) -> None:
        """Return once every generator has this version."""
        await self.generators.wait_for_version(policy_version)

    async def start(self) -> None:
        """Return once every actor is ready."""
        await asyncio.gather(self.generators.start(), self.rewards.start())

    def close(self) -> None:
        self.generators.close()
        self.rewards.close()


def _separate(outcomes: Sequence[Outcome]) -> tuple[list[GroupOutcome], list[OpenOutcome]]:
    """Separate finished outcomes from open episodes."""
    over = [outcome for outcome in outcomes if isinstance(outcome, GroupOutcome)]
    return over, [outcome for outcome in outcomes if isinstance(outcome, OpenOutcome)]


def _refs_by_sample(episodes: Sequence[OpenOutcome]) -> dict[SampleKey, ray.ObjectRef]:
    """Ref of the open episode of each sample."""
    return {(episode.prompt_id, index): episode.ref.ref for episode in episodes for index in episode.sample_indices}


def _restrict(requests: Sequence[SampleRequest], keys: Collection[SampleKey]) -> list[SampleRequest]:
    """The requests restricted to these samples; empty requests are dropped."""
    parts = [request.only(keys) for request in requests]
    return [part for part in parts if part.seeds]


async def fetch_groups(outcomes: Sequence[GroupOutcome], *, timeout_s: float) -> list[RolloutGroup]:
    """Fetch the token-sized groups behind the outcomes to the driver; for reports, not for training.

    Raises:
        DeadlineExceeded, ActorFailure: the groups didn't arrive in time, or are lost.
    """
    refs = {outcome.ref.ref: None for outcome in outcomes}
    fetched = await wait_for(
        asyncio.gather(*(_resolve(ref) for ref in refs)),
        timeout_s=timeout_s,
        what="the sampled texts",
        setting="deadlines.sample_s",
    )
    by_ref = dict(zip(refs, fetched, strict=True))
    return [by_ref[outcome.ref.ref][outcome.ref.index] for outcome in outcomes]


async def _resolve(ref: ray.ObjectRef) -> tuple[RolloutGroup, ...]:
    return await ref
