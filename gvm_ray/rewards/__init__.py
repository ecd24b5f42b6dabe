"""Rewards of responses: reward functions, their weighted sum, and the sandbox they run in."""

from collections import Counter

from gvm_ray.config.rewards import (
    ExactRewardConfig,
    FormatRewardConfig,
    FunctionRewardConfig,
    MathVerifyRewardConfig,
    ReasoningGymRewardConfig,
    RewardsConfig,
    RewardTerm,
)
from gvm_ray.protocols import RewardFunction
from gvm_ray.rewards.combined import CombinedReward, WeightedTerm

__all__ = ["CombinedReward", "create_reward"]


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
