"""Stepping the environment by hand: reset gives a prompt, step scores a response; then the vector form.

python examples/prompt_env.py
"""

from pathlib import Path

import gymnasium

import gvm_ray.envs  # registers gvm_ray/Prompt-v0
import gvm_ray.tasks
from gvm_ray.config import load_config
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.rewards import create_reward

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.toml"


def main() -> None:
    """Score a right, a wrong and an unfinished response, then two at once."""
    config = load_config(CONFIG)
    tokenizer = build_character_tokenizer()
    prompts = gvm_ray.tasks.load_prompts(config.prompts, tokenizer).train
    settings = {"prompts": prompts, "reward": create_reward(config.rewards), "max_tokens": 16, "tokenizer": tokenizer}

    env = gymnasium.make("gvm_ray/Prompt-v0", **settings)
    for response in ("\\boxed{ANSWER}", "\\boxed{9}", "1 2 3 4 1 2 3 4 1"):
        prompt, info = env.reset(seed=0)
        answer = next(p.answer for p in prompts if p.prompt_id == info["prompt_id"])
        response = response.replace("ANSWER", answer)
        _, reward, terminated, truncated, _ = env.step(response)
        print(f"{prompt!r} {response!r}: {reward=} {terminated=} {truncated=}")

    envs = gymnasium.make_vec("gvm_ray/Prompt-v0", num_envs=2, **settings)
    observations, _ = envs.reset(seed=0)
    _, rewards, *_ = envs.step(("\\boxed{0}", "\\boxed{1}"))
    print(observations, rewards)


if __name__ == "__main__":
    main()
