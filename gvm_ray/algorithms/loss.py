"""The token loss of an algorithm, as called by the learners."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gvm_ray.config.strategy import AlgorithmSettings, ImportanceConfig, LossConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.maths.losses import ImportanceCorrection, KLKind, policy_loss
from gvm_ray.settings import import_object


@dataclass(frozen=True)
class CustomSurrogate:
    """A user's loss function: its import path and parameters. Picklable, for each process imports it for itself."""

    path: str
    parameters: Mapping[str, Any]

    @classmethod
    def checked(cls, config: LossConfig) -> "CustomSurrogate":
        """Create the loss from the settings, and try it on a small batch.

        Raises:
            ConfigError: the function can't be imported, raises, or returns something other than a loss per token.
        """
        made = cls(config.path, config.parameters)
        logprobs = torch.tensor([[-0.5, -1.0, -2.0], [-0.1, -0.2, 0.0]], requires_grad=True)
        mask = torch.tensor([[True, True, True], [True, True, False]])
        try:
            losses = made(logprobs, old_logprobs=logprobs.detach(), advantages=torch.tensor([[1.0], [-1.0]]), mask=mask)
        except ImportError as error:
            raise ConfigError(f"algorithm.loss.path: {error}") from error
        except ConfigError:
            raise
        except Exception as error:  # the user's function may raise anything
            raise ConfigError(
                f"algorithm.loss.path: {config.path!r} raised {type(error).__name__} on a small batch: {error}; it is "
                "called with logprobs, with the keywords old_logprobs, advantages and mask, and with the "
                f"algorithm.loss.parameters ({', '.join(config.parameters) or 'none'})"
            ) from error
        if not losses.requires_grad:
            raise ConfigError(
                f"algorithm.loss.path: the result of {config.path!r} doesn't depend on logprobs, so nothing would be "
                "learned; compute it from logprobs, not from logprobs.detach()"
            )
        return made

    def __call__(self, logprobs: Tensor, **inputs: Any) -> Tensor:
        """Compute the losses [B, T].

        Raises:
            ImportError: the function can't be imported here.
            ConfigError: the function returned something other than a tensor [B, T].
        """
        losses = import_object(self.path)(logprobs, **inputs, **self.parameters)
        if not isinstance(losses, Tensor) or losses.shape != logprobs.shape:
            shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ConfigError(
                f"algorithm.loss.path: {self.path!r} returned {shape}; return a tensor with the shape of logprobs, "
                f"{list(logprobs.shape)}: one loss per token, neither masked nor averaged"
            )
        return losses


@dataclass(frozen=True, kw_only=True)
class AlgorithmLoss:
    """The loss of every token of [B, T] responses. The learner applies sample weights and reduces."""

    ratio: bool  # false: likelihood of the samples (RAFT), without importance ratio and clip
    clip_low: float
    clip_high: float
    dual_clip: float | None
    importance: ImportanceCorrection | None
    kl_coefficient: float
    kl_kind: KLKind
    entropy_coefficient: float
    old_is_engine: bool = False  # old log-probs are those of sampling
    surrogate: CustomSurrogate | None = None  # in place of ratio and clip

    @classmethod
    def from_settings(cls, config: AlgorithmSettings) -> "AlgorithmLoss":
        """Create the loss that the settings describe.

        Raises:
            ConfigError: the settings name a function that can't be imported or doesn't return a loss per token.
        """
        return cls(
            ratio=config.has_ratio,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            importance=_importance_correction(config.importance),
            kl_coefficient=config.kl.coefficient,
            kl_kind=config.kl.kind,
            entropy_coefficient=config.entropy_coefficient,
            old_is_engine=config.old_logprobs == "engine",
            surrogate=config.loss and CustomSurrogate.checked(config.loss),
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss needs log-probs of the reference policy."""
        return self.kl_coefficient > 0

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss needs entropies, with their gradient."""
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
        """Compute losses [B, T] and detached diagnostics [B, T]; `maths.losses.policy_loss` explains the arguments."""
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
            old_is_engine=self.old_is_engine,
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
