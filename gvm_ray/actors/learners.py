"""The learner group: FSDP2 ranks in a Ray Train worker group, driven by commands. No tokens pass through the driver."""

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from gvm_ray.actors.commands import Command, LearnerCommands, Reset, SendWeights, Start, Stop
from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_fleet import GeneratorFleet
from gvm_ray.actors.mailbox import Mailbox, RankIdentity
from gvm_ray.actors.rank import RankSetup, check_ranks_fit, learner_setup, rank_trainer
from gvm_ray.actors.waiting import wait_for
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import ActorDied, ActorFailure, SystemFailure
from gvm_ray.types import WeightTransfer

if TYPE_CHECKING:  # it imports torch, which the allocator's process does without
    from gvm_ray.learner.losses import TokenLoss


class _LearnerShifts:
    """The ranks' shifts on GPUs shared with these generators; without generators there is nothing to wait for."""

    def __init__(self, generators: GeneratorFleet | None) -> None:
        self._generators = generators

    async def nodes(self) -> Sequence[str]:
        """Ray's node id of each shared GPU; waits until the generators have started."""
        return () if self._generators is None else await self._generators.nodes()

    def shift(self, command: Command) -> contextlib.AbstractAsyncContextManager[None]:
        """The shift that a command needs: generators away, generators at work to receive weights, or none."""
        match command.generators:
            case "away":
                return self.alone()
            case "at_work" if self._generators is not None:
                return self._generators.at_work()
            case _:
                return contextlib.nullcontext()

    def alone(self) -> contextlib.AbstractAsyncContextManager[None]:
        """The learners' shift: the generators are away."""
        return contextlib.nullcontext() if self._generators is None else self._generators.away()


_STOP_S = 60.0  # wait for the ranks to end by themselves
_CAUSE_S = 2.0  # wait for a rank's own error to reach the mailbox, once Ray Train reports that the ranks ended


