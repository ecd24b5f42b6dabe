"""Rewards of responses: reward functions, their weighted sum, and the sandbox they run in."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gvm_ray.config.rewards import (
    EnvironmentRewardConfig,
    ExactRewardConfig,
    FormatRewardConfig,
    FunctionRewardConfig,
    MathVerifyRewardConfig,
    ReasoningGymRewardConfig,
    RewardsConfig,
    RewardTerm,
)
from gvm_ray.protocols import RewardFunction
from gvm_ray.types import Completion, Prompt

__all__ = ["CombinedReward", "create_reward"]


@dataclass(frozen=True, kw_only=True)
class WeightedTerm:
    """One summand."""

    name: str  # unique within a CombinedReward
    weight: float
    reward: RewardFunction


class CombinedReward:
    """Sum over the terms of weight * reward(prompt, completion).

    A reward may have terms of its own, which are reported as `<name>_<term>` and weigh nothing.
    """

    def __init__(self, terms: Sequence[WeightedTerm]) -> None:
        assert len({term.name for term in terms}) == len(terms), "names of reward terms must differ"
        self._terms = tuple(terms)
        # The reward and its terms are asked for one after the other; each response is scored once.
        self._last: tuple[Prompt, Completion, dict[str, float]] | None = None

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        values = self.terms(prompt, completion)
        return math.fsum(term.weight * values[term.name] for term in self._terms)

    def terms(self, prompt: Prompt, completion: Completion) -> dict[str, float]:
        """Term name -> value before weighting."""
        if self._last is None or self._last[0] is not prompt or self._last[1] is not completion:
            values = {term.name: term.reward(prompt, completion) for term in self._terms}
            for term in self._terms:
                if find_terms := getattr(term.reward, "terms", None):
                    parts = find_terms(prompt, completion)
                    values |= {f"{term.name}_{name}": value for name, value in parts.items()}
            self._last = (prompt, completion, values)
        return dict(self._last[2])


def create_reward(config: RewardsConfig) -> CombinedReward:
    """The configured reward. A second term of one type is named `<type>_2`, and so on.

    Raises:
        ConfigError: the function of a `function` term can't be imported.
    """
    seen: Counter[str] = Counter()
    terms = []
    for term in config.terms:
        seen[term.type] += 1
        name = term.type if seen[term.type] == 1 else f"{term.type}_{seen[term.type]}"
        terms.append(WeightedTerm(name=name, weight=term.weight, reward=_create_term(term)))
    return CombinedReward(terms)


def _create_term(config: RewardTerm) -> RewardFunction:
    """One reward function; heavy libraries are imported here, for the terms in use only."""
    match config:
        case MathVerifyRewardConfig():
            from gvm_ray.rewards.math_verify import MathVerifyReward

            return MathVerifyReward(require_boxed=config.require_boxed, truncated=config.truncated)
        case ExactRewardConfig():
            from gvm_ray.rewards.exact import ExactReward

            return ExactReward()
        case ReasoningGymRewardConfig():
            from gvm_ray.rewards.reasoning_gym import ReasoningGymReward

            return ReasoningGymReward()
        case FormatRewardConfig():
            from gvm_ray.rewards.format import FormatReward

            return FormatReward(config.pattern)
        case FunctionRewardConfig():
            from gvm_ray.rewards.function import FunctionReward

            return FunctionReward(config.path)
        case EnvironmentRewardConfig(environment=environment):
            from gvm_ray.rewards.environment import EnvironmentReward

            assert environment is not None, "RunConfig fills it in from [environment]"
            return EnvironmentReward(environment)
