"""The two decisions this package is about, kept apart: who gets how many samples, and what is learned from them."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gvm_ray.config.base import Count, NonNegative, NonNegativeCount, Positive, Probability, Settings


class UniformAllocatorConfig(Settings):
    """Every prompt gets samples_per_prompt samples."""

    type: Literal["uniform"] = "uniform"


class GVMAllocatorConfig(Settings):
    """Gradient variance minimization (arXiv 2505.02391): pilots, then n ~ G / sqrt(p + alpha / p^(beta - 1))."""

    type: Literal["gvm"] = "gvm"
    pilot_samples: Count = 4  # N', drawn from every prompt first; part of the budget
    alpha: Positive = 1e-3
    beta: Annotated[float, Field(ge=2)] = 2.0
    block_steps: Count = 1  # k steps share one pilot round
    reuse_pilots: bool = True  # train on the pilots too; false = as published
    gradient_parameters: Literal["embed_tokens", "lm_head"] = "embed_tokens"  # with tied embeddings either means both
    prior_successes: NonNegative = 0.5  # Beta prior of the accept rate; 0 and 0 = as published (p=0 gives n=0)
    prior_failures: NonNegative = 0.5
    min_samples: NonNegativeCount = 0
    max_samples: Count | None = None
    filter_threshold: Annotated[float, Field(gt=0, le=1)] | None = None  # a prompt with a higher accept rate gets none
    min_expected_accepted: NonNegative = 0.0  # a prompt expected to yield fewer accepted samples gets none

    @model_validator(mode="after")
    def _bounds(self) -> "GVMAllocatorConfig":
        if self.max_samples is not None and self.max_samples < self.min_samples:
            raise ValueError(
                f"max_samples={self.max_samples} is below min_samples={self.min_samples}; "
                f"write max_samples={self.min_samples} or more"
            )
        return self


class CustomAllocatorConfig(Settings):
    """Any importable `module:Class` that satisfies `protocols.AllocatorStrategy`."""

    type: Literal["custom"] = "custom"
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    parameters: dict[str, Any] = Field(default_factory=dict)  # keyword arguments besides accept_threshold


AllocatorSettings = Annotated[
    UniformAllocatorConfig | GVMAllocatorConfig | CustomAllocatorConfig, Field(discriminator="type")
]

Weighting = Literal["prompt_mean", "inverse", "token_mean"]


class KLConfig(Settings):
    """KL penalty in the loss against the frozen starting policy; coefficient 0 turns it (and its forward pass) off."""

    coefficient: NonNegative = 0.0
    kind: Literal["k1", "k2", "k3"] = "k3"


class ImportanceConfig(Settings):
    """Weight w = learner's / engine's probability of a sampled token, or of the whole response (the product).

    It corrects for other kernels in the engine than in the learner, and for staleness. `truncate` trains with
    min(w, cap); `mask` with w where floor <= w <= cap, and not at all on the other tokens or responses.
    """

    level: Literal["token", "sequence", "off"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: Annotated[float, Field(ge=1)] = 2.0
    floor: Probability = 0.5  # of mode "mask"; a response's w spreads wider than a token's

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> "ImportanceConfig":
        if self.mode == "mask" and self.floor >= self.cap:
            raise ValueError(
                f"floor={self.floor} is not below cap={self.cap}, so that all but exact agreement would be masked; "
                "write e.g. floor=0.5, cap=2.0"
            )
        return self


class _AlgorithmBase(Settings):
    weighting: Weighting = "prompt_mean"  # estimator weighting, apart from the allocation (arXiv 2505.02391, Lemma 1)
    updates_per_batch: Count = 1  # optimizer updates on one step's samples, whatever their number
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Positive = 0.2
    dual_clip: Annotated[float, Field(gt=1)] | None = None  # arXiv 1912.09729, equation 5
    kl: KLConfig = KLConfig()
    entropy_coefficient: NonNegative = 0.0
    importance: ImportanceConfig = ImportanceConfig()


class RaftConfig(_AlgorithmBase):
    """RAFT (arXiv 2304.06767): log-likelihood of the accepted samples, no importance ratio."""

    type: Literal["raft"] = "raft"


class RaftPlusPlusConfig(_AlgorithmBase):
    """RAFT++ (arXiv 2504.11343): accepted samples with token-level importance ratio and clipping."""

    type: Literal["raft++"] = "raft++"


class GRPOConfig(_AlgorithmBase):
    """GRPO (arXiv 2402.03300): advantages (r - mean) / (std + epsilon) within the group."""

    type: Literal["grpo"] = "grpo"
    epsilon: Positive = 1e-6


class DrGRPOConfig(_AlgorithmBase):
    """Dr. GRPO (arXiv 2503.20783): advantages r - mean, neither std nor length normalisation."""

    type: Literal["dr_grpo"] = "dr_grpo"


class RLOOConfig(_AlgorithmBase):
    """RLOO (arXiv 2402.14740): the baseline of a sample is the mean of the others in its group."""

    type: Literal["rloo"] = "rloo"


class ReinforcePlusPlusConfig(_AlgorithmBase):
    """REINFORCE++ (arXiv 2501.03262): rewards normalised over the whole batch."""

    type: Literal["reinforce++"] = "reinforce++"
    epsilon: Positive = 1e-6


class CustomAlgorithmConfig(_AlgorithmBase):
    """Any importable `module:Class` that satisfies `protocols.Algorithm`, with the clipped loss of the others."""

    type: Literal["custom"] = "custom"
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    parameters: dict[str, Any] = Field(default_factory=dict)  # keyword arguments besides config and accept_threshold


AlgorithmSettings = Annotated[
    RaftConfig
    | RaftPlusPlusConfig
    | GRPOConfig
    | DrGRPOConfig
    | RLOOConfig
    | ReinforcePlusPlusConfig
    | CustomAlgorithmConfig,
    Field(discriminator="type"),
]

__all__ = [
    "AlgorithmSettings",
    "AllocatorSettings",
    "CustomAlgorithmConfig",
    "CustomAllocatorConfig",
    "DrGRPOConfig",
    "GRPOConfig",
    "GVMAllocatorConfig",
    "ImportanceConfig",
    "KLConfig",
    "Probability",
    "RLOOConfig",
    "RaftConfig",
    "RaftPlusPlusConfig",
    "ReinforcePlusPlusConfig",
    "UniformAllocatorConfig",
    "Weighting",
]
