"""Generator actors: each holds one engine; the pool shares requests out and brings new policies to every engine."""

import asyncio
import functools
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from gvm_ray.actors.waiting import wait_for
from gvm_ray.actors.weight_sync import fetch
from gvm_ray.config.run import DeadlineConfig, EngineConfig
from gvm_ray.engines import EngineKind, create_engine
from gvm_ray.exceptions import SystemFailure
from gvm_ray.protocols import Engine
from gvm_ray.types import RolloutGroup, SampleRequest, SamplingParameters, WeightsRef

Share = list[tuple[int, SampleRequest]]  # of one generator: (position among all requests, request)


@ray.remote
class GeneratorActor:
    """One engine, one call at a time."""

    def __init__(
        self,
        name: str,
        *,
        kind: EngineKind,
        model_path: str,
        config: EngineConfig,
        max_model_len: int,
        revision: str | None,
        trust_remote_code: bool,
    ) -> None:
        self._name = name
        self._created: Engine | None = None
        self._create_engine = functools.partial(
            create_engine,
            kind,
            model_path,
            config=config,
            max_model_len=max_model_len,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )

    def __repr__(self) -> str:
        return self._name

    def policy_version(self) -> int:
        """Version of the loaded weights, -1 before the first; answers once the engine has started.

        Raises:
            UserError: the engine can't run the model.
        """
        return self._engine.policy_version

    def generate(
        self, requests: Sequence[SampleRequest], sampling: SamplingParameters, weights: WeightsRef | None
    ) -> tuple[RolloutGroup, ...]:
        """One unscored group for each request, in order, sampled under `weights` or newer ones.

        A restarted actor has the model's first weights, so the last published ones come with every call.
        """
        if weights is not None and self._engine.policy_version < weights.policy_version:
            self.load_weights(weights)
        completions = self._engine.generate(requests, sampling)
        return tuple(
            RolloutGroup(prompt=request.prompt, completions=group)
            for request, group in zip(requests, completions, strict=True)
        )

    def load_weights(self, weights: WeightsRef) -> int:
        """The version of the engine after it has loaded these weights."""
        self._engine.load_weights(weights.policy_version, fetch(weights))
        return self._engine.policy_version

    @property
    def _engine(self) -> Engine:
        """Made by the first call and not in __init__, whose errors reach the caller as the death of the actor only."""
        if self._created is None:
            self._created = self._create_engine()
        return self._created


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
        revision: str | None = None,
        trust_remote_code: bool = False,
        deadlines: DeadlineConfig,
        name: str = "generator",
    ) -> None:
        self._deadlines = deadlines
        self._weights: WeightsRef | None = None
        self._versions = [-1] * config.num_generators
        self._versions_changed = asyncio.Condition()
        num_threads = max(1, int(config.cpus_per_generator))  # else every engine takes all cores
        self._actors: list[Any] = [
            GeneratorActor.options(
                name=f"{name}-{index}",
                num_cpus=config.cpus_per_generator,
                num_gpus=config.gpus_per_generator,
                max_restarts=3,
                max_task_retries=3,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(num_threads)}},
            ).remote(
                f"{name}-{index}",
                kind=kind,
                model_path=model_path,
                config=config,
                max_model_len=max_model_len,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
            for index in range(config.num_generators)
        ]

    @property
    def versions(self) -> tuple[int, ...]:
        """The policy version of each generator, -1 before the first publish."""
        return tuple(self._versions)

    async def start(self) -> None:
        """Return when every engine has loaded the model.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't start.
            UserError: its engine can't run the model.
        """
        await wait_for(
            asyncio.gather(*(_version(actor.policy_version.remote()) for actor in self._actors)),
            timeout_s=self._deadlines.start_s,
            what=f"starting {len(self._actors)} generator(s)",
            setting="deadlines.start_s",
        )

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParameters
    ) -> list[tuple[ray.ObjectRef, list[int]]]:
        """Start sampling: refs to tuples of groups, each with the positions of its groups among `requests`.

        A request larger than an even share is split over generators; its position then stands in several lists.
        """
        return [
            (
                actor.generate.remote([request for _, request in share], sampling, self._weights),
                [position for position, _ in share],
            )
            for actor, share in zip(self._actors, assign(requests, num_generators=len(self._actors)), strict=True)
            if share
        ]

    async def publish(self, weights: WeightsRef) -> None:
        """Return when every generator has these weights.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't load them.
            SystemFailure: a generator reports another version.
        """
        versions = await wait_for(
            asyncio.gather(*(_version(actor.load_weights.remote(weights)) for actor in self._actors)),
            timeout_s=self._deadlines.sync_s + self._deadlines.sample_s,  # a round under way comes first
            what=f"loading weights version {weights.policy_version} into {len(self._actors)} generator(s)",
            setting="deadlines.sync_s",
        )
        if any(version != weights.policy_version for version in versions):
            raise SystemFailure(f"weights version {weights.policy_version} were published; generators hold {versions}")
        self._weights = weights
        async with self._versions_changed:
            self._versions = list(versions)
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
            what=f"waiting for policy version {policy_version} (generators hold {self._versions})",
            setting="deadlines.update_s",
        )

    def close(self) -> None:
        """Kill the actors."""
        for actor in self._actors:
            ray.kill(actor)

    async def _at_least(self, policy_version: int) -> None:
        async with self._versions_changed:
            await self._versions_changed.wait_for(lambda: min(self._versions) >= policy_version)


def assign(requests: Sequence[SampleRequest], *, num_generators: int) -> list[Share]:
    """A share of the requests for each generator, balanced by samples, the same for the same requests.

    Longest processing time first (R. L. Graham, 1969): the next largest request goes to the least loaded generator. A
    request larger than an even share is split.
    """
    total = sum(len(request.seeds) for request in requests)
    even = max(1, -(-total // num_generators))
    pieces = [(position, piece) for position, request in enumerate(requests) for piece in _split(request, size=even)]
    shares: list[Share] = [[] for _ in range(num_generators)]
    loads = [(0, index) for index in range(num_generators)]  # a heap; ties go to the lower index
    for position, piece in sorted(pieces, key=lambda item: -len(item[1].seeds)):
        load, index = heapq.heappop(loads)
        shares[index].append((position, piece))
        heapq.heappush(loads, (load + len(piece.seeds), index))
    return [sorted(share, key=lambda item: item[0]) for share in shares]


def _split(request: SampleRequest, *, size: int) -> Iterator[SampleRequest]:
    if len(request.seeds) <= size:
        yield request
        return
    for start in range(0, len(request.seeds), size):
        piece = slice(start, start + size)
        yield replace(request, sample_indices=request.sample_indices[piece], seeds=request.seeds[piece])


async def _version(ref: ray.ObjectRef) -> int:
    return await ref
