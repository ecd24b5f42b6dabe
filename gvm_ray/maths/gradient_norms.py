"""Exact per-sample gradient norms of embedding and output-head matrices, without a backward pass per sample.

A sample has the objective sum_t ln softmax(f(W h_t) / tau)[y_t] over its response tokens. f is the output head's
function of its products W h_t, for most models the identity. The gradient of W is sum_t d_t h_t^T with
d_t = f'(W h_t) (onehot(y_t) - softmax_t) / tau; the gradient of the state h_t is W^T d_t. One pass over slices of the
vocabulary gives both without a [B, T, V] tensor: as in FlashAttention (arXiv 2205.14135), sums of exponentials are
rescaled when a slice raises the maximum. The gradient of the input embedding follows from the gradients of the states,
by one batched backward pass for all samples.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gvm_ray.maths.logprobs import OutputHead

# Elements of a slice of logits: few enough for a core's cache, enough to keep a GPU busy.
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**19, 2**26


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadGradients:
    """Probabilities and gradients at the output head, for B samples of T response tokens, in float32."""

    log_normalizer: Tensor  # [B, T] logsumexp of the logits
    misses: Tensor  # [B, T] 1 - probability of the target, accurate even if tiny
    square_norms: Tensor | None  # [B] squared Frobenius norm of each sample's head gradient
    state_gradients: Tensor | None  # [B, T, H] gradient of the objectives at the states; 0 at padding


@torch.no_grad()
def head_gradients(
    hidden: Tensor,
    head: OutputHead,
    targets: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    square_norms: bool = True,
    state_gradients: bool = False,
    max_elements: int | None = None,
) -> HeadGradients:
    """Compute per-sample gradients of sum_t ln softmax(head.logits(h_t) / temperature)[y_t] by W and by the states.

    The squared norm by W is sum_{t,u} (d_t . d_u)(h_t . h_u), from two T x T Gram matrices. For long responses (T > 2H)
    fewer operations are needed for sum_v |sum_t d_tv h_t|^2, in a second pass.

    Args:
        hidden: [B, T, H] states that predict the targets.
        head: output head with V tokens.
        targets: [B, T] token ids.
        mask: [B, T] True at tokens, False at padding.
        temperature: temperature of the sampling distribution.
        square_norms: compute the squared norms.
        state_gradients: compute the gradients at the states.
        max_elements: number of elements of a slice of logits; None chooses by the device.
    """
    num_samples, length, width = hidden.shape
    limit = max_elements or (_CPU_ELEMENTS if hidden.device.type == "cpu" else _GPU_ELEMENTS)
    rows = max(1, math.isqrt(limit) // max(length, 1))
    log_normalizer, misses = (hidden.new_empty(num_samples, length, dtype=torch.float32) for _ in range(2))
    norms = hidden.new_empty(num_samples, dtype=torch.float32) if square_norms else None
    gradients = torch.empty_like(hidden, dtype=torch.float32) if state_gradients else None
    for start in range(0, num_samples, rows):
        part = slice(start, start + rows)
        samples = _Samples(
            states=hidden[part].float() * mask[part].unsqueeze(-1),  # padding adds nothing to any sum
            targets=targets[part].long(),
            head=head,
            temperature=temperature,
            step=max(1, limit // max(rows * length, 1)),
        )
        by_gram = length <= 2 * width
        sums = _walk(samples, with_gram=square_norms and by_gram, with_rows=state_gradients)
        log_normalizer[part], misses[part] = sums.log_normalizer, sums.misses
        if norms is not None:
            norms[part] = _gram_norms(samples, sums) if by_gram else _row_norms(samples, sums)
        if gradients is not None:
            gradients[part] = _state_gradients(samples, sums) * mask[part].unsqueeze(-1)
    return HeadGradients(log_normalizer=log_normalizer, misses=misses, square_norms=norms, state_gradients=gradients)


def embedding_gradient_square_norms(
    activation_gradients: Tensor, input_ids: Tensor, *, samples: Tensor | None = None
) -> Tensor:
    """Compute the squared Frobenius norm of each sample's input-embedding gradient, [B].

    Row v of the gradient is the sum of the activation gradients at the positions of token v.

    Args:
        activation_gradients: [R, S, H] gradient of the summed objectives at the embedding layer's output; zero at
            padded positions.
        input_ids: [R, S] token ids.
        samples: [R, S] index of each position's sample, 0 to B - 1, each used at least once; None if each row is one
            sample.
    """
    num_rows, length, width = activation_gradients.shape
    if samples is None:
        samples, num_samples = torch.arange(num_rows, device=input_ids.device).repeat_interleave(length), num_rows
    else:
        samples, num_samples = samples.reshape(-1), int(samples.max()) + 1
    stride = int(input_ids.max()) + 1
    keys, inverse = torch.unique(samples * stride + input_ids.reshape(-1).long(), return_inverse=True)
    rows = activation_gradients.new_zeros(len(keys), width, dtype=torch.float32)
    rows.index_add_(0, inverse, activation_gradients.reshape(-1, width).float())
    return rows.new_zeros(num_samples).index_add_(0, keys // stride, rows.square().sum(-1))


@torch.no_grad()
def tied_gradient_inner_products(
    hidden: Tensor,
    head: OutputHead,
    targets: Tensor,
    mask: Tensor,
    *,
    gradients: HeadGradients,
    activation_gradients: Tensor,
    input_ids: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Compute the inner products of the head's and the input embedding's gradients, [B], for tied weights.

    Only the rows of tokens in the input count: sum_{s,t} (e_s . h_t) d_t[x_s]. The squared norm of the tied gradient is
    the head's plus the embedding's plus twice this product. Arguments as in the two functions above; `gradients` is the
    result of `head_gradients` for the same states.
    """
    states = hidden.float() * mask.unsqueeze(-1)
    logits = states @ head.weight[input_ids].float().transpose(1, 2)  # [B, T, S]
    slopes = head.finish_(logits, input_ids.unsqueeze(1))
    error = -(logits / temperature - gradients.log_normalizer.unsqueeze(-1)).exp()
    error = torch.where(targets.unsqueeze(-1) == input_ids.unsqueeze(1), gradients.misses.unsqueeze(-1), error)
    error = _sloped(error, slopes)
    return (states @ activation_gradients.float().transpose(1, 2) * error).sum((1, 2)) * (head.scale / temperature)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Samples:
    """The operands of a pass, and `step`, the number of vocabulary rows in a slice."""

    states: Tensor  # [B, T, H] float32, 0 at padding
    targets: Tensor  # [B, T]
    head: OutputHead
    temperature: float
    step: int

    @property
    def factor(self) -> float:
        """The factor of every error d_t: the derivative of logits / temperature by the products, without slopes."""
        return self.head.scale / self.temperature


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sums:
    """Sums over the vocabulary. `others` are the probabilities with the target's own set to 0. The target is kept apart
    so that a nearly certain one doesn't leave a difference of nearly equal numbers. In products, `others` carry their
    slopes as factors."""

    log_normalizer: Tensor  # [B, T]
    misses: Tensor  # [B, T] sum of the others
    errors: Tensor  # [B, T] misses times the slopes of the targets
    gram: Tensor | None  # [B, T, T] inner products of the others
    rows: Tensor | None  # [B, T, H] head rows, weighted with the others


