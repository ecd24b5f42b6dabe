"""Demonstrations, training batches, update results, and the driver's part of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from gvm_ray.types.arrays import BoolArray, Float64Array, IntArray, Metrics
from gvm_ray.types.rollouts import GroupRef


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstration:
    """A prompt with a reference rationale, for the supervised warm start."""

    prompt_token_ids: IntArray  # [T_prompt]
    response_token_ids: IntArray  # [T_response], end-of-sequence included


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainGroup:
    """One group's training data."""

    prompt_id: str
    ref: GroupRef
    sample_indices: IntArray  # [k] kept samples, as indices into the group's completions
    advantages: Float64Array  # [k]
    weights: Float64Array  # [k]; the batch loss is sum_i weights_i * sum_t token_loss_it
    num_tokens: IntArray  # [k] response tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNorms:
    """Gradient norms of one group's trained samples, measured as a by-product of training."""

    prompt_id: str
    positive: BoolArray  # [k] advantage above 0
    norms: Float64Array  # [k] norm of the gradient of ln pi(response) without clipped tokens; NaN where not measured


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainBatch:
    """One step's training data: references to token-sized groups, and a few small numbers per sample."""

    step: int
    groups: tuple[TrainGroup, ...]
    metrics: Metrics = field(default_factory=dict)  # rollout metrics: rewards, lengths, advantages ...

    @property
    def num_samples(self) -> int:
        return sum(len(g.sample_indices) for g in self.groups)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightsRef:
    """A published policy: its version, and the location of its weights."""

    policy_version: int
    location: Any  # object refs of the buckets, or LiveWeights; in tests the tensors themselves


@dataclass(frozen=True, kw_only=True, eq=False)
class UpdateResult:
    """The result of one training step."""

    weights: WeightsRef
    metrics: Metrics  # learner metrics; "num_updates" counts the optimizer updates made
    # If the run asks for `training_gradient_norms`: [k] for each group of the batch, aligned with sample_indices, norm
    # of the gradient of sum_t token_loss_t in the input embedding. NaN at weight 0, and if no update was made.
    gradient_norms: tuple[Float64Array, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointState:
    """The driver's part of a checkpoint: everything needed to continue except the learners' shards.

    All fields but `prompt_states` are JSON values.
    """

    step: int  # steps completed
    policy_version: int
    cursor: Mapping[str, Any]
    allocator: Mapping[str, Any]
    costs: Mapping[str, float]
    prompt_states: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # those the allocator still needs
