"""Prompts, requests to an engine for samples of them, each with its seed, and what comes back."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gvm_ray.types.arrays import BoolArray, Float64Array, FloatArray, IntArray

FinishReason = Literal["stop", "length"]
SampleKey = tuple[str, int]  # prompt_id, index of the sample in its step

_OPENED_TAG = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z")


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One task, rendered and tokenized."""

    prompt_id: str  # stable over runs: given by the data, or a hash of the content
    text: str  # what the tokenizer was given (template applied)
    token_ids: IntArray  # [T]
    answer: str  # gold answer, as the verifier is given it
    features: Mapping[str, Any] = field(default_factory=dict)  # small: level, subject, a scorer's entry ...

    @property
    def opened_tag(self) -> str:
        """The tag, with the blanks behind it, by which the prompt itself begins the model's thinking; else empty.

        Some chat templates end with `<think>`, so that a response begins within it.
        """
        opened = _OPENED_TAG.search(self.text)
        return opened[0] if opened else ""


@dataclass(frozen=True, kw_only=True)
class SamplingParameters:
    """An engine's sampling settings."""

    temperature: float  # 0 = the likeliest token, with log-probs at temperature 1; only for evaluation
    max_tokens: int  # response tokens
    top_p: float = 1.0  # below 1 only for evaluation: training would have to correct the log-probs


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleRequest:
    """A request for samples of one prompt, with one seed per sample, so that any engine gives the same results."""

    prompt: Prompt
    sample_indices: tuple[int, ...]  # index of each sample among all samples of this prompt in this step
    seeds: tuple[int, ...]  # one per sample, in [0, 2**63)

    def only(self, keys: Collection[SampleKey]) -> "SampleRequest":
        """The request restricted to these samples; it may be empty."""
        kept = [i for i, index in enumerate(self.sample_indices) if (self.prompt.prompt_id, index) in keys]
        indices, seeds = tuple(self.sample_indices[i] for i in kept), tuple(self.seeds[i] for i in kept)
        return replace(self, sample_indices=indices, seeds=seeds)