def _walk(samples: _Samples, *, with_gram: bool, with_rows: bool) -> _Sums:
    states, head, temperature = samples.states, samples.head, samples.temperature
    target_logits = (states * head.weight[samples.targets].float()).sum(-1)
    target_slopes = head.finish_(target_logits, samples.targets)
    target_logits /= temperature
    maximum, total = target_logits, torch.zeros_like(target_logits)
    gram = states.new_zeros(*target_logits.shape, target_logits.shape[1]) if with_gram else None
    rows = torch.zeros_like(states) if with_rows else None
    for start in range(0, len(head.weight), samples.step):
        tokens = slice(start, start + samples.step)
        part = head.weight[tokens].float()
        others = states @ part.T
        slopes = head.finish_(others, tokens)
        others.div_(temperature)
        _fill_targets(others, samples.targets - start, -torch.inf)
        raised = torch.maximum(maximum, others.amax(-1))
        rescale = (maximum - raised).exp_()
        maximum = raised
        others.sub_(maximum.unsqueeze(-1)).exp_()
        total = total * rescale + others.sum(-1)
        others = _sloped(others, slopes)
        if gram is not None:
            gram.mul_(rescale.unsqueeze(-1)).mul_(rescale.unsqueeze(-2)).baddbmm_(others, others.transpose(1, 2))
        if rows is not None:
            rows.mul_(rescale.unsqueeze(-1)).add_(others @ part)
    normalizer = total + (target_logits - maximum).exp()
    if gram is not None:
        gram /= normalizer.unsqueeze(-1) * normalizer.unsqueeze(-2)
    if rows is not None:
        rows /= normalizer.unsqueeze(-1)
    misses = total / normalizer
    return _Sums(
        log_normalizer=maximum + normalizer.log(),
        misses=misses,
        errors=_sloped(misses, target_slopes),
        gram=gram,
        rows=rows,
    )


