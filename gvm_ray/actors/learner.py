"""The learner group: FSDP2 ranks in a Ray Train worker group, driven by commands; the driver never sees a token."""

import asyncio
import contextlib
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from gvm_ray.actors.generator_fleet import GeneratorFleet
from gvm_ray.actors.learner_rank import PromptStates, RankSetup, SendWeights, SupervisedUpdates
from gvm_ray.actors.learner_trainer import absolute, check_ranks_fit, learner_setup, rank_trainer
from gvm_ray.actors.learner_turns import LearnerTurns
from gvm_ray.actors.mailbox import Command, Mailbox, RankIdentity
from gvm_ray.actors.waiting import wait_for
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import ActorDied, ActorFailure, SystemFailure
from gvm_ray.functional.demonstration_batches import demonstration_batches
from gvm_ray.learner.token_loss import TokenLoss
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import (
    Delivery,
    Demonstration,
    FloatArray,
    GroupOutcome,
    Metrics,
    Pooling,
    Prompt,
    TrainBatch,
    TransferWorld,
    UpdateResult,
    WeightsRef,
    WeightTransfer,
)

_STOP_S = 60.0  # for the ranks to end by themselves
_CAUSE_S = 2.0  # for the mailbox to tell a rank's own error, after Ray Train has told that the ranks ended
# Of a command of the warm start: few enough to report progress by time, enough to hide the round trip.
_UPDATES_PER_COMMAND, _COMMAND_S = 25, 5.0


