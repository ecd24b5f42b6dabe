"""AdamW, its learning-rate schedule, and gradient clipping over shards."""

import math

import torch
import torch.distributed as dist
from torch import nn

from gvm_ray.config.model import OptimizerConfig, ScheduleConfig
from gvm_ray.exceptions import TrainingDiverged
from gvm_ray.learner.policy import local_shards


class PolicyOptimizer:
    """AdamW over a sharded module; vectors (norms and biases) are not decayed."""

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, *, total_updates: int, max_skipped_updates: int
    ) -> None:
        self._module = module
        self._config = config
        self._total_updates = total_updates
        self._max_skipped_updates = max_skipped_updates
        self.num_updates = 0  # applied so far
        self.num_skipped = 0  # in a row, at present
        parameters = [p for p in module.parameters() if p.requires_grad]
        self.adamw = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return self._rate_of(self.num_updates)

    @property
    def last_learning_rate(self) -> float:
        """Learning rate of the last update made; before any was made, that of the first."""
        return self._rate_of(max(self.num_updates - 1, 0))

    def _rate_of(self, update: int) -> float:
        schedule = self._config.schedule
        factor = learning_rate_factor(update, schedule=schedule, total_updates=self._total_updates)
        return self._config.learning_rate * factor

    def apply(self, *, where: str) -> float:
        """Clip the gradients, update, and clear the gradients. If the norm isn't finite, the update is skipped.

        The norm is computed over all ranks, so all of them skip or stop together.

        Args:
            where: the step that the update belongs to, for the message.

        Returns:
            The L2 norm of the gradient before clipping; infinite or NaN if the update was skipped.

        Raises:
            TrainingDiverged: `max_skipped_updates` in a row were skipped.
        """
        norm = clip_gradients(self._module, max_norm=self._config.gradient_clip)
        if math.isfinite(norm):
            for group in self.adamw.param_groups:
                group["lr"] = self.learning_rate
            self.adamw.step()
            self.num_updates += 1
        self.num_skipped = 0 if math.isfinite(norm) else self.num_skipped + 1
        self.adamw.zero_grad(set_to_none=True)
        if self.num_skipped >= self._max_skipped_updates:
            raise TrainingDiverged(
                f"{self.num_skipped} optimizer updates in a row had a gradient that isn't finite (last norm: {norm}), "
                f"up to {where}, after {self.num_updates} completed; the weights are those after the last completed "
                f"update. Likely the steps are too large: lower the optimizer's learning_rate (now "
                f"{self.learning_rate:g}) or gradient_clip (now {self._config.gradient_clip:g}), or the algorithm's "
                "clip and importance bounds, or raise learner.max_skipped_updates to tolerate more"
            )
        return norm


def learning_rate_factor(update: int, *, schedule: ScheduleConfig, total_updates: int) -> float:
    """Factor in (0, 1] on the learning rate of optimizer update `update` < `total_updates`, counted from 0.

    Linear warm-up reaches 1 at update `warmup_updates`. Decay reaches `min_ratio` one update after the last, so that no
    update has rate 0, and stays there.
    """
    if update < schedule.warmup_updates:
        return (update + 1) / (schedule.warmup_updates + 1)
    decay_updates = max(total_updates - schedule.warmup_updates, 1)
    progress = min((update - schedule.warmup_updates) / decay_updates, 1.0)
    match schedule.type:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - schedule.min_ratio) * progress
        case "cosine":
            return schedule.min_ratio + (1.0 - schedule.min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


@torch.no_grad()
def clip_gradients(module: nn.Module, *, max_norm: float) -> float:
    """Scale the gradients so that their L2 norm over all ranks is at most `max_norm`; returns the norm before scaling.

    Works on the local shards, with one collective call. If the norm isn't finite, the gradients are left unchanged.
    """
    shards = local_shards(p.grad for p in module.parameters() if p.grad is not None)
    square_norm = nn.utils.get_total_norm(shards).double().square().to(next(module.parameters()).device)
    dist.all_reduce(square_norm)
    norm = math.sqrt(float(square_norm))
    if math.isfinite(norm) and norm > max_norm:
        for shard in shards:
            shard.mul_(max_norm / norm)
    return norm
