"""Importance weights for samples that were drawn under other probabilities than the learner computes.

Other kernels in the engine, or older weights, make the two differ.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # cut before exp()


@dataclass(frozen=True, kw_only=True)
class ImportanceCorrection:
    """How samples are weighted for having been drawn under other probabilities than the learner computes.

    The weight is w = learner's probability / engine's probability, of the token or of the whole response (the product
    over its tokens). `truncate` takes min(w, cap): truncated importance sampling, as between IMPALA's actors and
    learner (arXiv 1802.01561). `mask` takes w where floor <= w <= cap and 0 elsewhere: for tokens IcePop (arXiv
    2510.18855), for responses masked importance sampling.
    """

    level: Literal["token", "sequence"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: float = 2.0
    floor: float = 0.5  # of `mask` alone


@torch.no_grad()
def importance_weights(
    learner_logprobs: Tensor, engine_logprobs: Tensor, *, correction: ImportanceCorrection, mask: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Importance weights [B, T], detached, and [B, T] diagnostics that tell whether the correction holds.

    Args:
        learner_logprobs: [B, T] nats.
        engine_logprobs: [B, T] nats, under the policy that sampled.
        correction: level, mode and bounds.
        mask: [B, T], True at response tokens, over which the level "sequence" sums; a ValueError where it is needed
            and None.

    Returns:
        The weights, and under "importance/...": "mean" (near 1) and "max" the unbounded ratio, "clipped_fraction" 1
        where it was truncated or masked, "effective_sample_size" the weights.
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
