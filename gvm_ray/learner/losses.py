"""Losses of a micro-batch, and the sums behind their metrics."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gvm_ray.learner.policy import PolicyModule
from gvm_ray.learner.sequences import SequenceBatch, TrainSample, pad_values
from gvm_ray.types import Metrics


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


class MetricSums:
    """Plain sums, and means, maxima and effective sample sizes over response tokens.

    Values stay on the device until `reduce`. Every rank must add the same names in the same order.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {"loss": self._zeros()}
        self._moments: dict[str, Tensor] = {}  # [3]: number of tokens, sum of their values, sum of the squares
        self._maxima: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, name: str, value: Tensor) -> None:
        """Add a number to a sum."""
        self._sums[name] = self._sums.get(name, self._zeros()) + value.detach()

    @torch.no_grad()
    def add_tokens(self, name: str, values: Tensor, *, mask: Tensor) -> None:
        """Add the values [B, T] where `mask` is true; the last part of the name says what becomes of them.

        "max" is their maximum (at least 0), "effective_sample_size" (sum w)^2 / (n sum w^2) of weights w, in (0, 1],
        or 0 where all are 0; any other name is a mean.
        """
        values = torch.where(mask, values.detach(), 0.0).double()
        if name.endswith("/max"):
            self._maxima[name] = torch.maximum(self._maxima.get(name, self._zeros()), values.max())
        else:
            moments = torch.stack([mask.sum().double(), values.sum(), values.square().sum()])
            self._moments[name] = self._moments.get(name, self._zeros(3)) + moments

    def reduce(self) -> Metrics:
        """The metrics over all ranks; a collective call."""
        sums = torch.cat([torch.stack([*self._sums.values()]), *self._moments.values()])
        dist.all_reduce(sums)
        values = sums.tolist()
        metrics = dict(zip(self._sums, values, strict=False))
        for index, name in enumerate(self._moments):
            start = len(self._sums) + 3 * index
            count, total, square_total = values[start : start + 3]
            if name.endswith("/effective_sample_size"):
                metrics[name] = total**2 / (count * square_total) if square_total > 0 else 0.0
            else:
                metrics[name] = total / max(count, 1.0)
        if self._maxima:
            maxima = torch.stack([*self._maxima.values()])
            dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
            metrics |= dict(zip(self._maxima, maxima.tolist(), strict=True))
        return metrics

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)


class MicroBatchLoss(Protocol):
    """A micro-batch's term of the loss; measures go into `sums`."""

    def __call__(self, batch: SequenceBatch, members: Sequence[TrainSample], sums: MetricSums) -> Tensor: ...


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

    def __call__(self, batch: SequenceBatch, members: Sequence[TrainSample], sums: MetricSums) -> Tensor:
        needs_entropy = self._token_loss.needs_entropy
        reference = None
        if self._reference is not None:  # first: it may be the policy itself, without its adapters
            with torch.no_grad():
                reference, _ = self._reference(batch)
        logprobs, entropy = self._policy(batch, with_entropy=True, entropy_gradient=needs_entropy)
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
            mask=batch.mask,
        )
        difference = (old - engine).abs()
        differences = {"logprob_difference/mean": difference, "logprob_difference/max": difference}
        for name, values in (diagnostics | {"entropy": entropy.detach()} | differences).items():
            sums.add_tokens(name, values, mask=batch.mask)
        weights = _column([s.weight for s in members], like=logprobs)
        return (torch.where(batch.mask, losses, 0.0) * weights).sum()


class CrossEntropy:
    """-sum_i weight_i sum_t ln pi_it at temperature 1."""

    def __init__(self, policy: PolicyModule) -> None:
        self._policy = policy

    def __call__(self, batch: SequenceBatch, members: Sequence[TrainSample], sums: MetricSums) -> Tensor:
        logprobs, _ = self._policy(batch, temperature=1.0)
        return -(logprobs * _column([s.weight for s in members], like=logprobs)).sum()


def _column(values: Sequence[float], *, like: Tensor) -> Tensor:
    """[B, 1] of one number a sample; 0 for the row that stands for no sample."""
    return torch.tensor(values or [0.0], dtype=torch.float32, device=like.device).unsqueeze(1)
