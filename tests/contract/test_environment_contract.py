"""What every environment that answers the policy between its turns must do."""

import pickle
from typing import Any

import pytest

from gvm_ray.config.environments import EnvironmentSettings, FunctionEnvironmentConfig, SingleTurnConfig
from gvm_ray.envs.environments import Environment, create_environment
from tests.builders import prompt
from tests.contract.union_cases import every_variant
from tests.hosted_environments import GYMNASIUM, START, VERIFIERS

CONFIGS = every_variant(
    EnvironmentSettings,
    {
        "function": FunctionEnvironmentConfig(path="tests.turn_environments:second_chance"),
        "verifiers": VERIFIERS.model_copy(update={"max_turns": 3}),
        "gymnasium": GYMNASIUM.model_copy(update={"max_turns": 3}),
    },
)
MULTI_TURN = [name for name, config in CONFIGS.items() if not isinstance(config, SingleTurnConfig)]
PROMPT = prompt(text="What is 1+1?", answer="2", features={"environment": START})
TURNS = [
    "",
    " \n",
    "2",
    r"\boxed{2}",
    r"\boxed{",
    "<calculator>1+1</calculator>",
    "<calculator>1/0</calculator>",
    "<calculator>__import__('os')</calculator>",
    "<calculator>" + "9" * 5000 + "</calculator>",
    "<calculator>" + "(" * 300 + "</calculator>",
    "<calculator></calculator>" * 50,
    "<calculator>",
    "{observation}",
    "\x00\ud800 \u00e9 \u6570\u5b66 \U0001f642",
    "so " * 5000,
]


@pytest.fixture(params=MULTI_TURN)
def config(request: pytest.FixtureRequest) -> Any:
    return CONFIGS[request.param]


def made(config: EnvironmentSettings) -> Environment:
    environment = create_environment(config)
    assert environment is not None
    return environment


def test_only_a_single_turn_has_no_environment() -> None:
    assert [name for name, config in CONFIGS.items() if create_environment(config) is None] == ["single_turn"]


def test_it_answers_any_text_with_a_text_or_none_and_remembers_nothing(config: Any) -> None:
    environment = made(config)
    first = [environment(PROMPT, [turn]) for turn in TURNS]
    assert all(answer is None or isinstance(answer, str) for answer in first)
    assert any(answer is not None for answer in first)
    backwards = [environment(PROMPT, [turn]) for turn in reversed(TURNS)]
    assert backwards[::-1] == first


def test_it_answers_the_same_in_another_process(config: Any) -> None:
    environment = made(config)
    copy = pickle.loads(pickle.dumps(environment))
    assert [copy(PROMPT, [turn]) for turn in TURNS] == [environment(PROMPT, [turn]) for turn in TURNS]


def test_the_last_turn_that_the_settings_allow_is_not_answered(config: Any) -> None:
    environment = made(config.model_copy(update={"max_turns": 3}))
    answered = next(turn for turn in TURNS if environment(PROMPT, [turn]) is not None)
    assert environment(PROMPT, [answered] * 2) is not None
    assert environment(PROMPT, [answered] * 3) is None


def test_an_answer_stands_in_the_template_and_is_bounded(config: Any) -> None:
    whole = made(config.model_copy(update={"observation_template": "{observation}"}))
    framed = made(
        config.model_copy(update={"observation_template": "<{observation}>", "max_observation_characters": 1})
    )
    for turn in TURNS:
        answer = whole(PROMPT, [turn])
        assert framed(PROMPT, [turn]) == (None if answer is None else f"<{answer[:1]}>")
