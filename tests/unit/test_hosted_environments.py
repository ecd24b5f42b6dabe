"""Environments of other libraries: prompts, turns and scores equal to the library's own, and what is refused."""

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from gvm_ray.actors.reward_env import make_reward_sandbox
from gvm_ray.config import parse_config
from gvm_ray.config.environments import GymnasiumEnvironmentConfig, VerifiersEnvironmentConfig
from gvm_ray.config.prompts import EnvironmentSourceConfig, PromptsConfig, TemplateConfig
from gvm_ray.config.rewards import EnvironmentRewardConfig, RewardsConfig
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.rewards import create_reward
from gvm_ray.rewards.sandbox_messages import Scored
from gvm_ray.tasks.hosted import hosted_environment
from gvm_ray.tasks.prompt_set import load_prompts, load_tasks
from tests import builders
from tests.builders import completion
from tests.hosted_environments import GYMNASIUM, START, load_environment
from tests.tiny_runs import tiny_values

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def verifiers(kind: str, **arguments: Any) -> VerifiersEnvironmentConfig:
    return VerifiersEnvironmentConfig(id="tests.hosted_environments", arguments={"kind": kind, **arguments})


def source(environment: Any, **settings: Any) -> EnvironmentSourceConfig:
    return EnvironmentSourceConfig(environment=environment, **settings)


def prompts_of(config: EnvironmentSourceConfig, **template: Any) -> Any:
    tokenizer = build_character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return load_prompts(
        PromptsConfig(train=config, template=TemplateConfig(**template), max_tokens=200), tokenizer
    ).train


# --- prompts ----------------------------------------------------------------------------------------------------------
def test_a_chat_is_rendered_whole_with_its_own_system_prompt() -> None:
    prompts = prompts_of(source(verifiers("single"), size=2), type="chat")
    assert [prompt.text for prompt in prompts] == [
        f"<system>Be brief.<user>Guess digit {n}.<assistant>" for n in range(2)
    ]
    assert [prompt.answer for prompt in prompts] == ["4", "7"]


def test_a_plain_prompt_is_the_text_of_the_chat() -> None:
    assert prompts_of(source(verifiers("single"), size=1))[0].text == "Be brief.\n\nGuess digit 0."
    assert prompts_of(source(verifiers("completion")))[0].text == "2+2="


def test_a_wording_beside_the_environments_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"write template\.system_prompt='none'"):
        prompts_of(source(verifiers("single")), type="chat", system_prompt="qwen-boxed")


def test_a_template_that_drops_a_message_is_refused() -> None:
    tokenizer = build_character_tokenizer()
    tokenizer.chat_template = "<user>{{ messages[-1]['content'] }}"
    prompts = PromptsConfig(train=source(verifiers("single")), template=TemplateConfig(type="chat"))
    with pytest.raises(ConfigError, match=r"doesn't take the environment's chat \(system, user\).*lacks 'Be brief.'"):
        load_prompts(prompts, tokenizer)


def test_the_evaluation_set_is_the_environments_own() -> None:
    environment = verifiers("single", evaluation=True)
    assert len(load_tasks(source(environment, split="eval"))) == 1
    assert len(load_tasks(source(environment))) == 3


def test_episodes_of_a_game_have_consecutive_seeds() -> None:
    tasks = load_tasks(source(GYMNASIUM, size=3, seed=5))
    assert [task.problem for task in tasks] == [f"Guess a digit, game {seed}." for seed in (5, 6, 7)]
    assert [task.features["environment"] for task in tasks] == [{"seed": seed} for seed in (5, 6, 7)]


