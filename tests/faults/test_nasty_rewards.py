"""Hostile responses, through the real reward process: none is taken for right, and no honest neighbour is harmed."""

from collections import Counter
from collections.abc import Iterator

import pytest

from gvm_ray.actors.reward_env import make_reward_sandbox
from gvm_ray.config.rewards import RewardsConfig
from gvm_ray.rewards.sandbox import Sandbox, Scored, Unscored
from gvm_ray.types import Completion, Prompt
from tests.builders import completion, prompt
from tests.faults.nasty_answers import NASTY, boxed

pytestmark = pytest.mark.faults

RIGHT, WRONG = boxed("42", "41")
PARSED = (*boxed(r"\frac{84}{2}", "6 \\cdot 7"), "The answer is 42.")  # right, and found to be so by Math-Verify


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = make_reward_sandbox(RewardsConfig(timeout_s=1.0, memory_mb=1024), max_tokens=10**7)
    yield sandbox
    sandbox.close()


def item(text: str) -> tuple[Prompt, Completion]:
    """A response to a prompt whose answer is 42."""
    return prompt(text="6 x 7", answer="42"), completion(text)


def test_there_are_many_and_they_differ():
    answers = [answer for group in NASTY.values() for answer in group]
    assert len(set(answers)) == len(answers) >= 200


@pytest.mark.parametrize("name", NASTY)
def test_nasty_answers_are_wrong_or_unscored_and_honest_ones_scored(sandbox: Sandbox, name: str):
    nasty = NASTY[name]
    texts = [text for answer in nasty for text in (answer, RIGHT, WRONG)] + list(PARSED)
    results = sandbox.score([item(text) for text in texts])
    count, answered = len(nasty), results[: 3 * len(nasty)]
    wrong = Scored(reward=0.0, terms={"math_verify": 0.0})
    pairs = zip(nasty, answered[::3], strict=True)
    assert [answer[:100] for answer, result in pairs if not isinstance(result, Unscored) and result != wrong] == []
    assert answered[1::3] == [Scored(reward=1.0, terms={"math_verify": 1.0})] * count
    assert answered[2::3] == [wrong] * count
    assert results[3 * count :] == [Scored(reward=1.0, terms={"math_verify": 1.0})] * len(PARSED)
    unscored = [result for result in results if isinstance(result, Unscored)]
    assert all(result.detail for result in unscored)
    reasons = Counter(result.reason for result in unscored)
    assert reasons.total() + sum(isinstance(result, Scored) for result in results) == len(texts)
