"""What the learners train on and give back, and what a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from gvm_ray.types.arrays import BoolArray, Float64Array, IntArray, Metrics
from gvm_ray.types.rollouts import GroupRef


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
    location: Any  # object refs of the buckets, or LiveWeights; in tests the tensors themselves


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