@dataclass(frozen=True, kw_only=True, eq=False)
class Completion:
    """One sampled response."""

    token_ids: IntArray  # [T], end-of-sequence included when finish_reason == "stop"
    logprobs: FloatArray  # [T] nats, under the sampling distribution (after temperature)
    policy_versions: IntArray  # [T] version of the weights that sampled each token; never decreases
    finish_reason: FinishReason  # "stop" = the model ended it; "length" = cut at max_tokens
    text: str  # decoded without special tokens
    turns: tuple[str, ...] = ()  # the policy's text in each turn; () = a single turn, the text
    sampled: BoolArray | None = None  # [T] False at the environment's tokens (log-prob 0); None = True throughout

    @property
    def policy_turns(self) -> tuple[str, ...]:
        """The policy's text in each turn; at least one turn."""
        return self.turns or (self.text,)


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutGroup:
    """The samples of one prompt in one round, with token arrays end to end. Rewards are None until it is scored."""

    prompt: Prompt
    sample_indices: tuple[int, ...]  # [n], as requested
    token_ids: IntArray  # [sum of T]; sample i is at offsets[i] : offsets[i + 1]
    logprobs: FloatArray  # [sum of T] nats
    policy_versions: IntArray  # [sum of T]
    offsets: IntArray  # [n + 1], from 0
    truncated: BoolArray  # [n] cut at max_tokens
    texts: tuple[str, ...]  # [n]
    rewards: Float64Array | None = None  # [n]; NaN = unscored, never trained on
    reward_terms: Mapping[str, Float64Array] = field(default_factory=dict)  # term name -> [n]
    turns: tuple[tuple[str, ...], ...] = ()  # [n] as in Completion; () = no sample has more than one
    sampled: BoolArray | None = None  # [sum of T] as in Completion

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        completions: Sequence[Completion],
        *,
        sample_indices: tuple[int, ...] | None = None,
        rewards: Float64Array | None = None,
    ) -> "RolloutGroup":
        """The group of these completions; without `sample_indices` they count from 0."""
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
            turns=tuple(c.turns for c in completions) if any(c.turns for c in completions) else (),
            sampled=_sampled(completions),
        )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_tokens(self) -> IntArray:
        """[n] response tokens that the policy sampled."""
        if self.sampled is None:
            return np.diff(self.offsets)
        return np.diff(np.concatenate([[0], np.cumsum(self.sampled)])[self.offsets]).astype(np.int32)

    @property
    def entropies(self) -> Float64Array:
        """[n] nats: the mean of -ln pi over the tokens that the policy sampled, which estimates the mean entropy of
        their distributions; NaN without such a token."""
        sums = np.concatenate([[0.0], np.cumsum(self.logprobs, dtype=np.float64)])[self.offsets]
        counts = self.num_tokens
        return np.where(counts > 0, -np.diff(sums) / np.maximum(counts, 1), np.nan)

    @property
    def num_turns(self) -> IntArray:
        """[n] turns of the policy."""
        return np.array([max(len(turns), 1) for turns in self.turns] or [1] * len(self), dtype=np.int32)

    @property
    def oldest_versions(self) -> IntArray:
        """[n] version of each sample's first token, its oldest."""
        return self.policy_versions[self.offsets[:-1]]

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The samples one by one; their arrays are views."""
        return tuple(self.completion(index) for index in range(len(self)))

    def select(self, indices: Sequence[int]) -> "RolloutGroup":
        """The samples at these indices, without rewards; their arrays are copies."""
        return RolloutGroup.of(
            self.prompt,
            [self.completion(index) for index in indices],
            sample_indices=tuple(self.sample_indices[index] for index in indices),
        )

    def completion(self, index: int) -> Completion:
        """One sample; its arrays are views."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return Completion(
            token_ids=self.token_ids[part],
            logprobs=self.logprobs[part],
            policy_versions=self.policy_versions[part],
            finish_reason="length" if self.truncated[index] else "stop",
            text=self.texts[index],
            turns=self.turns[index] if self.turns else (),
            sampled=None if self.sampled is None else self.sampled[part],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenEpisodes:
    """Samples of one prompt whose turn has ended and was answered by the environment."""

    group: RolloutGroup
    observations: tuple[str, ...]  # [n] text that the policy reads before its next turn


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupRef:
    """The location of a group: an object ref to a tuple of groups (in tests the tuple itself), and its index.

    The group is a scored RolloutGroup or OpenEpisodes.
    """

    ref: Any
    index: int


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupOutcome:
    """The small numbers of one scored group: all that the driver, the allocator and the algorithm see of it."""

    prompt_id: str
    sample_indices: tuple[int, ...]  # [n], as requested
    rewards: Float64Array  # [n], NaN = unscored
    num_tokens: IntArray  # [n] response tokens that the policy sampled
    policy_versions: IntArray  # [n] version of each sample's oldest token
    truncated: BoolArray  # [n] cut at max_tokens
    ref: GroupRef
    gradient_norms: Float64Array | None = None  # [n]; NaN where not computed
    reward_terms: Mapping[str, Float64Array] = field(default_factory=dict)  # term name -> [n]
    num_turns: IntArray | None = None  # [n] turns of the policy; None = one each
    unscored: Mapping[str, int] = field(default_factory=dict)  # known reason -> number of samples without a reward
    entropies: Float64Array | None = None  # [n] nats, as in RolloutGroup; None if unknown
    response_states: FloatArray | None = None  # [n, F], as `Learners.response_states` computes them

    @classmethod
    def of(cls, group: RolloutGroup, *, ref: GroupRef) -> "GroupOutcome":
        """The outcome of the group at `ref`; without rewards every sample is unscored."""
        return cls(
            prompt_id=group.prompt.prompt_id,
            sample_indices=group.sample_indices,
            rewards=np.full(len(group), np.nan) if group.rewards is None else group.rewards,
            num_tokens=group.num_tokens,
            policy_versions=group.oldest_versions,
            truncated=group.truncated,
            ref=ref,
            reward_terms=group.reward_terms,
            num_turns=group.num_turns if group.turns else None,
            entropies=group.entropies,
        )

    @property
    def scored(self) -> BoolArray:
        """[n] True where the reward is known."""
        return np.isfinite(self.rewards)

    def with_response_states(self, response_states: FloatArray) -> "GroupOutcome":
        return replace(self, response_states=response_states)

    def with_gradient_norms(self, gradient_norms: Float64Array) -> "GroupOutcome":
        return replace(self, gradient_norms=gradient_norms)


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenOutcome:
    """The driver's view of samples whose episodes continue."""

    prompt_id: str
    sample_indices: tuple[int, ...]  # [n], as requested
    ref: GroupRef  # to OpenEpisodes


def _sampled(completions: Sequence[Completion]) -> BoolArray | None:
    if all(c.sampled is None for c in completions):
        return None
    masks = [np.ones(len(c.token_ids), dtype=np.bool_) if c.sampled is None else c.sampled for c in completions]
    return _end_to_end(masks, dtype=np.bool_)


def _end_to_end(arrays: Sequence[NDArray[Any]], *, dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype=dtype)


SampleRank = Literal["best", "worst"]  # by reward, among the samples of a step


@dataclass(frozen=True, kw_only=True)
class SampleText:
    """One response of a step, with what came of it."""

    rank: SampleRank
    prompt_id: str
    prompt: str  # template applied
    completion: str
    answer: str  # gold answer
    reward: float
    num_tokens: int  # of the response
    truncated: bool  # cut at max_tokens
    policy_version: int  # of its oldest token


def sample_seed(run_seed: int, *, step: int, prompt_id: str, sample_index: int) -> int:
    """A seed in [0, 2**63), the same on every machine and Python version; unrelated for any two different arguments."""
    return _seed(f"{run_seed}\0{step}\0{sample_index}\0{prompt_id}")


def turn_seed(seed: int, *, turn: int) -> int:
    """The seed in [0, 2**63) of a sample's turn, of which the first one has the sample's own."""
    return _seed(f"{seed}\0{turn}") if turn else seed


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
