"""The prompt environment of gymnasium's shape, single and vector: reset gives a prompt, step takes a response."""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from gvm_ray.envs.environments import Environment
from gvm_ray.exceptions import ConfigError, DataError, SystemFailure
from gvm_ray.protocols import RewardFunction
from gvm_ray.types import BoolArray, Completion, FinishReason, Float64Array, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLED_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"


class AnyText(Text):
    """The space of all strings. Samples are short and consist of ASCII characters.

    A shared buffer of fixed size can't hold such strings, so Gymnasium's AsyncVectorEnv needs shared_memory=False.
    """

    def __init__(self, *, max_sample_length: int = 32) -> None:
        """A space whose samples have at most `max_sample_length` characters."""
        super().__init__(max_sample_length, min_length=0, charset=SAMPLED_CHARACTERS)

    def contains(self, x: Any) -> bool:
        """True for every string."""
        return isinstance(x, str)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ResponseSpace(AnyText):
    """The space of responses: any string, or an engine's `Completion`. Samples are strings."""

    def contains(self, x: Any) -> bool:
        """True for every string and every completion."""
        return isinstance(x, (str, Completion))


class PromptEnv(gymnasium.Env[str, str | Completion]):
    """A Gymnasium environment over prompts. An action is the policy's text of one turn.

    `reset` observes the prompt's text. If the `environment` answers a turn, `step` observes its answer, with reward 0.
    Otherwise, and always without an `environment`, the episode is over: the observation is the whole transcript,
    prompt included; `terminated` means that the response was finished, `truncated` that it was cut at `max_tokens`.

    If the prompt ends with an open `<think>` tag, rewards get the response's text with that tag in front.

    The info of `reset` has `prompt_id`. The info of `step` also has `num_turns` and, at the end, `reward_terms` (name
    -> value), `unscored` (True if the reward isn't known; it is then NaN, never 0) and, if known, `num_tokens` of the
    response.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as declared by gymnasium

    def __init__(
        self,
        prompts: Sequence[Prompt] = (),
        *,
        reward: RewardFunction | Mapping[str, RewardFunction],
        max_tokens: int | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        environment: Environment | None = None,
    ) -> None:
        """Create an environment over `prompts`.

        Args:
            prompts: `reset` draws from them; may be empty if each reset names its prompt.
            reward: The reward function. A mapping gives the sum of its functions, and each as a reward term. The terms
                of a function come from its method `terms(prompt, completion) -> dict[str, float]`, if it has one.
            max_tokens: Response tokens at which a plain string counts as cut. A completion has its own finish reason.
            tokenizer: Counts the tokens of plain strings, which needs it if max_tokens is given.
            environment: Answers between the policy's turns.
        """
        self._prompts = tuple(prompts)
        self._by_id = {prompt.prompt_id: prompt for prompt in self._prompts}
        self._reward = reward
        self._max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._environment = environment
        self._prompt: Prompt | None = None
        self._turns: tuple[str, ...] = ()  # the plain strings so far
        self._response = ""  # the same, with the environment's answers between them
        # A sampled action has fewer tokens than max_tokens, so that it counts as finished.
        sample_length = 32 if max_tokens is None else min(32, max_tokens - 1)
        self.observation_space = AnyText()
        self.action_space = ResponseSpace(max_sample_length=sample_length)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin with a random prompt, or the one in `options`: {"prompt_id": str} or {"prompt": Prompt}.

        Raises:
            DataError: the prompt is unknown, or there are no prompts.
            ConfigError: an option is unknown.
        """
        super().reset(seed=seed)
        self._prompt = self._chosen(options or {})
        self._turns, self._response = (), ""
        return self._prompt.text, {"prompt_id": self._prompt.prompt_id}

    def step(self, action: str | Completion) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one more turn, or score the response. A completion contains all turns so far.

        Raises:
            ResetNeeded: before `reset`, and after the end of an episode.
            ConfigError: the action is a plain string, and there is max_tokens but no tokenizer to count with.
        """
        if self._prompt is None:
            raise ResetNeeded("PromptEnv.step needs a prompt: call reset first, and again after each episode")
        completion = self._completion(action) if isinstance(action, str) else action
        info: dict[str, Any] = {"prompt_id": self._prompt.prompt_id, "num_turns": len(completion.policy_turns)}
        if self._environment is not None and completion.finish_reason == "stop":
            answer = self._environment(self._prompt, completion.policy_turns)
            if answer is not None:
                self._turns, self._response = completion.policy_turns, completion.text + answer
                return answer, 0.0, False, False, info
        # A reward reads the same text whether the prompt or the response has the opening tag.
        whole = replace(completion, text=self._prompt.opened_tag + completion.text)
        reward, terms = _scored(self._reward, self._prompt, whole)
        info |= {"reward_terms": terms, "unscored": math.isnan(reward)}
        if len(completion.token_ids) or self._tokenizer is not None or isinstance(action, Completion):
            info["num_tokens"] = len(completion.token_ids)
        observation = self._prompt.text + completion.text
        self._prompt = None
        return observation, reward, completion.finish_reason == "stop", completion.finish_reason == "length", info

    def _chosen(self, options: Mapping[str, Any]) -> Prompt:
        if unknown := options.keys() - {"prompt_id", "prompt"}:
            raise ConfigError(f"PromptEnv.reset doesn't know options {sorted(unknown)}; write 'prompt_id' or 'prompt'")
        if (prompt := options.get("prompt")) is not None:
            return prompt
        if (prompt_id := options.get("prompt_id")) is not None:
            if prompt_id not in self._by_id:
                raise DataError(f"PromptEnv has no prompt {prompt_id!r} among its {len(self._prompts)} prompts")
            return self._by_id[prompt_id]
        if not self._prompts:
            raise DataError("PromptEnv was made without prompts; give it some, or reset(options={'prompt': ...})")
        return self._prompts[int(self.np_random.integers(len(self._prompts)))]

    def _completion(self, turn: str) -> Completion:
        """A completion of the turns so far and this one; log-probs and policy version are unknown."""
        text = self._response + turn
        finish_reason: FinishReason = "stop"
        ids: list[int] = []
        if self._tokenizer is not None:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            # A finished response has an end-of-sequence token in addition.
            finish_reason = "length" if self._max_tokens is not None and len(ids) >= self._max_tokens else "stop"
        elif self._max_tokens is not None:
            raise ConfigError(
                f"PromptEnv has max_tokens={self._max_tokens} but no tokenizer to count the tokens of a plain string; "
                "give it tokenizer=..., or step with a Completion"
            )
        return Completion(
            token_ids=np.array(ids, dtype=np.int32),
            logprobs=np.full(len(ids), np.nan, dtype=np.float32),
            policy_versions=np.full(len(ids), -1, dtype=np.int32),
            finish_reason=finish_reason,
            text=text,
            turns=(*self._turns, turn) if self._turns else (),
        )


def _scored(
    reward: RewardFunction | Mapping[str, RewardFunction], prompt: Prompt, completion: Completion
) -> tuple[float, dict[str, float]]:
    """The reward and its terms; NaN and no terms if it can't be known."""
    try:
        if isinstance(reward, Mapping):
            terms = {name: float(function(prompt, completion)) for name, function in reward.items()}
            value = sum(terms.values())
        else:
            value = reward(prompt, completion)
            find_terms = getattr(reward, "terms", None)
            terms = {} if find_terms is None else dict(find_terms(prompt, completion))
    except SystemFailure:  # e.g. the reward's own time limit
        return math.nan, {}
    if value is None or not math.isfinite(value):
        return math.nan, {}
    return float(value), terms


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VectorPromptEnv(VectorEnv[tuple[str, ...], Sequence[str | Completion], np.ndarray]):
    """`num_envs` environments side by side. When an episode ends, the same call returns a new prompt, and
    `infos["final_obs"]` and `infos["final_info"]` belong to the response just scored.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        prompts: Sequence[Prompt],
        reward: RewardFunction | Mapping[str, RewardFunction],
        max_tokens: int | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        environment: Environment | None = None,
    ) -> None:
        """Create the environments; see `PromptEnv` for the arguments.

        Raises:
            DataError: there are no prompts, but each step draws new ones.
        """
        if not prompts:
            raise DataError("VectorPromptEnv draws new prompts after each step, but was given none; write prompts=...")
        self.num_envs = num_envs
        self._envs = [
            PromptEnv(prompts, reward=reward, max_tokens=max_tokens, tokenizer=tokenizer, environment=environment)
            for _ in range(num_envs)
        ]
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.single_observation_space = self._envs[0].observation_space
        self.single_action_space = self._envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Begin with a prompt in each environment, drawn at random or given by `options`.

        Args:
            seed: One for each environment; a number s stands for s, s + 1, ...
            options: Which prompts.

        Raises:
            ConfigError: an option is unknown or has the wrong length.
            DataError: a prompt is unknown.
        """
        if isinstance(seed, int):
            seed = range(seed, seed + self.num_envs)
        seeds = [None] * self.num_envs if seed is None else seed
        choices = self._choices(options or {})
        infos: dict[str, Any] = {}
        observations: list[str] = []
        for i, (env, env_seed, choice) in enumerate(zip(self._envs, seeds, choices, strict=True)):
            observation, info = env.reset(seed=env_seed, options=choice)
            observations.append(observation)
            infos = self._add_info(infos, info, i)
        return tuple(observations), infos

    def step(
        self, actions: Sequence[str | Completion]
    ) -> tuple[tuple[str, ...], Float64Array, BoolArray, BoolArray, dict[str, Any]]:
        """Take one turn or response in each environment.

        Returns:
            New prompts or answers to a turn, rewards [num_envs] (NaN = unscored), terminated [num_envs], truncated
            [num_envs], infos.
        """
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        observations: list[str] = []
        for i, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
            observation, rewards[i], terminated[i], truncated[i], info = env.step(action)
            if terminated[i] or truncated[i]:
                ended = {"final_obs": observation, "final_info": info}
                observation, info = env.reset()
                info |= ended
            observations.append(observation)
            infos = self._add_info(infos, info, i)
        return tuple(observations), rewards, terminated, truncated, infos

    def _choices(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The reset options of each environment."""
        if unknown := options.keys() - {"prompt_ids", "prompts"}:
            raise ConfigError(
                f"VectorPromptEnv.reset doesn't know options {sorted(unknown)}; write 'prompt_ids' or 'prompts'"
            )
        choices: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for name, values in options.items():
            if len(values) != self.num_envs:
                raise ConfigError(
                    f"options[{name!r}] has {len(values)} entries for {self.num_envs} environments; write one for each"
                )
            for choice, value in zip(choices, values, strict=True):
                choice[name.removesuffix("s")] = value
        return choices
