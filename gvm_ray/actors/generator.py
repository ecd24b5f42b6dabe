"""Generator actors: each serves one engine."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import ray

from gvm_ray.actors.cluster import show_group_gpus
from gvm_ray.actors.weight_sync import fetch
from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines import EngineKind, create_engine
from gvm_ray.engines.server import EngineServer
from gvm_ray.engines.turns import episodes_by_sample, next_turns
from gvm_ray.engines.weight_receiver import WeightReceiver
from gvm_ray.pretrained import load_tokenizer
from gvm_ray.protocols import Engine
from gvm_ray.resources import thread_variables
from gvm_ray.types import (
    ModelSpec,
    OpenEpisodes,
    RolloutGroup,
    SampleRequest,
    SamplingParameters,
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
