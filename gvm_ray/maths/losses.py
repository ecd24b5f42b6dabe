"""Token losses of policy optimisation, and the importance weights that correct for the engine's probabilities."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # log-ratios are clamped to this before exp()


@dataclass(frozen=True, kw_only=True)
class ImportanceCorrection:
    """Settings of the importance weights that correct for differing probabilities of engine and learner.

    The weight is w = learner's probability / engine's probability, of the token or of the whole response (the product
    over its tokens). `truncate` uses min(w, cap): truncated importance sampling, as between IMPALA's actors and learner
    (arXiv 1802.01561). `mask` uses w if floor <= w <= cap, else 0: IcePop (arXiv 2510.18855) at token level, masked
    importance sampling at sequence level.
    """

    level: Literal["token", "sequence"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: float = 2.0
    floor: float = 0.5  # only for `mask`


@torch.no_grad()
def importance_weights(
    learner_logprobs: Tensor, engine_logprobs: Tensor, *, correction: ImportanceCorrection, mask: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute detached importance weights [B, T], and [B, T] diagnostics of the correction.

    Args:
        learner_logprobs: [B, T] nats.
        engine_logprobs: [B, T] nats, under the policy that sampled.
        correction: level, mode and bounds.
        mask: [B, T], True at response tokens, over which the level "sequence" sums.

    Returns:
        The weights, and diagnostics under "importance/...": "mean" (near 1) and "max" hold the unbounded ratio,
        "clipped_fraction" is 1 where the ratio was truncated or masked, "effective_sample_size" holds the weights.

    Raises:
        ValueError: the level is "sequence" and mask is None.
    """
    log_ratio = learner_logprobs - engine_logprobs
    if correction.level == "sequence":
        if mask is None:
            raise ValueError("importance level 'sequence' needs mask, which is None")
        log_ratio = torch.where(mask, log_ratio, 0.0).sum(-1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    if correction.mode == "truncate":
        weights = ratio.clamp(max=correction.cap)
    else:
        weights = torch.where((ratio >= correction.floor) & (ratio <= correction.cap), ratio, 0.0)
    return weights, {
        "importance/mean": ratio,
        "importance/max": ratio,
        "importance/clipped_fraction": (weights != ratio).to(ratio.dtype),
        "importance/effective_sample_size": weights,
    }


KLKind = Literal["k1", "k2", "k3"]
Surrogate = Callable[..., Tensor]  # (logprobs, *, old_logprobs, advantages, mask) -> [B, T] losses


class _Bounds(TypedDict):
    clip_low: float
    clip_high: float
    dual_clip: float | None


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """Compute PPO's clipped loss, -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logprobs - old_logprobs).

    Source: arXiv 1707.06347, equation 7; unequal bounds as in DAPO (arXiv 2503.14476). With `dual_clip` = c > 1, the
    loss of a token with negative advantage is at most -c A (arXiv 1912.09729, equation 5).

    Returns:
        [B, T] losses.
    """
    ratio = _ratio(logprobs, old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, kind: KLKind) -> Tensor:
    """Estimate KL(policy || reference) [B, T] from sampled tokens.

    With d = logprobs - ref_logprobs: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman, "Approximating KL
    divergence", 2020). As loss terms on on-policy samples they differ. In expectation, the gradient of k1 is 0, the
    gradient of k2 is the gradient of KL(policy || reference), and the gradient of k3 that of KL(reference || policy).
    """
    difference = logprobs - ref_logprobs
    match kind:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            # Clamped in both terms: clamping only the exponential would leave the linear term's wrong-signed gradient.
            bounded = difference.clamp(min=-MAX_LOG_RATIO)
            return torch.expm1(-bounded) + bounded


def policy_loss(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    ratio: bool = True,
    surrogate: Surrogate | None = None,
    engine_logprobs: Tensor | None = None,
    importance: ImportanceCorrection | None = None,
    old_is_engine: bool = False,
    mask: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    kl_coefficient: float = 0.0,
    kl_kind: KLKind = "k3",
    entropy: Tensor | None = None,
    entropy_coefficient: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute importance weight x surrogate + kl_coefficient x KL - entropy_coefficient x entropy for each token.

    The surrogate is the given one, or `clipped_surrogate`, or without `ratio` the likelihood -A x logprobs. Tensors are
    [B, T]: `old_logprobs` the learner's from before the batch's first update, `engine_logprobs` those of sampling,
    `ref_logprobs` the reference's; `mask` is True at response tokens. `importance` weights old over engine; with
    `old_is_engine` the surrogate's ratio, which is clipped, is over the engine too, and has that weight's value.

    Returns:
        Losses [B, T] and detached diagnostics [B, T]: "ratio"; without a given surrogate "clip_fraction" (1 where the
        clip removed the gradient); "kl" if kl_coefficient > 0; and those of `importance_weights`. Raises
        ValueError where the input of a requested term is None.
    """
    bounds: _Bounds = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
    before = engine_logprobs if old_is_engine and engine_logprobs is not None else old_logprobs
    loss, diagnostics = _surrogate(logprobs, before, advantages, ratio=ratio, bounds=bounds)
    if surrogate is not None:
        loss = surrogate(logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
        del diagnostics["clip_fraction"]
    if importance is not None:
        engine_logprobs = _required(engine_logprobs, "engine_logprobs", f"importance level {importance.level!r}")
        weights, measured = importance_weights(old_logprobs, engine_logprobs, correction=importance, mask=mask)
        carried = diagnostics["ratio"].clamp(min=math.exp(-MAX_LOG_RATIO)) if old_is_engine and ratio else 1.0
        loss, diagnostics = loss * weights / carried, diagnostics | measured
    if kl_coefficient > 0:
        reference = _required(ref_logprobs, "ref_logprobs", f"kl_coefficient={kl_coefficient}")
        kl = kl_estimate(logprobs, reference, kind=kl_kind)
        loss, diagnostics["kl"] = loss + kl_coefficient * kl, kl.detach()
    if entropy_coefficient > 0:
        loss = loss - entropy_coefficient * _required(entropy, "entropy", f"entropy_coefficient={entropy_coefficient}")
    return loss, diagnostics


def _surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, ratio: bool, bounds: _Bounds
) -> tuple[Tensor, dict[str, Tensor]]:
    current = _ratio(logprobs, old_logprobs).detach()
    if ratio:
        loss = clipped_surrogate(logprobs, old_logprobs, advantages, **bounds)
        clipped = _clipped(current, advantages, **bounds)
    else:
        loss, clipped = -advantages * logprobs, torch.zeros_like(current)
    return loss, {"ratio": current, "clip_fraction": clipped}


def _ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    return (logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO).exp()


def _clipped(
    ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> Tensor:
    """Return 1 where `clipped_surrogate` is flat in the ratio, else 0."""
    clipped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    if dual_clip is not None:
        clipped = clipped | ((advantages < 0) & (ratio > dual_clip))
    return clipped.to(ratio.dtype)


def _required(value: Tensor | None, name: str, reason: str) -> Tensor:
    if value is None:
        raise ValueError(f"{reason} needs {name}, which is None")
    return value
