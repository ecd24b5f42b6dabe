"""The driver's side of one generator: its actor, which Ray restarts when it dies, and its version and load."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from gvm_ray.actors.cluster import GPUGroup
from gvm_ray.actors.generator import GeneratorActor
from gvm_ray.actors.waiting import failure_of, wait_for
from gvm_ray.actors.watch import WatchedActor
from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.run import DeadlineConfig
from gvm_ray.engines import EngineKind
from gvm_ray.exceptions import ActorDied, SystemFailure
from gvm_ray.resources import logical_cpus
from gvm_ray.types import ModelSpec, SampleKey, SampleRequest, SamplingParameters, TransferMember, WeightsRef


class GeneratorClient(WatchedActor):
    """The driver's handle on one generator. The actor is requested on construction; `ready` waits for it."""

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
