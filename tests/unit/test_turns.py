"""Several turns in one response: what the environment answers, what the engine reads, what the learner learns."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from learner_cases import build_tiny_model as build_learner_model
from tiny_models import build_tiny_model, make_prompt, make_request, reference_logprobs

from gvm_ray.actors.pools import SamplingPools
from gvm_ray.config.environment import CalculatorConfig, FunctionEnvironmentConfig, SingleTurnConfig
from gvm_ray.config.run import EngineConfig
from gvm_ray.engines import create_engine
from gvm_ray.engines.server import EngineServer
from gvm_ray.engines.turns import episodes_by_sample, next_turns
from gvm_ray.envs.calculator import calculator, evaluate
from gvm_ray.envs.environments import Environment, create_environment
from gvm_ray.envs.prompt_env import PromptEnv
from gvm_ray.envs.vector_prompt_env import VectorPromptEnv
from gvm_ray.exceptions import ConfigError, ObjectsLost
from gvm_ray.learner.character_tokenizer import build_character_tokenizer
from gvm_ray.learner.sequences import pad_samples, train_sample
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.rollouts import turn_metrics
from gvm_ray.types import (
    Completion,
    GroupOutcome,
    GroupRef,
    OpenEpisodes,
    OpenOutcome,
    RolloutGroup,
    SampleRequest,
    SamplingParameters,
)

PROMPT = make_prompt("1+1=")
SAMPLING = SamplingParameters(temperature=1.0, max_tokens=24)


def is_zero(prompt: Any, completion: Completion) -> float:
    return float(completion.policy_turns[-1].endswith("0"))


def retry(prompt: Any, turns: Sequence[str]) -> str | None:
    return None if turns[-1].endswith("0") else "again"


ENVIRONMENT = Environment(respond=retry, max_turns=3, template="<{observation}>")


def said(text: str, *, turns: tuple[str, ...] = (), sampled: Sequence[bool] | None = None) -> Completion:
    """A finished completion of `text`, every character a token, and the end."""
    token_ids = [*build_character_tokenizer()(text)["input_ids"], 1]
    return Completion(
        token_ids=np.array(token_ids, dtype=np.int32),
        logprobs=-np.arange(1, len(token_ids) + 1, dtype=np.float32),
        policy_versions=np.full(len(token_ids), 3, dtype=np.int32),
        finish_reason="stop",
        text=text,
        turns=turns,
        sampled=None if sampled is None else np.array(sampled),
    )


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


# --- the engine -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def open_episodes(completions: Sequence[Completion], observations: Sequence[str]) -> OpenEpisodes:
    return OpenEpisodes(group=RolloutGroup.of(PROMPT, completions), observations=tuple(observations))


def continued(model_path: str, episodes: OpenEpisodes, request: SampleRequest) -> RolloutGroup:
    """The request's group with its next turn, sampled by the transformers engine."""

    async def run() -> list[RolloutGroup]:
        engine = create_engine("transformers", model_path, config=EngineConfig(type="transformers"), max_model_len=64)
        server = EngineServer(lambda: engine, in_flight="keep")
        groups = next_turns(
            server,
            [request],
            SAMPLING,
            episodes=episodes_by_sample([[episodes]]),
            tokenizer=build_character_tokenizer(),
        )
        return [group async for group in groups]

    (group,) = asyncio.run(run())
    return group


def test_the_next_turn_follows_what_was_said(model_path: str) -> None:
    first = [said("3"), said("4!")]
    group = continued(model_path, open_episodes(first, ["<no>", "<never>"]), make_request(PROMPT, num_samples=2))
    for before, observation, completion in zip(first, ["<no>", "<never>"], group.completions, strict=True):
        n, m = len(before.token_ids), len(observation)
        assert completion.token_ids[:n].tolist() == before.token_ids.tolist()
        assert build_character_tokenizer().decode(completion.token_ids[n : n + m]) == observation
        assert completion.sampled is not None
        assert completion.sampled.tolist() == [True] * n + [False] * m + [True] * (len(completion.token_ids) - n - m)
        assert completion.logprobs[:n].tolist() == before.logprobs.tolist()
        assert not completion.logprobs[n : n + m].any()
        assert completion.policy_versions[:n].tolist() == [3] * n
        assert completion.turns[0] == before.text
        assert completion.text == before.text + observation + completion.turns[1]
        assert len(completion.token_ids) <= SAMPLING.max_tokens
        expected = reference_logprobs(model_path, {}, prompt=PROMPT, completion=completion, temperature=1.0)
        np.testing.assert_allclose(completion.logprobs[n + m :], expected[n + m :], atol=1e-4)
    assert group.num_tokens.tolist() == [
        len(c.token_ids) - len(o) for c, o in zip(group.completions, ["<no>", "<never>"], strict=True)
    ]
    assert group.num_turns.tolist() == [2, 2]


def test_turns_have_seeds_of_their_own(model_path: str) -> None:
    episodes = open_episodes([said("3"), said("3")], ["", ""])
    same = SampleRequest(prompt=PROMPT, sample_indices=(0, 1), seeds=(5, 5))
    other = SampleRequest(prompt=PROMPT, sample_indices=(0, 1), seeds=(5, 6))
    first, second = continued(model_path, episodes, same).completions
    assert first.token_ids.tolist() == second.token_ids.tolist()
    first, second = continued(model_path, episodes, other).completions
    assert first.token_ids.tolist() != second.token_ids.tolist()


