"""What flows between the parts: frozen data, each with its shape and unit. Imports nothing of the project.

Token-sized fields are numpy arrays (never Python lists) and travel by object ref; the driver handles only the small
:class:`GroupOutcome`. Arrays that come out of the object store are read-only, which is right for frozen data.
Ragged axes: P prompts, n samples of one prompt (0, 1, 37 ...), T tokens of one completion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FinishReason = Literal["stop", "length"]
Pooling = Literal["mean", "last", "both"]  # of a prompt's hidden states
Metrics = dict[str, float]
Histograms = Mapping[str, Float64Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One task, rendered and tokenized."""

    prompt_id: str  # stable over runs: given by the data, or a hash of the content
    text: str  # what the tokenizer was given (template applied)
    token_ids: IntArray  # [T]
    answer: str  # gold answer, as the verifier is given it
    features: Mapping[str, Any] = field(default_factory=dict)  # small: level, subject, a scorer's entry ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstration:
    """A prompt with a reference rationale, for the supervised warm start."""

    prompt_token_ids: IntArray  # [T_prompt]
    response_token_ids: IntArray  # [T_response], end-of-sequence included


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The decision as data: how many samples each prompt gets in this round (0 skips it), and what they are for."""

    counts: Mapping[str, int]  # prompt_id -> number of samples, >= 0
    needs_gradient_norms: bool = False  # measure the gradient norms of this round's accepted samples
    trained_on: bool = True  # false: the samples only inform the allocator (published GVM's pilots)

    @property
    def is_pilot(self) -> bool:
        """Whether the round is to learn about the prompts before the budget is divided."""
        return self.needs_gradient_norms or not self.trained_on

    @property
    def total(self) -> int:
        """Samples in this round; 0 says that the allocator is done."""
        return sum(self.counts.values())

    @classmethod
    def empty(cls) -> "Allocation":
        return cls(counts={})


@dataclass(frozen=True, kw_only=True)
class EstimatorTerms:
    """What a finished step's allocation changes in the estimator of the gradient; a prompt without an entry keeps the
    algorithm's own."""

    num_prompts: int  # that the estimator averages over
    accept_rates: Mapping[str, float] = field(default_factory=dict)  # prompt_id -> estimate of p in (0, 1]
    baselines: Mapping[str, float] = field(default_factory=dict)  # prompt_id -> b of the advantage r - b
    scales: Mapping[str, float] = field(default_factory=dict)  # prompt_id -> s > 0: the advantage is divided by it
    prompt_weights: Mapping[str, float] = field(default_factory=dict)  # prompt_id -> factor on its samples' weights
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # prompt_id -> sample indices to train on


@dataclass(frozen=True, kw_only=True, eq=False)
class AllocationReport:
    """What an allocator says of one finished step."""

    estimator: EstimatorTerms
    metrics: Metrics = field(default_factory=dict)  # allocation/min|max|zero|total, and the estimates behind them
    histograms: Histograms = field(default_factory=dict)  # samples_per_prompt, accept_rate: [P]


@dataclass(frozen=True, kw_only=True)
class SamplingParameters:
    """How an engine samples."""

    temperature: float
    max_tokens: int  # response tokens
    top_p: float = 1.0  # below 1 for evaluation alone: training would have to correct the log-probs


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleRequest:
    """Ask an engine for samples of one prompt. One seed a sample, so results don't depend on who serves it."""

    prompt: Prompt
    sample_indices: tuple[int, ...]  # index of each sample among all samples of this prompt in this step
    seeds: tuple[int, ...]  # one per sample, in [0, 2**63)


