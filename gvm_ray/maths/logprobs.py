"""The output head of a causal LM, and token log-probs without materialising all logits."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputHead:
    """The matrix W, and extras of some model families: a bias (Phi), a scale (Granite, Cohere), a cap (Gemma 2)."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    soft_cap: float | None = None  # bound on the absolute logits

    def logits(self, states: Tensor) -> Tensor:
        """Compute float32 logits [..., V] of states [..., H]; the product is computed in the dtype of the operands."""
        logits = torch.nn.functional.linear(states, self.weight, self.bias).float()
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
    the operands and reduced in float32; the backward pass recomputes them, chunk by chunk.

    Args:
        hidden: [..., H] states that predict the targets.
        head: output head with V tokens.
        targets: [...] token ids.
        temperature: temperature of the sampling distribution.
        chunk_tokens: rows of logits alive at once.
        with_entropy: compute the entropies too.
        entropy_gradient: let gradients flow through the entropies; false saves the memory for it.

    Returns:
        Float32 log-probabilities [...] in nats, and entropies [...] in nats or None.
    """
    rows, ids = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for start in range(0, max(len(ids), 1), chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        operands = (rows[chunk], head, ids[chunk], temperature, with_entropy, entropy_gradient)
        if torch.is_grad_enabled() and len(ids) > chunk_tokens:
            logprob, entropy = checkpoint(_chunk_logprobs, *operands, use_reentrant=False)
        else:
            logprob, entropy = _chunk_logprobs(*operands)
        logprobs.append(logprob)
        entropies.append(entropy)
    shape = targets.shape
    return torch.cat(logprobs).view(shape), torch.cat(entropies).view(shape) if with_entropy else None


def _chunk_logprobs(
    hidden: Tensor,
    head: OutputHead,
    targets: Tensor,
    temperature: float,
    with_entropy: bool,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    logits = head.logits(hidden) / temperature
    log_normalizer = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1) - log_normalizer
    if not with_entropy:
        return logprobs, logprobs.new_empty(0)
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
        expected_logit = ((logits - log_normalizer.unsqueeze(-1)).exp() * logits).sum(-1)
        return logprobs, log_normalizer - expected_logit