class LearnerGroup:
    """Protocol `Learners` over a Ray Train `TorchTrainer`, whose blocking `fit()` runs in a thread.

    Args:
        config: the run.
        base_path: Hugging Face folder or hub id of the starting policy.
        token_loss: the algorithm's loss.
        run_dir: the run's folder; Ray Train keeps its own files below it.
        namespace: Ray namespace of the run's actors.
        clock: counts the time of updates, gradient norms and prompt states.
        generators: those that share the ranks' GPUs, where any do. They start first, so that each rank finds its place
            beside one; and where they take turns with the ranks, they are away while a command fills the GPUs.
        transfer: how updates publish the new weights.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        base_path: str,
        token_loss: TokenLoss,
        run_dir: str,
        namespace: str,
        clock: PhaseClock | None = None,
        transfer: WeightTransfer = "object_store",
        generators: GeneratorFleet | None = None,
    ) -> None:
        self._setup = learner_setup(config, base_path=base_path, token_loss=token_loss, transfer=transfer)
        self._clock = clock or PhaseClock()
        self._run_dir = run_dir
        self._namespace = namespace
        self._turns = LearnerTurns(generators)
        self._mailbox: Any = None
        self._ended: asyncio.Future[BaseException | None] | None = None  # what fit() ended with
        self._ranks: dict[int, RankIdentity] = {}

    async def start(self) -> None:
        """Return when every rank holds its shard of the policy.

        Raises:
            ModelError: the model or its tokenizer can't be loaded.
            DeadlineExceeded: the ranks did not start in time; often the cluster lacks free CPUs or GPUs.
            ActorFailure: a rank died.
        """
        nodes = await self._turns.nodes()
        name = f"learner-mailbox-{uuid.uuid4().hex[:8]}"  # a group that is being stopped may still hold a plain name
        self._mailbox = Mailbox.options(name=name, namespace=self._namespace).remote(self._config.learner.num_workers)
        self._ended = asyncio.get_running_loop().create_future()
        async with self._turns.alone():
            threading.Thread(
                target=self._fit, args=(self._ended.get_loop(), nodes), daemon=True, name="learners"
            ).start()
            await self._command("start", timeout_s=self._config.deadlines.start_s, setting="deadlines.start_s")
        self._ranks = await self._mailbox.ranks.remote()

    async def stop(self) -> None:
        """End the ranks; does nothing where there are none, or where they failed."""
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is None or self._ended is None:
            return
        if not self._ended.done():
            answer = asyncio.ensure_future(_result(mailbox.post.remote(Command(name="stop"))))
            await asyncio.wait({self._ended}, timeout=_STOP_S)
            if not answer.cancel():
                answer.exception()  # seen: the ranks had failed, and a command has said so
        if not self._ended.done():  # they hang
            self._kill_ranks()
        ray.kill(mailbox)  # a rank that still waits for a command ends with it

    async def kill(self) -> None:
        """End the ranks at once, also those that hang in a collective call."""
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is None or self._ended is None:
            return
        with contextlib.suppress(SystemFailure):  # it died itself
            self._ranks |= await wait_for(
                _result(mailbox.ranks.remote()), timeout_s=_CAUSE_S, what="the mailbox", setting="deadlines.start_s"
            )
        self._kill_ranks()
        ray.kill(mailbox)
        await asyncio.wait({self._ended}, timeout=_STOP_S)

    def _kill_ranks(self) -> None:
        for rank in self._ranks.values():
            ray.kill(rank.actor)

    async def reset(self, config: RunConfig, *, base_path: str, token_loss: TokenLoss) -> None:
        """Begin another run with the ranks that there are: they hold what ranks that were started for it would hold.

        Ray Train's own files stay in the folder of the first run, and its deadline for collective calls that of the
        first.

        Raises:
            ConfigError: the run asks for other ranks than these.
            ModelError: the model or its tokenizer can't be loaded; this ends the ranks.
        """
        check_ranks_fit(config.learner, self._config.learner)
        setup = learner_setup(config, base_path=base_path, token_loss=token_loss, transfer=self._setup.transfer)
        deadline = config.deadlines.start_s
        await self._command("reset", ray.put(setup), timeout_s=deadline, setting="deadlines.start_s")
        self._setup = setup

    @property
    def _config(self) -> RunConfig:
        return self._setup.config

    def _fit(self, loop: asyncio.AbstractEventLoop, nodes: Sequence[str]) -> None:
        outcome: BaseException | None = None
        try:
            setup = RankSetup(learner=self._setup, mailbox=self._mailbox)
            rank_trainer(setup, run_dir=self._run_dir, nodes=nodes).fit()
        except BaseException as error:
            outcome = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._end, outcome)

    def _end(self, outcome: BaseException | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(outcome)

    # --- commands -----------------------------------------------------------------------------------------------------
    async def update(self, batch: TrainBatch) -> UpdateResult:
        """Train on the batch and publish the new policy under version batch.step + 1."""
        with self._clock.phase("update"):
            weights, metrics, gradient_norms = await self._command("update", batch)
        # A step without a sample to train on has no log-probs to compare.
        metrics = {"logprob_difference/mean": math.nan, **metrics}
        return UpdateResult(weights=weights, metrics=metrics, gradient_norms=gradient_norms)

    async def gradient_norms(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """The outcomes with the gradient norms of their accepted samples; NaN for the other samples."""
        threshold = self._config.rewards.accept_threshold
        chosen = [i for i, outcome in enumerate(outcomes) if (outcome.rewards >= threshold).any()]
        norms = {i: np.full(len(outcome.rewards), np.nan) for i, outcome in enumerate(outcomes)}
        if chosen:
            with self._clock.phase("gradient_norms"):
                answer = await self._command("gradient_norms", [outcomes[i].ref for i in chosen])
            norms |= dict(zip(chosen, answer, strict=True))
        return [outcome.with_gradient_norms(norms[i]) for i, outcome in enumerate(outcomes)]

    async def prompt_states(self, prompts: Sequence[Prompt], *, pooling: Pooling) -> FloatArray:
        """[P, F] float32 pooled final hidden states of the prompts' tokens; see `Learner.prompt_states`."""
        token_ids = ray.put(tuple(prompt.token_ids for prompt in prompts))
        with self._clock.phase("prompt_states"):
            return await self._command("prompt_states", PromptStates(token_ids=token_ids, pooling=pooling))

    async def supervised_update(self, demonstrations: Sequence[Demonstration]) -> Metrics:
        """One warm-start update."""
        updates = SupervisedUpdates(
            demonstrations=ray.put(tuple(demonstrations)), batches=(np.arange(len(demonstrations)),)
        )
        return await self._command("supervised_updates", updates)

    async def warm_start(
        self,
        demonstrations: Sequence[Demonstration],
        *,
        on_progress: Callable[[int, Metrics], None] | None = None,
    ) -> Metrics:
        """All updates of [warm_start], each on the next `batch_size` demonstrations of an epoch's random order.

        Reinforcement learning then starts with a fresh optimizer, and with these weights as the reference.

        Args:
            demonstrations: at least one.
            on_progress: called now and then with the number of updates made and the metrics of the last.

        Returns:
            The metrics of the last update.
        """
        settings = self._config.warm_start
        assert settings is not None, "a warm start needs [warm_start]"
        batches = demonstration_batches(
            len(demonstrations),
            batch_size=settings.batch_size,
            num_updates=settings.num_updates,
            seed=settings.seed,
        )
        shared, metrics = ray.put(tuple(demonstrations)), Metrics()
        done, size = 0, 1
        while part := tuple(batches[done : done + size]):
            began = time.monotonic()
            metrics = await self._command("supervised_updates", SupervisedUpdates(demonstrations=shared, batches=part))
            done += len(part)
            size = updates_per_command(len(part), seconds=time.monotonic() - began)
            if on_progress is not None:
                on_progress(done, metrics)
        await self.finish_warm_start()
        return metrics

    async def finish_warm_start(self) -> None:
        """A fresh optimizer, and the present weights as the reference."""
        await self._command("finish_warm_start")

    async def weights(self, policy_version: int) -> WeightsRef:
        """Publish the present weights under this version."""
        return await self._command("weights", policy_version)

    async def stored_weights(self, policy_version: int) -> WeightsRef:
        """The present weights in the object store, however else they travel; a later version where there is one."""
        return await self._command("stored_weights", policy_version)

    async def send(self, policy_version: int, world: TransferWorld) -> Delivery:
        """Send the weights of this version to the generators; what these failed with is in the answer."""
        payload, timeout_s = SendWeights(policy_version=policy_version, world=world), self._config.deadlines.transfer_s
        return await self._command("send", payload, timeout_s=timeout_s, setting="deadlines.sync_s")

    async def save(self, folder: str) -> None:
        """Write model and optimizer shards under `folder`."""
        await self._command("save", absolute(folder))

    def checkpointed(self, folder: str) -> None:
        """Nothing to do: these ranks end with their failure. See `RecoveringLearners`."""

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote.

        Raises:
            CheckpointError: it is missing, damaged or of another model.
        """
        await self._command("load", absolute(folder))

    async def export(self, folder: str) -> None:
        """Write Hugging Face safetensors and the tokenizer into `folder`."""
        await self._command("export", absolute(folder))

    async def _command(
        self, name: str, payload: Any = None, *, timeout_s: float | None = None, setting: str = "deadlines.update_s"
    ) -> Any:
        async with self._turns.turn(name):
            return await wait_for(
                self._post(Command(name=name, payload=payload)),
                timeout_s=timeout_s or self._config.deadlines.update_s,
                what=f"the learners' {name.replace('_', ' ')}",
                setting=setting,
            )

    async def _post(self, command: Command) -> Any:
        """The ranks' answer; if they end first, the reason why."""
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
            raise ActorFailure(f"the learners ended before {command.name!r} was answered: they were stopped")
        ranks = ", ".join(f"rank {rank} was {identity}" for rank, identity in sorted(self._ranks.items()))
        raise ActorDied(
            f"the learners ended before {command.name!r} was answered: {type(outcome).__name__}: {outcome}\n({ranks})"
        ) from outcome


def updates_per_command(number: int, *, seconds: float) -> int:
    """How many updates the next command of the warm start gets, after one of so many that took so long."""
    return max(1, min(_UPDATES_PER_COMMAND, int(number * _COMMAND_S / max(seconds, 1e-3))))


async def _result(ref: Any) -> Any:
    return await ref
