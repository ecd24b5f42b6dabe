"""The generators of a pool: starting, watching and restarting them, and delivering new weights to all."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator import GeneratorClient
from gvm_ray.actors.gpu_shifts import GPUShifts
from gvm_ray.actors.waiting import wait_for
from gvm_ray.actors.watch import GENERATORS, ActorWatch, Republish
from gvm_ray.actors.weight_sync import buckets_of
from gvm_ray.exceptions import ActorFailure, DeadlineExceeded, ObjectsLost
from gvm_ray.types import Delivery, LiveWeights, TransferWorld, WeightsRef


class TransferWorlds:
    """The transfer worlds of a run, one after the other, with increasing generation numbers."""

    def __init__(self) -> None:
        self._world = TransferWorld(generation=0, members=())
        self._lives: tuple[tuple[str, int], ...] | None = None  # name and life of its members; None = world is ended

    def of(self, generators: Sequence[GeneratorClient]) -> TransferWorld:
        """The world of these generators: the current one if it has exactly these members and none was restarted."""
        lives = tuple((generator.name, generator.life) for generator in generators)
        if lives != self._lives:
            members = tuple(generator.member for generator in generators)
            self._world = TransferWorld(generation=self._world.generation + 1, members=members)
            self._lives = lives
        return self._world

    def end(self) -> None:
        """Give up the current world after a failure: its connections may be broken."""
        self._lives = None


class WeightSource(Protocol):
    """The learners, as seen by the generators: the source of their weights."""

    async def republish(self) -> WeightsRef:
        """Store the current weights again: their publisher died, or they were only sent over NCCL or IPC."""
        ...

    async def send(self, weights: WeightsRef, world: TransferWorld) -> Delivery:
        """Send weights that aren't stored to the generators of a world."""
        ...


