"""The samples that stand for the policy: what each prompt's responses are worth, and their gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.types import (
    BoolArray,
    Float64Array,
    FloatArray,
    GradientParameters,
    GroupOutcome,
    GroupRef,
    IndexArray,
    IntArray,
    Pooling,
    Prompt,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplePool:
    """K scored samples of each of P prompts, as indices into the U different responses among them.

    Within a measurement the pool is the policy: a draw is one of a prompt's K samples, with replacement, so that draws
    are independent, no allocation can exhaust a prompt, and the pool's own means are the exact expectations.

    The first `num_targets` prompts are those whose mean gradient is estimated; their responses are the first V of the
    U. Allocators warm up on the others, of which no gradient is needed.
    """

    prompts: tuple[Prompt, ...]  # P
    num_targets: int
    samples: tuple[IndexArray, ...]  # of each prompt: [K] indices into the responses
    rewards: Float64Array  # [U]
    num_tokens: IntArray  # [U]
    truncated: BoolArray  # [U]
    gradients: FloatArray  # [V, D] of ln pi(response), projected
    pilot_norms: Mapping[GradientParameters, Float64Array]  # [U] by what the allocator has measured
    training_norms: Float64Array  # [U]
    states: Mapping[Pooling, FloatArray]  # [P, F]

    def draw(self, prompt: int, *, num: int, first_index: int, rng: np.random.Generator) -> GroupOutcome:
        """`num` new samples of a prompt. The outcome's ref holds their indices into the responses."""
        samples = self.samples[prompt]
        return self.outcome(prompt, samples[rng.integers(len(samples), size=num)], first_index=first_index)

    def outcome(self, prompt: int, responses: IndexArray, *, first_index: int = 0) -> GroupOutcome:
        """These responses as one group."""
        return GroupOutcome(
            prompt_id=self.prompts[prompt].prompt_id,
            sample_indices=tuple(range(first_index, first_index + len(responses))),
            rewards=self.rewards[responses],
            num_tokens=self.num_tokens[responses],
            policy_versions=np.zeros(len(responses), dtype=np.int32),
            truncated=self.truncated[responses],
            ref=GroupRef(ref=responses, index=0),
        )

    def mean_by_target(self, values: Float64Array, chosen: BoolArray) -> Float64Array:
        """[num_targets] mean of `values` [U] over each target's samples that are `chosen` [U]; 0 where none is."""
        means = np.zeros(self.num_targets)
        for prompt, samples in enumerate(self.samples[: self.num_targets]):
            kept = samples[chosen[samples]]
            means[prompt] = values[kept].mean() if kept.size else 0.0
        return means

    def index_of(self) -> dict[str, int]:
        """prompt_id -> index of the prompt."""
        return {prompt.prompt_id: index for index, prompt in enumerate(self.prompts)}


def distinct_rows(keys: Sequence[bytes]) -> tuple[list[int], IndexArray]:
    """First positions of the distinct keys, in order, and for each key [N] which of them it is."""
    row_of: dict[bytes, int] = {}
    rows = np.array([row_of.setdefault(key, len(row_of)) for key in keys], dtype=np.int64)
    _, first = np.unique(rows, return_index=True)
    return first.tolist(), rows
