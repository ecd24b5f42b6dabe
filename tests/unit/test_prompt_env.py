"""The environment: Gymnasium's own checker, finished against cut, unscored against worthless, one and many at once."""

import math
import warnings

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import gvm_ray.envs  # noqa: F401 - registers the environment
from gvm_ray.envs.prompt_env import PromptEnv, VectorPromptEnv
from gvm_ray.exceptions import ConfigError, DataError, DeadlineExceeded
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.rewards.format import FormatReward
from tests import builders

PROMPTS = (
    builders.prompt("a", text="1+1=", answer="2"),
    builders.prompt("b", text="naïve\n∑ 😀?", answer="3"),
    builders.prompt("c", text="2+2=", answer="4"),
)


def has_answer(prompt, completion):
    return float(prompt.answer in completion.text)


def brevity(prompt, completion):
    return -0.5 * len(completion.text)


def completion(text, *, finish_reason="stop", num_tokens=2):
    return builders.completion(text, finish_reason=finish_reason, num_tokens=num_tokens)


@pytest.fixture(scope="module")
def tokenizer():
    return build_character_tokenizer()


@pytest.mark.parametrize("max_tokens", [None, 1, 24])
def test_gymnasium_checks_it_without_a_warning(tokenizer, max_tokens):
    env = gymnasium.make(
        "gvm_ray/Prompt-v0", prompts=PROMPTS, reward=has_answer, max_tokens=max_tokens, tokenizer=tokenizer
    )
    assert isinstance(env.unwrapped, PromptEnv)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_a_response_is_scored_once_and_ends_the_episode():
    env = PromptEnv(PROMPTS, reward=has_answer)
    assert env.reset(options={"prompt_id": "b"}) == ("naïve\n∑ 😀?", {"prompt_id": "b"})
    observation, reward, terminated, truncated, info = env.step("it is 3")
    assert observation == "naïve\n∑ 😀?it is 3"
    assert observation in env.observation_space
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {"prompt_id": "b", "num_turns": 1, "reward_terms": {}, "unscored": False}
    with pytest.raises(ResetNeeded):
        env.step("it is 3")
    env.reset(options={"prompt_id": "a"})
    assert env.step("it is 3")[1] == 0.0


def test_a_step_before_the_first_reset_is_refused():
    with pytest.raises(ResetNeeded):
        PromptEnv(PROMPTS, reward=has_answer).step("2")


@pytest.mark.parametrize(("finish_reason", "ended"), [("stop", (True, False)), ("length", (False, True))])
def test_a_completion_says_itself_whether_it_was_cut(finish_reason, ended):
    env = PromptEnv(reward=has_answer, max_tokens=2)  # no prompts, no tokenizer: each reset names its prompt
    text, info = env.reset(options={"prompt": PROMPTS[0]})
    assert (text, info["prompt_id"]) == ("1+1=", "a")
    _, reward, terminated, truncated, info = env.step(completion("2", finish_reason=finish_reason))
    assert reward == 1.0
    assert (terminated, truncated) == ended
    assert info["num_tokens"] == 2


def test_a_plain_string_is_cut_when_no_room_is_left_for_its_end(tokenizer):
    env = PromptEnv(PROMPTS, reward=has_answer, max_tokens=4, tokenizer=tokenizer)
    for response, ended in (("123", (True, False)), ("1234", (False, True)), ("12345", (False, True))):
        env.reset(seed=0)
        *_, terminated, truncated, info = env.step(response)
        assert (terminated, truncated) == ended
        assert info["num_tokens"] == len(response)


def test_a_plain_string_needs_a_tokenizer_to_be_measured():
    env = PromptEnv(PROMPTS, reward=has_answer, max_tokens=4)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="max_tokens=4 but no tokenizer"):
        env.step("2")


def raises_timeout(prompt, completion):
    raise DeadlineExceeded("reward took longer than 5 s")


@pytest.mark.parametrize(
    "reward",
    [lambda p, c: None, lambda p, c: math.nan, lambda p, c: math.inf, raises_timeout, {"slow": raises_timeout}],
    ids=["none", "nan", "infinite", "timeout", "timeout of a term"],
)
def test_what_cannot_be_scored_is_not_worth_zero(reward):
    env = PromptEnv(PROMPTS, reward=reward)
    env.reset(seed=0)
    _, value, terminated, _, info = env.step("2")
    assert math.isnan(value)
    assert info["unscored"] is True
    assert info["reward_terms"] == {}
    assert terminated


def test_a_mistake_in_a_reward_is_not_hidden():
    def broken(prompt, completion):
        raise KeyError("answer")

    env = PromptEnv(PROMPTS, reward=broken)
    env.reset(seed=0)
    with pytest.raises(KeyError):
        env.step("2")


class Combined:
    """A reward with terms of its own."""

    def __call__(self, prompt, completion):
        return 10.0

    def terms(self, prompt, completion):
        return {"answer": has_answer(prompt, completion)}


def test_reward_terms_come_from_a_mapping_or_from_the_reward_itself():
    env = PromptEnv(PROMPTS, reward={"answer": has_answer, "brevity": brevity})
    env.reset(options={"prompt_id": "a"})
    _, reward, _, _, info = env.step("2.")
    assert reward == 0.0  # 1 for the answer, -0.5 for each of 2 characters
    assert info["reward_terms"] == {"answer": 1.0, "brevity": -1.0}

    env = PromptEnv(PROMPTS, reward=Combined())
    env.reset(options={"prompt_id": "a"})
    _, reward, _, _, info = env.step("2")
    assert reward == 10.0
    assert info["reward_terms"] == {"answer": 1.0}


