"""One generator: the actor that serves an engine, and the driver's side of it, with its version and load."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from gvm_ray.actors.cluster import GPUGroup, show_group_gpus
from gvm_ray.actors.waiting import failure_of, wait_for
from gvm_ray.actors.watch import WatchedActor
from gvm_ray.actors.weight_sync import fetch
from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.run import DeadlineConfig
from gvm_ray.engines import EngineKind, create_engine
from gvm_ray.engines.server import EngineServer
from gvm_ray.engines.turns import episodes_by_sample, next_turns
from gvm_ray.engines.weight_receiver import WeightReceiver
from gvm_ray.exceptions import ActorDied, SystemFailure
from gvm_ray.pretrained import load_tokenizer
from gvm_ray.protocols import Engine
from gvm_ray.resources import logical_cpus, thread_variables
from gvm_ray.types import (
    ModelSpec,
    OpenEpisodes,
    RolloutGroup,
    SampleKey,
    SampleRequest,
    SamplingParameters,
    TransferMember,
    TransferPhase,
    WeightsRef,
)

# A chunk is scored while the rest is being sampled, but costs the driver a few milliseconds whatever its size. So a
# generator's share of a round is split into a few chunks, and a small share is one chunk.
_MAX_CHUNKS = 4
_MIN_CHUNK_SAMPLES = 32


@ray.remote
class GeneratorActor:
    """One engine. Concurrent calls share its batches."""

    def __init__(
        self,
        name: str,
        *,
        kind: EngineKind,
        model: ModelSpec,
        config: EngineConfig,
        bundles: Sequence[float],
        num_threads: int,
    ) -> None:
        self._name = name

        # Created by the first call: an error raised here would reach the caller only as the actor's death.
        def create() -> Engine:
            show_group_gpus(bundles)
            # The engine's libraries read them when they are imported. In Ray's runtime_env they would take a new
            # process instead of one that is waiting, in which torch may be there already.
            os.environ.update(thread_variables(num_threads))
            import torch

            torch.set_num_threads(num_threads)
            return create_engine(kind, model, config=config)

        self._server = EngineServer(create, in_flight=config.in_flight)
        self._receiver = WeightReceiver(self._server, name=name)
        self._load_tokenizer = functools.partial(
            load_tokenizer, model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
        self._tokenizer: Any = None  # for environments' answers; loaded with the first one

    def __repr__(self) -> str:
        return self._name

    async def policy_version(self) -> int:
        """Version of the loaded weights, -1 before the first. Returns once the engine has started.

        Raises:
            UserError: the engine can't run the model.
        """
        return await self._server.policy_version()

    async def ask(self, question: Callable[[Any], Any]) -> Any:
        """Call a function on the engine and return its result; e.g. a method of the engine's class that counts work."""
        return await self._server.ask(question)

    async def generate(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        weights: WeightsRef | None,
        *episodes: Sequence[OpenEpisodes],
    ) -> AsyncIterator[tuple[RolloutGroup, ...]]:
        """Chunks of unscored groups as they are finished, sampled under `weights` or newer ones.

        With `episodes`, which must then include every requested sample, each sample continues by one turn. A restarted
        actor has the model's initial weights, so every call passes the last published ones.
        """
        if weights is not None:
            await self.load_weights(weights)
        groups = self._next_turns(requests, sampling, episodes) if episodes else self._first_turns(requests, sampling)
        chunk: list[RolloutGroup] = []
        async for group in groups:
            chunk.append(group)
            enough = len(chunk) >= len(requests) / _MAX_CHUNKS and sum(map(len, chunk)) >= _MIN_CHUNK_SAMPLES
            if enough:
                yield tuple(chunk)
                chunk = []
        if chunk:
            yield tuple(chunk)

    async def _first_turns(
        self, requests: Sequence[SampleRequest], sampling: SamplingParameters
    ) -> AsyncIterator[RolloutGroup]:
        async for request, completions in self._server.sample(requests, sampling):
            yield RolloutGroup.of(request.prompt, completions, sample_indices=request.sample_indices)

    async def _next_turns(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        episodes: Sequence[Sequence[OpenEpisodes]],
    ) -> AsyncIterator[RolloutGroup]:
        if self._tokenizer is None:
            self._tokenizer = await asyncio.to_thread(self._load_tokenizer)
        by_sample = episodes_by_sample(episodes)
        groups = next_turns(self._server, requests, sampling, episodes=by_sample, tokenizer=self._tokenizer)
        async for group in groups:
            yield group

    async def reset(self) -> None:
        """Prepare for another run: drop requests, cache and weights version; see `Engine.reset`."""
        await self._server.reset()

    async def sleep(self) -> None:
        """Free the GPUs until there is something to sample or there are new weights to load."""
        await self._server.sleep()

    async def load_weights(self, weights: WeightsRef) -> int:
        """Load these weights unless the engine has newer ones; returns its version."""
        return await self._server.load_weights(weights.policy_version, lambda: fetch(weights))

    async def transfer(self, phase: TransferPhase) -> None:
        """Take part in a phase of a transfer; called by the learners' sender. See `WeightReceiver.take`."""
        await self._receiver.take(phase)


