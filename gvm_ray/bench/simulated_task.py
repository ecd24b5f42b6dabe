"""Prompts without a tokenizer, of known difficulty, and the reward that goes with them. Imports nothing heavy."""

import random

import numpy as np

from gvm_ray.types import Completion, Prompt

REWARD_PATH = f"{__name__}:reward"


def simulated_prompts(
    num_prompts: int, *, num_tokens: int = 100, difficulty: tuple[float, float] = (0.7, 0.7), seed: int = 0
) -> list[Prompt]:
    """Prompts that all look alike; the accept rate of each is drawn from Beta(*difficulty), by default a wide one."""
    accept_rates = np.random.default_rng(seed).beta(*difficulty, size=num_prompts)
    token_ids = np.zeros(num_tokens, dtype=np.int32)
    return [
        Prompt(
            prompt_id=f"simulated-{index}",
            text="",
            token_ids=token_ids,
            answer="",
            features={"accept_rate": float(accept_rate)},
        )
        for index, accept_rate in enumerate(accept_rates)
    ]


def reward(prompt: Prompt, completion: Completion) -> float:
    """1 with the prompt's accept rate, else 0; always the same for the same text."""
    return float(random.Random(completion.text).random() < prompt.features["accept_rate"])
