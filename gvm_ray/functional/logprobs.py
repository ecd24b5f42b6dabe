"""Token log-probabilities from hidden states, without the logits of a whole batch alive at once.

The logits of one 4,096-token response over a 152k vocabulary take 2.5 GB in float32, and their gradient as much again;
here only `chunk_tokens` rows of them exist at any time, in the forward pass and in the backward pass.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gvm_ray.functional.output_head import OutputHead


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
