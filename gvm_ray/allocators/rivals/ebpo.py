"""EBPO (arXiv 2602.05165): equal groups, whose mean as a baseline is shrunk to the run's mean reward."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gvm_ray.allocators.base import Allocator, AllocatorConfig, Report, Rounds, RunShape, Step
from gvm_ray.allocators.selection import even_counts, rewards_by_prompt
from gvm_ray.types import Float64Array


class EBPOAllocatorConfig(AllocatorConfig):
    """EBPO (arXiv 2602.05165): equal groups, whose mean as a baseline is shrunk to the run's mean reward.

    b = (1 - S) mean + S mu with S = (sigma^2 / n) / (sigma^2 / n + tau^2): mu and sigma^2 are the mean and variance of
    all rewards of the run so far, tau^2 is the variance of all group means, and the present step is part of them. So a
    group of equal rewards trains too. Published with `algorithm.advantage_normalization = "samples"`.

    A sample is part of its own baseline, as in GRPO. Shrinkage without that, over the batch alone: `algorithm.type =
    "rloo"` with `shrinkage = true`.
    """

    type: Literal["ebpo"] = "ebpo"

    def smallest_group(self, run: RunShape) -> None:
        """None: a single sample has the run's mean reward to compare with."""
        return

    def build(self, *, accept_threshold: float, seed: int) -> "EBPOAllocator":
        """Create the strategy."""
        return EBPOAllocator()


class EBPOAllocator(Allocator):
    """Draw equal groups in one round, and give each its shrunk baseline."""

    def __init__(self) -> None:
        self._rewards = _RunningMoments()
        self._means = _RunningMoments()  # of groups

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round."""
        earlier = self._rewards, self._means  # without overlapping steps, so that their timing changes nothing
        groups = rewards_by_prompt((yield even_counts(step.ids, step.budget)))
        if not groups:
            return Report()
        sizes = np.array([len(group) for group in groups.values()])
        means = np.array([group.mean() for group in groups.values()])
        pooled = np.concatenate(list(groups.values()))
        self._rewards, self._means = self._rewards.with_values(pooled), self._means.with_values(means)
        rewards, group_means = earlier[0].with_values(pooled), earlier[1].with_values(means)
        noise = rewards.variance / sizes
        total = noise + group_means.variance
        shrinkage = np.divide(noise, total, out=np.zeros_like(noise), where=total > 0)
        baselines = (1 - shrinkage) * means + shrinkage * rewards.mean
        return Report(
            baselines=dict(zip(groups, baselines.tolist(), strict=True)),
            metrics={"allocation/shrinkage_mean": float(shrinkage.mean())},
        )

    def state_dict(self) -> dict[str, Any]:
        """The moments of all rewards and of all group means."""
        return {"rewards": self._rewards.state_dict(), "means": self._means.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._rewards = _RunningMoments(**state["rewards"])
        self._means = _RunningMoments(**state["means"])


@dataclass(frozen=True, kw_only=True)
class _RunningMoments:
    """Moments of a growing set of values (Welford's method, by batches: Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    @property
    def variance(self) -> float:
        """The sample variance; 0 of a single value."""
        return self.squares / max(self.count - 1, 1)

    def with_values(self, values: Float64Array) -> "_RunningMoments":
        """The moments with these values added, at least one."""
        count, difference = self.count + len(values), float(values.mean()) - self.mean
        between = difference**2 * self.count * len(values) / count
        return _RunningMoments(
            count=count,
            mean=self.mean + difference * len(values) / count,
            squares=self.squares + float(((values - values.mean()) ** 2).sum()) + between,
        )

    def state_dict(self) -> dict[str, float]:
        """The fields, as plain JSON values."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}
