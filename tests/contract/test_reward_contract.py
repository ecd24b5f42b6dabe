"""What every reward must satisfy."""

import math
import pickle

import pytest

from gvm_ray.config.rewards import (
    EnvironmentRewardConfig,
    FunctionRewardConfig,
    RewardsConfig,
    RewardTerm,
)
from gvm_ray.protocols import RewardFunction
from gvm_ray.rewards import create_reward
from gvm_ray.types import Prompt
from tests import builders
from tests.builders import completion
from tests.contract.union_cases import every_variant
from tests.hosted_environments import GYMNASIUM, START, VERIFIERS

TERMS = every_variant(
    RewardTerm,
    {
        "function": FunctionRewardConfig(path="tests.faulty_rewards:faulty"),
        "verifiers": EnvironmentRewardConfig(environment=VERIFIERS),
        "gymnasium": EnvironmentRewardConfig(environment=GYMNASIUM),
        "the example": FunctionRewardConfig(path="examples.custom_reward:brevity"),
    },
)
GYM_ENTRY = {"task": "chain_sum", "question": "2 + 2 =", "answer": "4", "metadata": {"source_dataset": "chain_sum"}}
MODEL_TEXTS = [
    "",
    " \n",
    "4",
    r"\boxed{4}",
    r"\boxed{",
    r"\boxed{}",
    r"\boxed{\frac{}{}}",
    r"\boxed{\frac{1}{0}}",
    r"\boxed{{{}",
    "}}}{{{$$$$",
    "$" * 1001,
    "\\" * 999,
    "<answer></answer>",
    "<answer>" * 50,
    "\x00\ud800 é 数学 🙂",
    "9" * 5000,
    r"\boxed{" + "9" * 5000 + "}",
    r"\boxed{" + "(" * 300 + "}",
    r"\boxed{\text{no solution}}",
    "The answer is " * 200,
]


def prompt(answer: str = "4") -> Prompt:
    return builders.prompt(text="2+2", answer=answer, features={"reasoning_gym": GYM_ENTRY, "environment": START})


@pytest.fixture(scope="module", params=TERMS)
def reward(request: pytest.FixtureRequest) -> RewardFunction:
    return create_reward(RewardsConfig(terms=(TERMS[request.param],)))


def test_satisfies_the_protocol(reward: RewardFunction):
    assert isinstance(reward, RewardFunction)


def test_never_raises_and_is_finite_and_deterministic(reward: RewardFunction):
    for text in MODEL_TEXTS:
        value = reward(prompt(), completion(text))
        assert isinstance(value, float)
        assert math.isfinite(value)
        assert reward(prompt(), completion(text)) == value


def test_scores_the_same_after_a_trip_to_another_process(reward: RewardFunction):
    copy = pickle.loads(pickle.dumps(reward))
    for text in (r"so \boxed{4}", r"\boxed{5}", "4"):
        assert copy(prompt(), completion(text)) == reward(prompt(), completion(text))
