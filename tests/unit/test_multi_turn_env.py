"""Episodes of several turns as a Gymnasium environment: what the environment answers, and when it ends."""

from collections.abc import Sequence
from typing import Any

import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from turn_cases import PROMPT, said

from gvm_ray.config.environments import CalculatorConfig, FunctionEnvironmentConfig, SingleTurnConfig
from gvm_ray.envs.environments import Environment, calculator, create_environment, evaluate
from gvm_ray.envs.prompt_env import PromptEnv, VectorPromptEnv
from gvm_ray.exceptions import ConfigError
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.types import Completion


def is_zero(prompt: Any, completion: Completion) -> float:
    return float(completion.policy_turns[-1].endswith("0"))


def retry(prompt: Any, turns: Sequence[str]) -> str | None:
    return None if turns[-1].endswith("0") else "again"


ENVIRONMENT = Environment(respond=retry, max_turns=3, template="<{observation}>")


# --- the environment --------------------------------------------------------------------------------------------------
def test_turn_by_turn() -> None:
    env = PromptEnv([PROMPT], reward=is_zero, environment=ENVIRONMENT)
    env.reset(seed=0)
    assert env.step("3")[:4] == ("<again>", 0.0, False, False)
    answer, reward, terminated, truncated, info = env.step("4")
    assert (answer, reward, terminated, truncated) == ("<again>", 0.0, False, False)
    assert info == {"prompt_id": "1+1=", "num_turns": 2}
    transcript, reward, terminated, truncated, info = env.step("0")
    assert (transcript, reward, terminated, truncated) == ("1+1=3<again>4<again>0", 1.0, True, False)
    assert info["num_turns"] == 3
    with pytest.raises(ResetNeeded):
        env.step("0")
    env.reset()
    assert env.step("0")[1:4] == (1.0, True, False)  # nothing is left of the last episode


def test_the_last_turn_and_a_cut_one_end_it() -> None:
    env = PromptEnv(
        [PROMPT], reward=is_zero, environment=ENVIRONMENT, max_tokens=9, tokenizer=build_character_tokenizer()
    )
    env.reset(seed=0)
    env.step("3")
    assert env.step("4")[1:4] == (0.0, False, True)  # 3<again>4 has nine tokens
    free = PromptEnv([PROMPT], reward=is_zero, environment=ENVIRONMENT)
    free.reset(seed=0)
    assert [free.step("3")[2] for _ in range(3)] == [False, False, True]


def test_a_completion_holds_all_its_turns() -> None:
    env = PromptEnv(reward=is_zero, environment=ENVIRONMENT)
    for turns, goes_on in ((("3",), True), (("3", "4"), True), (("3", "4", "5"), False), (("3", "0"), False)):
        env.reset(options={"prompt": PROMPT})
        _, _, terminated, _, info = env.step(said("text", turns=turns))
        assert (not terminated, info["num_turns"]) == (goes_on, len(turns))


def test_gymnasium_checks_it_and_its_vector_form() -> None:
    check_env(PromptEnv([PROMPT], reward=is_zero, environment=ENVIRONMENT), skip_render_check=True)
    envs = VectorPromptEnv(2, prompts=[PROMPT], reward=is_zero, environment=ENVIRONMENT)
    envs.reset(seed=0)
    observations, rewards, terminated, _, infos = envs.step(["3", "0"])
    assert observations == ("<again>", "1+1=")
    assert rewards.tolist() == [0.0, 1.0]
    assert terminated.tolist() == [False, True]
    assert infos["_final_obs"].tolist() == [False, True]
    assert infos["final_obs"][1] == "1+1=0"


def test_answers_are_cut_and_put_into_their_template() -> None:
    environment = create_environment(
        FunctionEnvironmentConfig(
            path="turn_environments:second_chance", observation_template="[{observation}]", max_observation_characters=3
        )
    )
    assert environment is not None
    assert environment(PROMPT, ["1"]) == "[1+1]"
    assert environment(PROMPT, ["\\boxed{0}"]) is None
    assert environment(PROMPT, ["1"] * 4) is None
    assert create_environment(SingleTurnConfig()) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [("turn_environments:missing", "environment.path: .*missing"), ("turn_environments:not_callable", "is a str")],
)
def test_what_is_no_environment_is_refused(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_environment(FunctionEnvironmentConfig(path=path))


def test_an_answer_must_be_text() -> None:
    environment = create_environment(FunctionEnvironmentConfig(path="turn_environments:no_text"))
    assert environment is not None
    with pytest.raises(TypeError, match="answered int"):
        environment(PROMPT, ["1"])


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 * (3 + 4)", "14"), ("-7 // 2", "-4"), ("2**10 % 1000", "24"), ("1/4", "0.25"), (" 12 ", "12")],
)
def test_the_calculator_calculates(expression: str, value: str) -> None:
    turn = f"first <calculator>1+1</calculator> then <calculator>{expression}</calculator> so"
    assert calculator(PROMPT, ["<calculator>9</calculator>", turn]) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "x",
        "True",
        "'a' * 9",
        "9**9**9",
        "2**65",
        "10**60 * 10**60",
        "1/0",
        "(-8)**0.5",
        "1" * 201,
        "(" * 100 + ")" * 100,
        "",
        "1 if 1 else 2",
    ],
)
def test_the_calculator_answers_nonsense_with_an_error(expression: str) -> None:
    answer = calculator(PROMPT, [f"<calculator>{expression}</calculator>"])
    assert answer is not None
    assert answer.startswith("error: ")


def test_without_a_call_there_is_no_answer() -> None:
    assert calculator(PROMPT, ["<calculator>1</calculator>", "the answer is 1"]) is None
    assert create_environment(CalculatorConfig()) is not None
    assert evaluate("7") == 7
