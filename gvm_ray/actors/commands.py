"""Commands from the driver to the learner ranks: one frozen type for each, and the methods that issue them.

A new command is a class here, a `case` in the rank, and a method below if the loop is to call it.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import ray
from numpy.typing import NDArray

from gvm_ray.config import RunConfig
from gvm_ray.maths.packing import demonstration_batches
from gvm_ray.types import (
    Demonstration,
    FloatArray,
    GroupOutcome,
    GroupRef,
    Metrics,
    Pooling,
    Prompt,
    TrainBatch,
    TransferWorld,
    UpdateResult,
    WeightsRef,
)

# The state in which a command needs generators that share the ranks' GPUs: asleep, because the command fills the GPUs;
# at work; or either. Commands that copy tensor by tensor can run while samples are under way.
Generators = Literal["away", "at_work", "any"]

# Limits of one warm-start command: short enough to report progress regularly, long enough to hide the round trip.
_UPDATES_PER_COMMAND, _COMMAND_S = 25, 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Command:
    """Work for every rank; the answer is rank 0's. Object refs in its fields stay refs."""

    what: ClassVar[str]  # in words, for messages
    changes_policy: ClassVar[bool] = False  # if so, replacement ranks repeat it
    generators: ClassVar[Generators] = "any"
    deadline: ClassVar[str] = "update_s"  # the setting in [deadlines] that bounds it
    phase: ClassVar[str | None] = None  # of the phase clock, to which its time is added


class Start(Command):
    """Answer once every rank holds its shard of the policy."""

    what = "start"
    deadline = "start_s"


class Stop(Command):
    """End the ranks."""

    what = "stop"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reset(Command):
    """Begin another run."""

    what = "reset"
    generators = "away"
    deadline = "start_s"
    setup: Any  # object ref to a LearnerSetup: with the loss itself in it, the mailbox would have to import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Update(Command):
    """Train on a batch and publish the new policy."""

    what = "update"
    changes_policy = True
    generators = "away"
    phase = "update"
    batch: TrainBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedUpdates(Command):
    """Make several updates of the warm start."""

    what = "supervised updates"
    changes_policy = True
    generators = "away"
    demonstrations: Any  # object ref to a tuple of Demonstration, which the ranks fetch themselves
    batches: tuple[NDArray[np.int64], ...]  # one optimizer update each: indices into the demonstrations


class FinishWarmStart(Command):
    """Start a fresh optimizer, and make the current weights the reference."""

    what = "end of the warm start"
    changes_policy = True
    generators = "away"


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientNorms(Command):
    """Measure the gradient norm of every accepted sample."""

    what = "gradient norms"
    generators = "away"
    phase = "gradient_norms"
    refs: Sequence[GroupRef]


@dataclass(frozen=True, kw_only=True, eq=False)
class ResponseStates(Command):
    """Compute hidden states of prompts with their responses."""

    what = "response states"
    generators = "away"
    phase = "gradient_norms"  # the same time: a pass over samples for the allocator
    refs: Sequence[GroupRef]


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptStates(Command):
    """Compute pooled hidden states of prompts."""

    what = "prompt states"
    generators = "away"
    phase = "prompt_states"
    token_ids: Any  # object ref to a tuple of [T] token ids, one for each prompt
    pooling: Pooling


@dataclass(frozen=True, kw_only=True, eq=False)
class Publish(Command):
    """Publish the current weights through the run's transfer, or through the object store."""

    what = "weights"
    policy_version: int
    stored: bool = False  # use the object store; if an update has come in between, publish its later version


@dataclass(frozen=True, kw_only=True, eq=False)
class SendWeights(Command):
    """Send the weights of a version to generators."""

    what = "send"
    generators = "at_work"
    deadline = "sync_s"
    policy_version: int
    world: TransferWorld


@dataclass(frozen=True, kw_only=True, eq=False)
class Save(Command):
    """Write model and optimizer shards."""

    what = "save"
    folder: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Load(Command):
    """Restore what `Save` wrote."""

    what = "load"
    generators = "away"
    folder: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Export(Command):
    """Write Hugging Face safetensors and the tokenizer."""

    what = "export"
    folder: str


