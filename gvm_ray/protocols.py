"""Interfaces of strategies and of the parts that the loop calls. Nothing here imports a heavy library.

Strategies (``Algorithm``, ``RewardFunction``, ``Engine``) are plain synchronous objects, tested
without a cluster. The loop sees the asynchronous side (``Allocator``, ``RolloutPools``, ``Learners`` ...), which
`gvm_ray.actors` implements over Ray and unit tests implement in process.
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
    IndexArray,
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
    """Turns scored groups into advantages and sample weights; handles small numbers only."""

    def build_batch(self, outcomes: Sequence[GroupOutcome], *, step: int, terms: EstimatorTerms) -> TrainBatch:
        """The batch to train on. Groups are ragged; several outcomes of one prompt_id are one group."""
        ...


@runtime_checkable
class RewardFunction(Protocol):
    """The reward of a response: deterministic and finite; never raises on model text."""

    def __call__(self, prompt: Prompt, completion: Completion) -> float: ...


@runtime_checkable
class Engine(Protocol):
    """Samples responses by continuous batching: requests may arrive, and weights change, between any two steps.

    An engine lives in one generator actor, which makes every call from one thread.
    """

    @property
    def policy_version(self) -> int:
        """Version of the loaded weights; -1 before the first load_weights."""
        ...

    @property
    def num_unfinished(self) -> int:
        """The number of requests added and not answered yet."""
        ...

    def add(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> None:
        """Queue requests; if it raises, none is queued."""
        ...

    def step(self) -> list[tuple[SampleRequest, tuple[Completion, ...]]]:
        """Sample for a short while, such as one token of every running sample.

        Returns the requests that finished, each with one completion per seed, in the order of its seeds.
        """
        ...

    def abort(self) -> None:
        """Drop every unfinished request."""
        ...

    def reset(self) -> None:
        """Return to the state before the first load_weights: no requests, nothing cached, policy_version -1.

        The model stays loaded.
        """
        ...

    def load_weights(self, policy_version: int, tensors: Iterable[tuple[str, Any]]) -> None:
        """Replace every weight by the named CPU torch tensors (Hugging Face names).

        Running samples continue with the new weights, and keep their attention keys and values.
        """
        ...

    def close(self) -> None: ...


# --- the running system, as the loop sees it --------------------------------------------------------------------------
class PromptStream(Protocol):
    """The training prompts in their order; the cursor is part of a checkpoint."""

    def __len__(self) -> int:
        """The number of prompts in the whole set."""
        ...

    def next(self, num_prompts: int) -> list[Prompt]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Allocator(Protocol):
    """The central allocator's asynchronous side. Rounds of different steps may be interleaved."""

    async def shortlist(self, prompts: Sequence[Prompt], *, step: int, budget: int) -> IndexArray:
        """Rows of the candidates that the step goes on with, before anything is computed of them; called if the
        strategy asks for it."""
        ...

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
        """The strategy's report on the step; called once, after the step's last `observe`."""
        ...

    async def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Take the gradient norms of a trained batch; called if the strategy asks for them."""
        ...

    async def state_dict(self) -> dict[str, Any]: ...

    async def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class PromptStateSource(Protocol):
    """Numbers to predict from: the policy's hidden states of prompts, by forward passes, or means of embeddings."""

    async def of(self, prompts: Sequence[Prompt], *, step: int) -> tuple[FloatArray | None, int]:
        """States [P, F], or None if the run asks for none, and the number of prompt tokens run through the model."""
        ...

    def state_dict(self, *, step: int) -> dict[str, NDArray[Any]]:
        """The states that are still of use at a step, as arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the states that `state_dict` returned."""
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
        """The outcomes of the requests, in order (a request split over generators has several).

        Token-sized data stays behind each outcome's ref. `on_scored` gets the number of samples that were just scored.
        """
        ...

    async def publish(self, weights: WeightsRef) -> None:
        """Return once every generator samples with these weights."""
        ...

    async def wait_for_version(self, policy_version: int) -> None:
        """Return once every generator has at least this version."""
        ...


class Learners(Protocol):
    """The learner group. Commands are served one after the other."""

    async def gradient_norms(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """The outcomes with the gradient norms of accepted samples filled in."""
        ...

    async def response_states(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """The outcomes with the policy's final hidden states of their samples, [n, 2H]: the mean over the tokens of
        prompt and response, and the last one."""
        ...

    async def prompt_states(self, prompts: Sequence[Prompt], *, pooling: Pooling) -> tuple[FloatArray, int]:
        """The policy's final hidden states over each prompt's tokens, pooled to [P, F] float32, and the number of
        tokens that were run through the model, fewer than the prompts' own where these share their first ones.

        Pooling takes their mean, the last one, or both end to end (F is the hidden size, or twice that); "entropy" is
        the mean entropy of the next token's distribution (F is 1).
        """
        ...

    async def update(self, batch: TrainBatch) -> UpdateResult:
        """Train on the batch and publish the new policy, whose version is batch.step + 1."""
        ...

    async def supervised_update(self, demonstrations: Sequence[Demonstration]) -> Metrics:
        """One optimizer update of the warm start."""
        ...

    async def weights(self, policy_version: int) -> WeightsRef:
        """Publish the current weights under this version."""
        ...

    async def save(self, folder: str) -> None:
        """Write model and optimizer shards under `folder`."""
        ...

    def checkpointed(self, folder: str) -> None:
        """Record the folder of the complete checkpoint that now holds the last `save`."""
        ...

    async def export(self, folder: str) -> None:
        """Write Hugging Face safetensors and the tokenizer into `folder`."""
        ...


class Evaluator(Protocol):
    """Held-out accuracy of the policy that the generators hold."""

    async def evaluate(self, policy_version: int) -> Metrics:
        """Metrics under `eval/` of the policy with this version, with `eval/accuracy` among them; empty if there are no
        prompts to evaluate on."""
        ...


class Checkpoints(Protocol):
    """Atomic checkpoints of a run."""

    async def save(self, state: CheckpointState, learners: Learners) -> None: ...


class StepLog(Protocol):
    """Receiver of each step's metrics, histograms and sample texts."""

    def log_step(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> Metrics:
        """The metrics as logged, with those that the log adds."""
        ...