@dataclass(frozen=True, kw_only=True, eq=False)
class Completion:
    """One sampled response."""

    token_ids: IntArray  # [T], end-of-sequence included when finish_reason == "stop"
    logprobs: FloatArray  # [T] nats, under the sampling distribution (after temperature)
    policy_versions: IntArray  # [T] version of the weights that sampled each token; never falls
    finish_reason: FinishReason  # "stop" = the model ended it; "length" = cut at max_tokens
    text: str  # decoded without special tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutGroup:
    """The samples of one prompt of one round, token arrays end to end. Rewards are absent until it is scored."""

    prompt: Prompt
    sample_indices: tuple[int, ...]  # [n], as they were requested
    token_ids: IntArray  # [sum of T]; sample i is at offsets[i] : offsets[i + 1]
    logprobs: FloatArray  # [sum of T] nats
    policy_versions: IntArray  # [sum of T]
    offsets: IntArray  # [n + 1], from 0
    truncated: BoolArray  # [n] cut at max_tokens
    texts: tuple[str, ...]  # [n]
    rewards: Float64Array | None = None  # [n]; NaN = unscored, such samples are never trained on
    reward_terms: Mapping[str, Float64Array] = field(default_factory=dict)  # term name -> [n]

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        completions: Sequence[Completion],
        *,
        sample_indices: tuple[int, ...] | None = None,
        rewards: Float64Array | None = None,
    ) -> "RolloutGroup":
        """The group of some completions; indices count from 0 where none are given."""
        return cls(
            prompt=prompt,
            sample_indices=tuple(range(len(completions))) if sample_indices is None else sample_indices,
            token_ids=_end_to_end([c.token_ids for c in completions], dtype=np.int32),
            logprobs=_end_to_end([c.logprobs for c in completions], dtype=np.float32),
            policy_versions=_end_to_end([c.policy_versions for c in completions], dtype=np.int32),
            offsets=np.cumsum([0, *(len(c.token_ids) for c in completions)], dtype=np.int32),
            truncated=np.array([c.finish_reason == "length" for c in completions], dtype=np.bool_),
            texts=tuple(c.text for c in completions),
            rewards=rewards,
        )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_tokens(self) -> IntArray:
        """[n] response lengths."""
        return np.diff(self.offsets)

    @property
    def oldest_versions(self) -> IntArray:
        """[n] version of each sample's first token, than which none of its tokens is older."""
        return self.policy_versions[self.offsets[:-1]]

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The samples one by one; their arrays are views."""
        return tuple(self.completion(index) for index in range(len(self)))

    def completion(self, index: int) -> Completion:
        """One sample; its arrays are views."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return Completion(
            token_ids=self.token_ids[part],
            logprobs=self.logprobs[part],
            policy_versions=self.policy_versions[part],
            finish_reason="length" if self.truncated[index] else "stop",
            text=self.texts[index],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupRef:
    """Where a scored group lies: an object ref to a tuple of groups (in tests the tuple itself), and its index."""

    ref: Any
    index: int


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupOutcome:
    """The small numbers of one scored group: all that the driver, the allocator and the algorithm see of it."""

    prompt_id: str
    sample_indices: tuple[int, ...]  # [n], as they were requested
    rewards: Float64Array  # [n], NaN = unscored
    num_tokens: IntArray  # [n] response tokens
    policy_versions: IntArray  # [n] of each sample's oldest token
    truncated: BoolArray  # [n] cut at max_tokens
    ref: GroupRef
    gradient_norms: Float64Array | None = None  # [n]; NaN where not computed
    reward_terms: Mapping[str, Float64Array] = field(default_factory=dict)  # term name -> [n]

    @classmethod
    def of(cls, group: RolloutGroup, *, ref: GroupRef) -> "GroupOutcome":
        """The outcome of a group that lies there; without rewards every sample is unscored."""
        return cls(
            prompt_id=group.prompt.prompt_id,
            sample_indices=group.sample_indices,
            rewards=np.full(len(group), np.nan) if group.rewards is None else group.rewards,
            num_tokens=group.num_tokens,
            policy_versions=group.oldest_versions,
            truncated=group.truncated,
            ref=ref,
            reward_terms=group.reward_terms,
        )

    @property
    def scored(self) -> BoolArray:
        """[n] True where the reward is known."""
        return np.isfinite(self.rewards)

    def with_gradient_norms(self, gradient_norms: Float64Array) -> "GroupOutcome":
        return replace(self, gradient_norms=gradient_norms)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainGroup:
    """What the learners train on of one group; arrays index into the group's completions."""

    prompt_id: str
    ref: GroupRef
    sample_indices: IntArray  # [k] kept samples
    advantages: Float64Array  # [k]
    weights: Float64Array  # [k]: the batch loss is sum_i weights_i * sum_t token_loss_it
    num_tokens: IntArray  # [k] response tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNorms:
    """Gradient norms that the training of a batch measured by the way, of one group's trained samples."""

    prompt_id: str
    positive: BoolArray  # [k] advantage above 0
    norms: Float64Array  # [k] of the gradient of ln pi(response), clipped tokens left out; NaN where not measured


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainBatch:
    """One step's training data: references to token-sized groups, and one small number or two per sample."""

    step: int
    groups: tuple[TrainGroup, ...]
    metrics: Metrics = field(default_factory=dict)  # of the rollouts: rewards, lengths, advantages ...

    @property
    def num_samples(self) -> int:
        return sum(len(g.sample_indices) for g in self.groups)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightsRef:
    """A published policy: where its buckets lie, and its version."""

    policy_version: int
    location: Any  # object refs of the buckets, or in tests the tensors themselves


@dataclass(frozen=True, kw_only=True, eq=False)
class UpdateResult:
    """What one training step gives back."""

    weights: WeightsRef
    metrics: Metrics  # learner metrics; "num_updates" counts optimizer updates made
    # Where the run asks for `training_gradient_norms`: [k] for each group of the batch, aligned with sample_indices,
    # norm of the gradient of sum_t token_loss_t in the input embedding. NaN at weight 0 and where no update was made.
    gradient_norms: tuple[Float64Array, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointState:
    """The driver's part of a checkpoint: everything needed to go on except the learners' shards.

    All but `prompt_states` are JSON values.
    """

    step: int  # steps completed
    policy_version: int
    cursor: Mapping[str, Any]
    allocator: Mapping[str, Any]
    costs: Mapping[str, float]
    prompt_states: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # those that still serve the allocator


def _end_to_end(arrays: Sequence[NDArray[Any]], *, dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype=dtype)
