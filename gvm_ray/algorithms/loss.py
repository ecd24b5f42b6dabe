"""The token loss of an algorithm as one picklable object, which the learners are handed from outside."""

from dataclasses import dataclass

from torch import Tensor

from gvm_ray.algorithms.custom_loss import CustomSurrogate
from gvm_ray.config.strategy import AlgorithmSettings, ImportanceConfig, RaftConfig
from gvm_ray.functional.losses import ImportanceCorrection, KLKind, policy_loss


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """Loss of every token of [B, T] responses; reduction and sample weights are the learner's."""

    ratio: bool  # false: likelihood of the samples (RAFT), neither importance ratio nor clip
    clip_low: float
    clip_high: float
    dual_clip: float | None
    importance: ImportanceCorrection | None
    kl_coefficient: float
    kl_kind: KLKind
    entropy_coefficient: float
    surrogate: CustomSurrogate | None = None  # in place of ratio and clip

    @classmethod
    def from_settings(cls, config: AlgorithmSettings) -> "TokenLoss":
        """The loss that these settings describe.

        Raises:
            ConfigError: a function that they name can't be imported, or is no loss.
        """
        return cls(
            ratio=not isinstance(config, RaftConfig),
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            importance=_importance_correction(config.importance),
            kl_coefficient=config.kl.coefficient,
            kl_kind=config.kl.kind,
            entropy_coefficient=config.entropy_coefficient,
            surrogate=config.loss and CustomSurrogate.checked(config.loss),
        )

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs of the reference policy are wanted."""
        return self.kl_coefficient > 0

    @property
    def needs_entropy(self) -> bool:
        """Whether entropies are wanted, with their gradient."""
        return self.entropy_coefficient > 0

    def __call__(
        self,
        *,
        logprobs: Tensor,
        old_logprobs: Tensor,
        engine_logprobs: Tensor,
        ref_logprobs: Tensor | None,
        entropy: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B, T] and detached diagnostics [B, T]; see `functional.losses.policy_loss` for the arguments."""
        return policy_loss(
            logprobs,
            old_logprobs=old_logprobs,
            advantages=advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            ratio=self.ratio,
            surrogate=self.surrogate,
            engine_logprobs=engine_logprobs,
            importance=self.importance,
            mask=mask,
            ref_logprobs=ref_logprobs,
            kl_coefficient=self.kl_coefficient,
            kl_kind=self.kl_kind,
            entropy=entropy,
            entropy_coefficient=self.entropy_coefficient,
        )


def _importance_correction(config: ImportanceConfig) -> ImportanceCorrection | None:
    if config.level == "off":
        return None
    return ImportanceCorrection(level=config.level, mode=config.mode, cap=config.cap, floor=config.floor)