class LearnerGroup(LearnerCommands):
    """Learners over a Ray Train `TorchTrainer`, whose blocking `fit()` runs in a thread.

    Args:
        config: the run.
        base_path: Hugging Face folder or hub id of the starting policy.
        token_loss: the algorithm's loss.
        run_dir: the run's folder; Ray Train keeps its own files below it.
        context: the namespace of the run's actors, and the clock for updates, gradient norms and prompt states.
        transfer: how updates publish the new weights.
        adapters: whether they publish the adapters alone; then the transfer is "object_store".
        generators: share the ranks' GPUs. They start first, so that each rank can be placed beside one. If the two
            sides alternate, the generators are away while a command fills the GPUs.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        base_path: str,
        token_loss: "TokenLoss",
        run_dir: str,
        context: RunContext,
        transfer: WeightTransfer = "object_store",
        adapters: bool = False,
        generators: GeneratorFleet | None = None,
    ) -> None:
        self._setup = learner_setup(
            config, base_path=base_path, token_loss=token_loss, transfer=transfer, adapters=adapters
        )
        self._context = context
        self._run_dir = run_dir
        self._shifts = _LearnerShifts(generators)
        self._mailbox: Any = None
        self._ended: asyncio.Future[BaseException | None] | None = None  # what fit() ended with
        self._ranks: dict[int, RankIdentity] = {}

    async def start(self) -> None:
        """Return once every rank holds its shard of the policy.

        Raises:
            ModelError: the model or its tokenizer can't be loaded.
            DeadlineExceeded: the ranks didn't start in time; often the cluster lacks free CPUs or GPUs.
            ActorFailure: a rank died.
        """
        nodes = await self._shifts.nodes()
        name = f"learner-mailbox-{uuid.uuid4().hex[:8]}"  # a fixed name might still be held by a group being stopped
        self._mailbox = Mailbox.options(name=name, namespace=self._context.namespace).remote(
            self.config.learner.num_workers
        )
        self._ended = asyncio.get_running_loop().create_future()
        async with self._shifts.alone():
            threading.Thread(
                target=self._fit, args=(self._ended.get_loop(), nodes), daemon=True, name="learners"
            ).start()
            await self.do(Start())
        self._ranks = await self._mailbox.ranks.remote()

    async def stop(self) -> None:
        """End the ranks; does nothing if there are none or they have failed."""
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is None or self._ended is None:
            return
        if not self._ended.done():
            answer = asyncio.ensure_future(_result(mailbox.post.remote(Stop())))
            await asyncio.wait({self._ended}, timeout=_STOP_S)
            if not answer.cancel():
                answer.exception()  # retrieved only to silence asyncio: an earlier command has reported the failure
        if not self._ended.done():  # the ranks hang
            self._kill_ranks()
        ray.kill(mailbox)  # ends a rank that still waits for a command

    async def kill(self) -> None:
        """End the ranks at once, even if they hang in a collective call."""
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is None or self._ended is None:
            return
        with contextlib.suppress(SystemFailure):  # the mailbox may have died too
            self._ranks |= await wait_for(
                _result(mailbox.ranks.remote()), timeout_s=_CAUSE_S, what="the mailbox", setting="deadlines.start_s"
            )
        self._kill_ranks()
        ray.kill(mailbox)
        await asyncio.wait({self._ended}, timeout=_STOP_S)

    def _kill_ranks(self) -> None:
        for rank in self._ranks.values():
            ray.kill(rank.actor)

    async def reset(self, config: RunConfig, *, base_path: str, token_loss: "TokenLoss") -> None:
        """Begin another run with the same ranks, in the state that newly started ranks would have.

        Ray Train keeps its files in the first run's folder, and the first run's deadline for collective calls.

        Raises:
            ConfigError: the run needs different ranks.
            ModelError: the model or its tokenizer can't be loaded; this ends the ranks.
        """
        check_ranks_fit(config.learner, self.config.learner)
        before = self._setup
        setup = learner_setup(
            config,
            base_path=base_path,
            token_loss=token_loss,
            transfer=before.transfer,
            adapters=before.adapters,
        )
        await self.do(Reset(setup=ray.put(setup)))
        self._setup = setup

    @property
    def config(self) -> RunConfig:
        """The run's settings."""
        return self._setup.config

    def _fit(self, loop: asyncio.AbstractEventLoop, nodes: Sequence[str]) -> None:
        outcome: BaseException | None = None
        try:
            setup = RankSetup(learner=self._setup, mailbox=self._mailbox, num_threads=self._context.threads.rank)
            rank_trainer(setup, run_dir=self._run_dir, nodes=nodes).fit()
        except BaseException as error:
            outcome = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._end, outcome)

    def _end(self, outcome: BaseException | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(outcome)

    async def do(self, command: Command) -> Any:
        """See `LearnerCommands.do`. The ranks do one command at a time."""
        deadlines = self.config.deadlines
        timeout_s = deadlines.transfer_s if isinstance(command, SendWeights) else getattr(deadlines, command.deadline)
        with self._context.clock.phase(command.phase) if command.phase else contextlib.nullcontext():
            async with self._shifts.shift(command):
                return await wait_for(
                    self._post(command),
                    timeout_s=timeout_s,
                    what=f"the learners' {command.what}",
                    setting=f"deadlines.{command.deadline}",
                )

    async def _post(self, command: Command) -> Any:
        """The ranks' answer to a command.

        Raises:
            ActorFailure: the ranks don't run, or ended before they answered.
        """
        if self._mailbox is None or self._ended is None:
            raise ActorFailure("the learners are not running; call start() first")
        answer = asyncio.ensure_future(_result(self._mailbox.post.remote(command)))
        await asyncio.wait({answer, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            await asyncio.wait({answer}, timeout=_CAUSE_S)
        if answer.done():
            return answer.result()
        answer.cancel()
        outcome = self._ended.result()
        if outcome is None:
            raise ActorFailure(f"the learners ended before {command.what!r} was answered: they were stopped")
        ranks = ", ".join(f"rank {rank} was {identity}" for rank, identity in sorted(self._ranks.items()))
        raise ActorDied(
            f"the learners ended before {command.what!r} was answered: {type(outcome).__name__}: {outcome}\n({ranks})"
        ) from outcome


async def _result(ref: Any) -> Any:
    return await ref
