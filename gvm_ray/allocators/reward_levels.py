"""What an accepted and a rejected sample are rewarded with, so that an accept rate says which reward to expect."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.types import Float64Array, GroupOutcome

_BINARY = (1.0, 0.0)  # until a sample of that kind was seen
_SMALLEST_DEVIATION = 1e-6  # an advantage is divided by it, also where all rewards were the same so far


class RewardLevels:
    """Running mean and variance of the rewards of accepted samples, and of rejected ones.

    With rewards of 0 and 1 these are 1, 0 and no variance, and a reward is a Bernoulli draw. A bonus for the format, or
    partial credit, moves them.
    """

    def __init__(self, *, accept_threshold: float, forgetting: float) -> None:
        self._accept_threshold = accept_threshold
        self._forgetting = forgetting  # factor on the weight of earlier steps, for each step
        self._sums = np.zeros((2, 3))  # accepted, rejected: weight, sum and sum of squares of the rewards

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        """Learn from a step's samples; those without a reward don't count."""
        self._sums *= self._forgetting
        for outcome in outcomes:
            rewards = outcome.rewards[outcome.scored]
            accepted = rewards >= self._accept_threshold
            for kind, values in enumerate((rewards[accepted], rewards[~accepted])):
                self._sums[kind] += len(values), values.sum(), (values**2).sum()

    def expected(self, accept_rates: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Means [P] and standard deviations [P] of the reward of a sample, for accept rates [P]: the mixture's."""
        seen = self._sums[:, 0] > 0
        weights = np.where(seen, self._sums[:, 0], 1.0)
        accepted, rejected = means = np.where(seen, self._sums[:, 1] / weights, _BINARY)
        variances = np.where(seen, self._sums[:, 2] / weights - means**2, 0.0).clip(min=0.0)
        p = accept_rates
        variance = p * variances[0] + (1 - p) * variances[1] + p * (1 - p) * (accepted - rejected) ** 2
        return p * accepted + (1 - p) * rejected, np.sqrt(variance).clip(min=_SMALLEST_DEVIATION)

    def state_dict(self) -> dict[str, Any]:
        """The sums, as plain JSON values."""
        return {"sums": self._sums.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s sums."""
        self._sums = np.array(state["sums"])