# --- scores -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["single", "guess"])
def test_the_score_is_the_librarys_own(kind: str) -> None:
    """Beside the library's rollout with a client that says the same."""
    task = load_tasks(source(verifiers(kind)))[1]
    prompt = builders.prompt(answer=task.answer, features=task.features)
    turns = ["It is 7."] if kind == "single" else ["1", "9", "7"]
    environment = load_environment(kind)
    said = iter(turns)

    async def answer(*_: Any, **__: Any) -> Any:
        from openai.types.chat import ChatCompletion

        message = {"role": "assistant", "content": next(said)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return ChatCompletion.model_validate(
            {"id": "1", "created": 0, "model": "m", "object": "chat.completion", "choices": [choice]}
        )

    environment.get_model_response = answer

    async def rollout() -> Any:
        state = await environment.rollout(dict(task.features["environment"]), None, "m")
        await environment.rubric.score_rollout(state)
        return state

    expected = asyncio.run(rollout())
    score = hosted_environment(verifiers(kind)).score(prompt, turns, cut=False)
    assert score.reward == pytest.approx(expected["reward"], abs=0)
    assert score.metrics == expected["metrics"]
    assert score.reward > 0


def test_the_turns_are_the_librarys_own() -> None:
    environment = hosted_environment(verifiers("guess"))
    prompt = builders.prompt(features={"environment": START})
    assert environment.respond(prompt, ["2"]) == "higher (1)"
    assert environment.respond(prompt, ["2", "8"]) == "lower (2)"
    assert environment.respond(prompt, ["2", "8", "4"]) is None
    assert environment.respond(prompt, ["1", "1", "1", "1", "1"]) is None, "its own max_turns"


def test_a_member_of_a_group_scores_its_own_prompts() -> None:
    environment = verifiers("group", num_rows=1)
    tasks = load_tasks(source(environment))
    assert [task.features["environment"]["task"] for task in tasks] == ["first", "second"]
    second = builders.prompt(features=tasks[1].features)
    assert hosted_environment(environment).score(second, ["123"], cut=False).reward == 0.25


def test_a_reward_function_that_raises_leaves_the_sample_unscored() -> None:
    """The library itself gives 0, which would be taken for wrong."""
    task = load_tasks(source(verifiers("broken")))[0]
    reward = create_reward(RewardsConfig(terms=(EnvironmentRewardConfig(environment=verifiers("broken")),)))
    with pytest.raises(RuntimeError, match="no judge today"):
        reward(builders.prompt(features=task.features), completion("4"))


def test_a_games_rewards_add_up_and_end_with_it() -> None:
    environment = hosted_environment(GYMNASIUM)
    game = gymnasium.make(GYMNASIUM.id)
    game.reset(seed=3)
    secret = next(str(digit) for digit in range(10) if game.unwrapped.step(str(digit))[2])
    wrong = next(digit for digit in "0123456789" if digit != secret)
    prompt = builders.prompt(features={"environment": {"seed": 3}})
    assert environment.respond(prompt, [wrong]) in ("higher", "lower")
    assert environment.respond(prompt, [wrong, secret]) is None
    assert environment.score(prompt, [wrong, secret, secret], cut=False).reward == pytest.approx(0.9)


def test_terms_are_the_rubrics_functions() -> None:
    task = load_tasks(source(verifiers("single")))[0]
    prompt = builders.prompt(features=task.features)
    reward = create_reward(RewardsConfig(terms=(EnvironmentRewardConfig(environment=verifiers("single"), weight=2.0),)))
    response = completion("4")
    assert reward(prompt, response) == 2 * (1 + 0.5 * 0.5)
    terms = reward.terms(prompt, response)
    assert (terms["environment_right"], terms["environment_short"]) == (1.0, 0.5)


def test_a_reward_process_scores_and_answers() -> None:
    """In the sandbox: without network, under its limits, and with the environment made before the first response."""
    environment = verifiers("guess").model_copy(update={"max_turns": 3})
    rewards = RewardsConfig(terms=(EnvironmentRewardConfig(environment=environment),))
    prompt = builders.prompt(features={"environment": START})
    sandbox = make_reward_sandbox(rewards, max_tokens=16, environment=environment)
    sandbox.start()
    (result,) = sandbox.score([(prompt, completion("4"))])
    sandbox.close()
    assert isinstance(result, Scored)
    assert result.reward == 1 + 0.5 / 6


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tools", "is a ToolEnv: tools need a server"),
        ("ranked", "reward functions ranked compare the samples of a group"),
        ("unknown", "no kind 'unknown'"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused_before_the_run(kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_tasks(source(verifiers(kind)))


def test_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="example 0: the user message has a content of type list"):
        load_tasks(source(verifiers("pictures")))


def test_an_environment_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="Could not import 'nowhere' environment"):
        load_tasks(source(VerifiersEnvironmentConfig(id="nowhere")))
    with pytest.raises(ConfigError, match="write the id of a gymnasium environment"):
        load_tasks(source(GymnasiumEnvironmentConfig(id="Nowhere-v0")))


def test_a_game_of_numbers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"both spaces must be gymnasium\.spaces\.Text"):
        load_tasks(source(GymnasiumEnvironmentConfig(id="CartPole-v1")))


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'gvm-ray\[verifiers\]'"):
        create_reward(RewardsConfig(terms=(EnvironmentRewardConfig(environment=verifiers("single")),)))


# --- settings ---------------------------------------------------------------------------------------------------------
def run_values(**environment: Any) -> dict[str, Any]:
    values = tiny_values(Path("runs"), warm_start=None, prompts__eval=None)
    values["prompts"]["train"] = {"type": "environment"}
    values["rewards"] = {"terms": [{"type": "environment"}]}
    return values | ({"environment": environment} if environment else {})


def test_the_environment_is_written_once() -> None:
    config = parse_config(run_values(type="verifiers", id="mine", arguments={"n": 3}))
    named = VerifiersEnvironmentConfig(id="mine", arguments={"n": 3})
    assert config.environment == named
    assert config.prompts.train.environment == named  # type: ignore[union-attr]
    assert config.rewards.terms[0].environment == named  # type: ignore[union-attr]
    assert parse_config(config.model_dump()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "prompts.train has type 'environment', but \\[environment\\] is 'single_turn'"),
        ({"environment": {"type": "verifiers"}}, "id"),
        (
            {
                "environment": {"type": "verifiers", "id": "mine"},
                "rewards": {"terms": [{"type": "environment", "environment": {"type": "verifiers", "id": "other"}}]},
            },
            "of one environment",
        ),
        ({"environment": {"type": "verifiers", "id": "mine"}, "warm_start": {}}, "an environment has none"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(run_values() | change)
