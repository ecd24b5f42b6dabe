"""The output head of a causal LM, and log-probs of tokens without a whole copy of the logits."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputHead:
    """W, and what some families add: Phi a bias, Granite and Cohere a scale, Gemma 2 a soft cap."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    soft_cap: float | None = None  # no logit is larger

    def logits(self, states: Tensor) -> Tensor:
        """Float32 logits [..., V] of states [..., H]; the product is computed in the operands' dtype."""
        logits = torch.nn.functional.linear(states, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = (logits / self.soft_cap).tanh() * self.soft_cap
        return logits

    def finish_(self, products: Tensor, tokens: Tensor | slice) -> Tensor | None:
        """Make logits, in place, of the float32 products of states and rows of W.

        Returns:
            The derivative of each logit by its product, divided by `scale`; None where that is 1.

        Args:
            products: [..., N].
            tokens: whose rows they are, broadcast against the products.
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
    """Log-probabilities of `targets` and, if asked for, the entropies of their distributions.

    Equal to log_softmax(head.logits(hidden) / temperature) gathered at the targets. Logits are computed in the dtype of
    the operands and reduced in float32; the backward pass computes them again, chunk by chunk.

    Args:
        hidden: [..., H] states that predict the targets.
        head: of V tokens.
        targets: [...] token ids.
        temperature: of the sampling distribution.
        chunk_tokens: rows of logits alive at once.
        with_entropy: compute the entropies too.
        entropy_gradient: let gradients flow through the entropies; false spares their share of the memory.

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