def test_an_answer_that_leaves_no_room_cuts_the_response(model_path: str) -> None:
    episodes = open_episodes([said("3"), said("4")], ["x" * 22, "x" * 21])
    group = continued(model_path, episodes, make_request(PROMPT, num_samples=2))
    assert group.truncated.tolist()[0]
    assert group.completion(0).token_ids.tolist() == said("3").token_ids.tolist()
    assert group.num_turns.tolist() == [1, 2]
    assert len(group.completion(1).token_ids) == SAMPLING.max_tokens


# --- the pools --------------------------------------------------------------------------------------------------------
class ScriptedGenerators:
    """Answers with outcomes: a sample's index says how many turns it takes. Loses the episodes when told to."""

    def __init__(self, *, lose: int = 0) -> None:
        self.asked: list[dict[str, tuple[int, ...]]] = []
        self._lose = lose
        self._turns: dict[tuple[str, int], int] = {}

    async def sample(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        *,
        score: Callable[..., Any],
        episodes: dict[Any, Any] | None = None,
    ) -> list[GroupOutcome | OpenOutcome]:
        self.asked.append({request.prompt.prompt_id: request.sample_indices for request in requests})
        if episodes is None:
            self._turns |= {(r.prompt.prompt_id, index): 0 for r in requests for index in r.sample_indices}
        else:
            assert set(episodes) == {(r.prompt.prompt_id, index) for r in requests for index in r.sample_indices}
            if self._lose:
                self._lose -= 1
                raise ObjectsLost("the node is gone")
        return [outcome for request in requests for outcome in self._outcomes(request)]

    def _outcomes(self, request: SampleRequest) -> list[GroupOutcome | OpenOutcome]:
        name = request.prompt.prompt_id
        for index in request.sample_indices:
            self._turns[name, index] += 1
        ref = GroupRef(ref=object(), index=0)
        over = [index for index in request.sample_indices if self._turns[name, index] > index]
        left = tuple(index for index in request.sample_indices if index not in over)
        outcomes: list[GroupOutcome | OpenOutcome] = (
            [OpenOutcome(prompt_id=name, sample_indices=left, ref=ref)] if left else []
        )
        if over:
            group = RolloutGroup.of(request.prompt, [said("0")] * len(over), sample_indices=tuple(over))
            outcomes.append(GroupOutcome.of(group, ref=ref))
        return outcomes


def sampled_by(generators: Any) -> list[GroupOutcome]:
    pools = SamplingPools(generators=generators, rewards=None, clock=PhaseClock())  # type: ignore[arg-type]
    requests = [make_request(make_prompt(name), num_samples=3) for name in ("b", "a")]
    return asyncio.run(pools.sample_and_score(requests, SAMPLING))


@pytest.mark.parametrize("lose", [0, 1, 2])
def test_every_sample_comes_back_once_and_in_order(lose: int) -> None:
    generators = ScriptedGenerators(lose=lose)
    outcomes = sampled_by(generators)
    assert [(o.prompt_id, o.sample_indices) for o in outcomes] == [(p, (i,)) for p in ("b", "a") for i in range(3)]
    if not lose:
        assert generators.asked == [
            {"b": (0, 1, 2), "a": (0, 1, 2)},
            {"b": (1, 2), "a": (1, 2)},
            {"b": (2,), "a": (2,)},
        ]


# --- the learner ------------------------------------------------------------------------------------------------------
def test_the_learner_reads_the_answers_but_does_not_learn_them(tmp_path: Path) -> None:
    from gvm_ray.learner.policy import PolicyModule, load_causal_lm

    build_learner_model(tmp_path)
    policy = PolicyModule(
        load_causal_lm(tmp_path, revision=None, trust_remote_code=False), temperature=1.0, chunk_tokens=8
    )
    mask = [True, True, False, False, True, True]
    with_answer = RolloutGroup.of(PROMPT, [said("12345", turns=("1", "4"), sampled=mask)])
    whole = RolloutGroup.of(PROMPT, [said("12345")])
    padded = pad_samples([train_sample(with_answer, 0), train_sample(whole, 0)], device=torch.device("cpu"))
    assert padded.mask.tolist() == [mask, [True] * 6]
    with torch.no_grad():
        logprobs, _ = policy(padded)
    assert not logprobs[0, 2:4].any()
    assert torch.equal(logprobs[0][padded.mask[0]], logprobs[1][padded.mask[0]])
    assert with_answer.num_tokens.tolist() == [4]


def test_turns_are_counted() -> None:
    def outcome(*turns: tuple[str, ...]) -> GroupOutcome:
        group = RolloutGroup.of(PROMPT, [said("x", turns=t) for t in turns])
        return GroupOutcome.of(group, ref=GroupRef(ref=None, index=0))

    assert turn_metrics([outcome((), ())]) == {}
    assert turn_metrics([outcome((), ()), outcome(("1", "2"), ("1", "2", "3"))]) == {
        "turns/mean": 1.75,
        "turns/max": 3.0,
    }


def test_a_selection_keeps_what_belongs_to_each_sample() -> None:
    group = RolloutGroup.of(PROMPT, [said("1"), said("22", turns=("2", "2"), sampled=[True, False, True]), said("3")])
    part = group.select([1, 2])
    assert part.sample_indices == (1, 2)
    assert part.texts == ("22", "3")
    assert part.num_tokens.tolist() == [2, 2]
    assert part.completion(0).turns == ("2", "2")
    assert part.completion(0).sampled is not None
    assert part.rewards is None