def _state_gradients(samples: _Samples, sums: _Sums) -> Tensor:
    """Compute W^T d_t [B, T, H], with d_t = (error_t onehot(y_t) - others_t) x factor."""
    assert sums.rows is not None
    target_rows = samples.head.weight[samples.targets].float() * sums.errors.unsqueeze(-1)
    return (target_rows - sums.rows) * samples.factor


def _gram_norms(samples: _Samples, sums: _Sums) -> Tensor:
    """Compute sum_{t,u} (d_t . d_u)(h_t . h_u) [B], with d_t as in `_state_gradients`."""
    assert sums.gram is not None
    states, targets, head = samples.states, samples.targets, samples.head
    at_targets = states @ head.weight[targets].float().transpose(1, 2)  # [B, T, T]: state t times row y_u
    slopes = head.finish_(at_targets, targets.unsqueeze(1))
    same = targets.unsqueeze(-1) == targets.unsqueeze(-2)
    others = (at_targets / samples.temperature - sums.log_normalizer.unsqueeze(-1)).exp().masked_fill(same, 0.0)
    crossed = _sloped(others, slopes) * sums.errors.unsqueeze(-2)
    both = same * sums.errors.unsqueeze(-1) * sums.errors.unsqueeze(-2)
    products = both - crossed - crossed.transpose(1, 2) + sums.gram
    return (products * (states @ states.transpose(1, 2))).sum((1, 2)) * samples.factor**2


def _row_norms(samples: _Samples, sums: _Sums) -> Tensor:
    """Compute sum_v |sum_t d_tv h_t|^2 [B]."""
    states, head = samples.states, samples.head
    square_norms = states.new_zeros(len(states))
    for start in range(0, len(head.weight), samples.step):
        tokens = slice(start, start + samples.step)
        error = states @ head.weight[tokens].float().T
        slopes = head.finish_(error, tokens)
        error.div_(samples.temperature).sub_(sums.log_normalizer.unsqueeze(-1)).exp_().neg_()
        _fill_targets(error, samples.targets - start, sums.misses)
        square_norms += (_sloped(error, slopes).transpose(1, 2) @ states).square().sum((1, 2))
    return square_norms * samples.factor**2


def _sloped(values: Tensor, slopes: Tensor | None) -> Tensor:
    return values if slopes is None else values * slopes


def _fill_targets(values: Tensor, targets: Tensor, filling: Tensor | float) -> None:
    """Overwrite values [B, T, slice] in place at the targets [B, T] that lie in the slice."""
    inside = (targets >= 0) & (targets < values.shape[-1])
    columns = targets.clamp(0, values.shape[-1] - 1).unsqueeze(-1)
    kept = values.gather(-1, columns).squeeze(-1)
    values.scatter_(-1, columns, torch.where(inside, filling, kept).unsqueeze(-1))
