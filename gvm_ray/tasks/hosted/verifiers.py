"""An environment of the `verifiers` library: data set, turns and rubric."""

import asyncio
import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gvm_ray.config.environments import VerifiersEnvironmentConfig
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.tasks.hosted import Entry, Score, start_of
from gvm_ray.types import Prompt

# Parameters by which the library tells a reward function of a whole group from one of a single rollout.
_OF_GROUPS = {"states", "prompts", "completions", "answers", "tasks", "infos"}


class VerifiersEnvironment:
    """Rollouts of a verifiers environment, whose tokens our engines sample.

    Its data set gives the prompts, its `env_response` the text between turns, its rubric the score. A turn is one
    assistant message. Not possible, and refused: tools, which want a server that parses calls out of the text, and
    reward functions that compare the samples of a group.

    Raises:
        ConfigError: the environment is not installed, or of a kind that is refused.
    """

    def __init__(self, config: VerifiersEnvironmentConfig) -> None:
        import verifiers

        self._id = config.id
        try:
            self._env: Any = verifiers.load_environment(config.id, **config.arguments)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"environment.id={config.id!r} with arguments {config.arguments}: {error}") from error
        environments = self._env.envs if isinstance(self._env, verifiers.EnvGroup) else [self._env]
        for environment in environments:
            self._check(environment)
        self._failures = _Failures()
        for rubric in _rubrics(each.rubric for each in [self._env, *environments]):
            rubric.logger.addHandler(self._failures)

    def _check(self, environment: Any) -> None:
        import verifiers

        if isinstance(environment, verifiers.ToolEnv):
            raise ConfigError(
                f"environment.id={self._id!r} is a {type(environment).__name__}: tools need a server that parses calls "
                "out of the response, which would take the tokens out of the engine's hands; take an environment "
                "without tools, or write its turns as a function (environment.type = 'function')"
            )
        if not isinstance(environment, verifiers.MultiTurnEnv):
            raise ConfigError(
                f"environment.id={self._id!r} is a {type(environment).__name__}, which samples by a loop of its own; "
                "take a SingleTurnEnv or a MultiTurnEnv"
            )
        functions = [function for rubric in _rubrics([environment.rubric]) for function in rubric.funcs]
        of_groups = [f.__name__ for f in functions if _OF_GROUPS & inspect.signature(f).parameters.keys()]
        if of_groups:
            raise ConfigError(
                f"environment.id={self._id!r}: its reward functions {', '.join(of_groups)} compare the samples of a "
                "group, but responses are scored one by one here; take functions of one completion"
            )

    def entries(self, *, split: str, size: int | None, seed: int) -> Sequence[Entry]:
        """The rows of the training or evaluation data set, in their order."""
        rows = self._env.get_eval_dataset() if split == "eval" else self._env.get_dataset()
        if not len(rows):
            raise DataError(f"environment {self._id!r} has no row in its {split} data set")
        return [self._entry(row) for row in rows.select(range(min(len(rows), size or len(rows))))]

    def _entry(self, row: Mapping[str, Any]) -> Entry:
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            for message in prompt:
                if not isinstance(message.get("content"), str):
                    raise DataError(
                        f"environment {self._id!r}, example {row['example_id']}: the {message.get('role')} message has "
                        f"a content of type {type(message.get('content')).__name__}; only text can be sampled from"
                    )
            prompt = [{"role": message["role"], "content": message["content"]} for message in prompt]
        start = {key: row[key] for key in ("example_id", "task", "answer", "info") if row.get(key) is not None}
        answer = start.get("answer", "")
        return Entry(
            messages=prompt,
            answer=answer if isinstance(answer, str) else str(answer),
            start={**start, "prompt": prompt},
        )

    def respond(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        """The contents of the messages that the environment answers the last turn with; None if it stops."""
        return asyncio.run(self._respond(prompt, turns))

    async def _respond(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        environment, state = await self._played(prompt, turns)
        if await environment.is_completed(state):
            return None
        read = len(state["trajectory"][-1]["prompt"]) + 1  # and the policy's own message
        messages = await environment.get_prompt_messages(state)
        if state.get("final_env_response") is not None:
            return None
        new = messages[read:] if not isinstance(messages, str) else messages[len(_joined(state)) :]
        return new if isinstance(new, str) else "\n".join(str(message["content"]) for message in new)

    def score(self, prompt: Prompt, turns: Sequence[str], *, cut: bool) -> Score:
        """The rubric's weighted sum, and each of its functions as a metric.

        The library gives 0 to a response whose reward function raised, and logs that; here the error is raised.
        """
        self._failures.messages.clear()
        state = asyncio.run(self._scored(prompt, turns, cut=cut))
        if self._failures.messages:
            raise RuntimeError(f"environment {self._id!r}: {self._failures.messages[0]}")
        return Score(reward=float(state["reward"]), metrics={k: float(v) for k, v in state["metrics"].items()})

    async def _scored(self, prompt: Prompt, turns: Sequence[str], *, cut: bool) -> Any:
        environment, state = await self._played(prompt, turns)
        state["trajectory"][-1]["is_truncated"] = state["is_truncated"] = cut
        if not await environment.is_completed(state):
            await environment.get_prompt_messages(state)  # its last word, if it has one, is scored too
            await environment.is_completed(state)  # closes what the episode opened
        await environment.render_completion(state)
        await self._env.rubric.score_rollout(state)
        return state

    async def _played(self, prompt: Prompt, turns: Sequence[str]) -> tuple[Any, Any]:
        """The environment of the prompt's task, and the state of the episode after these turns."""
        start = start_of(prompt)
        environment = self._env.get_env_for_task(start["task"]) if hasattr(self._env, "envs") else self._env
        state = await environment.init_state(dict(start), client=None, model="policy")
        state = await environment.setup_state(state)
        for turn in turns:
            messages = await environment.get_prompt_messages(state)
            completion = turn if isinstance(messages, str) else [{"role": "assistant", "content": turn}]
            step = {"prompt": messages, "completion": completion, "response": None, "tokens": None, "reward": None}
            step |= {"advantage": None, "is_truncated": False, "trajectory_id": state["trajectory_id"], "extras": {}}
            await environment.add_trajectory_step(state, step)
        return environment, state


class _Failures(logging.Handler):
    """Errors that the library logs and goes on from."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _rubrics(rubrics: Iterable[Any]) -> list[Any]:
    """The rubrics, and those inside them."""
    found: list[Any] = []
    for rubric in rubrics:
        found += [rubric, *_rubrics(getattr(rubric, "rubrics", []))]
    return found


def _joined(state: Any) -> str:
    last = state["trajectory"][-1]
    return last["prompt"] + last["completion"]