class GeneratorFleet:
    """The generators of a run.

    A generator that dies or hangs is restarted, and gets no work until it has the current weights. The actors are
    requested on construction; `start` waits for them.

    Args:
        make: requests the generator with a given number.
        num_generators: how many.
        context: deadlines and the failure log.
        source: restores lost weights and sends live ones; None if there are no learners.
        live: whether the source sends weights to these generators.
        shifts: for GPUs that are shared with learners.
    """

    def __init__(
        self,
        make: Callable[[int], GeneratorClient],
        *,
        num_generators: int,
        context: RunContext,
        source: WeightSource | None = None,
        live: bool = False,
        shifts: GPUShifts | None = None,
    ) -> None:
        self._source = source
        self._live = live
        self._worlds = TransferWorlds()
        self._storing = asyncio.Lock()
        self._context = context
        self._weights: WeightsRef | None = None
        self._shifts = shifts or GPUShifts(alternate=False)
        self._starting: asyncio.Future[Any] | None = None
        self._generators = tuple(make(number) for number in range(num_generators))
        self._watch: ActorWatch[GeneratorClient] = ActorWatch(
            self._generators, what="generator(s)", policy=GENERATORS, revive=self._revive, context=context
        )

    @property
    def versions(self) -> tuple[int, ...]:
        """The policy version of each available generator, -1 before the first publish."""
        return tuple(generator.version for generator in self._watch.available)

    async def start(self) -> None:
        """Return once every engine has loaded the model. Several callers may wait.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't start.
            UserError: its engine can't run the model.
        """
        if self._starting is None:
            self._starting = asyncio.gather(*(self._ready(generator) for generator in self._generators))
        await asyncio.shield(self._starting)

    async def _ready(self, generator: GeneratorClient) -> None:
        async with self._shifts.shift("generators"):
            await generator.ready()

    async def reset(self) -> None:
        """Drop all requests and forget the published weights: the next run counts versions from 0 again.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't answer.
        """
        self._weights = None
        await asyncio.gather(*(generator.reset() for generator in self._watch.available))

    async def ask(self, question: Callable[[Any], Any]) -> list[Any]:
        """Call a function on the engine of each available generator; see `GeneratorActor.ask`.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't answer.
        """
        return await asyncio.gather(*(generator.ask(question) for generator in self._watch.available))

    # --- GPUs that learners share ------------------------------------------------------------------------------------
    async def nodes(self) -> tuple[str, ...]:
        """Ray's node id of each GPU; waits until the generators have started."""
        await self.start()
        return tuple(node for generator in self._generators for node in generator.nodes())

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """The learners' shift: the generators sleep if the two sides alternate.

        The shift begins once nothing is being sampled or loaded. Calls to a generator then wait for the shift to end,
        and wake the engine.

        Raises:
            ConfigError: an engine can't sleep.
            TooManyFailures: generators died or hung more often than `faults` allows.
        """
        async with self._shifts.shift("learners"):
            if self._shifts.alternate:
                await asyncio.gather(*(self._put_to_sleep(generator) for generator in self._generators))
            yield

    def at_work(self) -> AbstractAsyncContextManager[None]:
        """The generators' shift: the learners do nothing that fills the GPUs."""
        return self._shifts.shift("generators")

    async def _put_to_sleep(self, generator: GeneratorClient) -> None:
        life = generator.life
        try:
            await generator.sleep()
        except (ActorFailure, DeadlineExceeded) as error:  # a dead or killed process frees the GPU
            if generator.available:
                await self._failed(error, generator, life=life, weights=self._weights)
            elif isinstance(error, DeadlineExceeded):
                generator.restart()  # it is being revived already, and that continues

    # --- weights ------------------------------------------------------------------------------------------------------
    async def publish(self, weights: WeightsRef) -> None:
        """Return once every available generator has these weights. The others get them before they get work.

        Raises:
            SystemFailure: a generator reports another version, or too many of them fail.
        """
        self._weights = weights
        if self._live and isinstance(weights.location, LiveWeights):
            await self._deliver(weights, self._watch.available)
        await asyncio.gather(*(self._bring(generator) for generator in self._watch.available))
        await self._watch.wait_available()

    async def _deliver(self, weights: WeightsRef, generators: list[GeneratorClient]) -> None:
        """Have the weights sent to these generators. Restart those that failed or may hold half of the weights.

        Raises:
            Exception: a failure that would recur, such as a wrong checksum.
        """
        assert self._source is not None, "a live transfer needs a source"
        lives = {generator.name: generator.life for generator in generators}
        delivery = await self._source.send(weights, self._worlds.of(generators))
        if not delivery.failures:
            return
        self._worlds.end()
        for generator in generators:
            life = lives[generator.name]
            if (error := delivery.failures.get(generator.name)) is not None:
                await self._failed(error, generator, life=life, weights=weights)
            elif delivery.halfway and generator.life == life:
                self._watch.restart(generator)

    async def _stored(self) -> WeightsRef | None:
        """The current weights. If they were only sent so far, they are put into the object store first."""
        async with self._storing:
            weights = self._weights
            if weights is not None and self._source is not None and not buckets_of(weights):
                stored = await self._source.republish()
                if self._weights is weights:
                    self._weights = stored
            return self._weights

    async def _bring(self, generator: GeneratorClient) -> None:
        life, weights = generator.life, self._weights
        assert weights is not None
        try:
            async with self._shifts.shift("generators"):
                await generator.bring(weights)
        except (ActorFailure, DeadlineExceeded) as error:
            await self._failed(error, generator, life=life, weights=weights)
            if generator.available:  # only the weights were lost
                await self._bring(generator)
            return
        await self._watch.notify()

    async def wait_for_version(self, policy_version: int) -> None:
        """Return once every available generator has at least this version; `publish` unblocks it.

        Raises:
            DeadlineExceeded: nothing was published for longer than an update, a checkpoint, an evaluation, a publish
                and a restart of the learners may take.
        """
        deadlines = self._context.deadlines
        await wait_for(
            self._watch.until(lambda: min(self.versions, default=-2) >= policy_version),
            timeout_s=2 * deadlines.update_s + deadlines.sample_s + deadlines.sync_s + deadlines.start_s,
            what=f"waiting for policy version {policy_version} (generators hold {list(self.versions)})",
            setting="deadlines.update_s",
        )

    # --- failures -----------------------------------------------------------------------------------------------------
    async def _failed(
        self, error: Exception, generator: GeneratorClient, *, life: int, weights: WeightsRef | None
    ) -> None:
        """Recover from an error of a generator, so that the failed work can be repeated.

        Args:
            error: raised by the work.
            generator: that was given the work.
            life: of the generator when the work began.
            weights: published when the work began.

        Raises:
            TooManyFailures: this was one too many.
            Exception: the error itself, if it would recur.
        """
        if isinstance(self._watch.failed(generator, error, life=life), Republish):
            await self._republish(error, weights)

    async def _republish(self, error: Exception, weights: WeightsRef | None) -> None:
        """Have the current weights stored again, if they are the ones that were lost."""
        self._context.failures.record("an object in Ray's store", error)
        if weights is not None and weights is self._weights and self._source is not None:
            self._weights = await self._source.republish()

    async def _revive(self, generator: GeneratorClient) -> bool:
        """Bring a restarted generator the current weights; False if they changed or were lost meanwhile."""
        weights = await self._stored()  # outside the shift: the learners may need one of their own to store them
        try:
            async with self._shifts.shift("generators"):
                await generator.ready()
                if weights is not None:
                    await generator.bring(weights)
        except ObjectsLost as error:
            await self._republish(error, weights)
            return False
        return weights is self._weights

    def close(self) -> None:
        """Kill the actors."""
        if self._starting is not None:
            self._starting.cancel()
        self._watch.close()
