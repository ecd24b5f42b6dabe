"""The sample pool that stands for the policy: rewards and gradients of each prompt's responses."""

from collections.abc import Mapping
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
    Prompt,
    StatesKind,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplePool:
    """K scored samples of each of P prompts, as indices into their U distinct responses.

    Within a measurement the pool is the policy. A draw is one of a prompt's K samples, with replacement. So draws are
    independent, no allocation can exhaust a prompt, and the pool's means are the exact expectations.

    The mean gradient of the first `num_targets` prompts is estimated; their responses are the first V of the U.
    Allocators warm up on the other prompts, whose gradients aren't needed.
    """

    prompts: tuple[Prompt, ...]  # P
    num_targets: int
    samples: tuple[IndexArray, ...]  # for each prompt: [K] indices into the responses
    rewards: Float64Array  # [U]
    num_tokens: IntArray  # [U]
    truncated: BoolArray  # [U]
    gradients: FloatArray  # [V, D] of ln pi(response), projected
    pilot_norms: Mapping[GradientParameters, Float64Array]  # [U] norms, by the parameters in which they are measured
    training_norms: Float64Array  # [U]
    states: Mapping[StatesKind, FloatArray]  # [P, F]

    def draw(self, prompt: int, *, num: int, first_index: int, rng: np.random.Generator) -> GroupOutcome:
        """Draw `num` samples of a prompt. The outcome's ref holds their indices into the responses."""
        samples = self.samples[prompt]
        return self.outcome(prompt, samples[rng.integers(len(samples), size=num)], first_index=first_index)

    def outcome(self, prompt: int, responses: IndexArray, *, first_index: int = 0) -> GroupOutcome:
        """Return these responses as one group."""
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
        """Mean [num_targets] of `values` [U] over each target's samples in `chosen` [U]; 0 for targets without any."""
        means = np.zeros(self.num_targets)
        for prompt, samples in enumerate(self.samples[: self.num_targets]):
            kept = samples[chosen[samples]]
            means[prompt] = values[kept].mean() if kept.size else 0.0
        return means

    def index_of(self) -> dict[str, int]:
        """prompt_id -> index of the prompt."""
        return {prompt.prompt_id: index for index, prompt in enumerate(self.prompts)}
