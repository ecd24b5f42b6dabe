"""What an optimizer update minimizes, one micro-batch at a time: a batch's loss is the sum of its micro-batches'."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gvm_ray.learner.metric_sums import MetricSums
from gvm_ray.learner.policy import PolicyModule
from gvm_ray.learner.sequences import SequenceBatch, TrainSample, pad_values
from gvm_ray.learner.token_loss import TokenLoss


class MicroBatchLoss(Protocol):
    """A micro-batch's term of the loss; measures go into `sums`."""

    def __call__(self, padded: SequenceBatch, members: Sequence[TrainSample], sums: MetricSums) -> Tensor: ...


class PolicyLoss:
    """sum_i weight_i sum_t loss_it, with an algorithm's loss of each token.

    Args:
        policy: the policy.
        reference: log-probs of the policy that the loss keeps it near, where it does.
        token_loss: the algorithm's.
    """

    def __init__(
        self,
        policy: PolicyModule,
        *,
        reference: Callable[[SequenceBatch], tuple[Tensor, Tensor | None]] | None,
        token_loss: TokenLoss,
    ) -> None:
        self._policy = policy
        self._reference = reference
        self._token_loss = token_loss

    def __call__(self, padded: SequenceBatch, members: Sequence[TrainSample], sums: MetricSums) -> Tensor:
        needs_entropy = self._token_loss.needs_entropy
        reference = None
        if self._reference is not None:  # first: it may be the policy itself, without its adapters
            with torch.no_grad():
                reference, _ = self._reference(padded)
        logprobs, entropy = self._policy(padded, with_entropy=True, entropy_gradient=needs_entropy)
        engine = pad_values([s.engine_logprobs for s in members], like=logprobs)
        old = logprobs.detach()
        if members and members[0].old_logprobs is not None:
            old = pad_values([s.old_logprobs for s in members if s.old_logprobs is not None], like=logprobs)
        losses, diagnostics = self._token_loss(
            logprobs=logprobs,
            old_logprobs=old,
            engine_logprobs=engine,
            ref_logprobs=reference,
            entropy=entropy if needs_entropy else None,
            advantages=_column([s.advantage for s in members], like=logprobs),
            mask=padded.mask,
        )
        difference = (old - engine).abs()
        differences = {"logprob_difference/mean": difference, "logprob_difference/max": difference}
        for name, values in (diagnostics | {"entropy": entropy.detach()} | differences).items():
            sums.add_tokens(name, values, mask=padded.mask)
        weights = _column([s.weight for s in members], like=logprobs)
        return (torch.where(padded.mask, losses, 0.0) * weights).sum()


class CrossEntropy:
    """-sum_i weight_i sum_t ln pi_it at temperature 1."""

    def __init__(self, policy: PolicyModule) -> None:
        self._policy = policy

    def __call__(self, padded: SequenceBatch, members: Sequence[TrainSample], sums: MetricSums) -> Tensor:
        logprobs, _ = self._policy(padded, temperature=1.0)
        return -(logprobs * _column([s.weight for s in members], like=logprobs)).sum()


def _column(values: Sequence[float], *, like: Tensor) -> Tensor:
    """[B, 1] of one number a sample; 0 for the row that stands for no sample."""
    return torch.tensor(values or [0.0], dtype=torch.float32, device=like.device).unsqueeze(1)
