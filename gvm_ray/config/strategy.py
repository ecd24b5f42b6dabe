"""Settings of the learning algorithm: advantages, loss, KL and importance weights."""

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from gvm_ray.allocators import AllocatorSettings
from gvm_ray.allocators.base import AllocatorConfig, RunShape
from gvm_ray.settings import Count, NonNegative, Positive, Probability, Settings

Weighting = Literal["prompt_mean", "inverse", "token_mean"]


class KLConfig(Settings):
    """KL penalty in the loss against the frozen starting policy; coefficient 0 turns it (and its forward pass) off."""

    coefficient: NonNegative = 0.0  # weight of the penalty
    kind: Literal["k1", "k2", "k3"] = "k3"  # estimator of the divergence: verl's kl, mse, low_var_kl


class ImportanceConfig(Settings):
    """Weight w = learner's / engine's probability of a sampled token, or of the whole response (the product).

    It corrects for differences between the engine's and the learner's kernels, and for staleness. `truncate` weighs
    with min(w, cap). `mask` weighs with w if floor <= w <= cap, and drops other tokens or responses.
    """

    # "sequence" is unbiased but varies more, the longer responses are; "off" = all weights are 1.
    level: Literal["token", "sequence", "off"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: Annotated[float, Field(ge=1)] = 2.0  # the largest weight; a lower one varies less, with more bias
    floor: Probability = 0.5  # for mode "mask"; w varies more for responses than for tokens

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> "ImportanceConfig":
        if self.mode == "mask" and self.floor >= self.cap:
            raise ValueError(
                f"floor={self.floor} is not below cap={self.cap}, so everything but exact agreement would be masked; "
                "write e.g. floor=0.5, cap=2.0"
            )
        return self


class LossConfig(Settings):
    """A token loss of your own. `module:function` is called with `logprobs` [B, T] and the keywords `old_logprobs`
    [B, T], `advantages` [B, 1] and `mask` [B, T], and returns losses [B, T].

    It replaces the clipped ratio (or RAFT's likelihood), so clip_low, clip_high and dual_clip have no effect;
    importance weights, KL and entropy terms still apply.
    """

    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")  # e.g. "my_package.losses:cispo"
    parameters: dict[str, Any] = Field(default_factory=dict)  # further keyword arguments of the function


class _AlgorithmBase(Settings):
    # Facts of an algorithm that other parts of a run have to agree with.
    group_baseline: ClassVar[bool] = False  # of a prompt's other samples: a sample alone teaches nothing
    divides_by_accept_rates: ClassVar[bool] = False  # with weighting "inverse"
    takes_baselines: ClassVar[bool] = False  # from the allocator
    divides_by_deviation: ClassVar[bool] = False  # the advantage, by the standard deviation of the prompt's reward
    has_ratio: ClassVar[bool] = True  # the loss has an importance ratio, which is clipped

    # The estimator's weighting, separate from allocation. "inverse" (arXiv 2505.02391, Lemma 1) needs an allocator that
    # knows accept rates independent of the samples; if no sample is rejected, as with a baseline, it equals
    # "prompt_mean".
    weighting: Weighting = "prompt_mean"
    updates_per_batch: Count = 1  # optimizer updates on one step's samples, whatever their number
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2  # the policy ratio is clipped at 1 - clip_low
    clip_high: Positive = 0.2  # the policy ratio is clipped at 1 + clip_high
    dual_clip: Annotated[float, Field(gt=1)] | None = None  # arXiv 1912.09729, equation 5
    kl: KLConfig = KLConfig()
    entropy_coefficient: NonNegative = 0.0  # weight of the entropy term, which favours varied responses
    importance: ImportanceConfig = ImportanceConfig()
    # The old policy of ratio and clip. "learner": the learner's log-probs from before the batch's first update, from a
    # pass of their own if there are several updates. "engine": those of sampling, which spares that pass. The bounds of
    # [algorithm.importance] then apply to the ratio of the policy being updated to the engine's.
    old_logprobs: Literal["learner", "engine"] = "learner"
    loss: LossConfig | None = None

    @property
    def mixes_prompts(self) -> bool:
        """True if a sample's advantage depends on other prompts of the batch."""
        return False

    @model_validator(mode="after")
    def _engine_is_corrected(self) -> "_AlgorithmBase":
        if self.old_logprobs == "engine" and self.importance.level == "off":
            raise ValueError(
                "old_logprobs='engine' takes the engine's log-probs as they are, and importance.level='off' bounds no "
                "difference from the learner's; write importance.level='token' or 'sequence', or old_logprobs='learner'"
            )
        if self.old_logprobs == "engine" and self.loss is not None:
            raise ValueError(
                f"old_logprobs='engine' bounds the built-in ratio, which loss.path={self.loss.path!r} replaces; write "
                "old_logprobs='learner'"
            )
        return self


class RaftConfig(_AlgorithmBase):
    """RAFT (arXiv 2304.06767): log-likelihood of the accepted samples, no importance ratio."""

    divides_by_accept_rates = True
    has_ratio = False
    type: Literal["raft"] = "raft"


class RaftPlusPlusConfig(_AlgorithmBase):
    """RAFT++ (arXiv 2504.11343): accepted samples only, with token-level importance ratio and clipping."""

    divides_by_accept_rates = True
    type: Literal["raft++"] = "raft++"


class AdvantageSettings(_AlgorithmBase):
    """Settings of algorithms that train on every scored sample, by its advantage."""

    takes_baselines = True

    # A = (A - mean) / std over the batch, after all baselines, the allocator's included. The moments are over its
    # samples (SPO, arXiv 2509.13232) or, so that they are those of a loss that sums over tokens, over its trained
    # tokens: mean = sum L A / sum L, std^2 = sum L (A - mean)^2 / (sum L - 1) (SPO++, arXiv 2608.24870).
    advantage_normalization: Literal["none", "samples", "tokens"] = "none"

    @property
    def mixes_prompts(self) -> bool:
        """True if a sample's advantage depends on other prompts of the batch."""
        return self.advantage_normalization != "none"

    @property
    def normalization_epsilon(self) -> float:
        """The addition to the batch's standard deviation, as in SPO."""
        return 1e-8


class _GroupBaseline(AdvantageSettings):
    group_baseline = True

    tolerance: NonNegative = 0.0  # rewards of a group that differ by no more are equal: the group trains nothing


class GRPOConfig(_GroupBaseline):
    """GRPO (arXiv 2402.03300): advantages (r - mean) / (std + epsilon) within the group.

    With baselines b and deviations s from the allocator (r - b) / s. Dr. GRPO and RLOO have r - b then.
    """

    divides_by_deviation = True
    type: Literal["grpo"] = "grpo"
    epsilon: Positive = 1e-6  # added to the group's standard deviation


class DrGRPOConfig(_GroupBaseline):
    """Dr. GRPO (arXiv 2503.20783): advantages r - mean, without normalisation by std or length."""

    type: Literal["dr_grpo"] = "dr_grpo"


class RLOOConfig(_GroupBaseline):
    """RLOO (arXiv 2402.14740): the baseline of a sample is the mean of the others in its group."""

    type: Literal["rloo"] = "rloo"
    # Shrinks the mean of the others to the mean of the batch's other prompts (James-Stein, arXiv 2511.03710): the more,
    # the less the prompts' means differ beside their noise. Groups of equal rewards then train too.
    shrinkage: bool = False

    @property
    def mixes_prompts(self) -> bool:
        """True if a sample's advantage depends on other prompts of the batch."""
        return self.shrinkage or super().mixes_prompts

    @model_validator(mode="after")
    def _equal_rewards_are_shrunk(self) -> "RLOOConfig":
        if self.shrinkage and self.tolerance:
            raise ValueError(
                f"tolerance={self.tolerance} takes rewards of a group as equal, so that it trains nothing, but with "
                "shrinkage every group trains; leave out one of them"
            )
        return self


class ReinforcePlusPlusConfig(AdvantageSettings):
    """REINFORCE++ (arXiv 2501.03262): rewards normalised over the whole batch.

    With baselines from the allocator it normalises r - b.
    """

    type: Literal["reinforce++"] = "reinforce++"
    # "tokens": each token counts once. "none": plain REINFORCE with the reward, or r - b.
    advantage_normalization: Literal["none", "samples", "tokens"] = "samples"
    epsilon: Positive = 1e-6  # added to the batch's standard deviation

    @property
    def normalization_epsilon(self) -> float:
        """The addition to the batch's standard deviation."""
        return self.epsilon


class CustomAlgorithmConfig(AdvantageSettings):
    """Any importable `module:Class` that satisfies `protocols.Algorithm`; the token loss is the built-in one."""

    divides_by_deviation = True
    type: Literal["custom"] = "custom"
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")  # e.g. "my_package.algorithms:MyAlgorithm"
    parameters: dict[str, Any] = Field(default_factory=dict)  # keyword arguments besides config and accept_threshold

    @property
    def mixes_prompts(self) -> bool:
        """True, as far as is known."""
        return True


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


def _check_own_baseline(algorithm: AlgorithmSettings, *, switch: str) -> None:
    """Refuse settings of a group's own baseline, which the allocator's replaces."""
    wrong = [name for name in ("tolerance", "shrinkage") if getattr(algorithm, name, False)]
    if wrong:
        value = getattr(algorithm, wrong[0])
        raise ValueError(
            f"algorithm.{wrong[0]}={str(value).lower()} is of the group's own baseline, which the allocator's replaces "
            f"({switch}); write {switch}=false and groups of 2 or more, or leave {wrong[0]} out"
        )


def check_baselines(allocator: AllocatorConfig, algorithm: AlgorithmSettings, run: RunShape) -> None:
    """Refuse groups of one sample if the group mean is the baseline: the advantage would be 0 and nothing is learned.
    Refuse settings of a group's own baseline if the allocator gives one.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    smallest, switch = allocator.smallest_group(run), allocator.baseline_setting
    if allocator.gives_baselines:
        _check_own_baseline(algorithm, switch=f"allocator.{switch}")
        return
    if not algorithm.group_baseline or smallest is None or smallest.value >= 2:
        return
    other = f"allocator.{switch}=true" if switch else "an algorithm without a group baseline, e.g. 'reinforce++'"
    raise ValueError(
        f"{smallest.setting}={smallest.value} gives {algorithm.type} nothing to compare a prompt's only sample with, "
        f"so nothing would be learned; write {smallest.setting}=2 or more, or {other}"
    )


def check_accept_rates(allocator: AllocatorConfig, algorithm: AlgorithmSettings) -> None:
    """Refuse to divide by accept rates if the only known ones are those of the samples themselves.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    divides = algorithm.divides_by_accept_rates and algorithm.weighting == "inverse"
    if not divides or allocator.knows_accept_rates:
        return
    kind = getattr(allocator, "type", "")
    able = [name for name, settings in _allocators().items() if settings.model_construct().knows_accept_rates]
    raise ValueError(
        f"algorithm.weighting='inverse' divides by each prompt's accept rate, but allocator.type={kind!r} has none "
        "that is independent of the samples, or it selects samples by their rewards, so the estimate would be biased; "
        f"write algorithm.weighting='prompt_mean', or an allocator that knows accept rates: {', '.join(able)}"
    )


def _allocators() -> dict[str, type[AllocatorConfig]]:
    """By their `type`."""
    members = get_args(get_args(AllocatorSettings)[0])
    return {settings.model_fields["type"].default: settings for settings in members}


__all__ = [
    "AdvantageSettings",
    "AlgorithmSettings",
    "CustomAlgorithmConfig",
    "DrGRPOConfig",
    "GRPOConfig",
    "ImportanceConfig",
    "KLConfig",
    "LossConfig",
    "Probability",
    "RLOOConfig",
    "RaftConfig",
    "RaftPlusPlusConfig",
    "ReinforcePlusPlusConfig",
    "Weighting",
]
