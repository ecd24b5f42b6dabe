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
        mask: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B, T], and detached diagnostics [B, T] that `MetricSums.add_tokens` reduces by their names.

        Log-probs and entropies are [B, T] in nats, advantages [B, 1]; mask [B, T] is True at response tokens.
        """
        ...
