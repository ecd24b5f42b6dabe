"""Builders for the loss tests: log-probs of given probabilities, and random ones around each other."""

import torch
from torch import Tensor

from gvm_ray.maths.losses import ImportanceCorrection

CLIP = {"clip_low": 0.2, "clip_high": 0.3}
EVERY_CORRECTION = [
    ImportanceCorrection(level=level, mode=mode, cap=cap, floor=0.8)
    for level, cap in (("token", 1.1), ("sequence", 1.5))
    for mode in ("truncate", "mask")
]


def logs(*values: float) -> Tensor:
    """Log-probs [1, T] of these probabilities (or ratios)."""
    return torch.tensor([values], dtype=torch.float64).log()


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def random_case(seed: int = 0, *, samples: int = 3, tokens: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(scale: float) -> Tensor:
        return scale * torch.randn(samples, tokens, generator=generator, dtype=torch.float64)

    logprobs = -1 + draw(0.3)
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + draw(0.4),
        "ref_logprobs": logprobs + draw(0.4),
        "engine_logprobs": logprobs + draw(0.4),
        "entropy": 1 + draw(0.1).abs(),
        "advantages": draw(1.0)[:, :1],
    }
