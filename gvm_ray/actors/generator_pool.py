"""The pool of generators: requests are shared out by predicted tokens, and every engine is brought new policies."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from gvm_ray.actors.dispatch import LengthHistory, Pieces, assign
from gvm_ray.actors.generator import GeneratorActor
from gvm_ray.actors.waiting import wait_for
from gvm_ray.config.run import DeadlineConfig, EngineConfig
from gvm_ray.engines import EngineKind
from gvm_ray.exceptions import SystemFailure
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import GroupOutcome, SampleRequest, SamplingParameters, WeightsRef

Score = Callable[[ray.ObjectRef], Awaitable[list[GroupOutcome]]]  # of a chunk: a tuple of unscored groups

_MAX_RESTARTS = 3  # of one generator


@dataclass(kw_only=True, eq=False)
class _Generator:
    """What the pool knows of one of its actors."""

    name: str
    actor: Any  # Ray's types don't know the methods of an actor handle
    version: int = -1
    load: float = 0.0  # predicted tokens that it has yet to sample
    available: bool = True  # false while it restarts, and once it is dead


class GeneratorPool:
    """The generators of a run, named <name>-0, <name>-1 ... A dead one is restarted and its work done again.

    The actors are asked for at once; `start` waits for them.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        kind: EngineKind,
        model_path: str,
        max_model_len: int,
        max_tokens: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
        deadlines: DeadlineConfig,
        clock: PhaseClock | None = None,
        name: str = "generator",
    ) -> None:
        self._deadlines = deadlines
        self._clock = clock or PhaseClock()
        self._weights: WeightsRef | None = None
        self._lengths = LengthHistory(max_tokens=max_tokens)
        self._versions_changed = asyncio.Condition()
        num_threads = max(1, int(config.cpus_per_generator))  # else every engine takes all cores
        self._generators = [
            _Generator(
                name=f"{name}-{index}",
                actor=GeneratorActor.options(
                    name=f"{name}-{index}",
                    num_cpus=config.cpus_per_generator,
                    num_gpus=config.gpus_per_generator,
                    max_restarts=_MAX_RESTARTS,
                    runtime_env={"env_vars": {"OMP_NUM_THREADS": str(num_threads)}},
                ).remote(
                    f"{name}-{index}",
                    kind=kind,
                    model_path=model_path,
                    config=config,
                    max_model_len=max_model_len,
                    revision=revision,
                    trust_remote_code=trust_remote_code,
                ),
            )
            for index in range(config.num_generators)
        ]

    @property
    def versions(self) -> tuple[int, ...]:
        """The policy version of each generator, -1 before the first publish."""
        return tuple(generator.version for generator in self._generators)

    async def start(self) -> None:
        """Return when every engine has loaded the model.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't start.
            UserError: its engine can't run the model.
        """
        await wait_for(
            asyncio.gather(*(_answer(generator.actor.policy_version.remote()) for generator in self._generators)),
            timeout_s=self._deadlines.start_s,
            what=f"starting {len(self._generators)} generator(s)",
            setting="deadlines.start_s",
        )

    async def reset(self) -> None:
        """Drop all requests and forget the published weights, for another run whose versions count from 0 again.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't answer.
        """
        self._weights = None
        await wait_for(
            asyncio.gather(*(_answer(generator.actor.reset.remote()) for generator in self._generators)),
            timeout_s=self._deadlines.sync_s,
            what=f"resetting {len(self._generators)} generator(s)",
            setting="deadlines.sync_s",
        )
        for generator in self._generators:
            generator.version = -1

    async def ask(self, question: Callable[[Any], Any]) -> list[Any]:
        """What a function says of each generator's engine; see `GeneratorActor.ask`.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't answer.
        """
        return await wait_for(
            asyncio.gather(*(_answer(generator.actor.ask.remote(question)) for generator in self._generators)),
            timeout_s=self._deadlines.sync_s,
            what=f"asking {len(self._generators)} generator(s) about their engines",
            setting="deadlines.sync_s",
        )

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParameters, *, score: Score
    ) -> list[GroupOutcome]:
        """Sample everything, and have each chunk of groups scored as soon as it is finished.

        Returns the outcomes in order of the requests and their samples; one that was split has several.
        """
        available = [generator for generator in self._generators if generator.available] or self._generators
        shares = assign(requests, loads=[generator.load for generator in available], lengths=self._lengths)
        served = await asyncio.gather(
            *(
                self._serve(generator, pieces, sampling, score)
                for generator, pieces in zip(available, shares, strict=True)
                if pieces
            )
        )
        placed = [item for part in served for item in part]
        return [outcome for _, outcome in sorted(placed, key=lambda item: (item[0], item[1].sample_indices))]

    async def _serve(
        self, generator: _Generator, pieces: Pieces, sampling: SamplingParameters, score: Score
    ) -> list[tuple[int, GroupOutcome]]:
        """Outcomes of one generator's share, with their positions; after its death the rest is sampled once it is back.

        Only requests without an outcome are sampled again, so nothing is ever there twice.
        """
        placed: list[tuple[int, GroupOutcome]] = []
        while pieces:
            waiting = {(piece.prompt.prompt_id, piece.sample_indices): (at, piece) for at, piece in pieces}
            outcomes, failure = await self._stream(generator, pieces, sampling, score)
            for outcome in outcomes:
                position, _ = waiting.pop((outcome.prompt_id, outcome.sample_indices))
                placed.append((position, outcome))
            pieces = list(waiting.values())
            if failure is not None:
                await self._await_restart(generator)
        return placed

    async def _stream(
        self, generator: _Generator, pieces: Pieces, sampling: SamplingParameters, score: Score
    ) -> tuple[list[GroupOutcome], RayActorError | None]:
        """The outcomes of a call, and what ended it early: the generator's death, or None."""
        load = {(p.prompt.prompt_id, p.sample_indices): self._lengths.predict(p) for _, p in pieces}
        generator.load += sum(load.values())

        async def scored(chunk: ray.ObjectRef) -> list[GroupOutcome]:
            outcomes = await score(chunk)
            for outcome in outcomes:
                generator.load -= load.pop((outcome.prompt_id, outcome.sample_indices))
                self._lengths.observe(outcome)
            return outcomes

        stream = generator.actor.generate.options(num_returns="streaming").remote(
            [piece for _, piece in pieces], sampling, self._weights
        )
        failure: RayActorError | None = None
        try:
            with self._clock.phase("sampling"):
                scoring = [asyncio.ensure_future(scored(chunk)) async for chunk in stream]
            try:
                await stream.completed()
            except RayActorError as error:
                failure = error  # the last chunk is then this error, and its scoring fails with it
            results = await asyncio.gather(*scoring, return_exceptions=failure is not None)
        finally:
            generator.load -= sum(load.values())
        return [outcome for result in results if isinstance(result, list) for outcome in result], failure

    async def _await_restart(self, generator: _Generator) -> None:
        """Keep new work from a generator until it has restarted and loaded the last published weights.

        Raises:
            RayActorError: it has died too often.
        """
        generator.available = False
        if self._weights is not None:
            generator.version = await _answer(
                generator.actor.load_weights.options(max_task_retries=-1).remote(self._weights)
            )
        else:
            await _answer(generator.actor.policy_version.options(max_task_retries=-1).remote())
        generator.available = True

    async def publish(self, weights: WeightsRef) -> None:
        """Return when every generator has these weights; it takes them between two steps of its engine.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't load them.
            SystemFailure: a generator reports another version.
        """
        self._weights = weights
        await wait_for(
            asyncio.gather(*(self._bring(weights, generator) for generator in self._generators)),
            timeout_s=self._deadlines.sync_s + self._deadlines.sample_s,  # samples under way may come first
            what=f"loading weights version {weights.policy_version} into {len(self._generators)} generator(s)",
            setting="deadlines.sync_s",
        )

    async def _bring(self, weights: WeightsRef, generator: _Generator) -> None:
        version = await _answer(generator.actor.load_weights.options(max_task_retries=-1).remote(weights))
        if version != weights.policy_version:
            raise SystemFailure(
                f"weights version {weights.policy_version} were published; {generator.name} holds {version}"
            )
        async with self._versions_changed:
            generator.version = version
            self._versions_changed.notify_all()

    async def wait_for_version(self, policy_version: int) -> None:
        """Return when every generator has at least this version; `publish` unblocks it.

        Raises:
            DeadlineExceeded: nothing was published for longer than an update, a checkpoint, an evaluation and a
                publish may take.
        """
        deadlines = self._deadlines
        await wait_for(
            self._at_least(policy_version),
            timeout_s=2 * deadlines.update_s + deadlines.sample_s + deadlines.sync_s,
            what=f"waiting for policy version {policy_version} (generators hold {list(self.versions)})",
            setting="deadlines.update_s",
        )

    def close(self) -> None:
        """Kill the actors."""
        for generator in self._generators:
            ray.kill(generator.actor)

    async def _at_least(self, policy_version: int) -> None:
        async with self._versions_changed:
            await self._versions_changed.wait_for(lambda: min(self.versions) >= policy_version)


async def _answer(ref: ray.ObjectRef) -> Any:
    return await ref
