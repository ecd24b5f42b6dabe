"""A small comparison's settings and its family's run, as plain values and as TOML."""

from typing import Any

RUN_TOML = """\
name = "any"
prompts_per_step = 4
samples_per_prompt = 8
model = { type = "scratch" }

[prompts.train]
type = "arithmetic"
size = 40

[prompts.eval]
type = "arithmetic"
size = 10

[allocator]
type = "gvm"
pilot_samples = 2

[algorithm]
type = "raft++"
updates_per_batch = 2
"""
COMPARISON: dict[str, Any] = {
    "name": "mine",
    "token_budget": 1000,
    "prefill_price": 0.5,
    "exploration_seeds": [0, 1],
    "confirmation_seeds": [7, 8, 9],
    "families": [
        {
            "name": "sums",
            "config": "run.toml",
            "bases": [{"name": "a"}, {"name": "b", "set": {"model": {"seed": 5}}}],
            "training_sets": [
                {"name": "small", "test": {"size": 20}},
                {"name": "large", "set": {"prompts": {"train": {"size": 80}}}},
            ],
        }
    ],
    "algorithms": [{"name": "raft"}, {"name": "grpo", "set": {"algorithm": {"type": "grpo", "updates_per_batch": 3}}}],
    "arms": [
        {"name": "uniform", "set": {"allocator": {"type": "uniform"}}},
        {
            "name": "pool",
            "set": {"allocator": {"type": "gvm_pool", "candidates_per_step": 16}},
            "by_algorithm": {"grpo": {"learner": {"optimizer": {"learning_rate": 1e-4}}}},
        },
    ],
}
