"""The generators of a pool: starting, watching, replacing them, and getting new weights to all."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from gvm_ray.actors.generator_client import GeneratorClient
from gvm_ray.actors.gpu_turns import GPUTurns
from gvm_ray.actors.waiting import wait_for
from gvm_ray.actors.weight_sync import buckets_of
from gvm_ray.config.run import DeadlineConfig
from gvm_ray.exceptions import ActorDied, ActorFailure, DeadlineExceeded, ObjectsLost, TransferBroken
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import Delivery, LiveWeights, TransferWorld, WeightsRef


class TransferWorlds:
    """One world after the other; each has a generation of its own."""

    def __init__(self) -> None:
        self._world = TransferWorld(generation=0, members=())
        self._lives: tuple[tuple[str, int], ...] | None = None  # of its members; None = not to be used again

    def of(self, generators: Sequence[GeneratorClient]) -> TransferWorld:
        """The present world where it has just these members, each alive since; else the next."""
        lives = tuple((generator.name, generator.life) for generator in generators)
        if lives != self._lives:
            members = tuple(generator.member for generator in generators)
            self._world = TransferWorld(generation=self._world.generation + 1, members=members)
            self._lives = lives
        return self._world

    def end(self) -> None:
        """After a failure, what is left of the connections is not used again."""
        self._lives = None


_RETRY_S = 1.0  # before another look at a generator that died while it restarted


class GeneratorFleet:
    """The generators of a run.

    One that dies or hangs is restarted, and in quarantine until it has the present weights.

    The actors are asked for at once; `start` waits for them.
    """

    def __init__(
        self,
        make: Callable[[int], GeneratorClient],
        *,
        num_generators: int,
        deadlines: DeadlineConfig,
        failures: FailureLog,
        turns: GPUTurns | None = None,
    ) -> None:
        """`make` asks for the generator of a number; each number is used once. `turns` are those on GPUs that learners
        share, where they do.
        """
        # Who puts the present weights into the object store when the process that did is gone, and they with it, or
        # when they were only sent.
        self.republish: Callable[[], Awaitable[WeightsRef]] | None = None
        # Who sends the weights that aren't stored, to the generators of a world.
        self.send: Callable[[WeightsRef, TransferWorld], Awaitable[Delivery]] | None = None
        self._worlds = TransferWorlds()
        self._storing = asyncio.Lock()
        self._deadlines = deadlines
        self._failures = failures
        self._weights: WeightsRef | None = None
        self._changed = asyncio.Condition()  # which generators are available, and their versions
        self._fatal: Exception | None = None  # a restart that can't be
        self._turns = turns or GPUTurns(apart=False)
        self._starting: asyncio.Future[Any] | None = None
        self._revivals: set[asyncio.Task[None]] = set()
        self._made = map(make, itertools.count())
        self._generators = list(itertools.islice(self._made, num_generators))

    @property
    def versions(self) -> tuple[int, ...]:
        """The policy version of each available generator, -1 before the first publish."""
        return tuple(generator.version for generator in self._generators if generator.available)

    async def start(self) -> None:
        """Return when every engine has loaded the model; any number of callers may wait for it.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't start.
            UserError: its engine can't run the model.
        """
        if self._starting is None:
            self._starting = asyncio.gather(*(self._ready(generator) for generator in self._generators))
        await asyncio.shield(self._starting)

    async def _ready(self, generator: GeneratorClient) -> None:
        async with self._turns.take("generators"):
            await generator.ready()

    async def reset(self) -> None:
        """Drop all requests and forget the published weights, for another run whose versions count from 0 again.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't answer.
        """
        self._weights = None
        await asyncio.gather(*(generator.reset() for generator in self._generators if generator.available))

    async def ask(self, question: Callable[[Any], Any]) -> list[Any]:
        """What a function says of each available generator's engine; see `GeneratorActor.ask`.

        Raises:
            DeadlineExceeded, ActorFailure: a generator didn't answer.
        """
        return await asyncio.gather(*(generator.ask(question) for generator in self._generators if generator.available))

    def resize(self, num_generators: int) -> None:
        """Add generators, which get work once they have the present weights, or remove the last ones at once: what
        they had under way is sampled by the others.
        """
        if num_generators < 1:
            raise ValueError(f"a pool of {num_generators} generators samples nothing; keep at least 1")
        while len(self._generators) > num_generators:
            self._generators.pop().close()
        while len(self._generators) < num_generators:
            generator = next(self._made)
            generator.available = False
            self._generators.append(generator)
            self._revive(generator)

    # --- GPUs that learners share ------------------------------------------------------------------------------------
    async def nodes(self) -> tuple[str, ...]:
        """Ray's id of the node of each GPU; waits until the generators have started."""
        await self.start()
        return tuple(node for generator in self._generators for node in generator.nodes())

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """The GPUs are the learners' until the context ends, and the generators off them, if they are to take turns.

        It begins once nothing is being sampled or loaded; whatever is asked of a generator then waits for its end, and
        wakes it.

        Raises:
            ConfigError: an engine can't sleep.
            TooManyFailures: generators died or hung more often than the run puts up with.
        """
        async with self._turns.take("learners"):
            if self._turns.apart:
                await asyncio.gather(*(self._put_to_sleep(generator) for generator in self._generators))
            yield

    def at_work(self) -> AbstractAsyncContextManager[None]:
        """The GPUs are the generators' until the context ends, and the learners at nothing that fills them."""
        return self._turns.take("generators")

    async def _put_to_sleep(self, generator: GeneratorClient) -> None:
        life = generator.life
        try:
            await generator.sleep()
        except (ActorFailure, DeadlineExceeded) as error:  # its process, dead or killed, leaves the GPU
            if generator.available:
                await self._handle(error, generator, life=life, weights=self._weights)
            elif isinstance(error, DeadlineExceeded):
                generator.restart()  # what makes it available again goes on afterwards

    # --- weights ------------------------------------------------------------------------------------------------------
    async def publish(self, weights: WeightsRef) -> None:
        """Return when every available generator has these weights; the others get them before they get work.

        Raises:
            SystemFailure: a generator reports another version, or too many of them fail.
        """
        self._weights = weights
        if self.send is not None and isinstance(weights.location, LiveWeights):
            await self._deliver(weights, [generator for generator in self._generators if generator.available])
        await asyncio.gather(*(self._bring(generator) for generator in self._generators if generator.available))
        await self._available()

    async def _deliver(self, weights: WeightsRef, generators: list[GeneratorClient]) -> None:
        """Have the weights sent to these generators; those that failed, or may hold half of them, start anew.

        Raises:
            Exception: a failure that would come again, such as a wrong checksum.
        """
        assert self.send is not None
        lives = {generator.name: generator.life for generator in generators}
        delivery = await self.send(weights, self._worlds.of(generators))
        if not delivery.failures:
            return
        self._worlds.end()
        for generator in generators:
            life = lives[generator.name]
            if (error := delivery.failures.get(generator.name)) is not None:
                await self._handle(error, generator, life=life, weights=weights)
            elif delivery.halfway and generator.life == life and generator in self._generators:
                self._restart(generator)

    async def _stored(self) -> WeightsRef | None:
        """The present weights, in the object store also where they were only sent."""
        async with self._storing:
            weights = self._weights
            if weights is not None and self.republish is not None and not buckets_of(weights):
                stored = await self.republish()
                if self._weights is weights:
                    self._weights = stored
            return self._weights

    async def _bring(self, generator: GeneratorClient) -> None:
        life, weights = generator.life, self._weights
        assert weights is not None
        try:
            async with self._turns.take("generators"):
                await generator.bring(weights)
        except (ActorFailure, DeadlineExceeded) as error:
            await self._handle(error, generator, life=life, weights=weights)
            if generator.available:  # it was the weights that were lost
                await self._bring(generator)
            return
        async with self._changed:
            self._changed.notify_all()

    async def wait_for_version(self, policy_version: int) -> None:
        """Return when every available generator has at least this version; `publish` unblocks it.

        Raises:
            DeadlineExceeded: nothing was published for longer than an update, a checkpoint, an evaluation, a publish
                and a restart of the learners may take.
        """
        deadlines = self._deadlines
        await wait_for(
            self._until(lambda: min(self.versions, default=-2) >= policy_version),
            timeout_s=2 * deadlines.update_s + deadlines.sample_s + deadlines.sync_s + deadlines.start_s,
            what=f"waiting for policy version {policy_version} (generators hold {list(self.versions)})",
            setting="deadlines.update_s",
        )

    # --- failures -----------------------------------------------------------------------------------------------------
    async def _handle(
        self, error: Exception, generator: GeneratorClient, *, life: int, weights: WeightsRef | None
    ) -> None:
        """Prepare for doing again what a generator failed to do.

        Raises:
            TooManyFailures: this was one too many.
            Exception: the error, where it is none of a dead or hung process, and would come again.
        """
        if isinstance(error, ObjectsLost):
            self._failures.record("an object in Ray's store", error)
            if weights is not None and weights is self._weights and self.republish is not None:
                self._weights = await self.republish()
        elif isinstance(error, ActorDied | DeadlineExceeded | TransferBroken):
            if generator.life == life and generator in self._generators:  # else its death was handled, or is wanted
                self._failures.record(generator.name, error)
                self._restart(generator, kill=not isinstance(error, ActorDied))
        else:
            raise error

    def _restart(self, generator: GeneratorClient, *, kill: bool = True) -> None:
        """Quarantine; Ray itself restarts an actor that has died."""
        generator.life += 1
        generator.available = False
        if kill:
            generator.restart()
        self._revive(generator)

    def _revive(self, generator: GeneratorClient) -> None:
        task = asyncio.create_task(self._quarantine(generator))
        self._revivals.add(task)
        task.add_done_callback(self._revivals.discard)

    async def _quarantine(self, generator: GeneratorClient) -> None:
        """Until it has restarted and holds the present weights."""
        try:
            while generator in self._generators and not generator.available:
                weights = self._weights
                try:
                    weights = await self._stored()  # by the learners, who may want a turn for it
                    async with self._turns.take("generators"):
                        await generator.ready()
                        if weights is not None:
                            await generator.bring(weights)
                except (ActorDied, DeadlineExceeded) as error:
                    self._failures.record(generator.name, error)
                    if isinstance(error, DeadlineExceeded):
                        generator.restart()
                    await asyncio.sleep(_RETRY_S)
                except ObjectsLost as error:
                    await self._handle(error, generator, life=generator.life, weights=weights)
                else:
                    generator.available = weights is self._weights
        except Exception as error:
            self._fatal = error
        async with self._changed:
            self._changed.notify_all()

    async def _available(self) -> list[GeneratorClient]:
        """The generators that can be given work, at least one."""
        await wait_for(
            self._until(lambda: bool(self.versions)),
            timeout_s=self._deadlines.start_s,
            what=f"the restart of any of {len(self._generators)} generator(s), which all died or hung,",
            setting="deadlines.start_s",
        )
        return [generator for generator in self._generators if generator.available]

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._fatal is not None or condition())
        if self._fatal is not None:
            raise self._fatal

    def close(self) -> None:
        """Kill the actors."""
        for task in (*self._revivals, *([] if self._starting is None else [self._starting])):
            task.cancel()
        for generator in self._generators:
            generator.close()
