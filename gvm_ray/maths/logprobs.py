"""The output head of a causal LM, and token log-probs without materialising all logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputHead:
    """The matrix W, and extras of some model families: a bias (Phi), a scale (Granite, Cohere), a cap (Gemma 2)."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    soft_cap: float | None = None  # bound on the absolute logits

    def logits(self, states: Tensor) -> Tensor:
        """Compute float32 logits [..., V] of states [..., H]; the product is computed in the dtype of the operands."""
        logits = linear(states, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = (logits / self.soft_cap).tanh() * self.soft_cap
        return logits

    def finish_(self, products: Tensor, tokens: Tensor | slice) -> Tensor | None:
        """Turn float32 products of states and rows of W into logits, in place.

        Returns:
            The derivative of each logit by its product, divided by `scale`; None if that is 1.

        Args:
            products: [..., N].
            tokens: the tokens of the rows of W, broadcast against the products.
        """
        if self.bias is not None:
            products.add_(self.bias[tokens])
        if self.scale != 1.0:
            products.mul_(self.scale)
        if self.soft_cap is None:
            return None
        products.div_(self.soft_cap).tanh_()
        slopes = 1 - products.square()
        products.mul_(self.soft_cap)
        return slopes


def token_logprobs(
    hidden: Tensor,
    head: OutputHead,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: bool = False,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Compute the log-probabilities of `targets` and, on request, the entropies of their distributions.

    Equal to log_softmax(head.logits(hidden) / temperature) gathered at the targets. Logits are computed in the dtype of
    the operands and reduced in float32, `chunk_tokens` rows after the other. The first 2 `chunk_tokens` distributions
    are kept for the backward pass (one `chunk_tokens` if the head has a soft cap); the others are computed again.

    Args:
        hidden: [..., H] states that predict the targets.
        head: output head with V tokens.
        targets: [...] token ids.
        temperature: temperature of the sampling distribution.
        chunk_tokens: rows of V logits in work at once; in memory are at most four times as many.
        with_entropy: compute the entropies too.
        entropy_gradient: let gradients flow through the entropies.

    Returns:
        Float32 log-probabilities [...] in nats, and entropies [...] in nats or None.
    """
    rows, ids = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1).long()
    reduction = _Reduction(
        scale=head.scale,
        soft_cap=head.soft_cap,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        with_entropy=with_entropy,
        entropy_gradient=with_entropy and entropy_gradient,
        keeps=torch.is_grad_enabled(),
    )
    logprobs, entropies = _TokenLogprobs.apply(rows, head.weight, head.bias, ids, reduction)
    return logprobs.view(targets.shape), entropies.view(targets.shape) if with_entropy else None


def token_entropies(hidden: Tensor, head: OutputHead, *, temperature: float = 1.0, chunk_tokens: int = 1024) -> Tensor:
    """Compute the entropies [...] in float32 nats of the distributions that states [..., H] predict, without gradients.

    Arguments as for :func:`token_logprobs`.
    """
    any_token = torch.zeros(hidden.shape[:-1], dtype=torch.int64, device=hidden.device)
    with torch.no_grad():
        _, entropies = token_logprobs(
            hidden, head, any_token, temperature=temperature, chunk_tokens=chunk_tokens, with_entropy=True
        )
    assert entropies is not None
    return entropies


@dataclass(frozen=True, kw_only=True)
class _Reduction:
    """Settings of the way from states to log-probs and back."""

    scale: float
    soft_cap: float | None
    temperature: float
    chunk_tokens: int
    with_entropy: bool
    entropy_gradient: bool
    keeps: bool  # distributions, for a backward pass

    @property
    def kept_rows(self) -> int:
        """Number of rows whose distributions are kept."""
        return self.keeps * (2 if self.soft_cap is None else 1) * self.chunk_tokens

    def chunks(self, num_rows: int) -> list[slice]:
        """Slices of rows, at least one."""
        return [slice(start, start + self.chunk_tokens) for start in range(0, max(num_rows, 1), self.chunk_tokens)]

    def distributions(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Float32 ln p [N, V] of all tokens, and the slopes of `OutputHead.finish_`."""
        logits = linear(rows, weight).float()
        head = OutputHead(weight=weight, bias=bias, scale=self.scale, soft_cap=self.soft_cap)
        slopes = head.finish_(logits, slice(None))
        if self.temperature != 1.0:
            logits.div_(self.temperature)
        return logits.log_softmax(-1), slopes

    def errors_(
        self, log_p: Tensor, ids: Tensor, entropies: Tensor, *, of_logprobs: Tensor, of_entropies: Tensor
    ) -> Tensor:
        """Overwrite ln p [N, V] with the gradient at the logits before temperature, given those at the results.

        d ln p_y / d logits = onehot(y) - p, and with the entropy h = -sum p ln p, d h / d logits = -p (ln p + h).
        """
        factors = (of_logprobs / self.temperature).unsqueeze(-1)
        if self.entropy_gradient:
            surprise = (log_p + entropies.unsqueeze(-1)).mul_((of_entropies / self.temperature).unsqueeze(-1))
            errors = log_p.exp_().mul_(surprise.add_(factors)).neg_()
        else:
            errors = log_p.exp_().mul_(-factors)
        return errors.scatter_add_(-1, ids.unsqueeze(-1), factors)


class _TokenLogprobs(Function):
    """Log-probs and entropies [N] of rows [N, H], with a backward pass that overwrites the kept distributions."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, reduction: _Reduction
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        entropies = torch.zeros_like(logprobs)
        ctx.kept = {}
        for part in reduction.chunks(len(rows)):
            log_p, slopes = reduction.distributions(rows[part], weight, bias)
            logprobs[part] = log_p.gather(-1, ids[part].unsqueeze(-1)).squeeze(-1)
            if reduction.with_entropy:
                entropies[part] = -torch.linalg.vecdot(log_p.exp(), log_p)
            if part.stop <= reduction.kept_rows:
                ctx.kept[part.start] = log_p, slopes
        ctx.save_for_backward(rows, weight, bias, ids, entropies)
        ctx.reduction = reduction
        if not reduction.entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, ids, entropies = ctx.saved_tensors
        reduction: _Reduction = ctx.reduction
        of_rows, of_weight, of_bias = (
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip((rows, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for part in reduction.chunks(len(rows)):
            # Once overwritten, a distribution is computed again by another backward pass.
            log_p, slopes = ctx.kept.pop(part.start, None) or reduction.distributions(rows[part], weight, bias)
            of_logprobs, of_entropies = (gradient[part] for gradient in gradients)
            errors = reduction.errors_(
                log_p, ids[part], entropies[part], of_logprobs=of_logprobs, of_entropies=of_entropies
            )
            if slopes is not None:
                errors.mul_(slopes)
            if reduction.scale != 1.0:
                errors.mul_(reduction.scale)
            if of_bias is not None:
                of_bias += errors.sum(0)
            errors = errors.to(weight.dtype)
            if of_rows is not None:
                torch.mm(errors, weight, out=of_rows[part])
            if of_weight is not None:
                of_weight.addmm_(errors.T, rows[part])
        return of_rows, of_weight, of_bias, None, None
