"""What the learner asks of a loss; `gvm_ray.algorithms` makes them, and they come in from outside."""

from typing import Protocol

from torch import Tensor


class TokenLoss(Protocol):
    """Loss of every response token, before masking, weighting and reduction."""

    @property
    def needs_reference(self) -> bool: ...

    @property
    def needs_entropy(self) -> bool: ...

    def __call__(
        self,
        *,
        logprobs: Tensor,
        old_logprobs: Tensor,
        engine_logprobs: Tensor,
        ref_logprobs: Tensor | None,
        entropy: Tensor | None,
        advantages: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B, T], detached diagnostics [B, T]. Log-probs and entropies are [B, T] in nats, advantages [B, 1]."""
        ...
