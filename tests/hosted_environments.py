"""Environments of other libraries, for tests: verifiers environments of several kinds, and a gymnasium game."""

from typing import Any

import gymnasium
from gymnasium.spaces import Text

from gvm_ray.config.environments import GymnasiumEnvironmentConfig, VerifiersEnvironmentConfig

VERIFIERS = VerifiersEnvironmentConfig(id="tests.hosted_environments", arguments={"kind": "guess"})
GYMNASIUM = GymnasiumEnvironmentConfig(id="tests.hosted_environments:Guess-v0")
# What starts an episode of either.
START: dict[str, Any] = {
    "seed": 3,
    "example_id": 0,
    "task": "guess",
    "answer": "4",
    "info": {"hint": "even"},
    "prompt": [{"role": "user", "content": "Guess a digit."}],
}
SECRETS = ("4", "7", "0")


def right(completion: Any, answer: str) -> float:
    """1 if the answer is said anywhere."""
    said = completion if isinstance(completion, str) else " ".join(each["content"] for each in completion)
    return float(answer in said)


def short(completion: Any) -> float:
    """More for a shorter last message."""
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return 1.0 / (1 + len(text))


def broken(completion: Any) -> float:
    """A judge that can't be reached."""
    raise RuntimeError("no judge today")


def ranked(completions: Any) -> list[float]:
    """A reward of a whole group."""
    return [0.0 for _ in completions]


def load_environment(kind: str, num_rows: int = 3, evaluation: bool = False) -> Any:
    """The environment of a kind, as `verifiers.load_environment` asks for it."""
    import verifiers as vf
    from datasets import Dataset

    rows = [
        {"question": f"Guess digit {n}.", "answer": SECRETS[n % 3], "info": {"hint": "a digit"}}
        for n in range(num_rows)
    ]
    more: dict[str, Any] = {"eval_dataset": Dataset.from_list(rows[:1])} if evaluation else {}
    data = {"dataset": Dataset.from_list(rows), **more}
    rubric = vf.Rubric(funcs=[right, short], weights=[1.0, 0.5])
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    match kind:
        case "single":
            return vf.SingleTurnEnv(**data, system_prompt="Be brief.", rubric=rubric)
        case "guess":
            return _guess_class()(**data, rubric=rubric, max_turns=5)
        case "completion":
            texts = Dataset.from_list([{"prompt": "2+2=", "answer": "4"}])
            return vf.SingleTurnEnv(dataset=texts, message_type="completion", rubric=rubric)
        case "broken":
            return vf.SingleTurnEnv(**data, rubric=vf.RubricGroup([rubric, vf.Rubric(funcs=[broken])]))
        case "ranked":
            return vf.SingleTurnEnv(**data, rubric=vf.Rubric(funcs=[ranked]))
        case "tools":
            return vf.ToolEnv(**data, tools=[], rubric=rubric)
        case "pictures":
            return vf.SingleTurnEnv(dataset=Dataset.from_list([{"prompt": [picture], "answer": "4"}]), rubric=rubric)
        case "group":
            inner = [vf.SingleTurnEnv(**data, rubric=vf.Rubric(funcs=[f])) for f in (right, short)]
            return vf.EnvGroup(envs=inner, env_names=["first", "second"])
    raise ValueError(f"no kind {kind!r}")


def _guess_class() -> Any:
    import verifiers as vf

    class Guess(vf.MultiTurnEnv):
        """Says higher or lower until the digit is guessed."""

        async def setup_state(self, state: Any) -> Any:
            state["guesses"] = 0
            return state

        async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
            state["guesses"] += 1
            said = messages[-1]["content"].strip()
            if state["answer"] in said:
                state["final_env_response"] = [{"role": "user", "content": "right"}]
                return state["final_env_response"]
            word = "higher" if said < state["answer"] else "lower"
            return [{"role": "user", "content": f"{word} ({state['guesses']})"}]

    return Guess


class GuessGame(gymnasium.Env[str, str]):
    """Says higher or lower; 1 for the right digit, 0.1 off for each wrong one."""

    observation_space = Text(max_length=40)
    action_space = Text(max_length=40)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """A new digit, by the seed."""
        super().reset(seed=seed)
        self._secret = int(self.np_random.integers(10))
        return f"Guess a digit, game {seed}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The answer to a guess."""
        if str(self._secret) in action:
            return "right", 1.0, True, False, {}
        return ("higher" if action < str(self._secret) else "lower"), -0.1, False, False, {}


gymnasium.register("Guess-v0", entry_point=GuessGame, disable_env_checker=True)