class GeneratorClient(WatchedActor):
    """The driver's handle on one generator, whose actor Ray restarts when it dies.

    The actor is requested on construction; `ready` waits for it.
    """

    def __init__(
        self,
        name: str,
        *,
        kind: EngineKind,
        model: ModelSpec,
        config: EngineConfig,
        bundles: Sequence[float],
        num_threads: int,
        deadlines: DeadlineConfig,
    ) -> None:
        """Request the actor; `bundles` of GPUs are reserved for it, none if it uses no GPU."""
        self.version = -1
        self.pending: list[dict[SampleKey, float]] = []  # for each call: predicted tokens of its unfinished samples
        self._deadlines = deadlines
        num_cpus = logical_cpus(config.cpus_per_generator)
        self._gpus = GPUGroup(name, bundles=bundles, num_cpus=num_cpus) if bundles else None
        actor: Any = GeneratorActor.options(  # Ray's types don't know the methods of an actor handle
            name=name,
            num_cpus=num_cpus,
            # On CPUs they have the cores of all machines.
            **({"scheduling_strategy": "SPREAD"} if self._gpus is None else self._gpus.options),
            max_restarts=-1,
        ).remote(name, kind=kind, model=model, config=config, bundles=tuple(bundles), num_threads=num_threads)
        super().__init__(name, actor)
        self.member = TransferMember(name=name, actor=actor, num_workers=config.tensor_parallel_size)

    @property
    def load(self) -> float:
        """Predicted tokens still to be sampled."""
        return sum(sum(samples.values()) for samples in self.pending)

    async def ready(self) -> None:
        """Return once its engine has loaded the model, even if the actor must be restarted first.

        Raises:
            DeadlineExceeded, ActorDied: it didn't start, or there are no GPUs for it.
            UserError: its engine can't run the model.
        """
        if self._gpus is not None:
            await self._gpus.ready(timeout_s=self._deadlines.start_s)
        await self._answer(
            self.handle.policy_version.options(max_task_retries=-1).remote(),
            what=f"starting {self.name}",
            timeout_s=self._deadlines.start_s,
            setting="deadlines.start_s",
        )

    async def reset(self) -> None:
        """See `GeneratorActor.reset`."""
        await self._answer(self.handle.reset.remote(), what=f"resetting {self.name}")
        self.version = -1

    async def sleep(self) -> None:
        """See `GeneratorActor.sleep`."""
        await self._answer(self.handle.sleep.remote(), what=f"putting {self.name} to sleep")

    def nodes(self) -> tuple[str, ...]:
        """Ray's node id of each of its GPUs; call it after `ready`."""
        return () if self._gpus is None else self._gpus.nodes()

    async def ask(self, question: Any) -> Any:
        """See `GeneratorActor.ask`."""
        return await self._answer(self.handle.ask.remote(question), what=f"asking {self.name} about its engine")

    async def bring(self, weights: WeightsRef) -> None:
        """Return once its engine has these weights or newer ones. It loads them between two engine steps.

        Raises:
            DeadlineExceeded, ActorFailure: it didn't load them.
            SystemFailure: it reports an older version.
        """
        version = await self._answer(
            self.handle.load_weights.remote(weights),
            what=f"loading weights version {weights.policy_version} into {self.name}",
            timeout_s=self._deadlines.sync_s + self._deadlines.sample_s,  # samples under way may finish first
        )
        if version < weights.policy_version:
            raise SystemFailure(
                f"{self.name} holds weights version {version} after version {weights.policy_version} was published"
            )
        self.version = version

    async def chunks(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        weights: WeightsRef | None,
        episodes: Sequence[ray.ObjectRef] = (),
    ) -> AsyncIterator[ray.ObjectRef]:
        """Refs of tuples of unscored groups, as they are finished; see `GeneratorActor.generate`.

        If the engine fails, the last ref holds the error, and resolving it raises. Ray ends such a stream silently.

        Raises:
            ActorDied: the generator died, or was killed because it finished nothing for `deadlines.sample_s`. The last
                ref may hold this error too.
        """
        stream = self.handle.generate.options(num_returns="streaming").remote(requests, sampling, weights, *episodes)
        hung = False

        def hang() -> None:
            nonlocal hung
            hung = True
            self.restart()  # ends the stream

        loop, timeout_s = asyncio.get_running_loop(), self._deadlines.sample_s
        watchdog = loop.call_later(timeout_s, hang)
        try:
            async for chunk in stream:
                watchdog.cancel()
                yield chunk
                watchdog = loop.call_later(timeout_s, hang)
            await stream.completed()
        except RayError as error:
            if not hung:
                raise failure_of(error, f"sampling by {self.name}") from None
            raise ActorDied(
                f"{self.name} finished no sample for {timeout_s:g} s and was killed; give it longer with "
                f"--set deadlines.sample_s={2 * timeout_s:g}"
            ) from None
        finally:
            watchdog.cancel()

    def close(self) -> None:
        """Kill the actor for good, and release its GPUs."""
        super().close()
        if self._gpus is not None:
            self._gpus.close()

    async def _answer(
        self, reply: Any, *, what: str, timeout_s: float | None = None, setting: str = "deadlines.sync_s"
    ) -> Any:
        return await wait_for(reply, timeout_s=timeout_s or self._deadlines.sync_s, what=what, setting=setting)
