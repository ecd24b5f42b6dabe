"""The seams: what the loop asks of the parts, and what a strategy must offer. Nothing here imports a heavy library.

Strategies (``Algorithm``, ``RewardFunction``, ``Engine``) are plain synchronous objects, tested
without a cluster. The loop sees the asynchronous side (``Allocator``, ``RolloutPools``, ``Learners`` ...), which
`gvm_ray.actors` implements over Ray and a unit test implements in process.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from gvm_ray.types import (
    Allocation,
    AllocationReport,
    CheckpointState,
    Completion,
    Demonstration,
    EstimatorTerms,
    FloatArray,
    GroupOutcome,
    Histograms,
    Metrics,
    Pooling,
    Prompt,
    SampleRequest,
    SampleText,
    SamplingParameters,
    TrainBatch,
    TrainedNorms,
    UpdateResult,
    WeightsRef,
)


# --- strategies -------------------------------------------------------------------------------------------------------
@runtime_checkable
class Algorithm(Protocol):
    """Turns scored groups into advantages and sample weights; small numbers only."""

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """What to train on. Groups are ragged; several outcomes of one prompt_id are one group."""
        ...


@runtime_checkable
class RewardFunction(Protocol):
    """What a response is worth. Deterministic, finite, never raises on model text."""

    def __call__(self, prompt: Prompt, completion: Completion) -> float: ...


@runtime_checkable
class Engine(Protocol):
    """Samples responses by continuous batching: requests may come, and weights change, between any two steps.

    Lives in one generator actor, whose one thread makes every call.
    """

    @property
    def policy_version(self) -> int:
        """Version of the loaded weights; -1 before the first load_weights."""
        ...

    @property
    def num_unfinished(self) -> int:
        """Requests added and not answered yet."""
        ...

    def add(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> None:
        """Queue requests; after an error none of them is."""
        ...

    def step(self) -> list[tuple[SampleRequest, tuple[Completion, ...]]]:
        """Sample for a moment, such as a token of every running sample.

        Returns the requests that are finished with it, each with as many completions as it has seeds, in their order.
        """
        ...

    def abort(self) -> None:
        """Drop every unfinished request."""
        ...

    def reset(self) -> None:
        """As before the first load_weights: no requests, nothing cached, policy_version -1; the model stays loaded."""
        ...

    def load_weights(self, policy_version: int, tensors: Iterable[tuple[str, Any]]) -> None:
        """Replace every weight by the named CPU torch tensors (Hugging Face names).

        Samples under way go on with the new weights and the attention keys and values that they have.
        """
        ...

    def close(self) -> None: ...


# --- the running system, as the loop sees it --------------------------------------------------------------------------
class PromptStream(Protocol):
    """The training prompts in their order; the cursor is part of a checkpoint."""

    def __len__(self) -> int:
        """Prompts in the whole set."""
        ...

    def next(self, num_prompts: int) -> list[Prompt]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Allocator(Protocol):
    """The central allocator, asynchronously. The rounds of different steps may be interleaved."""

    async def plan(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Allocation:
        """The first round of a step."""
        ...

    async def observe(self, outcomes: Sequence[GroupOutcome], *, step: int) -> Allocation:
        """The step's next round, given the outcomes of the last one; empty when the step is done."""
        ...

    async def report(self, *, step: int) -> AllocationReport:
        """What the strategy says of the step; once, after the step's last `observe`."""
        ...

    async def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """The gradient norms of a trained batch, where they were measured and the strategy wants them."""
        ...

    async def state_dict(self) -> dict[str, Any]: ...

    async def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class PromptStateSource(Protocol):
    """The policy's hidden states of prompts, at the price of a forward pass over those not known already."""

    async def of(self, prompts: Sequence[Prompt], *, step: int) -> tuple[FloatArray | None, int]:
        """[P, F] states, None where the run asks for none, and the prompt tokens that were run through the model."""
        ...

    def state_dict(self, *, step: int) -> dict[str, NDArray[Any]]:
        """The states that still serve a step, as arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on with the states that `state_dict` gave."""
        ...


class RolloutPools(Protocol):
    """Generators and reward actors: requests in, outcomes out; weights in."""

    async def sample_and_score(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        *,
        on_scored: Callable[[int], None] = lambda number: None,
    ) -> list[GroupOutcome]:
        """The outcomes of the requests, in order (a request that was split over generators has several).

        Token-sized data stays behind each outcome's ref. `on_scored` is told the number of samples that just got their
        reward.
        """
        ...

    async def publish(self, weights: WeightsRef) -> None:
        """Return when every generator samples with these weights."""
        ...

    async def wait_for_version(self, policy_version: int) -> None:
        """Return when every generator has at least this version."""
        ...


class Learners(Protocol):
    """The learner group. Commands are served one after the other."""

    async def gradient_norms(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """The same outcomes with per-sample gradient norms of the accepted samples filled in."""
        ...

    async def prompt_states(self, prompts: Sequence[Prompt], *, pooling: Pooling) -> FloatArray:
        """[P, F] float32: what the policy makes of each prompt, its final hidden states at the prompt's tokens.

        Their mean, the last one, or both end to end (F is the hidden size, or twice that).
        """
        ...

    async def update(self, batch: TrainBatch) -> UpdateResult:
        """Train on the batch and publish the new policy, whose version is batch.step + 1."""
        ...

    async def supervised_update(self, demonstrations: Sequence[Demonstration]) -> Metrics:
        """One optimizer update of the warm start."""
        ...

    async def weights(self, policy_version: int) -> WeightsRef:
        """Publish the present weights under this version."""
        ...

    async def save(self, folder: str) -> None:
        """Write model and optimizer shards under `folder`."""
        ...

    def checkpointed(self, folder: str) -> None:
        """Take note of where the last `save` lies in a complete checkpoint."""
        ...

    async def export(self, folder: str) -> None:
        """Write Hugging Face safetensors and the tokenizer into `folder`."""
        ...


class Evaluator(Protocol):
    """Held-out accuracy of the policy that the generators hold."""

    async def evaluate(self) -> Metrics:
        """Metrics under `eval/`, `eval/accuracy` among them; empty when there is nothing to evaluate on."""
        ...


class Checkpoints(Protocol):
    """Atomic checkpoints of a run."""

    async def save(self, state: CheckpointState, learners: Learners) -> None: ...


class StepLog(Protocol):
    """Where one step's numbers go."""

    def log_step(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None: ...