class LearnerCommands(ABC):
    """The learners' commands as methods (protocol `Learners`); subclasses implement `do`."""

    @property
    @abstractmethod
    def config(self) -> RunConfig:
        """The run's settings."""

    @abstractmethod
    async def do(self, command: Command) -> Any:
        """Rank 0's answer to a command.

        Raises:
            DeadlineExceeded: it took longer than its deadline.
            ActorFailure: a rank died, or failed while doing it.
        """

    async def update(self, batch: TrainBatch) -> UpdateResult:
        """Train on the batch and publish the new policy under version batch.step + 1."""
        weights, metrics, gradient_norms = await self.do(Update(batch=batch))
        # A step without samples to train on has no log-probs to compare.
        metrics = {"logprob_difference/mean": math.nan, **metrics}
        return UpdateResult(weights=weights, metrics=metrics, gradient_norms=gradient_norms)

    async def gradient_norms(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """The outcomes with the gradient norms of their accepted samples; NaN for the other samples."""
        threshold = self.config.rewards.accept_threshold
        chosen = [i for i, outcome in enumerate(outcomes) if (outcome.rewards >= threshold).any()]
        norms = {i: np.full(len(outcome.rewards), np.nan) for i, outcome in enumerate(outcomes)}
        if chosen:
            answer = await self.do(GradientNorms(refs=[outcomes[i].ref for i in chosen]))
            norms |= dict(zip(chosen, answer, strict=True))
        return [outcome.with_gradient_norms(norms[i]) for i, outcome in enumerate(outcomes)]

    async def response_states(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """The outcomes with the hidden states [n, 2H] of their samples; see `Learner.response_states`."""
        if not outcomes:
            return []
        answer = await self.do(ResponseStates(refs=[outcome.ref for outcome in outcomes]))
        return [outcome.with_response_states(states) for outcome, states in zip(outcomes, answer, strict=True)]

    async def prompt_states(self, prompts: Sequence[Prompt], *, pooling: Pooling) -> tuple[FloatArray, int]:
        """[P, F] float32 pooled final hidden states of the prompts' tokens, and the tokens read; see
        `Learner.prompt_states`."""
        token_ids = ray.put(tuple(prompt.token_ids for prompt in prompts))
        return await self.do(PromptStates(token_ids=token_ids, pooling=pooling))

    async def supervised_update(self, demonstrations: Sequence[Demonstration]) -> Metrics:
        """Make one warm-start update on all the demonstrations."""
        everything = (np.arange(len(demonstrations)),)
        return await self.do(SupervisedUpdates(demonstrations=ray.put(tuple(demonstrations)), batches=everything))

    async def warm_start(
        self, demonstrations: Sequence[Demonstration], *, on_progress: Callable[[int, Metrics], None] | None = None
    ) -> Metrics:
        """Make all updates of [warm_start], each on the next `batch_size` demonstrations in an epoch's random order.

        Reinforcement learning then starts with a fresh optimizer, and with these weights as the reference.

        Args:
            demonstrations: at least one.
            on_progress: called from time to time with the number of updates made and the metrics of the last one.

        Returns:
            Metrics of the last update.
        """
        settings = self.config.warm_start
        assert settings is not None, "a warm start needs [warm_start]"
        batches = demonstration_batches(
            len(demonstrations), batch_size=settings.batch_size, num_updates=settings.num_updates, seed=settings.seed
        )
        shared, metrics = ray.put(tuple(demonstrations)), Metrics()
        done, size = 0, 1
        while some := tuple(batches[done : done + size]):
            began = time.monotonic()
            metrics = await self.do(SupervisedUpdates(demonstrations=shared, batches=some))
            done += len(some)
            size = updates_per_command(len(some), seconds=time.monotonic() - began)
            if on_progress is not None:
                on_progress(done, metrics)
        await self.do(FinishWarmStart())
        return metrics

    async def weights(self, policy_version: int) -> WeightsRef:
        """Publish the current weights under this version."""
        return await self.do(Publish(policy_version=policy_version))

    async def save(self, folder: str) -> None:
        """Write model and optimizer shards under `folder`."""
        await self.do(Save(folder=absolute(folder)))

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another model.
        """
        await self.do(Load(folder=absolute(folder)))

    async def export(self, folder: str) -> None:
        """Write Hugging Face safetensors and the tokenizer into `folder`."""
        await self.do(Export(folder=absolute(folder)))

    def checkpointed(self, folder: str) -> None:
        """Note the folder of a complete checkpoint. Ignored here: without recovery, a failure of the ranks is final."""
        return


def updates_per_command(number: int, *, seconds: float) -> int:
    """Number of updates in the next warm-start command, after `number` updates took `seconds`."""
    return max(1, min(_UPDATES_PER_COMMAND, int(number * _COMMAND_S / max(seconds, 1e-3))))


def absolute(folder: str) -> str:
    """The folder's absolute path: the ranks' working directory isn't the driver's."""
    return str(Path(folder).absolute())
