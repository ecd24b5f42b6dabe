"""Data types exchanged between the parts: frozen, with shapes and units. Imports nothing else of the project.

Token-sized fields are numpy arrays (never Python lists) and travel by object ref; the driver handles only the small
:class:`GroupOutcome`. Arrays from the object store are read-only, as befits frozen data.
Ragged axes: P prompts, n samples of one prompt (0, 1, 37 ...), T tokens of one completion.
"""

from gvm_ray.types.allocation import Allocation, AllocationReport, EstimatorTerms
from gvm_ray.types.arrays import (
    BoolArray,
    Float64Array,
    FloatArray,
    GradientParameters,
    Histograms,
    IndexArray,
    IntArray,
    Metrics,
    Pooling,
)
from gvm_ray.types.model import ModelSpec
from gvm_ray.types.rollouts import (
    Completion,
    FinishReason,
    GroupOutcome,
    GroupRef,
    OpenEpisodes,
    OpenOutcome,
    RolloutGroup,
    SampleKey,
    SampleRank,
    SampleRequest,
    SampleText,
    SamplingParameters,
    sample_seed,
    turn_seed,
)
from gvm_ray.types.tasks import Demonstration, Prompt
from gvm_ray.types.training import (
    CheckpointState,
    TrainBatch,
    TrainedNorms,
    TrainGroup,
    UpdateResult,
    WeightsRef,
)
from gvm_ray.types.transfer import (
    Delivery,
    FinishUpdate,
    JoinWorld,
    LiveWeights,
    ReceiveWeights,
    StartUpdate,
    TransferMember,
    TransferPhase,
    TransferWorld,
    WeightTransfer,
)

__all__ = [
    "Allocation",
    "AllocationReport",
    "BoolArray",
    "CheckpointState",
    "Completion",
    "Delivery",
    "Demonstration",
    "EstimatorTerms",
    "FinishReason",
    "FinishUpdate",
    "Float64Array",
    "FloatArray",
    "GradientParameters",
    "GroupOutcome",
    "GroupRef",
    "Histograms",
    "IndexArray",
    "IntArray",
    "JoinWorld",
    "LiveWeights",
    "Metrics",
    "ModelSpec",
    "OpenEpisodes",
    "OpenOutcome",
    "Pooling",
    "Prompt",
    "ReceiveWeights",
    "RolloutGroup",
    "SampleKey",
    "SampleRank",
    "SampleRequest",
    "SampleText",
    "SamplingParameters",
    "StartUpdate",
    "TrainBatch",
    "TrainGroup",
    "TrainedNorms",
    "TransferMember",
    "TransferPhase",
    "TransferWorld",
    "UpdateResult",
    "WeightTransfer",
    "WeightsRef",
    "sample_seed",
    "turn_seed",
]
