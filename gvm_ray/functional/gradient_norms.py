"""Exact per-sample gradient norms of embedding and output-head matrices, without a backward pass per sample.

For a sample with objective sum_t ln softmax(W h_t / tau)[y_t] over its response tokens, the gradient of the head is
sum_t d_t h_t^T with d_t = (onehot(y_t) - softmax_t) / tau. Its Frobenius norm follows from forward quantities alone;
the gradient of the input embedding follows from the gradient with respect to the embedding *activations*, which one
batched backward pass gives for all samples at once.
"""

import torch
from torch import Tensor


def head_gradient_square_norms(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    max_elements: int = 2**26,
) -> Tensor:
    """[B] squared Frobenius norms of each sample's output-head gradient.

    sum_{t,u} (d_t . d_u)(h_t . h_u) from two T x T Gram matrices where T <= H; sum_v |sum_t d_tv h_t|^2 where T > H,
    which then takes fewer operations and no T x T matrix. Either way the vocabulary is walked in slices, so that
    d [B, T, V] never exists.

    Args:
        hidden: [B, T, H] states that predict the targets.
        head_weight: [V, H].
        targets: [B, T] token ids.
        mask: [B, T] True where there is a token.
        temperature: of the sampling distribution.
        max_elements: size of the largest temporary, in elements.
    """
    num_samples, length, width = hidden.shape
    rows = max(1, max_elements // (max(length, width) * length))
    parts = [
        _head_square_norms(hidden[i : i + rows], head_weight, targets[i : i + rows], mask[i : i + rows],
                           temperature=temperature, max_elements=max_elements)
        for i in range(0, num_samples, rows)
    ]  # fmt: skip
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _head_square_norms(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, mask: Tensor, *, temperature: float, max_elements: int
) -> Tensor:
    num_samples, length, width = hidden.shape
    states = hidden.float() * mask.unsqueeze(-1)  # a padded state contributes to neither factor
    step = max(1, max_elements // (num_samples * max(length, width)))
    log_normalizer = _log_normalizer(states, head_weight, temperature=temperature, step=step)
    use_gram = length <= width
    gram = states.new_zeros(num_samples, length, length) if use_gram else None
    square_norms = states.new_zeros(num_samples)
    for start in range(0, len(head_weight), step):
        weight = head_weight[start : start + step].float()
        error = -(states @ weight.T / temperature - log_normalizer.unsqueeze(-1)).exp()  # [B, T, slice]
        local = targets.long() - start
        inside = (local >= 0) & (local < len(weight))
        error.scatter_add_(-1, local.clamp(0, len(weight) - 1).unsqueeze(-1), inside.to(error.dtype).unsqueeze(-1))
        if gram is not None:
            gram += error @ error.transpose(1, 2)
        else:
            square_norms += (error.transpose(1, 2) @ states).square().sum((1, 2))
    if gram is not None:
        square_norms = (gram * (states @ states.transpose(1, 2))).sum((1, 2))
    return square_norms / temperature**2


def embedding_gradient_square_norms(activation_gradients: Tensor, input_ids: Tensor) -> Tensor:
    """[B] squared Frobenius norms of each sample's input-embedding gradient.

    Row v of the gradient is the sum of the activation gradients at the positions where token v stands.

    Args:
        activation_gradients: [B, S, H] gradient of the summed objectives at the embedding layer's output; zero at
            padded positions.
        input_ids: [B, S] token ids.
    """
    num_samples, length, width = activation_gradients.shape
    samples = torch.arange(num_samples, device=input_ids.device).repeat_interleave(length)
    stride = int(input_ids.max()) + 1
    keys, inverse = torch.unique(samples * stride + input_ids.reshape(-1).long(), return_inverse=True)
    rows = activation_gradients.new_zeros(len(keys), width, dtype=torch.float32)
    rows.index_add_(0, inverse, activation_gradients.reshape(-1, width).float())
    return rows.new_zeros(num_samples).index_add_(0, keys // stride, rows.square().sum(-1))


def tied_gradient_inner_products(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    activation_gradients: Tensor,
    input_ids: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """[B] inner products of the head's and the input embedding's gradients, for tied weights.

    Only the rows of tokens that occur in the input count: sum_{s,t} (e_s . h_t) d_t[x_s]. With it the squared norm of
    the tied gradient is the head's + the embedding's + twice this. Arguments as in the two functions above.
    """
    products = []
    for states, ids, present, gradients, inputs in zip(
        hidden, targets.long(), mask, activation_gradients, input_ids.long(), strict=True
    ):
        states = states[present].float()
        log_normalizer = _log_normalizer(states, head_weight, temperature=temperature, step=len(head_weight))
        logits = states @ head_weight[inputs].float().T / temperature  # [T, S]
        error = (ids[present].unsqueeze(-1) == inputs).float() - (logits - log_normalizer.unsqueeze(-1)).exp()
        products.append((states @ gradients.float().T * error).sum() / temperature)
    return torch.stack(products) if products else hidden.new_zeros(0, dtype=torch.float32)


def _log_normalizer(states: Tensor, head_weight: Tensor, *, temperature: float, step: int) -> Tensor:
    """[..., T] logsumexp of the logits, in slices of `step` vocabulary rows."""
    total = states.new_full(states.shape[:-1], float("-inf"))
    for start in range(0, len(head_weight), step):
        logits = states @ head_weight[start : start + step].float().T / temperature
        total = torch.logaddexp(total, logits.logsumexp(-1))
    return total