def test_resets_draw_every_prompt_and_repeat_with_the_seed():
    env = PromptEnv(PROMPTS, reward=has_answer)
    drawn = [env.reset(seed=5 if i == 0 else None)[1]["prompt_id"] for i in range(30)]
    assert set(drawn) == {"a", "b", "c"}
    assert drawn == [env.reset(seed=5 if i == 0 else None)[1]["prompt_id"] for i in range(30)]


def test_wrong_options_and_missing_prompts_are_refused():
    env = PromptEnv(PROMPTS, reward=has_answer)
    with pytest.raises(DataError, match="no prompt 'z' among its 3"):
        env.reset(options={"prompt_id": "z"})
    with pytest.raises(ConfigError, match=r"doesn't know options \['id'\]; write 'prompt_id'"):
        env.reset(options={"id": "a"})
    with pytest.raises(DataError, match="made without prompts"):
        PromptEnv(reward=has_answer).reset()


def test_the_action_space_holds_strings_and_completions():
    space = PromptEnv(PROMPTS, reward=has_answer).action_space
    assert "any text 😀\n" in space
    assert completion("2") in space
    assert 3 not in space
    assert all(space.sample() in space for _ in range(20))


def test_the_vector_form_scores_a_batch_and_goes_on_with_new_prompts(tokenizer):
    envs = gymnasium.make_vec(
        "gvm_ray/Prompt-v0",
        num_envs=3,
        prompts=PROMPTS,
        reward={"answer": has_answer},
        max_tokens=4,
        tokenizer=tokenizer,
    )
    assert isinstance(envs, VectorPromptEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observations, infos = envs.reset(options={"prompt_ids": ["c", "a", "a"]})
    assert observations == ("2+2=", "1+1=", "1+1=")
    assert infos["prompt_id"].tolist() == ["c", "a", "a"]
    observations, rewards, terminated, truncated, infos = envs.step(["4", "3", completion("2", finish_reason="length")])
    assert rewards.tolist() == [1.0, 0.0, 1.0]
    assert terminated.tolist() == [True, True, False]
    assert truncated.tolist() == [False, False, True]
    assert infos["final_obs"].tolist() == ["2+2=4", "1+1=3", "1+1=2"]
    assert infos["final_info"]["reward_terms"]["answer"].tolist() == [1.0, 0.0, 1.0]
    assert infos["final_info"]["prompt_id"].tolist() == ["c", "a", "a"]
    assert [prompt.text for prompt in PROMPTS if prompt.prompt_id == infos["prompt_id"][0]] == [observations[0]]
    assert observations in envs.observation_space
    envs.step(envs.action_space.sample())


def test_the_vector_form_draws_as_its_seeds_say_and_names_wrong_options():
    envs = VectorPromptEnv(2, prompts=PROMPTS, reward=has_answer)
    single = PromptEnv(PROMPTS, reward=has_answer)
    assert envs.reset(seed=7)[0] == (single.reset(seed=7)[0], single.reset(seed=8)[0])
    assert envs.reset(seed=[8, 7])[0] == (single.reset(seed=8)[0], single.reset(seed=7)[0])
    with pytest.raises(ConfigError, match="has 1 entries for 2 environments"):
        envs.reset(options={"prompts": PROMPTS[:1]})
    with pytest.raises(ConfigError, match="write 'prompt_ids' or 'prompts'"):
        envs.reset(options={"prompt_id": "a"})
    with pytest.raises(DataError, match="write prompts="):
        VectorPromptEnv(2, prompts=(), reward=has_answer)


def test_gymnasiums_own_vector_form_works_too():
    envs = gymnasium.make_vec(
        "gvm_ray/Prompt-v0", num_envs=2, vectorization_mode="sync", prompts=PROMPTS, reward=has_answer
    )
    observations, infos = envs.reset(seed=0)
    answers = [prompt.answer for pid in infos["prompt_id"] for prompt in PROMPTS if prompt.prompt_id == pid]
    finals, rewards, terminated, *_ = envs.step((answers[0], "no"))
    assert finals == (observations[0] + answers[0], observations[1] + "no")
    assert rewards.tolist() == [1.0, 0.0]
    assert terminated.all()


THINKS_FIRST = FormatReward(r"^<think>.+</think>")


@pytest.mark.parametrize("opened", ["<think>", "<think>\n", "<think>\n\n"])
def test_rewards_read_a_response_from_the_tag_on_that_the_prompt_opened(opened):
    prompt = builders.prompt("a", text=f"<|im_start|>assistant\n{opened}", answer="2")
    env = PromptEnv([prompt], reward={"format": THINKS_FIRST, "brevity": brevity})
    env.reset()
    observation, reward, _, _, info = env.step(completion("1+1</think>2"))
    assert info["reward_terms"] == {"format": 1.0, "brevity": -0.5 * (len(opened) + 12)}
    assert observation == prompt.text + "1+1</think>2"
    assert reward == 1.0 - 0.5 * (len(opened) + 12)


@pytest.mark.parametrize("text", ["assistant\n<think>\n\n</think>\n", "<think> is a tag", "<bot>"])
def test_other_prompts_add_nothing_to_what_rewards_read(text):
    env = PromptEnv([builders.prompt("a", text=text, answer="2")], reward={"format": THINKS_FIRST, "brevity": brevity})
    env.reset()
    assert env.step(completion("1+1</think>2"))[-1]["reward_terms"] == {"format": 0.0, "brevity": -6.0}
